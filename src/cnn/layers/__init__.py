"""Layers, one concept per file. Each runs standalone, forward and backward; a `Sequential` compiles them together."""

from . import activations, branches, columns, constant, dropout, linear, normalization, prelu, softmax
from .activations import *
from .activations import Activation as Activation
from .base import Chain as Chain
from .base import Layer as Layer
from .base import Parametric as Parametric
from .branches import *
from .branches import Branches as Branches
from .columns import *
from .constant import *
from .dropout import *
from .linear import *
from .normalization import *
from .prelu import *
from .softmax import *

__all__: list[str] = []
__all__ += activations.__all__
__all__ += branches.__all__
__all__ += columns.__all__
__all__ += constant.__all__
__all__ += dropout.__all__
__all__ += linear.__all__
__all__ += normalization.__all__
__all__ += prelu.__all__
__all__ += softmax.__all__
__dir__ = __all__.copy  # for completion
