"""Random networks with branches: the library's layers, and a forward pass of the same numbers in NumPy or JAX.

A description is a list of parts, one after the other: (name, number) for an activation and what else keeps the width,
("linear", n_in, n_out, bias, l2), ("layer_norm" or "batch_norm", width, affine), and (gate, list of branches), a branch
being a list of parts. Parameters have the names of `state_dict`.
"""

import numpy as np
import reference
from hypothesis import strategies as st
from networks import ACTIVATIONS, PARAMS, SMOOTH

import cnn

GATES = {"add": cnn.Add, "multiply": cnn.Multiply, "maximum": cnn.Maximum, "concat": cnn.Concat}
KEEPING = {
    "softmax": lambda number: cnn.Softmax(),
    "log_softmax": lambda number: cnn.LogSoftmax(),
    "dropout": cnn.Dropout,
    **ACTIVATIONS,
}
WIDTHS = (1, 2, 3, 7, 8, 9, 16, 17, 33)


def layer(part):
    """The layer of a part."""
    name = part[0]
    if name == "linear":
        return cnn.Linear(*part[1:4], l2=part[4])
    if name == "layer_norm":
        return cnn.LayerNorm(part[1], eps=1e-3, elementwise_affine=part[2])
    if name == "batch_norm":
        return cnn.BatchNorm1d(part[1], affine=part[2])
    if name in GATES:
        return GATES[name](*(branch(parts) for parts in part[1]))
    return KEEPING[name](part[1])


def branch(parts):
    """A lone layer, or a nested model."""
    return layer(parts[0]) if len(parts) == 1 else cnn.Sequential([layer(part) for part in parts])


def build(parts, loss=None, *, dtype="float64", seed=0, optimizer=None):
    """The model; what is not random at first (norms and their statistics) is made so."""
    model = cnn.Sequential([*map(layer, parts), *([loss] if loss else [])], dtype=dtype, seed=seed, optimizer=optimizer)
    random = np.random.default_rng(seed)
    state = model.state_dict()
    for name, array in state.items():
        if name.endswith("running_var") or (name.endswith("weight") and array.ndim == 1):
            state[name] = random.uniform(0.5, 2, array.shape)
        elif array.ndim == 1:
            state[name] = random.uniform(-0.5, 0.5, array.shape)
    model.load_weights(state)
    return model


def softmax(xp, x):
    e = xp.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def normalised(xp, part, x, state, key):
    if part[0] == "layer_norm":
        mean, var, eps = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True), 1e-3
    else:
        mean, var, eps = state[f"{key}.running_mean"], state[f"{key}.running_var"], 1e-5
    y = (x - mean) / xp.sqrt(var + eps)
    return y * state[f"{key}.weight"] + state[f"{key}.bias"] if part[2] else y


def forward(parts, x, state, xp=np, activation=reference.activation):
    """The outputs in evaluation mode; state: arrays by name."""
    for i, part in enumerate(parts):
        name, here = part[0], str(i)
        if name == "linear":
            x = x @ state[f"{here}.weight"] + state.get(f"{here}.bias", 0.0)
        elif name.endswith("_norm"):
            x = normalised(xp, part, x, state, here)
        elif name == "softmax":
            x = softmax(xp, x)
        elif name == "log_softmax":
            x = xp.log(softmax(xp, x))
        elif name in GATES:
            ends = [
                forward(inner, x, inner_state(state, f"{here}.{b}", inner), xp, activation)
                for b, inner in enumerate(part[1])
            ]
            x = joined(xp, name, ends)
        elif name != "dropout":
            x = activation(name, x, part[1])
    return x


def joined(xp, gate, ends):
    if gate == "concat":
        return xp.concatenate(ends, axis=1)
    result = ends[0]
    for end in ends[1:]:
        result = {"add": xp.add, "multiply": xp.multiply, "maximum": xp.maximum}[gate](result, end)
    return result


def penalty(parts, state):
    """What l2 of the linear layers adds to the loss."""
    total = 0.0
    for i, part in enumerate(parts):
        if part[0] == "linear":
            total = total + part[4] * (state[f"{i}.weight"] ** 2).sum()
        elif part[0] in GATES:
            for b, inner in enumerate(part[1]):
                total = total + penalty(inner, inner_state(state, f"{i}.{b}", inner))
    return total


def inner_state(state, key, parts):
    """The arrays of a branch, with the names that they have in a model of its own."""
    lone = "0." if len(parts) == 1 else ""
    return {lone + name.removeprefix(f"{key}."): a for name, a in state.items() if name.startswith(f"{key}.")}


@st.composite
def graphs(draw, n_in=None, n_out=None, depth=3, names=SMOOTH, gates=tuple(GATES), norms=True):
    """A description from n_in to n_out (None: any)."""
    keeping = [*names, *(["softmax", "log_softmax", "dropout"] if norms else [])]
    widths = st.sampled_from(WIDTHS)
    n = draw(widths) if n_in is None else n_in
    parts = [("linear", n, n := draw(widths), draw(st.booleans()), draw(st.sampled_from([0.0, 0.1])))]
    for _ in range(draw(st.integers(0, depth))):
        kind = draw(st.sampled_from(["keep", "linear", "norm", "gate", "gate"]))
        if kind == "keep":
            parts.append(keep(draw, keeping))
        elif kind == "norm" and norms:
            parts.append((draw(st.sampled_from(["layer_norm", "batch_norm"])), n, draw(st.booleans())))
        elif kind == "gate" and depth > 1:
            gate, wide = draw(st.sampled_from(gates)), draw(st.booleans())
            inside = [
                draw(branches(n, n if not wide else 5, depth - 2, names, gates, norms, keeping))
                for _ in range(draw(st.integers(2, 3)))
            ]
            parts.append((gate, inside))
            n = (5 if wide else n) * (len(inside) if gate == "concat" else 1)
        else:
            parts.append(("linear", n, n := draw(widths), draw(st.booleans()), 0.0))
    if n_out is not None and (n != n_out or parts[-1][0] not in ("linear", "layer_norm")):
        parts.append(("linear", n, n_out, True, 0.1))
    return parts


def keep(draw, names):
    name = draw(st.sampled_from(names))
    return name, 0.5 if name == "dropout" else draw(st.sampled_from(PARAMS.get(name, (None,))))


@st.composite
def branches(draw, n, n_out, depth, names, gates, norms, keeping):
    """A branch: what keeps the width alone, or a chain that begins with a linear layer."""
    if n == n_out and draw(st.booleans()):
        return [keep(draw, keeping)]
    return draw(graphs(n, n_out, depth, names, gates, norms))


def arrays_of(model, vector):
    """By name, as `forward` takes them, with a vector in the order of `parameters`."""
    state, at = model.state_dict(), 0
    for name, array in model._named("weight", "bias").items():
        state[name] = vector[at : at + array.size].reshape(array.shape)
        at += array.size
    return state
