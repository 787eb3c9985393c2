"""Dropout: the masks' statistics, that they follow from the seed and the rows' numbers alone, gradients, modes."""

import math

import numpy as np
import pytest

import cnn


def masks(rows, n, p=0.5, *, seed=0, batch=None, dtype="float32", threads=None, layers=1):
    """Where elements are dropped, of the first `rows` rows that a model is trained on; of its last dropout layer."""
    before = [part for _ in range(layers - 1) for part in (cnn.Dropout(0.0), cnn.LeakyReLU(1.0))]
    head = cnn.Linear(1, n, weight_init="zeros", bias_init="ones")
    model = cnn.Sequential([head, *before, cnn.Dropout(p), cnn.Identity()], seed=seed, dtype=dtype)
    x = np.zeros((rows, 1), dtype)
    used = cnn.get_num_threads()
    try:
        if threads:
            cnn.set_num_threads(threads)
        cuts = [x] if batch is None else [x[i : i + batch] for i in range(0, rows, batch)]
        y = np.concatenate([model(part) for part in cuts])
    finally:
        cnn.set_num_threads(used)
    scale = 1 / (1 - p)
    assert ((y == 0) | (abs(y - scale) < 1e-6 * scale)).all()
    return y == 0


def test_values(isa, dtype):
    """Each element is 0 or x / (1 - p), to the last bit but one; the gradient has the same mask."""
    for n in (1, 2, 3, 7, 15, 16, 17, 33, 100):
        for batch in (1, 2, 65):
            rng = np.random.default_rng([n, batch])
            x = 1 + rng.random((batch, n)).astype(dtype)
            grad = 1 + rng.random((batch, n)).astype(dtype)
            layer = cnn.Dropout(0.3)
            y = layer.forward(x)
            dx = layer.backward(grad)
            assert y.dtype == dx.dtype == dtype
            kept = y != 0
            np.testing.assert_allclose(y, kept * (x.astype(float) / 0.7), rtol=2 * np.finfo(dtype).eps)
            np.testing.assert_allclose(dx, kept * (grad.astype(float) / 0.7), rtol=2 * np.finfo(dtype).eps)


def test_the_ends(isa, dtype):
    """p = 0 changes nothing, p = 1 gives zeros, also of gradients."""
    x = np.random.default_rng(0).standard_normal((9, 21)).astype(dtype)
    for p, factor in ((0, 1), (1, 0), (0.0, 1), (1.0, 0)):
        layer = cnn.Dropout(p)
        np.testing.assert_array_equal(layer.forward(x), factor * x)
        np.testing.assert_array_equal(layer.backward(x), factor * x)


def test_evaluation_drops_nothing(isa):
    model = cnn.Sequential([cnn.Linear(4, 30), cnn.Dropout(0.5), cnn.MSELoss()], seed=0)
    x = np.random.default_rng(0).standard_normal((50, 4)).astype("float32")
    y = x @ model[0].weight + model[0].bias
    np.testing.assert_allclose(model.predict(x), y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.eval()(x), y, rtol=1e-5, atol=1e-6)
    assert model.evaluate(x, y)["loss"] < 1e-10
    assert (model.train()(x) == 0).any()
    layer = cnn.Dropout()
    layer.training = False
    np.testing.assert_array_equal(layer.forward(x), x)


# the same masks everywhere ------------------------------------------------------------------------


def test_every_instruction_set_and_dtype_drops_the_same(monkeypatch):
    from cnn import _dispatch

    found = []
    for isa in _dispatch.AVAILABLE:
        monkeypatch.setattr(_dispatch, "ISA", isa)
        monkeypatch.setattr(_dispatch, "_loaded", {})
        found += [masks(33, 45, 0.3, dtype=dtype) for dtype in ("float32", "float64")]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("how", [{"batch": 1}, {"batch": 7}, {"batch": 64}, {"threads": 1}, {"threads": 2}], ids=str)
def test_batches_and_threads_make_no_difference(isa, how):
    np.testing.assert_array_equal(masks(3000, 40, **how), masks(3000, 40))


def test_training_is_the_same_with_every_number_of_threads(isa):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((4000, 20)).astype("f4"), rng.standard_normal((4000, 30)).astype("f4")
    found = []
    used = cnn.get_num_threads()
    try:
        for threads in (1, 2, 3):
            cnn.set_num_threads(threads)
            layers = [cnn.Linear(20, 64), cnn.ReLU(), cnn.Dropout(0.4), cnn.Linear(64, 30), cnn.MSELoss()]
            model = cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1), seed=3)
            found.append([model.train_step(x, y) for _ in range(3)] + [model.parameters.tobytes()])
    finally:
        cnn.set_num_threads(used)
    assert found[0] == found[1] == found[2]


def test_masks_differ_by_seed_layer_and_step(isa):
    first = masks(64, 64)
    np.testing.assert_array_equal(masks(64, 64, seed=0), first)
    others = [masks(64, 64, seed=1), masks(64, 64, layers=2), masks(128, 64)[64:], ~first]
    for other in others[:3]:
        assert abs((other == first).mean() - 0.5) < 5 * 0.5 / 64


