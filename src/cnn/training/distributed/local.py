"""`LocalSteps`: training by local steps (local SGD), with the same bits on any number of ranks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..data import MIX
from .group import BATCH, HEADER, Group
from .program import ShardProgram
from .rows import Plan, tree


class LocalSteps(ShardProgram):
    """A `ShardProgram` whose shards each train a copy of the model, whose parameters are averaged now and then.

    At the end of a part of the data, as an epoch is, the optimiser's state and running statistics are averaged, too; up
    to then the model itself stays as it is.

    Parameters
    ----------
    core : Core
    group : Group
    every : int
        Batches from one average to the next.
    """

    def __init__(self, core: Any, group: Group, every: int):
        super().__init__(core, group)
        self.core, self.every = core, every
        self.copies: list[Any] = []  # one of each shard here
        self.made_of: Any = None
        self.done = 0  # batches since the model was changed
        self.sums = np.zeros((group.count, 4))  # of each copy since the last average, as `train_batches` has them

    @property
    def steps(self) -> int:
        """Optimiser steps taken."""
        return self.native.steps + self.done

    def train_batches(
        self, x, y, w, plan: Plan, start, stop, batch_size, rates, out, threads, accumulate, totals, step_anyway=False
    ) -> int:
        """As `Program.train_batches`; the first row of the batches since the last average, if a loss is not finite."""
        batches, end = plan.batches(start, stop), len(plan.batches(0, len(plan)))
        at = batches.start
        if at == 0:
            if plan.single and not self.native.separable:
                raise ValueError(
                    f"batch_size: a shard would have one row of a batch of {batch_size}, and BatchNorm1d needs at "
                    f"least 2: choose another batch_size, a number of rows that {self.group.shards} shards divide, "
                    "fewer shards, or average_every=1"
                )
            self._begin()
        while at < batches.stop:
            self.group.may_stop()
            average = min(end, (at // self.every + 1) * self.every)
            now = range(at, min(average, batches.stop))
            for i in range(len(self.copies)):
                self._train(i, (x, y, w), plan, now, rates, at - batches.start, out, threads)
            at = self.done = now.stop
            if at == average:
                sums = self._average(plan if at == end else None)
                if not math.isfinite(sums[0]):
                    self.done = 0
                    return (at - 1) // self.every * self.every * batch_size
                totals += sums
        self.reached = min(stop, len(plan))
        return -1

    def _begin(self) -> None:
        """Make the copies what the model is."""
        native, optimizer, group = self.native, self.core.optimizer, self.group
        made_of = native.modes, id(optimizer.table)
        if made_of != self.made_of:
            self.copies = [native.clone(optimizer.table) for _ in range(group.count)]
            self.made_of = made_of
        self.before = native.snapshot(optimizer.states)
        self.point = native.parameters
        seed = self.core.state.random_seed
        for shard, copy in enumerate(self.copies, group.first):
            copy.restore(self.before)
            copy.set_seed((seed + MIX * (1 + shard)) % 2**64)  # of dropout
        self.done = 0
        self.sums[:] = 0

    def _train(self, i: int, data: tuple, plan: Plan, batches: range, rates, first: int, out, threads: int) -> None:
        """Steps of a copy on its rows of the batches; first: of the rates."""
        x, y, w = data
        cuts = [(plan.starts[b] + plan.cuts[b, i : i + 2]).tolist() for b in batches]
        for size, some in itertools.groupby(enumerate(cuts, first), lambda numbered: numbered[1][1] - numbered[1][0]):
            numbers, spans = zip(*some, strict=True)
            if not size:
                continue
            places = np.concatenate([np.arange(*span) for span in spans])
            order = places if plan.order is None else plan.order[places]
            room = None if out is None else np.empty((len(places), out.shape[1]), out.dtype)
            bad = self.copies[i].train_batches(
                *(x, y, w, order, 0, len(order), size, None if rates is None else rates[list(numbers)]),
                *(room, threads, 1, self.sums[i]),
            )
            if bad >= 0:
                self.sums[i, 0] = math.nan
            if out is not None:
                out[places] = room

    def _average(self, plan: Plan | None) -> np.ndarray:
        """Give all copies their mean, or, at the end of a plan, the model that of all; the sums of the four totals."""
        copies, group = self.copies, self.group
        if plan is None:
            self.point, sums = self._mean(self.point, (copy.parameters for copy in copies))
            for copy in copies:
                copy.set_parameters(self.point)
            return sums
        arrays, *other, counters, exact = self.before
        found = [copy.snapshot(self.core.optimizer.states) for copy in copies]
        mean, sums = self._mean(arrays, (snapshot[0] for snapshot in found))
        if len(exact):
            exact = exact + group.sum(tree(snapshot[4] - exact for snapshot in found), BATCH) / group.shards
        most = group.gather(np.max([snapshot[3] for snapshot in found], axis=0), BATCH)
        most = np.max(most, axis=0)
        most[2] = counters[2] + len(plan)  # rows
        if math.isfinite(sums[0]):
            self.native.restore((mean, *other, most, exact))
            self.done = 0
        return sums

    def _mean(self, before: np.ndarray, vectors: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The mean of a vector of each copy, all of which have been `before`; and the sums of the four totals."""
        group = self.group
        message = np.zeros(HEADER + before.nbytes, np.uint8)
        message[HEADER:].view(self.dtype)[:] = tree((vector - before for vector in vectors), self.dtype)
        message[:HEADER].view(np.float64)[1:5] = tree(self.sums)
        self.sums[:] = 0
        group.reserve(before.nbytes)
        sums = group.add(message, self.dtype, BATCH)[1:5].copy()
        return before + message[HEADER:].view(self.dtype) / self.dtype.type(group.shards), sums
