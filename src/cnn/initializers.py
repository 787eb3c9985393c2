"""Initial values of parameters: Kaiming, Xavier, LeCun, orthogonal, uniform, normal, constant.

An initialiser is a callable (shape, rng) -> array, where rng is a `numpy.random.Generator`. The classes here have the
arguments of their namesakes in torch.nn.init. A name selects the defaults: `Linear(64, 10,
weight_init="kaiming_normal")` means `weight_init=cnn.initializers.KaimingNormal()`. Weights are (in, out): fan_in is
shape[0], fan_out is shape[1].

Values are computed in float64 from the generator's raw bits, with only +, -, *, / and sqrt, and rounded to the layer's
dtype: a seed gives the same values with every version of NumPy and on every processor. (Orthogonal matrices come from
LAPACK, whose last bits may differ.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from . import functional
from ._checks import choice, number
from ._configurable import Configurable

__all__ = [
    "Constant",
    "Initializer",
    "KaimingNormal",
    "KaimingUniform",
    "LeCunNormal",
    "LeCunUniform",
    "Normal",
    "Ones",
    "Orthogonal",
    "Uniform",
    "XavierNormal",
    "XavierUniform",
    "Zeros",
    "calculate_gain",
    "get",
]
__dir__ = __all__.copy  # for completion

# By activation name: a number, or a function of its parameter. Activations register theirs; "linear" means none.
GAINS: dict[str, float | Callable[[float], float]] = {"linear": 1.0}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The recommended factor for the standard deviation of the weights before an activation.

    Parameters
    ----------
    nonlinearity : {"linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"}
        1, 1, 5/3, sqrt(2), sqrt(2 / (1 + param**2)) and 3/4, as in torch.nn.init.calculate_gain.
    param : float, optional
        The negative slope of leaky_relu (default 0.01).

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If param is not a number.

    Examples
    --------
    >>> cnn.initializers.calculate_gain("leaky_relu", 1.0)
    1.0
    """
    gain = GAINS[choice("nonlinearity", nonlinearity, [*GAINS])]
    if not callable(gain):
        return gain
    return gain(functional.DEFAULT_PARAM[nonlinearity] if param is None else number("param", param))


# numbers from raw bits ------------------------------------------------------------------------------------------------


def _bits(rng: np.random.Generator, shape, n: int) -> np.ndarray:
    """n random bits for each element; NumPy guarantees the stream of raw bits."""
    return (rng.bit_generator.random_raw(math.prod(shape)) >> np.uint64(64 - n)).reshape(shape)


