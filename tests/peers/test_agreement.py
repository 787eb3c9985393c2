"""Agreement with PyTorch over 200 steps of training in float64: every optimiser, layer, loss and schedule.

    PYTHONPATH=src:tests python tests/peers/test_agreement.py      prints the table of the largest differences

PyTorch's twin is made by `cnn.to_torch`. Differences are relative to the largest number: of the losses of all steps,
and of each parameter array at the end. test_training.py has more settings; Dropout, whose random numbers are its own,
is compared where it does nothing.
"""

from functools import partial

import grid
import numpy as np
import pytest
import torch
from peers.twins import torch_loss

import cnn

STEPS, BATCH, N_IN, N_OUT = 200, 32, 6, 3

OPTIMIZERS = {  # PyTorch's groups and averages: test_groups.py
    name: case
    for name, case in grid.OPTIMIZERS.items()
    if not {"groups", "decay_bias", "ema_decay"} & case.common.keys()
}
LAYERS = {name: entry.make for name, entry in grid.ACTIVATIONS.items()} | {
    name: partial(entry.make, 20, "float64")
    for name, entry in grid.LAYERS.items()
    if not entry.branches and entry.width(20) == 20 and name not in ("dropout", "linear penalised")
}
LAYERS["dropout of nothing"] = partial(cnn.Dropout, 0.0)
LOSSES = {name: case for name, case in grid.LOSSES.items() if case.torch and not case.in_pairs}
EPOCHS = 20  # of the schedules: steps of 10
SCHEDULES = {
    "StepLR": ({"step_size": 5}, "epoch"),
    "MultiStepLR": ({"milestones": [5, 12]}, "epoch"),
    "ExponentialLR": ({"gamma": 0.9}, "epoch"),
    "CosineAnnealingLR": ({"T_max": 20}, "epoch"),
    "CosineAnnealingWarmRestarts": ({"T_0": 6}, "epoch"),
    "LinearLR": ({"start_factor": 0.1, "total_iters": 8}, "epoch"),
    "ConstantLR": ({"factor": 0.2, "total_iters": 7}, "epoch"),
    "PolynomialLR": ({"total_iters": 18, "power": 2.0}, "epoch"),
    "OneCycleLR": ({"max_lr": 0.1, "total_steps": 200}, "step"),
}


def batches(kind="numbers"):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, BATCH, N_IN))
    return x, np.array([grid.targets(kind, BATCH, N_OUT, rng) for _ in x])


def difference(optimizer=cnn.SGD, hyper=None, layer=None, loss="mse", common=None, schedule=None):
    """The largest relative difference of losses and parameters after 200 steps."""
    case = LOSSES[loss]
    theirs = torch_loss(case, N_OUT)
    outputs = BATCH * N_OUT if theirs.reduction == "sum" else 1
    hyper = hyper or {"lr": 0.02 / outputs}  # a training that is not chaotic: rounding errors are not magnified
    common = dict(common or {})
    if schedule:
        arguments, interval = SCHEDULES[schedule]
        own = {} if interval == "step" else {"interval": "epoch"}
        common["schedule"] = getattr(cnn, schedule)(**arguments, **own)
    middle = layer or cnn.Tanh()
    last = [cnn.LogSoftmax()] if case.loss.cls is cnn.NLLLoss else [cnn.Softplus()] if case.positive else []
    model = cnn.Sequential(
        [cnn.Linear(N_IN, 20), middle, cnn.Linear(20, 17), cnn.Tanh(), cnn.Linear(17, N_OUT), *last, case.make(N_OUT)],
        optimizer=optimizer(**hyper, **common),
        dtype="float64",
        seed=0,
    )
    twin = cnn.to_torch(model).train()
    if isinstance(middle, cnn.Softplus):
        twin[1].threshold = 80  # the formula everywhere: PyTorch's is the identity from 20 on
    step = getattr(torch.optim, optimizer.__name__)(twin.parameters(), **hyper)
    rates = schedule and getattr(torch.optim.lr_scheduler, schedule)(step, **SCHEDULES[schedule][0])
    x, y = batches(case.targets)
    if schedule:
        per_epoch = STEPS // EPOCHS * BATCH
        flat_x, flat_y = x.reshape(-1, N_IN), y.reshape(STEPS * BATCH, -1)
        # Ten batches an epoch; the rows are others in each epoch.
        values = []
        for epoch in range(EPOCHS):
            rows = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
            model.fit(
                flat_x[rows], flat_y[rows], epochs=epoch + 1, initial_epoch=epoch, batch_size=BATCH, shuffle=False
            )
            values.append(model.history["loss"][-1])
    else:
        values = [model.train_step(*batch) for batch in zip(x, y, strict=True)]
    expected = []
    for i in range(STEPS):
        step.zero_grad()
        value = theirs(twin(torch.from_numpy(x[i])), torch.from_numpy(y[i]))
        value.backward()
        if "clip_value" in common:
            torch.nn.utils.clip_grad_value_(twin.parameters(), common["clip_value"])
        if "clip_norm" in common:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), common["clip_norm"])
        step.step()
        if schedule and (SCHEDULES[schedule][1] == "step" or (i + 1) % (STEPS // EPOCHS) == 0):
            rates.step()
        expected.append(value.item())
    if schedule:
        expected = np.reshape(expected, (EPOCHS, -1)).mean(axis=1)
    state = twin.state_dict()
    pairs = [(np.array(values), np.array(expected))]
    pairs += [(a, state[name].numpy().T) for name, a in model.state_dict().items()]
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)


CASES = {
    "optimiser": {
        name: {"optimizer": case.cls, "hyper": case.options, "common": case.common} for name, case in OPTIMIZERS.items()
    },
    "layer": {name: {"layer": make} for name, make in LAYERS.items()},
    "loss": {name: {"loss": name} for name in LOSSES},
    "schedule": {name: {"schedule": name} for name in SCHEDULES},
}


def run(what, name):
    settings = dict(CASES[what][name])
    if "layer" in settings:
        settings["layer"] = settings["layer"]()
    return difference(**settings)


@pytest.mark.parametrize(("what", "name"), [(what, name) for what, cases in CASES.items() for name in cases])
def test_agreement(what, name):
    assert run(what, name) < 1e-9


if __name__ == "__main__":
    for what, cases in CASES.items():
        print(f"| {what} | largest relative difference |\n|---|---:|")
        for name in cases:
            print(f"| {name} | {run(what, name):.1e} |")
        print()
