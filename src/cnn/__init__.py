"""Cython neural networks: multilayer perceptrons on the CPU at the speed of the hardware."""

from . import functional, initializers, layers, losses, optim
from ._about import __version__ as __version__
from ._about import get_include, show_config
from ._threads import get_num_threads, set_num_threads
from .export.c import to_c
from .export.onnx import to_onnx
from .export.onnx_reader import from_onnx
from .export.sklearn import from_sklearn
from .export.torch import from_torch, to_torch
from .export.torch_module import as_torch
from .files import load
from .layers import *
from .losses import *
from .models import Ensemble, Sequential, clip_grad_norm, gradcheck
from .optim.optimizers import *
from .optim.schedules import *
from .optim.second_order import *
from .optim.whole_data import *
from .training import (
    Blocks,
    Callback,
    CSVLogger,
    DivergenceError,
    EarlyStopping,
    History,
    LambdaCallback,
    LearningRates,
    ManyHistory,
    Metric,
    ModelCheckpoint,
    TensorBoardLogger,
    find_lr,
    fit_many,
)

__all__ = [
    "Blocks",
    "CSVLogger",
    "Callback",
    "DivergenceError",
    "EarlyStopping",
    "Ensemble",
    "History",
    "LambdaCallback",
    "LearningRates",
    "ManyHistory",
    "Metric",
    "ModelCheckpoint",
    "Sequential",
    "TensorBoardLogger",
    "as_torch",
    "clip_grad_norm",
    "find_lr",
    "fit_many",
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
__all__ += optim.optimizers.__all__
__all__ += optim.schedules.__all__
__all__ += optim.whole_data.__all__
__all__ += optim.second_order.__all__
