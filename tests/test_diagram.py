"""Pictures of models: what stands in them."""

import numpy as np
import pytest

import cnn
from cnn.models import diagram


def network(loss=True):
    block = cnn.Sequential([cnn.LayerNorm(16), cnn.Linear(16, 16), cnn.GELU()])
    gated = cnn.Multiply(cnn.Sequential([cnn.Linear(16, 4), cnn.Sigmoid()]), cnn.Linear(16, 4))
    layers = [cnn.Linear(8, 16), cnn.Tanh(), cnn.Add(cnn.Identity(), block), cnn.Concat(gated, cnn.Linear(16, 3))]
    return cnn.Sequential([*layers, *([cnn.MSELoss()] if loss else [])], seed=0)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def boxes(parts):
    for part in parts:
        if isinstance(part, diagram.Box):
            yield part
        else:
            for branch in part.branches:
                yield from boxes(branch)


def test_contents():
    found = [(box.key, box.title, box.detail, box.outputs) for box in boxes(diagram.contents(network()))]
    assert found == [
        ("", "inputs", "", "8"),
        ("0", "Linear 8 → 16", "144 parameters", "16"),
        ("1", "Tanh", "", "16"),
        ("2.0", "Identity", "", "16"),
        ("2.1.0", "LayerNorm 16", "32 parameters", "16"),
        ("2.1.1", "Linear 16 → 16", "272 parameters", "16"),
        ("2.1.2", "GELU", "", "16"),
        ("2", "+", "", "16"),
        ("3.0.0.0", "Linear 16 → 4", "68 parameters", "4"),
        ("3.0.0.1", "Sigmoid", "", "4"),
        ("3.0.1", "Linear 16 → 4", "68 parameters", "4"),
        ("3.0", "\N{MULTIPLICATION SIGN}", "", "4"),
        ("3.1", "Linear 16 → 3", "51 parameters", "3"),
        ("3", "concat", "", "7"),
        ("", "MSELoss", "", ""),
    ]
    assert [box.title for box in boxes(diagram.contents(network(loss=False)))][-1] == "outputs"


def test_figure_holds_all_of_it():
    """Every text once, inside of the axes, and no two boxes over each other."""
    model = network()
    figure = model.plot()
    shown = texts(figure)
    for box in boxes(diagram.contents(model)):
        assert box.title in shown
        assert box.detail in shown
        assert box.key in shown
    assert f"{model.parameters.size:,} parameters, float32" in shown
    axes = figure.axes[0]
    figure.canvas.draw()
    frame = axes.get_window_extent()
    for text in axes.texts:
        extent = text.get_window_extent()
        assert frame.x0 <= extent.x0 <= extent.x1 <= frame.x1, text.get_text()
        assert frame.y0 <= extent.y0 <= extent.y1 <= frame.y1, text.get_text()
    drawn = [patch.get_window_extent() for patch in axes.patches if not hasattr(patch, "get_arrowstyle")]
    assert len(drawn) == 15
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"net.{suffix}"
    assert network().plot(path) is None
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)


def test_unknown_formats(tmp_path):
    for name in ("net.bmp", "net"):
        with pytest.raises(ValueError, match=r"^path: expected a name that ends in \.png, \.svg or \.pdf, got "):
            network().plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_plot_changes_nothing():
    model = network()
    before = model.parameters
    model.plot()
    np.testing.assert_array_equal(model.parameters, before)
