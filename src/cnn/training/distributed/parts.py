"""`Parts`: the parameters cut into parts, one a rank, whose gradients it adds up and whose step it takes.

They are first cut into buckets, in the order in which their gradients are computed: from the last layer on. A
bucket's gradients are added up over the ranks by recursive halving, in the order of the tree; so each rank has the sums
of a part of it, takes the step for that part, and gets the new parameters of the others by recursive doubling. The
messages of a bucket are on their way while the gradients of the next are computed, if ranks are on several machines and
the communicator has `Isend` and `Irecv`; on one machine, where the cores that compute copy the messages, there is one
bucket.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from .group import BATCH, HEADER, TAG, Group

BUCKET = 1 << 18  # bytes of a bucket, at least
BUCKETS = 8  # at most
PARAMETERS, AVERAGE, SQUARES, MESSAGE = 0, -1, -2, -3  # what `Shards.memory` gives
BEGIN, PREPARE, UPDATE, END, WHOLE = 1, 2, 4, 8, 15  # what `Shards.step` does


class Parts:
    """The parts of a program's parameters.

    Parameters
    ----------
    group : Group
    shards : Shards
        The native one, which has the gradients.
    dtype : dtype
    """

    def __init__(self, group: Group, shards: Any, dtype: Any):
        self.group, self.shards = group, shards
        self.message = message = shards.memory(MESSAGE)
        self.gradients = message[HEADER:].view(dtype)
        self.overlaps = overlaps(group)
        *ops, (n, unit, _) = shards.layout().tolist()
        least = max(BUCKET, self.gradients.nbytes // BUCKETS) // self.gradients.itemsize
        self.windows, buckets = buckets_of(ops, n, unit, least if self.overlaps else n)
        self.halves = [list(halves(group, low, high, unit)) for low, high in buckets]
        self.squares = shards.memory(SQUARES)
        self.own = [stages[-1][0] for stages in self.halves]
        self.running: list[tuple[Iterator, list]] = []

    def start(self, rates: Any, share: bool, clips: bool, anyway: bool) -> None:
        """Begin a step; share: each rank takes it for its parts; clips: when the norm of all gradients is known;
        anyway: even if the loss is not finite."""
        self.rates, self.share, self.clips, self.anyway = rates, share, share and clips, anyway
        self.at, self.running = 0, []
        self.extra, self.head = 0.0, np.empty(0)
        self.goes = True

    def advance(self) -> None:
        """The gradients of one more bucket are there."""
        if self.at == 0:
            self.head = self.group.agree(self.message, BATCH)
            self.goes = self.anyway or math.isfinite(self.head[1])
            self.squares[:] = 0  # those of other ranks' parts
            if self.goes and self.share:
                self.extra = self.shards.step(self.rates, BEGIN, 0, 0)
        if self.goes:
            self.running.append((self.bucket(self.at), []))
            self.poll()
        self.at += 1

    def finish(self) -> np.ndarray:
        """End the step, but for the optimiser's where it is not shared: the header's sums."""
        for _ in range(self.at, len(self.halves)):
            self.advance()
        self.wait()
        if self.goes and self.clips:
            self.group.sum(self.squares, BATCH)
            for own in self.own:
                self.shards.step(None, UPDATE, *own)
            self.gather(self.shards.memory(PARAMETERS))
        if self.goes and self.share:
            self.shards.step(None, END, 0, 0)
        return self.head

    def poll(self) -> None:
        """Let the buckets go on whose messages have come."""
        left = []
        for bucket, requests in self.running:
            pending: list | None = requests
            while pending is not None and all(request.Test() for request in pending):
                pending = next(bucket, None)
            if pending is not None:
                left.append((bucket, pending))
        self.running = left

    def wait(self) -> None:
        """Wait for all buckets: for the first that is not done, as all ranks do, or they might wait for one another."""
        self.poll()
        while self.running:
            for request in self.running[0][1]:
                request.Wait()
            self.poll()

    def bucket(self, number: int) -> Generator:
        """The sum of a bucket, and its step; yields the requests that it waits for."""
        yield from self.reduce(number)
        if self.share:
            self.shards.step(None, PREPARE if self.clips else PREPARE + UPDATE, *self.own[number])
        if not self.clips:
            yield from self.spread(number, self.shards.memory(PARAMETERS) if self.share else self.gradients)

    def reduce(self, number: int) -> Generator:
        """Add up the gradients of a bucket: each rank those of its part."""
        body, room = self.gradients, self.group.room[HEADER : len(self.message)].view(self.gradients.dtype)
        for mine, other, peer in self.halves[number]:
            yield from self.exchange(body[slice(*other)], room[slice(*mine)], peer, number)
            part = body[slice(*mine)]
            np.add(part, room[slice(*mine)], out=part)

    def spread(self, number: int, body: np.ndarray) -> Generator:
        """Give all ranks what each has of its part of a bucket."""
        for mine, other, peer in reversed(self.halves[number]):
            yield from self.exchange(body[slice(*mine)], body[slice(*other)], peer, number)

    def exchange(self, send: np.ndarray, receive: np.ndarray, peer: int, number: int) -> Generator:
        comm, tag = self.group.comm, TAG + 1 + number
        if self.overlaps:
            yield [comm.Irecv(receive, peer, tag), comm.Isend(send, peer, tag)]
        else:
            comm.Sendrecv(send, peer, tag, receive, peer, tag)

    def gather(self, body: np.ndarray) -> None:
        """Give all ranks what each has of its parts."""
        self.running = [(self.spread(number, body), []) for number in range(len(self.halves))]
        self.wait()


def overlaps(group: Group) -> bool:
    """Whether messages are on their way while gradients are computed."""
    several = len({machine for machine, _ in group.places}) > 1
    return several and hasattr(group.comm, "Isend") and hasattr(group.comm, "Irecv")


def buckets_of(ops: list, n: int, unit: int, least: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Buckets of at least so many numbers: windows (buckets, ops, 2), as `Shards.run` has them, and where each begins
    and ends in the block of n numbers, at multiples of `unit`.

    ops: as `Shards.layout` has them.
    """
    windows, window, ends, top = [], np.zeros((len(ops), 2), np.int64), [n], n
    for i in range(len(ops) - 1, -1, -1):
        begin, left, size = ops[i]
        while left:
            some = left if not size else min(left, max(1, -(-(least - (top - (begin + left * size))) // size)))
            left -= some
            window[i] = left, window[i, 1] + some
            if top - (begin + left * size) >= least and (left or any(op[1] for op in ops[:i])):
                top = begin + left * size
                end = -(-top // unit) * unit
                if end < ends[-1]:
                    ends.append(end)
                    windows.append(window)
                    window = np.zeros_like(window)
    windows.append(window)
    return np.array(windows), list(zip([*ends[1:], 0], ends, strict=True))


def halves(group: Group, low: int, high: int, unit: int) -> Iterator[tuple]:
    """Of each stage of recursive halving: the part that a rank keeps, that of its peer, and the peer."""
    stride = 1
    while stride < group.size:
        middle = low + (high - low + unit) // 2 // unit * unit
        parts = (low, min(middle, high)), (min(middle, high), high)
        mine, other = parts if not group.rank & stride else parts[::-1]
        yield mine, other, group.rank ^ stride
        low, high = mine
        stride *= 2
