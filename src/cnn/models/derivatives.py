"""Derivative products of a model: what `Sequential.vjp`, `jvp`, `hvp` and their relatives do.

Never a Jacobian matrix on the way; `jacobian` puts one together, column by column or row by row, for small networks.
All are of the model in evaluation mode. The native walks are in kernels/tangent.pxi.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._threads import get_num_threads


def native(model: Any):
    """The model's native derivative products; made when first needed."""
    if model._derivatives is None or model._derivatives[0] is not model._program:
        model._derivatives = model._program, model._kernels.Derivatives(model._program)
    return model._derivatives[1]


def jacobian(model: Any, x) -> np.ndarray:
    """d outputs / d inputs of each row, (batch, out_features, in_features), by the cheaper mode."""
    products = native(model)
    x = model._program.inputs(x)
    batch, n_in = x.shape
    n_out = model._graph.widths[-1]
    result = np.empty((batch, n_out, n_in), model.dtype)
    direction = np.zeros((batch, min(n_in, n_out)), model.dtype)
    for k in range(direction.shape[1]):
        direction[:, k] = 1
        if n_out <= n_in:
            result[:, k] = products.vjp(x, direction, get_num_threads(), False)[0]
        else:
            result[:, :, k] = products.jvp(x, direction, None)[1]
        direction[:, k] = 0
    return result


def grad_input(model: Any, x, y) -> np.ndarray:
    """The gradient in x of the loss or, without y, of the only output."""
    program = model._program
    x = program.inputs(x)
    if y is None:
        if model._graph.widths[-1] != 1:
            raise ValueError(
                f"grad_input: without y the model must have one output, got {model._graph.widths[-1]}: use vjp"
            )
        gradient = np.ones((len(x), 1), model.dtype)
    elif is_callable(model):
        gradient = model.loss.value_and_gradient(program.predict(x, None, get_num_threads()), y)[1]
    else:
        program.forward(x, y, get_num_threads(), False)
        gradient = program.backward(None, get_num_threads(), False)
        program.forget("grad_input has run since")
        return gradient
    return native(model).vjp(x, gradient, get_num_threads(), False)[0]


def is_callable(model: Any) -> bool:
    """Whether the loss is a Python function of the user's own."""
    return model.loss is not None and model.loss.spec() is None


def curvature(model: Any, x, y, v, gauss_newton: bool) -> np.ndarray:
    """The Hessian of the loss in the parameters, or its Gauss-Newton part, times v."""
    _second_derivative(model)
    return native(model).second(x, y, None, None, v, False, gauss_newton)[1]


def input_curvature(model: Any, x, v, y, grad_output) -> tuple[np.ndarray, np.ndarray]:
    """The Hessian in the inputs times v, and the mixed derivative: in the parameters, of the gradient in x along v."""
    if y is not None:
        _second_derivative(model)
        if grad_output is not None:
            raise ValueError("hvp_input: expected y or grad_output, got both")
    elif grad_output is None:
        x = model._program.inputs(x)
        grad_output = np.ones((len(x), model._graph.widths[-1]), model.dtype)
    return native(model).second(x, y, grad_output, v, None, True)


def _second_derivative(model: Any) -> None:
    """NotImplementedError if the loss has none."""
    if model.loss is not None and not model.loss.has_second_derivative:
        raise NotImplementedError(f"{model.loss!r} has no second derivative: use a loss of the library")


def hessian_operator(model: Any, x, y, gauss_newton: bool):
    """A scipy.sparse.linalg.LinearOperator whose product is hvp, or gnvp."""
    from scipy.sparse.linalg import LinearOperator

    _second_derivative(model)
    n = model._program.n_parameters
    x = np.array(model._program.inputs(x))
    y = np.array(model._program.targets(y, len(x), "y"))

    def product(v):
        return curvature(model, x, y, np.ravel(v), gauss_newton)

    return LinearOperator((n, n), matvec=product, rmatvec=product, dtype=model.dtype)
