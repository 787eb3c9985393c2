"""Random models with every layer of the library: norms with statistics, branches, chains in chains. For the tests of
what leaves the library."""

import numpy as np
from networks import ACTIVATIONS, PARAMS

import cnn

WIDTHS = (1, 2, 3, 5, 8, 16, 17, 33)
GATES = (cnn.Add, cnn.Multiply, cnn.Maximum, cnn.Concat)


class _Draw:
    """Layers by a random generator; each method returns a layer and its width."""

    def __init__(self, random, dtype, branches):
        self.random = random
        self.dtype = dtype
        self.branches = branches

    def layer(self, width, depth):
        kinds = [self.linear, self.linear, self.activation, self.activation, self.other, self.other]
        if depth:
            kinds += [self.chain, self.gate, self.gate] if self.branches else [self.chain]
        return kinds[self.random.integers(len(kinds))](width, depth)

    def linear(self, width, depth):
        n = int(self.random.choice(WIDTHS))
        return cnn.Linear(width, n, bias=bool(self.random.integers(2))), n

    def activation(self, width, depth):
        name = self.random.choice(list(ACTIVATIONS))
        return ACTIVATIONS[name](self.random.choice(PARAMS.get(name, (None,)))), width

    def other(self, width, depth):
        yes, bias = self.random.integers(2, size=2).astype(bool).tolist()
        makers = [
            cnn.Softmax,
            cnn.LogSoftmax,
            lambda: cnn.Dropout(0.3),
            lambda: cnn.BatchNorm1d(width, eps=1e-3, affine=yes),
            lambda: cnn.LayerNorm(width, eps=1e-4, elementwise_affine=yes, bias=bias or not yes),
        ]
        return makers[self.random.integers(len(makers))](), width

    def chain(self, width, depth):
        first, width = self.linear(width, depth)
        parts = [first]
        for _ in range(self.random.integers(3)):
            part, width = self.layer(width, depth - 1)
            parts.append(part)
        return cnn.Sequential(parts, dtype=self.dtype), width

    def gate(self, width, depth):
        gate = GATES[self.random.integers(len(GATES))]
        n = int(self.random.choice(WIDTHS))
        branches = [cnn.Identity()] if n == width else []
        for _ in range(self.random.integers(2, 4)):
            inner, inner_width = self.layer(width, depth - 1)
            chain = [cnn.Linear(width, width), inner, cnn.Linear(inner_width, n)]
            branches.append(cnn.Sequential(chain, dtype=self.dtype))
        return gate(*branches), n * len(branches) if gate is cnn.Concat else n


def random_model(seed, dtype="float32", branches=True):
    """A model of up to eight layers, its parameters and statistics random too."""
    random = np.random.default_rng(seed)
    draw = _Draw(random, dtype, branches)
    n = int(random.choice(WIDTHS))
    first = draw.activation if random.integers(3) == 0 else draw.linear
    part, width = first(n, 2)
    parts = [part]
    for _ in range(random.integers(2, 7)):
        part, width = draw.layer(width, 2)
        parts.append(part)
    parts.append(cnn.Linear(width, int(random.choice(WIDTHS))))
    model = cnn.Sequential(parts, dtype=dtype)
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
    n_in = model._core.graph.widths[0]
    return (scale * np.random.default_rng(rows).standard_normal((rows, n_in))).astype(model.dtype)
