"""Threads: how many are asked for, that no number depends on how many there are, forks, and Python's own threads.

Networks and batches are such that a second thread is called (from about a million multiply-adds on), that the batch
has several chunks of rows (of 16 at least) and weight matrices several pieces (of 128 rows at least).
"""

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import grid
import numpy as np
import pytest
from grid import build, chain, inputs_of, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import assert_close, batch_for, run_together

import cnn
from cnn import _threads
from cnn.training import fit as training

COUNTS = (1, 2, 5)
# Layers of more than 128 rows; kept transposed, as last and as first layer; and small ones, which need many rows.
SPECS = {
    "pieces": (chain(300, 130, 3, activation=("relu", None)), "cross_entropy"),
    "narrow outputs": (chain(60, 200, 2, activation=("gelu", None)), "mse"),
    "narrow first": (chain(200, 4, 200, activation=("elu", 0.5), bias=False), "mse"),
    "small": ([("tanh", None), *chain(30, 40, 20, 5, activation=("silu", None)), ("softplus", None)], "cross_entropy"),
}
OPTIMIZERS = {
    "SGD": lambda: cnn.SGD(lr=0.01),
    "momentum": lambda: cnn.SGD(lr=0.01, momentum=0.9, weight_decay=0.01),
    "Adam": lambda: cnn.Adam(lr=0.001),
}


@pytest.fixture(autouse=True)
def number_of_threads():
    """As it was, after each test; before it the pool forgets that more threads than processors once did not pay."""
    for kernels in [module for name, module in sys.modules.items() if name.startswith("cnn._kernels_")]:
        kernels.forget_waits()
    before = cnn.get_num_threads()
    yield
    cnn.set_num_threads(before)


def run(*arguments, **environment):
    """A fresh interpreter; one that hangs is killed, and the test fails."""
    env = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    for name, value in environment.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)


def output(*arguments, **environment):
    result = run(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


# how many ---------------------------------------------------------------------------------------------------------


def test_set_and_get():
    for n in (1, 2, 255, np.int64(3)):
        assert cnn.set_num_threads(n) is None
        assert cnn.get_num_threads() == n
        assert type(cnn.get_num_threads()) is int


@pytest.mark.parametrize("n", [0, -1, 256, 10**30])
def test_impossible_numbers(n):
    model, _ = build(chain(3, 2), "mse", optimizer=cnn.SGD())
    x, y = batch_for(chain(3, 2), "mse", 4, "float64")
    before, parameters = cnn.get_num_threads(), model.parameters
    with pytest.raises(ValueError, match=f"^n: expected from 1 to 255, got {n}$"):
        cnn.set_num_threads(n)
    for call in (lambda: model.predict(x, threads=n), lambda: model.fit(x, y, threads=n)):
        with pytest.raises(ValueError, match=f"^threads: expected from 1 to 255, got {n}$"):
            call()
    assert cnn.get_num_threads() == before
    np.testing.assert_array_equal(model.parameters, parameters)


@pytest.mark.parametrize("n", [True, 2.0, "2", [2], np.float64(2), None])
def test_what_is_no_number(n):
    model, _ = build(chain(3, 2), "mse", optimizer=cnn.SGD())
    x, y = batch_for(chain(3, 2), "mse", 4, "float64")
    with pytest.raises(TypeError, match=r"^n: expected an int, got ") as error:
        cnn.set_num_threads(n)
    assert repr(n) in str(error.value)
    if n is not None:  # that is the number set for all
        for call in (lambda: model.predict(x, threads=n), lambda: model.fit(x, y, threads=n)):
            with pytest.raises(TypeError, match=r"^threads: expected an int, got ") as error:
                call()
            assert repr(n) in str(error.value)


def test_environment_variable():
    code = "import cnn; print(cnn.get_num_threads())"
    assert output("-c", code, CNN_NUM_THREADS="3") == "3"
    assert output("-c", code, CNN_NUM_THREADS="255") == "255"
    for nothing in (None, ""):
        assert output("-c", code, CNN_NUM_THREADS=nothing) == str(_threads.available())
    assert 1 <= _threads.available() <= 255


@pytest.mark.parametrize("value", ["0", "-1", "256", "two", "1.5", "1,2", "²"])
def test_bad_environment_variable(value):
    result = run("-c", "import cnn", CNN_NUM_THREADS=value)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1] == (
        f"ValueError: CNN_NUM_THREADS: expected a number from 1 to 255, got {value!r}"
    )


