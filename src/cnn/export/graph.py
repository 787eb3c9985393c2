"""A model as the list of nodes that the writers (onnx.py, c.py) go along: what `predict` computes, without the loss.

It is the graph that the native program is made of (layers/graph.py) with activations as nodes of their own and without
what does nothing when a model predicts.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Node(NamedTuple):
    """One step of the computation. Values are numbered; value 0 is the input of the model."""

    kind: str  # "linear", "activation", ...: those of the native program
    sources: tuple[int, ...]  # the values it reads
    target: int  # the value it writes
    layer: Any  # that holds the parameters
    key: str  # the prefix of their names in `state_dict`
    where: str  # for error messages: "layer 2, Linear(64, 10)"
    function: str = ""  # of an activation: its name in `cnn.functional`
    param: float = 0.0


class Graph(NamedTuple):
    nodes: list[Node]
    widths: list[int]  # of each value
    output: int  # the value that `predict` returns


def graph_of(model: Any) -> Graph:
    """The nodes of a `Sequential` in an order in which they can run."""
    from ..models import Sequential

    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected a cnn.Sequential, got {type(model).__name__}")
    compiled = model._graph
    widths = list(compiled.widths)
    stands_for = list(range(len(widths)))  # of each buffer, the value that is in it
    nodes: list[Node] = []
    for op, places in zip(compiled.ops, compiled.places, strict=True):
        sources = tuple(stands_for[source] for source in op["src"])
        place, buffer = places[0], op["dst"]
        if op["kind"] == "dropout":
            stands_for[buffer] = sources[0]
            continue
        function, param = op.get("act", "identity"), op.get("param", 0.0)
        if op["kind"] != "activation":
            nodes.append(Node(op["kind"], sources, buffer, place.layer, place.key, str(place)))
        if function != "identity":
            if op["kind"] == "linear":
                place, sources = places[-1], (buffer,)
                stands_for[buffer] = len(widths)
                buffer = len(widths)
                widths.append(widths[op["dst"]])
            nodes.append(Node("activation", sources, buffer, place.layer, place.key, str(place), function, param))
    return Graph(nodes, widths, stands_for[len(compiled.widths) - 1])
