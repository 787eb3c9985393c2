"""Optimisers, and schedules of their learning rates."""

from . import optimizers, schedules
from .optimizers import *
from .optimizers import Optimizer
from .schedules import *
from .schedules import Schedule

__all__ = ["Optimizer", "Schedule"]
__all__ += optimizers.__all__
__all__ += schedules.__all__
