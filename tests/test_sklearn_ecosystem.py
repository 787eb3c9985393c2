"""`cnn.sklearn` among scikit-learn's tools: pipelines, searches, meta-estimators, pickles, metadata; and bad input."""

import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

import pandas as pd
import sklearn
import sklearn.neural_network as peers
from scipy import sparse
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import StackingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import cnn
from cnn.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
FIXTURES = Path(__file__).parent / "fixtures"
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((90, 3))
Y = np.where(X[:, 0] + 0.3 * X[:, 1] > 0, "yes", "no")


def classifier(**options):
    return MLPClassifier(**{"hidden_layer_sizes": (8,), "random_state": 0, "max_iter": 30, "batch_size": 15} | options)


def regressor(**options):
    return MLPRegressor(**{"hidden_layer_sizes": (8,), "random_state": 0, "max_iter": 30} | options)


def frame():
    numbers = pd.DataFrame(X, columns=["a", "b", "c"])
    numbers.loc[::7, "b"] = np.nan
    return numbers.assign(
        town=np.where(X[:, 2] > 0, "Ulm", "Ems"), kind=pd.Categorical(np.where(X[:, 0] > 0, "k", "l"))
    )


def prepared():
    columns = make_pipeline(SimpleImputer(), StandardScaler()), ["a", "b", "c"]
    texts = OneHotEncoder(sparse_output=False, handle_unknown="ignore"), ["town", "kind"]
    return ColumnTransformer([("numbers", *columns), ("texts", *texts)])


@pytest.mark.parametrize("output", ["default", "pandas"])
def test_pipeline_of_a_data_frame(output):
    pipeline = make_pipeline(prepared(), classifier(learning_rate_init=0.01)).set_output(transform=output)
    table = frame()
    assert pipeline.fit(table, Y).score(table, Y) > 0.8
    mlp = pipeline[-1]
    assert mlp.n_features_in_ == 7
    if output == "pandas":
        assert list(mlp.feature_names_in_) == list(pipeline[:-1].get_feature_names_out())
        with pytest.warns(UserWarning, match="X does not have valid feature names"):
            mlp.predict(np.zeros((1, 7)))
        with pytest.raises(ValueError, match="feature names should match"):
            mlp.predict(pipeline[:-1].transform(table).rename(columns={"numbers__a": "z"}))


def test_polars():
    polars = pytest.importorskip("polars")
    table = polars.DataFrame({name: np.asarray(column).tolist() for name, column in frame().items()})
    pipeline = make_pipeline(prepared(), classifier(learning_rate_init=0.01)).set_output(transform="polars")
    pipeline.fit(table, polars.Series(Y.tolist()))
    same = make_pipeline(prepared(), classifier(learning_rate_init=0.01)).fit(frame(), Y)
    np.testing.assert_array_equal(pipeline.predict(table), same.predict(frame()))
    np.testing.assert_array_equal(pipeline[-1].coefs_[0], same[-1].coefs_[0])
    assert list(pipeline[-1].feature_names_in_) == list(pipeline[:-1].get_feature_names_out())
    numbers = table[["a", "c"]]
    mlp = regressor().fit(numbers, table["a"])
    assert list(mlp.feature_names_in_) == ["a", "c"]
    alone = regressor().fit(X[:, [0, 2]], X[:, 0])
    np.testing.assert_array_equal(mlp.predict(numbers), alone.predict(X[:, [0, 2]]))


def test_frames_and_series():
    table = pd.DataFrame(X, columns=list("abc"))
    mlp = classifier().fit(table, pd.Series(Y))
    assert list(mlp.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_array_equal(mlp.predict(table), classifier().fit(X, Y).predict(X))
    numbers = regressor().fit(table, table[["a", "b"]])
    assert numbers.predict(table).shape == (90, 2)


def test_meta_estimators():
    calibrated = CalibratedClassifierCV(classifier(), cv=3).fit(X, Y)
    np.testing.assert_allclose(calibrated.predict_proba(X).sum(axis=1), 1)
    stack = StackingClassifier([("mlp", classifier()), ("line", LogisticRegression())], cv=3).fit(X, Y)
    assert stack.score(X, Y) > 0.8
    importance = permutation_importance(classifier(max_iter=80).fit(X, Y), X, Y, n_repeats=5, random_state=0)
    assert importance.importances_mean.argmax() == 0
    assert cross_val_score(regressor(max_iter=300), X, X[:, 0], cv=3).mean() > 0.5


def test_metadata_routing():
    weights = np.where(Y == "yes", 5.0, 0.1)
    with sklearn.config_context(enable_metadata_routing=True):
        asked = classifier().set_fit_request(sample_weight=True, X_val=True, y_val=True)
        pipeline = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), asked)
        pipeline.fit(X, Y, sample_weight=weights, X_val=X[:20], y_val=Y[:20])
        assert len(pipeline[-1].history_["val_loss"]) == 30
        search = GridSearchCV(asked.set_score_request(sample_weight=True), {"alpha": [0.1]}, cv=2)
        search.fit(X, Y, sample_weight=weights)
        np.testing.assert_array_equal(
            search.best_estimator_.coefs_[0], classifier(alpha=0.1).fit(X, Y, sample_weight=weights).coefs_[0]
        )
        calibrated = CalibratedClassifierCV(classifier().set_fit_request(sample_weight=True), cv=2)
        assert calibrated.fit(X, Y, sample_weight=weights).predict_proba(X).shape == (90, 2)


