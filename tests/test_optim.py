"""SGD: every combination of its arguments over 50 steps, by all three ways to take one, and its errors."""

import itertools

import numpy as np
import pytest
from arrays import looped
from grid import OPTIMIZERS, RULES, build, chain
from networks import assert_close, assert_parameters, batch_for, explicit, fused, native_loop

import cnn
from cnn.optim.optimizers import WEIGHT_DECAY

COMBINATIONS = [
    {"lr": 0.05, "momentum": m, "dampening": d, "weight_decay": w, "nesterov": n}
    for m, d, w, n in itertools.product((0.0, 0.9), (0.0, 0.3), (0.0, 0.02), (False, True))
    if not n or (m and not d)
]
# 50 steps through a small tanh network: an error of one step is neither damped nor amplified much.
RTOL = {np.dtype("float32"): 2e-4, np.dtype("float64"): 1e-12}
SPEC = [(5, 7, True), ("tanh", None), (7, 33, False), ("tanh", None), (33, 2, True)]


@pytest.mark.parametrize("hyper", COMBINATIONS, ids=str)
@pytest.mark.parametrize("step", [fused, explicit, native_loop])
@pytest.mark.parametrize("batch", [1, 6])
def test_fifty_steps(isa, dtype, batch, step, hyper):
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(**hyper))
    x, y = batch_for(SPEC, "mse", batch, dtype)
    losses = [(step(model, x, y), network.train_step(x, y, **hyper)) for _ in range(50)]
    assert_close(*np.transpose(losses), RTOL[dtype], "losses")
    assert_parameters(model, network, RTOL[dtype])
    assert model._core.program.steps == 50


@pytest.mark.parametrize("step", [fused, explicit, native_loop])
def test_hyper_parameters_may_change_between_steps(isa, dtype, step):
    """lr, decay and momentum on a schedule; momentum, once begun, is kept while it is 0 in between."""
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(momentum=0.5))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    for t in range(60):
        hyper = {
            "lr": 0.05 / (1 + t),
            "momentum": (0.5, 0.9, 0.0, 0.7)[t // 15],
            "weight_decay": 0.01 * (t % 3),
        }
        for name, value in hyper.items():
            setattr(model.optimizer, name, value)
        model.optimizer.nesterov = hyper["nesterov"] = t % 2 == 1 and hyper["momentum"] > 0
        assert_close(step(model, x, y), network.train_step(x, y, **hyper), RTOL[dtype])
    assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize("step", [fused, explicit, native_loop])
def test_momentum_may_begin_later(isa, dtype, step):
    """The buffer's first value is the gradient, undampened: at the first step *with momentum*."""
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.05))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    for t in range(10):
        hyper = {"lr": 0.05, "momentum": 0.0 if t < 5 else 0.9, "dampening": 0.0 if t < 5 else 0.5}
        model.optimizer.momentum, model.optimizer.dampening = hyper["momentum"], hyper["dampening"]
        assert_close(step(model, x, y), network.train_step(x, y, **hyper), RTOL[dtype])
    assert_parameters(model, network, RTOL[dtype])


def test_the_ways_may_be_mixed(isa, dtype):
    """They share one momentum buffer."""
    hyper = {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(**hyper))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    for step in (fused, explicit, native_loop, explicit, fused, native_loop, fused):
        step(model, x, y)
        network.train_step(x, y, **hyper)
    assert_parameters(model, network, RTOL[dtype])


def test_one_optimiser_for_two_models(isa, dtype):
    """It holds the hyper-parameters; the momentum is each model's own."""
    optimizer = cnn.SGD(lr=0.05, momentum=0.9)
    x, y = batch_for(SPEC, "mse", 6, dtype)
    models = [build(SPEC, "mse", dtype=dtype, optimizer=optimizer, seed=s)[0] for s in (0, 1)]
    alone, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.05, momentum=0.9))
    for _ in range(5):
        for model in models:
            model.train_step(x, y)
        alone.train_step(x, y)
    np.testing.assert_array_equal(models[0].parameters, alone.parameters)


def test_a_learning_rate_of_zero_changes_nothing(isa, dtype):
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0, momentum=0.9, weight_decay=0.1))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    before = model.parameters
    for step in (fused, explicit, native_loop):
        step(model, x, y)
    np.testing.assert_array_equal(model.parameters, before)


def test_step_without_gradients_decays_only(isa, dtype):
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.5, weight_decay=0.1))
    before = model.parameters.astype(np.float64)
    model.step()
    assert_close(model.parameters, 0.95 * before, 1e-6)


