"""Tables that summarise a model: `Sequential.summary` as text, `_repr_html_` for notebooks."""

from __future__ import annotations

from html import escape
from typing import Any

HEAD = ("", "layer", "output", "parameters", "FLOPs / sample")


def table(model: Any) -> tuple[list[tuple[str, ...]], int]:
    """The rows of the table, a tuple of texts for each layer, and the FLOPs of the forward pass per sample.

    Nested layers follow their parent. The first column has the prefixes of names in `state_dict`.
    """
    graph = model._core.graph
    op_of = {id(place.layer): op for op, places in zip(graph.ops, graph.places, strict=True) for place in places}
    rows: list[tuple[str, ...]] = []
    total = 0
    for place in graph.seen.values():
        layer, op = place.layer, op_of.get(id(place.layer))
        cost = 0 if op is None else layer.flops(graph.shapes[op["src"][0]])
        total += cost
        shape = "" if op is None else f"(batch, {', '.join(map(str, graph.shapes[op['dst']]))})"
        name = type(layer).__name__ if layer.children else repr(layer)
        numbers = (f"{n:,}" if n else "" for n in (layer.n_parameters if layer.parameter_names else 0, cost))
        rows.append((place.key, name, shape, *numbers))
    if model.loss is not None:
        rows.append((str(len(model.layers)), repr(model.loss), "scalar", "", ""))
    return rows, total


def notes(model: Any, flops: int) -> list[str]:
    """The lines below the table."""
    program = model._core.program
    optimizer = f", {model.optimizer!r}" if model.optimizer else ""
    return [
        f"{program.n_parameters:,} parameters, {model.dtype}{optimizer}",
        f"{flops:,} FLOPs a sample forward, about three times that in training",
        f"{program.nbytes / 1024:,.1f} KiB of memory now, workspaces for the largest batch so far included",
    ]


class Text(str):
    """A text that is already printed: interpreters and notebooks do not show it again."""

    __slots__ = ()

    def __repr__(self) -> str:
        return ""

    def _ipython_display_(self) -> None:
        """Show nothing."""


def text(model: Any) -> str:
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


def html(model: Any) -> str:
    """The table as HTML, in the notebook's default style."""
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
