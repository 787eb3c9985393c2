"""`Linear`: the affine map y = x W + b."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .. import initializers
from .._checks import integer, number, seed_of
from .._dispatch import kernels
from .._types import ArrayLike, DTypeLike
from .base import Layer, Parametric, width_of

__all__ = ["Linear"]


class Linear(Parametric):
    """Affine map y = x W + b.

    Parameters
    ----------
    in_features, out_features : int
        Widths of x and y, at least 1.
    bias : bool
        Whether to add b.
    weight_init, bias_init : str, dict or callable
        Initial values: a name such as "kaiming_uniform", "orthogonal" or "zeros"; an object such as
        `cnn.initializers.KaimingUniform(nonlinearity="tanh")`; or a callable (shape, rng) -> array, where rng is a
        `numpy.random.Generator`. A callable is not saved with the model; the values are.
    l1, l2 : float
        Penalties on the weight, at least 0: a model adds l1 * sum(abs(W)) + l2 * sum(W**2) to the loss.
    dtype : {"float32", "float64"}
        Of the parameters of a standalone layer; in a model, the model's dtype applies.
    seed : int or numpy.random.Generator, optional
        For the initial parameters of a standalone layer. None: different in every run. From a generator, an int is
        drawn.

    Attributes
    ----------
    weight : ndarray of shape (in_features, out_features)
        By default uniform in +-1/sqrt(in_features) (Kaiming uniform with a = sqrt(5), as in PyTorch's Linear).
    bias : ndarray of shape (out_features,), or None
        By default from the same distribution.
    grad_weight, grad_bias : ndarray
        Gradients of the same shapes; `backward` accumulates into them.

    Notes
    -----
    The parameters are drawn on first access. If the layer joins a `Sequential` before that, they are drawn from the
    model's seed; otherwise it keeps its values. In a `Sequential` the arrays are views into the model's memory: write
    into them with `layer.weight[...] = w` or, equivalently, `layer.weight = w`. They may not be contiguous.

    Examples
    --------
    >>> layer = Linear(2, 2)
    >>> layer.weight = [[0.5, -1.0], [1.5, 0.0]]
    >>> layer.bias = [0.1, 0.2]
    >>> layer.forward([[1.0, 2.0]])
    array([[ 3.6, -0.8]], dtype=float32)
    """

    op = "linear"
    torch_name = "Linear"
    weight_init: Any
    bias_init: Any
    positional: ClassVar[tuple[str, ...]] = ("in_features", "out_features")
    _fixed = ("in_features", "out_features", "has_bias", "l1", "l2", "seed", "weight_init", "bias_init")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        weight_init: Any = "default",
        bias_init: Any = "default",
        l1: float = 0.0,
        l2: float = 0.0,
        dtype: DTypeLike = "float32",
        seed: Any = None,
    ) -> None:
        self.in_features: int = integer("in_features", in_features, 1)
        self.out_features: int = integer("out_features", out_features, 1)
        self.has_bias: bool = bool(bias)
        self.l1: float = number("l1", l1, 0.0)
        self.l2: float = number("l2", l2, 0.0)
        super().__init__(dtype)
        self.seed: int | None = seed_of(seed)
        self.weight_init, self.bias_init = (
            init if isinstance(init, str) and init == "default" else initializers.get(init, name)
            for name, init in (("weight_init", weight_init), ("bias_init", bias_init))
        )
        if getattr(self.bias_init, "weights_only", False):
            raise ValueError(f"bias_init: {self.bias_init!r} is for weight matrices: use 'zeros', for example")

    def _draw(self, bits: np.random.PCG64) -> dict[str, np.ndarray | None]:
        """Initial parameters, from the generator's raw bits: NumPy guarantees their stream."""
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

    @classmethod
    def of(cls, weight: np.ndarray, bias: ArrayLike | None = None) -> Linear:
        """Create a layer from copies of these arrays, in the weight's dtype.

        Parameters
        ----------
        weight : ndarray of shape (in_features, out_features), float32 or float64
        bias : array_like of shape (out_features,), optional
            None: the layer has no bias.

        Returns
        -------
        Linear

        Raises
        ------
        ValueError, TypeError
            If the shapes do not match.
        """
        n_in, n_out = weight.shape
        layer = cls(n_in, n_out, bias=bias is not None, dtype=weight.dtype)
        layer.weight = weight
        if bias is not None:
            layer.bias = bias
        return layer

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.in_features, self.out_features)}
        return shapes | {"bias": (self.out_features,)} if self.has_bias else shapes

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.out_features)

    def flops(self, shape: tuple[int, ...]) -> int:
        return 2 * self.in_features * self.out_features  # a product and a sum for each weight

    @classmethod
    def _stored_numbers(cls, config):
        n_in, n_out = width_of(config, "in_features"), width_of(config, "out_features")
        return n_in * n_out, n_in * n_out + n_out

    def _in_features(self):
        return self.in_features

    def _changes_width(self):
        return True

    def _options(self):
        return {"act": "identity", "bias": self.has_bias, "l1": self.l1, "l2": self.l2}

    def _to_torch(self, nn, dtype):
        # skip_init: otherwise initial values are drawn from PyTorch's global generator.
        return nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, bias=self.has_bias, dtype=dtype)

    def _torch_arrays(self):
        return {"weight": self.weight.T, "bias": self.bias}

    @classmethod
    def _from_torch(cls, module, dtype):
        bias = None if module.bias is None else module.bias.detach().cpu().numpy()
        return cls.of(module.weight.detach().cpu().numpy().T, bias)

    def _to_onnx(self, graph, x):
        return x.op("Gemm", *(graph.parameter(name, getattr(self, name)) for name in self.parameter_shapes()))

    def _to_c(self, code):
        bias = code.parameter("bias") if self.has_bias else None
        code.product(code.sources[0], code.target, code.parameter("weight"), self.in_features, bias)

    def _c_tangent(self, code, dx, dy):
        code.product(dx[0], dy, code.parameter("weight"), self.in_features, None)

    def _c_backward(self, code, g):
        code.product_back(g, code.parameter("weight"), self.in_features)

    _c_second = Layer._c_no_second

    def _c_gradient(self, code, g):
        code.outer(code.gradient("weight"), self.in_features, g)
        if self.has_bias:
            code.assign(f"{g}[j]", code.gradient("bias"), "+=")

    def _forward(self, x):
        y = kernels(self.dtype).linear_forward(x, self.weight, self.bias, 0, 0.0, None, None)
        self._last = np.array(x, dtype=self.dtype)
        return y

    def _backward(self, grad_output):
        grad_x, grad_weight, grad_bias = kernels(self.dtype).linear_backward(
            grad_output, self._last, self.weight, None, None, None, False
        )
        np.add(self.grad_weight, grad_weight, out=self.grad_weight)
        if self.has_bias:
            np.add(self.grad_bias, grad_bias, out=self.grad_bias)
        return grad_x

    def _argument(self, name):
        value = super()._argument(name)
        return initializers.config_of(value) if name in ("weight_init", "bias_init") else value

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, without dtype and seed, and without unused penalties and initialisers.

        Returns
        -------
        dict
            By name, JSON-serialisable.
        """
        always = ("in_features", "out_features", "bias")
        return {name: value for name, value in super().get_config().items() if value or name in always}
