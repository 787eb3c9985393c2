"""Activations: an entry is the library's class, its f, f' and f'' in NumPy, and the facts that tests need.

The formulas are implementations of their own: whatever is wrong in the library cannot be wrong here in the same way.
They compute in the precision of z: give float64 to judge float32, and np.longdouble, where it is wider, to judge
float64. z is finite; at 0 the derivative is that from the left, at the other kinks the library's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from reference import namespace

import cnn

INF = math.inf

_erfc = np.vectorize(math.erfc, otypes=[np.float64])  # float64 whatever comes in
# 2 sqrt(2 / pi), and its product with 0.044715; to more digits than float64 has
_GELU_TANH = np.longdouble("1.59576912160573071175978423973752")
_GELU_TANH_CUBE = np.longdouble("0.0713548162726002487763387522798797")


@dataclass(frozen=True)
class Activation:
    """make(param): the library's layer. f, df, d2f: of z, or of z and the parameter if there are `params`."""

    cls: type[cnn.layers.Layer]
    f: Callable
    df: Callable
    d2f: Callable
    limits: tuple[float, float]  # of f, at -inf and at inf, with the default parameter
    params: tuple[float, ...] = ()  # the default first; the second is negative, where it may be
    kinks: tuple[float, ...] = ()  # where f' or f'' jumps
    in_ulp: bool = False  # f is right to 4 ULP even where it is denormal
    decay: float = 0.0  # f' vanishes like exp(-decay |z|) and is right to 8 ULP; 0: is not
    options: dict[str, Any] = field(default_factory=dict)  # of the constructor, here and in PyTorch
    torch: dict[str, Any] = field(default_factory=dict)  # of PyTorch's constructor alone
    jax: Callable | None = None  # of jax.nn, z and the parameter; None: its function of the entry's name

    def make(self, param=None):
        return self.cls(*[] if param is None else [param], **self.options)

    def make_torch(self, nn, param=None):
        """The module of torch.nn."""
        return getattr(nn, self.cls.torch_name)(*[] if param is None else [param], **self.options, **self.torch)

    def arguments(self, param=None):
        """What follows z in the formulas."""
        return ((self.params[0] if param is None else param),) if self.params else ()

    def value(self, z, param=None):
        if namespace(z) is not np:
            import jax.nn

            function = self.jax or (lambda nn, z: getattr(nn, self.name)(z))
            return function(jax.nn, z, *self.arguments(param))
        return self.f(z, *self.arguments(param))

    def slope(self, z, param=None):
        z = np.asarray(z)
        return np.asarray(self.df(z, *self.arguments(param)), z.dtype)

    def curvature(self, z, param=None):
        z = np.asarray(z)
        return np.asarray(self.d2f(z, *self.arguments(param)), z.dtype)

    @property
    def kinked(self):
        return bool(self.kinks)

    def distance(self, z):
        """To the nearest kink, of each z."""
        return np.min([np.full_like(z, INF), *(np.abs(z - kink) for kink in self.kinks)], axis=0)

    @property
    def name(self):
        return next(name for name, entry in ACTIVATIONS.items() if entry is self)


def sigmoid(z):
    xp = namespace(z)
    e = xp.exp(-abs(z))  # at most 1: the formula 1 / (1 + exp(-z)) overflows
    return xp.where(z > 0, 1, e) / (1 + e)


def _dsigmoid(z):
    return sigmoid(z) * sigmoid(-z)


def _d2sigmoid(z):
    return _dsigmoid(z) * (sigmoid(-z) - sigmoid(z))


def _normal(z):
    """The normal distribution's probability of a value below z, and its density at z."""
    return _erfc(-z / math.sqrt(2)) / 2, np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _argument(z):
    """t with gelu_tanh(z) = z sigmoid(t), t' and t''. (1 + tanh(u)) / 2 = sigmoid(2 u)."""
    a, b = z.dtype.type(_GELU_TANH), z.dtype.type(_GELU_TANH_CUBE)
    return a * z + b * z**3, a + 3 * b * z**2, 6 * b * z


def _gelu_tanh_slope(z):
    t, dt, _ = _argument(z)
    return sigmoid(t) + z * dt * _dsigmoid(t)


def _gelu_tanh_curvature(z):
    t, dt, d2t = _argument(z)
    return (2 * dt + z * d2t) * _dsigmoid(t) + z * dt**2 * _d2sigmoid(t)


def _softplus(z):
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def _dmish_gate(z):
    """Of tanh(softplus(z)). 1 - tanh(s)**2 = 4 sigmoid'(2 s)."""
    return 4 * _dsigmoid(2 * _softplus(z)) * sigmoid(z)


def _mish_curvature(z):
    s = 2 * _softplus(z)
    return 2 * _dmish_gate(z) + z * (8 * _d2sigmoid(s) * sigmoid(z) ** 2 + 4 * _dsigmoid(s) * _dsigmoid(z))


_SELU_SCALE, _SELU_LEFT = 1.0507009873554805, 1.7580993408473769  # the second is the first times 1.67326...

