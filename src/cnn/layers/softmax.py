"""Softmax and its logarithm, along the features of each row."""

from __future__ import annotations

from .base import Layer

__all__ = ["LogSoftmax", "Softmax"]


class Softmax(Layer):
    """y = exp(x) / sum(exp(x)), the sum over the row; computed with x - max(x).

    The backward pass is y (dy - sum(y dy)): no Jacobian is formed. Before a `CrossEntropyLoss`, which takes logits,
    there should be none: the loss has it built in.
    """

    _kind = "softmax"

    def _compile(self, graph, source, place):
        return graph.add(place, self._kind, [source], graph.widths[source])


class LogSoftmax(Softmax):
    """y = x - log(sum(exp(x))), the sum over the row; the backward pass is dy - exp(y) sum(dy). For `NLLLoss`."""

    _kind = "log_softmax"
