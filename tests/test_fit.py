"""fit: its native loop, shuffling, history, progress, validation, divergence, Ctrl-C; and that it learns."""

import io
import re
import signal
import sys
import threading
from _thread import interrupt_main
from itertools import pairwise

import numpy as np
import pytest
from arrays import LAYOUTS, laid_out
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import assert_close, batch_for, build, chain, specs
from sklearn.utils.class_weight import compute_class_weight

import cnn
from cnn import _dispatch
from cnn.training import fit as training

HYPER = {"lr": 5e-4, "momentum": 0.9, "weight_decay": 0.01}  # nothing diverges, however wide


def model_of(spec, loss, dtype, seed=0, **hyper):
    return build(spec, loss, dtype=dtype, seed=seed, optimizer=cnn.SGD(**(hyper or HYPER)))[0]


# the loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@given(
    spec=specs(depth=3),
    rows=st.integers(1, 40),
    batch_size=st.sampled_from((1, 2, 3, 4, 5, 7, 32, 64)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25)
def test_equals_a_loop_of_train_step(isa, dtype, loss, spec, rows, batch_size, seed):
    """To the last bit, momentum included; a shorter last batch as well."""
    fitted, looped = (model_of(spec, loss, dtype) for _ in range(2))
    x, y = batch_for(spec, loss, rows, dtype, seed)
    history = fitted.fit(x, y, epochs=2, batch_size=batch_size, shuffle=False)
    for epoch in range(2):
        total = 0.0
        for i in range(0, rows, batch_size):
            batch = slice(i, i + batch_size)
            total += looped.train_step(x[batch], y[batch]) * len(x[batch])
        assert history["loss"][epoch] == pytest.approx(total / rows, rel=1e-12)
    np.testing.assert_array_equal(fitted.parameters, looped.parameters)
    assert fitted._program.steps == looped._program.steps == 2 * -(-rows // batch_size)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("widths", [(5, 9, 3), (300, 2), (1, 17, 1)], ids=str)
def test_shuffling_takes_the_rows_in_another_order(isa, dtype, loss, batch_size, widths):
    """The same as fitting rows that are permuted beforehand."""
    spec = chain(*widths)
    shuffled, ordered = (model_of(spec, loss, dtype, seed=11) for _ in range(2))
    x, y = batch_for(spec, loss, 20, dtype)
    shuffled.fit(x, y, epochs=3, batch_size=batch_size)
    for epoch in range(3):
        order = _dispatch.kernels(dtype).permutation(20, 11, epoch)
        ordered.fit(x[order], y[order], batch_size=batch_size, shuffle=False)
    np.testing.assert_array_equal(shuffled.parameters, ordered.parameters)


def test_seeds(isa, dtype):
    """The same seed gives the same numbers, whatever the calls are cut into; others give others."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 50, dtype)

    def parameters(seed, epochs):
        model = model_of(spec, "mse", dtype, seed=seed)
        model.parameters = np.linspace(-1, 1, model.parameters.size)
        for n in epochs:
            model.fit(x, y, epochs=n, batch_size=8)
        return model.parameters

    first = parameters(1, [4])
    np.testing.assert_array_equal(parameters(1, [4]), first)
    np.testing.assert_array_equal(parameters(1, [1, 2, 1]), first)
    assert (parameters(2, [4]) != first).any()
    assert (parameters(None, [4]) != parameters(None, [4])).any()


@pytest.mark.parametrize("slice_seconds", [0.0, 1e9])
def test_does_not_depend_on_how_the_work_is_cut(isa, dtype, slice_seconds, monkeypatch):
    """One batch a native call, or all of them in ever longer calls."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 333, dtype)
    expected, model = (model_of(spec, "cross_entropy", dtype) for _ in range(2))
    history = expected.fit(x, y, epochs=3, batch_size=4)
    monkeypatch.setattr(training, "SLICE", slice_seconds)
    again = model.fit(x, y, epochs=3, batch_size=4)
    assert again == {name: pytest.approx(values, rel=1e-12) for name, values in history.items()}
    np.testing.assert_array_equal(model.parameters, expected.parameters)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(isa, dtype, layout, shuffle):
    for loss in ("mse", "cross_entropy"):
        spec = chain(64, 4, 3)
        expected, model = (model_of(spec, loss, dtype) for _ in range(2))
        x, y = batch_for(spec, loss, 19, dtype)
        for batch_size in (1, 4):
            expected.fit(x, y, batch_size=batch_size, shuffle=shuffle)
            model.fit(laid_out(x, layout), laid_out(y, layout), batch_size=batch_size, shuffle=shuffle)
        np.testing.assert_array_equal(model.parameters, expected.parameters)


def test_x_and_y_are_only_read(isa, dtype):
    spec = [("sigmoid", None), *chain(64, 4, 3)]
    for loss in ("mse", "cross_entropy"):
        x, y = batch_for(spec, loss, 19, dtype)
        before = x.copy(), y.copy()
        x.flags.writeable = y.flags.writeable = False
        for batch_size in (1, 4):
            model_of(spec, loss, dtype).fit(x, y, batch_size=batch_size)
        np.testing.assert_array_equal(x, before[0])
        np.testing.assert_array_equal(y, before[1])


def test_targets_of_one_output_may_be_a_vector(isa, dtype):
    spec = chain(5, 9, 1)
    x, y = batch_for(spec, "mse", 19, dtype)
    for batch_size in (1, 4):
        column, vector = (model_of(spec, "mse", dtype) for _ in range(2))
        history = column.fit(x, y, batch_size=batch_size, validation_data=(x, y))
        assert vector.fit(x, y[:, 0], batch_size=batch_size, validation_data=(x, y[:, 0])) == history
        np.testing.assert_array_equal(column.parameters, vector.parameters)
        assert vector.train_step(x, y[::1, 0].tolist()) == column.train_step(x, y)
        assert vector(x, y[:, 0]) == column(x, y)
        assert vector.evaluate(x, y[:, 0]) == column.evaluate(x, y)


def test_many_epochs_of_few_rows(isa, dtype):
    """The native calls grow longer, but not without end."""
    spec = chain(2, 3, 1)
    x, y = batch_for(spec, "mse", 4, dtype)
    fitted, looped = (model_of(spec, "mse", dtype) for _ in range(2))
    assert len(fitted.fit(x, y, epochs=1500, batch_size=4, shuffle=False)["loss"]) == 1500
    for _ in range(1500):
        looped.train_step(x, y)
    np.testing.assert_array_equal(fitted.parameters, looped.parameters)


# the permutation ---------------------------------------------------------------------------------


def test_known_permutations(isa, dtype):
    """The same on every machine, with every instruction set and dtype."""
    permutation = _dispatch.kernels(dtype).permutation
    assert permutation(10, 0, 0).tolist() == [1, 2, 5, 7, 0, 8, 4, 3, 9, 6]
    assert permutation(10, 0, 1).tolist() == [4, 3, 0, 6, 5, 9, 8, 7, 1, 2]
    assert permutation(10, 2**63 - 1, 7).tolist() == [1, 6, 8, 0, 4, 5, 9, 2, 7, 3]


@pytest.mark.parametrize("n", [1, 2, 3, 10, 1000, 100_000])
def test_a_permutation_is_one(isa, n):
    permutation = _dispatch.kernels("float32").permutation
    orders = [permutation(n, seed, epoch) for seed in (0, 1, 2**63 - 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(n))
    if n > 9:
        for i, order in enumerate(orders):
            assert all((order != other).any() for other in orders[:i])
            assert (order != np.arange(n)).any()


def chi_square(counts):
    """Pearson's statistic of counts that should be equal, in standard deviations from its mean."""
    expected = counts.mean()
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


@pytest.mark.parametrize("by", ["epoch", "seed"])
def test_permutations_are_equally_likely(by):
    """All 120 orders of 5; and where each of 10 numbers goes. Fixed seeds, within 4 deviations."""
    permutation = _dispatch.kernels("float32").permutation

    def orders(n, samples):
        pairs = ((3, i) if by == "epoch" else (i, 3) for i in range(samples))
        return np.array([permutation(n, *pair) for pair in pairs])

    _, counts = np.unique(orders(5, 12_000), axis=0, return_counts=True)
    assert counts.size == 120
    assert abs(chi_square(counts)) < 4
    tens = orders(10, 5000)
    for position in range(10):
        assert abs(chi_square(np.bincount(tens[:, position], minlength=10))) < 4
    # an epoch says nothing about the next: as often as chance, a number stays where it was
    stays = (tens[1:] == tens[:-1]).sum()
    assert abs(stays - 4999) < 4 * np.sqrt(4999)


# history, progress, validation -------------------------------------------------------------------


def test_history(isa, dtype):
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 30, dtype)
    model = model_of(spec, "mse", dtype)
    history = model.fit(x, y, epochs=4)
    assert isinstance(history, cnn.History)
    assert isinstance(history, dict)
    assert list(history) == ["loss"]
    history = model.fit(x, y, epochs=4, validation_data=(x, y))
    assert list(history) == ["loss", "val_loss"]
    labels = batch_for(spec, "cross_entropy", 30, dtype)[1]
    model = model_of(spec, "cross_entropy", dtype)
    history = model.fit(x, labels, epochs=4)
    assert list(history) == ["loss", "accuracy"]
    history = model.fit(x, labels, epochs=4, validation_data=(x, labels))
    assert list(history) == ["loss", "accuracy", "val_loss", "val_accuracy"]
    for values in history.values():
        assert len(values) == 4
        assert all(type(value) is float for value in values)
    assert re.fullmatch(
        r"History\(4 epochs; last: loss=[\d.e-]+, accuracy=[\d.]+, val_loss=[\d.e-]+, val_accuracy=[\d.]+\)",
        repr(history),
    )
    assert repr(cnn.History(loss=[0.5])) == "History(1 epoch; last: loss=0.5)"
    assert repr(cnn.History()) == "History()"


def test_history_is_the_mean_over_the_epoch(isa, dtype):
    """Of all rows, as the parameters changed; the validation's with those at its end."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 31, dtype)
    x_val, y_val = batch_for(spec, "cross_entropy", 17, dtype, seed=1)
    fitted, looped = (model_of(spec, "cross_entropy", dtype) for _ in range(2))
    history = fitted.fit(x, y, epochs=3, batch_size=8, shuffle=False, validation_data=(x_val, y_val))
    for epoch in range(3):
        right = loss = 0.0
        for i in range(0, 31, 8):
            batch = slice(i, i + 8)
            right += np.sum(looped.predict(x[batch]).argmax(axis=1) == y[batch])
            loss += looped.train_step(x[batch], y[batch]) * len(x[batch])
        scores = looped.evaluate(x_val, y_val)
        assert history["accuracy"][epoch] == right / 31
        assert history["loss"][epoch] == pytest.approx(loss / 31, rel=1e-12)
        assert history["val_loss"][epoch] == scores["loss"]
        assert history["val_accuracy"][epoch] == scores["accuracy"]


def test_validation_changes_nothing(isa, dtype):
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 31, dtype)
    other = batch_for(spec, "mse", 170, dtype, seed=1)
    plain, validated = (model_of(spec, "mse", dtype) for _ in range(2))
    history = plain.fit(x, y, epochs=3)
    assert validated.fit(x, y, epochs=3, validation_data=other)["loss"] == history["loss"]
    np.testing.assert_array_equal(plain.parameters, validated.parameters)


def test_progress_lines(isa, capsys):
    """One line an epoch on stderr, where that is no terminal; silence otherwise."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 31, np.float32)
    model = model_of(spec, "cross_entropy", "float32")
    history = model.fit(x, y, epochs=3, validation_data=(x, y), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    for i, line in enumerate(err.splitlines(), 1):
        numbers = "  ".join(f"{name} {values[i - 1]:.4f}" for name, values in history.items())
        left = "" if i == 3 else "  0:00 left"
        assert re.fullmatch(re.escape(f"epoch {i}/3  {numbers}  ") + r"[\d,]+ samples/s" + left, line), line
    assert i == 3
    for progress in ("auto", False):
        model.fit(x, y, epochs=3, progress=progress)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("progress", ["auto", True, False])
def test_progress_bar(isa, progress, monkeypatch):
    """On a terminal a bar with the loss, if tqdm is installed; lines, if it is not and they are wanted."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 31, np.float32)
    model = model_of(spec, "mse", "float32")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    model.fit(x, y, epochs=3, progress=progress)
    text = terminal.getvalue()
    assert ("epoch 3/3: 100%" in text and "loss=" in text) == (progress is not False)
    assert text == "" if progress is False else text.endswith("\n")
    terminal.truncate(0)
    terminal.seek(0)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    model.fit(x, y, epochs=3, progress=progress)
    assert len(terminal.getvalue().splitlines()) == (3 if progress is True else 0)


def test_progress_without_stderr(isa, monkeypatch):
    """As under pythonw or in a service."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 31, np.float32)
    monkeypatch.setattr(sys, "stderr", None)
    for progress in ("auto", True, False):
        assert model_of(spec, "mse", "float32").fit(x, y, progress=progress)["loss"]


# weights -----------------------------------------------------------------------------------------


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
        ({"class_weight": {1: -1.0}}, ValueError, r"^class_weight: expected a finite weight of at least 0 for class 1"),
        ({"class_weight": {1: np.nan}}, ValueError, r"^class_weight: expected a finite weight .* for class 1, got nan"),
        ({"class_weight": {1: "much"}}, TypeError, r"^class_weight: expected a number for class 1, got 'much'"),
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
        ({"keep": 0}, ValueError, r"^keep: expected at least 1, got 0"),
        ({"resume": True}, ValueError, r"^resume: expected a folder as checkpoint with it, got none"),
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
    assert model._program.steps == 0
    assert model.history is None


def test_class_weights_of_what_is_no_class():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 6, np.float64)
    for weights in ("balanced", {1: 2.0}):
        with pytest.raises(ValueError, match=r"^class_weight: expected targets that are class indices, or 0 and 1"):
            model_of(spec, "mse", "float64").fit(x, y, class_weight=weights)
    with pytest.raises(ValueError, match=r"^class_weight: 'balanced' needs all targets in an array"):
        model_of(spec, "mse", "float64").fit([(x, y)], class_weight="balanced")
    with pytest.raises(ValueError, match=r"^sample_weight: expected none beside an iterable"):
        model_of(spec, "mse", "float64").fit([(x, y)], sample_weight=np.ones(6))
    with pytest.raises(ValueError, match=r"^validation_split: an iterable of batches cannot be split"):
        model_of(spec, "mse", "float64").fit([(x, y)], validation_split=0.5)


# runs that are continued, schedules, accumulation -------------------------------------------------


def test_the_last_rows_are_held_out():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "cross_entropy", 31, np.float64)
    split, given = (model_of(spec, "cross_entropy", "float64") for _ in range(2))
    history = split.fit(x, y, epochs=3, batch_size=4, validation_split=0.3)
    assert history == given.fit(x[:21], y[:21], epochs=3, batch_size=4, validation_data=(x[21:], y[21:]))
    np.testing.assert_array_equal(split.parameters, given.parameters)


