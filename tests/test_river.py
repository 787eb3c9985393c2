"""`cnn.river`: river's own checks of estimators, features and classes that come and go, standardisation, bad input."""

import copy
import math
import pickle

import numpy as np
import pytest

pytest.importorskip("river", minversion="0.21")

import pandas as pd
from river import checks

import cnn
from cnn.river import MLPClassifier, MLPRegressor

RANDOM = np.random.default_rng(0)
KINDS = (MLPClassifier, MLPRegressor)
CHECKS = [(kind, check) for kind in KINDS for check in checks.yield_checks(kind())]


def rows(n, names="abc", seed=0):
    for values in np.random.default_rng(seed).normal(5.0, 3.0, (n, len(names))).tolist():
        yield dict(zip(names, values, strict=True))


def target(kind, x):
    total = sum(x.values())
    return ("low", "high")[total > 5 * len(x)] if kind is MLPClassifier else total


def trained(kind, n=60, names="abc", **options):
    model = kind(**{"seed": 0, "hidden_layer_sizes": (6,)} | options)
    for x in rows(n, names):
        model.learn_one(x, target(kind, x))
    return model


@pytest.mark.parametrize(("kind", "check"), CHECKS, ids=lambda value: getattr(value, "__name__", ""))
def test_checks_of_river(kind, check):
    if check.__name__ in kind()._unit_test_skips():
        assert check.__name__ == "check_learn_many_matches_learn_one"
        with pytest.raises(AssertionError):
            check(kind())
    else:
        check(kind())


