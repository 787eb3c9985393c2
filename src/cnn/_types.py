"""Types of the public signatures: for type checkers, since numpy.typing takes time to import."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import ArrayLike as ArrayLike
    from numpy.typing import DTypeLike as DTypeLike
    from numpy.typing import NDArray
    from typing_extensions import Self as Self

    Array: TypeAlias = NDArray[np.floating[Any]]  # float32 or float64, by the model's dtype
else:
    Array = ArrayLike = DTypeLike = Self = Any
