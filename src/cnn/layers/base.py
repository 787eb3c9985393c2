"""Base classes of layers: `Layer`, `Parametric` for layers with arrays, and `Chain` for layers made of layers.

In a `Sequential` the arrays of a layer are views into the model's parameter block.

The class of a layer defines everything that the rest of the library uses: the op that it adds to a model, shapes,
costs, and how it is written in PyTorch, ONNX and C. The exporters call these methods. A layer class of this library
must define all of them, see `Configurable`.
"""

from __future__ import annotations

import math
import os
from typing import Any, ClassVar

import numpy as np

from .. import functional
from .._checks import flag, in_range, integer, transposed
from .._configurable import Configurable, arguments_of
from .._dispatch import kernels
from .._threads import get_num_threads
from .._types import Array, ArrayLike, DTypeLike, Self
from .graph import Graph, Place, chain, part, program, tell_modes


class Layer(Configurable, kind="layer"):
    """Base class of all layers: configuration, training mode, `forward` and `backward`.

    A standalone layer compiles a program of its own, for the width and dtype of its input.

    Attributes
    ----------
    op : str or None
        The kernel op that it adds to a model; None if it adds none.
    function : str or None
        An activation's name in `cnn.functional`.
    outputs : {"probabilities", "log_probabilities"} or None
        What its outputs are for any input; None if that depends on the input.
    only_training : bool
        Whether it does nothing in evaluation mode, so that exports omit it.
    children : tuple of Layer
        The nested layers, in the order of their names.
    torch_name : str or None
        The class in torch.nn; None if there is none.
    """

    facts: ClassVar[tuple[str, ...]] = (
        "op",
        "torch_name",
        "_to_torch",
        "_from_torch",
        "_options",
        "_stored_numbers",
        "_to_onnx",
        "_to_c",
    )
    op: ClassVar[Any]
    function: Any = None
    outputs: str | None = None
    only_training: ClassVar[bool] = False
    children: tuple[Layer, ...] = ()
    torch_name: ClassVar[Any]
    parameter_names: ClassVar[tuple[str, ...]] = ()
    statistic_names: ClassVar[tuple[str, ...]] = ()

    _fixed: ClassVar[tuple[str, ...]] = ()  # what only the constructor may set, since models are compiled from it
    _alone: Any = None  # (width and dtype, program) of the standalone layer
    _op: Any = None  # in a model, its program and the number of the op there
    _last: Any = None  # what `_backward` needs of the last `forward`; None before it
    _model: Any = None  # weak reference to the Sequential that holds it
    _training = True
    _trainable: dict[str, bool] = {}  # noqa: RUF012  by parameter, True by default; never changed in place

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._fixed and name in self.__dict__:
            raise AttributeError(f"{name}: can only be set in the constructor: create a new layer")
        super().__setattr__(name, value)

    # mode -------------------------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether the layer is in training mode: dropout drops, batch normalisation uses the batch's statistics.

        A model sets the mode of all its layers. You may set another mode for single layers, in a model or standalone.
        Assigning also sets the mode of nested layers.
        """
        return self._training

    @training.setter
    def training(self, mode: Any) -> None:
        self._training = bool(mode)
        for child in self.children:
            child.training = mode
        self._tell()

    def train(self, mode: bool = True) -> Self:
        """Set training mode, for nested layers too.

        Parameters
        ----------
        mode : bool
            False sets evaluation mode.

        Returns
        -------
        Layer
            The layer itself.
        """
        self.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode: ``train(False)``.

        Returns
        -------
        Layer
            The layer itself.
        """
        return self.train(False)

    @property
    def trainable(self) -> bool | dict[str, bool]:
        """Whether the optimiser updates the parameters; a dict by parameter name if it updates only some of them.

        A layer of layers has True if any of them is trained. Assign True or False (also applied to nested layers), or a
        dict such as ``{"weight": False}``. Frozen parameters have zero gradients, and the backward pass stops at the
        first trainable layer. A fully frozen `BatchNorm1d` also freezes its running statistics, and uses them in
        training. Files do not store this setting.
        """
        inside = [child.trainable for child in self.children if child.n_parameters or child.children]
        values = [self._trainable.get(name, True) for name in self.parameter_names] + inside
        if all(value is True for value in values):
            return True
        if all(value is False for value in values):
            return False
        return {name: self._trainable.get(name, True) for name in self.parameter_names} if not inside else True

    @trainable.setter
    def trainable(self, value: Any) -> None:
        if isinstance(value, dict):
            if unknown := [name for name in value if name not in self.parameter_names]:
                known = ", ".join(self.parameter_names) or "no parameters"
                raise ValueError(f"trainable: unknown {', '.join(map(repr, unknown))}: {self!r} has {known}")
            checked = {name: flag(f"trainable[{name!r}]", v) for name, v in value.items()}
            self._trainable = {**self._trainable, **checked}
        else:
            self._trainable = dict.fromkeys(self.parameter_names, flag("trainable", value))
            for child in self.children:
                child.trainable = value
        self._tell()

    @property
    def acts(self) -> bool:
        """Whether the layer is in training mode and not frozen."""
        trained = [self._trainable.get(name, True) for name in self.parameter_names]
        return self._training and (any(trained) or not trained)

    def _tell(self) -> None:
        """Pass the mode and the trainable parameters on to the model's program."""
        if self._op is not None:
            self._tell_program(*self._op)

    def _tell_program(self, program: Any, op: int) -> None:
        """The same for an op of any program, such as that of a part of the model."""
        program.set_mode(op, self.acts)
        if self.parameter_names:
            program.set_trainable(op, *(self._trainable.get(name, True) for name in self.parameter_names))

    def _placed(self, program, op: int) -> None:
        """Record that the layer computes this op of a program."""
        self._op = program, op
        self._tell()

    def _owner(self):
        """The model that holds the layer, or None."""
        return self._model() if self._model is not None else None

    # copies -----------------------------------------------------------------------------------------------------------

    _of_model = ("_alone", "_last", "_model", "_op")  # attributes that are not copied

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: the layer outside any model, with copies of its arrays."""
        return {name: value for name, value in self.__dict__.items() if name not in self._of_model}

    def _twin(self, made: dict[int, Layer]) -> Any:
        """A layer with the same settings, without arrays. It is added to `made` by this id, as are nested layers."""
        twin = made[id(self)] = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        for name in self._of_model:
            twin.__dict__.pop(name, None)
        return twin

    # facts ------------------------------------------------------------------------------------------------------------

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the layer, without those of nested layers."""
        return 0

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of an output row, for input rows of this shape; by default the same.

        Parameters
        ----------
        shape : tuple of int
            Without the batch: (in_features,).

        Returns
        -------
        tuple of int
        """
        return shape

    def flops(self, shape: tuple[int, ...]) -> int:
        """Floating-point operations of the matrix products in the forward pass of one row, without nested layers.

        Parameters
        ----------
        shape : tuple of int
            Shape of an input row.

        Returns
        -------
        int
        """
        return 0

    @classmethod
    def stored_numbers(cls, config: dict[str, Any]) -> tuple[int, int]:
        """The fewest and the most numbers that a checkpoint may hold for a layer with this configuration.

        For untrusted files: no layer is created. Nested layers have separate tables and are not counted.

        Parameters
        ----------
        config : dict
            The layer's table, with its name if this is called on `Layer`.

        Returns
        -------
        least, most : int
            Both 0 for layers without numbers, and for unknown names.

        Raises
        ------
        TypeError, ValueError
            If a required width is missing, not an int, or below 1.
        """
        name = config.get("name")
        named = cls.known.get(name) if isinstance(name, str) else None
        return (named or cls)._stored_numbers(config)

    @classmethod
    def _stored_numbers(cls, config: dict[str, Any]) -> tuple[int, int]:
        return 0, 0

    # in other formats -------------------------------------------------------------------------------------------------

    def _to_torch(self, nn: Any, dtype: Any) -> Any:
        """The equivalent module of torch.nn. The exporter fills its tensors with `_torch_arrays`."""
        return getattr(nn, self.torch_name)(**self.get_config())

    def _torch_arrays(self) -> dict[str, Any]:
        """Arrays by the names of the module's tensors, in PyTorch's order of axes."""
        return {}

    @classmethod
    def _from_torch(cls, module: Any, dtype: str) -> Layer:
        """The layer equivalent to a module of torch.nn; TypeError if the module has an unsupported option."""
        return cls(**{name: getattr(module, name) for name in arguments_of(cls)})

    # `_to_onnx(self, graph, *x)` returns the layer's outputs for its inputs x, all `Value`s of export/onnx.py.
    # `_to_c(self, code)` writes statements with the methods of `Code` in export/c_code.py. There are no defaults.
    _to_onnx: Any
    _to_c: Any

    # Derivatives in C, one method per pass. Arguments are names of arrays; x is `code.sources` and y `code.target`.
    # Without the first two a model is exported without derivatives; without the third only with first derivatives.
    #   _c_tangent(self, code, dx, dy)     assigns dy, the tangent of y; dx are the tangents of x
    #   _c_backward(self, code, g)         sends g J, the adjoints of x; g is the adjoint of y
    #   _c_second(self, code, dx, g)       sends the derivative of g J along dx, with g constant
    #   _c_gradient(self, code, g)         adds to the gradients of the parameters
    _c_tangent: Any = None
    _c_backward: Any = None
    _c_second: Any = None

    def _c_gradient(self, code: Any, g: str) -> None:
        """Nothing: there are no parameters."""

    def _c_slopes(self, code: Any, order: int) -> None:
        """Written after `_to_c`: intermediate results that the derivatives up to this order share."""

    def _c_order(self) -> int:
        """The highest order of derivatives that the layer can write in C."""
        return 0 if None in (self._c_tangent, self._c_backward) else 1 if self._c_second is None else 2

    def _c_no_second(self, code: Any, dx: list[str], g: str) -> None:
        """The `_c_second` of layers whose J does not depend on x."""

    # in a model -------------------------------------------------------------------------------------------------------

    def _in_features(self) -> int | None:
        """Number of inputs that the layer expects; None for any number."""
        return None

    def _changes_width(self) -> bool:
        """Whether the numbers of inputs and outputs may differ."""
        return False

    def _may_nest(self, where: str) -> None:
        """ValueError if the layer cannot be nested in a branch or a chain."""

    def _options(self) -> dict[str, Any]:
        """Op entries specific to this layer, under the kernels' names."""
        return {}

    def _compile(self, graph: Graph, source: int, place: Place) -> int:
        """Add the layer's op to a graph. It reads the buffer `source`; the result is the buffer that it writes."""
        if getattr(self, "op", None) is None:
            raise NotImplementedError(f"{place}: cannot be part of a model")
        features = self._in_features()
        if features is not None:
            graph.expect(place, source, features)
        return graph.add(place, self.op, [source], self.output_shape(graph.shapes[source]), **self._options())

    # alone ------------------------------------------------------------------------------------------------------------

    def _program_for(self, width: int, dtype):
        key = (width, np.dtype(dtype))
        if self._alone is None or self._alone[0] != key:
            graph = Graph([(width,)])
            chain(graph, [self], 0)
            seed = int.from_bytes(os.urandom(8), "little") >> 1
            self._alone = key, program(kernels(dtype), graph, None, seed)
        return self._alone[1]

    def _program_inside(self, width: int):
        """The program of a layer whose parameters belong to nested layers. In a model it uses the model's memory;
        standalone it allocates memory and moves the parameters there."""
        graph = Graph([(width,)])
        chain(graph, [self], 0)
        inside = [place.layer for _, place in graph.parameters()]
        home = inside[0]._op
        if self._alone is None or self._alone[0] != width or home is None or self._alone[2] is not home[0]:
            k = kernels(inside[0].dtype)
            made = part(k, graph)
            if made is None:
                bits = np.random.PCG64()
                made = program(k, graph, None, int.from_bytes(os.urandom(8), "little") >> 1)
                for op, place in graph.parameters():
                    place.layer._join(made, op, k.DTYPE, bits)
            self._alone = width, made, inside[0]._op[0]
        tell_modes(graph, self._alone[1])
        return self._alone[1]

    def forward(self, x: ArrayLike) -> Array:
        """Compute the layer's outputs, and keep what `backward` needs.

        Parameters
        ----------
        x : array_like of shape (batch, in_features)
            More leading axes are allowed; the result has the same. Activations accept any shape.

        Returns
        -------
        ndarray of shape (batch, out_features)
            Of the dtype of the layer's parameters. Without parameters: float32 for float32 and float16, else float64.

        Raises
        ------
        ValueError, TypeError
            If x has the wrong shape, does not consist of real numbers, or has one row where batch statistics are
            needed.
        """
        return self._forward(x)

    def backward(self, grad_output: ArrayLike) -> Array:
        """Backpropagate through the last `forward`, and accumulate the gradients of the parameters.

        Parameters
        ----------
        grad_output : array_like of shape (batch, out_features)
            Gradient of the loss with respect to the last `forward`'s result.

        Returns
        -------
        ndarray of shape (batch, in_features)
            The gradient with respect to x.

        Raises
        ------
        RuntimeError
            If there was no `forward`.
        ValueError, TypeError
            If grad_output has the wrong shape or dtype.
        """
        if self._last is None:
            raise RuntimeError("backward needs a forward pass, but there was none: call forward first")
        return self._backward(grad_output)

    def __call__(self, x: Any) -> Any:
        return self.forward(x)

    def _forward(self, x):
        """Implementation of `forward`; sets `_last`."""
        x = np.asarray(x)
        if not x.ndim:
            raise ValueError("x: expected shape (batch, in_features), got ()")
        if any(child.parameter_names or child.children for child in self.children):
            self._last = self._program_inside(x.shape[-1])
        else:
            self._last = self._program_for(x.shape[-1], functional.real_dtype(x))
            self._last.set_mode(0, self.acts)
        return self._last.forward(x, None, get_num_threads())

    def _backward(self, grad_output):
        """Implementation of `backward`, after a `forward`."""
        return self._last.backward(grad_output, get_num_threads())


