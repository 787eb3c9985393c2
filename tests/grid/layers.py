"""Layers: an entry makes the library's layer and a node of float64 NumPy that computes the same, forward and backward.

`Network` is a model of such nodes. Forward in evaluation mode, nodes also take arrays of JAX, which derives them.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import reference
from reference import namespace

import cnn

from .activations import ACTIVATIONS
from .losses import CASES, truth_of
from .optimizers import RULES

# nodes: forward keeps what backward needs; `arrays` are parameters, by their names in state_dict -------------------


class Node:
    """One layer: `arrays` its parameters, `grads` their gradients after `backward`."""

    def __init__(self, **options):
        self.options = options
        self.arrays: dict[str, np.ndarray] = {}
        self.statistics: dict[str, np.ndarray] = {}
        self.grads: dict[str, np.ndarray] = {}
        self.terms = 0.0  # the largest of the numbers whose difference the gradient of x is

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
        if "weight" in self.grads:
            self.grads["weight"] = self.grads["weight"] + l1 * np.sign(w) + 2 * l2 * w
        return l1 * abs(w).sum() + l2 * (w**2).sum()


class Function(Node):
    def forward(self, x, training):
        self.x = x
        return self.entry.value(x, self.options.get("param"))

    def backward(self, g):
        return g * self.entry.slope(self.x, self.options.get("param"))

    @property
    def entry(self):
        return ACTIVATIONS[self.options["name"]]


class PReLU(Node):
    """A slope for each column, or one for all."""

    def forward(self, x, training):
        self.x = x
        return namespace(x).where(x > 0, x, self.arrays["weight"] * x)

    def backward(self, g):
        w = self.arrays["weight"]
        dw = (g * np.minimum(self.x, 0)).sum(axis=0)
        self.grads = {"weight": dw if len(w) > 1 else dw.sum(keepdims=True)}
        return g * np.where(self.x > 0, 1, w)


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
        self.factor = self.mask if training else 1.0
        return x * self.factor

    def backward(self, g):
        return g * self.factor


class Norm(Node):
    def forward(self, x, training):
        self.x, self.fixed = x, self.statistics and not training
        weight, bias, eps = self.arrays.get("weight", 1.0), self.arrays.get("bias", 0.0), self.options["eps"]
        if self.fixed:
            self.normal = (x - self.statistics["running_mean"]) / (self.statistics["running_var"] + eps) ** 0.5
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
        self.terms = np.abs(g * weight / np.sqrt(self.x.var(axis=self.options["axis"], keepdims=True) + eps)).max()
        self.grads = {"weight": dw, "bias": db}
        return dx


class Constant(Node):
    def forward(self, x, training):
        self.width = x.shape[1]
        return self.arrays["bias"] + namespace(x).zeros((len(x), 1))

    def backward(self, g):
        self.grads = {"bias": g.sum(axis=0)}
        return np.zeros((len(g), self.width))


class Columns(Node):
    def forward(self, x, training):
        self.x = x
        return x[:, self.options["start"] : self.options["stop"]]

    def backward(self, g):
        dx = np.zeros(self.x.shape)
        dx[:, self.options["start"] : self.options["stop"]] = g
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
            return namespace(x).concatenate(self.ends, axis=1)
        return functools.reduce(getattr(namespace(x), self.kind), self.ends)

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
    """A whole model: a chain, a loss and the arrays of a state_dict.

    loss: (outputs, targets, weights of rows) -> (loss, gradient), or a case's name, or an object of the library.
    """

    def __init__(self, parts, loss, state):
        super().__init__(parts)
        if loss is not None:
            loss = CASES[loss].truth(2) if isinstance(loss, str) else loss
            self.loss = truth_of(loss) if isinstance(loss, cnn.losses.Loss) else loss
        self.states = {}
        for key, node in self.walk():
            node.arrays = {k: np.array(state[f"{key}.{k}"], float) for k in ("weight", "bias") if f"{key}.{k}" in state}
            names = ("running_mean", "running_var")
            node.statistics = {k: np.array(state[f"{key}.{k}"], float) for k in names if f"{key}.{k}" in state}

    def named(self, what="arrays"):
        nodes = self.walk()
        return {f"{key}.{name}": getattr(node, what)[name] for key, node in nodes for name in node.arrays}

    @property
    def parameters(self):
        """The arrays by name, to read or to write into; assigned, arrays by name."""
        return self.named()

    @parameters.setter
    def parameters(self, named):
        for key, node in self.walk():
            node.arrays = {name: named.get(f"{key}.{name}", a) for name, a in node.arrays.items()}

    @property
    def vector(self):
        """All parameters, in the order of the model's."""
        return np.concatenate([a.ravel() for a in self.named().values()])

    @vector.setter
    def vector(self, vector):
        for _, node in self.walk():
            for name, a in node.arrays.items():
                node.arrays[name], vector = vector[: a.size].reshape(a.shape), vector[a.size :]

    def forward(self, x, training=False):
        return super().forward(np.asarray(x, float) if namespace(x) is np else x, training)

    def outputs(self, x, vector):
        """In evaluation mode, with these parameters."""
        self.vector = vector
        return self.forward(x)

    def backward(self, g):
        """The gradient of x, and those of the parameters by name."""
        return super().backward(np.asarray(g, float)), self.named("grads")

    def penalty(self):
        return sum(node.penalty() for _, node in self.walk() if isinstance(node, Linear))

    def gradients(self, x, y, w=None, training=True, penalties=True):
        """Loss, gradient of x, and that of the parameters by name."""
        for _, node in self.walk():
            node.grads = {}
        loss, self.output_gradient = self.loss(self.forward(x, training), y, w)
        dx, _ = self.backward(self.output_gradient)
        if penalties:
            loss += self.penalty()
        return loss, dx, self.named("grads")

    def packed(self, x, y, training):
        """The gradient of the parameters as one vector."""
        return np.concatenate([g.ravel() for g in self.gradients(x, y, None, training)[2].values()])

    def train_step(self, x, y, rule=RULES[cnn.SGD], **hyper):
        """One step of an optimiser's rule, which `hyper` is for; the loss before it."""
        loss, _, grads = self.gradients(x, y)
        self.step(grads, rule, lambda name: hyper)
        return loss

    def step(self, grads, rule, hyper):
        """hyper(name): of a parameter."""
        for key, node in self.walk():
            for name, a in node.arrays.items():
                full = f"{key}.{name}"
                node.arrays[name], self.states[full] = rule(a, grads[full], self.states.get(full), **hyper(full))

    def distance_to_kinks(self):
        """The least |z| that went into a ReLU, PReLU or the like at the last forward."""
        nodes = [node for _, node in self.walk()]
        kinked = [node.entry.distance(node.x) for node in nodes if isinstance(node, Function) and node.entry.kinked]
        return min(
            (z.min() for z in [*kinked, *(abs(node.x) for node in nodes if isinstance(node, PReLU))]), default=np.inf
        )


