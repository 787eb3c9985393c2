"""The rows of several ranks as batches: which rows of which shard a batch takes, and the sources that give them.

The rows are cut into shards, each shuffled by itself, and every batch takes its part of each. A rank has some shards
that lie side by side. So a batch does not depend on how many ranks there are, if they have the rows of one array in its
order: rank r of R the rows from n r // R to n (r + 1) // R, as `share` gives them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..data import BLOCK_BYTES, MIX, Rows, Source
from .group import ROWS, Group


def share(n: int, group: Group) -> slice:
    """The rows of an array of n that a rank takes."""
    return slice(n * group.rank // group.size, n * (group.rank + 1) // group.size)


def ends_of(sizes: list[int], shards: int) -> np.ndarray:
    """Where the shards end (shards,), counted over all ranks; sizes: the rows that each rank has.

    Where they are those of `share`, shards are cut from all rows alike; else from each rank's own.
    """
    n, ranks = sum(sizes), len(sizes)
    if sizes == [n * (r + 1) // ranks - n * r // ranks for r in range(ranks)]:
        return np.array([n * (s + 1) // shards for s in range(shards)], np.int64)
    count, before = shards // ranks, np.cumsum([0, *sizes])
    ends = [before[r] + sizes[r] * (i + 1) // count for r in range(ranks) for i in range(count)]
    return np.array(ends, np.int64)


def cuts_of(sizes: np.ndarray, batch_size: int) -> np.ndarray:
    """How many rows of each shard the first 0, 1, 2, ... batches have taken, (batches + 1, shards).

    sizes (shards,): of the shards. Row i of shard s comes at the time (i + (s + 1/2) / shards) / size, so that all are
    used up alike; each batch takes the next `batch_size` rows. The time of a batch's end is found by bisection.
    """
    n, shards = int(sizes.sum()), len(sizes)
    wanted = np.minimum(np.arange(-(-n // batch_size) + 1) * batch_size, n)
    late = (np.arange(shards) + 0.5) / shards

    def taken(time):
        return np.clip(np.ceil(time[:, None] * sizes - late), 0, sizes).astype(np.int64)

    low, high = np.zeros(len(wanted)), np.full(len(wanted), 2.0)
    for _ in range(56):  # the bits of a double
        middle = (low + high) / 2
        enough = taken(middle).sum(1) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    cuts = taken(high)
    surplus = cuts.sum(1) - wanted  # rows of several shards that come at the same time
    for b in np.nonzero(surplus)[0]:
        tied = np.nonzero(cuts[b] > taken(low[b : b + 1])[0])[0]
        cuts[b, tied[len(tied) - surplus[b] :]] -= 1
    return cuts


class Plan:
    """The batches of an epoch, or of a block of it: what stands in the place of an order of rows.

    Parameters
    ----------
    group : Group
    order : ndarray or None
        The rows here, batch by batch and in each shard by shard; None: as they lie.
    cuts : ndarray of shape (batches + 1, shards)
        Rows of each shard before each batch.
    batch_size : int
    weights : sequence of float, optional
        The sum of the rows' weights of each batch; None: as many as rows.
    """

    def __init__(self, group, order, cuts, batch_size, weights=None):
        mine = slice(group.first, group.first + group.count)
        self.order, self.batch_size, self.weights = order, batch_size, weights
        counts = np.diff(cuts, axis=0)
        self.sizes = counts.sum(0)  # rows of each shard, on all ranks
        self.rows = counts.sum(1).tolist()  # of each batch
        self.single = bool((counts == 1).any())  # whether a shard has one row of a batch
        self.before = counts[:, : group.first].sum(1).tolist()  # of its rows, on lower ranks
        self.counts = counts[:, mine]
        self.cuts = np.zeros((len(counts), group.count + 1), np.int64)
        np.cumsum(self.counts, axis=1, out=self.cuts[:, 1:])
        self.starts = [0, *np.cumsum(self.cuts[:, -1]).tolist()]  # of each batch, among the rows here
        self.length = sum(self.rows)

    def __len__(self) -> int:
        return self.length

    def first(self, rows: int) -> Plan:
        """The plan of its first rows, whole batches."""
        other = object.__new__(Plan)
        other.__dict__.update(self.__dict__)
        other.length = rows
        return other

    def batches(self, start: int, stop: int) -> range:
        """The numbers of the batches from one of all rows to another."""
        return range(start // self.batch_size, -(-stop // self.batch_size))

    def places(self, start: int, stop: int) -> slice:
        """Where the batches from one of all rows to another are among the rows here."""
        batches = self.batches(start, stop)
        return slice(self.starts[batches.start], self.starts[batches.stop])

    def __getitem__(self, rows: slice):
        """The rows here of the batches from one of all rows to another."""
        places = self.places(rows.start or 0, len(self) if rows.stop is None else min(rows.stop, len(self)))
        return places if self.order is None else self.order[places]

    def by_shards(self, start: int, stop: int) -> np.ndarray:
        """The order that brings `places` from batch by batch to shard by shard."""
        counts = self.counts[self.batches(start, stop)]
        shard = np.repeat(np.tile(np.arange(counts.shape[1]), len(counts)), counts.ravel())
        return np.argsort(shard, kind="stable")


class ShardPart:
    """A `Part` (data.py) whose rows are on several ranks: `rows` counts all of them."""

    def __init__(self, x, y, w, plan: Plan, batch_size: int):
        self.x, self.y, self.w, self.order, self.batch_size = x, y, w, plan, batch_size

    def __iter__(self):
        return iter((self.x, self.y, self.w, self.order, self.batch_size))

    @property
    def rows(self) -> int:
        """How many rows are taken, on all ranks."""
        return len(self.order)

    def first(self, rows: int) -> ShardPart:
        """The part's first rows."""
        return ShardPart(self.x, self.y, self.w, self.order.first(rows), self.batch_size)


