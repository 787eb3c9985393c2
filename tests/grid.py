"""The table of the library's parts: one entry for each layer, activation, loss, optimiser and schedule, with its truth.

An entry makes the library's object and a node of float64 NumPy that computes the same, forward and backward, by the
formulas of reference.py. test_grid.py proves the nodes by finite differences and the library by the nodes; it fails if
something public has no entry here. After PyTorch's OpInfo.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import reference

import cnn

# nodes: forward keeps what backward needs; `arrays` are parameters, by their names in state_dict -------------------


class Node:
    """One layer: `arrays` its parameters, `grads` their gradients after `backward`."""

    def __init__(self, **options):
        self.options = options
        self.arrays: dict[str, np.ndarray] = {}
        self.statistics: dict[str, np.ndarray] = {}
        self.grads: dict[str, np.ndarray] = {}

    def walk(self, key=""):
        """The layers of one piece and the beginnings of their names, in the order of state_dict."""
        yield key, self


class Linear(Node):
    def forward(self, x, training):
        self.x = x
        return reference.linear_forward(x, self.arrays["weight"], self.arrays.get("bias"))

    def backward(self, g):
        g, dw, db = reference.linear_backward(g, self.x, self.arrays["weight"])
        self.grads = {"weight": dw, "bias": db}
        return g

    def penalty(self):
        w, l1, l2 = self.arrays["weight"], self.options.get("l1", 0), self.options.get("l2", 0)
        if self.grads:
            self.grads["weight"] = self.grads["weight"] + l1 * np.sign(w) + 2 * l2 * w
        return l1 * np.abs(w).sum() + l2 * (w**2).sum()


class Function(Node):
    def forward(self, x, training):
        self.x = x
        return reference.activation(self.options["name"], x, self.options.get("param"))

    def backward(self, g):
        return g * reference.activation_derivative(self.options["name"], self.x, self.options.get("param"))


class Rows(Node):
    """Softmax, or its logarithm."""

    def forward(self, x, training):
        self.x = x
        return reference.log_softmax(x) if self.options["logarithm"] else reference.softmax(x)

    def backward(self, g):
        return (reference.log_softmax_backward if self.options["logarithm"] else reference.softmax_backward)(g, self.x)


class Dropout(Node):
    """The mask, of zeros and 1 / (1 - p), is test_grid.py's to set: it follows from the library's random numbers."""

    mask: Any = None

    def forward(self, x, training):
        self.factor = self.mask if training else np.ones_like(x)
        return x * self.factor

    def backward(self, g):
        return g * self.factor


class Norm(Node):
    def forward(self, x, training):
        self.x, self.fixed = x, self.statistics and not training
        weight, bias, eps = self.arrays.get("weight", 1.0), self.arrays.get("bias", 0.0), self.options["eps"]
        if self.fixed:
            self.normal = (x - self.statistics["running_mean"]) / np.sqrt(self.statistics["running_var"] + eps)
            return self.normal * weight + bias
        if self.statistics:
            self.seen = getattr(self, "seen", 0) + 1
            part = self.options["momentum"] or 1 / self.seen
            for name, now in (("running_mean", x.mean(axis=0)), ("running_var", x.var(axis=0, ddof=1))):
                self.statistics[name] = (1 - part) * self.statistics[name] + part * now
        return reference.norm(x, self.options["axis"], eps, weight, bias)

    def backward(self, g):
        weight, eps = self.arrays.get("weight", 1.0), self.options["eps"]
        if self.fixed:
            self.grads = {"weight": (g * self.normal).sum(axis=0), "bias": g.sum(axis=0)}
            return g * weight / np.sqrt(self.statistics["running_var"] + eps)
        dx, dw, db = reference.norm_backward(g, self.x, self.options["axis"], eps, weight)
        self.grads = {"weight": dw, "bias": db}
        return dx


class Gate(Node):
    def __init__(self, kind, branches):
        super().__init__()
        self.kind, self.branches = kind, branches

    def walk(self, key=""):
        for i, branch in enumerate(self.branches):
            yield from branch.walk(f"{key}.{i}")

    def forward(self, x, training):
        self.ends = [branch.forward(x, training) for branch in self.branches]
        if self.kind == "concat":
            return np.concatenate(self.ends, axis=1)
        return functools.reduce({"add": np.add, "multiply": np.multiply, "maximum": np.maximum}[self.kind], self.ends)

    def backward(self, g):
        if self.kind == "concat":
            parts = np.split(g, np.cumsum([end.shape[1] for end in self.ends])[:-1], axis=1)
        elif self.kind == "add":
            parts = [g for _ in self.ends]
        elif self.kind == "multiply":
            others = [[b for b in self.ends if b is not a] for a in self.ends]
            parts = [g * functools.reduce(np.multiply, other) for other in others]
        else:
            first = np.argmax(np.stack(self.ends), axis=0)
            parts = [g * (first == i) for i in range(len(self.ends))]
        return sum(branch.backward(part) for branch, part in zip(self.branches, parts, strict=True))


class Chain(Node):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def walk(self, key=""):
        for i, part in enumerate(self.parts):
            yield from part.walk(f"{key}.{i}" if key else str(i))

    def forward(self, x, training):
        for part in self.parts:
            x = part.forward(x, training)
        return x

    def backward(self, g):
        for part in reversed(self.parts):
            g = part.backward(g)
        return g


class Network(Chain):
    """A whole model: a chain and a loss (outputs, targets, sample_weight) -> (loss, gradient)."""

    def __init__(self, parts, loss, state):
        super().__init__(parts)
        self.loss = loss
        for key, node in self.walk():
            node.arrays = {k: np.float64(state[f"{key}.{k}"]) for k in ("weight", "bias") if f"{key}.{k}" in state}
            names = ("running_mean", "running_var")
            node.statistics = {k: np.float64(state[f"{key}.{k}"]) for k in names if f"{key}.{k}" in state}

    def named(self, what="arrays"):
        nodes = self.walk()
        return {f"{key}.{name}": getattr(node, what)[name] for key, node in nodes for name in node.arrays}

    @property
    def parameters(self):
        return np.concatenate([a.ravel() for a in self.named().values()])

    @parameters.setter
    def parameters(self, vector):
        for _, node in self.walk():
            for name, a in node.arrays.items():
                node.arrays[name], vector = vector[: a.size].reshape(a.shape), vector[a.size :]

    def gradients(self, x, y, w=None, training=True, penalties=True):
        """Loss, gradient of x, and that of the parameters by name."""
        for _, node in self.walk():
            node.grads = {}
        loss, self.output_gradient = self.loss(self.forward(x, training), y, w)
        dx = self.backward(self.output_gradient)
        if penalties:
            loss += sum(node.penalty() for _, node in self.walk() if isinstance(node, Linear))
        return loss, dx, self.named("grads")

    def packed(self, x, y, training):
        """The gradient of the parameters as one vector."""
        return np.concatenate([g.ravel() for g in self.gradients(x, y, None, training)[2].values()])


# the table ------------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """make(n): the library's layer for n inputs; node(n): its truth; width(n): of its outputs."""

    covers: tuple[type, ...]
    make: Any
    node: Any
    width: Any = lambda n: n