def symmetric(rng: np.random.Generator, shape: tuple[int, ...], bound: float) -> np.ndarray:
    """Uniform in [-bound, bound).

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
    bound : float

    Returns
    -------
    ndarray of this shape, float64
    """
    return (2 * (_bits(rng, shape, 53) * 2.0**-53) - 1) * bound


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Normal with mean 0 and standard deviation 1: the inverse distribution function of uniform numbers.

    Wichura's PPND16 (Algorithm AS 241, Applied Statistics 37, 1988), with a relative error of 1e-16.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int

    Returns
    -------
    ndarray of this shape, float64
    """
    u = (_bits(rng, shape, 52) + 0.5) * 2.0**-52  # exact, and neither 0 nor 1
    q = u - 0.5
    r = 0.180625 - q * q
    z = q * _polynomial(_CENTRE[0], r) / _polynomial(_CENTRE[1], r)
    outer = np.abs(q) > 0.425
    r = np.sqrt(-_log(np.minimum(u, 1 - u)[outer]))
    near, far = (_polynomial(p, r - shift) / _polynomial(q, r - shift) for (p, q), shift in ((_NEAR, 1.6), (_FAR, 5.0)))
    z[outer] = np.copysign(np.where(r <= 5, near, far), q[outer])
    return z


def _log(x: np.ndarray) -> np.ndarray:
    """log(x) by its series in (m - 1) / (m + 1), x = m 2**e with m in [0.7, 1.42): independent of libm."""
    m, e = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, e = np.where(low, 2 * m, m), e - low
    s = (m - 1) / (m + 1)
    return e * math.log(2) + 2 * s * _polynomial([1 / (2 * k + 1) for k in range(12)], s * s)


def _polynomial(coefficients, x: np.ndarray) -> np.ndarray:
    """coefficients[0] + coefficients[1] x + ..."""
    y = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        y = y * x + c
    return y


# Numerators and denominators of AS 241: |u - 0.5| <= 0.425; beyond it sqrt(-log(tail)) <= 5; the rest.
_CENTRE = (
    (
        3.3871328727963666080,
        1.3314166789178437745e2,
        1.9715909503065514427e3,
        1.3731693765509461125e4,
        4.5921953931549871457e4,
        6.7265770927008700853e4,
        3.3430575583588128105e4,
        2.5090809287301226727e3,
    ),
    (
        1.0,
        4.2313330701600911252e1,
        6.8718700749205790830e2,
        5.3941960214247511077e3,
        2.1213794301586595867e4,
        3.9307895800092710610e4,
        2.8729085735721942674e4,
        5.2264952788528545610e3,
    ),
)
_NEAR = (
    (
        1.42343711074968357734,
        4.63033784615654529590,
        5.76949722146069140550,
        3.64784832476320460504,
        1.27045825245236838258,
        2.41780725177450611770e-1,
        2.27238449892691845833e-2,
        7.74545014278341407640e-4,
    ),
    (
        1.0,
        2.05319162663775882187,
        1.67638483018380384940,
        6.89767334985100004550e-1,
        1.48103976427480074590e-1,
        1.51986665636164571966e-2,
        5.47593808499534494600e-4,
        1.05075007164441684324e-9,
    ),
)
_FAR = (
    (
        6.65790464350110377720,
        5.46378491116411436990,
        1.78482653991729133580,
        2.96560571828504891230e-1,
        2.65321895265761230930e-2,
        1.24266094738807843860e-3,
        2.71155556874348757815e-5,
        2.01033439929228813265e-7,
    ),
    (
        1.0,
        5.99832206555887937690e-1,
        1.36929880922735805310e-1,
        1.48753612908506148525e-2,
        7.86869131145613259100e-4,
        1.84631831751005468180e-5,
        1.42151175831644588870e-7,
        2.04426310338993978564e-15,
    ),
)

# initialisers ---------------------------------------------------------------------------------------------------------


class Initializer(Configurable, kind="initializer"):
    """A distribution of initial values: `initializer(shape, rng)` draws from it.

    Attributes
    ----------
    names : tuple of str
        Its names as an argument; configurations use the first.
    weights_only : bool
        Whether it only initialises matrices, not biases.
    """

    facts: ClassVar[tuple[str, ...]] = ("names",)
    weights_only: ClassVar[bool] = False

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """Draw an array.

        Parameters
        ----------
        shape : tuple of int
            Of a weight (in_features, out_features) or a bias (out_features,).
        rng : numpy.random.Generator

        Returns
        -------
        ndarray of this shape, float64

        Raises
        ------
        ValueError
            If `weights_only` and the shape is not two-dimensional.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    def _shows(self, name, differs):
        return True

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__: Any = None


class Constant(Initializer):
    """val everywhere.

    Parameters
    ----------
    val : float
        Finite.
    """

    names: ClassVar[tuple[str, ...]] = ("constant",)

    def __init__(self, val: float = 0.0) -> None:
        self.val: float = number("val", val)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        return np.full(shape, self.val)


class Zeros(Initializer):
    """0 everywhere."""

    names: ClassVar[tuple[str, ...]] = ("zeros",)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        return np.zeros(shape)


class Ones(Initializer):
    """1 everywhere."""

    names: ClassVar[tuple[str, ...]] = ("ones",)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        return np.ones(shape)


