"""predict_proba: by the loss, or by what the last layer gives."""

import numpy as np
import pytest
from arrays import looped

import cnn


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@looped("rows", [0, 1, 7, 1000])
@looped("n", [1, 2, 3, 8, 17, 40])
@pytest.mark.parametrize(("loss", "truth"), [(cnn.CrossEntropyLoss, softmax), (cnn.BCEWithLogitsLoss, sigmoid)])
def test_logits(isa, dtype, loss, truth, n, rows):
    model = cnn.Sequential([cnn.Linear(5, n), loss()], dtype=dtype, seed=0)
    x = 3 * np.random.default_rng(n).standard_normal((rows, 5))
    p = model.predict_proba(x)
    assert p.shape == (rows, n)
    assert p.dtype == dtype
    np.testing.assert_allclose(p, truth(model.predict(x).astype(np.float64)), rtol=32 * np.finfo(dtype).eps, atol=1e-30)
    np.testing.assert_array_equal(model.predict_proba(x, threads=1), p)


def test_extreme_logits(isa, dtype):
    for loss in (cnn.CrossEntropyLoss(), cnn.BCEWithLogitsLoss()):
        model = cnn.Sequential([cnn.Linear(2, 2, bias=False), loss], dtype=dtype)
        model.parameters = [1, 0, 0, 1]
        np.testing.assert_array_equal(model.predict_proba([[1e30, -1e30], [-1e30, 1e30]]), np.eye(2))


@pytest.mark.parametrize("last", [cnn.Softmax, cnn.LogSoftmax, cnn.Sigmoid])
@pytest.mark.parametrize("with_loss", [False, True])
def test_models_that_end_with_probabilities(isa, dtype, last, with_loss):
    """Whatever the loss, and without one."""
    loss = {cnn.LogSoftmax: cnn.NLLLoss}.get(last, cnn.MSELoss)
    model = cnn.Sequential([cnn.Linear(5, 3), last(), *[loss()] * with_loss], dtype=dtype, seed=0)
    x = np.random.default_rng(0).standard_normal((9, 5))
    y = model.predict(x)
    np.testing.assert_array_equal(model.predict_proba(x), np.exp(y) if last is cnn.LogSoftmax else y)


def test_nll_of_layers_of_ones_own():
    """NLLLoss says that outputs are log-probabilities."""
    model = cnn.Sequential([cnn.Linear(5, 3), cnn.NLLLoss()], seed=0)
    np.testing.assert_array_equal(model.predict_proba(np.ones((2, 5))), np.exp(model.predict(np.ones((2, 5)))))


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (
            [],
            "the model has neither a loss nor probabilities as outputs: end it with a loss, or a cnn",
        ),
        ([cnn.MSELoss()], r"the outputs are values with MSELoss\(\), not logits: predict gives them"),
        (
            [cnn.PoissonNLLLoss()],
            r"the outputs are logarithms of values with PoissonNLLLoss\(\), not logits",
        ),
        ([cnn.GaussianNLLLoss()], r"the outputs are values with GaussianNLLLoss\(\), not logits"),
        (
            [lambda y, t: (0.0, y)],
            r"CallableLoss\(.*\) does not define probabilities: end the layers with a cnn.Softmax\(\) or ",
        ),
    ],
)
def test_models_without_probabilities(last, message):
    model = cnn.Sequential([cnn.Linear(5, 2), *last])
    with pytest.raises(ValueError, match=f"^predict_proba: {message}"):
        model.predict_proba(np.ones((2, 5)))
