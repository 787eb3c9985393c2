"""Cython neural networks: multilayer perceptrons on the CPU at the speed of the hardware."""

__version__ = "0.1.0"

from . import functional, initializers
from ._config import show_config
from ._threads import get_num_threads, set_num_threads
from .branches import Add, Concat, Maximum, Multiply
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
from .regularization import BatchNorm1d, Dropout, LayerNorm
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
from .softmax import LogSoftmax, Softmax
from .training import DivergenceError, History

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Add",
    "BatchNorm1d",
    "Concat",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CrossEntropyLoss",
    "DivergenceError",
    "Dropout",
    "ExponentialLR",
    "History",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LinearLR",
    "LogSoftmax",
    "MSELoss",
    "Maximum",
    "MultiStepLR",
    "Multiply",
    "OneCycleLR",
    "PolynomialLR",
    "RMSprop",
    "ReLU",
    "ReduceLROnPlateau",
    "Sequential",
    "SequentialLR",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "StepLR",
    "Tanh",
    "functional",
    "get_num_threads",
    "initializers",
    "load",
    "set_num_threads",
    "show_config",
]
