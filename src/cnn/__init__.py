"""Cython neural networks: multilayer perceptrons on the CPU at the speed of the hardware."""

__version__ = "0.1.0"

from . import functional
from ._config import show_config
from ._threads import get_num_threads, set_num_threads
from .batches import Blocks
from .callbacks import Callback, CSVLogger, EarlyStopping, LambdaCallback, TensorBoardLogger
from .checkpoint import load
from .history import History
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
from .optim import SGD, Adam, AdamW
from .sequential import Sequential
from .training import DivergenceError

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "Adam",
    "AdamW",
    "Blocks",
    "CSVLogger",
    "Callback",
    "CrossEntropyLoss",
    "DivergenceError",
    "EarlyStopping",
    "History",
    "Identity",
    "LambdaCallback",
    "LeakyReLU",
    "Linear",
    "MSELoss",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
    "TensorBoardLogger",
    "functional",
    "get_num_threads",
    "load",
    "set_num_threads",
    "show_config",
]
