"""Activations: elementwise functions. Their kernels are in kernels/activation.pxi.

A class here holds everything that Python needs for an activation: its name in the kernels, its parameter, the gain
for initialisers, and its forms in the export formats. A new activation needs no other Python file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ClassVar

import numpy as np

from .. import functional, initializers
from .._checks import choice, number, positive
from .._types import Array, ArrayLike
from .base import Layer

__all__ = [
    "CELU",
    "ELU",
    "GELU",
    "SELU",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyReLU",
    "Mish",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
]


@dataclass(frozen=True)
class Onnx:
    """An activation's operator in ONNX. Where the operator cannot be used, the export writes `onnx_formula` instead.

    Attributes
    ----------
    operator : str or None
        Its name; None if there is none.
    attributes : mapping of str to str
        Our argument for each attribute of the operator. The defaults are the same.
    opset : int
        The opset that introduced it.
    float64 : bool
        Whether ONNX Runtime supports it in float64 (see docs/OperatorKernels.md there).
    """

    operator: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    opset: int = 1
    float64: bool = True


class Activation(Layer, abstract=True):
    """A function applied elementwise. Standalone it accepts arrays of any shape, float32 or float64.

    Attributes
    ----------
    function : str
        Its name in the kernels, and in `cnn.functional`.
    param : float
        The parameter, or 0 without one; on the class, its default.
    gain : float or callable or None
        What `initializers.calculate_gain` returns: a number, or a function of the parameter; None if not defined.
    onnx : Onnx
        The operator.
    c : tuple of (str, str)
        C statements for each number v, one loop each; t is a second array. Numbers and functions in braces are written
        for the dtype; {a} is the parameter; "clamp" assigns to t, limited to the range of exp. A choice between v and
        a computed number needs a separate loop: otherwise GCC emits a branch and does not vectorise.
    c_derivatives : tuple of (str, str)
        The same for s = f'(x) and c = f''(x), with inputs x and y = f(x). Without c, or without both, the exported C
        code lacks these derivatives.
    """

    function: str
    facts: ClassVar[tuple[str, ...]] = (*Layer.facts, "function", "param", "gain", "onnx", "onnx_formula", "c")
    op: ClassVar[Any] = "activation"
    param: float = 0.0
    gain: ClassVar[Any]
    onnx: ClassVar[Onnx]
    c: tuple[tuple[str, str], ...]
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = ()

    _fixed = ("param", "approximate", "function")

    @classmethod
    def _register(cls) -> None:
        if cls.function is None:
            raise TypeError(f"{cls.__name__}: expected 'function' in the class, its name in the kernels; it is None")
        super()._register()
        functional.DEFAULT_PARAM[cls.function] = cls.param
        if cls.gain is not None:
            initializers.GAINS[cls.function] = cls.gain

    def _options(self):
        return {"act": self.function, "param": self.param}

    def _compile(self, graph, source, place):
        if self.function is None:
            raise NotImplementedError(f"{place}: cannot be part of a model")
        return super()._compile(graph, source, place)

    def onnx_formula(self, x: Any) -> Any:
        """The activation as a formula of other ONNX operators.

        Parameters
        ----------
        x : Value
            Of export/onnx.py.

        Returns
        -------
        Value

        Raises
        ------
        NotImplementedError
            If the activation has none.
        """
        raise NotImplementedError(f"{self!r} has neither an operator nor a formula in ONNX")

    def _to_onnx(self, graph, x):
        onnx = self.onnx
        if onnx.operator is None or graph.opset < onnx.opset or (graph.float64 and not onnx.float64):
            return self.onnx_formula(x)
        return x.op(onnx.operator, **{name: getattr(self, argument) for name, argument in onnx.attributes.items()})

    @classmethod
    def _forms(cls, numbers: Iterable[float]) -> Iterator[Activation]:
        """Candidates for a formula with these numbers: activations of this class."""
        yield cls()
        for name in signature(cls).parameters:
            if name != "dtype":
                yield from (cls(**{name: number}) for number in numbers)

    def _to_c(self, code):
        code.begin()
        for target, formula in self.c:
            code.step(target, formula, self.param)

    def _c_order(self):
        return len({"s", "c"} & {target for target, _ in self.c_derivatives})

    def _c_slopes(self, code, order):
        slopes = {kind: code.local(kind, code.node.target) for kind in "sc"[:order]}
        for to, formula in self.c_derivatives:
            if to != "c" or order == 2:
                code.step(to, formula, self.param, x=code.sources[0], y=code.target, **slopes)

    def _c_tangent(self, code, dx, dy):
        code.assign(f"{code.local('s', code.node.target)}[j] * {dx[0]}[j]", dy)

    def _c_backward(self, code, g):
        code.send(0, f"{code.local('s', code.node.target)}[j] * {g}[j]")

    def _c_second(self, code, dx, g):
        code.send(0, f"{code.local('c', code.node.target)}[j] * {dx[0]}[j] * {g}[j]")

    def _forward(self, x):
        y = functional.activation_forward(self.function, x, self.param)
        self._last = np.array(x, dtype=y.dtype)
        return y

    def _backward(self, grad_output):
        return functional.activation_backward(self.function, grad_output, self._last, self.param)

    def derivative(self, z: ArrayLike) -> Array:
        """f'(z), elementwise.

        Parameters
        ----------
        z : array_like
            Of any shape.

        Returns
        -------
        ndarray of z's shape

        Raises
        ------
        TypeError
            If z does not consist of real numbers.
        """
        dtype = functional.real_dtype(z)
        return functional.activation_backward(self.function, np.ones(np.shape(z), dtype), z, self.param)


class Identity(Activation):
    """f(z) = z."""

    op = None
    function = "identity"
    gain = None
    torch_name = "Identity"
    onnx: ClassVar[Onnx] = Onnx("Identity")
    c: tuple[tuple[str, str], ...] = ()

    def _compile(self, graph, source, place):
        return source


class ReLU(Activation):
    """f(z) = max(z, 0); f'(0) = 0."""

    function = "relu"
    gain: ClassVar[Any] = math.sqrt(2)
    torch_name = "ReLU"
    onnx: ClassVar[Onnx] = Onnx("Relu")
    c: tuple[tuple[str, str], ...] = (("v", "v < {0.0} ? {0.0} : v"),)
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (("s", "x > {0.0} ? {1.0} : {0.0}"), ("c", "{0.0}"))


