"""Ensembles and `fit_many`: each member becomes what the same model becomes alone, whatever the others do."""

import copy
import itertools
import json
import os
import pickle
import signal
import threading

import grid
import numpy as np
import pytest

import cnn

ROWS, WIDTH = 21, 3


@pytest.fixture(autouse=True)
def one_after_the_other(monkeypatch):
    """Not in the lanes of vectors (test_lanes.py), which round sums otherwise."""
    monkeypatch.setattr("cnn.training.many.LANES", False)


def layers(*more, out=2, loss=None):
    return [cnn.Linear(WIDTH, 5), cnn.Tanh(), *more, cnn.Linear(5, out), loss or cnn.MSELoss()]


def data(rows=ROWS, out=2, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, WIDTH)).astype(dtype), rng.standard_normal((rows, out)).astype(dtype)


def alone(make, i, x, y, *, dtype="float64", seed=5, optimizer=None, **options):
    model = cnn.Sequential(make(), optimizer or cnn.Adam(0.01), dtype, seed + i)
    return model, model.fit(x, y, progress=False, **options)


def assert_same(member, model):
    """To the bit, with all that further training depends on."""
    mine, theirs = member._core.training_state()[0], model._core.training_state()[0]
    mine |= member.state_dict()
    theirs |= model.state_dict()
    names = [name for name in mine if not name.startswith("callback/")]
    assert names == [name for name in theirs if not name.startswith("callback/")]
    for name in names:
        np.testing.assert_array_equal(mine[name], theirs[name], err_msg=name)


def check(make, x, y, members=3, optimizers=None, dtype="float64", **options):
    """An ensemble's `fit` beside each member's own."""
    own = optimizers or [cnn.Adam(0.01)] * members
    ensemble = cnn.Ensemble(make(), members, None, dtype, 5)
    for member, optimizer in zip(ensemble._members, own, strict=True):
        member.optimizer = optimizer
    history = ensemble.fit(x, y, progress=False, **options)
    for i in range(members):
        model, found = alone(make, i, x, y, dtype=dtype, optimizer=own[i], **options)
        assert_same(ensemble[i], model)
        assert history.of(i) == found
    return ensemble, history


# beside a model alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", grid.LAYERS)
def test_layers(name):
    entry = grid.LAYERS[name]
    x, y = data(out=1)

    def make():
        layer = entry.make(5, "float64")
        width = cnn.Sequential([cnn.Linear(WIDTH, 5), entry.make(5, "float64")])._core.out_features
        return [cnn.Linear(WIDTH, 5), layer, cnn.Linear(width, 1), cnn.MSELoss()]

    check(make, x, y, epochs=2, batch_size=7)


@pytest.mark.parametrize(("name", "given"), grid.WITH_PARAMETERS)
def test_activations(isa, dtype, name, given):
    entry = grid.ACTIVATIONS[name]
    x, y = data(dtype=dtype)
    check(lambda: [cnn.Linear(WIDTH, 5), entry.make(given), cnn.Linear(5, 2), cnn.MSELoss()], x, y, 2, dtype=dtype)


@pytest.mark.parametrize("name", [name for name, case in grid.CASES.items() if not case.own])
def test_losses(name):
    case = grid.CASES[name]
    m = case.width(3)
    x, _ = data()
    y = grid.targets(case.targets, ROWS, m, np.random.default_rng(1))
    tail = [cnn.Softplus()] if case.positive else []
    make = lambda: [cnn.Linear(WIDTH, 5), cnn.Tanh(), cnn.Linear(5, m), *tail, case.make(m)]  # noqa: E731
    check(make, x, y, 2, epochs=2, batch_size=8, validation_data=(x, y))


@pytest.mark.parametrize("name", grid.OPTIMIZERS)
def test_optimizers(name):
    case = grid.OPTIMIZERS[name]
    x, y = data()
    optimizers = [case.cls(**{**case.options, **case.common, "lr": lr}) for lr in (1e-3, 1e-2)]
    check(layers, x, y, 2, optimizers, epochs=3, batch_size=8)


@pytest.mark.filterwarnings("ignore:OneCycleLR. training goes on")
@pytest.mark.parametrize("schedule", grid.SCHEDULES, ids=repr)
def test_schedules(schedule, monkeypatch):
    monkeypatch.setattr("cnn.training.many.STEPS_AHEAD", 2)
    x, y = data()
    options = {"validation_split": 0.2} if isinstance(schedule, cnn.ReduceLROnPlateau) else {}
    optimizers = [cnn.SGD(lr, schedule=copy.deepcopy(schedule)) for lr in (0.1, 0.3)]
    check(layers, x, y, 2, optimizers, epochs=3, batch_size=8, **options)


def test_each_member_has_a_schedule_of_its_own():
    x, y = data()
    for lr in (0.1, np.array([0.1, 0.3])):
        optimizer = cnn.SGD(lr, schedule=cnn.ReduceLROnPlateau(patience=0, monitor="loss"))
        ensemble = cnn.Ensemble(layers(), 2, optimizer, dtype="float64", seed=5)
        ensemble.fit(x, y, epochs=2, batch_size=8, progress=False)
        best = [member._core.optimizer.schedule.state_dict()["best"] for member in ensemble._members]
        assert best == ensemble.history["loss"].min(axis=0).tolist()


OPTIONS = {
    "one row": {"batch_size": 1},
    "whole": {"batch_size": None},
    "as they lie": {"shuffle": False},
    "accumulated": {"accumulation_steps": 2},
    "dropped": {"drop_last": True},
    "few steps": {"steps_per_epoch": 2},
    "split": {"validation_split": 0.3, "metrics": ["r2", "mae"]},
    "stopped": {"validation_split": 0.3, "early_stopping": cnn.EarlyStopping(patience=1), "epochs": 12},
    "by loss": {"early_stopping": cnn.EarlyStopping("loss", patience=1, min_delta=0.2), "epochs": 12},
    "weights": {"sample_weight": np.arange(ROWS) % 3, "validation_data": (*data(9, seed=2), np.arange(9) % 2)},
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, threads):
    options = {"epochs": 3, "batch_size": 4} | OPTIONS[name]
    check(lambda: layers(cnn.Dropout(0.2)), *data(), 4, threads=threads, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_one_after_the_other(dtype):
    """The direct path for one row, over more rows than are done between two looks at the clock."""
    x, y = data(5000, dtype=dtype)
    optimizers = [cnn.SGD(lr) for lr in (0.001, 0.01)]
    check(layers, x, y, 2, optimizers, dtype, epochs=2, batch_size=1, shuffle=False)


def test_deadline(monkeypatch):
    """Calls that end after each batch change nothing."""
    monkeypatch.setattr("cnn.training.many.SLICE", 0.0)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 100)), rng.standard_normal((200, 1))
    check(lambda: [cnn.Linear(100, 90), cnn.ReLU(), cnn.Linear(90, 1), cnn.MSELoss()], x, y, 2, epochs=2, batch_size=64)


def test_accuracy_and_ignored_rows():
    x, _ = data()
    y = np.arange(ROWS) % 4
    make = lambda: layers(out=3, loss=cnn.CrossEntropyLoss(ignore_index=3))  # noqa: E731
    _, history = check(
        make, x, y, epochs=2, batch_size=5, validation_data=(x, y), class_weight={0: 2.0}, metrics=["f1"]
    )
    assert list(history) == ["loss", "accuracy", "f1", "val_loss", "val_accuracy", "val_f1"]


