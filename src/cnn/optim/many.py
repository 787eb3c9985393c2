"""Optimisers of many models as one: those of the members of an `Ensemble`, whose numbers may be arrays."""

from __future__ import annotations

import copy
import inspect
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .._configurable import Configurable, Public, arguments_of, plain, settable, unknown


def has_arrays(value: Any) -> bool:
    """Whether an argument is a 1-D array of numbers, or has one inside: one number for each member."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1
    if isinstance(value, dict):
        return any(map(has_arrays, value.values()))
    return isinstance(value, (tuple, list)) and any(map(has_arrays, value))


class Many(Public):
    """Objects of one class, one of each member, as one, as `ManyOptimizers` has them: optimisers or schedules."""

    def __init__(self, each: list[Any], fitting: Callable[[], bool] = bool) -> None:
        self.__dict__.update(_each=each, _fitting=fitting)

    def __getstate__(self) -> dict[str, Any]:
        return {"_each": self._each, "_fitting": bool}  # for copies and pickle

    def __len__(self) -> int:
        return len(self._each)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        values = [getattr(one, name) for one in self._each]
        if inspect.ismethod(values[0]):
            raise unknown(type(self).__name__, name, settable(self._each[0]))
        return _common(values, self._fitting)

    def __setattr__(self, name: str, value: Any) -> None:
        values = parts_of(name, value, len(self))
        tried = [copy.copy(one) for one in self._each]
        for one, part in zip(tried, values, strict=True):
            setattr(one, name, part)
        if self._fitting():
            self._check_in_fit(name, tried)
        for one, part in zip(self._each, values, strict=True):
            setattr(one, name, part)

    def _check_in_fit(self, name: str, tried: list[Any]) -> None:
        """RuntimeError if an attribute cannot be set while `fit` runs, as in these copies."""
        raise RuntimeError(f"schedule: its {name} cannot be set while fit runs")

    def __dir__(self) -> list[str]:
        return settable(self._each[0])

    def __repr__(self) -> str:
        if len(set(map(type, self._each))) > 1:
            return reprlib.repr(self._each)
        shown: dict[str, None] = {}
        for one in self._each:
            default = arguments_of(type(one))
            given = one.get_config().items()
            shown |= {n: None for n, a in given if one._shows(n, n not in default or a != default[n])}
        texts = []
        with np.printoptions(threshold=8, edgeitems=2):
            for name in shown:
                texts.append(f"{name}={_common([one._argument(name) for one in self._each], self._fitting)!r}")
        return f"{type(self._each[0]).__name__}({', '.join(texts)})"


class ManyOptimizers(Many):
    """The optimisers of the members of an `Ensemble`: `Ensemble.optimizer`, and what an optimiser's class returns if
    hyper-parameters are arrays, as in ``Adam(lr=np.geomspace(1e-4, 1e-1, 256))``.

    Reading an attribute gives what all have, or an array of shape (members,) where they differ. Setting it sets that of
    all, to one value or to those of such an array; if one is invalid, none is changed.

    Parameters
    ----------
    each : list of Optimizer
    fitting : callable
        Whether `fit` runs, where some attributes cannot be set.
    """

    @classmethod
    def of_arrays(cls, kind: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ManyOptimizers:
        """Optimisers of a class, of which number i has element i of each array.

        Parameters
        ----------
        kind : type
            The optimiser's class.
        args : tuple
        kwargs : dict

        Returns
        -------
        ManyOptimizers

        Raises
        ------
        ValueError
            If the arrays have different lengths, or an argument is invalid.
        """
        lengths = sorted(_lengths([args, kwargs]))
        if lengths[0] != lengths[-1]:
            raise ValueError(
                f"{kind.__name__}: expected arrays of one length, got {lengths[0]} and {lengths[-1]} numbers"
            )
        own = (copy.deepcopy(_picked((args, kwargs), i)) for i in range(lengths[0]))
        return cls([kind(*args, **kwargs) for args, kwargs in own])

    def __repr__(self) -> str:
        return f"{super().__repr__()} of {len(self)} members"

    def _check_in_fit(self, name: str, tried: list[Any]) -> None:
        if name == "schedule" or [one.states for one in tried] != [one.states for one in self._each]:
            raise RuntimeError(f"optimizer: its {name} cannot be set, or turned on or off, while fit runs")


class _ManyGroups(dict[str, Any]):
    """A group of layers of all members. Setting its lr or weight_decay sets those of all."""

    def __init__(self, groups: tuple[Any, ...], fitting: Callable[[], bool]):
        super().__init__({key: _common([group[key] for group in groups], fitting) for key in groups[0]})
        self._groups = groups

    def __setitem__(self, key, value):
        values = parts_of(key, value, len(self._groups))
        for group, part in zip(self._groups, values, strict=True):
            group.copied()[key] = part
        for group, part in zip(self._groups, values, strict=True):
            group[key] = part
        super().__setitem__(key, value)


def _common(values: list[Any], fitting: Callable[[], bool]) -> Any:
    """What values of the members have in common, or an array of them."""
    first, n = values[0], len(values)
    alike = all(type(value) is type(first) for value in values)
    if alike and isinstance(first, Configurable):
        return Many(values, fitting)
    if alike and isinstance(first, dict):
        return _ManyGroups(tuple(values), fitting)
    if alike and isinstance(first, (list, tuple)) and all(len(value) == len(first) for value in values):
        return type(first)(_common(list(parts), fitting) for parts in zip(*values, strict=True))
    if alike and isinstance(first, np.ndarray):
        array = np.stack(values)
    elif all(plain(value) == plain(first) for value in values):
        return first
    else:
        array = np.empty(n, type(first) if alike and isinstance(first, (bool, int, float)) else object)
        array[:] = values
    array.flags.writeable = False  # it is a copy
    return array


def parts_of(name: str, value: Any, members: int) -> list[Any]:
    """The values of each member, of its own."""
    for length in [len(value)] if isinstance(value, Many) else _lengths(value):
        if length != members:
            raise ValueError(f"{name}: expected one value, or an array of {members}, one a member, got {length}")
    return [copy.deepcopy(_picked(value, i)) for i in range(members)]


def _lengths(value: Any) -> list[int]:
    if isinstance(value, np.ndarray):
        return [len(value)] if value.ndim == 1 else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [n for part in parts for n in _lengths(part)]


def _picked(value: Any, i: int) -> Any:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.item(i)
    if isinstance(value, Many):
        return value._each[i]
    if isinstance(value, dict):
        return {key: _picked(part, i) for key, part in value.items()}
    if isinstance(value, (tuple, list)) and has_arrays(value):
        return type(value)(_picked(part, i) for part in value)
    return value
