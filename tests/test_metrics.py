"""Metrics: against scikit-learn's, in one block and in many; what they refuse; what fit and evaluate report."""

import sys

import numpy as np
import pytest
from grid import build, chain
from networks import batch_for
from sklearn import metrics as sklearn_metrics

import cnn
from cnn.training.metrics import AUC, F1, MAE, R2, RMSE, Accuracy, Metrics, TopK

pytestmark = pytest.mark.filterwarnings("ignore:.*before it gives")  # any layers with any loss


def fed(metric, targets, outputs, blocks=1):
    """The metric's result after so many blocks of about one size."""
    metric.reset()
    for rows in np.array_split(np.arange(len(targets)), blocks):
        metric.update(targets[rows], outputs[rows])
    return metric.result()


BLOCKS = pytest.mark.parametrize("blocks", [1, 2, 7, 50])


@BLOCKS
@pytest.mark.parametrize("columns", [1, 3])
def test_regression(blocks, columns):
    rng = np.random.default_rng(columns)
    targets = rng.standard_normal((50, columns)) + 1e3
    outputs = targets + 0.3 * rng.standard_normal((50, columns))
    expected = {
        MAE: sklearn_metrics.mean_absolute_error(targets, outputs),
        RMSE: sklearn_metrics.mean_squared_error(targets, outputs) ** 0.5,
        R2: sklearn_metrics.r2_score(targets, outputs),
    }
    for metric, value in expected.items():
        assert fed(metric(), targets, outputs, blocks) == pytest.approx(value, rel=1e-12)


def test_r2_does_not_cancel():
    """A spread that is a millionth of the mean."""
    rng = np.random.default_rng(0)
    targets = 1e6 + rng.standard_normal((1000, 1))
    outputs = targets + 0.1 * rng.standard_normal((1000, 1))
    expected = 1 - ((outputs - targets) ** 2).sum() / ((targets - targets.mean()) ** 2).sum()
    assert fed(R2(), targets, outputs, 20) == pytest.approx(expected, rel=1e-9)


@BLOCKS
def test_r2_of_equal_targets(blocks):
    """1 if the outputs are right, else 0, for each column; as in scikit-learn."""
    targets = np.column_stack([np.full(50, 2.0), np.full(50, 3.0), np.arange(50.0)])
    outputs = targets.copy()
    outputs[7, 1] += 1
    outputs[:, 2] = 24.5
    expected = sklearn_metrics.r2_score(targets, outputs)
    assert fed(R2(), targets, outputs, blocks) == pytest.approx(expected)
    assert expected == pytest.approx(1 / 3)


@BLOCKS
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_classes(blocks, classes):
    rng = np.random.default_rng(classes)
    targets = rng.integers(0, classes, 50)
    outputs = rng.integers(-2, 3, (50, classes)).astype(np.float32)  # with many ties
    predicted = outputs.argmax(axis=1)
    assert fed(Accuracy(0, False), targets, outputs, blocks) == np.mean(predicted == targets)
    average = "binary" if classes == 2 else "macro"
    expected = sklearn_metrics.f1_score(targets, predicted, average=average)
    assert fed(F1(0, False), targets, outputs, blocks) == pytest.approx(expected, rel=1e-12)
    for k in range(1, classes + 1):
        order = np.argsort(-outputs, axis=1, kind="stable")[:, :k]
        expected = np.mean((order == targets[:, None]).any(axis=1))
        assert fed(TopK(k), targets, outputs, blocks) == expected
    assert fed(TopK(1), targets, outputs) == fed(Accuracy(0, False), targets, outputs)


def test_f1_of_classes_that_do_not_occur():
    """They are left out, as in scikit-learn; one that is predicted or true counts."""
    targets = np.array([0, 0, 2, 2, 2])
    outputs = np.eye(5)[[0, 3, 2, 2, 0]]
    expected = sklearn_metrics.f1_score(targets, outputs.argmax(axis=1), average="macro", zero_division=0)
    assert fed(F1(0, False), targets, outputs) == pytest.approx(expected)


@BLOCKS
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_one_output(blocks, threshold):
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (50, 1)).astype(np.float32)
    outputs = rng.standard_normal((50, 1)).astype(np.float32)
    predicted = outputs[:, 0] > threshold
    assert fed(Accuracy(threshold, False), targets, outputs, blocks) == np.mean(predicted == (targets[:, 0] == 1))
    expected = sklearn_metrics.f1_score(targets[:, 0], predicted)
    assert fed(F1(threshold, False), targets, outputs, blocks) == pytest.approx(expected, rel=1e-12)


