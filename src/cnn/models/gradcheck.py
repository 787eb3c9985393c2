"""`gradcheck`: compares a model's gradients with finite differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._checks import integer, positive
from .._types import ArrayLike
from .sequential import Sequential

__all__ = ["Check", "GradcheckReport", "gradcheck"]

STEPS = (1e-3, 1e-4)  # of the differences; the smaller one if the larger may cross a kink
ROUNDING = 1e-10  # of a difference, relative to the loss: about 100 rounding errors divided by the smaller step


@dataclass(frozen=True)
class Check:
    """The comparison of an array of derivatives with finite differences.

    Attributes
    ----------
    what : str
        "gradient", "input gradient" or "Hessian product".
    compared : int
        Number of compared derivatives.
    worst : str
        Name of the element with the largest error, such as "3.1.0.weight[2, 5]" or "x[0, 1]".
    computed, difference : float
        Its value from the library and from finite differences.
    error : float
        Their difference, relative to the tolerance.
    """

    what: str
    compared: int
    worst: str
    computed: float
    difference: float
    error: float

    def __bool__(self) -> bool:
        return self.error <= 1

    def __str__(self) -> str:
        verdict = "agrees" if self else "DIFFERS"
        return (
            f"{self.what}: {verdict} in {self.compared:,} numbers; worst {self.worst}: "
            f"{self.computed:.9g}, by differences {self.difference:.9g}, {self.error:.2g} of what is allowed"
        )


@dataclass(frozen=True)
class GradcheckReport:
    """The result of `gradcheck`: true if all checks agree; prints one line per check.

    Attributes
    ----------
    checks : tuple of Check
    """

    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(self.checks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


def gradcheck(
    model: Any,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    rtol: float = 1e-6,
    samples: int = 1000,
    seed: int = 0,
    raises: bool = False,
) -> GradcheckReport:
    """Compare a model's derivatives with central differences of order 4.

    It checks the gradients of the loss with respect to the parameters and x, and a Hessian product along a random
    direction (except for Python losses, which have none). Without y, the loss is a random linear function of the
    outputs, and there is no Hessian product. All passes run in evaluation mode.

    Parameters
    ----------
    model : Sequential
        In float64: float32 is too inaccurate for differences.
    x : array_like of shape (batch, in_features)
        A few rows are enough.
    y : array_like, optional
        Targets of the model's loss.
    rtol : float
        Tolerance, relative to the largest derivative of the same array.
    samples : int
        Maximum number of randomly chosen parameters, and of elements of x; each costs four forward passes.
    seed : int
        For the random choices.
    raises : bool
        Whether to raise ArithmeticError, with the report as its message, if a check fails.

    Returns
    -------
    GradcheckReport

    Raises
    ------
    ValueError, TypeError
        If the model is not in float64, or x or y have the wrong shape or dtype.
    ArithmeticError
        If `raises` and a check fails.

    Notes
    -----
    A difference across a kink (of ReLU, for example) is wrong. If the first step disagrees, a ten times smaller step
    decides. At a kink itself (a ReLU input of exactly 0) the check is not meaningful.

    Examples
    --------
    >>> import cnn
    >>> model = cnn.Sequential([cnn.Linear(2, 3), cnn.Tanh(), cnn.Linear(3, 1), cnn.MSELoss()], dtype="float64", seed=0)
    >>> bool(gradcheck(model, [[0.1, 0.2], [0.3, -0.4]], [1.0, 2.0]))
    True
    """
    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected a Sequential, got {model!r}")
    if model.dtype != np.float64:
        raise ValueError(f"model: expected dtype float64, got {model.dtype}: build it with dtype='float64'")
    rtol, samples = positive("rtol", rtol), integer("samples", samples, 1)
    random = np.random.default_rng(integer("seed", seed, 0))
    core = model._core
    x = np.array(core.program.inputs(x))
    if not len(x):
        raise ValueError("x: expected at least one row, got none")
    problem = _Problem(model, x, y, random)
    start, gradients = model.parameters, model.gradients
    try:
        report = GradcheckReport(tuple(problem.checks(start, x, rtol, samples, random)))
    finally:
        model.parameters = start
        core.unpack(gradients, "grad_weight", "grad_bias")
        core.program.forget("gradcheck has run since")
    if raises and not report:
        raise ArithmeticError(str(report))
    return report


class _Problem:
    """The loss of a model as a function of its parameters and of x."""

    def __init__(self, model: Any, x: np.ndarray, y, random: np.random.Generator):
        self.model, self.y = model, y
        self.v = random.standard_normal((len(x), model._core.out_features)) if y is None else None

    def loss(self, x: np.ndarray) -> float:
        if self.v is not None:
            return float(np.sum(self.v * self.model.predict(x)))
        return self.model._core.program.forward(x, self.y, 1, False)

    def gradients(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """In the parameters and in x."""
        if self.v is not None:
            of_inputs, of_parameters = self.model.vjp(x, self.v, parameters=True)
            return of_parameters, of_inputs
        of_parameters = self.model._core.program.loss_and_grad(x, self.y, 1, False)[1]
        return of_parameters, self.model.grad_input(x, self.y)

    def names(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(name, a.shape) for name, a in self.model._core.named("weight", "bias").items()]

    def checks(self, start: np.ndarray, x: np.ndarray, rtol: float, samples: int, random: np.random.Generator):
        scale = ROUNDING * (1 + abs(self.loss(x)))
        of_parameters, of_inputs = self.gradients(x)

        def at(vector: np.ndarray) -> float:
            self.model.parameters = vector
            return self.loss(x)

        def at_inputs(vector: np.ndarray) -> float:
            return self.loss(vector.reshape(x.shape))

        chosen = _chosen(start.size, samples, random)
        yield _compare("gradient", self.names(), chosen, of_parameters, _partial(at, start), rtol, scale)
        self.model.parameters = start
        chosen = _chosen(x.size, samples, random)
        flat = of_inputs.ravel()
        yield _compare("input gradient", [("x", x.shape)], chosen, flat, _partial(at_inputs, x.ravel()), rtol, scale)
        if self.v is None and self.model.loss.has_second_derivative:
            v = random.standard_normal(start.size)
            v /= np.linalg.norm(v)

            def gradient(vector: np.ndarray) -> np.ndarray:
                self.model.parameters = vector
                return self.gradients(x)[0]

            product = self.model.hvp(x, self.y, v)
            along = [_difference(lambda h: gradient(start + h * v), step) for step in STEPS]
            chosen = np.arange(start.size)
            scale = ROUNDING * (1 + abs(of_parameters).max(initial=0))
            values = lambda i, step: along[step][i]  # noqa: E731
            yield _compare("Hessian product", self.names(), chosen, product, values, rtol, scale)


def _chosen(n: int, samples: int, random: np.random.Generator) -> np.ndarray:
    return np.arange(n) if n <= samples else np.sort(random.choice(n, samples, replace=False))


def _difference(f: Callable[..., Any], h: float) -> Any:
    """f'(0) by the central difference of order 4."""
    return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)


