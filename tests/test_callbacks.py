"""Callbacks of fit: when they are called and with what; early stopping; the loggers."""

import contextlib
import csv
import math
import pickle
import re
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
from networks import batch_for, build, chain

import cnn
from cnn.training import fit as training
from cnn.training.callbacks import METHODS, overridden
from cnn.training.metrics import KNOWN, more_is_better
from cnn.training.state import names_of

SPEC = chain(5, 9, 3)
X, Y = batch_for(SPEC, "mse", 40, np.float32)


def model_of(seed=0, lr=0.05):
    return build(SPEC, "mse", dtype="float32", seed=seed, optimizer=cnn.SGD(lr=lr, momentum=0.9))[0]


class Recorder(cnn.Callback):
    """Writes down all calls."""

    def __init__(self, *names):
        self.calls = []
        for name in names or METHODS:
            setattr(self, name, self.recording(name))

    def recording(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_order_of_calls():
    recorder = Recorder()
    model = model_of()
    history = model.fit(X, Y, epochs=2, batch_size=16, callbacks=[recorder], validation_data=(X, Y))
    assert [call[:-1] for call in recorder.calls] == [
        ("on_train_begin",),
        *(
            call
            for epoch in (1, 2)
            for call in (
                ("on_epoch_begin", epoch),
                *(("on_batch_end", batch) for batch in range(3)),
                ("on_epoch_end", epoch),
            )
        ),
        ("on_train_end",),
    ]
    logs = {call[:-1]: call[-1] for call in recorder.calls}
    assert logs["on_train_begin",] == logs["on_epoch_begin", 1] == {}
    assert logs["on_epoch_end", 2] == {name: values[1] for name, values in history.items()}
    assert logs["on_train_end",] == logs["on_epoch_end", 2]
    assert recorder.model is model


def test_logs_of_batches():
    """The loss of each batch before its step, as train_step returns it."""
    recorder = Recorder("on_batch_end")
    model, looped = model_of(), model_of()
    model.fit(X, Y, batch_size=16, callbacks=[recorder], shuffle=False)
    for i, (_, batch, logs) in enumerate(recorder.calls):
        rows = slice(16 * i, 16 * i + 16)
        assert batch == i
        assert logs["rows"] == len(X[rows])
        assert logs["loss"] == pytest.approx(looped.train_step(X[rows], Y[rows]), rel=1e-12)
    assert len(recorder.calls) == 3


def test_callbacks_change_nothing():
    plain, called = model_of(), model_of()
    history = plain.fit(X, Y, epochs=3, batch_size=7)
    assert called.fit(X, Y, epochs=3, batch_size=7, callbacks=[Recorder()]) == {
        "loss": pytest.approx(history["loss"], rel=1e-12)
    }
    np.testing.assert_array_equal(plain.parameters, called.parameters)


def test_what_is_not_overridden_is_not_called():
    """Only on_batch_end cuts the native calls into batches."""

    class Own(cnn.Callback):
        def on_epoch_end(self, epoch, logs):
            self.epoch = epoch

    one, other = Own(), cnn.LambdaCallback(on_batch_end=print)
    assert overridden([one, other], "on_epoch_end") == [one.on_epoch_end]
    assert overridden([one, other], "on_batch_end") == [print]
    assert overridden([one, other, cnn.Callback()], "on_train_begin") == []


@pytest.mark.parametrize("per_batch", [False, True])
def test_native_calls(per_batch, monkeypatch):
    monkeypatch.setattr(training, "SLICE", 1e9)
    calls = []

    class Counting:
        def __init__(self, program):
            self.program = program

        def __getattr__(self, name):
            return getattr(self.program, name)

        def train_batches(self, *arguments):
            calls.append(arguments)
            return self.program.train_batches(*arguments)

    def counting(trainer, *arguments, original=training._Trainer.__init__, **named):
        original(trainer, *arguments, **named)
        trainer.program = Counting(trainer.program)

    monkeypatch.setattr(training._Trainer, "__init__", counting)
    callback = cnn.LambdaCallback(**{"on_batch_end" if per_batch else "on_epoch_end": lambda i, logs: None})
    model_of().fit(X, Y, epochs=10, batch_size=1, callbacks=[callback])
    assert len(calls) == (400 if per_batch else 4 + 9)  # batches a call: 1, 4, 16, then all


@pytest.mark.parametrize("by", ["stop", "stop_training"])
@pytest.mark.parametrize("method", ["on_train_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end"])
def test_ending_the_training(method, by):
    class Ender(cnn.Callback):
        def end(self, number=2, logs=None):
            if number == 2:
                if by == "stop":
                    self.stop = True
                else:
                    self.model.stop_training = True

    ender, recorder, model = Ender(), Recorder("on_epoch_end", "on_train_end"), model_of()
    setattr(ender, method, ender.end if method != "on_train_begin" else lambda logs: ender.end())
    history = model.fit(X, Y, epochs=5, batch_size=8, callbacks=[ender, recorder], shuffle=False)
    steps = {"on_train_begin": 0, "on_epoch_begin": 10, "on_batch_end": 3, "on_epoch_end": 10}[method]
    assert model._core.program.steps == steps
    assert len(history.get("loss", [])) == len(history.epochs) == -(-steps // 5)
    assert recorder.calls[-1][0] == "on_train_end"
    if method == "on_batch_end":  # the loss is that of the rows that were trained on
        other = model_of()
        assert history["loss"] == other.fit(X[:24], Y[:24], batch_size=8, shuffle=False)["loss"]
    assert len(model.fit(X, Y, epochs=2)["loss"]) == 2  # the next fit is not ended


@pytest.mark.parametrize("method", METHODS)
def test_exceptions_leave_a_valid_model(method):
    def fail(*arguments):
        raise KeyError("mine")

    model = model_of()
    with pytest.raises(KeyError, match="mine"):
        model.fit(X, Y, epochs=2, batch_size=8, callbacks=[cnn.LambdaCallback(**{method: fail})])
    done = {"on_train_begin": 0, "on_epoch_begin": 0, "on_batch_end": 1, "on_epoch_end": 5, "on_train_end": 10}
    assert model._core.program.steps == done[method]
    assert len(model.history.epochs) == done[method] // 5
    assert np.isfinite(model.fit(X, Y, epochs=2)["loss"]).all()


def test_fit_in_a_callback():
    model, other = model_of(), model_of()
    again = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: model.fit(X, Y))
    with pytest.raises(RuntimeError, match=r"or a callback of its fit has called fit again$"):
        model.fit(X, Y, callbacks=[again])
    assert len(model.history["loss"]) == 1
    histories = []
    nested = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: histories.append(other.fit(X, Y)))
    model.fit(X, Y, epochs=2, callbacks=[nested])
    assert len(histories) == 2


