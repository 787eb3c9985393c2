"""Learning-rate schedules: closed formulas in the number of completed steps or epochs.

Pass a schedule to the optimiser: ``cnn.SGD(lr=0.1, schedule=cnn.StepLR(30))``. It sets the learning rate of each step,
in `fit`, `train_step` and `step` alike. Names, arguments and values are those of torch.optim.lr_scheduler, for groups
of layers too, with two differences. `interval` selects what is counted: "step" counts steps of the optimiser, "epoch"
counts epochs of `fit`, or calls of `Sequential.end_epoch` in a custom training loop. And a learning rate of 0 stays 0,
so frozen groups stay frozen. Schedules are stateless, except for `ReduceLROnPlateau`, so several models can share one.

In the formulas t is the count, starting from 0, and lr the optimiser's learning rate, which the schedule does not
change.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from .._checks import choice, flag, fraction, integer, number, positive
from .._configurable import Configurable
from .._pictures import figure_for

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "ExponentialLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]

INTERVALS = ("step", "epoch")
PLATEAU_STATE = ("best", "num_bad_epochs", "cooldown_counter", "reductions")


class Schedule(Configurable, kind="schedule"):
    """Base class of all schedules.

    Parameters
    ----------
    interval : {"step", "epoch"}
        What is counted: steps of the optimiser, or epochs.

    Attributes
    ----------
    cycles_momentum : bool
        Whether it also sets the momentum, or Adam's beta1.
    """

    facts: ClassVar[tuple[str, ...]] = ("_lr",)
    _changes: ClassVar[int] = 0

    def __init__(self, interval: str) -> None:
        self.interval: str = choice("interval", interval, INTERVALS)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        Schedule._changes += 1

    @staticmethod
    def version() -> int:
        """A number that changes whenever an attribute of any schedule is set.

        Returns
        -------
        int
        """
        return Schedule._changes

    @property
    def cycles_momentum(self) -> bool:
        """Whether the schedule also sets the momentum."""
        return False

    def rates(self, first: int, count: int, lr: float, momentum: float = np.nan) -> np.ndarray:
        """Learning rates and momenta of the steps (or epochs) first, ..., first + count - 1, counted from 0.

        Parameters
        ----------
        first, count : int
            At least 0.
        lr, momentum : float
            The optimiser's values.

        Returns
        -------
        ndarray of shape (count, 2), float64
            Column 0: learning rates. Column 1: momenta, or NaN where the schedule does not set them.
        """
        t = np.arange(integer("first", first, 0), first + integer("count", count, 0))
        rates = np.full((count, 2), np.nan)
        rates[:, 0] = self._lr(t, float(lr)) if lr else 0
        if self.cycles_momentum:
            rates[:, 1] = self._momentum(t)
        return rates

    def _lr(self, t: np.ndarray, lr: float) -> Any:
        """The learning rates after t steps, an int64 array."""
        raise NotImplementedError

    def _momentum(self, t: np.ndarray) -> Any:
        """The momenta after t steps; NaN where the schedule does not set them."""
        return np.nan

    def plot(
        self, count: Any = 100, lr: float = 1.0, ax: Any = None, path: str | os.PathLike[str] | None = None
    ) -> Any:
        """Draw the learning rate, and the momentum if it is cycled, over `count` steps or epochs.

        Parameters
        ----------
        count : int, str or path
            If it is a path, it is used as `path`, and the count is 100.
        lr : float
            The optimiser's learning rate.
        ax : matplotlib.axes.Axes, optional
            Where to draw; None: in a new figure, created with pyplot if there is no path.
        path : str or path, optional
            Where to save the picture; the suffix selects the format (PNG, PDF, SVG).

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            Without matplotlib.
        """
        if isinstance(count, (str, os.PathLike)):
            count, path = 100, count
        rates = self.rates(0, count, lr)
        if ax is None:
            ax = figure_for(path, f"{type(self).__name__}.plot").subplots()
        ax.plot(rates[:, 0], label="learning rate")
        ax.set_xlabel(self.interval)
        ax.set_ylabel("learning rate")
        if self.cycles_momentum:
            twin = ax.twinx()
            twin.plot(rates[:, 1], color="C1", label="momentum")
            twin.set_ylabel("momentum")
            above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 2, "frameon": False}
            ax.legend(handles=[*ax.lines, *twin.lines], **above)
        if path is not None:
            ax.figure.savefig(path)
        return ax


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Create a schedule from its configuration.

    Parameters
    ----------
    config : mapping
        ``{"name": "StepLR", "step_size": 30, ...}``, as `Schedule.to_config` returns it.

    Returns
    -------
    Schedule

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If the schedule does not have these arguments.
    """
    return Schedule.from_config(config)