def test_a_run_that_is_continued():
    """The numbers of one run: orders, rates, history."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)

    def model():
        optimizer = cnn.SGD(lr=0.1, momentum=0.9, schedule=cnn.StepLR(2, gamma=0.5))
        return build(spec, "mse", dtype="float64", seed=3, optimizer=optimizer)[0]

    whole, parts = model(), model()
    expected = whole.fit(x, y, epochs=5, batch_size=8, validation_data=(x, y))
    first = parts.fit(x, y, epochs=2, batch_size=8, validation_data=(x, y))
    second = parts.fit(x, y, epochs=5, initial_epoch=2, batch_size=8, validation_data=(x, y))
    assert len(first["loss"]) == 2
    assert second == expected
    assert second.epochs == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(whole.parameters, parts.parameters)
    # in another model, that only has the parameters and the optimiser's state
    again = model()
    again._program.restore(whole._program.snapshot(whole.optimizer.states))
    third = again.fit(x, y, epochs=6, initial_epoch=5, batch_size=8, validation_data=(x, y))
    assert third.epochs == [6]
    whole.fit(x, y, epochs=6, initial_epoch=5, batch_size=8)
    np.testing.assert_array_equal(whole.parameters, again.parameters)
    assert whole.history.epochs == [6]  # without validation it is another history
    steps = whole._program.steps
    assert whole.fit(x, y, epochs=6, initial_epoch=6).epochs == [6]  # nothing is left to do
    assert whole._program.steps == steps


def test_schedule_by_step(monkeypatch):
    """Each step has its own rate, whatever the native calls are cut into; logs have the last one."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    schedule = cnn.OneCycleLR(max_lr=0.3, total_steps=15)

    def run(seconds):
        monkeypatch.setattr(training, "SLICE", seconds)
        model, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1, momentum=0.9, schedule=schedule))
        rates = []
        record = cnn.LambdaCallback(on_batch_end=lambda batch, logs: rates.append(logs["lr"]))
        history = model.fit(x, y, epochs=3, batch_size=8, callbacks=[record] * (seconds == 0), shuffle=False)
        return model, history, rates

    one, history, _ = run(1e9)
    other, again, rates = run(0)
    looped, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1, momentum=0.9))
    expected = schedule.rates(0, 15, 0.1, 0.9)
    for step in range(15):
        looped.optimizer.lr, looped.optimizer.momentum = expected[step]
        rows = slice(8 * (step % 5), 8 * (step % 5) + 8)
        looped.train_step(x[rows], y[rows])
    assert_close(one.parameters, looped.parameters, 1e-12)
    np.testing.assert_array_equal(one.parameters, other.parameters)
    assert history["lr"] == again["lr"] == expected[4::5, 0].tolist()
    assert rates == expected[:, 0].tolist()


