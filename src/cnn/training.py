"""`fit`: epochs of native training, cut into calls short enough for Ctrl-C and a progress bar; and its `History`."""

from __future__ import annotations

import sys
import time

import numpy as np

SLICE = 0.05  # seconds that one native call may take


class DivergenceError(ArithmeticError):
    """The loss became infinite or NaN. The parameters are those from before the epoch in which it did."""


class History(dict):
    """What `fit` returns: {"loss": [...], "val_loss": [...], ...}, one number an epoch."""

    def __repr__(self) -> str:
        if not self:
            return "History()"
        n = len(next(iter(self.values())))
        last = ", ".join(f"{name}={values[-1]:.4g}" for name, values in self.items())
        return f"History({n} epoch{'s' * (n != 1)}; last: {last})"


def fit(model, x, y, *, epochs, batch_size, shuffle, validation_data, threads, progress) -> History:
    """See Sequential.fit."""
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise TypeError(f"{name}: expected an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if progress not in ("auto", True, False):
        raise ValueError(f"progress: expected 'auto', True or False, got {progress!r}")
    program = model._program
    model._need_optimizer()
    x = program.inputs(x)
    n = len(x)
    y = program.targets(y, n, "y")
    if n == 0:
        raise ValueError("x: training needs at least one row, got none")
    if validation_data is not None:
        try:
            x_val, y_val = validation_data
        except (TypeError, ValueError):
            raise ValueError("validation_data: expected a pair (x, y)") from None
        x_val = program.inputs(x_val, "validation_data[0]")
        y_val = program.targets(y_val, len(x_val), "validation_data[1]")
        if len(x_val) == 0:
            raise ValueError("validation_data: expected at least one row, got none")

    program.set_parameters(program.parameters)  # a step that diverged may have left NaN in the padding
    history = History()
    order = np.empty(n, np.int64) if shuffle else None
    batches = 1  # in one native call
    with _Progress(progress, epochs, n) as bar:
        for epoch in range(1, epochs + 1):
            before = program.snapshot(model.optimizer.states)
            if shuffle:
                model._kernels.permutation(n, model._random_seed, model._epochs_seen, order)
            totals, at = np.zeros(4), 0
            while at < n:
                stop = min(n, at + batches * batch_size)
                began = time.perf_counter()
                bad = program.train_batches(x, y, None, order, at, stop, batch_size, None, None, threads, 1, totals)
                took = time.perf_counter() - began
                if bad >= 0:
                    program.restore(before)
                    raise DivergenceError(
                        f"the loss is not finite in epoch {epoch}, batch {bad // batch_size}, at a learning "
                        f"rate of {model.optimizer.lr:g}; the parameters are those from before this epoch"
                    )
                at = stop
                bar.rows(epoch, at, totals[0] / totals[1])
                longer = min(4.0, SLICE / max(took, 1e-9))
                batches = max(1, int(min(batches, n) * longer))
            model._epochs_seen += 1
            logs = model._scores(*totals[:3], n)
            if validation_data is not None:
                scores = model._scores(*program.evaluate(x_val, y_val, None, threads), len(x_val))
                logs |= {f"val_{name}": value for name, value in scores.items()}
            for name, value in logs.items():
                history.setdefault(name, []).append(value)
            bar.epoch(epoch, logs)
    return history


class _Progress:
    """A tqdm bar on a terminal; with progress=True one line an epoch where there is none."""

    def __init__(self, progress, epochs: int, rows: int):
        self.epochs = epochs
        self.n = rows
        self.bar = None
        self.logs: dict[str, str] = {}
        terminal = sys.stderr is not None and sys.stderr.isatty()
        if terminal and progress is not False:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                pass
            else:
                self.bar = tqdm(total=epochs * rows, unit=" samples", unit_scale=True, dynamic_ncols=True)
        self.lines = progress is True and self.bar is None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def rows(self, epoch: int, at: int, loss: float) -> None:
        """So many rows of the epoch are done."""
        if self.bar is not None:
            self.bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
            self.bar.set_postfix({**self.logs, "loss": f"{loss:.4f}"}, refresh=False)
            self.bar.update((epoch - 1) * self.n + at - self.bar.n)

    def epoch(self, epoch: int, scores: dict[str, float]) -> None:
        """The epoch is done."""
        self.logs = {name: f"{value:.4f}" for name, value in scores.items()}
        if self.bar is not None:
            self.bar.set_postfix(self.logs, refresh=epoch == self.epochs)
        if self.lines:
            text = "  ".join(f"{name} {value}" for name, value in self.logs.items())
            print(f"epoch {epoch}/{self.epochs}  {text}", file=sys.stderr)