def test_weights_and_validation():
    """Which rows are held out, and what weighs what, in training and in validation, whoever trains the members."""
    x, _ = data()
    y, w = np.arange(ROWS) % 5 // 2, np.arange(ROWS) % 4
    make = lambda: layers(out=3, loss=cnn.CrossEntropyLoss())  # noqa: E731
    split = {"validation_split": 0.3}
    validations = split, split | {"stratify": True}, {"validation_data": (x[:8], y[:8], w[:8])}
    whole = {"optimizers": [cnn.LBFGS()] * 2, "batch_size": None}
    for held, classes, rows, by in itertools.product(
        validations, (None, "balanced", {0: 3.0}), (None, w), ({"batch_size": 4}, whole)
    ):
        weigh = classes is not None and rows is None
        check(make, x, y, 2, epochs=2, class_weight=classes, sample_weight=rows, weigh_validation=weigh, **held, **by)
    ys, stop = np.stack([y, y[::-1], y * 0 + np.arange(ROWS) // 20]), cnn.EarlyStopping(patience=1)
    for by in ({"batch_size": 4}, {"optimizer": cnn.LBFGS()}, {"batch_size": 4, "optimizer": cnn.SGD(
        schedule=cnn.ReduceLROnPlateau(patience=0))}):  # fmt: skip
        optimizer = by.pop("optimizer", cnn.Adam(0.01))
        ensemble = cnn.Ensemble(make(), 3, optimizer, "float64", 5)
        options = {"epochs": 5, "validation_freq": 2, "class_weight": "balanced", "weigh_validation": True} | by
        options |= {"validation_data": (x[:8], y[:8]), "early_stopping": stop}
        history = ensemble.fit(x, ys, progress=False, **options)
        for i in range(3):
            model, found = alone(make, i, x, ys[i], optimizer=copy.deepcopy(optimizer), **options)
            assert_same(ensemble[i], model)
            np.testing.assert_equal(history.of(i), found)
        scores = ensemble.evaluate(x, ys, class_weight="balanced")["loss"]
        assert scores[1] == ensemble[1].evaluate(x, ys[1], class_weight="balanced")["loss"]
    models = [cnn.Sequential(make(), cnn.SGD(), "float64") for _ in range(2)]
    ensemble = cnn.Ensemble.of(models)
    for fit in (
        lambda **how: cnn.fit_many(models, [(x, np.sort(y))] * 2, validation_split=0.3, progress=False, **how),
        lambda **how: ensemble.fit(x, np.sort(y), validation_split=0.3, progress=False, **how),
        lambda **how: models[0].fit(x, np.sort(y), validation_split=0.3, progress=False, **how),
    ):
        with pytest.warns(UserWarning, match="takes the last rows, but y is sorted by class") as found:
            fit()
        assert [one.filename for one in found] == [__file__]
        fit(stratify=True)


def test_python_loss():
    def loss(y, t):
        return np.mean((y - t) ** 2), 2 * (y - t) / y.size

    make = lambda: layers(loss=cnn.CallableLoss(loss))  # noqa: E731
    x, y = data()
    ensemble, _ = check(make, x, y, 2, epochs=2, batch_size=8, validation_split=0.2)
    one = ensemble[1]
    losses = ensemble.train_step(x, y)
    assert losses[1] == one.train_step(x, y)
    assert_same(ensemble[1], one)
    np.testing.assert_array_equal(ensemble.predict(x)[1], one.predict(x))
    assert ensemble.evaluate(x, y)["loss"][1] == one.evaluate(x, y)["loss"]


def test_members_and_slices_of_them():
    x, y = data()
    ensemble, history = check(layers, x, y, 5, epochs=3, batch_size=4)
    parts = (slice(1, 4), slice(None, None, -2))
    taken = [ensemble[part] for part in parts]
    ensemble.fit(x, y, epochs=1, batch_size=4, progress=False)
    for part, some in zip(parts, taken, strict=True):
        some.fit(x, y, epochs=1, batch_size=4, progress=False)  # goes on as in the whole
        np.testing.assert_array_equal(some.parameters, ensemble.parameters[part])
    assert_same(ensemble[-1], ensemble[4])
    for i in (5, -6):
        with pytest.raises(IndexError, match=rf"^ensemble\[{i}\]: expected a member from -5 to 4$"):
            ensemble[i]
    with pytest.raises(TypeError, match=r"^ensemble\[i\]: expected an int, got 1\.0"):
        ensemble[1.0]
    with pytest.raises(IndexError, match=r"^ensemble\[...\]: expected a slice with some of 5 members, got slice\(9, "):
        ensemble[9:]
    assert history["loss"].shape == (3, 5)


def test_many_history_in_words_and_as_a_picture(tmp_path):
    history = cnn.ManyHistory(["loss", "val_loss", "accuracy"], 3)
    assert repr(history) == "ManyHistory()"
    with pytest.raises(ValueError, match=r"^ManyHistory\.plot: there are no epochs"):
        history.plot(tmp_path / "none.png")
    for epoch, loss in ((1, [4.0, 2, 3]), (2, [1.0, 0.5, np.nan])):
        seldom = np.full(3, 0.25 if epoch == 2 else np.nan)
        history.record(epoch, {"loss": np.array(loss), "val_loss": seldom, "accuracy": np.full(3, np.nan)})
    assert repr(history) == "ManyHistory(2 epochs of 3; last: loss=0.5 to 1, val_loss=0.25 to 0.25, accuracy=nan)"
    losses, accuracies = history.plot(tmp_path / "many.png")
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")
    training, validation = losses.lines
    assert training.get_xydata().tolist() == [[1, 3], [2, 0.75]]
    assert validation.get_xydata().tolist() == [[2, 0.25]]
    assert not accuracies.lines
    assert losses.get_title() == "loss of 3 members: median, 10 to 90 %"
    found = json.loads(history.to_json(tmp_path / "many.json"))
    assert found == json.loads((tmp_path / "many.json").read_text())
    assert found["epoch"] == [1, 2]
    assert found["loss"] == [[4, 2, 3], [1, 0.5, None]]
    table = history.to_pandas()
    assert table.index.tolist() == [1, 2]
    for name, values in history.items():
        np.testing.assert_array_equal(table[name], values)
    history.record(3, {"loss": np.zeros(3)})
    assert np.isnan(history["val_loss"][-1]).all()


# data -----------------------------------------------------------------------------------------------------------------


def test_own_data_and_weights():
    xs, ys = (np.stack(a) for a in zip(*(data(seed=i) for i in range(3)), strict=True))
    w = np.random.default_rng(3).random((3, ROWS))
    ensemble = cnn.Ensemble(layers(), 3, cnn.Adam(0.01), "float64", 5)
    ensemble.fit(xs, ys, sample_weight=w, epochs=2, batch_size=4, progress=False)
    for i in range(3):
        assert_same(ensemble[i], alone(layers, i, xs[i], ys[i], sample_weight=w[i], epochs=2, batch_size=4)[0])
    scores = ensemble.evaluate(xs, ys, w)
    for i in range(3):
        assert scores["loss"][i] == ensemble[i].evaluate(xs[i], ys[i], w[i])["loss"]
        np.testing.assert_array_equal(ensemble.predict(xs)[i], ensemble[i].predict(xs[i]))


def test_ragged():
    parts = [data(n, seed=n) for n in (1, 30, 7)]
    ensemble = cnn.Ensemble(layers(), 3, cnn.Adam(0.01), "float64", 5)
    ensemble.fit([x for x, _ in parts], [y for _, y in parts], epochs=3, batch_size=4, progress=False)
    for i, (x, y) in enumerate(parts):
        assert_same(ensemble[i], alone(layers, i, x, y, epochs=3, batch_size=4)[0])
    outputs = ensemble.predict([x for x, _ in parts])
    assert [len(y) for y in outputs] == [1, 30, 7]


def test_a_chosen_output_of_each_row():
    """Targets that are pairs, also where there are as many members as parts of a pair."""
    x, _ = data()
    which, y = np.arange(ROWS) % 2, np.arange(float(ROWS))
    make = lambda: layers(loss=cnn.MSELoss(chosen=True))  # noqa: E731
    for members in (2, 3):
        check(make, x, (which, y), members, epochs=2, batch_size=4, validation_split=0.3)
        own = [((which + i) % 2, y * i) for i in range(members)]
        ensemble = cnn.Ensemble(make(), members, cnn.Adam(0.01), "float64", 5)
        ensemble.fit(x, own, batch_size=4, progress=False)
        assert_same(ensemble[1], alone(make, 1, x, own[1], batch_size=4)[0])
        with pytest.raises(ValueError, match=f"y: expected data for each of {members} members, got 1"):
            ensemble.fit(x, own[:1])


def test_bootstrap():
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 3, cnn.Adam(0.01), "float64", 5)
    ensemble.fit(x, y, bootstrap=True, epochs=2, batch_size=4, progress=False)
    rows = ensemble.bootstrap_rows(ROWS)
    assert rows.shape == (3, ROWS)
    assert rows.min() >= 0
    assert rows.max() < ROWS
    for i in range(3):
        assert len(np.unique(rows[i])) < ROWS
        assert_same(ensemble[i], alone(layers, i, x[rows[i]], y[rows[i]], epochs=2, batch_size=4)[0])


def test_bootstrap_of_sparse_rows_and_by_python():
    """It draws from the rows that are left to train on, and no row of them validates."""
    sparse = pytest.importorskip("scipy.sparse")
    x, y = data()
    n, best = 14, cnn.EarlyStopping("val_loss", patience=1)
    for optimizer, rows in ((cnn.SGD(0.1), sparse.csr_matrix(x)), (cnn.LBFGS(), x), (cnn.Adam(0.01), x)):
        ensemble = cnn.Ensemble(layers(), 2, optimizer, "float64", 5)
        history = ensemble.fit(
            rows, y, bootstrap=True, validation_split=1 / 3, epochs=3, early_stopping=best, progress=False
        )
        for i, drawn in enumerate(ensemble.bootstrap_rows(n)):
            model, found = alone(
                layers, i, rows[drawn], y[drawn], optimizer=optimizer, epochs=3, early_stopping=best,
                validation_data=(rows[n:], y[n:]),
            )  # fmt: skip
            np.testing.assert_array_equal(ensemble[i].parameters, model.parameters)
            assert history.of(i) == found
            assert history.best_epoch[i] == best.best_epoch


def test_bootstrap_draws_alike():
    """A row in ROWS places: the counts of many members are those of a fair draw (chi-square, 20 degrees)."""
    counts = np.bincount(cnn.Ensemble(layers(), 200, seed=1).bootstrap_rows(ROWS).ravel(), minlength=ROWS)
    assert ((counts - 200) ** 2 / 200).sum() < 45.3  # p = 0.001


def test_shared_order():
    """All members take the rows in the order of the first."""
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 3, cnn.SGD(0.1), "float64", 5)
    start = ensemble.parameters
    ensemble.parameters = np.repeat(start[:1], 3, axis=0)
    ensemble.fit(x, y, shuffle="shared", epochs=2, batch_size=4, progress=False)
    np.testing.assert_array_equal(ensemble.parameters, np.repeat(ensemble.parameters[:1], 3, axis=0))
    assert_same(ensemble[0], alone(layers, 0, x, y, optimizer=cnn.SGD(0.1), epochs=2, batch_size=4)[0])


