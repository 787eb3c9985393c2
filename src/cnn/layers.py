"""Layers: `Linear` and the activations. Each works alone, forward and backward; a `Sequential` compiles them together.

A layer in a `Sequential` keeps no memory of its own: its arrays become views into the model's parameter block.
"""

from __future__ import annotations

import inspect
import os
import weakref
from typing import Any, ClassVar

import numpy as np

from . import functional, initializers
from ._dispatch import kernels
from ._threads import get_num_threads
from .compilation import Graph, Place, chain, program

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
    """What every layer has: a place in a model, a configuration, and `forward` and `backward` of its own.

    A layer that is used alone compiles itself as a model would, for the width and dtype that it is given.
    """

    _fixed: ClassVar[tuple[str, ...]] = ()  # what the constructor sets for good, since models are compiled of it
    _alone: Any = None  # (width and dtype, program) of the layer used alone
    training = True  # used alone: whether dropout drops and batch normalisation takes the statistics of the batch

    def __setattr__(self, name, value):
        if name in self._fixed and name in self.__dict__:
            raise AttributeError(f"{name}: can only be set when the layer is made")
        super().__setattr__(name, value)

    # in a model -------------------------------------------------------------------------------------------------------

    def _in_features(self) -> int | None:
        """How many inputs the layer takes; None if any number."""
        return None

    def _changes_width(self) -> bool:
        """Whether the layer's outputs are not as many as its inputs."""
        return False

    def _may_nest(self, where: str) -> None:
        """ValueError if the layer cannot stand in a branch or in a chain in a model."""

    def _compile(self, graph: Graph, source: int, place: Place) -> int:
        """Add the layer's ops to a graph; the buffer that the last one writes."""
        raise NotImplementedError(f"{place}: cannot be part of a model")

    # alone ------------------------------------------------------------------------------------------------------------

    def _program_for(self, width: int, dtype):
        key = (width, np.dtype(dtype))
        if self._alone is None or self._alone[0] != key:
            graph = Graph([width])
            chain(graph, [self], 0)
            seed = int.from_bytes(os.urandom(8), "little") >> 1
            self._alone = key, program(kernels(dtype), graph, None, seed)
        return self._alone[1]

    def forward(self, x):
        """The layer's outputs for x of shape (batch, in_features); what `backward` needs is kept.

        float32 in, float32 out; everything else is computed in float64. ValueError or TypeError if x does not fit.
        """
        x = np.asarray(x)
        if x.ndim != 2:
            raise ValueError(f"x: expected shape (batch, in_features), got {x.shape}")
        self._last = self._program_for(x.shape[1], functional.real_dtype(x))
        return self._last.forward(x, None, get_num_threads(), self.training)

    def backward(self, grad_output):
        """The gradient of the last `forward`'s x; those of parameters are added to. RuntimeError if there was none."""
        if getattr(self, "_last", None) is None:
            raise RuntimeError("backward needs a forward pass to go back over, but there was none")
        return self._last.backward(grad_output, get_num_threads())

    def __call__(self, x):
        return self.forward(x)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        return {}

    def __repr__(self) -> str:
        parameters = inspect.signature(type(self)).parameters
        shown = {k: v for k, v in self.get_config().items() if k not in parameters or v != parameters[k].default}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


