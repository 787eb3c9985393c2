"""`ModelCheckpoint`, and fit(checkpoint=..., resume=...)."""

import os
import re
import threading

import numpy as np
import pytest
from checkpoints import every_layer, fit, plain, same

import cnn
from cnn.files import atomic_write, checkpoint


def files(folder):
    return sorted(os.listdir(folder))


class Crash(Exception):
    """Of a callback, in the middle of an epoch."""


class Crashing(cnn.Callback):
    def __init__(self, epoch):
        self.epoch = epoch
        self.now = 0

    def on_epoch_begin(self, epoch, logs):
        self.now = epoch

    def on_batch_end(self, batch, logs):
        if self.now == self.epoch and batch == 2:
            raise Crash


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("make", [every_layer, plain])
def test_fit_resumes_after_a_crash(tmp_path, make, every):
    """In a new model, as a script makes it that is started again."""

    def optimizer():
        schedule = cnn.ReduceLROnPlateau(patience=1, threshold=0.02, monitor="loss")
        return cnn.SGD(lr=0.2, momentum=0.9, schedule=schedule)

    straight = make(optimizer())
    expected = fit(straight, 12)
    folder = tmp_path / "runs" / "1"
    with pytest.raises(Crash):
        fit(make(optimizer()), 12, checkpoint=folder, checkpoint_every=every, max_to_keep=2, callbacks=[Crashing(8)])
    again = make(optimizer())
    seen = []
    begun = cnn.LambdaCallback(on_epoch_begin=lambda epoch, logs: seen.append(epoch))
    settings = {"checkpoint": folder, "checkpoint_every": every, "max_to_keep": 2, "resume": True}
    history = fit(again, 12, callbacks=[begun], **settings)
    assert seen == list(range((8, 7)[every == 3], 13))
    assert history == expected
    assert same(again, straight)


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("make", [every_layer, plain])
def test_a_resumed_run_is_that_of_its_checkpoint_whatever_the_seed(tmp_path, make, seed):
    """The orders of the rows and the numbers of dropout are those of the run that goes on."""
    straight = make(cnn.Adam(lr=0.01))
    expected = fit(straight, 6)
    fit(make(cnn.Adam(lr=0.01)), 3, checkpoint=tmp_path)
    again = make(cnn.Adam(lr=0.01), seed=seed)
    assert fit(again, 6, checkpoint=tmp_path, resume=True) == expected
    np.testing.assert_array_equal(again.parameters, straight.parameters)


def test_resume_with_nothing_to_resume(tmp_path):
    model, other = plain(cnn.Adam()), plain(cnn.Adam())
    fit(model, 3, checkpoint=tmp_path / "new", resume=True)
    fit(other, 3)
    assert same(model, other)


def begun(folder, model, **arguments):
    """A ModelCheckpoint as at the beginning of a fit."""
    saver = cnn.ModelCheckpoint(folder, **arguments)
    saver.model = model
    saver._check([])
    return saver


def save(saver, epoch, *, wait=True):
    """The end of an epoch, whose number is the first bias."""
    saver.model.layers[0].bias[0] = saver.model._core.state.epoch = epoch
    saver.on_epoch_end(epoch, {})
    if wait:
        saver._close()


def saved(folder, epochs=range(1, 6), model=None, **arguments):
    saver = begun(folder, plain(cnn.Adam()) if model is None else model, **arguments)
    for epoch in epochs:
        saver.model.history = cnn.History({"loss": [0.5] * epoch})
        save(saver, epoch)