def _branch(n, m, dtype):
    return cnn.Sequential([cnn.Linear(n, m), cnn.Tanh()], dtype=dtype)


def _branch_node():
    return Chain([Linear(), Function(name="tanh")])


def _affine(name, cls, **options):
    return Layer((cls,), lambda n, dtype: cls(n, **options), functools.partial(Norm, **NORMS[name]))


NORMS = {
    "batch": {"axis": 0, "eps": 0.1, "momentum": 0.3},
    "batch bare": {"axis": 0, "eps": 0.5, "momentum": None},
    "layer": {"axis": 1, "eps": 0.1},
    "layer no bias": {"axis": 1, "eps": 0.2},
    "layer bare": {"axis": 1, "eps": 0.3},
}
DROPPED = 0.25

LAYERS: dict[str, Layer] = {
    "linear": Layer((cnn.Linear,), lambda n, dtype: cnn.Linear(n, n + 2), Linear, lambda n: n + 2),
    "linear no bias": Layer((cnn.Linear,), lambda n, dtype: cnn.Linear(n, 3, bias=False), Linear, lambda n: 3),
    "linear penalised": Layer(
        (cnn.Linear,),
        lambda n, dtype: cnn.Linear(n, n, l1=0.01, l2=0.02),
        functools.partial(Linear, l1=0.01, l2=0.02),
    ),
    "softmax": Layer((cnn.Softmax,), lambda n, dtype: cnn.Softmax(), functools.partial(Rows, logarithm=False)),
    "log_softmax": Layer((cnn.LogSoftmax,), lambda n, dtype: cnn.LogSoftmax(), functools.partial(Rows, logarithm=True)),
    "dropout": Layer((cnn.Dropout,), lambda n, dtype: cnn.Dropout(DROPPED), Dropout),
    "batch": _affine("batch", cnn.BatchNorm1d, eps=0.1, momentum=0.3),
    "batch bare": _affine("batch bare", cnn.BatchNorm1d, eps=0.5, momentum=None, affine=False),
    "layer": _affine("layer", cnn.LayerNorm, eps=0.1),
    "layer no bias": _affine("layer no bias", cnn.LayerNorm, eps=0.2, bias=False),
    "layer bare": _affine("layer bare", cnn.LayerNorm, eps=0.3, elementwise_affine=False),
    "residual": Layer(
        (cnn.Add, cnn.Sequential),
        lambda n, dtype: cnn.Add(cnn.Identity(), _branch(n, n, dtype), cnn.SiLU()),
        lambda: Gate("add", [Function(name="identity"), _branch_node(), Function(name="silu")]),
    ),
    "gated": Layer(
        (cnn.Multiply,),
        lambda n, dtype: cnn.Multiply(_branch(n, n + 1, dtype), _branch(n, n + 1, dtype), cnn.Linear(n, n + 1)),
        lambda: Gate("multiply", [_branch_node(), _branch_node(), Linear()]),
        lambda n: n + 1,
    ),
    "maxout": Layer(
        (cnn.Maximum,),
        lambda n, dtype: cnn.Maximum(cnn.Linear(n, 4), _branch(n, 4, dtype)),
        lambda: Gate("maximum", [Linear(), _branch_node()]),
        lambda n: 4,
    ),
    "concat": Layer(
        (cnn.Concat,),
        lambda n, dtype: cnn.Concat(cnn.Identity(), _branch(n, 5, dtype), cnn.Linear(n, 1)),
        lambda: Gate("concat", [Function(name="identity"), _branch_node(), Linear()]),
        lambda n: n + 6,
    ),
    "nested": Layer(
        (cnn.Sequential,),
        lambda n, dtype: cnn.Sequential([cnn.Sequential([cnn.Linear(n, 6)], dtype=dtype), cnn.ELU(0.5)], dtype=dtype),
        lambda: Chain([Chain([Linear()]), Function(name="elu", param=0.5)]),
        lambda n: 6,
    ),
}


