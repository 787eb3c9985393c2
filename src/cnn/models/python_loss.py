"""`PythonLoss`: the native program with a loss that is a Python function (`CallableLoss`).

It implements the methods of the native `Program` that involve a loss, with the same arguments and results, and
delegates all others. Code that trains or evaluates a model works with both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._types import ArrayLike


class PythonLoss:
    """A program that calls its loss between the native forward and backward passes; updates are not fused.

    Parameters
    ----------
    native : Program
        Compiled without a loss.
    loss : CallableLoss
    """

    def __init__(self, native: Any, loss: Any) -> None:
        self.native = native
        self.loss = loss
        self.mean: Any = loss.reduction == "mean"
        self._gradient: np.ndarray | None = None  # of the outputs, from the last `forward` with targets

    def __getattr__(self, name: str) -> Any:
        return getattr(self.native, name)

    def targets(self, y: Any, batch: int, name: str = "targets") -> np.ndarray:
        y = np.asarray(y)
        if y.ndim == 0 or len(y) != batch:
            got = "none" if y.ndim == 0 else len(y)
            raise ValueError(f"{name}: expected {batch} rows, as many as x has, got {got}")
        return y

    def weights(self, w: Any, batch: int, name: str = "sample_weight") -> None:
        raise ValueError(f"{name}: expected none with a loss of your own, which weights the rows itself")

    def forward(self, x: Any, y: Any, threads: int, training: bool = True) -> Any:
        self._gradient = None
        if y is None:
            return self.native.forward(x, None, threads, training)
        x, y, _ = self.native.flattened(x, y)
        x = self.native.rows(x)
        if not len(x):
            raise ValueError("the loss of an empty batch is not defined")
        _, value, self._gradient = self._pass(x, y, threads, training)
        return value + self.native.penalty()

    def _pass(self, x: Any, y: Any, threads: Any, training: bool = True) -> tuple[np.ndarray, float, np.ndarray]:
        """Outputs, the loss and its gradient; an error in the loss leaves the running statistics as they were."""
        statistics = self.native.statistics()
        outputs = self.native.forward(x, None, threads, training)
        try:
            value, gradient = self.loss.value_and_gradient(outputs, y)
        except BaseException:
            if statistics is not None:
                self.native.set_statistics(statistics)
            raise
        return outputs, value, gradient

    def backward(self, grad_output: ArrayLike | None, threads: int, weights: bool = True) -> np.ndarray | None:
        own, self._gradient = self._gradient if grad_output is None else None, None
        grad_x = self.native.backward(grad_output if own is None else own, threads, weights)
        if own is not None and weights:
            self.native.penalty(True)
        return grad_x

    def loss_and_grad(self, x: Any, y: Any, threads: int, training: bool = True) -> tuple[float, np.ndarray]:
        loss = self.forward(x, y, threads, training)
        self.native.zero_grads()
        self.backward(None, threads)
        self.native.forget("loss_and_grad has run since")
        return loss, self.native.gradients

    def train_step(self, x: Any, y: Any, threads: int, w: Any = None, rates: Any = None) -> float:
        if w is not None:
            self.weights(w, 0)
        loss = self.forward(x, y, threads)
        self.native.zero_grads()
        self.backward(None, threads)
        self.native.step(rates)
        if not math.isfinite(loss):
            self.native.clear_padding()
        return loss

    def train_batches(
        self,
        x: Any,
        y: Any,
        w: Any,
        order: Any,
        start: Any,
        stop: Any,
        batch_size: int,
        rates: Any,
        out: np.ndarray | None,
        threads: int | None,
        accumulate: bool,
        totals: Any,
    ) -> int:
        native = self.native
        group = accumulate * batch_size
        for step, first in enumerate(range(start, stop, group)):
            last = min(stop, first + group)
            count = -(-(last - first) // batch_size)
            native.zero_grads()
            for at in range(first, last, batch_size):
                end = min(last, at + batch_size)
                rows = slice(at, end) if order is None else order[at:end]
                outputs, value, gradient = self._pass(x[rows], y[rows], threads)
                if not math.isfinite(value):
                    return at
                native.backward(gradient / count, threads)  # without the penalties
                if out is not None:
                    out[at:end] = outputs
                rows = end - at
                totals += np.array((value * rows if self.mean else value, rows, 0, rows))
            totals[0] += native.penalty(True) * (last - first if self.mean else 1)
            native.step(None if rates is None else rates[step])
        native.zero_grads()
        return -1

    separable = False  # a function of all outputs

    def weight_of(self, y: Any, w: Any) -> float:
        return len(y)

    def sweep(
        self,
        x: Any,
        y: Any,
        w: Any,
        start: Any,
        stop: Any,
        whole: Any,
        out: np.ndarray | None,
        threads: int | None,
        totals: Any,
    ) -> None:
        native, rows = self.native, stop - start
        outputs, value, gradient = self._pass(x, y, threads)
        native.zero_grads()
        native.backward(gradient, threads)
        if out is not None:
            out[...] = outputs
        totals += np.array((value * rows if self.mean else value, rows, 0, rows))

    def evaluate(self, x: Any, y: Any, w: Any, threads: int) -> tuple[float, float, int]:
        value, _ = self.loss.value_and_gradient(self.native.predict(x, None, threads), y)
        return value * len(x) if self.mean else value, len(x), 0
