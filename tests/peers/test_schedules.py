"""Schedules: the learning rates and momenta of whole courses, and beyond their ends, beside PyTorch's."""

import warnings

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import cnn

LR = 0.3
# PyTorch's schedulers go from one value to the next, and carry the rounding errors of all steps on; so close to LR.
CLOSE = {"rtol": 1e-12, "atol": 1e-12 * LR}

# Arguments, the same in both libraries, and the number of steps.
SETTINGS = [
    ("ConstantLR", {}, 12),
    ("ConstantLR", {"factor": 0.2, "total_iters": 1}, 5),
    ("LinearLR", {}, 12),
    ("LinearLR", {"start_factor": 0.01, "end_factor": 0.4, "total_iters": 30}, 60),
    ("LinearLR", {"start_factor": 1.0, "end_factor": 0.0, "total_iters": 9}, 20),
    ("PolynomialLR", {}, 12),
    ("PolynomialLR", {"total_iters": 20, "power": 0.7}, 40),
    ("StepLR", {"step_size": 7}, 50),
    ("StepLR", {"step_size": 1, "gamma": 0.8}, 50),
    ("MultiStepLR", {"milestones": [3, 3, 10, 31], "gamma": 0.5}, 60),
    ("ExponentialLR", {"gamma": 0.93}, 100),
    ("CosineAnnealingLR", {"T_max": 25}, 130),
    ("CosineAnnealingLR", {"T_max": 40, "eta_min": 0.01}, 130),
    ("CosineAnnealingLR", {"T_max": 1, "eta_min": 0.01}, 10),
    ("CosineAnnealingWarmRestarts", {"T_0": 13}, 60),
    ("CosineAnnealingWarmRestarts", {"T_0": 1, "T_mult": 2}, 130),
    ("CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 3, "eta_min": 0.02}, 250),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 100}, 100),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 100, "three_phase": True}, 100),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 33, "pct_start": 0.45, "anneal_strategy": "linear"}, 33),
    (
        "OneCycleLR",
        {"max_lr": 0.5, "total_steps": 50, "three_phase": True, "pct_start": 0.4, "anneal_strategy": "linear"},
        50,
    ),
    ("OneCycleLR", {"max_lr": 2.0, "total_steps": 50, "three_phase": True, "pct_start": 0.7}, 50),
    (
        "OneCycleLR",
        {
            "max_lr": 0.1,
            "total_steps": 71,
            "base_momentum": 0.5,
            "max_momentum": 0.9,
            "div_factor": 3.0,
            "final_div_factor": 11.0,
        },
        71,
    ),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 20, "cycle_momentum": False}, 20),
    ("OneCycleLR", {"max_lr": 0.5, "total_steps": 1}, 1),
]


def torch_course(make, steps, optimizer="SGD"):
    """lr and momentum of each step, as a loop with PyTorch's scheduler has them."""
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    settings = {"momentum": 0.7} if optimizer == "SGD" else {}
    optimizer = getattr(torch.optim, optimizer)(parameters, lr=LR, **settings)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR itself calls what warns of the order of calls
        scheduler = make(optimizer)
        for _ in range(steps):
            group = optimizer.param_groups[0]
            rates.append([group["lr"], group["momentum"] if "momentum" in group else group["betas"][0]])
            optimizer.step()
            scheduler.step()
    return np.array(rates)


def own_course(schedule, steps, momentum):
    rates = schedule.rates(0, steps, LR, momentum)
    rates[np.isnan(rates[:, 1]), 1] = momentum
    return rates