class Activation(NamedTuple):
    make: Any
    name: str
    param: float | None = None

    def node(self):
        return Function(name=self.name, param=self.param)


ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(cnn.Identity, "identity"),
    "relu": Activation(cnn.ReLU, "relu"),
    "leaky_relu": Activation(cnn.LeakyReLU, "leaky_relu"),
    "leaky_relu -0.3": Activation(lambda: cnn.LeakyReLU(-0.3), "leaky_relu", -0.3),
    "elu": Activation(cnn.ELU, "elu"),
    "elu -0.4": Activation(lambda: cnn.ELU(-0.4), "elu", -0.4),
    "sigmoid": Activation(cnn.Sigmoid, "sigmoid"),
    "tanh": Activation(cnn.Tanh, "tanh"),
    "gelu": Activation(cnn.GELU, "gelu"),
    "gelu_tanh": Activation(lambda: cnn.GELU("tanh"), "gelu_tanh"),
    "silu": Activation(cnn.SiLU, "silu"),
    "softplus": Activation(cnn.Softplus, "softplus"),
}


class Loss(NamedTuple):
    """make(m): the library's loss for m outputs; options(m): the reference's; targets: how they are drawn."""

    make: Any
    name: str
    options: Any = lambda m: {}
    targets: str = "numbers"
    positive: bool = False  # the outputs must be: a Softplus stands before it
    second: bool = True  # has a second derivative

    def truth(self, m):
        if self.name == "log_cosh":
            return lambda y, t, w: log_cosh(y, t)
        return lambda y, t, w: reference.loss(self.name, y, t, w, **self.options(m))


def log_cosh(y, t):
    """A loss of the user's own."""
    d = y - t
    return np.log(np.cosh(d)).mean(), np.tanh(d) / d.size


def _ramp(m):
    return np.linspace(0.5, 1.5, m)


def _quantiles(m):
    return np.linspace(0.1, 0.9, m)


def _classes(**options):
    return {"weight": None, "ignore_index": None, "label_smoothing": 0.0} | options


def _log_likelihood(**options):
    return {"weight": None, "ignore_index": None} | options


def _poisson(**options):
    return {"log_input": True, "full": False, "eps": 1e-8} | options