class Uniform(Initializer):
    """Uniform in [a, b).

    Parameters
    ----------
    a, b : float
        Finite, b at least a.
    """

    names: ClassVar[tuple[str, ...]] = ("uniform",)

    def __init__(self, a: float = 0.0, b: float = 1.0) -> None:
        self.a: float = number("a", a)
        self.b: float = number("b", b)
        if not self.a <= self.b:
            raise ValueError(f"b: expected at least a = {self.a}, got {self.b}")

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        return self.a + (self.b - self.a) * (_bits(rng, shape, 53) * 2.0**-53)


class Normal(Initializer):
    """Normal with this mean and standard deviation.

    Parameters
    ----------
    mean : float
        Finite.
    std : float
        At least 0.
    """

    names: ClassVar[tuple[str, ...]] = ("normal",)

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        self.mean: float = number("mean", mean)
        self.std: float = number("std", std, 0.0)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        return self.mean + self.std * standard_normal(rng, shape)


class Scaled(Initializer, abstract=True):
    """Base class: mean 0, and a standard deviation that depends on the shape of the matrix."""

    weights_only = True
    distribution = "uniform"

    def std(self, fan_in: int, fan_out: int) -> float:
        """The standard deviation.

        Parameters
        ----------
        fan_in, fan_out : int
            Rows and columns of the weight.

        Returns
        -------
        float
        """
        raise NotImplementedError

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        std = self.std(*_fans(shape, self))
        if self.distribution == "uniform":
            return symmetric(rng, shape, math.sqrt(3) * std)
        return std * standard_normal(rng, shape)


class KaimingUniform(Scaled):
    """Uniform within +-gain sqrt(3 / fan) (He, Zhang, Ren and Sun, 2015).

    Parameters
    ----------
    nonlinearity : str
        The activation that follows: the gain is `calculate_gain(nonlinearity, a)`.
    a : float
        The negative slope, for "leaky_relu".
    mode : {"fan_in", "fan_out"}
        Whether to preserve the variance in the forward pass or in the backward pass.
    """

    names: ClassVar[tuple[str, ...]] = ("kaiming_uniform", "he_uniform")

    def __init__(self, nonlinearity: str = "relu", a: float = 0.0, mode: str = "fan_in") -> None:
        self.nonlinearity: str = choice("nonlinearity", nonlinearity, [*GAINS])
        self.a: float = number("a", a)
        self.mode: str = choice("mode", mode, ["fan_in", "fan_out"])

    def std(self, fan_in: Any, fan_out: Any) -> float:
        return calculate_gain(self.nonlinearity, self.a) / math.sqrt(fan_in if self.mode == "fan_in" else fan_out)


class KaimingNormal(KaimingUniform):
    """Normal with standard deviation gain / sqrt(fan).

    Parameters
    ----------
    nonlinearity : str
    a : float
    mode : {"fan_in", "fan_out"}
        All as for `KaimingUniform`.
    """

    names: ClassVar[tuple[str, ...]] = ("kaiming_normal", "he_normal")
    distribution = "normal"


class XavierUniform(Scaled):
    """Uniform within +-gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    Parameters
    ----------
    gain : float or str
        A factor, or the activation that follows: `calculate_gain(gain)`.
    """

    names: ClassVar[tuple[str, ...]] = ("xavier_uniform", "glorot_uniform")

    def __init__(self, gain: Any = 1.0) -> None:
        self.gain: Any = _gain(gain)

    def std(self, fan_in: Any, fan_out: Any) -> float:
        return _factor(self.gain) * math.sqrt(2 / (fan_in + fan_out))


class XavierNormal(XavierUniform):
    """Normal with standard deviation gain sqrt(2 / (fan_in + fan_out)).

    Parameters
    ----------
    gain : float or str
        As for `XavierUniform`.
    """

    names: ClassVar[tuple[str, ...]] = ("xavier_normal", "glorot_normal")
    distribution = "normal"


