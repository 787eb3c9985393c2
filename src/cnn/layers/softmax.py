"""Softmax and its logarithm, along the features of each row."""

from __future__ import annotations

from typing import Any

from .base import Layer

__all__ = ["LogSoftmax", "Softmax"]


class _AlongRows(Layer, abstract=True):
    """What the two have in common."""

    def _to_torch(self, nn, dtype):
        return getattr(nn, self.torch_name)(dim=1)

    @classmethod
    def _from_torch(cls, module, dtype):
        if module.dim not in (1, -1, None):
            raise TypeError("expected dim=1, the columns")
        return cls()

    @staticmethod
    def _exponentials(code: Any, target: str, result: str) -> None:
        """In C: m, the largest number; exp(v - m) in `target`; s, their sum; and with these a formula for v."""
        code.begin()
        v = code.target
        code.write(f"{{\n    {code.real} m = {v}[0], s = {code.number(0.0)};")
        code.loop(code.width, f"m = {v}[j] > m ? {v}[j] : m;")
        code.step("clamp", "v - m")
        code.step(target, "{exp}(t)")
        code.loop(code.width, f"s += {v if target == 'v' else 't'}[j];")
        code.step("v", result)
        code.write("}")


class Softmax(_AlongRows):
    """y = exp(x) / sum(exp(x)), the sum over the row; computed with x - max(x).

    The backward pass is y (dy - sum(y dy)): no Jacobian is formed. `CrossEntropyLoss` takes logits and has the softmax
    built in: do not put this layer before it.
    """

    op = "softmax"
    outputs = "probabilities"
    torch_name = "Softmax"

    def _to_onnx(self, graph, x):
        return x.op("Softmax", axis=-1)

    def _to_c(self, code):
        self._exponentials(code, "v", "v / s")


class LogSoftmax(_AlongRows):
    """y = x - log(sum(exp(x))), the sum over the row; the backward pass is dy - exp(y) sum(dy). For `NLLLoss`."""

    op = "log_softmax"
    outputs = "log_probabilities"
    torch_name = "LogSoftmax"

    def _to_onnx(self, graph, x):
        return x.op("LogSoftmax", axis=-1)

    def _to_c(self, code):
        self._exponentials(code, "t", "v - m - {log}(s)")
