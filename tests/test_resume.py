"""Exact resume: 20 epochs straight, or 7, a file, a new process and 13, give the same bits."""

import contextlib
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import every_layer, fit, plain, same

import cnn
from cnn.files import atomic_write, checkpoint, safetensors_file

EPOCHS, BREAK = 20, 7


# Of each case the model and further arguments of fit.
CASES = {
    "SGD": (lambda: plain(cnn.SGD(lr=0.1)), {}),
    "SGD, float64": (lambda: plain(cnn.SGD(lr=0.1), dtype="float64"), {}),
    "SGD, one sample at a time": (lambda: plain(cnn.SGD(lr=0.05)), {"batch_size": 1}),
    "SGD, in order": (lambda: plain(cnn.SGD(lr=0.1, weight_decay=0.01)), {"shuffle": False}),
    "momentum": (lambda: plain(cnn.SGD(lr=0.1, momentum=0.9, dampening=0.2)), {}),
    "Nesterov": (lambda: plain(cnn.SGD(lr=0.1, momentum=0.9, nesterov=True), dtype="float64"), {}),
    "Adam": (lambda: plain(cnn.Adam(lr=0.01)), {}),
    "Adam, one sample at a time": (lambda: plain(cnn.Adam(lr=0.001)), {"batch_size": 1}),
    "Adam, AMSGrad": (lambda: plain(cnn.Adam(lr=0.01, amsgrad=True, weight_decay=0.01)), {}),
    "AdamW": (lambda: plain(cnn.AdamW(lr=0.01), dtype="float64"), {}),
    "RMSprop": (lambda: plain(cnn.RMSprop(lr=0.01, momentum=0.5, centered=True)), {}),
    "Adagrad": (lambda: plain(cnn.Adagrad(lr=0.05, lr_decay=0.01)), {}),
    "seed None": (lambda: plain(cnn.Adam(lr=0.01), seed=None), {}),
    "two threads": (lambda: plain(cnn.Adam(lr=0.01)), {"threads": 2}),
    "MSE": (lambda: plain(cnn.Adam(lr=0.01), cnn.MSELoss()), {}),
    "clipping, averaging, groups": (
        lambda: plain(
            cnn.Adam(lr=0.01, clip_norm=0.5, ema_decay=0.95, decay_bias=False, groups=[{"layers": [2], "lr": 0.001}])
        ),
        {},
    ),
    "averaging with momentum": (lambda: plain(cnn.SGD(lr=0.1, momentum=0.9, ema_decay=0.9)), {}),
    "accumulated": (lambda: plain(cnn.SGD(lr=0.1, momentum=0.9)), {"accumulation_steps": 3}),
    "StepLR": (lambda: plain(cnn.SGD(lr=0.1, schedule=cnn.StepLR(4, 0.5))), {}),
    "CosineAnnealingLR by steps": (lambda: plain(cnn.Adam(schedule=cnn.CosineAnnealingLR(50, interval="step"))), {}),
    "OneCycleLR": (lambda: plain(cnn.SGD(momentum=0.9, schedule=cnn.OneCycleLR(0.2, 200))), {}),
    "ReduceLROnPlateau": (
        lambda: plain(cnn.SGD(lr=0.5, schedule=cnn.ReduceLROnPlateau(patience=1, threshold=0.02, monitor="loss"))),
        {},
    ),
    "SequentialLR": (
        lambda: plain(cnn.SGD(schedule=cnn.SequentialLR([cnn.LinearLR(total_iters=5), cnn.ExponentialLR(0.9)], [5]))),
        {},
    ),
    "every layer": (lambda: every_layer(cnn.SGD(lr=0.05, momentum=0.9)), {}),
    "every layer, seed None": (lambda: every_layer(cnn.AdamW(ema_decay=0.9), dtype="float64", seed=None), {}),
}


