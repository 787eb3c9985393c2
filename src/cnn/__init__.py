"""Cython neural networks: multilayer perceptrons on the CPU at the speed of the hardware."""

__version__ = "0.1.0"

from . import functional
from ._config import show_config
from ._threads import get_num_threads, set_num_threads
from .checkpoint import load
from .layers import (
    ELU,
    GELU,
    Identity,
    LeakyReLU,
    Linear,
    ReLU,
    Sigmoid,
    SiLU,
    Softplus,
    Tanh,
)
from .losses import CrossEntropyLoss, MSELoss
from .optim import SGD, Adagrad, Adam, AdamW, RMSprop
from .schedules import (
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from .sequential import Sequential
from .training import DivergenceError, History

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CrossEntropyLoss",
    "DivergenceError",
    "ExponentialLR",
    "History",
    "Identity",
    "LeakyReLU",
    "Linear",
    "LinearLR",
    "MSELoss",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "RMSprop",
    "ReLU",
    "ReduceLROnPlateau",
    "Sequential",
    "SequentialLR",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "StepLR",
    "Tanh",
    "functional",
    "get_num_threads",
    "load",
    "set_num_threads",
    "show_config",
]
