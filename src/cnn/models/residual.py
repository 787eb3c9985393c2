"""Derivatives of the outputs by the inputs, and losses of them: `derivatives` and `residual_loss_and_grad`, methods of
`Sequential`.

All are those of the model in evaluation mode. The native code is in kernels/jet.pxi and kernels/residual.pxi.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._threads import get_num_threads
from .._types import Array, ArrayLike

ORDERS = (1, 2, "laplacian")
NAMES = ("u", "du", "d2u")


def derivatives(self: Any, x: ArrayLike, order: Any = 2) -> tuple[Array, ...]:
    """The outputs and their first and second derivatives by each input, exact, in one forward pass.

    The result does not depend on the number of threads.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)
    order : {2, 1, "laplacian"}
        1: no second derivatives. "laplacian": only the sum of the second derivatives over the inputs, for
        (2 + in_features) / (1 + 2 in_features) of the work.

    Returns
    -------
    u : ndarray of shape (batch, out_features)
        As `predict` returns it.
    du : ndarray of shape (batch, out_features, in_features)
        The Jacobian, du[b, o, i] = d u[b, o] / d x[b, i].
    d2u : ndarray of shape (batch, out_features, in_features) or (batch, out_features)
        The second derivatives d2 u[b, o] / d x[b, i]**2, or their sum over i. For mixed derivatives use `hvp_input`.
        Omitted with ``order=1``.

    Raises
    ------
    ValueError, TypeError
        If x has the wrong shape or dtype, or order is none of these.

    Examples
    --------
    >>> model = Sequential([Linear(2, 8), Tanh(), Linear(8, 1)], dtype="float64", seed=0)
    >>> u, du, laplacian = model.derivatives([[0.0, 0.5], [1.0, 1.0]], order="laplacian")
    >>> u.shape, du.shape, laplacian.shape
    ((2, 1), (2, 1, 2), (2, 1))
    """
    core = self._core
    seconds = seconds_of(order, core.in_features)
    return _shown(jets(core.derivatives, core.program.inputs(x), seconds, get_num_threads()), order)


def residual_loss_and_grad(self: Any, x: Any, f: Callable[..., tuple[Any, ...]], order: Any = 2) -> tuple[float, Array]:
    """A loss of the outputs and their derivatives by the inputs, and its exact gradient in the parameters.

    Use it for physics-informed networks and other losses on derivatives; `loss_and_grad` is for the model's own loss.
    It also sets `gradients`. Penalties are included; parameters that are not trained have a gradient of zero. The model
    is in evaluation mode. The result does not depend on the number of threads.

    Parameters
    ----------
    x : array_like of shape (batch, in_features)
    f : callable
        ``f(x, u, du, d2u)``, with the arrays that `derivatives` returns (with ``order=1`` without d2u), returns
        ``(loss, loss_u, loss_du, loss_d2u)``: a number and its partial derivatives by u, du and d2u, arrays of their
        shapes; None for zeros.
    order : {2, 1, "laplacian"}
        As for `derivatives`.

    Returns
    -------
    loss : float
    gradient : ndarray of shape (n_parameters,)
        In the order of `parameters`.

    Raises
    ------
    ValueError
        If x or the result of f has the wrong shape, there are no rows, or a partial derivative is not finite although
        the loss is.
    TypeError
        If f is not callable, or does not return a number and arrays of real numbers.

    Examples
    --------
    The residual of u'' = -u, and u(0) = 0 by a penalty of the first row:

    >>> import numpy as np
    >>> model = Sequential([Linear(1, 8), Tanh(), Linear(8, 1)], dtype="float64", seed=0)
    >>> x = np.linspace(0, 1, 20)[:, None]
    >>> def equation(x, u, du, d2u):
    ...     residual = d2u[:, 0] + u
    ...     loss_r = 2 * residual / len(x)
    ...     loss_u = loss_r.copy()
    ...     loss_u[0] += 2 * u[0]
    ...     return np.mean(residual**2) + float(u[0, 0]) ** 2, loss_u, None, loss_r[:, None]
    >>> loss, gradient = model.residual_loss_and_grad(x, equation)
    >>> gradient.shape
    (25,)
    """
    core = self._core
    seconds = seconds_of(order, core.in_features)
    if not callable(f):
        raise TypeError(f"f: expected a callable (x, u, du, d2u) -> (loss, loss_u, loss_du, loss_d2u), got {f!r}")
    x = core.program.inputs(x)
    if not len(x):
        raise ValueError("x: expected at least one row, got none")
    parts = jets(core.derivatives, x, seconds, get_num_threads())
    shown = _shown(parts, order)
    loss, gradients = _checked(f(x, *shown), shown)
    core.derivatives.jets(x, *_stored(gradients, parts), get_num_threads(), True)
    return loss + core.program.penalty(True), core.program.gradients


def jets(derivatives: Any, x: np.ndarray, seconds: int, threads: int) -> list[np.ndarray]:
    """u (batch, out, 1), du (batch, out, in) and d2u (batch, out, seconds) by a program's native `Derivatives`."""
    n_in, n_out = derivatives.widths
    parts = [np.empty((len(x), n_out, n), x.dtype) for n in (1, n_in, seconds)]
    derivatives.jets(x, *parts, threads)
    return parts