RESUME = """
import sys
sys.path.insert(0, sys.argv[1])
import checkpoints, cnn, test_resume
for i, (_, arguments) in enumerate(test_resume.CASES.values()):
    model = cnn.load(f"{sys.argv[2]}/{i}.safetensors")
    checkpoints.fit(model, test_resume.EPOCHS, test_resume.BREAK, **arguments)
    model.save(f"{sys.argv[2]}/{i}-resumed.safetensors", training_state=True)
"""


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Of each case: the model after all epochs in this process, and the one that another process has resumed."""
    folder = tmp_path_factory.mktemp("resume")
    straight = []
    for i, (make, arguments) in enumerate(CASES.values()):
        model = make()
        model.save(folder / "start", training_state=True)
        part = cnn.load(folder / "start")
        fit(model, EPOCHS, **arguments)
        fit(part, BREAK, **arguments)
        part.save(folder / f"{i}.safetensors", training_state=True)
        straight.append(model)
    command = [sys.executable, "-c", RESUME, os.path.dirname(__file__), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [cnn.load(folder / f"{i}-resumed.safetensors") for i in range(len(CASES))]
    return dict(zip(CASES, zip(straight, files, strict=True), strict=True))


class SavesWithin(cnn.Callback):
    """Saves the model within an epoch, and ends the training there."""

    def __init__(self, path, epoch, batch):
        self.path, self.epoch, self.batch = path, epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_batch_end(self, batch, logs=None):
        if (self.now, batch) == (self.epoch, self.batch):
            self.model.save(self.path, training_state=True)
            raise KeyboardInterrupt


@pytest.mark.parametrize("batch", [0, 5, 12])
@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_resumed_within_an_epoch(tmp_path, batch, accumulation_steps):
    """From the file, and in the model that was interrupted; a file of the position is no different from another."""
    schedule = cnn.OneCycleLR(0.02, total_steps=100)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 5)), rng.integers(0, 3, 100)
    arguments = {"epochs": 5, "batch_size": 8, "accumulation_steps": accumulation_steps}

    def make():
        layers = [cnn.Linear(5, 9), cnn.BatchNorm1d(9), cnn.ReLU(), cnn.Dropout(0.2), cnn.Linear(9, 3)]
        return cnn.Sequential([*layers, cnn.CrossEntropyLoss()], cnn.Adam(lr=0.01, schedule=schedule), seed=1)

    straight, interrupted = make(), make()
    history = straight.fit(x, y, **arguments)
    stop = min(batch - batch % accumulation_steps + accumulation_steps - 1, 12)
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(x, y, **arguments, callbacks=[SavesWithin(tmp_path / "within", 3, stop)])
    loaded = cnn.load(tmp_path / "within")
    assert loaded._core.state.position[:2] == (3, min(8 * (stop + 1), 100))
    for model in (loaded, interrupted):
        resumed = model.fit(x, y, **arguments, initial_epoch=2)
        for name, values in history.items():  # losses of accumulated batches are added up call by call
            np.testing.assert_allclose(resumed[name], values, rtol=0 if accumulation_steps == 1 else 1e-14)
        np.testing.assert_array_equal(model.parameters, straight.parameters)
        assert model._core.state.position is None
    other = cnn.load(tmp_path / "within")
    other.fit(x, y, epochs=1, batch_size=8)  # without initial_epoch an epoch is an epoch
    assert other._core.state.position is None


@pytest.mark.parametrize("make", [lambda: cnn.SGD(lr=0.1, momentum=0.9, schedule=cnn.StepLR(1)), lambda: cnn.LBFGS()])
def test_continued_wherever_it_was_interrupted(make, tmp_path):
    """At each call of a function of the user's in the second run of a model: the same as without interruption."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 4)), rng.integers(0, 3, 40)
    y[::5] = -100  # which the loss ignores
    calls = stop = 0

    def place(*_):
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return 0.0

    def started():
        model = cnn.Sequential([cnn.Linear(4, 3), cnn.CrossEntropyLoss()], make(), seed=1, dtype="float64")
        model.fit(*data, epochs=2, batch_size=size)
        return model

    size = None if make().whole_data else 8
    for data in [(x, y)] if size is None else [(x, y), (cnn.Blocks(x, y, rows=16),)]:
        methods = dict.fromkeys(("on_batch_end", "on_epoch_begin", "on_epoch_end"), place)
        known = {"epochs": 2, "batch_size": size, "validation_data": (x, y), "metrics": {"place": place}}
        stop = calls = 0
        expected = started()
        history = expected.fit(*data, **known, callbacks=[cnn.LambdaCallback(**methods)])
        for at in range(1, calls + 1):
            model, stop, calls = started(), at, 0
            with pytest.raises(KeyboardInterrupt):
                model.fit(*data, **known, callbacks=[cnn.LambdaCallback(**methods)])
            model.save(tmp_path / "model", training_state=True)
            for other in (model, cnn.load(tmp_path / "model")):
                done = other.history.epochs[-1] if other.history.epochs else 0
                again = other.fit(*data, **known, initial_epoch=done)
                for name in history.keys() - {"evaluations", "place"}:  # which need what is done
                    np.testing.assert_allclose(again[name], history[name], rtol=1e-12, err_msg=f"{name}, {at}")
                np.testing.assert_array_equal(other.parameters, expected.parameters)


