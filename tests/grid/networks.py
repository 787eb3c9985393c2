"""Random networks of the table's entries: the library's model and its truth, from one description.

A description ("spec") is a list of parts, one after the other: (in, out, bias) or (in, out, bias, l2) for a linear
layer, (name, parameter) for an activation, (name, inputs) for another entry of LAYERS, and (gate, branches), a branch
being a list of parts, as [(3, 8, True), ("elu", 0.5), ("add", [[("identity", None)], [(8, 8, True), ("tanh", None)]])].
"""

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

import cnn

from .activations import ACTIVATIONS
from .layers import LAYERS, Chain, Function, Gate, Linear, Network
from .losses import CASES

GATES = {"add": cnn.Add, "multiply": cnn.Multiply, "maximum": cnn.Maximum, "concat": cnn.Concat}
# Around the widths of a vector and of two, and narrow or long enough to be kept transposed.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 300)
FEW_WIDTHS = (1, 2, 3, 7, 8, 9, 16, 17, 33)


def is_linear(part):
    return isinstance(part[0], int)


def chain(*widths, activation=("tanh", None), bias=True):
    """The description of linear layers of these widths with activations between them."""
    spec = []
    for n_in, n_out in pairwise(widths):
        spec += [(n_in, n_out, bias), activation]
    return spec[:-1]


def layer_and_node(part, dtype):
    """The library's layer of a part, and its truth."""
    if is_linear(part):
        options = {"l2": part[3]} if len(part) == 4 else {}
        return cnn.Linear(*part[:3], **options), Linear(**options)
    name, given = part
    if name in ACTIVATIONS:
        return ACTIVATIONS[name].make(given), Function(name=name, param=given)
    if name in LAYERS:
        return LAYERS[name].make(given, dtype), LAYERS[name].node()
    layers, nodes = [], []
    for branch in given:
        inner, truths = zip(*(layer_and_node(part, dtype) for part in branch), strict=True)
        layers.append(inner[0] if len(inner) == 1 else cnn.Sequential(inner, dtype=dtype))
        nodes.append(truths[0] if len(inner) == 1 else Chain(truths))
    return GATES[name](*layers), Gate(name, nodes)


def build(spec, loss=None, *, optimizer=None, dtype="float64", seed=0):
    """The model and its truth; loss: a name of CASES, or an object. Norms and their statistics are random."""
    layers, nodes = zip(*(layer_and_node(part, dtype) for part in spec), strict=True)
    criterion = CASES[loss].make(2) if isinstance(loss, str) else loss
    layers = [*layers, *([] if loss is None else [criterion])]
    model = cnn.Sequential(layers, optimizer=optimizer, dtype=dtype, seed=seed)
    state, random = model.state_dict(), np.random.default_rng(seed)
    norms = {name.rpartition(".")[0] for name, a in state.items() if name.endswith("weight") and a.ndim == 1}
    for name, array in state.items():
        layer, _, kind = name.rpartition(".")
        if kind == "running_var" or (kind == "weight" and layer in norms):
            state[name] = random.uniform(0.5, 2, array.shape)
        elif kind == "running_mean" or (kind == "bias" and layer in norms):
            state[name] = random.uniform(-0.5, 0.5, array.shape)
    if norms or any("running" in name for name in state):
        model.load_weights(state)
    return model, Network(nodes, loss, model.state_dict())


# drawing --------------------------------------------------------------------------------------------------------------