@pytest.mark.parametrize("batch_size", [ROWS - 1, ROWS, None])
def test_batches_of_all_rows(batch_size):
    """They are not shuffled; where an epoch takes a part of the rows, they are."""
    check(layers, *data(), epochs=3, batch_size=batch_size, steps_per_epoch=1, metrics=["r2"])


def test_own_targets_of_shared_x():
    x, _ = data()
    ys = np.random.default_rng(1).standard_normal((3, ROWS))
    ensemble = cnn.Ensemble(layers(out=1), 3, cnn.Adam(0.01), "float64", 5)
    ensemble.fit(x, ys, epochs=1, progress=False)
    for i in range(3):
        assert_same(ensemble[i], alone(lambda: layers(out=1), i, x, ys[i], epochs=1)[0])


# fit_many -------------------------------------------------------------------------------------------------------------


def test_fit_many_of_optimizers_with_other_numbers():
    """Those of L-BFGS and Levenberg-Marquardt in the history are NaN of the others, whichever comes first."""
    x, y = data()
    kinds = [cnn.LBFGS, cnn.Adam, cnn.LevenbergMarquardt]
    for order in itertools.permutations(range(3)):
        models = [cnn.Sequential(layers(), kinds[i](), "float64", 0) for i in order]
        history = cnn.fit_many(models, [(x, y)] * 3, epochs=3, progress=False)
        for k, model in enumerate(models):
            for name in {*history} - {"lr"}:
                known = model.history.get(name, [np.nan] * 3)
                np.testing.assert_array_equal(history[name][: len(known), k], known)


def test_fit_many_of_several_shapes():
    parts = [data(n, seed=n) for n in (12, 30, 7)]
    makes = [layers, lambda: layers(cnn.BatchNorm1d(5)), lambda: [cnn.Linear(WIDTH, 2), cnn.HuberLoss()]]
    models = [cnn.Sequential(make(), cnn.Adam(0.01), "float64", i) for i, make in enumerate(makes)]
    twins = [model.copy() for model in models]
    history = cnn.fit_many(models, parts, epochs=3, batch_size=4, validation_data=parts, progress=False)
    for i, (twin, (x, y)) in enumerate(zip(twins, parts, strict=True)):
        found = twin.fit(x, y, epochs=3, batch_size=4, validation_data=(x, y), progress=False)
        assert history.of(i) == found == models[i].history
        assert_same(models[i], twin)


def test_a_second_fit_goes_on():
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 2, cnn.Adam(0.01, schedule=cnn.StepLR(1, 0.5)), "float64", 5)
    model = ensemble[1]
    for _ in range(2):
        ensemble.fit(x, y, epochs=2, batch_size=4, progress=False)
        model.fit(x, y, epochs=2, batch_size=4, progress=False)
    assert_same(ensemble[1], model)


def test_fit_many_refuses():
    x, y = data()
    model = cnn.Sequential(layers(), cnn.SGD())
    for models, error, text in (
        ([], ValueError, "at least one"),
        ([model, model], ValueError, "twice"),
        ([model, 3], TypeError, "models\\[1\\]: expected a cnn.Sequential, got int"),
        ([model, cnn.Sequential(layers(), cnn.SGD(), "float64")], TypeError, "one dtype"),
        ([cnn.Sequential(layers())], RuntimeError, "no optimizer"),
    ):
        with pytest.raises(error, match=text):
            cnn.fit_many(models, [(x, y)] * len(models))
    with pytest.raises(ValueError, match="for each of 1 models, got 2"):
        cnn.fit_many([model], [(x, y)] * 2)
    with pytest.raises(ValueError, match="data\\[0\\]: expected"):
        cnn.fit_many([model], [x])
    with pytest.raises(ValueError, match="x of 0: expected shape"):
        cnn.fit_many([model], [(x[:, :2], y)])