@BLOCKS
def test_several_classes_a_row(blocks):
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (50, 4)).astype(np.float32)
    outputs = rng.standard_normal((50, 4)).astype(np.float32)
    assert fed(Accuracy(0, True), targets, outputs, blocks) == np.mean((outputs > 0) == (targets == 1))
    expected = sklearn_metrics.f1_score(targets, outputs > 0, average="macro")
    assert fed(F1(0, True), targets, outputs, blocks) == pytest.approx(expected, rel=1e-12)


def test_targets_that_are_probabilities():
    rng = np.random.default_rng(1)
    targets, outputs = rng.dirichlet(np.ones(4), 50), rng.standard_normal((50, 4))
    right = targets.argmax(axis=1) == outputs.argmax(axis=1)
    assert fed(Accuracy(0, False), targets, outputs) == right.mean()
    assert fed(TopK(1), targets, outputs) == right.mean()


@BLOCKS
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("columns", [1, 2])
def test_auc(blocks, ties, columns):
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 2, 50)
    outputs = rng.standard_normal((50, columns)) + targets[:, None] * [[-0.3, 0.7][-columns:]]
    if ties:
        outputs = outputs.round()
    score = outputs[:, -1] - (outputs[:, 0] if columns == 2 else 0)
    expected = sklearn_metrics.roc_auc_score(targets, score)
    given = targets if columns == 2 else targets[:, None].astype(float)
    assert fed(AUC(), given, outputs, blocks) == pytest.approx(expected, rel=1e-12)


def test_auc_that_is_not_defined():
    outputs = np.linspace(-1, 1, 5)[:, None]
    assert np.isnan(fed(AUC(), np.ones((5, 1)), outputs))
    assert np.isnan(fed(AUC(), np.zeros((5, 1)), outputs))
    outputs[2] = np.nan
    assert np.isnan(fed(AUC(), np.array([[0.0], [1], [1], [0], [1]]), outputs))


def test_nan_is_never_right():
    outputs = np.full((4, 3), np.nan)
    assert fed(TopK(2), np.array([0, 1, 2, 0]), outputs) == 0
    assert np.isnan(fed(MAE(), np.zeros((4, 3)), outputs))


@pytest.mark.parametrize("metric", [Accuracy(0, False), F1(0, False), TopK(2), MAE(), RMSE(), R2(), AUC()])
def test_no_rows_give_nan(metric):
    metric.reset()
    assert np.isnan(metric.result())


# in fit and evaluate ------------------------------------------------------------------------------


