"""SobolevLoss: alone, in training, and beside the same loss made of derivatives and residual_loss_and_grad."""

import numpy as np
import pytest
from networks import assert_close
from test_derivatives import along, numbers

import cnn

X = np.random.default_rng(0).uniform(-1, 1, (41, 2))
Y = np.hstack([np.sin(X[:, :1]) * X[:, 1:], X[:, :1] ** 2])
DY = np.stack(
    [np.hstack([np.cos(X[:, :1]) * X[:, 1:], 2 * X[:, :1]]), np.hstack([np.sin(X[:, :1]), 0 * X[:, :1]])], axis=2
)
ROWS = np.column_stack([Y, DY.reshape(len(Y), -1)])


def network(loss, optimizer=None, dtype="float64", l2=0.0):
    layers = [cnn.Linear(2, 16), cnn.Tanh(), cnn.Linear(16, 2, l2=l2), loss]
    return cnn.Sequential(layers, optimizer, dtype=dtype, seed=0)


def truth(u, du, rows, weight, w=None, mean=True):
    """The loss in NumPy; NaN does not count."""
    parts = []
    w = np.ones(len(u)) if w is None else w
    for found, target in ((u, rows[:, :2]), (du.reshape(len(u), -1), rows[:, 2:])):
        known = ~np.isnan(target) * w[:, None]
        squares = np.where(known > 0, (found - np.nan_to_num(target)) ** 2, 0) * known
        parts.append(squares.sum() / known.sum() if mean else squares.sum())
    return parts[0] + weight * parts[1]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("missing", [False, True])
def test_loss_and_gradient(dtype, reduction, missing):
    model = network(cnn.SobolevLoss(0.3, reduction=reduction, ignore_nan=missing), dtype=dtype, l2=0.01)
    rows = ROWS.copy()
    if missing:
        rows[3, 1] = rows[5] = rows[7, 2:] = np.nan
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    loss, gradient = model.loss_and_grad(X.astype(dtype), rows)
    u, du = model.derivatives(X.astype(dtype), 1)
    penalty = 0.01 * np.sum(model.layers[2].weight ** 2)
    assert loss == pytest.approx(truth(u, du, rows, 0.3, mean=reduction == "mean") + penalty, rel=tolerance)
    assert model(X, rows) == pytest.approx(loss, rel=tolerance)
    model.zero_grads()
    model.backward()
    np.testing.assert_array_equal(model.gradients, gradient)
    assert model.evaluate(X, rows)["loss"] == pytest.approx(loss, rel=tolerance)
    if dtype == "float64":
        start, v = model.parameters, numbers(1, gradient.size) / 10

        def moved(h):
            model.parameters = start + h * v
            return model.loss_and_grad(X, rows)[0]

        assert gradient @ v == pytest.approx(along(moved), rel=1e-8)


def test_alone():
    loss = cnn.SobolevLoss(0.3)
    u, du = numbers(1, 41, 2), numbers(2, 41, 2, 2)
    w = np.abs(numbers(3, 41))
    assert loss((u, du), (Y, DY), w) == pytest.approx(truth(u, du, ROWS, 0.3, w), rel=1e-13)
    assert loss((u, du), (Y, DY)) == pytest.approx(truth(u, du, ROWS, 0.3), rel=1e-13)
    by_u, by_du = loss.backward()
    assert_close(by_u, 2 * (u - Y) / Y.size, 1e-13)
    assert_close(by_du, 0.6 * (du - DY) / DY.size, 1e-13)
    assert cnn.losses.Loss.from_config(loss.to_config()).get_config() == loss.get_config()
    with pytest.raises(TypeError, match=r"^outputs: expected a pair \(values, derivatives\), got ndarray"):
        loss(u, Y)
    with pytest.raises(RuntimeError, match="backward needs a forward pass"):
        cnn.SobolevLoss().backward()


