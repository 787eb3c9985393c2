"""Progress of `fit` on the screen: a tqdm bar on a terminal or in a notebook, or one line an epoch on stderr."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

EVERY = 0.05  # seconds between two changes of the bar
BAR = "{desc}{percentage:3.0f}%|{bar}| {remaining} {rate_fmt}{postfix}"
TAKEN = 38  # columns of that beside description and numbers, 6 of them the bar's
_told = False  # how to get a bar


def mode_of(progress: bool | str, verbose: int | None) -> str | bool:
    """The mode of `Progress` for two arguments of `fit`; ValueError if they are wrong."""
    if progress not in ("auto", True, False):
        raise ValueError(f"progress: expected 'auto', True or False, got {progress!r}")
    if verbose is None:
        return progress
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose: expected 0, 1 or 2, got {verbose!r}")
    if progress != "auto":
        raise ValueError(f"verbose: expected none with progress={progress!r}")
    return (False, True, "lines")[verbose]


class Progress:
    """Shows the epochs of one `fit`.

    Parameters
    ----------
    mode : {"auto", True, "lines", False}
        "auto": a bar on a terminal or in a notebook, if tqdm is installed, else one line an epoch; elsewhere silence.
        True: where there is no bar, one line an epoch. "lines": that in any case. False: silence.
    first, last : int
        Epochs done before, and the number of the last one.
    rows : int or None
        Rows of an epoch; None: as many as the first one turns out to have.
    """

    def __init__(self, mode: str | bool, first: int, last: int, rows: int | None) -> None:
        self.first = first
        self.last = last
        self.rows = rows
        self.done = 0  # rows, in the epochs that are over
        self.bar: Any = None
        self.shown = 0.0  # when the bar was last brought up to date
        self.logs: dict[str, str] = {}
        self.began: float
        self.epoch_began: float
        self.began = self.epoch_began = time.perf_counter()
        self.lines = mode in (True, "lines")
        if mode in ("auto", True) and first < last and (_terminal() or _notebook()):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                self.lines = True
                _tell()
            else:
                total = None if rows is None else (last - first) * rows
                form = {} if _notebook() else {"bar_format": BAR, "dynamic_ncols": True}
                self.bar = tqdm(total=total, unit=" samples", unit_scale=True, **form)
                self.lines = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def batch(self, epoch: int, rows: int, loss: float) -> None:
        """Update the bar after `rows` rows of the epoch."""
        if self.bar is not None and time.perf_counter() > self.shown + EVERY:
            self.shown = time.perf_counter()
            self.describe(epoch, {**self.logs, "loss": _text(loss)}, False)
            self.bar.update(self.done + rows - self.bar.n)

    def describe(self, epoch: int, logs: dict[str, str], refresh: bool) -> None:
        """Set the text beside the bar: the losses, and as many of the other numbers as fit."""
        text = f"epoch {epoch}/{self.last}"
        self.bar.set_description(text, refresh=False)
        left = 1e9 if _notebook() else _columns() - len(text) - TAKEN
        shown: dict[str, str] = {}
        for name in sorted(logs, key=lambda name: name not in ("loss", "val_loss")):
            left -= len(f", {name}={logs[name]}")
            if left >= 0 or not shown:
                shown[name] = logs[name]
        self.bar.set_postfix(shown, refresh=refresh)

    def epoch(self, epoch: int, rows: int, logs: dict[str, float]) -> None:
        """Report the end of an epoch of `rows` rows."""
        self.done += rows
        if self.bar is None and not self.lines:
            return
        self.logs = {name: _text(value) for name, value in logs.items()}
        if self.bar is not None:
            if self.bar.total is None:
                self.bar.total = (self.last - self.first) * rows
            self.bar.update(self.done - self.bar.n)
            self.describe(epoch, self.logs, epoch == self.last)
            return
        now = time.perf_counter()
        text = "  ".join(f"{name} {value}" for name, value in self.logs.items())
        text += f"  {rows / max(now - self.epoch_began, 1e-9):,.0f} samples/s"
        if epoch < self.last:
            text += f"  {_clock((now - self.began) / (epoch - self.first) * (self.last - epoch))} left"
        self.epoch_began = now
        if sys.stderr is not None:
            print(f"epoch {epoch}/{self.last}  {text}", file=sys.stderr, flush=True)


def _text(value: float) -> str:
    """Four decimal places, or four significant digits for very small and very large values."""
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _tell() -> None:
    """Say how to get a bar, once in a process."""
    global _told
    if not _told and sys.stderr is not None:
        print("for a progress bar: pip install tqdm; for silence: progress=False", file=sys.stderr)
    _told = True


def _columns() -> int:
    """Of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 80


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _notebook() -> bool:
    """Whether this is a Jupyter kernel; IPython is not imported for the check."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
