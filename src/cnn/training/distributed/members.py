"""Many models on several ranks: each rank trains some of them, and gets what the others have made of theirs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._about import __version__
from ..._threads import threads_for
from ..history import ManyHistory
from ..state import stateful
from . import checksum
from .group import BATCH, END, Group, here, text_of, threads_of

LOCAL = ("threads", "progress", "verbose", "bags", "owner")  # options that need not be the same
PIECE = 1 << 26  # bytes of the members' states in one message


def members_of(n: int, rank: int, size: int) -> slice:
    """Those of n members that a rank trains."""
    return slice(n * rank // size, n * (rank + 1) // size)


def train_shared(train: Any, comm: Any, models: Any, data: Any, validation_data: Any, options: Any) -> ManyHistory:
    """Train the members of this rank, and bring all models to what their ranks have made of them.

    train : callable
        `many._train`; options: its keywords, the same on all ranks but `threads`, `progress` and `verbose`.
    """
    with Group(comm).together(stoppable=False) as group:  # Ctrl-C stops training as it does without ranks
        with group.interrupts():
            said = group.check(_facts(models, data, validation_data, options))
        if options.get("threads") is None:
            places = [facts["_place"] for facts in said]
            options["threads"] = threads_of(places, group.rank, threads_for(None))
        if group.rank:
            options |= {"progress": False, "verbose": None}
        n = len(models)
        own = np.zeros(n, bool)
        own[members_of(n, group.rank, group.size)] = True
        history = train(models, data, validation_data, own=own, **options)
        with group.interrupts():
            _exchange(group, [model._core for model in models])
            return _joined(group.gather(history, END), n)


def _facts(models, data, validation_data, options) -> dict[str, Any]:
    """What has to be the same on all ranks, by the names that an error gives it."""
    cores = [model._core for model in models]
    made = [(model.layers, model.loss, core.optimizer) for model, core in zip(models, cores, strict=True)]
    for core in cores:
        core.need_optimizer()
    states = [a for core in cores for a in core.program.state(core.optimizer.states).values()]
    places = [(core.state.random_seed, core.state.epochs_seen) for core in cores]
    schedules: Any = [s and s.state_dict() for s in (stateful(core.optimizer) for core in cores)]
    rest = {name: value for name, value in options.items() if name not in LOCAL}
    return {
        "version": __version__,
        "dtype": cores[0].dtype.name,
        "kernels": cores[0].kernels.__name__.rpartition(".")[2],
        "models": len(models),
        "layers, losses and optimizers (checksum)": checksum(_text(made)),
        "parameters (checksum)": checksum(*(core.program.parameters for core in cores)),
        "optimizers' states (checksum)": checksum(*states, _text(schedules)),
        "seeds and epochs so far (checksum)": checksum(np.array(places, np.uint64)),
        "shapes of the data": _shapes(data),
        "shapes of validation_data": _shapes(validation_data),
        **rest,
        "bootstrap": options.get("bags") is not None,
        "_place": here(),
    }


def _text(value) -> np.ndarray:
    return np.frombuffer(text_of(value).encode(), np.uint8)


def _shapes(data) -> Any:
    return data and [[None if a is None else getattr(a, "shape", None) or np.shape(a) for a in rows] for rows in data]


def _exchange(group: Group, cores: list[Any]) -> None:
    """Give the states of the members here to all ranks, and take theirs."""
    slices = [members_of(len(cores), rank, group.size) for rank in range(group.size)]
    most = max(part.stop - part.start for part in slices)
    size = max(core.program.parameters.nbytes * (2 + core.optimizer.states) for core in cores)
    step = max(1, PIECE // size)
    for at in range(0, most, step):
        spans = [range(part.start, part.stop)[at : at + step] for part in slices]
        found = group.gather([_state_of(cores[i]) for i in spans[group.rank]], BATCH)
        for rank, (span, states) in enumerate(zip(spans, found, strict=True)):
            for i, state in zip(span, states, strict=True):
                if rank != group.rank:
                    _bring(cores[i], state)


def _state_of(core: Any) -> tuple:
    schedule = stateful(core.optimizer)
    state = {name: getattr(core.state, name) for name in ("epoch", "epochs_seen", "position", "history", "callbacks")}
    return core.program.snapshot(core.optimizer.states), schedule and schedule.state_dict(), state


def _bring(core: Any, found: tuple) -> None:
    """Make a member what `_state_of` has said of it on its rank."""
    saved, schedule, state = found
    core.program.restore(saved)
    if schedule:
        stateful(core.optimizer).load_state_dict(schedule)
    for name, value in state.items():
        setattr(core.state, name, value)


def _joined(parts: list[ManyHistory], n: int) -> ManyHistory:
    """The history of all members, from those of the ranks."""
    longest = max(parts, key=lambda part: len(part.epochs))
    history = ManyHistory(list(dict.fromkeys(name for part in [longest, *parts] for name in part)), n)
    history.epochs = list(longest.epochs)
    for name in history:
        history[name] = np.full((len(history.epochs), n), np.nan)
    if longest.best_epoch is not None:
        history.best_epoch = np.zeros(n, np.int64)
    for rank, part in enumerate(parts):
        own = members_of(n, rank, len(parts))
        for name, values in part.items():
            history[name][: len(values), own] = values[:, own]
        history.last_epoch[own] = part.last_epoch[own]
        if history.best_epoch is not None and part.best_epoch is not None:
            history.best_epoch[own] = part.best_epoch[own]
        history.diverged |= part.diverged
    return history
