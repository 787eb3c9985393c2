"""predict and evaluate: any number of rows, in chunks; rows on their own; several threads at a time."""

import itertools
import threading

import numpy as np
import pytest
from arrays import LAYOUTS, laid_out
from grid import ACTIVATIONS, build, chain, specs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import assert_close, batch_for, run_together

import cnn

RTOL = {np.dtype("float32"): 5e-4, np.dtype("float64"): 1e-11}  # as in test_sequential.py
MIXED = [
    (20, 300, True),
    ("gelu", None),
    (300, 1, True),
    ("relu", None),
    (1, 33, False),
    ("softplus", None),
    (33, 4, True),
    ("tanh", None),
    (4, 10, True),
]


@given(spec=specs(), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_a_row_does_not_depend_on_the_batch(isa, dtype, spec, seed):
    """The same to the last bit: alone, in any batch, by predict or by forward."""
    model, _ = build(spec, dtype=dtype, seed=seed)
    x, _ = batch_for(spec, None, 37, dtype, seed)
    together = model.predict(x)
    np.testing.assert_array_equal(model(x), together)
    for batch in (1, 2, 3, 5, 8, 9, 16):
        for start in range(0, 37, 13):
            rows = slice(start, start + batch)
            np.testing.assert_array_equal(model.predict(x[rows]), together[rows])
            np.testing.assert_array_equal(model(x[rows]), together[rows])


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_many_rows(isa, dtype, name):
    """10,000 rows are several chunks; the cuts between them are nowhere to be seen."""
    spec = chain(3, 17, 33, 2, activation=(name, 0.5 if name in ("leaky_relu", "elu") else None))
    model, network = build(spec, "mse", dtype=dtype)
    x, y = batch_for(spec, "mse", 10_000, dtype)
    outputs = model.predict(x)
    assert_close(outputs, network.forward(x), RTOL[dtype])
    np.testing.assert_array_equal(np.vstack([model.predict(x[i : i + 999]) for i in range(0, 10_000, 999)]), outputs)
    assert model._core.program.nbytes < outputs.nbytes + 2**21  # workspace for a chunk, not for 10,000
    loss = np.mean((outputs.astype(np.float64) - y) ** 2)
    assert_close(model.evaluate(x, y)["loss"], loss, RTOL[dtype])


def test_around_the_chunk(isa, dtype):
    spec = chain(100, 1000, 7)
    model, network = build(spec, dtype=dtype)
    x, _ = batch_for(spec, None, 300, dtype)
    expected = network.forward(x)
    for batch in (31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257, 300):
        assert_close(model.predict(x[:batch]), expected[:batch], RTOL[dtype])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(isa, dtype, layout):
    model, _ = build(MIXED, "cross_entropy", dtype=dtype, optimizer=cnn.SGD(lr=0.1))
    x, y = batch_for(MIXED, "cross_entropy", 19, dtype)
    expected = model.predict(x)
    there = laid_out(x, layout)
    np.testing.assert_array_equal(model.predict(there), expected)
    np.testing.assert_array_equal(model(there), expected)
    loss, scores = model(x, y), model.evaluate(x, y)
    labels = laid_out(y, layout)
    assert model(there, labels) == loss
    assert model.evaluate(there, labels) == scores
    start = model.parameters
    assert model.train_step(x, y) == loss
    after = model.parameters
    model.parameters = start
    assert model.train_step(there, labels) == loss
    np.testing.assert_array_equal(model.parameters, after)


def test_broadcast_rows(isa, dtype):
    """Rows that are one and the same memory."""
    model, _ = build(MIXED, dtype=dtype)
    row, _ = batch_for(MIXED, None, 1, dtype)
    expected = model.predict(row)
    outputs = model.predict(np.broadcast_to(row, (9, 20)))
    np.testing.assert_array_equal(outputs, np.broadcast_to(expected, (9, 10)))


@pytest.mark.parametrize("kind", [list, tuple, np.float16, np.int8, np.uint64, bool, np.longdouble])
def test_other_inputs_are_converted(isa, dtype, kind):
    model, _ = build(MIXED, dtype=dtype)
    x = np.arange(40).reshape(2, 20) % 3
    given_x = kind(x.tolist()) if kind in (list, tuple) else x.astype(kind)
    expected = model.predict(np.asarray(given_x).astype(dtype))
    assert expected.dtype == dtype
    np.testing.assert_array_equal(model.predict(given_x), expected)


def test_empty_batch(isa, dtype):
    model, _ = build(MIXED, dtype=dtype)
    for x in (np.empty((0, 20)), np.empty((0, 20), dtype), np.empty((5, 20), dtype)[:0]):
        outputs = model.predict(x)
        assert outputs.shape == (0, 10)
        assert outputs.dtype == dtype
        out = np.empty((0, 10), dtype)
        assert model.predict(x, out) is out


def test_out(isa, dtype):
    """Results go into `out`, also into rows that lie apart, and nowhere else."""
    model, _ = build(MIXED, dtype=dtype)
    x, _ = batch_for(MIXED, None, 19, dtype)
    expected = model.predict(x)
    whole = np.full((40, 30), 7, dtype)
    for out in (np.empty((19, 10), dtype), whole[1:39:2, 3:13], whole[:19, 30:19:-1][:, ::-1], whole[20:1:-1, :10]):
        rest = whole.copy()
        result = model.predict(x, out)
        assert result is out
        np.testing.assert_array_equal(result, expected)
        out[...] = 0
        offset = np.shares_memory(out, whole)
        assert offset == (out.base is not None)
        changed = whole != rest
        assert changed.sum() <= out.size
        whole[...] = 7


def test_unsuitable_out(isa, dtype):
    model, _ = build(MIXED, dtype=dtype)
    x, _ = batch_for(MIXED, None, 19, dtype)
    other = np.float64 if dtype == np.float32 else np.float32
    read_only = np.empty((19, 10), dtype)
    read_only.flags.writeable = False
    for out, message in (
        (np.empty((18, 10), dtype), rf"expected shape \(19, 10\) and dtype {dtype}, got \(18, 10\)"),
        (np.empty((19, 11), dtype), rf"expected shape \(19, 10\) and dtype {dtype}, got \(19, 11\)"),
        (np.empty(190, dtype), rf"expected shape \(19, 10\) and dtype {dtype}, got \(190,\)"),
        (np.empty((19, 10), other), rf"expected shape \(19, 10\) and dtype {dtype}, got \(19, 10\)"),
        (np.empty((19, 10), dtype, order="F"), "expected a C-contiguous array"),
        (laid_out(np.zeros((19, 10), dtype), "columns apart"), "expected a C-contiguous array"),
        (laid_out(np.zeros((19, 10), dtype), "unaligned"), "expected a writeable, aligned array"),
        (read_only, "expected a writeable, aligned array"),
    ):
        with pytest.raises(ValueError, match=f"^out: {message}"):
            model.predict(x, out)
    with pytest.raises(TypeError, match=r"^out: expected a NumPy array, got list"):
        model.predict(x, [[0.0] * 10] * 19)


class Subclass(np.ndarray):
    pass


def test_out_must_not_overlap_with_x(isa, dtype):
    model, _ = build(chain(6, 40, 6), dtype=dtype)
    memory = np.random.default_rng(0).standard_normal((12, 6)).astype(dtype)
    before = memory.copy()
    for x, out in ((memory, memory), (memory[:8], memory[4:]), (memory.view(Subclass), memory)):
        with pytest.raises(ValueError, match=r"^out: shares memory with x"):
            model.predict(x, out)
    np.testing.assert_array_equal(memory, before)
    out = model.predict(memory[:6], memory[6:])
    np.testing.assert_array_equal(out, model.predict(before[:6]))


# evaluate ----------------------------------------------------------------------------------------


def test_accuracy_counts_the_first_largest(isa, dtype):
    """As argmax: where logits are equal the lower class is the prediction."""
    model = cnn.Sequential([cnn.Linear(17, 17, bias=False), cnn.CrossEntropyLoss()], dtype=dtype)
    model.layers[0].weight = np.eye(17)
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, (500, 17))
    for y in (x.argmax(axis=1), rng.integers(0, 17, 500)):
        assert model.evaluate(x, y)["accuracy"] == np.mean(x.argmax(axis=1) == y)
    x[...] = 1
    y = np.arange(500) % 17
    assert model.evaluate(x, y)["accuracy"] == np.mean(y == 0)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_evaluate(isa, dtype, loss):
    model, network = build(MIXED, loss, dtype=dtype)
    x, y = batch_for(MIXED, loss, 3000, dtype)
    scores = model.evaluate(x, y)
    assert list(scores) == (["loss"] if loss == "mse" else ["loss", "accuracy"])
    outputs = network.forward(x)
    assert_close(scores["loss"], network.loss(outputs, y)[0], RTOL[dtype])
    if loss == "cross_entropy":
        assert scores["accuracy"] == np.mean(model.predict(x).argmax(axis=1) == y)
        assert all(isinstance(score, float) for score in scores.values())
        assert model.evaluate(x.tolist(), y.tolist()) == scores


