"""train_step, the fused step: equal to the explicit loop, clean padding, no allocation, recovery from NaN."""

import ctypes
import gc
import itertools
import sys

import numpy as np
import pytest
from arrays import looped, zeros_of_padding
from grid import WITH_PARAMETERS, build, chain, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import apart, assert_close, assert_parameters, batch_for
from networks import explicit as explicit_step

import cnn

pytestmark = pytest.mark.filterwarnings("ignore:.*before it gives")  # any layers with any loss

HYPER = [
    {"lr": 0.05},
    {"lr": 0.05, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.9},
    {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.8, "dampening": 0.3},
]


def pair(spec, loss, dtype, **hyper):
    """Two models with the same parameters."""
    return [build(spec, loss, dtype=dtype, optimizer=cnn.SGD(**hyper))[0] for _ in range(2)]


def assert_loss_equal(loss, expected, dtype, batch):
    """From two rows on to the last bit; for one row, see below, within a few roundoffs of outputs of order one."""
    if batch > 1:
        assert loss == expected
    else:
        assert abs(loss - expected) <= 32 * np.finfo(dtype).eps * max(1, expected)


def assert_one_step_equal(fused, explicit, batch):
    """The parameters after one step.

    From two rows on the fused step is made of the same sums in the same order: equal to the last
    bit. A single row is walked in one sweep, whose sums run in another order, forward and back:
    equal within a few roundoffs of the largest number.
    """
    for name, array in explicit.state_dict().items():
        if batch > 1:
            np.testing.assert_array_equal(fused.state_dict()[name], array, err_msg=name)
        else:
            assert_close(fused.state_dict()[name], array, 32 * np.finfo(array.dtype).eps, name)


@looped("hidden, inputs", list(itertools.product((1, 2, 3, 4, 5, 8, 9, 16, 17), (1, 2, 3, 4))))
def test_one_hidden_layer_row_after_row(isa, dtype, inputs, hidden):
    """The parameters of a small regression stay in registers through `fit`: as steps one by one, and as batches are."""
    rng = np.random.default_rng(hidden)
    x, y = rng.standard_normal((40, inputs)).astype(dtype), rng.standard_normal((40, 1)).astype(dtype)

    def model():
        layers = [cnn.Linear(inputs, hidden), cnn.ReLU(), cnn.Linear(hidden, 1), cnn.MSELoss()]
        return cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.05), dtype=dtype, seed=inputs)

    fitted, stepped, explicit = model(), model(), model()
    history = fitted.fit(x, y, batch_size=1, shuffle=False, progress=False)
    losses = []
    for i in range(40):
        loss = stepped.train_step(x[i : i + 1], y[i : i + 1])
        losses.append(explicit.loss_and_grad(x[i : i + 1], y[i : i + 1])[0])
        explicit.step()
        assert_loss_equal(loss, losses[-1], dtype, 1)
    np.testing.assert_array_equal(fitted.parameters, stepped.parameters)
    assert_close(fitted.parameters, explicit.parameters, 200 * np.finfo(dtype).eps, "parameters")
    assert history["loss"] == pytest.approx([np.mean(losses)], rel=float(200 * np.finfo(dtype).eps))
    assert not any(zeros_of_padding(fitted[k].weight).any() for k in (0, 2))
    x[20] = np.nan
    with pytest.raises(cnn.DivergenceError, match="batch 20"):
        fitted.fit(x, y, batch_size=1, shuffle=False, progress=False)
    np.testing.assert_array_equal(fitted.parameters, stepped.parameters)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("hyper", HYPER, ids=str)
@given(spec=specs(), batch=st.sampled_from((1, 2, 3, 4, 5, 6, 17)), seed=st.integers(0, 1000))
@settings(max_examples=12)
def test_equals_the_explicit_loop(isa, dtype, loss, hyper, spec, batch, seed):
    fused, explicit = pair(spec, loss, dtype, **hyper)
    x, y = batch_for(spec, loss, batch, dtype, seed)
    for _ in range(3):
        explicit.parameters = fused.parameters
        expected = apart(explicit, x, y)
        assert_loss_equal(fused.train_step(x, y), expected, dtype, batch)
        if hyper.get("momentum") and batch == 1:
            break  # the buffers are no longer the same to the last bit
        assert_one_step_equal(fused, explicit, batch)


