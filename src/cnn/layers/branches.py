"""Branches: `Add`, `Multiply`, `Maximum` and `Concat` join layers or whole chains that all read the same input.

With ``split=True`` each reads columns of its own of that input, one branch after the other: several inputs.

Going back, the gradient of that input is the sum over the branches (the copy gate). `Identity` among the branches makes
a residual connection, `Multiply` a gated unit, `Maximum` a maxout unit.
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
    """What joins branches: each branch is a layer or a `Sequential` without a loss, and reads the same input.

    Parameters
    ----------
    *branches : Layer or Sequential
        At least two.
    split : bool
        True: the branches do not read the same columns, but each those that follow the ones of the branch before it.

    Attributes
    ----------
    symbol : str
        What stands for it in pictures.

    Raises
    ------
    TypeError
        If one is no layer.
    ValueError
        If there are fewer than two, or more than the kernels take (64); in the model, if their widths disagree.
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
            raise ValueError(f"{name}: the same branch was passed twice; a layer can stand in a model once")
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
        """The shape of the result, for those of the branches' outputs; ValueError, naming the place, if they differ."""
        for i, shape in enumerate(shapes):
            if shape != shapes[0]:
                expected, got = (shapes[0][0], shape[0]) if len(shape) == len(shapes[0]) == 1 else (shapes[0], shape)
                raise ValueError(f"{at}[{i}]: expected a branch of {expected} outputs, as {at}[0] has, got {got}")
        return shapes[0]

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self._joined([branch.output_shape(shape) for branch in self.branches], type(self).__name__)

    def get_config(self) -> dict[str, Any]:
        """The branches, as JSON can hold them.

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
    """y = a + b + ..., element by element.

    Parameters
    ----------
    *branches : Layer or Sequential
        From 2 to 64, of one width.
    split : bool
        True: each branch reads columns of its own, as many as it takes, one branch after the other: the first ones are
        those of the first branch. The model takes them as one array or, at its beginning, as a list of arrays.
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
    """y = a b ..., element by element.

    Parameters
    ----------
    *branches : Layer or Sequential
        From 2 to 64, of one width.
    split : bool
        True: each branch reads columns of its own, as many as it takes, one branch after the other: the first ones are
        those of the first branch. The model takes them as one array or, at its beginning, as a list of arrays.
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
    """y = max(a, b, ...), element by element; the gradient goes to the winner, to the first of equal ones.

    Parameters
    ----------
    *branches : Layer or Sequential
        From 2 to 64, of one width.
    split : bool
        True: each branch reads columns of its own, as many as it takes, one branch after the other: the first ones are
        those of the first branch. The model takes them as one array or, at its beginning, as a list of arrays.
    """

    op = "maximum"
    symbol = "max"

    def _to_onnx(self, graph, *x):
        return x[0].op("Max", *x[1:])

    def _to_c(self, code):
        """NaN wins. In t, as the result may lie where a source is."""
        first, *others = code.sources
        code.step("t", "v", v=first)
        for other in others:
            code.step("t", "((v < t) | (t != t)) ? t : v", v=other)
        code.step("v", "t")

    def _c_tangent(self, code, dx, dy):
        """From the last branch to the first, which wins."""
        code.assign(f"{dx[-1]}[j]", dy)
        for x, d in reversed(list(zip(code.sources[:-1], dx[:-1], strict=True))):
            code.assign(f"{x}[j] >= {code.target}[j] ? {d}[j] : {dy}[j]", dy)

    def _c_backward(self, code, g):
        for i, x in enumerate(code.sources):
            wins = [f"{x}[j] >= {code.target}[j]", *(f"{other}[j] < {code.target}[j]" for other in code.sources[:i])]
            code.send(i, f"({' & '.join(f'({one})' for one in wins)}) ? {g}[j] : {code.number(0.0)}")

    _c_second = Layer._c_no_second


class Concat(Branches):
    """y = (a, b, ...), the columns of the branches one after the other; their widths may differ.

    Parameters
    ----------
    *branches : Layer or Sequential
        From 2 to 64.
    split : bool
        True: each branch reads columns of its own, as many as it takes, one branch after the other: the first ones are
        those of the first branch. The model takes them as one array or, at its beginning, as a list of arrays.
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
    """Each branch behind the columns that it reads."""
    chain = Layer.known["Sequential"]
    made, at = [], 0
    for i, branch in enumerate(branches):
        width = branch._in_features()
        if width is None:
            raise ValueError(
                f"split: {name}[{i}], {branch!r}, takes any number of inputs: let the branch begin with cnn.Columns, "
                "and leave split out"
            )
        made.append(chain([Columns(at, at + width), branch], dtype=getattr(branch, "dtype", "float32")))
        at += width
    return tuple(made)
