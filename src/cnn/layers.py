"""Layers: `Linear` and the activations. Each works alone, forward and backward; a `Sequential` compiles them together.

A layer in a `Sequential` keeps no memory of its own: its arrays become views into the model's parameter block.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from . import functional, initializers
from ._dispatch import kernels

__all__ = [
    "ELU",
    "GELU",
    "Identity",
    "LeakyReLU",
    "Linear",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Tanh",
]


class Layer:
    """What every layer has: `forward`, `backward`, a configuration and, inside a model, a place."""

    def forward(self, x):
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, grad_output):
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    def __call__(self, x):
        return self.forward(x)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"


class Linear(Layer):
    """Affine map y = x W + b.

    Parameters
    ----------
    in_features, out_features : int
        Widths of x and y, at least 1.
    bias : bool
        Whether there is a b.
    dtype : {"float32", "float64"}
        Of the parameters, as long as the layer is used alone; a `Sequential` brings its own.
    seed : int, optional
        For the initial parameters, as long as the layer is used alone. None: different at every run.
    weight_init, bias_init : str, dict or callable
        Initial values: a name as "kaiming_uniform", "orthogonal", "zeros"; an object as
        `cnn.initializers.KaimingUniform(nonlinearity="tanh")`; or a callable (shape, rng) -> array, rng a
        `numpy.random.Generator`. A callable of your own is not saved with the model (its values are).

    Attributes
    ----------
    weight : ndarray of shape (in_features, out_features)
        By default uniform in +-1/sqrt(in_features) (Kaiming uniform with a = sqrt(5), as in PyTorch's Linear).
    bias : ndarray of shape (out_features,), or None
        By default from the same distribution.
    grad_weight, grad_bias : ndarray
        Gradients of the same shapes; `backward` adds to them.

    Notes
    -----
    The parameters are drawn when they are first asked for. A layer that is handed to a `Sequential` before that gets
    them from the model's seed; afterwards it brings its own. In a `Sequential` the arrays are views into the model's
    memory: write into them (`layer.weight[...] = w`, or `layer.weight = w`, which does the same). Their rows may lie
    apart from each other.

    Examples
    --------
    >>> layer = Linear(2, 2)
    >>> layer.weight = [[0.5, -1.0], [1.5, 0.0]]
    >>> layer.bias = [0.1, 0.2]
    >>> layer.forward([[1.0, 2.0]])
    array([[ 3.6, -0.8]], dtype=float32)
    """

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        *,
        dtype="float32",
        seed=None,
        weight_init="default",
        bias_init="default",
    ):
        for name, n in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
                raise TypeError(f"{name}: expected an int, got {n!r}")
            if n < 1:
                raise ValueError(f"{name}: expected at least 1, got {n}")
        self.in_features = int(in_features)
        self.out_features = int(out_features)
        self.has_bias = bool(bias)
        self.dtype = kernels(dtype).DTYPE
        self.seed = seed
        self.weight_init, self.bias_init = (
            init if isinstance(init, str) and init == "default" else initializers.get(init, name)
            for name, init in (("weight_init", weight_init), ("bias_init", bias_init))
        )
        if getattr(self.bias_init, "weights_only", False):
            raise ValueError(f"bias_init: {self.bias_init!r} is for weight matrices")
        self._arrays: dict[str, np.ndarray | None] = {}
        self._model: Any = None  # weak reference to the Sequential that holds it
        self._x: np.ndarray | None = None

    def _draw(self, bits: np.random.PCG64) -> dict[str, np.ndarray | None]:
        """Initial parameters. Made of the generator's raw bits, whose stream NumPy promises to keep."""
        rng = np.random.Generator(bits)
        return {
            "weight": self._initial("weight_init", (self.in_features, self.out_features), rng),
            "bias": self._initial("bias_init", (self.out_features,), rng) if self.has_bias else None,
        }

    def _initial(self, name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        init = getattr(self, name)
        if isinstance(init, str):
            return initializers.symmetric(rng, shape, self.in_features**-0.5).astype(self.dtype)
        values = np.asarray(init(shape, rng))
        if values.dtype.kind not in "fiub":
            raise TypeError(f"{self!r}: {name}: expected real numbers, got dtype {values.dtype}")
        if values.shape != shape:
            raise ValueError(f"{self!r}: {name}: expected shape {shape}, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{self!r}: {name}: expected finite numbers, got NaN or infinity")
        return values.astype(self.dtype)

    def _array(self, name: str) -> np.ndarray | None:
        if not self._arrays:
            arrays = self._draw(np.random.PCG64(self.seed))
            grads = {f"grad_{k}": None if a is None else np.zeros_like(a) for k, a in arrays.items()}
            self._arrays = arrays | grads
        return self._arrays[name]

    def _assign(self, name: str, value) -> None:
        array = self._array(name)
        if array is None:
            raise ValueError(f"{self!r} has no bias")
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got dtype {value.dtype}")
        if value.shape != array.shape:
            raise ValueError(f"{name}: expected shape {array.shape}, got {value.shape}")
        array[...] = value
        self._changed()

    def _changed(self) -> None:
        model = self._model and self._model()
        if model is not None:
            model._program.set_parameters(model._program.parameters)

    @property
    def weight(self):
        return self._array("weight")

    @weight.setter
    def weight(self, value):
        self._assign("weight", value)

    @property
    def bias(self):
        return self._array("bias")

    @bias.setter
    def bias(self, value):
        self._assign("bias", value)

    @property
    def grad_weight(self):
        return self._array("grad_weight")

    @property
    def grad_bias(self):
        return self._array("grad_bias")

    def _join(self, model, program, op: int, dtype) -> None:
        """Move into a model: the arrays become views of its memory."""
        self._arrays = {name: program.view(op, name) for name in ("weight", "bias", "grad_weight", "grad_bias")}
        self.dtype = dtype
        self._model = weakref.ref(model)

    def forward(self, x):
        """y = x W + b of shape (batch, out_features), for x of shape (batch, in_features). Keeps a copy of x.

        Raises
        ------
        ValueError, TypeError
            If x has another shape, or is not made of real numbers.
        """
        y = kernels(self.dtype).linear_forward(x, self.weight, self.bias, 0, 0.0, None, None)
        self._x = np.array(x, dtype=self.dtype)
        return y

    def backward(self, grad_output):
        """The gradient of x, (batch, in_features); adds those of weight and bias to `grad_weight` and `grad_bias`.

        Parameters
        ----------
        grad_output : array_like of shape (batch, out_features)
            Gradient of the loss with respect to the last `forward`'s result.

        Raises
        ------
        RuntimeError
            If there was no `forward`.
        ValueError, TypeError
            If grad_output does not fit it.
        """
        if self._x is None:
            raise RuntimeError("backward needs a forward pass to go back over, but there was none")
        grad_x, grad_weight, grad_bias = kernels(self.dtype).linear_backward(
            grad_output, self._x, self.weight, None, None, None, False
        )
        np.add(self.grad_weight, grad_weight, out=self.grad_weight)
        if self.has_bias:
            np.add(self.grad_bias, grad_bias, out=self.grad_bias)
        return grad_x

    def zero_grads(self) -> None:
        """Set `grad_weight` and `grad_bias` to zero."""
        self.grad_weight[...] = 0
        if self.has_bias:
            self.grad_bias[...] = 0

    def update_parameters(self, lr: float) -> None:
        """One step of gradient descent: weight -= lr grad_weight, bias -= lr grad_bias."""
        self.weight[...] -= lr * self.grad_weight
        if self.has_bias:
            self.bias[...] -= lr * self.grad_bias
        self._changed()

    def get_config(self):
        config = {"in_features": self.in_features, "out_features": self.out_features, "bias": self.has_bias}
        return config | self._initializers()

    def _initializers(self) -> dict[str, Any]:
        """Those that are neither the default nor a callable of the user's own."""
        configs = {name: initializers.config_of(getattr(self, name)) for name in ("weight_init", "bias_init")}
        return {name: config for name, config in configs.items() if config is not None}

    def __repr__(self) -> str:
        options = ({} if self.has_bias else {"bias": False}) | self._initializers()
        return f"Linear({self.in_features}, {self.out_features}{''.join(f', {k}={v!r}' for k, v in options.items())})"


class Activation(Layer):
    """A function applied to every element. Alone it takes arrays of any shape, float32 or float64."""

    param = 0.0  # the function's parameter, where it has one
    _z: np.ndarray | None = None

    @property
    def function(self) -> str:
        """Name in `cnn.functional`."""
        return type(self).__name__.lower()

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


class ReLU(Activation):
    """f(z) = max(z, 0); f'(0) = 0."""


class LeakyReLU(Activation):
    """f(z) = z for z > 0, negative_slope z otherwise.

    Parameters
    ----------
    negative_slope : float
        Finite.
    """

    function = "leaky_relu"

    def __init__(self, negative_slope=0.01):
        self.param = _finite("negative_slope", negative_slope)

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
        self.param = _finite("alpha", alpha)

    @property
    def alpha(self) -> float:
        return self.param

    def get_config(self):
        return {"alpha": self.param}


class Sigmoid(Activation):
    """f(z) = 1 / (1 + exp(-z))."""


class Tanh(Activation):
    """f(z) = tanh(z)."""


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

    @property
    def function(self):
        return "gelu" if self.approximate == "none" else "gelu_tanh"

    def get_config(self):
        return {"approximate": self.approximate}


class SiLU(Activation):
    """f(z) = z / (1 + exp(-z))."""


class Softplus(Activation):
    """f(z) = log(1 + exp(z))."""


def _finite(name: str, value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not np.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)
