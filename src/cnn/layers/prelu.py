"""PReLU: a leaky ReLU whose slope is learned."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import integer, number
from .._types import DTypeLike
from .base import Layer, Parametric, width_of

__all__ = ["PReLU"]


class PReLU(Parametric):
    """f(z) = z for z > 0, weight z otherwise; f'(0) = weight (He, Zhang, Ren and Sun, 2015; torch.nn.PReLU).

    Parameters
    ----------
    num_parameters : int
        1: one slope for all columns. Otherwise the width of x: one slope per column.
    init : float
        Initial slope, finite.
    dtype : {"float32", "float64"}
        Of the slopes of a standalone layer; in a model, the model's dtype applies.

    Attributes
    ----------
    weight : ndarray of shape (num_parameters,)
        The slopes for z <= 0.
    grad_weight : ndarray of shape (num_parameters,)
        Their gradient; `backward` accumulates into it.

    Examples
    --------
    >>> PReLU()([[-2.0, 2.0]])
    array([[-0.5,  2. ]], dtype=float32)
    """

    op = "prelu"
    torch_name = "PReLU"
    has_bias = False
    _fixed = ("num_parameters", "init")

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: DTypeLike = "float32") -> None:
        self.num_parameters: int = integer("num_parameters", num_parameters, 1)
        self.init: float = number("init", init)
        super().__init__(dtype)

    def _draw(self, bits):
        return {"weight": np.full(self.num_parameters, self.init, self.dtype), "bias": None}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.num_parameters,)}

    def _in_features(self):
        return self.num_parameters if self.num_parameters > 1 else None

    def _options(self):
        return {"weight": self.num_parameters}

    @classmethod
    def _stored_numbers(cls, config):
        n = width_of(config, "num_parameters") if "num_parameters" in config else 1
        return n, n

    @classmethod
    def _from_torch(cls, module, dtype):
        layer = cls(module.num_parameters, module.init, dtype=dtype)
        layer.weight = module.weight.detach().cpu().numpy()
        return layer

    def _to_onnx(self, graph, x):
        weight = graph.parameter("weight", self.weight)
        if graph.float64:  # ONNX Runtime supports PRelu only in float32
            return x.op("Relu") - (-x).op("Relu") * weight
        return x.op("PRelu", weight)

    def _to_c(self, code):
        code.begin()
        code.step("t", f"v * {self._c_weight(code.parameter('weight'))}")
        code.step("v", "v > {0.0} ? v : t")

    def _c_weight(self, array: str) -> str:
        return f"{array}[{'j' if self.num_parameters > 1 else '0'}]"

    def _c_slope(self, code: Any) -> str:
        left = self._c_weight(code.parameter("weight"))
        return f"({code.sources[0]}[j] > {code.number(0.0)} ? {code.number(1.0)} : {left})"

    def _c_tangent(self, code, dx, dy):
        code.assign(f"{dx[0]}[j] * {self._c_slope(code)}", dy)

    def _c_backward(self, code, g):
        code.send(0, f"{g}[j] * {self._c_slope(code)}")

    _c_second = Layer._c_no_second

    def _c_gradient(self, code, g):
        x, zero, gradient = code.sources[0], code.number(0.0), self._c_weight(code.gradient("weight"))
        code.loop(code.width, f"{gradient} += {x}[j] > {zero} ? {zero} : {x}[j] * {g}[j];")
