"""Sources of rows for `fit` and `evaluate`: arrays in memory, blocks read from files, iterables of batches.

A source gives an epoch's rows in parts: arrays as the kernels read them, and the order in which to take their rows. An
array in memory is one part; of a file each block is one, so that reading stays sequential; of an iterable each batch.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .._checks import integer
from .._sparse import SparseRows, is_sparse, joined
from .._types import ArrayLike

BLOCK_BYTES = 64 << 20  # of a block of a memory map
PIECE_BYTES = 4 << 20  # of one read, so that Ctrl-C need not wait for a whole block
MIX = 0xD1342543DE82EF95  # an odd number (L'Ecuyer's multiplier): each block has its own seed


class Part(NamedTuple):
    """Rows to train on: checked arrays, the order of the rows (None: not shuffled), and the size of a batch."""

    x: np.ndarray | SparseRows
    y: np.ndarray
    w: np.ndarray | None
    order: np.ndarray | None
    batch_size: int

    @property
    def rows(self) -> int:
        """How many rows are taken."""
        return len(self.x) if self.order is None else len(self.order)

    def first(self, rows: int) -> Part:
        """The part's first rows, in its order."""
        if rows == self.rows:
            return self
        if self.order is not None:
            return self._replace(order=self.order[:rows])
        return self._replace(x=self.x[:rows], y=self.y[:rows], w=None if self.w is None else self.w[:rows])


class Names(NamedTuple):
    """The names of the arrays in error messages."""

    x: str = "x"
    y: str = "y"
    w: str = "sample_weight"
    all: str = "x"


class Source:
    """Rows for training or validation.

    Attributes
    ----------
    rows : int or None
        In an epoch; None: not known before it.
    """

    context: Any
    names: Names
    rows: int | None
    in_memory = False  # whether all rows of an epoch are one part

    def parts(self, epoch: int | None) -> Iterator[Part]:
        """The parts of an epoch (numbered from 0), shuffled for it; None: in the order of the rows."""
        raise NotImplementedError

    def check(self, metrics: Any) -> None:
        """Raise what can be raised before anything is trained: `metrics` has a method check(targets)."""


class Rows(Source):
    """A source whose rows have numbers: it can be split, and all its targets can be read at once."""

    rows: int

    def split(self, n: int) -> Rows:
        """Split off the rows from row n on, as another source."""
        raise NotImplementedError

    def stratified(self, fraction: Any) -> Rows:
        """Split off the last rows of each class, as another source: class proportions are the same in both."""
        raise ValueError("stratify: expected arrays in memory: shuffle the rows on disk, or pass validation_data")

    def labels(self) -> Iterator[np.ndarray]:
        """All targets, in one or more arrays."""
        raise NotImplementedError


class Blocks:
    """Rows of arrays that do not fit into memory, read and converted block by block.

    For `fit` and `evaluate`, in place of x and y. A `numpy.memmap` is read in blocks anyway; this class is for other
    arrays on disk (h5py, zarr), and to choose the size of the blocks.

    Parameters
    ----------
    x, y : array_like
        Arrays with `shape` and `dtype` whose slices `x[start:stop]` give rows. Memory maps are read as files.
    sample_weight : array_like of shape (n,), optional
    rows : int, optional
        Rows per block, rounded up to whole batches. None: blocks of about 64 MiB.

    Raises
    ------
    TypeError, ValueError
        If x or y have no shape, dtype and slices, or rows is no integer of at least 1.

    Notes
    -----
    Shuffling permutes the blocks, and the rows within each block.
    """

    def __init__(
        self, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None, rows: int | None = None
    ) -> None:
        for name, array in (("x", x), ("y", y)):
            if not (hasattr(array, "shape") and hasattr(array, "dtype") and hasattr(array, "__getitem__")):
                raise TypeError(f"{name}: expected an array with shape, dtype and slices, got {type(array).__name__}")
        self.x = x
        self.y = y
        self.sample_weight = sample_weight
        self.rows: int | None = None if rows is None else integer("rows", rows, 1)


# arrays in memory -----------------------------------------------------------------------------------------------------


