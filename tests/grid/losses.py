"""Losses: an entry is the library's class, a formula of the loss and its gradient, and the options that are tried.

A formula takes outputs y and targets t of shape (rows, m), or class indices, and the constructor's options. It gives
the loss of each output and the gradient; `by_row`, the loss of each row, the gradient, and what each row counts for in
a mean. The peers' tests let JAX derive that loss, and leave the gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from reference import namespace

import cnn

from .activations import sigmoid


@dataclass(frozen=True)
class Loss:
    """cases: by name, the constructor's options, a dict or a function of the number of outputs; the first three stand
    in test_grid.py."""

    cls: type[cnn.losses.Loss]
    formula: Callable
    cases: dict[str, Any]
    targets: str = "numbers"  # or probabilities, counts, classes, halves (of as many numbers as half the outputs)
    soft: tuple[str, ...] = ()  # cases whose targets are distributions over the classes
    gaps: tuple[str, ...] = ()  # cases with targets that are NaN
    ours: tuple[str, ...] = ()  # cases that PyTorch has not, nor those with gaps
    by_row: bool = False
    kinked: bool = False
    exact: bool = False  # each element's gradient is right to a few roundoffs
    linear: bool = False  # no second derivative, where there is no kink
    torch: bool = True  # PyTorch has it, by the same name and with the same options


@dataclass(frozen=True)
class Case:
    """A loss with options."""

    loss: Loss
    given: Any
    targets: str
    torch: bool = True

    def options(self, m):
        return self.given(m) if callable(self.given) else self.given

    def make(self, m, **more):
        if self.own:
            return cnn.CallableLoss(mean_log_cosh)
        return self.loss.cls(**{**self.options(m), **more})

    def truth(self, m, **more):
        """(outputs, targets, weights of rows) -> loss and its gradient."""
        return lambda y, t, w=None: value_and_gradient(self.loss, y, t, w, **{**self.options(m), **more})

    @property
    def positive(self):
        """The outputs must be: a Softplus stands before it."""
        return any(self.options(1).get(name) is False for name in ("log_input", "log_var"))

    @property
    def in_pairs(self):
        """Whether the number of outputs is even."""
        return self.targets.endswith("halves")

    def width(self, m):
        """The number of outputs, at least m."""
        return m + m % 2 if self.in_pairs else m

    @property
    def own(self):
        return self.loss.cls is cnn.CallableLoss


def value_and_gradient(loss, outputs, targets, sample_weight=None, reduction="mean", ignore_nan=False, **options):
    """By the formulas of the library's docstrings."""
    w = np.ones(len(outputs)) if sample_weight is None else np.asarray(sample_weight)
    targets = np.asarray(targets)
    if loss.by_row:
        rows, gradient, counts = loss.formula(outputs, targets, **options)
    else:
        targets = targets.reshape(len(outputs), -1)
        known = ~np.isnan(targets) if ignore_nan else np.ones(targets.shape, bool)
        values, gradient = loss.formula(outputs, np.where(known, targets, 0.5), **options)
        many = gradient.shape[1] // known.shape[1]  # outputs of a target
        gradient = gradient * np.tile(known, many)
        rows, counts = (values * known).sum(axis=1), known.mean(axis=1) / many
        if reduction == "mean":
            rows, gradient = rows / outputs.shape[1], gradient / outputs.shape[1]
    divisor = (w * counts).sum() if reduction == "mean" else 1
    return (w * rows).sum() / divisor, w[:, None] * gradient / divisor


def truth_of(loss):
    """The truth of a loss of the library."""
    entry = next(entry for entry in ENTRIES if entry.cls is type(loss))
    return Case(entry, loss.get_config(), entry.targets).truth(None)


# formulas -------------------------------------------------------------------------------------------------------------


def squared(y, t):
    return (y - t) ** 2, 2 * (y - t)


def absolute(y, t):
    return abs(y - t), namespace(y).sign(y - t)


def huber(y, t, delta=1.0):
    xp, d = namespace(y), y - t
    return xp.where(abs(d) <= delta, d**2 / 2, delta * (abs(d) - delta / 2)), xp.clip(d, -delta, delta)