def test_clone_repr_and_html():
    mlp = classifier(dropout=0.5, activation=cnn.GELU()).fit(X, Y)
    twin = clone(mlp)
    assert twin.get_params(deep=False).keys() == mlp.get_params(deep=False).keys()
    assert not hasattr(twin, "coefs_")
    assert repr(twin) == repr(mlp)
    assert "dropout=0.5" in repr(mlp)
    assert "MLPClassifier" in mlp._repr_html_()
    assert twin.set_params(dropout=0.1).get_params()["dropout"] == 0.1


@pytest.mark.parametrize("options", [{}, {"solver": "sgd", "learning_rate": "invscaling"}, {"dropout": 0.1}])
def test_pickle_and_joblib(options, tmp_path):
    mlp = classifier(**options).fit(X, Y)
    joblib.dump(mlp, tmp_path / "mlp.joblib")
    for other in (pickle.loads(pickle.dumps(mlp)), joblib.load(tmp_path / "mlp.joblib")):
        np.testing.assert_array_equal(other.predict_proba(X), mlp.predict_proba(X))
        assert all(np.shares_memory(w, own) for w, own in zip(other.coefs_, other._arrays()[:2], strict=True))
    if not options:
        other.partial_fit(X, Y)
        np.testing.assert_array_equal(other.coefs_[0], mlp.partial_fit(X, Y).coefs_[0])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.InconsistentVersionWarning")
@pytest.mark.parametrize("name", ["classifier", "regressor"])
def test_estimators_of_earlier_versions_are_read(name):
    """Written by fixtures/make_estimators.py; a file with other numbers beside it says what they predict."""
    mlp = joblib.load(FIXTURES / f"v2-{name}.joblib")
    known = np.load(FIXTURES / "v2-estimators.npz")
    x = known["x"]
    if name == "classifier":
        np.testing.assert_array_equal(mlp.predict(x), known["predicted"])
    got = mlp.predict_proba(x) if name == "classifier" else mlp.predict(x)
    np.testing.assert_allclose(got, known[name], rtol=1e-6)
    assert mlp.partial_fit(x, known["classes"] if name == "classifier" else known["numbers"]).n_iter_ == 1