class LeakyReLU(Activation):
    """f(z) = z for z > 0, negative_slope z otherwise.

    Parameters
    ----------
    negative_slope : float
        Finite.
    """

    function = "leaky_relu"
    param: float = 0.01
    torch_name = "LeakyReLU"
    onnx: ClassVar[Onnx] = Onnx("LeakyRelu", {"alpha": "negative_slope"}, float64=False)
    c: tuple[tuple[str, str], ...] = (("t", "v * {a}"), ("v", "v > {0.0} ? v : t"))
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (("s", "x > {0.0} ? {1.0} : {a}"), ("c", "{0.0}"))

    def __init__(self, negative_slope: float = param) -> None:
        self.param = number("negative_slope", negative_slope)

    @property
    def negative_slope(self) -> float:
        """The slope for z <= 0."""
        return self.param

    @staticmethod
    def gain(negative_slope: float) -> float:
        """sqrt(2 / (1 + negative_slope**2)) (He, Zhang, Ren and Sun, 2015).

        Parameters
        ----------
        negative_slope : float

        Returns
        -------
        float
        """
        return math.sqrt(2 / (1 + negative_slope**2))

    def onnx_formula(self, x: Any) -> Any:
        return (x > 0.0).op("Where", x, self.param * x)


class ELU(Activation):
    """f(z) = z for z > 0, alpha (exp(z) - 1) otherwise (Clevert, Unterthiner and Hochreiter, 2016).

    Parameters
    ----------
    alpha : float
        Finite.
    """

    function = "elu"
    param: float = 1.0
    gain = None
    torch_name = "ELU"
    onnx: ClassVar[Onnx] = Onnx("Elu", {"alpha": "alpha"}, float64=False)
    c: tuple[tuple[str, str], ...] = (
        ("clamp", "v > {0.0} ? {0.0} : v"),
        ("t", "{a} * {expm1}(t)"),
        ("v", "v > {0.0} ? v : t"),
    )
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("t", "y + {a}"),
        ("s", "x > {0.0} ? {1.0} : t"),
        ("c", "x > {0.0} ? {0.0} : t"),
    )

    def __init__(self, alpha: float = param) -> None:
        self.param = number("alpha", alpha)

    @property
    def alpha(self) -> float:
        """The limit of -f(z) as z goes to -infinity."""
        return self.param

    def onnx_formula(self, x: Any) -> Any:
        return (x > 0.0).op("Where", x, self.param * (x.op("Min", 0.0).op("Exp") - 1.0))


