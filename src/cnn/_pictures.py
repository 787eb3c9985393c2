"""Pictures by matplotlib: a figure to draw in, pyplot's where it is to be shown, and none of pyplot's for a file."""

from __future__ import annotations

from typing import Any


def figure_for(path: Any, who: str, **arguments: Any) -> Any:
    """A figure for a file, or without a path one of pyplot's, which notebooks and `pyplot.show()` show.

    arguments: those of `matplotlib.figure.Figure`. ImportError, naming `who` needs it, without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{who} needs matplotlib: pip install cnn[plot]") from error
    make: Any = Figure
    if path is None:
        from matplotlib.pyplot import figure as make
    return make(layout="constrained", **arguments)
