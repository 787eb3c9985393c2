"""fit that diverges or is interrupted."""

import re
import signal
import threading
from _thread import interrupt_main

import numpy as np
import pytest
from networks import batch_for, build, chain, model_of

import cnn


def test_divergence_restores_the_epoch_before(isa, dtype):
    """Parameters and momentum are those from before the epoch; training goes on from there."""
    spec = chain(5, 9, 3, activation=("relu", None))
    x, y = batch_for(spec, "mse", 24, dtype)
    diverging, reference = (model_of(spec, "mse", dtype, lr=0.05, momentum=0.9) for _ in range(2))
    for model in (diverging, reference):
        model.fit(x, y, epochs=2, batch_size=4)
    before = diverging.parameters
    diverging.optimizer.lr = 1e30
    with pytest.raises(
        cnn.DivergenceError,
        match=r"^the loss is not finite in epoch 1, batch \d, at a learning rate of 1e\+30; "
        "the parameters are those from before this epoch: lower the learning rate, or scale x and y$",
    ):
        diverging.fit(x, y, epochs=5, batch_size=4)
    np.testing.assert_array_equal(diverging.parameters, before)
    diverging.optimizer.lr = 0.05
    assert diverging.fit(x, y, epochs=2, batch_size=4) == reference.fit(x, y, epochs=2, batch_size=4)
    np.testing.assert_array_equal(diverging.parameters, reference.parameters)
    assert diverging._core.program.steps == reference._core.program.steps
    assert issubclass(cnn.DivergenceError, ArithmeticError)


def test_divergence_in_a_later_epoch(isa, dtype):
    """It is named, and the epochs before it are kept."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 4)).astype(dtype)
    y = (x @ rng.standard_normal((4, 1))).astype(dtype)

    def model():
        layers = [cnn.Linear(4, 1), cnn.MSELoss()]
        return cnn.Sequential(layers, optimizer=cnn.SGD(lr=30.0), dtype=dtype, seed=0)

    diverging = model()
    with pytest.raises(cnn.DivergenceError, match=r"in epoch (\d+), batch") as error:
        diverging.fit(x, y, epochs=1000, batch_size=8)
    epoch = int(re.search(r"epoch (\d+)", str(error.value))[1])
    assert epoch > 2
    kept = model()
    kept.fit(x, y, epochs=epoch - 1, batch_size=8)
    np.testing.assert_array_equal(diverging.parameters, kept.parameters)
    assert np.isfinite(kept.parameters).all()


def test_divergence_by_the_last_step_of_an_epoch():
    """It makes numbers that no loss has seen; they are not what is put back."""
    x = np.ones((4, 1))
    y = np.array([[1.0], [1.0], [1.0], [1e150]])
    model = cnn.Sequential([cnn.Linear(1, 1), cnn.MSELoss()], optimizer=cnn.SGD(lr=0.0), dtype="float64", seed=0)
    before = model.parameters

    def last(batch, logs):
        model.optimizer.lr = 1e200 if batch == 3 else 0.0

    callback = cnn.LambdaCallback(on_batch_end=lambda batch, logs: last(batch + 1, logs))
    with pytest.raises(cnn.DivergenceError, match=r"in epoch 2, batch 0, "):
        model.fit(x, y, epochs=3, batch_size=1, shuffle=False, callbacks=[callback])
    np.testing.assert_array_equal(model.parameters, before)
    assert len(model.history["loss"]) == 1


@pytest.mark.parametrize("source", ["blocks", "batches"])
def test_divergence_names_the_batch_of_the_epoch(source):
    """Counted through all blocks; with the rate of the schedule at that step."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    x[21] = np.nan
    data = cnn.Blocks(x, y, rows=8) if source == "blocks" else [(x[i : i + 4], y[i : i + 4]) for i in range(0, 40, 4)]
    optimizer = cnn.SGD(lr=0.1, schedule=cnn.LinearLR(start_factor=0.5, total_iters=10, interval="step"))
    model, _ = build(spec, "mse", optimizer=optimizer)
    before = model.parameters
    with pytest.raises(cnn.DivergenceError, match=r"in epoch 1, batch 5, at a learning rate of 0\.075;"):
        model.fit(data, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(("row", "batch_size", "batch"), [(0, 4, 0), (13, 4, 3), (13, 1, 13), (23, 30, 0)])
def test_the_batch_of_a_nan_is_named(isa, dtype, loss, row, batch_size, batch):
    """Counted from 0, as batches are indexed."""
    spec = chain(5, 9, 3)
    model = model_of(spec, loss, dtype)
    x, y = batch_for(spec, loss, 24, dtype)
    before = model.parameters
    bad = x.copy()
    bad[row, 2] = np.nan
    with pytest.raises(cnn.DivergenceError, match=f"^the loss is not finite in epoch 1, batch {batch}, "):
        model.fit(bad, y, batch_size=batch_size, shuffle=False)
    np.testing.assert_array_equal(model.parameters, before)
    untouched = model_of(spec, loss, dtype)
    assert model.fit(x, y, batch_size=batch_size) == untouched.fit(x, y, batch_size=batch_size)
    np.testing.assert_array_equal(model.parameters, untouched.parameters)


@pytest.mark.parametrize(("rows", "batch_size"), [(20, 5), (400_000, 1), (400_000, 64)])
def test_keyboard_interrupt(isa, rows, batch_size):
    """Between epochs or inside one: fit ends, and the model can be used, trained and saved."""
    spec = chain(8, 64, 3)
    model = model_of(spec, "mse", "float32", lr=1e-4)
    x, y = batch_for(spec, "mse", rows, np.float32)
    timer = threading.Timer(0.15, interrupt_main)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, epochs=10**6, batch_size=batch_size)
    finally:
        timer.cancel()
    assert model._core.program.steps > 0
    parameters = model.parameters
    assert np.isfinite(parameters).all()
    np.testing.assert_array_equal(model.parameters, parameters)
    assert np.isfinite(model.predict(x[:50])).all()
    assert np.isfinite(model.train_step(x[:50], y[:50]))
    assert np.isfinite(model.fit(x[:50], y[:50], epochs=2)["loss"]).all()


class Interrupted:
    """Batches without end; SIGINT comes while they are trained on."""

    def __init__(self, x, y):
        self.batch = x, y

    def __iter__(self):
        while True:
            yield self.batch


@pytest.mark.parametrize("where", ["array", "blocks", "batches", "validation", "callback"])
def test_sigint(where):
    """Wherever it comes: fit ends, the epochs so far are kept, and the model can be used and fitted again."""
    spec = chain(8, 64, 3)
    model = model_of(spec, "mse", "float32", lr=1e-4)
    x, y = batch_for(spec, "mse", 1000, np.float32)
    many = np.tile(x, (100, 1)), np.tile(y, (100, 1))
    arguments = {
        "array": {"x": x, "y": y},
        "blocks": {"x": cnn.Blocks(*many, rows=1000)},
        "batches": {"x": Interrupted(x, y)},
        "validation": {"x": x[:10], "y": y[:10], "validation_data": many},
        "callback": {"x": x, "y": y, "callbacks": [cnn.LambdaCallback(on_batch_end=lambda batch, logs: None)]},
    }[where]
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(epochs=10**6, **arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert model._core.program.steps > 0
    assert all(len(values) == len(model.history.epochs) for values in model.history.values())
    assert np.isfinite(model.parameters).all()
    assert len(model.fit(x, y, epochs=2)["loss"]) == 2
