"""`Group`: the ranks that train one model together, and the sums over them.

A sum is taken in a binary tree over the ranks, the same on every machine: where there are 2, 4, 8, ... of them, each
exchanges with the rank that differs in one bit of its number, and all have the sum at once; else the sums go down to
rank 0 and the result back up. Long vectors are summed in parts, one a rank, along the same tree.

Each message begins with a header: whether its sender has failed, and what it sums. A rank that fails says so in the
next sum, whichever it is; so all ranks raise at the same point, and nobody waits for ever. The calls that take ``comm``
are in `Group.together` from their first line on, one within the other where they call one another. A failure says how
deep it is: it ends the calls from there on inwards, and goes on outwards as the exception that each rank raises.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from typing import Any

import numpy as np

TAG = 77
HEADER = 64  # bytes: eight doubles
STATUS, SUMS, STOPS, KIND, SIZE = 0, slice(1, 6), 5, 6, 7  # of them
TEXT = 512  # bytes of a message that says what has failed, header included
LONG = 1 << 16  # bytes from which a vector is summed in parts
ROOM = 1 << 16  # bytes of the numbers in one message, at least
KINDS = (
    *("the end of a call", "a batch", "a decision to stop", "an evaluation", "a count of rows"),
    *("batch normalisation", "a comparison of the ranks"),
)
END, BATCH, STOP, EVALUATION, ROWS, COLUMNS, COMPARISON = range(len(KINDS))

_calls = threading.local()  # those of this thread that are under way: `groups`, the outermost first


class RankError(RuntimeError):
    """Another rank has failed: names it, and says how."""


class Group:
    """The ranks of a communicator, and shards that each has.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Or an object with its `Get_rank`, `Get_size`, `Send`, `Recv`, `Sendrecv`, `Allreduce` and `allgather`, and,
        for messages that are on their way while gradients are computed, `Isend` and `Irecv`.

    Attributes
    ----------
    rank, size : int
    shards : int
        Of a batch, on all ranks.
    count : int
        Of them here.
    failed : str
        What has failed, once all ranks know of it.
    """

    def __init__(self, comm: Any):
        missing = [name for name in ("Get_rank", "Get_size", "Sendrecv", "allgather") if not hasattr(comm, name)]
        if missing:
            raise TypeError(
                f"comm: expected a communicator as mpi4py's MPI.COMM_WORLD, got {comm!r} without {', '.join(missing)}"
            )
        if getattr(comm, "is_inter", False):
            raise TypeError("comm: expected a communicator of one group of ranks, got an intercommunicator")
        self.comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self.doubling = self.size & (self.size - 1) == 0
        self.deterministic = True
        self.shards, self.count = self.size, 1
        self.interrupted = False
        self.failed = ""
        self.level = 0  # calls under way around this one
        self.program: Any = None  # the model's `ShardProgram`
        self.places: list = []  # what `here` has said on each rank
        self.room = np.empty(HEADER + ROOM, np.uint8)  # what is received
        self.small = np.zeros(HEADER + ROOM, np.uint8)  # what is sent of short vectors

    def arrange(self, shards: int, deterministic: bool) -> None:
        """Cut batches into so many shards; ValueError if the ranks cannot share them."""
        count, rest = divmod(shards, self.size)
        if rest or (self.size > 1 and (count == 0 or count & (count - 1))):
            raise ValueError(
                f"shards: expected {self.size} ranks times a power of two, such as {shards_for(self.size)}, got "
                f"{shards}: runs on other numbers of ranks give the same bits if they have as many"
            )
        self.shards, self.count, self.deterministic = shards, count, deterministic

    def reserve(self, nbytes: int) -> None:
        """Room for messages of so many bytes of numbers."""
        if len(self.room) < HEADER + nbytes:
            self.room = np.empty(HEADER + nbytes, np.uint8)

    @property
    def first(self) -> int:
        """The number of the first shard here."""
        return self.rank * self.count

    # before anything is trained ---------------------------------------------------------------------------------------

    def check(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """What all ranks have said of themselves; ValueError if they differ in facts whose names have no underscore
        before, RankError if one has failed. They are compared as texts."""
        said = {name: value if name.startswith("_") else _text(value) for name, value in facts.items()}
        everybody = self.gather(said, COMPARISON)
        differences = []
        for name in {name: None for said in everybody for name in said}:
            if name.startswith("_"):
                continue
            ranks: dict[str, list[int]] = {}
            for rank, said in enumerate(everybody):
                ranks.setdefault(said.get(name, "none"), []).append(rank)
            if len(ranks) > 1:
                differences.append(name + ": " + "; ".join(f"{_ranks(r)} {text}" for text, r in ranks.items()))
        if differences:
            hint = ""
            if any(name.startswith("parameters") for name in differences):
                hint = " (give the model a seed, or load the same weights on every rank)"
            self.failed = f"the ranks differ in {', and in '.join(differences)}{hint}"  # on all of them
            raise ValueError(self.failed)
        return everybody

    def may_stop(self) -> None:
        """KeyboardInterrupt if Ctrl-C has been pressed: at points where all ranks have done the same."""
        if self.interrupted:
            raise KeyboardInterrupt

    # sums -------------------------------------------------------------------------------------------------------------

    def add(self, message: np.ndarray, dtype: Any, kind: int) -> np.ndarray:
        """Add up over all ranks the sums in the header of a message, and the numbers behind it, in place.

        message : ndarray of uint8
            Header and numbers.

        Returns
        -------
        ndarray of float64
            The header.
        """
        if kind not in (BATCH, COLUMNS):
            self.may_stop()
        head = message[:HEADER].view(np.float64)
        head[STATUS], head[KIND], head[SIZE] = 0, kind, len(message)
        if self.size == 1:
            return head
        body = message[HEADER:].view(dtype)
        long = not self.deterministic or (self.doubling and body.nbytes >= LONG)
        self._agree(message[:HEADER] if long else message, dtype)
        if not self.deterministic:
            total = self.room[HEADER : len(message)].view(dtype)
            self.comm.Allreduce(body, total)
            body[:] = total
        elif long:
            self._add_parts(body, dtype)
        return head

    def agree(self, message: np.ndarray, kind: int) -> np.ndarray:
        """`add` of the header alone. Number STOPS of it says on how many ranks Ctrl-C has been pressed."""
        head = message[:HEADER].view(np.float64)
        head[STATUS], head[STOPS], head[KIND], head[SIZE] = 0, self.interrupted, kind, len(message)
        self._agree(message[:HEADER], np.float64)
        return head

    def sum(self, vector: np.ndarray, kind: int) -> np.ndarray:
        """Add up a vector of float64 over all ranks, in place."""
        for at in range(0, len(vector), ROOM // 8) if len(vector) else (0,):
            piece = vector[at : at + ROOM // 8]
            message = self.small[: HEADER + piece.nbytes]
            message[:HEADER] = 0
            message[HEADER:].view(np.float64)[:] = piece
            self.add(message, np.float64, kind)
            piece[:] = message[HEADER:].view(np.float64)
        return vector

    def any(self, flag: bool, kind: int = STOP) -> bool:
        """Whether the flag is set on any rank."""
        return bool(self.sum(np.array([float(flag)]), kind)[0])

    def gather(self, thing: Any, kind: int) -> list:
        """What each rank has given, on all of them."""
        self.sum(np.empty(0), kind)  # nobody has failed
        return self.comm.allgather(thing)

    def _agree(self, message: np.ndarray, dtype: Any) -> None:
        """Add up short messages, or, if a rank has failed, raise."""
        text = self.failed
        if not text:
            failure = self._walk(message, dtype, None)
            if failure is None:
                return
            text = bytes(failure[HEADER:]).rstrip(b"\0").decode(errors="replace")
            self._end(failure, text)
        interrupt = text.split(": ")[1:2] == ["KeyboardInterrupt"]
        raise KeyboardInterrupt(text) if interrupt else RankError(text)

    def _end(self, failure: np.ndarray, text: str) -> None:
        """No more sums in the calls that a failure ends."""
        level = failure[:8].view(np.float64)[0] - 1
        for group in vars(_calls).get("groups", ()):
            if group.comm == self.comm and group.level >= level:
                group.failed = group.failed or text
        if self.level >= level:
            self.failed = text

    def _walk(self, message, dtype, failure: np.ndarray | None) -> np.ndarray | None:
        """One sum over the ranks, or with a failure that in place of it; the failure that has been met, if any."""
        send, recv, rank = self.comm.Send, self.comm.Recv, self.rank
        stride = 1
        if self.doubling:
            while stride < self.size:
                out = message if failure is None else failure
                self.comm.Sendrecv(out, rank ^ stride, TAG, self.room, rank ^ stride, TAG)
                failure = self._take(message, dtype, rank ^ stride, failure)
                stride *= 2
            return failure
        children = []
        while stride < self.size and rank % (2 * stride) == 0:
            if rank + stride < self.size:
                recv(self.room, rank + stride, TAG)
                failure = self._take(message, dtype, rank + stride, failure)
                children.append(rank + stride)
            stride *= 2
        if rank:
            parent = rank - stride
            send(message if failure is None else failure, parent, TAG)
            recv(self.room, parent, TAG)
            if self.room[:8].view(np.float64)[0]:
                failure = self.room[:TEXT].copy()
            elif failure is None:
                message[:] = self.room[: len(message)]
        for child in reversed(children):
            send(message if failure is None else failure, child, TAG)
        return failure

    def _take(self, message, dtype, peer: int, failure: np.ndarray | None) -> np.ndarray | None:
        """Add what has been received; the failure, if it is one, or there has been one."""
        there = self.room[:HEADER].view(np.float64)
        if there[STATUS]:
            if failure is None:
                return self.room[:TEXT].copy()
            outer = failure[:8].view(np.float64)
            outer[0] = min(outer[0], there[STATUS])
            return failure
        if failure is not None or message is None:
            return failure
        head = message[:HEADER].view(np.float64)
        if there[KIND] != head[KIND] or there[SIZE] != head[SIZE]:
            low, high = sorted([(self.rank, head[KIND]), (peer, there[KIND])])
            return _failure(
                f"rank {low[0]} is at {KINDS[int(low[1])]}, and rank {high[0]} at {KINDS[int(high[1])]}: all have to "
                "give the same number of batches, and call the same methods with the same shards"
            )
        head[SUMS] += there[SUMS]
        if len(message) > HEADER:
            body = message[HEADER:].view(dtype)
            np.add(body, self.room[HEADER : len(message)].view(dtype), out=body)
        return None

    def _add_parts(self, body: np.ndarray, dtype: Any) -> None:
        """Reduce-scatter by recursive halving, in the order of the tree, and all-gather by doubling."""
        rank, stride = self.rank, 1
        low, high = 0, len(body)
        halves = []
        while stride < self.size:
            middle = (low + high) // 2
            mine, other = ((low, middle), (middle, high)) if not rank & stride else ((middle, high), (low, middle))
            received = self.room[: (mine[1] - mine[0]) * body.itemsize].view(dtype)
            self.comm.Sendrecv(body[slice(*other)], rank ^ stride, TAG, received, rank ^ stride, TAG)
            part = body[slice(*mine)]
            np.add(part, received, out=part)
            halves.append((mine, other, rank ^ stride))
            low, high = mine
            stride *= 2
        for mine, other, peer in reversed(halves):
            self.comm.Sendrecv(body[slice(*mine)], peer, TAG, body[slice(*other)], peer, TAG)

    # failures ---------------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """Let all other ranks raise at the sum that they are at, or come to next."""
        if self.failed:
            return
        text = f"rank {self.rank}: {type(error).__name__}: {error}"
        failure: Any = _failure(text, self.level)
        with contextlib.suppress(Exception), self.interrupts():
            if self.size > 1:
                failure = self._walk(None, np.float64, failure)
        self._end(failure, text)

    @contextlib.contextmanager
    def together(self, end: bool = True, stoppable: bool = True):
        """Let an exception on one rank end what is done here on all of them.

        end: that all wait for one another; stoppable: that Ctrl-C ends it between two sums, not at once.
        """
        calls = vars(_calls).setdefault("groups", [])
        around, self.level = self.level, sum(group.comm == self.comm for group in calls)
        calls.append(self)
        with self.interrupts() if stoppable else contextlib.nullcontext():
            try:
                yield self
                if end:
                    with self.interrupts():
                        self.sum(np.empty(0), END)
            except BaseException as error:
                self.fail(error)
                raise
            finally:
                calls.pop()
                self.level = around

    @contextlib.contextmanager
    def interrupts(self):
        """Let Ctrl-C end this rank between two sums; and SIGTERM, which Open MPI makes of it, and clusters send before
        the end of a job."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number, frame):
            if self.interrupted:
                before = handlers[number]
                before(number, frame) if callable(before) else signal.default_int_handler(number, frame)
            self.interrupted = True

        handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, before in handlers.items():
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, before if before is not None else default)
            self.interrupted = False


