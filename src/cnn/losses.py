"""Losses. One may stand last in a `Sequential`, which then computes it natively; each also works alone."""

from __future__ import annotations

from typing import ClassVar

from ._dispatch import kernels
from .functional import real_dtype

__all__ = ["CrossEntropyLoss", "MSELoss"]


class Loss:
    """A function of outputs and targets with its gradient: `loss(outputs, targets)`, then `loss.backward()`."""

    function: ClassVar[str]  # the kernel's name for it
    _gradient = None

    def forward(self, outputs, targets) -> float:
        """The mean loss.

        Parameters
        ----------
        outputs : array_like of shape (batch, out_features)
        targets : array_like
            See the class.

        Raises
        ------
        ValueError
            If the batch is empty, the shapes do not fit, or a class index is out of range.
        TypeError
            If the arrays are not made of real numbers, or class indices are not integers.
        """
        k = kernels(real_dtype(outputs))
        loss, self._gradient = k.loss_and_gradient(self.spec(), outputs, targets)
        return loss

    __call__ = forward

    def backward(self):
        """The gradient of the last `forward` with respect to its outputs, (batch, out_features).

        RuntimeError if there was none.
        """
        if self._gradient is None:
            raise RuntimeError("backward needs a forward pass to go back over, but there was none")
        return self._gradient.copy()

    def spec(self) -> dict:
        """What the kernels need to know."""
        return {"kind": self.function, "name": type(self).__name__, "mean": True, "ignore_index": -100}

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class MSELoss(Loss):
    """Mean squared error: the mean of (outputs - targets)**2 over all elements.

    Targets have the shape of the outputs, (batch, out_features); in a model with one output, (batch,) will do.
    """

    function = "mse"


class CrossEntropyLoss(Loss):
    """Cross-entropy of softmax(outputs) against class indices, mean over the batch.

    The outputs are logits of shape (batch, classes); targets are integers of shape (batch,), from 0 to classes - 1.
    Computed as log(sum(exp(z - max))) + max - z[target], which does not overflow.
    """

    function = "cross_entropy"
