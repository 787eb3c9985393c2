"""fit that is continued, with schedules, and with accumulated gradients."""

import threading

import numpy as np
import pytest
from networks import assert_close, batch_for, build, chain, model_of

import cnn
from cnn.training import fit as training


def test_the_last_rows_are_held_out():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 31, np.float64)
    split, given = (model_of(spec, "cross_entropy", "float64") for _ in range(2))
    history = split.fit(x, y, epochs=3, batch_size=4, validation_split=0.3)
    assert history == given.fit(x[:21], y[:21], epochs=3, batch_size=4, validation_data=(x[21:], y[21:]))
    np.testing.assert_array_equal(split.parameters, given.parameters)


def test_a_run_that_is_continued():
    """The numbers of one run: orders, rates, history."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)

    def model():
        optimizer = cnn.SGD(lr=0.1, momentum=0.9, schedule=cnn.StepLR(2, gamma=0.5))
        return build(spec, "mse", dtype="float64", seed=3, optimizer=optimizer)[0]

    whole, parts = model(), model()
    expected = whole.fit(x, y, epochs=5, batch_size=8, validation_data=(x, y))
    first = parts.fit(x, y, epochs=2, batch_size=8, validation_data=(x, y))
    second = parts.fit(x, y, epochs=5, initial_epoch=2, batch_size=8, validation_data=(x, y))
    assert len(first["loss"]) == 2
    assert second == expected
    assert second.epochs == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(whole.parameters, parts.parameters)
    # in another model, that only has the parameters and the optimiser's state
    again = model()
    again._core.program.restore(whole._core.program.snapshot(whole.optimizer.states))
    third = again.fit(x, y, epochs=6, initial_epoch=5, batch_size=8, validation_data=(x, y))
    assert third.epochs == [6]
    whole.fit(x, y, epochs=6, initial_epoch=5, batch_size=8)
    np.testing.assert_array_equal(whole.parameters, again.parameters)
    assert whole.history.epochs == [6]  # without validation it is another history
    steps = whole._core.program.steps
    assert whole.fit(x, y, epochs=6, initial_epoch=6).epochs == [6]  # nothing is left to do
    assert whole._core.program.steps == steps


def test_schedule_by_step(monkeypatch):
    """Each step has its own rate, whatever the native calls are cut into; logs have the last one."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    schedule = cnn.OneCycleLR(max_lr=0.3, total_steps=15)

    def run(seconds):
        monkeypatch.setattr(training, "SLICE", seconds)
        model, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1, momentum=0.9, schedule=schedule))
        rates = []
        record = cnn.LambdaCallback(on_batch_end=lambda batch, logs: rates.append(logs["lr"]))
        history = model.fit(x, y, epochs=3, batch_size=8, callbacks=[record] * (seconds == 0), shuffle=False)
        return model, history, rates

    one, history, _ = run(1e9)
    other, again, rates = run(0)
    looped, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1, momentum=0.9))
    expected = schedule.rates(0, 15, 0.1, 0.9)
    for step in range(15):
        looped.optimizer.lr, looped.optimizer.momentum = expected[step]
        rows = slice(8 * (step % 5), 8 * (step % 5) + 8)
        looped.train_step(x[rows], y[rows])
    assert_close(one.parameters, looped.parameters, 1e-12)
    np.testing.assert_array_equal(one.parameters, other.parameters)
    assert history["lr"] == again["lr"] == expected[4::5, 0].tolist()
    assert rates == expected[:, 0].tolist()


def test_schedule_by_epoch():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    schedule = cnn.ExponentialLR(0.5)
    model, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1, schedule=schedule), seed=0)
    looped, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1), seed=0)
    history = model.fit(x, y, epochs=4, batch_size=7)
    for epoch in range(4):
        looped.optimizer.lr = 0.1 * 0.5**epoch
        looped.fit(x, y, batch_size=7)
    assert history["lr"] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert list(history) == ["loss", "lr"]
    np.testing.assert_array_equal(model.parameters, looped.parameters)
    assert model.optimizer.lr == 0.1


