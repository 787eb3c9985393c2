"""Adam, AdamW and AMSGrad: 50 steps beside the reference by all ways to take one, their arguments, and checkpoints.

Also, for every optimiser: that the step fused into `train_step` is the step of the explicit loop.
"""

import numpy as np
import pytest
from arrays import looped
from grid import build, chain, rule_of
from networks import apart, assert_close, assert_parameters, batch_for, explicit, fused, native_loop

import cnn

SETTINGS = {
    "Adam": (cnn.Adam, {}),
    "Adam, decay": (cnn.Adam, {"lr": 0.003, "weight_decay": 0.1}),
    "Adam, other betas": (cnn.Adam, {"lr": 0.002, "betas": (0.7, 0.9), "eps": 1e-4, "weight_decay": 0.02}),
    "Adam, no memory": (cnn.Adam, {"lr": 0.001, "betas": (0.0, 0.0), "eps": 0.1}),
    "AdamW": (cnn.AdamW, {}),
    "AdamW, no decay": (cnn.AdamW, {"lr": 0.003, "weight_decay": 0.0}),
    "AdamW, decay": (cnn.AdamW, {"lr": 0.003, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.5}),
    "AMSGrad": (cnn.Adam, {"lr": 0.003, "betas": (0.8, 0.7), "weight_decay": 0.01, "amsgrad": True}),
    "AMSGrad, decoupled": (cnn.AdamW, {"lr": 0.003, "betas": (0.9, 0.9), "amsgrad": True}),
}
# A step is lr times a quotient of moments of the gradient. Where a gradient is near zero, its rounding error is a
# larger part of it, and the quotient, of order 1 however small the gradient, carries that part into the parameter.
RTOL = {np.dtype("float32"): 1e-3, np.dtype("float64"): 1e-10}
# Widths below and above a vector's, no multiple of it, and one layer so narrow that it is kept transposed.
SPEC = [(5, 7, True), ("tanh", None), (7, 33, False), ("tanh", None), (33, 2, True)]


# steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("step", [fused, explicit, native_loop])
@pytest.mark.parametrize("batch", [1, 6])
def test_fifty_steps(isa, dtype, batch, step, setting):
    kind, hyper = SETTINGS[setting]
    optimizer = kind(**hyper)
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(SPEC, "mse", batch, dtype)
    losses = [(step(model, x, y), network.train_step(x, y, **rule_of(optimizer))) for _ in range(50)]
    assert losses[-1][1] < 0.99 * losses[0][1]  # it trains
    assert_close(*np.transpose(losses), RTOL[dtype], "losses")
    assert_parameters(model, network, RTOL[dtype])
    assert model._core.program.steps == 50


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_epochs_of_fit(isa, dtype, batch_size, setting):
    """The bias corrections go on from batch to batch and from epoch to epoch; the last batch is smaller."""
    kind, hyper = SETTINGS[setting]
    optimizer = kind(**hyper)
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(SPEC, "mse", 10, dtype)
    starts = range(0, 10, batch_size)
    expected = []
    for _ in range(5):
        losses = [
            network.train_step(x[i : i + batch_size], y[i : i + batch_size], **rule_of(optimizer)) for i in starts
        ]
        expected.append(np.dot(losses, [len(x[i : i + batch_size]) for i in starts]) / 10)
    history = model.fit(x, y, epochs=5, batch_size=batch_size, shuffle=False)
    assert_close(history["loss"], expected, RTOL[dtype], "losses")
    assert_parameters(model, network, RTOL[dtype])
    assert model._core.program.steps == 5 * len(starts)


@pytest.mark.parametrize("step", [fused, explicit, native_loop])
@pytest.mark.parametrize("kind", [cnn.Adam, cnn.AdamW])
def test_hyper_parameters_may_change_between_steps(isa, dtype, kind, step):
    optimizer = kind()
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(SPEC, "mse", 6, dtype)
    for t in range(30):
        optimizer.lr = 0.01 / (1 + t)
        optimizer.betas = (0.9, 0.999) if t < 15 else (0.5, 0.9)
        optimizer.weight_decay = 0.01 * (t % 3)
        assert_close(step(model, x, y), network.train_step(x, y, **rule_of(optimizer)), RTOL[dtype])
    assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize("kind", [cnn.Adam, cnn.AdamW])
