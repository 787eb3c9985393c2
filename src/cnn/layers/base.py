"""What every layer has: `Layer`, and `Parametric` for layers with arrays of their own.

A layer in a `Sequential` keeps no memory of its own: its arrays become views into the model's parameter block.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, ClassVar

import numpy as np

from .. import functional
from .._checks import arguments
from .._dispatch import kernels
from .._threads import get_num_threads
from .graph import Graph, Place, chain, program


class Layer:
    """What every layer has: a place in a model, a configuration, and `forward` and `backward` of its own.

    A layer that is used alone compiles itself as a model would, for the width and dtype that it is given.
    """

    _fixed: ClassVar[tuple[str, ...]] = ()  # what the constructor sets for good, since models are compiled of it
    _alone: Any = None  # (width and dtype, program) of the layer used alone
    training = True  # used alone: whether dropout drops and batch normalisation takes the statistics of the batch

    def __setattr__(self, name, value):
        if name in self._fixed and name in self.__dict__:
            raise AttributeError(f"{name}: can only be set when the layer is made")
        super().__setattr__(name, value)

    # in a model -------------------------------------------------------------------------------------------------------

    def _in_features(self) -> int | None:
        """How many inputs the layer takes; None if any number."""
        return None

    def _changes_width(self) -> bool:
        """Whether the layer's outputs are not as many as its inputs."""
        return False

    def _may_nest(self, where: str) -> None:
        """ValueError if the layer cannot stand in a branch or in a chain in a model."""

    def _compile(self, graph: Graph, source: int, place: Place) -> int:
        """Add the layer's ops to a graph; the buffer that the last one writes."""
        raise NotImplementedError(f"{place}: cannot be part of a model")

    # alone ------------------------------------------------------------------------------------------------------------

    def _program_for(self, width: int, dtype):
        key = (width, np.dtype(dtype))
        if self._alone is None or self._alone[0] != key:
            graph = Graph([width])
            chain(graph, [self], 0)
            seed = int.from_bytes(os.urandom(8), "little") >> 1
            self._alone = key, program(kernels(dtype), graph, None, seed)
        return self._alone[1]

    def forward(self, x):
        """The layer's outputs for x of shape (batch, in_features); what `backward` needs is kept.

        float32 in, float32 out; everything else is computed in float64. ValueError or TypeError if x does not fit.
        """
        x = np.asarray(x)
        if x.ndim != 2:
            raise ValueError(f"x: expected shape (batch, in_features), got {x.shape}")
        self._last = self._program_for(x.shape[1], functional.real_dtype(x))
        return self._last.forward(x, None, get_num_threads(), self.training)

    def backward(self, grad_output):
        """The gradient of the last `forward`'s x; those of parameters are added to. RuntimeError if there was none."""
        if getattr(self, "_last", None) is None:
            raise RuntimeError("backward needs a forward pass to go back over, but there was none")
        return self._last.backward(grad_output, get_num_threads())

    def __call__(self, x):
        return self.forward(x)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        return {}

    def __repr__(self) -> str:
        parameters = arguments(type(self))
        shown = {k: v for k, v in self.get_config().items() if k not in parameters or v != parameters[k].default}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


class Parametric(Layer):
    """A layer with arrays: parameters, their gradients, running statistics. In a model they are views of its memory.

    They are made when they are first asked for. A layer that is handed to a model before that gets them from the
    model's seed; afterwards it brings its own.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    statistic_names: ClassVar[tuple[str, ...]] = ()
    dtype: np.dtype
    seed: int | None = None

    def __init__(self, dtype="float32"):
        self.dtype = kernels(dtype).DTYPE
        self._arrays: dict[str, np.ndarray | None] = {}
        self._model: Any = None  # weak reference to the Sequential that holds it

    def _draw(self, bits: np.random.PCG64) -> dict[str, np.ndarray | None]:
        """Initial parameters and statistics."""
        raise NotImplementedError

    def _own(self) -> None:
        """Make the arrays of a layer that is used alone."""
        arrays = self._draw(np.random.PCG64(self.seed))
        grads = {name: arrays[name] for name in self.parameter_names}
        self._arrays = arrays | {f"grad_{k}": None if a is None else np.zeros_like(a) for k, a in grads.items()}

    def _owner(self):
        """The model that holds the layer, or None."""
        return self._model() if self._model is not None else None

    def _array(self, name: str) -> np.ndarray | None:
        if not self._arrays:
            self._own()
        model = self._owner()
        if model is not None and model._compiled is not None:
            model._compiled.clear_padding()  # what is now written there shall not stand beside NaN
        return self._arrays[name]

    def _assign(self, name: str, value) -> None:
        array = self._array(name)
        if array is None:
            raise ValueError(f"{self!r} has no {name}")
        value = np.asarray(value)
        if value.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got dtype {value.dtype}")
        if value.shape != array.shape:
            raise ValueError(f"{name}: expected shape {array.shape}, got {value.shape}")
        array[...] = value
        self._changed()

    def _changed(self) -> None:
        model = self._owner()
        if model is not None:
            model._program.clear_padding()
            model._program.forget("the parameters have been changed since")

    def _join(self, model, program, op: int, dtype, bits: np.random.PCG64) -> None:
        """Move into a program: the arrays, or new ones from `bits`, become views of its memory."""
        self.dtype = dtype
        arrays = self._arrays or self._draw(bits)
        names = [*self.parameter_names, *(f"grad_{name}" for name in self.parameter_names), *self.statistic_names]
        self._arrays = {name: program.view(op, name) for name in names}
        self._model = None if model is None else weakref.ref(model)
        for name in (*self.parameter_names, *self.statistic_names):
            view = self._arrays[name]
            if view is not None:
                view[...] = arrays[name]

    @property
    def weight(self):
        return self._array("weight")

    @weight.setter
    def weight(self, value):
        self._assign("weight", value)

    @property
    def bias(self):
        return self._array("bias")

    @bias.setter
    def bias(self, value):
        self._assign("bias", value)

    @property
    def grad_weight(self):
        return self._array("grad_weight")

    @property
    def grad_bias(self):
        return self._array("grad_bias")

    def forward(self, x):
        """The layer's outputs for x of shape (batch, in_features), in the layer's dtype; keeps what `backward` needs.

        ValueError or TypeError if x does not fit.
        """
        width: Any = self._in_features()
        alone = self._last = self._program_for(width, self.dtype)
        for name in (*self.parameter_names, *self.statistic_names):
            if self._array(name) is not None:
                alone.view(0, name)[...] = self._array(name)
        y = alone.forward(x, None, get_num_threads(), self.training)
        for name in self.statistic_names:
            statistic: Any = self._array(name)
            statistic[...] = alone.view(0, name)
        return y

    def backward(self, grad_output):
        """The gradient of the last `forward`'s x; adds those of weight and bias to `grad_weight` and `grad_bias`.

        RuntimeError if there was no `forward`.
        """
        if getattr(self, "_last", None) is not None:
            self._last.zero_grads()
        grad_x = super().backward(grad_output)
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
        """One step of gradient descent: weight -= lr grad_weight, bias -= lr grad_bias."""
        for name in self.parameter_names:
            array, gradient = self._array(name), self._array(f"grad_{name}")
            if array is not None and gradient is not None:
                array -= lr * gradient
        self._changed()
