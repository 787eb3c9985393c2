"""fit with sample weights and class weights, and arguments that are refused."""

import numpy as np
import pytest
from networks import assert_close, batch_for, chain, model_of
from sklearn.utils.class_weight import compute_class_weight

import cnn


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_whole_weights_are_repeated_rows(loss, shuffle):
    """In one batch: a row of weight 2 is two rows, one of weight 0 is none."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, loss, 6, np.float64)
    w = np.array([1, 2, 0, 1, 3, 1])
    rows = np.repeat(np.arange(6), w)
    weighted, repeated = (model_of(spec, loss, "float64", lr=0.1, momentum=0.5) for _ in range(2))
    history = weighted.fit(x, y, epochs=5, batch_size=6, sample_weight=w, shuffle=shuffle, validation_data=(x, y, w))
    expected = repeated.fit(x[rows], y[rows], epochs=5, batch_size=8, shuffle=False, validation_data=(x[rows], y[rows]))
    for name in ("loss", "val_loss"):
        assert_close(history[name], expected[name], 1e-12, name)
    assert_close(weighted.parameters, repeated.parameters, 1e-12)
    assert weighted.evaluate(x, y, w)["loss"] == pytest.approx(repeated.evaluate(x[rows], y[rows])["loss"], rel=1e-12)


def test_weights_in_batches_blocks_and_splits():
    """The same wherever they come from."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    w = np.random.default_rng(0).uniform(0.5, 2, 40)
    expected, *others = (model_of(spec, "mse", "float64", lr=0.1) for _ in range(4))
    history = expected.fit(
        x[:30],
        y[:30],
        batch_size=10,
        epochs=2,
        shuffle=False,
        sample_weight=w[:30],
        validation_data=(x[30:], y[30:], w[30:]),
    )
    batches = [(x[i : i + 10], y[i : i + 10], w[i : i + 10]) for i in range(0, 40, 10)]
    histories = [
        others[0].fit(x, y, batch_size=10, epochs=2, shuffle=False, sample_weight=w, validation_split=0.25),
        others[1].fit(batches[:3], epochs=2, shuffle=False, validation_data=batches[3:]),
        others[2].fit(cnn.Blocks(x, y, w, rows=10), batch_size=10, epochs=2, shuffle=False, validation_split=0.25),
    ]
    for model, other in zip(others, histories, strict=True):
        assert_close(other["loss"], history["loss"], 1e-12)
        assert_close(other["val_loss"], history["val_loss"], 1e-12)
        np.testing.assert_array_equal(model.parameters, expected.parameters)


@pytest.mark.parametrize("how", ["dict", "balanced"])
@pytest.mark.parametrize("source", ["array", "blocks", "batches"])
def test_class_weights(how, source):
    """As sample weights of the rows' classes; "balanced" by scikit-learn's formula."""
    spec = chain(5, 9, 3)
    x, _ = batch_for(spec, "cross_entropy", 40, np.float64)
    y = np.random.default_rng(0).choice(3, 40, p=[0.7, 0.2, 0.1])
    own = np.linspace(0.5, 1, 40)
    weights = {0: 0.5, 2: 3.0}
    by_class = np.array([0.5, 1.0, 3.0])
    if how == "balanced":
        by_class = compute_class_weight("balanced", classes=np.arange(3), y=y)
        weights = "balanced" if source != "batches" else dict(enumerate(by_class))
    expected, model = (model_of(spec, "cross_entropy", "float64", lr=0.1) for _ in range(2))
    settings = {"batch_size": 10, "epochs": 2, "shuffle": False, "validation_data": (x, y)}
    history = expected.fit(x, y, sample_weight=own * by_class[y], **settings)
    if source == "array":
        other = model.fit(x, y, sample_weight=own, class_weight=weights, **settings)
    elif source == "blocks":
        other = model.fit(cnn.Blocks(x, y, own, rows=10), class_weight=weights, **settings)
    else:
        batches = [(x[i : i + 10], y[i : i + 10], own[i : i + 10]) for i in range(0, 40, 10)]
        other = model.fit(batches, class_weight=weights, **settings)
    assert_close(other["loss"], history["loss"], 1e-12)
    assert_close(model.parameters, expected.parameters, 1e-12)
    assert other["accuracy"] == history["accuracy"]


