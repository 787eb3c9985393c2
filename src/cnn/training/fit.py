"""`fit` and `evaluate`: epochs of native training, cut into calls short enough for Ctrl-C and a progress bar.

Where the rows come from is in data.py; what is made of the numbers is in metrics.py, history.py and progress.py.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, cast

import numpy as np

from .. import losses
from ..optim.optimizers import MOMENTUM, Optimizer
from ..optim.schedules import ReduceLROnPlateau
from .data import Blocks, Names, Part, Rows, Source, source_of
from .callbacks import Callback, EarlyStopping, overridden
from .history import History
from .metrics import Metrics
from .progress import Progress

SLICE = 0.05  # seconds that one native call may take
EVALUATION_WORK = 1 << 28  # multiply-adds of one native call of evaluation; fixed, so that sums are always cut alike
VALIDATION = Names("validation_data[0]", "validation_data[1]", "validation_data[2]", "validation_data")


class DivergenceError(ArithmeticError):
    """The loss became infinite or NaN. The parameters are those from before the epoch in which it did."""


def outputs_of(model) -> int:
    """How many outputs a model has."""
    return model._graph.widths[-1]


class Context:
    """What sources of batches need to know of the model and of the call."""

    def __init__(self, model, purpose: str, batch_size: int = 1, shuffle: bool = False, accumulate: int = 1):
        self.program = model._program
        self.own_loss = isinstance(model.loss, losses.CallableLoss)
        self.dtype = model.dtype
        self.purpose = purpose
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.accumulate = accumulate
        self.seed = model._random_seed
        self.permutation = model._kernels.permutation
        self.class_weights: np.ndarray | None = None

    def targets(self, y, n: int, name: str) -> np.ndarray:
        """y as the loss can read it, n rows."""
        if not self.own_loss:
            checked = self.program.targets(y, n, name)
            return checked.copy() if checked.ndim == 1 else checked  # labels: nobody shall change them once checked
        y = np.asarray(y)
        if y.ndim == 0 or len(y) != n:
            raise ValueError(f"{name}: expected {n} rows, as many as x has, got {'none' if y.ndim == 0 else len(y)}")
        return y

    def weights(self, w, n: int, name: str) -> np.ndarray:
        """w as the loss can read it."""
        if self.own_loss:
            raise ValueError(f"{name}: expected none with a loss of your own, which weighs the rows itself")
        return self.program.weights(w, n, name)

    def no_rows(self, names: Names) -> ValueError:
        return ValueError(f"{names.all}: {self.purpose} at least one row, got none")

    def with_classes(self, y: np.ndarray, w: np.ndarray | None) -> np.ndarray:
        """The rows' weights times those of their classes."""
        known = self.class_weights
        assert known is not None
        labels = _labels(y)
        rows = known[np.clip(labels, 0, len(known) - 1)].astype(self.dtype)  # an ignored row may have any label
        return rows if w is None else rows * w


def _labels(y: np.ndarray) -> np.ndarray:
    """Targets as class indices (n,)."""
    if y.ndim == 2 and y.shape[1] == 1 and ((y == 0) | (y == 1)).all():
        return y[:, 0].astype(np.int64)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError("class_weight: expected targets that are class indices, or 0 and 1")
    return y


def _class_weights(wanted, blocks: Iterator[np.ndarray] | None, outputs: int, ignored: int | None) -> np.ndarray:
    """The weight of each class, from fit's argument and all targets."""
    classes = max(2, outputs)
    weights = np.ones(classes)
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or not 0 <= key < classes:
                raise ValueError(f"class_weight: unknown class {key!r}: expected indices from 0 to {classes - 1}")
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise TypeError(f"class_weight: expected a number for class {key}, got {value!r}")
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"class_weight: expected a finite weight of at least 0 for class {key}, got {value}")
            weights[key] = value
        for y in blocks or ():
            _labels(y)
        return weights
    if not (isinstance(wanted, str) and wanted == "balanced"):
        error = ValueError if isinstance(wanted, str) else TypeError
        raise error(f"class_weight: expected a dict or 'balanced', got {wanted!r}")
    if blocks is None:
        raise ValueError("class_weight: 'balanced' needs all targets in an array, not an iterable: pass a dict")
    counts = np.zeros(classes, np.int64)
    for y in blocks:
        labels = _labels(y)
        if ignored is not None:
            labels = labels[labels != ignored]
        counts += np.bincount(labels, minlength=classes)
    there = counts > 0
    weights[there] = counts.sum() / (np.count_nonzero(there) * counts[there])
    return weights


