"""`from_onnx`: the model that computes what an ONNX file computes.

First, constants are folded (`_Graph`). Then the graph is read from its output back to its input (`_Reader`): `READERS`
maps each operator to a piece, and formulas of elementwise operators are compared with the library's layers by their
values. Last, the pieces become layers, from the input on, and constant scalings are merged into the adjacent linear
layers (`_Builder`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import layers
from .._checks import needed
from ..models import Sequential

__all__ = ["from_onnx"]

# Elementwise operators, and reductions along a row: a formula of these may be an activation or a norm.
# fmt: off
FORMULAS = frozenset((
    "Abs", "Add", "And", "Cast", "Celu", "Clip", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min",
    "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceSum", "Relu",
    "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where",
))
# fmt: on
NO_LABELS = (0, 1, 11)  # types of outputs: not a tensor, float32, float64
HARD_SIGMOID = (("alpha", 0.2), ("beta", 0.5))
NO_WIDTH = "the file does not give the number of columns of x: export with a fixed one"
LONGEST_FORMULA = 24  # operators
TOLERANCE = 2e-6  # between a formula and a layer, relative to numbers above 1: constants in files are float32


def from_onnx(
    path: str | os.PathLike[str], *, outputs: Any = None, loss: Any = None, optimizer: Any = None
) -> Sequential:
    """The model that computes what an ONNX file computes, if layers of this library can.

    It reads linear layers (Gemm, MatMul, Add), every activation of the library as its operator or as a formula,
    PRelu, Softmax, LogSoftmax, BatchNormalization and LayerNormalization, and branches that join again (Add, Sum, Sub,
    Mul, Max, Concat). Constant factors and terms are merged into the adjacent linear layer. Identity, Dropout,
    Flatten, Reshape and Cast are dropped where they do not change a batch of rows.

    Parameters
    ----------
    path : str, path, bytes or onnx.ModelProto
        A file, its content, or a loaded ONNX model. Weights in a second file are read from the same folder.
    outputs : str or sequence of str, optional
        The value in the file that the model computes, or several, whose columns are concatenated. None: the file's
        floating-point output, which must be one or the parts of one; label outputs are ignored.
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
        If the file, or its file of weights, cannot be read.
    ValueError
        If it is not an ONNX file, or no layers compute it; the message names the node.
    """
    proto, name = _load(path)
    reader = _Reader(_Graph(proto, name))
    pieces = reader.network([outputs] if isinstance(outputs, str) else outputs)
    dtype = reader.dtype()
    found = _Builder(reader.graph, dtype).chain(pieces, reader.graph.in_features())
    return Sequential([*found, *([loss] if loss is not None else [])], optimizer, dtype)


def _load(path: Any) -> tuple[Any, str]:
    """The loaded ONNX model with its weights, and its name for messages."""
    needed("from_onnx", "onnx", "'cnn[onnx]'")
    import onnx
    from google.protobuf.message import DecodeError

    name = "model" if isinstance(path, (bytes, onnx.ModelProto)) else os.fspath(path)
    try:
        if isinstance(path, onnx.ModelProto):
            proto = path
        elif isinstance(path, bytes):
            proto = onnx.load_model_from_string(path)
        else:
            with open(path, "rb"):  # raises an OSError if there is no such file
                proto = onnx.load(path)
        elsewhere = _external(proto)
        if elsewhere is not None:
            raise ValueError(
                f"{name}: its weights are in a second file, {elsewhere!r}: pass the path of the ONNX file, with "
                f"{elsewhere!r} in the same folder"
            )
        if proto is not path:
            _check(proto)
        proto = onnx.inliner.inline_local_functions(proto) if proto.functions else proto
        return proto, name
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ValueError(f"{name}: cannot be read as an ONNX model: {error}") from error


def _check(proto: Any) -> None:
    """ValidationError if it is not an ONNX model. Outputs need no shape, as for ONNX Runtime."""
    import onnx

    tensors = [value.type.tensor_type for value in proto.graph.output if value.type.HasField("tensor_type")]
    without = [tensor for tensor in tensors if not tensor.HasField("shape")]
    for tensor in without:
        tensor.shape.SetInParent()
    onnx.checker.check_model(proto)
    for tensor in without:
        tensor.ClearField("shape")


def _external(proto: Any) -> str | None:
    """The first file of weights that has not been loaded."""
    from onnx import TensorProto

    tensors = [*proto.graph.initializer, *(a.t for node in proto.graph.node for a in node.attribute)]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            return next((entry.value for entry in tensor.external_data if entry.key == "location"), "another file")
    return None


# The graph ------------------------------------------------------------------------------------------------------------


class _Graph:
    """The nodes that depend on the input, and the constants, including those computed from other constants."""

    def __init__(self, proto: Any, file: str) -> None:
        from onnx import numpy_helper, shape_inference

        self.file = file
        self.opsets = proto.opset_import
        self.constants = {array.name: numpy_helper.to_array(array) for array in proto.graph.initializer}
        try:
            inferred = shape_inference.infer_shapes(proto, data_prop=True).graph
        except shape_inference.InferenceError:
            inferred = proto.graph  # a node is unknown to onnx; the reader will name it
        self.shapes: dict[str, list[int | None]] = {}
        for value in [*inferred.input, *inferred.value_info, *inferred.output]:
            tensor = value.type.tensor_type
            if tensor.HasField("shape"):
                self.shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        self.producer: dict[str, Any] = {}
        self.position: dict[str, int] = {}  # of each value, in the order of the nodes
        self.readers: dict[str, list[Any]] = {}
        for i, node in enumerate(proto.graph.node):
            if (width := self._asked_width(node)) is not None:
                self.constants[node.output[0]] = width
                continue
            if self._is_constant(node):
                try:
                    self.constants.update(zip(node.output, self.run([node], node.output), strict=True))
                except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                    raise ValueError(f"{self.where(node)}: cannot be computed from its constants: {error}") from error
                continue
            for name in node.output:
                self.producer[name], self.position[name] = node, i
            for name in {*node.input}:
                self.readers.setdefault(name, []).append(node)
        self.inputs = [value.name for value in proto.graph.input if value.name not in self.constants]
        self.outputs = [value.name for value in proto.graph.output]
        self.real_outputs = [v.name for v in proto.graph.output if v.type.tensor_type.elem_type in NO_LABELS]

    def _asked_width(self, node: Any) -> np.ndarray | None:
        """The size that a Gather takes from a Shape, if the file gives it and it is not the batch."""
        before = self.producer.get(node.input[0]) if node.op_type == "Gather" and _is_standard(node) else None
        index = self.constants.get(node.input[1]) if before is not None and before.op_type == "Shape" else None
        if before is None or index is None or index.size != 1 or before.attribute:
            return None
        shape, i = self.shapes.get(before.input[0], []), int(index.reshape(-1)[0])
        if not -len(shape) < i < len(shape) or i == 0 or shape[i] is None:
            return None
        return np.full(index.shape, shape[i], np.int64)

    def _is_constant(self, node: Any) -> bool:
        return (
            _is_standard(node)
            and not node.op_type.startswith(("Random", "Bernoulli"))
            and not any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
            and all(name in self.constants for name in node.input if name)
        )

    def run(self, nodes: list[Any], outputs: Iterable[str], **values: np.ndarray) -> list[np.ndarray]:
        """The outputs of these nodes, computed from the constants and from further values."""
        from onnx import TensorProto, helper
        from onnx.reference import ReferenceEvaluator

        made = {name for node in nodes for name in node.output}
        names = {name for node in nodes for name in node.input if name and name not in made}
        given = {name: values.get(name, self.constants.get(name)) for name in names}
        ends = [[helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in e] for e in (given, outputs)]
        opsets = self.opsets
        if all(node.op_type == "DequantizeLinear" for node in nodes):
            opsets = [helper.make_opsetid("", 21)]  # onnx computes no older one
        model = helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=opsets)
        with np.errstate(all="ignore"):
            return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, given)]

    def sizes(self, name: str) -> np.ndarray | None:
        """A shape that is computed from shapes, with 0 for the batch; None if it is unknown."""
        if name in self.constants:
            return self.constants[name]
        nodes: dict[str, Any] = {}
        open_ = [name]
        while open_:
            if (value := open_.pop()) in nodes:
                continue
            if value not in self.producer:
                return None
            nodes[value] = node = self.producer[value]
            open_ += self.computed(node) if node.op_type != "Shape" else []
        sources = {
            node.input[0]: self.shapes.get(node.input[0], []) for node in nodes.values() if node.op_type == "Shape"
        }
        if any(not shape or None in shape[1:] for shape in sources.values()) or not all(
            map(_is_standard, nodes.values())
        ):
            return None
        ordered = [nodes[value] for value in sorted(nodes, key=self.position.__getitem__)]
        batches = 1009, 2003
        found = []
        for batch in batches:
            given = {n: np.broadcast_to(np.int8(0), [s[0] or batch, *s[1:]]) for n, s in sources.items()}  # type: ignore
            found += self.run(ordered, [name], **given)
        is_batch = (found[0] == batches[0]) & (found[1] == batches[1])
        return np.where(is_batch, 0, found[0]) if (is_batch | (found[0] == found[1])).all() else None

    def in_features(self) -> int | None:
        """The width of a row of the input, if the file gives it."""
        shape = self.shapes.get(self.inputs[0], [None])
        row = shape[1:] or shape
        return None if None in row else int(np.prod(row))  # type: ignore[arg-type]

    def is_last(self, axis: int, value: str) -> bool:
        """Whether an axis is that of the columns; values of unknown shape are taken to have two axes."""
        return axis in (-1, len(self.shapes.get(value, (0, 0))) - 1)

    def where(self, node: Any) -> str:
        return f"{self.file}: node {node.name or node.output[0]!r} ({node.op_type})"

    def way_out(self, node: Any) -> str:
        start = next(iter(self.computed(node)), self.inputs[0])
        if start in self.inputs:
            return f"it reads {start!r}, the input: export only what follows it"
        return f"pass outputs={start!r} to read the network up to it"

    def computed(self, node: Any) -> list[str]:
        """The inputs of a node that are not constants."""
        return [name for name in node.input if name and name not in self.constants]

    def origin(self, values: Iterable[str]) -> Iterator[tuple[str, list[Any]]]:
        """The values from which all of these are computed, the nearest first, and the nodes between, in order."""
        open_ = set(values)
        nodes: list[Any] = []
        if len(open_) == 1:
            yield next(iter(open_)), []
        while (last := max(open_, key=lambda name: self.position.get(name, -1))) in self.producer:
            node = self.producer[last]
            nodes.insert(0, node)
            open_ = (open_ - set(node.output)) | set(self.computed(node))
            if len(open_) == 1:
                yield next(iter(open_)), list(nodes)


def _is_standard(node: Any) -> bool:
    return node.domain in ("", "ai.onnx")


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _plain(number: Any) -> float:
    """The shortest decimal number that rounds to a float32; a float64 stays as it is."""
    return float(str(np.float32(number))) if np.asarray(number).dtype == np.float32 else float(number)


# Pieces: the operations between the input and the output, before they become layers -----------------------------------


class Dense(NamedTuple):
    """x weight + bias, in float64."""

    node: Any
    weight: np.ndarray
    bias: np.ndarray | None = None


class Affine(NamedTuple):
    """x scale + shift, with one number, or one for each column."""

    node: Any
    scale: np.ndarray
    shift: np.ndarray


class Norm(NamedTuple):
    """A layer normalisation; width None: that of x."""

    node: Any
    eps: float
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


class Columns(NamedTuple):
    """Some columns of x."""

    node: Any
    index: Any


class Rows(NamedTuple):
    """The identity, if x has this many columns; -1: any."""

    node: Any
    width: int


class Index(NamedTuple):
    """The index of a column; multiplied by 0 it gives a `Constant` its rows."""

    node: Any


class Fixed(NamedTuple):
    """Numbers that do not depend on x."""

    node: Any
    value: np.ndarray


class Join(NamedTuple):
    """Branches that read the same x."""

    node: Any
    kind: type[layers.Branches]
    branches: list[list[Any]]


class Plain(NamedTuple):
    """A layer that is ready."""

    node: Any
    layer: layers.Layer


class _LogSigmoid:
    """-softplus(-x), which `formula` tries beside the activations."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        return -layers.Softplus().forward(-x)