class LeCunUniform(Scaled):
    """Uniform within +-sqrt(3 / fan_in) (LeCun, Bottou, Orr and Müller, Efficient BackProp, 1998)."""

    names: ClassVar[tuple[str, ...]] = ("lecun_uniform",)

    def std(self, fan_in: Any, fan_out: Any) -> float:
        return 1 / math.sqrt(fan_in)


class LeCunNormal(LeCunUniform):
    """Normal (not truncated) with standard deviation 1 / sqrt(fan_in), for SELU (Klambauer et al., 2017)."""

    names: ClassVar[tuple[str, ...]] = ("lecun_normal",)
    distribution = "normal"


class Orthogonal(Initializer):
    """gain times a matrix with orthonormal columns, or rows if there are fewer rows than columns.

    The distribution is uniform: Q of the QR decomposition of a normal matrix, with signs that make the diagonal of R
    positive (Saxe, McClelland and Ganguli, 2014; Mezzadri, Notices of the AMS 54, 2007).

    Parameters
    ----------
    gain : float or str
        A factor, or the activation that follows: `calculate_gain(gain)`.
    """

    names: ClassVar[tuple[str, ...]] = ("orthogonal",)
    weights_only = True

    def __init__(self, gain: Any = 1.0) -> None:
        self.gain: Any = _gain(gain)

    def __call__(self, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
        n_in, n_out = _fans(shape, self)
        q, r = np.linalg.qr(standard_normal(rng, (max(n_in, n_out), min(n_in, n_out))))
        q *= np.where(np.diagonal(r) < 0, -1.0, 1.0) * _factor(self.gain)
        return q if n_in >= n_out else q.T


def _fans(shape, initializer) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError(f"{initializer!r}: expected the shape (in, out) of a weight matrix, got {tuple(shape)}")
    return shape[0], shape[1]


def _gain(gain):
    """The checked argument: a number, or the name of an activation."""
    return choice("gain", gain, [*GAINS]) if isinstance(gain, str) else number("gain", gain)


def _factor(gain) -> float:
    return calculate_gain(gain) if isinstance(gain, str) else gain


# by name --------------------------------------------------------------------------------------------------------------


def get(initializer: Any, name: str = "initializer") -> Callable[..., Any]:
    """Return the initialiser for a layer's argument.

    Parameters
    ----------
    initializer : str, dict or callable
        A name such as "kaiming_uniform", for the default arguments; {"name": ..., argument: value, ...}, for these
        arguments; or a callable (shape, rng) -> array, which is returned unchanged.
    name : str
        Name of the argument in error messages.

    Returns
    -------
    callable

    Raises
    ------
    ValueError, TypeError
        If the name is unknown, the arguments are invalid, or `initializer` has another type.

    Examples
    --------
    >>> cnn.initializers.get("glorot_normal")
    XavierNormal(gain=1.0)
    """
    if callable(initializer):
        return initializer
    arguments = dict(initializer) if isinstance(initializer, dict) else {"name": initializer}
    known = arguments.pop("name", None)
    if not isinstance(known, str):
        raise TypeError(f"{name}: expected a name, or a callable (shape, rng) -> array, got {initializer!r}")
    if known not in Initializer.known:
        names = ", ".join(Initializer.known)
        raise ValueError(f"{name}: expected one of default, {names}, or a callable, got {known!r}")
    try:
        return Initializer.known[known](**arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {known}: {error}") from None


def config_of(initializer: Any) -> Any:
    """The JSON-serialisable argument from which `get` rebuilds the initialiser.

    Parameters
    ----------
    initializer : Initializer or callable

    Returns
    -------
    str, dict or None
        None for a user's callable.
    """
    if type(initializer) not in Initializer.known.values():
        return None
    config = initializer.to_config()
    return config["name"] if initializer == type(initializer)() else config
