"""Callbacks: what `fit` calls at epochs and batches. `Callback` is the base; here are early stopping and loggers too.

A method that is not overridden is not called, and costs nothing.
"""

from __future__ import annotations

import inspect
import math
import os
from typing import Any

from .._checks import choice, integer, number

__all__ = ["CSVLogger", "Callback", "EarlyStopping", "LambdaCallback", "TensorBoardLogger"]

METHODS = ("on_train_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_train_end")


class Callback:
    """Base class of callbacks: override the methods that are wanted, and pass an object to `fit(callbacks=[...])`.

    Attributes
    ----------
    model : Sequential
        The model that is being fitted; set before `on_train_begin`.
    stop : bool
        Set it to True to end the training after this batch or epoch; `model.stop_training = True` does the same.

    Notes
    -----
    Exceptions leave `fit`, with the model as it is at that moment. `model.history` holds the epochs so far. A callback
    may not call `fit` on its own model.
    """

    model: Any = None
    stop = False

    def on_train_begin(self, logs: dict[str, float]) -> None:
        """Before the first epoch.

        Parameters
        ----------
        logs : dict
            Empty.
        """

    def on_epoch_begin(self, epoch: int, logs: dict[str, float]) -> None:
        """Before an epoch.

        Parameters
        ----------
        epoch : int
            Its number, from 1, or after `initial_epoch`.
        logs : dict
            Empty.
        """

    def on_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        """After a batch; with `accumulation_steps` after each step of the optimiser, for its last batch.

        If it is overridden, each step is a native call of its own.

        Parameters
        ----------
        batch : int
            Its number, from 0 in each epoch.
        logs : dict of str to float
            "loss" and "rows" of the batch, with a schedule "lr".
        """

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        """After an epoch, its validation and the step of a schedule.

        Parameters
        ----------
        epoch : int
            Its number.
        logs : dict of str to float
            The numbers that are added to the history.
        """

    def on_train_end(self, logs: dict[str, float]) -> None:
        """After the last epoch. Not called if an exception ends the training.

        Parameters
        ----------
        logs : dict of str to float
            Those of the last epoch.
        """

    def __repr__(self) -> str:
        shown = {name: p.default for name, p in inspect.signature(type(self)).parameters.items() if name in vars(self)}
        changed = {name: vars(self)[name] for name, default in shown.items() if vars(self)[name] != default}
        values = (f"{name}={getattr(value, '__qualname__', repr(value))}" for name, value in changed.items())
        return f"{type(self).__name__}({', '.join(values)})"

    def _check(self, names: list[str]) -> None:
        """Before anything is trained: raise if logs with these names will not do."""

    def _close(self) -> None:
        """When the training is over, by an exception or not."""


def overridden(callbacks: list[Callback], method: str) -> list:
    """The methods of that name which do something."""
    bound = [getattr(callback, method) for callback in callbacks]
    return [one for one in bound if getattr(one, "__func__", None) is not getattr(Callback, method)]


class LambdaCallback(Callback):
    """A callback made of functions, each with the arguments of the method whose name it has.

    Parameters
    ----------
    on_train_begin : callable(logs), optional
    on_epoch_begin : callable(epoch, logs), optional
    on_batch_end : callable(batch, logs), optional
    on_epoch_end : callable(epoch, logs), optional
    on_train_end : callable(logs), optional

    Raises
    ------
    TypeError
        If one is not callable.

    Examples
    --------
    >>> printer = LambdaCallback(on_epoch_end=lambda epoch, logs: print(epoch, logs["loss"]))
    """

    def __init__(
        self, *, on_train_begin=None, on_epoch_begin=None, on_batch_end=None, on_epoch_end=None, on_train_end=None
    ):
        given = (on_train_begin, on_epoch_begin, on_batch_end, on_epoch_end, on_train_end)
        for name, function in zip(METHODS, given, strict=True):
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"{name}: expected a function, got {function!r}")
            setattr(self, name, function)