class ConstantLR(Schedule):
    """lr factor for the first total_iters steps, then lr (torch.optim.lr_scheduler.ConstantLR).

    Parameters
    ----------
    factor : float
        From 0 to 1.
    total_iters : int
        At least 1.
    interval : {"epoch", "step"}
    """

    def __init__(self, factor: float = 1.0 / 3, total_iters: int = 5, interval: str = "epoch") -> None:
        super().__init__(interval)
        self.factor: float = fraction("factor", factor)
        self.total_iters: int = integer("total_iters", total_iters, 1)

    def _lr(self, t, lr):
        return np.where(t < self.total_iters, lr * self.factor, lr)


class LinearLR(Schedule):
    """lr times a factor that changes linearly from start_factor to end_factor: a warm-up
    (torch.optim.lr_scheduler.LinearLR).

    Parameters
    ----------
    start_factor : float
        Above 0, at most 1.
    end_factor : float
        From 0 to 1; reached after total_iters steps, then constant.
    total_iters : int
        At least 1.
    interval : {"epoch", "step"}
    """

    def __init__(
        self, start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5, interval: str = "epoch"
    ) -> None:
        super().__init__(interval)
        self.start_factor: float = fraction("start_factor", positive("start_factor", start_factor))
        self.end_factor: float = fraction("end_factor", end_factor)
        self.total_iters: int = integer("total_iters", total_iters, 1)

    def _lr(self, t, lr):
        part = np.minimum(t, self.total_iters) / self.total_iters
        return lr * (self.start_factor + (self.end_factor - self.start_factor) * part)


class PolynomialLR(Schedule):
    """lr (1 - t / total_iters)**power, then 0 (torch.optim.lr_scheduler.PolynomialLR).

    Parameters
    ----------
    total_iters : int
        At least 1.
    power : float
        Above 0.
    interval : {"epoch", "step"}
    """

    def __init__(self, total_iters: int = 5, power: float = 1.0, interval: str = "epoch") -> None:
        super().__init__(interval)
        self.total_iters: int = integer("total_iters", total_iters, 1)
        self.power: float = positive("power", power)

    def _lr(self, t, lr):
        return lr * (1 - np.minimum(t, self.total_iters) / self.total_iters) ** self.power


