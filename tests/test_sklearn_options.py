"""`cnn.sklearn`: the options that scikit-learn's networks do not have."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", minversion="1.9")

import sklearn.neural_network as peers
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_sample_weight

import cnn
from cnn.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((120, 4))
LABELS = np.array(["a", "b", "c"])[np.digitize(X[:, 0] + X[:, 1], [-0.8, 0.8])]
NUMBERS = X[:, 0] * X[:, 1]


def classifier(**options):
    return MLPClassifier(**{"hidden_layer_sizes": (16, 8), "random_state": 0, "max_iter": 40, **options})


def regressor(**options):
    return MLPRegressor(**{"hidden_layer_sizes": (16,), "random_state": 0, "max_iter": 40, **options})


def kinds(mlp):
    return [type(layer).__name__ for layer in mlp.model_.layers]


def test_layers_of_the_network():
    mlp = classifier(dropout=0.2, batch_norm=True, activation=["gelu", cnn.LeakyReLU(0.2)]).fit(X, LABELS)
    assert " ".join(kinds(mlp)) == "Linear BatchNorm1d GELU Dropout Linear BatchNorm1d LeakyReLU Dropout Linear"
    assert mlp.model_.layers[6].negative_slope == 0.2
    assert kinds(classifier(layer_norm=True, activation="silu").fit(X, LABELS))[:3] == ["Linear", "LayerNorm", "SiLU"]
    np.testing.assert_array_equal(mlp.predict_proba(X), mlp.model_.predict_proba(X))
    assert mlp.coefs_[1].shape == (16, 8)
    assert np.shares_memory(mlp.coefs_[1], mlp.model_.layers[4].weight)
    assert mlp.n_iter_ == len(mlp.loss_curve_) == 40
    assert mlp.loss_curve_[-1] < mlp.loss_curve_[0]
    assert mlp.t_ == 40 * 120
    other = pickle.loads(pickle.dumps(mlp))
    np.testing.assert_array_equal(other.predict_proba(X), mlp.predict_proba(X))
    np.testing.assert_array_equal(clone(mlp).fit(X, LABELS).predict_proba(X), mlp.predict_proba(X))


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("kind", ["labels", "several", "numbers", "counts"])
def test_sequential_fit_trains_as_scikit_learn_does(solver, kind):
    """But for the epsilon of Adam and the last batch, whose penalty is not divided by its own rows."""
    y = {"labels": LABELS, "several": (X[:, :3] > 0).astype(int), "numbers": np.c_[NUMBERS, X[:, 2]]}.get(kind)
    make = MLPClassifier if kind in ("labels", "several") else MLPRegressor
    peer = getattr(peers, make.__name__)
    y = RANDOM.poisson(2.0, 120).astype(float) if y is None else y
    more = {"loss": "poisson"} if kind == "counts" else {}
    shared = {
        "solver": solver,
        "shuffle": False,
        "max_iter": 5,
        "batch_size": 30,
        "random_state": 1,
        "alpha": 0.1,
    } | more
    if solver == "adam":
        shared["epsilon"] = 1e-15
    ours, theirs = make(clip_norm=1e9, **shared).fit(X, y), peer(**shared).fit(X, y)
    for a, b in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_class_weight():
    y = np.where(X[:, 0] > 1, "rare", "usual")
    shared = {"max_iter": 5, "batch_size": 16, "random_state": 0}
    for wanted in ("balanced", {"rare": 3.0, "usual": 0.5}):
        weights = compute_sample_weight(wanted, y)
        own = np.linspace(1, 2, 120)
        for solver in ("adam", "lbfgs"):
            mlp = MLPClassifier(class_weight=wanted, solver=solver, **shared).fit(X, y, sample_weight=own)
            peer = peers.MLPClassifier(solver=solver, **shared).fit(X, y, sample_weight=weights * own)
            np.testing.assert_allclose(mlp.coefs_[0], peer.coefs_[0], rtol=1e-8, atol=1e-10)
    several = (X[:, :2] > 0.7).astype(int)
    mlp = MLPClassifier(class_weight="balanced", **shared).fit(X, several)
    weights = compute_sample_weight("balanced", several)
    peer = peers.MLPClassifier(**shared).fit(X, several, sample_weight=weights)
    np.testing.assert_allclose(mlp.coefs_[0], peer.coefs_[0], rtol=1e-8, atol=1e-10)
    with pytest.raises(
        ValueError, match=r"class_weight: \['often'\] are no classes of y, which has \['rare', 'usual'\]"
    ):
        MLPClassifier(class_weight={"often": 2}).fit(X, y)
    with pytest.raises(ValueError, match="class_weight: 'balanced' needs all of y, which partial_fit does not get"):
        MLPClassifier(class_weight="balanced").partial_fit(X, y, classes=["rare", "usual"])


@pytest.mark.parametrize("loss", ["absolute_error", "huber", "smooth_l1", "gaussian", cnn.HuberLoss(delta=2.0)])
def test_losses_of_numbers(loss):
    mlp = regressor(loss=loss, max_iter=150, learning_rate_init=0.01).fit(X, NUMBERS)
    assert mlp.predict(X).shape == (120,)
    assert mlp.score(X, NUMBERS) > 0.8
    assert type(mlp.model_.loss).__name__.lower().startswith(str(loss).lower()[:5].replace("absol", "l1"))


def test_quantiles():
    loss = cnn.QuantileLoss([0.1, 0.5, 0.9])
    mlp = regressor(loss=loss, max_iter=200, learning_rate_init=0.01, early_stopping=True).fit(X, NUMBERS)
    low, middle, high = mlp.predict(X).T
    assert np.mean(low <= high) > 0.9
    assert np.mean(low > NUMBERS) < np.mean(middle > NUMBERS) < np.mean(high > NUMBERS)
    assert len(mlp.validation_scores_) == mlp.n_iter_
    assert mlp.best_validation_score_ == max(mlp.validation_scores_) < 0
    both = regressor(loss=loss).fit(X, np.c_[NUMBERS, X[:, 0]]).predict(X)
    assert both.shape == (120, 2, 3)
    assert regressor(loss=loss, solver="lbfgs").fit(X, NUMBERS).predict(X).shape == (120, 3)


def test_losses_of_classes():
    mlp = classifier(loss=cnn.CrossEntropyLoss(label_smoothing=0.1), learning_rate_init=0.01).fit(X, LABELS)
    assert mlp.score(X, LABELS) > 0.8
    binary = classifier(loss=cnn.BCEWithLogitsLoss(pos_weight=[3.0])).fit(X, X[:, 0] > 0)
    plain = classifier().fit(X, X[:, 0] > 0)
    assert binary.predict_proba(X)[:, 1].mean() > plain.predict_proba(X)[:, 1].mean()
    with pytest.raises(
        ValueError, match="loss: expected BCEWithLogitsLoss for two classes or several labels, got Cross"
    ):
        classifier(loss=cnn.CrossEntropyLoss()).fit(X, X[:, 0] > 0)
    with pytest.raises(ValueError, match="loss: expected CrossEntropyLoss for more than two classes, got BCE"):
        classifier(loss=cnn.BCEWithLogitsLoss()).fit(X, LABELS)
    with pytest.raises(
        ValueError, match=r"loss: expected one for numeric targets, such as cnn.HuberLoss\(\), got CrossEntropy"
    ):
        regressor(loss=cnn.CrossEntropyLoss()).fit(X, NUMBERS)
    with pytest.raises(
        ValueError, match=r"loss: expected a loss such as cnn.HuberLoss\(\), or one of .*, got 'hubert'"
    ):
        regressor(loss="hubert").fit(X, NUMBERS)


def test_validation_rows_of_ones_own():
    mlp = classifier(early_stopping=True, max_iter=200, n_iter_no_change=5, learning_rate_init=0.05)
    mlp.fit(X[:80], LABELS[:80], X_val=X[80:], y_val=LABELS[80:])
    history = mlp.history_
    assert len(history["val_loss"]) == len(history["loss"]) == mlp.n_iter_ < 200
    assert mlp.best_validation_score_ == max(mlp.validation_scores_) == mlp.score(X[80:], LABELS[80:])
    mlp = regressor(max_iter=3).fit(X, NUMBERS, X_val=X[:9], y_val=NUMBERS[:9])
    last = np.mean((mlp.predict(X[:9]) - NUMBERS[:9]) ** 2)
    assert mlp.history_["val_loss"][-1] == pytest.approx(last)
    for wrong, message in {
        (9, None): "y_val: expected both X_val and y_val, or none",
        (9, 8): "y_val: expected 9 rows, as X_val has, got 8",
    }.items():
        with pytest.raises(ValueError, match=message):
            classifier().fit(X, LABELS, X_val=X[: wrong[0]], y_val=None if wrong[1] is None else LABELS[: wrong[1]])
    with pytest.raises(ValueError, match=r"y_val: \['d'\] are no classes of y"):
        classifier().fit(X, LABELS, X_val=X[:2], y_val=["a", "d"])
    with pytest.raises(ValueError, match="X_val: X has 3 features, but MLPClassifier is expecting 4"):
        classifier().fit(X, LABELS, X_val=X[:2, :3], y_val=LABELS[:2])


def test_callbacks_and_schedule():
    seen = []
    watch = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, logs["loss"])))
    mlp = classifier(max_iter=6, callbacks=[watch], schedule=cnn.StepLR(2, gamma=0.5)).fit(X, LABELS)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in seen] == mlp.loss_curve_ == mlp.history_["loss"]
    np.testing.assert_allclose(mlp.history_["lr"], np.array([1, 1, 0.5, 0.5, 0.25, 0.25]) * 1e-3)
    stop = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(stop, "stop", epoch == 3))
    assert classifier(callbacks=stop).fit(X, LABELS).n_iter_ == 3


def test_optimizer_clipping_and_average():
    mlp = classifier(optimizer=cnn.AdamW(5e-3, weight_decay=0.1)).fit(X, LABELS)
    assert repr(mlp.model_.optimizer) == repr(mlp.optimizer)
    assert mlp.model_.optimizer is not mlp.optimizer
    small = classifier(solver="sgd", clip_norm=1e-6, max_iter=1, learning_rate_init=1.0).fit(X, LABELS)
    first = classifier(solver="sgd", max_iter=1, learning_rate_init=1.0, alpha=0).fit(X, LABELS)
    assert abs(small.coefs_[0] - first.coefs_[0]).max() > 1e-3
    average = classifier(ema_decay=0.9).fit(X, LABELS)
    np.testing.assert_array_equal(average.model_.parameters, average.model_.averaged_parameters)
    with pytest.raises(ValueError, match="clip_norm: expected none beside optimizer=, which takes it"):
        classifier(optimizer=cnn.SGD(), clip_norm=1.0).fit(X, LABELS)
    with pytest.raises(ValueError, match="ema_decay: expected none with partial_fit"):
        classifier(ema_decay=0.9).partial_fit(X, LABELS, classes=["a", "b", "c"])
    with pytest.raises(
        ValueError, match="learning_rate: expected 'constant' with dropout, got 'adaptive': pass schedule="
    ):
        classifier(solver="sgd", learning_rate="adaptive", dropout=0.1).fit(X, LABELS)
    with pytest.raises(ValueError, match="dropout: expected solver='adam' or 'sgd' with it, got 'lbfgs'"):
        classifier(solver="lbfgs", dropout=0.1).fit(X, LABELS)


def test_early_stopping_keeps_the_best_state():
    mlp = classifier(batch_norm=True, early_stopping=True, n_iter_no_change=3, max_iter=200, learning_rate_init=0.1)
    mlp.fit(X, LABELS, X_val=X[:40], y_val=LABELS[:40])
    assert mlp.score(X[:40], LABELS[:40]) == mlp.best_validation_score_


def test_partial_fit_goes_on():
    mlp = classifier(dropout=0.1, learning_rate_init=0.05)
    for _ in range(10):
        mlp.partial_fit(X, LABELS, classes=["a", "b", "c"])
    assert len(mlp.history_["loss"]) == len(mlp.loss_curve_) == 10
    assert mlp.model_._core.program.steps == 10
    assert mlp.loss_curve_[-1] < 0.8 * mlp.loss_curve_[0]


def test_threads_do_not_change_the_result():
    one, two = (classifier(n_jobs=n, max_iter=2, hidden_layer_sizes=(300,), batch_size=120) for n in (1, 2))
    one.fit(X, LABELS), two.fit(X, LABELS)
    np.testing.assert_array_equal(one.coefs_[0], two.coefs_[0])
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))


def test_history_and_plot(tmp_path):
    mlp = classifier(early_stopping=True, max_iter=5).fit(X, LABELS)
    assert mlp.history_["loss"] == mlp.loss_curve_
    assert mlp.history_["val_score"] == mlp.validation_scores_
    mlp.plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 1000
    whole = classifier(solver="lbfgs", max_iter=7).fit(X, LABELS)
    assert len(whole.history_["loss"]) == whole.n_iter_ == 7
    assert sum(whole.history_["evaluations"]) >= 7
    several = MLPRegressor(solver="lbfgs", max_iter=3).fit(X, X[:, :2])
    with pytest.raises(AttributeError, match="history_: solver='lbfgs' has none for several outputs"):
        several.history_  # noqa: B018


def test_lbfgs_counts_evaluations():
    """As scikit-learn's: the iteration in which max_fun is exceeded is the last."""
    with pytest.warns(ConvergenceWarning, match=r"lbfgs failed to converge after \d+ iteration"):
        mlp = classifier(solver="lbfgs", max_fun=7, max_iter=100, tol=0).fit(X, LABELS)
    evaluations = mlp.history_["evaluations"]
    assert sum(evaluations) > 7 >= sum(evaluations[:-1])


