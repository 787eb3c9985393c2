"""The version, what this build runs on (for bug reports), and where its header lies."""

import os
import platform

import numpy as np

from ._cpu import COMPILER
from ._dispatch import AVAILABLE, ISA
from ._threads import available, get_num_threads

__version__ = "0.2.0"


def show_config() -> None:
    """Print the version, the instruction set in use, and what the library was built with.

    The instruction set is the best that the processor's feature flags allow, or the one that the environment variable
    CNN_ISA names; "available" are those that can run here, best first.

    Examples
    --------
    >>> import cnn
    >>> cnn.show_config()  # doctest: +SKIP
    cnn 0.2.0
      instruction set  v4 (available: v4, v3, baseline)
      dtypes           float32, float64
      threads          2 (processors for this process: 2)
      compiler         GCC 12.2.0
      NumPy            2.4.6
      Python           3.11.7
      platform         Linux x86_64
    """
    facts = {
        "instruction set": f"{ISA} (available: {', '.join(AVAILABLE)})",
        "dtypes": "float32, float64",
        "threads": f"{get_num_threads()} (processors for this process: {available()})",
        "compiler": COMPILER,
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
    }
    print(f"cnn {__version__}")
    for name, fact in facts.items():
        print(f"  {name:<15}  {fact}")


def get_include() -> str:
    """The folder of cnn.h, for programs in C and Cython that predict with a model (`Sequential.handle`), and of
    cnn.f90, for programs in Fortran that call what `to_c` writes.

    Returns
    -------
    str

    Examples
    --------
    In a setup.py: ``Extension("name", ["name.pyx"], include_dirs=[cnn.get_include()])``
    """
    return os.path.join(os.path.dirname(__file__), "include")
