"""Callbacks, which `fit` calls at epochs and batches: the base class `Callback`, early stopping and loggers.

A method that is not overridden is not called, and costs nothing.
"""

from __future__ import annotations

import inspect
import io
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .._checks import choice, integer, number
from .._configurable import Public
from ..files import atomic_write
from .metrics import more_is_better
from .state import best_of, bring_back

__all__ = ["CSVLogger", "Callback", "EarlyStopping", "LambdaCallback", "TensorBoardLogger"]

METHODS = ("on_train_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_train_end")


class Callback(Public):
    """Base class of callbacks: override the methods you need, and pass an object to `fit(callbacks=[...])`.

    Attributes
    ----------
    model : Sequential or Ensemble
        The model that is being fitted; set before `on_train_begin`.
    stop : bool
        Set it to True to end the training after this batch or epoch; `model.stop_training = True` does the same.

    Notes
    -----
    If a callback raises, `fit` raises the same exception; the model and `model.history` keep their current state. A
    callback must not call `fit` on the model that is being fitted.

    Callbacks run in the order of the list, except that `EarlyStopping` runs first and `ModelCheckpoint` last. A
    checkpoint therefore includes the epoch, and after training it holds the best model.
    """

    model: Any = None
    stop = False
    _turn = 1  # 0 before others, 2 after them
    _writes = False  # files: with several ranks only the first has it

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

        If it is overridden, `fit` makes one native call for each step.

        Parameters
        ----------
        batch : int
            Its number, from 0 in each epoch.
        logs : dict of str to float
            "loss" and "rows" of the batch; "lr" if there is a schedule.
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
            The numbers of the last epoch.
        """

    def state_dict(self) -> dict[str, Any]:
        """The state needed to continue an interrupted run.

        Saved with the training state of the model; `fit` gives it to `load_state_dict` when it continues the run.

        Returns
        -------
        dict of str to (ndarray, or what JSON can hold)
            Empty: nothing is saved.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned. Called after `on_train_begin` when a run is continued.

        Parameters
        ----------
        state : dict
            As `state_dict` returned it, for the same class and, among several of one class, the same position.
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


def overridden(callbacks: list[Callback], method: str) -> list[Any]:
    """The methods of that name which do something."""
    bound = [getattr(callback, method) for callback in callbacks]
    return [one for one in bound if getattr(one, "__func__", None) is not getattr(Callback, method)]


def check_methods(callback: Callback) -> None:
    """AttributeError for a method that `fit` would never call, such as Keras's on_train_batch_end."""
    for name in dir(callback):
        if name.startswith("on_") and name not in METHODS and callable(getattr(callback, name, None)):
            from difflib import get_close_matches  # only for errors

            plain = name.replace("_train_", "_", 1) if "batch" in name or "epoch" in name else name
            near = get_close_matches(plain.replace("_start", "_begin"), METHODS, 1, 0.85)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise AttributeError(
                f"callbacks: {type(callback).__name__} has a method {name}, which fit never calls{hint}: there are "
                f"{', '.join(METHODS)}"
            )


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
        self,
        *,
        on_train_begin: Callable[..., Any] | None = None,
        on_epoch_begin: Callable[..., Any] | None = None,
        on_batch_end: Callable[..., Any] | None = None,
        on_epoch_end: Callable[..., Any] | None = None,
        on_train_end: Callable[..., Any] | None = None,
    ) -> None:
        given = (on_train_begin, on_epoch_begin, on_batch_end, on_epoch_end, on_train_end)
        for name, function in zip(METHODS, given, strict=True):
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"{name}: expected a function, got {function!r}")
            setattr(self, name, function)


