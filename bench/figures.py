"""results.png: the speed of each library, and the limit. scaling.png: time against batch and width."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import goals
import workloads
from goals import LABELS
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image  # comes with matplotlib

# who -> (colour, marker): distinguishable without colour, and with any kind of colour vision
STYLES = {
    "cnn": ("#0072b2", "o"),
    "jax": ("#e08e00", "D"),
    "onnxruntime": ("#a0569b", "s"),
    "numpy": ("#3d8b5f", "^"),
    "torch": ("#c8502e", "v"),
    "sklearn": ("#7a7a7a", "X"),
}
GREY, PALE, LIMIT, BEYOND = "#6b6b6b", "#e4e4e4", "#b03030", "#f6e7e7"
# The two panels have the same rows to the inch and the limit at the same place, but each its own scale: overhead costs
# factors of a thousand in the upper one, and what is left between libraries in the lower one is tens of per cent.
PANELS = (
    ("One sample, or one call from Python", ("tiny", "sine", "control1", "call", "act1", "readme")),
    (
        "Batches: training",
        ("control32", "rl256", "mnist64", "mnist1024", "deep128", "large1024", "matexp"),
        "Batches: prediction",
        ("infer256", "infer1024"),
    ),
)


def duration(seconds: float) -> str:
    """As "28.1 ns", "1.43 µs", "3.6 ms"."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if seconds >= 0.9995 * size or unit == "ns":
            return f"{float(f'{seconds / size:.3g}'):g} {unit}"
    raise AssertionError


