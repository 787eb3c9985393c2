"""Cython neural networks: multilayer perceptrons on the CPU at the speed of the hardware."""

__version__ = "0.1.0"

from . import functional, initializers
from ._config import get_include, show_config
from ._threads import get_num_threads, set_num_threads
from .batches import Blocks
from .branches import Add, Concat, Maximum, Multiply
from .callbacks import Callback, CSVLogger, EarlyStopping, LambdaCallback, TensorBoardLogger
from .checkpoint import load
from .export.c import to_c
from .export.onnx import from_onnx, to_onnx
from .export.sklearn import from_sklearn
from .export.torch import from_torch, to_torch
from .gradcheck import gradcheck
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
from .training import DivergenceError

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Add",
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "Blocks",
    "CSVLogger",
    "CallableLoss",
    "Callback",
    "Concat",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CrossEntropyLoss",
    "DivergenceError",
    "Dropout",
    "EarlyStopping",
    "ExponentialLR",
    "History",
    "HuberLoss",
    "Identity",
    "L1Loss",
    "LambdaCallback",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LinearLR",
    "LogSoftmax",
    "MSELoss",
    "Maximum",
    "MultiStepLR",
    "Multiply",
    "NLLLoss",
    "OneCycleLR",
    "PoissonNLLLoss",
    "PolynomialLR",
    "QuantileLoss",
    "RMSprop",
    "ReLU",
    "ReduceLROnPlateau",
    "Sequential",
    "SequentialLR",
    "SiLU",
    "Sigmoid",
    "SmoothL1Loss",
    "Softmax",
    "Softplus",
    "StepLR",
    "Tanh",
    "TensorBoardLogger",
    "from_onnx",
    "from_sklearn",
    "from_torch",
    "functional",
    "get_include",
    "get_num_threads",
    "gradcheck",
    "initializers",
    "load",
    "set_num_threads",
    "show_config",
    "to_c",
    "to_onnx",
    "to_torch",
]