@pytest.mark.parametrize("call", ["train_step", "fit", "predict", "evaluate", "loss_and_grad", "forward"])
def test_threads_are_started_when_they_pay(call):
    """Not by an import, nor for little work; then as many as were asked for, the caller being one of them."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the number of threads of a process is read from /proc")
    code = f"""
import os, numpy as np, cnn
def threads(): return len(os.listdir("/proc/self/task"))
model = cnn.Sequential([cnn.Linear(100, 300), cnn.ReLU(), cnn.Linear(300, 10), cnn.MSELoss()], optimizer=cnn.SGD())
def call(n):
    x, y = np.ones((n, 100), "f4"), np.ones((n, 10), "f4")
    getattr(model, "{call}")(x, *(() if "{call}" == "predict" else (y,)))
alone = threads()
call(8)
few = threads()
call(2500)
print(few - alone, threads() - alone)
cnn.set_num_threads(2)
call(2500)
print(threads() - alone)
"""
    assert output("-c", code, CNN_NUM_THREADS="5").split() == ["0", "4", "4"]


@pytest.mark.parametrize("call", ["model.predict(x, threads={})", "model.fit(x, y, batch_size=2500, threads={})"])
@pytest.mark.parametrize("threads", [1, 3, 6])
def test_arguments_say_how_many(threads, call):
    if not Path("/proc/self/task").is_dir():
        pytest.skip("the number of threads of a process is read from /proc")
    code = f"""
import os, numpy as np, cnn
model = cnn.Sequential([cnn.Linear(100, 300), cnn.ReLU(), cnn.Linear(300, 10), cnn.MSELoss()], optimizer=cnn.SGD())
x, y = np.ones((2500, 100), "f4"), np.ones((2500, 10), "f4")
before = len(os.listdir("/proc/self/task"))
{call.format(threads)}
print(len(os.listdir("/proc/self/task")) - before, cnn.get_num_threads())
"""
    assert output("-c", code, CNN_NUM_THREADS="4").split() == [str(threads - 1), "4"]


# the same numbers -------------------------------------------------------------------------------------------------


def assert_same(results, expected, what):
    for i, (a, b) in enumerate(zip(results, expected, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"{what}, result {i}")


@pytest.mark.parametrize("name", SPECS)
def test_no_number_depends_on_threads(isa, dtype, name):
    spec, loss = SPECS[name]

    def everything(threads):
        cnn.set_num_threads(threads)
        model, _ = build(spec, loss, dtype=dtype, optimizer=cnn.SGD(lr=0.01, momentum=0.9))
        for batch in (3, 65, 257, 2500, 65):
            x, y = batch_for(spec, loss, batch, dtype)
            yield model.train_step(x, y)
            yield model.parameters
            yield from model.loss_and_grad(x, y)
            yield model(x, y)
            yield model.backward()
            yield model.gradients
            model.step()
            model.zero_grads()
            yield model.parameters
            yield model.predict(x)
            yield list(model.evaluate(x, y).values())

    expected = list(everything(1))
    assert all(np.isfinite(a).all() for a in expected)
    for threads in COUNTS[1:]:
        assert_same(everything(threads), expected, f"{threads} threads")


@pytest.mark.parametrize("name", ["pieces", "narrow outputs"])
def test_right_numbers(isa, dtype, name):
    """With threads, beside the reference."""
    spec, loss = SPECS[name]
    cnn.set_num_threads(3)
    model, network = build(spec, loss, dtype=dtype)
    x, y = batch_for(spec, loss, 513, dtype)
    expected, _, grads = network.gradients(x, y)
    rtol = 1e-4 if dtype == np.float32 else 1e-12
    value, gradient = model.loss_and_grad(x, y)
    assert_close(value, expected, rtol)
    assert_close(gradient, np.concatenate([g.ravel() for g in grads.values()]), rtol)
    assert_close(model.predict(x), network.forward(x), rtol)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["pieces", "narrow first"])
def test_fit_does_not_depend_on_threads(isa, dtype, name, optimizer, shuffle):
    """The last batch is smaller; the rows of a shuffled batch, and their targets, are gathered by the threads."""
    spec, loss = SPECS[name]
    x, y = batch_for(spec, loss, 2000, dtype)

    def fitted(threads):
        model, _ = build(spec, loss, dtype=dtype, optimizer=OPTIMIZERS[optimizer]())
        history = model.fit(x, y, epochs=2, batch_size=750, shuffle=shuffle, validation_data=(x, y), threads=threads)
        return model.parameters, *history.values()

    expected = fitted(1)
    assert expected[1][1] < expected[1][0]  # it learns
    for threads in COUNTS[1:]:
        assert_same(fitted(threads), expected, f"{threads} threads")


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_history_does_not_depend_on_time(isa, monkeypatch, batch_size):
    """Native calls of one batch or of many, as the machine's speed would have it: the losses add up to the same."""
    spec, loss = SPECS["small"]
    x, y = batch_for(spec, loss, 1500, np.float64)
    histories = []
    for seconds in (1e-12, 1e9):
        monkeypatch.setattr(training, "SLICE", seconds)
        model, _ = build(spec, loss, optimizer=cnn.SGD(lr=0.01))
        histories.append(model.fit(x, y, epochs=3, batch_size=batch_size))
    assert histories[0] == histories[1]


