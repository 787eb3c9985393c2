"""`History`: what `fit` returns, a dict of lists with one number per epoch, with plots and exports; `ManyHistory`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._checks import needed
from .._configurable import unknown
from .._pictures import figure_for


def _panels(history: Any, names: list[str], path: Any) -> tuple[Any, list[Any]]:
    """A figure with a panel over the epochs for each number; ValueError without epochs."""
    who = f"{type(history).__name__}.plot"
    if not history.epochs:
        raise ValueError(f"{who}: there are no epochs to draw")
    columns = 2 if len(names) == 4 else min(3, len(names))
    rows = -(-len(names) // columns)
    figure = figure_for(path, who, figsize=(4.2 * columns, 3.1 * rows))
    from matplotlib.ticker import MaxNLocator

    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(len(names))]
    for ax in axes:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        ax.grid(alpha=0.25, lw=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


class _Numbers:
    """What the histories of one model and of many have in common."""

    if not TYPE_CHECKING:

        def __getattr__(self, name):
            raise unknown(type(self).__name__, name, ())

        def __missing__(self, name):
            raise KeyError(f"{name}: there are {', '.join(self) or 'no numbers yet'}")

    def to_dict(self) -> dict[str, list[Any]]:
        """A plain dict of lists, "epoch" first.

        Returns
        -------
        dict of str to list
        """
        raise NotImplementedError

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """`to_dict` as JSON; numbers that are not finite are null.

        Parameters
        ----------
        path : str or path, optional
            File to write the JSON to as well.

        Returns
        -------
        str

        Raises
        ------
        OSError
            If it cannot be written.
        """
        text = json.dumps(_finite(self.to_dict()))
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text + "\n")
        return text


class History(_Numbers, dict[str, list[float]]):
    """{"loss": [...], "val_loss": [...], ...}: one number per epoch.

    Parameters
    ----------
    *args, **kwargs
        As for dict.

    Attributes
    ----------
    epochs : list of int
        The epochs' numbers, from 1, or after `initial_epoch`.
    converged : str or None
        Why a full-batch optimiser (`LBFGS`) ended `fit`: further iterations would change nothing.
    """

    converged: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epochs: list[int] = list(range(1, 1 + len(next(iter(self.values()), []))))

    def record(self, epoch: int, logs: dict[str, float]) -> None:
        """Add an epoch's numbers; missing names get NaN.

        Parameters
        ----------
        epoch : int
        logs : dict of str to float
        """
        for name in {**self, **logs}:
            values = self.setdefault(name, [math.nan] * len(self.epochs))
            values.append(logs.get(name, math.nan))
        self.epochs.append(epoch)

    def goes_on(self, epochs: int, names: list[str]) -> bool:
        """Whether a further run can be appended: the history ends with epoch `epochs` and has the same names.

        Parameters
        ----------
        epochs : int
        names : list of str

        Returns
        -------
        bool
        """
        return self.epochs[-1:] == [epochs] and set(self) == set(names)

    def copy(self) -> History:
        """A copy of the history and its lists.

        Returns
        -------
        History
        """
        copy = History({name: list(values) for name, values in self.items()})
        copy.epochs = list(self.epochs)
        return copy

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the lowest "val_loss", or without validation the lowest "loss"; None if there is none."""
        values = self.get("val_loss", self.get("loss", []))
        finite = [(value, epoch) for value, epoch in zip(values, self.epochs, strict=True) if math.isfinite(value)]
        return min(finite)[1] if finite else None

    def to_dict(self) -> dict[str, list[Any]]:
        """A plain dict of copies of the lists, "epoch" first.

        Returns
        -------
        dict of str to list
        """
        return {"epoch": list(self.epochs), **{name: list(values) for name, values in self.items()}}

    def to_pandas(self) -> Any:
        """The numbers as a table with a row for each epoch, indexed by its number.

        Returns
        -------
        pandas.DataFrame

        Raises
        ------
        ImportError
            Without pandas.
        """
        pandas = needed("History.to_pandas", "pandas", "pandas")
        return pandas.DataFrame(dict(self), index=pandas.Index(self.epochs, name="epoch"))

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw each number over the epochs: training and validation in one panel, the best epoch marked.

        Parameters
        ----------
        path : str or path, optional
            Where to save the picture (PNG, PDF, SVG, by its suffix). Without it the figure is pyplot's, for
            `matplotlib.pyplot.show()`, and a notebook shows it by itself.

        Returns
        -------
        list of matplotlib.axes.Axes
            A panel for the loss, one for each metric, and one for the learning rate, if there was a schedule.

        Raises
        ------
        ValueError
            If there are no epochs.
        ImportError
            Without matplotlib.
        """
        names = [name for name in self if not name.startswith("val_") and name != "lr"]
        panels = names + ["lr"] * ("lr" in self)
        figure, axes = _panels(self, panels, path)
        best = self.best_epoch
        marker = "o" if len(self.epochs) == 1 else None
        for ax, name in zip(axes, panels, strict=True):
            curves = {"training": self[name]}
            if f"val_{name}" in self:
                curves["validation"] = self[f"val_{name}"]
            for (label, values), color in zip(curves.items(), ("#1f77b4", "#e8710a"), strict=False):
                points = [(e, v) for e, v in zip(self.epochs, values, strict=True) if not math.isnan(v)]
                ax.plot([e for e, _ in points], [v for _, v in points], color=color, label=label, lw=1.6, marker=marker)
            if name != "lr" and best is not None:
                values = list(curves.values())[-1]
                value = values[self.epochs.index(best)]
                ax.axvline(best, color="0.6", lw=0.9, ls=":", zorder=0)
                if math.isfinite(value):
                    ax.plot([best], [value], "o", ms=5, color="black", label=f"epoch {best}: {value:.4g}")
            finite = [value for values in curves.values() for value in values if math.isfinite(value)]
            wide = finite and min(finite) > 0 and max(finite) > 30 * min(finite)
            if wide and name in ("loss", "mae", "rmse"):
                ax.set_yscale("log")
            ax.set_title({"lr": "learning rate"}.get(name, name), fontsize=11, pad=6 if name == "lr" else 22)
            if name != "lr":
                above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "borderaxespad": 0.2, "ncols": 3}
                ax.legend(**above, frameon=False, fontsize=8.5, columnspacing=1, handlelength=1.5)
        if path is not None:
            figure.savefig(path, dpi=150)
        return axes

    def __repr__(self) -> str:
        n = len(self.epochs)
        if not n:
            return "History()"
        last = ", ".join(f"{name}={values[-1]:.4g}" for name, values in self.items())
        end = f"; converged: {self.converged}" * (self.converged is not None)
        return f"History({n} epoch{'s' * (n != 1)}; last: {last}{end})"


def _finite(value: Any) -> Any:
    """Numbers in dicts and lists, with None in place of those that are not finite."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return value if math.isfinite(value) else None


