"""The same network in cnn, in PyTorch and in JAX, and the table's activations and losses there."""

from functools import partial
from itertools import pairwise

import grid
import jax.numpy as jnp
import numpy as np
import torch

import cnn


def in_jax(entry, param):
    return lambda z: entry.value(jnp.asarray(z), param)


# The library's function, with its first three parameters, and its twins.
ACTIVATIONS = {
    name if i == 0 else f"{name} {param}": (
        partial(entry.make, param),
        partial(entry.make_torch, torch.nn, param),
        in_jax(entry, param),
    )
    for name, entry in grid.ACTIVATIONS.items()
    for i, param in enumerate(entry.params[:3] or (None,))
}


class ExactHardsigmoid(torch.nn.Module):
    """PyTorch's own has a derivative of 1 / 6 in float32, whatever the dtype: 1e-8 too much."""

    def forward(self, z):
        return torch.nn.functional.relu6(z + 3) / 6


EXACT = {"hardsigmoid": ExactHardsigmoid}


def torch_loss(case, m, **more):
    """PyTorch's loss of m outputs."""
    options = {**case.options(m), **more}
    arrays = {k: torch.tensor(a, dtype=torch.float64) for k, a in options.items() if k in ("weight", "pos_weight")}
    return getattr(torch.nn, case.loss.cls.__name__)(**{**options, **arrays})


def jax_loss(case, m):
    """A function of outputs and targets: of the table's formula, whose gradient JAX finds itself."""
    return lambda y, t: case.truth(m)(y, t)[0]


class Network:
    """Linear layers of these widths with an activation, by its name above, after each but the last.

    Names in `extra` follow the last one, and `first` comes before everything.
    """

    def __init__(self, widths, activation, *, bias=True, first=(), extra=()):
        names = []
        for n_in, n_out in pairwise(widths):
            names += [(n_in, n_out), activation]
        self.parts = [*first, *names[:-1], *extra]
        self.bias = bias

    def cnn(self, loss=None, **options):
        layers = [
            cnn.Linear(*part, bias=self.bias) if isinstance(part, tuple) else ACTIVATIONS[part][0]()
            for part in self.parts
        ]
        return cnn.Sequential([*layers, *([loss] if loss else [])], **options)

    def torch(self, weights=None, dtype=torch.float64):
        """The PyTorch model, with the parameters of `cnn.Sequential.state_dict`."""
        model = torch.nn.Sequential(
            *(
                torch.nn.Linear(*part, bias=self.bias, dtype=dtype)
                if isinstance(part, tuple)
                else EXACT.get(part, ACTIVATIONS[part][1])()
                for part in self.parts
            )
        )
        if weights is not None:
            model.load_state_dict({name: torch.from_numpy(a.T) for name, a in weights.items()})
        return model

    def jax(self, weights, x):
        """The outputs, as a function of a dict like `cnn.Sequential.state_dict` and of x."""
        for i, part in enumerate(self.parts):
            if isinstance(part, tuple):
                x = x @ weights[f"{i}.weight"] + weights.get(f"{i}.bias", 0.0)
            else:
                x = ACTIVATIONS[part][2](x)
        return x


def torch_weights(model):
    """The parameters of a PyTorch model as `cnn.Sequential.state_dict` has them."""
    return {name: a.detach().numpy().T for name, a in model.named_parameters()}


def data(loss, n, n_in, n_out, seed=0):
    """x (n, n_in) and targets for a loss: numbers (n, n_out), or class indices (n,)."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, n_in))
    if loss == "cross_entropy":
        return x, random.integers(n_out, size=n)
    return x, random.standard_normal((n, n_out))


LOSSES = {
    name: (partial(case.make, 2), partial(torch_loss, case, 2), jax_loss(case, 2))
    for name, case in grid.CASES.items()
    if name in ("mse", "cross_entropy")
}
