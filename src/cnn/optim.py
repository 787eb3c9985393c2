"""Optimisers: the hyper-parameters. The update is native, and its state lives in the model that takes the step."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["SGD"]


class _Hyper:
    """A hyper-parameter: a number in the optimiser's array, which the kernels read at every step."""

    def __init__(self, index: int, low: float = 0.0):
        self.index = index
        self.low = low

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, optimizer, owner=None):
        return self if optimizer is None else float(optimizer.hyper[self.index])

    def __set__(self, optimizer, value):
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise TypeError(f"{self.name}: expected a number, got {value!r}")
        if not self.low <= value < np.inf:
            raise ValueError(f"{self.name}: expected a finite number of at least {self.low:g}, got {value}")
        optimizer.hyper[self.index] = value


class SGD:
    """Stochastic gradient descent, by the formulas of torch.optim.SGD.

    With gradient g, parameters w and momentum buffer m::

        d = g + weight_decay w
        m = momentum m + (1 - dampening) d        (m = d at the first step)
        w = w - lr m                              (nesterov: w = w - lr (d + momentum m))

    Parameters
    ----------
    lr : float
        Learning rate, at least 0.
    momentum, dampening, weight_decay : float
        At least 0.
    nesterov : bool
        Needs a momentum and no dampening.

    Notes
    -----
    The hyper-parameters can be changed between steps (`optimizer.lr = 0.01`). Biases decay as weights do. One optimiser
    may serve several models: momentum buffers belong to the models.
    """

    lr = _Hyper(0)
    momentum = _Hyper(1)
    dampening = _Hyper(2, low=-np.inf)
    weight_decay = _Hyper(3)

    def __init__(self, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        self.hyper = np.zeros(5)  # lr, momentum, dampening, weight_decay, nesterov
        self.lr = lr
        self.momentum = momentum
        self.dampening = dampening
        self.weight_decay = weight_decay
        self.nesterov = nesterov

    @property
    def nesterov(self) -> bool:
        return bool(self.hyper[4])

    @nesterov.setter
    def nesterov(self, value: bool):
        if value and (self.momentum == 0 or self.dampening != 0):
            raise ValueError(
                "nesterov: expected a momentum and no dampening with it, got "
                f"momentum={self.momentum}, dampening={self.dampening}"
            )
        self.hyper[4] = bool(value)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        return {
            "lr": self.lr,
            "momentum": self.momentum,
            "dampening": self.dampening,
            "weight_decay": self.weight_decay,
            "nesterov": self.nesterov,
        }

    def __repr__(self) -> str:
        return f"SGD({', '.join(f'{k}={v:g}' for k, v in self.get_config().items() if k == 'lr' or v)})"
