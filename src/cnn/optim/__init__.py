"""Optimisers, and schedules of their learning rates."""

from . import optimizers, schedules, second_order, whole_data
from .optimizers import *
from .optimizers import Optimizer
from .schedules import *
from .schedules import Schedule
from .second_order import *
from .whole_data import *

__all__ = ["Optimizer", "Schedule"]
__all__ += optimizers.__all__
__all__ += schedules.__all__
__all__ += whole_data.__all__
__all__ += second_order.__all__
__dir__ = __all__.copy  # for completion