# what goes wrong ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_divergence_stops_no_other(threads):
    x, y = data()
    lrs = np.array([0.01, 1e200, 0.02, 0.03])
    ensemble = cnn.Ensemble(layers(cnn.BatchNorm1d(5)), 4, cnn.SGD(lrs), "float64", 5)
    before = ensemble[1]
    with pytest.warns(RuntimeWarning, match="1 of 4 members diverged and were stopped: 1"):
        history = ensemble.fit(x, y, epochs=4, batch_size=3, threads=threads, progress=False)
    assert list(history.diverged) == [1]
    assert isinstance(history.diverged[1], cnn.DivergenceError)
    assert "member 1: the loss is not finite in epoch 1, batch" in str(history.diverged[1])
    np.testing.assert_array_equal(ensemble[1].parameters, before.parameters)
    assert history.last_epoch.tolist() == [4, 0, 4, 4]
    assert np.isnan(history["loss"][:, 1]).all()
    for i in (0, 2, 3):
        model, _ = alone(lambda: layers(cnn.BatchNorm1d(5)), i, x, y, optimizer=cnn.SGD(lrs[i]), epochs=4, batch_size=3)
        assert_same(ensemble[i], model)


def test_nan_in_the_data_of_one():
    xs, ys = (np.stack(a) for a in zip(*(data(seed=i) for i in range(3)), strict=True))
    xs[1, 3, 0] = np.nan
    ensemble = cnn.Ensemble(layers(), 3, cnn.Adam(0.01), "float64", 5)
    with pytest.warns(RuntimeWarning, match="1 of 3"):
        history = ensemble.fit(xs, ys, epochs=2, batch_size=4, progress=False, threads=1)
    assert "x has NaN or infinity in this batch" in str(history.diverged[1])
    assert np.isfinite(ensemble.parameters).all()
    assert_same(ensemble[2], alone(layers, 2, xs[2], ys[2], epochs=2, batch_size=4)[0])


def test_nan_in_the_rows_that_are_evaluated():
    """A warning names them and points here, as for a model alone; by early stopping such a member has no best epoch."""
    xs, ys = (np.stack(a) for a in zip(*(data(seed=i) for i in range(3)), strict=True))
    xs[1:, -1, 0] = np.nan
    ensemble = cnn.Ensemble(layers(), 3, cnn.Adam(0.01), "float64", 5)
    models, parts = list(ensemble), list(zip(xs, ys, strict=True))
    split = {"validation_split": 0.2, "early_stopping": 2, "epochs": 3, "progress": False}
    one = "x of 1 has NaN or infinity: the loss is nan; members with such rows: 1, 2"
    held = one.replace("x of 1", r"validation_data\[0\] of 1")
    for call, text in (
        (lambda: ensemble.fit(xs, ys, **split), one),
        (lambda: cnn.fit_many(models, parts, **split), one),
        (lambda: ensemble.fit(xs[:, :-1], ys[:, :-1], validation_data=(xs, ys), progress=False), held),
        (
            lambda: ensemble.fit(xs[0], ys[0], validation_data=(xs[1], ys[1])),
            r"^validation_data\[0\] has NaN .* is nan$",
        ),
        (lambda: ensemble.evaluate(xs, ys), one),
        (lambda: ensemble.evaluate(xs[1], ys[1]), "^x has NaN or infinity: the loss is nan$"),
        (lambda: ensemble.evaluate(xs[0], ys[0], np.zeros(ROWS)), "^x: no row counts: .*: the loss is NaN$"),
        (lambda: models[0].evaluate(xs[1], ys[1]), "^x has NaN or infinity: the loss is nan$"),
    ):
        with pytest.warns(RuntimeWarning, match=text) as found:
            result = call()
        assert [one.filename for one in found] == [__file__]
        if isinstance(result, cnn.ManyHistory) and result.best_epoch is not None:
            assert result.best_epoch.tolist() == [3, 0, 0]


def test_the_last_step_makes_numbers_that_no_loss_has_seen():
    """Alone, the parameters would not be finite after `fit`."""
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 2, cnn.SGD(np.array([0.1, 1e308])), "float64", 5)
    before = ensemble[1].parameters
    with pytest.warns(RuntimeWarning, match="1 of 2"):
        ensemble.fit(1e200 * x, 1e100 * y, batch_size=None, progress=False, shuffle=False)
    np.testing.assert_array_equal(ensemble[1].parameters, before)


def test_all_diverge():
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 2, cnn.SGD(0.1), "float64", 5)
    with pytest.raises(cnn.DivergenceError, match="all 2 members diverged: member 0: the loss is not finite"):
        ensemble.fit(x * np.nan, y, progress=False)


