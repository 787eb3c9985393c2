"""Training of one model on several ranks: what `fit`, `train_step`, `loss_and_grad` and `evaluate` do with ``comm``.

Imported when a communicator is passed, and not before. Nothing of MPI is imported here: its calls are the
communicator's.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..._about import __version__
from ..._checks import flag, integer
from ...losses import SobolevLoss
from ..state import STATISTICS, stateful
from .group import Group, RankError, here, shards_for, threads_of
from .program import ShardProgram
from .rows import ShardRows, own_rows, shard_source

__all__ = ["RankError", "ShardRows", "own_rows", "ranks_of", "shard_source", "shards_for", "tell", "threads_of"]


@contextlib.contextmanager
def ranks_of(model: Any, comm: Any, shards: Any, deterministic: Any = True, fresh: bool = False) -> Iterator[Group]:
    """The group of a model's ranks, with its `ShardProgram`, for a call that all make: those of the last call, if they
    fit and fresh ones are not asked for."""
    core = model._core
    asked = repr((shards, deterministic)), id(getattr(core.program, "native", core.program))
    known = core.ranks
    if known is not None and not fresh and known[0] is comm and known[1] == asked and not known[2].failed:
        with known[2].together(end=False):
            yield known[2]
        return
    group = Group(comm)
    with group.together(end=False):
        if hasattr(core.program, "native"):
            why = "one of your own is a function of all rows at once"
            if isinstance(model.loss, SobolevLoss):
                why = "its derivatives are not summed over ranks"
            raise ValueError(f"comm: expected another loss than {type(model.loss).__name__}: {why}")
        if core.nested:
            raise RuntimeError("comm: a part of a model is not trained by itself: train the model that it is a part of")
        group.arrange(integer("shards", shards, 1), flag("deterministic", deterministic))
        group.program = ShardProgram(core, group)
        group.places = [said["_place"] for said in group.check(facts_of(model, group))]
        group.program.shards(False)
        core.ranks = comm, asked, group
        yield group


def facts_of(model: Any, group: Group) -> dict[str, Any]:
    """What has to be the same on all ranks, by the names that an error gives it."""
    core, state = model._core, model._core.state
    schedule = stateful(core.optimizer)
    blocks = core.optimizer.states if core.optimizer else 0
    layers = {
        f"layer {place.label}": (place.layer, place.layer.trainable, place.layer.training)
        for place in core.graph.seen.values()
    }
    return {
        "version": __version__,
        "dtype": core.dtype.name,
        "kernels": core.kernels.__name__.rpartition(".")[2],  # sums are rounded otherwise by others
        "layers": len(model.layers),
        **layers,
        "loss": model.loss,
        "optimizer": core.optimizer,
        "schedule": schedule and (schedule, schedule.state_dict()),
        "shards": group.shards,
        "deterministic": group.deterministic,
        "parameters (checksum)": checksum(core.program.parameters),
        "running statistics (checksum)": checksum(*core.named(*STATISTICS).values()),
        "optimizer's state (checksum)": checksum(*core.program.state(blocks).values()),
        "seed": state.random_seed,
        "epochs so far": (state.epoch, state.epochs_seen, state.position),
        "_place": here(),
    }


def tell(array: Any) -> str:
    """What of an array has to be the same on all ranks."""
    if array is None:
        return "none"
    if not hasattr(array, "shape"):
        return type(array).__name__
    return f"rows of shape {tuple(array.shape[1:])}"


def checksum(*arrays: np.ndarray) -> str:
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return f"{value:08x}"