def seconds_of(order: Any, n_in: int) -> int:
    """How many second derivatives an output has."""
    if isinstance(order, bool) or order not in ORDERS:
        raise ValueError(f'order: expected 1, 2 or "laplacian", got {order!r}')
    return {1: 0, 2: n_in, "laplacian": 1}[order]


def _shown(parts: list[np.ndarray], order: Any) -> tuple[np.ndarray, ...]:
    """The native arrays as the user has them, on the same memory."""
    u, du, d2u = parts
    if order == 1:
        return u[:, :, 0], du
    return u[:, :, 0], du, d2u[:, :, 0] if order == "laplacian" else d2u


def _stored(gradients: list[np.ndarray | None], parts: list[np.ndarray]) -> list[np.ndarray]:
    """The other way round; zeros for None."""
    gradients = [*gradients, *[None] * (len(parts) - len(gradients))]
    return [
        np.zeros_like(part) if g is None else np.ascontiguousarray(g, part.dtype).reshape(part.shape)
        for g, part in zip(gradients, parts, strict=True)
    ]


def _checked(result: Any, shown: tuple[np.ndarray, ...]) -> tuple[float, list[np.ndarray | None]]:
    """What the user's function returns: the loss, and its partial derivatives or None."""
    names = [f"loss_{name}" for name in NAMES[: len(shown)]]
    if not isinstance(result, tuple) or len(result) != 1 + len(shown):
        got = f"{len(result)} of them" if isinstance(result, tuple) else type(result).__name__
        raise TypeError(f"f: expected a tuple (loss, {', '.join(names)}), got {got}")
    value = np.asarray(result[0])
    if value.dtype.kind not in "fiu" or value.size != 1:
        raise TypeError(f"f: expected a number for the loss, got {type(result[0]).__name__} of shape {value.shape}")
    loss = float(value.item())
    gradients: list[np.ndarray | None] = []
    for name, given, part in zip(names, result[1:], shown, strict=True):
        if given is None:
            gradients.append(None)
            continue
        gradient = np.asarray(given)
        if gradient.dtype.kind not in "fiu":
            raise TypeError(f"f: {name}: expected real numbers, got dtype {gradient.dtype}")
        if gradient.shape != part.shape:
            raise ValueError(f"f: {name}: expected shape {part.shape}, as {name[5:]} has, got {gradient.shape}")
        if np.isfinite(loss) and not np.isfinite(gradient).all():
            place = np.argwhere(~np.isfinite(gradient))[0].tolist()
            raise ValueError(f"f: {name}{place} is {gradient[tuple(place)]}")
        gradients.append(gradient)
    return loss, gradients
