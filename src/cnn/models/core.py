"""`Core`: the internals of a model, and the interface that the library's other modules use.

A `Sequential` is the public object; its `_core` holds the graph of its layers, the native program compiled from it, and
the state of its training. Fitting, derivative products, checkpoints, exporters and tables take what they need from
here, and from nothing else that is private to a model:

    graph, parametric       ops over buffers, and those that have parameters (layers/graph.py)
    program                 the native program; with a loss in Python behind `PythonLoss`, which has the same calls
    derivatives             the native derivative products
    optimizer, state        what trains the program, and how far training is (training/state.py)
    named, unpack           the parameters' arrays by their names in `state_dict`
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import weakref
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import number
from .._dispatch import kernels
from ..layers.graph import Graph, Place, chain, in_features, part, program, tell_modes
from ..losses import SobolevLoss
from ..optim.schedules import ReduceLROnPlateau
from ..training.objective import Objective
from ..training.state import TrainingState, stateful
from .python_loss import PythonLoss
from .sobolev import SobolevProgram

PARAMETERS = ("weight", "bias")
RATES_AHEAD = 64


class Core:
    """The compiled model.

    Parameters
    ----------
    layers : list of Layer
    dtype : {"float32", "float64"}
    seed : int or None
        None: the initial parameters and the orders of the rows are different at every run.

    Attributes
    ----------
    kernels : module
        The compiled kernels of `dtype`.
    dtype : numpy.dtype
    graph : Graph
    parametric : list of (int, Place)
        The ops with parameters and the layers that hold them, in the order of `state_dict`.
    loss : Loss or None
    program
        The native `Program`, or a `PythonLoss` around it.
    nested : bool
        Whether it is a part of another model, whose memory it works on.
    optimizer : Optimizer or None
    state : TrainingState
    fitting : bool
        Whether `fit` is running.

    Raises
    ------
    ValueError
        If widths do not follow from one another, or a layer is used twice.
    """

    def __init__(self, layers: list[Any], dtype: Any, seed: int | None) -> None:
        self.kernels = kernels(dtype)
        self.dtype: np.dtype = self.kernels.DTYPE
        self.seed = seed
        self.state = TrainingState(int.from_bytes(os.urandom(8), "little") >> 1 if seed is None else seed)
        self.graph: Any = _graph_of(layers)
        self.parametric: list[tuple[int, Place]] = self.graph.parameters()
        self.program: Any = None
        self.optimizer: Any = None
        self._minimizer: Any = None
        self.ranks: Any = None  # that train the model together: see training/distributed
        self.held: tuple[Any, ...] | None = None  # what `Objective.hold` notes
        self._rates: Any = (0, (), None)  # of some steps or epochs ahead: the first, rates, and what they are made of
        self.fitting = False
        self.nested = False
        self._derivatives: Any = None
        self._first: dict[int, Any] = {}

    def compile(self, model: Any, loss: Any) -> None:
        """Make the program, and move the arrays of the model's layers into it."""
        self.loss = loss
        spec = None if loss is None else loss.spec()
        native = program(self.kernels, self.graph, spec, self.state.random_seed)
        for place in self.graph.seen.values():
            if hasattr(place.layer, "_core"):
                place.layer._core.give_up(self.kernels)
        bits = np.random.PCG64(self.state.random_seed)
        self._drawn = [place.layer for _, place in self.parametric if not place.layer._arrays]
        for op, place in self.parametric:
            place.layer._join(native, op, self.dtype, bits)
        for op, places in enumerate(self.graph.places):
            places[0].layer._placed(native, op)
        self._belongs_to(model)
        self._initial = zlib.crc32(native.parameters)
        self.program = self._with(native, loss)
        self.nested = False

    def give_up(self, kernels: Any) -> None:
        """Become part of another model, of the dtype of these kernels: it has the parameters from now on.

        Parameters that this model has drawn without a seed of its own, and that nobody has changed, are drawn anew.
        """
        if not self.nested and self.seed is None and zlib.crc32(self.program.parameters) == self._initial:
            for layer in self._drawn:
                layer._arrays = {}
        self.kernels, self.dtype, self.nested = kernels, kernels.DTYPE, True
        self.program, self._derivatives, self._first = _Part(self), None, {}
        self._minimizer = self.held = self.ranks = None

    def clone(self, model: Any, made: dict[int, Any]) -> None:
        """Give a model of copies of this one's layers an equal core, in separate memory.

        made: the copies by the ids of the layers. All that training depends on is copied, except the gradients.
        """
        core = model._core = object.__new__(Core)
        core.__dict__.update(self.__dict__)
        core.graph = self.graph.twin(made)
        core.parametric = core.graph.parameters()
        core.optimizer = copy.copy(self.optimizer)
        core.state = dataclasses.replace(
            self.state,
            history=self.state.history and self.state.history.copy(),
            callbacks=copy.deepcopy(self.state.callbacks) if self.state.callbacks else {},
            running=[],
        )
        table = None if core.optimizer is None else core.optimizer.table
        native = getattr(self.program, "native", self.program).clone(table)
        core.program = self._with(native, model._loss)
        core._rates, core._derivatives, core._first, core._drawn = (0, (), None), None, {}, []
        core.fitting = False
        core._minimizer = core.held = core.ranks = None
        for op, place in core.parametric:
            place.layer._view(native, op)
        for op, places in enumerate(core.graph.places):
            places[0].layer.__dict__["_op"] = native, op
        core._belongs_to(model)

    def draw_as(self, other: Core) -> None:
        """Let this copy of another model's core draw anew, in `give_up`, the parameters that the other one would."""
        drawn = {id(layer) for layer in other._drawn}
        pairs = zip(self.parametric, other.parametric, strict=True)
        self._drawn = [mine.layer for (_, mine), (_, theirs) in pairs if id(theirs.layer) in drawn]

    def _belongs_to(self, model: Any) -> None:
        """Tell the layers which model they belong to."""
        reference = weakref.ref(model)
        for place in self.graph.seen.values():
            place.layer.__dict__["_model"] = reference

    def _with(self, native: Any, loss: Any) -> Any:
        """The program, with the loss in Python if it is one of the user's own, or of derivatives by the inputs."""
        if isinstance(loss, SobolevLoss):
            return SobolevProgram(native, loss, self.kernels.Derivatives(native))
        return native if loss is None or loss.spec() is not None else PythonLoss(native, loss)

    def set_loss(self, loss: Any) -> None:
        """Train by another loss, or by none."""
        if self.nested and loss is not None:
            raise RuntimeError("a part of a model has no loss of its own: train the model that it is a part of")
        if self.fitting:
            raise RuntimeError("loss: cannot be set while fit is running")
        if not self.nested:
            native = getattr(self.program, "native", self.program)
            native.set_loss(None if loss is None else loss.spec())
            self.program = self._with(native, loss)
            self.ranks = None
        self.loss, self._minimizer = loss, None

    @classmethod
    def part(cls, model: Any, layers: list[Any]) -> Core:
        """The core of some of a model's layers, on the model's own memory."""
        core = object.__new__(cls)
        core.kernels, core.dtype, core.seed = model._core.kernels, model._core.dtype, None
        core.state = TrainingState(model._core.state.random_seed)
        core.state.training = model._core.state.training
        core.graph = _graph_of(layers)
        core.parametric = core.graph.parameters()
        core.optimizer, core.fitting, core.nested, core._derivatives, core._first = None, False, True, None, {}
        core.loss = None
        core.ranks = None
        core.program = _Part(core)
        return core

    @property
    def derivatives(self) -> Any:
        """The native derivative products; made when first needed."""
        if self._derivatives is None:
            native = getattr(self.program, "native", None)  # which makes a part's program, too
            self._derivatives = self.kernels.Derivatives(self.program if native is None else native)
        return self._derivatives

    def first(self, layers: list[Any]) -> Any:
        """The program of the first so many layers, on this one's memory; made when first needed."""
        if len(layers) not in self._first:
            self._first[len(layers)] = part(self.kernels, _graph_of(layers, self.in_features))
        return self._first[len(layers)]

    def tell_modes(self) -> None:
        """Before a pass in training mode: a part asks its layers for their modes."""
        if self.nested:
            tell_modes(self.graph, self.program)

    @property
    def repeatable(self) -> bool:
        """Whether a forward pass gives the same again, and changes no statistics, in the layers' present modes."""
        layers = (place.layer for place in self.graph.seen.values())
        return not any(layer.acts and (layer.only_training or layer.statistic_names) for layer in layers)

    @property
    def in_features(self) -> int:
        return math.prod(self.graph.shapes[0])

    @property
    def out_features(self) -> int:
        return math.prod(self.graph.shapes[-1])

    # parameters -------------------------------------------------------------------------------------------------------

    def named(self, *kinds: str) -> dict[str, np.ndarray]:
        """Views of the layers' arrays of these kinds ("weight", "grad_bias", ...), by their names in `state_dict`."""
        return {name: a for _, place in self.parametric for name, a in self.named_of(place, *kinds).items()}

    def named_of(self, place: Place, *kinds: str) -> dict[str, np.ndarray]:
        """The same of one layer."""
        arrays = {f"{place.key}.{kind}": place.layer._made().get(kind) for kind in kinds}
        return {name: a for name, a in arrays.items() if a is not None}

    def unpack(self, vector: np.ndarray, *kinds: str) -> None:
        """Write one vector into the arrays of these kinds, in the order of `named`."""
        at = 0
        for array in self.named(*kinds).values():
            array[...] = vector[at : at + array.size].reshape(array.shape)
            at += array.size

    # training ---------------------------------------------------------------------------------------------------------

    def set_optimizer(self, optimizer: Any) -> None:
        """Hand the optimiser's hyper-parameters to the program; ValueError, and no change, if its groups do not fit."""
        if optimizer is not None and self.nested:
            raise RuntimeError("a part of a model has no optimizer of its own: train the model that it is a part of")
        if optimizer is not None:
            named = self.named(*PARAMETERS)
            rows = dict(zip(named, optimizer.assign(list(named), [a.ndim for a in named.values()]), strict=True))
            groups = [(0, 0)] * len(self.graph.ops)
            for op, place in self.parametric:
                groups[op] = (rows.get(f"{place.key}.weight", 0), rows.get(f"{place.key}.bias", 0))
            self.program.set_optimizer(optimizer.table, groups, optimizer.states)
        self._minimizer = self.held = self.ranks = None
        self.optimizer = optimizer
        if not self.fitting:  # a callback of `fit` may set one: the run goes on
            self.state.epochs_seen = self.state.epoch = 0
            self.state.position = None

    def need_optimizer(self) -> None:
        """RuntimeError if there is none."""
        if self.optimizer is None:
            raise RuntimeError("the model has no optimizer: pass one to Sequential, or set model.optimizer")

    def iterate(self, objective: Objective, lr: float) -> str | None:
        """An iteration of an optimiser that needs the whole data; why more would change nothing, or None."""
        if self._minimizer is None:
            native = getattr(self.program, "native", self.program)
            self._minimizer = self.optimizer.minimizer(self.kernels, native)
        objective.begin()
        return self.optimizer.iterate(self._minimizer, objective, lr)

    def whole_step(self, x: Any, y: Any, sample_weight: Any, threads: int) -> float:
        """`train_step` with such an optimiser: an iteration on these rows; the loss before it."""
        program = self.program
        x, y, w = program.flattened(x, y, sample_weight)
        x = program.inputs(x)
        if not len(x):
            raise ValueError("x: training needs at least one row, got an empty batch")
        y = program.targets(y, len(x))
        objective = Objective(self, x, y, None if w is None else program.weights(w, len(x)), threads)
        return self.first_iteration(objective)

    def first_iteration(self, objective: Objective) -> float:
        """An iteration outside of `fit`: the loss before it."""
        rates = self.rates()
        self.iterate(objective, self.optimizer.lr if rates is None else float(rates[0]))
        return objective.first

    def rates(self) -> np.ndarray | None:
        """What the optimiser's schedule says of the next step; None without one."""
        schedule = self.optimizer.schedule
        if schedule is None:
            return None
        by_step = schedule.interval == "step"
        done = self.program.steps if by_step else self.state.epochs_seen
        made_of = (schedule, schedule.version(), self.optimizer.table.tobytes())
        first, rates, known = self._rates
        if made_of != known or not first <= done < first + len(rates):
            first, rates = done, self.optimizer.rates(done, RATES_AHEAD if by_step else 1)
            self._rates = first, rates, made_of
        return rates[done - first]

    def end_epoch(self, logs: Any, watched: str | None = None) -> None:
        """Count an epoch, and let a schedule react to it; ValueError, and no change, if it needs what logs lack.

        watched: the name of what it monitors, which not every epoch has.
        """
        schedule = getattr(self.optimizer, "schedule", None)  # a callback of fit may have taken the optimizer away
        if isinstance(schedule, ReduceLROnPlateau) and (watched is None or watched in logs):
            if logs is None:
                raise ValueError(f"logs: expected a number for {schedule!r} to monitor, as model.end_epoch(val_loss)")
            schedule.step(
                logs[watched or schedule.watched(logs)] if isinstance(logs, Mapping) else number("logs", logs)
            )
        self.state.epochs_seen += 1
        self.state.position = None

    def training_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a checkpoint saves for further training: arrays, and numbers as JSON can hold them."""
        return self.state.to_parts(self.program, self.optimizer)

    def set_training_state(self, arrays: dict[str, np.ndarray], numbers: Any) -> None:
        """Go on where `training_state` was taken; ValueError if it is another model's, or damaged."""
        self.state = TrainingState.from_parts(arrays, numbers, self.program, self.optimizer, self.dtype)
        for place in self.graph.seen.values():
            place.layer.training = self.state.training

    def snapshot(self) -> Any:
        """A copy of all that training changes, for `restore`: the parameters, the running statistics, the state of the
        optimiser and of its schedule, and how many epochs are done."""
        schedule = stateful(self.optimizer)
        return (
            self.program.snapshot(self.optimizer.states),
            self.optimizer,
            self.state.epochs_seen,
            schedule and (schedule, schedule.state_dict()),
        )

    def restore(self, snapshot: Any) -> None:
        """Put back what `snapshot` returned; a pending `backward` needs another forward pass. Of an optimiser that has
        been set since, the state is empty then."""
        program, optimizer, self.state.epochs_seen, schedule = snapshot
        self.program.restore(program, optimizer is self.optimizer)
        if schedule:
            schedule[0].load_state_dict(schedule[1])


class _Part:
    """Stands in for the program of a model that is a part of another one, until it is first used."""

    def __init__(self, core: Core):
        self._core = weakref.ref(core)

    def __getattr__(self, name):
        core: Any = self._core()
        made = part(core.kernels, core.graph)
        if made is None:
            raise RuntimeError("the layers of this Sequential now belong to several models: use those models")
        core.program = made
        return getattr(made, name)


def _graph_of(layers: list[Any], width: int | None = None) -> Graph:
    width = in_features(layers) if width is None else width
    if width is None:
        raise ValueError("layers: expected at least one Linear, which sets the number of inputs, got none")
    graph = Graph([(width,)])
    chain(graph, layers, 0)
    if not graph.ops:
        raise ValueError("layers: expected at least one layer that computes something")
    return graph