@pytest.mark.parametrize("name", SPECS)
def test_a_row_does_not_depend_on_its_batch(isa, dtype, name):
    spec, loss = SPECS[name]
    model, _ = build(spec, loss, dtype=dtype)
    x, _ = batch_for(spec, loss, 2500, dtype)
    expected = model.predict(x, threads=1)
    for i in (0, 1, 63, 64, 127, 128, 1000, 2499):
        np.testing.assert_array_equal(model.predict(x[i : i + 1])[0], expected[i])
    for threads in COUNTS:
        for rows in (slice(None), slice(1, None), slice(3, 1600), slice(None, None, 2), slice(None, None, -1)):
            np.testing.assert_array_equal(model.predict(x[rows], threads=threads), expected[rows])


@pytest.mark.parametrize("name", SPECS)
def test_the_number_may_change_between_forward_and_backward(isa, dtype, name):
    """What forward kept is still there."""
    spec, loss = SPECS[name]
    x, y = batch_for(spec, loss, 300, dtype)
    results = []
    for before, after in ((1, 1), (1, 4), (4, 1), (2, 3)):
        model, _ = build(spec, loss, dtype=dtype)
        cnn.set_num_threads(before)
        model(x, y)
        cnn.set_num_threads(after)
        results.append((model.backward(), model.gradients))
        assert np.abs(model.gradients).max() > 0
    for (before, after), result in zip(((1, 4), (4, 1), (2, 3)), results[1:], strict=True):
        assert_same(result, results[0], f"{before} threads, then {after}")


@pytest.mark.parametrize("name", [*grid.LAYERS, *grid.ACTIVATIONS])
def test_whatever_reads_the_input(isa, name):
    """The explicit loop, whose way back gathers nothing: each thread must find the rows of x that forward has kept."""
    entry = grid.LAYERS.get(name)
    first = entry.make(24, "float32") if entry else grid.ACTIVATIONS[name].make()
    width = entry.width(24) if entry else 24
    model = cnn.Sequential([first, cnn.Linear(width, 300), cnn.MSELoss()], seed=0).eval()
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((3000, n)).astype("f4") for n in (24, 300))

    def gradients(threads):
        cnn.set_num_threads(threads)
        model.zero_grads()
        model(x)
        return model.backward(g), model.gradients

    expected = gradients(1)
    for threads in (2, 3, 2, 3, 2, 3):
        assert_same(gradients(threads), expected, f"{threads} threads")