def test_activations_are_checked():
    with pytest.raises(ValueError, match="activation: expected one for each of the 2 hidden layers, got 1"):
        classifier(activation=["relu"]).fit(X, LABELS)
    with pytest.raises(
        ValueError, match=r"activation: expected a layer such as cnn.GELU\(\), or one of .*, got 'rleu'"
    ):
        classifier(activation="rleu").fit(X, LABELS)
    with pytest.raises(ValueError, match=r"activation: .* got <class"):
        classifier(activation=["relu", cnn.ReLU]).fit(X, LABELS)


def test_to_and_from_scikit_learn():
    for make, y in ((classifier, LABELS), (regressor, NUMBERS)):
        mlp = make(dropout=0.1).fit(X, y)
        peer = mlp.to_sklearn()
        assert type(peer).__module__.startswith("sklearn.neural_network")
        np.testing.assert_allclose(peer._predict(X) == mlp.predict(X) if make is classifier else 1, 1)
        back = type(mlp).from_sklearn(peer)
        np.testing.assert_array_equal(back.predict(X), mlp.predict(X))
        for one in (peer, back):
            one.partial_fit(X, y)
        np.testing.assert_allclose(back.coefs_[0], peer.coefs_[0], rtol=1e-8, atol=1e-10)
        model = cnn.from_sklearn(mlp)
        np.testing.assert_array_equal(model.predict(X), mlp.model_.predict(X))
        assert model.optimizer is None
    with pytest.raises(TypeError, match=r"mlp: expected sklearn.neural_network.MLPClassifier, got MLPRegressor"):
        MLPClassifier.from_sklearn(peer)
    with pytest.raises(ValueError, match=r"to_sklearn: scikit-learn's networks have no batch_norm=True"):
        classifier(batch_norm=True).fit(X, LABELS).to_sklearn()


