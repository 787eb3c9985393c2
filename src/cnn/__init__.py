"""Cython neural networks: compiled multilayer perceptrons for the CPU.

A model is a list of layers, the last of which is the loss, with an optimiser:

>>> import numpy as np
>>> import cnn
>>> x = np.random.default_rng(0).uniform(-1, 1, (1000, 2))
>>> y = (np.hypot(x[:, 0], x[:, 1]) < 0.8).astype(int)
>>> layers = [cnn.Linear(2, 32), cnn.ReLU(), cnn.Linear(32, 2), cnn.CrossEntropyLoss()]
>>> model = cnn.Sequential(layers, optimizer=cnn.Adam(lr=0.01), seed=0)
>>> history = model.fit(x, y, epochs=20)
>>> probabilities = model.predict_proba(x)

Models         `Sequential`, `Ensemble`; `load` reads what `model.save` wrote
Layers         `Linear`; `ReLU`, `Tanh`, `GELU` and more; `BatchNorm1d`, `LayerNorm`, `Dropout`; `Add`, `Concat`
Losses         `MSELoss`, `CrossEntropyLoss`, `BCEWithLogitsLoss` and more
Optimisers     `SGD`, `Adam`, `AdamW`, `RMSprop`, `Adagrad`, `LBFGS`; schedules such as `CosineAnnealingLR`
Training       `model.fit`, or `model.train_step` in a loop; `EarlyStopping`, `ModelCheckpoint`, `find_lr`, `fit_many`
Estimators     `cnn.sklearn` and `cnn.river`: `MLPClassifier`, `MLPRegressor`
Other formats  `to_c`, `to_onnx`, `to_torch`, `as_torch`; `from_onnx`, `from_torch`, `from_sklearn`

For details use ``help(cnn.Sequential.fit)``, for example; `show_config` prints the build and the instruction set.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import functional, initializers, layers, losses, optim
from ._about import __version__ as __version__
from ._about import get_include, show_config
from ._configurable import unknown
from ._threads import get_num_threads, set_num_threads
from .files import load
from .layers.activations import *
from .layers.branches import *
from .layers.columns import *
from .layers.constant import *
from .layers.dropout import *
from .layers.linear import *
from .layers.normalization import *
from .layers.prelu import *
from .layers.softmax import *
from .losses import *
from .models import Sequential, clip_grad_norm
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
    ManyHistory,
    Metric,
    ModelCheckpoint,
    TensorBoardLogger,
)

if TYPE_CHECKING:
    from .export.c import to_c
    from .export.onnx import to_onnx
    from .export.onnx_reader import from_onnx
    from .export.sklearn import from_sklearn
    from .export.torch import from_torch, to_torch
    from .export.torch_module import as_torch
    from .models.ensemble import Ensemble
    from .models.gradcheck import gradcheck
    from .training.find_lr import LearningRates, find_lr
    from .training.many import fit_many

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

# What most programs do without is imported when it is used: the module of each name.
_LATER = {
    "Ensemble": "models.ensemble",
    "LearningRates": "training.find_lr",
    "as_torch": "export.torch_module",
    "find_lr": "training.find_lr",
    "fit_many": "training.many",
    "from_onnx": "export.onnx_reader",
    "from_sklearn": "export.sklearn",
    "from_torch": "export.torch",
    "gradcheck": "models.gradcheck",
    "to_c": "export.c",
    "to_onnx": "export.onnx",
    "to_torch": "export.torch",
}

if not TYPE_CHECKING:

    def __getattr__(name):
        if name in _LATER:
            globals()[name] = value = getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
            return value
        if name in ("river", "sklearn"):
            raise AttributeError(f"cnn has no attribute {name!r} yet: import cnn.{name}")
        raise unknown("cnn", name, __dir__())


def __dir__() -> list[str]:
    """The public names, for completion."""
    parts = {"layers", "losses", "optim", "river", "sklearn"} & {*globals()}
    return sorted({*__all__, "__version__", *parts})
