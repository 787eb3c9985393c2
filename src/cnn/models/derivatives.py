"""Derivative products of a model: `vjp`, `jvp`, `hvp` and their relatives, which are methods of `Sequential`.

None forms a Jacobian, except `jacobian`, which computes it column by column or row by row. All are those of the model
in evaluation mode. The native code is in kernels/walk.pxi.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._sparse import is_sparse
from .._threads import get_num_threads
from .._types import Array, ArrayLike


def vjp(self: Any, x: ArrayLike, v: ArrayLike, parameters: bool = False, outputs: bool = False) -> Any:
    """v^T J: the vector-Jacobian product with respect to the inputs and, optionally, the parameters.

    The model is in evaluation mode, and arrays have one leading axis, as in all derivative products. A pending
    `backward` needs another forward pass afterwards; `gradients` stay as they are.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)
    v : array_like of shape (batch, out_features)
    parameters : bool
        Whether to return the product with respect to the parameters too, without penalties.
    outputs : bool
        Whether to return the outputs too, which are computed anyway.

    Returns
    -------
    ndarray of shape (batch, in_features), or a tuple of it and the further results, in this order
        With `parameters` an ndarray of shape (n_parameters,), the sum over the rows, in the order of `parameters`; with
        `outputs` an ndarray of shape (batch, out_features).

    Raises
    ------
    ValueError, TypeError
        If x or v have the wrong shape or dtype.
    """
    found = self._core.derivatives.vjp(x, v, get_num_threads(), bool(parameters), bool(outputs))
    wanted = tuple(part for part in found if part is not None)
    return wanted if len(wanted) > 1 else wanted[0]


def jvp(self: Any, x: ArrayLike, t: ArrayLike | None = None, parameters: ArrayLike | None = None) -> Array:
    """J t: the Jacobian-vector product, along tangents of the inputs and of the parameters.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)
    t : array_like of shape (batch, in_features), optional
        Tangent of x; None: zero.
    parameters : array_like of shape (n_parameters,), optional
        Tangent of the parameters, in the order of `parameters`; None: zero.

    Returns
    -------
    ndarray of shape (batch, out_features)

    Raises
    ------
    ValueError, TypeError
        If both tangents are None, or an argument is invalid.
    """
    if t is None and parameters is None:
        raise ValueError("jvp: expected a tangent of the inputs or of the parameters, got neither")
    return self._core.derivatives.jvp(x, t, parameters, get_num_threads())[1]


def jacobian(self: Any, x: Any) -> Array:
    """The Jacobian of each row, computed by min(in_features, out_features) products.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)

    Returns
    -------
    ndarray of shape (batch, out_features, in_features)

    Raises
    ------
    ValueError, TypeError
        If x has the wrong shape or dtype.
    """
    core = self._core
    x = core.program.inputs(x)
    batch, n_in = x.shape
    n_out = core.out_features
    result = np.empty((batch, n_out, n_in), self.dtype)
    direction = np.zeros((batch, min(n_in, n_out)), self.dtype)
    for k in range(direction.shape[1]):
        direction[:, k] = 1
        if n_out <= n_in:
            result[:, k] = core.derivatives.vjp(x, direction, get_num_threads(), False)[0]
        else:
            result[:, :, k] = core.derivatives.jvp(x, direction, None, get_num_threads())[1]
        direction[:, k] = 0
    return result


def grad_input(self: Any, x: Any, y: ArrayLike | None = None) -> Array:
    """The gradient of the loss with respect to x; without y, the gradient of the only output.

    The model is in evaluation mode. A pending `backward` needs another forward pass afterwards.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)
    y : array_like, optional
        As `targets` of `forward`.

    Returns
    -------
    ndarray of shape (batch, in_features)

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, or there is no y and the model has several outputs (use `vjp`).
    RuntimeError
        If there is y and the model has no loss.
    """
    core = self._core
    if y is None:
        if core.out_features != 1:
            raise ValueError(f"grad_input: without y the model must have one output, got {core.out_features}: use vjp")
        x = core.program.inputs(x)
        return core.derivatives.vjp(x, np.ones((len(x), 1), self.dtype), get_num_threads(), False)[0]
    if is_sparse(x):
        core.program.inputs(x)  # a TypeError, before anything is run
    core.program.forward(x, y, get_num_threads(), False)
    gradient = core.program.backward(None, get_num_threads(), False)
    core.program.forget("grad_input has run since")
    return gradient


def hvp(self: Any, x: ArrayLike, y: ArrayLike, v: ArrayLike) -> Array:
    """The exact Hessian of the loss in the parameters times v (Pearlmutter, 1994), for the work of 2.7 gradients.

    Penalties are part of the loss: l2 adds 2 l2 v. The second derivative of ReLU and other piecewise linear functions
    is 0. The model is in evaluation mode: it is the Hessian of `loss_and_grad` after `eval()`, but of all parameters:
    frozen ones are variables here, too.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)
    y : array_like
        As `targets` of `forward`.
    v : array_like of shape (n_parameters,)
        In the order of `parameters`.

    Returns
    -------
    ndarray of shape (n_parameters,)

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid.
    RuntimeError
        If the model has no loss.
    NotImplementedError
        If the loss is a Python function.
    """
    return _curvature(self, x, y, v, False)


def gnvp(self: Any, x: ArrayLike, y: ArrayLike, v: ArrayLike) -> Array:
    """Gauss-Newton matrix of the loss, J^T (d2 loss / d outputs2) J, times v; as `hvp`.

    It is positive semi-definite if the loss is convex in the outputs, which all losses of the library except
    `GaussianNLLLoss` are. l2 adds 2 l2 v.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)
    y : array_like
        As `targets` of `forward`.
    v : array_like of shape (n_parameters,)
        In the order of `parameters`.

    Returns
    -------
    ndarray of shape (n_parameters,)

    Raises
    ------
    ValueError, TypeError, RuntimeError, NotImplementedError
        As `hvp`.
    """
    return _curvature(self, x, y, v, True)


def hvp_input(
    self: Any,
    x: Any,
    v: ArrayLike,
    y: ArrayLike | None = None,
    grad_output: ArrayLike | None = None,
    parameters: bool = False,
) -> Any:
    """Hessian with respect to the inputs times v, row by row.

    Parameters
    ----------
    x, v : array_like of shape (batch, in_features)
    y : array_like, optional
        Targets: the Hessian is that of the loss. Without them it is that of sum(grad_output * outputs).
    grad_output : array_like of shape (batch, out_features), optional
        In place of y; None: ones, which give the second derivatives of a model with one output.
    parameters : bool
        Whether to return the mixed product too: the derivative along v of the gradient in the parameters. Without y it
        is the gradient of sum(grad_output * J v), for losses on derivatives of the network.

    Returns
    -------
    ndarray of shape (batch, in_features), or a pair of it and an ndarray of shape (n_parameters,)

    Raises
    ------
    ValueError, TypeError
        If an argument is invalid, or both y and grad_output are given.
    NotImplementedError
        If there is y and the loss is a Python function.
    """
    core = self._core
    if y is not None:
        _second_derivative(self)
        if grad_output is not None:
            raise ValueError("hvp_input: expected y or grad_output, got both")
    elif grad_output is None:
        x = core.program.inputs(x)
        grad_output = np.ones((len(x), core.out_features), self.dtype)
    of_inputs, mixed = core.derivatives.second(x, y, grad_output, v, None, True, get_num_threads())
    return (of_inputs, mixed) if parameters else of_inputs


def hessian_operator(self: Any, x: ArrayLike, y: ArrayLike, gauss_newton: bool = False) -> Any:
    """`hvp` or `gnvp` as a linear operator of SciPy, for `eigsh`, `cg` and the like.

    It keeps copies of x and y, and uses the parameters as they are when it is applied.

    Parameters
    ----------
    x, y : array_like
        As for `hvp`.
    gauss_newton : bool
        Whether the products are those of `gnvp`.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator of shape (n_parameters, n_parameters)

    Raises
    ------
    ImportError
        Without SciPy.
    ValueError, TypeError, RuntimeError, NotImplementedError
        As `hvp`.
    """
    from scipy.sparse.linalg import LinearOperator

    _second_derivative(self)
    program = self._core.program
    n = program.n_parameters
    x = np.array(program.inputs(x))
    y = np.array(program.targets(y, len(x), "y"))

    def product(v):
        return _curvature(self, x, y, np.ravel(v), bool(gauss_newton))

    return LinearOperator((n, n), matvec=product, rmatvec=product, dtype=self.dtype)


def _second_derivative(model: Any) -> None:
    """NotImplementedError if the loss has none."""
    if model.loss is not None and not model.loss.has_second_derivative:
        raise NotImplementedError(f"{model.loss!r} has no second derivative: use a loss of the library")


def _curvature(model: Any, x, y, v, gauss_newton: bool) -> np.ndarray:
    """The Hessian of the loss in the parameters, or its Gauss-Newton part, times v."""
    _second_derivative(model)
    return model._core.derivatives.second(x, y, None, None, v, False, get_num_threads(), gauss_newton)[1]