def test_threads_at_different_ops(isa, dtype):
    """Gradients that are to be added to others lie in a scratch, which ops of all widths share."""
    x = np.random.default_rng(0).standard_normal((900, 40)).astype(dtype)
    y = np.random.default_rng(1).standard_normal((900, 3)).astype(dtype)

    def trained(threads):
        parts = [cnn.Linear(40, 40)]
        for narrow in (3, 17, 1):
            inner = cnn.Sequential([cnn.Linear(40, narrow), cnn.Add(cnn.SiLU(), cnn.LayerNorm(narrow))], dtype=dtype)
            parts += [cnn.Concat(cnn.GELU(), inner, cnn.Tanh()), cnn.Linear(80 + narrow, 40)]
        model = cnn.Sequential([*parts, cnn.Linear(40, 3), cnn.MSELoss()], cnn.SGD(0.01), dtype=dtype, seed=0)
        cnn.set_num_threads(threads)
        return [model.train_step(x, y) for _ in range(3)], model.parameters

    expected = trained(1)
    for threads in (2, 3, 8) * 4:
        assert_same(trained(threads), expected, f"{threads} threads")


@given(seed=st.integers(0, 10**6), batch=st.integers(1, 1300), threads=st.sampled_from(COUNTS), data=st.data())
@settings(max_examples=12)
def test_random_networks_do_not_depend_on_threads_or_batches(dtype, seed, batch, threads, data):
    """Dropout, norms, branches and nested models: predictions of any part of the rows, and a step, bit for bit."""
    x = inputs_of(random_model(seed, dtype), batch)
    y = (
        np.random.default_rng(seed)
        .standard_normal((batch, random_model(seed, dtype)._core.graph.widths[-1]))
        .astype(dtype)
    )

    def results(n):
        model = random_model(seed, dtype)
        whole = cnn.Sequential([model, cnn.MSELoss()], optimizer=cnn.Adam(lr=1e-3), dtype=dtype, seed=1)
        cnn.set_num_threads(n)
        with np.errstate(all="ignore"):
            cuts = sorted({0, batch, *data_cuts})
            parts = [whole.predict(x[a:b], threads=n) for a, b in itertools.pairwise(cuts)]
            yield np.concatenate(parts)
            yield whole.predict(x, threads=n)
            if batch > 1:
                yield whole.train_step(x, y)
                yield whole.parameters
                yield from whole.state_dict().values()

    data_cuts = data.draw(st.lists(st.integers(0, batch), max_size=5))
    expected = list(results(1))
    np.testing.assert_array_equal(expected[0], expected[1])
    assert_same(results(threads), expected, f"{threads} threads")


# processes --------------------------------------------------------------------------------------------------------

# Trains with threads; says whether a process has right answers, those of one thread.
CHILD = """
import multiprocessing, os, sys, threading
import numpy as np, cnn

rng = np.random.default_rng(0)
x, y = rng.standard_normal((1500, 100)).astype("f4"), rng.standard_normal((1500, 10)).astype("f4")

def make():
    return cnn.Sequential([cnn.Linear(100, 300), cnn.Tanh(), cnn.Linear(300, 10), cnn.MSELoss()],
                          optimizer=cnn.Adam(), seed=0)

def work(model=None):
    model = model or make()
    losses = [model.train_step(x, y) for _ in range(10)]
    losses += model.fit(x, y, batch_size=500, epochs=2)["loss"]
    return np.concatenate([losses, model.predict(x).ravel(), model.parameters])

def one_thread():
    n = cnn.get_num_threads()
    cnn.set_num_threads(1)
    try:
        return work()
    finally:
        cnn.set_num_threads(n)

def right(_=None):
    return bool((work() == one_thread()).all())
"""


def child(tmp_path, code):
    """What the code prints, with four threads."""
    script = tmp_path / "child.py"
    script.write_text(CHILD + code)
    return output("-W", "ignore::DeprecationWarning", script, CNN_NUM_THREADS="4").split()


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


