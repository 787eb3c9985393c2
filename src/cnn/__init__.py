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
from .losses import (
    BCEWithLogitsLoss,
    CallableLoss,
    CrossEntropyLoss,
    HuberLoss,
    L1Loss,
    MSELoss,
    NLLLoss,
    PoissonNLLLoss,
    QuantileLoss,
    SmoothL1Loss,
)
from .optim import SGD, Adam, AdamW
from .sequential import Sequential
from .training import DivergenceError, History

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "Adam",
    "AdamW",
    "BCEWithLogitsLoss",
    "CallableLoss",
    "CrossEntropyLoss",
    "DivergenceError",
    "History",
    "HuberLoss",
    "Identity",
    "L1Loss",
    "LeakyReLU",
    "Linear",
    "MSELoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "QuantileLoss",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softplus",
    "Tanh",
    "functional",
    "get_num_threads",
    "load",
    "set_num_threads",
    "show_config",
]