class Parametric(Layer):
    """A layer with arrays: parameters, their gradients, running statistics. In a model they are views of its memory.

    They are made when they are first asked for. A layer that is handed to a model before that gets them from the
    model's seed; afterwards it brings its own.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    statistic_names: ClassVar[tuple[str, ...]] = ()
    dtype: np.dtype
    seed: int | None = None

    def __init__(self, dtype="float32"):
        self.dtype = kernels(dtype).DTYPE
        self._arrays: dict[str, np.ndarray | None] = {}
        self._model: Any = None  # weak reference to the Sequential that holds it

    def _draw(self, bits: np.random.PCG64) -> dict[str, np.ndarray | None]:
        """Initial parameters and statistics."""
        raise NotImplementedError

    def _own(self) -> None:
        """Make the arrays of a layer that is used alone."""
        arrays = self._draw(np.random.PCG64(self.seed))
        grads = {name: arrays[name] for name in self.parameter_names}
        self._arrays = arrays | {f"grad_{k}": None if a is None else np.zeros_like(a) for k, a in grads.items()}

    def _owner(self):
        """The model that holds the layer, or None."""
        return self._model() if self._model is not None else None

    def _array(self, name: str) -> np.ndarray | None:
        if not self._arrays:
            self._own()
        model = self._owner()
        if model is not None and model._compiled is not None:
            model._compiled.clear_padding()  # what is now written there shall not stand beside NaN
        return self._arrays[name]

    def _assign(self, name: str, value) -> None:
        array = self._array(name)
        if array is None:
            raise ValueError(f"{self!r} has no {name}")
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got dtype {value.dtype}")
        if value.shape != array.shape:
            raise ValueError(f"{name}: expected shape {array.shape}, got {value.shape}")
        array[...] = value
        self._changed()

    def _changed(self) -> None:
        model = self._owner()
        if model is not None:
            model._program.clear_padding()
            model._program.forget("the parameters have been changed since")

    def _join(self, model, program, op: int, dtype, bits: np.random.PCG64) -> None:
        """Move into a program: the arrays, or new ones from `bits`, become views of its memory."""
        self.dtype = dtype
        arrays = self._arrays or self._draw(bits)
        names = [*self.parameter_names, *(f"grad_{name}" for name in self.parameter_names), *self.statistic_names]
        self._arrays = {name: program.view(op, name) for name in names}
        self._model = None if model is None else weakref.ref(model)
        for name in (*self.parameter_names, *self.statistic_names):
            view = self._arrays[name]
            if view is not None:
                view[...] = arrays[name]

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

    def forward(self, x):
        """The layer's outputs for x of shape (batch, in_features), in the layer's dtype; keeps what `backward` needs.

        ValueError or TypeError if x does not fit.
        """
        width: Any = self._in_features()
        alone = self._last = self._program_for(width, self.dtype)
        for name in (*self.parameter_names, *self.statistic_names):
            if self._array(name) is not None:
                alone.view(0, name)[...] = self._array(name)
        y = alone.forward(x, None, get_num_threads(), self.training)
        for name in self.statistic_names:
            statistic: Any = self._array(name)
            statistic[...] = alone.view(0, name)
        return y

    def backward(self, grad_output):
        """The gradient of the last `forward`'s x; adds those of weight and bias to `grad_weight` and `grad_bias`.

        RuntimeError if there was no `forward`.
        """
        if getattr(self, "_last", None) is not None:
            self._last.zero_grads()
        grad_x = super().backward(grad_output)
        for name in self.parameter_names:
            gradient = self._array(f"grad_{name}")
            if gradient is not None:
                gradient += self._last.view(0, f"grad_{name}")
        return grad_x

    def zero_grads(self) -> None:
        """Set the gradients to zero."""
        for name in self.parameter_names:
            gradient = self._array(f"grad_{name}")
            if gradient is not None:
                gradient[...] = 0

    def update_parameters(self, lr: float) -> None:
        """One step of gradient descent: weight -= lr grad_weight, bias -= lr grad_bias."""
        for name in self.parameter_names:
            array, gradient = self._array(name), self._array(f"grad_{name}")
            if array is not None and gradient is not None:
                array -= lr * gradient
        self._changed()


class Linear(Parametric):
    """Affine map y = x W + b.

    Parameters
    ----------
    in_features, out_features : int
        Widths of x and y, at least 1.
    bias : bool
        Whether there is a b.
    l1, l2 : float
        Penalties on the weight, at least 0: in a model l1 sum |W| + l2 sum W**2 is part of the loss.
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

    _fixed = ("in_features", "out_features", "has_bias", "l1", "l2")

    def __init__(
        self,
        in_features,
        out_features,
        bias=True,
        *,
        weight_init="default",
        bias_init="default",
        l1=0.0,
        l2=0.0,
        dtype="float32",
        seed=None,
    ):
        for name, n in (("in_features", in_features), ("out_features", out_features)):
            if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
                raise TypeError(f"{name}: expected an int, got {n!r}")
            if n < 1:
                raise ValueError(f"{name}: expected at least 1, got {n}")
        self.in_features = int(in_features)
        self.out_features = int(out_features)
        self.has_bias = bool(bias)
        self.l1 = _finite("l1", l1, low=0.0)
        self.l2 = _finite("l2", l2, low=0.0)
        super().__init__(dtype)
        self.seed = seed
        self.weight_init, self.bias_init = (
            init if isinstance(init, str) and init == "default" else initializers.get(init, name)
            for name, init in (("weight_init", weight_init), ("bias_init", bias_init))
        )
        if getattr(self.bias_init, "weights_only", False):
            raise ValueError(f"bias_init: {self.bias_init!r} is for weight matrices")
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

    def _in_features(self):
        return self.in_features

    def _changes_width(self):
        return True

    def _compile(self, graph, source, place):
        graph.expect(place, source, self.in_features)
        return graph.add(
            place, "linear", [source], self.out_features, act="identity", bias=self.has_bias, l1=self.l1, l2=self.l2
        )

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

    def get_config(self):
        config = {"in_features": self.in_features, "out_features": self.out_features, "bias": self.has_bias}
        options = {"l1": self.l1, "l2": self.l2}
        for name in ("weight_init", "bias_init"):
            options[name] = initializers.config_of(getattr(self, name))
        return config | {name: value for name, value in options.items() if value}

    def __repr__(self) -> str:
        config = self.get_config()
        options = [
            f"{k}={v!r}" for k, v in config.items() if k not in ("in_features", "out_features") and v is not True
        ]
        return f"Linear({', '.join([str(self.in_features), str(self.out_features), *options])})"


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


def _finite(name: str, value, low: float = -np.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not (np.isfinite(value) and value >= low):
        least = "" if low == -np.inf else f" of at least {low:g}"
        raise ValueError(f"{name}: expected a finite number{least}, got {value}")
    return float(value)
