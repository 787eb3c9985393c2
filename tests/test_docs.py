"""The Python blocks of each page of docs/ run from top to bottom, and its links and pictures are there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
ELSEWHERE = ["training.md", "estimators.md"]  # test_guide.py runs them, and looks at what they print


def blocks_of(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks_of((DOCS / page).read_text()) and page not in ELSEWHERE]
)
def test_python_blocks(page, tmp_path, monkeypatch):
    text = (DOCS / page).read_text()
    blocks = blocks_of(text)
    assert len(blocks) == text.count("```python")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures(page):
    path = DOCS / page
    for link in re.findall(r"\]\(([^)#:\s]+)\)", path.read_text()):
        assert (path.parent / link).exists() or link == "gallery/index.md", link
    for alternative in re.findall(r"!\[([^\]]*)\]\(", path.read_text()):
        assert len(alternative) > 5, page
