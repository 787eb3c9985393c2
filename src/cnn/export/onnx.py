"""`to_onnx` and `from_onnx`: a model and the ONNX file that computes the same, in evaluation mode.

ONNX Runtime has no float64 kernels for some operators (it lists them in docs/OperatorKernels.md): for float64 those are
written as formulas of others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .. import layers
from .._about import __version__
from ..files.atomic_write import replace
from ..models import Sequential
from .graph import Node, graph_of

OLDEST_OPSET = 13

OPERATORS = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "softplus": "Softplus",
}
# What has no operator, or in ONNX Runtime none for float64.
FORMULAS = {
    "leaky_relu": "Where(Greater(x, 0.0), x, a * x)",
    "elu": "Where(Greater(x, 0.0), x, a * (Exp(Min(x, 0.0)) - 1.0))",
    "softplus": "Max(x, 0.0) + Log(1.0 + Exp(0.0 - Abs(x)))",
    "silu": "x * Sigmoid(x)",
    "gelu_tanh": "x * Sigmoid(x * (1.5957691216057308 + 0.07135481627260025 * x * x))",
}


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

    if isinstance(opset, bool) or not isinstance(opset, (int, np.integer)):
        raise TypeError(f"opset: expected an int, got {opset!r}")
    newest = defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ValueError(f"opset: expected {OLDEST_OPSET} to {newest}, which the installed onnx has, got {opset}")
    written = _Writer(model, int(opset)).model()
    checker.check_model(written, full_check=True)
    replace(path, [written.SerializeToString()])


class _Writer:
    """An ONNX graph while it is being written. Values are named; `emit` adds a node and names what it gives."""

    def __init__(self, model: Any, opset: int) -> None:
        self.source = model
        self.opset = opset
        self.double = model.dtype == np.float64 if isinstance(model, Sequential) else False
        self.graph = graph_of(model)
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.names = {0: "x"}  # of the values

    def model(self) -> Any:
        from onnx import TensorProto, helper

        for node in self.graph.nodes:
            self.names[node.target] = getattr(self, f"_{node.kind}")(node)
        self.nodes.append(helper.make_node("Identity", [self.names[self.graph.output]], ["y"]))
        real = TensorProto.DOUBLE if self.double else TensorProto.FLOAT
        ends = [
            helper.make_tensor_value_info(name, real, ["batch", self.graph.widths[value]])
            for name, value in (("x", 0), ("y", self.graph.output))
        ]
        graph = helper.make_graph(self.nodes, "cnn", ends[:1], ends[1:], list(self.constants.values()))
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="cnn",
            producer_version=__version__,
        )

    def emit(self, operator: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, array: Any, name: str = "") -> str:
        """The name of a constant of the model's dtype; that of a number is made of the number."""
        from onnx import numpy_helper

        name = name or f"constant_{array}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(array, self.source.dtype), name)
        return name

    def formula(self, text: str, **values: str) -> str:
        """Nodes for an expression in Python's syntax: + - * / of values and numbers, and operators called by name."""
        import ast

        def value(tree: Any) -> str:
            if isinstance(tree, ast.Expression):
                return value(tree.body)
            if isinstance(tree, ast.BinOp):
                operator = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Div: "Div"}[type(tree.op)]
                return self.emit(operator, value(tree.left), value(tree.right))
            if isinstance(tree, ast.Call):
                return self.emit(tree.func.id, *(value(argument) for argument in tree.args))  # type: ignore[attr-defined]
            return values[tree.id] if isinstance(tree, ast.Name) else self.constant(ast.literal_eval(tree))

        return value(ast.parse(text, mode="eval"))

    def inputs(self, node: Node) -> list[str]:
        return [self.names[source] for source in node.sources]

    def parameter(self, node: Node, what: str, default: float = 0.0) -> str:
        """A layer's array, or one of equal numbers where it has none."""
        array = getattr(node.layer, what)
        if array is None:
            array = np.full(self.graph.widths[node.target], default)
        return self.constant(array, f"{node.key}.{what}")

    # layers -----------------------------------------------------------------------------------------------------------

    def _linear(self, node: Node) -> str:
        operands = [*self.inputs(node), self.parameter(node, "weight")]
        if node.layer.has_bias:
            operands.append(self.parameter(node, "bias"))
        return self.emit("Gemm", *operands)

    def _activation(self, node: Node) -> str:
        (x,) = self.inputs(node)
        if node.function == "gelu":
            return self._gelu(x)
        if node.function == "gelu_tanh" and self.opset >= 20 and not self.double:
            return self.emit("Gelu", x, approximate="tanh")
        operator = OPERATORS.get(node.function)
        if operator is None or (self.double and node.function in FORMULAS):
            return self.formula(FORMULAS[node.function], x=x, a=self.constant(node.param))
        return self.emit(operator, x, **({"alpha": node.param} if node.function in ("leaky_relu", "elu") else {}))

    def _gelu(self, x: str) -> str:
        from onnx import TensorProto

        if self.opset >= 20 and not self.double:
            return self.emit("Gelu", x)
        z = self.formula("x * 0.7071067811865476", x=x)
        if self.double:
            erf = self.emit("Erf", self.emit("Cast", z, to=TensorProto.FLOAT))
            erf = self.emit("Cast", erf, to=TensorProto.DOUBLE)
        else:
            erf = self.emit("Erf", z)
        return self.formula("0.5 * x * (1.0 + erf)", x=x, erf=erf)

    def _softmax(self, node: Node) -> str:
        return self.emit("Softmax", *self.inputs(node), axis=-1)

    def _log_softmax(self, node: Node) -> str:
        return self.emit("LogSoftmax", *self.inputs(node), axis=-1)

    def _batch_norm(self, node: Node) -> str:
        arrays = [self.parameter(node, "weight", 1.0), self.parameter(node, "bias")]
        arrays += [self.parameter(node, "running_mean"), self.parameter(node, "running_var")]
        return self.emit("BatchNormalization", *self.inputs(node), *arrays, epsilon=node.layer.eps)

    def _layer_norm(self, node: Node) -> str:
        arrays = [self.parameter(node, "weight", 1.0), self.parameter(node, "bias")]
        if self.opset >= 17:
            return self.emit("LayerNormalization", *self.inputs(node), *arrays, axis=-1, epsilon=node.layer.eps)
        (x,) = self.inputs(node)
        centred = self.emit("Sub", x, self.emit("ReduceMean", x, axes=[-1]))
        variance = self.emit("ReduceMean", self.emit("Mul", centred, centred), axes=[-1])
        weight, bias = arrays
        eps = self.constant(node.layer.eps)
        return self.formula("c / Sqrt(v + eps) * w + b", c=centred, v=variance, eps=eps, w=weight, b=bias)

    def _add(self, node: Node) -> str:
        return self.emit("Sum", *self.inputs(node))

    def _multiply(self, node: Node) -> str:
        product, *others = self.inputs(node)
        for other in others:
            product = self.emit("Mul", product, other)
        return product

    def _maximum(self, node: Node) -> str:
        return self.emit("Max", *self.inputs(node))

    def _concat(self, node: Node) -> str:
        return self.emit("Concat", *self.inputs(node), axis=-1)


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
        elif node.op_type in _ACTIVATIONS:
            found.append(_ACTIVATIONS[node.op_type](attributes))
        elif node.op_type not in _NOTHING or (node.op_type == "Flatten" and attributes.get("axis", 1) != 1):
            known = ", ".join(["Gemm", "MatMul", "Add", *_ACTIVATIONS, *_NOTHING])
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
        n_in, n_out = weight.shape
        layer = layers.Linear(n_in, n_out, bias=bias is not None, dtype=weight.dtype)
        layer.weight = weight
        if bias is not None:
            layer.bias = self.row(node, bias, n_out)
        return layer

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


def _shortest(number: float) -> float:
    """The decimal number that was meant by an attribute, which ONNX keeps as float32."""
    return float(str(np.float32(number)))


_NOTHING = ("Identity", "Dropout", "Flatten")
# ONNX's operator, by name -> ours, from its attributes
_ACTIVATIONS: dict[str, Callable[[dict[str, Any]], layers.Layer]] = {
    "Relu": lambda attributes: layers.ReLU(),
    "LeakyRelu": lambda attributes: layers.LeakyReLU(_shortest(attributes.get("alpha", 0.01))),
    "Elu": lambda attributes: layers.ELU(_shortest(attributes.get("alpha", 1.0))),
    "Sigmoid": lambda attributes: layers.Sigmoid(),
    "Tanh": lambda attributes: layers.Tanh(),
    "Gelu": lambda attributes: layers.GELU(attributes.get("approximate", b"none").decode()),
    "Softplus": lambda attributes: layers.Softplus(),
}