class EarlyStopping(Callback):
    """Stops training when a monitored value no longer improves, and restores the best parameters.

    Parameters
    ----------
    monitor : str
        A name of the history: "val_loss", "val_accuracy", "loss", ...
    patience : int
        Epochs without improvement after which training ends, at least 1.
    min_delta : float
        An improvement must be larger than this. At least 0.
    mode : {"auto", "min", "max"}
        Whether less or more is better. "auto": more for accuracy, top_k, AUC, F1 and R2, less for losses, MAE and RMSE.
    restore_best_weights : bool
        Whether `fit` restores the parameters, the optimiser's state and the running statistics of the best epoch when
        it returns, even if training did not stop early. Schedules then continue from the epoch after the best.
    start_from_epoch : int
        Initial epochs to ignore, as in Keras.
    baseline : float, optional
        A value that an epoch must surpass to count as an improvement.

    Attributes
    ----------
    best : float or None
        The best value.
    best_epoch : int or None
        Its epoch.
    stopped_epoch : int or None
        The epoch after which training stopped; None if it did not stop early.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid. In `fit`: if the history has no entry `monitor`.

    Notes
    -----
    NaN is no improvement. An epoch without validation (`validation_freq`) does not count.

    Training metrics ("loss", "accuracy") are measured while the epoch changes the parameters, so the parameters at the
    start of the epoch are kept for them. If an epoch is one step, these are exactly the parameters measured.
    Validation metrics are measured after the epoch, and the parameters after the epoch are kept.

    Each `fit` starts afresh unless it continues a run (`initial_epoch`, `resume`): the training state that `save` and
    checkpoints write includes the best value, the best parameters and the epoch count. A continued run that early
    stopping had ended stops again, unless `patience` is now larger.

    After Ctrl-C or an error the model has its last parameters; `restore_best` restores the best.
    """

    _turn = 0

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best_weights: bool = True,
        start_from_epoch: int = 0,
        baseline: float | None = None,
    ) -> None:
        self.monitor: str = named(monitor)
        self.patience: int = integer("patience", patience, 1)
        self.min_delta: float = number("min_delta", min_delta, 0)
        self.mode: str = choice("mode", mode, ("auto", "min", "max"))
        self.restore_best_weights: bool = bool(restore_best_weights)
        self.start_from_epoch: int = integer("start_from_epoch", start_from_epoch, 0)
        self.baseline: float | None = None if baseline is None else number("baseline", baseline)
        self._began: Any = None
        self._forget()

    def _forget(self) -> None:
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._saved: Any = None
        self._waited = 0

    def _check(self, names):
        expect_monitor("early stopping", self.monitor, names)
        self._sign = direction(self.monitor, self.mode)

    def on_train_begin(self, logs: dict[str, Any]) -> None:
        self._forget()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any]) -> None:
        if self.restore_best_weights and not self.monitor.startswith("val_"):
            self._began = best_of(self.model._core)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        if epoch <= self.start_from_epoch or self.monitor not in logs:
            return
        value = logs[self.monitor]
        gain = self._sign * value
        self._waited += 1
        if not math.isnan(value) and (self.best is None or gain > self._sign * self.best + self.min_delta):
            self.best, self.best_epoch = value, epoch
            if self.baseline is None or gain > self._sign * self.baseline:
                self._waited = 0
            if self.restore_best_weights:
                self._saved = best_of(self.model._core) if self._began is None else self._began
        if self._waited >= self.patience:
            self.stop = True
            self.stopped_epoch = epoch

    def on_train_end(self, logs: dict[str, Any]) -> None:
        if self._saved is not None:
            bring_back(self.model._core, self._saved)
            self._saved = None

    def _close(self):
        self._began = None

    def state_dict(self) -> dict[str, Any]:
        """The best value, its epoch and, unless the model has them, its parameters; and the epochs since then.

        Returns
        -------
        dict
        """
        if self.best is None:
            return {"waited": self._waited}
        numbers = {"best": np.array(self.best), "best_epoch": self.best_epoch, "waited": self._waited}
        return {**numbers, "stopped_epoch": self.stopped_epoch, **(self._saved or {})}

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Parameters
        ----------
        state : dict

        Raises
        ------
        ValueError, TypeError
            If the state belongs to another model.
        """
        core, now = self.model._core, best_of(self.model._core)
        if saved := _model_in(state):
            try:
                bring_back(core, saved)  # finds out whether it fits, before anything is trained
            finally:
                bring_back(core, now)
        self._waited = integer("waited", state.get("waited"), 0)
        self.best = float(state["best"]) if "best" in state else None
        self.best_epoch, self.stopped_epoch = state.get("best_epoch"), state.get("stopped_epoch")
        if self.best is not None and self.restore_best_weights:
            self._saved = saved or now  # without parameters in the state it is the model that has the best
        self.stop: bool = self._waited >= self.patience
        if not self.stop:
            self.stopped_epoch = None

    @staticmethod
    def restore_best(model: Any) -> None:
        """Restore the best parameters of the last `fit`, also after Ctrl-C or an error.

        Parameters
        ----------
        model : Sequential
            Fitted with early stopping, in this process, or before it was saved with its training state.

        Raises
        ------
        RuntimeError
            If no best parameters are stored: no epoch was finished, or early stopping kept none.
        """
        states = [s for s in model._core.state.callbacks.values() if s.keys() >= {"waited", "best"}]
        if not states:
            raise RuntimeError("restore_best: no best parameters are stored: call fit with early_stopping first")
        for state in states:
            if best := _model_in(state):
                bring_back(model._core, best)


def _model_in(state: dict[str, Any]) -> dict[str, Any]:
    """What `best_of` has put into a state of EarlyStopping."""
    own = ("best", "best_epoch", "stopped_epoch", "waited")
    return {name: value for name, value in state.items() if name not in own}


def named(monitor: str) -> str:
    """monitor, if it is a name: TypeError otherwise."""
    if not isinstance(monitor, str):
        raise TypeError(f"monitor: expected a name such as 'val_loss', got {monitor!r}")
    return monitor


def direction(monitor: str, mode: str) -> int:
    """1 if larger values of a number of the history are better, -1 if smaller ones are."""
    return 1 if (more_is_better(monitor) if mode == "auto" else mode == "max") else -1


def expect_monitor(who: str, monitor: str, names: list[str]) -> None:
    """ValueError if the history will have no number of this name."""
    if monitor not in names:
        from difflib import get_close_matches  # only for errors

        hint = ""
        if monitor.startswith("val_") and not any(name.startswith("val_") for name in names):
            hint = "; pass validation_data or validation_split, or monitor='loss'"
        elif near := get_close_matches(monitor, names, 1):
            hint = f"; did you mean {near[0]!r}?"
        raise ValueError(f"{who}: no {monitor!r} to monitor: there are {', '.join(names)}{hint}")


class CSVLogger(Callback):
    """Writes a line for each epoch to a CSV file: "epoch" and the numbers of the history, under a header.

    The file is complete after each epoch. If the first epoch is not epoch 1, lines are appended to an existing file,
    whose columns must be the same; lines of that epoch and later ones, from a run killed after its last checkpoint,
    are removed first. Missing values, such as a skipped validation, are left empty.
    Of an `Ensemble` it writes the means over the members that train.

    Parameters
    ----------
    path : str or path

    Raises
    ------
    OSError
        In `fit`: if the file cannot be written.
    ValueError
        In `fit`: if the existing file has other columns.
    """

    _writes = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: str = os.fspath(path)
        self._names: list[str] | None = None

    def on_train_begin(self, logs: dict[str, Any]) -> None:
        self._names = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        import csv

        if self._names is None:
            self._names = ["epoch", *self.model.history]
            lines = [self._names]
            if epoch > 1 and os.path.exists(self.path):
                with open(self.path, newline="", encoding="utf-8") as file:
                    there = list(csv.reader(file))
                if there and there[0] != self._names:
                    raise ValueError(
                        f"{self.path}: expected the columns {', '.join(self._names)}, as this run writes, "
                        f"got {', '.join(there[0])}"
                    )
                whole = (line for line in there[1:] if len(line) == len(self._names) and line[0].isdecimal())
                lines += [line for line in whole if int(line[0]) < epoch]
            text = io.StringIO(newline="")
            csv.writer(text).writerows(lines)
            atomic_write.replace(self.path, [text.getvalue().encode()])
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            values = (repr(_mean(logs[name])) if name in logs else "" for name in self._names[1:])
            csv.writer(file).writerow([epoch, *values])


def _mean(value: Any) -> float:
    """A number of the logs; of an ensemble the mean over the members that have one."""
    there = np.ravel(value)
    if there.size > 1:
        there = there[~np.isnan(there)]
    return float(there.mean()) if there.size else math.nan


class TensorBoardLogger(Callback):
    """Writes the numbers of each epoch for TensorBoard: "loss/training", "loss/validation", "lr", ...

    Of an `Ensemble` it writes the means over the members that train.

    Parameters
    ----------
    folder : str or path
        Folder of the event files. A continued run hides what a killed run wrote for the same epochs.

    Raises
    ------
    ImportError
        If neither tensorboardX nor PyTorch's writer is installed.
    """

    _writes = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder: str = os.fspath(folder)
        self._make = _summary_writer()
        self._writer: Any = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        if self._writer is None:
            self._writer = self._make(self.folder, purge_step=epoch if epoch > 1 else None)
        for name, value in logs.items():
            base = name.removeprefix("val_")
            part = "" if name == "lr" else "/validation" if name != base else "/training"
            self._writer.add_scalar(base + part, _mean(value), epoch)
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
