"""Batch normalisation and layer normalisation."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .._checks import flag, fraction, integer, positive
from .._types import DTypeLike
from .base import Layer, Parametric, width_of

__all__ = ["BatchNorm1d", "LayerNorm"]


class Norm(Parametric, abstract=True):
    """Base class of the norms: a weight and a bias for each feature, initially 1 and 0."""

    _fixed = ("num_features", "normalized_shape", "elementwise_affine", "eps", "momentum", "affine", "has_bias")

    def __init__(self, features: int, eps: float, weight: bool, bias: bool, dtype: Any) -> None:
        super().__init__(dtype)
        self._features = features
        self.eps: float = positive("eps", eps)
        self._has_weight, self._has_bias = weight, bias

    def _draw(self, bits):
        ones, zeros = np.ones(self._features, self.dtype), np.zeros(self._features, self.dtype)
        return {"weight": ones if self._has_weight else None, "bias": zeros if self._has_bias else None}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        has = {"weight": self._has_weight, "bias": self._has_bias}
        return {name: (self._features,) for name, there in has.items() if there}

    def _in_features(self):
        return self._features

    def _options(self):
        return {"param": self.eps, "weight": self._has_weight, "bias": self._has_bias}

    def _onnx_arrays(self, graph: Any) -> list[Any]:
        """Weight and bias, or ones and zeros in their place."""
        ones, zeros = np.ones(self._features), np.zeros(self._features)
        return [
            graph.parameter("weight", ones if self.weight is None else self.weight),
            graph.parameter("bias", zeros if self.bias is None else self.bias),
        ]

    def _c_bias(self, code: Any) -> str:
        return "" if self.bias is None else f" + {code.parameter('bias')}[j]"

    def _c_times_weight(self, code: Any, formula: str) -> str:
        return formula if self.weight is None else f"{formula} * {code.parameter('weight')}[j]"

    def _c_gradients(self, code: Any, g: str, normal: str) -> None:
        """normal: a formula for (x - mean) / sqrt(var + eps)."""
        if self.weight is not None:
            code.assign(f"{g}[j] * {normal}", code.gradient("weight"), "+=")
        if self.bias is not None:
            code.assign(f"{g}[j]", code.gradient("bias"), "+=")


class BatchNorm1d(Norm):
    """y = (x - mean) / sqrt(var + eps) weight + bias, with the mean and variance of each feature over the batch.

    Evaluation mode uses running statistics instead. In training each batch updates them: running = (1 - momentum)
    running + momentum batch, with the unbiased batch variance (Ioffe and Szegedy, 2015; torch.nn.BatchNorm1d).

    Parameters
    ----------
    num_features : int
        Width of x.
    eps : float
        Above 0.
    momentum : float or None
        From 0 to 1. None: the running statistics are averages over all batches so far.
    affine : bool
        Whether to have a weight and a bias.
    dtype : {"float32", "float64"}
        Of the parameters of a standalone layer; in a model, the model's dtype applies.

    Attributes
    ----------
    weight, bias : ndarray of shape (num_features,), or None
        Initially 1 and 0.
    grad_weight, grad_bias : ndarray of shape (num_features,), or None
        Their gradients; `backward` accumulates into them.
    running_mean, running_var : ndarray of shape (num_features,)
        Initially 0 and 1.
    num_batches_tracked : int
        Number of batches in the running statistics.

    Notes
    -----
    Training needs at least two rows per batch. PyTorch's track_running_stats=False is not supported: predictions would
    depend on the other rows of the batch.
    """

    op = "batch_norm"
    torch_name = "BatchNorm1d"
    statistic_names: ClassVar[tuple[str, ...]] = ("running_mean", "running_var")
    _tracked = 0  # batches of a standalone layer

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        dtype: DTypeLike = "float32",
    ) -> None:
        self.num_features: int = integer("num_features", num_features, 1)
        self.momentum: float | None = None if momentum is None else fraction("momentum", momentum)
        self.affine: bool = flag("affine", affine)
        super().__init__(self.num_features, eps, self.affine, self.affine, dtype)

    def _draw(self, bits):
        statistics = {
            "running_mean": np.zeros(self.num_features, self.dtype),
            "running_var": np.ones(self.num_features, self.dtype),
        }
        return super()._draw(bits) | statistics

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_tracked": self.num_batches_tracked}

    def _join(self, program, op, dtype, bits):
        tracked = self.num_batches_tracked
        super()._join(program, op, dtype, bits)
        program.set_tracked(op, tracked)

    def _forward(self, x):
        alone = self._program_for(self.num_features, self.dtype)
        alone.set_tracked(0, self.num_batches_tracked)
        y = super()._forward(x)
        self._tracked = alone.tracked(0)
        if self._op is not None:
            self._op[0].set_tracked(self._op[1], self._tracked)
        return y

    @classmethod
    def _stored_numbers(cls, config):
        n = width_of(config, "num_features")
        return 2 * n, 4 * n + 1  # statistics; weight, bias, and the count, which a file may lack

    def _options(self):
        return super()._options() | {"momentum": -1.0 if self.momentum is None else self.momentum}

    def _torch_arrays(self):
        return super()._torch_arrays() | {"num_batches_tracked": self.num_batches_tracked}

    @classmethod
    def _from_torch(cls, module, dtype):
        if module.running_mean is None:
            raise TypeError("expected running statistics (track_running_stats=True)")
        layer = cls(module.num_features, module.eps, module.momentum, module.affine, dtype=dtype)
        layer._tracked = int(module.num_batches_tracked)
        layer._copy_from_torch(module)
        return layer

    def _to_onnx(self, graph, x):
        # The attribute is a float32: its rounding error of eps is added to the variance.
        var = self.running_var + (self.eps - float(np.float32(self.eps))) if graph.float64 else self.running_var
        statistics = graph.parameter("running_mean", self.running_mean), graph.parameter("running_var", var)
        return x.op("BatchNormalization", *self._onnx_arrays(graph), *statistics, epsilon=self.eps)

    def _to_c(self, code):
        code.begin()
        bias, mean = self._c_bias(code), code.constant("mean", self.running_mean)
        code.step("v", f"(v - {mean}[j]) * {self._c_scale(code)}{bias}")

    def _c_scale(self, code: Any) -> str:
        """A formula for weight / sqrt(var + eps); one constant, if the weight is."""
        inverse = 1 / np.sqrt(np.asarray(self.running_var, np.float64) + self.eps)
        if code.file.argument:
            return self._c_times_weight(code, f"{code.constant('inverse', inverse)}[j]")
        return f"{code.constant('scale', inverse if self.weight is None else self.weight * inverse)}[j]"

    def _c_tangent(self, code, dx, dy):
        code.assign(f"{dx[0]}[j] * {self._c_scale(code)}", dy)

    def _c_backward(self, code, g):
        code.send(0, f"{g}[j] * {self._c_scale(code)}")

    _c_second = Layer._c_no_second

    def _c_gradient(self, code, g):
        inverse = 1 / np.sqrt(np.asarray(self.running_var, np.float64) + self.eps)
        mean, inverse = code.constant("mean", self.running_mean), code.constant("inverse", inverse)
        self._c_gradients(code, g, f"({code.sources[0]}[j] - {mean}[j]) * {inverse}[j]")

    @property
    def running_mean(self) -> Any:
        """The running means of the features. Assignment copies the values into the array."""
        return self._array("running_mean")

    @running_mean.setter
    def running_mean(self, value: Any) -> None:
        self._assign("running_mean", value)

    @property
    def running_var(self) -> Any:
        """The running variances of the features. Assignment copies the values into the array."""
        return self._array("running_var")

    @running_var.setter
    def running_var(self, value: Any) -> None:
        self._assign("running_var", value)

    @property
    def num_batches_tracked(self) -> int:
        """Number of batches in the running statistics."""
        return self._tracked if self._op is None else self._op[0].tracked(self._op[1])


class LayerNorm(Norm):
    """y = (x - mean) / sqrt(var + eps) weight + bias, with the mean and variance of each row.

    Ba, Kiros and Hinton, 2016; torch.nn.LayerNorm.

    Parameters
    ----------
    normalized_shape : int
        Width of x.
    eps : float
        Above 0.
    elementwise_affine : bool
        Whether to have a weight and, if `bias`, a bias.
    bias : bool
        Whether to have a bias.
    dtype : {"float32", "float64"}
        Of the parameters of a standalone layer; in a model, the model's dtype applies.

    Attributes
    ----------
    weight, bias : ndarray of shape (normalized_shape,), or None
        Initially 1 and 0.
    grad_weight, grad_bias : ndarray of shape (normalized_shape,), or None
        Their gradients; `backward` accumulates into them.
    """

    op = "layer_norm"
    torch_name = "LayerNorm"

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = "float32",
    ) -> None:
        self.normalized_shape: int = integer("normalized_shape", normalized_shape, 1)
        self.elementwise_affine: bool = flag("elementwise_affine", elementwise_affine)
        self.has_bias: bool = flag("bias", bias)
        weight = self.elementwise_affine
        super().__init__(self.normalized_shape, eps, weight, weight and self.has_bias, dtype)

    @classmethod
    def _stored_numbers(cls, config):
        return 0, 2 * width_of(config, "normalized_shape")

    @classmethod
    def _from_torch(cls, module, dtype):
        if len(module.normalized_shape) != 1:
            raise TypeError("expected a normalized_shape of one dimension")
        affine, bias = module.weight is not None, module.bias is not None
        layer = cls(module.normalized_shape[0], module.eps, affine, bias or not affine, dtype=dtype)
        layer._copy_from_torch(module)
        return layer

    def _to_onnx(self, graph, x):
        weight, bias = self._onnx_arrays(graph)
        if graph.opset >= 17 and not graph.float64:  # the attribute is a float32
            return x.op("LayerNormalization", weight, bias, axis=-1, epsilon=self.eps)
        centred = x - x.mean()
        variance = (centred * centred).mean()
        return centred / (variance + self.eps).op("Sqrt") * weight + bias

    def _to_c(self, code):
        code.begin()
        self._c_open(code, code.target)
        code.step("v", f"{self._c_times_weight(code, '(v - m) * s')}{self._c_bias(code)}")
        code.close()

    def _c_open(self, code: Any, x: str) -> None:
        """Begin a block with m, the mean of x, and s = 1 / sqrt(var + eps)."""
        n = code.number(code.width)
        code.open("")
        code.means(m=f"{x}[j]")
        code.sums(s=f"({x}[j] - m) * ({x}[j] - m)")
        code.write(f"s = {code.number(1.0)} / {code.function('sqrt')}(s / {n} + {code.number(self.eps)});")

    # With h = (x - m) s, means over the row, and w g the gradient g times the weight, a = mean(d), q = mean(h d):
    # the derivative of h along d is s (d - a - h q), and this matrix is symmetric.

    def _c_tangent(self, code, dx, dy):
        x, d = code.sources[0], dx[0]
        self._c_open(code, x)
        code.means(a=f"{d}[j]", q=f"({x}[j] - m) * s * {d}[j]")
        code.assign(self._c_times_weight(code, f"s * ({d}[j] - a - ({x}[j] - m) * s * q)"), dy)
        code.close()

    def _c_backward(self, code, g):
        x, wg = code.sources[0], self._c_times_weight(code, f"{g}[j]")
        self._c_open(code, x)
        code.means(b=wg, e=f"({x}[j] - m) * s * {wg}")
        code.send(0, f"s * ({wg} - b - ({x}[j] - m) * s * e)")
        code.close()

    def _c_second(self, code, dx, g):
        """-s**2 (q (w g - b - h p) + e (d - a - h q) + h (mean(d w g) - a b - q e)), b = mean(w g), e = mean(h w g)."""
        x, d, wg = code.sources[0], dx[0], self._c_times_weight(code, f"{g}[j]")
        h = f"({x}[j] - m) * s"
        self._c_open(code, x)
        code.means(a=f"{d}[j]", q=f"{h} * {d}[j]", b=wg, e=f"{h} * {wg}", c=f"{d}[j] * {wg}")
        code.write(f"c -= a * b + {code.number(3.0)} * q * e;")
        code.send(0, f"-s * s * (q * ({wg} - b) + e * ({d}[j] - a) + {h} * c)")
        code.close()

    def _c_gradient(self, code, g):
        x = code.sources[0]
        self._c_open(code, x)
        self._c_gradients(code, g, f"({x}[j] - m) * s")
        code.close()
