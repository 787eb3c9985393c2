"""The Python blocks of docs/training.md, estimators.md and streams.md run from top to bottom; links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

DOCS = Path(__file__).parents[1] / "docs"


def run_blocks(guide, count):
    """The names that the blocks define."""
    text = guide.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == count
    names = {}
    for block in blocks:
        exec(compile(block, str(guide), "exec"), names)
    return names


def test_python_blocks(tmp_path, monkeypatch, capsys):
    pytest.importorskip("scipy")
    monkeypatch.chdir(tmp_path)
    names = run_blocks(DOCS / "training.md", 18)
    printed = capsys.readouterr().out
    assert "1  BatchNorm1d(num_features=64)  " in printed
    assert "['accuracy', 'f1', 'loss', 'lr', 'top_2', 'val_accuracy', 'val_f1'" in printed
    assert re.search(r"^2 0\.\d\d 0\.", printed, re.MULTILINE)  # the callback
    assert names["averaged"]["accuracy"] > 0.85
    assert names["history"]["val_accuracy"][-1] > 0.85
    assert names["result"].fun < 0.05
    assert names["losses"]["loss"][-1] < 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "history.png", "log.csv", "rates.png"]


def test_python_blocks_of_ensembles(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run_blocks(DOCS / "ensembles.md", 5)
    assert capsys.readouterr().out == "(60, 32)\n"
    assert names["spread"].mean() < 0.1
    assert abs(names["mean"][:, 0] - np.sin(2 * names["x"][:, 0])).mean() < 0.1
    assert names["best"].evaluate(names["x"], names["y"])["loss"] < 0.2
    assert names["history"]["loss"].shape == (3, 3)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_python_blocks_of_the_estimators(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", minversion="1.9")
    monkeypatch.chdir(tmp_path)
    names = run_blocks(DOCS / "estimators.md", 4)
    score, *rest = capsys.readouterr().out.splitlines()
    assert float(score) > 0.93
    assert rest == ["['loss', 'lr', 'val_loss']", "(143, 3)", "(143,) (143,)", "16"]
    assert names["mlp"].best_validation_score_ > 0.85
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cancer.safetensors", "history.png"]


def test_python_blocks_of_the_streams(capsys):
    pytest.importorskip("river", minversion="0.21")
    names = run_blocks(DOCS / "streams.md", 3)
    area, probabilities, error, network = capsys.readouterr().out.split("\n", 3)
    assert float(area.removeprefix("ROCAUC: ").removesuffix("%")) > 90
    assert "'red': " in probabilities
    assert float(error.removeprefix("MAE: ")) < 1
    assert network.startswith("Sequential(")
    assert names["model"].model_.optimizer.clip_norm == 1


@pytest.mark.parametrize("guide", ["training.md", "estimators.md", "streams.md", "ensembles.md"])
def test_links(guide):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (DOCS / guide).read_text()):
        assert (DOCS / link).is_file(), link
