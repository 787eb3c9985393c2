"""`SobolevProgram`: the native program with a `SobolevLoss`, which compares derivatives by the inputs too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .python_loss import PythonLoss
from .residual import jets


class SobolevProgram(PythonLoss):
    """A program whose loss depends on its outputs and on their derivatives by the inputs.

    The forward and backward passes run in native code, in blocks (kernels/residual.pxi). The loss between them is
    computed in Python, on arrays of the size of the targets. The update is not fused.

    Parameters
    ----------
    native : Program
        Compiled without a loss.
    loss : SobolevLoss
    derivatives : Derivatives
        Of the native program.
    """

    def __init__(self, native: Any, loss: Any, derivatives: Any):
        super().__init__(native, loss)
        self.derivatives, self.dtype = derivatives, native.parameters.dtype
        self._own: tuple[np.ndarray, list[np.ndarray]] | None = None  # x and gradients of the last `forward`

    def targets(self, y, batch: int, name: str = "targets") -> np.ndarray:
        n_in, n_out = self.derivatives.widths
        if isinstance(y, tuple) and len(y) == 2:
            values, slopes = (np.asarray(part) for part in y)
            if values.ndim and slopes.ndim and len(values) == len(slopes) and len(values):
                y = np.column_stack([values, slopes.reshape(len(slopes), -1)])
        y = np.asarray(y)
        if y.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got dtype {y.dtype}")
        if y.ndim != 2 or y.shape[1] != n_out * (1 + n_in):
            raise ValueError(
                f"{name}: expected shape (batch, {n_out * (1 + n_in)}), {n_out} values and then {n_out * n_in} "
                f"derivatives by the inputs, got {y.shape}: np.column_stack([values, derivatives.reshape(batch, -1)])"
            )
        if len(y) != batch:
            raise ValueError(f"{name}: expected {batch} rows, as many as x has, got {len(y)}")
        return np.ascontiguousarray(y, self.dtype)

    def weights(self, w, batch: int, name: str = "sample_weight"):
        return self.native.weights(w, batch, name)

    def weight_of(self, y, w) -> float:
        return len(y) if w is None else float(w.sum())

    def _value(self, x, y, w, threads: int, training: bool = False) -> tuple[float, list[np.ndarray], np.ndarray]:
        """The loss, its gradients by the outputs and their derivatives, and the outputs."""
        if training and not self.native.repeatable:
            raise ValueError(
                "SobolevLoss: expected a model whose outputs depend on their own row alone, got a Dropout or a "
                "BatchNorm1d in training mode: take the layer out, or put it into evaluation mode, layer.eval()"
            )
        x = self.native.inputs(x)
        parts = jets(self.derivatives, x, 0, threads)
        u = parts[0][:, :, 0]
        slopes = parts[1].reshape(len(u), -1)
        n_out = u.shape[1]
        value, gradients = self.loss.value_and_gradients((u, slopes), (y[:, :n_out], y[:, n_out:]), w)
        shaped = [np.ascontiguousarray(g).reshape(part.shape) for g, part in zip(gradients, parts[:2], strict=True)]
        return value, [*shaped, parts[2]], u

    def _add(self, x, gradients: list[np.ndarray], threads: int, overwrite: bool = False) -> None:
        self.derivatives.jets(self.native.inputs(x), *gradients, threads, True, overwrite)

    def forward(self, x, y, threads: int, training: bool = True):
        self._own = None
        if y is None:
            return self.native.forward(x, None, threads, training)
        x, y, _ = self.native.flattened(x, y)
        x = self.native.inputs(x)
        if not len(x):
            raise ValueError("the loss of an empty batch is not defined")
        value, gradients, _ = self._value(x, self.targets(y, len(x)), None, threads, training)
        self.native.forget("a SobolevLoss has run since")
        self._own = np.array(x), gradients
        return value + self.native.penalty()

    def backward(self, grad_output, threads: int, weights: bool = True) -> np.ndarray | None:
        own = self._own if grad_output is None else None
        if own is not None and not weights:
            raise NotImplementedError("SobolevLoss has no gradient in x, only in the parameters")
        self._own = None
        if own is None:
            return self.native.backward(grad_output, threads, weights)
        self._add(own[0], own[1], threads)
        self.native.penalty(True)
        return None

    def train_step(self, x, y, threads: int, w=None, rates=None) -> float:
        x, y, w = self.native.flattened(x, y, w)
        x = self.native.inputs(x)
        if not len(x):
            raise ValueError("x: training needs at least one row, got an empty batch")
        w = None if w is None else self.weights(w, len(x))
        value, gradients, _ = self._value(x, self.targets(y, len(x)), w, threads, True)
        self._add(x, gradients, threads, True)
        loss = value + self.native.penalty(True)
        self.native.step(rates)
        if not math.isfinite(loss):
            self.native.clear_padding()
        return loss

    def train_batches(self, x, y, w, order, start, stop, batch_size, rates, out, threads, accumulate, totals) -> int:
        native = self.native
        group = accumulate * batch_size
        for step, first in enumerate(range(start, stop, group)):
            last = min(stop, first + group)
            count = -(-(last - first) // batch_size)
            native.zero_grads()
            group_weight = 0.0
            for at in range(first, last, batch_size):
                end = min(last, at + batch_size)
                rows = slice(at, end) if order is None else order[at:end]
                weights = None if w is None else w[rows]
                value, gradients, u = self._value(x[rows], y[rows], weights, threads, True)
                if not math.isfinite(value):
                    return at
                self._add(x[rows], [g / count for g in gradients], threads)
                if out is not None:
                    out[at:end] = u
                weight = self.weight_of(y[rows], weights)
                group_weight += weight
                totals[:4] += np.array((value * weight if self.mean else value, weight, 0, end - at))
            totals[0] += native.penalty(True) * (group_weight if self.mean else 1)
            native.step(None if rates is None else rates[step])
        native.zero_grads()
        return -1

    def sweep(self, x, y, w, start, stop, whole, out, threads, totals) -> None:
        value, gradients, u = self._value(x, y, w, threads, True)
        self._add(x, gradients, threads, True)
        if out is not None:
            out[...] = u
        weight = self.weight_of(y, w)
        totals += np.array((value * weight if self.mean else value, weight, 0, stop - start))

    def evaluate(self, x, y, w, threads: int) -> tuple[float, float, int]:
        value, _, _ = self._value(x, y, w, threads)
        weight = self.weight_of(y, w)
        return value * weight if self.mean else value, weight, 0
