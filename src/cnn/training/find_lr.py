"""`find_lr`: a range test of the learning rate, after L. N. Smith, "Cyclical learning rates" (2017)."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import numpy as np

from .._checks import integer, positive, users_line
from .._pictures import figure_for
from .._threads import threads_for
from .._types import ArrayLike
from ..layers import Layer
from .data import Names, source_of
from .fit import Context, only_fit_of

__all__ = ["LearningRates", "find_lr"]

MEMORY = 0.9  # of the running mean of the losses
SETTLED = 10  # batches until the mean is one of several: the first few losses are noise, one of them may be the lowest
TOO_MUCH = 4.0  # times the lowest loss so far: the end


class LearningRates:
    """What `find_lr` has measured.

    Parameters
    ----------
    lr : ndarray of shape (steps,)
        The learning rates, rising.
    loss : ndarray of shape (steps,)
        The running mean of the batches' losses, each before the step at that rate, as an average of those so far.

    Attributes
    ----------
    lr, loss
        As passed in.
    suggestion : float
        A tenth of the rate with the lowest loss, since that rate is at the edge of divergence.
    """

    def __init__(self, lr: np.ndarray, loss: np.ndarray) -> None:
        self.lr = lr
        self.loss = loss
        self._lowest: int = _lowest(loss)
        self.suggestion: float = float(lr[self._lowest] / 10)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the loss over the learning rate, the suggestion marked.

        Parameters
        ----------
        path : str or path, optional
            Where to save the picture (PNG, PDF, SVG, by its suffix). Without it the figure is pyplot's.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        figure = figure_for(path, "LearningRates.plot", figsize=(5.2, 3.4))
        ax = figure.add_subplot()
        ax.plot(self.lr, self.loss, color="#1f77b4", lw=1.6)
        at = np.interp(np.log(self.suggestion), np.log(self.lr), self.loss)
        ax.plot([self.suggestion], [at], "o", ms=6, color="black", label=f"suggestion: {self.suggestion:.2g}")
        ax.set_xscale("log")
        usual = self.loss[: self._lowest + 1].max()
        ax.set_ylim(top=min(self.loss.max(), usual + 0.3 * (usual - self.loss.min())))
        ax.set_xlabel("learning rate")
        ax.set_ylabel("loss of the batches, running mean")
        ax.grid(alpha=0.25, lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), borderaxespad=0.2)
        if path is not None:
            figure.savefig(path, dpi=150)
        return ax

    def __repr__(self) -> str:
        return f"LearningRates(suggestion={self.suggestion:.3g}, {len(self.lr)} steps up to {self.lr[-1]:.3g})"


def find_lr(
    model: Any,
    x: Any,
    y: ArrayLike | None = None,
    *,
    sample_weight: ArrayLike | None = None,
    batch_size: int = 32,
    lr_min: float = 1e-6,
    lr_max: float = 10.0,
    steps: int = 100,
    threads: int | None = None,
) -> LearningRates:
    """Train with a learning rate that rises from step to step until the loss diverges; then restore the model.

    Parameters
    ----------
    model : Sequential
        With a loss and an optimizer, whose learning rate and schedule are ignored; the rates of its groups keep their
        ratio to it. The model is restored afterwards.
    x : array_like or sparse matrix of shape (n, in_features), memory map, Blocks, or iterable of batches
        As for `Sequential.fit`; read repeatedly if needed.
    y : array_like, optional
        Targets; None if x contains them.
    sample_weight : array_like of shape (n,), optional
        Not negative.
    batch_size : int
        The batch size that you will train with.
    lr_min, lr_max : float
        The first and the last rate; the rates between them are spaced geometrically.
    steps : int
        Maximum number of steps, at least 3.
    threads : int, optional
        At most this many; None: as `cnn.set_num_threads` says.

    Returns
    -------
    LearningRates
        With `lr`, `loss`, `suggestion`, and `plot(path)`.

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, or the loss is not finite at the first rates.
    RuntimeError
        If there is no loss or no optimizer.

    Warns
    -----
    UserWarning
        If the loss never falls by more than its noise, as that of a model that is trained already.

    Examples
    --------
    >>> found = cnn.find_lr(model, x, y)  # doctest: +SKIP
    >>> found.plot("rates.png")  # doctest: +SKIP
    >>> model.optimizer = cnn.Adam(lr=found.suggestion)  # doctest: +SKIP
    """
    if not isinstance(model, Layer.known["Sequential"]):
        raise TypeError(f"model: expected a cnn.Sequential, got {type(model).__name__}")
    with only_fit_of(model):
        batch_size, steps = integer("batch_size", batch_size, 1), integer("steps", steps, 3)
        if positive("lr_min", lr_min) >= positive("lr_max", lr_max):
            raise ValueError(f"lr_max: expected more than lr_min, {lr_min:g}, got {lr_max:g}")
        core, threads = model._core, threads_for(threads)
        core.need_optimizer()
        if core.optimizer.whole_data:
            raise ValueError(
                f"find_lr: expected an optimizer such as cnn.Adam(), got {type(core.optimizer).__name__}, which "
                "chooses its steps itself: keep lr=1"
            )
        source = source_of(Context(model, True, batch_size, True, steps=steps), x, y, sample_weight, Names())
        source.check(_NoMetrics())
        rates = np.geomspace(lr_min, lr_max, steps)
        before, gradients, table = core.snapshot(), model.gradients, core.optimizer.table.copy()
        losses: list[float] = []
        total = weight = 0.0
        try:
            for loss in _losses(core, source, rates, threads):
                total, weight = MEMORY * total + loss, MEMORY * weight + 1
                loss = total / weight
                usual = losses[_first(steps) :]
                if not math.isfinite(loss) or (usual and loss > TOO_MUCH * min(usual) > 0):
                    break
                losses.append(loss)
        finally:
            core.optimizer.table[...] = table
            core.restore(before)
            core.program.clear_padding()
            core.unpack(gradients, "grad_weight", "grad_bias")
    if len(losses) < 3:
        raise ValueError(f"find_lr: the loss diverges already at a learning rate of {lr_min:g}: lower lr_min")
    found = LearningRates(rates[: len(losses)], np.array(losses))
    first, lowest = _first(len(losses)), found._lowest
    # A batch changes the running mean by a tenth of its deviation, that of the mean is 0.23 times a batch's.
    noise = 2.3 * np.diff(found.loss[first : max(lowest, first + SETTLED) + 1]).std()
    if np.median(found.loss[first : lowest + 1]) - found.loss[lowest] <= 2 * noise:
        warnings.warn(
            "find_lr: at no rate does the loss fall by more than its noise, so that the suggestion means little: take "
            "a model that is not trained yet, larger batches, or more steps",
            UserWarning,
            stacklevel=users_line(),
        )
    return found


def _first(steps: int) -> int:
    """The index of the first loss to consider."""
    return SETTLED if steps > 2 * SETTLED else 0


def _lowest(loss: np.ndarray) -> int:
    """The index of the lowest loss to consider."""
    first = _first(len(loss))
    return first + int(loss[first:].argmin())


class _NoMetrics:
    def check(self, targets) -> None:
        """Nothing is measured but the loss."""


def _losses(core, source, rates: np.ndarray, threads: int):
    """The loss of batch after batch, each before the step at the next rate; those of groups keep their ratio to it."""
    mean = source.context.loss is None or source.context.loss.reduction == "mean"
    step = epoch = 0
    while step < len(rates):
        for part in source.context.taken(source.parts(epoch)):
            for at in range(0, part.rows, part.batch_size):
                if step == len(rates):
                    return
                totals = np.zeros(4)
                core.optimizer.lr = rates[step]
                stop = min(part.rows, at + part.batch_size)
                bad = core.program.train_batches(*part[:4], at, stop, part.batch_size, None, None, threads, 1, totals)
                if bad >= 0:
                    yield math.nan
                    return
                if totals[1]:
                    yield totals[0] / totals[1] if mean else totals[0] / totals[3]
                    step += 1
        epoch += 1
