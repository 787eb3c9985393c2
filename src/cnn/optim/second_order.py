"""Optimisers that use second derivatives: Levenberg-Marquardt, and Newton's method by conjugate gradients."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any, ClassVar

import numpy as np

from .._checks import choice, integer, number, positive
from .._sparse import is_sparse
from .whole_data import WholeDataOptimizer

__all__ = ["LevenbergMarquardt", "NewtonCG"]

CALL_WORK = 1 << 28  # multiply-adds of one native call, after which Ctrl-C is handled
ROUND_ROWS = 256  # of the data whose Jacobians are squared at once (JACOBIAN_ROWS)
MOST_FULL_OUTPUTS = 128  # with a loss whose second derivative in the outputs is a full matrix
FIRST_RATIO = 1e-6  # of alpha and beta, beside what they would be before training: the first errors are no noise
EPSILON = {np.dtype(name): float(np.finfo(name).eps) for name in ("float32", "float64")}
LEAST_DAMPING = 1e-30
LEAST_SQUARE = 1e-8  # of a parameter, on average, for alpha
SETTLED = 1e-3  # the ratio of alpha and beta, when it changes by less than this part


def _product(a: np.ndarray, b: np.ndarray) -> float:
    """a . b in one order, whatever the machine's BLAS does."""
    return float(np.add.reduce(a * b))


