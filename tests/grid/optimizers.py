"""Optimisers: an entry is the library's class, the rule of a step in NumPy, and cases: hyper-parameters.

A rule gives the new parameters and the state of one array; state None: no step has been taken.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import cnn


def sgd_step(param, grad, buffer=None, *, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    """The new parameters and momentum buffer, by the formulas of torch.optim.SGD.

    buffer None: there has been no step with momentum yet.
    """
    step = grad + weight_decay * param
    if momentum:
        buffer = step if buffer is None else momentum * buffer + (1 - dampening) * step
        step = step + momentum * buffer if nesterov else buffer
    return param - lr * step, buffer


def adam_step(param, grad, state=None, *, lr, betas, eps, weight_decay, amsgrad=False, decoupled=False):
    """The new parameters and state (m, v, largest v, steps), by torch.optim.Adam's formulas; decoupled: AdamW's."""
    m, v, largest, t = (0.0, 0.0, 0.0, 0) if state is None else state
    t += 1
    if decoupled:
        param = param - lr * weight_decay * param
    else:
        grad = grad + weight_decay * param
    m = betas[0] * m + (1 - betas[0]) * grad
    v = betas[1] * v + (1 - betas[1]) * grad**2
    largest = np.maximum(largest, v)
    m_hat = m / (1 - betas[0] ** t)
    v_hat = (largest if amsgrad else v) / (1 - betas[1] ** t)
    return param - lr * m_hat / (np.sqrt(v_hat) + eps), (m, v, largest, t)


def rmsprop_step(param, grad, state=None, *, lr, alpha, eps, weight_decay, momentum, centered):
    """The new parameters and state (v, mean gradient, momentum buffer), by the formulas of torch.optim.RMSprop."""
    v, mean, buffer = (0.0, 0.0, 0.0) if state is None else state
    grad = grad + weight_decay * param
    v = alpha * v + (1 - alpha) * grad**2
    mean = alpha * mean + (1 - alpha) * grad
    step = grad / (np.sqrt(v - mean**2 if centered else v) + eps)
    if momentum:
        step = buffer = momentum * buffer + step
    return param - lr * step, (v, mean, buffer)


def adagrad_step(param, grad, state=None, *, lr, lr_decay, weight_decay, initial_accumulator_value, eps):
    """The new parameters and state (sum of squares, steps), by the formulas of torch.optim.Adagrad."""
    total, t = (initial_accumulator_value, 0) if state is None else state
    grad = grad + weight_decay * param
    total = total + grad**2
    return param - lr / (1 + t * lr_decay) * grad / (np.sqrt(total) + eps), (total, t + 1)


class Case(NamedTuple):
    """common: groups, clipping and averages."""

    cls: type
    rule: Callable
    options: dict[str, Any]
    common: dict[str, Any] = {}  # noqa: RUF012

    def make(self):
        return self.cls(**self.options, **self.common)

    def step(self, network, grads, states):
        """Take the reference's step with these gradients."""
        common = self.common
        if limit := common.get("clip_value"):
            grads = {k: np.clip(g, -limit, limit) for k, g in grads.items()}
        if limit := common.get("clip_norm"):
            norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
            grads = {k: g * min(1, limit / (norm + 1e-6)) for k, g in grads.items()}
        groups = {str(layer): g for g in common.get("groups", ()) for layer in g["layers"]}
        for key, node in network.walk():
            own = next((g for name, g in groups.items() if f"{key}.".startswith(f"{name}.")), {})
            for name, a in node.arrays.items():
                options = {**self.cls().get_config(), **self.options}
                options |= {k: v for k, v in own.items() if k != "layers"}
                if a.ndim == 1 and not common.get("decay_bias", True):
                    options["weight_decay"] = 0.0
                full = f"{key}.{name}"
                node.arrays[name], states[full] = self.rule(a, grads[full], states.get(full), **options)


# the table ------------------------------------------------------------------------------------------------------------

GROUP = [{"layers": [0], "lr": 0.02, "weight_decay": 0.05}]


class Optimizer(NamedTuple):
    """cases: by name, the constructor's own arguments, and those that every optimiser has."""

    cls: type
    rule: Callable
    cases: dict[str, tuple[dict, dict]]


# eps is large where the step is a quotient of gradients: rounding of a gradient near 0 would be the step.
ENTRIES = [
    Optimizer(
        cnn.SGD,
        sgd_step,
        {
            "sgd": ({"lr": 0.05}, {}),
            "sgd decay": ({"lr": 0.05, "weight_decay": 0.1}, {}),
            "sgd momentum": ({"lr": 0.03, "momentum": 0.9, "dampening": 0.2}, {}),
            "sgd nesterov": ({"lr": 0.03, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02}, {}),
            "sgd clip_norm": ({"lr": 0.1}, {"clip_norm": 0.3}),
            "sgd clip_value": ({"lr": 0.1, "momentum": 0.5}, {"clip_value": 0.02, "clip_norm": 0.1}),
            "sgd groups": ({"lr": 0.05, "weight_decay": 0.1}, {"groups": GROUP, "decay_bias": False}),
        },
    ),
    Optimizer(
        cnn.Adam,
        adam_step,
        {
            "adam": ({"lr": 0.02, "eps": 0.01}, {}),
            "adam amsgrad": (
                {"lr": 0.02, "betas": (0.5, 0.7), "eps": 0.02, "weight_decay": 0.1, "amsgrad": True},
                {},
            ),
        },
    ),
    Optimizer(
        cnn.AdamW,
        functools.partial(adam_step, decoupled=True),
        {
            "adamw": ({"lr": 0.02, "eps": 0.01, "weight_decay": 0.2}, {"decay_bias": False}),
            "adamw average": ({"lr": 0.02, "eps": 0.01}, {"ema_decay": 0.8, "groups": GROUP}),
        },
    ),
    Optimizer(
        cnn.RMSprop,
        rmsprop_step,
        {
            "rmsprop": ({"lr": 0.01, "alpha": 0.8, "eps": 0.05}, {}),
            "rmsprop centered": (
                {"lr": 0.01, "alpha": 0.8, "eps": 0.05, "centered": True, "momentum": 0.5, "weight_decay": 0.1},
                {},
            ),
        },
    ),
    Optimizer(
        cnn.Adagrad,
        adagrad_step,
        {
            "adagrad": (
                {"lr": 0.05, "lr_decay": 0.1, "eps": 0.05, "initial_accumulator_value": 0.1, "weight_decay": 0.1},
                {},
            ),
        },
    ),
]
OPTIMIZERS: dict[str, Case] = {
    name: Case(entry.cls, entry.rule, options, common)
    for entry in ENTRIES
    for name, (options, common) in entry.cases.items()
}
# Those that need the whole data have no rule that a gradient goes into: the truth is asked whether the loss is lower.
WHOLE_DATA: dict[str, tuple[type, dict]] = {
    "lbfgs": (cnn.LBFGS, {}),
    "lbfgs decay": (cnn.LBFGS, {"history_size": 2, "weight_decay": 1e-9, "decay_bias": False}),
    "levenberg": (cnn.LevenbergMarquardt, {}),
    "levenberg by products": (cnn.LevenbergMarquardt, {"exact_parameters": 0, "weight_decay": 1e-9}),
    "newton": (cnn.NewtonCG, {}),
}
RULES = {entry.cls: entry.rule for entry in ENTRIES}


def rule_of(optimizer):
    """The arguments of Network.train_step for this optimiser: its rule and hyper-parameters."""
    return {**optimizer.get_config(), "rule": RULES[type(optimizer)]}