def test_reduce_on_plateau():
    """Stepped by fit with the number that it watches; by the rate of an epoch that begins."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    given = iter([3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0])

    def plateau(targets, outputs):
        return next(given)

    schedule = cnn.ReduceLROnPlateau(patience=0, factor=0.1, monitor="plateau")
    model, _ = build(spec, "mse", optimizer=cnn.SGD(lr=0.1, schedule=schedule))
    history = model.fit(x, y, epochs=7, metrics=[plateau])
    assert history["lr"] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.001, 0.001, 0.0001])
    for validation in ({}, {"validation_data": (x, y)}):  # by itself val_loss, or loss
        schedule = cnn.ReduceLROnPlateau()
        model, _ = build(spec, "mse", optimizer=cnn.SGD(lr=0.1, schedule=schedule))
        history = model.fit(x, y, epochs=3, **validation)
        assert schedule.best == min(history["val_loss" if validation else "loss"])
    schedule = cnn.ReduceLROnPlateau(monitor="val_auc")
    model, _ = build(spec, "mse", optimizer=cnn.SGD(lr=0.1, schedule=schedule))
    with pytest.raises(ValueError, match=r"^schedule: no 'val_auc' to monitor: there are loss, val_loss$"):
        model.fit(x, y, validation_data=(x, y))
    assert model._core.program.steps == 0


@pytest.mark.parametrize("source", ["array", "blocks", "batches"])
@pytest.mark.parametrize(("rows", "steps"), [(48, 2), (40, 2), (44, 2), (52, 3)])
def test_accumulation(source, rows, steps):
    """The mean gradient of three batches makes a step: as a batch of all of them."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", rows, np.float64)
    model, looped = (model_of(spec, "mse", "float64", lr=0.1, momentum=0.5) for _ in range(2))
    data = {
        "array": (x, y),
        "blocks": (cnn.Blocks(x, y, rows=8),),
        "batches": ([(x[i : i + 8], y[i : i + 8]) for i in range(0, rows, 8)],),
    }[source]
    history = model.fit(*data, epochs=2, batch_size=8, shuffle=False, accumulation_steps=3, metrics=["mae"])
    total = 0.0
    for _ in range(2):
        for first in range(0, rows, 24):
            group = [slice(i, min(i + 8, rows)) for i in range(first, min(first + 24, rows), 8)]
            looped.zero_grads()
            gradients = []
            for batch in group:
                loss, gradient = looped.loss_and_grad(x[batch], y[batch])
                gradients.append(gradient)
                total += loss * len(x[batch])
            looped._core.unpack(np.mean(gradients, axis=0), "grad_weight", "grad_bias")
            looped.step()
    assert model._core.program.steps == looped._core.program.steps == 2 * steps
    assert_close(model.parameters, looped.parameters, 1e-12)
    assert sum(history["loss"]) == pytest.approx(total / rows, rel=1e-12)
    assert len(history["mae"]) == 2


def test_accumulation_of_batches_of_many_sizes():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 30, np.float64)
    batches = [(x[:10], y[:10]), (x[:7], y[:7]), (x[:8], y[:8])]
    with pytest.raises(ValueError, match=r"^accumulation_steps: expected batches of one .* got \[10, 7, 8\] rows"):
        model_of(spec, "mse", "float64").fit(batches, accumulation_steps=3, shuffle=False)


def test_no_calls_from_two_threads():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 30, np.float64)
    model = model_of(spec, "mse", "float64")
    refused = []

    def attempt():
        with pytest.raises(RuntimeError, match=r"^another thread is training this model"):
            model.fit(x, y)
        refused.append(True)

    def other(batch, logs):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()

    model.fit(x, y, callbacks=[cnn.LambdaCallback(on_batch_end=other)])
    assert refused == [True]
