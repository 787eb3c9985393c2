"""The Python blocks of each page of docs/ run from top to bottom, and its links and pictures are there."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
ELSEWHERE = ["control.md", "ensembles.md", "estimators.md", "streams.md", "training.md"]  # have tests of their own


def anchors_of(path):
    """What MyST calls the headings of a page, those of included pages too."""
    text = path.read_text()
    for included in re.findall(r"^```{include} (\S+)$", text, re.MULTILINE):
        text += (path.parent / included).read_text()
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


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
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)#?([^):\s]*)\)", path.read_text()):
        target = path.parent / link if link else path
        assert target.exists() or link == "gallery/index.md", link
        assert not anchor or anchor in anchors_of(target), f"{link}#{anchor}"
    for alternative in re.findall(r"!\[([^\]]*)\]\(", path.read_text()):
        assert len(alternative) > 5, page