@pytest.mark.parametrize(("name", "arguments", "steps"), SETTINGS, ids=str)
@pytest.mark.parametrize(("optimizer", "momentum"), [("SGD", 0.7), ("Adam", 0.9)])
def test_course(name, arguments, steps, optimizer, momentum):
    theirs = torch_course(lambda opt: getattr(lr_scheduler, name)(opt, **arguments), steps, optimizer)
    ours = own_course(getattr(cnn, name)(**arguments), steps, momentum)
    np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.parametrize(
    ("parts", "milestones"),
    [
        ([("LinearLR", {"start_factor": 0.1, "total_iters": 10}), ("CosineAnnealingLR", {"T_max": 50})], [10]),
        ([("LinearLR", {"start_factor": 0.1, "total_iters": 10}), ("CosineAnnealingLR", {"T_max": 50})], [7]),
        (
            [
                ("ConstantLR", {"factor": 0.1, "total_iters": 5}),
                ("ExponentialLR", {"gamma": 0.9}),
                ("MultiStepLR", {"milestones": [4, 20]}),
                ("PolynomialLR", {"total_iters": 15}),
            ],
            [5, 20, 50],
        ),
        ([("StepLR", {"step_size": 3}), ("CosineAnnealingWarmRestarts", {"T_0": 10, "T_mult": 2})], [12]),
    ],
    ids=str,
)
def test_sequential(parts, milestones):
    def make(optimizer):
        chain = [getattr(lr_scheduler, name)(optimizer, **arguments) for name, arguments in parts]
        return lr_scheduler.SequentialLR(optimizer, chain, milestones)

    schedule = cnn.SequentialLR([getattr(cnn, name)(**arguments) for name, arguments in parts], milestones)
    np.testing.assert_allclose(own_course(schedule, 80, 0.7), torch_course(make, 80), **CLOSE)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"factor": 0.5, "patience": 0},
        {"factor": 0.7, "patience": 3, "cooldown": 4, "threshold": 0.05},
        {"factor": 0.1, "patience": 1, "cooldown": 1, "min_lr": 0.004},
        {"factor": 0.3, "patience": 0, "eps": 0.01},
        {"factor": 0.0, "patience": 5, "min_lr": 1e-4},
    ],
    ids=str,
)
def test_plateau(mode, threshold_mode, arguments):
    arguments = {"mode": mode, "threshold_mode": threshold_mode, **arguments}
    random = np.random.default_rng(0)
    for course in (  # positive, since PyTorch's relative threshold takes a worse negative value for a better one
        abs(random.standard_normal(100)),
        np.exp(-np.arange(100) / 10) + 0.1 * random.random(100),
        np.where(np.arange(100) % 7 == 3, np.nan, random.random(100)),
        np.ones(100),
    ):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
        theirs = lr_scheduler.ReduceLROnPlateau(optimizer, **arguments)
        ours = cnn.ReduceLROnPlateau(**arguments)
        rates = []
        for epoch, metric in enumerate(course):
            rates.append((ours.rates(epoch, 1, LR)[0, 0], optimizer.param_groups[0]["lr"]))
            theirs.step(metric)
            ours.step(metric)
        np.testing.assert_allclose(*np.transpose(rates), rtol=1e-14)


@pytest.mark.parametrize(("name", "arguments", "steps"), SETTINGS, ids=str)
@pytest.mark.parametrize("lrs", [(LR, 0.05, 0.7), (0.0, 0.01, LR), (0.01, 0.0)], ids=str)
def test_groups(name, arguments, steps, lrs):
    """Each group goes its own way from its own learning rate; ours stays where it is 0."""
    optimizer = torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs], momentum=0.7
    )
    scheduler = getattr(lr_scheduler, name)(optimizer, **arguments)
    theirs = []
    for _ in range(steps):
        theirs.append([group["lr"] for group in optimizer.param_groups] + [optimizer.param_groups[0]["momentum"]])
        optimizer.step()
        scheduler.step()
    theirs = np.array(theirs)
    theirs[:, :-1][:, np.array(lrs) == 0] = 0
    groups = [{"layers": [i], "lr": lr} for i, lr in enumerate(lrs[1:])]
    ours = cnn.SGD(lrs[0], momentum=0.7, groups=groups, schedule=getattr(cnn, name)(**arguments))
    np.testing.assert_allclose(ours.rates(0, steps), theirs, **CLOSE)


@pytest.mark.parametrize("lrs", [(LR, 0.05, 0.7), (0.0, 0.01), (1e-3, 0.0)], ids=str)
@pytest.mark.parametrize("arguments", [{}, {"min_lr": 0.02}, {"eps": 0.01, "factor": 0.5}], ids=str)
def test_plateau_with_groups(lrs, arguments):
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs])
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, **arguments)
    schedule = cnn.ReduceLROnPlateau(patience=1, **arguments)
    ours = cnn.SGD(lrs[0], groups=[{"layers": [i], "lr": lr} for i, lr in enumerate(lrs[1:])], schedule=schedule)
    for _ in range(20):
        theirs.step(1.0)
        schedule.step(1.0)
        np.testing.assert_allclose(ours.rates(0, 1)[0, :-1], [g["lr"] for g in optimizer.param_groups], rtol=1e-13)


def test_defaults():
    """Where an argument can be left out, the default is PyTorch's."""
    import inspect

    def defaults(cls):
        parameters = inspect.signature(cls).parameters.items()
        return {name: p.default for name, p in parameters if p.default is not p.empty}

    for name in cnn.optim.schedules.__all__:
        ours, theirs = defaults(getattr(cnn, name)), defaults(getattr(lr_scheduler, name))
        assert {k: v for k, v in ours.items() if k not in ("interval", "monitor")}.items() <= theirs.items(), name
