"""History: a dict of lists; as JSON, as a DataFrame, as a picture."""

import json
import math
import sys

import numpy as np
import pytest

import cnn

LONG = {
    "loss": [1.0, 0.5, 0.4, 0.3],
    "accuracy": [0.5, 0.6, 0.7, 0.8],
    "val_loss": [1.1, 0.6, 0.5, 0.55],
    "val_accuracy": [0.4, 0.6, 0.65, 0.7],
    "lr": [0.1, 0.1, 0.01, 0.01],
}


def history_from(epoch=1, **columns):
    history = cnn.History()
    for i in range(len(next(iter(columns.values())))):
        history.record(epoch + i, {name: values[i] for name, values in columns.items()})
    return history


def test_record():
    history = history_from(5, **LONG)
    assert history == LONG
    assert history.epochs == [5, 6, 7, 8]
    assert cnn.History(LONG).epochs == [1, 2, 3, 4]
    assert cnn.History().epochs == []
    assert repr(cnn.History()) == repr(cnn.History(loss=[])) == "History()"  # ended in the first epoch


def test_best_epoch():
    assert history_from(5, **LONG).best_epoch == 7
    assert cnn.History(loss=[3.0, 2.0, 2.0]).best_epoch == 2
    assert cnn.History(loss=[3.0, 1.0], val_loss=[math.nan, 5.0]).best_epoch == 2
    assert cnn.History(val_loss=[math.nan]).best_epoch is None
    assert cnn.History().best_epoch is None


def test_to_dict():
    history = history_from(5, **LONG)
    plain = history.to_dict()
    assert type(plain) is dict
    assert plain == {"epoch": [5, 6, 7, 8], **LONG}
    plain["loss"].append(0)
    assert history == LONG


def test_to_json(tmp_path):
    """Valid JSON whatever the numbers."""
    history = cnn.History(loss=[1.5, math.inf], val_auc=[math.nan, 0.25])
    text = history.to_json()
    expected = {"epoch": [1, 2], "loss": [1.5, None], "val_auc": [None, 0.25]}
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert history.to_json(tmp_path / "history.json") == text
    assert json.loads((tmp_path / "history.json").read_text()) == expected


def test_to_pandas(monkeypatch):
    frame = history_from(5, **LONG).to_pandas()
    assert frame.index.name == "epoch"
    assert frame.index.tolist() == [5, 6, 7, 8]
    assert frame.to_dict("list") == LONG
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^History\.to_pandas needs pandas: pip install pandas"):
        cnn.History(LONG).to_pandas()


def test_plot(tmp_path):
    """A panel for each number, training and validation in it, and the best epoch."""
    axes = history_from(5, **LONG).plot(tmp_path / "history.png")
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert [ax.get_title() for ax in axes] == ["loss", "accuracy", "learning rate"]
    loss, accuracy, rate = axes
    for ax, name, best in ((loss, "loss", 0.5), (accuracy, "accuracy", 0.65)):
        training, validation, line, mark = ax.lines
        np.testing.assert_array_equal(training.get_xydata(), np.column_stack([[5, 6, 7, 8], LONG[name]]))
        np.testing.assert_array_equal(validation.get_ydata(), LONG[f"val_{name}"])
        assert set(line.get_xdata()) == {7}
        assert mark.get_xydata().tolist() == [[7, best]]
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels == ["training", "validation", f"epoch 7: {best}"]
    assert rate.lines[0].get_ydata().tolist() == LONG["lr"]
    assert len(rate.lines) == 1
    for ax in (loss, accuracy):  # nothing that is drawn runs through the legend, and the legend not through the title
        legend, title = ax.get_legend().get_window_extent(), ax.title.get_window_extent()
        assert legend.y0 >= ax.get_window_extent().y1 - 1
        assert title.y0 >= legend.y1 - 1


def test_plot_of_epochs_without_validation(tmp_path):
    """The points that there are are joined."""
    history = cnn.History(loss=[4.0, 3, 2, 1], val_loss=[math.nan, 3.5, math.nan, 2.5])
    training, validation, *_ = history.plot(tmp_path / "history.png")[0].lines
    assert validation.get_xydata().tolist() == [[2, 3.5], [4, 2.5]]
    assert len(training.get_xdata()) == 4
    assert history.best_epoch == 4


def test_record_of_epochs_without_some_numbers():
    history = cnn.History()
    history.record(1, {"loss": 2.0})
    history.record(2, {"loss": 1.0, "val_loss": 3.0})
    history.record(3, {"loss": 0.5})
    np.testing.assert_equal(dict(history), {"loss": [2.0, 1.0, 0.5], "val_loss": [math.nan, 3.0, math.nan]})
    assert history.epochs == [1, 2, 3]


@pytest.mark.parametrize("suffix", ["pdf", "svg"])
def test_other_pictures(tmp_path, suffix):
    path = tmp_path / f"history.{suffix}"
    cnn.History(loss=[1.0]).plot(path)
    assert path.stat().st_size > 1000


def test_plot_for_pyplot(monkeypatch):
    """Without a path the figure is pyplot's."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    (ax,) = cnn.History(loss=[2000.0, 1.0, math.nan, math.inf]).plot()
    try:
        assert len(pyplot.get_fignums()) == len(before) + 1
        assert pyplot.gcf() is ax.figure
        assert ax.get_yscale() == "log"
    finally:
        pyplot.close(ax.figure)


def test_nothing_to_plot():
    with pytest.raises(ValueError, match=r"^History\.plot: there are no epochs to draw"):
        cnn.History().plot()


def test_plot_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"^History\.plot needs matplotlib: pip install cnn\[plot\]"):
        cnn.History(loss=[1.0]).plot()