class Sigmoid(Activation):
    """f(z) = 1 / (1 + exp(-z))."""

    function = "sigmoid"
    gain: ClassVar[Any] = 1.0
    outputs: str | None = "probabilities"
    torch_name = "Sigmoid"
    onnx: ClassVar[Onnx] = Onnx("Sigmoid")
    c: tuple[tuple[str, str], ...] = (("clamp", "-v"), ("v", "{1.0} / ({1.0} + {exp}(t))"))
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (("s", "y * ({1.0} - y)"), ("c", "s * ({1.0} - {2.0} * y)"))


class Tanh(Activation):
    """f(z) = tanh(z)."""

    function = "tanh"
    gain: ClassVar[Any] = 5 / 3
    torch_name = "Tanh"
    onnx: ClassVar[Onnx] = Onnx("Tanh")
    c: tuple[tuple[str, str], ...] = (
        ("clamp", "{-2.0} * {fabs}(v)"),
        ("t", "{expm1}(t)"),
        ("v", "{copysign}(t / ({-2.0} - t), v)"),
    )
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (("s", "{1.0} - y * y"), ("c", "{-2.0} * y * s"))


# z / (1 + exp(t)) with t clamped is not small where z is large; from here on exp overflows in float64 too.
_ZERO_BELOW = ("v", "v < {-750.0} ? {-0.0} : v")


class GELU(Activation):
    """f(z) = z Phi(z), where Phi is the standard normal distribution function (Hendrycks and Gimpel, 2016).

    Parameters
    ----------
    approximate : {"none", "tanh"}
        "none": exact, with the error function. "tanh": f(z) = z/2 (1 + tanh(sqrt(2/pi) (z + 0.044715 z**3))).
    """

    function: str = "gelu"
    gain = None
    torch_name = "GELU"
    onnx: ClassVar[Onnx] = Onnx("Gelu", {"approximate": "approximate"}, opset=20, float64=False)

    def __init__(self, approximate: str = "none") -> None:
        self.approximate: str = choice("approximate", approximate, ("none", "tanh"))
        self.function = "gelu" if approximate == "none" else "gelu_tanh"

    @classmethod
    def _forms(cls, numbers):
        return map(cls, ("none", "tanh"))

    @property
    def c(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]
        """Its statements in C."""
        if self.approximate == "none":
            return (("v", "{0.5} * v * {erfc}(v * {-0.7071067811865476})"),)
        return (
            ("clamp", "v * ({-1.5957691216057308} - {0.07135481627260025} * v * v)"),
            _ZERO_BELOW,
            ("v", "v / ({1.0} + {exp}(t))"),
        )

    @property
    def c_derivatives(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]
        """C statements for its derivatives. x is clamped, so that its square cannot overflow."""
        if self.approximate == "none":
            return (
                ("s", "x > {38.0} ? {38.0} : x"),
                ("s", "s < {-38.0} ? {-38.0} : s"),
                ("clamp", "{-0.5} * s * s"),
                ("t", "{0.3989422804014327} * {exp}(t)"),
                ("c", "({2.0} - s * s) * t"),
                ("s", "{0.5} * {erfc}(s * {-0.7071067811865476}) + s * t"),
            )
        slope = "({1.5957691216057308} + {0.21406444881780075} * s * s)"
        return (
            ("s", "x > {21.0} ? {21.0} : x"),
            ("s", "s < {-21.0} ? {-21.0} : s"),
            ("clamp", "s * ({-1.5957691216057308} - {0.07135481627260025} * s * s)"),
            ("t", "{exp}(t)"),
            ("c", f"(t - {{1.0}}) / (t + {{1.0}}) * {slope} * {slope} + {{0.4281288976356015}} * s"),
            ("c", f"t / ({{1.0}} + t) / ({{1.0}} + t) * ({{2.0}} * {slope} + s * c)"),
            ("s", f"({{1.0}} + s * {slope} * (t / ({{1.0}} + t))) / ({{1.0}} + t)"),
        )

    def onnx_formula(self, x: Any) -> Any:
        if self.approximate == "tanh":
            return x * (x * (1.5957691216057308 + 0.07135481627260025 * x * x)).op("Sigmoid")
        return 0.5 * x * (1.0 + (x * 0.7071067811865476).in_float32("Erf"))


