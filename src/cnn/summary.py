"""Tables of a model for people: `Sequential.summary` as text, `_repr_html_` for notebooks."""

from __future__ import annotations

from html import escape
from typing import Any

from . import layers

HEAD = ("", "layer", "output", "parameters", "FLOPs / sample")


def table(model) -> tuple[list[tuple[str, ...]], int]:
    """The rows of the table, a tuple of texts for each layer, and the FLOPs of a sample forward."""
    rows = []
    total = 0
    width = next(layer for layer in model.layers if isinstance(layer, layers.Linear)).in_features
    parts: list[Any] = [*model.layers, *([model.loss] if model.loss else [])]
    for i, layer in enumerate(parts):
        count = cost = 0
        if isinstance(layer, layers.Linear):
            width = layer.out_features
            count = (layer.in_features + layer.has_bias) * width
            cost = 2 * layer.in_features * width
        total += cost
        shape = "scalar" if layer is model.loss else f"(batch, {width})"
        rows.append((str(i), repr(layer), shape, f"{count:,}" if count else "", f"{cost:,}" if cost else ""))
    return rows, total


def notes(model, flops: int) -> list[str]:
    """What stands below the table."""
    optimizer = f", {model.optimizer!r}" if model.optimizer else ""
    return [
        f"{model._program.n_parameters:,} parameters, {model.dtype}{optimizer}",
        f"{flops:,} FLOPs a sample forward, about three times that in training",
        f"{model._program.nbytes / 1024:,.1f} KiB of memory now, workspaces for the largest batch so far included",
    ]


def text(model) -> str:
    """The table as lines of text."""
    rows, flops = table(model)
    widths = [max(len(row[i]) for row in (HEAD, *rows)) for i in range(len(HEAD))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = []
    for row in (HEAD, *rows):
        cells = [cell.ljust(w) for cell, w in zip(row[:3], widths[:3], strict=True)]
        cells += [cell.rjust(w) for cell, w in zip(row[3:], widths[3:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], rule, *lines[1:], rule, *notes(model, flops)])


def html(model) -> str:
    """The table as HTML: names right, numbers left, nothing that a notebook's style does not bring."""
    rows, flops = table(model)
    sides = ("right", "left", "left", "right", "right")

    def line(tag: str, cells: tuple[str, ...]) -> str:
        pairs = zip(cells, sides, strict=True)
        inside = "".join(f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for cell, side in pairs)
        return f"<tr>{inside}</tr>"

    body = "".join(line("td", row) for row in rows)
    below = "<br>".join(escape(note) for note in notes(model, flops))
    return (
        f"<table><caption>Sequential</caption><thead>{line('th', HEAD)}</thead><tbody>{body}</tbody></table>"
        f"<small>{below}</small>"
    )
