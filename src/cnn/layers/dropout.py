"""`Dropout`."""

from __future__ import annotations

from typing import ClassVar

from .._checks import fraction
from .base import Layer

__all__ = ["Dropout"]


class Dropout(Layer):
    """In training, y = x m / (1 - p), each m being 0 with probability p and else 1; otherwise y = x.

    Srivastava, Hinton, Krizhevsky, Sutskever and Salakhutdinov, JMLR 15, 2014.

    Parameters
    ----------
    p : float
        Probability of dropping an element, from 0 to 1; float32's precision is kept of it.

    Notes
    -----
    In a model the masks follow from the model's seed, the layer's place, the number of rows trained on so far, and the
    column: threads, the instruction set and the dtype make no difference. (In float32 the rest of training does.)
    """

    facts: ClassVar[tuple[str, ...]] = Layer.facts[:-2]  # ONNX and C: a prediction does not drop
    op = "dropout"
    torch_name = "Dropout"
    only_training = True
    _fixed = ("p",)

    def __init__(self, p: float = 0.5) -> None:
        self.p: float = fraction("p", p)

    def _options(self):
        return {"param": self.p}