class SiLU(Activation):
    """f(z) = z / (1 + exp(-z)) (Elfwing, Uchibe and Doya, 2018)."""

    function = "silu"
    gain = None
    torch_name = "SiLU"
    onnx: ClassVar[Onnx] = Onnx()
    c: tuple[tuple[str, str], ...] = (("clamp", "-v"), _ZERO_BELOW, ("v", "v / ({1.0} + {exp}(t))"))
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("s", "x < {-750.0} ? {-750.0} : x"),
        ("clamp", "-s"),
        ("t", "{1.0} / ({1.0} + {exp}(t))"),
        ("c", "t * ({1.0} - t) * ({2.0} + s * ({1.0} - {2.0} * t))"),
        ("s", "t + s * t * ({1.0} - t)"),
    )

    def onnx_formula(self, x: Any) -> Any:
        return x * x.op("Sigmoid")


class Softplus(Activation):
    """f(z) = log(1 + exp(z))."""

    function = "softplus"
    gain = None
    torch_name = "Softplus"
    onnx: ClassVar[Onnx] = Onnx("Softplus", float64=False)
    c: tuple[tuple[str, str], ...] = (
        ("clamp", "-{fabs}(v)"),
        ("t", "{exp}(t)"),
        ("v", "(v < {0.0} ? {0.0} : v) + {log1p}(t)"),
    )
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("clamp", "-x"),
        ("s", "{1.0} / ({1.0} + {exp}(t))"),
        ("c", "s * ({1.0} - s)"),
    )

    # PyTorch's Softplus is the identity above `threshold`. At its default, 20, the error is 2e-9; above 40 the two are
    # equal in float64.
    _THRESHOLD_LEAST, _THRESHOLD_EXACT = 20, 40

    def onnx_formula(self, x: Any) -> Any:
        return x.op("Max", 0.0) + (1.0 + (-abs(x)).op("Exp")).op("Log")

    def _to_torch(self, nn, dtype):
        return nn.Softplus(threshold=self._THRESHOLD_EXACT)

    @classmethod
    def _from_torch(cls, module, dtype):
        if module.beta != 1 or module.threshold < cls._THRESHOLD_LEAST:
            raise TypeError(f"expected beta=1 and a threshold of at least {cls._THRESHOLD_LEAST}")
        return cls()


class SELU(Activation):
    """f(z) = scale z for z > 0, scale alpha (exp(z) - 1) otherwise, with scale = 1.0507 and alpha = 1.6733.

    These constants preserve mean 0 and variance 1 from layer to layer (Klambauer, Unterthiner, Mayr and Hochreiter,
    2017).
    """

    function = "selu"
    gain: ClassVar[Any] = 3 / 4
    torch_name = "SELU"
    onnx: ClassVar[Onnx] = Onnx("Selu", float64=False)
    c: tuple[tuple[str, str], ...] = (
        ("clamp", "v > {0.0} ? {0.0} : v"),
        ("t", "{1.6732632423543772} * {expm1}(t)"),
        ("v", "v > {0.0} ? v : t"),
        ("v", "{1.0507009873554805} * v"),
    )
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("t", "y + {1.7580993408473769}"),
        ("s", "x > {0.0} ? {1.0507009873554805} : t"),
        ("c", "x > {0.0} ? {0.0} : t"),
    )

    def onnx_formula(self, x: Any) -> Any:
        return (x > 0.0).op("Where", 1.0507009873554805 * x, 1.7580993408473769 * (x.op("Min", 0.0).op("Exp") - 1.0))


