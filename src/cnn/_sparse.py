"""Sparse matrices: objects with a method `tocsr`, such as SciPy's, are checked and converted to `SparseRows`."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import converted, refuse_matrix

MOST_COLUMNS = 2**31 - 1


def is_sparse(x: Any) -> bool:
    """Whether x is a sparse matrix that converts to CSR, or SparseRows."""
    return hasattr(x, "tocsr") or type(x) is SparseRows


class SparseRows:
    """Sparse rows in CSR format for the kernels: row i has the entries `start[i]` to `start[i + 1] - 1`.

    `start` and `column` are checked copies, so that later changes by the caller cannot invalidate them. Values of the
    right dtype are not copied.

    Parameters
    ----------
    start : ndarray of shape (rows + 1,), int64
    column : ndarray, int32
    value : ndarray
    columns : int

    Attributes
    ----------
    shape : tuple of int
    """

    start: np.ndarray
    column: np.ndarray
    value: np.ndarray
    __slots__ = "column", "shape", "start", "value"

    def __init__(self, start: np.ndarray, column: np.ndarray, value: np.ndarray, columns: int):
        self.start, self.column, self.value = start, column, value
        self.shape: Any = (len(start) - 1, columns)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> SparseRows:
        """Select rows by a slice, or by an array of indices or bools. Slices share memory."""
        if isinstance(rows, slice) and rows.step in (None, 1):
            first, stop, _ = rows.indices(len(self))
            return SparseRows(self.start[first : max(first, stop) + 1], self.column, self.value, self.shape[1])
        rows = np.arange(len(self))[rows]
        begin = self.start[rows]
        start = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(self.start[rows + 1] - begin, out=start[1:])
        entries = np.repeat(begin - start[:-1], np.diff(start)) + np.arange(start[-1])
        return SparseRows(start, self.column[entries], self.value[entries], self.shape[1])

    @property
    def entries(self) -> slice:
        """The range of the rows' entries."""
        return slice(self.start[0], self.start[-1])

    def copy(self) -> SparseRows:
        return SparseRows(self.start, self.column, self.value.copy(), self.shape[1])

    def most_entries(self, order: np.ndarray | None, first: int, stop: int, batch_size: int) -> int:
        """The largest number of entries in a batch, over rows first, ..., stop - 1 of an order."""
        if order is None and stop - first <= batch_size:
            return int(self.start[stop] - self.start[first])
        rows = np.arange(first, stop) if order is None else order[first:stop]
        counts = self.start[rows + 1] - self.start[rows]
        return int(np.add.reduceat(counts, np.arange(0, stop - first, min(batch_size, stop - first))).max())


def joined(parts: list[SparseRows]) -> SparseRows:
    """Concatenate the rows of several."""
    ends = np.cumsum([0] + [part.start[-1] - part.start[0] for part in parts])
    starts = [part.start[:-1] - part.start[0] + end for part, end in zip(parts, ends, strict=False)]
    column, value = (np.concatenate([getattr(p, name)[p.entries] for p in parts]) for name in ("column", "value"))
    return SparseRows(np.concatenate([*starts, ends[-1:]]), column, value, parts[0].shape[1])


def sparse_rows(x: Any, columns: int, name: str, where: str, dtype: np.dtype) -> SparseRows:
    """Check and convert a sparse matrix with this number of columns.

    Raises
    ------
    TypeError
        If its values are not real.
    ValueError
        If it has the wrong shape, or its arrays are inconsistent.
    """
    if type(x) is SparseRows:
        return x
    shape = tuple(x.shape)
    if len(shape) != 2 or shape[1] != columns:
        refuse_matrix(x, columns, name, where)
    if columns > MOST_COLUMNS:
        raise ValueError(f"{name}: expected at most {MOST_COLUMNS} columns in a sparse matrix, got {columns}")
    csr = x.tocsr()
    start, indices, value = np.array(csr.indptr, np.int64), np.asarray(csr.indices), np.asarray(csr.data)
    damaged = f"{name}: damaged {type(x).__name__}"
    if start.shape != (shape[0] + 1,) or start[0] != 0 or (np.diff(start) < 0).any():
        raise ValueError(f"{damaged}: expected an indptr of {shape[0] + 1} non-decreasing numbers from 0")
    n = start[-1]
    if n > min(indices.size, value.size):
        raise ValueError(
            f"{damaged}: its indptr has {n} entries, but there are {indices.size} indices and {value.size} numbers"
        )
    indices = indices[:n]
    column = np.array(indices, np.int32)  # this copy is checked, and used
    wide = indices.dtype != np.int32
    if n and (column.min() < 0 or column.max() >= columns or (wide and (column != indices).any())):
        place = int(np.argmax((indices < 0) | (indices >= columns)))
        row = int(np.searchsorted(start, place, side="right")) - 1
        raise ValueError(f"{damaged}: row {row} has an entry in column {indices[place]}, of {columns} columns")
    return SparseRows(start, column, np.require(converted(value[:n], name, dtype), requirements=["C", "A"]), columns)