def test_schedule_by_epoch():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    schedule = cnn.ExponentialLR(0.5)
    model, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1, schedule=schedule), seed=0)
    looped, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1), seed=0)
    history = model.fit(x, y, epochs=4, batch_size=7)
    for epoch in range(4):
        looped.optimizer.lr = 0.1 * 0.5**epoch
        looped.fit(x, y, batch_size=7)
    assert history["lr"] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert list(history) == ["loss", "lr"]
    np.testing.assert_array_equal(model.parameters, looped.parameters)
    assert model.optimizer.lr == 0.1


def test_reduce_on_plateau():
    """Stepped by fit with the number that it watches; by the rate of an epoch that begins."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    given = iter([3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0])

    def plateau(targets, outputs):
        return next(given)

    schedule = cnn.ReduceLROnPlateau(patience=0, factor=0.1, monitor="plateau")
    model, _ = build(spec, "mse", optimizer=cnn.SGD(lr=0.1, schedule=schedule))
    history = model.fit(x, y, epochs=7, metrics=[plateau])
    assert history["lr"] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.001, 0.001, 0.0001])
    for validation in ({}, {"validation_data": (x, y)}):  # by itself val_loss, or loss
        schedule = cnn.ReduceLROnPlateau()
        model, _ = build(spec, "mse", optimizer=cnn.SGD(lr=0.1, schedule=schedule))
        history = model.fit(x, y, epochs=3, **validation)
        assert schedule.best == min(history["val_loss" if validation else "loss"])
    schedule = cnn.ReduceLROnPlateau(monitor="val_auc")
    model, _ = build(spec, "mse", optimizer=cnn.SGD(lr=0.1, schedule=schedule))
    with pytest.raises(ValueError, match=r"^schedule: no 'val_auc' to monitor: there are loss, val_loss$"):
        model.fit(x, y, validation_data=(x, y))
    assert model._program.steps == 0


@pytest.mark.parametrize("source", ["array", "blocks", "batches"])
@pytest.mark.parametrize(("rows", "steps"), [(48, 2), (40, 2), (44, 2), (52, 3)])
def test_accumulation(source, rows, steps):
    """The mean gradient of three batches makes a step: as a batch of all of them."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", rows, np.float64)
    model, looped = (model_of(spec, "mse", "float64", lr=0.1, momentum=0.5) for _ in range(2))
    data = {
        "array": (x, y),
        "blocks": (cnn.Blocks(x, y, rows=8),),
        "batches": ([(x[i : i + 8], y[i : i + 8]) for i in range(0, rows, 8)],),
    }[source]
    history = model.fit(*data, epochs=2, batch_size=8, shuffle=False, accumulation_steps=3, metrics=["mae"])
    total = 0.0
    for _ in range(2):
        for first in range(0, rows, 24):
            group = [slice(i, min(i + 8, rows)) for i in range(first, min(first + 24, rows), 8)]
            looped.zero_grads()
            gradients = []
            for batch in group:
                loss, gradient = looped.loss_and_grad(x[batch], y[batch])
                gradients.append(gradient)
                total += loss * len(x[batch])
            looped._core.unpack(np.mean(gradients, axis=0), "grad_weight", "grad_bias")
            looped.step()
    assert model._program.steps == looped._program.steps == 2 * steps
    assert_close(model.parameters, looped.parameters, 1e-12)
    assert sum(history["loss"]) == pytest.approx(total / rows, rel=1e-12)
    assert len(history["mae"]) == 2


