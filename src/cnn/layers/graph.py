"""From layers to the native program: a graph of ops over numbered buffers, built once per model.

Each layer adds its ops to a `Graph` (`Layer._compile`): it receives the number of its input buffer and returns that of
its output buffer. This module has the graph, the places of layers in it (their keys are the prefixes of names in
`state_dict`), and chains, which fuse an activation with the Linear before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .._configurable import PACKAGE


@dataclass(frozen=True)
class Place:
    """A layer's position: `key` is its prefix in `state_dict` ("3.1.0"), `label` is for messages ("3.Add[1].0")."""

    key: str
    label: str
    layer: Any

    def __str__(self) -> str:
        name = repr(self.layer)
        short = len(name) <= 80 and "\n" not in name
        return f"layer {self.label}, {name if short else f'{type(self.layer).__name__}(...)'}"


@dataclass
class Graph:
    """Ops over buffers. Buffer 0 is the input; each op writes to a new buffer with the next number.

    Attributes
    ----------
    shapes : list of tuple of int
        Row shape of each buffer, features last; today this is the only axis.
    ops : list of dict
        The format that the native `Program` expects.
    places : list of list of Place
        For each op, the layers that it computes.
    givers : list of Place or str
        For each buffer, what writes it, for error messages.
    seen : dict of int to Place
        The layers of the model, by id, in the order of their names.
    """

    shapes: list[tuple[int, ...]]
    ops: list[dict[str, Any]] = field(default_factory=list)
    places: list[list[Place]] = field(default_factory=list)
    givers: list[Place | str] = field(default_factory=lambda: ["the input"])
    seen: dict[int, Place] = field(default_factory=dict)

    @property
    def widths(self) -> list[int]:
        """Numbers per row of each buffer."""
        return [math.prod(shape) for shape in self.shapes]

    def features(self, buffer: int) -> int:
        """The length of a buffer's last axis."""
        return self.shapes[buffer][-1]

    def add(self, place: Place, kind: str, sources: list[int], shape: tuple[int, ...], **options: Any) -> int:
        """Add an op of a layer.

        Parameters
        ----------
        place : Place
            The layer's position.
        kind : str
            Name of the op in the kernels.
        sources : list of int
            The buffers that it reads.
        shape : tuple of int
            Row shape of its result.
        **options
            Further entries of the op for the native `Program`.

        Returns
        -------
        int
            The buffer that it writes.
        """
        self.shapes.append(shape)
        self.ops.append({"kind": kind, "src": sources, "dst": len(self.shapes) - 1, **options})
        self.places.append([place])
        self.givers.append(place)
        return len(self.shapes) - 1

    def expect(self, place: Place, source: int, features: int) -> None:
        """ValueError if the buffer does not have the `features` columns that a layer expects."""
        if (given := self.features(source)) != features:
            begins = source == 0 and "]" in place.label  # a branch of the model's input
            mend = ": with split=True each branch reads its own columns" if begins else ""
            raise ValueError(f"{place}: expects {features} inputs, but {self.givers[source]}, gives {given}{mend}")

    def once(self, place: Place) -> None:
        """ValueError if the model uses a layer twice."""
        first = self.seen.setdefault(id(place.layer), place)
        if first is not place:
            raise ValueError(f"{place}: used twice in the model, first as layer {first.label}: create a second layer")

    def twin(self, made: dict[int, Any]) -> Graph:
        """The same graph with other layers: `made` maps the ids of the present layers to them."""
        places = {id(place): Place(place.key, place.label, made[key]) for key, place in self.seen.items()}
        return Graph(
            self.shapes,
            self.ops,
            [[places[id(place)] for place in several] for several in self.places],
            [given if isinstance(given, str) else places[id(given)] for given in self.givers],
            {id(place.layer): place for place in places.values()},
        )

    def parameters(self) -> list[tuple[int, Place]]:
        """Ops with parameters and the layers that hold them, in the order of `state_dict`."""
        return [(op, places[0]) for op, places in enumerate(self.places) if hasattr(places[0].layer, "_join")]


def computes_natively(part: Any, where: Place | str) -> None:
    """TypeError if a class outside the library overrides what `part` computes: a model would not call it."""
    for method in ("forward", "backward", "__call__"):
        owner = next((cls for cls in type(part).__mro__ if method in vars(cls)), object)
        if owner.__module__.partition(".")[0] not in (PACKAGE, "builtins"):
            raise TypeError(f"{where}: {owner.__name__} overrides {method}, which a compiled model does not call")


def chain(graph: Graph, parts: Iterable[Any], source: int, key: str = "", label: str = "") -> int:
    """Add layers in sequence; return the buffer that the last one writes."""
    linear = None  # the op directly before, if it is a Linear without activation (maybe at the end of a nested chain)
    for i, layer in enumerate(parts):
        place = Place(f"{key}{i}", f"{label}{i}", layer)
        graph.once(place)
        computes_natively(layer, place)
        if linear is not None and layer.function is not None:
            if layer.function != "identity":
                graph.ops[linear] |= {"act": layer.function, "param": layer.param}
            graph.places[linear].append(place)
            linear = None
            continue
        ops = len(graph.ops)
        source = layer._compile(graph, source, place)
        made = graph.ops[ops:]
        linear = ops if len(made) == 1 and (made[0]["kind"], made[0].get("act")) == ("linear", "identity") else None
    return source


def in_features(parts: Iterable[Any]) -> int | None:
    """Number of inputs of a chain, from its first layer that specifies one; None if none does."""
    for layer in parts:
        width = layer._in_features()
        if width is not None or layer._changes_width():
            return width
    return None


def program(kernels: Any, graph: Graph, loss: dict[Any, Any] | None, seed: int, *shared: Any) -> Any:
    """The native program of a graph; `shared` are Program's last arguments."""
    takers = (place for places in graph.places for place in places if place.layer._in_features() is not None)
    where = (f" for {next(takers, 'the model')}", f" for the outputs of {graph.givers[-1]}")
    codes = kernels.ACTIVATIONS
    ops = [op | {"act": codes[op["act"]]} if "act" in op else op for op in graph.ops]
    return kernels.Program(graph.shapes, ops, loss, where, seed, *shared)


def part(kernels: Any, graph: Graph) -> Any:
    """A program of layers that are already in a model, on the model's memory; None if they are not.

    It shares the model's parameters and does not copy them. Layers without parameters need no model.
    """
    parametric = graph.parameters()
    homes = [place.layer._op for _, place in parametric]
    if None in homes or len({id(home[0]) for home in homes}) > 1:
        return None
    places = [-1] * len(graph.ops)
    for (op, _), home in zip(parametric, homes, strict=True):
        places[op] = home[1]
    made = program(kernels, graph, None, 0, *([homes[0][0], places] if homes else []))
    tell_modes(graph, made)
    return made


def tell_modes(graph: Graph, part: Any) -> None:
    """Tell a part's program the layers' modes, and what is trained: the layers only notify the model's program."""
    for op, places in enumerate(graph.places):
        places[0].layer._tell_program(part, op)
