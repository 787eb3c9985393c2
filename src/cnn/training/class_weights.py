"""`class_weight`: from a dict, or "balanced", to a weight for each class, and from there to the weights of rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .._checks import number
from .data import classes_of


def row_weights(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weights of rows with these targets, by `weights_of_classes`."""
    if weights.ndim == 2:
        return np.where(_decisions(y), weights[:, 1], weights[:, 0]).prod(axis=1)
    if y.ndim == 2 and y.shape[1] > 1:
        return y @ weights
    return weights[np.clip(_labels(y), 0, len(weights) - 1)]  # a row that is ignored may have any label


def weights_of_classes(
    wanted: Any, blocks: Iterable[np.ndarray] | None, outputs: int, ignored: int | None, kind: str | None
) -> np.ndarray:
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
    kind : str or None
        The loss's `targets`: "probabilities" with several outputs are several decisions a row.

    Returns
    -------
    ndarray of shape (max(2, outputs),), or (outputs, 2)
        (outputs, 2): where each row has several decisions, for each the weights of no and yes. They are multiplied.

    Raises
    ------
    ValueError, TypeError
        If `wanted` is not as described, names an unknown class, or the targets are no classes.
    """
    several = kind == "probabilities" and outputs > 1
    weights = np.ones((outputs, 2) if several else max(2, outputs))
    if isinstance(wanted, dict):
        for key, value in wanted.items():
            if isinstance(key, bool) or not isinstance(key, (int, np.integer)) or not 0 <= key < len(weights):
                raise ValueError(f"class_weight: unknown class {key!r}: expected indices from 0 to {len(weights) - 1}")
            weights[(key, 1) if several else key] = number(f"class_weight[{key}]", value, 0)
        for y in blocks or ():
            _counts(y, weights, ignored, kind)
        return weights
    if not (isinstance(wanted, str) and wanted == "balanced"):
        error = ValueError if isinstance(wanted, str) else TypeError
        raise error(f"class_weight: expected a dict or 'balanced', got {wanted!r}")
    if blocks is None:
        raise ValueError("class_weight: 'balanced' needs all targets in an array, not an iterable: pass a dict")
    counts = sum((_counts(y, weights, ignored, kind) for y in blocks), np.zeros(weights.shape))
    there = counts > 0
    shares = counts.sum(axis=-1, keepdims=True) / np.count_nonzero(there, axis=-1, keepdims=True)
    return np.where(there, shares / np.where(there, counts, 1), 1.0)


def _counts(y: np.ndarray, weights: np.ndarray, ignored: int | None, kind: str | None) -> np.ndarray:
    """How many rows, or by the classes' probabilities what part of them, each class has; of the weights' shape."""
    if weights.ndim == 2:
        yes = _decisions(y).sum(axis=0)
        return np.stack([len(y) - yes, yes], axis=1).astype(np.float64)
    if y.ndim == 2 and y.shape[1] > 1 and (kind == "labels" or classes_of(y) is not None):
        return y.sum(axis=0, dtype=np.float64)
    labels = _labels(y)
    if ignored is not None:
        labels = labels[labels != ignored]
    return np.bincount(labels, minlength=len(weights)).astype(np.float64)


def _labels(y: np.ndarray) -> np.ndarray:
    labels = classes_of(y)
    if labels is None:
        raise ValueError("class_weight: expected targets that are class indices, 0 and 1, or one-hot rows")
    return labels


def _decisions(y: np.ndarray) -> np.ndarray:
    if not ((y == 0) | (y == 1)).all():
        raise ValueError("class_weight: expected targets 0 and 1 in each column")
    return y == 1
