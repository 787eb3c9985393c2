"""The Python blocks of docs/training.md run from top to bottom, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "training.md"


def test_python_blocks(tmp_path, monkeypatch, capsys):
    pytest.importorskip("scipy")
    text = GUIDE.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == 16
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
    assert names["losses"]["loss"][-1] < 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.json", "history.png", "log.csv", "rates.png"]


def test_links():
    for link in re.findall(r"\]\(([^)#:]+)\)", GUIDE.read_text()):
        assert (GUIDE.parent / link).is_file(), link