def test_a_new_optimizer_does_not_continue_an_epoch():
    x, y = np.zeros((32, 5)), np.zeros(32, int)
    model = plain(cnn.SGD(lr=0.1))
    stop = cnn.LambdaCallback(on_batch_end=lambda batch, logs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, batch_size=8, callbacks=[stop])
    model.optimizer = cnn.SGD(lr=0.1)
    model.fit(x, y, batch_size=8, initial_epoch=0)
    assert model._core.program.steps == 4


@pytest.mark.parametrize("loads", [False, True])
def test_a_new_run_after_an_interrupted_first_epoch(tmp_path, loads):
    """It is no continuation, unless initial_epoch=0 says so: other data would lose their first rows."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((100, 5)).astype("f4"), rng.integers(0, 3, 100)

    def interrupted():
        model = cnn.Sequential([cnn.Linear(5, 3), cnn.CrossEntropyLoss()], cnn.SGD(lr=0.01), seed=1)
        with pytest.raises(KeyboardInterrupt):
            model.fit(x, y, batch_size=8, epochs=2, callbacks=[SavesWithin(tmp_path / "within", 1, 4)])
        return cnn.load(tmp_path / "within") if loads else model

    model, twin = interrupted(), interrupted()
    order = model._core.kernels.permutation(len(x), model._core.state.random_seed, 0)
    history = model.fit(x, y, batch_size=8, epochs=1)
    losses = [twin.train_step(x[order[at : at + 8]], y[order[at : at + 8]]) for at in range(0, len(x), 8)]
    sizes = [len(order[at : at + 8]) for at in range(0, len(x), 8)]
    np.testing.assert_array_equal(model.parameters, twin.parameters)
    assert history["loss"][0] == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)

    rest = interrupted()
    order = order[40:]
    twin = interrupted()
    rest.fit(x, y, batch_size=8, epochs=1, initial_epoch=0)
    for at in range(0, len(order), 8):
        twin.train_step(x[order[at : at + 8]], y[order[at : at + 8]])
    np.testing.assert_array_equal(rest.parameters, twin.parameters)


@pytest.mark.parametrize("case", CASES)
def test_resumed_in_a_new_process(resumed, case):
    """Parameters, history, running statistics, averages, the optimiser's state."""
    straight, other = resumed[case]
    assert straight.parameters.tobytes() == other.parameters.tobytes()
    assert straight.history == other.history
    assert list(straight.history) == list(other.history)
    assert other.history.epochs == list(range(1, EPOCHS + 1))
    assert len(set(straight.history["loss"])) == EPOCHS  # it has moved all the time
    assert same(straight, other)


@pytest.mark.parametrize("step", ["train_step", "step"])
def test_the_explicit_loop_goes_on_too(tmp_path, step):
    """Wherever it is interrupted: the optimiser's state and the random numbers are those of the last step."""
    rng = np.random.default_rng(1)
    batches = [(rng.standard_normal((9, 5)), rng.integers(0, 3, 9)) for _ in range(10)]

    def train(model, batches):
        for x, y in batches:
            if step == "train_step":
                model.train_step(x, y)
            else:
                model(x, y)
                model.zero_grads()
                model.backward()
                model.step()

    straight, part = (every_layer(cnn.Adam(lr=0.01, ema_decay=0.9)) for _ in range(2))
    train(straight, batches)
    train(part, batches[:4])
    part.save(tmp_path / "part", training_state=True)
    part = cnn.load(tmp_path / "part")
    train(part, batches[4:])
    assert same(straight, part)