@pytest.mark.parametrize(
    "optimizer", [cnn.Adam(lr=0.01, amsgrad=True), cnn.SGD(lr=0.01, momentum=0.9), cnn.RMSprop(ema_decay=0.9)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_growth_disturbs_nothing(kind, optimizer):
    """Beyond the reserve the network is made anew; parameters, optimiser's state and predictions stay as they were."""
    model = trained(kind, optimizer=optimizer)
    model._update()
    old, states = model.model_, optimizer.states
    before = old._core.program.state(states)
    arrays = {name: array.copy() for name, array in old.state_dict().items()}
    query = dict(zip("abc", (1.0, 2.0, 3.0), strict=True))
    outputs = model.predict_many(pd.DataFrame([query])).tolist()
    model._learn_names("abcdefghijk")
    new = model.model_
    assert new is not old
    assert new.layers[0].in_features == 16
    for name, array in new.state_dict().items():
        if name == "0.weight":
            np.testing.assert_array_equal(array[:3], arrays[name][:3])
            assert np.all(np.any(array[3:11] != 0, axis=1))
            assert not array[11:].any()
        else:
            np.testing.assert_array_equal(array, arrays[name])
    after = new._core.program.state(states)
    assert after.keys() == before.keys()
    np.testing.assert_array_equal(after["counters"], before["counters"])
    assert before["counters"][0] == 60
    for name in before.keys() - {"counters"}:
        assert np.count_nonzero(before[name])
        assert sorted(after[name][after[name] != 0]) == sorted(before[name][before[name] != 0])
    assert model.predict_many(pd.DataFrame([query])).tolist() == outputs


@pytest.mark.parametrize("kind", KINDS)
def test_growth_changes_no_later_step(kind):
    """A twin that had the room from the beginning learns the same."""
    small, large = trained(kind, 20), trained(kind, 20)
    small._update(), large._update()
    large._rows = np.zeros((len(large._rows), 16))
    large._scale.widen(16)
    large._grow()
    for x in rows(40, seed=1):
        for model in (small, large):
            model.learn_one(x, target(kind, x))
    small._update(), large._update()
    small._rows = np.zeros((len(small._rows), 16))
    small._scale.widen(16)
    small._grow()
    for x in rows(40, seed=2):
        for model in (small, large):
            model.learn_one(x, target(kind, x))
    for name, array in large.model_.state_dict().items():
        np.testing.assert_allclose(small.model_.state_dict()[name], array, rtol=1e-9, atol=1e-12)


def test_new_class_disturbs_no_other():
    model = trained(MLPClassifier)
    x = next(rows(1, seed=9))
    before, p = model.model_.state_dict(), model.predict_proba_one(x)
    state = model.model_._core.program.state(2)
    model._learn_classes(["third"])
    after, q = model.model_.state_dict(), model.predict_proba_one(x)
    assert list(q) == ["high", "low", "third"] or list(q) == ["low", "high", "third"]
    assert q["low"] / q["high"] == pytest.approx(p["low"] / p["high"])
    np.testing.assert_array_equal(after["2.weight"][:, :2], before["2.weight"])
    np.testing.assert_array_equal(after["0.weight"], before["0.weight"])
    state_after = model.model_._core.program.state(2)
    assert np.linalg.norm(state_after["state.1"]) == pytest.approx(np.linalg.norm(state["state.1"]), rel=1e-12)
    for _ in range(60):
        model.learn_one(x, "third")
    assert model.predict_one(x) == "third"


@pytest.mark.parametrize("kind", KINDS)
def test_missing_is_the_mean(kind):
    model = trained(kind, 300)
    model._update()
    x = {"a": 3.0, "b": 7.0, "c": float(model._scale.mean[2])}
    infer = model.predict_proba_one if kind is MLPClassifier else model.predict_one
    expected = infer(x)
    assert infer({"b": 7.0, "a": 3.0}) == infer({"a": 3.0, "b": 7.0, "c": math.nan}) == pytest.approx(expected)
    assert infer({"a": 3.0, "b": 7.0, "unknown": 1.0}) == pytest.approx(expected)


@pytest.mark.parametrize("many", [False, True])
def test_statistics(many):
    """Features that appear late or have holes have the statistics of what was there."""
    table = RANDOM.normal([1e6, -3.0, 0.0, 7.0], [1e-2, 5.0, 1.0, 0.0], (700, 4))
    table[:200, 2] = np.nan
    table[::3, 1] = np.nan
    model = MLPRegressor(seed=0, hidden_layer_sizes=4)
    frame = pd.DataFrame(table, columns=list("abcd"))
    if many:
        for i in range(0, 700, 70):
            model.learn_many(frame[i : i + 70], pd.Series(np.ones(70)))
    else:
        for row in frame.to_dict("records"):
            model.learn_one({name: value for name, value in row.items() if value == value}, 1.0)
    model._update()
    at = [model._columns[name] for name in "abcd"]
    np.testing.assert_array_equal(model._scale.count[at], (~np.isnan(table)).sum(axis=0))
    np.testing.assert_allclose(model._scale.mean[at], np.nanmean(table, axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(1 / model._scale.factor[at[:3]], np.nanstd(table, axis=0)[:3], rtol=1e-6)
    assert model._scale.factor[at[3]] == 0
    assert not model._scale.factor[4:].any()


def test_a_feature_that_fits_the_reserve_keeps_rows_that_wait():
    model = trained(MLPRegressor, 500)
    assert model._pending > 0
    model.learn_one({"a": 1.0, "new": 2.0}, 3.0)
    model._update()
    assert model._scale.count[:4].tolist() == [501, 500, 500, 1]


def test_schedule_and_whole_data_optimizers():
    schedule = cnn.LinearLR(0.1, 1.0, 50, "step")
    model = trained(MLPRegressor, optimizer=cnn.SGD(lr=0.01, schedule=schedule))
    assert model.model_._core.rates()[0] == 0.01
    model._learn_names("abcdefghijk")
    assert model.model_._core.rates()[0] == 0.01  # at step 60 still
    model = MLPRegressor((4,), seed=0, optimizer=cnn.LBFGS())
    frame = pd.DataFrame(list(rows(60)))
    for _ in range(30):
        model.learn_many(frame, frame["a"] - frame["b"])
    model.learn_many(pd.DataFrame(list(rows(5, "abcdefghij"))), pd.Series(np.ones(5)))
    assert np.isfinite(model.predict_many(frame)).all()


def test_learn_many_is_one_step():
    x = pd.DataFrame(RANDOM.standard_normal((20, 3)), columns=list("abc"))
    y = pd.Series(x["a"] - x["b"])
    model = MLPRegressor(seed=0, standardize=False, optimizer=cnn.SGD(lr=0.1), l2=0.01, activation=cnn.GELU())
    model.learn_many(x[:0], y[:0])
    assert model.model_ is None
    model.learn_many(x, y)
    again = MLPRegressor(seed=0, standardize=False, optimizer=cnn.SGD(lr=0.1), l2=0.01, activation="gelu")
    again._learn_names("abc")
    assert [type(layer).__name__ for layer in again.model_.layers] == ["Linear", "GELU", "Linear"]
    rows = np.pad(x.to_numpy(), ((0, 0), (0, 5)))
    again.model_.train_step(rows, y.to_numpy()[:, None])
    np.testing.assert_array_equal(model.predict_many(x), again.model_.predict(rows)[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_copies_learn_on_alike(kind):
    model = trained(kind)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.clone(include_attributes=True)]
    for x in rows(40, "bcad", seed=3):
        for one in (model, *copies):
            one.learn_one(x, target(kind, x))
    for one in copies:
        np.testing.assert_array_equal(one.model_.parameters, model.model_.parameters)


def test_learns():
    classifier, regressor = MLPClassifier(seed=0), MLPRegressor(seed=0, loss=cnn.HuberLoss())
    hits, errors = [], []
    for x in rows(2000):
        label, number = (x["a"] > 5) != (x["b"] > 5), 1e4 + 100 * abs(x["a"] - x["b"])
        hits.append(classifier.predict_one(x) == label)
        errors.append(abs(regressor.predict_one(x) - number))
        classifier.learn_one(x, label)
        regressor.learn_one(x, number)
    assert np.mean(hits[-500:]) > 0.93
    assert np.mean(errors[-500:]) < 40  # the deviation of the targets is 260


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ({"a": 1.0, "b": "red"}, TypeError, r"^x\['b'\]: expected a number, got 'red': encode categories"),
        ({"a": 1.0, "b": None}, TypeError, r"^x\['b'\]: expected a number, got None: .* leave out what is missing"),
        ({"a": 1.0, "b": -math.inf}, ValueError, "^x: expected finite numbers"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows(kind, x, error, message):
    model = trained(kind, names="ab")
    before = pickle.dumps(model.model_)
    for call in (lambda: model.learn_one(x, target(kind, {"a": 1})), lambda: model.predict_one(x)):
        with pytest.raises(error, match=message):
            call()
    assert pickle.dumps(model.model_) == before
    good = next(rows(1, "ab"))
    model.learn_one(good, target(kind, good))
    assert model._scale.count[0] + model._pending == 61


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_leaves_no_trace(kind):
    good, y = {"a": 1.0, "b": 2.0}, "new" if kind is MLPClassifier else 1.0
    bad = ({**good, "c": "red"}, {**good, "d": 1.0, "c": [1]}, {"c": math.inf, **good}, {"a": "red", "b": 2.0})
    ys = [pd.Series([y])] + [pd.Series(["other", []])] * (kind is MLPClassifier)
    for make in (lambda: trained(kind, names="ab"), lambda: kind((6,), seed=0)):
        model, alike = make(), make()
        for x in bad:
            for call in (
                lambda m=model, x=x: m.learn_one(x, y),
                *(lambda m=model, x=x, t=t: m.learn_many(pd.DataFrame([x] * len(t)), t) for t in ys),
            ):
                with pytest.raises((TypeError, ValueError)):
                    call()
        with pytest.raises(TypeError):
            model.learn_many(pd.DataFrame([good] * 2), pd.Series([[], []]))
        assert model._columns == alike._columns
        assert vars(model).get("_classes") == vars(alike).get("_classes")
        for one in (model, alike):
            one.learn_one({**good, "c": 1.0}, y)
        np.testing.assert_array_equal(model.model_.parameters, alike.model_.parameters)


def test_bad_arguments():
    for options, error, message in (
        ({"hidden_layer_sizes": (3, 0)}, ValueError, "hidden_layer_sizes: expected positive integers"),
        ({"activation": "rulu"}, ValueError, "activation: expected a layer such as cnn.GELU"),
        ({"activation": ("relu", "tanh")}, ValueError, "activation: expected one for each of the 1 hidden layers"),
        ({"optimizer": "adam"}, TypeError, "optimizer: expected one such as cnn.Adam"),
        (
            {"optimizer": cnn.SGD(schedule=cnn.StepLR(5))},
            ValueError,
            "optimizer: expected a schedule that counts steps",
        ),
        ({"loss": cnn.CrossEntropyLoss()}, ValueError, r"loss: expected one of cnn.MSELoss\(\), "),
        ({"loss": cnn.QuantileLoss([0.1, 0.9])}, ValueError, "loss: expected one output for each target"),
    ):
        with pytest.raises(error, match=message):
            MLPRegressor(**options)
    model = MLPRegressor(seed=0)
    for y, error in (("many", TypeError), (math.nan, ValueError)):
        with pytest.raises(error, match=r"^y: expected a"):
            model.learn_one({"a": 1.0}, y)
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"^y: expected 2 targets, one for each row of X, got 1"):
        model.learn_many(frame, pd.Series([1.0]))
    with pytest.raises(TypeError, match=r"^X: expected numbers, got columns of \['(object|str)'\]"):
        model.learn_many(frame.assign(a=["x", "y"]), pd.Series([1.0, 2.0]))
    model = MLPRegressor(standardize=False, optimizer=cnn.SGD(lr=1e200), seed=0)
    model.learn_one({"a": 1.0}, 1.0)
    with pytest.raises(RuntimeError, match="training has diverged"):
        model.learn_one({"a": 1.0}, 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("standardize", [True, False])
def test_rows_of_every_kind_are_one_row(kind, standardize):
    models = [kind((6,), seed=0, standardize=standardize) for _ in range(4)]
    for x in rows(80, "abcd"):
        forms = (
            x,
            {str(bytes(key, "ascii"), "ascii"): np.float64(value) for key, value in x.items()},  # keys anew
            x if models[0].model_ is None else dict(reversed(x.items())),
            {key: np.asarray(value) for key, value in x.items()},
        )
        for model, form in zip(models, forms, strict=True):
            model.learn_one(form, target(kind, x))
    for model in models[1:]:
        np.testing.assert_array_equal(model.model_.parameters, models[0].model_.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_completion(kind):
    assert not [name for name in dir(kind()) if name.startswith("_")]