def test_the_ways_may_be_mixed(isa, dtype, kind):
    """They share the moments and the count of steps."""
    optimizer = kind(lr=0.003, weight_decay=0.05)
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(SPEC, "mse", 6, dtype)
    for step in (fused, explicit, native_loop, explicit, fused, native_loop, fused):
        step(model, x, y)
        network.train_step(x, y, **rule_of(optimizer))
    assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize("step", [fused, explicit, native_loop])
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("widths", [(5, 7, 2), (20, 100, 2, 1), (3, 33, 10, 3)], ids=str)
def test_eps_of_zero(isa, dtype, widths, batch, step):
    """0 / 0 is in no parameter: all gradients differ from zero. What pads the rows must not come into a result."""
    optimizer = cnn.Adam(lr=0.001, eps=0)
    spec = chain(*widths)
    model, network = build(spec, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(spec, "mse", batch, dtype)
    for _ in range(5):
        assert_close(step(model, x, y), network.train_step(x, y, **rule_of(optimizer)), RTOL[dtype])
    assert_parameters(model, network, RTOL[dtype])
    assert_close(model.predict(x), network.forward(x), RTOL[dtype])


def test_the_first_step_is_the_learning_rate_long(isa, dtype):
    """m / sqrt(v) is the sign of the gradient then, whatever its size."""
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.Adam(lr=0.01))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    before = model.parameters
    _, grad = model.loss_and_grad(x, y)
    model.train_step(x, y)
    assert np.abs(grad).min() > 1e-6  # eps is 1e-8
    np.testing.assert_allclose(model.parameters - before, -0.01 * np.sign(grad), rtol=0.02)


def test_a_learning_rate_of_zero_changes_nothing(isa, dtype):
    for kind in (cnn.Adam, cnn.AdamW):
        model, _ = build(SPEC, "mse", dtype=dtype, optimizer=kind(lr=0, weight_decay=0.1))
        x, y = batch_for(SPEC, "mse", 6, dtype)
        before = model.parameters
        for step in (fused, explicit, native_loop):
            step(model, x, y)
        np.testing.assert_array_equal(model.parameters, before)


def test_decoupled_decay_alone(isa, dtype):
    """Without gradients AdamW multiplies by 1 - lr weight_decay, and Adam without decay does nothing."""
    for kind, factor in ((cnn.AdamW, 0.95), (cnn.Adam, 1.0)):
        model, _ = build(SPEC, "mse", dtype=dtype, optimizer=kind(lr=0.5, weight_decay=0.1 * (factor < 1)))
        before = model.parameters.astype(np.float64)
        model.step()
        assert_close(model.parameters, factor * before, np.finfo(dtype).eps)


@pytest.mark.parametrize("n_out", [3, 20])
@pytest.mark.parametrize("kind", [cnn.Adam, cnn.AdamW])
def test_training_from_a_divergence(isa, dtype, kind, n_out):
    """The parameters and both moments are those from before the epoch: training goes on as if it had not been."""
    models = [build(chain(5, 7, n_out), "mse", dtype=dtype, optimizer=kind(lr=0.01))[0] for _ in range(2)]
    x, y = batch_for(chain(5, 7, n_out), "mse", 12, dtype)
    for model in models:
        model.fit(x, y, epochs=2, batch_size=4, shuffle=False)
    broken = x.copy()
    broken[-1] = np.nan
    with pytest.raises(cnn.DivergenceError):
        models[0].fit(broken, y, batch_size=4, shuffle=False)
    for model in models:
        model.fit(x, y, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(models[0].parameters, models[1].parameters)


# one step, fused or not -------------------------------------------------------------------------------------------

ALL = {
    "SGD": (cnn.SGD, {"lr": 0.05}),
    "SGD, decay": (cnn.SGD, {"lr": 0.05, "weight_decay": 0.02}),
    "momentum": (cnn.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.1}),
    "Nesterov": (cnn.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "RMSprop": (cnn.RMSprop, {"lr": 0.003, "weight_decay": 0.02}),
    "RMSprop, everything": (cnn.RMSprop, {"lr": 0.003, "momentum": 0.5, "centered": True, "weight_decay": 0.02}),
    "Adagrad": (cnn.Adagrad, {"lr": 0.003, "lr_decay": 0.1, "initial_accumulator_value": 0.01}),
    "Nesterov, decay": (cnn.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.02}),
    **SETTINGS,
}


@pytest.mark.parametrize("setting", ALL)
@looped("batch", [2, 5, 64, 130])
@pytest.mark.parametrize("widths", [(5, 7, 33, 2), (20, 100, 17, 10)], ids=str)
def test_fused_step_is_the_explicit_one(isa, dtype, widths, batch, setting):
    """Bit for bit: each gradient is one chain of sums either way, rounded once, and the update the same code."""
    kind, hyper = ALL[setting]
    spec = chain(*widths)
    models = [build(spec, "mse", dtype=dtype, optimizer=kind(**hyper))[0] for _ in range(2)]
    x, y = batch_for(spec, "mse", batch, dtype)
    for _ in range(4):
        assert fused(models[0], x, y) == apart(models[1], x, y)
        np.testing.assert_array_equal(models[0].parameters, models[1].parameters)