def test_balanced_classes_that_do_not_occur():
    """Each class that is there has the same part, as in scikit-learn; one that is not has nothing to weigh."""
    spec = chain(5, 9, 4)
    x, _ = batch_for(spec, "cross_entropy", 12, np.float64)
    y = np.repeat([0, 3], [9, 3])
    one, other = (model_of(spec, "cross_entropy", "float64", lr=0.1) for _ in range(2))
    one.fit(x, y, class_weight="balanced", shuffle=False)
    other.fit(x, y, sample_weight=12 / (2 * np.where(y == 0, 9, 3)), shuffle=False)
    np.testing.assert_array_equal(one.parameters, other.parameters)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sample_weight": np.ones(5)}, ValueError, r"^sample_weight: expected shape \(6,\), .*got \(5,\)"),
        ({"sample_weight": -np.ones(6)}, ValueError, r"^sample_weight"),
        ({"sample_weight": np.full(6, np.nan)}, ValueError, r"^sample_weight"),
        ({"sample_weight": np.zeros(6)}, ValueError, r"^sample_weight: expected at least one weight above 0"),
        ({"sample_weight": ["a"] * 6}, TypeError, r"^sample_weight: expected real numbers, got dtype"),
        ({"class_weight": {3: 1.0}}, ValueError, r"^class_weight: unknown class 3: expected indices from 0 to 2"),
        ({"class_weight": {"a": 1.0}}, ValueError, r"^class_weight: unknown class 'a': expected indices from 0 to 2"),
        (
            {"class_weight": {1: -1.0}},
            ValueError,
            r"^class_weight\[1\]: expected a finite number of at least 0, got -1\.0",
        ),
        ({"class_weight": {1: np.nan}}, ValueError, r"^class_weight\[1\]: expected a finite number .*, got nan"),
        ({"class_weight": {1: "much"}}, TypeError, r"^class_weight\[1\]: expected a number, got 'much'"),
        ({"class_weight": "even"}, ValueError, r"^class_weight: expected a dict or 'balanced', got 'even'"),
        ({"class_weight": [1, 2, 3]}, TypeError, r"^class_weight: expected a dict or 'balanced', got \[1, 2, 3\]"),
        (
            {"validation_split": 1.0},
            ValueError,
            r"^validation_split: expected a finite number of at least 0 and below 1, got 1.0",
        ),
        (
            {"validation_split": -0.1},
            ValueError,
            r"^validation_split: expected a finite number of at least 0 and below 1, got -0.1",
        ),
        ({"validation_split": "half"}, TypeError, r"^validation_split: expected a number, got 'half'"),
        ({"validation_split": 0.9}, ValueError, r"^validation_split: 0\.9 of 6 rows leaves no rows"),
        (
            {"validation_split": 0.5, "validation_data": (np.ones((2, 5)), [0, 1])},
            ValueError,
            r"^validation_split: expected no validation_data with it",
        ),
        ({"initial_epoch": -1}, ValueError, r"^initial_epoch: expected at least 0, got -1"),
        ({"initial_epoch": 1.0}, TypeError, r"^initial_epoch: expected an int, got 1.0"),
        ({"accumulation_steps": 0}, ValueError, r"^accumulation_steps: expected at least 1, got 0"),
        ({"checkpoint_every": 0}, ValueError, r"^checkpoint_every: expected at least 1, got 0"),
        ({"max_to_keep": 0}, ValueError, r"^max_to_keep: expected at least 1, got 0"),
        ({"resume": True}, ValueError, r"^resume: expected checkpoint=folder with it, got none"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(arguments, error, message):
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 6, np.float64)
    model = model_of(spec, "cross_entropy", "float64")
    before = model.parameters
    with pytest.raises(error, match=message):
        model.fit(x, y, **arguments)
    np.testing.assert_array_equal(model.parameters, before)
    assert model._core.program.steps == 0
    assert model.history is None


def test_class_weights_of_what_is_no_class():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 6, np.float64)
    for weights in ("balanced", {1: 2.0}):
        with pytest.raises(
            ValueError, match=r"^class_weight: expected targets that are class indices, 0 and 1, or one"
        ):
            model_of(spec, "mse", "float64").fit(x, y, class_weight=weights)
    with pytest.raises(ValueError, match=r"^class_weight: 'balanced' needs all targets in an array"):
        model_of(spec, "mse", "float64").fit([(x, y)], class_weight="balanced")
    with pytest.raises(ValueError, match=r"^sample_weight: expected none with an iterable"):
        model_of(spec, "mse", "float64").fit([(x, y)], sample_weight=np.ones(6))
    with pytest.raises(ValueError, match=r"^validation_split: an iterable of batches cannot be split"):
        model_of(spec, "mse", "float64").fit([(x, y)], validation_split=0.5)