def smooth_l1(y, t, beta=1.0):
    if beta == 0:
        return absolute(y, t)
    xp, d = namespace(y), y - t
    return xp.where(abs(d) < beta, d**2 / (2 * beta), abs(d) - beta / 2), xp.clip(d / beta, -1, 1)


def bce_with_logits(y, t, pos_weight=None, label_smoothing=0.0):
    t = (1 - label_smoothing) * t + label_smoothing / 2
    xp, positive = namespace(y), np.asarray(1.0 if pos_weight is None else pos_weight) * t
    value = positive * xp.logaddexp(0, -y) + (1 - t) * xp.logaddexp(0, y)
    return value, (1 - t) * sigmoid(y) - positive * sigmoid(-y)


def poisson_nll(y, t, log_input=True, full=False, eps=1e-8):
    xp, above = namespace(y), np.maximum(t, 1)
    stirling = np.where(t > 1, t * np.log(above) - t + np.log(2 * np.pi * above) / 2, 0) * full
    if log_input:
        return xp.exp(y) - t * y + stirling, xp.exp(y) - t
    return y - t * xp.log(y + eps) + stirling, 1 - t / (y + eps)


def quantile(y, t, quantiles):
    xp, d, q = namespace(y), y - t, np.asarray(quantiles)
    return xp.where(d < 0, -q * d, (1 - q) * d), xp.where(d < 0, -q, xp.where(d > 0, 1 - q, 0))


def gaussian_nll(y, t, log_var=True, full=False, eps=1e-6):
    xp, k = namespace(y), t.shape[1]
    d, s = y[:, :k] - t, y[:, k:]
    v = xp.maximum(xp.exp(s) if log_var else s, eps)
    value = (xp.log(v) + d**2 / v + full * np.log(2 * np.pi)) / 2
    return value, xp.concatenate([d / v, (1 - d**2 / v) / (2 if log_var else 2 * v)], axis=1)


def shares(t, n, ignore_index):
    """Class indices or distributions as distributions, and which rows count."""
    if t.ndim == 2:
        return t, np.ones(len(t), bool)
    counts = t != ignore_index
    return np.eye(n)[np.where(counts, t, 0)] * counts[:, None], counts


def nll(z, t, weight=None, ignore_index=-100):
    c = np.ones(z.shape[1]) if weight is None else np.asarray(weight)
    q, _ = shares(t, z.shape[1], ignore_index)
    return -(c * q * z).sum(axis=1), -c * q, q @ c


