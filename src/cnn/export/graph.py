"""A model as the list of nodes that the writers (onnx.py, c.py) go along: what `predict` computes, without the loss.

Nodes read and write numbered values; value 0 is the input. What does nothing when a model predicts is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import layers

NOTHING = ("Identity", "Dropout")  # layers that pass their input on, in evaluation mode


class Node(NamedTuple):
    """One layer in its place."""

    layer: Any
    name: str  # the prefix of its parameters in `state_dict`
    sources: tuple[int, ...]  # the values it reads
    target: int  # the value it writes

    @property
    def where(self) -> str:
        """For error messages: "layer 2, Linear(64, 10)"."""
        return f"layer {self.name}, {self.layer!r}"

    @property
    def kind(self) -> str:
        return type(self.layer).__name__


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
        nodes.append(Node(layer, str(i), (at,), len(widths)))
        at = len(widths)
        widths.append(layer.out_features if isinstance(layer, layers.Linear) else widths[-1])
    return Graph(nodes, widths, at)
