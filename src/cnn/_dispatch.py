"""Selects the compiled kernels: the instruction set at import, the dtype at each call of `kernels`.

The kernels are compiled once for each instruction set and dtype, into `_kernels_{isa}_{real}`. By default the best
instruction set that the processor supports is used; the environment variable CNN_ISA forces one. If a module cannot be
imported, an error is raised: there is no fallback to a slower one.
"""

import os
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from ._cpu import supported

KNOWN = ("v4", "v3", "baseline")  # x86-64 with AVX-512, with AVX2 and FMA; the platform's minimum
AVAILABLE: tuple[str, ...] = supported()


def _choose() -> str:
    forced = os.environ.get("CNN_ISA")
    if not forced:
        return AVAILABLE[0]
    if forced not in AVAILABLE:
        problem = "this processor cannot run it" if forced in KNOWN else "unknown instruction set"
        raise ImportError(
            f"CNN_ISA={forced!r}: {problem} (known: {', '.join(KNOWN)}; can run here: {', '.join(AVAILABLE)})"
        )
    return forced


ISA: str = _choose()

_REALS: dict[Any, str] = {}
for _name, _real in (("float32", "f32"), ("float64", "f64")):
    _REALS |= dict.fromkeys((_name, np.dtype(_name), np.dtype(_name).type), _real)
_loaded: dict[str, ModuleType] = {}


def kernels(dtype: Any) -> ModuleType:
    """The compiled kernels for a dtype.

    Parameters
    ----------
    dtype : {"float32", "float64"}, or the NumPy dtype or scalar type of that name

    Returns
    -------
    module
        `cnn._kernels_{ISA}_f32` or `_f64`; imported at the first call.

    Raises
    ------
    ValueError
        If `dtype` is another dtype or another name.
    TypeError
        If `dtype` is neither a string, nor a dtype, nor a type.
    """
    try:
        real = _REALS[dtype]
    except (KeyError, TypeError):
        error = ValueError if isinstance(dtype, (str, np.dtype, type)) else TypeError
        raise error(f"dtype: expected float32 or float64, got {dtype!r}") from None
    module = _loaded.get(real)
    if module is None:
        module = _loaded[real] = import_module(f"cnn._kernels_{ISA}_{real}")
    return module


kernels("float32")
