"""`ShardProgram`: the native program for a model that several ranks train.

It has the calls of the native `Program` that run over a batch, for rows that are on all ranks; all others go to the
program itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .group import BATCH, COLUMNS, EVALUATION, HEADER, LONG, STOPS, Group
from .objective import ShardObjective
from .parts import AVERAGE, MESSAGE, WHOLE, Parts
from .rows import Plan, ShardPart, one_batch, sizes_of, tree

MANY = 8  # steps on a block of rows from which on each rank keeps the state of its parts alone


class ShardProgram:
    """A program whose batches are shared by ranks.

    Parameters
    ----------
    core : Core
    group : Group
    """

    def __init__(self, core: Any, group: Group):
        self.core = core
        self.native = core.program
        self.group = group
        self.dtype = core.dtype
        self._make = core.kernels.Shards
        self._shards: dict[bool, Any] = {}
        self._parts: dict[bool, Parts] = {}
        self.reached = 0  # rows of all that the last `train_batches` has trained on
        self.shares = False  # the optimiser's state may be that of this rank's parts alone, until `gather_state`
        self.stale = False  # it is

    def __getattr__(self, name):
        return getattr(self.native, name)

    def shards(self, keep: bool) -> Any:
        """The native `Shards`; keep: for several batches a step."""
        if keep not in self._shards:
            group = self.group

            def exchange(sums):
                if len(sums):
                    group.sum(sums, COLUMNS)
                else:
                    self._parts[keep].advance()

            made = self._make(self.native, group.count, group.first, keep, exchange)
            message = made.memory(MESSAGE)
            group.reserve(message.nbytes)
            self._shards[keep] = made, message
        return self._shards[keep][0]

    def message(self, keep: bool) -> np.ndarray:
        """What `shards` leaves its sums in, to be added up over the ranks."""
        self.shards(keep)
        return self._shards[keep][1]

    def parts(self, keep: bool) -> Parts | None:
        """The ranks' parts of the parameters, if their gradients are summed in parts."""
        group, message = self.group, self.message(keep)
        if group.size == 1 or not (group.doubling and group.deterministic and len(message) >= LONG):
            return None
        if keep not in self._parts:
            self._parts[keep] = Parts(group, self.shards(keep), self.dtype)
        return self._parts[keep]

    def state_blocks(self) -> list[int]:
        """What of the optimiser's state there is, see `Shards.memory`."""
        blocks = list(range(1, 1 + self.core.optimizer.states))
        return blocks if self.shards(False).memory(AVERAGE) is None else [*blocks, AVERAGE]

    def gather_state(self) -> None:
        """Give all ranks the whole of the optimiser's state."""
        if self.stale:
            self.group.sum(np.empty(0), BATCH)  # nobody has failed
            self._gather_state()

    def _gather_state(self) -> None:
        parts, shards = next(iter(self._parts.values())), self.shards(False)  # with several of them they are alike
        for block in self.state_blocks():
            parts.gather(shards.memory(block))
        self.stale = False

    def run(self, shards, part, batch, scale, training, fresh, before, out, threads, **more) -> None:
        """Forward and backward over a batch; before: rows of the step in batches before it."""
        x, y, w, plan, _ = part
        rows = plan.rows[batch]
        if self.native.mean:
            weight = rows if plan.weights is None else plan.weights[batch]
            scale = scale / weight if weight > 0 else 0.0
        shards.run(
            *(x, y, w, plan.order, plan.starts[batch], plan.cuts[batch], before + plan.before[batch], rows),
            *(scale, training, fresh, out, threads),
            **more,
        )

    def train_batches(
        self, x, y, w, plan: Plan, start, stop, batch_size, rates, out, threads, accumulate, totals, step_anyway=False
    ) -> int:
        """As `Program.train_batches`, of rows on all ranks, with a `Plan` as their order."""
        group, keep = self.group, accumulate > 1
        shards = self.shards(keep)
        message = self.message(keep)
        parameters = (len(message) - HEADER) // self.dtype.itemsize
        mean, fuse = self.native.mean, group.size == 1 and shards.fuses and not step_anyway
        batches = plan.batches(start, stop)
        parts = self.parts(keep)
        state = parts is not None and bool(self.state_blocks())
        # to gather the state costs as much as some steps in parts save
        many = self.shares and not step_anyway and len(plan.rows) >= MANY * accumulate
        share = parts is not None and (many or not state)
        self.reached = start
        for step, first in enumerate(batches[::accumulate]):
            if not share:
                group.may_stop()
            last = min(first + accumulate, batches.stop)
            done, now = 0, None if rates is None else rates[step]
            more: dict[str, Any] = {"fuse": fuse, "rates": now}
            if parts is not None:
                parts.start(now, share, self.core.optimizer.clip_norm is not None, step_anyway)
                more |= {} if keep or not parts.overlaps else {"windows": parts.windows}
            for batch in range(first, last):
                rows = (x, y, w, plan, 0)
                self.run(*(shards, rows, batch, 1 / (last - first), True, batch == first, done, out, threads), **more)
                done += plan.rows[batch]
            if keep:
                shards.join()
            head = group.add(message, self.dtype, BATCH) if parts is None else parts.finish()
            loss, weight, right, rows = head[1:5].tolist()
            if not math.isfinite(loss) and not step_anyway:
                return first * batch_size
            shards.count_rows(done)
            if parts is not None and share:
                extra = parts.extra
            else:
                extra = 0.0 if fuse else shards.step(now, WHOLE, 0, parameters)
            self.stale = self.stale or (share and state)
            totals += np.array((loss + extra * (weight if mean else 1), weight, right, rows))
            self.reached += done
            if share and head[STOPS]:  # on some rank: all have taken this step
                if self.stale:
                    self._gather_state()
                raise KeyboardInterrupt
        return -1

    def train_step(self, x, y, threads: int, w=None, rates=None) -> float:
        x, y, w, plan = self.batch(x, y, w, "x: training needs at least one row, got an empty batch")
        totals = np.zeros(4)
        self.train_batches(x, y, w, plan, 0, len(plan), len(plan), rates, None, threads, 1, totals, step_anyway=True)
        if not math.isfinite(totals[0]):
            self.native.clear_padding()
        return self._loss(totals)

    def objective(self, core: Any, part: ShardPart, threads: int, out: np.ndarray | None = None) -> ShardObjective:
        """What an optimiser that needs the whole data minimises; part: all rows, as one batch."""
        return ShardObjective(self, core, part, threads, out)

    def whole_step(self, core: Any, x, y, w, threads: int) -> float:
        """`train_step` with such an optimiser: an iteration on the rows of all ranks; the loss before it."""
        x, y, w, plan = self.batch(x, y, w, "x: training needs at least one row, got an empty batch")
        objective = self.objective(core, ShardPart(x, y, w, plan, len(plan)), threads)
        return core.first_iteration(objective)

    def loss_and_grad(self, x, y, threads: int, training: bool = True) -> tuple[float, np.ndarray]:
        x, y, w, plan = self.batch(x, y, None, "the loss of an empty batch is not defined")
        shards = self.shards(False)
        self.run(shards, (x, y, w, plan, 0), 0, 1.0, training, True, 0, None, threads)
        totals = self.group.add(self.message(False), self.dtype, EVALUATION)[1:5]
        if training and not self.native.all_off:
            shards.count_rows(len(plan))
        gradient, extra = shards.take()
        return self._loss(totals) + extra, gradient

    def batch(self, x, y, w, empty: str) -> tuple:
        """The rows of all ranks as one batch: x, y, w and the plan, as `train_batches` has them."""
        native = self.native
        x, y, w = native.flattened(x, y, w)
        x = native.rows(x)
        y = native.targets(y, len(x))
        w = None if w is None else native.weights(w, len(x))
        if not len(x):
            raise ValueError(empty)
        part = one_batch(self.group, self, x, y, w, sizes_of(self.group, len(x)))
        native.check_batches(part.rows, part.rows)
        if part.order.weights == [0.0]:
            raise ValueError("x: no row counts: their weights are 0, or their targets are to be ignored")
        return x, y, w, part.order

    def _loss(self, totals) -> float:
        loss, weight = totals[:2].tolist()
        return (loss / weight if weight > 0 else 0.0) if self.native.mean else loss

    def evaluate_rows(self, source: Any, step: int, meter: Any, counted: Any, threads: int) -> np.ndarray:
        """The four sums of `Meter.numbers` over the rows of a `ShardRows`; the meter gets the outputs of all ranks."""
        sums = np.zeros((self.group.count, 4))
        kept = []
        for shard, (begin, end) in enumerate(zip(source.bounds[:-1].tolist(), source.bounds[1:].tolist(), strict=True)):
            for at in range(begin, end, step):
                x, y, w = source.read(at, min(at + step, end))
                sums[shard] += np.array((*self.native.evaluate(x, y, w, threads), counted(y)))
                if meter:
                    kept.append((y, self.native.predict(x, None, threads)))
        totals = self.group.sum(tree(sums), EVALUATION)
        if meter:
            for own in self.group.gather(kept, EVALUATION):
                for y, outputs in own:
                    meter.update(y, outputs)
        return totals

    def missing(self, rows: int) -> float:
        """So many rows here, and on the other ranks."""
        return float(self.group.sum(np.array([float(rows)]), EVALUATION)[0])

    def gather(self, part: Any, start: int, stop: int, out: np.ndarray) -> list:
        """Targets and outputs of the batches from one of all rows to another, of each rank, in an order that does not
        depend on how many there are."""
        places = part.order.places(start, stop)
        order = part.order.by_shards(start, stop)
        own = part.y[part.order[start:stop]][order], out[places][order]
        return self.group.gather(own, EVALUATION)
