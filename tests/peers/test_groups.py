"""Groups of layers, biases without decay, clipping, averages and schedules: 200 steps beside PyTorch's, in float64."""

import numpy as np
import pytest
import torch
from networks import explicit
from peers.twins import Network, data, torch_weights
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cnn

STEPS = 200
CLOSE = {"rtol": 1e-9, "atol": 1e-10}  # see test_training.py
WIDTHS = (6, 20, 33, 3)
OPTIMISERS = {
    "SGD": {"lr": 0.02, "weight_decay": 0.05},
    "momentum": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01},
    "Adam": {"lr": 0.003, "weight_decay": 0.05},
    "AdamW": {"lr": 0.003, "weight_decay": 0.3, "amsgrad": True},
    "RMSprop": {"lr": 0.001, "weight_decay": 0.05, "momentum": 0.5, "centered": True},
    "Adagrad": {"lr": 0.02, "weight_decay": 0.05, "lr_decay": 0.01},
}


def kind(name, module):
    return getattr(module, "SGD" if name == "momentum" else name)


def torch_groups(model, hyper, groups, decay_bias):
    """A group for each parameter: what its layer's group says, and no decay for biases unless decay_bias."""
    made = []
    for name, parameter in model.named_parameters():
        layer, what = name.split(".")
        own = next((group for group in groups if int(layer) in group["layers"]), {})
        settings = {**hyper, **{key: value for key, value in own.items() if key != "layers"}}
        if what == "bias" and not decay_bias:
            settings["weight_decay"] = 0.0
        made.append({"params": [parameter], **settings})
    return made


def torch_training(weights, name, hyper, x, y, *, groups=(), decay_bias=True, clip_norm=None, clip_value=None,
                   ema_decay=None, schedule=None):  # fmt: skip
    """Losses, final parameters and their average."""
    model = Network(WIDTHS, "tanh").torch(weights)
    optimizer = kind(name, torch.optim)(torch_groups(model, hyper, groups, decay_bias), **hyper)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)) if ema_decay is not None else None
    scheduler = schedule(optimizer) if schedule else None
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = torch.nn.functional.mse_loss(model(torch.from_numpy(x)), torch.from_numpy(y))
        value.backward()
        if clip_value is not None:
            torch.nn.utils.clip_grad_value_(model.parameters(), clip_value)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        if average is not None:
            average.update_parameters(model)
        if scheduler is not None:
            scheduler.step()
        losses.append(value.item())
    return losses, torch_weights(model), None if average is None else torch_weights(average.module)


def assert_same(each_isa, name, batch, *, torch_schedule=None, **more):
    x, y = data("mse", batch, WIDTHS[0], WIDTHS[-1])
    network, hyper = Network(WIDTHS, "tanh"), OPTIMISERS[name]
    weights = network.cnn(dtype="float64", seed=1).state_dict()
    settings = {key: value for key, value in more.items() if key != "schedule"}
    losses, final, average = torch_training(weights, name, hyper, x, y, schedule=torch_schedule, **settings)
    for isa in each_isa:
        for way in ("train_step", "explicit", "fit"):
            where = f"{isa}, {way}"
            own = kind(name, cnn)(**hyper, **more)
            model = network.cnn(cnn.MSELoss(), dtype="float64", optimizer=own)
            model.load_weights(weights)
            if way == "fit":
                ours = model.fit(x, y, epochs=STEPS, batch_size=batch, shuffle=False, progress=False)["loss"]
            else:
                step = cnn.Sequential.train_step if way == "train_step" else explicit
                ours = []
                for _ in range(STEPS):
                    ours.append(step(model, x, y))
                    model.end_epoch()
            np.testing.assert_allclose(ours, losses, **CLOSE, err_msg=f"losses, {where}")
            for key, array in model.state_dict().items():
                np.testing.assert_allclose(array, final[key], **CLOSE, err_msg=f"{key}, {where}")
            if average is not None:
                packed = np.concatenate([average[key].ravel() for key in model.state_dict()])
                np.testing.assert_allclose(model._core.program.average, packed, **CLOSE, err_msg=f"average, {where}")


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("decay_bias", [True, False])
def test_groups(each_isa, name, batch, decay_bias):
    groups = [{"layers": [0], "lr": 0.005}, {"layers": [4], "lr": 0.001, "weight_decay": 0.1}]
    assert_same(each_isa, name, batch, groups=groups, decay_bias=decay_bias)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("limits", [{"clip_norm": 0.2}, {"clip_value": 0.03}, {"clip_norm": 0.2, "clip_value": 0.03}])
def test_clipping(each_isa, name, limits):
    assert_same(each_isa, name, 7, **limits)


@pytest.mark.parametrize("name", ["momentum", "Adam"])
@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_average(each_isa, name, decay):
    assert_same(each_isa, name, 7, ema_decay=decay)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_everything(each_isa, name):
    groups = [{"layers": [2], "lr": 0.005}]
    assert_same(each_isa, name, 7, groups=groups, decay_bias=False, clip_norm=0.3, clip_value=0.2, ema_decay=0.9)


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_schedule_with_groups(each_isa, name, interval):
    """A schedule that multiplies does so in each group. An epoch is one step here."""
    assert_same(
        each_isa,
        name,
        7,
        groups=[{"layers": [0], "lr": 0.005}],
        schedule=cnn.StepLR(30, gamma=0.5, interval=interval),
        torch_schedule=lambda optimizer: lr_scheduler.StepLR(optimizer, 30, gamma=0.5),
    )


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_cosine_with_groups(each_isa, name):
    """The lowest rate is the same for all groups, as is OneCycleLR's highest."""
    for own, theirs in (
        (
            cnn.CosineAnnealingLR(STEPS, eta_min=0.005),
            lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=0.005),
        ),
        (cnn.OneCycleLR(0.01, STEPS), lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.01, STEPS)),
    ):
        more = {"groups": [{"layers": [0], "lr": 0.001}], "decay_bias": False}
        assert_same(each_isa, name, 7, schedule=own, torch_schedule=theirs, **more)


@pytest.mark.parametrize("name", ["SGD", "momentum", "Adam", "AdamW", "RMSprop"])
def test_one_cycle(each_isa, name):
    """The momentum, or beta1, is cycled too, with the bias correction that belongs to it."""
    assert_same(
        each_isa,
        name,
        7,
        schedule=cnn.OneCycleLR(0.01, STEPS),
        torch_schedule=lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.01, STEPS),
    )