def cross_entropy(z, t, weight=None, ignore_index=-100, label_smoothing=0.0):
    xp, n = namespace(z), z.shape[1]
    c = np.ones(n) if weight is None else np.asarray(weight)
    q, counts = shares(t, n, ignore_index)
    a = c * ((1 - label_smoothing) * q + label_smoothing / n * counts[:, None])
    shifted = z - z.max(axis=1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    return -(a * log_p).sum(axis=1), a.sum(axis=1, keepdims=True) * xp.exp(log_p) - a, q @ c if t.ndim == 1 else counts


def log_cosh(y, t):
    """A loss of the user's own."""
    xp, d = namespace(y), y - t
    return xp.log(xp.cosh(d)), xp.tanh(d)


def mean_log_cosh(y, t):
    values, gradient = log_cosh(y, t)
    return values.mean(), gradient / y.size


# the table ------------------------------------------------------------------------------------------------------------


def ramp(m):
    """Exact in float32, as all options here are: a column's number."""
    return 0.5 + 0.25 * (np.arange(m) % 5)


def _quantiles(m):
    return (1 + np.arange(m) % 15) / 16


ENTRIES = [
    Loss(
        cnn.MSELoss,
        squared,
        {"mse": {}, "mse sum": {"reduction": "sum"}, "mse gaps": {"ignore_nan": True}},
        gaps=("mse gaps",),
        exact=True,
    ),
    Loss(
        cnn.L1Loss,
        absolute,
        {"l1": {}, "l1 gaps": {"ignore_nan": True, "reduction": "sum"}},
        gaps=("l1 gaps",),
        kinked=True,
        exact=True,
        linear=True,
    ),
    Loss(
        cnn.HuberLoss,
        huber,
        {"huber 0.625": {"delta": 0.625}, "huber": {}, "huber 2.5": {"delta": 2.5}},
        kinked=True,
        exact=True,
    ),
    Loss(
        cnn.SmoothL1Loss,
        smooth_l1,
        {"smooth_l1 0.75": {"beta": 0.75}, "smooth_l1 0": {"beta": 0, "reduction": "sum"}, "smooth_l1": {}},
        kinked=True,
        exact=True,
    ),
    Loss(
        cnn.BCEWithLogitsLoss,
        bce_with_logits,
        {
            "bce": {},
            "bce weights": lambda m: {"pos_weight": ramp(m)},
            "bce smooth": {"pos_weight": 3.5, "label_smoothing": 0.125},
        },
        "probabilities",
        ours=("bce smooth",),
    ),
    Loss(
        cnn.PoissonNLLLoss,
        poisson_nll,
        {
            "poisson": {},
            "poisson rates full": {"log_input": False, "full": True, "eps": 0.125},
            "poisson full": {"full": True},
            "poisson rates": {"log_input": False},
            "poisson gaps": {"full": True, "ignore_nan": True},
        },
        "counts",
        gaps=("poisson gaps",),
    ),
    Loss(
        cnn.QuantileLoss,
        quantile,
        {
            "quantile": lambda m: {"quantiles": _quantiles(m)},
            "quantile gaps": lambda m: {"quantiles": _quantiles(m), "ignore_nan": True},
        },
        gaps=("quantile gaps",),
        kinked=True,
        exact=True,
        linear=True,
        torch=False,
    ),
    Loss(
        cnn.CrossEntropyLoss,
        cross_entropy,
        {
            "cross_entropy": {},
            "cross_entropy all": lambda m: {"weight": ramp(m), "label_smoothing": 0.25, "ignore_index": 1},
            "cross_entropy soft": {"reduction": "sum", "label_smoothing": 0.125},
            "cross_entropy weights": lambda m: {"weight": ramp(m)},
            "cross_entropy smooth": {"label_smoothing": 0.1},
            "cross_entropy uniform": {"label_smoothing": 1.0},
            "cross_entropy soft plain": {},
            "cross_entropy soft all": lambda m: {"weight": ramp(m), "label_smoothing": 0.25},
        },
        "classes",
        soft=("cross_entropy soft", "cross_entropy soft plain", "cross_entropy soft all"),
        by_row=True,
    ),
    Loss(
        cnn.NLLLoss,
        nll,
        {
            "nll": {},
            "nll all": lambda m: {"weight": ramp(m), "ignore_index": 1},
            "nll weights": lambda m: {"weight": ramp(m)},
        },
        "classes",
        by_row=True,
        linear=True,
    ),
    Loss(
        cnn.GaussianNLLLoss,
        gaussian_nll,
        {
            "gaussian": {},
            "gaussian variances": {"log_var": False, "full": True, "eps": 1e-9},
            "gaussian gaps": {"ignore_nan": True},
        },
        "halves",
        gaps=("gaussian gaps",),
    ),
    Loss(cnn.CallableLoss, log_cosh, {"own": {}}, torch=False),
]
CASES: dict[str, Case] = {
    name: Case(
        entry,
        options,
        "distributions" if name in entry.soft else "some " * (name in entry.gaps) + entry.targets,
        entry.torch and name not in entry.gaps + entry.ours,
    )
    for entry in ENTRIES
    for name, options in entry.cases.items()
}
LOSSES: dict[str, Case] = {name: CASES[name] for entry in ENTRIES for name in list(entry.cases)[:3]}


def targets(kind, rows, m, rng):
    """Targets of m outputs, as float64 or class indices; of "some", about a quarter are NaN, but not the first."""
    if kind.startswith("some "):
        t = targets(kind.removeprefix("some "), rows, m, rng)
        t[(rng.random(t.shape) < 0.25) & (np.arange(t.size).reshape(t.shape) > 0)] = np.nan
        return t
    if kind == "halves":
        m //= 2
    if kind == "classes":
        return rng.integers(0, m, rows)
    if kind == "probabilities":
        return rng.random((rows, m)).round(1)
    if kind == "distributions":
        q = rng.random((rows, m)) + 0.1
        return q / q.sum(axis=1, keepdims=True)
    if kind == "counts":
        return rng.poisson(2, (rows, m)).astype(float)
    return rng.standard_normal((rows, m))
