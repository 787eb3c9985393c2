"""Narrow networks, whose rows are in the lanes of the vectors: as row by row, but for roundings of the gradients."""

import itertools

import grid
import numpy as np
import pytest

import cnn

TRAINED = 4 * 16  # rows from which on all vectors are wide enough: SAMPLE_TRAINED of AVX-512's
TOLERANCE = {"float32": 4e-6, "float64": 1e-14}  # relative to the norm
WIDTHS = [(3, 8, 3), (5, 20, 7), (30, 10), (1, 50, 1), (12, 24, 48, 24, 12), (2, 9, 33, 1)]


def model_of(*layers, dtype="float32"):
    return cnn.Sequential(list(layers), seed=0, dtype=dtype)


def chain(widths, act=cnn.Tanh, dtype="float32", loss=cnn.MSELoss):
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (cnn.Linear(a, b), act())]
    return model_of(*layers[:-1], loss(), dtype=dtype)


def data(n_in, n_out, rows, dtype="float32"):
    rng = np.random.default_rng(rows)
    return rng.standard_normal((rows, n_in)).astype(dtype), rng.standard_normal((rows, n_out)).astype(dtype)


def assert_near(model, x, y):
    """All rows at once, and forward and backward one after the other, which is by rows; whether anything differs."""
    loss_by_rows = model.forward(x, y)
    model.gradients = np.zeros_like(model.gradients)
    model.backward()
    by_rows = model.gradients
    loss, g = model.loss_and_grad(x, y)
    tolerance = TOLERANCE[str(model.dtype)]
    assert abs(loss - loss_by_rows) <= tolerance * abs(loss_by_rows)
    assert np.linalg.norm(g - by_rows) <= tolerance * np.linalg.norm(by_rows)
    return (g != by_rows).any()


@pytest.mark.parametrize("widths", WIDTHS)
def test_numbers_of_rows(isa, dtype, widths):
    """Ragged blocks, several segments; a prediction has the same bits in any batch."""
    model = chain(widths, dtype=dtype)
    differ = False
    for rows in (1, 15, 33, TRAINED - 1, TRAINED, TRAINED + 1, 3 * TRAINED + 7, 2100):
        x, y = data(widths[0], widths[-1], rows, dtype)
        differ |= assert_near(model, x, y)
        by_rows = np.concatenate([model.predict(x[i : i + 1]) for i in range(0, rows, 1 + rows // 50)])
        np.testing.assert_array_equal(model.predict(x)[:: 1 + rows // 50], by_rows)
    assert differ or isa != "v4" or dtype == "float64"  # else no row was in a lane


def test_activations(dtype):
    x, y = data(5, 3, TRAINED + 5, dtype)
    for name, given in grid.WITH_PARAMETERS:
        act = grid.ACTIVATIONS[name].make
        model = model_of(cnn.Linear(5, 9), act(given), cnn.Linear(9, 3), act(given), cnn.MSELoss(), dtype=dtype)
        assert_near(model, x, y)
        np.testing.assert_array_equal(model.predict(x)[3:4], model.predict(x[3:4]))


def test_losses(dtype):
    rng = np.random.default_rng(0)
    x = data(5, 1, TRAINED + 5, dtype)[0]
    for case in grid.CASES.values():
        m = case.width(3)
        y = grid.targets(case.targets, len(x), m, rng)
        tail = [cnn.Softplus()] if case.positive else []
        if not case.own:
            assert_near(
                model_of(cnn.Linear(5, 9), cnn.Tanh(), cnn.Linear(9, m), *tail, case.make(m), dtype=dtype), x, y
            )


def test_optimizers():
    """A step in the lanes, and the same step of the gradients that the lanes gave."""
    x, y = data(3, 3, TRAINED + 5)
    layers = lambda: [cnn.Linear(3, 8, bias=False), cnn.Tanh(), cnn.Linear(8, 3), cnn.MSELoss()]  # noqa: E731
    for name, case in grid.OPTIMIZERS.items():
        optimizers = [case.cls(**{**case.options, **case.common}) for _ in range(2)]
        fused, apart = (cnn.Sequential(layers(), optimizer, seed=0) for optimizer in optimizers)
        for _ in range(3):
            fused.train_step(x, y)
            apart.loss_and_grad(x, y)
            apart.step()
        np.testing.assert_array_equal(fused.parameters, apart.parameters, err_msg=name)


@pytest.mark.parametrize("rows", [2500, 9000])
def test_threads(rows):
    x, y = data(3, 3, rows)
    results = []
    for threads in (1, 2, 3):
        model = cnn.Sequential([cnn.Linear(3, 8), cnn.Tanh(), cnn.Linear(8, 3), cnn.MSELoss()], cnn.Adam(0.01), seed=0)
        model.fit(x, y, epochs=2, batch_size=rows, threads=threads, progress=False)
        results.append(model.parameters)
    np.testing.assert_array_equal(results[1:], results[:1] * 2)


def test_rows_that_do_not_count():
    """NaN where the weight is zero, or the target is to be ignored: nothing of it is seen."""
    x, y = data(3, 3, TRAINED + 5)
    w = np.ones(len(x), np.float32)
    w[::7] = 0
    bad = np.where(w[:, None] == 0, np.float32(np.nan), x)
    results = []
    for rows in (x, bad):
        model = cnn.Sequential([cnn.Linear(3, 8), cnn.ReLU(), cnn.Linear(8, 3), cnn.MSELoss()], cnn.SGD(0.1), seed=0)
        model.fit(rows, y, sample_weight=w, epochs=2, batch_size=len(x), progress=False)
        results.append(model.parameters)
    assert np.isfinite(results[0]).all()
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6, atol=1e-6)


def test_shuffled_rows_and_metrics():
    """Batches in an order of their own, the last of them odd, and the outputs that metrics are made of."""
    x, y = data(3, 3, 300)
    model = cnn.Sequential([cnn.Linear(3, 8), cnn.Tanh(), cnn.Linear(8, 3), cnn.MSELoss()], cnn.SGD(1e-9), seed=0)
    history = model.fit(x, y, epochs=1, batch_size=128, metrics=["mae"], progress=False)
    np.testing.assert_allclose(history["mae"], [np.abs(model.predict(x) - y).mean()], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], [model.evaluate(x, y)["loss"]], rtol=1e-5)


def test_nan_in_a_row(dtype):
    x, y = data(3, 3, TRAINED + 5, dtype)
    x[17, 1] = np.nan
    model = chain((3, 8, 3), dtype=dtype)
    assert np.isnan(model.loss_and_grad(x, y)[0])
    assert np.isnan(model.predict(x)).any(axis=1).nonzero()[0].tolist() == [17]