def test_fit_with_all_that_others_have(path):
    """Batches, weights, validation, metrics, a checkpoint; a pair of arrays is the same as their columns."""
    w = np.abs(numbers(3, 41))
    w[5] = 0
    models = []
    for y in (ROWS, (Y, DY)):
        model = network(cnn.SobolevLoss(0.1), cnn.Adam(lr=0.02))
        history = model.fit(
            X, y, epochs=60, batch_size=16, sample_weight=w, validation_data=(X[:9], ROWS[:9]), metrics=["mae", "r2"]
        )
        models.append(model)
    np.testing.assert_array_equal(models[0].parameters, models[1].parameters)
    assert history["loss"][-1] < 0.02 * history["loss"][0]
    scores = model.evaluate(X, ROWS, metrics=["mae"])
    assert scores["mae"] == pytest.approx(np.mean(abs(model.predict(X) - Y)))
    u, du = model.derivatives(X, 1)
    assert scores["loss"] == pytest.approx(truth(u, du, ROWS, 0.1))
    weighted = model.evaluate(X, ROWS, sample_weight=w)["loss"]
    assert weighted == pytest.approx(truth(u, du, ROWS, 0.1, w))
    assert history["val_loss"][-1] == pytest.approx(model.evaluate(X[:9], ROWS[:9])["loss"])
    model.save(path, training_state=True)
    loaded = cnn.load(path)
    assert loaded.loss.get_config() == model.loss.get_config()
    assert loaded.train_step(X, ROWS) == model.train_step(X, ROWS)
    np.testing.assert_array_equal(loaded.parameters, model.parameters)


def test_batches_and_steps_are_gradient_descent():
    """fit with accumulated batches, and train_step, against steps with the gradients of loss_and_grad."""
    models = [network(cnn.SobolevLoss(0.3), cnn.SGD(lr=0.05), l2=0.01) for _ in range(3)]
    models[0].fit(X[:40], ROWS[:40], epochs=2, batch_size=10, accumulation_steps=2, shuffle=False)
    for _ in range(2):
        for at in (0, 20):
            models[1].train_step(X[at : at + 20], ROWS[at : at + 20])
            models[2].loss_and_grad(X[at : at + 20], ROWS[at : at + 20])
            models[2].step()
    for model in models[1:]:
        assert_close(models[0].parameters, model.parameters, 1e-12)


def test_whole_data_and_copies():
    model = network(cnn.SobolevLoss(0.1), cnn.LBFGS())
    history = model.copy().fit(X, ROWS, epochs=80)
    assert history["loss"][-1] < 1e-3 * history["loss"][0]
    assert model.fit(X, ROWS, epochs=80)["loss"] == history["loss"]


def test_what_does_not_fit():
    model = network(cnn.SobolevLoss(), cnn.SGD(lr=0.1))
    dropping = cnn.Sequential(
        [cnn.Linear(2, 4), cnn.Dropout(0.5), cnn.Linear(4, 2), cnn.SobolevLoss()], cnn.SGD(), seed=0
    )
    for call, error, message in [
        (
            lambda: model.fit(X, Y),
            ValueError,
            r"^y: expected shape \(batch, 6\), 2 values and then 4 derivatives .*got \(41, 2\)",
        ),
        (lambda: model.loss_and_grad(X, ROWS[:3]), ValueError, "expected 41 rows, as many as x has, got 3"),
        (lambda: model.train_step(X, ROWS * 1j), TypeError, "expected real numbers"),
        (lambda: model.train_step(X[:0], ROWS[:0]), ValueError, "training needs at least one row"),
        (lambda: model.grad_input(X, ROWS), NotImplementedError, "SobolevLoss has no gradient in x"),
        (
            lambda: model.hvp(X, ROWS, model.parameters),
            NotImplementedError,
            r"SobolevLoss\(.*\) has no second derivative",
        ),
        (
            lambda: dropping.fit(X, ROWS),
            ValueError,
            "^SobolevLoss: expected a model whose .* got a Dropout or a BatchNorm1d",
        ),
        (lambda: cnn.SobolevLoss(-1), ValueError, "^weight: expected a finite number of at least 0, got -1"),
    ]:
        with pytest.raises(error, match=message):
            call()
    dropping.layers[1].eval()
    assert dropping.fit(X, ROWS, epochs=1)["loss"]


def test_a_refused_backward_leaves_the_pass():
    x = np.random.default_rng(0).standard_normal((9, 2))
    model = cnn.Sequential([cnn.Linear(2, 4), cnn.Tanh(), cnn.Linear(4, 1), cnn.SobolevLoss()], seed=0, dtype="float64")
    model(x, np.zeros((9, 3)))
    with pytest.raises(NotImplementedError, match="no gradient in x"):
        model.backward(parameters=False)
    model.backward()
    np.testing.assert_array_equal(model.gradients, model.loss_and_grad(x, np.zeros((9, 3)))[1])