def test_metrics_of_training_are_of_the_training_pass():
    """By the outputs that each batch had before its step, in whatever order; those of validation at the epoch's end."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 31, np.float64)
    x_val, y_val = batch_for(spec, "mse", 17, np.float64, seed=1)
    fitted, looped = (build(spec, "mse", optimizer=cnn.SGD(lr=0.1), seed=3)[0] for _ in range(2))

    def mean_output(targets, outputs):
        assert targets.shape == outputs.shape
        return outputs.mean()

    names = ["mae", "rmse", "r2", mean_output]
    history = fitted.fit(x, y, epochs=3, batch_size=8, metrics=names, validation_data=(x_val, y_val))
    keys = ["loss", "mae", "rmse", "r2", "mean_output"]
    assert list(history) == [*keys, *(f"val_{key}" for key in keys)]
    for epoch in range(3):
        order = looped._core.kernels.permutation(31, 3, epoch)
        outputs = []
        for i in range(0, 31, 8):
            rows = order[i : i + 8]
            outputs.append(looped.predict(x[rows]))
            looped.train_step(x[rows], y[rows])
        outputs = np.concatenate(outputs)
        assert history["mae"][epoch] == pytest.approx(np.abs(outputs - y[order]).mean(), rel=1e-12)
        assert history["r2"][epoch] == pytest.approx(sklearn_metrics.r2_score(y[order], outputs), rel=1e-9)
        assert history["mean_output"][epoch] == pytest.approx(outputs.mean(), rel=1e-12)
        scores = looped.evaluate(x_val, y_val, metrics=names)
        for key in keys:
            assert history[f"val_{key}"][epoch] == scores[key]
        assert scores["rmse"] == pytest.approx(scores["loss"] ** 0.5, rel=1e-12)
    np.testing.assert_array_equal(fitted.parameters, looped.parameters)


def test_metrics_do_not_change_the_training():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 100, np.float32)
    plain, measured = (build(spec, "cross_entropy", optimizer=cnn.SGD(lr=0.1), dtype="float32")[0] for _ in range(2))
    history = plain.fit(x, y, epochs=3)
    more = measured.fit(x, y, epochs=3, metrics=["accuracy", "top_2", "f1"])
    assert list(more) == ["loss", "accuracy", "top_2", "f1"]
    assert more["loss"] == history["loss"]
    assert more["accuracy"] == history["accuracy"]
    np.testing.assert_array_equal(plain.parameters, measured.parameters)


def test_one_output_fitted_to_0_and_1():
    """With MSELoss an output of 0.5 divides the classes."""
    x = np.array([[0.2], [0.6], [0.4], [0.9]])
    model = cnn.Sequential([cnn.Linear(1, 1), cnn.MSELoss()], dtype="float64", optimizer=cnn.SGD(lr=0.0))
    model.parameters = [1, 0]
    y = [0, 1, 1, 1]
    scores = model.evaluate(x, y, metrics=["accuracy", "f1", "auc"])
    assert scores["accuracy"] == 0.75
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert scores["auc"] == 1
    history = model.fit(x, y, metrics=["accuracy", "f1", "auc"], batch_size=2)
    assert {name: values[0] for name, values in history.items()} == scores


@pytest.mark.parametrize(
    ("last", "loss", "threshold"),
    [
        (None, cnn.BCEWithLogitsLoss(), 0.0),
        (None, cnn.L1Loss(), 0.5),
        (None, cnn.QuantileLoss(0.5), 0.5),
        (None, cnn.PoissonNLLLoss(), np.log(0.5)),
        (None, cnn.PoissonNLLLoss(log_input=False), 0.5),
        (cnn.Sigmoid, cnn.BCEWithLogitsLoss(), 0.5),
        (cnn.Sigmoid, lambda outputs, targets: (0.0, 0 * outputs), 0.5),
        (lambda: cnn.Sequential([cnn.Linear(1, 1), cnn.Sigmoid()], dtype="float64"), cnn.CallableLoss(max), 0.5),
    ],
)
def test_what_divides_the_classes(last, loss, threshold):
    """Of one output: it follows from what the last layer gives, or from what the loss takes."""
    parts = [cnn.Linear(1, 1), *([last()] if last else [])]
    model = cnn.Sequential([*parts, loss], dtype="float64")
    for name in ("accuracy", "f1"):
        (metric,) = Metrics(name, model).list
        assert metric.threshold == threshold
        assert metric.several == isinstance(loss, cnn.BCEWithLogitsLoss)


def test_outputs_of_unknown_meaning():
    """A function as loss does not say what its outputs are: they are not read as logits."""
    x, y = np.array([[0.2], [0.6]]), np.array([0.0, 1.0])
    model = cnn.Sequential([cnn.Linear(1, 1), lambda outputs, targets: (0.0, 0 * outputs)], cnn.SGD(lr=0.1))
    for call in (model.evaluate, model.fit):
        with pytest.raises(
            ValueError, match=r"^accuracy: the loss does not define which outputs .* end the model with a Sig"
        ):
            call(x, y, metrics=["accuracy"])
    several = cnn.Sequential([cnn.Linear(1, 2), lambda outputs, targets: (0.0, 0 * outputs)])
    assert several.evaluate(x, np.eye(2), metrics=["accuracy"])["accuracy"] in (0.0, 0.5, 1.0)


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        (
            ["nonsense"],
            ValueError,
            "^metrics: unknown name 'nonsense': expected one of accuracy, auc, auc_ovo, ",
        ),
        (["top_0"], ValueError, "^metrics: unknown name 'top_0'"),
        (["top_4"], ValueError, "^top_4: expected k of at most 3, the number of outputs, got 4"),
        (["mae"], ValueError, "^mae: expected numeric targets, got class indices"),
        (
            ["acuracy"],
            ValueError,
            "^metrics: unknown name 'acuracy' \\(did you mean 'accuracy'\\?\\): expected one of acc",
        ),
        (["f1", "f1"], ValueError, "^metrics: the name 'f1' is reserved"),
        ([lambda t, o: 0, lambda t, o: 1], ValueError, "^metrics: the name '<lambda>' is reserved"),
        ([3], TypeError, r"^metrics: expected a name or a function of \(targets, outputs\), got 3"),
        ([float], TypeError, r"^metrics: expected a name or a function of \(targets, outputs\), got <class 'float'>"),
        (7, TypeError, "^metrics: expected names and functions, got 7"),
        ([lambda t, o: "much"], TypeError, "^metric <lambda>: expected it to return a number, got 'much'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,  # str of a function would be its address
)
def test_metrics_that_are_refused(metrics, error, message):
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 20, np.float64)
    model, _ = build(spec, "cross_entropy", optimizer=cnn.SGD(lr=0.1))
    before = model.parameters
    with pytest.raises(error, match=message):
        model.evaluate(x, y, metrics=metrics)
    if "much" not in message:  # which is only known after an epoch
        with pytest.raises(error, match=message):
            model.fit(x, y, metrics=metrics)
        assert model._core.program.steps == 0
    np.testing.assert_array_equal(model.parameters, before)


def test_a_name_or_a_function_alone():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 20, np.float64)
    model, _ = build(spec, "cross_entropy", optimizer=cnn.SGD(lr=0.1))
    assert list(model.evaluate(x, y, metrics="f1")) == ["loss", "accuracy", "f1"]

    def rows(targets, outputs):
        return len(targets)

    assert model.evaluate(x, y, metrics=rows)["rows"] == 20
    assert Metrics((), model).names == []


@pytest.mark.parametrize("metric", ["accuracy", "f1", "auc"])
def test_targets_that_are_not_0_and_1(metric):
    model = cnn.Sequential([cnn.Linear(1, 1), cnn.MSELoss()], optimizer=cnn.SGD(lr=0.1))
    with pytest.raises(ValueError, match=rf"^{metric}: expected targets 0 and 1, got 0\.25"):
        model.fit([[1], [2]], [1, 0.25], metrics=[metric])
    assert model._core.program.steps == 0


def test_rows_that_are_ignored():
    """They are no rows: of the loss, the accuracy and the metrics."""
    x, y = batch_for(chain(5, 9, 3), "cross_entropy", 40, np.float64)
    ignored = y.copy()
    ignored[::4] = -100
    kept = ignored != -100
    names = ["f1", "top_2"]
    model, other = (build(chain(5, 9, 3), "cross_entropy", optimizer=cnn.SGD(lr=0.1))[0] for _ in range(2))
    assert model.evaluate(x, ignored, metrics=names) == pytest.approx(other.evaluate(x[kept], y[kept], metrics=names))
    histories = [
        model.fit(x, ignored, epochs=2, batch_size=40, metrics=names, class_weight="balanced"),
        other.fit(x[kept], y[kept], epochs=2, batch_size=40, metrics=names, class_weight="balanced"),
    ]
    for name in ("loss", "accuracy", *names):
        assert histories[0][name] == pytest.approx(histories[1][name], rel=1e-12)


@pytest.mark.parametrize(("outputs", "names"), [(1, ["accuracy", "f1", "auc"]), (4, ["accuracy", "f1"])])
def test_logits_divide_at_0(outputs, names):
    """With BCEWithLogitsLoss, whose columns are classes of their own."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 5))
    y = rng.integers(0, 2, (50, outputs))
    model = cnn.Sequential([cnn.Linear(5, outputs), cnn.BCEWithLogitsLoss()], optimizer=cnn.SGD(lr=0.1), seed=0)
    scores = model.evaluate(x, y, metrics=names)
    logits = model.predict(x)
    assert scores["accuracy"] == np.mean((logits > 0) == (y == 1))
    average = "binary" if outputs == 1 else "macro"
    expected = sklearn_metrics.f1_score(y.ravel() if outputs == 1 else y, logits > 0, average=average)
    assert scores["f1"] == pytest.approx(expected)
    if outputs == 1:
        assert scores["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(y, logits))
        vector = model.evaluate(x, y[:, 0], metrics=names)
        assert vector == scores
        history = model.fit(x, y[:, 0], metrics=names, class_weight="balanced", validation_split=0.2)
        assert list(history) == [*(keys := ["loss", *names]), *(f"val_{key}" for key in keys)]


def test_probabilities_divide_at_a_half():
    model = cnn.Sequential([cnn.Linear(1, 1), cnn.Sigmoid(), cnn.L1Loss()], dtype="float64")
    model.parameters = [1, 0]
    scores = model.evaluate([[-1.0], [1.0], [0.1], [-0.1]], [0, 1, 0, 0], metrics="accuracy")
    assert scores["accuracy"] == 0.75


def classifier(outputs, loss=cnn.CrossEntropyLoss, rows=200, last=()):
    """A model, x, class indices, and its probabilities in float64."""
    rng = np.random.default_rng(outputs)
    x, y = rng.standard_normal((rows, 5)), rng.integers(0, max(2, outputs), rows)
    model = cnn.Sequential(
        [cnn.Linear(5, outputs), *last, loss()], optimizer=cnn.SGD(lr=0.1), dtype="float64", seed=outputs
    )
    return model, x, y, model.predict_proba(x)


@pytest.mark.parametrize("last", [(), (cnn.Softmax,), (cnn.LogSoftmax,)])
@pytest.mark.parametrize("classes", [3, 4, 10])
def test_auc_of_several_classes(classes, last):
    """scikit-learn's, of the probabilities, whatever the outputs are."""
    loss = cnn.CrossEntropyLoss if not last else cnn.NLLLoss
    model, x, y, p = classifier(classes, loss, last=[layer() for layer in last])
    scores = model.evaluate(x, y, metrics=["auc", "auc_ovr", "auc_ovo"])
    expected = {way: sklearn_metrics.roc_auc_score(y, p, multi_class=way, average="macro") for way in ("ovr", "ovo")}
    assert scores["auc"] == scores["auc_ovr"] == pytest.approx(expected["ovr"], rel=1e-12)
    assert scores["auc_ovo"] == pytest.approx(expected["ovo"], rel=1e-12)
    for way in ("auc", "auc_ovo"):
        assert np.isnan(model.evaluate(x[y > 0], y[y > 0], metrics=way)[way])


def test_auc_of_several_decisions_a_row():
    model, x, _, p = classifier(3, cnn.BCEWithLogitsLoss)
    y = np.random.default_rng(1).integers(0, 2, (200, 3))
    expected = sklearn_metrics.roc_auc_score(y, p, average="macro")
    assert model.evaluate(x, y, metrics="auc")["auc"] == pytest.approx(expected, rel=1e-12)
    model = cnn.Sequential([cnn.Linear(5, 3), cnn.MSELoss()])
    with pytest.raises(ValueError, match=r"^auc_ovr: expected class indices, one output, or a multilabel loss"):
        model.evaluate(x, y, metrics="auc_ovr")


def test_metrics_of_probabilities_and_of_labels():
    """cnn.Metric: functions of scikit-learn as they are."""
    model, x, y, p = classifier(4)
    metrics = [
        cnn.Metric(sklearn_metrics.log_loss, proba=True),
        cnn.Metric(sklearn_metrics.balanced_accuracy_score, labels=True, name="balanced"),
        cnn.Metric(lambda targets, outputs: outputs.max(), name="largest"),
    ]
    scores = model.evaluate(x, y, metrics=metrics)
    assert list(scores) == ["loss", "accuracy", "log_loss", "balanced", "largest"]
    assert scores["log_loss"] == pytest.approx(scores["loss"])
    assert scores["balanced"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(y, p.argmax(axis=1)))
    assert scores["largest"] == model.predict(x).max()
    history = model.fit(x, y, metrics=metrics, validation_data=(x, y))
    assert {"log_loss", "val_log_loss", "balanced", "val_balanced"} <= set(history)
    assert repr(metrics[1]) == "Metric(balanced)"


def test_labels_of_yes_and_no():
    for outputs in (1, 3):
        model, x, _, p = classifier(outputs, cnn.BCEWithLogitsLoss)
        y = np.random.default_rng(1).integers(0, 2, (200, outputs))
        given = cnn.Metric(lambda t, o: sklearn_metrics.f1_score(t, o, average="macro"), labels=True, name="f")
        expected = sklearn_metrics.f1_score(y, p > 0.5, average="macro")
        assert model.evaluate(x, y, metrics=given)["f"] == pytest.approx(expected)
    own = cnn.Sequential([cnn.Linear(5, 1), lambda o, t: (0.0, np.zeros_like(o))])
    with pytest.raises(ValueError, match=r"^f: the loss does not define which outputs mean class 1"):
        own.evaluate(x, y[:, :1], metrics=given)
    with pytest.raises(ValueError, match=r"^predict_proba: CallableLoss\(.*\) does not define probabilities"):
        own.evaluate(x, y[:, :1], metrics=cnn.Metric(max, proba=True))


def test_names_of_ones_own():
    model, x, y, _ = classifier(3)
    scores = model.evaluate(x, y, metrics={"area": "auc", "hits": "accuracy", "rows": lambda t, o: len(t)})
    assert list(scores) == ["loss", "accuracy", "area", "hits", "rows"]
    assert scores["hits"] == scores["accuracy"]
    assert scores["rows"] == 200
    for metrics, error, message in (
        ({"loss": "f1"}, ValueError, "^metrics: the name 'loss' is reserved"),
        ({"val_x": "f1"}, ValueError, "^metrics: the name 'val_x' is reserved"),
        ({1: "f1"}, TypeError, "^metrics: expected a dict of names, got the key 1"),
        ({"a": "acc"}, ValueError, "^metrics: unknown name 'acc' \\(did you mean 'accuracy'"),
    ):
        with pytest.raises(error, match=message):
            model.evaluate(x, y, metrics=metrics)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cnn.Metric(3), TypeError, r"^function: expected a function of \(targets, outputs\), got 3"),
        (lambda: cnn.Metric(dict), TypeError, r"^function: expected a function of \(targets, outputs\), got <class"),
        (lambda: cnn.Metric(max, proba=True, labels=True), ValueError, "^labels: expected either proba or labels"),
        (lambda: cnn.Metric(max, proba=1), TypeError, "^proba: expected True or False, got 1"),
        (lambda: cnn.Metric(max, name=3), TypeError, "^name: expected a str, got 3"),
    ],
)
def test_metrics_that_cannot_be_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


