"""`find_lr`: a range test of the learning rate that leaves the model as it was."""

import warnings

import numpy as np
import pytest

import cnn
from cnn.files import checkpoint

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 6))
Y = (X[:, 0] * X[:, 1] > 0).astype(int)


def model_of(optimizer=None, loss=None, dtype="float32"):
    layers = [cnn.Linear(6, 32), cnn.BatchNorm1d(32), cnn.Tanh(), cnn.Dropout(0.1), cnn.Linear(32, 2)]
    return cnn.Sequential([*layers, loss or cnn.CrossEntropyLoss()], optimizer or cnn.SGD(momentum=0.9), dtype, seed=0)


def whole(outputs, targets):
    d = outputs - np.eye(2)[targets]
    return (d**2).mean(), 2 * d / d.size


OPTIMIZERS = {
    "SGD": lambda: cnn.SGD(momentum=0.9),
    "Adam": lambda: cnn.Adam(ema_decay=0.9),
    "schedule": lambda: cnn.AdamW(schedule=cnn.OneCycleLR(max_lr=0.1, total_steps=900)),
    "decay_bias": lambda: cnn.SGD(momentum=0.9, weight_decay=0.01, decay_bias=False),
    "groups": lambda: cnn.AdamW(decay_bias=False, groups=[{"layers": ["0"], "lr": 1e-4}, {"layers": ["1"], "lr": 0}]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("loss", [None, whole], ids=["native", "own"])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.filterwarnings("ignore:find_lr. at no rate")
def test_the_model_is_left_as_it_was(dtype, kind, loss, trained):
    """Parameters, statistics, the optimiser's state, random numbers, gradients: training goes on to the bit."""
    models = [model_of(OPTIMIZERS[kind](), loss, dtype) for _ in range(2)]
    for model in models:
        if trained:
            model.fit(X, Y, epochs=2)
        model.loss_and_grad(X, Y)
    before = models[0].gradients
    cnn.find_lr(models[0], X, Y, steps=80, lr_max=1e4)
    np.testing.assert_array_equal(models[0].gradients, before)
    assert models[0].optimizer.to_config() == models[1].optimizer.to_config()
    for model in models:
        model.fit(X, Y, epochs=2)
    assert models[0].history == models[1].history
    np.testing.assert_array_equal(models[0].parameters, models[1].parameters)
    if kind == "Adam":
        np.testing.assert_array_equal(models[0].averaged_parameters, models[1].averaged_parameters)
    if loss is None:
        assert checkpoint.to_bytes(models[0]) == checkpoint.to_bytes(models[1])


def test_what_it_finds():
    """Of a quadratic bowl gradient descent diverges above 2 / curvature: the rates end behind it, the suggestion lies
    before it, and trains better than a tenth of it."""
    x = np.eye(4)
    model = cnn.Sequential([cnn.Linear(4, 1, bias=False), cnn.MSELoss()], cnn.SGD(), "float64", seed=1)
    found = cnn.find_lr(model, x, np.ones(4), batch_size=4, steps=200, lr_min=1e-3, lr_max=1e3)
    limit = 2 / (2 / 4)
    assert limit < found.lr[-1] < 1e3
    assert found.lr.shape == found.loss.shape
    assert 0.01 < found.suggestion < limit
    losses = []
    for lr in (found.suggestion, found.suggestion / 10):
        other = cnn.Sequential([cnn.Linear(4, 1, bias=False), cnn.MSELoss()], cnn.SGD(lr=lr), "float64", seed=1)
        losses.append([other.train_step(x, np.ones(4)) for _ in range(20)][-1])
    assert losses[0] < 0.5 * losses[1]
    assert repr(found).startswith("LearningRates(suggestion=")


def test_all_groups_train_at_the_rate():
    """In proportion to their own: the losses are those of a loop that sets the rate before each step."""
    kinds = {"decay_bias": False, "groups": [{"layers": ["0"], "lr": 0.01}, {"layers": ["1"], "lr": 0}]}
    for arguments in ({}, {"decay_bias": False}, kinds):
        found, expected = [], []
        for losses in (found, expected):
            model = model_of(cnn.SGD(lr=0.1, momentum=0.9, weight_decay=0.01, **arguments), dtype="float64")
            if losses is found:
                losses += cnn.find_lr(model, X, Y, batch_size=200, steps=30).loss.tolist()
                continue
            total, weight = 0.0, 0.0
            for lr in np.geomspace(1e-6, 10, 30):
                model.optimizer.lr = lr
                total, weight = 0.9 * total + model.train_step(X, Y), 0.9 * weight + 1
                losses.append(total / weight)
        np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-9)
        assert len(found) > 20


def test_a_lucky_first_batch_is_not_the_lowest_loss():
    """The first batch is easy, all others are not: the suggestion is behind it."""
    easy = [(np.zeros((32, 6)), np.zeros(32, int))]
    hard = [(X[i : i + 32], Y[i : i + 32]) for i in range(0, 160, 32)] * 20
    model = model_of(cnn.SGD(lr=0.1))
    model.layers[-1].bias = [3, -3]
    found = cnn.find_lr(model, iter(easy + hard), steps=100)
    assert found.loss[0] < found.loss[1:20].min()
    assert found.suggestion > 1e-4


def test_rates_of_another_table_are_refused():
    """The kernels read a rate for each row of the optimiser's table, and a momentum: not beyond what is there."""
    model = model_of(cnn.SGD(momentum=0.9, decay_bias=False), dtype="float64")
    program, x, y = model._core.program, model._core.program.inputs(X), model._core.program.targets(Y, 200)
    for rates in (np.zeros((2, 2)), np.zeros((1, 3)), np.zeros((2, 3), "f"), np.zeros((2, 6))[:, ::2]):
        before = model.parameters
        with pytest.raises(ValueError, match=r"^rates: expected 2 steps of 2 rates and a momentum"):
            program.train_batches(x, y, None, None, 0, 200, 100, rates, None, 1, 1, np.zeros(4))
        np.testing.assert_array_equal(model.parameters, before)
    for call in (lambda r: program.step(r), lambda r: program.train_step(X, Y, 1, None, r)):
        with pytest.raises(ValueError, match=r"^rates: expected 1 steps"):
            call(np.zeros(2))
    model.train_step(X, Y)  # and it is not left locked


@pytest.mark.parametrize("source", ["arrays", "blocks", "batches"])
@pytest.mark.filterwarnings("ignore:find_lr. at no rate")
def test_sources(source):
    batches = [(X[i : i + 32], Y[i : i + 32]) for i in range(0, 200, 32)]
    data = {"arrays": (X, Y), "blocks": (cnn.Blocks(X, Y),), "batches": (batches,)}[source]
    found = cnn.find_lr(model_of(), *data, steps=30, lr_max=0.1)
    assert len(found.lr) == 30
    np.testing.assert_allclose(found.lr[[0, -1]], [1e-6, 0.1])


def test_the_picture(tmp_path):
    pytest.importorskip("matplotlib")
    found = cnn.find_lr(model_of(), X, Y)
    ax = found.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 5000
    assert ax.get_xscale() == "log"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), found.lr)
    assert ax.lines[1].get_xdata() == [found.suggestion]
    lr = np.geomspace(1e-6, 10, 100)
    loss = np.where(lr < 1, 1 - 0.5 * lr, 2.0)
    loss[0] = 0.1  # a first batch that is easy does not hide the curve of the others
    low, high = cnn.training.find_lr.LearningRates(lr, loss).plot(tmp_path / "rates.png").get_ylim()
    assert low < loss[1:].min() < loss[1:80].max() < high < 2