def test_predict_and_evaluate_in_a_callback():
    model = model_of()
    scores = []

    def measure(epoch, logs):
        scores.append(model.evaluate(X, Y)["loss"])
        assert model.predict(X).shape == Y.shape

    history = model.fit(X, Y, epochs=3, callbacks=[cnn.LambdaCallback(on_epoch_end=measure)], validation_data=(X, Y))
    assert scores == history["val_loss"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"callbacks": 3}, TypeError, "^callbacks: expected a list of cnn.Callback, got 3"),
        ({"callbacks": [print]}, TypeError, "^callbacks: expected cnn.Callback objects, got <built-in function"),
        ({"callbacks": [cnn.Callback]}, TypeError, r"got <class .*> \(pass an object, not the class\)"),
        (
            {"callbacks": [cnn.EarlyStopping()]},
            ValueError,
            "^early stopping: no 'val_loss' to monitor: there are loss",
        ),
        ({"early_stopping": True}, ValueError, "pass validation_data or validation_split, or monitor='loss'"),
        ({"early_stopping": 0}, ValueError, "^patience: expected at least 1, got 0"),
        ({"early_stopping": "loss"}, TypeError, "^early_stopping: expected EarlyStopping, an int or True, got 'loss'"),
        (
            {"early_stopping": cnn.EarlyStopping("val_auc"), "validation_data": (X, Y)},
            ValueError,
            "^early stopping: no 'val_auc' to monitor: there are loss, val_loss$",
        ),
    ],
    ids=str,
)
def test_callbacks_that_are_refused(arguments, error, message):
    model = model_of()
    before = model.parameters
    with pytest.raises(error, match=message):
        model.fit(X, Y, epochs=2, **arguments)
    assert model._core.program.steps == 0
    np.testing.assert_array_equal(model.parameters, before)