def test_accumulation_of_batches_of_many_sizes():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 30, np.float64)
    batches = [(x[:10], y[:10]), (x[:7], y[:7]), (x[:8], y[:8])]
    with pytest.raises(ValueError, match=r"^accumulation_steps: expected batches of one .* got \[10, 7, 8\] rows"):
        model_of(spec, "mse", "float64").fit(batches, accumulation_steps=3, shuffle=False)


def test_no_calls_from_two_threads():
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 30, np.float64)
    model = model_of(spec, "mse", "float64")
    refused = []

    def attempt():
        with pytest.raises(RuntimeError, match=r"^another thread is training this model"):
            model.fit(x, y)
        refused.append(True)

    def other(batch, logs):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()

    model.fit(x, y, callbacks=[cnn.LambdaCallback(on_batch_end=other)])
    assert refused == [True]


# divergence --------------------------------------------------------------------------------------


def test_divergence_restores_the_epoch_before(isa, dtype):
    """Parameters and momentum are those from before the epoch; training goes on from there."""
    spec = chain(5, 9, 3, activation=("relu", None))
    x, y = batch_for(spec, "mse", 24, dtype)
    diverging, reference = (model_of(spec, "mse", dtype, lr=0.05, momentum=0.9) for _ in range(2))
    for model in (diverging, reference):
        model.fit(x, y, epochs=2, batch_size=4)
    before = diverging.parameters
    diverging.optimizer.lr = 1e30
    with pytest.raises(
        cnn.DivergenceError,
        match=r"^the loss is not finite in epoch 1, batch \d, at a learning rate of 1e\+30; "
        "the parameters are those from before this epoch$",
    ):
        diverging.fit(x, y, epochs=5, batch_size=4)
    np.testing.assert_array_equal(diverging.parameters, before)
    diverging.optimizer.lr = 0.05
    assert diverging.fit(x, y, epochs=2, batch_size=4) == reference.fit(x, y, epochs=2, batch_size=4)
    np.testing.assert_array_equal(diverging.parameters, reference.parameters)
    assert diverging._program.steps == reference._program.steps
    assert issubclass(cnn.DivergenceError, ArithmeticError)