class Chain(Layer, abstract=True):
    """Layers in sequence, in the attribute `layers`: the base of `Sequential`."""

    facts: ClassVar[tuple[str, ...]] = Layer.facts[:-2]  # the nested layers have the others
    op = None
    torch_name = "Sequential"
    layers: list[Layer]

    @property
    def children(self) -> tuple[Layer, ...]:  # type: ignore[override]
        """The layers."""
        return tuple(self.layers)

    @property
    def outputs(self) -> str | None:  # type: ignore[override]
        """The kind of outputs of the last layer."""
        return self.layers[-1].outputs

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for layer in self.layers:
            shape = layer.output_shape(shape)
        return shape

    def _compile(self, graph, source, place):
        return chain(graph, self.layers, source, f"{place.key}.", f"{place.label}.")

    @classmethod
    def _from_arguments(cls, arguments):
        return cls.from_config(arguments)


class Parametric(Layer, abstract=True):
    """A layer with arrays: parameters, gradients, running statistics. In a model they are views into its memory.

    The arrays are created on first access. If the layer joins a model before that, the model's seed initialises them;
    otherwise the layer keeps its values.

    Parameters
    ----------
    dtype : {"float32", "float64"}
        Of the arrays of a standalone layer.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    dtype: np.dtype
    seed: int | None = None
    has_bias: bool

    def __init__(self, dtype: DTypeLike = "float32") -> None:
        self.dtype = kernels(dtype).DTYPE
        self._arrays: dict[str, np.ndarray | None] = {}

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters that the layer has.

        Returns
        -------
        dict of str to tuple of int
        """
        raise NotImplementedError

    @property
    def n_parameters(self) -> int:
        return sum(map(math.prod, self.parameter_shapes().values()))

    def _argument(self, name):
        return self.has_bias if name == "bias" else super()._argument(name)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, without dtype and seed, which only standalone layers use.

        Returns
        -------
        dict
            By name, JSON-serialisable.
        """
        return {name: value for name, value in super().get_config().items() if name not in ("dtype", "seed")}

    def _to_torch(self, nn, dtype):
        return getattr(nn, self.torch_name)(**self.get_config(), dtype=dtype)

    def _torch_arrays(self):
        return {name: getattr(self, name) for name in (*self.parameter_names, *self.statistic_names)}

    def _copy_from_torch(self, module: Any) -> None:
        """Set the arrays from a module's tensors of the same names and order of axes."""
        for name in (*self.parameter_names, *self.statistic_names):
            tensor = getattr(module, name)
            if tensor is not None:
                setattr(self, name, tensor.detach().cpu().numpy())

    def _draw(self, bits: np.random.PCG64) -> dict[str, np.ndarray | None]:
        """Initial parameters and statistics."""
        raise NotImplementedError

    def _own(self) -> None:
        """Create the arrays of a standalone layer."""
        arrays = self._draw(np.random.PCG64(self.seed))
        grads = {name: arrays[name] for name in self.parameter_names}
        self._arrays = arrays | {f"grad_{k}": None if a is None else np.zeros_like(a) for k, a in grads.items()}

    def __getstate__(self) -> dict[str, Any]:
        arrays = {name: None if a is None else np.array(a, order="C") for name, a in self._arrays.items()}
        return super().__getstate__() | {"_arrays": arrays}

    def _twin(self, made):
        twin = super()._twin(made)
        twin.__dict__["_arrays"] = {}
        return twin

    def _view(self, program, op: int) -> None:
        """Replace the arrays by views into the memory of a program, for this op."""
        names = [*self.parameter_names, *(f"grad_{name}" for name in self.parameter_names), *self.statistic_names]
        self._arrays = {name: program.view(op, name) for name in names}

    def _made(self) -> dict[str, np.ndarray | None]:
        """The arrays by name, for internal use: callers must not write into them."""
        if not self._arrays:
            self._own()
        return self._arrays

    def _array(self, name: str) -> np.ndarray | None:
        self._made()
        if self._op is not None:
            program, op = self._op
            program.hand_out(op)  # the caller may write into the array
        return self._arrays[name]

    def _assign(self, name: str, value) -> None:
        array = self._array(name)
        if array is None:
            raise ValueError(f"{self!r} has no {name}")
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got dtype {value.dtype}")
        if value.shape != array.shape:
            raise ValueError(
                f"{name}: expected shape {array.shape}, got {value.shape}{transposed(array.shape, value.shape)}"
            )
        in_range(name, value, array.dtype)
        array[...] = value
        self._changed()

    def _changed(self) -> None:
        if self._op is not None:
            program, op = self._op
            program.hand_out(op)
            program.forget("the parameters have been changed since")

    def _join(self, program, op: int, dtype, bits: np.random.PCG64) -> None:
        """Move into a program: the arrays, or new ones from `bits`, become views of its memory."""
        self.dtype = dtype
        arrays = self._arrays or self._draw(bits)
        self._view(program, op)
        self._placed(program, op)
        for name in (*self.parameter_names, *self.statistic_names):
            view = self._arrays[name]
            if view is not None:
                view[...] = arrays[name]

    @property
    def weight(self) -> Any:
        """The weight, or None. Assignment copies the values into the array."""
        return self._array("weight")

    @weight.setter
    def weight(self, value: Any) -> None:
        self._assign("weight", value)

    @property
    def bias(self) -> Any:
        """The bias, or None. Assignment copies the values into the array."""
        return self._array("bias")

    @bias.setter
    def bias(self, value: Any) -> None:
        self._assign("bias", value)

    @property
    def grad_weight(self) -> Any:
        """The gradient of the weight, with its shape, or None."""
        return self._array("grad_weight")

    @property
    def grad_bias(self) -> Any:
        """The gradient of the bias, with its shape, or None."""
        return self._array("grad_bias")

    def _forward(self, x):
        width: Any = self._in_features() or np.shape(x)[-1]
        alone = self._last = self._program_for(width, self.dtype)
        for name in (*self.parameter_names, *self.statistic_names):
            if self._array(name) is not None:
                alone.view(0, name)[...] = self._array(name)
        y = alone.forward(x, None, get_num_threads(), self.acts)
        for name in self.statistic_names:
            statistic: Any = self._array(name)
            statistic[...] = alone.view(0, name)
        return y

    def _backward(self, grad_output):
        self._last.zero_grads()
        grad_x = super()._backward(grad_output)
        for name in self.parameter_names:
            gradient = self._array(f"grad_{name}")
            if gradient is not None:
                gradient += self._last.view(0, f"grad_{name}")
        return grad_x

    def zero_grads(self) -> None:
        """Set the gradients to zero."""
        for name in self.parameter_names:
            gradient = self._array(f"grad_{name}")
            if gradient is not None:
                gradient[...] = 0

    def update_parameters(self, lr: float) -> None:
        """Take a step of gradient descent: weight -= lr grad_weight, bias -= lr grad_bias.

        Parameters
        ----------
        lr : float
            Learning rate.
        """
        for name in self.parameter_names:
            array, gradient = self._array(name), self._array(f"grad_{name}")
            if array is not None and gradient is not None:
                array -= lr * gradient
        self._changed()


def width_of(config: dict[str, Any], name: str) -> int:
    """A width from an untrusted configuration. TypeError or ValueError unless it is an int of at least 1."""
    return integer(name, config.get(name), 1)
