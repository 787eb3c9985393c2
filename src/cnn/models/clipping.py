"""`clip_grad_norm`: one norm of the gradients of several models."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .._checks import positive
from .sequential import Sequential

__all__ = ["clip_grad_norm"]


def clip_grad_norm(models: Sequential | Iterable[Sequential], max_norm: float) -> float:
    """Scale the gradients of all models down, so that their norm, of all together, is at most max_norm.

    As ``torch.nn.utils.clip_grad_norm_``. An optimizer's ``clip_norm`` does it for one model at every step.

    Parameters
    ----------
    models : Sequential or iterable of Sequential
        An actor and a critic, for example. Their gradients are those of `backward`, `loss_and_grad`, or as they were
        assigned.
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm before.

    Raises
    ------
    TypeError
        If something is no model.
    ValueError
        If max_norm is not above 0, or a model comes twice, also as a part of another.

    Examples
    --------
    >>> norm = clip_grad_norm([actor, critic], 0.5)  # doctest: +SKIP
    """
    max_norm = positive("max_norm", max_norm)
    several = [models] if isinstance(models, Sequential) or not isinstance(models, Iterable) else list(models)
    for model in several:
        if not isinstance(model, Sequential):
            raise TypeError(f"models: expected a cnn.Sequential or several, got {model!r}")
    if len({id(model) for model in several}) < len(several):
        raise ValueError("models: the same model was passed twice")
    layers = [id(place.layer) for model in several for place in model._core.graph.seen.values()]
    if len(set(layers)) < len(layers):
        raise ValueError("models: one is a part of another: its gradients would count twice")
    programs = [model._core.program for model in several]
    norm = math.sqrt(sum(program.gradients_square() for program in programs))
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:  # also where the norm is NaN
        for program in programs:
            program.scale_gradients(factor)
    return norm