class CELU(Activation):
    """f(z) = z for z > 0, alpha (exp(z / alpha) - 1) otherwise (Barron, 2017).

    Parameters
    ----------
    alpha : float
        Above 0.
    """

    function = "celu"
    param: float = 1.0
    gain = None
    torch_name = "CELU"
    onnx: ClassVar[Onnx] = Onnx("Celu", {"alpha": "alpha"}, opset=12, float64=False)
    c: tuple[tuple[str, str], ...] = (
        ("clamp", "(v > {0.0} ? {0.0} : v) / {a}"),
        ("t", "{a} * {expm1}(t)"),
        ("v", "v > {0.0} ? v : t"),
    )
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("t", "y / {a} + {1.0}"),
        ("s", "x > {0.0} ? {1.0} : t"),
        ("t", "t / {a}"),
        ("c", "x > {0.0} ? {0.0} : t"),
    )

    def __init__(self, alpha: float = param) -> None:
        self.param = positive("alpha", alpha)

    @property
    def alpha(self) -> float:
        """The limit of -f(z) as z goes to -infinity."""
        return self.param

    @classmethod
    def _forms(cls, numbers):
        return super()._forms([number for number in numbers if number > 0])

    def onnx_formula(self, x: Any) -> Any:
        return (x > 0.0).op("Where", x, self.param * ((x.op("Min", 0.0) / self.param).op("Exp") - 1.0))


class Mish(Activation):
    """f(z) = z tanh(log(1 + exp(z))) (Misra, 2019)."""

    function = "mish"
    gain = None
    torch_name = "Mish"
    onnx: ClassVar[Onnx] = Onnx("Mish", opset=18, float64=False)
    # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2), which is 1 from z = 20 on
    c: tuple[tuple[str, str], ...] = (
        ("clamp", "v > {20.0} ? {20.0} : v"),
        ("t", "{exp}(t)"),
        ("t", "t * (t + {2.0})"),
        ("v", "(v < {-760.0} ? {-760.0} : v) * (t / (t + {2.0}))"),
    )
    # With w = tanh(...), n = e (e + 2): f' = w + z w', w' = 4 e (e + 1) / (n + 2)**2, w'' = w' (1 - 2 w e) / (1 + e).
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("s", "x > {20.0} ? {20.0} : x"),
        ("s", "s < {-760.0} ? {-760.0} : s"),
        ("clamp", "s"),
        ("t", "{exp}(t)"),
        ("c", "{2.0} + s * ({1.0} - {2.0} * t * (t * (t + {2.0}) / (t * (t + {2.0}) + {2.0}))) / ({1.0} + t)"),
        ("c", "c * {4.0} * t * (t + {1.0}) / ((t * (t + {2.0}) + {2.0}) * (t * (t + {2.0}) + {2.0}))"),
        ("s", "s * {4.0} * (t + {1.0}) / (t * (t + {2.0}) + {2.0})"),
        ("s", "t * (t + {2.0} + s) / (t * (t + {2.0}) + {2.0})"),
    )

    def onnx_formula(self, x: Any) -> Any:
        e = x.op("Min", 20.0).op("Exp")
        n = e * (e + 2.0)
        return x * (n / (n + 2.0))


class Softsign(Activation):
    """f(z) = z / (1 + abs(z))."""

    function = "softsign"
    gain = None
    torch_name = "Softsign"
    onnx: ClassVar[Onnx] = Onnx("Softsign", float64=False)
    c: tuple[tuple[str, str], ...] = (
        ("v", "v < {-1e30} ? {-1e30} : v"),
        ("v", "v > {1e30} ? {1e30} : v"),
        ("v", "v / ({1.0} + {fabs}(v))"),
    )
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("t", "{1.0} / ({1.0} + {fabs}(x))"),
        ("s", "t * t"),
        ("c", "{-2.0} * s * {copysign}(t, x)"),
    )

    def onnx_formula(self, x: Any) -> Any:
        return x / (abs(x) + 1.0)