class Draw:
    """pick(options) gives one of them: hypothesis', or a random generator's."""

    def __init__(self, pick, *, widths, activations, layers=(), gates=(), l2=(0.0,)):
        self.pick, self.widths, self.l2 = pick, tuple(widths), tuple(l2)
        self.activations, self.layers, self.gates = list(activations), list(layers), list(gates)

    def linear(self, n, m=None):
        m = self.pick(self.widths) if m is None else m
        return (n, m, self.pick((False, True)), self.pick(self.l2)), m

    def activation(self):
        name = self.pick(self.activations)
        return name, self.pick(ACTIVATIONS[name].params or (None,))

    def gate(self, n, depth):
        gate, m = self.pick(self.gates), self.pick((n, self.pick(self.widths)))
        branches = [self.branch(n, m, depth) for _ in range(self.pick((2, 3)))]
        return (gate, branches), m * (len(branches) if gate == "concat" else 1)

    def branch(self, n, m, depth):
        """What keeps the width alone, or a chain that begins with a linear layer."""
        if n == m and self.pick((False, True)):
            return [self.activation()]
        parts, width = self.chain(n, depth, 2)
        return parts if width == m else [*parts, self.linear(width, m)[0]]

    def chain(self, n, depth, most):
        """A linear layer and up to `most` parts behind it, gates `depth` deep; and the width."""
        first, n = self.linear(n)
        parts = [first]
        kinds = [
            "linear",
            "activation",
            *["layer"] * (3 * bool(self.layers)),
            *["gate"] * (2 * bool(self.gates and depth)),
        ]
        for _ in range(self.pick(range(most + 1))):
            kind = self.pick(kinds)
            if kind == "linear":
                part, n = self.linear(n)
            elif kind == "activation":
                part = self.activation()
            elif kind == "layer":
                name = self.pick(self.layers)
                part, n = (name, n), LAYERS[name].width(n)
            else:
                part, n = self.gate(n, depth - 1)
            parts.append(part)
        return parts, n


def _hypothesis(draw):
    return lambda options: draw(st.sampled_from(options))


@st.composite
def specs(draw, widths=WIDTHS, depth=4, names=tuple(ACTIVATIONS)):
    """Up to `depth` linear layers, with any activations before, between and behind them."""
    source = Draw(_hypothesis(draw), widths=widths, activations=names)
    spec = [source.activation() for _ in range(source.pick((0, 1)))]
    n = source.pick(source.widths)
    for _ in range(source.pick(range(1, depth + 1))):
        part, n = source.linear(n)
        spec += [part[:3], *(source.activation() for _ in range(source.pick((0, 1, 2))))]
    return spec


@st.composite
def graphs(draw, n_out=None, depth=2, names=tuple(ACTIVATIONS), gates=tuple(GATES)):
    """With branches, from any width to n_out (None: any). Where all activations are smooth, so are the other layers."""
    if smooth := not any(ACTIVATIONS[name].kinked for name in names):
        gates = [name for name in gates if name != "maximum"]
    layers = [name for name, entry in LAYERS.items() if not (smooth and entry.kinked)]
    source = Draw(_hypothesis(draw), widths=FEW_WIDTHS, activations=names, layers=layers, gates=gates, l2=(0.0, 0.1))
    n = source.pick(source.widths)
    parts, width = source.chain(n, depth, 3)
    return parts if n_out in (None, width) else [*parts, (width, n_out, True, 0.1)]


def random_model(seed, dtype="float32", branches=True):
    """A model with layers of any kind, its parameters and statistics random: for what leaves the library.

    As many seeds that follow one another as LAYERS has entries have each of them.
    """
    random = np.random.default_rng(seed)
    source = Draw(
        lambda options: options[random.integers(len(options))],
        widths=FEW_WIDTHS,
        activations=ACTIVATIONS,
        layers=[name for name, entry in LAYERS.items() if name != "linear penalised" and branches >= entry.branches],
        gates=GATES if branches else (),
    )
    spec = [source.activation() for _ in range(source.pick((0, 0, 1)))]
    parts, width = source.chain(source.pick(source.widths), 2, 6)
    name = source.layers[seed % len(source.layers)]
    spec += [*parts, (name, width), source.linear(LAYERS[name].width(width))[0]]
    model, _ = build(spec, dtype=dtype)
    # Weights of norm 1, so that numbers neither grow nor vanish on the way.
    state = {}
    for name, array in model.state_dict().items():
        if name.endswith("running_var"):
            state[name] = random.uniform(0.5, 2, array.shape)
        elif name.endswith("num_batches_tracked"):
            state[name] = array
        else:
            state[name] = random.standard_normal(array.shape) / max(1, array.shape[0] if array.ndim == 2 else 1) ** 0.5
    model.load_weights(state)
    return model


def inputs_of(model, rows, scale=1.0):
    """x of shape (rows, in_features)."""
    return (scale * np.random.default_rng(rows).standard_normal((rows, model._in_features()))).astype(model.dtype)