def shards_for(ranks: int) -> int:
    """At least 8 shards that so many ranks can share."""
    return ranks << max(0, (-(-8 // ranks) - 1).bit_length())


def here() -> tuple[str, tuple[int, ...]]:
    """This machine, and the cores that this process may use."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return socket.gethostname(), tuple(sorted(cores))


def threads_of(places: list[tuple[str, tuple[int, ...]]], rank: int, threads: int) -> int:
    """How many threads a rank uses, of at most so many: the ranks of a machine share the cores that they all have."""
    machine, cores = places[rank]
    others = sum(place[0] == machine and bool(set(place[1]) & set(cores)) for place in places)
    return max(1, min(threads, len(cores) // others))


def _failure(text: str, level: int = 0) -> np.ndarray:
    message = np.zeros(TEXT, np.uint8)
    message[:8].view(np.float64)[0] = 1 + level
    data = text.encode()[: TEXT - HEADER]
    message[HEADER : HEADER + len(data)] = np.frombuffer(data, np.uint8)
    return message


def text_of(value: Any) -> str:
    """The text of a value, the same in all processes: without addresses."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def _text(value: Any) -> str:
    text = text_of(value)
    return text if len(text) <= 300 else text[:300] + "..."


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} has"
    shown = ", ".join(map(str, ranks[:5])) + (", ..." if len(ranks) > 5 else "")
    return f"ranks {shown} have"