def test_ctrl_c():
    """It comes in the middle of an epoch, and leaves valid members that train on."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20_000, WIDTH)), rng.standard_normal((20_000, 2))
    ensemble = cnn.Ensemble(layers(), 8, cnn.SGD(0.01), "float64", 5)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ensemble.fit(x, y, epochs=100_000, progress=False)
    timer.join()
    assert np.isfinite(ensemble.parameters).all()
    ensemble.fit(x[:10], y[:10], progress=False)


def test_two_fits_at_once():
    ensemble = cnn.Ensemble(layers(), 2, cnn.SGD(0.01))
    ensemble._members[1]._core.fitting = True
    before = ensemble.parameters
    with pytest.raises(RuntimeError, match="another thread is training this model"):
        ensemble.fit(*data(), progress=False)
    np.testing.assert_array_equal(ensemble.parameters, before)


def test_refuses():
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 3, cnn.SGD(0.01), seed=0)
    for options, text in (
        ({"shuffle": "all"}, "shuffle: expected 'own', 'shared'"),
        ({"validation_data": x}, "validation_data: expected a pair"),
        ({"validation_split": 0.5, "validation_data": (x, y)}, "validation_split: expected no validation_data"),
        ({"validation_split": 0.99}, "leaves no rows"),
        ({"drop_last": True}, "do not fill a batch of 32"),
        ({"sample_weight": np.zeros(ROWS)}, "at least one weight above 0"),
        ({"early_stopping": True}, "val_loss"),
    ):
        with pytest.raises(ValueError, match=text):
            ensemble.fit(x, y, **options)
    with pytest.raises(ValueError, match="x: expected data for each of 3 members, got 2"):
        ensemble.fit(np.stack([x, x]), y)
    with pytest.raises(ValueError, match=r"drop_last: the 7 rows of x of 2 do not fill a batch of 8"):
        ensemble.fit([x, x, x[:7]], [y, y, y[:7]], batch_size=8, drop_last=True)
    with pytest.raises(
        ValueError, match=r"x: expected an array of 3 columns for each member, got .* as np\.hstack\(x\)"
    ):
        ensemble.fit([x[:, :1], x[:, 1:2], x[:, 2:]], y)
    with pytest.raises(ValueError, match="quantiles: expected reduce='quantiles' with them, got reduce='mean'"):
        ensemble.predict(x, "mean", quantiles=(0.1, 0.9))
    with pytest.raises(ValueError, match="members: expected at least 1"):
        cnn.Ensemble(layers(), 0)
    with pytest.raises(ValueError, match="expected 3 numbers in arrays, one a member, got 2"):
        ensemble.optimizer = cnn.SGD(np.ones(2))
    with pytest.raises(ValueError, match="arrays of one length, got 2 and 3"):
        cnn.Adam(np.ones(3), betas=(np.full(2, 0.9), 0.99))
    with pytest.raises(TypeError, match=r"expected an optimiser such as cnn.SGD\(\), got SGD\(lr=1.0\) of 3 members"):
        cnn.Sequential(layers(), cnn.SGD(np.ones(3)))
    with pytest.raises(ValueError, match="lr: expected a finite number of at least 0"):
        cnn.SGD(-np.ones(3))


# callbacks ------------------------------------------------------------------------------------------------------------


class Recorder(cnn.Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, logs):
        self.calls.append(("train begin", self.model, logs))

    def on_epoch_begin(self, epoch, logs):
        self.calls.append(("begin", epoch, logs))

    def on_epoch_end(self, epoch, logs):
        self.calls.append(("end", epoch, logs["loss"], logs["lr"], self.model.parameters))

    def on_train_end(self, logs):
        self.calls.append(("train end", self.model, logs))


@pytest.mark.parametrize("lanes", [False, True])
def test_callbacks(monkeypatch, lanes):
    monkeypatch.setattr("cnn.training.many.LANES", lanes)
    x, y = data()

    def made():
        return cnn.Ensemble(layers(), 4, cnn.Adam(0.01, schedule=cnn.ExponentialLR(0.5)), "float64", 5)

    ensemble, plain, recorder = made(), made(), Recorder()
    history = ensemble.fit(x, y, epochs=3, callbacks=recorder, validation_split=0.2, progress=False)
    expected = plain.fit(x, y, epochs=3, validation_split=0.2, progress=False)
    assert [call[0] for call in recorder.calls] == ["train begin", *["begin", "end"] * 3, "train end"]
    assert recorder.calls[0][1:] == (ensemble, {})
    assert recorder.calls[1][1:] == (1, {})
    ends = [call for call in recorder.calls if call[0] == "end"]
    np.testing.assert_array_equal([end[2] for end in ends], history["loss"])
    np.testing.assert_array_equal([end[3] for end in ends], history["lr"])
    np.testing.assert_array_equal(ends[-1][4], plain.parameters)
    assert np.all(ends[0][4] != ends[1][4])
    assert history["val_loss"].shape == (3, 4)
    for name in expected:
        np.testing.assert_array_equal(history[name], expected[name])
        np.testing.assert_array_equal(recorder.calls[-1][2][name], history[name][-1])


def test_a_callback_stops_all():
    def stop(epoch, logs):
        if epoch == 2:
            ensemble.stop_training = True

    ensemble = cnn.Ensemble(layers(), 3, cnn.SGD(0.01), seed=0)
    stopper = cnn.LambdaCallback(on_epoch_end=stop)
    assert ensemble.fit(*data(), epochs=9, callbacks=[stopper], progress=False).epochs == [1, 2]
    assert ensemble.history.last_epoch.tolist() == [2, 2, 2]
    assert ensemble.fit(*data(), epochs=1, progress=False).epochs == [1]
    recorder = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(recorder, "stop", epoch == 4))
    assert ensemble.fit(*data(), epochs=9, callbacks=[recorder], progress=False).epochs == [1, 2, 3, 4]


def test_a_callback_that_fails():
    """The ensemble is as it is after that epoch, its history and its state too."""
    ensemble = cnn.Ensemble(layers(), 2, cnn.SGD(0.01), seed=0)
    for call, text in (
        (lambda: ensemble.fit(*data()), "a callback of its fit has called fit again"),
        (lambda: setattr(ensemble, "optimizer", cnn.SGD()), "optimizer: it cannot be set while fit runs"),
        (lambda: setattr(ensemble.optimizer, "schedule", None), "optimizer: its schedule cannot be set, or turned"),
        (lambda: setattr(ensemble.optimizer, "momentum", 0.9), "optimizer: its momentum cannot be set, or turned on"),
    ):
        with pytest.raises(RuntimeError, match=text):
            ensemble.fit(*data(), epochs=5, callbacks=[cnn.LambdaCallback(on_epoch_end=lambda *_: call())])  # noqa: B023
        assert ensemble.history.epochs == [1]
        assert [member._core.state.epoch for member in ensemble._members] == [1, 1]


@pytest.mark.parametrize("sparse", [False, True])
def test_a_run_is_continued(sparse):
    """`initial_epoch`: the rows' orders, the rates and the history of one run, from a file saved by a callback too."""
    x, y = data()
    if sparse:
        x = pytest.importorskip("scipy.sparse").csr_matrix(x)
    optimizer = cnn.Adam(np.array([0.01, 0.1]), schedule=cnn.StepLR(2))
    whole, parts = (cnn.Ensemble(layers(), 2, optimizer, "float64", 5) for _ in range(2))
    expected = whole.fit(x, y, epochs=5, batch_size=4, progress=False)
    parts.fit(x, y, epochs=2, batch_size=4, progress=False)
    history = parts.fit(x, y, epochs=5, batch_size=4, initial_epoch=2, progress=False)
    np.testing.assert_array_equal(parts.parameters, whole.parameters)
    assert history.epochs == [1, 2, 3, 4, 5]
    assert history.last_epoch.tolist() == [5, 5]
    for name in expected:
        np.testing.assert_array_equal(history[name], expected[name])


def test_saved_by_a_callback(tmp_path):
    x, y = data()
    path = tmp_path / "ensemble.safetensors"
    ensemble = cnn.Ensemble(layers(), 2, cnn.Adam(0.01), "float64", 5)

    def save(epoch, logs):
        if epoch == 2:
            ensemble.save(path, training_state=True)

    ensemble.fit(x, y, epochs=4, callbacks=[cnn.LambdaCallback(on_epoch_end=save)], progress=False)
    loaded = cnn.Ensemble.load(path)
    history = loaded.fit(x, y, epochs=4, initial_epoch=2, progress=False)
    np.testing.assert_array_equal(loaded.parameters, ensemble.parameters)
    assert history.epochs == [3, 4]
    assert history.of(1).epochs == [3, 4]
    assert loaded.fit(x, y, epochs=4, initial_epoch=4, progress=False).epochs == [3, 4]
    np.testing.assert_array_equal(loaded.parameters, ensemble.parameters)


def test_csv_has_the_means(tmp_path):
    x, y = data()
    x = np.stack([x, x, x])
    x[1, 0, 0] = np.nan
    ensemble = cnn.Ensemble(layers(), 3, cnn.SGD(0.01), seed=0)
    logger = cnn.CSVLogger(tmp_path / "log.csv")
    with pytest.warns(RuntimeWarning, match="1 of 3 members diverged") as found:
        ensemble.fit(x, y, epochs=2, callbacks=[logger], progress=False)
    assert found[0].filename == __file__
    with pytest.warns(RuntimeWarning, match="1 of 3 members diverged"):
        history = ensemble.fit(x, y, epochs=3, initial_epoch=2, callbacks=[logger], progress=False)
    lines = (tmp_path / "log.csv").read_text().split()
    assert lines == ["epoch,loss"] + [
        f"{1 + i},{float(np.mean(loss[[0, 2]]))!r}" for i, loss in enumerate(history["loss"])
    ]


