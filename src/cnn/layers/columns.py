"""`Columns`: some columns of the input."""

from __future__ import annotations

from typing import ClassVar

from .._checks import integer
from .base import Layer

__all__ = ["Columns"]


class Columns(Layer):
    """y = x[:, start:stop]: a branch that begins with it reads only these columns.

    Parameters
    ----------
    start, stop : int
        The first column, and one past the last: 0 <= start < stop.
    in_features : int, optional
        Number of columns of x. None: inferred from the layer before or from the other branches; in the first layer of
        a model at least `stop`.

    Notes
    -----
    ``Concat(a, b, split=True)`` adds one to each branch: several inputs are branches that read different columns.

    Examples
    --------
    >>> Columns(1, 3)([[1.0, 2.0, 3.0, 4.0]])
    array([[2., 3.]])
    """

    op = "columns"
    torch_name = None
    positional: ClassVar[tuple[str, ...]] = ("start", "stop")
    _fixed = ("start", "stop", "in_features")

    def __init__(self, start: int, stop: int, in_features: int | None = None) -> None:
        self.start: int = integer("start", start, 0)
        self.stop: int = integer("stop", stop, self.start + 1)
        self.in_features: int | None = None if in_features is None else integer("in_features", in_features, self.stop)

    def _in_features(self):
        return self.stop if self.in_features is None else self.in_features

    def _changes_width(self):
        return True

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], self.stop - self.start)

    def _options(self):
        return {"start": self.start}

    def _compile(self, graph, source, place):
        if self.in_features is None and self.stop > (given := graph.features(source)):
            raise ValueError(f"{place}: expects at least {self.stop} inputs, but {graph.givers[source]}, gives {given}")
        if self.in_features is not None:
            graph.expect(place, source, self.in_features)
        return graph.add(place, self.op, [source], self.output_shape(graph.shapes[source]), **self._options())

    def _to_onnx(self, graph, x):
        return x.op("Slice", graph.axes(self.start), graph.axes(self.stop), graph.axes(-1))

    def _to_c(self, code, source="", target=""):
        code.loop(code.width, f"{target or code.target}[j] = {source or code.sources[0]}[{self.start} + j];")
        code.clear_padding(code.width, target)

    def _c_tangent(self, code, dx, dy):
        self._to_c(code, dx[0], dy)

    def _c_backward(self, code, g):
        code.send_to_columns(0, self.start, g)

    _c_second = Layer._c_no_second