def _partial(f: Callable[..., Any], at: np.ndarray) -> Callable[[int, int], float]:
    """Derivatives of f(vector) with respect to element i, with step number `step`."""

    def derivative(i: int, step: int) -> float:
        def moved(h: float) -> float:
            vector = at.copy()
            vector[i] += h
            return f(vector)

        return _difference(moved, STEPS[step] * max(1.0, abs(at[i])))

    return derivative


def _compare(
    what: str, names, chosen: np.ndarray, computed: np.ndarray, difference: Callable[..., Any], rtol: float, scale
):
    """Check the chosen derivatives; `difference(i, step)` is the expected value of number i."""
    bounds = np.cumsum([0, *(int(np.prod(shape)) for _, shape in names)])
    worst = (-1.0, "", 0.0, 0.0)
    for (name, shape), start, stop in zip(names, bounds[:-1], bounds[1:], strict=True):
        inside = chosen[(chosen >= start) & (chosen < stop)]
        allowed = rtol * abs(computed[start:stop]).max(initial=0) + scale
        for i in inside:
            for step in range(len(STEPS)):
                expected = float(difference(int(i), step))
                error = abs(computed[i] - expected) / allowed
                if error <= 1:
                    break
            if not error <= worst[0]:
                where = ", ".join(map(str, np.unravel_index(i - start, shape)))
                worst = (error if error == error else np.inf, f"{name}[{where}]", float(computed[i]), expected)
    return Check(what, len(chosen), worst[1], worst[2], worst[3], float(worst[0]))