def test_callbacks_that_are_refused():
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 2, cnn.SGD(0.01), seed=0)
    before = ensemble.parameters
    for callback, text in (
        (cnn.EarlyStopping("loss"), r"pass early_stopping=EarlyStopping\(monitor='loss'\)"),
        (cnn.ModelCheckpoint("unused"), r"ensemble\.save\(path, training_state=True\)"),
        (cnn.LambdaCallback(on_batch_end=print), "LambdaCallback has on_batch_end, .* expected on_epoch_end"),
        (cnn.CSVLogger, "pass an object, not the class"),
    ):
        with pytest.raises(TypeError, match=text):
            ensemble.fit(x, y, callbacks=[callback])
    ensemble.optimizer = cnn.LBFGS()
    with pytest.raises(
        ValueError, match=r"an optimizer of the whole data .* the fit of each member, ensemble\[i\].fit"
    ):
        ensemble.fit(x, y, callbacks=[Recorder()])
    np.testing.assert_array_equal(ensemble.parameters, before)
    with pytest.raises(TypeError, match=r"^fit: unknown argument 'callback': did you mean callbacks\?"):
        ensemble.fit(x, y, callback=[])
    with pytest.raises(TypeError, match=r"^fit: unknown argument 'patience': did you mean early_stopping\?"):
        ensemble.fit(x, y, patience=3)
    with pytest.raises(TypeError, match=r"^fit_many: unknown argument 'n_jobs': did you mean threads\?"):
        cnn.fit_many([ensemble[0]], data=[(x, y)], n_jobs=2)
    cnn.fit_many(models=[ensemble[0]], data=[(x, y)], progress=False)


# all else -------------------------------------------------------------------------------------------------------------


def test_hyper_parameters_as_arrays():
    x, y = data()
    lr, beta, decay = np.array([0.1, 0.01]), np.array([0.8, 0.9]), np.array([0.0, 0.1])
    ensemble = cnn.Ensemble(layers(), 2, cnn.AdamW(lr, betas=(beta, 0.99), weight_decay=decay), "float64", 5)
    ensemble.fit(x, y, epochs=2, batch_size=4, progress=False)
    for i in range(2):
        optimizer = cnn.AdamW(lr[i], betas=(beta[i], 0.99), weight_decay=decay[i])
        assert_same(ensemble[i], alone(layers, i, x, y, optimizer=optimizer, epochs=2, batch_size=4)[0])


def members_of(ensemble):
    return [member.optimizer for member in ensemble._members]


def test_the_optimizer_is_that_of_the_members(path):
    """What is read and set on it is theirs, after every way to get an ensemble."""
    made = cnn.Ensemble(layers(), 4, cnn.AdamW(lr=np.array([0.1, 0.2, 0.3, 0.4]), betas=(0.9, 0.99)), seed=0)
    made.optimizer = made.optimizer  # as it is
    made.save(path)
    models = list(made)
    for ensemble in (made, made[:], cnn.Ensemble.of(models), cnn.Ensemble.load(path), copy.deepcopy(made)):
        optimizer = ensemble.optimizer
        assert optimizer.lr.tolist() == [0.1, 0.2, 0.3, 0.4]
        text = "AdamW(lr=array([0.1, 0.2, 0.3, 0.4]), betas=(0.9, 0.99)) of 4 members"
        assert repr(optimizer) == repr(pickle.loads(pickle.dumps(optimizer))) == text
        assert (optimizer.weight_decay, optimizer.betas, optimizer.clip_norm) == (0.01, (0.9, 0.99), None)
        optimizer.lr = 0.5
        optimizer.betas = (np.array([0.8, 0.8, 0.9, 0.9]), 0.95)
        optimizer.clip_norm = np.array([1.0, None, 2.0, 3.0])
        optimizer.schedule = cnn.StepLR(3)
        optimizer.schedule.gamma = np.array([0.1, 0.2, 0.3, 0.4])
        own = members_of(ensemble)
        assert [one.lr for one in own] == [0.5] * 4
        assert [one.betas for one in own] == [(0.8, 0.95)] * 2 + [(0.9, 0.95)] * 2
        assert [one.clip_norm for one in own] == optimizer.clip_norm.tolist() == [1.0, None, 2.0, 3.0]
        assert [one.schedule.gamma for one in own] == optimizer.schedule.gamma.tolist() == [0.1, 0.2, 0.3, 0.4]
        assert optimizer.schedule.step_size == 3
        with pytest.raises(ValueError, match="read-only"):
            optimizer.clip_norm[0] = 5.0
    assert [model.optimizer.lr for model in models] == [0.1, 0.2, 0.3, 0.4]
    for name, value, error, text in (
        ("lr", np.array([1.0, 2.0, 3.0, -1.0]), ValueError, "lr: expected a finite number of at least 0"),
        ("lr", np.ones(3), ValueError, "lr: expected one value, or an array of 4, one a member, got 3"),
        ("learning_rate", 1.0, AttributeError, "did you mean lr"),
        ("schedule", np.array([cnn.StepLR(1), None, None, 3], object), TypeError, "expected a schedule"),
    ):
        before = repr(optimizer), list(map(repr, own))
        with pytest.raises(error, match=text):
            setattr(optimizer, name, value)
        assert (repr(optimizer), list(map(repr, own))) == before
    with pytest.raises(AttributeError, match="ManyOptimizers has no attribute 'get_config'"):
        optimizer.get_config()
    made.optimizer = cnn.SGD(np.array([0.1, 0.2, 0.3, 0.4]), groups=[{"layers": [0], "lr": 0.5}])
    made.optimizer.groups[0]["lr"] = np.array([0.0, 0.0, 1.0, 1.0])
    assert [one.groups[0]["lr"] for one in members_of(made)] == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="lr: expected a finite"):
        made.optimizer.groups[0]["lr"] = np.array([0.0, 0.0, 1.0, -1.0])
    assert made.optimizer.groups[0]["lr"].tolist() == [0, 0, 1, 1]
    mixed = cnn.Ensemble.of([cnn.Sequential(layers(), one()) for one in (cnn.Adam, cnn.SGD)]).optimizer
    assert repr(mixed) == "[Adam(lr=0.001), SGD(lr=0.001)] of 2 members"
    mixed.lr = 0.25
    assert mixed.lr == 0.25


@pytest.mark.parametrize("lanes", [False, True])
@pytest.mark.parametrize("schedule", [None, cnn.ExponentialLR(0.9), cnn.CosineAnnealingLR(30, interval="step")])
def test_rates_set_by_a_callback(monkeypatch, lanes, schedule):
    """The next step uses them."""
    monkeypatch.setattr("cnn.training.many.LANES", lanes)
    x, y = data()
    made = cnn.SGD(0.1, momentum=0.9, schedule=schedule)
    ensemble = cnn.Ensemble(layers(), 4, made, "float64", 5)
    rates = {1: np.array([0.0, 0.01, 0.2, 0.1]), 3: np.full(4, 0.05)}

    def change(one, i):
        def call(epoch, logs):
            if epoch in rates:
                one.optimizer.lr = rates[epoch][i]
                one.optimizer.momentum = 0.5
                one.optimizer.clip_norm = 0.1 if epoch == 3 else None

        return [cnn.LambdaCallback(on_epoch_end=call)]

    ensemble.fit(x, y, epochs=5, batch_size=4, callbacks=change(ensemble, slice(None)), progress=False)
    for i, member in enumerate(ensemble):
        model = cnn.Sequential(layers(), copy.deepcopy(made), "float64", 5 + i)
        model.fit(x, y, epochs=5, batch_size=4, callbacks=change(model, i), progress=False)
        np.testing.assert_allclose(member.parameters, model.parameters, rtol=1e-9 if lanes else 0)


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_steps(name):
    x, y = data(dtype=name)
    ensemble = cnn.Ensemble(layers(), 3, cnn.Adam(0.01, schedule=cnn.CosineAnnealingLR(9, interval="step")), name, 5)
    models = list(ensemble)
    for _ in range(3):
        losses = ensemble.train_step(x, y)
        np.testing.assert_allclose(losses, [m.train_step(x, y) for m in models], rtol=1e-12)
    for i, model in enumerate(models):
        assert_same(ensemble[i], model)
    with pytest.raises(ValueError, match="at least one row"):
        ensemble.train_step(x[:0], y[:0])