class ShardRows(Rows):
    """Rows of all ranks, each of which has some of them: arrays in memory, or memory maps.

    Parameters
    ----------
    group : Group
    source : Rows
        Of this rank.
    sizes : list of int
        The rows that each rank has.
    """

    def __init__(self, group: Group, source: Any, sizes: list[int]):
        self.group, self.source = group, source
        self.context, self.names, self.in_memory = source.context, source.names, source.in_memory
        self.rows = sum(sizes)
        ends = ends_of(sizes, group.shards)
        self.sizes = np.diff(ends, prepend=0)
        mine = np.concatenate(([0], ends))[group.first : group.first + group.count + 1]
        self.cuts: np.ndarray | None = None
        self.bounds = mine - mine[0]  # of the shards here, among the rows here

    def split(self, n):
        raise ValueError("validation_split: expected validation_data with comm: split the rows on each rank before")

    stratified = split

    def labels(self):
        return self.source.labels()

    def check(self, metrics):
        self.source.check(metrics)

    def read(self, start: int, stop: int):
        """Rows of this rank: x, y, w."""
        source, context = self.source, self.context
        if self.in_memory:
            rows = slice(start, stop)
            return source.x[rows], source.y[rows], None if source.w is None else source.w[rows]
        x = context.program.rows(np.array(source.x.read(start, stop)), self.names.x)
        y = np.array(source.targets(start, stop))  # what a map has read gives way to what it reads next
        w = None if source.w is None else source.w[start:stop]
        return x, y, w if context.class_weights is None else context.with_classes(y, w)

    def blocks(self, cuts: np.ndarray) -> list[tuple[int, int]]:
        """The batches of each block."""
        batches = len(cuts) - 1
        if self.in_memory:
            return [(0, batches)]
        source, context = self.source, self.context
        rows = BLOCK_BYTES // max(1, source.x.row_bytes, source.y.row_bytes)
        step = max(1, rows // (context.batch_size * context.accumulate)) * context.accumulate
        return [(at, min(at + step, batches)) for at in range(0, batches, step)]

    def parts(self, epoch):
        """In training the parts are those of all ranks; else, for evaluation, see `ShardProgram.evaluate_rows`."""
        context, group = self.context, self.group
        if self.cuts is None:
            self.cuts = cuts_of(self.sizes, context.batch_size)
        cuts = self.cuts
        blocks = self.blocks(cuts)
        turn = range(len(blocks))
        if context.shuffle and len(blocks) > 1:
            turn = context.permutation(len(blocks), (context.seed + MIX * len(blocks)) % 2**64, epoch).tolist()
        mine = slice(group.first, group.first + group.count)
        for block in turn:
            first, last = blocks[block]
            taken = cuts[first : last + 1]
            spans = self.bounds[:-1, None] + taken[[0, -1], mine].T  # rows here of each shard
            if self.in_memory:
                x, y, w = self.source.x, self.source.y, self.source.w
                begins = spans[:, 0]
            else:
                pieces = [self.read(*span) for span in spans.tolist()]
                x, y = (np.concatenate([piece[i] for piece in pieces]) for i in range(2))
                w = None if pieces[0][2] is None else np.concatenate([piece[2] for piece in pieces])
                begins = np.concatenate(([0], np.cumsum(spans[:, 1] - spans[:, 0])[:-1]))
            order = self.order(block, epoch, begins, taken[:, mine] - taken[0, mine])
            plan = Plan(group, order, taken - taken[0], context.batch_size)
            plan.weights = weights_of(group, context.program, y, w, plan)
            yield ShardPart(x, y, w, plan, context.batch_size)

    def order(self, block: int, epoch: int, begins: np.ndarray, taken: np.ndarray) -> np.ndarray | None:
        """The rows here in the order of the batches, None: as they lie; taken (batches + 1, shards here): before each
        batch."""
        context = self.context
        if len(taken) == 2:
            return None
        rows = []
        for i, begin in enumerate(begins):
            n = int(taken[-1, i])
            if context.shuffle:
                seed = context.seed + MIX * (1 + self.group.first + i + self.group.shards * block)
                rows.append(begin + context.permutation(n, seed % 2**64, epoch))
            else:
                rows.append(np.arange(begin, begin + n))
        batch = [np.repeat(np.arange(len(taken) - 1), np.diff(taken[:, i])) for i in range(len(rows))]
        return np.concatenate(rows)[np.argsort(np.concatenate(batch), kind="stable")].astype(np.int64)


def weights_of(group: Group, program: Any, y, w, plan: Plan) -> list[float] | None:
    """The sum of the rows' weights of each batch, over all ranks; None if that is the number of rows."""
    shards = program.shards(False)
    if not shards.weighs(y, w):
        return None
    counts = plan.counts
    sums = np.zeros(counts.size)
    shards.weights(y, w, plan.order, np.cumsum(counts.ravel()), sums)
    sums = tree(sums.reshape(counts.shape).T)
    return group.sum(sums, ROWS).tolist()


def tree(sums: Iterable[np.ndarray], dtype: Any = np.float64) -> np.ndarray:
    """The sum of vectors, one of each shard here, in the order of the tree. It keeps few of them at a time."""
    branches: list[np.ndarray] = []
    done = 0
    for done, vector in enumerate(sums, 1):
        branches.append(np.array(vector, dtype))
        for _ in range((done & -done).bit_length() - 1):
            _join(branches)
    for _ in range(done.bit_count() - 1):
        _join(branches)
    return branches[0]


def _join(branches: list[np.ndarray]) -> None:
    last = branches.pop()
    branches[-1] += last


class ShardBatches(Source):
    """Batches of iterables, one on each rank: together the rows of one batch."""

    def __init__(self, group: Group, source: Any):
        self.group, self.source = group, source
        self.context, self.names, self.rows = source.context, source.names, None
        if self.context.accumulate > 1:
            raise ValueError("accumulation_steps: expected 1 with comm and an iterable: let it give larger batches")

    def check(self, metrics):
        self.source.check(metrics)

    def parts(self, epoch):
        group, program = self.group, self.context.program
        batches = self.source.parts(epoch)
        while True:
            part: Any = next(batches, None)
            sizes = sizes_of(group, 0 if part is None else part.rows)
            if not any(sizes):
                return
            if 0 in sizes:
                has, more = sizes.index(0), next(r for r, size in enumerate(sizes) if size)
                raise ValueError(
                    f"{self.names.all}: the batches of rank {has} have ended before those of rank {more}: all ranks "
                    "have to give the same number of batches, or set steps_per_epoch"
                )
            yield one_batch(group, program, part.x, part.y, part.w, sizes)


def sizes_of(group: Group, rows: int) -> list[int]:
    """How many rows each rank has."""
    sizes = np.zeros(group.size)
    sizes[group.rank] = rows
    return [int(size) for size in group.sum(sizes, ROWS)]


def one_batch(group: Group, program: Any, x, y, w, sizes: list[int]) -> ShardPart:
    """The rows of all ranks as one batch."""
    n = sum(sizes)
    counts = np.diff(ends_of(sizes, group.shards), prepend=0)
    plan = Plan(group, None, np.stack([np.zeros_like(counts), counts]), n)
    plan.weights = weights_of(group, program, y, w, plan)
    return ShardPart(x, y, w, plan, n)


def shard_source(group: Group, source: Any, sizes: list[int]) -> Source:
    """The source of all ranks, from that of this one; sizes: the rows of each, if they are known."""
    if isinstance(source, Rows):
        return ShardRows(group, source, sizes)
    if not source.context.training:
        raise ValueError(f"{source.names.all}: expected arrays or memory maps with comm, got an iterable of batches")
    return ShardBatches(group, source)


def own_rows(group: Group, x, y, w) -> tuple:
    """Of arrays that all ranks name, the rows of this one; for ``shard="auto"``."""
    if y is None:
        raise ValueError("shard: expected arrays x and y with 'auto': an iterable gives each rank's own batches")
    x = _array(group.program.native.joined(x))
    leading = x.shape[: max(1, len(x.shape) - 1)]  # the axes of the rows
    group.check({"rows of x": " x ".join(map(str, leading)) or "none"})
    targets = [_array(part) for part in y] if isinstance(y, tuple) else [_array(y)]
    own = []
    for name, a in (("x", x), *(("y", a) for a in targets), ("sample_weight", w)):
        if a is None:
            continue
        a = _array(a)
        if not a.shape or a.shape[: len(leading)] != leading:
            raise ValueError(f"{name}: expected as many rows as x has, {leading}, got {a.shape[: len(leading)]}")
        if len(leading) > 1:
            a = a.reshape(-1, *a.shape[len(leading) :])
        own.append(a[share(a.shape[0], group)])
    weights = None if w is None else own.pop()
    return own[0], tuple(own[1:]) if isinstance(y, tuple) else own[1], weights


def _array(a: Any) -> Any:
    if hasattr(a, "tocsr"):
        return a.tocsr()
    return a if hasattr(a, "shape") else np.asarray(a)
