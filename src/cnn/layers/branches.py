"""Branches: `Add`, `Multiply`, `Maximum` and `Concat` join layers or whole chains that all read the same input.

Going back, the gradient of that input is the sum over the branches (the copy gate). `Identity` among the branches makes
a residual connection, `Multiply` a gated unit, `Maximum` a maxout unit.
"""

from __future__ import annotations

from .._registry import described
from .base import Layer
from .graph import Place, computes_natively

__all__ = ["Add", "Concat", "Maximum", "Multiply"]


class Branches(Layer):
    """What joins branches: each branch is a layer or a `Sequential` without a loss, and reads the same input.

    Parameters
    ----------
    *branches : Layer or Sequential
        At least two.

    Raises
    ------
    TypeError
        If one is no layer.
    ValueError
        If there are fewer than two or more than 64; in the model, if their widths disagree.
    """

    _fixed = ("branches",)
    kind: str

    def __init__(self, *branches):
        name = type(self).__name__
        if len(branches) == 1 and isinstance(branches[0], (list, tuple)):
            raise TypeError(f"{name}: expected branches as arguments, {name}(a, b), not a list of them")
        for i, branch in enumerate(branches):
            if not isinstance(branch, Layer):
                hint = " (pass an object, not the class)" if isinstance(branch, type) else ""
                raise TypeError(f"{name}[{i}]: expected a layer or a Sequential, got {branch!r}{hint}")
            branch._may_nest(f"{name}[{i}]")
        if not 2 <= len(branches) <= 64:
            raise ValueError(f"{name}: expected 2 to 64 branches, got {len(branches)}")
        if len({id(branch) for branch in branches}) < len(branches):
            raise ValueError(f"{name}: the same branch was passed twice; a layer can stand in a model once")
        self.branches = branches

    def _in_features(self):
        return next((n for n in (branch._in_features() for branch in self.branches) if n is not None), None)

    def _compile(self, graph, source, place):
        ends = []
        for i, branch in enumerate(self.branches):
            inner = Place(f"{place.key}.{i}", f"{place.label}.{type(self).__name__}[{i}]", branch)
            graph.once(inner)
            computes_natively(branch, str(inner))
            ends.append(branch._compile(graph, source, inner))
        return graph.add(place, self.kind, ends, self._width(graph, ends, place))

    def _width(self, graph, ends, place) -> int:
        first = graph.widths[ends[0]]
        for i, end in enumerate(ends):
            if graph.widths[end] != first:
                at = f"{place.label}.{type(self).__name__}"
                raise ValueError(
                    f"{at}[{i}]: expected a branch of {first} outputs, as {at}[0] has, got {graph.widths[end]}"
                )
        return first

    def get_config(self):
        return {"branches": [described(branch) for branch in self.branches]}

    def __repr__(self) -> str:
        inside = [
            f"Sequential({', '.join(map(repr, branch.layers))})" if hasattr(branch, "layers") else repr(branch)
            for branch in self.branches
        ]
        return f"{type(self).__name__}({', '.join(inside)})"

    def __len__(self) -> int:
        return len(self.branches)

    def __getitem__(self, i):
        return self.branches[i]


class Add(Branches):
    """y = a + b + ..., element by element."""

    kind = "add"


class Multiply(Branches):
    """y = a b ..., element by element."""

    kind = "multiply"


class Maximum(Branches):
    """y = max(a, b, ...), element by element; the gradient goes to the winner, to the first of equal ones."""

    kind = "maximum"


class Concat(Branches):
    """y = (a, b, ...), the columns of the branches one after the other; their widths may differ."""

    kind = "concat"

    def _width(self, graph, ends, place):
        return sum(graph.widths[end] for end in ends)

    def _changes_width(self):
        return True
