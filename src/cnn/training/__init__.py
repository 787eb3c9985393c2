"""The training loop: `fit` and what it is given and gives."""

from .callbacks import Callback, CSVLogger, EarlyStopping, LambdaCallback, TensorBoardLogger
from .data import Blocks
from .fit import DivergenceError
from .history import History, ManyHistory
from .metrics import Metric
from .model_checkpoint import ModelCheckpoint

__all__ = [
    "Blocks",
    "CSVLogger",
    "Callback",
    "DivergenceError",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "ManyHistory",
    "Metric",
    "ModelCheckpoint",
    "TensorBoardLogger",
]