class _Arrays(Rows):
    in_memory = True

    def __init__(self, context, x, y, w, names: Names):
        self.context = context
        self.names = names
        program = context.program
        x, y, w = program.flattened(x, y, w, names.x, names.y, names.w)
        self.x: Any = program.rows(x, names.x)
        self.y = context.targets(y, len(self.x), names.y)
        if len(self.x) == 0:
            raise context.no_rows(names)
        self.w = None if w is None else context.program.weights(w, len(self.x), names.w)
        self.rows = len(self.x)
        self.order: np.ndarray | None = None

    def split(self, n: int) -> _Arrays:
        rest = object.__new__(_Arrays)
        rest.__dict__.update(self.__dict__)
        rest.x, rest.y, rest.w = self.x[n:], self.y[n:], None if self.w is None else self.w[n:]
        rest.rows = self.rows - n
        self.x, self.y, self.w = self.x[:n], self.y[:n], None if self.w is None else self.w[:n]
        self.rows = n
        return rest

    def stratified(self, fraction):
        labels = classes_of(self.y)
        if labels is None:
            raise ValueError("stratify: expected targets that are classes: class indices, 0 and 1, or one-hot rows")
        order = np.argsort(labels, kind="stable")  # class by class, in each as the rows lie
        counts = np.unique(labels, return_counts=True)[1]
        shares = [fraction * int(count) for count in counts]
        held = np.array([int(share) for share in shares])
        missing = self.rows - int(self.rows * (1 - fraction)) - held.sum()  # go to the largest remainders
        held[sorted(range(len(held)), key=lambda i: held[i] - shares[i])[:missing]] += 1
        out = np.zeros(self.rows, bool)
        for end, count in zip(np.cumsum(counts), held, strict=True):
            out[order[end - count : end]] = True
        rest = object.__new__(_Arrays)
        rest.__dict__.update(self.__dict__)
        for source, rows in ((rest, out), (self, ~out)):
            source.x, source.y = source.x[rows], source.y[rows]
            source.w = None if source.w is None else source.w[rows]
            source.rows = len(source.x)
        return rest

    def labels(self) -> Iterator[np.ndarray]:
        yield self.y

    def check(self, metrics):
        metrics.check(self.y)
        if self.context.class_weights is not None:
            self.w = self.context.with_classes(self.y, self.w)
        self.context.some_weight(self.w, self.names.w)

    def parts(self, epoch):
        context = self.context
        order = None
        if epoch is not None and context.shuffles(self.rows):
            if self.order is None:
                self.order = np.empty(self.rows, np.int64)
            order = context.permutation(self.rows, context.seed, epoch, self.order)
        yield Part(self.x, self.y, self.w, order, context.batch_size)


def classes_of(y: np.ndarray) -> np.ndarray | None:
    """Targets as class indices (n,), if that is what they are: indices, 0 and 1, or one-hot rows."""
    if y.ndim == 1:
        return y if y.dtype.kind in "iu" else None
    if y.ndim != 2 or not ((y == 0) | (y == 1)).all():
        return None
    if y.shape[1] == 1:
        return y[:, 0].astype(np.int64)
    return y.argmax(axis=1) if (y.sum(axis=1) == 1).all() else None


# blocks of arrays on disk ---------------------------------------------------------------------------------------------


class _Slices:
    """Rows of an array by slicing it."""

    def __init__(self, array):
        self.array = array
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))

    def read(self, start: int, stop: int) -> np.ndarray:
        return _array(self.array[start:stop])


