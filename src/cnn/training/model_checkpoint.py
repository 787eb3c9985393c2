"""`ModelCheckpoint`: a callback that saves checkpoints to a folder and restores the newest."""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from typing import Any

from .._checks import choice, flag, integer
from ..files import checkpoint
from .callbacks import Callback, direction, expect_monitor, named

__all__ = ["ModelCheckpoint"]

FILE = re.compile(r"checkpoint-(\d{1,18})\.safetensors")


class ModelCheckpoint(Callback):
    """Saves the model with its training state after epochs, in the background.

    Files are numbered; a higher number is newer. At most one checkpoint is queued; a newer one replaces it, so
    training never blocks. When `fit` returns or raises, the last one has been written.

    Parameters
    ----------
    folder : str or path
        Created if it does not exist. Use one folder per run.
    every : int
        Epochs from one checkpoint to the next.
    max_to_keep : int
        Number of files to keep, at least 1; older ones are removed once a newer one is complete.
    save_best_only : bool
        Whether to save, every `every` epochs, only if `monitor` is the best in the history so far.
    monitor : str
        With `save_best_only`, a name of the history: "val_loss", "val_accuracy", "loss", ...
    mode : {"auto", "min", "max"}
        Whether less or more is better. "auto": more for accuracy, top_k, AUC, F1 and R2, less for losses, MAE and RMSE.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid. In `fit`: if the history has no entry `monitor`.
    OSError
        In `fit`: if the folder cannot be made, or a checkpoint could not be written.

    Notes
    -----
    It runs after all other callbacks, whatever its position in the list, and the file includes their state
    (`Callback.state_dict`). ``fit(checkpoint=folder)`` uses this callback.

    Examples
    --------
    >>> keeper = ModelCheckpoint("runs/first", every=5)
    >>> model.fit(x, y, epochs=100, callbacks=[keeper])  # doctest: +SKIP
    >>> model.fit(x, y, epochs=200, callbacks=[keeper], initial_epoch=keeper.resume(model))  # doctest: +SKIP
    """

    _turn = 2
    _writes = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        every: int = 1,
        max_to_keep: int = 3,
        save_best_only: bool = False,
        monitor: str = "val_loss",
        mode: str = "auto",
    ) -> None:
        self.folder: str = os.fsdecode(folder)
        self.every: int = integer("every", every, 1)
        self.max_to_keep: int = integer("max_to_keep", max_to_keep, 1)
        self.save_best_only: bool = flag("save_best_only", save_best_only)
        self.monitor: str = named(monitor)
        self.mode: str = choice("mode", mode, ("auto", "min", "max"))
        self._sign = 0
        self._best = -math.inf
        self._lock = threading.Lock()
        self._queued: checkpoint.Parts | None = None  # the next file's content, until the thread takes it
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def files(self) -> dict[int, str]:
        """The checkpoints in the folder, the newest first.

        Returns
        -------
        dict of int to str
            Paths by number.
        """
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        found = {int(match[1]): match[0] for name in names if (match := FILE.fullmatch(name))}
        return {number: os.path.join(self.folder, found[number]) for number in sorted(found, reverse=True)}

    def resume(self, model: Any) -> int | None:
        """Restore a model from the newest readable checkpoint.

        This restores the parameters, the training state, the history and the optimiser's hyper-parameters. Unreadable
        files are skipped with a warning that names them.

        Parameters
        ----------
        model : Sequential
            Of the same layers, loss, dtype, and kinds of optimiser and schedule.

        Returns
        -------
        int or None
            The last completed epoch, for `fit(initial_epoch=...)`; None if there is no checkpoint, and the model is
            unchanged.

        Raises
        ------
        ValueError
            If the checkpoint has another architecture or optimiser; the model is unchanged.
        """
        for path in self.files().values():
            try:
                saved, has_state = checkpoint.read(path)
                if not has_state:
                    raise ValueError(f"{path}: it has no training state")
            except (ValueError, OSError) as error:
                warnings.warn(f"skipped a checkpoint: {error}", RuntimeWarning, stacklevel=2)
                continue
            checkpoint.adopt(model, saved, path)
            return model._core.state.epoch
        return None

    def _check(self, names):
        if self.save_best_only:
            expect_monitor("save_best_only", self.monitor, names)
            self._sign = direction(self.monitor, self.mode)
        os.makedirs(self.folder, exist_ok=True)

    def on_train_begin(self, logs: dict[str, Any]) -> None:
        # A run that is continued has its best value in the history.
        history = self.model.history
        values = zip(history.epochs, history.get(self.monitor, ()), strict=False)
        gains = [self._sign * value for epoch, value in values if epoch % self.every == 0]
        self._best = max((gain for gain in gains if not math.isnan(gain)), default=-math.inf)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        self._raise()  # if an earlier file could not be written
        if epoch % self.every:
            return
        if self.save_best_only:
            gain = self._sign * logs.get(self.monitor, math.nan)
            if not gain > self._best:
                return
            self._best = gain
        self._save()

    def _save(self) -> None:
        """Queue the model as it is."""
        parts = checkpoint.parts_of(self.model, True, checkpoint.can_hold(self.model.loss))
        with self._lock:
            self._queued = parts
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="cnn checkpoint")
                self._thread.start()

    def _close(self):
        """Wait until all is written. OSError if it could not be."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        self._raise()

    def _raise(self) -> None:
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self) -> None:
        """The thread: write what is queued, until nothing is."""
        while True:
            with self._lock:
                parts, self._queued = self._queued, None
                if parts is None:
                    self._thread = None
                    return
            try:
                number = max(self.files(), default=0) + 1
                checkpoint.write(os.path.join(self.folder, f"checkpoint-{number:06d}.safetensors"), parts)
                for old in list(self.files().values())[self.max_to_keep :]:
                    os.unlink(old)
            except BaseException as error:
                with self._lock:
                    self._error = error
