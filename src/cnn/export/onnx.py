"""`to_onnx` and `from_onnx`: a model and the ONNX file that computes the same, in evaluation mode.

Each layer says how it is written (`Layer._to_onnx`), with the `Value`s of this file; an activation also how it is read
(`Activation._from_onnx`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import layers
from .._about import __version__
from .._checks import integer
from ..files.atomic_write import replace
from ..models import Sequential
from .graph import graph_of

OLDEST_OPSET = 13


def to_onnx(model, path, opset: int = 20) -> None:
    """Write what `model.predict` computes as an ONNX file.

    The graph has one input "x" of shape (batch, in_features) and one output "y" of shape (batch, out_features), the
    batch being dynamic; both are of the model's dtype. The loss is left out, dropout too; batch normalisation takes
    its running statistics.

    Parameters
    ----------
    model : Sequential
    path : str or path
    opset : int
        Version of the operators, 13 or newer. Below 20 GELU, below 17 LayerNorm is written as a formula.

    Raises
    ------
    ImportError
        If the package onnx is missing (`pip install "cnn[onnx]"`).
    TypeError, ValueError
        If model is no Sequential, or opset is unknown to the installed onnx.
    OSError
        If the file cannot be written.

    Notes
    -----
    ONNX Runtime has no erf for float64: a float64 GELU computes it in float32, with errors of 1e-7.
    """
    from onnx import checker, defs

    opset, newest = integer("opset", opset), defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset: expected {OLDEST_OPSET} to {newest}, which the installed onnx has, got {opset}")
    written = _Writer(model, opset).model()
    checker.check_model(written, full_check=True)
    replace(path, [written.SerializeToString()])


class _Writer:
    """An ONNX graph while it is being written.

    Attributes
    ----------
    opset : int
        Version of the operators.
    float64 : bool
        Whether the model is of this dtype, else float32.
    """

    def __init__(self, model: Any, opset: int) -> None:
        self.computation = graph_of(model)
        self.opset = opset
        self.dtype = model.dtype
        self.float64 = model.dtype == np.float64
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.key = ""  # of the layer that is being written

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
        """A node, and what it gives."""
        from onnx import helper

        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return Value(self, name)

    def constant(self, array: Any, name: str = "") -> Value:
        """A constant of the model's dtype; the name of a number is made of the number."""
        from onnx import numpy_helper

        name = name or f"constant_{array}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array, self.dtype), name)
        return Value(self, name)

    def parameter(self, name: str, array: Any) -> Value:
        """An array of the layer that is being written."""
        return self.constant(array, f"{self.key}.{name}")


class Value:
    """A value of a graph that is being written; operations with it add nodes."""

    def __init__(self, graph: _Writer, name: str) -> None:
        self.graph = graph
        self.name = name

    def op(self, operator: str, *others: Value | float, **attributes: Any) -> Value:
        """What an operator gives for this value and others, which may be numbers."""
        inputs = [other if isinstance(other, Value) else self.graph.constant(other) for other in (self, *others)]
        return self.graph.add(operator, [value.name for value in inputs], attributes)

    def in_float32(self, operator: str) -> Value:
        """As `op`, for operators that ONNX Runtime has in float32 only."""
        from onnx import TensorProto

        if not self.graph.float64:
            return self.op(operator)
        return self.op("Cast", to=TensorProto.FLOAT).op(operator).op("Cast", to=TensorProto.DOUBLE)

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


# Reading --------------------------------------------------------------------------------------------------------------


