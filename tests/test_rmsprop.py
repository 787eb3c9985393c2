"""RMSprop and Adagrad: 50 steps beside the reference by all ways to take one, and their arguments.

That their fused step is the explicit one is tested in test_adam.py, for every optimiser.
"""

import itertools
import json

import numpy as np
import pytest
from grid import build, chain, rule_of
from networks import assert_close, assert_parameters, batch_for, explicit, fused, native_loop

import cnn

SETTINGS = [
    *(
        (cnn.RMSprop, {"lr": 0.001, "alpha": a, "eps": 1e-4, "weight_decay": d, "momentum": m, "centered": c})
        for a, (m, c, d) in zip(
            itertools.cycle((0.99, 0.9)), itertools.product((0.0, 0.8), (False, True), (0.0, 0.02)), strict=False
        )
    ),
    (cnn.RMSprop, {}),
    (cnn.RMSprop, {"lr": 0.001, "alpha": 0.0, "eps": 0.1}),
    (cnn.Adagrad, {}),
    (cnn.Adagrad, {"lr": 0.02, "lr_decay": 0.1, "weight_decay": 0.03}),
    (cnn.Adagrad, {"lr": 0.05, "initial_accumulator_value": 0.1, "eps": 1e-3}),
]
# As in test_adam.py: steps are quotients of gradients, whose rounding errors count where a gradient is near zero.
RTOL = {np.dtype("float32"): 1e-3, np.dtype("float64"): 1e-10}
SPEC = [(5, 7, True), ("tanh", None), (7, 33, False), ("tanh", None), (33, 2, True)]
WAYS = [fused, explicit, native_loop]


@pytest.mark.parametrize(("kind", "hyper"), SETTINGS, ids=str)
@pytest.mark.parametrize("batch", [1, 6])
def test_fifty_steps(isa, dtype, batch, kind, hyper):
    """The three ways in turn, which share one state."""
    optimizer = kind(**hyper)
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(SPEC, "mse", batch, dtype)
    steps = itertools.islice(itertools.cycle(WAYS), 50)
    losses = [(step(model, x, y), network.train_step(x, y, **rule_of(optimizer))) for step in steps]
    assert losses[-1][1] < 0.99 * losses[0][1]  # it trains
    assert_close(*np.transpose(losses), RTOL[dtype], "losses")
    assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize("kind", [cnn.RMSprop, cnn.Adagrad])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_epochs_of_fit(isa, dtype, batch_size, kind):
    """lr_decay counts the batches of all epochs; the last batch is smaller."""
    optimizer = kind(lr=0.003, **({"lr_decay": 0.3} if kind is cnn.Adagrad else {"momentum": 0.7, "centered": True}))
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(SPEC, "mse", 10, dtype)
    for _ in range(4):
        for i in range(0, 10, batch_size):
            network.train_step(x[i : i + batch_size], y[i : i + batch_size], **rule_of(optimizer))
    model.fit(x, y, epochs=4, batch_size=batch_size, shuffle=False)
    assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize("kind", [cnn.RMSprop, cnn.Adagrad])