def test_predictions():
    x, y = data(50)
    ensemble = cnn.Ensemble(layers(), 4, cnn.SGD(), "float64", 5)
    outputs = ensemble.predict(x)
    for i, model in enumerate(ensemble):
        np.testing.assert_array_equal(outputs[i], model.predict(x))
        assert ensemble.evaluate(x, y)["loss"][i] == model.evaluate(x, y)["loss"]
        assert ensemble.evaluate(x, y, metrics=["r2"])["r2"][i] == model.evaluate(x, y, metrics=["r2"])["r2"]
    assert ensemble.predict(x[:0]).shape == (4, 0, 2)


def test_leading_axes():
    """As for a model alone, after the axis of the members; x of one more axis than that is for each of them."""
    rng = np.random.default_rng(0)
    ensemble = cnn.Ensemble(layers(), 3, cnn.SGD(0.1), "float64", 5)
    for shape, own in (((), False), ((4,), False), ((0,), False), ((3, 4), True), ((3, 1), True), ((3, 2, 4), True)):
        x = rng.standard_normal((*shape, WIDTH))
        xs = x if own else [x] * 3
        expected = np.stack([model.predict(a) for model, a in zip(ensemble, xs, strict=True)])
        for given in (x, x.tolist()) if x.size else (x,):
            np.testing.assert_array_equal(ensemble.predict(given), expected)
        np.testing.assert_allclose(ensemble.predict(x, "mean"), expected.mean(axis=0), rtol=1e-14)
        assert ensemble.predict(x, "quantiles", (0.1, 0.9)).shape == (2, *expected.shape[1:])
        if x.size:
            scores = ensemble.evaluate(x, expected if own else expected[0])["loss"]
            models = zip(ensemble, xs, expected if own else [expected[0]] * 3, strict=True)
            np.testing.assert_array_equal(scores, [model.evaluate(a, t)["loss"] for model, a, t in models])
    parts = [rng.standard_normal((*shape, WIDTH)) for shape in ((6,), (2, 3), (0, 2))]
    assert [out.shape for out in ensemble.predict(parts)] == [(6, 2), (2, 3, 2), (0, 2, 2)]


def test_reductions(monkeypatch):
    x, _ = data(50)
    ensemble = cnn.Ensemble(layers(), 4, None, "float64", 5)
    outputs = ensemble.predict(x)
    monkeypatch.setattr("cnn.training.many.BLOCK", 4 * 2 * 8 * 7)  # 7 rows at a time
    np.testing.assert_allclose(ensemble.predict(x, "mean"), outputs.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(ensemble.predict(x, "std"), outputs.std(axis=0), rtol=1e-12)
    quantiles = ensemble.predict(x, "quantiles", (0.1, 0.9))
    np.testing.assert_allclose(quantiles, np.quantile(outputs, (0.1, 0.9), axis=0), rtol=1e-14)
    with pytest.raises(ValueError, match="reduce: expected one of 'mean', 'std', 'quantiles', got 'max'"):
        ensemble.predict(x, "max")


def test_probabilities():
    x, _ = data()
    for out, loss in ((3, cnn.CrossEntropyLoss()), (1, cnn.BCEWithLogitsLoss()), (3, cnn.NLLLoss())):
        tail = [cnn.Linear(5, 3), cnn.LogSoftmax()] if isinstance(loss, cnn.NLLLoss) else [cnn.Linear(5, out)]
        ensemble = cnn.Ensemble([cnn.Linear(WIDTH, 5), cnn.Tanh(), *tail, loss], 3, None, "float64", 5)
        expected = np.stack([model.predict_proba(x) for model in ensemble])
        np.testing.assert_array_equal(ensemble.predict_proba(x), expected)
        np.testing.assert_allclose(ensemble.predict_proba(x, "mean"), expected.mean(axis=0), rtol=1e-14)
        assert [p.shape for p in ensemble.predict_proba([x[:1], x, x[0]])] == [(1, out), (ROWS, out), (out,)]
    with pytest.raises(ValueError, match="predict_proba"):
        cnn.Ensemble(layers(), 3).predict_proba(x)


def test_what_a_single_model_has(path, capsys):
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 2, cnn.SGD(0.1, ema_decay=0.5), "float64", 5)
    ensemble.fit(x, y, progress=False)
    models, before = list(ensemble), ensemble.parameters
    with ensemble.using_average() as same:
        assert same is ensemble
        np.testing.assert_array_equal(ensemble.parameters, [model.averaged_parameters for model in models])
    np.testing.assert_array_equal(ensemble.parameters, before)
    other = ensemble.copy()
    other.loss = cnn.L1Loss()
    assert (repr(ensemble.loss), repr(other.loss)) == ("MSELoss()", "L1Loss()")
    models[1].loss = cnn.L1Loss()
    assert other.evaluate(x, y)["loss"][1] == models[1].evaluate(x, y)["loss"]
    assert other.train_step(x, y)[1] == models[1].train_step(x, y)
    assert_same(other[1], models[1])
    other.loss = lambda outputs, targets: (float(np.mean(outputs)), np.full(outputs.shape, 1 / outputs.size))
    with pytest.raises(TypeError):
        other.save(path)
    other.save(path, loss=False)
    assert cnn.Ensemble.load(path).loss is None
    assert repr(cnn.Ensemble.load(path, loss=cnn.L1Loss())[1].loss) == "L1Loss()"
    assert str(other.summary()) in capsys.readouterr().out


def test_derivatives():
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 3, None, "float64", 5)
    rng = np.random.default_rng(1)
    v, p = rng.standard_normal((3, ROWS, 2)), rng.standard_normal((3, ensemble.n_parameters))
    losses, gradients = ensemble.loss_and_grad(x, y)
    for i, model in enumerate(ensemble):
        loss, gradient = model.loss_and_grad(x, y)
        assert losses[i] == loss
        np.testing.assert_array_equal(gradients[i], gradient)
        np.testing.assert_array_equal(ensemble.vjp(x, v)[i], model.vjp(x, v[i]))
        np.testing.assert_array_equal(ensemble.jvp(x, x)[i], model.jvp(x, x))
        np.testing.assert_array_equal(ensemble.jvp(x, parameters=p)[i], model.jvp(x, parameters=p[i]))
        np.testing.assert_array_equal(ensemble.hvp(x, y, p)[i], model.hvp(x, y, p[i]))
        np.testing.assert_array_equal(ensemble.hvp(x, y, p[0])[i], model.hvp(x, y, p[0]))


