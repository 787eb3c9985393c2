"""The Python blocks of docs/training.md run from top to bottom, and its links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "training.md"


def test_python_blocks(tmp_path, monkeypatch, capsys):
    pytest.importorskip("scipy")
    text = GUIDE.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == 13
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    printed = capsys.readouterr().out
    assert "1  BatchNorm1d(num_features=64)  " in printed
    assert "['accuracy', 'f1', 'loss', 'lr', 'top_2', 'val_accuracy', 'val_f1'" in printed
    assert re.search(r"^2 0\.\d\d 0\.", printed, re.MULTILINE)  # the callback
    assert names["averaged"]["accuracy"] > 0.85
    assert names["history"]["val_accuracy"][-1] > 0.85
    assert names["result"].fun < 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "history.png", "log.csv", "rates.png"]


def test_many_models(capsys):
    page = GUIDE.with_name("ensembles.md")
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    assert capsys.readouterr().out == "(60, 32)\n"
    assert names["spread"].mean() < 0.1
    assert abs(names["mean"][:, 0] - np.sin(2 * names["x"][:, 0])).mean() < 0.1
    assert names["best"].evaluate(names["x"], names["y"])["loss"] < 0.2
    assert names["history"]["loss"].shape == (3, 3)


@pytest.mark.parametrize("page", ["training.md", "ensembles.md"])
def test_links(page):
    for link in re.findall(r"\]\(([^)#:]+)[^)]*\)", GUIDE.with_name(page).read_text()):
        assert (GUIDE.parent / link).is_file(), link