def test_divergence_in_a_later_epoch(isa, dtype):
    """It is named, and the epochs before it are kept."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 4)).astype(dtype)
    y = (x @ rng.standard_normal((4, 1))).astype(dtype)

    def model():
        layers = [cnn.Linear(4, 1), cnn.MSELoss()]
        return cnn.Sequential(layers, optimizer=cnn.SGD(lr=30.0), dtype=dtype, seed=0)

    diverging = model()
    with pytest.raises(cnn.DivergenceError, match=r"in epoch (\d+), batch") as error:
        diverging.fit(x, y, epochs=1000, batch_size=8)
    epoch = int(re.search(r"epoch (\d+)", str(error.value))[1])
    assert epoch > 2
    kept = model()
    kept.fit(x, y, epochs=epoch - 1, batch_size=8)
    np.testing.assert_array_equal(diverging.parameters, kept.parameters)
    assert np.isfinite(kept.parameters).all()


def test_divergence_by_the_last_step_of_an_epoch():
    """It makes numbers that no loss has seen; they are not what is put back."""
    x = np.ones((4, 1))
    y = np.array([[1.0], [1.0], [1.0], [1e150]])
    model = cnn.Sequential([cnn.Linear(1, 1), cnn.MSELoss()], optimizer=cnn.SGD(lr=0.0), dtype="float64", seed=0)
    before = model.parameters

    def last(batch, logs):
        model.optimizer.lr = 1e200 if batch == 3 else 0.0

    callback = cnn.LambdaCallback(on_batch_end=lambda batch, logs: last(batch + 1, logs))
    with pytest.raises(cnn.DivergenceError, match=r"in epoch 2, batch 0, "):
        model.fit(x, y, epochs=3, batch_size=1, shuffle=False, callbacks=[callback])
    np.testing.assert_array_equal(model.parameters, before)
    assert len(model.history["loss"]) == 1


@pytest.mark.parametrize("source", ["blocks", "batches"])
def test_divergence_names_the_batch_of_the_epoch(source):
    """Counted through all blocks; with the rate of the schedule at that step."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 40, np.float64)
    x[21] = np.nan
    data = cnn.Blocks(x, y, rows=8) if source == "blocks" else [(x[i : i + 4], y[i : i + 4]) for i in range(0, 40, 4)]
    optimizer = cnn.SGD(lr=0.1, schedule=cnn.LinearLR(start_factor=0.5, total_iters=10, interval="step"))
    model, _ = build(spec, "mse", optimizer=optimizer)
    before = model.parameters
    with pytest.raises(cnn.DivergenceError, match=r"in epoch 1, batch 5, at a learning rate of 0\.075;"):
        model.fit(data, batch_size=4, shuffle=False)
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(("row", "batch_size", "batch"), [(0, 4, 0), (13, 4, 3), (13, 1, 13), (23, 30, 0)])
def test_the_batch_of_a_nan_is_named(isa, dtype, loss, row, batch_size, batch):
    """Counted from 0, as batches are indexed."""
    spec = chain(5, 9, 3)
    model = model_of(spec, loss, dtype)
    x, y = batch_for(spec, loss, 24, dtype)
    before = model.parameters
    bad = x.copy()
    bad[row, 2] = np.nan
    with pytest.raises(cnn.DivergenceError, match=f"^the loss is not finite in epoch 1, batch {batch}, "):
        model.fit(bad, y, batch_size=batch_size, shuffle=False)
    np.testing.assert_array_equal(model.parameters, before)
    untouched = model_of(spec, loss, dtype)
    assert model.fit(x, y, batch_size=batch_size) == untouched.fit(x, y, batch_size=batch_size)
    np.testing.assert_array_equal(model.parameters, untouched.parameters)


