"""Optimisers: the hyper-parameters. The update is native, and its state lives in the model that takes the step."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .._checks import flag, number, positive
from .._configurable import Configurable, arguments_of, no_attribute, plain
from .._dispatch import kernels
from .._types import Self
from . import schedules
from .many import ManyOptimizers, has_arrays

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop"]

# What kernels/optimizer.pxi says of its table of hyper-parameters, which is float64 for every dtype.
_kernels = kernels("float32")
_SHARED: dict[str, int] = _kernels.HYPER_PARAMETERS
CODE, LR, MOMENTUM, WEIGHT_DECAY = (_SHARED[name] for name in ("optimizer", "lr", "momentum", "weight_decay"))

GROUP_RATES = ("lr", "weight_decay")  # what a group can have of its own


class _Column:
    """A hyper-parameter: a column of the optimiser's table, which the kernels read at every step.

    column: the kernels' name for it, if that is another one.
    """

    def __init__(self, column: str | None = None) -> None:
        self._column = column

    def __set_name__(self, owner: Any, name: str) -> None:
        self.name: str = name
        wanted = self._column or name
        self.column: int = _SHARED[wanted] if wanted in _SHARED else _kernels.OPTIMIZERS[owner.kernel][1][wanted]


class _Hyper(_Column):
    """A number."""

    def __init__(self, column: str | None = None, low: float = 0.0, high: float = np.inf) -> None:
        super().__init__(column)
        self.low = low
        self.high = high

    def __get__(self, optimizer: Any, owner: Any = None) -> float:
        return self if optimizer is None else float(optimizer.table[0, self.column])  # type: ignore[return-value]

    def __set__(self, optimizer: Any, value: Any) -> None:
        self._store(optimizer, number(self.name, value, self.low, self.high))

    def _store(self, optimizer, value: float) -> None:
        optimizer.table[:, self.column] = value


class _LearningRate(_Hyper):
    """Of row 0; those of the groups keep their ratio to it."""

    def _store(self, optimizer, value):
        tied = ~np.isnan(optimizer._ratios)
        optimizer.table[tied, LR] = value * optimizer._ratios[tied]


class _WeightDecay(_Hyper):
    """Of row 0, and of the groups that have none of their own."""

    def _store(self, optimizer, value):
        optimizer.table[optimizer._shares_decay, WEIGHT_DECAY] = value


class _Flag(_Column):
    """True or False."""

    def __get__(self, optimizer: Any, owner: Any = None) -> bool:
        return self if optimizer is None else bool(optimizer.table[0, self.column])  # type: ignore[return-value]

    def __set__(self, optimizer: Any, value: Any) -> None:
        optimizer._allow(self.name, flag(self.name, value))
        optimizer.table[:, self.column] = value


class _Limit(_Column):
    """A number above 0, or None."""

    def __get__(self, optimizer: Any, owner: Any = None) -> Any:
        if optimizer is None:
            return self
        value = float(optimizer.table[0, self.column])
        return None if np.isnan(value) else value

    def __set__(self, optimizer: Any, value: Any) -> None:
        optimizer._check_common(self.name, value)
        optimizer.table[:, self.column] = np.nan if value is None else self._checked(value)

    def _checked(self, value) -> float:
        return positive(self.name, value)


class _EMADecay(_Limit):
    """At least 0 and below 1. Models make room for the average when they get the optimiser."""

    def __set__(self, optimizer: Any, value: Any) -> None:
        if (value is None) != (self.__get__(optimizer) is None):
            raise AttributeError(
                f"{self.name}: can only be turned on or off in the constructor: create a new optimizer"
            )
        super().__set__(optimizer, value)

    def _checked(self, value):
        return number(self.name, value, 0, 1)


class _Group(dict[str, Any]):
    """A group as it is now. Setting its lr or weight_decay sets it for the next step."""

    def __init__(self, optimizer: Optimizer, row: int, values: dict[str, Any]):
        super().__init__(values)
        self._optimizer, self._row = optimizer, row

    def __setitem__(self, key, value):
        self._optimizer._set_in_group(self._row, key, value)
        super().__setitem__(key, value)

    def __reduce__(self):
        return dict, (dict(self),)

    def copied(self) -> Any:
        """The same group of a copy of the optimiser."""
        return copy.copy(self._optimizer).groups[self._row - 1]


class Optimizer(Configurable, kind="optimizer"):
    """Base class of optimisers: hyper-parameters, parameter groups, a schedule, clipping and averaging.

    The hyper-parameters, clipping and the schedule can be changed between steps (``optimizer.lr = 0.01``,
    ``optimizer.groups[0]["lr"] = 0.001``, ``optimizer.clip_norm = None``); the layers of a group, `decay_bias`, and
    whether there is an average cannot. Several models may share one optimiser: each model stores its own state, such as
    momentum buffers.

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    weight_decay : float
        At least 0.
    groups : list of dict, optional
        Layers with different hyper-parameters: ``{"layers": [0, "3.1"], "lr": 0.01, "weight_decay": 0.0}``. A layer
        is named by the prefix of its arrays in `Sequential.state_dict`; the name of a container includes all its
        layers. Omitted values are the optimiser's. A learning rate of 0 freezes the layers, under every schedule.
    decay_bias : bool
        Whether biases, and the weights of normalisations, decay as the other weights do.
    clip_norm : float, optional
        Above 0. Gradients whose norm, over all parameters together, is larger are scaled down to it
        (``torch.nn.utils.clip_grad_norm_``).
    clip_value : float, optional
        Above 0. Every element of the gradients is clipped to [-clip_value, clip_value]
        (``torch.nn.utils.clip_grad_value_``), before clip_norm.
    ema_decay : float, optional
        At least 0 and below 1. After each step average = decay average + (1 - decay) parameters, which starts as a copy
        of the parameters at the first step (torch.optim.swa_utils.get_ema_multi_avg_fn).
    schedule : Schedule, optional
        Of the learning rate, such as `StepLR`.

    Attributes
    ----------
    lr : float
        The learning rate. Changing it changes those of the groups in proportion (a group's own stays, if lr was 0).
    table : ndarray of shape (rows, 10), float64
        What the kernels read: row 0 is the optimiser's, then one row a group; without `decay_bias` as many again for
        the biases, without weight decay.
    """

    facts: ClassVar[tuple[str, ...]] = ("kernel",)
    kernel: ClassVar[str | None]  # its name there; None: it takes no step by a gradient alone
    whole_data: ClassVar[bool] = False  # whether it is a `WholeDataOptimizer`
    has_momentum: ClassVar[bool] = True  # or beta1: something that a schedule can cycle
    __signature__: ClassVar[inspect.Signature]
    lr: _LearningRate = _LearningRate()
    weight_decay: _WeightDecay = _WeightDecay()
    clip_norm: _Limit = _Limit()
    clip_value: _Limit = _Limit()
    ema_decay: _EMADecay = _EMADecay()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        cls.__signature__ = _signature_of(cls)
        super().__init_subclass__(**kwargs)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """With arrays for hyper-parameters: the optimisers of an `Ensemble`."""
        if isinstance(kwargs.get("betas"), np.ndarray):  # two numbers, not one for each member
            kwargs["betas"] = tuple(kwargs["betas"].tolist())
        if has_arrays(args) or has_arrays(kwargs):
            return ManyOptimizers.of_arrays(cls, args, kwargs)  # type: ignore[return-value]
        return super().__new__(cls)

    def __init__(
        self,
        lr: float,
        weight_decay: float,
        *,
        groups: Any = None,
        decay_bias: bool = True,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        ema_decay: float | None = None,
        schedule: Any = None,
    ) -> None:
        lr = number("lr", lr, 0)
        weight_decay = number("weight_decay", weight_decay, 0)
        self._decay_bias = flag("decay_bias", decay_bias)
        self._groups = _checked_groups(groups)
        self._check_common("groups", self._groups)
        named = [{}, *self._groups]
        rows = np.zeros((len(named), _kernels.TABLE_COLUMNS))
        rows[:, CODE] = np.nan if self.kernel is None else _kernels.OPTIMIZERS[self.kernel][0]
        rows[:, LR] = [group.get("lr", lr) for group in named]
        own_lr = ["lr" in group for group in named]
        ratios = np.ones(len(named))
        ratios[own_lr] = rows[own_lr, LR] / lr if lr else np.nan
        rows[:, WEIGHT_DECAY] = [group.get("weight_decay", weight_decay) for group in named]
        self.table: np.ndarray = rows if decay_bias else np.concatenate([rows, rows])
        self._ratios = ratios if decay_bias else np.concatenate([ratios, ratios])  # of each row's lr to that of row 0
        self.table[len(named) :, WEIGHT_DECAY] = 0
        self._shares_decay = np.zeros(len(self.table), bool)
        self._shares_decay[: len(named)] = ["weight_decay" not in group for group in named]
        self.table[:, type(self).ema_decay.column] = np.nan if ema_decay is None else 0.0
        self.clip_norm, self.clip_value, self.ema_decay = clip_norm, clip_value, ema_decay
        self.schedule = schedule

    if not TYPE_CHECKING:
        __getattr__ = no_attribute

    def __copy__(self) -> Self:
        """An optimiser with a table and a schedule of its own."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        arrays = {name: value.copy() for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        own = {"_groups": [dict(group) for group in self._groups], "_schedule": copy.deepcopy(self._schedule)}
        other.__dict__.update(arrays | own)
        return other

    def _allow(self, name: str, value: bool) -> None:
        """ValueError if the flag `name` cannot have this value."""

    def _check_common(self, name: str, value) -> None:
        """ValueError if the optimiser cannot have this value of what all optimisers share."""

    @property
    def decay_bias(self) -> bool:
        """Whether biases decay too; only the constructor can set it."""
        return self._decay_bias

    @decay_bias.setter
    def decay_bias(self, value: Any) -> None:
        raise AttributeError("decay_bias: can only be set in the constructor: create a new optimizer")

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups as passed in, with their present learning rates; setting an "lr" or "weight_decay" there sets it
        for the next step."""
        now: list[dict[str, Any]] = []
        for row, group in enumerate(self._groups, 1):
            rate = {"lr": float(self.table[row, LR])} if "lr" in group else {}
            now.append(_Group(self, row, {**group, "layers": list(group["layers"]), **rate}))
        return now

    def _set_in_group(self, row: int, key: str, value) -> None:
        """Set a rate of a group, which is its own from now on."""
        if key not in GROUP_RATES:
            raise AttributeError(f"groups[{row - 1}]: expected {' or '.join(GROUP_RATES)}, as {key!r} cannot be set")
        value = number(f"groups[{row - 1}]: {key}", value, 0)
        self._check_common("groups", [{key: value}])
        self._groups[row - 1][key] = value
        rows = [row] if self.decay_bias else [row, row + 1 + len(self._groups)]
        if key == "lr":
            self.table[rows, LR] = value
            self._ratios[rows] = value / self.lr if self.lr else np.nan
        else:
            self.table[row, WEIGHT_DECAY] = value
            self._shares_decay[row] = False

    def rates(self, first: int, count: int) -> np.ndarray | None:
        """What the schedule makes of the learning rates and the momentum, for `count` steps or epochs from `first`.

        Each group follows the schedule from its own initial learning rate, as in PyTorch.

        Parameters
        ----------
        first, count : int
            At least 0.

        Returns
        -------
        ndarray of shape (count, rows + 1), float64, or None
            The learning rate of each row of `table`, and last the momentum; None without a schedule.
        """
        if self._schedule is None:
            return None
        if first >= (total := getattr(self._schedule, "total_steps", first + 1)):
            warnings.warn(
                f"{type(self._schedule).__name__}: training goes on after total_steps={total:,}, with the last "
                "learning rate, nearly 0: pass total_steps=epochs * batches per epoch",
                RuntimeWarning,
                stacklevel=2,
            )
        momentum = self.table[0, MOMENTUM]
        lrs = self.table[:, LR].tolist()
        courses = {lr: self._schedule.rates(first, count, lr, momentum) for lr in dict.fromkeys(lrs)}
        rates = np.empty((count, len(lrs) + 1))
        for row, lr in enumerate(lrs):
            rates[:, row] = courses[lr][:, 0]
        cycled = courses[lrs[0]][:, 1]
        rates[:, -1] = np.where(np.isnan(cycled), momentum, cycled)
        return rates

    @property
    def schedule(self) -> schedules.Schedule | None:
        """The schedule of the learning rate, or None."""
        return self._schedule

    @schedule.setter
    def schedule(self, value: Any) -> None:
        if isinstance(value, dict):
            value = schedules.Schedule.from_config(value)
        if value is not None and not isinstance(value, schedules.Schedule):
            raise TypeError(f"schedule: expected a schedule such as cnn.StepLR(10), got {value!r}")
        if value is not None and value.cycles_momentum and not self.has_momentum:
            raise ValueError(f"schedule: {value!r} cycles the momentum, which {type(self).__name__} does not have")
        self._schedule = value

    @property
    def states(self) -> int:
        """How many numbers of state each parameter has."""
        return _kernels.states_of(self.table, self._momentum_comes())

    def _momentum_comes(self) -> bool:
        """Whether there is a momentum, now or by the schedule."""
        return bool(self.table[0, MOMENTUM]) or (self.schedule is not None and self.schedule.cycles_momentum)

    def assign(self, names: Sequence[str], dims: Sequence[int]) -> np.ndarray:
        """The row of the table for each of a model's parameter arrays.

        Parameters
        ----------
        names : sequence of str
            As in `state_dict`: "0.weight", "0.bias", "3.1.0.weight".
        dims : sequence of int
            How many dimensions each has; those of 1 count as biases.

        Returns
        -------
        ndarray of shape (len(names),), int64

        Raises
        ------
        ValueError
            If a group names a layer that no array belongs to, or an array belongs to two groups.
        """
        rows = np.zeros(len(names), np.int64)
        for row, group in enumerate(self._groups, 1):
            for layer in group["layers"]:
                members = [i for i, name in enumerate(names) if name.startswith(f"{layer}.")]
                if not members:
                    known = dict.fromkeys(name.rpartition(".")[0] for name in names)
                    raise ValueError(
                        f"groups[{row - 1}]: the model has no layer {layer!r} with parameters: expected one of "
                        f"{', '.join(known)}"
                    )
                for i in members:
                    if rows[i] not in (0, row):
                        raise ValueError(
                            f"groups: {names[i]} is in groups[{rows[i] - 1}] and in groups[{row - 1}], expected one"
                        )
                rows[members] = row
        if not self.decay_bias:
            rows[np.asarray(dims) == 1] += 1 + len(self._groups)
        return rows

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; common arguments only if they are in use.

        Returns
        -------
        dict
            By name, as JSON can hold them.
        """
        config = super().get_config()
        for name, default in arguments_of(Optimizer).items():
            if name not in config and (value := plain(getattr(self, name))) not in (default, []):
                config[name] = value
        return config

    def _shows(self, name, differs):
        return differs or name == "lr"


def _signature_of(cls: type) -> inspect.Signature:
    """Of the constructor: `inspect` would show that of __new__."""
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    return signature.replace(parameters=list(signature.parameters.values())[1:])


Optimizer.__signature__ = _signature_of(Optimizer)


def _checked_groups(groups) -> list[dict[str, Any]]:
    """Copies of the groups, checked; the models' layers are looked up in `assign`."""
    if groups is None:
        return []
    if not isinstance(groups, (list, tuple)):
        raise TypeError(f"groups: expected a list of dicts, got {groups!r}")
    checked = []
    for i, group in enumerate(groups):
        where = f"groups[{i}]"
        if not isinstance(group, dict):
            raise TypeError(f"{where}: expected a dict, got {group!r}")
        if unknown := [key for key in group if key not in ("layers", *GROUP_RATES)]:
            raise ValueError(f"{where}: unknown {', '.join(map(repr, unknown))}: expected layers, lr, weight_decay")
        layers = group.get("layers")
        if not isinstance(layers, (list, tuple)):
            raise TypeError(f"{where}: expected a list of layers' names as 'layers', got {layers!r}")
        if not layers:
            raise ValueError(f"{where}: expected at least one layer's name, got none")
        for layer in layers:
            if isinstance(layer, bool) or not isinstance(layer, (int, np.integer, str)):
                raise TypeError(f"{where}: expected a layer's name, such as 0 or '3.1', got {layer!r}")
        layers = [layer if isinstance(layer, str) else int(layer) for layer in layers]
        rates = {key: number(f"{where}: {key}", group[key], 0) for key in GROUP_RATES if key in group}
        checked.append({"layers": layers, **rates})
    return checked


class SGD(Optimizer):
    """Stochastic gradient descent, by the formulas of torch.optim.SGD.

    With gradient g, parameters w and momentum buffer m::

        d = g + weight_decay w
        m = momentum m + (1 - dampening) d        (m = d at the first step)
        w = w - lr m                              (nesterov: w = w - lr (d + momentum m))

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    momentum : float
        At least 0.
    dampening : float
    weight_decay : float
        At least 0.
    nesterov : bool
        Needs a momentum and no dampening.
    **common
        groups, decay_bias, clip_norm, clip_value, ema_decay, schedule: as for `Optimizer`.
    """

    kernel: ClassVar[str | None] = "sgd"
    momentum: _Hyper = _Hyper()
    dampening: _Hyper = _Hyper(low=-np.inf)
    nesterov: _Flag = _Flag()

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(lr, weight_decay, **common)
        self.momentum = momentum
        self.dampening = dampening
        self.nesterov = nesterov

    def _allow(self, name, value):
        if value and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov: expected a momentum and no dampening with it, got "
                f"momentum={self.momentum}, dampening={self.dampening}"
            )


