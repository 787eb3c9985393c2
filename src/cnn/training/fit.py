"""`fit` and `evaluate`, which are methods of `Sequential`: epochs of native training, in calls of about 0.05 s each.

Between two calls Ctrl-C is handled, callbacks are called and the progress bar is drawn. Where the rows come from is in
data.py; what is made of the numbers is in metrics.py, history.py and progress.py.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, cast

import numpy as np

from .._checks import flag, integer, number, users_line
from .._sparse import SparseRows
from .._threads import threads_for
from .._types import ArrayLike
from ..optim.optimizers import Optimizer
from ..optim.schedules import ReduceLROnPlateau
from .callbacks import Callback, EarlyStopping, check_methods, overridden
from .class_weights import row_weights, weights_of_classes
from .data import Blocks, Names, Part, Rows, Source, classes_of, source_of
from .history import History
from .metrics import Metrics
from .model_checkpoint import ModelCheckpoint
from .objective import Objective
from .progress import Progress, mode_of
from .ranks import takes_comm
from .state import names_of

NOTHING_COUNTS = "no row counts: all weights are 0, or all targets are ignored"
SLICE = 0.05  # seconds that one native call may take
EVALUATION_WORK = 1 << 28  # multiply-adds of one native call of evaluation; fixed, so that sums are always cut alike
AUTO_SIZES = 32, 33, 31
MOST_ROWS = 1 << 62  # batch_size=None: the whole data
VALIDATION = Names("validation_data[0]", "validation_data[1]", "validation_data[2]", "validation_data")


class DivergenceError(ArithmeticError):
    """The loss became infinite or NaN. The parameters are those from the start of that epoch."""


class Context:
    """The part of the model and of the call that sources of batches need."""

    def __init__(
        self,
        model: Any,
        training: bool = False,
        batch_size: int = 1,
        shuffle: bool = False,
        accumulate: int = 1,
        steps: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.program: Any = model._core.program
        self.loss: Any = model.loss
        self.dtype: np.dtype = model.dtype
        self.training = training
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.accumulate = accumulate
        self.steps = steps  # batches of an epoch at most
        self.drop_last = drop_last and batch_size < MOST_ROWS  # one batch of all rows is not smaller than others
        self._core = model._core
        self.permutation: Any = model._core.kernels.permutation
        self.class_weights: np.ndarray | None = None
        self.group: Any = None  # of ranks

    def shuffles(self, rows: int) -> bool:
        """Whether an epoch takes so many rows in a random order. One batch of all of them does without: the order
        would change no more than the rounding of its sums."""
        return self.shuffle and self.batch_size < rows

    @property
    def seed(self) -> int:
        """The seed of the orders of the rows; a resumed checkpoint has its own."""
        return self._core.state.random_seed

    def targets(self, y: Any, n: int, name: str) -> np.ndarray:
        """y as the loss can read it, n rows."""
        checked = self.program.targets(y, n, name)
        return checked.copy() if checked.ndim == 1 else checked  # copied, so that later changes have no effect

    def no_rows(self, names: Names) -> ValueError:
        return ValueError(
            f"{names.all}: {'training needs' if self.training else 'expected'} at least one row, got none"
        )

    def some_weight(self, w: np.ndarray | None, name: str) -> None:
        """ValueError if rows to train on have no weight."""
        if not self.training or w is None:
            return
        some = bool(w.any())
        if not (some if self.group is None else self.group.any(some)):
            raise ValueError(f"{name}: expected at least one weight above 0")

    def with_classes(self, y: np.ndarray, w: np.ndarray | None) -> np.ndarray:
        """The rows' weights times those of their classes."""
        assert self.class_weights is not None
        rows = row_weights(y, self.class_weights).astype(self.dtype)
        return rows if w is None else rows * w

    def rows(self, n: int) -> int:
        """How many of n rows an epoch takes."""
        if self.drop_last:
            n -= n % self.batch_size
        return n if self.steps is None else min(n, self.steps * self.batch_size)

    def taken(self, parts: Iterator[Part]) -> Iterator[Part]:
        """What an epoch takes of the parts."""
        left = self.steps
        for part in parts:
            rows, size = part.rows, part.batch_size
            if self.drop_last:
                rows -= rows % size
            if left is not None:
                rows = min(rows, left * size)
                left -= -(-rows // size)
            if rows:
                yield part.first(rows)
            if left == 0:
                return


# fit ------------------------------------------------------------------------------------------------------------------


@takes_comm
def fit(
    self: Any,
    x: Any,
    y: ArrayLike | None = None,
    *,
    epochs: int = 1,
    batch_size: int | str | None = "auto",
    shuffle: bool = True,
    validation_data: Any = None,
    validation_split: float = 0.0,
    stratify: bool = False,
    validation_freq: int = 1,
    sample_weight: ArrayLike | None = None,
    class_weight: Any = None,
    weigh_validation: bool = False,
    metrics: Any = (),
    callbacks: Any = (),
    early_stopping: Any = None,
    initial_epoch: int | None = None,
    steps_per_epoch: int | None = None,
    drop_last: bool = False,
    accumulation_steps: int = 1,
    threads: int | None = None,
    progress: str | bool = "auto",
    verbose: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    max_to_keep: int = 3,
    resume: bool = False,
    comm: Any = None,
    shards: int = 8,
    shard: str | None = None,
    deterministic: bool = True,
    average_every: int = 1,
) -> History:
    """Train for a number of epochs, in native code.

    Parameters
    ----------
    x : array_like or sparse matrix of shape (n, in_features), memory map, Blocks, or iterable of batches
        A sparse matrix is not made dense (see `predict`). A `numpy.memmap` may be larger than memory: it is read and
        converted in blocks of about 64 MiB, in random order, with the rows of a block in random order (see
        `cnn.Blocks`). An iterable yields (x, y) or (x, y, sample_weight) for each batch, and is iterated over once in
        each epoch; the batches of a Sequence are shuffled. For several inputs (branches with ``split=True``), a list of
        arrays (n, columns), whose columns add up to in_features, is concatenated, which copies them once.
    y : array_like, optional
        Targets in the form that the loss expects: class indices of shape (n,), or numbers of shape (n, out_features).
        None if x contains them.
    epochs : int
        The number of the last epoch, counted from 1:

        - ``fit(x, y, epochs=10)`` trains epochs 1 to 10; a second such call trains 10 more, in a new history;
        - ``fit(x, y, epochs=15, initial_epoch=10)`` after it continues that run with epochs 11 to 15.
    batch_size : int, None or "auto"
        The last batch of an epoch, or of a block, may be smaller. 1 trains one sample at a time; None makes the whole
        data one batch. "auto": 32, or 33 or 31 where batch normalisation would get a last batch of one row; with an
        optimiser that needs the whole data (`LBFGS`) it is None, the only value allowed: x must be an array, or a
        memory map, which is read whole, and an epoch is one iteration.
    shuffle : bool
        Whether each epoch takes the rows in a new random order, which depends only on the model's seed and the number
        of the epoch. A batch of all rows takes them as they lie.
    validation_data : (x, y), (x, y, sample_weight), or batches as for x, optional
        Evaluated after each epoch.
    validation_split : float
        The fraction of the rows, at the end, that is held out for validation instead; at least 0 and below 1. Training
        uses n * (1 - validation_split) of n rows, rounded down. Sorted classes cause a warning.
    stratify : bool
        Whether `validation_split` takes the last rows of each class, so that both sets have the same proportions. The
        rows are copied.
    validation_freq : int
        Epochs from one validation to the next. In other epochs the history has NaN, and callbacks' `logs` no ``val_``.
    sample_weight : array_like of shape (n,), optional
        Not negative. The loss is the weighted mean.
    class_weight : dict or "balanced", optional
        Weights of the classes, by index; 1 for classes that are not named. "balanced":
        n / (classes * count of the class), as in scikit-learn. They multiply the sample weights. If a row may have
        several classes (`BCEWithLogitsLoss` with several outputs), the weights of its columns are multiplied: from a
        dict, those of columns whose target is 1; with "balanced", those of 0 and 1 in each column. Weights shift the
        predicted probabilities towards classes with larger weights, so that they are no longer calibrated. To keep
        them calibrated, train without weights and move the threshold instead.
    weigh_validation : bool
        Whether `class_weight` also applies to "val_loss", which makes it comparable with "loss".
    metrics : sequence of str, callable or Metric, or dict, optional
        "accuracy", "top_k" ("top_3", ...), "mae", "rmse", "r2", "auc", "f1", or functions of (targets, outputs) that
        return a number. They are computed for the training rows, from the outputs of the training step, and for the
        validation rows, without weights. `cnn.Metric` wraps functions of probabilities or labels; "auc_ovr" (as "auc")
        and "auc_ovo" are for several classes. A dict sets the names.
    callbacks : sequence of Callback
        See `cnn.Callback`.
    early_stopping : EarlyStopping, int or True, optional
        An int is its patience; True is 10.
    initial_epoch : int, optional
        The number of epochs that are done, to continue a run:

        - the orders of the rows, and schedules by epoch, are those of one uninterrupted run;
        - `model.history` is continued, if it ends there and has the same names;
        - callbacks continue from their saved state (`Callback.load_state_dict`): early stopping keeps its best epoch;
        - a model that was interrupted within the next epoch, or saved there with its training state (by a callback),
          continues at that batch; metrics of training rows then cover the remaining rows.

        None: a new run with a new history; orders and rates follow on from the epochs that this model has done with
        its optimizer.
    steps_per_epoch : int, optional
        At most this many batches in an epoch. The next epoch continues with an iterable that is not a Sequence, which
        may be endless; from an array, each epoch takes other rows if they are shuffled.
    drop_last : bool
        Whether the last batch of an epoch, or of a block, is omitted if it is smaller than the others.
    accumulation_steps : int
        Number of batches whose mean gradient is used for one step of the optimiser.
    threads : int, optional
        At most this many; None: as `cnn.set_num_threads` says. The result does not depend on it.
    progress : {"auto", True, False}
        "auto": a bar on a terminal or in a notebook (without tqdm, a line for each epoch), and nothing elsewhere. True:
        also elsewhere, a line for each epoch on stderr. False: nothing.
    verbose : {0, 1, 2}, optional
        Keras's argument, in place of `progress`: 0 shows nothing, 1 a bar as with True, 2 a line for each epoch.
    checkpoint : str or path, optional
        A folder for checkpoints: see `cnn.ModelCheckpoint`, which is added to the callbacks.
    checkpoint_every : int
        Epochs from one checkpoint to the next.
    max_to_keep : int
        Number of checkpoints to keep: `max_to_keep` of `cnn.ModelCheckpoint`.
    resume : bool
        Whether to continue from the newest checkpoint in that folder, if there is one.
    comm : mpi4py.MPI.Comm, optional
        The ranks that train this model together: each calls `fit` with its rows, and `batch_size` counts the rows of
        all ranks. All end with the same parameters. Only rank 0 shows progress and writes files. Not with
        `validation_split`, "balanced" class weights, or a loss of your own.
    shards : int
        Number of parts of a batch whose gradients are added in a fixed order: the number of ranks times a power of two.
        Runs on other numbers of ranks with the same `shards` give the same bits, if rank r of R has the rows from
        n r // R to n (r + 1) // R.
    shard : {None, "auto"}
        "auto": all ranks pass the same arrays or memory maps, and each takes these rows.
    deterministic : bool
        False: the communicator's Allreduce sums the gradients, in an order that may differ each time.
    average_every : int
        For slow networks: above 1, each shard trains a copy of the model on its rows of this many batches, with its own
        optimiser state; then the parameters are averaged. See docs/distributed.md. Only with `comm`, and arrays or
        memory maps.

    Returns
    -------
    History
        A dict of lists with a number for each epoch: "loss" (the mean over the epoch, while the parameters change),
        "accuracy" with CrossEntropyLoss, the metrics, the same for the validation data with the prefix ``val_``, and
        "lr" with a schedule. With an optimiser that needs the whole data, the numbers are those after the iteration,
        "evaluations" counts evaluations of the loss, and `History.converged` says why training ended early.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; then nothing has changed. If a batch of an iterable or a block of a file is invalid,
        or the iterable, a metric or a loss of your own raises, the parameters are restored to the start of the epoch.
    OSError
        If the file of a memory map cannot be read, or was truncated; the parameters are restored likewise.
    RuntimeError
        If there is no loss or no optimizer, or a callback calls fit. With `comm` also if another rank has failed,
        which it names.
    DivergenceError
        If the loss is not finite; the message names epoch, batch and learning rate. The parameters are restored to the
        start of that epoch.

    Notes
    -----
    Ctrl-C stops within about 0.1 s and leaves a valid model with its last parameters. `model.history` has the epochs
    so far, and ``fit(..., initial_epoch=model.history.epochs[-1])`` continues at that batch. After Ctrl-C or a
    DivergenceError, ``cnn.EarlyStopping.restore_best(model)`` restores the best parameters of early stopping.

    Memory: arrays of the model's dtype are used in place, in whatever order the rows are taken. Other arrays are
    converted once: float64 data of 800 MB takes 400 MB more for a float32 model, which you save if you convert it with
    ``x.astype("float32")`` and delete the original. The indices of sparse matrices are always copied: 4 bytes for each
    number, 8 for each row. Early stopping and each epoch keep a copy of the parameters and the optimiser's state.
    """
    with _ranks(self, comm, shards, deterministic) as group, only_fit_of(self):
        continued = resume or initial_epoch is not None
        initial_epoch = 0 if initial_epoch is None else initial_epoch
        epochs = integer("epochs", epochs, 1)
        core = self._core
        core.need_optimizer()
        whole = core.optimizer.whole_data
        auto = isinstance(batch_size, str) and batch_size == "auto"
        if auto:
            batch_size = None if whole else AUTO_SIZES[0]
        batch_size = MOST_ROWS if batch_size is None else integer("batch_size", batch_size, 1)
        initial_epoch = integer("initial_epoch", initial_epoch, 0)
        accumulation_steps = integer("accumulation_steps", accumulation_steps, 1)
        average_every = integer("average_every", average_every, 1)
        checkpoint_every = integer("checkpoint_every", checkpoint_every, 1)
        max_to_keep = integer("max_to_keep", max_to_keep, 1)
        validation_freq = integer("validation_freq", validation_freq, 1)
        steps_per_epoch = None if steps_per_epoch is None else integer("steps_per_epoch", steps_per_epoch, 1)
        drop_last, stratify = flag("drop_last", drop_last), flag("stratify", stratify)
        shuffle = flag("shuffle", shuffle)
        weigh_validation = flag("weigh_validation", weigh_validation)
        threads = _threads(group, threads)
        progress = mode_of(progress, verbose) if group is None or group.rank == 0 else False
        if resume and checkpoint is None:
            raise ValueError("resume: expected checkpoint=folder with it, got none")

        context = Context(self, True, batch_size, shuffle and not whole, accumulation_steps, steps_per_epoch, drop_last)
        if group is not None:
            if class_weight is not None and not isinstance(class_weight, dict):
                raise ValueError(f"class_weight: expected a dict with comm, got {class_weight!r}")
            context.program, context.group = group.program, group
        if average_every > 1:
            context.program = _local_steps(core, group, average_every, accumulation_steps)
        x, y, sample_weight = _own(group, shard, x, y, sample_weight)
        if shard is not None and isinstance(validation_data, (tuple, list)) and len(validation_data) in (2, 3):
            validation_data = _own(group, shard, *validation_data, *[None] * (3 - len(validation_data)))
        source = source_of(context, x, y, sample_weight, Names(), epochs - initial_epoch)
        if whole:
            source = _in_memory(core.optimizer, source, x)
        if group is not None:
            asked = {
                "epochs": (epochs, initial_epoch, steps_per_epoch, resume),
                "batch_size": (batch_size, accumulation_steps, drop_last),
                "average_every": average_every,
                "shuffle": shuffle,
                "class_weight": class_weight,
                "validation": (validation_data is not None, validation_freq),
                "metrics": metrics,
                "sample_weight": sample_weight is not None,
                "early_stopping": early_stopping,
            }
            source = _of_all(group, source, asked, x, y)
        validation = split_off(self, source, validation_data, validation_split, stratify)
        if validation is None:
            validation = _validation(self, source, validation_data, epochs - initial_epoch)
        elif not stratify:
            warn_of_order([(source, validation)])
        if class_weight is not None:
            context.class_weights = class_weights_of(self, class_weight, source)
        if group is not None and validation is not None:
            validation.context.program = context.program
            validation = _of_all(group, validation, {}, *validation_data[:2])
        if weigh_validation and validation is not None:
            validation.context.class_weights = context.class_weights
        meter = Meter(metrics, self)
        source.check(meter)
        if isinstance(source, Rows):
            if not context.rows(source.rows):
                raise ValueError(f"drop_last: {source.rows} rows do not fill a batch of {batch_size}: lower batch_size")
            if auto and not whole and group is None:
                batch_size = auto_size(context, [self], [source.rows])
            core.program.check_batches(context.rows(source.rows), batch_size)
            if whole:
                _check_whole(core.optimizer, source, batch_size)
        if average_every > 1 and not isinstance(source, Rows):
            raise ValueError(f"{source.names.x}: expected arrays or memory maps with average_every, got batches")
        if validation is not None:
            val_meter = Meter(metrics, self)
            validation.check(val_meter)
        names = [*meter.summed, *meter.names]
        names += [f"val_{name}" for name in names] * (validation is not None)
        chosen = sorted(callbacks_of(callbacks, early_stopping), key=lambda callback: callback._turn)
        scored = list(names)
        _watched(core, scored)
        if self.optimizer.schedule is not None:
            names.append("lr")
        if whole:
            names += ["evaluations", *core.optimizer.logs]
        saver = None
        if checkpoint is not None:
            saver = ModelCheckpoint(checkpoint, checkpoint_every, max_to_keep)
            chosen.append(saver)
        if group is not None and group.rank:
            chosen = [callback for callback in chosen if not callback._writes]
        for callback in chosen:
            callback._check(names)
        by_batch = bool(overridden(chosen, "on_batch_end"))
        if average_every > 1 and group.any(by_batch):
            raise ValueError(
                "callbacks: expected none with on_batch_end where average_every is above 1: the model changes at the "
                "end of an epoch"
            )
        if saver is not None and resume:
            initial_epoch = max(initial_epoch, saver.resume(self) or 0)
            if group is not None:
                state = core.state
                group.check({"the checkpoint": (state.epoch, state.position, zlib.crc32(core.program.parameters))})

        # A run that is continued begins at the batch where the model was saved, or interrupted, in the next epoch.
        position, core.state.position = core.state.position, None
        if not continued or position is None or position[0] != initial_epoch + 1 or initial_epoch >= epochs:
            position = None
        history = History()
        if initial_epoch and self.history is not None and self.history.goes_on(initial_epoch, names):
            history = self.history.copy()
        for name in names:
            history.setdefault(name, [])
        self.history = history
        self.stop_training = False
        known = core.state.callbacks if continued and initial_epoch == core.state.epoch else {}
        seen = core.state.begin(initial_epoch)  # a new run takes the orders and rates that follow those of the last
        core.program.clear_padding()  # a step that diverged may have left NaN there
        logs: dict[str, float] = {}
        rows = None if source.rows is None else context.rows(source.rows)
        with contextlib.ExitStack() as at_end:
            for callback in chosen:
                callback.model, callback.stop = self, False
                at_end.callback(callback._close)
            at_end.callback(core.state.release)
            bar = at_end.enter_context(Progress(progress, initial_epoch, epochs, rows))
            trainer = _Trainer(context, self, meter, chosen, bar, threads, group)
            if saver is not None and saver in chosen and group is not None:
                at_end.push(lambda kind, *_: trainer.save(saver) if kind is KeyboardInterrupt else None)
            for call in overridden(chosen, "on_train_begin"):
                call({})
            for name, callback in names_of(chosen).items():
                if name in known:
                    callback.load_state_dict(known[name])
            core.state.running, core.state.callbacks = chosen, {}
            beginning, ending = overridden(chosen, "on_epoch_begin"), overridden(chosen, "on_epoch_end")
            for epoch in range(initial_epoch + 1, epochs + 1):
                if trainer.stopped() or history.converged:
                    break
                for call in beginning:
                    call(epoch, {})
                logs = trainer.epoch(source, epoch, seen, position)
                position = None
                if validation is not None and epoch % validation_freq == 0:
                    with _Undone(trainer):
                        scores = _evaluate(self, validation, val_meter, threads)
                    logs |= {f"val_{name}": value for name, value in scores.items()}
                if "lr" in names or trainer.scheduled:
                    logs["lr"] = trainer.lr
                if trainer.objective is not None:
                    logs |= {"evaluations": trainer.objective.evaluations, **trainer.objective.logs}
                watched = _watched(core, scored)
                core.state.epoch, core.state.epochs_seen = epoch, seen
                core.end_epoch(logs, watched)
                seen = core.state.epochs_seen
                history.record(epoch, logs)
                history.converged = trainer.converged
                bar.epoch(epoch, trainer.rows, logs)
                for call in ending:
                    call(epoch, dict(logs))
            for call in overridden(chosen, "on_train_end"):
                call(dict(logs))
        return history


def _watched(core, names: list[str]) -> str | None:
    """The number that the optimiser's schedule reacts to, in epochs that have it; ValueError if no epoch will."""
    schedule = getattr(core.optimizer, "schedule", None)
    return schedule.watched(names) if isinstance(schedule, ReduceLROnPlateau) else None


def _ranks(model, comm, shards, deterministic=True):
    """The group of ranks that make a call together; None without a communicator."""
    if comm is None:
        return contextlib.nullcontext()
    from . import distributed

    return distributed.ranks_of(model, comm, shards, deterministic, fresh=True)


def _local_steps(core, group, every: int, accumulate: int) -> Any:
    """The program that trains by local steps."""
    if group is None:
        raise ValueError(f"average_every: expected 1 without comm, got {every}")
    if core.optimizer.whole_data or accumulate > 1:
        what = f"accumulation_steps={accumulate}" if accumulate > 1 else type(core.optimizer).__name__
        raise ValueError(f"average_every: expected 1 with {what}, got {every}")
    from .distributed.local import LocalSteps

    return LocalSteps(core, group, every)


def _threads(group, threads) -> int:
    """How many threads to use: ranks on one machine share its cores."""
    if group is None or threads is not None:
        return threads_for(threads)
    from . import distributed

    return distributed.threads_of(group.places, group.rank, threads_for(None))


def _own(group, shard, *arrays):
    """The rows of this rank of x, y and the weights, if all ranks have been given the same."""
    if shard is None:
        return arrays
    if shard != "auto" or group is None:
        raise ValueError(f"shard: expected None, or 'auto' with comm, got {shard!r}")
    from . import distributed

    return distributed.own_rows(group, *arrays)


def _of_all(group, source: Source, asked: dict, x, y) -> Source:
    """The source of all ranks, once it is sure that they ask for the same."""
    from . import distributed

    asked |= {"x": distributed.tell(x), "y": distributed.tell(y), "source": type(source).__name__, "_n": source.rows}
    sizes = [said["_n"] for said in group.check(asked)]
    return distributed.shard_source(group, source, sizes)


def _in_memory(optimizer: Optimizer, source: Source, x: Any) -> Source:
    """The source of an optimiser that needs the whole data: a memory map is read; ValueError if x is no array."""
    if isinstance(source, Rows) and not isinstance(x, Blocks):
        return source if source.in_memory else cast(Any, source).loaded()
    got = "Blocks" if isinstance(x, Blocks) else f"batches, as a {type(x).__name__}"
    raise ValueError(
        f"{source.names.x}: {type(optimizer).__name__} needs the whole data in each evaluation: expected arrays x and "
        f"y, in memory or memory maps that fit into it, got {got}: join the batches by np.concatenate, or take an "
        "optimizer of batches, such as cnn.Adam()"
    )


def auto_size(context: Context, models: list[Any], rows: list[int]) -> int:
    """The first of AUTO_SIZES that leaves none of these models a batch of one row where it needs two."""
    for context.batch_size in AUTO_SIZES:
        with contextlib.suppress(ValueError):
            for model, n in zip(models, rows, strict=True):
                model._core.program.check_batches(context.rows(n), context.batch_size)
            return context.batch_size
    context.batch_size = AUTO_SIZES[0]
    return context.batch_size


def _check_whole(optimizer: Optimizer, source: Rows, batch_size: int) -> None:
    """ValueError if an optimiser that needs the whole data would not get it as one batch."""
    if batch_size < source.rows:
        raise ValueError(
            f"batch_size: {type(optimizer).__name__} needs the whole data, {source.rows} rows, got {batch_size}: leave "
            "it out, or pass None"
        )


@contextlib.contextmanager
def only_fit_of(*models: Any) -> Iterator[None]:
    """RuntimeError if another `fit` of one of the models is running."""
    if any(model._core.fitting for model in models):
        raise RuntimeError("another thread is training this model, or a callback of its fit has called fit again")
    for model in models:
        model._core.fitting = True
    try:
        yield
    finally:
        for model in models:
            model._core.fitting = False


def split_off(model: Any, source: Source, data: Any, split: Any, stratify: bool) -> Source | None:
    """The rows of `source` that are held out for validation, taken from it, or None; data: for validation instead."""
    number("validation_split", split, 0, 1)
    if not split:
        if stratify:
            raise ValueError("stratify: expected a validation_split with it, got none")
        return None
    if data is not None:
        raise ValueError("validation_split: expected no validation_data with it")
    if not isinstance(source, Rows):
        raise ValueError("validation_split: an iterable of batches cannot be split: pass validation_data")
    from fractions import Fraction  # with decimal, which `import cnn` does without

    fraction = Fraction(str(split)).limit_denominator(10**9)  # 0.1 is a tenth, and 1 / 3 a third
    n = int(source.rows * (1 - fraction))
    if not 0 < n < source.rows:
        raise ValueError(f"validation_split: {split} of {source.rows} rows leaves no rows to train on or to validate")
    rest = source.stratified(fraction) if stratify else source.split(n)
    rest.context = Context(model, batch_size=source.context.batch_size)
    return rest


def _validation(model, source: Source, data, epochs: int) -> Source | None:
    """The source of validation data."""
    context = Context(model, batch_size=source.context.batch_size)
    if data is None:
        return None
    if isinstance(data, Blocks):
        return source_of(context, data, None, None, VALIDATION)
    batches = isinstance(data, list) and all(isinstance(b, (tuple, list)) and len(b) in (2, 3) for b in data)
    if isinstance(data, (tuple, list)) and not (batches and data):
        if len(data) not in (2, 3) or np.isscalar(data[0]):
            raise _no_pair(data)
        w = data[2] if len(data) == 3 else None
        return source_of(context, data[0], data[1], w, VALIDATION, arrays=True)
    if isinstance(data, (np.ndarray, dict, str, bytes)) or not hasattr(data, "__iter__"):
        raise _no_pair(data)
    return source_of(context, data, None, None, VALIDATION, epochs)


def _no_pair(data: Any) -> ValueError:
    got = f"{len(data)} of them" if isinstance(data, (tuple, list)) else type(data).__name__
    return ValueError(
        f"validation_data: expected a pair (x, y), or (x, y, sample_weight), or batches of them, got {got}"
    )


def warn_of_order(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Warn if rows that were split at the end, into two sources, are sorted by their classes; once."""
    if any(_in_order(chain(source.labels(), rest.labels())) for source, rest in pairs):
        warnings.warn(
            "validation_split: takes the last rows, but y is sorted by class: some classes are hardly trained on, or "
            "not validated: pass stratify=True, or shuffle x and y before",
            UserWarning,
            stacklevel=users_line(),
        )


def _in_order(targets: Iterable[np.ndarray]) -> bool:
    """Whether there are several classes, and all rows of each lie together, in their order."""
    last = None
    up = down = True
    different: Any = False
    for y in targets:
        labels = classes_of(y)
        if labels is None or not (up or down):
            return False
        labels = labels if last is None else np.append(last, labels)
        steps = labels[1:].astype(np.int64) - labels[:-1].astype(np.int64)
        up, down = up and bool((steps >= 0).all()), down and bool((steps <= 0).all())
        different = different or steps.any()
        last = labels[-1:]
    return bool(different and (up or down))


def class_weights_of(model: Any, wanted: Any, source: Source) -> np.ndarray:
    """The weights of the classes, by the argument `class_weight`."""
    loss = model.loss
    if loss is not None and loss.spec() is None and loss.targets is None:
        raise ValueError("class_weight: expected none with a loss of your own, which weights the rows itself")
    blocks = source.labels() if isinstance(source, Rows) else None
    ignored, kind = getattr(loss, "ignore_index", None), loss and loss.targets
    return weights_of_classes(wanted, blocks, model._core.out_features, ignored, kind)


def callbacks_of(callbacks: Any, early_stopping: Any) -> list[Callback]:
    if isinstance(callbacks, Callback):
        callbacks = (callbacks,)
    try:
        chosen = list(callbacks)
    except TypeError:
        raise TypeError(f"callbacks: expected a list of cnn.Callback, got {callbacks!r}") from None
    if early_stopping is not None and early_stopping is not False:
        if early_stopping is True:
            early_stopping = EarlyStopping()
        elif isinstance(early_stopping, (int, np.integer)):
            early_stopping = EarlyStopping(patience=int(early_stopping))
        if not isinstance(early_stopping, EarlyStopping):
            raise TypeError(f"early_stopping: expected EarlyStopping, an int or True, got {early_stopping!r}")
        chosen.append(early_stopping)
    for i, callback in enumerate(chosen):
        if not isinstance(callback, Callback):
            hint = " (pass an object, not the class)" if isinstance(callback, type) else ""
            raise TypeError(f"callbacks: expected cnn.Callback objects, got {callback!r}{hint}")
        if any(callback is other for other in chosen[:i]):
            raise ValueError(f"callbacks: {callback!r} was passed twice")
        check_methods(callback)
    return chosen


def all_finite(a: Any) -> bool:
    if isinstance(a, SparseRows):
        a = a.value[a.entries]
    return a.dtype.kind != "f" or bool(np.isfinite(a).all())


def counted(model: Any, y: np.ndarray) -> int:
    """The rows of targets that count: those whose target is not to be ignored."""
    ignored = getattr(model.loss, "ignore_index", None)
    return len(y) if ignored is None or y.ndim > 1 else int(np.count_nonzero(y != ignored))


class Meter(Metrics):
    """The numbers of one call: those that the program sums up, the loss and the accuracy, and the metrics."""

    def __init__(self, wanted: Any, model: Any) -> None:
        labels = model.loss is not None and model.loss.targets == "labels"
        self.summed: list[str] = ["loss", "accuracy"] if labels else ["loss"]
        super().__init__(wanted, model, free=tuple(self.summed))
        self.mean: Any = getattr(model.loss, "reduction", "mean") == "mean"
        self.width: Any = model._core.out_features
        self.dtype: np.dtype = model.dtype
        self.outputs = np.empty((0, self.width), self.dtype)

    def check(self, targets: Any, width: int | None = None) -> None:
        if self:
            super().check(targets, self.width)

    def room(self, rows: int) -> np.ndarray | None:
        """An array for the outputs of that many rows; None if no metric needs them."""
        if not self:
            return None
        if len(self.outputs) < rows:
            self.outputs = np.empty((rows, self.width), self.dtype)
        return self.outputs[:rows]

    def loss(self, totals: np.ndarray) -> float:
        """The loss, from the weighted sum over the rows and the sum of their weights."""
        loss, weight = totals[:2]
        if not weight:
            return math.nan  # nothing counts
        return float(loss / weight) if self.mean else float(loss)

    def numbers(self, totals: np.ndarray) -> dict[str, float]:
        """All numbers, from the program's four sums and what the metrics have been updated with."""
        right, rows = totals[2:]
        accuracy = float(right / rows) if rows else float("nan")
        known = {"loss": self.loss(totals), "accuracy": accuracy}
        return {**{name: known[name] for name in self.summed}, **self.results()}


class _Undone:
    """Puts back what the epoch has changed, if reading a batch fails, or a function of the user's own fails."""

    def __init__(self, trainer: _Trainer) -> None:
        self.trainer = trainer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None and issubclass(kind, Exception):
            core = self.trainer.core
            core.restore(self.trainer.before)
            core.state.position = None


class _Trainer:
    """Runs epochs, in native calls of about SLICE seconds.

    Attributes
    ----------
    rows : int
        Rows done in the last epoch.
    lr : float
        Of the last step.
    scheduled : bool
        Whether a schedule gave it.
    """

    def __init__(self, context: Context, model, meter: Meter, callbacks, bar: Progress, threads, group=None):
        self.context = context
        self.group = group  # of ranks, which have to decide alike
        self.program = context.program
        self.accumulate = context.accumulate
        self.every = getattr(self.program, "every", 1)  # batches from one average of local steps to the next
        self.local = self.every > 1  # the model changes at the end of a part
        self.model = model
        self.core = model._core
        self.meter = meter
        self.callbacks = callbacks
        self.on_batch_end = overridden(callbacks, "on_batch_end")
        self.by_batch = bool(self.on_batch_end) if group is None else group.any(bool(self.on_batch_end))
        self.bar = bar
        self.threads = threads
        self.groups = 1  # steps of the optimiser in one native call
        self.rows = 0
        self.lr = math.nan
        self.scheduled = False
        self.seen = 0  # epochs before this one, with this optimizer
        self.objective: Objective | None = None  # of an optimiser that needs the whole data
        self.converged: str | None = None  # why it has
        self.before: Any = None  # snapshots of the epoch's beginning, and of that of the epoch before
        self.earlier: Any = None
        self.number = 0  # of the epoch
        self.ignores = getattr(model.loss, "ignore_index", None) is not None
        if group is not None:
            group.program.shares = not self.by_batch  # a callback sees the optimiser's state after each batch

    def stopped(self) -> bool:
        stop = self.model.stop_training or any(callback.stop for callback in self.callbacks)
        return stop if self.group is None else self.group.any(stop)

    def rates(self, first: int, count: int) -> np.ndarray | None:
        """What the optimiser's schedule says of so many steps from a step on; None without one. A callback may have set
        another optimiser, or schedule, before any call."""
        self.core.need_optimizer()
        optimizer = self.core.optimizer
        schedule = optimizer.schedule
        self.scheduled = schedule is not None
        if schedule is None:
            rates = None
        elif schedule.interval == "step":
            rates = optimizer.rates(first, count)
        else:
            rates = np.repeat(optimizer.rates(self.seen, 1), count, axis=0)
        self.lr = optimizer.lr if rates is None else float(rates[-1, 0])
        return rates

    def epoch(self, source: Source, epoch: int, seen: int, position: tuple[Any, ...] | None) -> dict[str, float]:
        """Train one epoch, or what is left of it after a position (epoch, rows, *totals); its scores."""
        self.core.need_optimizer()  # a callback may have taken it away
        self.earlier, self.before, self.number = self.before, self.core.snapshot(), epoch
        self.seen = seen
        totals = np.zeros(4)  # weighted sum of the loss, sum of weights, rows classified right, rows
        skip = 0
        if position is not None:
            skip, totals[:] = position[1], position[2:]
        self.rows = batches = 0
        self.meter.reset()
        if position is not None:  # of the last step before it, if there is none behind it
            self.rates(max(0, self.program.steps - 1), 1)
        parts = self.context.taken(source.parts(seen))
        while True:
            with _Undone(self):
                part = next(parts, None)
            if part is None:
                break
            first = min(skip, part.rows)
            skip -= first
            if first == part.rows and skip:  # otherwise its totals are not complete
                done = first
            elif self.core.optimizer.whole_data:
                done = self.whole(part, epoch, totals, first)
            else:
                done = self.part(part, epoch, batches, totals, first)
            self.rows += done
            batches += -(-done // part.batch_size)
            if done < part.rows or (self.by_batch and self.stopped()):
                break
        with _Undone(self):
            if not totals[1]:
                raise ValueError(f"{source.names.all}: {NOTHING_COUNTS}")
            return self.meter.numbers(totals)

    def save(self, saver: ModelCheckpoint) -> None:
        """After Ctrl-C: save the last batch; without one in this epoch, the epoch's beginning."""
        if self.number > self.core.state.epoch and self.core.state.position is None:
            self.core.restore(self.before)
        saver._save()

    def whole(self, part: Part, epoch: int, totals: np.ndarray, first: int) -> int:
        """An iteration on the whole data, which is this part, unless it is done: the rows."""
        n = part.rows
        out = self.meter.room(len(part.x))
        if first < n:
            self.iteration(part, epoch, totals, out)
        if self.group is not None:
            self.collect(part, first, n, totals, out)
        elif out is not None or self.ignores:
            totals[3] -= n - counted(self.model, part.y)
            if out is not None and first < n:
                self.meter.update(part.y, out)
        return n

    def iteration(self, part: Part, epoch: int, totals: np.ndarray, out: np.ndarray | None) -> None:
        """An iteration on the whole data. Totals are of the parameters after it."""
        n, program = part.rows, self.program
        with _Undone(self):
            if self.group is not None and self.objective is None:
                self.objective = program.objective(self.core, part, self.threads, out)
            elif self.objective is None or self.objective.x is not part.x:
                self.objective = Objective(self.core, *part[:3], self.threads, out)
            self.rates(program.steps, 1)
            self.converged = self.core.iterate(self.objective, self.lr)
        if not math.isfinite(self.objective.value):
            odd = [name for name, a in (("x", part.x), ("y", part.y)) if not all_finite(a)]
            self.diverged(epoch, 0, self.lr, f"; {' and '.join(odd)} has NaN or infinity" if odd else "")
        totals += self.objective.totals
        totals[0] += (self.objective.loss - self.meter.loss(totals)) * (totals[1] if self.meter.mean else 1)
        self.core.state.position = (epoch, n, *totals.tolist())
        for call in self.on_batch_end:
            logs = {"loss": self.objective.loss, "rows": n} | ({"lr": self.lr} if self.scheduled else {})
            call(0, logs)

    def part(self, part: Part, epoch: int, batches: int, totals: np.ndarray, first: int) -> int:
        """Train on a part from row `first` on; the rows that are done, all unless a callback ends the training."""
        n, batch_size = part.rows, part.batch_size
        group = self.accumulate * batch_size
        out = self.meter.room(n if self.group is None else len(part.x))
        program = self.program
        at = first
        while at < n:
            stop = min(n, at + (1 if self.by_batch else self.groups) * group)
            steps = -(-(stop - at) // group)
            now = self.rates(program.steps, steps)
            sums = np.zeros(4) if self.by_batch else totals
            began = time.perf_counter()
            with _Undone(self):  # a loss in Python may raise anything
                try:
                    bad = program.train_batches(
                        *(part.x, part.y, part.w, part.order, at, stop, batch_size, now, out, self.threads),
                        *(self.accumulate, sums),
                    )
                except KeyboardInterrupt:
                    if self.local:
                        self.core.restore(self.before)
                        self.core.state.position = None
                    elif self.group is not None:  # between any two steps
                        totals = totals + sums if self.by_batch else totals
                        self.core.state.position = (epoch, self.rows + program.reached, *totals.tolist())
                    raise
            took = time.perf_counter() - began
            if bad >= 0:
                if bad < at:  # local steps since then have not been taken
                    now, at = self.rates(program.steps + bad // batch_size, 1), bad
                lr = self.lr if now is None else now[(bad - at) // group, 0]
                rows: Any = slice(bad, bad + batch_size * self.every)
                rows = rows if part.order is None else part.order[rows]
                odd = [name for name, a in (("x", part.x[rows]), ("y", part.y[rows])) if not all_finite(a)]
                where = "these batches" if self.local else "this batch"
                why = f"; {' and '.join(odd)} has NaN or infinity in {where}" if odd else ""
                self.diverged(epoch, batches + bad // batch_size, lr, why)
            at = stop
            if self.by_batch:
                totals += sums
            if not self.local or at == n:
                self.core.state.position = (epoch, self.rows + at, *totals.tolist())
            if self.by_batch:
                logs = {"loss": self.meter.loss(sums), "rows": int(sums[3])}
                if self.scheduled:
                    logs["lr"] = self.lr
                for call in self.on_batch_end:
                    call(batches + -(-at // batch_size) - 1, dict(logs))
                if self.stopped():
                    break
            if self.bar.bar is not None:
                self.bar.batch(epoch, self.rows + at, self.meter.loss(totals))
            longer = min(4.0, SLICE / max(took, 1e-9))
            self.groups = max(1, int(min(self.groups, n) * longer))
        if self.group is not None:
            self.collect(part, first, at, totals, out)
        elif out is not None or self.ignores:
            y = part.y[:at] if part.order is None else part.y[part.order[:at]]
            totals[3] -= at - counted(self.model, y)
            if out is not None and first < at:
                self.meter.update(y[first:], out[first:at])
        return at

    def collect(self, part: Any, first: int, at: int, totals: np.ndarray, out) -> None:
        """What `part` does after training, for rows on all ranks."""
        with _Undone(self):
            self.group.program.gather_state()
        if self.ignores:
            y = part.y[part.order[:at]]
            totals[3] -= self.program.missing(len(y) - counted(self.model, y))
        if out is not None and first < at:
            for targets, outputs in self.program.gather(part, first, at, out):
                self.meter.update(targets, outputs)

    def diverged(self, epoch: int, batch: int, lr: float, why: str) -> None:
        """Put back the last epoch whose parameters are finite, and say so."""
        self.core.state.position = None
        self.core.restore(self.before)
        if self.earlier is not None and not np.isfinite(self.program.parameters).all():
            self.core.restore(self.earlier)  # the step of the last batch made numbers that no loss has seen
        raise DivergenceError(
            f"the loss is not finite in epoch {epoch}, batch {batch}, at a learning "
            f"rate of {lr:g}; the parameters are those from before this epoch"
            f"{why}: {'fill or drop those rows' if why else 'lower the learning rate, or scale x and y'}"
        )


# evaluate -------------------------------------------------------------------------------------------------------------


@takes_comm
def evaluate(
    self: Any,
    x: Any,
    y: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    metrics: Any = (),
    threads: int | None = None,
    class_weight: Any = None,
    *,
    comm: Any = None,
    shards: int = 8,
    shard: str | None = None,
) -> dict[str, float]:
    """The loss and the metrics of x and y, in evaluation mode.

    Parameters
    ----------
    x : array_like or sparse matrix of shape (n, in_features), memory map, Blocks, or iterable of batches
        As for `fit`.
    y : array_like, optional
        Targets; None if x contains them.
    sample_weight : array_like of shape (n,), optional
        Not negative.
    metrics : sequence of str, callable or Metric, or dict, optional
        As for `fit`.
    threads : int, optional
        At most this many; None: as `cnn.set_num_threads` says. The result does not depend on it.
    class_weight : dict or "balanced", optional
        As for `fit`.
    comm, shards, shard : optional
        As for `fit`: each rank passes its rows, as arrays or memory maps, and all get the numbers of all rows.

    Returns
    -------
    dict
        "loss", "accuracy" with CrossEntropyLoss or NLLLoss (the fraction of rows classified correctly), and the
        metrics.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, or there are no rows.
    RuntimeError
        If there is no loss.

    Warns
    -----
    RuntimeWarning
        If no row counts, because all weights are 0 or all targets are ignored, and the loss is NaN; or if NaN or
        infinity in x or y makes it so.
    """
    with _ranks(self, comm, shards) as group:
        threads = _threads(group, threads)
        context = Context(self)
        meter = Meter(metrics, self)
        x, y, sample_weight = _own(group, shard, x, y, sample_weight)
        source = source_of(context, x, y, sample_weight, Names())
        if group is not None:
            context.program = group.program
            source = _of_all(group, source, {"metrics": metrics, "class_weight": class_weight}, x, y)
        if class_weight is not None:
            context.class_weights = class_weights_of(self, class_weight, source)
        source.check(meter)
        return _evaluate(self, source, meter, threads)


def _evaluate(model, source: Source, meter: Meter, threads: int) -> dict[str, float]:
    program = source.context.program
    step = max(256, min(1 << 17, EVALUATION_WORK // max(1, program.n_parameters)))
    totals = np.zeros(4)
    meter.reset()
    odd = ""
    if program is not model._core.program:
        totals = program.evaluate_rows(source, step, meter, lambda y: counted(model, y), threads)
        if not math.isfinite(totals[0]):
            odd = f"{source.names.x} or {source.names.y} of some rank has NaN or infinity: the loss is {totals[0]:g}"
    for part in source.parts(None) if program is model._core.program else ():
        for at in range(0, len(part.x), step):
            rows = slice(at, at + step)
            x, y, w = part.x[rows], part.y[rows], None if part.w is None else part.w[rows]
            loss, weight, right = program.evaluate(x, y, w, threads)
            totals += np.array((loss, weight, right, counted(model, y)))
            if not (odd or math.isfinite(loss)):
                names = source.names if source.rows else Names()
                odd = next((name for name, a in ((names.x, x), (names.y, y)) if not all_finite(a)), "")
                odd = odd and f"{odd} has NaN or infinity: the loss is {loss:g}"
            if meter:
                meter.update(y, program.predict(x, meter.room(len(x)), threads))
    numbers = meter.numbers(totals)
    numbers["loss"] += program.penalty()
    if odd or not totals[1]:
        odd = odd or f"{source.names.all}: {NOTHING_COUNTS}: the loss is NaN"
        warnings.warn(odd, RuntimeWarning, stacklevel=users_line())
    return numbers