LOSSES: dict[str, Loss] = {
    "mse": Loss(lambda m: cnn.MSELoss(), "mse"),
    "mse sum": Loss(lambda m: cnn.MSELoss(reduction="sum"), "mse", lambda m: {"reduction": "sum"}),
    "l1": Loss(lambda m: cnn.L1Loss(), "l1"),
    "huber": Loss(lambda m: cnn.HuberLoss(delta=0.6), "huber", lambda m: {"delta": 0.6}),
    "smooth_l1": Loss(lambda m: cnn.SmoothL1Loss(beta=0.7), "smooth_l1", lambda m: {"beta": 0.7}),
    "smooth_l1 sum": Loss(
        lambda m: cnn.SmoothL1Loss(beta=0, reduction="sum"), "smooth_l1", lambda m: {"beta": 0, "reduction": "sum"}
    ),
    "bce": Loss(lambda m: cnn.BCEWithLogitsLoss(), "bce", lambda m: {"pos_weight": None}, "probabilities"),
    "bce weighted": Loss(
        lambda m: cnn.BCEWithLogitsLoss(pos_weight=_ramp(m)), "bce", lambda m: {"pos_weight": _ramp(m)}, "probabilities"
    ),
    "cross_entropy": Loss(lambda m: cnn.CrossEntropyLoss(), "cross_entropy", lambda m: _classes(), "classes"),
    "cross_entropy weighted": Loss(
        lambda m: cnn.CrossEntropyLoss(_ramp(m), label_smoothing=0.2, ignore_index=0),
        "cross_entropy",
        lambda m: _classes(weight=_ramp(m), label_smoothing=0.2, ignore_index=0),
        "classes",
    ),
    "cross_entropy soft": Loss(
        lambda m: cnn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1),
        "cross_entropy",
        lambda m: _classes(label_smoothing=0.1, reduction="sum"),
        "distributions",
    ),
    "nll": Loss(lambda m: cnn.NLLLoss(), "nll", lambda m: _log_likelihood(), "classes"),
    "nll weighted": Loss(
        lambda m: cnn.NLLLoss(_ramp(m), ignore_index=0),
        "nll",
        lambda m: _log_likelihood(weight=_ramp(m), ignore_index=0),
        "classes",
    ),
    "poisson": Loss(lambda m: cnn.PoissonNLLLoss(), "poisson", lambda m: _poisson(), "counts"),
    "poisson rates": Loss(
        lambda m: cnn.PoissonNLLLoss(log_input=False, full=True, eps=0.1),
        "poisson",
        lambda m: _poisson(log_input=False, full=True, eps=0.1),
        "counts",
        positive=True,
    ),
    "quantile": Loss(
        lambda m: cnn.QuantileLoss(_quantiles(m)), "quantile", lambda m: {"quantiles": _quantiles(m)}, "numbers"
    ),
    "own": Loss(lambda m: cnn.CallableLoss(log_cosh), "log_cosh", second=False),
}


class Optimizer(NamedTuple):
    """make(): the library's; rule and options: the reference's; common: what the groups, clipping and averages are."""

    cls: type
    rule: Any
    options: dict[str, Any]
    common: dict[str, Any] = {}  # noqa: RUF012

    def make(self):
        return self.cls(**self.options, **self.common)

    def step(self, network, grads, states):
        """Take the reference's step with these gradients."""
        common = self.common
        if limit := common.get("clip_value"):
            grads = {k: np.clip(g, -limit, limit) for k, g in grads.items()}
        if limit := common.get("clip_norm"):
            norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
            grads = {k: g * min(1, limit / (norm + 1e-6)) for k, g in grads.items()}
        groups = {str(layer): g for g in common.get("groups", ()) for layer in g["layers"]}
        for key, node in network.walk():
            own = next((g for name, g in groups.items() if f"{key}.".startswith(f"{name}.")), {})
            for name, a in node.arrays.items():
                options = {**self.cls().get_config(), **self.options}
                options |= {k: v for k, v in own.items() if k != "layers"}
                if a.ndim == 1 and not common.get("decay_bias", True):
                    options["weight_decay"] = 0.0
                full = f"{key}.{name}"
                node.arrays[name], states[full] = self.rule(a, grads[full], states.get(full), **options)


_adamw = functools.partial(reference.adam_step, decoupled=True)
GROUP = [{"layers": [0], "lr": 0.02, "weight_decay": 0.05}]