@pytest.mark.parametrize("batch", [1, 2, 4, 5, 40, 1025, 2100])
@pytest.mark.parametrize("widths", [(5, 7, 3), (64, 4, 1), (300, 1, 17), (33, 100, 65, 10)], ids=str)
def test_equals_the_explicit_loop_at_every_size(isa, dtype, widths, batch):
    spec = chain(*widths)
    fused, explicit = pair(spec, "mse", dtype, lr=0.1, momentum=0.9)
    x, y = batch_for(spec, "mse", batch, dtype)
    assert_loss_equal(fused.train_step(x, y), apart(explicit, x, y), dtype, batch)
    assert_one_step_equal(fused, explicit, batch)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@given(spec=specs(), batch=st.sampled_from((1, 2, 3, 4, 5, 17)), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_three_steps_against_the_reference(isa, loss, spec, batch, seed):
    """In float64: the same 1e-11 of the largest number as in test_sequential.py."""
    hyper = {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
    model, network = build(spec, loss, optimizer=cnn.SGD(**hyper))
    x, y = batch_for(spec, loss, batch, np.float64, seed)
    for _ in range(3):
        assert_close(model.train_step(x, y), network.train_step(x, y, **hyper), 1e-11, "loss")
    assert_parameters(model, network, 1e-11)


def test_does_not_touch_the_gradients(isa, dtype):
    spec = chain(5, 9, 3)
    model, _ = build(spec, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.1))
    x, y = batch_for(spec, "mse", 6, dtype)
    model.train_step(x, y)
    assert not model.gradients.any()
    model(x, y)
    model.backward()
    before = model.gradients
    model.train_step(x, y)
    np.testing.assert_array_equal(model.gradients, before)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_x_and_y_are_only_read(isa, dtype, batch):
    spec = [("sigmoid", None), *chain(300, 1, 17, 3)]
    model, _ = build(spec, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.1))
    x, y = batch_for(spec, "mse", batch, dtype)
    before = x.copy(), y.copy()
    x.flags.writeable = y.flags.writeable = False
    model.train_step(x, y)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(y, before[1])


# padding -----------------------------------------------------------------------------------------


def assert_padding_is_zero(model):
    for layer in model.layers:
        if isinstance(layer, cnn.Linear):
            assert not zeros_of_padding(layer.weight).any()
            assert not zeros_of_padding(layer.grad_weight).any()


@looped("batch", [1, 3, 6, 33])
@pytest.mark.parametrize(("name", "param"), WITH_PARAMETERS)
def test_padding_stays_zero(isa, dtype, name, param, batch):
    """Functions with f(0) != 0 must not leave anything behind a row: later layers would read it."""
    spec = [(name, param), *chain(3, 5, 17, 33, 1, 2, activation=(name, param)), (name, param)]
    hyper = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}
    model, network = build(spec, "cross_entropy", dtype=dtype, optimizer=cnn.SGD(**hyper))
    x, y = batch_for(spec, "cross_entropy", batch, dtype)
    for _ in range(10):
        model.train_step(x, y)
        explicit_step(model, x, y)
    assert_padding_is_zero(model)
    if dtype == np.float64:  # in float32 twenty steps drift apart where a kink is crossed
        for _ in range(20):
            network.train_step(x, y, **hyper)
        assert_parameters(model, network, 1e-9)
        assert_close(model.predict(x), network.forward(x), 1e-9)


def assert_recovers(model, network, state, x, y):
    """With finite parameters again, everything is finite and right again."""
    rtol = 1e-10 if model.dtype == np.float64 else 1e-3
    model.load_weights(state)
    assert_close(model.predict(x), network.forward(x), rtol, "predict")
    loss, _, grads = network.gradients(x, y)
    model.zero_grads()
    assert_close(model(x, y), loss, rtol, "loss")
    assert np.isfinite(model.backward()).all()
    assert_close(model.gradients, np.concatenate([g.ravel() for g in grads.values()]), rtol, "grads")
    assert_close(model.train_step(x, y), loss, rtol)
    network.train_step(x, y, lr=model.optimizer.lr)
    assert_close(model.predict(x), network.forward(x), rtol, "predict after a step")
    assert_padding_is_zero(model)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("explicit", [False, True])
def test_recovers_from_non_finite_numbers(isa, dtype, loss, batch, explicit):
    """NaN gets everywhere in a step. New weights must be all that it takes to get rid of it."""
    poison = np.inf if explicit else np.nan
    spec = chain(5, 7, 33, 2, 3, activation=("softplus", None))
    model, network = build(spec, loss, dtype=dtype, optimizer=cnn.SGD(lr=0.01))
    state = model.state_dict()
    x, y = batch_for(spec, loss, batch, dtype)
    bad = x.copy()
    bad[0, 1] = poison
    if explicit:
        explicit_step(model, bad, y)
    else:
        model.train_step(bad, y)
    assert not np.isfinite(model.parameters).all()
    assert_recovers(model, network, state, x, y)


# allocation --------------------------------------------------------------------------------------


