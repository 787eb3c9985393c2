"""Progress of `fit` on the screen: a tqdm bar on a terminal or in a notebook, or one line an epoch on stderr."""

from __future__ import annotations

import sys
import time

EVERY = 0.05  # seconds between two changes of the bar


class Progress:
    """Shows the epochs of one `fit`.

    Parameters
    ----------
    mode : {"auto", True, False}
        "auto": a bar on a terminal or in a notebook, if tqdm is installed, else silence. True: where there is no bar,
        one line an epoch. False: silence.
    first, last : int
        Epochs done before, and the number of the last one.
    rows : int or None
        Rows of an epoch; None: as many as the first one turns out to have.
    """

    def __init__(self, mode, first: int, last: int, rows: int | None):
        self.first = first
        self.last = last
        self.rows = rows
        self.done = 0  # rows, in the epochs that are over
        self.bar = None
        self.shown = 0.0  # when the bar was last brought up to date
        self.logs: dict[str, str] = {}
        self.began = self.epoch_began = time.perf_counter()
        if mode is not False and first < last and (_terminal() or _notebook()):
            try:
                from tqdm.auto import tqdm
            except ImportError:
                pass
            else:
                total = None if rows is None else (last - first) * rows
                self.bar = tqdm(total=total, unit=" samples", unit_scale=True, dynamic_ncols=True)
        self.lines = mode is True and self.bar is None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def batch(self, epoch: int, rows: int, loss: float) -> None:
        """So many rows of the epoch are done."""
        if self.bar is not None and time.perf_counter() > self.shown + EVERY:
            self.shown = time.perf_counter()
            self.bar.set_description(f"epoch {epoch}/{self.last}", refresh=False)
            self.bar.set_postfix({**self.logs, "loss": _text(loss)}, refresh=False)
            self.bar.update(self.done + rows - self.bar.n)

    def epoch(self, epoch: int, rows: int, logs: dict[str, float]) -> None:
        """The epoch is over, after so many rows."""
        self.done += rows
        if self.bar is None and not self.lines:
            return
        self.logs = {name: _text(value) for name, value in logs.items()}
        if self.bar is not None:
            if self.bar.total is None:
                self.bar.total = (self.last - self.first) * rows
            self.bar.set_description(f"epoch {epoch}/{self.last}", refresh=False)
            self.bar.update(self.done - self.bar.n)
            self.bar.set_postfix(self.logs, refresh=epoch == self.last)
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
    """Four places, or as many digits, where four places would say little."""
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 1e5 else f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _notebook() -> bool:
    """Whether this is a Jupyter kernel; IPython is only asked if somebody has imported it."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
