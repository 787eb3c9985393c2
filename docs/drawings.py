"""Draws docs/concepts.svg: layers, the program that they are compiled into, and its memory.

python docs/drawings.py docs        writes concepts.svg there
"""

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#e08e00", "#009e73", "#6b6b6b"


def box(axes, x, y, width, height, text, colour, fill=True):
    style = "round,pad=0.02,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, style, ec=colour, fc=colour if fill else "white", lw=1.4, alpha=0.95)
    )
    axes.text(
        x + width / 2, y + height / 2, text, color="white" if fill else colour, ha="center", va="center", fontsize=10
    )


def arrow(axes, start, end):
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "lw": 1.3})


def concepts(path):
    """Left the list of layers, right ops and buffers, below the arena."""
    figure = Figure(figsize=(9, 5), layout="tight")
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 5.6))
    axes.set_axis_off()
    axes.text(1.35, 5.3, "what you write", ha="center", color=GREY, fontsize=11)
    axes.text(6.5, 5.3, "what it is compiled into", ha="center", color=GREY, fontsize=11)
    for i, name in enumerate(["Linear(8, 64)", "ReLU()", "Linear(64, 3)", "CrossEntropyLoss()"]):
        box(axes, 0.2, 4.4 - 0.75 * i, 2.3, 0.5, name, BLUE, fill=False)
    for i, (name, width) in enumerate([("x", 8), ("hidden", 64), ("outputs", 3)]):
        box(axes, 3.3 + 2.5 * i, 3.6, 1.1, 0.5, f"{name}\n{width} wide", GREEN)
    for i, text in enumerate(["linear\nrelu(x W + b)", "linear\nx W + b"]):
        box(axes, 4.5 + 2.5 * i, 2.35, 1.3, 0.7, text, BLUE)
        arrow(axes, (3.95 + 2.5 * i, 3.55), (4.75 + 2.5 * i, 3.1))
        arrow(axes, (5.55 + 2.5 * i, 3.1), (6.25 + 2.5 * i, 3.55))
    box(axes, 8.6, 2.35, 1.2, 0.7, "loss and its\ngradient", BLUE)
    arrow(axes, (8.95, 3.55), (9.15, 3.1))
    for x in (5.15, 7.65):
        arrow(axes, (x, 2.3), (x, 1.5))
    blocks = [("parameters", 2.3), ("gradients", 2.3), ("optimiser's state", 2.3)]
    x = 2.9
    for name, width in blocks:
        box(axes, x, 0.8, width - 0.08, 0.6, name, ORANGE)
        x += width
    axes.text(
        6.35, 0.4, "one arena: W, b, W, b in each block, in the order of the ops", ha="center", color=GREY, fontsize=10
    )
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.rcParams.update({"svg.hashsalt": "cnn", "svg.fonttype": "none", "font.family": "sans-serif"})
    concepts(Path(sys.argv[1]) / "concepts.svg")
