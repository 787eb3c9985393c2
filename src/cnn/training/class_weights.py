"""`class_weight` of `fit`: from a dict, or "balanced", to a weight for each class."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .._checks import number


def labels_of(y: np.ndarray) -> np.ndarray:
    """Targets as class indices (n,)."""
    if y.ndim == 2 and y.shape[1] == 1 and ((y == 0) | (y == 1)).all():
        return y[:, 0].astype(np.int64)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError("class_weight: expected targets that are class indices, or 0 and 1")
    return y


def weights_of_classes(wanted, blocks: Iterable[np.ndarray] | None, outputs: int, ignored: int | None) -> np.ndarray:
    """The weight of each class.

    Parameters
    ----------
    wanted : dict or "balanced"
        The argument `class_weight` of `fit`.
    blocks : iterable of ndarray, optional
        All targets; None if they are not known.
    outputs : int
        Of the model.
    ignored : int, optional
        The class index of rows that do not count.

    Returns
    -------
    ndarray of shape (max(2, outputs),)

    Raises
    ------
    ValueError, TypeError
        If `wanted` is not as described, names an unknown class, or the targets are no classes.
    """
    classes = max(2, outputs)
    weights = np.ones(classes)
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or not 0 <= key < classes:
                raise ValueError(f"class_weight: unknown class {key!r}: expected indices from 0 to {classes - 1}")
            weights[key] = number(f"class_weight[{key}]", value, 0)
        for y in blocks or ():
            labels_of(y)
        return weights
    if not (isinstance(wanted, str) and wanted == "balanced"):
        error = ValueError if isinstance(wanted, str) else TypeError
        raise error(f"class_weight: expected a dict or 'balanced', got {wanted!r}")
    if blocks is None:
        raise ValueError("class_weight: 'balanced' needs all targets in an array, not an iterable: pass a dict")
    counts = np.zeros(classes, np.int64)
    for y in blocks:
        labels = labels_of(y)
        if ignored is not None:
            labels = labels[labels != ignored]
        counts += np.bincount(labels, minlength=classes)
    there = counts > 0
    weights[there] = counts.sum() / (np.count_nonzero(there) * counts[there])
    return weights
