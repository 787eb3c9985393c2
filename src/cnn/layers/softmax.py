"""Softmax and its logarithm, along the features of each row."""

from __future__ import annotations

from typing import Any

from .base import Layer

__all__ = ["LogSoftmax", "Softmax"]


class _AlongRows(Layer, abstract=True):
    """Base class of both."""

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
        code.open("")
        code.write(f"{code.real} m = {v}[0], s = {code.number(0.0)};")
        code.loop(code.width, f"m = {v}[j] > m ? {v}[j] : m;")
        code.step("clamp", "v - m")
        code.step(target, "{exp}(t)")
        code.loop(code.width, f"s += {v if target == 'v' else 't'}[j];")
        code.step("v", result)
        code.close()


class Softmax(_AlongRows):
    """y = exp(x) / sum(exp(x)), with the sum over the row. It subtracts max(x) first and does not overflow.

    `CrossEntropyLoss` expects logits and includes the softmax: do not put this layer before it. The backward pass is
    y (dy - sum(y dy)), without a Jacobian.
    """

    op = "softmax"
    outputs: str | None = "probabilities"
    torch_name = "Softmax"

    def _to_onnx(self, graph, x):
        return x.op("Softmax", axis=-1)

    def _to_c(self, code):
        self._exponentials(code, "v", "v / s")

    def _c_tangent(self, code, dx, dy):
        y = code.target
        code.open("")
        code.sums(m=f"{y}[j] * {dx[0]}[j]")
        code.assign(f"{y}[j] * ({dx[0]}[j] - m)", dy)
        code.close()

    def _c_backward(self, code, g):
        code.open("")
        code.sums(m=f"{code.target}[j] * {g}[j]")
        code.send(0, f"{code.target}[j] * ({g}[j] - m)")
        code.close()

    def _c_second(self, code, dx, g):
        """Of y (g - m), m = sum(y g): y (d - a) (g - m) - y (s - a m), a = sum(y d), s = sum(y d g)."""
        y, d = code.target, dx[0]
        code.open("")
        code.sums(a=f"{y}[j] * {d}[j]", m=f"{y}[j] * {g}[j]", s=f"{y}[j] * {d}[j] * {g}[j]")
        code.send(0, f"{y}[j] * (({d}[j] - a) * ({g}[j] - m) - (s - a * m))")
        code.close()


class LogSoftmax(_AlongRows):
    """y = x - log(sum(exp(x))), with the sum over the row. For `NLLLoss`."""

    op = "log_softmax"
    outputs: str | None = "log_probabilities"
    torch_name = "LogSoftmax"

    def _to_onnx(self, graph, x):
        return x.op("LogSoftmax", axis=-1)

    def _to_c(self, code):
        self._exponentials(code, "t", "v - m - {log}(s)")

    @staticmethod
    def _c_open(code: Any) -> None:
        """Begin a block, with exp(y) in t."""
        code.step("clamp", "v")
        code.step("t", "{exp}(t)")
        code.open("")

    def _c_tangent(self, code, dx, dy):
        self._c_open(code)
        code.sums(m=f"t[j] * {dx[0]}[j]")
        code.assign(f"{dx[0]}[j] - m", dy)
        code.close()

    def _c_backward(self, code, g):
        self._c_open(code)
        code.sums(s=f"{g}[j]")
        code.send(0, f"{g}[j] - t[j] * s")
        code.close()

    def _c_second(self, code, dx, g):
        """Of g - exp(y) sum(g): -exp(y) (d - sum(exp(y) d)) sum(g)."""
        self._c_open(code)
        code.sums(a=f"t[j] * {dx[0]}[j]", s=f"{g}[j]")
        code.send(0, f"-t[j] * ({dx[0]}[j] - a) * s")
        code.close()
