"""Activations: functions of every element. Their kernels are in kernels/activation.pxi."""

from __future__ import annotations

import numpy as np

from .. import functional
from .._checks import finite
from .base import Layer

__all__ = [
    "ELU",
    "GELU",
    "Identity",
    "LeakyReLU",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
]


class Activation(Layer):
    """A function applied to every element. Alone it takes arrays of any shape, float32 or float64."""

    _fixed = ("param", "approximate", "function")
    param = 0.0  # the function's parameter, where it has one
    _z: np.ndarray | None = None

    function: str | None = None  # name in `cnn.functional`

    def _compile(self, graph, source, place):
        if self.function is None:
            return super()._compile(graph, source, place)
        if self.function == "identity":
            return source
        width = graph.widths[source]
        return graph.add(place, "activation", [source], width, act=self.function, param=self.param)

    def forward(self, x):
        """f(x), of x's shape; keeps a copy of x."""
        y = functional.activation_forward(self.function, x, self.param)
        self._z = np.array(x, dtype=y.dtype)
        return y

    def backward(self, grad_output):
        """grad_output * f'(x) for the x of the last `forward`. RuntimeError if there was none."""
        if self._z is None:
            raise RuntimeError("backward needs a forward pass to go back over, but there was none")
        return functional.activation_backward(self.function, grad_output, self._z, self.param)

    def derivative(self, z):
        """f'(z), of z's shape."""
        dtype = functional.real_dtype(z)
        return functional.activation_backward(self.function, np.ones(np.shape(z), dtype), z, self.param)


class Identity(Activation):
    """f(z) = z."""

    function = "identity"


class ReLU(Activation):
    """f(z) = max(z, 0); f'(0) = 0."""

    function = "relu"


class LeakyReLU(Activation):
    """f(z) = z for z > 0, negative_slope z otherwise.

    Parameters
    ----------
    negative_slope : float
        Finite.
    """

    function = "leaky_relu"

    def __init__(self, negative_slope=0.01):
        self.param = finite("negative_slope", negative_slope)

    @property
    def negative_slope(self) -> float:
        return self.param

    def get_config(self):
        return {"negative_slope": self.param}


class ELU(Activation):
    """f(z) = z for z > 0, alpha (exp(z) - 1) otherwise (Clevert, Unterthiner and Hochreiter, 2016).

    Parameters
    ----------
    alpha : float
        Finite.
    """

    function = "elu"

    def __init__(self, alpha=1.0):
        self.param = finite("alpha", alpha)

    @property
    def alpha(self) -> float:
        return self.param

    def get_config(self):
        return {"alpha": self.param}


class Sigmoid(Activation):
    """f(z) = 1 / (1 + exp(-z))."""

    function = "sigmoid"


class Tanh(Activation):
    """f(z) = tanh(z)."""

    function = "tanh"


class GELU(Activation):
    """f(z) = z Phi(z), Phi the normal distribution function (Hendrycks and Gimpel, 2016).

    Parameters
    ----------
    approximate : {"none", "tanh"}
        "none": Phi by the error function. "tanh": f(z) = z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z**3))).
    """

    def __init__(self, approximate="none"):
        if approximate not in ("none", "tanh"):
            raise ValueError(f"approximate: expected 'none' or 'tanh', got {approximate!r}")
        self.approximate = approximate
        self.function = "gelu" if approximate == "none" else "gelu_tanh"

    def get_config(self):
        return {"approximate": self.approximate}


class SiLU(Activation):
    """f(z) = z / (1 + exp(-z))."""

    function = "silu"


class Softplus(Activation):
    """f(z) = log(1 + exp(z))."""

    function = "softplus"