class _Mapped:
    """Rows of a memory map, read from its file: touching a map whose file has been cut short would end the process.

    A map opened copy-on-write may differ from the file; it is read through the map, after a look at the file's size.
    """

    def __init__(self, array: np.ndarray, owner: Any, name: str):
        self.array = array
        self.name = name
        self.shape = array.shape
        self.dtype = array.dtype
        if owner.filename is None:
            raise ValueError(f"{name}: expected a memory map of a file with a name")
        self.path: str = os.fspath(owner.filename)
        self.private = owner.mode == "c"
        # Where the array begins in the file: the map begins at a multiple of the granularity.
        begin = np.frombuffer(owner._mmap, np.uint8).__array_interface__["data"][0]
        begin -= owner.offset - owner.offset % mmap.ALLOCATIONGRANULARITY
        self.begin = array.__array_interface__["data"][0] - begin
        self.strides = array.strides
        self.row_bytes = abs(self.strides[0])
        reach = [(n - 1) * s for n, s in zip(self.shape[1:], self.strides[1:], strict=True) if n]
        self.low = sum(r for r in reach if r < 0)
        self.footprint = sum(map(abs, reach)) + self.dtype.itemsize
        if self.footprint > self.row_bytes and len(array) > 1:
            raise ValueError(
                f"{name}: expected a memory map whose rows lie one after another, got strides {array.strides}"
            )
        self.buffer = np.empty(0, np.uint8)
        self.span(0, len(array), self.size())

    def size(self) -> int:
        """Bytes of the file now."""
        return os.stat(self.path).st_size

    def span(self, start: int, stop: int, have: int) -> tuple[int, int]:
        """The first byte of some rows in the file, and how many bytes there are to the end of the last.

        OSError if the file does not have them.
        """
        first, last = self.begin + start * self.strides[0], self.begin + (stop - 1) * self.strides[0]
        low = min(first, last) + self.low
        size = max(first, last) + self.low + self.footprint - low
        if stop > start and low + size > have:
            raise OSError(
                f"{self.name}: {self.path} was truncated while it was mapped: rows {start} to {stop - 1} "
                f"end at byte {low + size}, but the file has {have} bytes"
            )
        return low, size

    def read(self, start: int, stop: int) -> np.ndarray:
        if self.private:
            self.span(start, stop, self.size())
            return np.array(self.array[start:stop])
        with io.FileIO(self.path) as file:
            low, size = self.span(start, stop, os.fstat(file.fileno()).st_size)
            if self.buffer.size < size:
                self.buffer = np.empty(size, np.uint8)
            room = self.buffer.data[:size]
            file.seek(low)
            while len(room):
                n = file.readinto(room[:PIECE_BYTES])
                if not n:
                    self.span(start, stop, os.fstat(file.fileno()).st_size)
                    raise OSError(f"{self.name}: {self.path} ends before row {stop - 1}")
                room = room[n:]
        at = self.begin + start * self.strides[0] - low
        return np.ndarray((stop - start, *self.shape[1:]), self.dtype, self.buffer, at, self.strides)


def mapped(array: Any) -> np.memmap | None:
    """The memory map that an array lies in, if it does."""
    while isinstance(array, np.ndarray):
        if isinstance(array, np.memmap) and getattr(array, "_mmap", None) is not None:
            return array
        array = array.base
    return None


def _rows_of(array, name: str):
    owner = mapped(array)
    if owner is not None:
        return _Mapped(array, owner, name)
    return _Slices(array)