def test_convergence_warning():
    with pytest.warns(ConvergenceWarning, match=r"Maximum iterations \(2\) reached"):
        classifier(dropout=0.1, max_iter=2).fit(X, LABELS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classifier(dropout=0.1, max_iter=400, tol=0.1, n_iter_no_change=2).fit(X, LABELS).n_iter_ < 400


def test_options_may_be_set_between_two_fits():
    mlp = classifier(warm_start=True, max_iter=5).fit(X, LABELS)
    before = mlp.coefs_[0].copy()
    mlp.set_params(dropout=0.3, activation="tanh", max_iter=2).fit(X, LABELS)
    assert kinds(mlp)[:3] == ["Linear", "Tanh", "Dropout"]
    assert len(mlp.loss_curve_) == 7
    assert 0 < abs(mlp.coefs_[0] - before).max() < 0.05


def test_partial_fit_after_another_loop():
    """Each of the two begins its own optimiser after the other one."""
    mlp = classifier(max_iter=3).fit(X, LABELS, X_val=X[:9], y_val=LABELS[:9])
    mlp.partial_fit(X, LABELS)
    assert mlp.model_._core.program.steps == 1
    assert len(mlp.loss_curve_) == 4
    mlp.set_params(clip_norm=1.0).partial_fit(X, LABELS).partial_fit(X, LABELS)
    assert mlp.model_.optimizer.clip_norm == 1.0
    assert mlp.model_._core.program.steps == 2
    assert mlp.set_params(clip_norm=None).partial_fit(X, LABELS).model_.optimizer.clip_norm is None


def test_divergence():
    mlp = regressor(solver="sgd", learning_rate_init=1e12, max_iter=50, layer_norm=True)
    with pytest.raises(ValueError, match=r"Solver produced non-finite .* \(the loss is not finite in epoch"):
        mlp.fit(X * 1e3, NUMBERS * 1e30)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.1}])