# interrupts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch_size"), [(20, 5), (400_000, 1), (400_000, 64)])
def test_keyboard_interrupt(isa, rows, batch_size):
    """Between epochs or inside one: fit ends, and the model can be used, trained and saved."""
    spec = chain(8, 64, 3)
    model = model_of(spec, "mse", "float32", lr=1e-4)
    x, y = batch_for(spec, "mse", rows, np.float32)
    timer = threading.Timer(0.15, interrupt_main)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, epochs=10**6, batch_size=batch_size)
    finally:
        timer.cancel()
    assert model._program.steps > 0
    parameters = model.parameters
    assert np.isfinite(parameters).all()
    np.testing.assert_array_equal(model.parameters, parameters)
    assert np.isfinite(model.predict(x[:50])).all()
    assert np.isfinite(model.train_step(x[:50], y[:50]))
    assert np.isfinite(model.fit(x[:50], y[:50], epochs=2)["loss"]).all()


class Interrupted:
    """Batches without end; SIGINT comes while they are trained on."""

    def __init__(self, x, y):
        self.batch = x, y

    def __iter__(self):
        while True:
            yield self.batch


@pytest.mark.parametrize("where", ["array", "blocks", "batches", "validation", "callback"])
def test_sigint(where):
    """Wherever it comes: fit ends, the epochs so far are kept, and the model can be used and fitted again."""
    spec = chain(8, 64, 3)
    model = model_of(spec, "mse", "float32", lr=1e-4)
    x, y = batch_for(spec, "mse", 1000, np.float32)
    many = np.tile(x, (100, 1)), np.tile(y, (100, 1))
    arguments = {
        "array": {"x": x, "y": y},
        "blocks": {"x": cnn.Blocks(*many, rows=1000)},
        "batches": {"x": Interrupted(x, y)},
        "validation": {"x": x[:10], "y": y[:10], "validation_data": many},
        "callback": {"x": x, "y": y, "callbacks": [cnn.LambdaCallback(on_batch_end=lambda batch, logs: None)]},
    }[where]
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(epochs=10**6, **arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert model._program.steps > 0
    assert all(len(values) == len(model.history.epochs) for values in model.history.values())
    assert np.isfinite(model.parameters).all()
    assert len(model.fit(x, y, epochs=2)["loss"]) == 2


# a loss of the user's own ---------------------------------------------------------------------------


def squared(outputs, targets):
    d = outputs - targets
    return (d**2).mean(), 2 * d / d.size


def with_loss(loss, **optimizer):
    layers = [cnn.Linear(5, 9), cnn.Tanh(), cnn.Linear(9, 3), loss]
    optimizer = cnn.SGD(**(optimizer or {"lr": 0.1, "momentum": 0.9}))
    return cnn.Sequential(layers, optimizer=optimizer, dtype="float64", seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 7, "shuffle": False},
        {"batch_size": 4, "accumulation_steps": 3},
        {"metrics": ["mae", "r2"], "validation_split": 0.25},
        {"callbacks": [cnn.LambdaCallback(on_batch_end=lambda batch, logs: None)]},
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["array", "blocks", "batches"])
def test_a_loss_of_ones_own(settings, source):
    """The numbers of the library's loss that computes the same."""
    x, y = batch_for(chain(5, 9, 3), "mse", 40, np.float64)
    if source == "batches" and "validation_split" in settings:
        settings = {"metrics": ["mae"], "validation_data": (x, y)}
    data = {
        "array": (x, y),
        "blocks": (cnn.Blocks(x, y, rows=16),),
        "batches": ([(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)],),
    }[source]
    own, native = with_loss(cnn.CallableLoss(squared)), with_loss(cnn.MSELoss())
    histories = [model.fit(*data, epochs=3, **settings) for model in (own, native)]
    assert list(histories[0]) == list(histories[1])
    for name in histories[0]:
        assert_close(histories[0][name], histories[1][name], 1e-10, name)
    assert_close(own.parameters, native.parameters, 1e-10)
    assert own._program.steps == native._program.steps
    scores = own.evaluate(*data, metrics=["rmse"])
    assert scores == pytest.approx(native.evaluate(*data, metrics=["rmse"]), rel=1e-10)