# PyTorch's Softplus is the identity from `threshold` on, 20 by default, where log(1 + exp(z)) differs from z by 1e-10
# of it: its twin has a larger one.
ACTIVATIONS: dict[str, Activation] = {
    "identity": Activation(cnn.Identity, np.copy, np.ones_like, np.zeros_like, (-INF, INF), jax=lambda nn, z: z),
    "relu": Activation(cnn.ReLU, lambda z: np.maximum(z, 0), lambda z: z > 0, np.zeros_like, (0, INF), kinks=(0,)),
    "leaky_relu": Activation(
        cnn.LeakyReLU,
        lambda z, a: np.where(z > 0, z, a * z),
        lambda z, a: np.where(z > 0, 1, a),
        lambda z, a: np.zeros_like(z),
        (-INF, INF),
        (0.01, -0.5, 0.2, 1.5, 0.0),
        kinks=(0,),
        jax=lambda nn, z, a: nn.leaky_relu(z, a),
    ),
    "elu": Activation(
        cnn.ELU,
        lambda z, a: np.where(z > 0, z, a * np.expm1(np.minimum(z, 0))),
        lambda z, a: np.where(z > 0, 1, a * np.exp(np.minimum(z, 0))),
        lambda z, a: np.where(z > 0, 0, a * np.exp(np.minimum(z, 0))),
        (-1, INF),
        (1.0, -0.7, 0.3, 2.0, 0.0),
        kinks=(0,),
        in_ulp=True,
        decay=1,
        jax=lambda nn, z, a: nn.elu(z, a),
    ),
    "sigmoid": Activation(cnn.Sigmoid, sigmoid, _dsigmoid, _d2sigmoid, (0, 1), in_ulp=True, decay=1),
    "tanh": Activation(
        cnn.Tanh,
        np.tanh,
        lambda z: 4 * _dsigmoid(2 * z),  # 1 - tanh(z)**2
        lambda z: 8 * _d2sigmoid(2 * z),
        (-1, 1),
        in_ulp=True,
        decay=2,
    ),
    "gelu": Activation(
        cnn.GELU,
        lambda z: z * _normal(z)[0],
        lambda z: _normal(z)[0] + z * _normal(z)[1],
        lambda z: (2 - z**2) * _normal(z)[1],
        (0, INF),
        jax=lambda nn, z: nn.gelu(z, approximate=False),
    ),
    "gelu_tanh": Activation(
        cnn.GELU,
        lambda z: z * sigmoid(_argument(z)[0]),
        _gelu_tanh_slope,
        _gelu_tanh_curvature,
        (0, INF),
        options={"approximate": "tanh"},
        jax=lambda nn, z: nn.gelu(z, approximate=True),
    ),
    "silu": Activation(
        cnn.SiLU,
        lambda z: z * sigmoid(z),
        lambda z: sigmoid(z) + z * _dsigmoid(z),
        lambda z: 2 * _dsigmoid(z) + z * _d2sigmoid(z),
        (0, INF),
        in_ulp=True,
    ),
    "softplus": Activation(
        cnn.Softplus,
        _softplus,
        sigmoid,
        _dsigmoid,
        (0, INF),
        in_ulp=True,
        decay=1,
        torch={"threshold": 80},
    ),
    "selu": Activation(
        cnn.SELU,
        lambda z: np.where(z > 0, _SELU_SCALE * z, _SELU_LEFT * np.expm1(np.minimum(z, 0))),
        lambda z: np.where(z > 0, _SELU_SCALE, _SELU_LEFT * np.exp(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 0, _SELU_LEFT * np.exp(np.minimum(z, 0))),
        (-_SELU_LEFT, INF),
        kinks=(0,),
        in_ulp=True,
        decay=1,
    ),
    "celu": Activation(
        cnn.CELU,
        lambda z, a: np.where(z > 0, z, a * np.expm1(np.minimum(z, 0) / a)),
        lambda z, a: np.where(z > 0, 1, np.exp(np.minimum(z, 0) / a)),
        lambda z, a: np.where(z > 0, 0, np.exp(np.minimum(z, 0) / a) / a),
        (-1, INF),
        (1.0, 0.3, 2.0),
        kinks=(0,),
        in_ulp=True,
        decay=1,
        jax=lambda nn, z, a: nn.celu(z, a),
    ),
    "mish": Activation(
        cnn.Mish,
        lambda z: z * np.tanh(_softplus(z)),
        lambda z: np.tanh(_softplus(z)) + z * _dmish_gate(z),
        _mish_curvature,
        (0, INF),
        in_ulp=True,
    ),
    "softsign": Activation(
        cnn.Softsign,
        lambda z: z / (1 + np.abs(z)),
        lambda z: 1 / (1 + np.abs(z)) ** 2,
        lambda z: -2 * np.sign(z) / (1 + np.abs(z)) ** 3,
        (-1, 1),
        kinks=(0,),
        in_ulp=True,
        jax=lambda nn, z: nn.soft_sign(z),
    ),
    "relu6": Activation(
        cnn.ReLU6,
        lambda z: np.clip(z, 0, 6),
        lambda z: (z > 0) & (z < 6),
        np.zeros_like,
        (0, 6),
        kinks=(0, 6),
    ),
    "hardsigmoid": Activation(
        cnn.HardSigmoid,
        lambda z: np.clip(z + 3, 0, 6) / 6,
        lambda z: (np.abs(z) < 3) / 6,
        np.zeros_like,
        (0, 1),
        kinks=(-3, 3),
        jax=lambda nn, z: nn.hard_sigmoid(z),
    ),
    "hardswish": Activation(
        cnn.HardSwish,
        lambda z: z * np.clip(z + 3, 0, 6) / 6,
        lambda z: np.where(np.abs(z) < 3, z / 3 + 0.5, z > 0),
        lambda z: (np.abs(z) < 3) / 3,
        (0, INF),
        kinks=(-3, 3),
        jax=lambda nn, z: nn.hard_swish(z),
    ),
}
# Every activation with every parameter; None: it has none.
WITH_PARAMETERS = [(name, param) for name, entry in ACTIVATIONS.items() for param in entry.params or (None,)]
SMOOTH = tuple(name for name, entry in ACTIVATIONS.items() if not entry.kinked)
