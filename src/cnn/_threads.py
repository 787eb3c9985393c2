"""The number of threads for training and prediction."""

from __future__ import annotations

import math
import os

import numpy as np

from ._dispatch import kernels

MOST: int = kernels("float32").LIMITS["threads"]  # the maximum of the kernels' pool


def available() -> int:
    """Processors that this process may use: its affinity, and the quota of its control group (Linux)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for path in ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us"):
        try:
            with open(path) as file:
                quota, *period = file.read().split()
            if not period:
                with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                    period = file.read().split()
            if quota not in ("max", "-1"):
                cores = min(cores, max(1, math.ceil(int(quota) / int(period[0]))))
            break
        except (OSError, ValueError):
            continue
    return min(cores, MOST)


def checked(n, name: str) -> int:
    """n, if it is a valid number of threads."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {n!r}")
    if not 1 <= n <= MOST:
        raise ValueError(f"{name}: expected from 1 to {MOST}, got {n}")
    return int(n)


def _initial() -> int:
    text = os.environ.get("CNN_NUM_THREADS")
    if not text:
        # OpenMP's limit applies here too: joblib sets it for its workers, so that together they use one thread per
        # processor. It may be a list, for nested loops; OpenMP itself reports invalid values.
        first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        return min(available(), int(first)) if first.isdecimal() and int(first) else available()
    try:
        return checked(int(text), "CNN_NUM_THREADS")
    except ValueError:
        raise ValueError(f"CNN_NUM_THREADS: expected a number from 1 to {MOST}, got {text!r}") from None


def _obey_threadpoolctl() -> None:
    """If threadpoolctl is installed, let `threadpool_limits` set the number, as for BLAS and OpenMP."""
    try:
        from threadpoolctl import LibController, register
    except ImportError:
        return

    class Controller(LibController):
        user_api = internal_api = "cnn"
        filename_prefixes = (kernels("float32").__name__.rpartition(".")[2],)  # by which it finds this library

        def get_num_threads(self):
            return _threads

        def set_num_threads(self, num_threads):
            set_num_threads(min(num_threads, MOST))

        def get_version(self):
            return None

    register(Controller)


_threads = _initial()


def set_num_threads(n: int) -> None:
    """Set the maximum number of threads for training and prediction.

    Results are bit-identical for any number of threads. Work that is too small to benefit uses one thread. The
    default is the environment variable CNN_NUM_THREADS at import; without it, the number of processors that the process
    may use, or OMP_NUM_THREADS if that is less (joblib sets it for its workers). `threadpoolctl.threadpool_limits`
    works too.

    Parameters
    ----------
    n : int
        From 1 to 255.

    Raises
    ------
    ValueError, TypeError
        If n is not an int from 1 to 255.
    """
    global _threads
    _threads = checked(n, "n")


def get_num_threads() -> int:
    """The maximum number of threads for training and prediction.

    Returns
    -------
    int
    """
    return _threads


def threads_for(threads: int | None) -> int:
    """The number for an argument `threads`; None means the global setting."""
    return _threads if threads is None else checked(threads, "threads")


_obey_threadpoolctl()
