"""Is the answer right? Each contender is compared with a float64 reference before it is timed.

The reference is the naive NumPy network of tests/grid, which shares no code with any contender.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
from contenders import Contender
from problems import ADAM, LR, Problem, flatten, problem
from workloads import Workload

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

import grid

TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


class WrongAnswer(Exception):
    """A contender does not compute what the workload says."""


class Truth:
    """The reference's answers to a workload after its `check_steps` steps."""

    def __init__(self, workload: Workload):
        self.workload = workload
        steps = workload.check_steps if workload.kind in ("fit", "step") else 1
        self.problem = problem(workload, steps)
        x = self.problem.x.toarray() if workload.entries else self.problem.x
        x, y = (a.astype(np.float64) for a in (x, self.problem.y))
        if workload.kind == "predict":
            self.outputs = _network(workload, self.problem).forward(x)
        elif workload.residual or workload.kind in ("jvp", "hvp", "grad_input"):
            self.outputs = _derivative(workload, self.problem, x, y)
        elif workload.kind == "gradient":
            loss, _, grads = _network(workload, self.problem).gradients(x, y)
            self.outputs = loss, np.concatenate([g.ravel() for g in grads.values()])
        else:
            self.x, self.y = x, y

    @cache  # noqa: B019  a Truth lives as long as its workload is measured
    def trained(self, epsilon_hat: bool) -> tuple[float, np.ndarray]:
        """The mean loss and the trained parameters."""
        workload = self.workload
        network = _network(workload, self.problem)
        parameters = network.parameters
        m: dict = {}
        v: dict = {}
        total = 0.0
        for t in range(1, self.problem.steps + 1):
            start = 0 if len(self.x) == workload.batch else (t - 1) * workload.batch
            rows = slice(start, start + workload.batch)
            loss, _, grads = network.gradients(self.x[rows], self.y[rows])
            total += loss
            for name, g in grads.items():
                if workload.optimizer == "sgd":
                    parameters[name] = parameters[name] - LR * g
                    continue
                m[name] = ADAM["beta1"] * m.get(name, 0.0) + (1 - ADAM["beta1"]) * g
                v[name] = ADAM["beta2"] * v.get(name, 0.0) + (1 - ADAM["beta2"]) * g**2
                root = np.sqrt(1 - ADAM["beta2"] ** t)
                scale = np.sqrt(v[name]) / root + ADAM["eps"] / (root if epsilon_hat else 1)
                parameters[name] = parameters[name] - ADAM["lr"] / (1 - ADAM["beta1"] ** t) * m[name] / scale
            network.parameters = parameters
        return total / self.problem.steps, np.concatenate([p.ravel() for p in parameters.values()])

    def error(self, contender: Contender, form: str = "") -> float:
        """How far the contender's answer is from the reference's, as a part of what is allowed.

        Allowed is, in float32, a thousandth (in float64, 1e-9) of the distance that training moved the parameters, or
        of the norm of outputs or gradient, plus one rounding of each parameter at each step.
        """
        workload = self.workload
        run = contender.prepare(workload, self.problem, form)
        answer = run()
        allowed = TOLERANCE[workload.dtype]
        if workload.kind in ("predict", "jvp", "hvp", "grad_input"):
            return _distance(answer, self.outputs) / (allowed * np.linalg.norm(self.outputs))
        if workload.kind == "gradient":
            loss, gradient = self.outputs
            return max(
                abs(answer[0] - loss) / (allowed * loss),
                _distance(answer[1], gradient) / (allowed * np.linalg.norm(gradient)),
            )
        loss, expected = self.trained(contender.epsilon_hat and workload.optimizer == "adam")
        moved = np.linalg.norm(expected - self.problem.flat)
        rounding = self.problem.steps * np.finfo(workload.dtype).eps * np.linalg.norm(expected)
        return max(
            abs(answer - loss) / (allowed * loss),
            _distance(run.parameters(), expected) / (allowed * moved + rounding),
        )

    def check(self, contender: Contender, form: str = "") -> float:
        """The error; raises WrongAnswer if it is more than is allowed."""
        error = self.error(contender, form)
        if not error <= 1:
            raise WrongAnswer(
                f"{contender.label} on {self.workload.id}: {error:.3g} times as far from the reference as allowed"
            )
        return error


def _distance(actual, expected) -> float:
    actual = np.asarray(actual, np.float64)
    if actual.shape != expected.shape:
        raise WrongAnswer(f"expected shape {expected.shape}, got {actual.shape}")
    return float(np.linalg.norm(actual - expected))


def _derivative(workload: Workload, problem: Problem, x: np.ndarray, y: np.ndarray):
    """Loss and gradient, or a product of derivatives, written out in float64: tangents (_t) are carried along."""
    t, v = (problem.direction(kind).astype(np.float64) for kind in ("x", "parameters"))
    hvp = workload.kind == "hvp"
    kept, at = [], 0
    a, a_t = x, np.zeros_like(x) if hvp else t
    for i, (w, b) in enumerate(problem.weights):
        w_t, b_t = v[at : at + w.size].reshape(w.shape), v[at + w.size : at + w.size + w.shape[1]]
        at += w.size + w.shape[1]
        z, z_t = a @ w + b, a_t @ w + a @ w_t + b_t
        last = i == len(problem.weights) - 1 and not workload.residual
        f = z if last else np.tanh(z) if workload.activation == "tanh" else np.maximum(z, 0)
        slope = np.ones_like(z) if last else 1 - f * f if workload.activation == "tanh" else (z > 0).astype(float)
        slope_t = -2 * f * slope * z_t if workload.activation == "tanh" and not last else np.zeros_like(z)
        kept.append((a, a_t, w.astype(np.float64), w_t, slope, slope_t))
        a, a_t = f + (a if workload.residual else 0), slope * z_t + (a_t if workload.residual else 0)
    if workload.kind == "jvp":
        return a_t
    g, g_t = 2 * (a - y) / a.size, 2 * a_t / a.size
    loss, grads = np.mean((a - y) ** 2), []
    for a, a_t, w, w_t, slope, slope_t in reversed(kept):
        dz, dz_t = g * slope, g_t * slope + g * slope_t
        dw, db = (a_t.T @ dz + a.T @ dz_t, dz_t.sum(axis=0)) if hvp else (a.T @ dz, dz.sum(axis=0))
        grads += [db, dw.ravel()]
        skip, skip_t = (g, g_t) if workload.residual else (0, 0)
        g, g_t = dz @ w.T + skip, dz_t @ w.T + dz @ w_t.T + skip_t
    if workload.kind == "grad_input":
        return g
    vector = np.concatenate(grads[::-1])
    return vector if hvp else (loss, vector)


def _network(workload: Workload, problem: Problem) -> grid.Network:
    nodes: list = []
    parameters = {}
    for weight, bias in problem.weights:
        parameters[f"{len(nodes)}.weight"] = weight
        if bias is not None:
            parameters[f"{len(nodes)}.bias"] = bias
        nodes += [grid.Linear(), grid.Function(name=workload.activation)]
    network = grid.Network(nodes[:-1], "mse", parameters)
    assert np.array_equal(flatten([network.parameters.values()]), problem.flat)
    return network
