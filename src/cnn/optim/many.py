"""Optimisers of many models: hyper-parameters that are arrays, with a number for each model of an `Ensemble`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np


def has_arrays(value: Any) -> bool:
    """Whether an argument is a 1-D array of numbers, or has one inside: one number for each member."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    if isinstance(value, dict):
        return any(map(has_arrays, value.values()))
    return isinstance(value, (tuple, list)) and any(map(has_arrays, value))


class ManyOptimizers:
    """What an optimiser's class returns if hyper-parameters are arrays: ``Adam(lr=np.geomspace(1e-4, 1e-1, 256))``.

    For `Ensemble`: member i gets its own optimiser, with element i of each array.

    Parameters
    ----------
    cls : type
        The optimiser's class.
    args : tuple
    kwargs : dict

    Raises
    ------
    ValueError
        If the arrays have different lengths.
    """

    def __init__(self, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.cls: type = cls
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        lengths = sorted(_lengths([args, kwargs]))
        if len(set(lengths)) > 1:
            raise ValueError(
                f"{cls.__name__}: expected arrays of one length, got {lengths[0]} and {lengths[-1]} numbers"
            )
        self.members: int = lengths[0]
        self.of(0)

    def of(self, i: int) -> Any:
        """The optimiser of member i.

        Parameters
        ----------
        i : int

        Returns
        -------
        Optimizer
        """
        return self.cls(*copy.deepcopy(_picked(self.args, i)), **copy.deepcopy(_picked(self.kwargs, i)))

    def __repr__(self) -> str:
        parts = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.kwargs.items())]
        return f"{self.cls.__name__}({', '.join(parts)})"


def _lengths(value: Any) -> list[int]:
    if isinstance(value, np.ndarray):
        return [len(value)] if value.ndim == 1 else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [n for part in parts for n in _lengths(part)]


def _picked(value: Any, i: int) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value[i].item()
    if isinstance(value, dict):
        return {key: _picked(part, i) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and has_arrays(value):
        return type(value)(_picked(part, i) for part in value)
    return value
