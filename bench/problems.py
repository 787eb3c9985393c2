"""The numbers of a workload: data, initial parameters, hyper-parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from workloads import Workload

LR = 0.01  # of SGD
ADAM = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}


@dataclass(frozen=True)
class Problem:
    """A workload's data and initial parameters, for so many steps."""

    x: Any  # (rows, in), an array or CSR
    y: np.ndarray  # (rows, out)
    weights: list[tuple[np.ndarray, np.ndarray | None]]
    steps: int

    def direction(self, kind: str) -> np.ndarray:
        """What a product of derivatives is taken along: a vector of "parameters", or an array like "x"."""
        shape = self.x.shape if kind == "x" else self.flat.shape
        return np.random.default_rng(4).standard_normal(shape).astype(self.x.dtype)

    @property
    def flat(self) -> np.ndarray:
        """The parameters as one vector: weight, bias, weight, bias, ..."""
        return flatten(self.weights)


def flatten(pairs) -> np.ndarray:
    """One vector of float64 from pairs of weight (in, out) and bias (out,), which may be None."""
    return np.concatenate([np.asarray(a, np.float64).ravel() for pair in pairs for a in pair if a is not None])


def problem(workload: Workload, steps: int) -> Problem:
    """The data for so many steps, the same at every call: a shorter problem is the beginning of a longer one."""
    dtype = np.dtype(workload.dtype)
    n_in, n_out = workload.widths[0], workload.widths[-1]
    one_batch = workload.full_batch or workload.kind != "fit"
    rows = workload.batch if one_batch else steps * workload.batch
    random = np.random.default_rng(1)
    if workload.entries:
        from scipy.sparse import csr_matrix

        columns = random.integers(0, n_in, (rows, workload.entries))
        values = random.standard_normal(columns.size).astype(dtype)
        x = csr_matrix((values, np.sort(columns).ravel(), np.arange(rows + 1) * workload.entries), (rows, n_in))
    else:
        x = random.standard_normal((rows, n_in)).astype(dtype)
    y = np.random.default_rng(2).standard_normal((rows, n_out)).astype(dtype)
    random = np.random.default_rng(3)
    weights: list[tuple[np.ndarray, np.ndarray | None]] = []
    for i, (a, b) in enumerate(zip(workload.widths[:-1], workload.widths[1:], strict=True)):
        bound = a**-0.5
        weight = random.uniform(-bound, bound, (a, b)).astype(dtype)
        bias = random.uniform(-bound, bound, b).astype(dtype)
        weights.append((weight, bias if workload.last_bias or i < len(workload.widths) - 2 else None))
    return Problem(x, y, weights, steps)
