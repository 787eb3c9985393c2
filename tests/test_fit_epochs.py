"""What an epoch of `fit` takes and holds out: splits, steps_per_epoch, drop_last, validation_freq, batch_size=None."""

import itertools
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from networks import squared

import cnn

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4)).astype(np.float32)
LABELS = RNG.permutation(np.repeat([0, 1, 2], [30, 20, 10]))


def model_of(loss=None, outputs=3, **settings):
    layers = [cnn.Linear(4, 8), cnn.Tanh(), cnn.Linear(8, outputs), loss or cnn.CrossEntropyLoss()]
    return cnn.Sequential(layers, cnn.SGD(lr=0.1, momentum=0.9), **{"seed": 3, "dtype": "float64", **settings})


def rows_of(n, split, **settings):
    """How many rows fit trains on, and validates."""
    seen = []

    def count(targets, outputs):
        seen.append(len(targets))
        return 0.0

    x = np.zeros((n, 4), np.float32)
    model_of(cnn.MSELoss(), 1).fit(x, x[:, 0], validation_split=split, metrics=[count], **settings)
    return seen


def test_rows_of_a_split():
    """Exact for every n and every decimal fraction: n * (1 - split) rows to train on, rounded down."""
    for n, part in itertools.product((2, 3, 7, 10, 20, 30, 99, 100, 1000), range(1, 100)):
        trained = int(n * (1 - Decimal(part) / 100))
        if not 0 < trained < n:
            continue
        for split in (part / 100, np.float32(part / 100), np.float64(part / 100)):
            assert rows_of(n, split) == [trained, n - trained], (n, split)
    assert rows_of(10, 0.8) == [2, 8]
    assert rows_of(10, 0.9) == [1, 9]
    assert rows_of(10, 0.1 + 0.2) == [7, 3]
    assert rows_of(9, 1 / 3) == [6, 3]


def test_sorted_classes_are_warned_of():
    one_hot = np.eye(3)
    ordered = np.sort(LABELS)
    cases = [(y, model_of()) for y in (ordered, ordered[::-1], one_hot[ordered])]
    for y, model in [*cases, (np.minimum(ordered, 1.0), model_of(cnn.BCEWithLogitsLoss(), 1))]:
        with pytest.warns(
            UserWarning, match=r"^validation_split: takes the last rows, but y is sorted by class"
        ) as seen:
            model.fit(X, y, validation_split=0.2)
        assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_of().fit(X, LABELS, validation_split=0.2)
        model_of().fit(X, np.zeros(60, int), validation_split=0.2)
        model_of().fit(X, np.sort(LABELS), validation_split=0.2, stratify=True)
        model_of(cnn.MSELoss(), 1).fit(X, np.linspace(0, 1, 60), validation_split=0.2)


@pytest.mark.parametrize("kind", ["labels", "one-hot", "yes or no"])
@pytest.mark.parametrize("split", [0.1, 0.2, 0.5])
def test_stratified_splits(kind, split):
    """The last rows of each class, the others in their order; in all as many rows as without."""
    labels = LABELS if kind != "yes or no" else (LABELS == 0).astype(int)
    y = {"labels": labels, "one-hot": np.eye(3)[labels], "yes or no": labels.astype(float)}[kind]
    model = model_of() if kind != "yes or no" else model_of(cnn.BCEWithLogitsLoss(), 1)
    held = np.zeros(60, bool)
    for c in set(labels):
        mine = np.flatnonzero(labels == c)
        held[mine[len(mine) - int(Fraction(str(split)) * len(mine)) :]] = True
    assert held.sum() == 60 * split  # here nothing is rounded
    weights = np.linspace(1, 2, 60)
    history = model.fit(X, y, sample_weight=weights, validation_split=split, stratify=True, epochs=2, batch_size=7)
    other = model_of() if kind != "yes or no" else model_of(cnn.BCEWithLogitsLoss(), 1)
    data = (X[held], y[held], weights[held])
    assert history == other.fit(
        X[~held], y[~held], sample_weight=weights[~held], validation_data=data, epochs=2, batch_size=7
    )


def test_stratified_splits_that_are_rounded():
    """Two rows of three classes of five rows each: the total is that of a plain split, no class gives two."""
    y, seen = np.tile([0, 1, 2], 5), []

    def count(targets, outputs):
        seen.append(np.bincount(targets, minlength=3).tolist())
        return 0.0

    model_of().fit(X[:15], y, validation_split=0.1, stratify=True, metrics=[count])
    train, held = seen
    assert sum(held) == 2
    assert max(held) == 1
    assert np.add(train, held).tolist() == [5, 5, 5]


def test_stratify_that_is_refused():
    with pytest.raises(ValueError, match=r"^stratify: expected targets that are classes"):
        model_of(cnn.MSELoss(), 1).fit(X, X[:, 0], validation_split=0.5, stratify=True)
    with pytest.raises(ValueError, match=r"^stratify: expected arrays in memory"):
        model_of().fit(cnn.Blocks(X, LABELS), validation_split=0.5, stratify=True)


