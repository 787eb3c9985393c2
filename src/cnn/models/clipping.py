"""`clip_grad_norm`: clips the joint gradient norm of several models."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .._checks import positive
from .sequential import Sequential

__all__ = ["clip_grad_norm"]


def clip_grad_norm(models: Sequential | Iterable[Sequential], max_norm: float) -> float:
    """Scale down the gradients of one or more models, so that their joint norm is at most max_norm.

    Same as ``torch.nn.utils.clip_grad_norm_``. To clip one model in every step, pass ``clip_norm`` to its optimizer.

    Parameters
    ----------
    models : Sequential or iterable of Sequential
        An actor and a critic, for example, with gradients from `backward` or `loss_and_grad`, or assigned ones.
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    TypeError
        If `models` contains something else.
    ValueError
        If max_norm is not above 0, or two models are the same or share layers.

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
        raise ValueError("models: one is part of another, and its gradients would count twice: pass only the outer one")
    programs = [model._core.program for model in several]
    norm = math.sqrt(sum(program.gradients_square() for program in programs))
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:  # also where the norm is NaN
        for program in programs:
            program.scale_gradients(factor)
    return norm