@needs_fork
def test_fork(tmp_path):
    """Threads do not live on in the child: it starts its own, and so does its child. The parent keeps its own."""
    code = """
expected = work()
model = make()
model.train_step(x, y)      # the same model, trained on in both processes
def family(depth):
    ok = bool((work() == expected).all() and (one_thread() == expected).all())
    if depth:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if family(depth - 1) else 1)
        ok = ok and os.waitpid(pid, 0)[1] == 0
    return ok and bool((work() == expected).all())
print(family(2))
pid = os.fork()
loss = model.train_step(x, y)
if pid == 0:
    other = make()
    cnn.set_num_threads(1)
    other.train_step(x, y)
    os._exit(0 if loss == other.train_step(x, y) else 1)
print(os.waitpid(pid, 0)[1])
"""
    assert child(tmp_path, code) == ["True", "0"]


@needs_fork
def test_fork_while_a_thread_trains(tmp_path):
    """The pool is in use at that moment; in the child no one would give it back."""
    code = """
expected = one_thread()
stop = []
def train():
    model = make()
    while not stop:
        model.train_step(x, y)
thread = threading.Thread(target=train)
thread.start()
children = []
for _ in range(8):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if (work() == expected).all() else 1)
    children.append(os.waitpid(pid, 0)[1])
stop.append(1)
thread.join()
print(*children)
"""
    assert child(tmp_path, code) == ["0"] * 8


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(tmp_path, method):
    import multiprocessing

    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this platform has no {method}")
    code = f"""
if __name__ == "__main__":
    assert right()
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        print(*pool.map(right, range(4), chunksize=1))
    print(right())
"""
    assert child(tmp_path, code) == ["True"] * 5


# Python's threads -------------------------------------------------------------------------------------------------


def test_each_thread_trains_a_model(isa, dtype):
    """One at a time has the pool; the other works alone meanwhile. Nothing of one comes into the other."""
    names = ["pieces", "narrow outputs"]

    def trained(name):
        spec, loss = SPECS[name]
        model, _ = build(spec, loss, dtype=dtype, optimizer=cnn.Adam(lr=0.001))
        x, y = batch_for(spec, loss, 400, dtype)
        losses = [model.train_step(x, y) for _ in range(10)]
        model.fit(x, y, batch_size=150, epochs=2)
        return losses, model.parameters, model.predict(x)

    cnn.set_num_threads(1)
    expected = {name: trained(name) for name in names}
    cnn.set_num_threads(3)
    run_together(*(lambda name=name: assert_same(trained(name), expected[name], name) for name in names))


def test_eight_threads_predict_with_one_model(isa, dtype):
    spec, loss = SPECS["narrow outputs"]
    model, _ = build(spec, loss, dtype=dtype)
    x, y = batch_for(spec, loss, 1500, dtype)
    expected, scores = model.predict(x, threads=1), model.evaluate(x, y)
    cnn.set_num_threads(4)

    def predicting(rows):
        def call():
            for _ in range(4):
                np.testing.assert_array_equal(model.predict(x[:rows]), expected[:rows])
                assert model.evaluate(x, y) == scores

        return call

    run_together(*(predicting(rows) for rows in (1, 64, 300, 700, 1000, 1234, 1499, 1500)))


ATTEMPTS = [
    "forward",
    "backward",
    "train_step",
    "fit",
    "loss_and_grad",
    "step",
    "parameters",
    "zero_grads",
    "optimizer",
]
ATTEMPTS += ["vjp", "jvp", "hvp", "load_weights"]


def test_threads_that_train_one_ensemble():
    """Each step is whole, or refused."""
    ensemble = cnn.Ensemble([cnn.Linear(100, 90), cnn.Tanh(), cnn.Linear(90, 3), cnn.MSELoss()], 2, cnn.SGD(0.01))
    errors = []

    def train(seed):
        random = np.random.default_rng(seed)
        for n in random.integers(100, 4000, 25):
            try:
                ensemble.train_step(random.normal(size=(n, 100)), np.zeros((n, 3)))
            except RuntimeError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    assert all("another thread is training one of these models" in error for error in errors)
    assert np.isfinite(ensemble.parameters).all()
    ensemble.train_step(np.ones((2, 100)), np.zeros((2, 3)))


