"""One activation, loss, optimiser and layer more, in a copy of the tree, and the grid on it.

    make test-extending

What has to be touched for a part of each kind stands in its file here, and nothing more: lines that are inserted before
an anchor, which has to stand in its file once. All four are put into one copy, which is built for one instruction set.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KINDS = ("activation", "loss", "optimizer", "layer")
ISA = "baseline"


def edits_of(kind):
    spec = importlib.util.spec_from_file_location(kind, HERE / f"{kind}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EDITS, getattr(module, "FILES", {})


def inserted(text, anchor, addition, where):
    assert text.count(anchor) == 1, f"{where}: expected {anchor!r} once, found it {text.count(anchor)} times"
    return text.replace(anchor, addition + anchor)


def run(tree, *arguments, **environment):
    """Output and errors on the terminal only if the command fails."""
    env = {**os.environ, "PYTHONPATH": "src:tests", "CNN_ISA": ISA, **environment}
    env.pop("CNN_TEST_WHEEL", None)
    result = subprocess.run([sys.executable, *arguments], cwd=tree, env=env, capture_output=True, text=True)
    assert result.returncode == 0, (result.stdout + result.stderr)[-10_000:]
    return result.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The tree with the four, built."""
    tree = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    for name in ("src", "tests", "bench"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for kind in KINDS:
        edits, files = edits_of(kind)
        for path, anchor, addition in edits:
            text = (tree / path).read_text()
            (tree / path).write_text(inserted(text, anchor, addition, f"{kind}, {path}"))
        for path, text in files.items():
            assert not (tree / path).exists(), path
            (tree / path).write_text(text)
    variants = f"{ISA}_f32,{ISA}_f64"
    run(tree, "setup.py", "-q", "build_ext", "--inplace", CNN_VARIANTS=variants)
    return tree


def test_the_grid(tree):
    """All of it: the new parts beside all others, their derivatives, and that none is without an entry."""
    tests = ("tests/test_grid.py", "-k", "not v3 and not v4")
    output = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert "passed" in output
    found = run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *tests)
    for name in ("log_sigmoid", "log_cosh sum", "sign", "square"):
        assert re.search(rf"[\['-]{name}[\]'-]", found), name


def test_everything_knows_them(tree):
    """Files, exporters, summary: what reads the facts of classes."""
    tests = (
        "tests/test_facts.py",
        "tests/test_activations.py",
        "tests/test_losses.py",
        "tests/test_export_c.py",
        "tests/test_export_c_derivatives.py",
    )
    run(tree, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "not v3 and not v4")


def test_an_anchor_that_is_gone_is_an_error():
    with pytest.raises(AssertionError, match="expected 'b' once, found it 0 times"):
        inserted("a", "b", "c", "here")
