"""Training: losses and parameters over 200 steps beside PyTorch's, in float64."""

import itertools

import numpy as np
import pytest
import torch
from networks import explicit
from peers.twins import ACTIVATIONS, LOSSES, Network, data, torch_weights

import cnn

STEPS = 200
# Sums are taken in another order than PyTorch's, and training carries the difference on. Parameters are of
# the order 0.1; the absolute tolerance is for those that happen to be near zero. Adam divides by the size of
# the gradient: where that passes through zero, a rounding error of it is magnified.
CLOSE = {
    "SGD": {"rtol": 1e-10, "atol": 1e-12},
    "Adam": {"rtol": 1e-10, "atol": 1e-10},
    "AdamW": {"rtol": 1e-10, "atol": 1e-10},
    "RMSprop": {"rtol": 1e-9, "atol": 1e-10},
    "Adagrad": {"rtol": 1e-9, "atol": 1e-10},
}

# Optimiser, its hyper-parameters, and the network that is trained with them: widths below and above that
# of a vector, no multiple of it, and outputs so narrow that their weights are kept transposed.
SETTINGS = {
    "sgd": ("SGD", {"lr": 0.05}, (6, 20, 3)),
    "momentum": ("SGD", {"lr": 0.02, "momentum": 0.9}, (40, 33, 17, 2)),
    "dampening": ("SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.3}, (3, 64, 16, 5)),
    "nesterov": ("SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}, (6, 20, 3)),
    "weight_decay": ("SGD", {"lr": 0.05, "weight_decay": 0.01}, (40, 33, 17, 2)),
    "everything": (
        "SGD",
        {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True},
        (3, 64, 16, 5),
    ),
    "adam": ("Adam", {"lr": 0.003}, (6, 20, 3)),
    "adam_settings": (
        "Adam",
        {"lr": 0.005, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.01},
        (40, 33, 17, 2),
    ),
    "adamw": ("AdamW", {"lr": 0.003, "weight_decay": 0.05}, (3, 64, 16, 5)),
    "adamw_defaults": ("AdamW", {}, (6, 20, 3)),
    "amsgrad": ("Adam", {"lr": 0.003, "betas": (0.8, 0.9), "weight_decay": 0.01, "amsgrad": True}, (6, 20, 3)),
    "amsgrad_decoupled": ("AdamW", {"lr": 0.003, "amsgrad": True}, (40, 33, 17, 2)),
    "rmsprop": ("RMSprop", {"lr": 0.002}, (3, 64, 16, 5)),
    "rmsprop_momentum": ("RMSprop", {"lr": 0.001, "momentum": 0.8, "alpha": 0.9, "eps": 1e-4}, (40, 33, 17, 2)),
    "rmsprop_centered": ("RMSprop", {"lr": 0.001, "centered": True, "weight_decay": 0.01}, (6, 20, 3)),
    "rmsprop_everything": (
        "RMSprop",
        {"lr": 0.0003, "alpha": 0.95, "eps": 1e-5, "weight_decay": 0.02, "momentum": 0.7, "centered": True},
        (3, 64, 16, 5),
    ),
    "adagrad": ("Adagrad", {"lr": 0.02}, (40, 33, 17, 2)),
    "adagrad_everything": (
        "Adagrad",
        {"lr": 0.05, "lr_decay": 0.02, "weight_decay": 0.01, "initial_accumulator_value": 0.1, "eps": 1e-6},
        (6, 20, 3),
    ),
    "adamw_without_decay": ("AdamW", {"lr": 0.005, "betas": (0.8, 0.95), "weight_decay": 0.0}, (40, 33, 17, 2)),
}


def torch_training(network, weights, loss, optimizer, hyper, batches):
    """Losses of all steps and final parameters, trained by PyTorch."""
    model = network.torch(weights)
    criterion = LOSSES[loss][1]()
    optimizer = getattr(torch.optim, optimizer)(model.parameters(), **hyper)
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        value = criterion(model(torch.from_numpy(x)), torch.from_numpy(y))
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses, torch_weights(model)


def train_step(model, x, y):
    return model.train_step(x, y)


def assert_same_training(each_isa, network, loss, setting, batches):
    """With the kernels of every instruction set, fused and step by step."""
    optimizer, hyper, _ = SETTINGS[setting]
    close = CLOSE[optimizer]
    weights = network.cnn(dtype="float64", seed=1).state_dict()
    losses, final = torch_training(network, weights, loss, optimizer, hyper, batches)
    assert abs(losses[-1] - losses[0]) > 1e-4  # it trains
    for isa in each_isa:
        for step in train_step, explicit:
            where = f"{isa}, {step.__name__}"
            own = getattr(cnn, optimizer)(**hyper)
            model = network.cnn(LOSSES[loss][0](), dtype="float64", optimizer=own)
            model.load_weights(weights)
            ours = [step(model, x, y) for x, y in batches]
            np.testing.assert_allclose(ours, losses, **close, err_msg=f"losses, {where}")
            for name, array in model.state_dict().items():
                np.testing.assert_allclose(array, final[name], **close, err_msg=f"{name}, {where}")


def cut(x, y, batch, steps):
    """So many batches, over and over the rows."""
    starts = itertools.cycle(range(0, len(x) - batch + 1, batch))
    return [(x[i : i + batch], y[i : i + batch]) for i in itertools.islice(starts, steps)]


FUNCTIONS = [name for name in ACTIVATIONS if "." not in name]  # each once, with its usual parameter


# Every activation with SGD, Adam and AdamW, the other optimisers with one.
PAIRS = [
    (activation, setting)
    for activation in FUNCTIONS
    for setting in SETTINGS
    if activation == "tanh" or not setting.startswith(("amsgrad", "rmsprop", "adagrad"))
]


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("activation", "setting"), PAIRS)
def test_trajectory(each_isa, activation, setting, loss, batch):
    widths = SETTINGS[setting][-1]
    x, y = data(loss, 4 * batch, widths[0], widths[-1])
    assert_same_training(each_isa, Network(widths, activation), loss, setting, cut(x, y, batch, STEPS))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("setting", ["weight_decay", "everything", "adam"])  # each network once
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_batch_of_64(each_isa, activation, setting, loss):
    widths = SETTINGS[setting][-1]
    x, y = data(loss, 256, widths[0], widths[-1])
    assert_same_training(each_isa, Network(widths, activation), loss, setting, cut(x, y, 64, STEPS))


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_without_bias(each_isa, setting, loss, batch):
    widths = SETTINGS[setting][-1]
    network = Network(widths, "tanh", bias=False)
    x, y = data(loss, 4 * batch, widths[0], widths[-1])
    assert_same_training(each_isa, network, loss, setting, cut(x, y, batch, STEPS))


@pytest.mark.filterwarnings("ignore:.*before it gives")
@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("loss", LOSSES)
def test_activations_everywhere(each_isa, loss, batch):
    """Before the first layer, after the last, and two in a row."""
    network = Network((6, 20, 3), "silu", first=["tanh", "softplus"], extra=["gelu", "sigmoid"])
    x, y = data(loss, 4 * batch, 6, 3)
    assert_same_training(each_isa, network, loss, "momentum", cut(x, y, batch, STEPS))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "setting", ["momentum", "adam_settings", "adamw", "amsgrad", "rmsprop_everything", "adagrad_everything"]
)
def test_fit(isa, setting, loss, batch_size):
    """Epochs of 100 rows: the last batch is smaller, and the loss is the mean over the rows."""
    optimizer, hyper, _ = SETTINGS[setting]
    close = CLOSE[optimizer]
    network = Network((6, 20, 3), "tanh")
    x, y = data(loss, 100, 6, 3)
    batches = [(x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, 100, batch_size)]
    own = getattr(cnn, optimizer)(**hyper)
    model = network.cnn(LOSSES[loss][0](), dtype="float64", optimizer=own, seed=1)
    losses, final = torch_training(network, model.state_dict(), loss, optimizer, hyper, 5 * batches)
    history = model.fit(x, y, epochs=5, batch_size=batch_size, shuffle=False, progress=False)
    sizes = [len(x) for x, _ in batches]
    means = np.reshape(losses, (5, -1)) @ sizes / 100
    np.testing.assert_allclose(history["loss"], means, **close)
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(array, final[name], **close, err_msg=name)
