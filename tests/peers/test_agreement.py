"""Agreement with PyTorch over 200 steps of training in float64: every optimiser, layer, loss and schedule.

    PYTHONPATH=src:tests python tests/peers/test_agreement.py      prints the table of the largest differences

PyTorch's twin is made by `cnn.to_torch`. Differences are relative to the largest number: of the losses of all steps,
and of each parameter array at the end. test_training.py has more settings; Dropout, whose random numbers are its own,
is compared where it does nothing.
"""

import numpy as np
import pytest
import torch

import cnn

STEPS, BATCH, N_IN, N_OUT = 200, 32, 6, 3

OPTIMIZERS = {
    "SGD": ({"lr": 0.05}, {}),
    "SGD, momentum": ({"lr": 0.02, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}, {}),
    "SGD, Nesterov": ({"lr": 0.02, "momentum": 0.9, "nesterov": True}, {}),
    "Adam": ({"lr": 0.003}, {}),
    "Adam, AMSGrad": ({"lr": 0.003, "amsgrad": True, "weight_decay": 0.01}, {}),
    "AdamW": ({"lr": 0.003}, {}),
    "RMSprop": ({"lr": 0.002}, {}),
    "RMSprop, centered, momentum": ({"lr": 0.001, "centered": True, "momentum": 0.8}, {}),
    "Adagrad": ({"lr": 0.02, "lr_decay": 0.01}, {}),
    "SGD, clip_norm 0.5": ({"lr": 0.05}, {"clip_norm": 0.5}),
    "Adam, clip_value 0.01": ({"lr": 0.003}, {"clip_value": 0.01}),
}
LAYERS = {
    "Identity": lambda: cnn.Identity(),
    "ReLU": lambda: cnn.ReLU(),
    "LeakyReLU": lambda: cnn.LeakyReLU(0.2),
    "ELU": lambda: cnn.ELU(1.5),
    "Sigmoid": lambda: cnn.Sigmoid(),
    "Tanh": lambda: cnn.Tanh(),
    "GELU": lambda: cnn.GELU(),
    "GELU, tanh": lambda: cnn.GELU(approximate="tanh"),
    "SiLU": lambda: cnn.SiLU(),
    "Softplus": lambda: cnn.Softplus(),
    "Softmax": lambda: cnn.Softmax(),
    "LogSoftmax": lambda: cnn.LogSoftmax(),
    "BatchNorm1d": lambda: cnn.BatchNorm1d(20),
    "LayerNorm": lambda: cnn.LayerNorm(20),
    "Dropout, p 0": lambda: cnn.Dropout(0.0),
}
CLASS_WEIGHTS = [0.5, 1.0, 2.0]
# The library's loss, PyTorch's, and the targets.
LOSSES = {
    "MSELoss": (cnn.MSELoss(), torch.nn.MSELoss(), "numbers"),
    "L1Loss": (cnn.L1Loss(), torch.nn.L1Loss(), "numbers"),
    "HuberLoss": (cnn.HuberLoss(delta=0.7), torch.nn.HuberLoss(delta=0.7), "numbers"),
    "SmoothL1Loss": (cnn.SmoothL1Loss(beta=0.7), torch.nn.SmoothL1Loss(beta=0.7), "numbers"),
    "BCEWithLogitsLoss": (
        cnn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS),
        torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(CLASS_WEIGHTS, dtype=torch.float64)),
        "yes or no",
    ),
    "CrossEntropyLoss": (
        cnn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.1),
        torch.nn.CrossEntropyLoss(torch.tensor(CLASS_WEIGHTS, dtype=torch.float64), label_smoothing=0.1),
        "classes",
    ),
    "NLLLoss": (cnn.NLLLoss(), torch.nn.NLLLoss(), "classes"),
    "PoissonNLLLoss": (cnn.PoissonNLLLoss(full=True), torch.nn.PoissonNLLLoss(full=True), "counts"),
}
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
    y = {
        "numbers": lambda: rng.standard_normal((STEPS, BATCH, N_OUT)),
        "classes": lambda: rng.integers(0, N_OUT, (STEPS, BATCH)),
        "yes or no": lambda: rng.integers(0, 2, (STEPS, BATCH, N_OUT)).astype(float),
        "counts": lambda: rng.poisson(2.0, (STEPS, BATCH, N_OUT)).astype(float),
    }[kind]()
    return x, y


def difference(optimizer="SGD", hyper=None, layer=None, loss="MSELoss", common=None, schedule=None):
    """The largest relative difference of losses and parameters after 200 steps."""
    ours, theirs, kind = LOSSES[loss]
    hyper = hyper or {"lr": 0.02}  # a training that is not chaotic: rounding errors are not magnified
    common = dict(common or {})
    if schedule:
        arguments, interval = SCHEDULES[schedule]
        own = {} if interval == "step" else {"interval": "epoch"}
        common["schedule"] = getattr(cnn, schedule)(**arguments, **own)
    middle = layer or cnn.Tanh()
    last = [cnn.LogSoftmax()] if loss == "NLLLoss" else []
    model = cnn.Sequential(
        [cnn.Linear(N_IN, 20), middle, cnn.Linear(20, 17), cnn.Tanh(), cnn.Linear(17, N_OUT), *last, ours],
        optimizer=getattr(cnn, optimizer)(**hyper, **common),
        dtype="float64",
        seed=0,
    )
    twin = cnn.to_torch(model).train()
    if isinstance(middle, cnn.Softplus):
        twin[1].threshold = 80  # the formula everywhere: PyTorch's is the identity from 20 on
    step = getattr(torch.optim, optimizer)(twin.parameters(), **hyper)
    rates = schedule and getattr(torch.optim.lr_scheduler, schedule)(step, **SCHEDULES[schedule][0])
    x, y = batches(kind)
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
        if "clip_norm" in common:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), common["clip_norm"])
        if "clip_value" in common:
            torch.nn.utils.clip_grad_value_(twin.parameters(), common["clip_value"])
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
        name: {"optimizer": name.partition(",")[0], "hyper": h, "common": c} for name, (h, c) in OPTIMIZERS.items()
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