class ReLU6(Activation):
    """f(z) = min(max(z, 0), 6); f'(0) = f'(6) = 0."""

    function = "relu6"
    gain = None
    torch_name = "ReLU6"
    onnx: ClassVar[Onnx] = Onnx()
    c: tuple[tuple[str, str], ...] = (("v", "v < {0.0} ? {0.0} : v"), ("v", "v > {6.0} ? {6.0} : v"))
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("s", "x > {0.0} ? {1.0} : {0.0}"),
        ("s", "x < {6.0} ? s : {0.0}"),
        ("c", "{0.0}"),
    )

    def onnx_formula(self, x: Any) -> Any:
        return x.op("Clip", 0.0, 6.0)


class HardSigmoid(Activation):
    """f(z) = min(max(z + 3, 0), 6) / 6; f'(-3) = f'(3) = 0."""

    function = "hardsigmoid"
    gain = None
    outputs: str | None = "probabilities"
    torch_name = "Hardsigmoid"
    onnx: ClassVar[Onnx] = Onnx("HardSigmoid", {"alpha": "_slope"}, float64=False)
    _slope = 1 / 6
    c: tuple[tuple[str, str], ...] = (
        ("v", "v < {-3.0} ? {-3.0} : v"),
        ("v", "v > {3.0} ? {3.0} : v"),
        ("v", "(v + {3.0}) * {0.16666666666666666}"),
    )
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("s", "x > {-3.0} ? {0.16666666666666666} : {0.0}"),
        ("s", "x < {3.0} ? s : {0.0}"),
        ("c", "{0.0}"),
    )

    def onnx_formula(self, x: Any) -> Any:
        return (x + 3.0).op("Clip", 0.0, 6.0) * self._slope


class HardSwish(Activation):
    """f(z) = z min(max(z + 3, 0), 6) / 6 (Howard and others, 2019); f'(-3) = 0, f'(3) = 1."""

    function = "hardswish"
    gain = None
    torch_name = "Hardswish"
    onnx: ClassVar[Onnx] = Onnx("HardSwish", opset=14, float64=False)
    c: tuple[tuple[str, str], ...] = (
        ("t", "v < {-3.0} ? {-3.0} : v"),
        ("t", "t > {3.0} ? {3.0} : t"),
        ("t", "(t + {3.0}) * {0.16666666666666666}"),
        ("v", "(v < {-3.0} ? {-3.0} : v) * t"),
    )
    c_derivatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("t", "x * {0.3333333333333333} + {0.5}"),
        ("t", "x <= {-3.0} ? {0.0} : t"),
        ("s", "x >= {3.0} ? {1.0} : t"),
        ("c", "x > {-3.0} ? {0.3333333333333333} : {0.0}"),
        ("c", "x < {3.0} ? c : {0.0}"),
    )

    def onnx_formula(self, x: Any) -> Any:
        return x * ((x + 3.0).op("Clip", 0.0, 6.0) * (1 / 6))


def made_of(wanted: Any, hidden: int) -> list[Activation]:
    """New layers for the `activation` of an estimator: a name or a layer for all hidden layers, or one for each."""
    kinds = {"logistic": Sigmoid, **{name.lower(): globals()[name] for name in __all__}}
    if not isinstance(wanted, (list, tuple)):
        wanted = [wanted] * hidden
    elif len(wanted) != hidden:
        raise ValueError(
            f"activation: expected one for each of the {hidden} hidden layers, got {len(wanted)}: {wanted!r}"
        )
    made = []
    for one in wanted:
        if isinstance(one, str) and one.lower() in kinds:
            made.append(kinds[one.lower()]())
        elif isinstance(one, Activation):
            made.append(Layer.from_config(one.to_config()))
        else:
            known = ", ".join(sorted(kinds))
            raise ValueError(f"activation: expected a layer such as cnn.GELU(), or one of {known}, got {one!r}")
    return made