class _Point:
    """The iterate of an iteration: value, gradient and curvature there, and steps from it.

    Vectors are float64, in the order of `Sequential.parameters`, and zero for what is not trained. ridge / 2 w**2 is
    added to what is minimised.
    """

    def __init__(self, minimizer: Any, objective: Any):
        self.minimizer, self.objective, self.value = minimizer, objective, math.nan
        self.trained, self.l2, decay = minimizer.diagonals()
        self.diagonal = 2 * self.l2 + decay  # what penalties and the ridge add to that of the curvature
        self.parameters = objective.program.parameters * self.trained
        self.ridge = 0.0
        self.products = 0
        self.away = False  # the program's parameters are those of a step
        self.solver: str | None = None
        self.evidence = (math.nan,) * 3  # alpha, beta, gamma

    def add_ridge(self, ridge: float) -> None:
        self.ridge = ridge
        self.value += ridge / 2 * _product(self.parameters, self.parameters)
        self.diagonal = self.diagonal + ridge * self.trained

    def gradient(self) -> np.ndarray:
        return self.minimizer.gradients() + self.ridge * self.parameters

    def hidden(self, fall: float) -> bool:
        """Whether the rounding of the value hides such a fall."""
        return fall <= EPSILON[self.objective.dtype] / 8 * abs(self.value)

    def __call__(self, step: np.ndarray) -> float:
        """Go there, and evaluate; infinite where it is not a number."""
        self.minimizer.move(step)
        self.away = True
        value = self.objective()
        if self.ridge:
            value += self.ridge / 2 * float(((self.parameters + step) ** 2).sum())
        return value if math.isfinite(value) else math.inf

    def matrix(self) -> None:
        """Compute the Gauss-Newton matrix, by native calls of about CALL_WORK multiply-adds."""
        o, n = self.objective, len(self.parameters)
        rows = max(1, CALL_WORK // (o.core.out_features * n * n * ROUND_ROWS // 2)) * ROUND_ROWS

        def part(first: int, last: int) -> np.ndarray:
            self.minimizer.begin_matrix(o.threads)
            for start in range(first, last, rows):
                self.minimizer.add_rows(o.x, o.y, o.w, start, min(last, start + rows), o.weight, o.threads)
            return self.minimizer.triangle

        total = o.total(part)
        self.minimizer.triangle[:] = total

    def times(self, v: np.ndarray, gauss_newton: bool) -> np.ndarray:
        """The Hessian, or the Gauss-Newton matrix, times v, block by block of the rows."""
        o, program = self.objective, self.objective.program
        if self.away:
            self.minimizer.move(np.zeros_like(v))
            self.away = False

        def part(first: int, last: int) -> np.ndarray:
            total = np.zeros(len(v))
            for start in range(first, last, o.block):
                rows = slice(start, min(last, start + o.block))
                x, y, w = o.x[rows], o.y[rows], None if o.w is None else o.w[rows]
                if not np.isfinite(x).all():  # in rows that do not count: the loss is finite
                    x = np.where(np.isfinite(x), x, o.dtype.type(0))
                share = (program.weight_of(y, w) / o.weight if o.weight else 0.0) if program.mean else 1.0
                product = o.core.derivatives.second(x, y, None, None, v, False, o.threads, gauss_newton, w)[1]
                total += share * (product - 2 * self.l2 * v)  # without the penalty, which it has added
            return total

        self.products += 1
        return (self.diagonal * v + o.total(part)) * self.trained


class SecondOrder(WholeDataOptimizer, abstract=True):
    """What optimisers of second order have in common: steps are tried from a point until one lowers the loss.

    The rows of the data must not depend on each other: batch normalisation is in evaluation mode, or refused.
    """

    needs: ClassVar[str]  # what a loss has to be
    tolerance_grad: float
    tolerance_change: float

    def __setattr__(self, name, value):
        if name in ("tolerance_grad", "tolerance_change"):
            value = number(name, value, 0)
        elif name in ("cg_iterations", "exact_parameters"):
            value = integer(name, value, int(name == "cg_iterations"))
        elif name in ("damping", "damping_max", "radius", "max_radius"):
            value = positive(name, value)
        elif name == "damping_decrease":
            value = number(name, value, 0, 1)
        elif name == "damping_increase" and number(name, value, 0) <= 1:
            raise ValueError(f"damping_increase: expected a number above 1, got {value!r}")
        elif name == "regularization" and value is not None:
            value = choice(name, value, ("bayesian",))
        super().__setattr__(name, value)
        if name == "regularization":
            self.logs = ("damping",) if value is None else ("damping", "alpha", "beta", "gamma")

    def minimizer(self, kernels, program):
        return kernels.Curvature(program)

    def _check(self, point: _Point) -> None:
        """ValueError or TypeError if no step can be computed; before the first evaluation, which changes the model."""
        name, objective = type(self).__name__, point.objective
        loss = objective.core.loss
        second = loss.has_second_derivative and loss.spec() is not None
        if not (second and (loss.gauss_newton or isinstance(self, NewtonCG))):
            others = "LBFGS" + " or NewtonCG" * second
            raise ValueError(
                f"loss: {name} needs a loss {self.needs}, such as MSELoss, got {loss!r}: train with {others}"
            )
        if is_sparse(objective.x) or not isinstance(objective.x, np.ndarray):
            raise TypeError(f"x: expected a dense array with {name}, got sparse rows: pass x.toarray(), or use LBFGS")
        for place in objective.core.graph.seen.values():
            if place.layer.statistic_names and place.layer.acts:
                raise ValueError(
                    f"{place.layer!r} makes rows depend on each other, and {name} needs the derivatives of each: put "
                    "the layer into evaluation mode, layer.eval(), or use LBFGS"
                )

    def iterate(self, minimizer, objective, lr):
        known = objective.known
        point = _Point(minimizer, objective)
        if not known:  # else it has been checked
            self._check(point)
        before = point.value = objective.value if known else objective()
        if not math.isfinite(before) or lr == 0:
            objective.logs = self._logs(point)
            return None
        minimizer.begin(known)
        try:
            moved, why = self._step(point, lr)
            if not moved and objective.evaluations:
                minimizer.back()
                objective.back()
                objective()  # once more: the last evaluation was elsewhere
                objective.back()
        except BaseException:  # Ctrl-C between two steps
            if minimizer.back():
                objective.back()
            raise
        if moved:
            minimizer.done()
        objective.logs = self._logs(point)
        objective.hold()
        return why

    def _step(self, point: _Point, lr: float) -> tuple[bool, str | None]:
        """Try steps: whether the last one is taken, and why further iterations would change nothing, or None."""
        raise NotImplementedError

    def _logs(self, point: _Point) -> dict[str, float]:
        """Numbers for the history, of the names `logs`."""
        raise NotImplementedError

    def _flat(self, gradient: np.ndarray) -> str | None:
        if np.abs(gradient).max(initial=0.0) <= self.tolerance_grad:
            return f"no number of the gradient is larger than {self.tolerance_grad:g}"
        return None

    def _exact(self, point: _Point) -> str:
        return f"no step lowers the loss: {point.value:.9g} is as exact as {point.objective.dtype} allows"

    def _fallen(self, point: _Point, fall: float) -> str | None:
        if fall <= self.tolerance_change * abs(point.value):
            return f"the last iteration has lowered the loss by {fall:.3g} only, of {point.value:.3g}"
        return None


class LevenbergMarquardt(SecondOrder):
    """Levenberg-Marquardt (Marquardt, 1963), MATLAB's trainlm and, with ``regularization="bayesian"``, trainbr.

    Each iteration, an epoch of `fit`, takes the whole data. With the gradient g of the loss, and its Gauss-Newton
    matrix G = J^T H J (J: the derivatives of the outputs in the parameters, H: the second ones of the loss in the
    outputs)::

        (G + damping I) d = -g
        w = w + lr d

    as soon as that lowers the loss; until then damping = damping_increase damping. Where the loss falls by more than
    3/4 of what G promised, damping = damping_decrease damping for the next iteration, and below 1/4 it is doubled.

    Up to `exact_parameters` G is computed, block of rows by block, and factored: n outputs P**2 + P**3 / 3 FLOPs for n
    rows and P parameters, and P**2 numbers of memory. Beyond that, or where memory is short, d comes from conjugate
    gradients with products G v, as many as `cg_iterations`. The attribute `solver` says which.

    It needs a loss that is convex and curved: `MSELoss`, `HuberLoss`, `SmoothL1Loss`, `CrossEntropyLoss`,
    `BCEWithLogitsLoss`, `PoissonNLLLoss`. float64 goes much further than float32: G squares what J is off by.

    ``regularization="bayesian"`` (MacKay, 1992; Foresee and Hagan, 1997) minimises beta E + alpha W, E the sum of the
    squared errors and W that of the squared parameters, and chooses alpha and beta in each iteration::

        gamma = P - 2 alpha tr (2 alpha I + beta d2 E / d w2)^-1      the parameters that the data determine
        alpha = gamma / (2 W),  beta = (n - gamma) / (2 E)            n numbers in the targets

    alpha / beta begins at almost nothing and at most doubles in an iteration: the first errors are no noise, and would
    shrink the parameters to where they fit nothing. Nor does it fall below what the dtype's rounding of G hides: where
    the data can be fitted exactly, beta would grow without bound.

    The history has "damping", and of this "alpha", "beta" and "gamma". It needs `MSELoss` and no other penalties.

    Parameters
    ----------
    damping : float
        Above 0: the first damping (MATLAB: mu).
    damping_decrease, damping_increase : float
        Factors, below and above 1.
    damping_max : float
        `fit` ends when no damping up to this one lowers the loss.
    regularization : {None, "bayesian"}
    exact_parameters : int
        Up to so many parameters G is computed.
    cg_iterations : int
        Of the conjugate gradients in one step at most.
    tolerance_grad : float
        `fit` ends when no number of the gradient is larger than this.
    tolerance_change : float
        `fit` ends when an iteration lowers the loss by at most this part of it.
    lr : float
        Scales the steps, also by a schedule; 0 stops. 1 is right nearly always.
    weight_decay : float
        At least 0: weight_decay / 2 w**2 is a term of what is minimised, though not of the loss that is reported.
    **common
        groups (without "lr"), decay_bias, ema_decay, schedule: as for `Optimizer`.

    Attributes
    ----------
    solver : {None, "cholesky", "cg"}
        How the last step was found.
    """

    needs: ClassVar[str] = "that is convex and curved in the outputs"
    states = 2  # the damping, and alpha / beta as a weight decay

    def __init__(
        self,
        damping=1e-3,
        damping_decrease=0.3,
        damping_increase=3.0,
        damping_max=1e10,
        regularization=None,
        exact_parameters=3000,
        cg_iterations=100,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        lr=1.0,
        weight_decay=0.0,
        **common,
    ):
        super().__init__(lr, weight_decay, **common)
        self.damping, self.damping_max = damping, damping_max
        self.damping_decrease, self.damping_increase = damping_decrease, damping_increase
        self.regularization = regularization
        self.exact_parameters, self.cg_iterations = exact_parameters, cg_iterations
        self.tolerance_grad, self.tolerance_change = tolerance_grad, tolerance_change
        self._solver: str | None = None

    @property
    def solver(self) -> str | None:
        """How the last step was found: by a "cholesky" factor of G, or by conjugate gradients, "cg"; None before."""
        return self._solver

    def _logs(self, point):
        found = {"damping": point.minimizer.number(0) or self.damping}
        if self.regularization is not None:
            found |= dict(zip(("alpha", "beta", "gamma"), point.evidence, strict=True))
        return found

    def _check(self, point):
        super()._check(point)
        if self.regularization is not None:
            if point.objective.core.loss.kind != "mse":
                raise ValueError(f"regularization: 'bayesian' needs MSELoss, got {point.objective.core.loss!r}")
            if point.diagonal.any():
                raise ValueError(
                    "regularization: expected no weight_decay and no l2 with 'bayesian', which chooses them"
                )
            self._choose(point)

    def _step(self, point, lr):
        self._solver = point.solver = self._choose(point)
        if point.solver == "cholesky":
            point.matrix()
        settled = self.regularization is None or self._weigh(point)
        moved, why, damping = self._search(point, lr)
        point.minimizer.set_number(0, damping)
        point.minimizer.set_number(1, point.ridge)
        return moved, why if settled else None

    def _search(self, point: _Point, lr: float) -> tuple[bool, str | None, float]:
        """What `_step` returns, and the damping of the next iteration."""
        damping = known = point.minimizer.number(0) or self.damping
        gradient = point.gradient()
        why = self._flat(gradient)
        while not why and damping <= self.damping_max:
            step = self._solve(point, gradient, damping)
            if step is not None:
                d, curvature = step
                expected = -lr * _product(gradient, d) - lr * lr / 2 * curvature
                if point.hidden(expected):
                    break
                fall = point.value - point(lr * d)
                if fall > 0:
                    if fall > 0.75 * expected:
                        damping = max(damping * self.damping_decrease, LEAST_DAMPING)
                    elif fall < 0.25 * expected:
                        damping *= 2
                    return True, self._fallen(point, fall), damping
            damping *= self.damping_increase
        return False, why or self._exact(point), known

    def _choose(self, point: _Point) -> str:
        """The name of what solves, by whether there is room for G."""
        minimizer = point.minimizer
        n = len(point.parameters)
        core = point.objective.core
        wide = core.out_features > MOST_FULL_OUTPUTS and core.loss.targets != "numbers"
        solver = "cg"
        if n <= self.exact_parameters and not wide:
            if minimizer.solver is None:
                minimizer.solver = self._room(point)
            solver = minimizer.solver
        if solver == "cg" and self.regularization is not None:
            raise ValueError(
                f"regularization: 'bayesian' needs the trace of a matrix of {n:,} parameters, which is computed up to "
                f"exact_parameters={self.exact_parameters} and if memory allows: raise it, or use weight_decay instead"
            )
        return solver

    def _room(self, point: _Point) -> str:
        """Make room for G: "cholesky", or "cg" and a warning if there is not enough."""
        minimizer = point.minimizer
        short = minimizer.bytes_of_matrix() > _memory() / 2
        try:
            if not short:
                minimizer.begin_matrix(point.objective.threads)
        except MemoryError:
            short = True
        if point.objective.total(lambda first, last: np.array([float(short)]))[0]:
            warnings.warn(
                f"J^T J of {len(point.parameters):,} parameters takes {minimizer.bytes_of_matrix() / 1e9:,.1f} GB, "
                "more than is free: LevenbergMarquardt solves by conjugate gradients, as with exact_parameters=0",
                RuntimeWarning,
                stacklevel=2,
            )
            return "cg"
        return "cholesky"

    def _solve(self, point: _Point, gradient: np.ndarray, damping: float) -> tuple[np.ndarray, float] | None:
        """The step d, and d . G d; None where G is not positive definite in this precision."""
        if point.solver == "cg":
            d, left = _conjugate_gradients(point, gradient, damping, self.cg_iterations)
            return d, -_product(d, gradient) - _product(d, left) - damping * _product(d, d)
        threads = point.objective.threads
        if not point.minimizer.factorize(point.diagonal + damping, threads):
            return None
        d = point.minimizer.solve(-gradient) * point.trained
        return (d, -_product(d, gradient) - damping * _product(d, d)) if np.isfinite(d).all() else None

    def _weigh(self, point: _Point) -> bool:
        """Choose alpha and beta anew; whether their ratio has hardly changed."""
        minimizer, objective = point.minimizer, point.objective
        before, trained = minimizer.number(1), float(point.trained.sum())
        largest = float(minimizer.triangle.max())  # of G's diagonal, as G is positive semidefinite
        if not objective.weight or not math.isfinite(largest):
            return True
        rounding = EPSILON[objective.dtype] * math.sqrt(len(point.trained)) * largest  # of the factor of G
        least = max(rounding, LEAST_DAMPING)
        count = objective.weight * objective.core.out_features
        gamma = trained
        if before:
            before = max(before, least)
            while not math.isfinite(trace := self._trace_of_inverse(point, before)) and before <= largest:
                before = least = 2 * before
            if math.isfinite(trace):
                gamma = len(point.trained) - before * trace
            gamma = min(max(gamma, largest / (largest + before)), trained, count)
        numbers = count if objective.program.mean else 1.0  # that the loss is a mean of
        squares = max(_product(point.parameters, point.parameters), LEAST_SQUARE * max(trained, 1.0))
        alpha = gamma / (2 * squares)
        beta = max(count - gamma, 0.01 * count) / max(2 * point.value * numbers, LEAST_DAMPING)
        ratio = 2 * alpha / beta / numbers
        ratio = max(min(ratio, 2 * before) if before else FIRST_RATIO * ratio, least)
        point.evidence = alpha, min(beta, 2 * alpha / least / numbers), gamma
        point.add_ridge(float(objective.dtype.type(ratio)))
        return abs(ratio - before) <= SETTLED * before

    def _trace_of_inverse(self, point: _Point, ridge: float) -> float:
        """That of G + ridge I; not a number where it is not positive definite in this precision."""
        minimizer, threads = point.minimizer, point.objective.threads
        if not minimizer.factorize(np.full(len(point.trained), ridge), threads):
            return math.nan
        return minimizer.trace_of_inverse(threads)


class NewtonCG(SecondOrder):
    """Newton's method in a trust region: conjugate gradients with exact Hessian-vector products (Steihaug, 1983).

    Each iteration is an epoch of `fit` on the whole data. It minimises the quadratic model ``g d + d H d / 2`` within
    ``|d| <= lr * radius``, where H is the Hessian of the loss. Conjugate gradients stop when the residual is below
    ``min(1/2, sqrt(|g|)) |g|``, when the step reaches the radius, or at a direction of negative curvature, which is
    followed to the radius. The radius becomes a quarter of the step if the loss falls by less than a quarter of the
    prediction, and doubles if it falls by more than 3/4 of it at the radius. A step that does not lower the loss is
    rejected.

    For any loss with a second derivative and networks of any size: a product takes about 2.7 times as long as a
    gradient, and memory is that of a few vectors. The second derivative of ReLU and other piecewise linear functions
    is 0. The history has "radius" and "products".

    Parameters
    ----------
    radius, max_radius : float
        Above 0: the first radius, and the largest.
    cg_iterations : int
        Of the conjugate gradients in one step at most.
    tolerance_grad : float
        `fit` ends when no number of the gradient is larger than this.
    tolerance_change : float
        `fit` ends when an iteration lowers the loss by at most this part of it.
    lr : float
        Scales the radius, also by a schedule; 0 stops.
    weight_decay : float
        At least 0: weight_decay / 2 w**2 is a term of what is minimised, though not of the loss that is reported.
    **common
        groups (without "lr"), decay_bias, ema_decay, schedule: as for `Optimizer`.
    """

    needs: ClassVar[str] = "with a second derivative"
    states = 1  # the radius
    logs = ("radius", "products")

    def __init__(
        self,
        radius=1.0,
        max_radius=1000.0,
        cg_iterations=100,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        lr=1.0,
        weight_decay=0.0,
        **common,
    ):
        super().__init__(lr, weight_decay, **common)
        self.radius, self.max_radius = radius, max_radius
        self.cg_iterations = cg_iterations
        self.tolerance_grad, self.tolerance_change = tolerance_grad, tolerance_change

    def _logs(self, point):
        return {"radius": point.minimizer.number(0) or self.radius, "products": float(point.products)}

    def _step(self, point, lr):
        gradient = point.gradient()
        why = self._flat(gradient)
        if why:
            return False, why
        radius = point.minimizer.number(0) or self.radius
        while True:
            d, expected, limited = _steihaug(point, gradient, lr * radius, self.cg_iterations)
            if point.hidden(expected):
                return False, self._exact(point)
            fall = point.value - point(d)
            if fall < 0.25 * expected:
                radius = math.sqrt(_product(d, d)) / 4 / lr
            elif fall > 0.75 * expected and limited:
                radius = min(2 * radius, self.max_radius)
            if fall > 0:
                point.minimizer.set_number(0, radius)
                return True, self._fallen(point, fall)


def _accuracy(gradient: np.ndarray, most: float) -> float:
    """The square of the residual at which conjugate gradients may end."""
    square = _product(gradient, gradient)
    return square * min(most * most, math.sqrt(square))


def _conjugate_gradients(point: _Point, gradient, damping: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """d with (G + damping I) d = -gradient, nearly, and -gradient - (G + damping I) d."""
    d, left = np.zeros_like(gradient), -gradient
    along, square = left, _product(left, left)
    enough = _accuracy(gradient, 0.1)
    for _ in range(most):
        product = point.times(along, True) + damping * along
        curvature = _product(along, product)
        if not curvature > 0:
            break
        t = square / curvature
        d, left = d + t * along, left - t * product
        before, square = square, _product(left, left)
        if square <= enough:
            break
        along = left + square / before * along
    return d, left


def _steihaug(point: _Point, gradient, radius: float, most: int) -> tuple[np.ndarray, float, bool]:
    """d that nearly minimises gradient d + d H d / 2 within the radius, how far that falls, and whether it is there."""
    d, hd = np.zeros_like(gradient), np.zeros_like(gradient)
    left, along = -gradient, -gradient
    square = _product(left, left)
    enough = _accuracy(gradient, 0.5)
    limited = False
    for _ in range(most):
        product = point.times(along, False)
        curvature = _product(along, product)
        t = square / curvature if curvature > 0 else math.inf
        a, b, c = _product(along, along), _product(d, along), _product(d, d) - radius * radius
        limited = not math.isfinite(t) or a * t * t + 2 * b * t + c >= 0
        if limited:
            t = (math.sqrt(max(b * b - a * c, 0.0)) - b) / a
        d, hd = d + t * along, hd + t * product
        left = left - t * product
        before, square = square, _product(left, left)
        if limited or square <= enough:
            break
        along = left + square / before * along
    return d, -_product(gradient, d) - _product(d, hd) / 2, limited


def _memory() -> float:
    """Bytes of the machine; infinite where it does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return math.inf
