"""`Objective`: what an optimiser that needs the whole data minimises, as a function of the model's parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

ROOM_BYTES = 32 << 20  # of the values and gradients of one native call
CALL_WORK = 1 << 28  # multiply-adds of one: about 0.05 s, after which Ctrl-C is handled
LEAST_ROWS = 512


class Objective:
    """The loss over all rows in training mode, with the penalties and the optimiser's weight decay.

    A call evaluates it at the present parameters, and leaves its gradient in the program. The rows are swept in blocks
    of a size that depends on the model alone, in order: the result does not depend on threads. Where rows depend on
    each other (batch normalisation, a loss of the user's own) all of them are one block. Running statistics take part
    in one evaluation an iteration, the last.

    Parameters
    ----------
    core : Core
    x, y, w : ndarray
        As `Program.train_batches` takes them; w may be None.
    threads : int
    out : ndarray of shape (rows, out_features), optional
        Gets the outputs of each evaluation.

    Attributes
    ----------
    value : float
        What the last call has returned.
    loss : float
        The loss alone, with the penalties and without weight decay.
    totals : ndarray of shape (4,)
        Of the last call: the sum of the loss over the rows, of their weights, of rows classified right, of rows.
    first : float
        The loss of the first call.
    evaluations : int
        Calls in this iteration.
    logs : dict of str to float
        What else the optimiser has for the history, of the names in its `logs`.

    Raises
    ------
    ValueError
        If the loss is not the same whenever it is evaluated, or has no derivative.
    """

    def __init__(self, core: Any, x: Any, y: Any, w: Any, threads: int, out: np.ndarray | None = None) -> None:
        name = type(core.optimizer).__name__
        for place in core.graph.seen.values():
            if place.layer.only_training and place.layer.acts:
                raise ValueError(
                    f"{place.layer!r} makes the loss random, and {name} needs the same loss at the same parameters: "
                    "take the layer out, or put it into evaluation mode, layer.eval()"
                )
            if getattr(place.layer, "l1", 0):
                raise ValueError(
                    f"{place.layer!r}: expected l1=0 with {name}, as the penalty has no derivative at 0, where many "
                    "weights end: use l2, or another optimizer"
                )
        program = self.program = core.program
        self.core, self.dtype = core, core.dtype
        self.x, self.y, self.w, self.out, self.threads = x, y, w, out, threads
        rows, self.weight = self._whole()
        program.check_batches(rows, rows)
        self.rows, self.block = len(x), rows
        if program.separable:
            wide = 3 * sum(core.graph.widths) * self.dtype.itemsize
            fits = min(ROOM_BYTES // wide, CALL_WORK // max(1, 3 * program.n_parameters))
            self.block = max(LEAST_ROWS, fits // LEAST_ROWS * LEAST_ROWS)
        self.totals = np.zeros(4)
        self.value = self.loss = self.first = math.nan
        self.logs: dict[str, float] = {}
        self._token = object()
        self.begin()

    def _whole(self) -> tuple[int, float]:
        """How many rows there are, and the sum of their weights."""
        return len(self.x), self.program.weight_of(self.y, self.w)

    def total(self, part: Callable[[int, int], np.ndarray]) -> np.ndarray:
        """The sum of a vector over all rows; ``part(start, stop)`` gives that over rows start .. stop - 1."""
        return part(0, self.rows)

    def begin(self) -> None:
        """Before an iteration."""
        self.evaluations = 0
        self._statistics = self.program.statistics()

    def back(self) -> None:
        """Put back the running statistics from before the iteration."""
        if self._statistics is not None:
            self.program.set_statistics(self._statistics)

    def __call__(self) -> float:
        """Evaluate, at the present parameters.

        Returns
        -------
        float
        """
        program = self.program
        if self.evaluations:
            self.back()
        self.totals[:] = 0
        penalty = self._sweep()
        total, weight = self.totals[:2].tolist()
        self.loss = (total / weight if weight else 0.0) if program.mean else total
        self.loss += penalty
        self.value = self.loss + program.decay()
        if not self.evaluations:
            self.first = self.loss
        self.evaluations += 1
        return self.value

    def _sweep(self) -> float:
        """Leave the gradient, with that of the penalties, in the program, and its sums in `totals`; the penalties."""
        program = self.program
        for start in range(0, self.rows, self.block):
            stop = min(self.rows, start + self.block)
            program.sweep(self.x, self.y, self.w, start, stop, self.weight, self.out, self.threads, self.totals)
        return program.penalty(True)

    def _state(self) -> tuple[Any, ...]:
        """All that the value depends on and that may change between two iterations."""
        program = self.program
        return self._token, program.fingerprint, program.modes, self.core.optimizer.table.tobytes()

    def hold(self) -> None:
        """After an iteration: the optimiser keeps the gradient at the present parameters."""
        self.core.held = self._state()

    @property
    def known(self) -> bool:
        """Whether `value` and the gradient that the optimiser has kept are those at the present parameters."""
        return self.core.held is not None and self.core.held == self._state()
