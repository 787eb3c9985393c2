"""How many threads training and prediction may use."""

from __future__ import annotations

import math
import os

import numpy as np

from ._dispatch import kernels

MOST: int = kernels("float32").LIMITS["threads"]  # that the kernels' pool can have


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
    """n as a number of threads."""
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
        raise TypeError(f"{name}: expected an int, got {n!r}")
    if not 1 <= n <= MOST:
        raise ValueError(f"{name}: expected from 1 to {MOST}, got {n}")
    return int(n)


def _initial() -> int:
    text = os.environ.get("CNN_NUM_THREADS")
    if not text:
        # OpenMP's limit is one for this library too: joblib's workers have it, so that all together have a thread a
        # processor. It may be a list, for nested loops, and whoever made it will be told by OpenMP if it is wrong.
        first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
        return min(available(), int(first)) if first.isdecimal() and int(first) else available()
    try:
        return checked(int(text), "CNN_NUM_THREADS")
    except ValueError:
        raise ValueError(f"CNN_NUM_THREADS: expected a number from 1 to {MOST}, got {text!r}") from None


def _obey_threadpoolctl() -> None:
    """Let `threadpoolctl.threadpool_limits` set the number, if it is installed, as that of BLAS and OpenMP."""
    try:
        from threadpoolctl import LibController, register
    except ImportError:
        return

    class Controller(LibController):
        user_api = internal_api = "cnn"
        filename_prefixes = (kernels("float32").__name__.rpartition(".")[2],)  # how it knows that we are loaded

        def get_num_threads(self):
            return _threads

        def set_num_threads(self, num_threads):
            set_num_threads(min(num_threads, MOST))

        def get_version(self):
            return None

    register(Controller)


_threads = _initial()


def set_num_threads(n: int) -> None:
    """Let training and prediction use up to n threads, from 1 to 255, until this is called again.

    Work that does not repay the hand-over to another thread stays on one, whatever n. Results are the same, bit for
    bit, for any number of threads. The environment variable CNN_NUM_THREADS sets the number at import; without it, it
    is the number of processors that the process may use, or OMP_NUM_THREADS, if that is less: joblib's workers have
    one thread each where there are as many workers as processors. `threadpoolctl.threadpool_limits` holds as well.

    Parameters
    ----------
    n : int

    Raises
    ------
    ValueError, TypeError
        If n is no number of threads.
    """
    global _threads
    _threads = checked(n, "n")


def get_num_threads() -> int:
    """How many threads training and prediction may use.

    Returns
    -------
    int
    """
    return _threads


def threads_for(threads: int | None) -> int:
    """What an argument `threads` means: None is the number set for all."""
    return _threads if threads is None else checked(threads, "threads")


_obey_threadpoolctl()