@pytest.mark.parametrize("step", WAYS)
def test_hyper_parameters_may_change_between_steps(isa, dtype, kind, step):
    optimizer = kind()
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(SPEC, "mse", 6, dtype)
    for t in range(30):
        optimizer.lr = 0.01 / (1 + t)
        optimizer.weight_decay = 0.01 * (t % 3)
        optimizer.eps = 1e-3 * (1 + t % 2)
        if kind is cnn.RMSprop:
            optimizer.alpha = 0.9 if t < 15 else 0.5
            optimizer.momentum = (0.5, 0.0, 0.8)[t // 10]
        else:
            optimizer.lr_decay = 0.1 * (t % 2)
        assert_close(step(model, x, y), network.train_step(x, y, **rule_of(optimizer)), RTOL[dtype])
    assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize(("kind", "hyper"), [SETTINGS[0], SETTINGS[7], SETTINGS[10]], ids=str)
@pytest.mark.parametrize("step", WAYS)
@pytest.mark.parametrize("widths", [(5, 7, 2), (20, 100, 2, 1), (3, 33, 10, 3)], ids=str)
def test_eps_of_zero(isa, dtype, widths, step, kind, hyper):
    """What pads the rows has no gradient, and 0 / 0 must not come into a result from there."""
    optimizer = kind(**{**hyper, "eps": 0.0, "lr": 0.001, "weight_decay": 0.0})
    spec = chain(*widths)
    model, network = build(spec, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(spec, "mse", 6, dtype)
    for _ in range(5):
        assert_close(step(model, x, y), network.train_step(x, y, **rule_of(optimizer)), RTOL[dtype])
    assert_parameters(model, network, RTOL[dtype])
    assert_close(model.predict(x), network.forward(x), RTOL[dtype])


def test_a_gradient_that_stays_the_same(isa, dtype):
    """Centered, v - a**2 is the difference of equal numbers then: rounding must not make it negative, and NaN."""
    optimizer = cnn.RMSprop(lr=1e-12, alpha=0.3, centered=True)
    model = cnn.Sequential([cnn.Linear(40, 3), cnn.MSELoss()], optimizer=optimizer, dtype=dtype, seed=0)
    x, y = batch_for([(40, 3, True)], "mse", 8, dtype)
    for _ in range(300):
        assert np.isfinite(model.train_step(x, y))
    assert np.isfinite(model.parameters).all()


def test_a_learning_rate_of_zero_changes_nothing(isa, dtype):
    for kind, hyper in SETTINGS:
        model, _ = build(SPEC, "mse", dtype=dtype, optimizer=kind(**{**hyper, "lr": 0}))
        x, y = batch_for(SPEC, "mse", 6, dtype)
        before = model.parameters
        for step in WAYS:
            step(model, x, y)
        np.testing.assert_array_equal(model.parameters, before)


# the objects ------------------------------------------------------------------------------------------------------


def test_defaults_are_pytorchs():
    assert cnn.RMSprop().get_config() == {
        "lr": 1e-2,
        "alpha": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "momentum": 0.0,
        "centered": False,
    }
    assert cnn.Adagrad().get_config() == {
        "lr": 1e-2,
        "lr_decay": 0.0,
        "weight_decay": 0.0,
        "initial_accumulator_value": 0.0,
        "eps": 1e-10,
    }


@pytest.mark.parametrize(("kind", "hyper"), SETTINGS, ids=str)
def test_config(kind, hyper):
    optimizer = kind(**hyper)
    config = json.loads(json.dumps(optimizer.get_config()))
    for name, value in hyper.items():
        assert getattr(optimizer, name) == config[name] == value
    for copy in (kind(**config), eval(repr(optimizer), vars(cnn))):
        assert type(copy) is kind
        assert copy.get_config() == config


@pytest.mark.parametrize("kind", [cnn.RMSprop, cnn.Adagrad])
def test_bad_hyper_parameters(kind):
    optimizer = kind()
    before = optimizer.get_config()
    for name in before:
        if name == "centered":
            values, error, message = (0, 1, "yes", None), TypeError, "expected True or False"
        else:
            values, error, message = (np.nan, np.inf, -0.1), ValueError, "expected a finite number of at least 0"
        for value in values:
            with pytest.raises(error, match=f"^{name}: {message}"):
                kind(**{name: value})
            with pytest.raises(error, match=f"^{name}: {message}"):
                setattr(optimizer, name, value)
        if name != "centered":
            for value in ("0.1", None, True, [0.1], 1j):
                with pytest.raises(TypeError, match=f"^{name}: expected a number, got "):
                    setattr(optimizer, name, value)
    with pytest.raises(ValueError, match=r"^alpha: .* and below 1, got 1.0"):
        cnn.RMSprop(alpha=1.0)
    with pytest.raises(TypeError, match="unknown argument 'betas'"):
        kind(betas=(0.9, 0.9))
    assert optimizer.get_config() == before


@pytest.mark.parametrize(("kind", "hyper"), [SETTINGS[0], SETTINGS[7], SETTINGS[11]], ids=str)
def test_models_config_and_file(isa, dtype, tmp_path, kind, hyper):
    """The optimiser comes back with its arguments; its state starts anew."""
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=kind(**hyper))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    model.train_step(x, y)
    model.save(tmp_path / "model.safetensors")
    loaded = cnn.load(tmp_path / "model.safetensors")
    assert type(loaded.optimizer) is kind
    assert loaded.get_config() == model.get_config()
    model.optimizer = kind(**hyper)
    for _ in range(3):
        assert loaded.train_step(x, y) == model.train_step(x, y)
    np.testing.assert_array_equal(loaded.parameters, model.parameters)
