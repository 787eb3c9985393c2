"""`Constant`: outputs that are parameters, for any input."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .._checks import integer
from .._types import Array, ArrayLike, DTypeLike
from .base import Layer, Parametric, width_of

__all__ = ["Constant"]


class Constant(Parametric):
    """y = b for any x: trainable outputs that do not depend on the inputs.

    Parameters
    ----------
    out_features : int
        Width of y, at least 1.
    init : float or array_like of shape (out_features,)
        Initial value of b, finite.
    dtype : {"float32", "float64"}
        Of b in a standalone layer; in a model, the model's dtype applies.

    Attributes
    ----------
    bias : ndarray of shape (out_features,)
        b.
    grad_bias : ndarray of shape (out_features,)
        Its gradient; `backward` accumulates into it.

    Notes
    -----
    It is mostly used in a branch: a policy with a state-independent log standard deviation is
    ``Concat(Linear(64, 6), Constant(6, init=-0.5))``.

    Examples
    --------
    >>> Constant(2, init=-0.5)([[1.0, 2.0, 3.0]])
    array([[-0.5, -0.5]], dtype=float32)
    """

    op = "constant"
    torch_name = None
    has_bias = True
    positional: ClassVar[tuple[str, ...]] = ("out_features",)
    _fixed = ("out_features", "init")

    def __init__(self, out_features: int, init: float | ArrayLike = 0.0, *, dtype: DTypeLike = "float32") -> None:
        self.out_features: int = integer("out_features", out_features, 1)
        numbers = np.asarray(init)
        if numbers.dtype.kind not in "fiu":
            raise TypeError(f"init: expected a number, or one for each output, got {init!r}")
        if numbers.shape not in ((), (self.out_features,)):
            raise ValueError(f"init: expected a number, or {self.out_features} of them, got shape {numbers.shape}")
        if not np.isfinite(numbers).all():
            raise ValueError(f"init: expected finite numbers, got {init!r}")
        self.init: Any = numbers.astype(np.float64).tolist()
        super().__init__(dtype)

    def _draw(self, bits):
        return {"weight": None, "bias": np.full(self.out_features, self.init, self.dtype)}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"bias": (self.out_features,)}

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.out_features)

    def _changes_width(self):
        return True

    @classmethod
    def _stored_numbers(cls, config):
        n = width_of(config, "out_features")
        return n, n

    def forward(self, x: ArrayLike) -> Array:
        """Return b for each row of x.

        Parameters
        ----------
        x : array_like of shape (batch, in_features)
            Of any width.

        Returns
        -------
        ndarray of shape (batch, out_features)
            Of the layer's dtype.

        Raises
        ------
        ValueError, TypeError
            If x is a scalar, or does not consist of real numbers.
        """
        if not np.ndim(x):
            raise ValueError("x: expected shape (batch, in_features), got ()")
        return super().forward(x)

    def _to_onnx(self, graph, x):
        from onnx import TensorProto

        number = TensorProto.DOUBLE if graph.float64 else TensorProto.FLOAT
        # A zero for each row, even if it contains NaN or infinity: an index times 0.
        zero = x.op("ArgMax", axis=-1, keepdims=1).op("Cast", to=number) * 0.0
        return zero + graph.parameter("bias", self.bias)

    def _to_c(self, code):
        code.assign(f"{code.parameter('bias')}[j]")

    def _c_backward(self, code, g):
        """Nothing: y does not depend on x."""

    _c_tangent = _c_second = Layer._c_no_second

    def _c_gradient(self, code, g):
        code.assign(f"{g}[j]", code.gradient("bias"), "+=")
