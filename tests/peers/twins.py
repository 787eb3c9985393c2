"""The same network in cnn, in PyTorch and in JAX."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import torch

import cnn

# A function of the library with its twins. PyTorch's Softplus is the identity from `threshold` on,
# 20 by default, where log(1 + exp(z)) differs from z by 1e-10 of it: its twin has a larger one.
ACTIVATIONS = {
    "identity": (cnn.Identity, torch.nn.Identity, lambda z: z),
    "relu": (cnn.ReLU, torch.nn.ReLU, jax.nn.relu),
    "leaky_relu": (cnn.LeakyReLU, torch.nn.LeakyReLU, jax.nn.leaky_relu),
    "leaky_relu_0.2": (
        lambda: cnn.LeakyReLU(0.2),
        lambda: torch.nn.LeakyReLU(0.2),
        lambda z: jax.nn.leaky_relu(z, 0.2),
    ),
    "elu": (cnn.ELU, torch.nn.ELU, jax.nn.elu),
    "elu_1.5": (lambda: cnn.ELU(1.5), lambda: torch.nn.ELU(1.5), lambda z: jax.nn.elu(z, 1.5)),
    "sigmoid": (cnn.Sigmoid, torch.nn.Sigmoid, jax.nn.sigmoid),
    "tanh": (cnn.Tanh, torch.nn.Tanh, jnp.tanh),
    "gelu": (cnn.GELU, torch.nn.GELU, lambda z: jax.nn.gelu(z, approximate=False)),
    "gelu_tanh": (
        lambda: cnn.GELU(approximate="tanh"),
        lambda: torch.nn.GELU(approximate="tanh"),
        lambda z: jax.nn.gelu(z, approximate=True),
    ),
    "silu": (cnn.SiLU, torch.nn.SiLU, jax.nn.silu),
    "softplus": (cnn.Softplus, lambda: torch.nn.Softplus(threshold=80), jax.nn.softplus),
}


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
                else ACTIVATIONS[part][1]()
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
    "mse": (cnn.MSELoss, torch.nn.MSELoss, lambda y, t: jnp.mean((y - t) ** 2)),
    "cross_entropy": (
        cnn.CrossEntropyLoss,
        torch.nn.CrossEntropyLoss,
        lambda z, t: jnp.mean(jax.nn.logsumexp(z, axis=1) - z[jnp.arange(len(t)), t]),
    ),
}