def test_of_models():
    x, y = data()
    models = [cnn.Sequential(layers(), cnn.SGD(0.1 * i, momentum=0.9), "float64", i) for i in range(3)]
    for model in models:
        model.fit(x, y, progress=False)
    ensemble = cnn.Ensemble.of(models)
    assert len(ensemble) == 3
    ensemble.fit(x, y, epochs=2, progress=False)
    for member, model in zip(ensemble, models, strict=True):
        assert not np.array_equal(member.parameters, model.parameters) or model is models[0]
        model.fit(x, y, epochs=2, progress=False)
        assert_same(member, model)
    with pytest.raises(ValueError, match=r"models\[1\]: expected the layers and the loss of models\[0\]"):
        cnn.Ensemble.of([models[0], cnn.Sequential(layers(out=1), cnn.SGD(), "float64")])
    with pytest.raises(ValueError, match="optimizers in all models, or in none"):
        cnn.Ensemble.of([models[0], cnn.Sequential(layers(), dtype="float64")])
    with pytest.raises(TypeError, match="expected dtype float64, got float32"):
        cnn.Ensemble.of([models[0], cnn.Sequential(layers(), cnn.SGD())])


def test_parameters_and_state():
    ensemble = cnn.Ensemble(layers(cnn.BatchNorm1d(5)), 3, None, "float64", 5)
    state = ensemble.state_dict()
    assert state["0.weight"].shape == (3, WIDTH, 5)
    assert state["2.running_mean"].shape == (3, 5)
    other = cnn.Ensemble(layers(cnn.BatchNorm1d(5)), 3, None, "float64", 9)
    other.load_weights(state)
    np.testing.assert_array_equal(other.parameters, ensemble.parameters)
    before = other.parameters
    bad = dict(state, **{"0.bias": np.zeros((3, 4))})
    with pytest.raises(ValueError, match=r"0.bias: expected shape"):
        other.load_weights(bad)
    with pytest.raises(ValueError, match=r"0.bias: expected a first axis of 3 members"):
        other.load_weights(state | {"0.bias": np.zeros((2, 5))})
    wrong = np.full((3, 2, 5), 1.0)
    wrong[2, 0, 0] = 1e300
    small = cnn.Ensemble([cnn.Linear(2, 5), cnn.BatchNorm1d(5)], 3, seed=0)
    kept, now = small.parameters, small.state_dict()
    for change, error, text in (
        (lambda: setattr(small, "parameters", kept + np.array([[0], [0], [1e300]])), ValueError, r"parameters\[2, 0\]"),
        (lambda: setattr(small, "parameters", kept.astype(object)), TypeError, "parameters: expected real numbers"),
        (lambda: small.load_weights(now | {"0.weight": wrong}), ValueError, r"0.weight\[0, 0\] is 1e\+300, too large"),
        (lambda: small.load_weights(now | {"0.bias": "abc"}), ValueError, "0.bias: expected a first axis of 3"),
        (lambda: small.load_weights(now | {"1.num_batches_tracked": [1, 2, 2**63]}), ValueError, r"at most 2\*\*63"),
        (lambda: small.load_weights(list(now)), TypeError, "expected arrays by name"),
        (lambda: small.load_weights(kept), TypeError, "expected arrays by name"),
    ):
        with pytest.raises(error, match=text):
            change()
        for name, array in small.state_dict().items():
            np.testing.assert_array_equal(array, now[name])
    np.testing.assert_array_equal(other.parameters, before)
    other.parameters = before + 1
    np.testing.assert_array_equal(other[2].parameters, before[2] + 1)
    with pytest.raises(ValueError, match="parameters: expected shape"):
        other.parameters = before[:2]
    copy = ensemble[0]
    copy.parameters = copy.parameters * 0
    assert ensemble[0].parameters.any()
    with pytest.raises(IndexError, match=r"^ensemble\[3\]: expected a member from -3 to 2"):
        ensemble[3]


@pytest.mark.parametrize(
    "optimizer", [cnn.Adam(0.01), cnn.SGD(np.array([0.1, 0.2]), momentum=0.5)], ids=["one", "many"]
)
def test_files(path, optimizer):
    x, y = data()
    make = lambda: layers(cnn.BatchNorm1d(5), cnn.Dropout(0.2))  # noqa: E731
    ensemble = cnn.Ensemble(make(), 2, optimizer, "float64", 5)
    ensemble.fit(x, y, progress=False)
    ensemble.save(path, training_state=True)
    other = cnn.Ensemble.load(path)
    for a in (ensemble, other):
        a.fit(x, y, epochs=2, batch_size=7, progress=False)
    for mine, theirs in zip(ensemble, other, strict=True):
        assert_same(mine, theirs)
    ensemble.save(path)
    np.testing.assert_array_equal(cnn.Ensemble.load(path).parameters, ensemble.parameters)
    with pytest.raises(ValueError, match=r"cnn.Ensemble.load reads it"):
        cnn.load(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its digest"):
        cnn.Ensemble.load(path)
    ensemble[0].save(path)
    with pytest.raises(ValueError, match=r"cnn.load reads it"):
        cnn.Ensemble.load(path)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda ensemble: pickle.loads(pickle.dumps(ensemble))])
def test_copies(way):
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 2, cnn.Adam(np.array([0.01, 0.02])), "float64", 5)
    ensemble.train_step(x, y)
    other = way(ensemble)
    for a in (ensemble, other):
        a.fit(x, y, epochs=2, progress=False)
        a.train_step(x, y)
    for mine, theirs in zip(ensemble, other, strict=True):
        assert_same(mine, theirs)


def test_progress(capsys):
    ensemble = cnn.Ensemble(layers(), 2, cnn.SGD(), seed=0)
    ensemble.fit(*data(), epochs=2, verbose=2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 1/2  loss ")


def test_sparse_and_whole_data():
    """They train one after the other, as each does alone."""
    sparse = pytest.importorskip("scipy.sparse")
    x, y = data()
    x[x < 0.5] = 0
    for optimizer, rows in ((cnn.SGD(0.1), sparse.csr_matrix(x)), (cnn.LBFGS(), x)):
        ensemble = cnn.Ensemble(layers(), 2, optimizer, "float64", 5)
        history = ensemble.fit(rows, y, epochs=3, progress=False)
        model, found = alone(layers, 1, rows, y, optimizer=optimizer, epochs=3)
        np.testing.assert_array_equal(ensemble[1].parameters, model.parameters)
        assert history.of(1) == found
        assert ensemble.train_step(rows, y)[1] == model.train_step(rows, y)
        assert ensemble.evaluate(rows, y)["loss"][1] == model.evaluate(rows, y)["loss"]
        np.testing.assert_array_equal(ensemble.predict(rows)[1], model.predict(rows))
    parts = [sparse.csr_matrix(x), sparse.csr_matrix(x[:9])]
    ensemble = cnn.Ensemble(layers(), 2, cnn.SGD(0.1), "float64", 5)
    models = list(ensemble)
    ensemble.fit(parts, [y, y[:9]], progress=False)
    for i, model in enumerate(models):
        model.fit(parts[i], y[: len(y) if i == 0 else 9], progress=False)
        np.testing.assert_array_equal(ensemble[i].parameters, model.parameters)
        np.testing.assert_array_equal(ensemble.predict(parts)[i], model.predict(parts[i]))
    assert ensemble.predict(parts[:1] * 2, "mean").shape == (ROWS, 2)