# statistics ---------------------------------------------------------------------------------------
# Of z = (mask - p) / sqrt(p (1 - p)): every mean of N independent products is normal with deviation 1 / sqrt(N). The
# numbers are the same at every run; 5 deviations are exceeded by one good generator in a million.


def standardized(mask, p):
    return (mask - p) / math.sqrt(p * (1 - p))


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_frequencies(p, seed):
    """Of all elements, and the variances of the frequencies of rows and of columns."""
    z = standardized(masks(2048, 512, p, seed=seed), p)
    rows, columns = z.shape
    assert abs(z.mean()) < 5 / math.sqrt(z.size)
    kurtosis = (1 - 6 * p * (1 - p)) / (p * (1 - p))  # in excess, of one element
    for sums, n in ((z.sum(axis=1) / math.sqrt(columns), columns), (z.sum(axis=0) / math.sqrt(rows), rows)):
        assert abs((sums**2).mean() - 1) < 5 * math.sqrt((2 + kurtosis / n) / len(sums))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_no_serial_correlation(p):
    """Between columns and between rows, by the lags of vectors and blocks."""
    z = standardized(masks(2048, 512, p), p)
    for lag in (1, 2, 3, 4, 7, 8, 15, 16, 17, 32, 64, 128, 256):
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < 5 / math.sqrt(z[:, lag:].size), lag
        assert abs((z[lag:] * z[:-lag]).mean()) < 5 / math.sqrt(z[lag:].size), lag
        assert abs((z[lag:, lag:] * z[:-lag, :-lag]).mean()) < 5 / math.sqrt(z[lag:, lag:].size), lag
    assert abs((z[1:] * z[:-1, ::-1]).mean()) < 5 / math.sqrt(z[1:].size)


def test_no_correlation_between_seeds():
    """Neighbours, and those that differ in one bit."""
    z = standardized(masks(512, 256, seed=6), 0.5)
    for seed in (7, 5, 2, 6 + 2**31, 6 + 2**62):
        other = standardized(masks(512, 256, seed=seed), 0.5)
        for turned in (other, other[:, ::-1], np.roll(other, 1, axis=0), np.roll(other, 1, axis=1)):
            assert abs((z * turned).mean()) < 5 / math.sqrt(z.size), seed


def test_all_patterns_are_equally_likely():
    """Of 12 neighbouring elements: chi-square of 4096 classes is normal, nearly."""
    patterns = masks(60_000, 12) @ (1 << np.arange(12))
    counts = np.bincount(patterns, minlength=4096)
    mean = 60_000 / 4096
    assert abs(((counts - mean) ** 2 / mean).sum() - 4095) < 5 * math.sqrt(2 * 4095)


def test_no_row_comes_twice():
    assert len(np.unique(np.packbits(masks(50_000, 64), axis=1).view("u8"))) == 50_000


# gradients, configuration, errors -----------------------------------------------------------------


def test_finite_differences(isa):
    """Of the loss by the parameters, in float64; a new model of the same seed has the same masks."""

    def model():
        layers = [cnn.Linear(3, 17), cnn.Tanh(), cnn.Dropout(0.4), cnn.Linear(17, 2), cnn.Dropout(0.2), cnn.MSELoss()]
        return cnn.Sequential(layers, dtype="float64", seed=4)

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    start = model().parameters
    _, gradient = model().loss_and_grad(x, y)
    assert model()(x, y) != model().eval()(x, y)
    h = 1e-3
    for i in range(0, len(start), 5):

        def loss(step, i=i):
            moved = model()
            at = start.copy()
            at[i] += step
            moved.parameters = at
            return moved(x, y)

        difference = (loss(-2 * h) - 8 * loss(-h) + 8 * loss(h) - loss(2 * h)) / (12 * h)
        assert difference == pytest.approx(gradient[i], rel=5e-6, abs=1e-10)


def test_configuration():
    model = cnn.Sequential([cnn.Linear(4, 3), cnn.Dropout(0.25)])
    assert repr(model[1]) == "Dropout(p=0.25)"
    assert cnn.Sequential.from_config(model.get_config())[1].p == 0.25
    assert cnn.Dropout().p == 0.5
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("p", "error", "message"),
    [
        (-0.1, ValueError, r"^p: expected a number from 0 to 1, got -0.1"),
        (1.5, ValueError, r"^p: expected a number from 0 to 1, got 1.5"),
        (math.nan, ValueError, r"^p: expected a finite number, got nan"),
        ("half", TypeError, r"^p: expected a number, got 'half'"),
        (None, TypeError, r"^p: expected a number, got None"),
        (True, TypeError, r"^p: expected a number, got True"),
    ],
)
def test_refuses(p, error, message):
    with pytest.raises(error, match=message):
        cnn.Dropout(p)
