"""Cython neural networks: multilayer perceptrons on the CPU at the speed of the hardware."""

from . import functional, initializers, layers, losses
from ._about import __version__ as __version__
from ._about import get_include, show_config
from ._threads import get_num_threads, set_num_threads
from .export.c import to_c
from .export.onnx import from_onnx, to_onnx
from .export.sklearn import from_sklearn
from .export.torch import from_torch, to_torch
from .files import load
from .layers import *
from .losses import *
from .models import Sequential, gradcheck
from .optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    RMSprop,
    SequentialLR,
    StepLR,
)
from .training import (
    Blocks,
    Callback,
    CSVLogger,
    DivergenceError,
    EarlyStopping,
    History,
    LambdaCallback,
    LearningRates,
    Metric,
    ModelCheckpoint,
    TensorBoardLogger,
    find_lr,
)

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Blocks",
    "CSVLogger",
    "Callback",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "DivergenceError",
    "EarlyStopping",
    "ExponentialLR",
    "History",
    "LambdaCallback",
    "LearningRates",
    "LinearLR",
    "Metric",
    "ModelCheckpoint",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "RMSprop",
    "ReduceLROnPlateau",
    "Sequential",
    "SequentialLR",
    "StepLR",
    "TensorBoardLogger",
    "find_lr",
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
__all__ += layers.__all__
__all__ += losses.__all__