# the table ------------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """make(n, dtype): the library's layer for n inputs; node(): its truth; width(n): of its outputs."""

    covers: tuple[type, ...]
    make: Any
    node: Any
    width: Any = lambda n: n
    kinked: bool = False

    @property
    def branches(self):
        return bool({cnn.Add, cnn.Multiply, cnn.Maximum, cnn.Concat, cnn.Constant, cnn.Columns} & set(self.covers))


def _branch(n, m, dtype):
    return cnn.Sequential([cnn.Linear(n, m), cnn.Tanh()], dtype=dtype)


def _branch_node():
    return Chain([Linear(), Function(name="tanh")])


def _norm(cls, axis, *, eps, momentum=None, **options):
    own = {"momentum": momentum} if axis == 0 else {}
    node = functools.partial(Norm, axis=axis, eps=eps, momentum=momentum)
    return Layer((cls,), lambda n, dtype: cls(n, eps=eps, **own, **options), node)


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
    "batch": _norm(cnn.BatchNorm1d, 0, eps=0.1, momentum=0.3),
    "batch bare": _norm(cnn.BatchNorm1d, 0, eps=0.5, affine=False),
    "layer": _norm(cnn.LayerNorm, 1, eps=0.1),
    "layer no bias": _norm(cnn.LayerNorm, 1, eps=0.2, bias=False),
    "layer bare": _norm(cnn.LayerNorm, 1, eps=0.3, elementwise_affine=False),
    "constant": Layer(
        (cnn.Constant,),
        lambda n, dtype: cnn.Concat(cnn.Constant(3, init=-0.5), cnn.Linear(n, 4), cnn.Constant(1, init=0.25)),
        lambda: Gate("concat", [Constant(), Linear(), Constant()]),
        lambda n: 8,
    ),
    "prelu": Layer((cnn.PReLU,), lambda n, dtype: cnn.PReLU(), PReLU, kinked=True),
    "prelu columns": Layer((cnn.PReLU,), lambda n, dtype: cnn.PReLU(n, -0.3), PReLU, kinked=True),
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
        kinked=True,
    ),
    "dense": Layer(
        (cnn.Concat,),
        lambda n, dtype: cnn.Concat(cnn.Identity(), _branch(n, 5, dtype), cnn.Linear(n, 1)),
        lambda: Gate("concat", [Function(name="identity"), _branch_node(), Linear()]),
        lambda n: n + 6,
    ),
    "columns": Layer(
        (cnn.Columns,),
        lambda n, dtype: cnn.Concat(
            cnn.Columns(0, 1),
            cnn.Sequential([cnn.Linear(n, 5), cnn.Concat(cnn.Columns(1, 4), cnn.Columns(2, 5, 5))], dtype=dtype),
        ),
        lambda: Gate(
            "concat",
            [
                Columns(start=0, stop=1),
                Chain([Linear(), Gate("concat", [Columns(start=1, stop=4), Columns(start=2, stop=5)])]),
            ],
        ),
        lambda n: 7,
    ),
    "nested": Layer(
        (cnn.Sequential,),
        lambda n, dtype: cnn.Sequential([cnn.Sequential([cnn.Linear(n, 6)], dtype=dtype), cnn.SiLU()], dtype=dtype),
        lambda: Chain([Chain([Linear()]), Function(name="silu")]),
        lambda n: 6,
    ),
}
