"""Pictures of models: what stands in them, by matplotlib and by graphviz's dot."""

import stat
import sys

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
def test_files_without_dot(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / f"net.{suffix}"
    assert network().plot(path) is None
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(start)


def test_files_with_dot(tmp_path, monkeypatch):
    """A stand-in for dot writes down what it was given."""
    dot = tmp_path / "dot"
    dot.write_text(
        f"#!{sys.executable}\nimport sys\nopen(sys.argv[-1], 'w').write(' '.join(sys.argv[1:]) + sys.stdin.read())\n"
    )
    dot.chmod(dot.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    network().plot(tmp_path / "net.svg")
    written = (tmp_path / "net.svg").read_text()
    assert written.startswith(f"-Tsvg -Gdpi=110 -o {tmp_path / 'net.svg'}digraph {{\n")
    assert written.count("{") == written.count("}")


def test_dot_source():
    lines = diagram.dot_source(diagram.contents(network()), "a < b").splitlines()
    assert "label=<a &lt; b>" in lines[1]
    edges = [tuple(map(int, line.partition(" [")[0].split(" -> "))) for line in lines if "->" in line]
    assert edges == [
        *((0, 1), (1, 2), (2, 3), (2, 4), (4, 5), (5, 6), (3, 7), (6, 7)),
        *((7, 8), (8, 9), (7, 10), (9, 11), (10, 11), (7, 12), (11, 13), (12, 13), (13, 14)),
    ]
    assert sum("shape=circle" in line for line in lines) == 3


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