class Adam(Optimizer):
    """Adam (Kingma and Ba, 2015), by the formulas of torch.optim.Adam.

    With gradient g, parameters w, moments m and v, at step t = 1, 2, ...::

        d = g + weight_decay w
        m = m + (1 - beta1) (d - m)
        v = beta2 v + (1 - beta2) d**2
        w = w - lr / (1 - beta1**t) m / (sqrt(v / (1 - beta2**t)) + eps)

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    betas : (float, float)
        beta1 and beta2, each at least 0 and below 1.
    eps, weight_decay : float
        At least 0.
    amsgrad : bool
        Take the largest v so far in the last line (AMSGrad: Reddi, Kale and Kumar, 2018).
    **common
        groups, decay_bias, clip_norm, clip_value, ema_decay, schedule: as for `Optimizer`.
    """

    kernel: ClassVar[str | None] = "adam"
    beta1: _Hyper = _Hyper("momentum", high=1.0)
    beta2: _Hyper = _Hyper(high=1.0)
    eps: _Hyper = _Hyper()
    amsgrad: _Flag = _Flag()

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(lr, weight_decay, **common)
        self.betas = betas
        self.eps = eps
        self.amsgrad = amsgrad

    @property
    def betas(self) -> tuple[float, float]:
        """beta1 and beta2."""
        return self.beta1, self.beta2

    @betas.setter
    def betas(self, value: Any) -> None:
        if not isinstance(value, (tuple, list, np.ndarray)):
            raise TypeError(f"betas: expected two numbers, got {value!r}")
        if len(value) != 2:
            raise ValueError(f"betas: expected two numbers, got {value!r}")
        before = self.table.copy()
        try:
            self.beta1, self.beta2 = value
        except (TypeError, ValueError):
            self.table[...] = before
            raise


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), by the formulas of torch.optim.AdamW.

    As `Adam` without the term in d, and with w multiplied by 1 - lr weight_decay at each step.

    Parameters
    ----------
    lr : float
    betas : (float, float)
    eps, weight_decay : float
    amsgrad : bool
        All as for `Adam`.
    **common
        groups, decay_bias, clip_norm, clip_value, ema_decay, schedule: as for `Optimizer`.
    """

    kernel: ClassVar[str | None] = "adamw"

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, amsgrad, **common)


class RMSprop(Optimizer):
    """RMSprop (Hinton, 2012), by the formulas of torch.optim.RMSprop.

    With gradient g, parameters w and averages v of its square and a of itself::

        d = g + weight_decay w
        v = alpha v + (1 - alpha) d**2
        a = alpha a + (1 - alpha) d               (centered: Graves, 2013; else a = 0)
        s = d / (sqrt(v - a**2) + eps)
        m = momentum m + s                        (without a momentum m = s)
        w = w - lr m

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    alpha : float
        At least 0 and below 1.
    eps, weight_decay, momentum : float
        At least 0.
    centered : bool
    **common
        groups, decay_bias, clip_norm, clip_value, ema_decay, schedule: as for `Optimizer`.
    """

    kernel: ClassVar[str | None] = "rmsprop"
    momentum: _Hyper = _Hyper()
    alpha: _Hyper = _Hyper(high=1.0)
    eps: _Hyper = _Hyper()
    centered: _Flag = _Flag()

    def __init__(
        self,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(lr, weight_decay, **common)
        self.alpha = alpha
        self.eps = eps
        self.momentum = momentum
        self.centered = centered


class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan and Singer, 2011), by the formulas of torch.optim.Adagrad.

    With gradient g, parameters w and the sum v of its squares, at step t = 1, 2, ...::

        d = g + weight_decay w
        v = v + d**2
        w = w - lr / (1 + (t - 1) lr_decay) d / (sqrt(v + initial_accumulator_value) + eps)

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    lr_decay, weight_decay, initial_accumulator_value, eps : float
        At least 0.
    **common
        groups, decay_bias, clip_norm, clip_value, ema_decay, schedule: as for `Optimizer`.
    """

    kernel: ClassVar[str | None] = "adagrad"
    has_momentum = False
    lr_decay: _Hyper = _Hyper()
    eps: _Hyper = _Hyper()
    initial_accumulator_value: _Hyper = _Hyper()

    def __init__(
        self,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **common: Any,
    ) -> None:
        super().__init__(lr, weight_decay, **common)
        self.lr_decay = lr_decay
        self.initial_accumulator_value = initial_accumulator_value
        self.eps = eps
