"""Arrays for the tests: the same numbers in every layout, results with guards, covering arrays."""

import functools
import inspect
import itertools

import numpy as np
import pytest

LAYOUTS = (
    "contiguous",
    "rows apart",
    "columns apart",
    "fortran",
    "rows reversed",
    "read-only",
    "unaligned",
    "byte-swapped",
    "odd stride",
)


def laid_out(array, layout):
    """An array equal to `array` (1-D or 2-D) that lies in memory as `layout` says."""
    array = np.ascontiguousarray(array)
    between = np.nan if array.dtype.kind == "f" else -1  # must not be read
    if layout == "rows apart":
        apart = np.full((array.shape[0], 3, *array.shape[1:]), between, array.dtype)[:, 1]
    elif layout == "columns apart":
        apart = np.full((*array.shape, 2), between, array.dtype)[..., 1]
    elif layout == "fortran":
        apart = np.empty(array.shape, array.dtype, order="F")
    elif layout == "rows reversed":
        apart = np.empty_like(array)[::-1]
    elif layout == "unaligned":
        apart = np.frombuffer(bytearray(array.nbytes + 1), array.dtype, array.size, offset=1)
        apart = apart.reshape(array.shape)
    elif layout == "byte-swapped":
        return array.astype(array.dtype.newbyteorder())
    elif layout == "odd stride":  # a row's bytes are no multiple of an element's
        record = np.dtype([("row", array.dtype, array.shape[1:]), ("odd", "u1")])
        apart = np.zeros(len(array), record)["row"]
    else:
        apart = array.copy()
    apart[...] = array
    apart.flags.writeable = layout != "read-only"
    return apart


class Guarded:
    """An array to put results into, with memory on both sides that must stay as it is."""

    WIDTH = 64  # elements: as wide as the widest vector and more

    def __init__(self, shape, dtype):
        size = int(np.prod(shape))
        self.memory = np.full(size + 2 * self.WIDTH, 7, dtype)
        self.array = self.memory[self.WIDTH : self.WIDTH + size].reshape(shape)
        self.array[...] = np.nan

    def untouched(self):
        return (self.memory[: self.WIDTH] == 7).all() and (self.memory[-self.WIDTH :] == 7).all()


def unit_roundoff(dtype):
    return float(np.finfo(dtype).eps) / 2


def covering(**factors):
    """Rows (dicts) that hold every pair of values of any two factors, few enough to run them all.

    The full product of two factors is often all that matters: a fault that needs three values to
    meet is rare (Kuhn, Wallace and Gallo, IEEE TSE 30, 2004). Built factor by factor, as in IPO
    (Lei and Tai, 1998): each row takes the value that covers the most new pairs, then rows are
    added for the pairs that are left. Factors are best given in falling order of size.
    """
    names = list(factors)
    first, second = names[:2]
    rows = [{first: a, second: b} for a, b in itertools.product(factors[first], factors[second])]
    for name in names[2:]:
        others = names[: names.index(name)]
        missing = {(other, a, b) for other in others for a in factors[other] for b in factors[name]}

        def pairs(row, value, others=others):
            return {(other, row[other], value) for other in others if other in row}

        for i, row in enumerate(rows):
            values = factors[name][i % len(factors[name]) :] + factors[name][: i % len(factors[name])]
            row[name] = max(values, key=lambda v: len(pairs(row, v) & missing))
            missing -= pairs(row, row[name])
        for other, a, b in sorted(missing, key=repr):
            rows.append({n: factors[n][len(rows) % len(factors[n])] for n in others})
            rows[-1] |= {other: a, name: b}
    return rows


def row_id(row):
    """A test's name from a row of `covering`."""
    return "-".join(f"{value}" for value in row.values())


def zeros_of_padding(view):
    """The numbers of a model's parameter block that lie behind the rows of a weight view."""
    if view.strides[0] < view.strides[1]:  # kept transposed
        view = view.T
    row = view.strides[0] // view.itemsize
    whole = np.lib.stride_tricks.as_strided(view, (view.shape[0], row), view.strides)
    return whole[:, view.shape[1] :]


def looped(names, values):
    """`pytest.mark.parametrize` in one test, for cases that are many and quick: an error says which it was."""
    names = names.split(", ")

    def decorate(test):
        signature = inspect.signature(test)

        @functools.wraps(test)
        def run(**fixtures):
            for value in values:
                case = dict(zip(names, value if len(names) > 1 else [value], strict=True))
                try:
                    test(**fixtures, **case)
                except (Exception, pytest.fail.Exception) as error:
                    raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error

        kept = [parameter for name, parameter in signature.parameters.items() if name not in names]
        run.__signature__ = signature.replace(parameters=kept)
        return run

    return decorate
