"""Cython neural networks: multilayer perceptrons on the CPU at the speed of the hardware."""

__version__ = "0.1.0"

from . import functional, initializers
from ._config import get_include, show_config
from ._threads import get_num_threads, set_num_threads
from .branches import Add, Concat, Maximum, Multiply
from .checkpoint import load
from .export.c import to_c
from .export.onnx import from_onnx, to_onnx
from .export.sklearn import from_sklearn
from .export.torch import from_torch, to_torch
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
    "from_onnx",
    "from_sklearn",
    "from_torch",
    "functional",
    "get_include",
    "get_num_threads",
    "initializers",
    "load",
    "set_num_threads",
    "show_config",
    "to_c",
    "to_onnx",
    "to_torch",
]