def draw_results(results: dict[str, Any], path: Path) -> None:
    """A line for each workload, a mark for each library at the speed that it reaches, the limit at the right."""
    panels = [_rows(results, panel) for panel in PANELS]
    panels = [rows for rows in panels if any(isinstance(row, Row) for row in rows)]
    counts = [len(rows) for rows in panels]
    row, above, gap, below, width = 0.36, 1.3, 0.75, 0.6, 13.0  # inches
    height = above + sum(counts) * row + gap * (len(panels) - 1) + below
    figure = Figure(figsize=(width, height), dpi=120)
    limit = max(r.peak for rows in panels for r in rows if isinstance(r, Row))
    top = height - above
    for i, (rows, count) in enumerate(zip(panels, counts, strict=True)):
        axes = figure.add_axes((4.3 / width, (top - count * row) / height, 5.6 / width, count * row / height))
        _draw_panel(axes, rows, limit, first=i == 0)
        top -= count * row + gap
    figure.text(0.15 / width, 1 - 0.15 / height, "Small networks on one core: speed by library", fontsize=17, va="top")
    figure.text(
        0.15 / width,
        1 - 0.53 / height,
        "Arithmetic of the network per second; further right is faster, up to the limit of the core. "
        f"{results['machine']['processor']}",
        color=GREY,
        va="top",
    )
    shown = [who for who in STYLES if any(who in r.speeds for rows in panels for r in rows if isinstance(r, Row))]
    figure.legend(
        handles=[
            Line2D([], [], ls="", mec="white", label=LABELS[who], markersize=size(who), **style(who)) for who in shown
        ],
        loc="upper left",
        bbox_to_anchor=(4.15 / width, 1 - 0.78 / height),
        ncols=len(shown),
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.1,
        borderpad=0,
    )
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture in 128 colours: a third of the size, and no difference to be seen in lines and text."""
    figure.savefig(path)
    Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)


@dataclass
class Row:
    """A line of the figure; speeds and peak in GFLOP/s."""

    workload: workloads.Workload
    times: dict[str, Any]
    peak: float

    @property
    def speeds(self) -> dict[str, float]:
        return {who: self.workload.flops / t["best"] / 1e9 for who, t in self.times.items()}


def _rows(results: dict[str, Any], panel: tuple) -> list[Row | str]:
    """Titles, and the rows below them that were measured."""
    rows: list[Row | str] = []
    for title, ids in zip(panel[::2], panel[1::2], strict=True):
        rows.append(title)
        for id in ids:
            workload = workloads.ROW[id]
            for name in "main", "readme":
                group = results["groups"].get(name, {"rows": {}})
                if id in group["rows"]:
                    rows.append(Row(workload, group["rows"][id], group["peak"][workload.dtype] / 1e9))
    return rows


def style(who: str) -> dict[str, str]:
    colour, marker = STYLES[who]
    return {"color": colour, "marker": marker}


def size(who: str) -> float:
    return 11 if who == "cnn" else 7.5


def _draw_panel(axes, rows: list[Row | str], limit: float, *, first: bool) -> None:
    slowest = min(speed for row in rows if isinstance(row, Row) for speed in row.speeds.values())
    decades = math.log10(limit / slowest) / 0.88  # that the panel is wide
    low, high = limit / 10 ** (decades * 0.92), limit * 10 ** (decades * 0.08)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.axvspan(limit, high, color=BEYOND, linewidth=0)
    axes.axvline(limit, color=LIMIT, linewidth=1.5)
    outside = axes.get_yaxis_transform()
    if first:
        text = f"limit: {limit:.0f} GFLOP/s"
        axes.text(limit, -0.1, text + " ", color=LIMIT, ha="right", va="center", fontsize=10)
        for x, text in ((1.02, "a step\nof cnn"), (1.155, "faster\nby"), (1.245, "than the\nbest other")):
            axes.text(x, -0.1, text, transform=outside, va="center", fontsize=9, color=GREY)
    for y, row in enumerate(rows):
        if isinstance(row, str):
            axes.text(-0.74, y + 0.08, row, transform=outside, va="center", weight="bold", fontsize=11)
            continue
        speeds, own = row.speeds, row.times["cnn"]["best"]
        strongest = goals.strongest_peer(row.times)
        axes.plot([min(speeds.values()), max(speeds.values())], [y, y], color=PALE, linewidth=5, zorder=1)
        if speeds["cnn"] > speeds[strongest]:
            axes.plot([speeds[strongest], speeds["cnn"]], [y, y], color="#a9cbe2", linewidth=5, zorder=2)
        for who, speed in speeds.items():
            order = 5 if who == "cnn" else 4
            axes.plot(speed, y, ls="", mec="white", mew=0.8, markersize=size(who), zorder=order, **style(who))
        if row.peak < limit * 0.95:
            axes.plot([row.peak] * 2, [y - 0.42, y + 0.42], color=LIMIT, linewidth=1.5, zorder=3)
            text = f"{row.workload.dtype}: {row.peak:.0f} "
            axes.text(row.peak, y - 0.4, text, color=LIMIT, ha="right", va="center", fontsize=8.5)
        axes.text(-0.74, y, row.workload.id, transform=outside, va="center", fontsize=10.5)
        title = row.workload.title.replace(", no second bias", "")
        axes.text(-0.025, y, title, transform=outside, va="center", ha="right", fontsize=9, color=GREY)
        axes.text(1.02, y, duration(own), transform=outside, va="center", fontsize=10)
        times = row.times[strongest]["best"] / own
        ratio = f"{times:.{2 if times < 10 else 1}f}x"
        axes.text(1.155, y, ratio, transform=outside, va="center", fontsize=10, weight="bold", color=STYLES["cnn"][0])
        axes.text(1.245, y, LABELS[strongest], transform=outside, va="center", fontsize=10)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.grid(axis="x", color="#ececec")
    axes.set_axisbelow(True)
    ticks = (1,) if decades > 2.5 else (1, 2, 5)
    axes.xaxis.set_major_locator(LogLocator(subs=ticks, numticks=20))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda speed, _: f"{speed:g}"))
    tenfold = ": from one grid line to the next it is ten times" if len(ticks) == 1 else ""
    axes.set_xlabel(f"GFLOP/s, logarithmic{tenfold}")


def draw_scaling(group: dict[str, Any], path: Path) -> None:
    """Time of a step of training against batch and width; the dashed line is the work divided by the peak."""
    figure = Figure(figsize=(12, 5.6), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    figure.suptitle("A step of training costs what its arithmetic costs: time against the work, one core", fontsize=15)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, rows, xlabel, value in (
        (panels[0], workloads.SCALING_BATCH, "batch (64-256-256-10)", lambda w: w.batch),
        (panels[1], workloads.SCALING_WIDTH, "width n (n-n-n, batch 128)", lambda w: w.widths[0]),
    ):
        rows = [row for row in rows if row.id in group["rows"]]
        xs = [value(row) for row in rows]
        limit = [row.flops / group["peak"][row.dtype] * 1e6 for row in rows]
        axes.fill_between(xs, limit, 1e-3, color=BEYOND, linewidth=0)
        axes.plot(xs, limit, color=LIMIT, linestyle=(0, (5, 3)), linewidth=1.5)
        for who in STYLES:
            times = [group["rows"][row.id].get(who) for row in rows]
            if not any(times):
                continue
            ys = [t["best"] * 1e6 if t else None for t in times]
            own = who == "cnn"
            axes.plot(
                xs,
                ys,
                linewidth=3 if own else 1.4,
                markersize=9 if own else 6,
                mec="white",
                zorder=5 if own else 3,
                label=LABELS[who],
                **style(who),
            )
        axes.annotate(
            f"limit: the work at {group['peak']['float32'] / 1e9:.0f} GFLOP/s",
            (xs[2], limit[2]),
            xytext=(14, -14),
            textcoords="offset points",
            color=LIMIT,
            fontsize=9.5,
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(xlabel)
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    lowest = min(row.flops for row in (workloads.SCALING_BATCH + workloads.SCALING_WIDTH) if row.id in group["rows"])
    panels[0].set_ylim(bottom=lowest / group["peak"]["float32"] * 1e6 / 2)
    panels[0].set_ylabel("µs a step")
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}"))
    panels[0].legend(frameon=False, loc="upper left")
    save(figure, path)
