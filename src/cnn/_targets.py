"""The description of a loss for the kernels, and conversions and errors for targets that they cannot read directly.

The fast checks are in kernels/targets.pxi, which calls these functions if one of them fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ._arrays import as_array, converted


class Terms(NamedTuple):
    """A loss for a given number of outputs, as kernels/targets.pxi reads it."""

    name: str
    kind: int
    may_be_labels: bool
    may_be_numbers: bool
    per_target: int  # outputs of one target
    repeat: bool  # consecutive groups of that many outputs share a target
    chosen: bool  # targets may be a pair: a column for each row, and its target
    targets: int  # numbers of a row of targets
    mean: bool
    ignore_index: int
    ignore_nan: bool
    parameters: list[float]  # of the formula
    column: list[float] | None  # a number for each output
    high: float | None  # the largest valid target; `expected` describes valid targets
    expected: str


def terms(spec: Mapping[str, Any], outputs: int, kinds: Mapping[str, int], most: int, dtype: np.dtype) -> Terms:
    """The terms of a loss for this number of outputs.

    Parameters
    ----------
    spec : dict
        What `Loss.spec` returns: kind (a key of kinds), name, mean, parameters (numbers), targets ("numbers", "labels"
        or "labels or probabilities"), high, expected, per_target (default 1), repeat, ignore_nan, chosen, ignore_index,
        column (numbers, or one for all) and column_name.
    outputs : int
    kinds : dict
        The kernels' losses.
    most : int
        Maximum number of parameters of a formula.
    dtype : numpy.dtype
        Of the kernels.

    Raises
    ------
    ValueError
        If the loss does not fit this number of outputs, or a number is too large for the dtype.
    """
    name = spec["name"]
    if spec["kind"] not in kinds:
        raise ValueError(f"{name}: no kernel for {spec['kind']!r}; there are {', '.join(kinds)}")
    if spec["targets"] not in ("numbers", "labels", "labels or probabilities"):
        raise ValueError(f"{name}: unknown targets {spec['targets']!r}")
    if len(spec["parameters"]) > most:
        raise ValueError(f"{name}: at most {most} parameters, got {len(spec['parameters'])}")
    per_target = spec.get("per_target", 1)
    if outputs % per_target:
        raise ValueError(f"{name}: expected {per_target} outputs for each target, got {outputs} outputs")
    repeat = spec.get("repeat", False) and per_target > 1
    column = spec.get("column")
    if column is not None:
        column = [column] * outputs if isinstance(column, float) else list(column)
        if repeat:
            column *= outputs // per_target
        if len(column) != outputs:
            raise ValueError(
                f"{name}: {spec['column_name']} has {len(column)} entries, but there are {outputs} outputs"
            )
        for j, entry in enumerate(column):
            if not abs(entry) <= float(np.finfo(dtype).max):
                raise ValueError(f"{name}: {spec['column_name']}[{j}] is {entry}, too large for {dtype}")
    return Terms(
        name=name,
        kind=kinds[spec["kind"]],
        may_be_labels=spec["targets"] != "numbers",
        may_be_numbers=spec["targets"] != "labels",
        per_target=per_target,
        repeat=repeat,
        chosen=spec.get("chosen", False),
        targets=outputs if repeat else outputs // per_target,
        mean=spec["mean"],
        ignore_index=spec.get("ignore_index", -1),
        ignore_nan=spec.get("ignore_nan", False),
        parameters=spec["parameters"],
        column=column,
        high=spec.get("high"),
        expected=spec.get("expected", ""),
    )


def class_indices(given: np.ndarray, name: str, loss: Terms, outputs: int) -> np.ndarray:
    """Convert other forms of class indices: bools, whole floats, a column, one-hot rows."""
    expects = f"{name}: {loss.name} expects integer class indices"
    if given.dtype.kind == "O" and given.size and all(isinstance(one, (int, np.integer)) for one in given.flat):
        given = given.astype(np.int64)
    if given.dtype.kind not in "iufb" and given.size:
        text = given.dtype.kind in "US" or (given.dtype.kind == "O" and any(isinstance(one, str) for one in given.flat))
        mend = ": number them, classes, y = np.unique(y, return_inverse=True)" if text else ""
        raise TypeError(f"{expects}, got dtype {given.dtype}{mend}")
    if given.dtype.kind not in "iu":
        whole = given.astype(np.int64) if given.dtype.kind == "b" or np.isfinite(given).all() else None
        if whole is None or not (whole == given).all():
            raise TypeError(
                f"{expects}, got dtype {given.dtype} and numbers that are not whole, or not finite: for numeric "
                "targets use MSELoss or another regression loss"
            )
        given = whole
    if given.ndim == 2 and given.shape[1] == 1:
        return given[:, 0]
    if given.ndim == 2 and given.shape[1] == outputs:
        ones = given == 1
        if (given == ones).all() and (np.count_nonzero(ones, axis=1) == 1).all():
            return ones.argmax(axis=1)
    if given.ndim != 1:
        raise ValueError(
            f"{name}: {loss.name} expects class indices of shape (batch,), got {given.shape}; rows of shape "
            f"(batch, {outputs}) must have one 1 and zeros"
            + (", or be floats: probabilities" if loss.may_be_numbers else "")
        )
    return given


def refuse_index(given: np.ndarray, i: int, name: str, outputs: int) -> NoReturn:
    """ValueError for a class index out of range."""
    mend = ""
    if outputs == 1:
        mend = ": the model has one output; for two classes use BCEWithLogitsLoss, or an output for each class"
    elif given.min() == 1 and given.max() == outputs:
        mend = f": do the indices begin at 1? Pass {name} - 1"
    raise ValueError(f"{name}[{i}] is {given[i]}, expected a class index from 0 to {outputs - 1}{mend}")


def numbers(y: Any, batch: int, name: str, where: str, loss: Terms, outputs: int, dtype: np.dtype) -> Any:
    """Convert other forms of numeric targets: a vector for one output, a pair for chosen columns, one number for
    several outputs that share it."""
    if loss.chosen and isinstance(y, tuple):
        return _scattered(y, batch, name, outputs, dtype)
    axes = np.ndim(y)
    if axes == 1 and outputs == loss.per_target:
        y, axes = as_array(y, name)[:, None], 2
    if loss.repeat and axes == 2 and np.shape(y)[1] * loss.per_target == outputs:
        y = np.repeat(y, loss.per_target, axis=1)
    if axes == 1 and loss.targets > 1:
        raise ValueError(
            f"{name}: expected shape (batch, {loss.targets}){where}, got {np.shape(y)}: {loss.name} expects a number "
            "for each output; for class indices use CrossEntropyLoss"
        )
    return y


def _scattered(pair: tuple[Any, ...], batch: int, name: str, outputs: int, dtype: np.dtype) -> np.ndarray:
    """Convert a pair (columns, values) to rows of targets that are NaN except in the chosen column."""
    if len(pair) != 2:
        raise ValueError(f"{name}: expected a pair (columns, values), got a tuple of {len(pair)}")
    columns = as_array(pair[0], f"{name}[0]")
    values = converted(pair[1], f"{name}[1]", dtype)
    for which, given in enumerate((columns, values)):
        if given.shape not in ((batch,), (batch, 1)):
            raise ValueError(f"{name}[{which}]: expected shape ({batch},), a number for each row, got {given.shape}")
    if columns.dtype.kind not in "iu":
        raise TypeError(f"{name}[0]: expected integers, the columns that are chosen, got dtype {columns.dtype}")
    columns = columns.reshape(-1)
    bad = np.flatnonzero((columns < 0) | (columns >= outputs))
    if bad.size:
        raise ValueError(f"{name}[0][{bad[0]}] is {columns[bad[0]]}, expected a column from 0 to {outputs - 1}")
    rows = np.full((batch, outputs), np.nan, dtype)
    rows[np.arange(batch), columns] = values.reshape(-1)
    return rows
