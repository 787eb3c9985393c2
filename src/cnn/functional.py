"""The kernels on plain NumPy arrays, without layers or state. Results can be written into existing arrays.

The first array determines the dtype: float32 for float32 and float16, float64 for everything else (lists, integers).
The other arrays are converted to it. Arrays of that dtype with contiguous rows are not copied. Result arrays must be
C-contiguous, have the right shape and dtype, and not overlap the inputs; otherwise a ValueError is raised.
"""

from __future__ import annotations

import numpy as np

from ._dispatch import kernels
from ._types import Array, ArrayLike

__all__ = [
    "activation_backward",
    "activation_forward",
    "linear_backward",
    "linear_forward",
    "real_dtype",
    "sgd_step",
]
__dir__ = __all__.copy  # for completion

DEFAULT_PARAM: dict[str, float] = {}  # by activation name; the classes register theirs


def real_dtype(x: ArrayLike) -> np.dtype:
    """The dtype of computations with x: float32 for float32 and float16, float64 otherwise.

    Parameters
    ----------
    x : array_like

    Returns
    -------
    numpy.dtype
    """
    dtype = getattr(x, "dtype", None)
    return np.dtype(np.float32 if dtype in (np.float32, np.float16) else np.float64)


def _activation(k, name: str, param) -> tuple[int, float]:
    """Code and parameter of an activation."""
    try:
        code = k.ACTIVATIONS[name]
    except (KeyError, TypeError):
        raise ValueError(f"activation: expected one of {', '.join(k.ACTIVATIONS)}; got {name!r}") from None
    return code, float(DEFAULT_PARAM.get(name, 0.0) if param is None else param)


def linear_forward(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    activation: str = "identity",
    param: float | None = None,
    *,
    out: np.ndarray | None = None,
    pre: np.ndarray | None = None,
) -> Array:
    """act(x W + b), fused.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)
        More leading axes are allowed; the result has the same, except with `out`.
    weight : array_like of shape (in_features, out_features)
    bias : array_like of shape (out_features,), optional
    activation : str
        identity, relu, leaky_relu, elu, sigmoid, tanh, gelu, gelu_tanh, silu, softplus, selu, celu, mish, softsign,
        relu6, hardsigmoid or hardswish.
    param : float, optional
        Slope of leaky_relu (default 0.01), alpha of elu and celu (default 1).
    out : ndarray of shape (batch, out_features), optional
        Array for the result.
    pre : ndarray of shape (batch, out_features), optional
        Array for x W + b.

    Returns
    -------
    ndarray of shape (batch, out_features)

    Raises
    ------
    ValueError
        If shapes do not match, a result array is unsuitable, or the activation is unknown.
    TypeError
        If an array does not consist of real numbers.
    """
    k = kernels(real_dtype(x))
    return k.linear_forward(x, weight, bias, *_activation(k, activation, param), out, pre)


def linear_backward(
    grad_output: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    grad_weight: np.ndarray | None = None,
    grad_bias: np.ndarray | None = None,
    grad_input: np.ndarray | None = None,
    accumulate: bool = False,
) -> tuple[np.ndarray, ...]:
    """The gradients of x W + b with respect to x, W and b, from the gradient of the result.

    grad_input = grad_output W^T, grad_weight = x^T grad_output, grad_bias = the sum of grad_output over the batch.

    Parameters
    ----------
    grad_output : array_like of shape (batch, out_features)
    x : array_like of shape (batch, in_features)
    weight : array_like of shape (in_features, out_features)
    grad_weight, grad_bias, grad_input : ndarray, optional
        Arrays for the results, with the shapes of weight, bias and x.
    accumulate : bool
        Whether to add to grad_weight and grad_bias; both must then be passed.

    Returns
    -------
    tuple of ndarray
        grad_input, grad_weight and grad_bias.

    Raises
    ------
    ValueError, TypeError
        As for `linear_forward`.
    """
    k = kernels(real_dtype(grad_output))
    return k.linear_backward(grad_output, x, weight, grad_weight, grad_bias, grad_input, accumulate)


def activation_forward(name: str, z: ArrayLike, param: float | None = None, *, out: np.ndarray | None = None) -> Array:
    """f(z), elementwise.

    Parameters
    ----------
    name : str
        The activation, see `linear_forward`.
    z : array_like
        Of any shape.
    param : float, optional
        See `linear_forward`.
    out : ndarray of z's shape, optional
        Array for the result; it may be z itself.

    Returns
    -------
    ndarray of z's shape

    Raises
    ------
    ValueError, TypeError
        As for `linear_forward`.
    """
    k = kernels(real_dtype(z))
    return k.activation_forward(*_activation(k, name, param), z, out)


def activation_backward(
    name: str, grad_output: ArrayLike, z: ArrayLike, param: float | None = None, *, out: np.ndarray | None = None
) -> Array:
    """grad_output * f'(z), elementwise.

    Parameters
    ----------
    name : str
        The activation, see `linear_forward`.
    grad_output : array_like of z's shape
    z : array_like
        Of any shape: the input of the activation.
    param : float, optional
        See `linear_forward`.
    out : ndarray of z's shape, optional
        Array for the result; it may be grad_output itself.

    Returns
    -------
    ndarray of z's shape

    Raises
    ------
    ValueError, TypeError
        As for `linear_forward`, and if the shapes differ.
    """
    k = kernels(real_dtype(z))
    return k.activation_backward(*_activation(k, name, param), grad_output, z, out)


def sgd_step(
    param: np.ndarray,
    grad: ArrayLike,
    momentum_buffer: np.ndarray | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    first: bool = False,
) -> None:
    """One step of stochastic gradient descent, in place, as in torch.optim.SGD.

    Parameters
    ----------
    param : ndarray
        C-contiguous, float32 or float64; updated in place.
    grad : array_like of param's shape
    momentum_buffer : ndarray of param's shape, optional
        Updated in place; required if momentum is not 0.
    lr, momentum, dampening, weight_decay : float
        As for `SGD`.
    nesterov : bool
        As for `SGD`.
    first : bool
        Whether this is the first step: the momentum buffer is set to the gradient, without dampening.

    Raises
    ------
    ValueError, TypeError
        As for `linear_forward`.
    """
    kernels(getattr(param, "dtype", "float32")).sgd_step(
        param, grad, momentum_buffer, lr, momentum, dampening, weight_decay, nesterov, first
    )