def test_sparse_rows_are_trained_on_as_dense_ones():
    table = sparse.random(60, 20, density=0.2, format="csr", random_state=0)
    labels = np.asarray(table.sum(axis=1)).ravel() > 2
    dense = classifier().fit(table.toarray(), labels, sample_weight=np.arange(1.0, 61))
    for form in ("csr", "csc", "coo"):
        mlp = classifier().fit(table.asformat(form), labels, sample_weight=np.arange(1.0, 61))
        np.testing.assert_allclose(mlp.coefs_[0], dense.coefs_[0], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(mlp.predict_proba(table), dense.predict_proba(table.toarray()), rtol=1e-12)
    np.testing.assert_allclose(dense.loss_curve_, mlp.loss_curve_, rtol=1e-12)


def test_an_epoch_in_several_native_calls_is_the_same(monkeypatch):
    whole = classifier(batch_size=7).fit(X, Y)
    monkeypatch.setattr("cnn.sklearn.NATIVE_WORK", 3 * 41 * 20)  # two batches each
    parts = classifier(batch_size=7).fit(X, Y)
    np.testing.assert_array_equal(parts.coefs_[0], whole.coefs_[0])
    np.testing.assert_allclose(parts.loss_curve_, whole.loss_curve_, rtol=1e-14)


# bad input ------------------------------------------------------------------------------------------------------------


def with_nan(x):
    x = x.copy()
    x[3, 1] = np.nan
    return x


REFUSED = {
    "NaN": (lambda mlp: mlp.fit(with_nan(X), Y), "Input X contains NaN"),
    "infinity": (lambda mlp: mlp.fit(np.where(X > 2, np.inf, X), Y), "Input X contains infinity"),
    "NaN in a prediction": (lambda mlp: mlp.fit(X, Y).predict(with_nan(X)), "Input X contains NaN"),
    "infinity in a probability": (lambda mlp: mlp.fit(X, Y).predict_proba(np.full((1, 3), np.inf)), "Input X contains"),
    "features": (lambda mlp: mlp.fit(X, Y).predict(X[:, :2]), "X has 2 features, but MLPClassifier is expecting 3"),
    "no rows": (lambda mlp: mlp.fit(X, Y).predict(X[:0]), "Found array with 0 sample"),
    "one row": (lambda mlp: mlp.fit(X, Y).predict(X[0]), "Expected 2D array, got 1D array instead"),
    "text": (lambda mlp: mlp.fit(np.array([["a", "b", "c"]] * 90), Y), "could not convert string to float"),
    "objects": (lambda mlp: mlp.fit(X, Y).predict(np.array([["a", "b", {}]], object)), "float"),
    "complex": (lambda mlp: mlp.fit(X + 1j, Y), "Complex data not supported"),
    "lengths": (lambda mlp: mlp.fit(X, Y[:5]), "inconsistent numbers of samples"),
    "NaN in y": (lambda mlp: mlp.fit(X, with_nan(X)[:, 1]), "contains NaN|continuous"),
    "numbers as classes": (lambda mlp: mlp.fit(X, X[:, 0]), "Unknown label type"),
    "weights": (lambda mlp: mlp.fit(X, Y, sample_weight=np.ones(5)), r"sample_weight.*\(5,\).*\(90,\)"),
    "negative weights": (lambda mlp: mlp.fit(X, Y, sample_weight=-np.ones(90)), r"sample_weight\[0\]"),
    "no weight": (lambda mlp: mlp.fit(X, Y, sample_weight=np.zeros(90)), "[Ss]ample.weight"),
    "an unseen class": (
        lambda mlp: mlp.partial_fit(X, Y, classes=["no", "yes"]).partial_fit(X, np.repeat(["maybe"], 90)),
        "`y` has classes not in `self.classes_`",
    ),
    "no classes": (lambda mlp: mlp.partial_fit(X, Y), "classes must be passed on the first call to partial_fit"),
    "hidden layers": (
        lambda mlp: mlp.set_params(hidden_layer_sizes=(4, 0)).fit(X, Y),
        "hidden_layer_sizes must be > 0",
    ),
    "dropout": (
        lambda mlp: mlp.set_params(dropout=1.0).fit(X, Y),
        "'dropout' parameter .* must be a float in the range",
    ),
    "optimizer": (lambda mlp: mlp.set_params(optimizer="adamw").fit(X, Y), "'optimizer' parameter .* must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    call, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call(classifier(max_iter=2))


def test_what_is_refused_before_it_is_fitted():
    for call in (lambda mlp: mlp.predict(X), lambda mlp: mlp.predict_proba(X), lambda mlp: mlp.model_):
        with pytest.raises(NotFittedError, match="This MLPClassifier instance is not fitted yet"):
            call(classifier())


def test_lbfgs_has_no_partial_fit():
    with pytest.raises(AttributeError, match="partial_fit"):
        classifier(solver="lbfgs").partial_fit(X, Y, classes=["no", "yes"])


def test_a_single_class_and_a_single_row():
    for x, y in ((X, np.repeat("yes", 90)), (X[:1], Y[:1])):
        ours = classifier(batch_size="auto").fit(x, y)
        theirs = peers.MLPClassifier((8,), random_state=0, max_iter=30).fit(x, y)
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
        np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-8)


def test_constant_columns_and_repeated_rows():
    constant = np.c_[X, np.ones(90), np.zeros(90)]
    ours = classifier().fit(constant, Y)
    theirs = peers.MLPClassifier((8,), random_state=0, max_iter=30, batch_size=15).fit(constant, Y)
    np.testing.assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-8, atol=1e-12)
    weighted = classifier(batch_size="auto").fit(X, Y, sample_weight=np.where(X[:, 0] > 0, 2, 1))
    rows = np.repeat(np.arange(90), np.where(X[:, 0] > 0, 2, 1))
    repeated = classifier(batch_size="auto").fit(X[rows], Y[rows])
    np.testing.assert_allclose(weighted.coefs_[0], repeated.coefs_[0], rtol=1e-8)


def test_sparse_labels_come_back_sparse():
    labels = sparse.csr_matrix((X[:, :2] > 0).astype(int))
    assert sparse.issparse(classifier().fit(X, labels).predict(X))
