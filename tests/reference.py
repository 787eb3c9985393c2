"""Formulas of layers in NumPy, in the precision of their arguments, written to be read: no call into the library."""

import numpy as np


def namespace(x):
    """NumPy, or jax.numpy for its arrays: the peers' tests let JAX derive the forward formulas."""
    return np if isinstance(x, np.ndarray | np.generic) else x.__array_namespace__()


def linear_forward(x, weight, bias=None):
    """x W + b."""
    z = x @ weight
    return z if bias is None else z + bias


def linear_backward(grad_output, x, weight):
    """Gradients of x, W and b."""
    return grad_output @ weight.T, x.T @ grad_output, grad_output.sum(axis=0)


def softmax(x):
    """exp(x) / sum(exp(x)), along rows."""
    e = namespace(x).exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def softmax_backward(grad, x):
    """grad times the Jacobian, y_i (delta_ij - y_j), which is formed here."""
    y = softmax(x)
    jacobian = y[:, :, None] * (np.eye(y.shape[1]) - y[:, None, :])
    return np.einsum("bi,bij->bj", grad, jacobian)


def log_softmax(x):
    """x - log(sum(exp(x))), along rows."""
    x = x - x.max(axis=1, keepdims=True)
    xp = namespace(x)
    return x - xp.log(xp.exp(x).sum(axis=1, keepdims=True))


def log_softmax_backward(grad, x):
    """grad times the Jacobian, delta_ij - y_j."""
    jacobian = np.eye(x.shape[1]) - softmax(x)[:, None, :]
    return np.einsum("bi,bij->bj", grad, jacobian)


def norm(x, axis, eps, weight=1.0, bias=0.0):
    """(x - mean) / sqrt(var + eps) weight + bias, the statistics along an axis: 0, batch norm; 1, layer norm."""
    mean, var = x.mean(axis=axis, keepdims=True), x.var(axis=axis, keepdims=True)
    return (x - mean) / (var + eps) ** 0.5 * weight + bias


def norm_backward(grad, x, axis, eps, weight=1.0):
    """Gradients of x, weight and bias. mean and var are functions of x, too: dx is the sum of the three ways."""
    n = x.shape[axis]
    mean, var = x.mean(axis=axis, keepdims=True), x.var(axis=axis, keepdims=True)
    deviation = np.sqrt(var + eps)
    normal = grad * weight
    d_var = (normal * (x - mean)).sum(axis=axis, keepdims=True) * -0.5 / deviation**3
    d_mean = -(normal / deviation).sum(axis=axis, keepdims=True)
    dx = normal / deviation + d_var * 2 * (x - mean) / n + d_mean / n
    return dx, (grad * (x - mean) / deviation).sum(axis=0), grad.sum(axis=0)