def test_interrupted(options, monkeypatch):
    """What has been trained until then stays."""

    def interrupt(self, *_):
        if len(self.loss_curve_) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(MLPClassifier, "_update_no_improvement_count", interrupt)
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        mlp = classifier(**options).fit(X, LABELS)
    assert mlp.n_iter_ == 3
    assert mlp.predict(X).shape == (120,)


def test_members():
    alone = classifier(n_members=1, dropout=0.1).fit(X, LABELS)
    mlp = classifier(n_members=3, dropout=0.1).fit(X, LABELS)
    members = list(mlp.ensemble_)
    np.testing.assert_array_equal(members[0].parameters, alone.model_.parameters)
    np.testing.assert_array_equal(members[0].parameters, mlp.model_.parameters)
    np.testing.assert_array_equal(mlp.coefs_[0], mlp.model_.layers[0].weight)
    mean = np.mean([member.predict_proba(X) for member in members], axis=0)
    np.testing.assert_array_equal(mlp.predict_proba(X), mean)
    np.testing.assert_array_equal(mlp.predict(X), mlp.classes_[mean.argmax(axis=1)])
    losses = [loss for member in members for loss in [member.history["loss"][-1]]]
    np.testing.assert_allclose(mlp.loss_, np.mean(losses))
    for other in (pickle.loads(pickle.dumps(mlp)), clone(mlp).fit(X, LABELS)):
        np.testing.assert_array_equal(other.predict_proba(X), mean)
    two = classifier(n_members=2).fit(X, LABELS == "a")
    np.testing.assert_array_equal(two.predict(X), two.predict_proba(X)[:, 1] > 0.5)
    before = mlp.ensemble_.parameters
    mlp.partial_fit(X, LABELS)
    assert mlp.n_iter_ == 1
    assert (mlp.ensemble_.parameters != before).any(axis=1).all()
    assert len(mlp.set_params(n_members=2).fit(X, LABELS).ensemble_) == 2
    with pytest.raises(AttributeError, match=r"^ensemble_: expected n_members > 1 in fit"):
        alone.ensemble_  # noqa: B018
    with pytest.raises(ValueError, match=r"^callbacks: expected none with n_members=2"):
        classifier(n_members=2, callbacks=[cnn.CSVLogger("never.csv")]).fit(X, LABELS)
    with pytest.raises(ValueError, match="n_members=2"):
        mlp.to_sklearn()


