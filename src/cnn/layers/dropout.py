"""`Dropout`."""

from __future__ import annotations

from typing import ClassVar

from .._checks import fraction
from .base import Layer

__all__ = ["Dropout"]


class Dropout(Layer):
    """In training, y = x m / (1 - p), where each m is 0 with probability p, else 1; in evaluation, y = x.

    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, JMLR 15, 2014.

    Parameters
    ----------
    p : float
        Probability of dropping an element, from 0 to 1, in float32 precision.

    Notes
    -----
    In a model the masks depend only on the model's seed, the layer's position, the number of rows trained so far, and
    the column: not on threads, instruction set or dtype.
    """

    facts: ClassVar[tuple[str, ...]] = Layer.facts[:-2]  # not in ONNX and C: predictions do not drop
    op = "dropout"
    torch_name = "Dropout"
    only_training = True
    _fixed = ("p",)

    def __init__(self, p: float = 0.5) -> None:
        self.p: float = fraction("p", p)

    def _options(self):
        return {"param": self.p}
