"""Several inputs: branches that read columns of their own, and lists of arrays for them."""

import re

import numpy as np
import pytest

import cnn


def model(merge=cnn.Concat, dtype="float64", loss=None, **options):
    branches = cnn.Sequential([cnn.Linear(3, 4), cnn.Tanh()], dtype=dtype), cnn.Linear(5, 4)
    head = cnn.Linear(8 if merge is cnn.Concat else 4, 2)
    return cnn.Sequential(
        [merge(*branches, split=True), head, loss or cnn.MSELoss()], cnn.Adam(0.01), dtype, seed=1, **options
    )


def arrays(n=20):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 3)), rng.normal(size=(n, 5)).astype(np.float32), rng.normal(size=(n, 2))


def squares(outputs, targets):
    return ((outputs - targets) ** 2).mean(), 2 * (outputs - targets) / outputs.size


@pytest.mark.parametrize("merge", [cnn.Add, cnn.Multiply, cnn.Maximum, cnn.Concat])
def test_a_branch_reads_its_own_columns(merge):
    m, (a, b, _) = model(merge), arrays()
    first, second = (branch.layers[-1] for branch in m.layers[0])
    u, v = np.tanh(a @ first.layers[0].weight + first.layers[0].bias), b @ second.weight + second.bias
    joined = {cnn.Add: u + v, cnn.Multiply: u * v, cnn.Maximum: np.maximum(u, v), cnn.Concat: np.hstack([u, v])}[merge]
    np.testing.assert_allclose(m.predict([a, b]), joined @ m.layers[1].weight + m.layers[1].bias, rtol=1e-12)


CALLS = {
    "forward": lambda m, x, y: m(x),
    "loss": lambda m, x, y: m(x, y),
    "predict": lambda m, x, y: m.predict(x),
    "hidden": lambda m, x, y: m.hidden(x, 1),
    "evaluate": lambda m, x, y: list(m.evaluate(x, y, metrics=["mae"]).values()),
    "loss_and_grad": lambda m, x, y: m.loss_and_grad(x, y)[1],
    "vjp": lambda m, x, y: m.vjp(x, y)[0],
    "grad_input": lambda m, x, y: m.grad_input(x, y),
    "train_step": lambda m, x, y: [m.train_step(x, y) for _ in range(3)],
    "fit": lambda m, x, y: m.fit(x, y, epochs=3, batch_size=8, validation_data=(x, y))["val_loss"],
    "iterable": lambda m, x, y: m.fit([(x, y), (x, y)], epochs=2)["loss"],
    "accumulated": lambda m, x, y: m.fit([(x, y), (x, y)], accumulation_steps=2)["loss"],
    "split": lambda m, x, y: m.fit(x, y, validation_split=0.25)["val_loss"],
    "find_lr": lambda m, x, y: cnn.find_lr(m, x, y, steps=5).loss,
}


@pytest.mark.filterwarnings("ignore:find_lr. at no rate")
@pytest.mark.parametrize("loss", [cnn.MSELoss(), squares], ids=["MSELoss", "own"])
@pytest.mark.parametrize("call", CALLS)
def test_a_list_of_arrays_is_the_arrays_side_by_side(call, loss):
    (a, b, y), one = arrays(), model(loss=loss)
    other = one.copy()
    np.testing.assert_array_equal(CALLS[call](one, [a, b], y), CALLS[call](other, np.hstack([a, b]), y))
    np.testing.assert_array_equal(one.parameters, other.parameters)


def test_targets_in_a_memory_map(tmp_path):
    a, b, y = arrays()
    np.save(tmp_path / "y.npy", y)
    mapped = np.load(tmp_path / "y.npy", mmap_mode="r")
    assert model().evaluate([a, b], mapped) == model().evaluate([a, b], y)


def test_other_libraries_arrays_and_integers():
    pandas = pytest.importorskip("pandas")
    a, b, _ = arrays()
    m = model()
    np.testing.assert_array_equal(m.predict((pandas.DataFrame(a), b)), m.predict([a, b]))
    whole = np.ones((2, 3), int)
    np.testing.assert_array_equal(m.predict([whole, b[:2]]), m.predict([whole.astype(float), b[:2]]))


def test_a_list_stays_a_leading_axis_or_rows():
    m = cnn.Sequential([cnn.Linear(3, 2)], seed=0)
    x = np.ones((4, 3))
    assert m.predict([x, x]).shape == (2, 4, 2)
    assert m.predict([x[0], x[0]]).shape == (2, 2)
    assert m.predict([[1, 2, 3], [4, 5, 6]]).shape == (2, 2)


def test_configurations_copies_and_files(tmp_path):
    m, (a, b, _) = model(), arrays()
    m.save(tmp_path / "m.safetensors")
    for other in (cnn.load(tmp_path / "m.safetensors"), m.copy()):
        assert repr(other) == repr(m)
        np.testing.assert_array_equal(other.predict([a, b]), m.predict([a, b]))
    np.testing.assert_allclose(m.layers[0][1].predict(np.hstack([a, b])), m.layers[0][1].layers[-1](b.astype(float)))


a3, a4 = np.zeros((2, 3)), np.zeros((2, 4))
WRONG = [
    (lambda: model().predict([a3, a4]), "x: expected arrays whose columns add up to 8, got 3 + 4 = 7"),
    (lambda: model().fit([a3, a3, a3], a3), "x: expected arrays whose columns add up to 8, got 3 + 3 + 3 = 9"),
    (lambda: model()([a3, np.zeros((3, 5))]), "x: expected arrays with the same number of rows, got 2, 3"),
    (lambda: cnn.Columns(2, 2), "stop: expected at least 3, got 2"),
    (lambda: cnn.Columns(0, 4, 3), "in_features: expected at least 4, got 3"),
    (
        lambda: cnn.Sequential([cnn.Linear(2, 3), cnn.Columns(1, 4)]),
        "layer 1, Columns(1, 4): expects at least 4 inputs, but layer 0, Linear(2, 3), gives 3",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(2, 3), cnn.Columns(0, 2, 4)]),
        "layer 1, Columns(0, 2, in_features=4): expects 4 inputs, but layer 0, Linear(2, 3), gives 3",
    ),
    (
        lambda: cnn.Concat(cnn.Tanh(), cnn.Linear(2, 2), split=True),
        "split: Concat[0], Tanh(), accepts any number of inputs: begin each branch with cnn.Columns, and omit split",
    ),
    (
        lambda: cnn.Sequential([cnn.Add(cnn.Linear(3, 2), cnn.Linear(5, 2))]),
        "layer 0.Add[0], Linear(3, 2): expects 3 inputs, but the input, gives 5: with split=True each branch reads "
        "its own columns",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()
