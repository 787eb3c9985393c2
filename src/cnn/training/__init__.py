"""The training loop: `fit` and what it is given and gives."""

from .callbacks import Callback, CSVLogger, EarlyStopping, LambdaCallback, TensorBoardLogger
from .data import Blocks
from .find_lr import LearningRates, find_lr
from .fit import DivergenceError
from .history import History, ManyHistory
from .many import fit_many
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
    "LearningRates",
    "ManyHistory",
    "Metric",
    "ModelCheckpoint",
    "TensorBoardLogger",
    "find_lr",
    "fit_many",
]
