"""Checks of arguments that are numbers or choices. Errors name the argument and the value."""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np


def needed(who: str, module: str, install: str) -> Any:
    """An optional package; ImportError, which says how to install it, if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{who} needs {module}: pip install {install}") from error


def users_line() -> int:
    """The `stacklevel` with which the caller's warning shows the line outside of the library that led to it."""
    level, frame = 1, sys._getframe(1)
    package = __name__.partition(".")[0]
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level


def number(name: str, value, low: float = -np.inf, high: float = np.inf) -> float:
    """value as a float, if it is a finite number of at least low and below high.

    Raises
    ------
    TypeError
        If it is not a real number; bool is not accepted.
    ValueError
        If it is out of range, or not finite.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (np.isfinite(value) and low <= value < high):
        at_least = "" if low == -np.inf else f" of at least {low:g}"
        below = "" if high == np.inf else f" and below {high:g}"
        raise ValueError(f"{name}: expected a finite number{at_least}{below}, got {value}")
    return float(value)


def positive(name: str, value) -> float:
    """value as a float, if it is a finite number above 0; errors as those of `number`."""
    if number(name, value) <= 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}")
    return float(value)


def fraction(name: str, value) -> float:
    """value as a float, if it is a number from 0 to 1; errors as those of `number`."""
    if not 0 <= number(name, value) <= 1:
        raise ValueError(f"{name}: expected a number from 0 to 1, got {value:g}")
    return float(value)


def integer(name: str, value, low: float = -np.inf, high: float = np.inf) -> int:
    """value as an int, if it is an integer of at least low and at most high.

    Raises
    ------
    TypeError
        If it is not an integer; bool is not accepted.
    ValueError
        If it is out of range.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {value!r}")
    if value < low:
        raise ValueError(f"{name}: expected at least {low}, got {value}")
    if value > high:
        raise ValueError(f"{name}: expected at most {high}, got {value}")
    return int(value)


def seed_of(value) -> int | None:
    """A seed: an int of at least 0 and below 2**63, None, or the next number of a `numpy.random.Generator`."""
    if value is None:
        return None
    if isinstance(value, np.random.Generator):
        return int(value.bit_generator.random_raw()) & (2**63 - 1)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"seed: expected an int, a numpy.random.Generator or None, got {value!r}")
    if not 0 <= value < 2**63:
        raise ValueError(f"seed: expected at least 0 and below 2**63, got {value}")
    return int(value)


def flag(name: str, value) -> bool:
    """value, if it is True or False: TypeError otherwise."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def choice(name: str, value, known: Sequence[str]) -> Any:
    """value, if it is in known: ValueError otherwise."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def in_range(name: str, array: np.ndarray, dtype: np.dtype) -> None:
    """ValueError if a value overflows the dtype, or is negative in an array that must not have negative values."""
    if array.dtype.kind == "f" and array.dtype != dtype:
        with np.errstate(over="ignore"):
            lost = np.isinf(array.astype(dtype)) & np.isfinite(array)
        if lost.any():
            where, value = _first(name, array, lost)
            raise ValueError(f"{where} is {value}, too large for {dtype}: build the model with dtype='float64'")
    if name.endswith(("running_var", "num_batches_tracked")) and (array < 0).any():
        where, value = _first(name, array, array < 0)
        raise ValueError(f"{where} is {value}, expected at least 0")
    if name.endswith("num_batches_tracked") and (array > 2**63 - 1).any():
        raise ValueError(f"{name} is {array.max()}, expected at most 2**63 - 1")


def _first(name: str, array: np.ndarray, which: np.ndarray) -> tuple[str, Any]:
    """The name and value of the first selected element."""
    place = np.unravel_index(which.argmax(), array.shape)
    return f"{name}[{', '.join(map(str, place))}]" if place else name, array[place]


def foreign(value: Any, state: Any) -> str | None:
    """The owner of an array's memory, if that is a PyTorch tensor or bytes: its weights are then (out, in).

    An OrderedDict comes from `state_dict`: its arrays are (in, out), even if pickle restored them from bytes.
    """
    if not isinstance(value, np.ndarray) or value.size < 2 or not value.flags.c_contiguous:
        return None
    base: Any = value
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    if type(base).__module__.partition(".")[0] == "torch":
        return "a tensor of PyTorch"
    if isinstance(base, (bytes, bytearray)) and not isinstance(state, OrderedDict):
        return "bytes, as safetensors.numpy.load_file gives it"
    return None


def transposed(expected: tuple[int, ...], got: tuple[int, ...]) -> str:
    """A hint for a weight with exchanged axes."""
    hint = ": cnn's weights are (in, out), those of PyTorch and of files (out, in): use cnn.load(path), or .T"
    return hint if len(expected) == 2 and got == expected[::-1] else ""
