"""Progress of fit: a bar on terminals and in notebooks, lines elsewhere, silence when asked."""

import io
import re
import sys
import types

import numpy as np
import pytest

import cnn
from cnn.training.progress import Progress, _clock, _text

ROWS, EPOCHS = 64, 3


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def fitted(progress, **arguments):
    model = cnn.Sequential([cnn.Linear(3, 1), cnn.MSELoss()], optimizer=cnn.SGD(lr=0.01), seed=0)
    x = np.random.default_rng(0).standard_normal((ROWS, 3))
    y = x[:, 0]
    data = (x, y) if not arguments.pop("batches", False) else (Batches(x, y), None)
    return model.fit(*data, epochs=EPOCHS, progress=progress, **arguments)


class Batches:
    """An iterable without a length."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __iter__(self):
        for i in range(0, len(self.x), 16):
            yield self.x[i : i + 16], self.y[i : i + 16]


@pytest.mark.parametrize("batches", [False, True])
def test_bar(monkeypatch, batches):
    """With loss, metrics, samples per second, time left; full at the end."""
    monkeypatch.setattr("cnn.training.progress._columns", lambda: 120)
    terminal = on_terminal(monkeypatch)
    history = fitted("auto", metrics=["mae"], validation_split=0.0, batches=batches)
    last = terminal.getvalue().split("\r")[-1]
    assert re.search(r"^epoch 3/3: 100%\|#+\| 00:00 \S+ samples/s, ", last)
    for name, values in history.items():
        assert f"{name}={_text(values[-1])}" in last


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_bar_fits_the_terminal(monkeypatch, columns):
    """The losses come first, then what there is room for; there is a bar in any case that one can use."""
    monkeypatch.setattr("cnn.training.progress._columns", lambda: columns)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda fp: (columns, 24))
    terminal = on_terminal(monkeypatch)
    fitted("auto", metrics=["mae", "rmse", "r2"], validation_split=0.5)
    last = terminal.getvalue().split("\r")[-1].rstrip("\n")
    assert len(last) <= columns
    shown = re.findall(r"(\w+)=", last)
    if columns == 80:
        assert shown[:2] == ["loss", "val_loss"]
        assert "######" in last
    elif columns == 200:
        assert shown == ["loss", "val_loss", "mae", "rmse", "r2", "val_mae", "val_rmse", "val_r2"]


def test_a_terminal_without_tqdm(monkeypatch):
    """Lines, and once in a process what to install."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr("cnn.training.progress._told", False)
    terminal = on_terminal(monkeypatch)
    fitted("auto")
    fitted("auto")
    lines = terminal.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["for", *["epoch"] * 2 * EPOCHS]
    assert lines[0] == "for a progress bar: pip install tqdm; for silence: progress=False"


@pytest.mark.parametrize(("verbose", "bar", "lines"), [(0, 0, 0), (1, 1, 0), (2, 0, EPOCHS), (None, 1, 0)])
def test_verbose(monkeypatch, verbose, bar, lines):
    terminal = on_terminal(monkeypatch)
    fitted("auto", verbose=verbose)
    text = terminal.getvalue()
    assert ("100%" in text, text.count("samples/s\n") + text.count(" left\n")) == (bool(bar), lines)


def test_verbose_that_is_refused():
    for value in (3, "2", -1):
        with pytest.raises(ValueError, match=f"^verbose: expected 0, 1 or 2, got {value!r}"):
            fitted("auto", verbose=value)
    with pytest.raises(ValueError, match=r"^verbose: expected none with progress=False"):
        fitted(False, verbose=2)


def test_bar_of_a_run_that_goes_on(monkeypatch):
    terminal = on_terminal(monkeypatch)
    fitted(True, initial_epoch=1)
    assert "epoch 3/3: 100%" in terminal.getvalue()


def test_bar_is_closed_by_an_exception(monkeypatch):
    terminal = on_terminal(monkeypatch)

    def fail(epoch, logs):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fitted("auto", callbacks=[cnn.LambdaCallback(on_epoch_end=fail)])
    assert terminal.getvalue().endswith("\n")


def test_notebook(monkeypatch):
    """stderr is no terminal there; tqdm.auto gives the notebook's bar."""
    bars = []

    class Bar:
        def __init__(self, total, **_):
            self.total, self.n, self.closed = total, 0, False
            bars.append(self)

        def update(self, n):
            self.n += n

        def set_description(self, *_, **__):
            pass

        def set_postfix(self, logs, refresh):
            self.logs = dict(logs)

        def close(self):
            self.closed = True

    ZMQInteractiveShell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setitem(sys.modules, "tqdm.auto", types.SimpleNamespace(tqdm=Bar))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell))
    fitted("auto")
    (bar,) = bars
    assert bar.total == bar.n == EPOCHS * ROWS
    assert bar.closed
    assert list(bar.logs) == ["loss"]
    fitted(False)
    assert len(bars) == 1
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: None))
    fitted("auto")
    assert len(bars) == 1


def test_lines(capsys):
    """Time left goes on from how long the epochs have taken; none is left after the last."""
    history = fitted(True, metrics=["r2"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == EPOCHS
    for i, line in enumerate(lines):
        numbers = "  ".join(f"{name} {_text(values[i])}" for name, values in history.items())
        left = r"  \d+:\d\d left" if i + 1 < EPOCHS else ""
        assert re.fullmatch(rf"epoch {i + 1}/3  {re.escape(numbers)}  [\d,]+ samples/s{left}", line)


def test_silence(capsys):
    fitted("auto")
    fitted(False)
    assert capsys.readouterr() == ("", "")


def test_numbers():
    assert [_text(v) for v in (0, 0.5, 1e-5, 0.01, 123456.7, float("nan"))] == [
        "0.0000",
        "0.5000",
        "1e-05",
        "0.0100",
        "1.235e+05",
        "nan",
    ]
    assert [_clock(s) for s in (0, 59.6, 3599, 3600, 90061)] == ["0:00", "1:00", "59:59", "1:00:00", "25:01:01"]


def test_no_epochs_no_bar(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with Progress("auto", 3, 3, 10) as bar:
        assert bar.bar is None
    assert terminal.getvalue() == ""