class EarlyStopping(Callback):
    """Ends the training when a number has not improved for some epochs, and puts back the best parameters.

    Parameters
    ----------
    monitor : str
        A name of the history: "val_loss", "val_accuracy", "loss", ...
    patience : int
        Epochs without improvement after which training ends, at least 1.
    min_delta : float
        What counts as an improvement: more than that. At least 0.
    mode : {"auto", "min", "max"}
        Whether less or more is better. "auto": more for accuracy, top_k, AUC, F1 and R2, less for losses, MAE and RMSE.
    restore_best_weights : bool
        Whether the model has the parameters, the optimiser's state and the running statistics of the best epoch when
        `fit` returns, whether or not training ended early.

    Attributes
    ----------
    best : float or None
        The best value.
    best_epoch : int or None
        Its epoch.
    stopped_epoch : int or None
        The epoch after which training was ended; None if it was not.

    Raises
    ------
    ValueError, TypeError
        If an argument is wrong. In `fit`: if there is nothing of the name `monitor`.

    Notes
    -----
    NaN is no improvement. Each `fit` starts anew.
    """

    def __init__(self, monitor="val_loss", patience=10, min_delta=0.0, mode="auto", restore_best_weights=True):
        self.monitor = monitor
        self.patience = integer("patience", patience, 1)
        self.min_delta = number("min_delta", min_delta, 0)
        self.mode = choice("mode", mode, ("auto", "min", "max"))
        self.restore_best_weights = bool(restore_best_weights)
        self._sign = direction(monitor, mode)
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._saved: Any = None
        self._waited = 0

    def _check(self, names):
        expect_monitor("early stopping", self.monitor, names)

    def on_train_begin(self, logs):
        self._forget()

    def on_epoch_end(self, epoch, logs):
        value = logs[self.monitor]
        gain = self._sign * value
        if math.isnan(value) or not (self.best is None or gain > self._sign * self.best + self.min_delta):
            self._waited += 1
            if self._waited >= self.patience:
                self.stop = True
                self.stopped_epoch = epoch
            return
        self.best, self.best_epoch, self._waited = value, epoch, 0
        if self.restore_best_weights:
            self._saved = self.model._core.snapshot()

    def on_train_end(self, logs):
        if self._saved is not None:
            self.model._core.restore(self._saved)

    def _close(self):
        self._saved = None


def direction(monitor: str, mode: str) -> int:
    """1 if larger values of a number of the history are better, -1 if smaller ones are."""
    if not isinstance(monitor, str):
        raise TypeError(f"monitor: expected a name such as 'val_loss', got {monitor!r}")
    return 1 if (more_is_better(monitor) if mode == "auto" else mode == "max") else -1


def expect_monitor(who: str, monitor: str, names: list[str]) -> None:
    """ValueError if the history will have no number of this name."""
    if monitor not in names:
        hint = ""
        if monitor.startswith("val_") and not any(name.startswith("val_") for name in names):
            hint = "; pass validation_data or validation_split, or monitor='loss'"
        raise ValueError(f"{who}: no {monitor!r} to monitor: there are {', '.join(names)}{hint}")


def more_is_better(name: str) -> bool:
    """Whether larger values of a number of the history are better.

    ValueError if the name does not tell.
    """
    base = name.removeprefix("val_")
    if base in ("accuracy", "auc", "f1", "r2") or base.startswith("top_"):
        return True
    if base in ("loss", "mae", "rmse"):
        return False
    raise ValueError(f"mode: 'auto' does not know whether more {name} is better: expected 'min' or 'max'")


class CSVLogger(Callback):
    """Writes a line for each epoch to a CSV file: "epoch" and the numbers of the history, under a header.

    The file is complete after each epoch. If the first epoch is not epoch 1, lines are added to a file that is there,
    whose columns must be the same.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    OSError
        In `fit`: if the file cannot be written.
    ValueError
        In `fit`: if the file that is there has other columns.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self._names: list[str] | None = None

    def on_train_begin(self, logs):
        self._names = None

    def on_epoch_end(self, epoch, logs):
        import csv

        names = ["epoch", *logs]
        if self._names is None and epoch > 1 and os.path.exists(self.path):
            with open(self.path, newline="", encoding="utf-8") as file:
                self._names = next(csv.reader(file), None)
            if self._names not in (None, names):
                raise ValueError(
                    f"{self.path}: expected the columns {', '.join(names)}, as this run writes, "
                    f"got {', '.join(self._names or [])}"
                )
        with open(self.path, "a" if self._names else "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not self._names:
                writer.writerow(names)
                self._names = names
            writer.writerow([epoch, *(repr(float(value)) for value in logs.values())])


class TensorBoardLogger(Callback):
    """Writes the numbers of each epoch for TensorBoard: "loss/training", "loss/validation", "lr", ...

    Parameters
    ----------
    folder : str or path
        Where the event files go.

    Raises
    ------
    ImportError
        If neither tensorboardX nor PyTorch's writer is installed.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = os.fspath(folder)
        self._make = _summary_writer()
        self._writer: Any = None

    def on_train_begin(self, logs):
        self._writer = self._make(self.folder)

    def on_epoch_end(self, epoch, logs):
        for name, value in logs.items():
            base = name.removeprefix("val_")
            part = "" if name == "lr" else "/validation" if name != base else "/training"
            self._writer.add_scalar(base + part, value, epoch)
        self._writer.flush()

    def _close(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _summary_writer() -> type:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoardLogger needs a writer: pip install tensorboardX, or PyTorch with tensorboard"
            ) from error
    return SummaryWriter
