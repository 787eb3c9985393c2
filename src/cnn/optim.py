"""Optimisers: the hyper-parameters. The update is native, and its state lives in the model that takes the step."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

__all__ = ["SGD", "Adam", "AdamW"]


class _Hyper:
    """A hyper-parameter: a number in the optimiser's array, which the kernels read at every step."""

    def __init__(self, index: int, low: float = 0.0, high: float = np.inf):
        self.index = index
        self.low = low
        self.high = high

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, optimizer, owner=None):
        return self if optimizer is None else float(optimizer.hyper[self.index])

    def __set__(self, optimizer, value):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise TypeError(f"{self.name}: expected a number, got {value!r}")
        if not (np.isfinite(value) and self.low <= value < self.high):
            below = "" if self.high == np.inf else f" and below {self.high:g}"
            raise ValueError(f"{self.name}: expected a finite number of at least {self.low:g}{below}, got {value}")
        optimizer.hyper[self.index] = value


class Optimizer:
    """What every optimiser has: an array of hyper-parameters, a code for the kernels, a configuration.

    The hyper-parameters can be changed between steps (`optimizer.lr = 0.01`). Biases decay as weights do. One optimiser
    may serve several models: momentum buffers and the like belong to the models.
    """

    code: ClassVar[int]  # of the kernels, hyper[0]
    lr = _Hyper(1)

    def __init__(self):
        self.hyper = np.zeros(6)
        self.hyper[0] = self.code

    @property
    def states(self) -> int:
        """How many numbers of state each parameter has."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        raise NotImplementedError

    def __repr__(self) -> str:
        default = type(self)().get_config()
        shown = {k: v for k, v in self.get_config().items() if k == "lr" or v != default[k]}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


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
    momentum, weight_decay : float
        At least 0.
    dampening : float
    nesterov : bool
        Needs a momentum and no dampening.
    """

    code = 0
    momentum = _Hyper(2)
    dampening = _Hyper(3, low=-np.inf)
    weight_decay = _Hyper(4)

    def __init__(self, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        super().__init__()
        self.lr = lr
        self.momentum = momentum
        self.dampening = dampening
        self.weight_decay = weight_decay
        self.nesterov = nesterov

    @property
    def nesterov(self) -> bool:
        return bool(self.hyper[5])

    @nesterov.setter
    def nesterov(self, value: bool):
        if value and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov: expected a momentum and no dampening with it, got "
                f"momentum={self.momentum}, dampening={self.dampening}"
            )
        self.hyper[5] = bool(value)

    @property
    def states(self):
        return int(self.momentum != 0)

    def get_config(self):
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "dampening": self.dampening,
            "weight_decay": self.weight_decay,
            "nesterov": self.nesterov,
        }


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
    """

    code = 1
    states = 2
    beta1 = _Hyper(2, high=1.0)
    beta2 = _Hyper(3, high=1.0)
    eps = _Hyper(4)
    weight_decay = _Hyper(5)

    def __init__(self, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__()
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2

    @betas.setter
    def betas(self, value):
        if not isinstance(value, (tuple, list, np.ndarray)):
            raise TypeError(f"betas: expected two numbers, got {value!r}")
        if len(value) != 2:
            raise ValueError(f"betas: expected two numbers, got {value!r}")
        before = self.betas
        try:
            self.beta1, self.beta2 = value
        except (TypeError, ValueError):
            self.hyper[2:4] = before
            raise

    def get_config(self):
        return {"lr": self.lr, "betas": list(self.betas), "eps": self.eps, "weight_decay": self.weight_decay}


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), by the formulas of torch.optim.AdamW.

    As `Adam` without the term in d, and with w multiplied by 1 - lr weight_decay at each step.

    Parameters
    ----------
    lr, betas, eps, weight_decay
        As for `Adam`.
    """

    code = 2

    def __init__(self, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(lr, betas, eps, weight_decay)