def test_files_that_are_kept(tmp_path):
    """The newest `max_to_keep`; nothing else in the folder is touched."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint-final.safetensors").write_text("mine")
    saved(tmp_path, max_to_keep=2)
    own = ["checkpoint-000004.safetensors", "checkpoint-000005.safetensors"]
    assert files(tmp_path) == [*own, "checkpoint-final.safetensors", "notes.txt"]
    assert [cnn.load(tmp_path / name).layers[0].bias[0] for name in own] == [4, 5]
    assert [len(cnn.load(tmp_path / name).history["loss"]) for name in own] == [4, 5]


def test_every(tmp_path):
    saved(tmp_path, every=2, max_to_keep=9, epochs=range(1, 8))
    assert [cnn.load(tmp_path / name).layers[0].bias[0] for name in files(tmp_path)] == [2, 4, 6]


def test_numbers_go_on_in_a_folder_that_was_used(tmp_path):
    """Also where the new run has fewer epochs: what is newer is not told by the epoch."""
    saved(tmp_path, max_to_keep=3, epochs=range(100, 103))
    saved(tmp_path, max_to_keep=3, epochs=range(1, 3))
    assert files(tmp_path) == [f"checkpoint-{number:06d}.safetensors" for number in (3, 4, 5)]
    assert cnn.ModelCheckpoint(tmp_path).resume(plain(cnn.Adam())) == 2


def test_damaged_files_are_passed_over(tmp_path):
    saved(tmp_path, max_to_keep=9)
    five, four, three = (tmp_path / f"checkpoint-00000{number}.safetensors" for number in (5, 4, 3))
    five.write_bytes(five.read_bytes()[:-1])
    content = bytearray(four.read_bytes())
    content[-1] ^= 1
    four.write_bytes(content)
    plain(cnn.Adam()).save(three)  # without the training state
    model = plain(cnn.Adam())
    with pytest.warns(RuntimeWarning) as warnings:
        assert cnn.ModelCheckpoint(tmp_path).resume(model) == 2
    assert model.layers[0].bias[0] == 2
    messages = [str(warning.message) for warning in warnings]
    assert len(messages) == 3
    for path, message, reason in zip((five, four, three), messages, ("expected", "digest", "no training"), strict=True):
        assert message.startswith(f"skipped a checkpoint: {path}: ")
        assert reason in message


def test_nothing_that_can_be_read(tmp_path):
    (tmp_path / "checkpoint-000001.safetensors").write_bytes(b"")
    model = plain(cnn.Adam())
    before = checkpoint.to_bytes(model)
    with pytest.warns(RuntimeWarning, match="empty"):
        assert cnn.ModelCheckpoint(tmp_path).resume(model) is None
    assert checkpoint.to_bytes(model) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: cnn.Sequential([cnn.Linear(5, 3), cnn.CrossEntropyLoss()], cnn.Adam()),
            "architecture: expected layers",
        ),
        (lambda: plain(cnn.Adam(), cnn.MSELoss()), "architecture: expected loss .*MSE"),
        (lambda: plain(cnn.Adam(), dtype="float64"), "architecture: expected dtype float64, got float32"),
        (lambda: plain(cnn.AdamW()), r"optimizer: expected AdamW\(.*, got Adam\("),
        (lambda: plain(None), r"optimizer: expected None, got Adam\("),
        (lambda: plain(cnn.Adam(schedule=cnn.StepLR(3))), "optimizer: expected Adam.*StepLR"),
    ],
)
def test_another_architecture_is_refused(tmp_path, model, message):
    saved(tmp_path)
    model = model()
    before = checkpoint.to_bytes(model)
    path = re.escape(str(tmp_path / "checkpoint-000005.safetensors"))
    with pytest.raises(ValueError, match=f"^{path}: has another {message}"):
        cnn.ModelCheckpoint(tmp_path).resume(model)
    assert checkpoint.to_bytes(model) == before


def test_the_optimizer_stays_the_same_object(tmp_path):
    """Callbacks may hold it, or its schedule; its hyper-parameters are those of the file."""

    def made(lr):
        schedule = cnn.ReduceLROnPlateau(monitor="loss")
        groups = [{"layers": [0], "lr": lr / 10}]
        return plain(cnn.SGD(lr, momentum=0.9, groups=groups, ema_decay=0.5, schedule=schedule))

    first = made(0.5)
    fit(first, 3)
    first.optimizer.lr = 0.25
    saved(tmp_path, model=first, epochs=[3])
    model = made(0.5)
    optimizer, schedule = model.optimizer, model.optimizer.schedule
    sharer, expected = plain(optimizer), made(0.25)
    expected.train_step(np.ones((2, 5)), [0, 1])
    assert cnn.ModelCheckpoint(tmp_path).resume(model) == 3
    assert model.optimizer is optimizer
    assert optimizer.schedule is schedule
    assert optimizer.get_config() == first.optimizer.get_config()
    sharer.train_step(np.ones((2, 5)), [0, 1])
    assert sharer._core.program.parameters.tobytes() == expected.parameters.tobytes()
    first.history = model.history
    assert same(model, first)
    for other in (model, first):
        other.train_step(np.ones((2, 5)), [0, 1])
    assert same(model, first)


def test_the_snapshot_is_taken_at_once(tmp_path, monkeypatch):
    """What happens to the model while the file is written is not in it."""
    write, go = atomic_write.replace, threading.Event()

    def waiting(path, pieces):
        assert go.wait(60)
        write(path, pieces)

    monkeypatch.setattr(atomic_write, "replace", waiting)
    model = plain(cnn.Adam())
    fit(model, 1)
    saver = begun(tmp_path, model)
    before = checkpoint.to_bytes(model)
    saver.on_epoch_end(1, {})
    fit(model, 3, initial_epoch=1)
    go.set()
    saver._close()
    assert (tmp_path / "checkpoint-000001.safetensors").read_bytes() == before


def test_the_loop_does_not_wait(tmp_path, monkeypatch):
    """At most one snapshot waits for the thread: the newest, which is never lost."""
    write, go, writes = atomic_write.replace, threading.Event(), threading.Event()

    def waiting(path, pieces):
        writes.set()
        assert go.wait(60)
        write(path, pieces)

    monkeypatch.setattr(atomic_write, "replace", waiting)
    saver = begun(tmp_path, plain(cnn.Adam()), max_to_keep=9)
    for epoch in range(1, 8):
        save(saver, epoch, wait=False)
        assert writes.wait(60)
    go.set()
    saver._close()
    assert [cnn.load(tmp_path / name).layers[0].bias[0] for name in files(tmp_path)] == [1, 7]


def test_errors_of_the_thread_are_raised(tmp_path, monkeypatch):
    """At the next epoch, or at the end; once."""

    def full(path, pieces):
        raise OSError(28, "No space left on device", path)

    model = plain(cnn.Adam())
    saver = begun(tmp_path, model)
    with monkeypatch.context() as patch:
        patch.setattr(atomic_write, "replace", full)
        save(saver, 1, wait=False)
        saver._thread and saver._thread.join()
        with pytest.raises(OSError, match=r"No space left on device: '.*checkpoint-000001.safetensors'"):
            save(saver, 2)
        save(saver, 3, wait=False)
        with pytest.raises(OSError, match="No space left on device"):
            saver._close()
        with pytest.raises(OSError, match="No space left on device"):
            fit(model, 2, checkpoint=tmp_path)
    saver._close()
    save(saver, 4)
    assert files(tmp_path) == ["checkpoint-000001.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": 0}, ValueError, "^every: expected at least 1, got 0"),
        ({"every": 1.0}, TypeError, "^every: expected an int, got 1.0"),
        ({"max_to_keep": 0}, ValueError, "^max_to_keep: expected at least 1, got 0"),
        ({"max_to_keep": True}, TypeError, "^max_to_keep: expected an int, got True"),
        ({"max_to_keep": None}, TypeError, "^max_to_keep: expected an int, got None"),
        ({"save_best_only": 1}, TypeError, "^save_best_only: expected True or False, got 1"),
        ({"mode": "best"}, ValueError, "^mode: expected one of 'auto', 'min', 'max', got 'best'"),
        ({"save_best_only": True, "monitor": 3}, TypeError, "^monitor: expected a name such as 'val_loss', got 3"),
    ],
)
def test_arguments(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        cnn.ModelCheckpoint(tmp_path, **arguments)


def test_arguments_of_fit(tmp_path):
    model = plain(cnn.Adam())
    before = checkpoint.to_bytes(model)
    wrong = [("checkpoint_every", 0, ValueError), ("max_to_keep", 0, ValueError), ("max_to_keep", True, TypeError)]
    for name, value, error in wrong:
        with pytest.raises(error, match=f"^{name}: expected"):
            fit(model, 2, checkpoint=tmp_path / "new", **{name: value})
    with pytest.raises(ValueError, match=r"^resume: expected checkpoint=folder"):
        fit(model, 2, resume=True)
    with pytest.raises(ValueError, match=r"^save_best_only: no 'val_loss' to monitor: .*; pass validation_data"):
        fit(model, 2, callbacks=[cnn.ModelCheckpoint(tmp_path / "new", save_best_only=True)], validation_data=None)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        fit(model, 2, checkpoint=tmp_path / "file")
    assert checkpoint.to_bytes(model) == before


@pytest.mark.parametrize("mode", ["min", "max", "auto"])
def test_the_best_only(tmp_path, mode):
    """Also after a run is continued: what is best is read from the history."""
    values = [3.0, np.nan, 2.0, 5.0, 2.5, 1.0]
    best = {"min": [1, 3, 6], "max": [1, 4], "auto": [1, 3, 6]}[mode]
    for begin in range(len(values)):
        folder, model = tmp_path / str(begin), plain(cnn.Adam())
        settings = {"save_best_only": True, "monitor": "loss", "mode": mode, "max_to_keep": 9}
        saver = cnn.ModelCheckpoint(folder, **settings)
        for first, last in ((1, begin), (begin + 1, len(values))):
            saver = cnn.ModelCheckpoint(folder, **settings)
            saver.model = model
            saver._check(["loss"])
            model.history = cnn.History({"loss": values[: first - 1]})
            saver.on_train_begin({})
            for epoch in range(first, last + 1):
                model.layers[0].bias[0] = epoch
                saver.on_epoch_end(epoch, {"loss": values[epoch - 1]})
                saver._close()
        assert [cnn.load(folder / name).layers[0].bias[0] for name in files(folder)] == best


@pytest.mark.parametrize("how", ["callback", "save"])
def test_saved_by_a_callback(tmp_path, how):
    """At the end of an epoch the state of the schedule is that after the epoch, so that training goes on to the bit."""

    def made():
        return plain(cnn.Adam(0.1, schedule=cnn.ReduceLROnPlateau(monitor="loss", patience=1, threshold=0.5)))

    straight = made()
    fit(straight, 9)
    assert len(set(straight.history["lr"])) > 2
    callback = cnn.ModelCheckpoint(tmp_path, max_to_keep=9)
    if how == "save":

        def save(epoch, logs):
            stopped.save(tmp_path / f"checkpoint-{epoch:06d}.safetensors", training_state=True)

        callback = cnn.LambdaCallback(on_epoch_end=save)
    stopped = made()
    fit(stopped, 8, callbacks=[callback])
    for name in files(tmp_path):
        model = cnn.load(tmp_path / name)
        fit(model, 9, initial_epoch=model.history.epochs[-1])
        assert same(model, straight)