class StepLR(Schedule):
    """lr gamma**(t // step_size) (torch.optim.lr_scheduler.StepLR).

    Parameters
    ----------
    step_size : int
        At least 1.
    gamma : float
        At least 0.
    interval : {"epoch", "step"}
    """

    def __init__(self, step_size: int, gamma: float = 0.1, interval: str = "epoch") -> None:
        super().__init__(interval)
        self.step_size: int = integer("step_size", step_size, 1)
        self.gamma: float = number("gamma", gamma, 0)

    def _lr(self, t, lr):
        return lr * self.gamma ** (t // self.step_size)


class MultiStepLR(Schedule):
    """lr gamma**(number of milestones <= t) (torch.optim.lr_scheduler.MultiStepLR).

    Parameters
    ----------
    milestones : sequence of int
        At least 0, in non-decreasing order.
    gamma : float
        At least 0.
    interval : {"epoch", "step"}
    """

    def __init__(self, milestones: Sequence[int], gamma: float = 0.1, interval: str = "epoch") -> None:
        super().__init__(interval)
        self.milestones: tuple[int, ...] = _milestones(milestones, 0)
        self.gamma: float = number("gamma", gamma, 0)

    def _lr(self, t, lr):
        return lr * self.gamma ** np.searchsorted(self.milestones, t, side="right")


class ExponentialLR(Schedule):
    """lr gamma**t (torch.optim.lr_scheduler.ExponentialLR).

    Parameters
    ----------
    gamma : float
        At least 0.
    interval : {"epoch", "step"}
    """

    def __init__(self, gamma: float, interval: str = "epoch") -> None:
        super().__init__(interval)
        self.gamma: float = number("gamma", gamma, 0)

    def _lr(self, t, lr):
        return lr * self.gamma**t


class CosineAnnealingLR(Schedule):
    """eta_min + (lr - eta_min) (1 + cos(pi t / T_max)) / 2 (torch.optim.lr_scheduler.CosineAnnealingLR).

    After T_max steps it rises again, as in PyTorch.

    Parameters
    ----------
    T_max : int
        At least 1.
    eta_min : float
        At least 0.
    interval : {"epoch", "step"}
    """

    def __init__(self, T_max: int, eta_min: float = 0.0, interval: str = "epoch") -> None:
        super().__init__(interval)
        self.T_max: int = integer("T_max", T_max, 1)
        self.eta_min: float = number("eta_min", eta_min, 0)

    def _lr(self, t, lr):
        return _cosine(lr, self.eta_min, t / self.T_max)


class CosineAnnealingWarmRestarts(Schedule):
    """Cosine cycles from lr to eta_min, of T_0, T_0 T_mult, T_0 T_mult**2, ... steps
    (torch.optim.lr_scheduler.CosineAnnealingWarmRestarts; Loshchilov and Hutter, 2017).

    Parameters
    ----------
    T_0, T_mult : int
        At least 1.
    eta_min : float
        At least 0.
    interval : {"epoch", "step"}
    """

    def __init__(self, T_0: int, T_mult: int = 1, eta_min: float = 0.0, interval: str = "epoch") -> None:
        super().__init__(interval)
        self.T_0 = integer("T_0", T_0, 1)
        self.T_mult: int = integer("T_mult", T_mult, 1)
        self.eta_min: float = number("eta_min", eta_min, 0)

    def _lr(self, t, lr):
        if self.T_mult == 1:
            return _cosine(lr, self.eta_min, t % self.T_0 / self.T_0)
        starts = [0]
        while starts[-1] <= t.max(initial=0):
            starts.append(starts[-1] + self.T_0 * self.T_mult ** (len(starts) - 1))
        cycle = np.searchsorted(starts, t, side="right") - 1
        lengths = np.diff(starts)
        return _cosine(lr, self.eta_min, (t - np.take(starts, cycle)) / lengths[cycle])


class OneCycleLR(Schedule):
    """One cycle: from max_lr / div_factor up to max_lr, then down to max_lr / div_factor / final_div_factor, with the
    opposite cycle of the momentum or Adam's beta1 (torch.optim.lr_scheduler.OneCycleLR; Smith and Topin, 2018).

    The optimiser's lr is not used. After total_steps the last value stays; PyTorch raises an error there.

    Parameters
    ----------
    max_lr : float
        Above 0.
    total_steps : int
        At least 1: in `fit`, the number of epochs times the number of batches per epoch.
    pct_start : float
        From 0 to 1: the fraction of steps in which the learning rate rises.
    anneal_strategy : {"cos", "linear"}
    cycle_momentum : bool
        Whether the momentum falls from max_momentum to base_momentum and rises again.
    base_momentum, max_momentum : float
        At least 0 and below 1.
    div_factor, final_div_factor : float
        Above 0.
    three_phase : bool
        Whether to fall to the initial value as fast as it rose, and only then to the final value.
    interval : {"step", "epoch"}
    """

    def __init__(
        self,
        max_lr: float,
        total_steps: int,
        *,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        interval: str = "step",
    ) -> None:
        super().__init__(interval)
        self.max_lr: float = positive("max_lr", max_lr)
        self.total_steps: int = integer("total_steps", total_steps, 1)
        self.pct_start: float = fraction("pct_start", pct_start)
        self.anneal_strategy: str = choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.cycle_momentum: bool = flag("cycle_momentum", cycle_momentum)
        self.base_momentum: float = number("base_momentum", base_momentum, 0, 1)
        self.max_momentum: float = number("max_momentum", max_momentum, 0, 1)
        self.div_factor: float = positive("div_factor", div_factor)
        self.final_div_factor: float = positive("final_div_factor", final_div_factor)
        self.three_phase: bool = flag("three_phase", three_phase)

    @property
    def cycles_momentum(self) -> bool:
        return self.cycle_momentum

    def _annealed(self, t, low, high, end):
        """From low to high to end, or, in three phases, from low to high to low to end."""
        rise = self.pct_start * self.total_steps - 1
        phases = [(rise, low, high), (self.total_steps - 1, high, end)]
        if self.three_phase:
            fall = 2 * self.pct_start * self.total_steps - 2
            phases = [phases[0], (fall, high, low), (self.total_steps - 1, low, end)]
        t = np.minimum(t, self.total_steps - 1)
        ends = np.array([phase[0] for phase in phases])
        phase = np.argmax((t[:, None] <= ends) | (ends == ends[-1]), axis=1)
        starts = np.array([0.0, *ends[:-1]])[phase]
        length = ends[phase] - starts
        part = np.divide(t - starts, length, out=np.ones(len(t)), where=length != 0)
        begin, to = (np.array([values[i] for values in phases])[phase] for i in (1, 2))
        return begin + (to - begin) * part if self.anneal_strategy == "linear" else _cosine(begin, to, part)

    def _lr(self, t, lr):
        low = self.max_lr / self.div_factor
        return self._annealed(t, low, self.max_lr, low / self.final_div_factor)

    def _momentum(self, t):
        return self._annealed(t, self.max_momentum, self.base_momentum, self.max_momentum)


class SequentialLR(Schedule):
    """Several schedules in sequence, each counting from its own start (torch.optim.lr_scheduler.SequentialLR).

    A warm-up of 5 epochs, then a cosine: ``SequentialLR([LinearLR(0.1, total_iters=5), CosineAnnealingLR(95)], [5])``.

    Parameters
    ----------
    schedules : sequence of Schedule
        All with the same interval, which becomes this schedule's; no ReduceLROnPlateau.
    milestones : sequence of int
        At least 1 and increasing: the counts at which the second schedule begins, the third, ...
    """

    def __init__(self, schedules: Any, milestones: Sequence[int]) -> None:
        if isinstance(schedules, Schedule) or not isinstance(schedules, Sequence) or isinstance(schedules, str):
            raise TypeError(f"schedules: expected a list of schedules, got {schedules!r}")
        schedules = [Schedule.from_config(one) if isinstance(one, dict) else one for one in schedules]
        if not schedules:
            raise ValueError("schedules: expected at least one schedule, got none")
        for i, one in enumerate(schedules):
            if not isinstance(one, Schedule):
                raise TypeError(f"schedules[{i}]: expected a schedule, got {one!r}")
            if isinstance(one, ReduceLROnPlateau):
                raise ValueError(f"schedules[{i}]: ReduceLROnPlateau cannot be part of a SequentialLR: pass it alone")
            if one.interval != schedules[0].interval:
                expected = schedules[0].interval
                raise ValueError(f"schedules[{i}]: expected interval {expected!r}, as the first, got {one.interval!r}")
        self.schedules: Any = tuple(schedules)
        self.milestones: tuple[int, ...] = _milestones(milestones, 1)
        if len(self.milestones) != len(schedules) - 1:
            raise ValueError(f"milestones: expected {len(schedules) - 1}, one fewer than schedules, got {milestones!r}")
        if len(set(self.milestones)) < len(self.milestones):
            raise ValueError(f"milestones: expected increasing numbers, got {milestones!r}")
        super().__init__(schedules[0].interval)

    @property
    def cycles_momentum(self) -> bool:
        return any(one.cycles_momentum for one in self.schedules)

    def _joined(self, t, course):
        """Evaluate course(schedule, its own count) for each schedule over its part of t."""
        which = np.searchsorted(self.milestones, t, side="right")
        joined = np.empty(len(t))
        for i, (one, start) in enumerate(zip(self.schedules, [0, *self.milestones], strict=True)):
            mine = which == i
            joined[mine] = course(one, t[mine] - start)
        return joined

    def _lr(self, t, lr):
        return self._joined(t, lambda one, own: one._lr(own, lr))

    def _momentum(self, t):
        return self._joined(t, lambda one, own: one._momentum(own) if one.cycles_momentum else np.nan)


class ReduceLROnPlateau(Schedule):
    """Multiply the learning rate by `factor` if a metric has not improved for more than `patience` epochs
    (torch.optim.lr_scheduler.ReduceLROnPlateau).

    `fit` and `Sequential.end_epoch` call `step` after each epoch. This is the only schedule with a state; see
    `state_dict`.

    Parameters
    ----------
    mode : {"min", "max"}
        Whether a lower or a higher metric is better.
    factor : float
        At least 0 and below 1.
    patience : int
        At least 0.
    threshold : float
        At least 0: the smallest change that counts as an improvement.
    threshold_mode : {"rel", "abs"}
        Whether `threshold` is relative to the best value so far, or absolute. "rel" uses its magnitude; PyTorch does
        not, and may therefore count a slightly worse negative value as better.
    cooldown : int
        At least 0: epochs after a reduction that are not counted.
    min_lr : float
        At least 0.
    eps : float
        At least 0: smaller reductions are skipped.
    monitor : str, optional
        The key of the metric in the logs of `fit`; None: "val_loss", or "loss" without validation data.
    """

    def __init__(
        self,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
        monitor: str | None = None,
    ) -> None:
        super().__init__("epoch")
        self.mode: str = choice("mode", mode, ("min", "max"))
        self.factor: float = number("factor", factor, 0, 1)
        self.patience: int = integer("patience", patience, 0)
        self.threshold: float = number("threshold", threshold, 0)
        self.threshold_mode: str = choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.cooldown: int = integer("cooldown", cooldown, 0)
        self.min_lr: float = number("min_lr", min_lr, 0)
        self.eps: float = number("eps", eps, 0)
        if monitor is not None and not isinstance(monitor, str):
            raise TypeError(f"monitor: expected a str or None, got {monitor!r}")
        self.monitor = monitor
        self.best: float | None = None
        self.num_bad_epochs: int = 0
        self.cooldown_counter: int = 0
        self.reductions: int = 0

    def watched(self, names: Any) -> str:
        """The name of the monitored value, which must be among these names.

        Parameters
        ----------
        names : collection of str

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If it is not among them.
        """
        name = self.monitor or ("val_loss" if "val_loss" in names else "loss")
        if name not in names:
            raise ValueError(f"schedule: no {name!r} to monitor: there are {', '.join(names)}")
        return name

    def step(self, metric: float) -> None:
        """Count an epoch. A reduction applies from the next step of the optimiser.

        Parameters
        ----------
        metric : float
            Its value at the end of the epoch. NaN does not count as an improvement.
        """
        metric = float(metric)
        if self._better(metric):
            self.best = metric
            self.num_bad_epochs = 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self.reductions += 1
            self.cooldown_counter = self.cooldown
            self.num_bad_epochs = 0

    def _better(self, metric: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        best = -sign * np.inf if self.best is None else self.best
        margin = sign * self.threshold
        if self.threshold_mode == "rel" and self.best is not None:
            margin *= abs(best)
        limit = best + margin
        return sign * metric > sign * limit

    def _lr(self, t, lr):
        for _ in range(self.reductions):
            reduced = max(lr * self.factor, self.min_lr)
            if lr - reduced <= self.eps:
                break
            lr = reduced
        return lr

    def state_dict(self) -> dict[str, Any]:
        """Return the state.

        Returns
        -------
        dict
            JSON-serialisable: best (None before the first epoch), num_bad_epochs, cooldown_counter, reductions.
        """
        return {name: getattr(self, name) for name in PLATEAU_STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the state.

        Parameters
        ----------
        state : mapping
            What `state_dict` returned.

        Raises
        ------
        ValueError, TypeError
            If the keys or values are invalid.
        """
        if set(state) != set(PLATEAU_STATE):
            raise ValueError(f"state: expected {', '.join(PLATEAU_STATE)}, got {', '.join(map(str, state))}")
        best = None if state["best"] is None else float(state["best"])
        counts = [integer(name, state[name], 0) for name in PLATEAU_STATE[1:]]
        self.best = best
        self.num_bad_epochs, self.cooldown_counter, self.reductions = counts


def _cosine(begin, end, part):
    """From begin to end as part goes from 0 to 1, along half a cosine."""
    return end + (begin - end) * (1 + np.cos(np.pi * part)) / 2


def _milestones(values, low: int) -> tuple[int, ...]:
    """values as integers of at least low, in non-decreasing order."""
    if isinstance(values, str) or not isinstance(values, (Sequence, np.ndarray)):
        raise TypeError(f"milestones: expected a list of int, got {values!r}")
    milestones = [integer(f"milestones[{i}]", value, low) for i, value in enumerate(values)]
    if sorted(milestones) != milestones:
        raise ValueError(f"milestones: expected increasing numbers, got {values!r}")
    return tuple(milestones)
