"""`ShardObjective`: what an optimiser that needs the whole data minimises, where the rows are on several ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..objective import Objective
from .group import BATCH, EVALUATION
from .rows import Plan, tree


class ShardObjective(Objective):
    """An `Objective` whose sums are those over all ranks, with the same bits on any number of them.

    The rows of the shards are swept in blocks, each of which takes as many rows of every shard; a shard's gradients add
    up by themselves, and then join in the tree.

    Parameters
    ----------
    program : ShardProgram
    core : Core
    part : ShardPart
        All rows, as one batch.
    threads : int
    out : ndarray of shape (rows, out_features), optional
        Gets the outputs of the rows here.
    """

    def __init__(self, program: Any, core: Any, part: Any, threads: int, out: np.ndarray | None = None) -> None:
        self.ranks, self.group, self.plan = program, program.group, part.order
        super().__init__(core, part.x, part.y, part.w, threads, out)
        counts = self.plan.cuts[0]
        self.bounds = list(zip(counts[:-1].tolist(), counts[1:].tolist(), strict=True))  # of the shards here
        step = self.block if not core.program.separable else max(1, self.block // self.group.shards)
        self.room = out
        self.blocks = Plan(self.group, None, self._cuts(step), step)
        if len(self.blocks.rows) > 1:
            pieces = [
                np.arange(min(low + at, high), min(low + at + step, high))
                for at in range(0, step * len(self.blocks.rows), step)
                for low, high in self.bounds
            ]
            self.blocks.order = np.concatenate(pieces).astype(np.int64)
            self.room = None if out is None else np.empty_like(out)  # outputs, block by block

    def _whole(self) -> tuple[int, float]:
        plan = self.plan
        return plan.rows[0], float(plan.rows[0] if plan.weights is None else plan.weights[0])

    def _cuts(self, step: int) -> np.ndarray:
        """Rows of each shard before each block."""
        sizes = self.plan.sizes
        blocks = max(1, -(-int(sizes.max()) // step))
        return np.minimum(sizes, step * np.arange(blocks + 1)[:, None])

    def _sweep(self) -> float:
        blocks, group = self.blocks, self.group
        order, keep = blocks.order, len(blocks.rows) > 1
        shards, message = self.ranks.shards(keep), self.ranks.message(keep)
        scale = (1 / self.weight if self.weight > 0 else 0.0) if self.program.mean else 1.0
        for block, rows in enumerate(blocks.rows):
            group.may_stop()
            shards.run(
                *(self.x, self.y, self.w, order, blocks.starts[block], blocks.cuts[block], 0, rows),
                *(scale, True, block == 0, self.room, self.threads),
            )
        if self.out is not None and order is not None:
            self.out[order] = self.room
        shards.join()
        self.totals[:] = group.add(message, self.dtype, BATCH)[1:5]
        return shards.take()[1]

    def total(self, part: Callable[[int, int], np.ndarray]) -> np.ndarray:
        return self.group.sum(tree(part(*bounds) for bounds in self.bounds), EVALUATION)
