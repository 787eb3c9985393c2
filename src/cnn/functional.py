"""The kernels on plain NumPy arrays: no layers, no state. Every result array can be passed in.

The dtype is that of the first array: float32, or float64 for everything else (lists, integers); the others are
converted to it. Arrays that have that dtype and whose rows lie together are used where they are. Result arrays must be
C-contiguous, of the right shape and dtype, and share no memory with the inputs: ValueError otherwise, never a copy.
"""

from __future__ import annotations

import numpy as np

from ._dispatch import kernels
from ._types import Array, ArrayLike

DEFAULT_PARAM: dict[str, float] = {}  # of each activation, by name; its class enters it


def real_dtype(x: ArrayLike) -> np.dtype:
    """The dtype in which x is computed with: float32 if it is that or float16, float64 otherwise.

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
        Of an array with other leading axes each (in_features,) is a row; the result has its leading axes, unless it
        goes into `out`.
    weight : array_like of shape (in_features, out_features)
    bias : array_like of shape (out_features,), optional
    activation : str
        identity, relu, leaky_relu, elu, sigmoid, tanh, gelu, gelu_tanh, silu, softplus, selu, celu, mish, softsign,
        relu6, hardsigmoid or hardswish.
    param : float, optional
        Slope of leaky_relu (default 0.01), alpha of elu and celu (default 1).
    out : ndarray of shape (batch, out_features), optional
        Where the result goes.
    pre : ndarray of shape (batch, out_features), optional
        Where x W + b is kept, if it is wanted too.

    Returns
    -------
    ndarray of shape (batch, out_features)

    Raises
    ------
    ValueError
        If shapes do not fit, a result array is not as it must be, or the activation is unknown.
    TypeError
        If an array is not made of real numbers.
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
    """The gradients of x W + b: of x, W and b, from that of the result.

    grad_input = grad_output W^T, grad_weight = x^T grad_output, grad_bias = the sum of grad_output over the batch.

    Parameters
    ----------
    grad_output : array_like of shape (batch, out_features)
    x : array_like of shape (batch, in_features)
    weight : array_like of shape (in_features, out_features)
    grad_weight, grad_bias, grad_input : ndarray, optional
        Where the results go, of the shapes of weight, bias and x.
    accumulate : bool
        Whether to add to grad_weight and grad_bias, which must be given then.

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
    """f(z) element by element.

    Parameters
    ----------
    name : str
        Of the activation, see `linear_forward`.
    z : array_like
        Of any shape.
    param : float, optional
        See `linear_forward`.
    out : ndarray of z's shape, optional
        Where the result goes; it may be z itself.

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
    """grad_output * f'(z) element by element.

    Parameters
    ----------
    name : str
        Of the activation, see `linear_forward`.
    grad_output : array_like of z's shape
    z : array_like
        Of any shape: what the activation was applied to.
    param : float, optional
        See `linear_forward`.
    out : ndarray of z's shape, optional
        Where the result goes; it may be grad_output itself.

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
    """One step of stochastic gradient descent, in place, by the formulas of torch.optim.SGD.

    Parameters
    ----------
    param : ndarray
        C-contiguous, float32 or float64; changed.
    grad : array_like of param's shape
    momentum_buffer : ndarray of param's shape, optional
        Changed; needed where momentum is not 0.
    lr, momentum, dampening, weight_decay : float
        As for `SGD`.
    nesterov : bool
        As for `SGD`.
    first : bool
        Whether the momentum buffer holds nothing yet: it becomes the gradient, without dampening.

    Raises
    ------
    ValueError, TypeError
        As for `linear_forward`.
    """
    kernels(getattr(param, "dtype", "float32")).sgd_step(
        param, grad, momentum_buffer, lr, momentum, dampening, weight_decay, nesterov, first
    )
