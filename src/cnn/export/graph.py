"""A model as a list of nodes for the writers (onnx.py, c.py): what `predict` computes, without the loss.

It is the graph of the native program (layers/graph.py), with activations as separate nodes and without the layers that
act only in training.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..layers import Layer
from ..layers.graph import Place


class Node(NamedTuple):
    """One step of the computation. Values are numbered; value 0 is the input of the model."""

    kind: str  # of the op, as the kernels name it: "linear", "activation", ...
    sources: tuple[int, ...]  # the values it reads
    target: int  # the value it writes
    layer: Layer  # has the parameters
    key: str  # the prefix of their names in `state_dict`
    where: str  # for error messages: "layer 2, Linear(64, 10)"


class Computation(NamedTuple):
    """What `predict` computes."""

    nodes: list[Node]
    widths: list[int]  # of each value
    output: int  # the value that `predict` returns


def graph_of(model: Any) -> Computation:
    """The nodes of a `Sequential`, in an order in which they can run. TypeError if `model` is not one."""
    from ..models import Sequential

    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected a cnn.Sequential, got {type(model).__name__}")
    compiled = model._core.graph
    widths = list(compiled.widths)
    stands_for = list(range(len(widths)))  # the value in each buffer
    nodes: list[Node] = []

    def add(place: Place, kind: str, sources: tuple[int, ...], target: int) -> None:
        nodes.append(Node(kind, sources, target, place.layer, place.key, str(place)))

    for op, places in zip(compiled.ops, compiled.places, strict=True):
        sources, buffer = tuple(stands_for[source] for source in op["src"]), op["dst"]
        if places[0].layer.only_training:
            stands_for[buffer] = sources[0]
            continue
        add(places[0], op["kind"], sources, buffer)
        if places[-1] is not places[0] and places[-1].layer.op is not None:  # a fused activation
            stands_for[buffer] = len(widths)
            widths.append(widths[buffer])
            add(places[-1], "activation", (buffer,), len(widths) - 1)
    return Computation(nodes, widths, stands_for[len(compiled.shapes) - 1])