def test_a_loss_that_does_not_fall_is_said():
    model = model_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cnn.find_lr(model, X, Y)
    for seed in range(5):
        model = cnn.Sequential([cnn.Linear(6, 2), cnn.CrossEntropyLoss()], cnn.SGD(), seed=seed)
        model.trainable = False
        with pytest.warns(UserWarning, match="find_lr: at no rate does the loss fall by more than its noise"):
            cnn.find_lr(model, X, Y, batch_size=25)
    ensemble = cnn.Ensemble([cnn.Linear(6, 2), cnn.CrossEntropyLoss()], 2, cnn.SGD())
    with pytest.raises(TypeError, match=r"^model: expected a cnn\.Sequential, got Ensemble"):
        cnn.find_lr(ensemble, X, Y)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 2}, ValueError, "^steps: expected at least 3, got 2"),
        ({"lr_min": 0}, ValueError, "^lr_min: expected a number above 0, got 0"),
        ({"lr_max": 1e-7}, ValueError, "^lr_max: expected more than lr_min, 1e-06, got 1e-07"),
        (
            {"lr_min": 1e30, "lr_max": 1e35},
            ValueError,
            "^find_lr: the loss diverges already at a learning rate of 1e.30",
        ),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    model = model_of(loss=whole)
    with pytest.raises(error, match=message):
        cnn.find_lr(model, X, Y, **arguments)
    with pytest.raises(RuntimeError, match="no optimizer"):
        cnn.find_lr(cnn.Sequential([cnn.Linear(6, 2), cnn.MSELoss()]), X, Y)