@pytest.mark.parametrize("setting", ALL)
@pytest.mark.parametrize("widths", [(5, 7, 33, 2), (20, 100, 17, 10)], ids=str)
def test_fused_step_of_one_sample(isa, dtype, widths, setting):
    """One step of plain SGD is w + (-lr x) dz here and w - lr (x dz) in the explicit loop.

    Those products are rounded in other places: apart by at most three roundings of the step and one of w. Outputs and
    the gradients that a layer passes back are sums of a few terms, in this order or that, and differ by a rounding or
    two of the largest term.
    """
    kind, hyper = ALL[setting]
    spec = chain(*widths)
    models = [build(spec, "mse", dtype=dtype, optimizer=kind(**hyper))[0] for _ in range(2)]
    x, y = batch_for(spec, "mse", 1, dtype)
    before = models[0].parameters
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(fused(models[0], x, y), explicit(models[1], x, y), rtol=16 * eps)
    one, other = (model.parameters for model in models)
    step = np.abs(other - before)
    assert step.max() > 1e-4
    bound = eps * np.abs(other) + 3 * eps * step + 8 * eps * step.max()
    if kind is not cnn.SGD:  # the quotient of the moments hides the size of the gradient, but not its relative error
        gradient = models[1].gradients
        decay = 0 if kind is cnn.AdamW else hyper.get("weight_decay", 0)
        relative = np.abs(gradient).max() / np.maximum(np.abs(gradient + decay * before), np.finfo(dtype).tiny)
        bound += 8 * eps * (hyper.get("lr", 1e-3) + step.max() * np.minimum(relative, 1 / eps))
    np.testing.assert_array_less(np.abs(one - other), bound + np.finfo(dtype).tiny)


# the object -------------------------------------------------------------------------------------------------------


def test_defaults_are_pytorchs():
    defaults = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
    assert cnn.Adam().get_config() == defaults
    assert cnn.AdamW().get_config() == {**defaults, "weight_decay": 1e-2}


@pytest.mark.parametrize("setting", SETTINGS)
def test_config(setting):
    kind, hyper = SETTINGS[setting]
    optimizer = kind(**hyper)
    config = optimizer.get_config()
    for name, value in hyper.items():
        assert getattr(optimizer, name) == value
        assert config[name] == (list(value) if name == "betas" else value)
    for copy in (kind(**config), eval(repr(optimizer), vars(cnn))):
        assert type(copy) is kind
    assert kind(**config).get_config() == config


@pytest.mark.parametrize("kind", [cnn.Adam, cnn.AdamW])
def test_repr_says_what_makes_it_anew(kind):
    """Also where a value is zero and the default is not."""
    for hyper in ({}, {"weight_decay": 0.0}, {"eps": 0.0, "betas": (0.0, 0.5)}, {"lr": 0.0}):
        optimizer = kind(**hyper)
        assert eval(repr(optimizer), vars(cnn)).get_config() == optimizer.get_config()


@pytest.mark.parametrize("kind", [cnn.Adam, cnn.AdamW])
def test_bad_hyper_parameters(kind):
    optimizer = kind(lr=0.1)
    before = optimizer.get_config()
    for name in ("lr", "eps", "weight_decay"):
        for value in (np.nan, np.inf, -0.1):
            with pytest.raises(ValueError, match=f"^{name}: expected a finite number of at least 0, got {value}"):
                kind(**{name: value})
            with pytest.raises(ValueError, match=f"^{name}: expected a finite number of at least 0, got {value}"):
                setattr(optimizer, name, value)
        for value in ("0.1", None, True, [0.1], 1j):
            with pytest.raises(TypeError, match=f"^{name}: expected a number, got "):
                kind(**{name: value})
            with pytest.raises(TypeError, match=f"^{name}: expected a number, got "):
                setattr(optimizer, name, value)
    assert optimizer.get_config() == before
    for value in (np.float32(0.25), np.int64(1), 0):
        optimizer.eps = value
        assert optimizer.eps == value
        assert isinstance(optimizer.eps, float)