@pytest.mark.parametrize("call", ATTEMPTS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_model_that_trains_refuses_others(isa, threads, call):
    """A RuntimeError at once for whatever would overwrite what the step works with; predict may run beside it."""
    spec, loss = SPECS["pieces"]
    cnn.set_num_threads(threads)
    model, _ = build(spec, loss, optimizer=cnn.SGD(lr=0.001))
    x, y = batch_for(spec, loss, 2500, np.float64)
    parameters, weights, y_rows = model.parameters, model.state_dict(), model.predict(x[:2])
    attempt = {
        "forward": lambda: model(x[:2]),
        "backward": lambda: (model(x[:2]), model.backward(np.zeros((2, 3)))),
        "train_step": lambda: model.train_step(x[:2], y[:2]),
        "fit": lambda: model.fit(x[:2], y[:2]),
        "loss_and_grad": lambda: model.loss_and_grad(x[:2], y[:2]),
        "step": model.step,
        "parameters": lambda: setattr(model, "parameters", parameters),
        "zero_grads": model.zero_grads,
        "optimizer": lambda: setattr(model, "optimizer", cnn.SGD(lr=0.001)),
        "vjp": lambda: model.vjp(x[:2], y_rows[:2]),
        "jvp": lambda: model.jvp(x[:2], x[:2]),
        "hvp": lambda: model.hvp(x[:2], y[:2], parameters),
        "load_weights": lambda: model.load_weights(weights),
    }[call]
    done = threading.Event()
    losses, others = [], []

    def train():
        while not done.is_set():
            try:
                losses.append(model.train_step(x, y))
            except RuntimeError:  # the attempt came first
                continue
            except BaseException as error:
                others.append(error)
                return

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    refused = ""
    while not refused and thread.is_alive():
        assert np.isfinite(model.predict(x[:2])).all()
        try:
            attempt()
        except RuntimeError as error:
            refused = str(error)
    done.set()
    thread.join(timeout=100)
    assert not thread.is_alive()
    assert not others
    assert refused.startswith("another thread is training this model")
    assert np.isfinite(losses).all()
    assert np.isfinite(model.train_step(x, y))


@pytest.mark.parametrize(
    ("omp", "own", "expected"),
    [("1", None, 1), ("1,4", None, 1), ("999", None, None), ("0", None, None), ("many", None, None), ("1", "3", 3)],
)
def test_openmp_s_limit(omp, own, expected):
    """OMP_NUM_THREADS limits the threads, where CNN_NUM_THREADS says nothing; None: as many as there are processors."""
    done = run("-c", "import cnn; print(cnn.get_num_threads())", OMP_NUM_THREADS=omp, CNN_NUM_THREADS=own)
    assert int(done.stdout) == (expected or _threads.available())


@pytest.mark.parametrize("first", ["cnn", "threadpoolctl"])
def test_limits_of_threadpoolctl(first):
    pytest.importorskip("threadpoolctl")
    code = f"""
import {first}
import cnn, threadpoolctl
cnn.set_num_threads(3)
with threadpoolctl.threadpool_limits(2):
    print(cnn.get_num_threads())
    with threadpoolctl.threadpool_limits({{"cnn": 1}}):
        print(cnn.get_num_threads())
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        print(cnn.get_num_threads())
print(cnn.get_num_threads())
(own,) = [one for one in threadpoolctl.threadpool_info() if one["user_api"] == "cnn"]
print(own["num_threads"])
"""
    done = run("-c", code)
    assert done.stdout.split() == ["2", "1", "2", "3", "3"], done.stderr


def test_without_threadpoolctl():
    code = "import sys; sys.modules['threadpoolctl'] = None; import cnn; print(cnn.get_num_threads())"
    assert int(run("-c", code, OMP_NUM_THREADS=None, CNN_NUM_THREADS=None).stdout) == _threads.available()