# threads -----------------------------------------------------------------------------------------


def test_threads_may_predict_at_the_same_time(isa, dtype):
    """Each with another number of rows, while a forward and backward pass runs as well."""
    spec = chain(20, 100, 300, 10, activation=("gelu", None))
    model, network = build(spec, "cross_entropy", dtype=dtype)
    x, y = batch_for(spec, "cross_entropy", 400, dtype)
    expected = model.predict(x)
    scores = model.evaluate(x, y)

    def predicting(rows):
        def call():
            for _ in range(10):
                np.testing.assert_array_equal(model.predict(x[:rows]), expected[:rows])
                assert model.evaluate(x, y) == scores

        return call

    def walking():
        for _ in range(5):
            loss, grad = model.loss_and_grad(x, y)
            assert_close(loss, scores["loss"], RTOL[dtype])
            assert_close(grad, first, 1e-15)

    _, first = model.loss_and_grad(x, y)
    run_together(predicting(400), predicting(123), predicting(1), walking)
    np.testing.assert_array_equal(model.predict(x), expected)
    grads = network.gradients(x, y)[2]
    assert_close(first, np.concatenate([g.ravel() for g in grads.values()]), RTOL[dtype])


def test_infinite_inputs(isa, dtype):
    """Behind a bounded activation all is finite: nothing of an infinite row stands in the padding."""
    random = np.random.default_rng(0)
    x = random.standard_normal((70, 3)).astype(dtype)
    x[::2, 1], x[1::4, 2] = -np.inf, np.inf
    for i, (width, outputs) in enumerate(itertools.product((1, 2, 3, 5, 7, 8, 13, 16, 17, 33), (1, 2, 3, 5, 16))):
        middle = [cnn.Sigmoid(), cnn.Tanh(), cnn.Softsign(), cnn.ReLU6(), cnn.HardSigmoid()][i % 5]
        model = cnn.Sequential([cnn.Linear(3, width), middle, cnn.Linear(width, outputs)], dtype=dtype, seed=0)
        weight, bias = list(model.state_dict().values())[2:]
        expected = model[:2].predict(x) @ weight + bias
        assert np.isfinite(expected).all()
        for rows in (1, 2, 5, 70):
            assert_close(model.predict(x[:rows]), expected[:rows], RTOL[dtype])