@pytest.mark.parametrize("through", ["parameters", "layers"])
@pytest.mark.parametrize("bad", ["x", "y"])
@pytest.mark.parametrize("widths", [(5, 7, 2), (5, 20, 7, 3), (40, 33, 17, 2), (3, 9)], ids=str)
def test_parameters_can_be_put_back_after_a_bad_step(isa, dtype, widths, bad, through):
    """NaN is left nowhere: not in what pads the rows of the weights either, which the products read."""
    spec = chain(*widths)
    x, y = batch_for(spec, "mse", 6, dtype)
    broken = {"x": x.copy(), "y": y.copy()}
    broken[bad][-1, 0] = np.nan
    for batch in (1, 6):
        model, untouched = (build(spec, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.01))[0] for _ in range(2))
        assert np.isnan(model.train_step(broken["x"][-batch:], broken["y"][-batch:]))
        if through == "parameters":
            model.parameters = untouched.parameters
        else:
            for own, other in zip(model.layers, untouched.layers, strict=True):
                if isinstance(own, cnn.Linear):
                    own.weight[...], own.bias[...] = other.weight, other.bias
        np.testing.assert_array_equal(model.predict(x), untouched.predict(x))
        for rows in (6, 1):
            assert model.train_step(x[:rows], y[:rows]) == untouched.train_step(x[:rows], y[:rows])
        np.testing.assert_array_equal(model.parameters, untouched.parameters)


# the function on arrays --------------------------------------------------------------------------


@looped("hyper", COMBINATIONS)
@looped("shape", [(1,), (3,), (16,), (17,), (5, 7), (33, 3), (2, 3, 4), (0,), ()])
def test_sgd_step(isa, dtype, hyper, shape):
    rng = np.random.default_rng(0)
    param, buffer = rng.standard_normal(shape).astype(dtype), np.full(shape, 7, dtype)
    expected, expected_buffer = param.astype(np.float64), None
    for t in range(5):
        grad = rng.standard_normal(shape).astype(dtype)
        cnn.functional.sgd_step(param, grad, buffer, **hyper, first=t == 0)
        expected, expected_buffer = RULES[cnn.SGD](expected, grad.astype(np.float64), expected_buffer, **hyper)
    rtol = 1e-5 if dtype == np.float32 else 1e-14
    assert_close(param, expected, rtol)
    if hyper["momentum"]:
        assert_close(buffer, expected_buffer, rtol)
    else:
        assert (buffer == 7).all()
        again = param.copy()
        cnn.functional.sgd_step(again, grad, **hyper)
        cnn.functional.sgd_step(param, grad, buffer, **hyper)
        np.testing.assert_array_equal(again, param)


def test_first_step_does_not_read_the_buffer(isa, dtype):
    """It may be uninitialised memory."""
    for n in (3, 16, 37):
        param, buffer = np.ones(n, dtype), np.full(n, np.nan, dtype)
        cnn.functional.sgd_step(param, np.ones(n), buffer, lr=0.5, momentum=0.9, first=True)
        np.testing.assert_array_equal(param, np.full(n, 0.5))
        np.testing.assert_array_equal(buffer, np.ones(n))