def test_one_callback_twice():
    callback = Recorder()
    with pytest.raises(ValueError, match=r"^callbacks: .* was passed twice"):
        model_of().fit(X, Y, callbacks=[callback, callback])
    model_of().fit(X, Y, callbacks=callback)
    assert callback.calls


def test_lambda_callback_wants_functions():
    with pytest.raises(TypeError, match=r"^on_epoch_end: expected a function, got 3"):
        cnn.LambdaCallback(on_epoch_end=3)


# early stopping -----------------------------------------------------------------------------------


def stopped_by(values, model=None, **arguments):
    """A run whose val_loss are these values; the stopper, and the parameters after each epoch."""
    model = model or model_of()
    parameters = []
    stopper = cnn.EarlyStopping(**{"monitor": "val_given", "mode": "min", **arguments})
    given = iter([v for value in values for v in (0.0, value)])  # training's, then validation's
    keep = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: parameters.append(model.parameters))

    def metric(targets, outputs):
        return next(given)

    metric.__name__ = "given"
    history = model.fit(
        X, Y, epochs=len(values), metrics=[metric], callbacks=[keep, stopper], validation_data=(X, Y), batch_size=8
    )
    assert history["val_given"] == pytest.approx(values[: len(history.epochs)], nan_ok=True)
    return stopper, parameters, model, history


@pytest.mark.parametrize(
    ("values", "patience", "arguments", "epochs", "best"),
    [
        ([5, 4, 3, 2], 1, {}, 4, 4),
        ([5, 4, 4, 3], 1, {}, 3, 2),
        ([5, 4, 4, 3, 3, 3, 3], 2, {}, 6, 4),
        ([1, 2, 3, 4, 5], 3, {}, 4, 1),
        ([1, 2, 3, 4, 5], 3, {"mode": "max"}, 5, 5),
        ([5, 4.6, 4.2, 3.8, 3.5], 2, {"min_delta": 0.5}, 5, 5),
        ([5, 4.6, 4.5, 3.8, 3.5], 2, {"min_delta": 0.5}, 3, 1),
        ([math.nan, 3, math.nan, math.nan, 1], 2, {}, 4, 2),
        ([math.nan, math.nan, 1], 2, {}, 2, None),
        ([math.inf, 2, -math.inf, 5], 3, {}, 4, 3),
    ],
)
def test_early_stopping(values, patience, arguments, epochs, best):
    stopper, parameters, model, history = stopped_by(values, patience=patience, **arguments)
    assert len(parameters) == len(history.epochs) == epochs
    assert stopper.best_epoch == best
    assert stopper.best == (None if best is None else values[best - 1])
    ended = epochs < len(values) or stopper.stopped_epoch is not None
    assert stopper.stopped_epoch == (epochs if ended else None)
    np.testing.assert_array_equal(model.parameters, parameters[(best or epochs) - 1])


def test_the_best_state_is_put_back_whole():
    """Momentum and the count of steps as well: training goes on as from there."""
    _, _, model, _ = stopped_by([3, 2, 4, 5], patience=10)
    assert model._core.program.steps == 10
    other = model_of()
    other.fit(X, Y, epochs=2, batch_size=8)
    np.testing.assert_array_equal(model.parameters, other.parameters)
    model.fit(X, Y, batch_size=8, shuffle=False)
    other.fit(X, Y, batch_size=8, shuffle=False)
    np.testing.assert_array_equal(model.parameters, other.parameters)


def test_the_last_parameters_stay_if_wanted():
    _, parameters, model, _ = stopped_by([3, 2, 4, 5], patience=2, restore_best_weights=False)
    assert len(parameters) == 4
    np.testing.assert_array_equal(model.parameters, parameters[-1])