# eps is large where the step is a quotient of gradients: rounding of a gradient near 0 would be the step.
OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Optimizer(cnn.SGD, reference.sgd_step, {"lr": 0.05}),
    "sgd decay": Optimizer(cnn.SGD, reference.sgd_step, {"lr": 0.05, "weight_decay": 0.1}),
    "sgd momentum": Optimizer(cnn.SGD, reference.sgd_step, {"lr": 0.03, "momentum": 0.9, "dampening": 0.2}),
    "sgd nesterov": Optimizer(
        cnn.SGD, reference.sgd_step, {"lr": 0.03, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}
    ),
    "sgd clip_norm": Optimizer(cnn.SGD, reference.sgd_step, {"lr": 0.1}, {"clip_norm": 0.3}),
    "sgd clip_value": Optimizer(
        cnn.SGD, reference.sgd_step, {"lr": 0.1, "momentum": 0.5}, {"clip_value": 0.02, "clip_norm": 0.1}
    ),
    "sgd groups": Optimizer(
        cnn.SGD, reference.sgd_step, {"lr": 0.05, "weight_decay": 0.1}, {"groups": GROUP, "decay_bias": False}
    ),
    "adam": Optimizer(cnn.Adam, reference.adam_step, {"lr": 0.02, "eps": 0.01}),
    "adam amsgrad": Optimizer(
        cnn.Adam,
        reference.adam_step,
        {"lr": 0.02, "betas": (0.5, 0.7), "eps": 0.02, "weight_decay": 0.1, "amsgrad": True},
    ),
    "adamw": Optimizer(cnn.AdamW, _adamw, {"lr": 0.02, "eps": 0.01, "weight_decay": 0.2}, {"decay_bias": False}),
    "adamw average": Optimizer(cnn.AdamW, _adamw, {"lr": 0.02, "eps": 0.01}, {"ema_decay": 0.8, "groups": GROUP}),
    "rmsprop": Optimizer(cnn.RMSprop, reference.rmsprop_step, {"lr": 0.01, "alpha": 0.8, "eps": 0.05}),
    "rmsprop centered": Optimizer(
        cnn.RMSprop,
        reference.rmsprop_step,
        {"lr": 0.01, "alpha": 0.8, "eps": 0.05, "centered": True, "momentum": 0.5, "weight_decay": 0.1},
    ),
    "adagrad": Optimizer(
        cnn.Adagrad,
        reference.adagrad_step,
        {"lr": 0.05, "lr_decay": 0.1, "eps": 0.05, "initial_accumulator_value": 0.1, "weight_decay": 0.1},
    ),
}

# schedules: the learning rates of steps 0 to 5, worked out by hand for lr = 0.1
_cosine = [0.1, 0.1 * (2 + 2**0.5) / 4, 0.05, 0.1 * (2 - 2**0.5) / 4]
SCHEDULES: dict[Any, list[float]] = {
    cnn.ConstantLR(0.5, 2, interval="step"): [0.05, 0.05, 0.1, 0.1, 0.1, 0.1],
    cnn.LinearLR(0.5, 1.0, 4, interval="step"): [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1],
    cnn.PolynomialLR(4, 2.0, interval="step"): [0.1, 0.05625, 0.025, 0.00625, 0, 0],
    cnn.StepLR(2, 0.1, interval="step"): [0.1, 0.1, 0.01, 0.01, 0.001, 0.001],
    cnn.MultiStepLR([1, 4], 0.5, interval="step"): [0.1, 0.05, 0.05, 0.05, 0.025, 0.025],
    cnn.ExponentialLR(0.5, interval="step"): [0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125],
    cnn.CosineAnnealingLR(4, interval="step"): [*_cosine, 0.0, _cosine[3]],
    cnn.CosineAnnealingWarmRestarts(4, interval="step"): [*_cosine, *_cosine[:2]],
    cnn.OneCycleLR(
        0.2, 6, pct_start=0.5, div_factor=2, final_div_factor=4, anneal_strategy="linear", cycle_momentum=False
    ): [0.1, 0.15, 0.2, 0.2 - 0.175 / 3, 0.2 - 0.35 / 3, 0.025],
    cnn.SequentialLR([cnn.ConstantLR(0.5, 9, interval="step"), cnn.StepLR(1, 0.1, interval="step")], [2]): [
        0.05,
        0.05,
        0.1,
        0.01,
        0.001,
        0.0001,
    ],
    cnn.ReduceLROnPlateau(factor=0.5): [0.1] * 6,
}


def targets(kind, rows, m, rng):
    """Targets of m outputs, as float64 or class indices."""
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