@pytest.mark.parametrize("loss", ["native", "own"])
def test_the_whole_data_as_one_batch(loss):
    y = X[:, :3].astype(np.float64)
    histories = [
        model_of(cnn.MSELoss() if loss == "native" else squared).fit(X, y, epochs=3, batch_size=size)
        for size in (None, 60)
    ]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_drop_last(shuffle, accumulation_steps):
    """As if the rows that are left over were not there."""
    settings = {"epochs": 3, "batch_size": 16, "shuffle": shuffle, "accumulation_steps": accumulation_steps}
    seen = []
    keep = cnn.LambdaCallback(on_batch_end=lambda batch, logs: seen.append(logs["rows"]))
    model = model_of()
    model.fit(X, LABELS, drop_last=True, callbacks=[keep], metrics=["f1"], **settings)
    assert not any(rows % 16 for rows in seen)
    assert model._core.program.steps == 3 * -(-3 // accumulation_steps)
    if not shuffle:
        other = model_of()
        other.fit(X[:48], LABELS[:48], metrics=["f1"], **settings)
        assert model.history == other.history
        np.testing.assert_array_equal(model.parameters, other.parameters)


def test_drop_last_lets_batch_norm_train():
    model = cnn.Sequential([cnn.Linear(4, 3), cnn.BatchNorm1d(3), cnn.CrossEntropyLoss()], cnn.SGD())
    with pytest.raises(ValueError, match="would have one row"):
        model.fit(X[:33], LABELS[:33], batch_size=16)
    model.fit(X[:33], LABELS[:33], batch_size=16, drop_last=True)


def test_drop_last_of_one_batch():
    """All rows in one batch: none is smaller."""
    for optimizer in (cnn.SGD, cnn.LBFGS):
        one, two = (cnn.Sequential([cnn.Linear(4, 3), cnn.CrossEntropyLoss()], optimizer(), seed=0) for _ in range(2))
        assert one.fit(X, LABELS, batch_size=None, drop_last=True) == two.fit(X, LABELS, batch_size=None)
        cnn.fit_many([two], [(X, LABELS)], batch_size=None, drop_last=True)


@pytest.mark.parametrize("source", ["arrays", "blocks", "list"])
def test_steps_per_epoch_of_what_has_an_end(source):
    model = model_of()
    batches = [(X[i : i + 8], LABELS[i : i + 8]) for i in range(0, 60, 8)]
    data = {"arrays": (X, LABELS), "blocks": (cnn.Blocks(X, LABELS, rows=16),), "list": (batches,)}[source]
    rows = []
    keep = cnn.LambdaCallback(on_batch_end=lambda batch, logs: rows.append((batch, logs["rows"])))
    model.fit(*data, epochs=2, batch_size=8, steps_per_epoch=3, shuffle=False, callbacks=[keep])
    assert rows == [(i, 8) for i in range(3)] * 2
    other = model_of()
    other.fit(X[:24], LABELS[:24], epochs=2, batch_size=8, shuffle=False)
    np.testing.assert_array_equal(model.parameters, other.parameters)
    full = model_of().fit(*data, epochs=1, batch_size=8, steps_per_epoch=99, shuffle=False)
    assert full == model_of().fit(X, LABELS, epochs=1, batch_size=8, shuffle=False)


class Again:
    """Batches that can be gone over again."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("kind", ["endless", "again"])
def test_steps_per_epoch_of_an_iterable(kind):
    """The next epoch goes on where the last one ended."""
    batches = [(X[i : i + 10], LABELS[i : i + 10]) for i in range(0, 60, 10)]
    model, other = model_of(), model_of()
    data = itertools.cycle(batches) if kind == "endless" else Again(batches)
    model.fit(data, epochs=3, steps_per_epoch=4)
    for i in range(3):
        other.fit([batches[(4 * i + j) % 6] for j in range(4)], shuffle=False)
    np.testing.assert_array_equal(model.parameters, other.parameters)
    with pytest.raises(ValueError, match=r"^x: ran out of batches in an epoch of 4 steps: lower steps_per_epoch"):
        model_of().fit(iter(batches), epochs=2, steps_per_epoch=4)
    with pytest.raises(ValueError, match=r"^x: list_iterator is an iterator, .* or steps_per_epoch$"):
        model_of().fit(iter(batches), epochs=2)


def test_validation_freq():
    """NaN in the history where there was none; early stopping and schedules do not count such epochs."""
    model = model_of()
    model.optimizer = cnn.SGD(lr=1e-9, schedule=cnn.ReduceLROnPlateau(patience=1, monitor="val_loss"))
    logs = []
    keep = cnn.LambdaCallback(on_epoch_end=lambda epoch, one: logs.append(one))
    stopper = cnn.EarlyStopping(patience=2, min_delta=1)
    history = model.fit(
        X, LABELS, epochs=20, validation_data=(X, LABELS), validation_freq=3, callbacks=[keep], early_stopping=stopper
    )
    assert history.epochs == list(range(1, 10))
    assert [i for i, value in enumerate(history["val_loss"], 1) if not np.isnan(value)] == [3, 6, 9]
    assert [i for i, one in enumerate(logs, 1) if "val_loss" in one] == [3, 6, 9]
    assert stopper.best_epoch == 3
    assert model.optimizer.schedule.num_bad_epochs <= 2
    assert history.best_epoch in (3, 6, 9)


# nothing counts -----------------------------------------------------------------------------------

NOTHING = "no row counts: all weights are 0, or all targets are ignored"
WAYS = {
    "weights": (lambda: model_of(), LABELS, np.zeros(60)),
    "ignored": (lambda: model_of(cnn.CrossEntropyLoss(ignore_index=-1)), np.full(60, -1), None),
    "class weights": (lambda: model_of(cnn.CrossEntropyLoss(weight=[0.0, 1.0, 1.0])), np.zeros(60, int), None),
    "sum": (lambda: model_of(cnn.CrossEntropyLoss(ignore_index=-1, reduction="sum")), np.full(60, -1), None),
    "numbers": (lambda: model_of(cnn.MSELoss()), X[:, :3], np.zeros(60)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", ["arrays", "blocks", "batches"])
def test_nothing_counts(way, source):
    """NaN with a warning in evaluation, a ValueError in training, and the model is as it was."""
    make, y, w = WAYS[way]
    model = make()

    def data(pairs=False):
        if source == "arrays":
            return (X, y) if pairs else (X, y, w)
        if source == "blocks":
            return (cnn.Blocks(X, y, w),)
        return ([(X[:40], y[:40], w if w is None else w[:40]), (X[40:], y[40:], w if w is None else w[40:])],)

    with pytest.warns(RuntimeWarning, match=f"^x: {NOTHING}: the loss is NaN"):
        assert np.isnan(model.evaluate(*data())["loss"])
    before = model.parameters
    with pytest.raises(ValueError, match=f"^x: {NOTHING}|^sample_weight: expected at least one weight above 0"):
        model.fit(*data(source == "arrays"), **({"sample_weight": w} if source == "arrays" else {}))
    np.testing.assert_array_equal(model.parameters, before)
    good = model_of(cnn.MSELoss()) if way == "numbers" else make()
    target = X[:, :3] if way == "numbers" else np.where(LABELS == 0, 1, LABELS)
    with pytest.warns(RuntimeWarning, match=NOTHING):
        history = good.fit(X, target, validation_data=data() if source == "arrays" else data()[0])
    assert np.isnan(history["val_loss"][0])
    assert np.isfinite(history["loss"][0])


@pytest.mark.parametrize("way", WAYS)
def test_nothing_counts_in_a_batch(way):
    """The same in every way to train on one batch; a pending backward stays."""
    make, y, w = WAYS[way]
    model = make()
    outputs = model(X)
    before, steps = model.parameters, model._core.program.steps
    calls = [lambda: model.train_step(X, y, w)]
    if w is None:
        calls += [lambda: model(X, y), lambda: model.loss_and_grad(X, y)]
    for call in calls:
        with pytest.raises(ValueError, match=f"^x: {NOTHING}$"):
            call()
    np.testing.assert_array_equal(model.parameters, before)
    assert model._core.program.steps == steps
    model.backward(np.ones_like(outputs))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_named(bad):
    x, y = X.astype(np.float64), X[:, :3].astype(np.float64)
    bad_x, bad_y = x.copy(), y.copy()
    bad_x[50, 2], bad_y[50, 1] = np.nan, bad
    for data, name in (((bad_x, y), "x"), ((x, bad_y), "y"), ((bad_x, bad_y), "x and y")):
        with pytest.raises(cnn.DivergenceError, match=f"; {name} has NaN or infinity in this batch: fill or drop"):
            model_of(cnn.MSELoss()).fit(*data)
    for data, i in (((bad_x, y), 0), ((x, bad_y), 1)):
        with pytest.warns(RuntimeWarning, match=rf"^validation_data\[{i}\] has NaN or infinity: the loss is (nan|inf)"):
            model_of(cnn.MSELoss()).fit(x, y, validation_data=data)
        with pytest.warns(RuntimeWarning, match=rf"^{'xy'[i]} has NaN or infinity: the loss is (nan|inf)"):
            model_of(cnn.MSELoss()).evaluate(*data)


# tables of pandas and sparse matrices -------------------------------------------------------------


def frame(**columns):
    pandas = pytest.importorskip("pandas")
    made = {"a": [0.1, 0.2, 0.3], "b": [1, 2, 3], "c": [True, False, True], "d": [1.0, 2.0, 3.0]} | columns
    return pandas.DataFrame({name: column(pandas) if callable(column) else column for name, column in made.items()})


def test_tables():
    x = frame(b=lambda pandas: pandas.array([1, 2, 3], "Int64"), c=lambda pandas: pandas.array([1, 0, 1], "boolean"))
    y = x["b"]
    histories = [model_of(cnn.MSELoss(), 1).fit(a, b, epochs=3) for a, b in ((x, y), (frame(), frame()["b"]))]
    assert histories[0] == histories[1]