def refused_while_training(model, x, y, attempt):
    """Whether `attempt` is refused while another thread is in train_step; the loss of that step.

    A thread inside a long step has let go of the interpreter's lock, so that attempts run.
    """
    losses = []

    def train():
        while not losses:
            try:
                losses.append(model.train_step(x, y))
            except RuntimeError:  # the attempt came first
                continue

    thread = threading.Thread(target=train)
    refused = False
    thread.start()
    while thread.is_alive() and not refused:
        try:
            attempt()
        except RuntimeError as error:
            refused = "another thread is training this model" in str(error)
    thread.join()
    return refused, losses[0]


@pytest.fixture
def long_step(isa):
    """Two equal models and a batch for a step of some milliseconds."""
    spec = chain(64, 100, 10, activation=("relu", None))
    models = [build(spec, "mse", optimizer=cnn.SGD(lr=0.01))[0] for _ in range(2)]
    return *models, *batch_for(spec, "mse", 20_000, np.float64)


@pytest.mark.parametrize("call", ["forward", "backward", "step"])
def test_a_second_thread_must_not_walk(long_step, call):
    """It is told so at once, and the step that runs is not disturbed."""
    model, alone, x, y = long_step
    model(x[:1])
    attempt = {
        "forward": lambda: model(x[:1]),
        "backward": lambda: model.backward(np.zeros((1, 10))),
        "step": model.step,  # of gradients that are zero
    }[call]
    refused, loss = refused_while_training(model, x, y, attempt)
    assert refused
    assert loss == alone.train_step(x, y)
    np.testing.assert_array_equal(model.parameters, alone.parameters)


@pytest.mark.parametrize("call", ["train_step", "fit"])
def test_a_second_thread_must_not_train(long_step, call):
    model, _, x, y = long_step
    attempt = {
        "train_step": lambda: model.train_step(x[:1], y[:1]),
        "fit": lambda: model.fit(x[:1], y[:1]),
    }[call]
    refused, loss = refused_while_training(model, x, y, attempt)
    assert refused
    assert np.isfinite(loss)
    assert np.isfinite(model.train_step(x, y))
