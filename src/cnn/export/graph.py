"""A model as the list of nodes that the writers (onnx.py, c.py) go along: what `predict` computes, without the loss.

Nodes read and write numbered values; value 0 is the input. What does nothing when a model predicts is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import layers

NOTHING = ("Identity", "Dropout")  # layers that pass their input on, in evaluation mode


class Node(NamedTuple):
    """One layer in its place."""

    kind: str  # "linear", "activation", ...
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
    from ..sequential import Sequential

    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected a cnn.Sequential, got {type(model).__name__}")
    first = next(layer for layer in model.layers if isinstance(layer, layers.Linear))
    nodes: list[Node] = []
    widths = [first.in_features]
    at = 0
    for i, layer in enumerate(model.layers):
        if type(layer).__name__ in NOTHING:
            continue
        linear = isinstance(layer, layers.Linear)
        kind = "linear" if linear else "activation"
        options = () if linear else (layer.function, layer.param)
        nodes.append(Node(kind, (at,), len(widths), layer, str(i), f"layer {i}, {layer!r}", *options))
        at = len(widths)
        widths.append(layer.out_features if linear else widths[-1])
    return Graph(nodes, widths, at)
