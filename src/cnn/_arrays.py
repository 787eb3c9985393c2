"""Conversions and errors for arrays that the kernels cannot read directly.

The fast checks are in kernels/arrays.pxi, which calls these functions if one of them fails.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from ._configurable import BATCH_SIZE


def as_array(a: Any, name: str) -> np.ndarray:
    """a as a NumPy array, without a copy if possible: by the buffer protocol, __array__ or DLPack.

    Raises
    ------
    TypeError
        If its memory is not accessible: a tensor that requires grad, or on another device.
    """
    try:
        if hasattr(a, "__dlpack__") and not hasattr(a, "__array__"):
            return np.from_dlpack(a)
        return np.asarray(a)
    except (RuntimeError, BufferError, TypeError) as error:
        raise TypeError(f"{name}: {type(a).__name__} cannot be read as an array: {error}") from error
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name}: {type(a).__name__} cannot be read as an array: {error}") from error


def real_array(a: Any, name: str) -> np.ndarray:
    """as_array, and TypeError unless it consists of real numbers."""
    array = as_array(a, name)
    if array.dtype.kind == "O" and _is_frame(a) and not _odd_columns(a):
        array = a.to_numpy(np.float64)  # columns of several types
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}{_mend_of(a, array)}")
    return array


def converted(a: Any, name: str, dtype: np.dtype) -> np.ndarray:
    """a as an array of this dtype: without a copy if possible, else a C-contiguous copy."""
    array = real_array(a, name)
    return array if array.dtype == dtype else np.ascontiguousarray(array, dtype).reshape(array.shape)


def side_by_side(a: Any, columns: int, name: str, dtype: np.dtype) -> Any:
    """Concatenate a list of matrices whose columns add up to the model's inputs; anything else is returned as is."""
    if not isinstance(a, (list, tuple)) or len(a) < 2 or not all(len(getattr(one, "shape", ())) == 2 for one in a):
        return a
    arrays = [real_array(one, f"{name}[{i}]") for i, one in enumerate(a)]
    rows, widths = [len(one) for one in arrays], [one.shape[1] for one in arrays]
    if sum(widths) != columns:
        if widths == [columns] * len(widths):  # a leading axis
            return a
        raise ValueError(
            f"{name}: expected arrays whose columns add up to {columns}, got {' + '.join(map(str, widths))} = "
            f"{sum(widths)}"
        )
    if len(set(rows)) > 1:
        raise ValueError(f"{name}: expected arrays with the same number of rows, got {', '.join(map(str, rows))}")
    return np.concatenate(arrays, axis=1, dtype=dtype)


def flat(a: Any, leading: tuple[int, ...], name: str) -> Any:
    """Merge these leading axes of an array, or of each array of a tuple, into one; None stays None."""
    if a is None:
        return None
    if isinstance(a, tuple):
        return tuple([flat(one, leading, name) for one in a])
    a = as_array(a, name)
    if a.shape[: len(leading)] != leading:
        raise ValueError(f"{name}: expected the leading axes of x, {leading}, got shape {a.shape}")
    return a.reshape((-1, *a.shape[len(leading) :]))


def refuse_matrix(array: np.ndarray, columns: int, name: str, where: str) -> NoReturn:
    """ValueError for an array that is not a matrix with this number of columns; columns < 0: with any number."""
    mend = ""
    if array.ndim == 1 and array.size > 1 and columns in (1, -1):
        mend = ": [:, None] makes it a column" if columns == 1 else ": [None, :] makes it a row, [:, None] a column"
    elif array.ndim == 2 and array.shape[0] == columns:
        mend = ": are the axes exchanged? .T exchanges them"
    wanted = f"(batch, {columns})" if columns >= 0 else "(rows, columns)"
    raise ValueError(f"{name}: expected shape {wanted}{where}, got {array.shape}{mend}")