def from_onnx(path, *, loss=None, optimizer=None) -> Sequential:
    """The model that computes what an ONNX file computes, if that is a chain of layers that this library has.

    Read are Gemm (transB or not, alpha, beta), MatMul and Add with constants, Relu, LeakyRelu, Elu, Sigmoid, Tanh,
    Gelu, Softplus, x * Sigmoid(x), and Identity, Dropout and Flatten, which do nothing to a batch of rows.

    Parameters
    ----------
    path : str, path, bytes or onnx.ModelProto
        A file, its content, or the model that onnx has loaded.
    loss, optimizer : optional
        For the new model.

    Returns
    -------
    Sequential
        Of the dtype of the weights, float32 or float64.

    Raises
    ------
    ImportError
        If the package onnx is missing.
    OSError
        If the file cannot be read.
    ValueError
        If it is no ONNX file, or computes something else; the message names the node.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if isinstance(path, onnx.ModelProto):
        proto, name = path, "model"
    else:
        content, name = path, "model"
        if not isinstance(path, bytes):
            name = os.fspath(path)
            with open(path, "rb") as file:
                content = file.read()
        try:
            proto = onnx.load_model_from_string(content)
            onnx.checker.check_model(proto)
        except (DecodeError, onnx.checker.ValidationError) as error:
            raise ValueError(f"{name}: no readable ONNX model: {error}") from error
    found, dtype = _Reader(proto.graph, name).chain()
    return Sequential([*found, *([loss] if loss is not None else [])], optimizer, dtype)


class _Reader:
    """Follows the one value that is not constant from the input of a graph to its output."""

    def __init__(self, graph: Any, name: str) -> None:
        from onnx import numpy_helper

        self.graph = graph
        self.file = name
        known = [kind for kind in layers.Layer.known.values() if issubclass(kind, layers.Activation)]
        self.activations = {kind.onnx.operator: kind for kind in known if kind.op is not None and kind.onnx.operator}
        self.constants = {array.name: numpy_helper.to_array(array) for array in graph.initializer}
        self.nodes: list[Any] = []
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = np.asarray(_attributes(node).get("value"))
            else:
                self.nodes.append(node)
        self.dtypes: set[np.dtype] = set()

    def where(self, node: Any) -> str:
        return f"{self.file}: node {node.name or node.output[0]!r} ({node.op_type})"

    def chain(self) -> tuple[list[layers.Layer], np.dtype]:
        """The layers and the dtype."""
        inputs = [value.name for value in self.graph.input if value.name not in self.constants]
        outputs = [value.name for value in self.graph.output]
        if len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(f"{self.file}: expected one input and one output, got {len(inputs)} and {len(outputs)}")
        found: list[layers.Layer] = []
        at = inputs[0]
        todo = iter(self.nodes)
        for node in todo:
            at = self.follow(node, at, found, todo)
        if at != outputs[0]:
            raise ValueError(f"{self.file}: the output {outputs[0]!r} does not come last in the chain")
        if not any(isinstance(layer, layers.Linear) for layer in found):
            raise ValueError(f"{self.file}: there is no Gemm or MatMul in it")
        if len(self.dtypes) > 1:
            raise ValueError(f"{self.file}: expected weights of one dtype, got {sorted(map(str, self.dtypes))}")
        return found, self.dtypes.pop()

    def follow(self, node: Any, at: str, found: list[layers.Layer], todo: Iterator[Any]) -> str:
        """Add what a node does to the value `at`; the name of what it gives."""
        if at not in node.input:
            raise ValueError(f"{self.where(node)}: expected a chain, but it does not read {at!r}")
        attributes = _attributes(node)
        if node.op_type == "Gemm":
            found.append(self.gemm(node, at, attributes))
        elif node.op_type == "MatMul":
            found.append(self.linear(node, self.operand(node, at, first=True), None))
        elif node.op_type == "Add":
            self.add(node, at, found)
        elif node.op_type == "Sigmoid" and self.reads(at) == 2:
            found.append(layers.SiLU())
            node = self.gate(node, at, next(todo, None))
        elif node.op_type in self.activations:
            values = {name: _plain(value) for name, value in attributes.items()}
            found.append(self.activations[node.op_type]._from_onnx(values))
        elif node.op_type not in _NOTHING or (node.op_type == "Flatten" and attributes.get("axis", 1) != 1):
            known = ", ".join(["Gemm", "MatMul", "Add", *self.activations, *_NOTHING])
            raise ValueError(f"{self.where(node)}: cannot be read; known are {known}")
        if self.reads(node.output[0]) > 1 and not self.is_gate(node.output[0]):
            raise ValueError(f"{self.where(node)}: expected a chain, but several nodes read its output")
        return node.output[0]

    def reads(self, name: str) -> int:
        return sum(list(node.input).count(name) for node in self.nodes)

    def is_gate(self, name: str) -> bool:
        """Whether a value is read by x * Sigmoid(x) alone."""
        readers = [node for node in self.nodes if name in node.input]
        return sorted(node.op_type for node in readers) == ["Mul", "Sigmoid"]

    def gate(self, node: Any, at: str, product: Any) -> Any:
        """The Mul of x * Sigmoid(x)."""
        if product is None or product.op_type != "Mul" or sorted(product.input) != sorted([at, node.output[0]]):
            raise ValueError(f"{self.where(node)}: expected a chain, or x * Sigmoid(x)")
        return product

    def operand(self, node: Any, at: str, first: bool = False) -> np.ndarray:
        """The constant beside the value `at`, which must come first where the order matters."""
        others = [name for name in node.input[:2] if name != at]
        if len(others) != 1 or others[0] not in self.constants or (first and node.input[0] != at):
            raise ValueError(f"{self.where(node)}: expected {at!r} and a constant")
        return self.array(node, others[0])

    def array(self, node: Any, name: str) -> np.ndarray:
        if name not in self.constants:
            raise ValueError(f"{self.where(node)}: expected a constant, but {name!r} is computed")
        array = self.constants[name]
        if array.dtype not in (np.float32, np.float64):
            raise ValueError(f"{self.where(node)}: expected float32 or float64, but {name!r} is {array.dtype}")
        self.dtypes.add(array.dtype)
        return array

    def gemm(self, node: Any, at: str, attributes: dict[str, Any]) -> layers.Linear:
        """alpha x W' + beta c."""
        if attributes.get("transA") or node.input[0] != at:
            raise ValueError(f"{self.where(node)}: expected {at!r} as its first operand, not transposed")
        weight = self.array(node, node.input[1])
        weight = (weight.T if attributes.get("transB") else weight) * weight.dtype.type(attributes.get("alpha", 1.0))
        bias = None
        if len(node.input) > 2 and node.input[2]:
            bias = self.array(node, node.input[2])
            bias = bias * bias.dtype.type(attributes.get("beta", 1.0))
        return self.linear(node, weight, bias)

    def linear(self, node: Any, weight: np.ndarray, bias: np.ndarray | None) -> layers.Linear:
        if weight.ndim != 2:
            raise ValueError(f"{self.where(node)}: expected a matrix of weights, got shape {weight.shape}")
        return layers.Linear.of(weight, None if bias is None else self.row(node, bias, weight.shape[1]))

    def row(self, node: Any, bias: np.ndarray, width: int) -> np.ndarray:
        """A bias of shape (width,), from one that broadcasts over the batch."""
        if bias.size not in (1, width) or bias.ndim > 2 or (bias.ndim == 2 and bias.shape[0] != 1):
            raise ValueError(f"{self.where(node)}: expected a bias of shape ({width},), got {bias.shape}")
        return np.broadcast_to(bias.reshape(-1), (width,))

    def add(self, node: Any, at: str, found: list[layers.Layer]) -> None:
        """The bias of the MatMul before."""
        last = found[-1] if found else None
        if not isinstance(last, layers.Linear) or last.has_bias:
            raise ValueError(f"{self.where(node)}: expected a MatMul before it, whose bias it adds")
        found[-1] = self.linear(node, last.weight, self.operand(node, at))


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import TensorProto, helper, numpy_helper

    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {k: numpy_helper.to_array(v) if isinstance(v, TensorProto) else v for k, v in values.items()}


def _plain(value: Any) -> Any:
    """An attribute as Python has it: text, and the decimal number that was meant, which ONNX keeps as float32."""
    if isinstance(value, bytes):
        return value.decode()
    return float(str(np.float32(value))) if isinstance(value, float) else value


_NOTHING = ("Identity", "Dropout", "Flatten")