def test_each_fit_starts_anew():
    stopper = cnn.EarlyStopping("loss", patience=3)
    model = model_of()
    model.fit(X, Y, epochs=5, callbacks=[stopper])
    first = stopper.best
    model.optimizer.lr = 1e-9
    model.parameters = 3 * model.parameters
    history = model.fit(X, Y, epochs=3, callbacks=[stopper])
    assert len(history["loss"]) == 3
    assert stopper.best > first


def test_short_ways_to_early_stopping():
    for short, patience in ((True, 10), (4, 4), (np.int64(2), 2)):
        model = model_of(lr=0.0)
        history = model.fit(X, Y, epochs=50, early_stopping=short, validation_split=0.5)
        assert len(history["loss"]) == 1 + patience
    assert len(model.fit(X, Y, epochs=3, early_stopping=False)["loss"]) == 3


def test_modes():
    fewer = {"loss", "mae", "rmse"}
    for name in ("loss", "top_3", *KNOWN):
        assert more_is_better(name) == more_is_better(f"val_{name}") == (name not in fewer), name

    def own(targets, outputs):
        return 1.0

    with pytest.raises(ValueError, match=r"^mode: 'auto' cannot tell whether a higher own is better: pass mode='min'"):
        model_of().fit(X, Y, metrics=[own], early_stopping=cnn.EarlyStopping("own"))
    assert cnn.EarlyStopping("val_own", mode="max").mode == "max"


@pytest.mark.parametrize("make", [cnn.EarlyStopping, lambda name: cnn.ModelCheckpoint("x", 1, 3, True, name)])
def test_a_misspelt_monitor(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = "no 'val_los' to monitor: there are loss, val_loss; did you mean 'val_loss'\\?"
    with pytest.raises(ValueError, match=message):
        model_of().fit(X, Y, validation_split=0.5, callbacks=[make("val_los")])


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("on_train_batch_end", " (did you mean on_batch_end?)"),
        ("on_train_epoch_end", " (did you mean on_epoch_end?)"),
        ("on_train_start", " (did you mean on_train_begin?)"),
        ("on_epoch_ends", " (did you mean on_epoch_end?)"),
        ("on_predict_begin", ""),
    ],
)
@pytest.mark.parametrize("how", ["class", "object"])
def test_methods_that_would_never_be_called(name, right, how):
    callback = type("Mine", (cnn.Callback,), {name: lambda self, *_: None} if how == "class" else {})()
    if how == "object":
        setattr(callback, name, lambda *_: None)
    message = f"callbacks: Mine has a method {name}, which fit never calls{right}: there are {', '.join(METHODS)}"
    with pytest.raises(AttributeError, match=re.escape(message)):
        model_of().fit(X, Y, callbacks=[callback])


# what a run that is continued has to know ---------------------------------------------------------


class Counting(cnn.Callback):
    """A callback of the user's own, with a state."""

    def __init__(self):
        self.epochs, self.sums = 0, np.zeros(3)

    def on_epoch_end(self, epoch, logs):
        self.epochs += 1
        self.sums += logs["val_loss"]

    def state_dict(self):
        return {"epochs": self.epochs, "sums": self.sums, "note": {"a": [1, None]}}

    def load_state_dict(self, state):
        assert state["note"] == {"a": [1, None]}
        self.epochs, self.sums = state["epochs"], np.array(state["sums"])