def native_bytes():
    """Bytes that malloc has handed out, where the C library tells; else 0."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return 0

    class Info(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in (
                "arena",
                "ordblks",
                "smblks",
                "hblks",
                "hblkhd",
                "usmblks",
                "fsmblks",
                "uordblks",
                "fordblks",
                "keepcost",
            )
        ]

    library.mallinfo2.restype = Info
    info = library.mallinfo2()
    return info.uordblks + info.hblkhd


@pytest.mark.parametrize("batch", [1, 2, 40])
def test_repeated_calls_allocate_nothing(isa, dtype, batch):
    """The workspaces are allocated once for a batch size; Python's own objects do not add up either.

    Nor are there cycles, which only the garbage collector would free. It is run before objects are counted: it empties
    Python's free lists, which may take a list or a tuple from each call until they are full.
    """
    spec = chain(8, 64, 4)
    model, _ = build(spec, "cross_entropy", dtype=dtype, optimizer=cnn.SGD(lr=0.1, momentum=0.9))
    x, y = batch_for(spec, "cross_entropy", batch, dtype)
    out = np.empty((batch, 4), dtype)

    def calls(n):
        for _ in range(n):
            model.train_step(x, y)
            model.predict(x, out)
            explicit_step(model, x, y)
            model.evaluate(x, y)
            model.fit(x, y, batch_size=batch)

    calls(20)
    allocations, nbytes = model._core.program.allocations, model._core.program.nbytes
    native = native_bytes()
    gc.collect()
    gc.disable()
    try:
        blocks = sys.getallocatedblocks()
        calls(200)
        assert gc.collect() == 0
        blocks = sys.getallocatedblocks() - blocks
    finally:
        gc.enable()
    assert model._core.program.allocations == allocations
    assert model._core.program.nbytes == nbytes
    assert blocks < 100  # one a call would be 200 and more
    assert native_bytes() - native < 200 * 64


def test_workspaces_grow_with_the_largest_batch_only(isa, dtype):
    spec = chain(8, 64, 4)
    model, _ = build(spec, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.1))
    assert model._core.program.allocations == 1  # the parameters
    for batch, allocations in ((5, 2), (1, 2), (5, 2), (4, 2), (6, 3), (5, 3), (1, 3), (6, 3)):
        x, y = batch_for(spec, "mse", batch, dtype)
        model.train_step(x, y)
        model(x, y)
        assert model._core.program.allocations == allocations
    x, y = batch_for(spec, "mse", 6, dtype)
    model.fit(x, y, epochs=20, batch_size=4)
    assert model._core.program.allocations == 3
    x, y = batch_for(spec, "mse", 60, dtype)
    model.fit(x, y, epochs=20, batch_size=7)
    assert model._core.program.allocations == 4


def test_models_give_their_memory_back(isa, dtype):
    """Models, views of them and results of them, again and again, take no more memory in the end."""
    spec = chain(64, 200, 10)
    x, y = batch_for(spec, "mse", 50, dtype)

    def lives(n):
        for _ in range(n):
            model, _ = build(spec, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.1))
            model.train_step(x, y)
            view = model.layers[0].weight
            model.predict(x)
            del model
            view += 1
            with pytest.raises(ValueError, match="expected"):
                cnn.functional.linear_forward(x, view[:3])

    lives(5)
    before = native_bytes()
    lives(20)
    one = 3 * (65 * 200 + 201 * 10) * dtype.itemsize
    assert native_bytes() - before < one


def broken(outputs, targets):
    raise ArithmeticError


BAYES = {"regularization": "bayesian"}
REFUSED = [  # optimizer, loss, layers before it
    (cnn.LevenbergMarquardt(), cnn.MSELoss(), [cnn.BatchNorm1d(5)]),
    (cnn.NewtonCG(), cnn.MSELoss(), [cnn.BatchNorm1d(5)]),
    (cnn.LevenbergMarquardt(), cnn.L1Loss(), []),
    (cnn.LevenbergMarquardt(**BAYES), cnn.HuberLoss(), []),
    (cnn.LevenbergMarquardt(**BAYES, weight_decay=0.1), cnn.MSELoss(), []),
    (cnn.LevenbergMarquardt(**BAYES, exact_parameters=3), cnn.MSELoss(), []),
    (cnn.SGD(0.1), broken, [cnn.BatchNorm1d(5)]),
    (cnn.LBFGS(), broken, [cnn.BatchNorm1d(5)]),
]


@pytest.mark.parametrize(("optimizer", "loss", "layers"), REFUSED, ids=range(len(REFUSED)))
def test_a_refused_step_changes_nothing(optimizer, loss, layers):
    model = cnn.Sequential([cnn.Linear(4, 5), *layers, cnn.Tanh(), cnn.Linear(5, 2), loss], optimizer, seed=0)
    x, y = batch_for([(4, 2)], "mse", 9, "float32")
    model.loss = cnn.MSELoss()
    model.loss_and_grad(x, y)
    model.loss = loss
    before = [*model.state_dict().values(), model.gradients]
    for call in [model.train_step, *[model.loss_and_grad] * (loss is broken), model.fit]:
        with pytest.raises((ValueError, ArithmeticError)):
            call(x, y)
        now = [*model.state_dict().values(), *[model.gradients] * (call != model.fit)]  # fit sets them to 0
        for a, b in zip(now, before, strict=False):
            np.testing.assert_array_equal(a, b)
