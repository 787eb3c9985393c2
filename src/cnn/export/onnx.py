"""`to_onnx`: the ONNX file that computes what a model computes, in evaluation mode.

Each layer writes itself (`Layer._to_onnx`) with the `Value`s of this file. onnx_reader.py reads files.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from .._about import __version__
from .._checks import integer, needed
from ..files.atomic_write import replace
from .graph import graph_of

OLDEST_OPSET = 13


def to_onnx(model: Any, path: str | os.PathLike[str], opset: int = 20) -> None:
    """Write what `model.predict` computes as an ONNX file.

    The graph has one input "x" of shape (batch, in_features) and one output "y" of shape (batch, out_features), the
    batch being dynamic; both have the model's dtype. The loss and dropout are omitted; batch normalisation uses its
    running statistics.

    Parameters
    ----------
    model : Sequential
    path : str or path
    opset : int
        Version of the operators, 13 or newer. Operators that this version lacks (GELU below 20, LayerNorm below 17) are
        written as formulas. In float64, so are LayerNorm and operators that ONNX Runtime lacks.

    Raises
    ------
    ImportError
        If the package onnx is missing (`pip install "cnn[onnx]"`).
    TypeError, ValueError
        If model is not a Sequential, or opset is unknown to the installed onnx.
    OSError
        If the file cannot be written.

    Notes
    -----
    ONNX Runtime has no float64 erf, so a float64 GELU computes it in float32, with errors of about 1e-7.
    """
    needed("to_onnx", "onnx", "'cnn[onnx]'")
    from onnx import checker, defs

    opset, newest = integer("opset", opset), defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset: expected {OLDEST_OPSET} to {newest}, which the installed onnx has, got {opset}")
    written = _Writer(model, opset).model()
    checker.check_model(written, full_check=True)
    replace(path, [written.SerializeToString()])


class _Writer:
    """An ONNX graph that is being written.

    Attributes
    ----------
    opset : int
        Version of the operators.
    float64 : bool
        Whether the model has this dtype; otherwise float32.
    """

    def __init__(self, model: Any, opset: int) -> None:
        self.computation: Any = graph_of(model)
        self.opset = opset
        self.dtype: np.dtype = model.dtype
        self.float64: Any = model.dtype == np.float64
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.key = ""  # of the current layer

    def model(self) -> Any:
        """The finished file."""
        from onnx import TensorProto, helper

        nodes, widths, output = self.computation
        values = {0: Value(self, "x")}
        for node in nodes:
            self.key = node.key
            values[node.target] = node.layer._to_onnx(self, *(values[source] for source in node.sources))
        self.nodes.append(helper.make_node("Identity", [values[output].name], ["y"]))
        real = TensorProto.DOUBLE if self.float64 else TensorProto.FLOAT
        x, y = (
            helper.make_tensor_value_info(name, real, ["batch", widths[value]])
            for name, value in (("x", 0), ("y", output))
        )
        graph = helper.make_graph(self.nodes, "cnn", [x], [y], list(self.constants.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="cnn",
            producer_version=__version__,
        )

    def add(self, operator: str, inputs: list[str], attributes: dict[str, Any]) -> Value:
        """Add a node; its output."""
        from onnx import helper

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return Value(self, name)

    def constant(self, array: Any, name: str = "") -> Value:
        """A constant of the model's dtype; a number is named after its value."""
        from onnx import numpy_helper

        name = name or f"constant_{array}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array, self.dtype), name)
        return Value(self, name)

    def axes(self, *axes: int) -> Value:
        """A constant of integers."""
        from onnx import numpy_helper

        name = f"axes_{axes}"
        self.constants[name] = numpy_helper.from_array(np.array(axes, np.int64), name)
        return Value(self, name)

    def parameter(self, name: str, array: Any) -> Value:
        """An array of the current layer."""
        return self.constant(array, f"{self.key}.{name}")


class Value:
    """A value of a graph that is being written; operations with it add nodes."""

    def __init__(self, graph: _Writer, name: str) -> None:
        self.graph = graph
        self.name = name

    def op(self, operator: str, *others: Value | float, **attributes: Any) -> Value:
        """The output of an operator for this value and others, which may be numbers."""
        inputs = [other if isinstance(other, Value) else self.graph.constant(other) for other in (self, *others)]
        return self.graph.add(operator, [value.name for value in inputs], attributes)

    def in_float32(self, operator: str) -> Value:
        """As `op`, for operators that ONNX Runtime implements in float32 only."""
        from onnx import TensorProto

        if not self.graph.float64:
            return self.op(operator)
        return self.op("Cast", to=TensorProto.FLOAT).op(operator).op("Cast", to=TensorProto.DOUBLE)

    def mean(self) -> Value:
        """The mean of each row, as one column. Up to opset 17 the axis is an attribute."""
        if self.graph.opset < 18:
            return self.op("ReduceMean", axes=[-1])
        return self.op("ReduceMean", self.graph.axes(-1))

    def __add__(self, other: Value | float) -> Value:
        return self.op("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self.op("Sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self.op("Mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        return self.op("Div", other)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Value:
        return self.op("Neg")

    def __abs__(self) -> Value:
        return self.op("Abs")

    def __gt__(self, other: Value | float) -> Value:
        return self.op("Greater", other)