def test_a_loss_of_ones_own_with_a_schedule():
    x, y = batch_for(chain(5, 9, 3), "mse", 40, np.float64)
    schedule = cnn.OneCycleLR(max_lr=0.3, total_steps=15)
    own, native = (
        with_loss(loss, lr=0.1, momentum=0.9, schedule=schedule) for loss in (cnn.CallableLoss(squared), cnn.MSELoss())
    )
    histories = [model.fit(x, y, epochs=3, batch_size=8) for model in (own, native)]
    assert histories[0]["lr"] == histories[1]["lr"]
    assert_close(own.parameters, native.parameters, 1e-10)


def test_a_loss_of_ones_own_gets_the_targets_as_they_are():
    seen = []

    def own(outputs, targets):
        seen.append(targets)
        return float(np.sum(outputs**2)), 2 * outputs

    x, _ = batch_for(chain(5, 9, 3), "mse", 4, np.float64)
    y = np.array(["a", "b", "c", "d"])
    with_loss(cnn.CallableLoss(own)).fit(x, y, batch_size=2, shuffle=False)
    assert [targets.tolist() for targets in seen] == [["a", "b"], ["c", "d"]]


def test_a_loss_of_ones_own_that_fails():
    """The model is as it was before the epoch."""
    x, y = batch_for(chain(5, 9, 3), "mse", 40, np.float64)
    wrong = {"is": None}

    def own(outputs, targets):
        if wrong["is"] == "loss" and targets[0, 0] == y[24, 0]:
            return np.nan, outputs
        if wrong["is"] == "exception" and targets[0, 0] == y[24, 0]:
            raise KeyError("mine")
        return squared(outputs, targets)

    model = with_loss(cnn.CallableLoss(own))
    model.fit(x, y, epochs=2)
    before, steps = model.parameters, model._program.steps
    wrong["is"] = "loss"
    with pytest.raises(cnn.DivergenceError, match=r"in epoch 1, batch 3, at a learning rate of 0\.1;"):
        model.fit(x, y, batch_size=8, shuffle=False)
    np.testing.assert_array_equal(model.parameters, before)
    wrong["is"] = "exception"
    with pytest.raises(KeyError, match="mine"):
        model.fit(x, y, batch_size=8, shuffle=False)
    np.testing.assert_array_equal(model.parameters, before)
    assert model._program.steps == steps
    for weights in ({"sample_weight": np.ones(40)}, {"class_weight": {0: 1.0}}):
        with pytest.raises(ValueError, match=f"^{next(iter(weights))}: expected none with a loss of your own"):
            model.fit(x, y, **weights)