@pytest.mark.parametrize("kind", [cnn.Adam, cnn.AdamW])
def test_bad_betas(kind):
    for value in (-0.1, 1.0, 1.5, np.nan, np.inf):
        for name, betas in (("beta1", (value, 0.9)), ("beta2", (0.9, value))):
            with pytest.raises(ValueError, match=f"^{name}: expected a finite number .* below 1, got {value}"):
                kind(betas=betas)
            with pytest.raises(ValueError, match=f"^{name}: expected a finite number .* below 1, got {value}"):
                setattr(kind(), name, value)
    for betas in (0.9, None):
        with pytest.raises(TypeError, match=f"^betas: expected two numbers, got {betas}"):
            kind(betas=betas)
    for betas in (("0.9", 0.9), (0.9, None), (True, 0.9)):
        with pytest.raises(TypeError, match="expected "):
            kind(betas=betas)
    for betas in ((0.9,), (0.9, 0.9, 0.9), ()):
        with pytest.raises(ValueError, match=r"^betas: expected two numbers, got \("):
            kind(betas=betas)
    with pytest.raises(ValueError, match=r"^betas: expected two numbers, got array"):
        kind(betas=np.ones(3))
    assert kind(betas=np.array([0.7, 0.8])).betas == (0.7, 0.8)  # not one for each of two members
    assert kind(lr=np.ones(3), betas=np.array([0.7, 0.8])).betas == (0.7, 0.8)


@pytest.mark.parametrize("kind", [cnn.Adam, cnn.AdamW])
def test_betas_that_are_refused_change_nothing(kind):
    """Not the first of them either."""
    optimizer = kind(betas=(0.5, 0.6))
    for betas in ((0.7, 1.0), (0.7, "0.9"), (0.7,), (0.7, 0.8, 0.9)):
        with pytest.raises((ValueError, TypeError)):
            optimizer.betas = betas
        assert optimizer.betas == (0.5, 0.6)


# models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_models_config_and_file(isa, dtype, tmp_path, setting):
    """The optimiser comes back with its arguments; the moments start anew."""
    kind, hyper = SETTINGS[setting]
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=kind(**hyper))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    for _ in range(3):
        model.train_step(x, y)
    model.save(tmp_path / "model.safetensors")
    loaded = cnn.load(tmp_path / "model.safetensors")
    built = cnn.Sequential.from_config(model.get_config())
    for other in (loaded, built):
        assert type(other.optimizer) is kind
        assert other.optimizer.get_config() == model.optimizer.get_config()
        assert other.get_config() == model.get_config()
    np.testing.assert_array_equal(loaded.parameters, model.parameters)
    model.optimizer = kind(**hyper)
    for _ in range(3):
        assert loaded.train_step(x, y) == model.train_step(x, y)
    np.testing.assert_array_equal(loaded.parameters, model.parameters)


@pytest.mark.parametrize("after", ["Adam", "AdamW", "momentum"])
@pytest.mark.parametrize("before", ["Adam", "AdamW", "momentum"])
@pytest.mark.parametrize("step", [fused, explicit, native_loop])
def test_another_optimiser_starts_with_no_state(isa, dtype, step, before, after):
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=ALL[before][0](**ALL[before][1]))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    for _ in range(3):
        step(model, x, y)
    fresh, _ = build(SPEC, "mse", dtype=dtype, optimizer=ALL[after][0](**ALL[after][1]))
    fresh.parameters = model.parameters
    model.optimizer = ALL[after][0](**ALL[after][1])
    assert model._core.program.steps == 0
    for _ in range(3):
        assert step(model, x, y) == step(fresh, x, y)
    np.testing.assert_array_equal(model.parameters, fresh.parameters)


def test_one_optimiser_for_two_models(isa, dtype):
    """It holds the hyper-parameters; the moments and the count of steps are each model's own."""
    optimizer = cnn.Adam(lr=0.01)
    x, y = batch_for(SPEC, "mse", 6, dtype)
    models = [build(SPEC, "mse", dtype=dtype, optimizer=optimizer, seed=s)[0] for s in (0, 1)]
    alone, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.Adam(lr=0.01))
    for _ in range(5):
        for model in models:
            model.train_step(x, y)
        alone.train_step(x, y)
    np.testing.assert_array_equal(models[0].parameters, alone.parameters)


def test_moments_of_a_dead_unit_fade_to_zero(dtype):
    """They do not stay subnormal, where each square root and division would take three times as long."""
    rows = 2000 if dtype == "float32" else 16000
    x, y = np.ones((rows, 3), dtype), np.ones((rows, 1), dtype)
    layers = [cnn.Linear(3, 2), cnn.ReLU(), cnn.Linear(2, 1), cnn.MSELoss()]
    for members, batch_size in ((1, 2), (9, 2), (9, 1)):
        ensemble = cnn.Ensemble(layers, members, cnn.Adam(), dtype, 0)
        ensemble.train_step(x[:2], y[:2])
        parameters = ensemble.parameters
        parameters[:, 6:8] = -1e6  # the biases: all units are dead from here on
        ensemble.parameters = parameters
        ensemble.fit(x, y, batch_size=batch_size, progress=False)
        for model in ensemble:
            state = model._core.training_state()[0]
            moments = np.concatenate([state[name].ravel() for name in state if name.startswith("state.")])
            moments = np.abs(moments[moments != 0])
            assert moments.size > 0
            assert (moments >= np.finfo(dtype).tiny).all()