class ManyHistory(_Numbers, dict[str, np.ndarray]):
    """{"loss": array of shape (epochs, members), "val_loss": ...}: what training many models at once returns.

    Parameters
    ----------
    names : sequence of str
        Of the numbers.
    members : int
        How many models.

    Attributes
    ----------
    epochs : list of int
        The epochs' numbers, from 1, or after `initial_epoch`.
    last_epoch : ndarray of shape (members,), int64
        The last epoch that each has completed; its later numbers are NaN.
    best_epoch : ndarray of shape (members,), int64, or None
        With early stopping, the best epoch of each; 0 if it has none.
    diverged : dict of int to DivergenceError
        Members whose loss became infinite or NaN; each is restored to the start of that epoch, or, with early
        stopping, to its best epoch.
    """

    def __init__(self, names: Sequence[str], members: int) -> None:
        super().__init__({name: np.empty((0, members)) for name in names})
        self.epochs: list[int] = []
        self.last_epoch: np.ndarray = np.zeros(members, np.int64)
        self.best_epoch: np.ndarray | None = None
        self.diverged: dict[int, Any] = {}

    def record(self, epoch: int, logs: dict[str, np.ndarray]) -> None:
        """Add an epoch's numbers; missing names get NaN.

        Parameters
        ----------
        epoch : int
        logs : dict of str to ndarray of shape (members,)
        """
        for name in self:
            values = logs.get(name, np.full(len(self.last_epoch), math.nan))
            self[name] = np.concatenate([self[name], values[None]])
        self.epochs.append(epoch)

    def of(self, member: int) -> History:
        """The history of one member, as its own `fit` would have returned it.

        Parameters
        ----------
        member : int

        Returns
        -------
        History
        """
        epochs = [epoch for epoch in self.epochs if epoch <= self.last_epoch[member]]
        history = History({name: values[: len(epochs), member].tolist() for name, values in self.items()})
        history.epochs = epochs
        return history

    def to_dict(self) -> dict[str, list[Any]]:
        """A plain dict of lists, "epoch" first, then for each number a list of the members' for each epoch.

        Returns
        -------
        dict of str to list
        """
        return {"epoch": list(self.epochs), **{name: values.tolist() for name, values in self.items()}}

    def to_pandas(self) -> Any:
        """A table with a row for each epoch, indexed by its number, and a column (name, member) for each number.

        Returns
        -------
        pandas.DataFrame

        Raises
        ------
        ImportError
            Without pandas.
        """
        pandas = needed("ManyHistory.to_pandas", "pandas", "pandas")
        columns = pandas.MultiIndex.from_product([self, range(len(self.last_epoch))], names=["number", "member"])
        index = pandas.Index(self.epochs, name="epoch")
        return pandas.DataFrame(np.concatenate(list(self.values()), axis=1), index=index, columns=columns)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw each number over the epochs: the median of the members and the range of the middle 80 % of them.

        Parameters
        ----------
        path : str or path, optional
            As for `History.plot`.

        Returns
        -------
        list of matplotlib.axes.Axes
            A panel for the loss, and one for each metric.

        Raises
        ------
        ValueError
            If there are no epochs.
        ImportError
            Without matplotlib.
        """
        names = [name for name in self if not name.startswith("val_") and name != "lr"]
        figure, axes = _panels(self, names, path)
        for ax, name in zip(axes, names, strict=True):
            for key, label, color in ((name, "training", "#1f77b4"), (f"val_{name}", "validation", "#e8710a")):
                known = np.isfinite(self[key]).any(axis=1) if key in self else np.zeros(0, bool)
                if known.any():
                    numbers = np.where(np.isfinite(self[key]), self[key], np.nan)[known]
                    low, middle, high = np.nanquantile(numbers, (0.1, 0.5, 0.9), axis=1)
                    epochs = np.array(self.epochs)[known]
                    ax.plot(epochs, middle, color=color, lw=1.6, label=label, marker="o" if len(epochs) == 1 else None)
                    ax.fill_between(epochs, low, high, color=color, alpha=0.2, lw=0)
            of = f" of {len(self.last_epoch)} members: median, 10 to 90 %" if len(self.last_epoch) > 1 else ""
            ax.set_title(name + of, fontsize=10)
            if ax.lines:
                ax.legend(frameon=False, fontsize=8.5)
        if path is not None:
            figure.savefig(path, dpi=150)
        return axes

    def __repr__(self) -> str:
        if not self.epochs:
            return "ManyHistory()"
        last = []
        for name, values in self.items():
            known = values[-1][np.isfinite(values[-1])]
            last.append(f"{name}={known.min():.4g} to {known.max():.4g}" if len(known) else f"{name}=nan")
        n, members = len(self.epochs), len(self.last_epoch)
        end = f"; diverged: {len(self.diverged)}" * bool(self.diverged)
        return f"ManyHistory({n} epoch{'s' * (n != 1)} of {members}; last: {', '.join(last)}{end})"