def test_hyperparameters_that_were_changed_are_saved(tmp_path):
    model = plain(cnn.Adam(lr=0.01))
    model.optimizer.lr = 0.003
    model.optimizer.betas = (0.5, 0.6)
    model.save(tmp_path / "file")
    assert cnn.load(tmp_path / "file").optimizer.get_config() == model.optimizer.get_config()


def test_without_the_training_state(tmp_path):
    model = plain(cnn.Adam())
    fit(model, 2)
    model.save(tmp_path / "file")
    loaded = cnn.load(tmp_path / "file")
    assert loaded.parameters.tobytes() == model.parameters.tobytes()
    assert loaded.history is None
    assert loaded._core.program.steps == 0
    assert not same(loaded, model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("optimizer", [None, cnn.SGD()], ids=str)
def test_a_model_that_was_never_trained(tmp_path, optimizer, training):
    model = plain(optimizer, seed=None).train(training)
    model.save(tmp_path / "file", training_state=True)
    loaded = cnn.load(tmp_path / "file")
    assert loaded.history is None
    assert loaded.training == training
    assert same(loaded, model)


@pytest.mark.parametrize("values", [[np.nan, np.inf, -np.inf, -0.0], [1, 2**60], []])
def test_odd_numbers_in_the_history(tmp_path, values):
    model = plain(cnn.SGD())
    model.history = cnn.History({"b/é": values, "a": values})
    model.save(tmp_path / "file", training_state=True)
    loaded = cnn.load(tmp_path / "file").history
    assert list(loaded) == ["b/é", "a"]
    assert loaded.epochs == model.history.epochs
    assert np.array(loaded["a"]).tobytes() == np.array(values, np.float64).tobytes()


def changed(model, path, edit):
    """A file with the training state after `edit(arrays, numbers)`, sealed with its digest."""
    tensors, metadata = checkpoint.parts_of(model, True)
    names = {name.removeprefix("cnn.training/"): name for name in tensors}
    arrays = {short: np.array(tensors[name]) for short, name in names.items() if short != name}
    numbers = safetensors_file.parsed(metadata["training"], "")
    numbers = edit(arrays, numbers) or numbers
    tensors = {name: a for name, a in tensors.items() if not name.startswith("cnn.training/")}
    metadata["training"] = json.dumps(numbers)
    atomic_write.replace(
        path, safetensors_file.pack(tensors | {f"cnn.training/{k}": a for k, a in arrays.items()}, metadata)
    )


EDITS = {
    "nothing": (lambda a, n: None, None),
    "no counters": (lambda a, n: a.pop("counters") is None, "counters"),
    "another state": (lambda a, n: a.update({"state.2": a["state.0"]}), "state.2"),
    "a state too few": (lambda a, n: a.pop("state.1") is None, r"state.1"),
    "a state too short": (lambda a, n: a.update({"state.1": a["state.1"][1:]}), r"state.1"),
    "a state of two axes": (lambda a, n: a.update({"state.1": a["state.1"][None]}), r"state.1"),
    "counters negative": (lambda a, n: a.update({"counters": -1 - a["counters"]}), "counters"),
    "counters too many": (lambda a, n: a.update({"counters": np.zeros(99, np.int64)}), "counters"),
    "counters of floats": (lambda a, n: a.update({"counters": a["counters"] + 0.5}), "counters"),
    "no epochs": (lambda a, n: a.pop("epochs") is None, "epochs.: expected a vector of int64"),
    "epochs of floats": (lambda a, n: a.update({"epochs": a["epochs"] * 1.0}), "epochs.: expected a vector of int64"),
    "history without an array": (lambda a, n: n["history"].append("f1"), "history/f1.*expected a vector of float64"),
    "history of integers": (lambda a, n: a.update({"history/loss": a["epochs"]}), "expected a vector of float64"),
    "history with a twin": (lambda a, n: n["history"].append("loss"), "history/loss.*expected a vector of float64"),
    "an array without a history": (lambda a, n: n.update({"history": None}), "epochs.: expected dtype"),
    "history no list": (lambda a, n: n.update({"history": "loss"}), "history: expected a list of names"),
    "history no names": (lambda a, n: n.update({"history": [1]}), "history: expected a list of names"),
    "epoch negative": (lambda a, n: n.update({"epoch": -1}), "epoch: expected an integer of at least 0, got -1"),
    "epoch of 2**70": (lambda a, n: n.update({"epochs_seen": 2**70}), "epochs_seen: expected an integer"),
    "seed no integer": (lambda a, n: n.update({"random_seed": 1.0}), "random_seed: expected an integer"),
    "seed true": (lambda a, n: n.update({"random_seed": True}), "random_seed: expected an integer"),
    "mode no truth": (lambda a, n: n.update({"training": 1}), "training: expected true or false, got 1"),
    "a state of no schedule": (lambda a, n: n.update({"schedule": {}}), "schedule: {} is not a state of None"),
    "a number too few": (lambda a, n: n.pop("epoch") is None, "training: expected epoch, epochs_seen, history"),
    "a number too many": (lambda a, n: n.update({"x": 0}), "training: expected epoch, epochs_seen, history"),
    "no table": (lambda a, n: [1], "training: expected epoch"),
    "callbacks no table": (lambda a, n: n.update({"callbacks": [1]}), "training: callbacks: expected tables by name"),
    "a callback no table": (
        lambda a, n: n.update({"callbacks": {"A": 1}}),
        "training: callbacks: expected tables by n",
    ),
    "an array of no callback": (
        lambda a, n: a.update({"callback/A/b": a["epochs"]}),
        "callback/A/b.*one of the callbacks",
    ),
    "two of one name": (
        lambda a, n: a.update({"callback/A/b": a["epochs"]}) or n.update({"callbacks": {"A": {"b": 1}}}),
        "callback/A/b.*one of the callbacks",
    ),
}


@pytest.mark.parametrize(("edit", "message"), EDITS.values(), ids=EDITS)
def test_a_damaged_training_state(tmp_path, edit, message):
    """By someone who knows how to seal it: an error that names the file."""
    model = plain(cnn.Adam())
    fit(model, 2)
    path = tmp_path / "file"
    changed(model, path, edit)
    if message is None:
        assert same(cnn.load(path), model)
    else:
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: cannot be read as a checkpoint: .*{message}"):
            cnn.load(path)


@pytest.mark.parametrize(
    "edit",
    [
        lambda state: state.pop("parameters"),
        lambda state: state.pop("waited"),
        lambda state: state.update(parameters=state["parameters"][1:]),
        lambda state: state.update({"state.0": state["state.0"][:-1]}),
        lambda state: state.update(counters=-state["counters"] - 1),
        lambda state: state.update(epochs_seen="many"),
    ],
)
def test_a_damaged_state_of_early_stopping(edit):
    """Found before anything is trained, and nothing is read or written beyond the arrays."""
    model = plain(cnn.Adam())
    with contextlib.suppress(KeyError):
        fit(model, 2, early_stopping=3, callbacks=[cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: {}[epoch])])
    state = model._core.state.callbacks["EarlyStopping"]
    before = model.parameters
    edit(state)
    with pytest.raises((ValueError, TypeError)):
        fit(model, 3, initial_epoch=1, early_stopping=3)
    np.testing.assert_array_equal(model.parameters, before)


def test_a_damaged_state_of_a_schedule(tmp_path):
    model = plain(cnn.SGD(schedule=cnn.ReduceLROnPlateau(monitor="loss")))
    path = tmp_path / "file"
    for schedule in (None, [], {}, {"best": "a", "num_bad_epochs": 0, "cooldown_counter": 0, "reductions": 0}):
        changed(model, path, lambda a, n, schedule=schedule: n.update({"schedule": schedule}))
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: cannot be read as a checkpoint: "):
            cnn.load(path)


def test_training_tensors_without_their_numbers(tmp_path):
    model = plain(cnn.SGD())
    tensors, metadata = checkpoint.parts_of(model, True)
    del metadata["training"]
    atomic_write.replace(tmp_path / "file", safetensors_file.pack(tensors, metadata))
    with pytest.raises(ValueError, match="unknown counters: the file has no training state"):
        cnn.load(tmp_path / "file")


def files(folder):
    return sorted(os.listdir(folder))