def test_inputs_that_are_not_finite_are_named_as_the_reason():
    x, y = batch_for(chain(5, 9, 3), "mse", 40, np.float64)
    model = with_loss(cnn.MSELoss())
    before = model.parameters
    x[11, 2] = np.nan
    with pytest.raises(
        cnn.DivergenceError, match=r"batch 1, .*before this epoch; x has NaN or infinity in this batch$"
    ):
        model.fit(x, y, batch_size=8, shuffle=False)
    with pytest.raises(cnn.DivergenceError, match=r"; x has NaN or infinity in this batch$"):
        model.fit(x, y, batch_size=8)
    np.testing.assert_array_equal(model.parameters, before)


# learning ----------------------------------------------------------------------------------------


def test_xor(isa, dtype):
    """The example of Sequential's documentation."""
    model = cnn.Sequential(
        [cnn.Linear(2, 8), cnn.Tanh(), cnn.Linear(8, 1), cnn.MSELoss()],
        optimizer=cnn.SGD(lr=0.2),
        dtype=dtype,
        seed=0,
    )
    x, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    history = model.fit(x, y, epochs=2000, batch_size=4)
    assert history["loss"][-1] < 1e-4
    assert model.predict(x).round().ravel().tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_sine(isa, dtype, batch_size):
    """sin(3 x) on [-2, 2] to a mean squared error of 0.01; its variance is 0.5."""
    x = np.random.default_rng(0).uniform(-2, 2, (500, 1)).astype(dtype)
    y = np.sin(3 * x)
    model = model_of(chain(1, 32, 1), "mse", dtype, lr=0.02 if batch_size == 1 else 0.1, momentum=0.5)
    history = model.fit(x, y, epochs=150, batch_size=batch_size)
    assert history["loss"][0] > 0.2
    assert model.evaluate(x, y)["loss"] < 0.01


@pytest.mark.parametrize("name", ["relu", "gelu", "sigmoid"])
def test_classes(isa, dtype, name):
    """Ten noisy patterns of 8 x 8 points: 97 % of patterns that it has not seen."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2, (10, 64))

    def samples(n):
        y = rng.integers(0, 10, n)
        return (patterns[y] + 0.7 * rng.standard_normal((n, 64))).astype(dtype), y

    x, y = samples(1000)
    model = model_of(chain(64, 32, 10, activation=(name, None)), "cross_entropy", dtype, lr=0.1, momentum=0.9)
    history = model.fit(x, y, epochs=10, validation_data=samples(1000))
    assert history["val_accuracy"][-1] > 0.97
    assert history["accuracy"][-1] > 0.97
    assert all(later < 1.5 * earlier for earlier, later in pairwise(history["loss"]))


def test_learns_in_float32_as_in_float64(isa):
    """Thirty epochs apart by no more than the roundoffs of some thousand steps."""
    spec = chain(5, 20, 3)
    x, y = batch_for(spec, "mse", 200, np.float32)
    losses = [
        model_of(spec, "mse", dtype, lr=0.05).fit(x, y, epochs=30, batch_size=10)["loss"]
        for dtype in ("float32", "float64")
    ]
    assert_close(losses[0], losses[1], 1e-4)