def refuse_vector(array: np.ndarray, n: int, name: str) -> NoReturn:
    """ValueError for an array that does not have the shape (n,)."""
    mend = f": .reshape({n}) makes it a vector" if array.size == n and array.ndim > 1 else ""
    if not array.ndim and name == "sample_weight":
        mend = f": {BATCH_SIZE}"
    raise ValueError(f"{name}: expected shape ({n},), got {array.shape}{mend}")


def refuse_out(out: Any, shape: tuple[int, ...], dtype: np.dtype, name: str) -> NoReturn:
    """TypeError or ValueError for an `out` that cannot hold results of this shape and dtype."""
    if not isinstance(out, np.ndarray):
        mend = f": {BATCH_SIZE}" if isinstance(out, int) else ""
        raise TypeError(f"{name}: expected a NumPy array, got {type(out).__name__}{mend}")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"{name}: expected shape {shape} and dtype {dtype}, got {out.shape} and {out.dtype}")
    if not out.flags.behaved:
        raise ValueError(f"{name}: expected a writeable, aligned array")
    raise ValueError(f"{name}: expected a C-contiguous array, got strides {out.strides}")


def _is_frame(a: Any) -> bool:
    return hasattr(getattr(a, "dtypes", None), "items")


def _odd_columns(frame: Any) -> list[str]:
    """Descriptions of the columns of a DataFrame that are not numeric or have missing values."""
    return [
        f"column {key!r} is {kind}"
        for key, kind in frame.dtypes.items()
        if getattr(kind, "kind", "O") not in "fiub" or (not isinstance(kind, np.dtype) and frame[key].isna().any())
    ]


def _mend_of(a: Any, array: np.ndarray) -> str:
    """A hint for an object that does not consist of real numbers; `array` is the object as a NumPy array."""
    if hasattr(a, "toarray"):
        return f": {type(a).__name__} is sparse: pass .toarray()"
    if _is_frame(a) and (odd := _odd_columns(a)):
        return (
            f": {', '.join(odd[:5])}{', ...' * (len(odd) > 5)}: encode categories and text with "
            "pandas.get_dummies, fill missing values with .fillna, or drop the column"
        )
    if str(getattr(a, "dtype", "")) == "category":
        return ": pass the category codes, .cat.codes"
    if hasattr(a, "__next__"):
        return f", of {type(a).__name__}: pass an iterable of batches (x, y) as x, without y, or np.array(list(x))"
    if array.dtype.kind == "O" and array.ndim == 0:
        return f", of {type(a).__name__}" + (": a dict's arrays are x[key]" if isinstance(a, dict) else "")
    if array.dtype.kind == "O":
        return ": if all elements are numbers, pass .astype(float)"
    return ": encode text as numbers" if array.dtype.kind in "US" else ""


def training_state(
    arrays: Any, states: int, averages: bool, statistics: int, counters: int
) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """The names of the vectors in a training state, its counts, and the exact statistics if it has any.

    Raises
    ------
    ValueError
        If it is that of another network or optimiser.
    """
    names = [f"state.{block}" for block in range(states)]
    ema = ["ema"] if averages and "ema" in arrays else []
    exact = arrays.get("statistics") if statistics else None  # files of version 0.1 have none
    expected = [*names, "counters"]
    if missing := [name for name in expected if name not in arrays]:
        raise ValueError(f"training state: missing {', '.join(missing)}")
    known = expected + ema + ["statistics"] * (exact is not None)
    if unknown := [name for name in arrays if name not in known]:
        raise ValueError(f"training state: unknown {', '.join(unknown)}; expected {', '.join(expected)}")
    if exact is not None and np.shape(exact) != (statistics,):
        raise ValueError(f"statistics: expected shape ({statistics},), got {np.shape(exact)}")
    counts = np.ascontiguousarray(arrays["counters"], np.int64)
    if counts.shape != (counters,) or counts.min() < 0:
        raise ValueError(f"counters: expected {counters} counts, got {counts}")
    return names + ema, counts, None if exact is None else np.ascontiguousarray(exact, np.float64)
