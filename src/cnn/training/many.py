"""Training of many models at once: `fit_many`, and what `Ensemble` trains, predicts and is evaluated with.

Models are independent: each is on one thread at a time, in native calls that run all of them for about 0.05 s
(kernels/members.pxi). Numbers of all models are arrays; only early stopping, schedules and messages of divergence look
at one model.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import numpy as np

from .._checks import flag, integer, users_line
from .._sparse import is_sparse
from .._threads import threads_for
from ..layers import Layer
from ..optim.schedules import ReduceLROnPlateau
from .callbacks import EarlyStopping, overridden
from .data import Names, mapped, source_of
from .fit import (
    AUTO_SIZES,
    EVALUATION_WORK,
    MOST_ROWS,
    NOTHING_COUNTS,
    SLICE,
    VALIDATION,
    Context,
    DivergenceError,
    Meter,
    all_finite,
    auto_size,
    callbacks_of,
    class_weights_of,
    counted,
    only_fit_of,
    split_off,
    warn_of_order,
)
from .history import History, ManyHistory
from .model_checkpoint import ModelCheckpoint
from .progress import Progress, mode_of
from .ranks import takes_comm
from .state import stateful

LANES = True  # models of one narrow shape share vectors (kernels/lanes.pxi), which rounds sums otherwise
STEPS_AHEAD = 1024  # of which a schedule by step is asked for the rates at a time
BLOCK = 1 << 24  # bytes of the outputs of all models for a block of rows, where `reduce` needs no more


# rows -----------------------------------------------------------------------------------------------------------------


class Rows:
    """Checked arrays of each model, or one set that all share.

    Attributes
    ----------
    x, y, w : list of ndarray, or w None
        Of each, or one for all.
    names : list of Names
        The same.
    n : ndarray of shape (models,), int64
    """

    def __init__(self, models: Any, sources: list[Any], class_weight: Any = None, metrics: Any = ()) -> None:
        for model, source in zip(models, sources, strict=False):
            if class_weight is not None:
                source.context.class_weights = class_weights_of(model, class_weight, source)
            source.check(Meter(metrics, model))
        self.x: list[np.ndarray] = [source.x for source in sources]
        self.y: list[np.ndarray] = [source.y for source in sources]
        self.names: list[Names] = [source.names for source in sources]
        self.w: Any = None
        if any(source.w is not None for source in sources):
            self.w = [np.ones(len(one.x), models[0].dtype) if one.w is None else one.w for one in sources]
        self.n = np.array([len(x) for x in self.x] * (len(models) // len(sources)), np.int64)

    def warn(self, totals: np.ndarray, active: np.ndarray) -> bool:
        """Warn of rows that make the evaluated loss of active models NaN or infinite, as `evaluate` does; whether."""
        known: dict[int, str] = {}
        for i in np.flatnonzero(active & ~(np.isfinite(totals[:, 0]) & (totals[:, 1] > 0))).tolist():
            k = i if len(self.x) > 1 else 0
            if k not in known:
                x, y, _ = self.of(k)
                bad = [name for name, a in zip(self.names[k], (x, y), strict=False) if not all_finite(a)]
                no_row = "" if totals[i, 1] else f"{self.names[k].all}: {NOTHING_COUNTS}: the loss is NaN"
                known[k] = f"{bad[0]} has NaN or infinity: the loss is {totals[i, 0]:g}" if bad else no_row
        odd = [k for k, text in known.items() if text]
        if odd:
            more = f"; members with such rows: {_listed(odd)}" * (len(odd) > 1)
            warnings.warn(known[odd[0]] + more, RuntimeWarning, stacklevel=users_line())
        return bool(odd)

    def of(self, i: int) -> tuple[np.ndarray, np.ndarray, Any]:
        """x, y and w of a model."""
        i = i if len(self.x) > 1 else 0
        return self.x[i], self.y[i], None if self.w is None else self.w[i]


def sources_of(models: Any, data: Any, training: bool, shared: Any = False, names: Names = Names()) -> list[Any]:  # noqa: B008
    """The rows of each model, or those that all share, in memory."""
    found = []
    for i, (model, rows) in enumerate(zip(models[:1] if shared else models, data, strict=True)):
        place = names if shared else Names(*(f"{name} of {i}" for name in names))
        x, y, w = (_in_memory(part) for part in (*rows, None)[:3])
        found.append(source_of(Context(model, training), x, y, w, place, arrays=True))
    return found


def _in_memory(a):
    return np.array(a) if mapped(a) is not None else a


# training -------------------------------------------------------------------------------------------------------------


@takes_comm
def fit_many(
    models: Any,
    data: Any,
    *,
    epochs: int = 1,
    batch_size: int | str | None = "auto",
    shuffle: bool = True,
    validation_data: Any = None,
    validation_split: float = 0.0,
    stratify: bool = False,
    validation_freq: int = 1,
    class_weight: Any = None,
    weigh_validation: bool = False,
    metrics: Any = (),
    early_stopping: Any = None,
    steps_per_epoch: int | None = None,
    drop_last: bool = False,
    accumulation_steps: int = 1,
    threads: int | None = None,
    progress: bool | str = "auto",
    verbose: int | None = None,
    comm: Any = None,
) -> ManyHistory:
    """Train many models, each on its own data, in native code on all threads, with one model per thread at a time.

    The results are those of each model's own ``fit``, for any number of threads: bit for bit, or, where narrow models
    of one shape share vectors, but for roundings of sums. The models may have different shapes.

    Parameters
    ----------
    models : sequence of Sequential, or Ensemble
        Different objects of one dtype, each with a loss and an optimizer.
    data : sequence of (x, y) or (x, y, sample_weight)
        For each model, in memory; as for `Sequential.fit`.
    epochs : int
        Number of epochs.
    batch_size : int, "auto" or None
        As for `Sequential.fit`, for each model.
    shuffle : bool
        Whether each model takes its rows in a random order, which its seed determines.
    validation_data : sequence of (x, y) or (x, y, sample_weight), optional
        For each model.
    validation_split : float
        As for `Sequential.fit`, for the rows of each model.
    stratify : bool
        As for `Sequential.fit`.
    validation_freq : int
        As for `Sequential.fit`.
    class_weight : dict or "balanced", optional
        As for `Sequential.fit`.
    weigh_validation : bool
        As for `Sequential.fit`.
    metrics : sequence of str, callable or Metric, or dict
        As for `Sequential.fit`; the history has arrays of shape (models,).
    early_stopping : EarlyStopping, int or True, optional
        For each model: it ends when its monitored value stops improving, and its best epoch is restored.
    steps_per_epoch : int, optional
        Batches after which an epoch ends.
    drop_last : bool
        Whether to omit a last batch that is smaller.
    accumulation_steps : int
        Number of batches whose mean gradient is used for one step of the optimiser.
    threads : int, optional
        At most this many; None: as `cnn.set_num_threads` says.
    progress : bool or "auto"
        As for `Sequential.fit`. The numbers beside the bar are the means over the models.
    verbose : int, optional
        Keras's argument, in place of `progress`: 0, 1 or 2.
    comm : mpi4py.MPI.Comm, optional
        Ranks that divide the models among them: rank r of R trains those from ``n * r // R`` to
        ``n * (r + 1) // R``. In the end all ranks have all models, with the same bits as without `comm`. All ranks pass
        the same models and data.

    Returns
    -------
    ManyHistory
        A dict of arrays of shape (epochs, models). A model that has ended has NaN in later epochs.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid; then nothing has changed.
    RuntimeError
        If a model has no loss or no optimizer, or is being trained. With `comm` also if another rank has failed,
        which it names.
    DivergenceError
        If the loss of every model became infinite or NaN.

    Warns
    -----
    RuntimeWarning
        If some models diverged: they stop, the others continue, and `ManyHistory.diverged` says which and where.

    Notes
    -----
    Ctrl-C stops within about 0.1 s and leaves valid models with their last parameters. A model whose loss is a Python
    function is trained by its own ``fit``, after the others.

    Examples
    --------
    >>> history = cnn.fit_many(models, [(x_0, y_0), (x_1, y_1)], epochs=20)  # doctest: +SKIP
    """
    models = models_of(models)
    rows = _each("data", data, len(models), True)
    validation = _each("validation_data", validation_data, len(models), False)
    return train(
        models, rows, validation, comm=comm, epochs=epochs, batch_size=batch_size, shuffle=shuffle,
        validation_split=validation_split, stratify=stratify, validation_freq=validation_freq,
        class_weight=class_weight, weigh_validation=weigh_validation, metrics=metrics,
        early_stopping=early_stopping, steps_per_epoch=steps_per_epoch, drop_last=drop_last,
        accumulation_steps=accumulation_steps, threads=threads, progress=progress, verbose=verbose,
    )  # fmt: skip


def models_of(models: Any) -> list[Any]:
    """The models of a list or an ensemble, checked."""
    sequential = Layer.known["Sequential"]
    models = list(getattr(models, "_members", models))
    for i, model in enumerate(models):
        if not isinstance(model, sequential):
            raise TypeError(f"models[{i}]: expected a cnn.Sequential, got {type(model).__name__}")
    if len({id(model) for model in models}) < len(models):
        raise ValueError("models: the same model was passed twice")
    if not models:
        raise ValueError("models: expected at least one, got none")
    if len({model.dtype for model in models}) > 1:
        raise TypeError("models: expected models of one dtype, got float32 and float64")
    return models


def all_native(models: Any, xs: Any = ()) -> bool:
    """Whether models can be run together: none has a loss in Python or an optimiser of the whole data, or sparse x."""
    programs = {type(model._core.program): model for model in models}
    return not (
        any(hasattr(model._core.program, "native") for model in programs.values())
        or _whole_data(models)
        or any(map(is_sparse, xs))
    )


def _whole_data(models: Any) -> bool:
    """Whether an optimiser of a model needs the whole data."""
    kinds = {type(model._core.optimizer) for model in models}
    return any(getattr(kind, "whole_data", False) for kind in kinds)


def _each(name: str, data, models: int, needed: bool):
    """A list of (x, y) or (x, y, sample_weight), one for each model."""
    if data is None and not needed:
        return None
    data = list(data)
    if len(data) != models:
        raise ValueError(f"{name}: expected a pair (x, y) for each of {models} models, got {len(data)}")
    for i, rows in enumerate(data):
        if not isinstance(rows, (tuple, list)) or len(rows) not in (2, 3):
            raise ValueError(
                f"{name}[{i}]: expected a pair (x, y), or (x, y, sample_weight), got {type(rows).__name__}"
            )
    return data


def train(models: list[Any], data: Any, validation_data: Any, *, comm: Any = None, **options: Any) -> ManyHistory:
    """`_train`, on all ranks of a communicator if there is one."""
    if comm is None:
        return _train(models, data, validation_data, **options)
    if options.get("callbacks"):
        raise ValueError("callbacks: expected none with comm, where each rank trains some of the members only")
    from .distributed.members import train_shared

    return _told(train_shared(_train, comm, models, data, validation_data, options))


def _train(
    models: list[Any],
    data: Any,
    validation_data: Any,
    *,
    epochs: int = 1,
    batch_size: int | str | None = "auto",
    shuffle: Any = True,
    validation_split: float = 0.0,
    stratify: bool = False,
    validation_freq: int = 1,
    class_weight: Any = None,
    weigh_validation: bool = False,
    metrics: Any = (),
    early_stopping: Any = None,
    steps_per_epoch: int | None = None,
    drop_last: bool = False,
    accumulation_steps: int = 1,
    threads: int | None = None,
    progress: Any = "auto",
    verbose: int | None = None,
    shared: Any = (False, False),
    one_order: Any = False,
    bags: Any = None,
    histories: Any = True,
    own: Any = None,
    callbacks: Any = (),
    initial_epoch: int | None = None,
    owner: Any = None,
) -> ManyHistory:
    """`fit_many`; shared: whether all have the same rows, for training and for validation; one_order: whether all take
    them in the order of the first; bags: a function of the rows' numbers that returns the rows that each takes;
    histories: whether each model gets its own; own (models,), bool: those to train, None: all; owner: the Ensemble,
    which callbacks see and which gets the history."""
    epochs = integer("epochs", epochs, 1)
    chosen = _callbacks_of(callbacks)
    initial_epoch = None if initial_epoch is None else integer("initial_epoch", initial_epoch, 0)
    if _whole_data(models):
        batch_size = None if isinstance(batch_size, str) and batch_size == "auto" else batch_size
    auto = isinstance(batch_size, str) and batch_size == "auto"
    if auto:
        batch_size = AUTO_SIZES[0]
    batch_size = MOST_ROWS if batch_size is None else integer("batch_size", batch_size, 1)
    accumulation_steps = integer("accumulation_steps", accumulation_steps, 1)
    steps_per_epoch = None if steps_per_epoch is None else integer("steps_per_epoch", steps_per_epoch, 1)
    drop_last, stratify = flag("drop_last", drop_last), flag("stratify", stratify)
    shuffle = flag("shuffle", shuffle)
    validation_freq = integer("validation_freq", validation_freq, 1)
    weigh_validation = flag("weigh_validation", weigh_validation) and class_weight is not None
    threads = threads_for(threads)
    mode = mode_of(progress, verbose)
    for model in models:
        model._core.need_optimizer()
    stopping: Any = next(iter(callbacks_of((), early_stopping)), None)
    native = all_native(models, (rows[0] for rows in [*data, *(validation_data or ())]))
    if chosen and not native:
        raise ValueError(
            "callbacks: members with a loss that is a Python function, an optimizer of the whole data or sparse x "
            "are trained one after the other, which no callback can follow: expected none, or pass them to the fit "
            "of each member, ensemble[i].fit"
        )
    sources = sources_of(models, data, True, shared[0])
    pairs = zip(models, sources, strict=False)
    rest: list[Any] = [split_off(*pair, validation_data, validation_split, stratify) for pair in pairs]
    if validation_split and not stratify:
        warn_of_order(zip(sources, rest, strict=True))
    rows = Rows(models, sources, class_weight, metrics)
    if validation_data is not None:
        if weigh_validation and shared[1] and not shared[0]:  # the weights of the classes may be of each member
            validation_data, shared = list(validation_data) * len(models), (False, False)
        rest = sources_of(models, validation_data, False, shared[1], VALIDATION)
    if weigh_validation and rest[0] is not None:
        for i, one in enumerate(rest):
            one.context.class_weights = sources[i if len(sources) > 1 else 0].context.class_weights
    validation = None if rest[0] is None else Rows(models, rest, None, metrics)
    orders = None if bags is None else bags(rows.n)
    if not native:
        given = {
            "epochs": epochs, "batch_size": "auto" if auto else None if batch_size == MOST_ROWS else batch_size,
            "shuffle": shuffle, "metrics": metrics,
            "steps_per_epoch": steps_per_epoch, "drop_last": drop_last, "accumulation_steps": accumulation_steps,
            "threads": threads, "progress": False, "validation_freq": validation_freq, "initial_epoch": initial_epoch,
        }  # fmt: skip
        return _by_python(models, rows, validation, given, stopping, one_order, orders, own)
    with only_fit_of(*models):
        context = Context(models[0], True, batch_size, shuffle, accumulation_steps, steps_per_epoch, drop_last)
        all_n = rows.n.tolist()
        if auto and not histories:  # an Ensemble: all ranks come to the same
            batch_size = auto_size(context, models, all_n)
        counts = {n: context.rows(n) for n in set(all_n)}
        taken = np.array([counts[n] for n in all_n], np.int64)
        if not taken.all():
            of = "" if shared[0] else f" of {rows.n.argmin()}"
            raise ValueError(
                f"drop_last: the {rows.n.min()} rows of x{of} do not fill a batch of {batch_size}: lower batch_size"
            )
        for model, n in zip(models, taken.tolist(), strict=True):
            model._core.program.check_batches(n, batch_size)
        trainer = Trainer(models, rows, validation, taken, batch_size, accumulation_steps, shuffle, threads)
        trainer.histories, trainer.own, trainer.validation_freq = histories, own, validation_freq
        trainer.one_order, trainer.bags = one_order, orders
        trainer.meters = [Meter(metrics, model) for model in models] if metrics else []
        trainer.owner, trainer.callbacks = owner, chosen
        return trainer.run(epochs, stopping, mode, initial_epoch or 0)


def _callbacks_of(callbacks: Any) -> list[Any]:
    """Those that an ensemble can have, in the order in which they are called."""
    chosen = callbacks_of(callbacks, None)
    for callback in chosen:
        name = type(callback).__name__
        if isinstance(callback, EarlyStopping):
            raise TypeError(f"callbacks: {name} is for one model: pass early_stopping={callback!r}, for each member")
        if isinstance(callback, ModelCheckpoint):
            raise TypeError(
                f"callbacks: {name} saves one model: expected a callback that saves the ensemble, such as "
                "cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: ensemble.save(path, training_state=True))"
            )
        if overridden([callback], "on_batch_end"):
            raise TypeError(
                f"callbacks: {name} has on_batch_end, but an ensemble trains whole epochs in native calls: expected "
                "on_epoch_end, or pass it to the fit of a member, ensemble[i].fit"
            )
    return sorted(chosen, key=lambda callback: callback._turn)


def _by_python(
    models: Any, rows: Rows, validation: Any, given: dict[str, Any], stopping: Any, one_order: bool, bags: Any, own: Any
) -> ManyHistory:
    """Train one after the other, where a loss is a Python function."""
    import copy

    found: dict[int, History] = {}
    diverged: dict[int, DivergenceError] = {}
    best = np.zeros(len(models), np.int64)
    seed = models[0]._core.state.random_seed
    for i, model in enumerate(models):
        if own is not None and not own[i]:
            continue
        x, y, w = (a if a is None or bags is None else a[bags[i]] for a in rows.of(i))
        if validation is not None:
            given["validation_data"] = validation.of(i)
        stopper = copy.deepcopy(stopping)
        state, before = model._core.state, model._core.state.random_seed
        state.random_seed = seed if one_order else before
        try:
            model.fit(x, y, sample_weight=w, early_stopping=stopper, **given)
        except DivergenceError as error:
            diverged[i] = DivergenceError(f"member {i}: {error}")
        finally:
            state.random_seed = before
        best[i] = (stopper and stopper.best_epoch) or 0
        found[i] = model.history
    longest = sorted(found.values(), key=lambda history: -len(history.epochs))
    names = list(dict.fromkeys(name for one in longest for name in one))  # some have numbers that others have not
    history = ManyHistory(names, len(models))
    places = [{epoch: at for at, epoch in enumerate(found[i].epochs)} if i in found else {} for i in range(len(models))]
    for epoch in sorted(set().union(*places)):
        places_now = [place.get(epoch) for place in places]
        history.record(
            epoch,
            {
                name: np.array(
                    [
                        math.nan if at is None or name not in found[i] else found[i][name][at]
                        for i, at in enumerate(places_now)
                    ]
                )
                for name in names
            },
        )
    history.last_epoch[:] = [max(place, default=0) for place in places]
    history.diverged, history.best_epoch = diverged, None if stopping is None else best
    return _told(history) if own is None else history


def _told(history: ManyHistory) -> ManyHistory:
    """The history, after it has been said which members diverged; DivergenceError if all did."""
    n = len(history.last_epoch)
    if len(history.diverged) == n:
        raise DivergenceError(f"all {n} members diverged: {next(iter(history.diverged.values()))}")
    if history.diverged:
        which = _listed(list(history.diverged))
        warnings.warn(
            f"{len(history.diverged)} of {n} members diverged and were stopped: {which}; history.diverged says where",
            RuntimeWarning,
            stacklevel=users_line(),
        )
    return history


def _listed(members: list[int]) -> str:
    return ", ".join(map(str, members[:10])) + ", ..." * (len(members) > 10)


class Trainer:
    """The epochs of many models."""

    meters: list[Any]
    bags: Any
    one_order: bool
    histories = True  # whether each model gets its own
    own: Any = None  # those that are trained here, if not all
    owner: Any = None
    callbacks: Any = ()
    validation_freq = 1
    warned = False  # of rows that make the loss NaN

    def __init__(
        self,
        models: Any,
        rows: Any,
        validation: Any,
        taken: Any,
        batch_size: int,
        accumulate: int,
        shuffle: bool,
        threads: int | None,
    ) -> None:
        self.models = models
        self.cores: list[Any] = [model._core for model in models]
        self.programs: list[Any] = [core.program for core in self.cores]
        self.kernels: Any = self.cores[0].kernels
        self.rows = rows
        self.validation = validation
        self.taken = taken
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.shuffle = shuffle
        self.threads = threads
        self.losses: list[Any] = [model._loss for model in models]
        self.mean: np.ndarray = np.array([getattr(loss, "reduction", "mean") == "mean" for loss in self.losses])
        self.accuracy: bool = all(loss is not None and loss.targets == "labels" for loss in self.losses)
        self.schedules: list[Any] = [core.optimizer.schedule for core in self.cores]
        self.scheduled: bool = any(schedule is not None for schedule in self.schedules)
        self.alike: list[Any] = (
            [_rates_of(i, core.optimizer) for i, core in enumerate(self.cores)] if self.scheduled else []
        )
        self.lr: np.ndarray = np.full(len(models), math.nan)

    def run(self, epochs: int, stopping: Any, mode: Any, initial_epoch: int) -> ManyHistory:
        with contextlib.ExitStack() as at_end:
            for callback in self.callbacks:
                callback.model, callback.stop = self.owner, False
                at_end.callback(callback._close)
            history = self.epochs(initial_epoch, epochs, stopping, mode)
            if self.own is None:
                _told(history)
            logs = {name: values[-1] for name, values in history.items() if len(values)}
            for call in overridden(self.callbacks, "on_train_end"):
                call(logs)
        return history

    def epochs(self, initial_epoch: int, epochs: int, stopping: Any, mode: Any) -> ManyHistory:
        n = len(self.models)
        cores = self.cores
        summed = ["loss", "accuracy"] if self.accuracy else ["loss"]
        names = [*summed, *(self.meters[0].names if self.meters else ())]
        names += [f"val_{name}" for name in names] * (self.validation is not None)
        schedules = enumerate(self.schedules if self.scheduled else ())
        plateaus = [(i, s) for i, s in schedules if isinstance(s, ReduceLROnPlateau)]
        watched = {i: schedule.watched(names) for i, schedule in plateaus}
        if self.scheduled:
            names.append("lr")
        for callback in [*self.callbacks, *([] if stopping is None else [stopping])]:
            callback._check(names)
        self.crew: Any = self.kernels.Crew(self.programs, True)
        self.crew.lanes = LANES
        self.outs: Any = self.room(self.taken)
        self.crew.set_rows(self.rows.x, self.rows.y, self.rows.w, self.bags, self.outs)
        checker = self.kernels.Crew(self.programs, False) if self.validation is not None else None
        if checker is not None:
            v = self.validation
            seen = self.room(v.n)
            checker.set_rows(v.x, v.y, v.w, None, seen)
        history = self.history(names, initial_epoch)
        self.seen: np.ndarray = np.array([core.state.begin(initial_epoch) for core in cores], np.int64)
        seeds = np.array([core.state.random_seed for core in cores], np.uint64)
        self.seeds: Any = np.full(n, seeds[0]) if self.one_order else seeds
        self.turn: int = int(self.seen.max())  # the number of the order that all take
        best = _Best(n, stopping)
        own = np.ones(n, bool) if self.own is None else self.own
        active = own.copy()
        for program in self.programs:
            program.clear_padding()
        with Progress(mode, initial_epoch, epochs, int(self.taken.sum())) as bar:
            try:
                for call in overridden(self.callbacks, "on_train_begin"):
                    call({})
                for epoch in range(initial_epoch + 1, epochs + 1):
                    if self.stopped() or not active.any():
                        break
                    for call in overridden(self.callbacks, "on_epoch_begin"):
                        call(epoch, {})
                    self.epoch(active, epoch, bar)
                    failed = active & (self.crew.bad >= 0)
                    for i in np.flatnonzero(failed).tolist():
                        history.diverged[i] = self.divergence(i, epoch)
                    active &= ~failed
                    logs = self.numbers(self.crew.totals, active, self.rows, self.outs, True)
                    if checker is not None and epoch % self.validation_freq == 0:
                        scores = evaluated(checker, self.models, active, self.threads)
                        found = self.numbers(scores, active, v, seen, False)
                        found["loss"] += [program.penalty() for program in self.programs]
                        logs |= {f"val_{name}": value for name, value in found.items()}
                    if "lr" in names:
                        logs["lr"] = np.where(active, self.lr, math.nan)
                    self.seen[active] += 1
                    self.turn += 1
                    for i, schedule in plateaus:
                        if active[i] and watched[i] in logs:
                            schedule.step(float(logs[watched[i]][i]))
                    history.record(epoch, logs)
                    history.last_epoch[active] = epoch
                    shown = {name: float(values[active].mean()) for name, values in logs.items() if active.any()}
                    bar.epoch(epoch, int(self.taken[active].sum()), shown)
                    if stopping is not None:
                        active &= ~best.look(self, logs, epoch, active)
                    if self.callbacks:
                        self.note(history)
                    for call in overridden(self.callbacks, "on_epoch_end"):
                        call(epoch, dict(logs))
                best.restore(self)
                history.best_epoch = best.epoch if stopping is not None else None
            finally:
                self.note(history)
        return history

    def history(self, names: list[str], initial_epoch: int) -> ManyHistory:
        """A new history, or the owner's, if it ends with that epoch and has numbers of these names."""
        history = ManyHistory(names, len(self.models))
        history.last_epoch[:] = initial_epoch
        if self.owner is None:
            return history
        before = self.owner.history
        if initial_epoch and before is not None and before.epochs[-1:] == [initial_epoch] and set(before) == set(names):
            history.update(before)
            history.epochs, history.last_epoch = list(before.epochs), before.last_epoch.copy()
        self.owner.history, self.owner.stop_training = history, False
        return history

    def stopped(self) -> bool:
        """Whether a callback ends the training."""
        return self.owner is not None and (
            self.owner.stop_training or any(callback.stop for callback in self.callbacks)
        )

    def note(self, history: ManyHistory) -> None:
        """Tell each member's state which epochs it has done."""
        places = zip(self.cores, self.seen.tolist(), history.last_epoch.tolist(), strict=True)
        for i, (core, seen_epochs, last) in enumerate(places):
            if self.own is not None and not self.own[i]:
                continue
            state = core.state
            state.epochs_seen, state.epoch, state.position = seen_epochs, last, None
            state.history = history.of(i) if self.histories else None

    def room(self, n: Any) -> list[np.ndarray] | None:
        """An array for the outputs of so many rows of each member; None if no metric needs them."""
        if not self.meters:
            return None
        return [np.empty((k, core.out_features), core.dtype) for k, core in zip(n, self.cores, strict=True)]

    def epoch(self, active: np.ndarray, epoch: int, bar: Progress) -> None:
        """Train one epoch of the active members."""
        cycled = None
        if self.scheduled and self.callbacks:  # which may have set rates
            self.alike = [_rates_of(i, core.optimizer) for i, core in enumerate(self.cores)]
        if self.scheduled:
            cycled = [schedule is not None and schedule.cycles_momentum for schedule in self.schedules]
        orders = np.full(len(self.seen), self.turn) if self.one_order else self.seen
        self.crew.begin(
            active, self.seeds, orders, self.taken, self.batch_size, self.accumulate, self.shuffle, cycled,
        )  # fmt: skip
        group = self.batch_size * self.accumulate
        by_step = self.scheduled and any(s is not None and s.interval == "step" for s in self.schedules)
        last = int(self.taken.max())
        stop = 0
        while stop < last:
            stop = min(last, stop + STEPS_AHEAD * group) if by_step else last
            stops = np.minimum(self.taken, stop)
            rates = self.rates(active, stops, group)
            while self.crew.train(stops, rates, self.threads, SLICE):
                rates = None
                if bar.bar is not None:
                    loss, weight = self.crew.totals[active, :2].sum(axis=0)
                    bar.batch(epoch, int(self.crew.at[active].sum()), loss / max(weight, 1e-300))

    def rates(self, active: Any, stops: Any, group: int) -> Any:
        """The rates of the schedules for the next steps, in the form that `Crew.train` expects."""
        if not self.scheduled:
            return None
        rates: list[Any] = [None] * len(self.cores)
        known: dict[tuple[Any, ...], np.ndarray] = {}
        for i in np.flatnonzero(active & (self.crew.bad < 0)).tolist():
            schedule, optimizer = self.schedules[i], self.cores[i].optimizer
            steps = -(-int(stops[i] - self.crew.at[i]) // group)
            if schedule is None or steps <= 0:
                continue
            by_step = schedule.interval == "step"
            first = self.programs[i].steps if by_step else int(self.seen[i])
            wanted = self.alike[i], first, steps if by_step else 1
            if wanted not in known:
                known[wanted] = np.ascontiguousarray(optimizer.rates(*wanted[1:]))
            table = known[wanted]
            rates[i] = table, int(by_step)
            self.lr[i] = table[-1, 0]
        return rates

    def order(self, i: int) -> np.ndarray | None:
        """The order of the rows that a member has taken in this epoch; None: not shuffled."""
        n = int(self.rows.n[i])
        order = None if self.bags is None else self.bags[i]
        if self.shuffle and self.batch_size < n:
            seen = self.turn if self.one_order else self.seen[i]
            turn = self.kernels.permutation(n, int(self.seeds[i]), int(seen))
            order = turn if order is None else order[turn]
        if self.taken[i] == n:
            return order
        return np.arange(n)[: self.taken[i]] if order is None else order[: self.taken[i]]

    def numbers(self, totals: Any, active: Any, rows: Rows, outs: Any, training: bool) -> dict[str, np.ndarray]:
        """The losses, accuracies and metrics of all members; NaN of those that are not active."""
        loss, weight, right, seen = totals.T
        if not training and not self.warned:
            self.warned = rows.warn(totals, active)
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = {"loss": np.where(active, np.where(self.mean, loss / weight, loss), math.nan)}
        if training and (odd := active & (weight == 0)).any():
            raise ValueError(f"x of {int(odd.argmax())}: {NOTHING_COUNTS}")
        if self.accuracy:
            ignores = [getattr(loss, "ignore_index", None) is not None for loss in self.losses]
            count = np.array(seen) if training else rows.n.astype(float)
            for i in np.flatnonzero(active & ignores).tolist():
                y = rows.of(i)[1]
                order = self.order(i) if training else None
                count[i] = counted(self.models[i], y if order is None else y[order])
            with np.errstate(invalid="ignore", divide="ignore"):
                logs["accuracy"] = np.where(active, right / count, math.nan)
        for i in np.flatnonzero(active).tolist() if self.meters else ():
            meter, y = self.meters[i], rows.of(i)[1]
            order = self.order(i) if training else None
            meter.reset()
            meter.update(y if order is None else y[order], outs[i])
            for name, value in meter.results().items():
                logs.setdefault(name, np.full(len(self.models), math.nan))[i] = value
        return logs

    def divergence(self, i: int, epoch: int) -> DivergenceError:
        """What happened to a member."""
        bad, order = int(self.crew.bad[i]), self.order(i)
        x, y, _ = self.rows.of(i)
        batch = slice(bad, bad + self.batch_size)
        part = batch if order is None else order[batch]
        odd = [name for name, a in (("x", x[part]), ("y", y[part])) if not all_finite(a)]
        why = f"; {' and '.join(odd)} has NaN or infinity in this batch" if odd else ""
        lr = self.lr[i] if self.schedules[i] is not None else self.cores[i].optimizer.lr
        return DivergenceError(
            f"member {i}: the loss is not finite in epoch {epoch}, batch {bad // self.batch_size}, at a learning rate "
            f"of {lr:g}; its parameters are those from before this epoch{why}"
        )


def _rates_of(i: int, optimizer) -> Any:
    """What is equal for optimisers whose schedules give the same rates; of one with a state its number."""
    schedule = getattr(optimizer, "schedule", None)
    if schedule is None or stateful(optimizer) is not None:
        return i
    return optimizer.table.tobytes(), repr(schedule.to_config())


class _Best:
    """Early stopping of each member: `EarlyStopping`, with arrays."""

    def __init__(self, members: int, stopping):
        self.stopping = stopping
        self.best = np.full(members, math.nan)
        self.epoch = np.zeros(members, np.int64)
        self.seen = np.zeros(members, np.int64)
        self.waited = np.zeros(members, np.int64)
        self.schedules: dict[int, Any] = {}

    def look(self, trainer: Trainer, logs, epoch: int, active: np.ndarray) -> np.ndarray:
        """Which members have waited long enough after this epoch."""
        stopping = self.stopping
        if epoch <= stopping.start_from_epoch or stopping.monitor not in logs:
            return np.zeros(len(active), bool)
        values = logs[stopping.monitor]
        gain = stopping._sign * values
        with np.errstate(invalid="ignore"):
            better = np.isnan(self.best) | (gain > stopping._sign * self.best + stopping.min_delta)
        better &= active & ~np.isnan(values)
        self.waited[active] += 1
        self.best[better], self.epoch[better] = values[better], epoch
        enough = better if stopping.baseline is None else better & (gain > stopping._sign * stopping.baseline)
        self.waited[enough] = 0
        if stopping.restore_best_weights and better.any():
            before = not stopping.monitor.startswith("val_")
            trainer.crew.keep(better, before)
            self.seen[better] = trainer.seen[better] - before
            for i in np.flatnonzero(better).tolist():
                if hasattr(trainer.schedules[i], "state_dict"):
                    self.schedules[i] = trainer.schedules[i].state_dict()
        return active & (self.waited >= stopping.patience)

    def restore(self, trainer: Trainer) -> None:
        if self.stopping is not None and self.stopping.restore_best_weights:
            found = self.epoch > 0
            if found.any():
                trainer.crew.restore(found, False)
            trainer.seen[found] = self.seen[found]
            for i, state in self.schedules.items():
                trainer.schedules[i].load_state_dict(state)


# evaluation and prediction --------------------------------------------------------------------------------------------


def evaluated(crew: Any, models: Any, active: Any, threads: int | None) -> np.ndarray:
    """The sums of the loss, weights, and rows classified right, of the active members: (members, 4)."""
    sizes = np.array([max(1, model._core.program.n_parameters) for model in models])
    pieces = np.clip(EVALUATION_WORK // sizes, 256, 1 << 17)
    while crew.infer(active, threads, pieces, SLICE):
        active = None
    return crew.totals


def scores(models: Any, rows: Rows, threads: int) -> dict[str, np.ndarray]:
    """The loss of each model, and the accuracy where targets are labels, as `evaluate` gives them."""
    programs = [model._core.program for model in models]
    crew = models[0]._core.kernels.Crew(programs, False)
    crew.set_rows(rows.x, rows.y, rows.w)
    trainer = Trainer(models, rows, None, rows.n, 1, 1, False, threads)
    trainer.meters = []
    active = np.ones(len(models), bool)
    found = trainer.numbers(evaluated(crew, models, active, threads), active, rows, None, False)
    found["loss"] += [program.penalty() for program in programs]
    return found


def outputs(models: Any, xs: list[Any], threads: int) -> Any:
    """The outputs of each model: an array (models, n, out_features), or of different n a list of arrays."""
    core = models[0]._core
    own = xs if len(xs) == len(models) else xs * len(models)
    n = {len(x) for x in xs}
    outs: Any = [np.empty((len(x), core.out_features), core.dtype) for x in own] if len(n) > 1 else None
    if outs is None:
        outs = np.empty((len(models), *n, core.out_features), core.dtype)
    crew = core.kernels.Crew([getattr(m._core.program, "native", m._core.program) for m in models], False)
    crew.set_rows(xs, None, None, None, list(outs))
    active: Any = np.ones(len(models), bool)
    pieces = np.full(len(models), 1 << 17)
    while crew.infer(active, threads, pieces, SLICE):
        active = None
    return outs


def step(crew: Any, models: Any, rows: Rows, threads: int) -> np.ndarray:
    """A step of each model on all rows as one batch; the losses before it."""
    cores = [model._core for model in models]
    for core, n in zip(cores, rows.n.tolist(), strict=True):
        core.program.check_batches(n, n)
    crew.set_rows(rows.x, rows.y, rows.w)
    crew.lanes = LANES
    active, zeros = np.ones(len(models), bool), np.zeros(len(models), np.int64)
    schedules = [core.optimizer.schedule for core in cores]
    scheduled = any(schedule is not None for schedule in schedules)
    cycled = [s is not None and s.cycles_momentum for s in schedules] if scheduled else None
    crew.begin(active, zeros.astype(np.uint64), zeros, rows.n, MOST_ROWS, 1, False, cycled, False)
    rates = None
    if scheduled:
        found = [core.rates() for core in cores]
        rates = [None if rate is None else (np.ascontiguousarray(rate)[None], 0) for rate in found]
    crew.train(rows.n, rates, threads, 1e6)
    loss, weight = crew.totals[:, 0], crew.totals[:, 1]
    mean = np.array([getattr(model.loss, "reduction", "mean") == "mean" for model in models])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(mean, loss / weight, loss)
