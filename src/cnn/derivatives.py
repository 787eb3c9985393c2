"""Derivative products of a model: what `Sequential.vjp`, `jvp`, `hvp` and their relatives do.

Never a Jacobian matrix on the way; `jacobian` puts one together, column by column or row by row, for small networks.
All are of the model in evaluation mode. The native walks are kernels/tangent.pxi.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._threads import get_num_threads


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
    products = native(model)
    if y is None:
        if model._graph.widths[-1] != 1:
            raise ValueError(
                f"grad_input: without y the model must have one output, got {model._graph.widths[-1]}: use vjp"
            )
        x = model._program.inputs(x)
        return products.vjp(x, np.ones((len(x), 1), model.dtype), get_num_threads(), False)[0]
    training, model.training = model.training, False
    try:
        model.forward(x, y)
        return model._program.backward(None, get_num_threads(), False)
    finally:
        model.training = training


def hessian_operator(model: Any, x, y, gauss_newton: bool):
    """A scipy.sparse.linalg.LinearOperator whose product is hvp, or gnvp."""
    from scipy.sparse.linalg import LinearOperator

    n = model._program.n_parameters
    product = model.gnvp if gauss_newton else model.hvp
    x, y = model._program.inputs(x), np.array(y)
    return LinearOperator((n, n), matvec=lambda v: product(x, y, np.ravel(v)), dtype=model.dtype)
