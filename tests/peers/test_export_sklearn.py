"""Fitted scikit-learn networks as models."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cnn

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
assert issubclass(ConvergenceWarning, Warning)


def data(classes=0, outputs=1, dtype=np.float64):
    random = np.random.default_rng(0)
    x = random.standard_normal((80, 5)).astype(dtype)
    if classes:
        return x, np.array(["ape", "bee", "cat", "dog"])[random.integers(classes, size=80)]
    y = random.standard_normal((80, outputs)).astype(dtype)
    return x, y[:, 0] if outputs == 1 else y


def fitted(kind, x, y, **options):
    return kind(hidden_layer_sizes=(7, 4), max_iter=30, random_state=0, **options).fit(x, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_regressor(outputs, activation, dtype):
    x, y = data(outputs=outputs, dtype=dtype)
    mlp = fitted(MLPRegressor, x, y, activation=activation)
    model = cnn.from_sklearn(mlp)
    assert model.dtype == mlp.coefs_[0].dtype
    assert isinstance(model.loss, cnn.MSELoss)
    np.testing.assert_allclose(model.predict(x), mlp.predict(x).reshape(80, outputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
def test_classifier(activation):
    x, y = data(classes=4)
    mlp = fitted(MLPClassifier, x, y, activation=activation)
    model = cnn.from_sklearn(mlp)
    assert isinstance(model.loss, cnn.CrossEntropyLoss)
    logits = model.predict(x)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(odds / odds.sum(axis=1, keepdims=True), mlp.predict_proba(x), rtol=1e-9)
    assert (mlp.classes_[logits.argmax(axis=1)] == mlp.predict(x)).all()


def test_binary_classifier():
    x, y = data(classes=2)
    mlp = fitted(MLPClassifier, x, y)
    model = cnn.from_sklearn(mlp)
    assert isinstance(model.loss, cnn.BCEWithLogitsLoss)
    logits = model.predict(x)
    assert logits.shape == (80, 1)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 0])), mlp.predict_proba(x)[:, 1], rtol=1e-9)
    assert (mlp.classes_[(logits[:, 0] > 0).astype(int)] == mlp.predict(x)).all()


def test_several_labels():
    x, _ = data()
    y = np.random.default_rng(1).integers(2, size=(80, 3))
    mlp = fitted(MLPClassifier, x, y)
    np.testing.assert_array_equal(cnn.from_sklearn(mlp).predict(x) > 0, mlp.predict(x))


def test_can_be_trained_on():
    x, y = data(classes=4)
    mlp = fitted(MLPClassifier, x, y)
    before = [weight.copy() for weight in mlp.coefs_]
    model = cnn.from_sklearn(mlp, optimizer=cnn.Adam())
    labels = np.searchsorted(mlp.classes_, y)
    losses = model.fit(x, labels, epochs=20, progress=False)["loss"]
    assert losses[-1] < losses[0]
    for weight, old in zip(mlp.coefs_, before, strict=True):
        np.testing.assert_array_equal(weight, old)


def test_what_it_refuses():
    with pytest.raises(TypeError, match="mlp: expected an MLPClassifier or MLPRegressor, got LogisticRegression"):
        cnn.from_sklearn(LogisticRegression())
    with pytest.raises(ValueError, match="mlp: this MLPRegressor is not fitted"):
        cnn.from_sklearn(MLPRegressor())
    x, y = data()
    mlp = fitted(MLPRegressor, x, y)
    mlp.out_activation_ = "cubic"
    with pytest.raises(
        ValueError, match="mlp: expected the output function identity, logistic, softmax or exp, got 'cubic'"
    ):
        cnn.from_sklearn(mlp)


@pytest.mark.parametrize("options", [{}, {"with_mean": False}, {"with_std": False}])
def test_pipelines_and_searches(options):
    x, y = data()
    x = 5 * x + 3
    pipeline = make_pipeline(
        StandardScaler(**options), MLPRegressor(hidden_layer_sizes=(6,), max_iter=20, random_state=0)
    )
    search = GridSearchCV(pipeline, {"mlpregressor__alpha": [1e-4]}, cv=2).fit(x, y)
    np.testing.assert_allclose(cnn.from_sklearn(search).predict(x)[:, 0], search.predict(x), rtol=1e-9, atol=1e-12)