class Killed(cnn.Callback):
    """Ends the process's run in the middle of an epoch, as a kill does: nothing is called afterwards."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs):
        if epoch == self.epoch:
            raise KeyboardInterrupt


NOISE = np.random.default_rng(5).standard_normal((2, 24, 3)).astype(np.float32)


def script(folder, dtype, *, killed_at=None, every=1, monitor="val_loss", patience=5):
    """What a user runs again after a crash; a model that overfits, so that the best epoch is an early one."""
    layers = [cnn.Linear(5, 24), cnn.BatchNorm1d(24), cnn.Tanh(), cnn.Linear(24, 3), cnn.MSELoss()]
    optimizer = cnn.Adam(lr=0.03, ema_decay=0.9, schedule=cnn.ReduceLROnPlateau(patience=1, factor=0.5))
    model = cnn.Sequential(layers, optimizer, dtype=dtype, seed=1)
    mine, stopper = Counting(), cnn.EarlyStopping(monitor, patience=patience)
    callbacks = [cnn.CSVLogger(folder / "log.csv"), mine, stopper]
    history = None
    with contextlib.suppress(KeyboardInterrupt):
        history = model.fit(
            X[:24], NOISE[0], epochs=40, batch_size=8, validation_data=(X[16:], NOISE[1]), checkpoint=folder / "saved",
            checkpoint_every=every, resume=True, progress=False,
            callbacks=[*callbacks, Killed(killed_at)] if killed_at else callbacks,
        )  # fmt: skip
    return model, history, mine, stopper


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("monitor", ["val_loss", "loss"])
def test_callbacks_of_a_run_that_is_resumed(tmp_path, dtype, every, monitor):
    """The same model, history, log and decisions as if nothing had happened, wherever the run was killed."""
    patience = 5 if monitor == "val_loss" else 40
    settings = {"every": every, "monitor": monitor, "patience": patience}
    model, history, mine, stopper = script(tmp_path, dtype, **settings)
    last = history.epochs[-1]
    assert (last < 40) == (monitor == "val_loss")
    log = (tmp_path / "log.csv").read_text()
    for killed_at in {2, 4, stopper.best_epoch + 1, last - 1, last}:
        folder = tmp_path / f"killed-{killed_at}"
        folder.mkdir()
        script(folder, dtype, killed_at=killed_at, **settings)
        for again in range(2):  # started again, and once more when it is finished
            other, its_history, its_mine, its_stopper = script(folder, dtype, **settings)
            assert its_history == history, (killed_at, again)
            assert its_history.epochs == history.epochs
            assert (its_stopper.best, its_stopper.best_epoch) == (stopper.best, stopper.best_epoch)
            assert its_stopper.stopped_epoch == stopper.stopped_epoch or again
            np.testing.assert_array_equal(other.parameters, model.parameters)
            assert its_mine.epochs == mine.epochs
            np.testing.assert_array_equal(its_mine.sums, mine.sums)
            assert (folder / "log.csv").read_text() == log


def test_a_run_that_was_stopped_goes_on_with_more_patience(tmp_path):
    """It stays stopped with the same, also in the same process."""
    data, rest = (X[:20], NOISE[0][:20]), {"validation_data": (X[20:], NOISE[1][:20])}
    model = model_of(lr=0.5)
    epochs = model.fit(*data, epochs=40, early_stopping=3, **rest).epochs
    assert len(epochs) < 40
    best = model.parameters
    assert model.fit(*data, epochs=40, early_stopping=3, initial_epoch=epochs[-1], **rest).epochs == epochs
    np.testing.assert_array_equal(model.parameters, best)
    stopper = cnn.EarlyStopping(patience=5)
    assert model.fit(*data, epochs=40, early_stopping=stopper, initial_epoch=epochs[-1], **rest).epochs[-1] > epochs[-1]
    assert stopper.best_epoch is not None


def test_states_are_by_class_and_place():
    made = [Counting(), cnn.EarlyStopping(), Counting()]
    assert list(names_of(made)) == ["Counting", "EarlyStopping", "Counting.2"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (3, "Odd.state_dict: expected a dict with str as keys, got 3"),
        ({1: 2}, "Odd.state_dict: expected a dict with str as keys, got {1: 2}"),
        ({"a": {1}}, "Odd.state_dict: a: expected an array or what JSON can hold, got {1}"),
        ({"a": np.array(["b"])}, "Odd.state_dict: a: expected an array of numbers, got dtype <U1"),
    ],
)
def test_states_that_no_file_can_hold(state, message):
    odd = type("Odd", (cnn.Callback,), {"state_dict": lambda self: state})()
    with pytest.raises(TypeError, match=re.escape(message)):
        model_of().fit(X, Y, callbacks=[odd])


@pytest.mark.parametrize("how", ["Ctrl-C", "divergence", "own error"])
@pytest.mark.parametrize("saved", [False, True])
def test_the_best_parameters_after_an_exception(how, saved):
    model, best = model_of(), {}

    def look(epoch, logs):
        best[logs["val_loss"]] = model.parameters
        if epoch == 4:
            if how == "divergence":
                model.parameters = np.full_like(model.parameters, 1e30)
            else:
                raise KeyboardInterrupt if how == "Ctrl-C" else KeyError

    error = {"Ctrl-C": KeyboardInterrupt, "divergence": cnn.DivergenceError, "own error": KeyError}[how]
    with pytest.raises(error):
        model.fit(X, NOISE[0][:1].repeat(40, 0), epochs=9, validation_data=(X, -Y), early_stopping=8, batch_size=8,
                  callbacks=[cnn.LambdaCallback(on_epoch_end=look)])  # fmt: skip
    model = pickle.loads(pickle.dumps(model)) if saved else model
    assert not np.array_equal(model.parameters, best[min(best)])
    cnn.EarlyStopping.restore_best(model)
    np.testing.assert_array_equal(model.parameters, best[min(best)])
    with pytest.raises(RuntimeError, match=r"^restore_best: no best parameters are stored: call fit"):
        cnn.EarlyStopping.restore_best(model_of())


@pytest.mark.parametrize("place", ["argument", "list"])
def test_the_best_model_is_there_at_the_end_of_training(tmp_path, place):
    """For other callbacks too, whatever their place: one that saves there saves the model that fit returns."""
    model, stopper = model_of(lr=0.5), cnn.EarlyStopping(patience=3)
    saver = cnn.LambdaCallback(on_train_end=lambda logs: model.save(tmp_path / "model"))
    arguments = {"early_stopping": stopper, "callbacks": [saver]}
    if place == "list":
        arguments = {"callbacks": [saver, stopper]}
    history = model.fit(X[:20], NOISE[0][:20], epochs=30, validation_data=(X[20:], NOISE[1][:20]), **arguments)
    assert history.epochs[-1] > stopper.best_epoch
    np.testing.assert_array_equal(cnn.load(tmp_path / "model").parameters, model.parameters)
    assert model.evaluate(X[20:], NOISE[1][:20])["loss"] == pytest.approx(stopper.best, rel=1e-6)


def test_the_best_training_loss_is_that_of_the_model():
    """With one step an epoch, that diverges: the loss is measured before the step, and its parameters are put back."""
    model = model_of(lr=3.0)
    stopper = cnn.EarlyStopping("loss", patience=3)
    history = model.fit(X, Y, epochs=20, batch_size=None, early_stopping=stopper)
    assert history["loss"][-1] > 10 * stopper.best
    assert model.evaluate(X, Y)["loss"] == pytest.approx(stopper.best, rel=1e-5)


def test_the_schedule_goes_back_to_the_best_epoch():
    """By steps or by epochs alike: what trains on does so as from the best epoch."""
    for schedule in (cnn.ExponentialLR(0.9, interval="epoch"), cnn.ExponentialLR(0.9, interval="step")):
        models = [model_of() for _ in range(2)]
        for model, values in zip(models, ([3, 2, 4, 5], [3, 2]), strict=True):
            model.optimizer = cnn.SGD(lr=0.1, schedule=schedule)
            stopped_by(values, model, patience=9)
            model.fit(X, Y, batch_size=8)
        assert models[0].history == models[1].history
        np.testing.assert_array_equal(models[0].parameters, models[1].parameters)


@pytest.mark.parametrize(
    ("values", "arguments", "epochs", "best"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], {"start_from_epoch": 3, "patience": 2}, 6, 4),
        ([1, 9, 8, 9, 9], {"start_from_epoch": 1, "patience": 2}, 5, 3),
        ([5, 4, 3, 2, 1], {"baseline": 1.5, "patience": 3}, 3, 3),
        ([5, 1, 4, 4, 1, 1], {"baseline": 1.5, "patience": 3}, 5, 2),
    ],
)
def test_warm_up_and_baseline(values, arguments, epochs, best):
    stopper, parameters, model, _ = stopped_by(values, **arguments)
    assert (len(parameters), stopper.best_epoch) == (epochs, best)
    np.testing.assert_array_equal(model.parameters, parameters[best - 1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"monitor": 3}, TypeError, "^monitor: expected a name such as 'val_loss', got 3"),
        ({"patience": 1.5}, TypeError, "^patience: expected an int, got 1.5"),
        ({"patience": True}, TypeError, "^patience: expected an int, got True"),
        ({"patience": 0}, ValueError, "^patience: expected at least 1, got 0"),
        ({"min_delta": "1"}, TypeError, "^min_delta: expected a number, got '1'"),
        ({"min_delta": -1}, ValueError, "^min_delta: expected a finite number of at least 0, got -1"),
        ({"min_delta": math.nan}, ValueError, "^min_delta: expected a finite number of at least 0, got nan"),
        ({"start_from_epoch": -1}, ValueError, "^start_from_epoch: expected at least 0, got -1"),
        ({"baseline": "1"}, TypeError, "^baseline: expected a number, got '1'"),
        ({"mode": "most"}, ValueError, "^mode: expected one of 'auto', 'min', 'max', got 'most'"),
    ],
    ids=str,
)
def test_early_stopping_that_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cnn.EarlyStopping(**arguments)


# loggers ------------------------------------------------------------------------------------------


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_csv(tmp_path):
    """The file is complete after each epoch, and has all digits."""
    path = tmp_path / "log.csv"
    lengths = []
    watch = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs: lengths.append(len(table(path))))
    history = model_of().fit(
        X, Y, epochs=3, callbacks=[cnn.CSVLogger(path), watch], validation_data=(X, Y), metrics=["r2"]
    )
    assert lengths == [2, 3, 4]
    head, *rows = table(path)
    assert head == ["epoch", *history]
    for i, row in enumerate(rows):
        assert [float(cell) for cell in row] == [i + 1, *(values[i] for values in history.values())]


def test_csv_of_a_run_that_goes_on(tmp_path):
    path = tmp_path / "log.csv"
    logger, model = cnn.CSVLogger(path), model_of()
    model.fit(X, Y, epochs=2, callbacks=[logger])
    model.fit(X, Y, epochs=4, initial_epoch=2, callbacks=[cnn.CSVLogger(path)])
    assert [row[0] for row in table(path)] == ["epoch", "1", "2", "3", "4"]
    with pytest.raises(ValueError, match=r"log\.csv: expected the columns epoch, loss, r2, .* got epoch, loss$"):
        model.fit(X, Y, epochs=5, initial_epoch=4, callbacks=[logger], metrics=["r2"])
    model.fit(X, Y, epochs=1, callbacks=[logger])  # a new run
    assert [row[0] for row in table(path)] == ["epoch", "1"]


def test_csv_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError):
        model_of().fit(X, Y, callbacks=[cnn.CSVLogger(tmp_path / "missing" / "log.csv")])


class Writer:
    """In place of tensorboardX's SummaryWriter."""

    made: ClassVar[list] = []

    def __init__(self, folder, purge_step=None):
        self.folder, self.scalars, self.closed, self.purge_step = folder, [], False, purge_step
        self.made.append(self)

    def add_scalar(self, name, value, step):
        assert not self.closed
        self.scalars.append((name, value, step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.mark.parametrize("module", ["tensorboardX", "torch.utils.tensorboard"])
def test_tensorboard(module, monkeypatch, tmp_path):
    for name in ("tensorboardX", "torch", "torch.utils", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in {module, module.split(".")[0], module.rpartition(".")[0]} - {""}:
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(SummaryWriter=Writer))
    Writer.made = []
    logger = cnn.TensorBoardLogger(tmp_path)
    history = model_of().fit(X, Y, epochs=2, callbacks=[logger], validation_data=(X, Y))
    (writer,) = Writer.made
    assert writer.folder == str(tmp_path)
    assert writer.closed
    assert writer.scalars == [
        (name, history[key][i], i + 1)
        for i in range(2)
        for name, key in (("loss/training", "loss"), ("loss/validation", "val_loss"))
    ]

    def fail(epoch, logs):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model_of().fit(X, Y, callbacks=[logger, cnn.LambdaCallback(on_epoch_end=fail)])
    assert Writer.made[1].closed
    model = model_of()
    model.fit(X, Y, epochs=2)
    model.fit(X, Y, epochs=4, initial_epoch=2, callbacks=[logger])
    assert [one.purge_step for one in Writer.made] == [None, None, 3]  # epochs of a run that was killed are hidden


def test_tensorboard_that_is_not_installed(monkeypatch, tmp_path):
    for name in ("tensorboardX", "torch", "torch.utils", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"^TensorBoardLogger needs a writer: pip install tensorboardX, or"):
        cnn.TensorBoardLogger(tmp_path)


SWAPS = (
    lambda model: setattr(model, "optimizer", cnn.Adam(lr=0.0)),
    lambda model: setattr(model, "optimizer", cnn.Adam(lr=0.01, groups=[{"layers": [0], "lr": 0.1}])),
    lambda model: setattr(model, "optimizer", cnn.SGD(lr=0.2, schedule=cnn.StepLR(2, 0.5))),
    lambda model: setattr(model.optimizer, "schedule", cnn.OneCycleLR(0.2, 60)),
    lambda model: setattr(model.optimizer, "schedule", cnn.ExponentialLR(0.1)),
    lambda model: setattr(model.optimizer, "schedule", None),
    lambda model: setattr(model.optimizer, "lr", 0.3),
)


@pytest.mark.parametrize("schedule", [None, cnn.StepLR(1, 0.9)])
def test_a_callback_may_set_what_the_optimizer_is(schedule):
    """As between two calls of fit; within an epoch the next step uses it."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 24, np.float64)
    for swap in SWAPS:
        one, two, loop, batches = (
            build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1, momentum=0.9, schedule=schedule))[0]
            for _ in range(4)
        )
        when = cnn.LambdaCallback(on_epoch_end=lambda epoch, logs, swap=swap, one=one: epoch == 2 and swap(one))
        history = one.fit(x, y, epochs=4, batch_size=8, callbacks=[when])
        two.fit(x, y, epochs=2, batch_size=8)
        swap(two)
        rest = two.fit(x, y, epochs=4, batch_size=8, initial_epoch=2)
        np.testing.assert_array_equal(one.parameters, two.parameters)
        if "lr" in rest:
            np.testing.assert_array_equal(history["lr"][2:], rest["lr"][-2:])
        when = cnn.LambdaCallback(on_batch_end=lambda batch, logs, swap=swap, it=batches: batch == 0 and swap(it))
        batches.fit(x, y, batch_size=8, shuffle=False, callbacks=[when])
        loop.train_step(x[:8], y[:8])
        swap(loop)
        for rows in (slice(8, 16), slice(16, 24)):
            loop.train_step(x[rows], y[rows])
        np.testing.assert_array_equal(batches.parameters, loop.parameters)


def test_another_optimizer_keeps_its_state():
    """Where early stopping, or a loss that is not finite, puts back parameters from before."""
    spec = chain(5, 9, 3)
    x, y = batch_for(spec, "mse", 24, np.float64)
    for others in (cnn.Adam(lr=50.0), cnn.RMSprop(lr=50.0), cnn.SGD(lr=50.0)):  # with 2, 1 and no numbers of state
        model, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1, momentum=0.9))
        when = cnn.LambdaCallback(
            on_epoch_end=lambda epoch, logs, m=model, o=others: epoch == 2 and setattr(m, "optimizer", o)
        )
        stopping = cnn.EarlyStopping(patience=2)
        history = model.fit(x, y, epochs=9, validation_data=(x, y), callbacks=[when], early_stopping=stopping)
        assert (stopping.best_epoch, model._core.program.steps) == (2, len(history["loss"]) - 2)
        assert model.evaluate(x, y)["loss"] == stopping.best
    for event in ("on_epoch_end", "on_batch_end"):
        model, _ = build(spec, "mse", dtype="float64", optimizer=cnn.LBFGS())  # with more state than any other

        def swap(*_, model=model):
            model.optimizer = cnn.Adam(lr=1e300)

        with pytest.raises(cnn.DivergenceError):
            model.fit(x, y, epochs=9, callbacks=[cnn.LambdaCallback(**{event: swap})])
        assert model._core.program.steps == 0
        assert np.isfinite(model.parameters).all()
