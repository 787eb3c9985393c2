"""Reports of a model's graph: the log of `backward(debug=True)`, and the diagram that `plot` draws with matplotlib.

The diagram is a tree of chains and branches, like the layers: chains run downwards and branches side by side, so that
no lines cross.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..layers import Branches, Chain

COLOURS = {  # by kind of box: fill, border
    "end": ("#ffffff", "#757575"),
    "weights": ("#d6e6f4", "#0072b2"),
    "plain": ("#fbe8d3", "#d55e00"),
    "gate": ("#e3e3e3", "#424242"),
}
GREY = "#616161"


# ---- the report of backward(debug=True) --------------------------------------------------------------------------


def report(model: Any) -> None:
    """Log the ops in backward order, with shapes and norms of outputs and gradients; FloatingPointError at a NaN."""
    log = logging.getLogger("cnn")
    graph, program = model._core.graph, model._core.program
    held = dict(model._core.parametric)
    for number in reversed(range(len(graph.ops))):
        op = graph.ops[number]
        names = " + ".join(str(place) for place in graph.places[number])
        output = program.value_of(op["dst"])
        sources = f"buffer{'s' if len(op['src']) > 1 else ''} {', '.join(map(str, op['src']))}"
        log.info(
            "%s: %s of %s gives buffer %d, %s, norm %.6g",
            *(names, op["kind"], sources, op["dst"], output.shape, np.linalg.norm(output)),
        )
        fused = op["kind"] == "linear" and op["act"] != "identity"
        arrays = {"x W + b" if fused else "output": program.gradient_of(op["dst"])}
        if number in held:
            grads = {name: getattr(held[number].layer, f"grad_{name}") for name in ("weight", "bias")}
            arrays |= {name: a for name, a in grads.items() if a is not None}
        for what, gradient in arrays.items():
            log.info("%s: gradient of %s %s, norm %.6g", names, what, gradient.shape, np.linalg.norm(gradient))
        for what, gradient in arrays.items():
            if np.isnan(gradient).any():
                raise FloatingPointError(f"{names}: the gradient of {what} has NaN")


# ---- the diagram: its contents -----------------------------------------------------------------------------------


@dataclass
class Box:
    """A layer, a gate, the input, or the loss."""

    title: str
    detail: str  # smaller, below the title
    kind: str  # a key of COLOURS
    outputs: str  # label of the outgoing arrow
    key: str = ""  # the layer's prefix in `state_dict`

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in units of the layout, with room for the text."""
        if self.kind == "gate":
            return max(0.7, 0.16 * len(self.title)), 0.7
        return max(1.5, 0.15 * len(self.title) + 0.4, 0.115 * len(self.detail) + 0.4), 0.9 if self.detail else 0.6


@dataclass
class Fork:
    """Branches, followed by the gate that joins them."""

    branches: list[list[Box | Fork]]


def contents(model: Any) -> list[Box | Fork]:
    """Boxes and forks from the input to the loss."""
    graph = model._core.graph
    ops = {id(place.layer): op for op, places in zip(graph.ops, graph.places, strict=True) for place in places}

    def chain(parts, width: int) -> tuple[list[Box | Fork], int]:
        """The drawing of layers in sequence, from the number of inputs, and the number of outputs."""
        drawn: list[Box | Fork] = []
        for part in parts:
            more, width = one(part, width)
            drawn += more
        return drawn, width

    def one(layer, width: int) -> tuple[list[Box | Fork], int]:
        if isinstance(layer, Chain):
            return chain(layer.layers, width)
        place = graph.seen[id(layer)]
        outputs = graph.widths[ops[id(layer)]["dst"]] if id(layer) in ops else width
        if isinstance(layer, Branches):
            fork = Fork([one(branch, width)[0] for branch in layer.branches])
            return [fork, Box(layer.symbol, "", "gate", f"{outputs:,}", place.key)], outputs
        title, detail, kind = repr(layer).removesuffix("()"), "", "plain"
        if layer.parameter_names:
            detail, kind = f"{layer.n_parameters:,} parameters", "weights"
            sizes = f"{outputs:,}"
            if layer._changes_width():
                sizes = f"{width:,} \N{RIGHTWARDS ARROW} {sizes}"
            title = f"{type(layer).__name__} {sizes}"
        return [Box(title, detail, kind, f"{outputs:,}", place.key)], outputs

    inside, _ = chain(model.layers, graph.widths[0])
    end = Box("outputs" if model.loss is None else repr(model.loss).removesuffix("()"), "", "end", "")
    return [Box("inputs", "", "end", f"{graph.widths[0]:,}"), *inside, end]