def test_class_weights_of_one_hot_rows():
    """As those of the class indices; of probabilities the mean over the classes."""
    spec = chain(5, 9, 3)
    x, _ = batch_for(spec, "cross_entropy", 40, np.float64)
    y = np.random.default_rng(0).choice(3, 40, p=[0.7, 0.2, 0.1])
    for wanted in ("balanced", {0: 0.5, 2: 3.0}):
        histories = [
            model_of(spec, "cross_entropy", "float64", lr=0.1).fit(x, t, class_weight=wanted, epochs=3)
            for t in (y, np.eye(3)[y])
        ]
        assert_close(histories[0]["loss"], histories[1]["loss"], 1e-12)
    numbers = [
        model_of(spec, "mse", "float64", lr=0.1).fit(x, np.eye(3)[y], epochs=3, **weights)["loss"]
        for weights in ({"class_weight": {2: 3.0}}, {"sample_weight": np.where(y == 2, 3.0, 1.0)})
    ]
    assert_close(*numbers, 1e-12)
    soft = np.random.default_rng(1).dirichlet([1, 1, 1], 40)
    losses = [
        model_of(spec, "cross_entropy", "float64", lr=0.1).fit(x, soft, epochs=3, **weights)["loss"]
        for weights in ({"class_weight": {0: 0.5, 2: 3.0}}, {"sample_weight": soft @ [0.5, 1, 3]})
    ]
    assert_close(*losses, 1e-12)


def test_class_weights_of_several_decisions():
    """The weights of the columns are multiplied; "balanced" is scikit-learn's."""
    from sklearn.utils.class_weight import compute_sample_weight

    random = np.random.default_rng(0)
    x, y = random.standard_normal((40, 5)), (random.random((40, 3)) < [0.5, 0.2, 0.8]).astype(float)
    by_hand = {
        "balanced": compute_sample_weight("balanced", y),
        "dict": np.where(y[:, 1] == 1, 4.0, 1.0) * 0.5 ** y[:, 2],
    }
    for name, wanted in (("balanced", "balanced"), ("dict", {1: 4.0, 2: 0.5})):
        models = [
            cnn.Sequential([cnn.Linear(5, 3), cnn.BCEWithLogitsLoss()], cnn.SGD(lr=0.1), "float64", seed=0)
            for _ in "ab"
        ]
        history = models[0].fit(x, y, class_weight=wanted, epochs=3)
        assert_close(history["loss"], models[1].fit(x, y, sample_weight=by_hand[name], epochs=3)["loss"], 1e-12)
    model = cnn.Sequential([cnn.Linear(5, 3), cnn.BCEWithLogitsLoss()], cnn.SGD())
    with pytest.raises(ValueError, match=r"^class_weight: expected targets 0 and 1 in each column"):
        model.fit(x, y * 0.9, class_weight={0: 2.0})
    with pytest.raises(ValueError, match=r"^class_weight: unknown class 3: expected indices from 0 to 2"):
        model.fit(x, y, class_weight={3: 2.0})


@pytest.mark.parametrize("source", ["array", "split", "batches"])
def test_class_weights_for_validation(source):
    """If wished, and in `evaluate`: the loss is that with the rows' weights."""
    spec = chain(5, 9, 3)
    x, _ = batch_for(spec, "cross_entropy", 40, np.float64)
    y = np.random.default_rng(0).choice(3, 40, p=[0.7, 0.2, 0.1])
    by_class = compute_class_weight("balanced", classes=np.arange(3), y=y[:20] if source == "split" else y)
    data = {"split": {"validation_split": 0.5}, "array": {"validation_data": (x, y)}}
    settings = data.get(source, {"validation_data": [(x[:30], y[:30]), (x[30:], y[30:])]})
    model = model_of(spec, "cross_entropy", "float64", lr=0.1)
    history = model.fit(x, y, class_weight="balanced", weigh_validation=True, **settings)
    rows = slice(20, 40) if source == "split" else slice(0, 40)
    expected = model.evaluate(x[rows], y[rows], sample_weight=by_class[y[rows]])["loss"]
    assert_close(history["val_loss"][0], expected, 1e-12)
    assert_close(model.evaluate(x[rows], y[rows], class_weight=dict(enumerate(by_class)))["loss"], expected, 1e-12)
    assert abs(model.evaluate(x[rows], y[rows])["loss"] - expected) > 1e-3
