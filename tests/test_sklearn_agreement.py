"""`cnn.sklearn` against scikit-learn: coefficients after five epochs of each solver, and its checks of estimators."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

import sklearn.neural_network as peers
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

import cnn.sklearn as ours

SOLVERS = {
    "adam": {},
    "adam, epsilon": {"epsilon": 1e-3},
    "nesterov": {"solver": "sgd", "learning_rate_init": 0.05},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False},
    "plain": {"solver": "sgd", "momentum": 0.0},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 10.0, "n_iter_no_change": 1},
    "lbfgs": {"solver": "lbfgs"},
}
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((70, 6))
TARGETS = {
    "binary": ("MLPClassifier", {}, np.where(X[:, 0] > 0, "yes", "no")),
    "multiclass": ("MLPClassifier", {}, np.array(["a", "b", "c"])[np.digitize(X[:, 1], [-0.5, 0.5])]),
    "multilabel": ("MLPClassifier", {}, (X[:, :3] > 0).astype(int)),
    "numbers": ("MLPRegressor", {}, X[:, 0] * X[:, 1]),
    "several": ("MLPRegressor", {}, X[:, :2] * X[:, 2:3]),
    "poisson": ("MLPRegressor", {"loss": "poisson"}, RANDOM.poisson(2.0, 70).astype(float)),
}


def both(kind, weights=None, **options):
    name, more, y = TARGETS[kind]
    fitted = []
    for module in (ours, peers):
        mlp = getattr(module, name)(
            **{"max_iter": 5, "batch_size": 16, "random_state": 3, "alpha": 0.1, **more, **options}
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mlp.fit(X, y, sample_weight=weights)
        fitted.append(mlp)
    return fitted


def agree(mlp, peer, rtol=1e-8):
    for a, b in zip(mlp.coefs_ + mlp.intercepts_, peer.coefs_ + peer.intercepts_, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * abs(b).max())
    assert mlp.loss_ == pytest.approx(peer.loss_, rel=rtol)
    assert (mlp.n_iter_, mlp.t_, mlp.out_activation_) == (peer.n_iter_, peer.t_, peer.out_activation_)
    if mlp.solver != "lbfgs":
        np.testing.assert_allclose(mlp.loss_curve_, peer.loss_curve_, rtol=rtol)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_five_epochs(solver, weighted, kind):
    weights = np.random.default_rng(1).uniform(0.5, 2, len(X)) if weighted else None
    mlp, peer = both(kind, weights=weights, **SOLVERS[solver])
    agree(mlp, peer)
    np.testing.assert_allclose(mlp.model_.predict(X).shape, (len(X), mlp.n_outputs_))
    assert mlp.score(X, TARGETS[kind][2]) == pytest.approx(peer.score(X, TARGETS[kind][2]), rel=1e-8)


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("kind", ["multiclass", "numbers"])
def test_activations_and_early_stopping(activation, kind):
    options = {"activation": activation, "hidden_layer_sizes": (7, 5), "early_stopping": True, "max_iter": 30}
    mlp, peer = both(kind, **options, n_iter_no_change=3, validation_fraction=0.3)
    agree(mlp, peer)
    np.testing.assert_allclose(mlp.validation_scores_, peer.validation_scores_, rtol=1e-8)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_partial_fit_goes_on_after_pickle(solver):
    y = TARGETS["multiclass"][2]
    mlp, peer = (module.MLPClassifier(solver=solver, random_state=0) for module in (ours, peers))
    for _ in range(3):
        for one in (mlp, peer):
            one.partial_fit(X, y, classes=["a", "b", "c"])
        mlp = pickle.loads(pickle.dumps(mlp))
    agree(mlp, peer)


def test_coefficients_that_are_set_are_used():
    mlp, peer = both("numbers")
    for one in (mlp, peer):
        one.coefs_ = [2 * w for w in one.coefs_]
    np.testing.assert_allclose(mlp.predict(X), peer.predict(X), rtol=1e-10)
    assert not hasattr(clone(mlp), "coefs_")


def test_float32_is_kept():
    x, y = load_iris(return_X_y=True)
    x = x.astype("float32")
    mlp, peer = (module.MLPClassifier(max_iter=300, tol=1e-2, random_state=0).fit(x, y) for module in (ours, peers))
    assert mlp.model_.dtype == mlp.predict_proba(x).dtype == np.float32
    agree(mlp, peer, rtol=1e-3)  # float32: the sums are in another order
    np.testing.assert_allclose(mlp.predict_proba(x), peer.predict_proba(x), rtol=1e-3, atol=1e-5)


@parametrize_with_checks([ours.MLPClassifier(max_iter=100), ours.MLPRegressor(max_iter=100)])
@pytest.mark.filterwarnings("ignore")
def test_estimator_checks(estimator, check):
    check(estimator)