@BLOCKS
def test_targets_that_are_nan_are_left_out(blocks):
    """Column by column, as scikit-learn's metrics of the known ones."""
    rng = np.random.default_rng(0)
    targets, outputs = rng.standard_normal((2, 50, 3))
    gaps = np.where(rng.random(targets.shape) < 0.3, np.nan, targets)
    gaps[:10] = np.nan  # whole blocks
    known = ~np.isnan(gaps)
    assert fed(MAE(), gaps, outputs, blocks) == pytest.approx(np.abs(outputs - targets)[known].mean())
    assert fed(RMSE(), gaps, outputs, blocks) == pytest.approx(((outputs - targets)[known] ** 2).mean() ** 0.5)
    columns = [sklearn_metrics.r2_score(targets[k, j], outputs[k, j]) for j, k in enumerate(known.T)]
    assert fed(R2(), gaps, outputs, blocks) == pytest.approx(np.mean(columns))


def test_metrics_of_a_mean_with_its_variance():
    """Of GaussianNLLLoss they are those of the means; of QuantileLoss of every quantile."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)), rng.standard_normal((40, 2))
    model = cnn.Sequential([cnn.Linear(5, 4), cnn.GaussianNLLLoss()], dtype="float64", seed=0)
    scores = model.evaluate(x, y, metrics=["mae", "r2"])
    means = model.predict(x)[:, :2]
    assert scores["mae"] == pytest.approx(np.abs(means - y).mean())
    assert scores["r2"] == pytest.approx(sklearn_metrics.r2_score(y, means))
    own = cnn.Sequential([cnn.Linear(5, 4), lambda o, t: (0.0, np.zeros_like(o))])
    with pytest.raises(ValueError, match=r"^mae: expected targets of the outputs' shape \(rows, 4\), got \(40, 2\)"):
        own.evaluate(x, y, metrics="mae")


def test_an_error_of_a_function_says_what_it_was_called_with():
    def picky(targets, outputs):
        raise ValueError("continuous-multioutput")

    model = cnn.Sequential([cnn.Linear(2, 3), cnn.CrossEntropyLoss()])
    with pytest.raises(ValueError, match=r"^continuous-multioutput") as error:
        model.evaluate(np.ones((4, 2)), [0, 1, 2, 0], metrics=[picky])
    notes = getattr(error.value, "__notes__", [])  # from Python 3.11 on
    assert len(notes) == (sys.version_info >= (3, 11))
    assert all("targets (4,) and outputs (4, 3); cnn.Metric(picky, labels=True)" in note for note in notes)
