"""fit and evaluate: the loop, the order of the rows, history and progress, and that models learn."""

import io
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from arrays import LAYOUTS, laid_out
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import assert_close, batch_for, chain, model_of, specs

import cnn
from cnn import _dispatch
from cnn.training import fit as training

pytestmark = pytest.mark.filterwarnings("ignore:.*before it gives")  # any layers with any loss


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
    assert fitted._core.program.steps == looped._core.program.steps == 2 * -(-rows // batch_size)


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


@pytest.mark.parametrize("batch_size", [19, 20, 21, None])
def test_a_batch_of_all_rows_is_taken_as_it_lies(batch_size):
    """Its order would not matter; where an epoch takes a part of the rows, it takes others each time."""
    x, y = batch_for(chain(5, 3), "mse", 20, np.float32)
    orders = []

    def note(targets, outputs):
        orders.append([int(np.flatnonzero((y == row).all(axis=1))[0]) for row in targets])
        return 0.0

    model = model_of(chain(5, 3), "mse", np.float32)
    for source in (x, y), (cnn.Blocks(x, y),):
        del orders[:]
        model.fit(*source, epochs=4, batch_size=batch_size, steps_per_epoch=1, metrics=note)
        assert (orders == [list(range(20))] * 4) == (batch_size != 19)
        assert len(set(map(tuple, orders))) == (4 if batch_size == 19 else 1)


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
    """On a terminal a bar with the loss, if tqdm is installed; lines, if it is not."""
    monkeypatch.setattr("cnn.training.progress._told", True)
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
    assert len(terminal.getvalue().splitlines()) == (0 if progress is False else 3)


def test_progress_without_stderr(isa, monkeypatch):
    """As under pythonw or in a service."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 31, np.float32)
    monkeypatch.setattr(sys, "stderr", None)
    for progress in ("auto", True, False):
        assert model_of(spec, "mse", "float32").fit(x, y, progress=progress)["loss"]


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
