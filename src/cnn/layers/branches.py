"""Branches: `Add`, `Multiply`, `Maximum` and `Concat` combine layers or whole chains that read the same input.

With ``split=True`` each branch reads different columns of that input, in order: several inputs.

In the backward pass the gradient of the input is the sum over the branches. An `Identity` branch in `Add` makes a
residual connection, `Multiply` a gated unit, `Maximum` a maxout unit.
"""

from __future__ import annotations

from typing import Any, ClassVar

from .._checks import flag
from .._dispatch import kernels
from .base import Layer
from .columns import Columns
from .graph import Place, computes_natively

__all__ = ["Add", "Concat", "Maximum", "Multiply"]


class Branches(Layer, abstract=True):
    """Base class: each branch is a layer or a `Sequential` without a loss, and reads the same input.

    Parameters
    ----------
    *branches : Layer or Sequential
        At least two.
    split : bool
        True: each branch reads its own columns; they follow those of the branch before it.

    Attributes
    ----------
    symbol : str
        Its label in pictures.

    Raises
    ------
    TypeError
        If a branch is not a layer.
    ValueError
        If there are fewer than 2 or more than 64 branches; in a model, if their widths differ.
    """

    facts: ClassVar[tuple[str, ...]] = (*Layer.facts, "symbol")
    torch_name = None
    symbol: ClassVar[str]
    _fixed = ("branches",)

    def __init__(self, *branches: Any, split: bool = False) -> None:
        name = type(self).__name__
        if len(branches) == 1 and isinstance(branches[0], (list, tuple)):
            raise TypeError(f"{name}: expected branches as arguments, {name}(a, b), not a list of them")
        for i, branch in enumerate(branches):
            if not isinstance(branch, Layer):
                hint = " (pass an object, not the class)" if isinstance(branch, type) else ""
                raise TypeError(f"{name}[{i}]: expected a layer or a Sequential, got {branch!r}{hint}")
            branch._may_nest(f"{name}[{i}]")
        most = kernels("float32").LIMITS["sources"]
        if not 2 <= len(branches) <= most:
            raise ValueError(f"{name}: expected 2 to {most} branches, got {len(branches)}")
        if len({id(branch) for branch in branches}) < len(branches):
            raise ValueError(f"{name}: the same branch was passed twice; a model can use a layer only once")
        self.branches: Any = _split(branches, name) if flag("split", split) else branches

    @property
    def children(self) -> tuple[Layer, ...]:  # type: ignore[override]
        """The branches."""
        return self.branches

    def _twin(self, made):
        twin = super()._twin(made)
        twin.__dict__["branches"] = tuple(branch._twin(made) for branch in self.branches)
        return twin

    def _in_features(self):
        return max((n for n in (branch._in_features() for branch in self.branches) if n is not None), default=None)

    def _compile(self, graph, source, place):
        ends = []
        for i, branch in enumerate(self.branches):
            inner = Place(f"{place.key}.{i}", f"{place.label}.{type(self).__name__}[{i}]", branch)
            graph.once(inner)
            computes_natively(branch, inner)
            ends.append(branch._compile(graph, source, inner))
        shape = self._joined([graph.shapes[end] for end in ends], f"{place.label}.{type(self).__name__}")
        return graph.add(place, self.op, ends, shape)

    def _joined(self, shapes: list[tuple[int, ...]], at: str) -> tuple[int, ...]:
        """The shape of the result for these output shapes of the branches. ValueError if they differ."""
        for i, shape in enumerate(shapes):
            if shape != shapes[0]:
                expected, got = (shapes[0][0], shape[0]) if len(shape) == len(shapes[0]) == 1 else (shapes[0], shape)
                raise ValueError(f"{at}[{i}]: expected a branch of {expected} outputs, as {at}[0] has, got {got}")
        return shapes[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._joined([branch.output_shape(shape) for branch in self.branches], type(self).__name__)

    def get_config(self) -> dict[str, Any]:
        """The branches, JSON-serialisable.

        Returns
        -------
        dict
            ``{"branches": [{"name": ..., argument: value, ...}, ...]}``.
        """
        return {"branches": [branch.to_config() for branch in self.branches]}

    @classmethod
    def _from_arguments(cls, arguments):
        return cls(*(Layer.from_config(branch) for branch in arguments["branches"]))

    def __repr__(self) -> str:
        inside = [
            f"Sequential({', '.join(map(repr, branch.layers))})" if hasattr(branch, "layers") else repr(branch)
            for branch in self.branches
        ]
        return f"{type(self).__name__}({', '.join(inside)})"

    def __len__(self) -> int:
        return len(self.branches)

    def __getitem__(self, i: Any) -> Any:
        return self.branches[i]


class Add(Branches):
    """y = a + b + ..., elementwise.

    Parameters
    ----------
    *branches : Layer or Sequential
        From 2 to 64, of one width.
    split : bool
        True: each branch reads its own columns of the input: the first branch the first ones, and so on. If a model
        begins with this layer, you may also pass a list of arrays, one per branch.
    """

    op = "add"
    symbol = "+"

    def _to_onnx(self, graph, *x):
        return x[0].op("Sum", *x[1:])

    def _to_c(self, code):
        code.assign(" + ".join(f"{source}[j]" for source in code.sources))

    def _c_tangent(self, code, dx, dy):
        code.assign(" + ".join(f"{d}[j]" for d in dx), dy)

    def _c_backward(self, code, g):
        for i in range(len(code.sources)):
            code.send(i, f"{g}[j]")

    _c_second = Layer._c_no_second


class Multiply(Branches):
    """y = a b ..., elementwise.

    Parameters
    ----------
    *branches : Layer or Sequential
        From 2 to 64, of one width.
    split : bool
        True: each branch reads its own columns of the input: the first branch the first ones, and so on. If a model
        begins with this layer, you may also pass a list of arrays, one per branch.
    """

    op = "multiply"
    symbol = "\N{MULTIPLICATION SIGN}"

    def _to_onnx(self, graph, *x):
        product, *others = x
        for other in others:
            product = product * other
        return product

    def _to_c(self, code):
        code.assign(self._c_product(code.sources))

    @staticmethod
    def _c_product(arrays: list[str]) -> str:
        return " * ".join(f"{array}[j]" for array in arrays)

    @classmethod
    def _c_sum(cls, arrays: list[str], changes: dict[int, str]) -> str:
        """The derivative of the product of arrays; `changes` are the derivatives of some of them, by number."""
        terms = [cls._c_product([*arrays[:i], change, *arrays[i + 1 :]]) for i, change in changes.items()]
        return " + ".join(terms)

    def _c_tangent(self, code, dx, dy):
        code.assign(self._c_sum(code.sources, dict(enumerate(dx))), dy)

    def _c_backward(self, code, g):
        for i in range(len(code.sources)):
            code.send(i, self._c_product([*code.sources[:i], g, *code.sources[i + 1 :]]))

    def _c_second(self, code, dx, g):
        for i in range(len(code.sources)):
            factors = [*code.sources[:i], g, *code.sources[i + 1 :]]
            code.send(i, self._c_sum(factors, {k: d for k, d in enumerate(dx) if k != i}))


class Maximum(Branches):
    """y = max(a, b, ...), elementwise; the gradient goes to the largest branch, to the first one in a tie.

    Parameters
    ----------
    *branches : Layer or Sequential
        From 2 to 64, of one width.
    split : bool
        True: each branch reads its own columns of the input: the first branch the first ones, and so on. If a model
        begins with this layer, you may also pass a list of arrays, one per branch.
    """

    op = "maximum"
    symbol = "max"

    def _to_onnx(self, graph, *x):
        return x[0].op("Max", *x[1:])

    def _to_c(self, code):
        """NaN propagates. Uses t, since the result may overwrite a source."""
        first, *others = code.sources
        code.step("t", "v", v=first)
        for other in others:
            code.step("t", "((v < t) | (t != t)) ? t : v", v=other)
        code.step("v", "t")

    def _c_tangent(self, code, dx, dy):
        """From the last branch to the first, so that the first wins a tie."""
        code.assign(f"{dx[-1]}[j]", dy)
        for x, d in reversed(list(zip(code.sources[:-1], dx[:-1], strict=True))):
            code.assign(f"{x}[j] >= {code.target}[j] ? {d}[j] : {dy}[j]", dy)

    def _c_backward(self, code, g):
        for i, x in enumerate(code.sources):
            wins = [f"{x}[j] >= {code.target}[j]", *(f"{other}[j] < {code.target}[j]" for other in code.sources[:i])]
            code.send(i, f"({' & '.join(f'({one})' for one in wins)}) ? {g}[j] : {code.number(0.0)}")

    _c_second = Layer._c_no_second


class Concat(Branches):
    """y = (a, b, ...): the outputs of the branches side by side; their widths may differ.

    Parameters
    ----------
    *branches : Layer or Sequential
        From 2 to 64.
    split : bool
        True: each branch reads its own columns of the input: the first branch the first ones, and so on. If a model
        begins with this layer, you may also pass a list of arrays, one per branch.
    """

    op = "concat"
    symbol = "concat"

    def _joined(self, shapes, at):
        return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def _changes_width(self):
        return True

    def _to_onnx(self, graph, *x):
        return x[0].op("Concat", *x[1:], axis=-1)

    def _to_c(self, code, sources=None, target=""):
        at = 0
        for source, width in zip(sources or code.sources, code.source_widths, strict=True):
            code.loop(width, f"{target or code.target}[{at} + j] = {source}[j];")
            at += width
        code.clear_padding(at, target)

    def _c_tangent(self, code, dx, dy):
        self._to_c(code, dx, dy)

    def _c_backward(self, code, g):
        at = 0
        for i, width in enumerate(code.source_widths):
            code.send(i, f"{g}[{at} + j]", exact=True)
            at += width

    _c_second = Layer._c_no_second


def _split(branches: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """Put `Columns` before each branch."""
    chain = Layer.known["Sequential"]
    made, at = [], 0
    for i, branch in enumerate(branches):
        width = branch._in_features()
        if width is None:
            raise ValueError(
                f"split: {name}[{i}], {branch!r}, accepts any number of inputs: begin each branch with cnn.Columns, "
                "and omit split"
            )
        made.append(chain([Columns(at, at + width), branch], dtype=getattr(branch, "dtype", "float32")))
        at += width
    return tuple(made)