def test_deviations():
    mlp = regressor(n_members=4, early_stopping=True, n_iter_no_change=3, learning_rate_init=0.01).fit(X, NUMBERS)
    outputs = mlp.ensemble_.predict(X)[..., 0]
    mean, std = mlp.predict(X, return_std=True)
    np.testing.assert_allclose(mean, outputs.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(std, outputs.std(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(mlp.predict(X), mean)
    gaussian = regressor(loss="gaussian", n_members=2).fit(X, NUMBERS)
    m, log_var = np.moveaxis(gaussian.ensemble_.predict(X), -1, 0)
    expected = np.sqrt(m.var(axis=0) + np.exp(log_var).mean(axis=0))
    np.testing.assert_allclose(gaussian.predict(X, return_std=True)[1], expected, rtol=1e-12)
    both = regressor(n_members=2).fit(X, np.stack([NUMBERS, X[:, 0]], axis=1))
    assert [a.shape for a in both.predict(X, return_std=True)] == [(120, 2)] * 2
    with pytest.raises(ValueError, match=r"^return_std: expected an estimator with n_members > 1"):
        regressor().fit(X, NUMBERS).predict(X, return_std=True)


@pytest.mark.parametrize("options", [{}, {"n_members": 2}, {"dropout": 0.1}, {"optimizer": "with a schedule"}], ids=str)
def test_fit_leaves_its_arguments_and_partial_fit_its_history(options):
    schedule = cnn.ReduceLROnPlateau(patience=0, threshold=0.5)
    if "optimizer" in options:
        options = {"optimizer": cnn.SGD(0.1, schedule=schedule)}
    else:
        options = {"schedule": schedule, **options}
    mlp = classifier(max_iter=6, **options)
    before = mlp.get_params()
    shown = repr(before), schedule.state_dict()
    first = mlp.fit(X, LABELS).predict_proba(X)
    assert min(mlp.history_["lr"]) < mlp.history_["lr"][0]
    assert (repr(mlp.get_params()), schedule.state_dict()) == shown
    np.testing.assert_array_equal(mlp.fit(X, LABELS).predict_proba(X), first)
    for _ in range(2):
        mlp.partial_fit(X, LABELS)
    assert len(mlp.history_["loss"]) == len(mlp.loss_curve_) == 8
    assert len(mlp.fit(X, LABELS).history_["loss"]) == 6