def test_sgd_step_refuses(isa, dtype):
    step = cnn.functional.sgd_step
    param, grad, buffer = np.ones(5, dtype), np.ones(5, dtype), np.zeros(5, dtype)
    wide = np.ones((5, 2), dtype)
    read_only = np.ones(5, dtype)
    read_only.flags.writeable = False
    other = np.float64 if dtype == np.float32 else np.float32
    for arguments, message in (
        ((param, np.ones(4)), r"^grad: expected shape \(5,\), as param has, got \(4,\)"),
        ((param, grad, np.zeros(4, dtype)), r"^momentum_buffer: expected shape \(5,\)"),
        ((param, grad, np.zeros(5, other)), r"^momentum_buffer: expected shape \(5,\) and dtype"),
        ((param, grad), "^momentum_buffer: momentum needs one"),
        ((param, param, buffer), "^param: shares memory with an input"),
        ((param, grad, param), "^momentum_buffer: shares memory with an input"),
        ((param, grad, grad), "^momentum_buffer: shares memory with an input"),
        ((wide[:, 0], grad, buffer), "^param: expected a C-contiguous array"),
        ((read_only, grad, buffer), "^param: expected a writeable"),
        ((np.ones(5, int), grad, buffer), "^dtype: expected float32 or float64, got dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            step(*arguments, lr=0.1, momentum=0.9)
    with pytest.raises(TypeError, match=r"^param: expected a NumPy array, got list"):
        step([1.0], [1.0], lr=0.1)
    with pytest.raises(TypeError, match=r"^grad: expected real numbers"):
        step(param, np.ones(5, complex), lr=0.1)
    np.testing.assert_array_equal(param, np.ones(5))
    np.testing.assert_array_equal(grad, np.ones(5))
    assert not buffer.any()


# the object --------------------------------------------------------------------------------------


def test_defaults_are_pytorchs():
    assert cnn.SGD().get_config() == {
        "lr": 1e-3,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
    }


@pytest.mark.parametrize("hyper", COMBINATIONS, ids=str)
def test_config(hyper):
    optimizer = cnn.SGD(**hyper)
    assert optimizer.get_config() == hyper
    assert cnn.SGD(**optimizer.get_config()).get_config() == hyper
    assert eval(repr(optimizer), vars(cnn)).get_config() == hyper
    for name, value in hyper.items():
        assert getattr(optimizer, name) == value


@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay"])
def test_bad_hyper_parameters(name):
    optimizer = cnn.SGD(lr=0.1, momentum=0.5)
    before = optimizer.get_config()
    bad = [np.nan, np.inf, -np.inf]
    for value in bad if name == "dampening" else [*bad, -0.1]:
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number"):
            cnn.SGD(**{name: value})
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number"):
            setattr(optimizer, name, value)
    for value in ("0.1", None, True, [0.1], 1j):
        with pytest.raises(TypeError, match=f"^{name}: expected a number, got "):
            cnn.SGD(**{name: value})
        with pytest.raises(TypeError, match=f"^{name}: expected a number, got "):
            setattr(optimizer, name, value)
    assert optimizer.get_config() == before
    for value in (np.float32(0.25), np.int64(1), 0):
        setattr(optimizer, name, value)
        assert getattr(optimizer, name) == value
        assert isinstance(getattr(optimizer, name), float)


def test_nesterov_needs_momentum_and_no_dampening():
    for hyper in ({}, {"momentum": 0.9, "dampening": 0.1}, {"dampening": 0.1}):
        with pytest.raises(ValueError, match=r"^nesterov: expected a momentum and no dampening"):
            cnn.SGD(nesterov=True, **hyper)
    optimizer = cnn.SGD()
    with pytest.raises(ValueError, match=r"^nesterov: expected a momentum"):
        optimizer.nesterov = True
    assert optimizer.nesterov is False


def test_models_need_an_optimiser_to_train(isa, dtype):
    model, _ = build(chain(5, 7, 2), "mse", dtype=dtype)
    x, y = batch_for(chain(5, 7, 2), "mse", 6, dtype)
    before = model.parameters
    model(x, y)
    for call in (
        lambda: model.step(),
        lambda: model.train_step(x, y),
        lambda: model.fit(x, y),
    ):
        with pytest.raises(RuntimeError, match=r"^the model has no optimizer: pass one to Sequential"):
            call()
    np.testing.assert_array_equal(model.parameters, before)
    model.backward()  # is as it was
    model.optimizer = cnn.SGD(lr=0.1)
    model.train_step(x, y)
    assert (model.parameters != before).all()
    for bad in ("sgd", 0.1, cnn.SGD, cnn.ReLU()):
        with pytest.raises(TypeError, match=r"^optimizer: expected an optimiser such as cnn.SGD"):
            model.optimizer = bad
        with pytest.raises(TypeError, match=r"^optimizer: expected an optimiser such as cnn.SGD"):
            cnn.Sequential([cnn.Linear(1, 1)], optimizer=bad)
    assert model.optimizer.lr == 0.1
    model.optimizer = None
    with pytest.raises(RuntimeError, match="no optimizer"):
        model.step()


@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_table_for_each_step(isa, dtype, case):
    """`train_batches` with the whole table of each step: as when the table is changed between the steps. The fifth sum
    is of what has the weight decay as its gradient, before each step, times the rows' weights."""
    spec = chain(5, 7, 3, activation=("relu", None))
    x, y = batch_for(spec, "mse", 22, dtype)
    weights = np.linspace(1, 2, 22).astype(dtype)
    order = np.random.default_rng(0).permutation(22)
    many, one = (build(spec, "mse", dtype=dtype, optimizer=OPTIMIZERS[case].make())[0] for _ in range(2))
    table = one.optimizer.table
    tables = np.repeat(table[None], 5, 0)
    columns = [WEIGHT_DECAY, *(type(one.optimizer).eps.column for _ in range(hasattr(one.optimizer, "eps")))]
    for i, column in enumerate(columns):
        tables[:, :, column] = 0.01 * (i + np.arange(1, 6)[:, None] + np.arange(len(table)))
    sums = np.zeros(5)
    assert many._core.program.train_batches(x, y, weights, order, 0, 22, 5, tables, None, 1, 1, sums) == -1
    rows_of = one.optimizer.assign(list(one.state_dict()), [a.ndim for a in one.state_dict().values()])
    expected = 0.0
    for i in range(5):
        table[...] = tables[i]
        rows = order[5 * i : 5 * i + 5]
        decays = table[rows_of, WEIGHT_DECAY] * (type(one.optimizer) is not cnn.AdamW)  # whose decay is no gradient
        squares = [float((a.astype(np.float64) ** 2).sum()) for a in one.state_dict().values()]
        expected += weights[rows].sum() * float(decays @ squares) / 2
        one.train_step(x[rows], y[rows], weights[rows])
    np.testing.assert_array_equal(many.parameters, one.parameters)
    assert sums[4] == pytest.approx(expected, rel=1e-5 if dtype == np.float32 else 1e-13)
    with pytest.raises(ValueError, match=r"rates: expected 5 steps of \d rates .*, or of \d rows of a table"):
        many._core.program.train_batches(x, y, weights, order, 0, 22, 5, tables[:4], None, 1, 1, sums)