# fit ------------------------------------------------------------------------------------------------------------------


def fit(model, x, y, **settings) -> History:
    """See Sequential.fit."""
    if model._fitting:
        raise RuntimeError("another thread is training this model, or a callback of its fit has called fit again")
    model._fitting = True
    try:
        return _fit(model, x, y, **settings)
    finally:
        model._fitting = False


def _fit(
    model,
    x,
    y,
    *,
    epochs,
    batch_size,
    shuffle,
    validation_data,
    validation_split,
    sample_weight,
    class_weight,
    metrics,
    callbacks,
    early_stopping,
    initial_epoch,
    accumulation_steps,
    threads,
    progress,
    checkpoint,
    checkpoint_every,
    keep,
    resume,
) -> History:
    goes_on = resume or initial_epoch is not None
    initial_epoch = 0 if initial_epoch is None else initial_epoch
    for name, value, least in (
        ("epochs", epochs, 1),
        ("batch_size", batch_size, 1),
        ("initial_epoch", initial_epoch, 0),
        ("accumulation_steps", accumulation_steps, 1),
        ("checkpoint_every", checkpoint_every, 1),
        ("keep", keep, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name}: expected an int, got {value!r}")
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if progress not in ("auto", True, False):
        raise ValueError(f"progress: expected 'auto', True or False, got {progress!r}")
    if resume and checkpoint is None:
        raise ValueError("resume: expected a folder as checkpoint with it, got none")
    model._need_optimizer()

    context = Context(model, "training needs", int(batch_size), bool(shuffle), int(accumulation_steps))
    program = context.program
    source = source_of(context, x, y, sample_weight, Names(), epochs - initial_epoch)
    validation = _validation(model, source, validation_data, validation_split, epochs - initial_epoch)
    ignored = getattr(model.loss, "ignore_index", None)
    if class_weight is not None:
        if context.own_loss:
            raise ValueError("class_weight: expected none with a loss of your own, which weighs the rows itself")
        blocks = source.labels() if isinstance(source, Rows) else None
        context.class_weights = _class_weights(class_weight, blocks, outputs_of(model), ignored)
    meter, val_meter = (_Meter(metrics, model) for _ in range(2))
    source.check(meter)
    if isinstance(source, Rows):
        program.check_batches(source.rows, context.batch_size)
    if validation is not None:
        validation.check(val_meter)
    names = [*model._scored, *meter.names]
    names += [f"val_{name}" for name in names] * (validation is not None)
    chosen = _callbacks(callbacks, early_stopping)
    schedule = _Schedule(model.optimizer, names)
    if schedule:
        names.append("lr")
    for callback in chosen:
        callback._check(names)

    saver = None
    if checkpoint is not None:  # the only place that knows of checkpoints, with epoch_done and close below
        from ..files.checkpoint import Saver

        saver = Saver(model, checkpoint, checkpoint_every, keep)
        if resume:
            initial_epoch = max(initial_epoch, saver.resume() or 0)

    # A run that goes on does so at the batch where the model was saved, or interrupted, within the next epoch.
    position, model._position = model._position, None
    if not goes_on or position is None or position[0] != initial_epoch + 1 or not initial_epoch + 1 <= epochs:
        position = None
    # Without initial_epoch a model goes on where its last fit ended: each epoch has its own order and rates.
    seen = initial_epoch or model._epochs_seen
    history = History()
    if initial_epoch and model.history is not None and model.history.goes_on(initial_epoch, names):
        history = model.history.copy()
    model.history = history
    model.stop_training = False
    for callback in chosen:
        callback.model, callback.stop = model, False
    program.clear_padding()  # a step that diverged may have left NaN there
    logs: dict[str, float] = {}
    try:
        with Progress(progress, initial_epoch, epochs, source.rows) as bar:
            trainer = _Trainer(context, model, meter, schedule, chosen, bar, threads)
            for call in overridden(chosen, "on_train_begin"):
                call({})
            for epoch in range(initial_epoch + 1, epochs + 1):
                if trainer.stopped():
                    break
                for call in overridden(chosen, "on_epoch_begin"):
                    call(epoch, {})
                logs = trainer.epoch(source, epoch, seen, position)
                position = None
                if validation is not None:
                    with trainer.undone():
                        scores = _evaluate(model, program, validation, val_meter, threads)
                    logs |= {f"val_{name}": value for name, value in scores.items()}
                if schedule:
                    logs["lr"] = trainer.lr
                seen += 1
                model._epochs_seen = seen
                history.record(epoch, logs)
                bar.epoch(epoch, trainer.rows, logs)
                for call in overridden(chosen, "on_epoch_end"):
                    call(epoch, dict(logs))
                schedule.epoch_done(logs)
                if saver is not None:
                    saver.epoch_done(epoch, history)
            for call in overridden(chosen, "on_train_end"):
                call(dict(logs))
    finally:
        for callback in chosen:
            callback._close()
        if saver is not None:
            saver.close()
    return history


def _validation(model, source: Source, data, split, epochs: int) -> Source | None:
    """The source of validation data; what is split off is taken from `source`."""
    if isinstance(split, bool) or not isinstance(split, (int, float, np.number)):
        raise TypeError(f"validation_split: expected a number, got {split!r}")
    if not 0 <= split < 1:
        raise ValueError(f"validation_split: expected at least 0 and below 1, got {split}")
    if split:
        if data is not None:
            raise ValueError("validation_split: expected no validation_data with it")
        if not isinstance(source, Rows):
            raise ValueError("validation_split: an iterable of batches cannot be split: pass validation_data")
        n = int(source.rows * (1 - split))
        if not 0 < n < source.rows:
            raise ValueError(
                f"validation_split: {split} of {source.rows} rows leaves no rows to train on or to validate"
            )
        rest = source.split(n)
        rest.context = Context(model, "expected", source.context.batch_size)
        return rest
    if data is None:
        return None
    context = Context(model, "expected", source.context.batch_size)
    if isinstance(data, Blocks):
        return source_of(context, data, None, None, VALIDATION)
    batches = isinstance(data, list) and all(isinstance(b, (tuple, list)) and len(b) in (2, 3) for b in data)
    if isinstance(data, (tuple, list)) and not (batches and data):
        if len(data) not in (2, 3) or np.isscalar(data[0]):
            raise ValueError("validation_data: expected a pair (x, y), or (x, y, sample_weight), or batches of them")
        w = data[2] if len(data) == 3 else None
        return source_of(context, data[0], data[1], w, VALIDATION, arrays=True)
    if isinstance(data, (np.ndarray, dict, str, bytes)) or not hasattr(data, "__iter__"):
        raise ValueError("validation_data: expected a pair (x, y), or (x, y, sample_weight), or batches of them")
    return source_of(context, data, None, None, VALIDATION, epochs)


def _callbacks(callbacks, early_stopping) -> list[Callback]:
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
            early_stopping = EarlyStopping(patience=early_stopping)
        if not isinstance(early_stopping, EarlyStopping):
            raise TypeError(f"early_stopping: expected EarlyStopping, an int or True, got {early_stopping!r}")
        chosen.append(early_stopping)
    for i, callback in enumerate(chosen):
        if not isinstance(callback, Callback):
            hint = " (pass an object, not the class)" if isinstance(callback, type) else ""
            raise TypeError(f"callbacks: expected cnn.Callback objects, got {callback!r}{hint}")
        if any(callback is other for other in chosen[:i]):
            raise ValueError(f"callbacks: {callback!r} stands there twice")
    return chosen


def _counted(model, y: np.ndarray) -> int:
    """The rows of targets that count: those whose target is not to be ignored."""
    ignored = getattr(model.loss, "ignore_index", None)
    return len(y) if ignored is None or y.ndim > 1 else int(np.count_nonzero(y != ignored))


class _Meter(Metrics):
    """The metrics of one call, with room for the outputs of a part."""

    def __init__(self, wanted, model):
        super().__init__(wanted, model, free=tuple(model._scored))
        self.width = outputs_of(model)
        self.dtype = model.dtype
        self.outputs = np.empty((0, self.width), self.dtype)

    def check(self, targets, width=None):
        if self:
            super().check(targets, self.width)

    def room(self, rows: int) -> np.ndarray | None:
        """Where the outputs of that many rows go; None if nobody wants them."""
        if not self:
            return None
        if len(self.outputs) < rows:
            self.outputs = np.empty((rows, self.width), self.dtype)
        return self.outputs[:rows]


class _Schedule:
    """The rates that the optimiser's schedule, if it has one, gives for steps and epochs."""

    def __init__(self, optimizer: Optimizer, names: list[str]):
        self.optimizer = optimizer
        self.schedule = cast(Any, optimizer.schedule)
        self.watched: str | None = None  # the number that the schedule reacts to
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.watched = self.schedule.monitor or ("val_loss" if "val_loss" in names else "loss")
            if self.watched not in names:
                raise ValueError(f"schedule: no {self.watched!r} to monitor: there are {', '.join(names)}")

    def __bool__(self) -> bool:
        return self.schedule is not None

    @property
    def per_step(self) -> bool:
        return self.schedule.interval == "step"

    def rates(self, first: int, count: int) -> np.ndarray:
        """lr and momentum of so many steps or epochs, (count, 2)."""
        return self.schedule.rates(first, count, self.optimizer.lr, self.optimizer.table[0, MOMENTUM])

    def epoch_done(self, logs: dict[str, float]) -> None:
        if self.watched is not None:
            self.schedule.step(logs[self.watched])


class _Trainer:
    """Runs epochs, in native calls of about SLICE seconds.

    Attributes
    ----------
    rows : int
        Rows done in the last epoch.
    lr : float
        Of the last step.
    """

    def __init__(self, context: Context, model, meter: _Meter, schedule: _Schedule, callbacks, bar: Progress, threads):
        self.program = context.program
        self.accumulate = context.accumulate
        self.model = model
        self.meter = meter
        self.schedule = schedule
        self.callbacks = callbacks
        self.on_batch_end = overridden(callbacks, "on_batch_end")
        self.bar = bar
        self.threads = threads
        self.groups = 1  # steps of the optimiser in one native call
        self.rows = 0
        self.lr = np.nan
        self.before: Any = None  # snapshots of the epoch's beginning, and of that of the epoch before
        self.earlier: Any = None
        self.ignores = getattr(model.loss, "ignore_index", None) is not None
        self.train = self.own_batches if context.own_loss else self.program.train_batches

    def stopped(self) -> bool:
        return self.model.stop_training or any(callback.stop for callback in self.callbacks)

    def epoch(self, source: Source, epoch: int, seen: int, position: tuple | None) -> dict[str, float]:
        """Train one epoch, or what is left of it after a position (epoch, rows, *totals); its scores."""
        self.model._need_optimizer()  # a callback may have taken it away
        self.earlier, self.before = self.before, self.program.snapshot(self.model.optimizer.states)
        totals = np.zeros(4)  # weighted sum of the loss, sum of weights, rows classified right, rows
        skip = 0
        if position is not None:
            skip, totals[:] = position[1], position[2:]
        self.rows = batches = 0
        self.meter.reset()
        rates = self.schedule.rates(seen, 1) if self.schedule and not self.schedule.per_step else None
        if position is not None and self.schedule:  # of the last step before it, if there is none behind it
            last = self.schedule.rates(max(0, self.program.steps - 1), 1) if rates is None else rates
            self.lr = float(last[0, 0])
        parts = source.parts(seen)
        while True:
            with self.undone():
                part = next(parts, None)
            if part is None:
                break
            first = min(skip, len(part.x))
            skip -= first
            done = self.part(part, epoch, batches, totals, rates, first) if first < len(part.x) else first
            self.rows += done
            batches += -(-done // part.batch_size)
            if done < len(part.x) or (self.on_batch_end and self.stopped()):
                break
        self.model._position = None
        with self.undone():
            return {**self.model._scores(*totals), **self.meter.results()}

    def part(self, part: Part, epoch: int, batches: int, totals: np.ndarray, rates, first: int) -> int:
        """Train on a part from row `first` on; the rows that are done, all unless a callback ends the training."""
        n, batch_size = len(part.x), part.batch_size
        group = self.accumulate * batch_size
        out = self.meter.room(n)
        schedule, program = self.schedule, self.program
        at = first
        while at < n:
            stop = min(n, at + (1 if self.on_batch_end else self.groups) * group)
            steps = -(-(stop - at) // group)
            if schedule:
                now = np.repeat(rates, steps, axis=0) if rates is not None else schedule.rates(program.steps, steps)
                self.lr = float(now[-1, 0])
            else:
                now = None
            sums = np.zeros(4) if self.on_batch_end else totals
            began = time.perf_counter()
            bad = self.train(
                part.x, part.y, part.w, part.order, at, stop, batch_size, now, out, self.threads, self.accumulate, sums
            )
            took = time.perf_counter() - began
            if bad >= 0:
                lr = self.model.optimizer.lr if now is None else now[(bad - at) // group, 0]
                rows = slice(bad, bad + batch_size) if part.order is None else part.order[bad : bad + batch_size]
                why = "" if np.isfinite(part.x[rows]).all() else "; x has NaN or infinity in this batch"
                self.diverged(epoch, batches + bad // batch_size, lr, why)
            at = stop
            if self.on_batch_end:
                totals += sums
            self.model._position = (epoch, self.rows + at, *totals.tolist())
            if self.on_batch_end:
                logs = {"loss": self.model._scores(*sums)["loss"], "rows": int(sums[3])}
                if schedule:
                    logs["lr"] = self.lr
                for call in self.on_batch_end:
                    call(batches + -(-at // batch_size) - 1, dict(logs))
                if self.stopped():
                    break
            if self.bar.bar is not None:
                self.bar.batch(epoch, self.rows + at, self.model._scores(*totals)["loss"])
            longer = min(4.0, SLICE / max(took, 1e-9))
            self.groups = max(1, int(min(self.groups, n) * longer))
        if out is not None or self.ignores:
            y = part.y[:at] if part.order is None else part.y[part.order[:at]]
            totals[3] -= at - _counted(self.model, y)
            if out is not None:
                self.meter.update(y[first:], out[first:at])
        return at

    @contextlib.contextmanager
    def undone(self):
        """Put back what the epoch has changed, if a batch cannot be had, or a function of the user's own fails."""
        try:
            yield
        except Exception:
            self.program.restore(self.before)
            self.model._position = None
            raise

    def diverged(self, epoch: int, batch: int, lr: float, why: str) -> None:
        """Put back the last epoch whose parameters are finite, and say so."""
        self.model._position = None
        self.program.restore(self.before)
        if self.earlier is not None and not np.isfinite(self.program.parameters).all():
            self.program.restore(self.earlier)  # the step of the last batch made numbers that no loss has seen
        raise DivergenceError(
            f"the loss is not finite in epoch {epoch}, batch {batch}, at a learning "
            f"rate of {lr:g}; the parameters are those from before this epoch{why}"
        )

    def own_batches(self, x, y, w, order, start, stop, batch_size, rates, out, threads, accumulate, totals) -> int:
        """`train_batches` with a loss of the user's own, which is called for each batch."""
        program, loss = self.program, self.model.loss
        group = accumulate * batch_size
        for step, first in enumerate(range(start, stop, group)):
            last = min(stop, first + group)
            count = -(-(last - first) // batch_size)
            program.zero_grads()
            for at in range(first, last, batch_size):
                end = min(last, at + batch_size)
                rows = slice(at, end) if order is None else order[at:end]
                outputs = program.forward(x[rows], None, threads)
                with self.undone():
                    value, gradient = loss.value_and_gradient(outputs, y[rows])
                if not math.isfinite(value):
                    return at
                program.backward(gradient / count, threads)  # without the penalties
                if out is not None:
                    out[at:end] = outputs
                totals += np.array((value * (end - at), end - at, 0, end - at))
            totals[0] += program.penalty(True) * (last - first)
            program.step(None if rates is None else rates[step])
        program.zero_grads()
        return -1


# evaluate -------------------------------------------------------------------------------------------------------------


def evaluate(model, x, y, sample_weight, metrics, threads) -> dict[str, float]:
    """See Sequential.evaluate."""
    context = Context(model, "expected")
    meter = _Meter(metrics, model)
    source = source_of(context, x, y, sample_weight, Names())
    source.check(meter)
    return _evaluate(model, context.program, source, meter, threads)


def _evaluate(model, program, source: Source, meter: _Meter, threads) -> dict[str, float]:
    step = max(256, min(1 << 17, EVALUATION_WORK // max(1, program.n_parameters)))
    totals = np.zeros(4)
    meter.reset()
    for part in source.parts(None):
        n = len(part.x)
        for at in range(0, n, step):
            rows = slice(at, at + step)
            x, y = part.x[rows], part.y[rows]
            if source.context.own_loss:
                value, _ = model.loss.value_and_gradient(program.predict(x, None, threads), y)
                sums = (value * len(x), len(x), 0)
            else:
                sums = program.evaluate(x, y, None if part.w is None else part.w[rows], threads)
            totals += np.array((*sums, _counted(model, y)))
            if meter:
                meter.update(y, program.predict(x, meter.room(len(x)), threads))
    scores = model._scores(*totals)
    scores["loss"] += program.penalty()
    return {**scores, **meter.results()}