def plot(model: Any, path: str | os.PathLike[str] | None) -> Any:
    """See `Sequential.plot`."""
    parts = contents(model)
    total = f"{model._core.program.n_parameters:,} parameters, {model.dtype}"
    if path is None:
        return figure(parts, total)
    suffix = Path(path).suffix.lower()
    if suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"path: expected a name that ends in .png, .svg or .pdf, got {str(path)!r}")
    figure(parts, total).savefig(path)
    return None


# ---- drawing -----------------------------------------------------------------------------------------------------

DOWN, FAN, ASIDE = 0.5, 0.3, 1.0  # gaps: between boxes of a chain; extra above and below branches; between branches
INCHES = 0.62  # per unit of the layout


def extent(chain: list[Box | Fork]) -> tuple[float, float]:
    """Width and height of a chain."""
    sizes = []
    for part in chain:
        if isinstance(part, Box):
            sizes.append(part.size)
        else:
            widths, heights = zip(*(extent(branch) for branch in part.branches), strict=True)
            sizes.append((sum(widths) + ASIDE * (len(widths) - 1), max(heights) + 2 * FAN))
    return max(width for width, _ in sizes), sum(height for _, height in sizes) + DOWN * (len(sizes) - 1)


def figure(parts: list[Box | Fork], title: str) -> Any:
    """The diagram as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path as Curve

    width, height = extent(parts)
    width, height = max(width, 4) + 1.6, height + 1.0
    picture = Figure(figsize=(INCHES * width, INCHES * height), dpi=110)
    axes = picture.add_axes((0, 0, 1, 1), xlim=(-width / 2, width / 2), ylim=(height - 0.3, -0.3), aspect="equal")
    axes.set_axis_off()

    def arrow(x0: float, y0: float, x1: float, y1: float) -> None:
        middle = (y0 + y1) / 2
        curve = Curve([(x0, y0), (x0, middle), (x1, middle), (x1, y1)], [1, 4, 4, 4])
        axes.add_patch(
            FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=9, color=GREY, linewidth=1, shrinkA=0)
        )

    def draw_box(box: Box, x: float, y: float) -> None:
        inside, border = COLOURS[box.kind]
        w, h = box.size
        if box.kind == "gate":
            axes.add_patch(Ellipse((x, y + h / 2), w, h, facecolor=inside, edgecolor=border, linewidth=1))
        else:
            corner = (x - w / 2 + 0.1, y + 0.1)
            shape = FancyBboxPatch(corner, w - 0.2, h - 0.2, boxstyle="round,pad=0.1", linewidth=1)
            shape.set(facecolor=inside, edgecolor=border)
            axes.add_patch(shape)
        text: dict[str, Any] = {"ha": "center", "va": "center"}
        axes.text(x, y + (0.32 if box.detail else h / 2), box.title, fontsize=10, **text)
        axes.text(x, y + 0.66, box.detail, fontsize=7.5, color=GREY, **text)
        axes.text(x - w / 2 - 0.08, y + h / 2, box.key, fontsize=7.5, color=GREY, ha="right", va="center")
        if box.outputs:
            paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # an arrow may cross it
            axes.text(x + 0.12, y + h + 0.1, box.outputs, fontsize=7.5, color=GREY, ha="left", va="top", bbox=paper)

    def draw(chain: list[Box | Fork], x: float, y: float, sources: list[tuple[float, float]]):
        """Draw a chain centred at x, from y downwards, with arrows from the sources; return its end points."""
        for part in chain:
            height = extent([part])[1]
            if isinstance(part, Box):
                for source in sources:
                    arrow(*source, x, y)
                draw_box(part, x, y)
                sources = [(x, y + height)]
            else:
                left, ends = x - extent([part])[0] / 2, []
                for branch in part.branches:
                    w, h = extent(branch)
                    ends += draw(branch, left + w / 2, y + (height - h) / 2, sources)
                    left += w + ASIDE
                sources = ends
            y += height + DOWN
        return sources

    axes.text(0, 0, title, fontsize=8, color=GREY, ha="center", va="center")
    draw(parts, 0, 0.35, [])
    return picture
