"""The Python blocks of the README run, in order, and print what their comments say."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks(tmp_path, monkeypatch, capsys):
    text = README.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == text.count("```python") == 1
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks[0], str(README), "exec"), names)
    expected = re.findall(r"^print\(.*\)  # (.*)$", blocks[0], re.MULTILINE)
    assert len(expected) == 2
    assert capsys.readouterr().out.splitlines() == expected
    assert names["p"].shape == (2000, 2)


def test_one_screen():
    """Of prose: it sells, the documentation explains."""
    assert len(README.read_text().split()) < 600


def test_first_example_has_15_lines():
    example = README.read_text().partition("```python\n")[2].partition("```")[0]
    assert len(example.splitlines()) <= 18
    assert len([line for line in example.splitlines() if line]) <= 15


def test_figures_are_those_of_the_results():
    """Row by row, without the columns of goals."""
    results = README.with_name("bench").joinpath("RESULTS.md").read_text()
    shown = README.read_text().partition("<!-- From bench/RESULTS.md. -->")[2].partition("<!-- /RESULTS.md -->")[0]
    rows = shown.strip().splitlines()
    assert len(rows) == 2 + 3
    assert all(f"\n{row}" in results for row in rows)


def test_links_and_pictures():
    """Files that are linked are there; pictures are small enough to be part of the repository."""
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert {"docs/digits.png", "docs/training.md", "docs/tutorial.md", "bench/RESULTS.md"} <= set(links)
    for link in links:
        path = README.parent / link
        assert path.is_file(), link
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG"), link
            assert path.stat().st_size < 150_000, link