class _Blocks(Rows):
    def __init__(self, context, blocks: Blocks, names: Names):
        self.context = context
        self.names = names
        self.x = _rows_of(blocks.x, names.x)
        self.y = _rows_of(blocks.y, names.y)
        w = blocks.sample_weight
        self.start, self.stop = 0, self.x.shape[0] if self.x.shape else 0
        program = context.program
        program.inputs(np.empty((0, *self.x.shape[1:]) if self.x.shape else (), self.x.dtype), names.x)
        n = self.rows = self.stop
        if n == 0:
            raise context.no_rows(names)
        context.targets(np.empty((0, *self.y.shape[1:]) if self.y.shape else (), self.y.dtype), 0, names.y)
        if self.y.shape[0] != n:
            raise ValueError(f"{names.y}: expected {n} rows, as many as {names.x} has, got {self.y.shape[0]}")
        self.w = None if w is None else context.program.weights(np.array(w), n, names.w)
        rows = blocks.rows
        if rows is None:
            wide = int(np.prod(self.x.shape[1:])) * context.dtype.itemsize
            rows = max(1, BLOCK_BYTES // max(1, self.x.row_bytes, wide, self.y.row_bytes))
        group = context.batch_size * context.accumulate
        self.block = -(-rows // group) * group

    def split(self, n: int) -> _Blocks:
        rest = object.__new__(_Blocks)
        rest.__dict__.update(self.__dict__)
        rest.start, rest.rows = self.start + n, self.rows - n
        self.stop, self.rows = self.start + n, n
        return rest

    def loaded(self) -> _Arrays:
        """All rows, in memory."""
        x = self.context.program.rows(self.x.read(self.start, self.stop), self.names.x)
        return _Arrays(self.context, x, self.targets(self.start, self.stop), self.w, self.names)

    def bounds(self) -> list[tuple[int, int]]:
        return [(at, min(at + self.block, self.stop)) for at in range(self.start, self.stop, self.block)]

    def targets(self, start: int, stop: int) -> np.ndarray:
        name = f"{self.names.y}[{start}:]" if start else self.names.y
        return self.context.targets(self.y.read(start, stop), stop - start, name)

    def labels(self) -> Iterator[np.ndarray]:
        for start, stop in self.bounds():
            yield self.targets(start, stop)

    def check(self, metrics):
        # Targets of one number a row are read through once, so that a wrong one is found before anything is trained.
        if len(self.y.shape) == 1:
            for y in self.labels():
                metrics.check(y)
        else:
            start, stop = self.bounds()[0]
            metrics.check(self.targets(start, stop))
        if self.w is not None:
            self.context.some_weight(self.w[self.start : self.stop], self.names.w)

    def parts(self, epoch):
        context, names = self.context, self.names
        bounds = self.bounds()
        turn: Any = range(len(bounds))
        shuffled = epoch is not None and context.shuffle
        if shuffled:
            turn = context.permutation(len(bounds), (context.seed + MIX * len(bounds)) % 2**64, epoch).tolist()
        for i in turn:
            start, stop = bounds[i]
            n = stop - start
            x = context.program.rows(self.x.read(start, stop), names.x)
            y = self.targets(start, stop)
            w = None if self.w is None else self.w[start:stop]
            if context.class_weights is not None:
                w = context.with_classes(y, w)
            order = None
            if shuffled and context.shuffles(n):
                order = context.permutation(n, (context.seed + MIX * i) % 2**64, epoch)
            yield Part(x, y, w, order, context.batch_size)


# iterables of batches -------------------------------------------------------------------------------------------------


class _Iterable(Source):
    def __init__(self, context, batches, names: Names, epochs: int):
        self.context = context
        self.names = names
        self.rows = None
        self.batches = batches
        self.training = False
        self.running: Iterator[Any] | None = None  # the iterator that the next epoch continues with, given `steps`
        self.sequence = hasattr(batches, "__len__") and hasattr(batches, "__getitem__")
        if self.sequence and len(batches) == 0:
            raise context.no_rows(names)
        if epochs > 1 and not self.sequence and iter(batches) is batches and context.steps is None:
            raise ValueError(
                f"{names.all}: {type(batches).__name__} is an iterator, which can be read only once, but epochs is "
                f"{epochs}: pass a list, a Sequence, an object whose __iter__ restarts each time, or steps_per_epoch"
            )

    def check(self, metrics):
        self.metrics = metrics
        if self.sequence:
            metrics.check(self.part([self.batches[0]], 0).y)

    def parts(self, epoch):
        context = self.context
        batches: Iterable[Any] = self.batches
        self.training = epoch is not None
        group = context.accumulate if self.training else 1
        if self.sequence:
            order: Any = range(len(self.batches))
            if self.training and context.shuffle:
                order = context.permutation(len(self.batches), context.seed, epoch).tolist()
            batches = (self.batches[i] for i in order)
        elif self.training and context.steps is not None:
            self.running = self.running or self.endless()
            batches = self.running
        found: list[Any] = []
        at = -1
        for at, batch in enumerate(batches):
            found.append(batch)
            if len(found) == group:
                yield self.part(found, at + 1 - group)
                found = []
        if found:
            yield self.part(found, at + 1 - len(found))
        if at < 0:
            raise ValueError(
                f"{self.names.all}: gave no batches. An iterator can be read only once: pass a list, a Sequence, or "
                "an object whose __iter__ restarts each time"
            )

    def endless(self) -> Iterator[Any]:
        """The batches, and again from the beginning where they can be gone over again."""
        found = True
        while found:
            found = False
            for batch in self.batches:
                found = True
                yield batch
        raise ValueError(
            f"{self.names.all}: ran out of batches in an epoch of {self.context.steps} steps: lower "
            "steps_per_epoch or epochs, or pass an object whose __iter__ restarts each time"
        )

    def part(self, batches: list[Any], first: int) -> Part:
        """Batches that make one step of the optimiser together, as one part."""
        parts = [self.one(batch, f"{self.names.all}: batch {first + i}") for i, batch in enumerate(batches)]
        if self.training:
            for part in parts:
                self.context.program.check_batches(part.batch_size, part.batch_size)
        if len(parts) == 1:
            return parts[0]
        sizes = [part.batch_size for part in parts]
        if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
            raise ValueError(
                f"accumulation_steps: expected batches of one size, the last may be smaller, got {sizes} rows"
            )
        w = None
        if any(part.w is not None for part in parts):
            w = np.concatenate([np.ones(len(p.x), self.context.dtype) if p.w is None else p.w for p in parts])
        y = np.concatenate([part.y for part in parts])
        return Part(_joined([part.x for part in parts], self.names.all), y, w, None, sizes[0])

    def one(self, batch, name: str) -> Part:
        if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
            raise TypeError(f"{name}: expected (x, y) or (x, y, sample_weight), got {_kind(batch)}")
        context = self.context
        x = context.program.rows(_array(batch[0]), f"{name}: x")
        n = len(x)
        if n == 0:
            raise ValueError(f"{name}: expected at least one row, got none")
        y = context.targets(batch[1], n, f"{name}: y")
        w = None
        if len(batch) == 3 and batch[2] is not None:
            w = context.program.weights(_array(batch[2]), n, f"{name}: sample_weight")
        if context.class_weights is not None:
            w = context.with_classes(y, w)
        self.metrics.check(y)
        return Part(x, y, w, None, n)


def _array(a):
    """a as an array, without touching it if it is one, or sparse."""
    return a if isinstance(a, (np.ndarray, list, tuple)) or is_sparse(a) else np.asarray(a)


def _joined(parts: list[Any], name: str):
    """The rows of batches, all arrays or all sparse, one after another."""
    dense = [isinstance(part, np.ndarray) for part in parts]
    if any(dense) and not all(dense):
        raise TypeError(f"{name}: expected batches of a step that are all sparse or all dense, got both")
    return np.concatenate(parts) if dense[0] else joined(parts)


def _kind(batch) -> str:
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return type(batch).__name__


# the choice -----------------------------------------------------------------------------------------------------------


def source_of(context: Any, x: Any, y: Any, w: Any, names: Names, epochs: int = 1, arrays: bool = False) -> Source:
    """The source for what a user has passed: arrays in any case, if `arrays`.

    Raises
    ------
    ValueError, TypeError
        If it is not what can be trained on.
    """
    if isinstance(x, Blocks):
        if y is not None or w is not None:
            raise ValueError(f"{names.y}: expected none with Blocks, which contains its own")
        return _Blocks(context, x, names)
    if y is not None or arrays:
        x = context.program.joined(x, names.x)
        if any(mapped(a) is not None for a in (x, y)):
            x, y = (a if mapped(a) is not None else np.asarray(a) for a in (x, y))
            return _Blocks(context, Blocks(x, y, w), names)
        return _Arrays(context, x, y, w, names)
    no_iterable = isinstance(x, (np.ndarray, dict, str, bytes)) or is_sparse(x)
    if no_iterable or not (hasattr(x, "__iter__") or hasattr(x, "__getitem__")):
        raise TypeError(
            f"{names.y}: expected targets, or an iterable of batches (x, y) as {names.x}, got None and "
            f"{type(x).__name__}"
        )
    if w is not None:
        raise ValueError(f"{names.w}: expected none with an iterable, whose batches may be (x, y, sample_weight)")
    return _Iterable(context, x, names, epochs)