# Reading --------------------------------------------------------------------------------------------------------------


class _Reader:
    """Follows a graph from its output back to its input."""

    def __init__(self, graph: _Graph) -> None:
        self.graph = graph
        self.dtypes: set[np.dtype] = set()
        self.seen: set[str] = set()
        self.kinds = [kind for kind in layers.Layer.known.values() if issubclass(kind, layers.Activation) and kind.op]

    def dtype(self) -> Any:
        if not self.dtypes:
            raise ValueError(f"{self.graph.file}: expected a Gemm, a MatMul or another operator with weights, got none")
        if len(self.dtypes) > 1:
            raise ValueError(f"{self.graph.file}: expected weights of one dtype, got {sorted(map(str, self.dtypes))}")
        return next(iter(self.dtypes))

    def network(self, outputs: Iterable[str] | None) -> list[Any]:
        """The pieces from the input to the outputs, side by side if there are several."""
        graph = self.graph
        if len(graph.inputs) != 1:
            raise ValueError(f"{graph.file}: expected one input, got {len(graph.inputs)}: {_names(graph.inputs)}")
        (start,) = graph.inputs
        wanted = list(outputs) if outputs is not None else graph.real_outputs or graph.outputs
        for name in wanted:
            if name not in graph.producer and name != start:
                known = (
                    "is a constant"
                    if name in graph.constants
                    else f"is not in it; its outputs: {_names(graph.outputs)}"
                )
                raise ValueError(f"{graph.file}: outputs: {name!r} {known}")
        split = graph.producer.get(wanted[0])
        if split is not None and split.op_type == "Split" and list(split.output) == wanted:
            wanted = [split.input[0]]
        if len(wanted) == 1:
            return self.chain(start, wanted[0])
        if outputs is None:
            raise ValueError(
                f"{graph.file}: expected one output, got {len(wanted)}: pass outputs={wanted[0]!r} for one of them, or "
                f"outputs=({_names(wanted)}) for all, side by side"
            )
        origin, _ = next(graph.origin(wanted))
        heads = [self.chain(origin, name) for name in wanted]
        return [*self.chain(start, origin), Join(graph.producer[wanted[0]], layers.Concat, heads)]

    def chain(self, start: str, at: str) -> list[Any]:
        """The pieces that compute the value `at` from the value `start`."""
        found: list[list[Any]] = []
        while at != start:
            node = self.graph.producer.get(at)
            if node is None:
                raise ValueError(f"{self.graph.file}: {at!r} is neither the input nor the output of a node")
            if at in self.seen:
                readers = ", ".join(f"{r.op_type} {r.name or r.output[0]!r}" for r in self.graph.readers[at])
                raise self.refused(
                    node,
                    f"expected branches that join again, but {readers} read its output and do not all join: the model "
                    "would have its weights twice",
                )
            self.seen.add(at)
            pieces, at = self.step(node, at)
            found.append(pieces)
        return [piece for pieces in reversed(found) for piece in pieces]

    def step(self, node: Any, at: str) -> tuple[list[Any], str]:
        """The pieces that compute `at` from an earlier value, and that value."""
        if node.domain == "ai.onnx.ml" and node.op_type in ("Scaler", "ZipMap"):  # of scikit-learn's models
            return _scaler(node) if node.op_type == "Scaler" else ([], node.input[0])  # a map of the columns
        if not _is_standard(node):
            raise self.refused(
                node,
                f"expected a standard ONNX operator, got one of the domain {node.domain!r}; "
                "export without custom operators",
            )
        reader = READERS.get(node.op_type)
        if reader is not None and (read := reader(self, node, at)) is not None:
            return read
        if (formula := self.formula(node, at)) is not None:
            return formula
        raise self.refused(node, "no layer of this library computes it")

    def where(self, node: Any) -> str:
        return self.graph.where(node)

    def refused(self, node: Any, why: str) -> ValueError:
        return ValueError(f"{self.where(node)}: {why}; {self.graph.way_out(node)}")

    def array(self, node: Any, name: str) -> np.ndarray:
        """A constant of real numbers."""
        if name not in self.graph.constants:
            raise self.refused(node, f"expected a constant, but {name!r} is computed")
        array = self.graph.constants[name]
        if array.dtype not in (np.float32, np.float64):
            raise self.refused(node, f"expected float32 or float64, but {name!r} is {array.dtype}")
        self.dtypes.add(array.dtype)
        return array

    def row(self, node: Any, name: str, width: int | None = None) -> np.ndarray:
        """A constant that is one number, or one for each column, in float64."""
        array = self.array(node, name)
        columns = array.reshape(-1)
        if width not in (None, columns.size) and columns.size != 1:
            raise self.refused(node, f"expected a bias of shape ({width},), got {array.shape}")
        shape = self.graph.shapes.get(self.graph.computed(node)[0], [])
        whole = shape[1:] == list(array.shape[-len(shape) + 1 :]) if len(shape) > 2 else False
        if columns.size > 1 and array.shape[-1] != columns.size and not whole:
            expected = f"({width},)" if width else "(columns,)"
            raise self.refused(node, f"expected a number for each column, {expected}, got {array.shape}")
        return columns.astype(np.float64)

    def formula(self, node: Any, at: str) -> tuple[list[Any], str] | None:
        """An activation, a softmax or a norm, recognised by its values, whatever operators compute it."""
        found = None
        for start, nodes in self.graph.origin([at]):
            if len(nodes) > LONGEST_FORMULA or any(not self.in_formula(part) for part in nodes):
                break
            if nodes and (pieces := self.compared(node, at, start, nodes)) is not None:
                found = pieces, start
                if not isinstance(getattr(pieces[0], "layer", None), (layers.Softmax, layers.LogSoftmax)):
                    break  # a softmax may begin earlier, with the subtraction of the maximum, which changes nothing
        return found

    def in_formula(self, node: Any) -> bool:
        from onnx import TensorProto

        values = _attributes(node)
        if node.op_type == "Cast":
            return values["to"] in (TensorProto.FLOAT, TensorProto.DOUBLE)
        if node.op_type.startswith("Reduce"):
            axes = values.get("axes", self.graph.constants.get(node.input[1]) if len(node.input) > 1 else None)
            known = axes is not None and len(axes) == 1 and self.graph.is_last(int(axes[0]), node.input[0])
            return known and values.get("keepdims", 1) == 1
        numbers = [self.graph.constants[name] for name in node.input if name in self.graph.constants]
        return _is_standard(node) and node.op_type in FORMULAS and all(number.size == 1 for number in numbers)

    def compared(self, node: Any, at: str, start: str, nodes: list[Any]) -> list[Any] | None:
        """The layer whose values agree best with these nodes, as pieces; None if no layer agrees."""
        from onnx import helper

        names = [
            n
            for part in nodes
            for n in part.input
            if n in self.graph.constants and not part.op_type.startswith("Reduce")
        ]
        numbers = {_plain(self.graph.constants[name].reshape(-1)[0]) for name in names}
        numbers |= {_plain(np.float32(v)) for part in nodes for v in _attributes(part).values() if isinstance(v, float)}
        numbers = {v for v in numbers if np.isfinite(v)} | {1 / v for v in numbers if v and np.isfinite(v)}
        near = [c * v for v in numbers if abs(v) < 1e30 for c in (-2, -1, -0.9, 0.9, 1, 2)]
        points = np.concatenate([np.linspace(-12, 12, 64), [0, 1e-3, -1e-3, 30, -30, 100, -100, 1e3, -1e3], near])
        x = np.resize(np.random.default_rng(0).permutation(points), (len(points) // 7 + 1, 7))
        parts = [helper.make_node("Identity", p.input, p.output) if p.op_type == "Cast" else p for p in nodes]
        wide = {
            n: self.graph.constants[n].astype(np.float64) for n in names if self.graph.constants[n].dtype.kind == "f"
        }
        try:
            (y,) = self.graph.run(parts, [at], **wide, **{start: x})
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None  # onnx cannot compute it
        if y.shape != x.shape:
            return None
        finite = np.isfinite(y)

        def error(layer: Any) -> float:
            with np.errstate(all="ignore"):
                z = layer.forward(x)
                return float(np.max(abs(y - z)[finite] / np.maximum(1, abs(z[finite]))))

        if not finite.any(1).sum() * 2 > len(x):
            return None
        if any(part.op_type.startswith("Reduce") for part in nodes):
            norms = [layers.LayerNorm(7, v, False, dtype="float64") for v in numbers if v > 0]
            found: list[Any] = [layers.Softmax(), layers.LogSoftmax(), *norms]
        else:
            # the operator's own class first: ELU and CELU with alpha 1 are the same
            own = [kind for kind in self.kinds if len(nodes) == 1 and kind.onnx.operator == node.op_type]
            found = [layer for kind in own or self.kinds for layer in kind._forms(sorted(numbers))]
            found += [_LogSigmoid()]
        least, _, best = min((error(layer), i, layer) for i, layer in enumerate(found))
        if not least < TOLERANCE:
            return None
        if isinstance(best, _LogSigmoid):
            minus = Affine(node, -np.ones(1), np.zeros(1))
            return [minus, Plain(node, layers.Softplus()), minus]
        return [Norm(node, best.eps) if isinstance(best, layers.LayerNorm) else Plain(node, best)]


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


# Readers of operators: the pieces and the value that they read; None if the operator may be part of a formula ---------


def _nothing(reader: _Reader, node: Any, at: str) -> Any:
    return [], node.input[0]


def _dropout(reader: _Reader, node: Any, at: str) -> Any:
    mode = node.input[2] if len(node.input) > 2 else ""
    if at != node.output[0] or (mode and (mode not in reader.graph.constants or reader.graph.constants[mode].any())):
        raise reader.refused(node, "expected training_mode false; export the model in evaluation mode, model.eval()")
    return [], node.input[0]


def _cast(reader: _Reader, node: Any, at: str) -> Any:
    from onnx import TensorProto

    if _attributes(node)["to"] not in (TensorProto.FLOAT, TensorProto.DOUBLE):
        raise reader.refused(node, "expected a cast to float32 or float64")
    if (before := reader.graph.producer.get(node.input[0])) is not None and before.op_type == "ArgMax":
        values = _attributes(before)
        if values.get("keepdims", 1) == 1 and reader.graph.is_last(values.get("axis", 0), before.input[0]):
            return [Index(before)], before.input[0]
    return [], node.input[0]


def _reshape(reader: _Reader, node: Any, at: str) -> Any:
    """A reshape that keeps the rows: (batch, ...) to (batch, columns)."""
    graph, source = reader.graph, node.input[0]
    before, after = graph.shapes.get(source, []), graph.shapes.get(at, [])
    one = graph.shapes.get(graph.inputs[0], [None])[0] == 1  # the file is for one row
    if node.op_type == "Reshape":
        target = graph.sizes(node.input[1])
        if target is not None and target.size > 1 and (target[0] in (0, -1) or one or before[:1] == [int(target[0])]):
            row = target[1:].tolist()
            if -1 not in row and 0 not in row:
                return [Rows(node, int(np.prod(row)))], source
            if target[0] != -1 and len(row) == 1:
                return [Rows(node, -1)], source
    elif node.op_type == "Flatten":
        axis = _attributes(node).get("axis", 1)
        if axis == 1 or (before and axis % len(before) == len(before) - 1 and len(before) > 1):
            return [Rows(node, -1)], source
    if one and before and after and None not in before + after and after[-1] == np.prod(after):  # type: ignore[arg-type]
        return [Rows(node, int(np.prod(after)))], source  # type: ignore[arg-type]
    if before and after and before[-1] is not None and before[-1] == after[-1]:
        return [Rows(node, before[-1])], source
    if node.op_type == "Unsqueeze" and len(before) == 1 and len(after) == 2 and after[1] == 1:
        return [Rows(node, 1)], source  # (batch,) to (batch, 1)
    if at in graph.outputs and node.op_type == "Squeeze" and len(before) == 2 and before[-1] == 1:
        return [Rows(node, 1)], source  # (batch, 1) to (batch,)
    raise reader.refused(
        node,
        f"expected an operator that keeps the rows of a batch, such as Flatten(axis=1), got "
        f"shape {before or 'unknown'} to {after or 'unknown'}; export with one dynamic axis, the batch",
    )


def _gemm(reader: _Reader, node: Any, at: str) -> Any:
    """alpha x W' + beta c."""
    values, x = _attributes(node), node.input[0]
    if values.get("transA") or x in reader.graph.constants:
        raise reader.refused(node, "expected x as its first operand, not transposed, and constant weights")
    weight = reader.array(node, node.input[1]).astype(np.float64) * values.get("alpha", 1.0)
    weight = weight.T if values.get("transB") else weight
    bias = None
    if len(node.input) > 2 and node.input[2] and values.get("beta", 1.0):
        bias = reader.row(node, node.input[2], weight.shape[1]) * values.get("beta", 1.0)
        bias = np.broadcast_to(bias, weight.shape[1:])
    return [Dense(node, weight, bias)], x


def _matmul(reader: _Reader, node: Any, at: str) -> Any:
    x, name = node.input
    if x in reader.graph.constants and len(reader.graph.shapes.get(name, ())) == 1:  # W x of one vector
        return [Dense(node, reader.array(node, x).astype(np.float64).T)], name
    if name not in reader.graph.constants:
        raise reader.refused(node, f"expected x, then constant weights, got {x!r} and {name!r}")
    weight = reader.array(node, name)
    if weight.ndim != 2:
        raise reader.refused(node, f"expected a matrix of weights, got shape {weight.shape}")
    return [Dense(node, weight.astype(np.float64))], x


def _arithmetic(reader: _Reader, node: Any, at: str) -> Any:
    """A formula, or a constant term or factor, or branches."""
    graph, op = reader.graph, node.op_type
    computed = graph.computed(node)
    if len(node.input) == len(computed):
        if (formula := reader.formula(node, at)) is not None:
            return formula
        return _join(reader, node, at) if op in JOINS else None
    if len(computed) > 1 or len(node.input) != 2:
        return None
    if (formula := reader.formula(node, at)) is not None:
        return formula
    first = node.input[0] == computed[0]
    c = reader.row(node, node.input[first])
    one, zero = np.ones_like(c), np.zeros_like(c)
    if op in ("Add", "Sum"):
        return [Affine(node, one, c)], computed[0]
    if op == "Sub":
        return [Affine(node, one, -c) if first else Affine(node, -one, c)], computed[0]
    if op == "Mul" or (op == "Div" and first):
        return [Affine(node, c if op == "Mul" else 1 / c, zero)], computed[0]
    return None


def _scaler(node: Any) -> tuple[list[Any], str]:
    """(x - offset) scale."""
    values = _attributes(node)
    scale, offset = (np.array(values[name], np.float64) for name in ("scale", "offset"))
    return [Affine(node, np.ones(1), -offset), Affine(node, scale, np.zeros(1))], node.input[0]


def _transpose(reader: _Reader, node: Any, at: str) -> Any:
    """(W x' + b)', which is x W' + b'."""
    graph = reader.graph
    product, bias = graph.producer.get(node.input[0]), None
    if product is not None and product.op_type == "Add" and len(names := graph.computed(product)) == 1:
        bias = reader.array(product, next(name for name in product.input if name not in names))
        product = graph.producer.get(names[0])
    if product is None or product.op_type not in ("Gemm", "MatMul") or product.input[0] not in graph.constants:
        return None
    values = _attributes(product)
    weight = reader.array(product, product.input[0]).astype(np.float64) * values.get("alpha", 1.0)
    weight = weight if values.get("transA") else weight.T
    if len(product.input) > 2 and product.input[2] and bias is None:
        bias = reader.array(product, product.input[2]) * values.get("beta", 1.0)
    elif len(product.input) > 2:
        return None
    x = product.input[1]
    if not values.get("transB"):
        turned = graph.producer.get(x)
        if turned is None or turned.op_type != "Transpose" or len(graph.shapes.get(turned.input[0], ())) != 2:
            return None
        x = turned.input[0]
    if bias is not None and (bias.ndim != 2 or bias.shape[1] != 1 or bias.shape[0] not in (1, weight.shape[1])):
        return None
    row = None if bias is None else np.broadcast_to(bias[:, 0].astype(np.float64), weight.shape[1:])
    return [Dense(product, weight, row)], x


def _negative(reader: _Reader, node: Any, at: str) -> Any:
    return reader.formula(node, at) or ([Affine(node, -np.ones(1), np.zeros(1))], node.input[0])


def _join(reader: _Reader, node: Any, at: str) -> Any:
    graph = reader.graph
    computed = graph.computed(node)
    if len(computed) < len(node.input) or len(computed) < 2:
        raise reader.refused(node, f"expected values that are all computed from x, got {_names(node.input)}")
    if node.op_type == "Concat" and not graph.is_last(_attributes(node)["axis"], computed[0]):
        raise reader.refused(node, "expected columns side by side, axis -1 or 1")
    origin, _ = next(iter(graph.origin(computed)), (None, None))
    if origin is None:
        raise reader.refused(node, f"expected branches of one value, got {_names(computed)}")
    branches = [reader.chain(origin, name) for name in computed]
    if node.op_type == "Sub":
        branches[1].append(Affine(node, -np.ones(1), np.zeros(1)))
    return [Join(node, JOINS[node.op_type], branches)], origin


def _softmax(reader: _Reader, node: Any, at: str) -> Any:
    if not reader.graph.is_last(axis := _attributes(node).get("axis", -1), node.input[0]):
        raise reader.refused(node, f"expected the axis of the columns, -1 or 1, got {axis}")
    return [Plain(node, getattr(layers, node.op_type)())], node.input[0]


def _batch_norm(reader: _Reader, node: Any, at: str) -> Any:
    values = _attributes(node)
    if values.get("training_mode") or at != node.output[0]:
        raise reader.refused(node, "expected training_mode 0; export the model in evaluation mode, model.eval()")
    weight, bias, mean, var = (reader.array(node, name) for name in node.input[1:])
    eps = values.get("epsilon", 1e-5)
    layer = layers.BatchNorm1d(
        len(mean), _plain(np.float32(eps)) if mean.dtype == np.float32 else eps, dtype=mean.dtype.name
    )
    layer.weight, layer.bias, layer.running_mean, layer.running_var = weight, bias, mean, var
    return [Plain(node, layer)], node.input[0]


def _layer_norm(reader: _Reader, node: Any, at: str) -> Any:
    values = _attributes(node)
    if at != node.output[0] or not reader.graph.is_last(values.get("axis", -1), node.input[0]):
        raise reader.refused(node, "expected the axis of the columns, -1, and no use of its second and third outputs")
    weight, *bias = (reader.row(node, name) for name in node.input[1:] if name)
    eps = values.get("epsilon", 1e-5)
    eps = _plain(np.float32(eps)) if np.dtype(np.float64) not in reader.dtypes else eps
    return [Norm(node, eps, weight, bias[0] if bias else None)], node.input[0]


def _prelu(reader: _Reader, node: Any, at: str) -> Any:
    """With constant slopes; computed ones may be part of a formula."""
    x, name = node.input
    if x in reader.graph.constants or name not in reader.graph.constants:
        return None
    weight = reader.row(node, name)
    layer = layers.PReLU(weight.size, dtype=reader.array(node, name).dtype.name)
    layer.weight = weight
    return [Plain(node, layer)], x


def _clip(reader: _Reader, node: Any, at: str) -> Any:
    """max(x, low) as low + relu(x - low), min(x, high) as high - relu(high - x), if no activation equals it."""
    if (formula := reader.formula(node, at)) is not None:
        return formula
    graph, values = reader.graph, _attributes(node)
    names = dict(zip(("min", "max"), node.input[1:], strict=False))
    low, high = ends = [graph.constants.get(names[k]) if names.get(k) else values.get(k) for k in ("min", "max")]
    if any(names.get(k) and names[k] not in graph.constants for k in names) or any(
        end is not None and np.size(end) != 1 for end in ends
    ):
        return None
    return _between(node, low, high), node.input[0]


def _between(node: Any, low: Any, high: Any) -> list[Any]:
    """x clipped to [low, high]; None: no limit."""
    one, relu = np.ones(1), layers.ReLU
    found: list[Any] = []
    if low is not None:
        low = np.reshape(low, 1).astype(np.float64)
        found += [Affine(node, one, -low), Plain(node, relu()), Affine(node, one, low)]
    if high is not None:
        high = np.reshape(high, 1).astype(np.float64)
        found += [Affine(node, -one, high), Plain(node, relu()), Affine(node, -one, high)]
    return found


def _extreme(reader: _Reader, node: Any, at: str) -> Any:
    """Max and Min, with a constant or of branches."""
    computed = reader.graph.computed(node)
    constants = [reader.graph.constants[name] for name in node.input if name not in computed]
    if len(computed) != 1 or len(constants) != 1 or constants[0].size != 1:
        return _arithmetic(reader, node, at)
    if (formula := reader.formula(node, at)) is not None:
        return formula
    ends = (constants[0], None) if node.op_type == "Max" else (None, constants[0])
    return _between(node, *ends), computed[0]


def _hard_sigmoid(reader: _Reader, node: Any, at: str) -> Any:
    if (formula := reader.formula(node, at)) is not None:
        return formula
    alpha, beta = (np.full(1, _plain(np.float32(_attributes(node).get(k, v)))) for k, v in HARD_SIGMOID)
    return [Affine(node, alpha, beta), *_between(node, 0, 1)], node.input[0]


def _split(reader: _Reader, node: Any, at: str) -> Any:
    graph = reader.graph
    values, source = _attributes(node), node.input[0]
    if not graph.is_last(values.get("axis", 0), source):
        raise reader.refused(node, "expected a split of the columns, axis -1 or 1")
    sizes = values.get("split", graph.constants.get(node.input[1]) if len(node.input) > 1 else None)
    if sizes is None:
        width = graph.shapes.get(source, [None])[-1]
        if width is None:
            raise reader.refused(node, "expected constant sizes of its parts, got none")
        size = -(-width // len(node.output))
        sizes = [min(size, width - i * size) for i in range(len(node.output))]
    i = list(node.output).index(at)
    start = int(sum(sizes[:i]))
    return [Columns(node, slice(start, start + int(sizes[i])))], source


def _gather(reader: _Reader, node: Any, at: str) -> Any:
    graph, index = reader.graph, reader.graph.constants.get(node.input[1])
    if index is not None and index.ndim == 0 and all(r.op_type == "Unsqueeze" for r in graph.readers.get(at, [])):
        index = index.reshape(1)
    if index is None or index.ndim != 1 or not reader.graph.is_last(_attributes(node).get("axis", 0), node.input[0]):
        raise reader.refused(node, "expected constant columns, axis -1 or 1")
    return [Columns(node, index)], node.input[0]


def _slice(reader: _Reader, node: Any, at: str) -> Any:
    constants = [reader.graph.constants.get(name) for name in node.input[1:]]
    if len(constants) < 3 or any(c is None or c.size != 1 for c in constants):
        raise reader.refused(node, "expected constant starts, ends and axes, of the columns alone")
    start, end, axis, step = ([int(c[0]) for c in constants if c is not None] + [1])[:4]
    if not reader.graph.is_last(axis, node.input[0]) or step < 1:
        raise reader.refused(node, f"expected columns, axis -1 or 1, got axis {axis} and step {step}")
    return [Columns(node, slice(start, end, step))], node.input[0]


JOINS: dict[str, type[layers.Branches]] = {
    "Add": layers.Add,
    "Sum": layers.Add,
    "Sub": layers.Add,
    "Mul": layers.Multiply,
    "Max": layers.Maximum,
    "Concat": layers.Concat,
}
READERS: dict[str, Callable[[_Reader, Any, str], Any]] = {
    "Add": _arithmetic,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _join,
    "Div": _arithmetic,
    "Dropout": _dropout,
    "Flatten": _reshape,
    "Gather": _gather,
    "Gemm": _gemm,
    "HardSigmoid": _hard_sigmoid,
    "Identity": _nothing,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Max": _extreme,
    "Min": _extreme,
    "Mul": _arithmetic,
    "Neg": _negative,
    "PRelu": _prelu,
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _reshape,
    "Sub": _arithmetic,
    "Sum": _arithmetic,
    "Transpose": _transpose,
    "Unsqueeze": _reshape,
}

# Building -------------------------------------------------------------------------------------------------------------


class _Builder:
    """Makes layers from pieces, from the input on."""

    def __init__(self, graph: _Graph, dtype: Any) -> None:
        self.graph, self.dtype = graph, np.dtype(dtype).name

    def chain(self, pieces: list[Any], width: int | None) -> list[layers.Layer]:
        """The layers of a chain of pieces, for x of this many columns."""
        folded: list[Any] = []
        for piece in pieces:
            folded.append(piece)
            while len(folded) > 1 and (both := self.together(*folded[-2:])) is not None:
                folded[-2:] = [both]
        found = []
        for i, piece in enumerate(folded):
            if width is None and isinstance(piece, Affine):
                width = next((p.weight.shape[0] for p in folded[i:] if isinstance(p, Dense)), None)
            layer = self.layer(piece, width)
            if layer is None:
                continue
            found.append(layer)
            width = self.width_after(piece, layer, width)
        return found

    def where(self, piece: Any) -> str:
        return self.graph.where(piece.node)

    def together(self, a: Any, b: Any) -> Any:
        """One piece that computes what two pieces compute, or None."""
        if isinstance(a, Rows) and a.width == -1:
            return b
        if isinstance(b, Rows) and isinstance(a, Dense) and b.width in (-1, a.weight.shape[1]):
            return a
        if isinstance(b, Affine):
            if isinstance(a, Index) and not b.scale.any():
                return Fixed(b.node, b.shift)
            if isinstance(a, Fixed):
                self.same(b, a.value.size, b.scale.size)
                return Fixed(b.node, a.value * b.scale + b.shift)
            if isinstance(a, Affine):
                self.same(b, a.scale.size, b.scale.size)
                return Affine(b.node, a.scale * b.scale, a.shift * b.scale + b.shift)
            if isinstance(a, Dense):
                self.same(b, a.weight.shape[1], b.scale.size, exact=True)
                bias = b.shift if a.bias is None else a.bias * b.scale + b.shift
                bias = np.broadcast_to(bias, a.weight.shape[1:])
                return Dense(a.node, a.weight * b.scale, bias if a.bias is not None or bias.any() else None)
            if isinstance(a, Norm) and a.weight is None and b.scale.size > 1:
                return Norm(a.node, a.eps, b.scale, b.shift)
            if isinstance(a, Norm) and a.bias is None and a.weight is not None:
                self.same(b, a.weight.size, b.scale.size, exact=True)
                shift = np.broadcast_to(b.shift, a.weight.shape)
                return Norm(a.node, a.eps, a.weight * b.scale, shift if shift.any() else None)
        if isinstance(a, Affine) and isinstance(b, Dense):
            self.same(a, b.weight.shape[0], a.scale.size, exact=True)
            shift = np.broadcast_to(a.shift, b.weight.shape[:1]) @ b.weight
            bias = shift if b.bias is None else shift + b.bias
            scaled = b.weight * np.broadcast_to(a.scale, b.weight.shape[:1])[:, None]
            return Dense(b.node, scaled, bias if b.bias is not None or shift.any() else None)
        if isinstance(a, Dense) and isinstance(b, Columns):
            return Dense(a.node, a.weight[:, b.index], None if a.bias is None else a.bias[b.index])
        return None

    def same(self, piece: Any, expected: int | None, got: int, exact: bool = False) -> None:
        """ValueError if a constant has another width than x."""
        if expected is not None and got not in (1, expected) and (exact or expected != 1):
            raise ValueError(f"{self.where(piece)}: expected a number for each of {expected} columns, got {got}")

    def layer(self, piece: Any, width: int | None) -> layers.Layer | None:
        """A piece as a layer; None for the identity."""
        if isinstance(piece, Plain):
            return piece.layer
        if isinstance(piece, Dense):
            if width not in (None, piece.weight.shape[0]):
                raise ValueError(
                    f"{self.where(piece)}: expected {width} rows of weights, one for each column, got shape "
                    f"{piece.weight.shape}"
                )
            bias = None if piece.bias is None else piece.bias.astype(self.dtype)
            return layers.Linear.of(piece.weight.astype(self.dtype), bias)
        if isinstance(piece, Join):
            return piece.kind(*(self.branch(pieces, width) for pieces in piece.branches))
        if isinstance(piece, Rows):
            if width is not None and piece.width not in (-1, width):
                raise ValueError(
                    f"{self.where(piece)}: expected rows of {width} columns, got {piece.width}; "
                    f"{self.graph.way_out(piece.node)}"
                )
            return None
        if isinstance(piece, Index):
            raise ValueError(
                f"{self.where(piece)}: no layer of this library computes it; {self.graph.way_out(piece.node)}"
            )
        if isinstance(piece, Fixed):
            return layers.Constant(piece.value.size, piece.value.astype(self.dtype), dtype=self.dtype)
        if isinstance(piece, Norm):
            width = width if piece.weight is None else piece.weight.size
            if width is None:
                raise ValueError(f"{self.where(piece)}: {NO_WIDTH}")
            affine = piece.weight is not None
            norm = layers.LayerNorm(width, piece.eps, affine, not affine or piece.bias is not None, dtype=self.dtype)
            if affine:
                norm.weight = piece.weight
            if piece.bias is not None:
                norm.bias = piece.bias
            return norm
        if isinstance(piece, Columns) and isinstance(piece.index, slice) and width is not None:
            start, stop, step = piece.index.indices(width)
            if step == 1 and start < stop:
                return layers.Columns(start, stop, width)
        size = piece.scale.size if isinstance(piece, Affine) and piece.scale.size > 1 else width
        if isinstance(piece, Affine):
            self.same(piece, width, piece.scale.size, exact=True)
            if (piece.scale == 1).all() and not piece.shift.any():
                return None
        if size is None:
            raise ValueError(f"{self.where(piece)}: {NO_WIDTH}")
        if isinstance(piece, Affine):
            dense = Dense(piece.node, np.eye(size) * piece.scale, np.broadcast_to(piece.shift, (size,)))
        else:
            dense = Dense(piece.node, np.eye(size)[:, piece.index])
        return self.layer(dense, width)

    def branch(self, pieces: list[Any], width: int | None) -> layers.Layer:
        inside = self.chain(pieces, width)
        if len(inside) > 1:
            if width is not None and all(layer._in_features() is None for layer in inside):
                inside.insert(0, layers.Linear.of(np.eye(width, dtype=self.dtype)))  # a chain needs a width
            return Sequential(inside, dtype=self.dtype)
        return inside[0] if inside else layers.Identity()

    def width_after(self, piece: Any, layer: layers.Layer, width: int | None) -> int | None:
        width = layer._in_features() or width
        return width if width is None else layer.output_shape((width,))[-1]
