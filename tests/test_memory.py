"""Memory: none is lost, none is written that is not ours, and when it runs out the caller hears of it.

Short runs of the scripts in soak/, which `make soak` runs in full.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cnn

SOAK = Path(__file__).parent / "soak"
TOO_LARGE = r"too large for this machine's addresses|cannot allocate \d+ bytes"


def printed(name, *arguments):
    """What a script in soak/ prints; it must end well."""
    command = [sys.executable, SOAK / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_nothing_grows():
    lines = printed("growth.py", 4000, 1000, 2000).splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["4000 steps", "1000 models", "2000 errors"]
    assert lines[3] == "0 failures"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS and /proc")
def test_memory_runs_out():
    assert re.search(r"^\d+ MemoryErrors in 66 calls: 0 failures$", printed("memory.py", 6), re.MULTILINE)


# sizes that no memory holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "widths",
    [(2**31, 2**31), (2**32, 2**32), (2**33, 2**31), (2**40, 2**40), (2**62, 2), (2, 2**62), (2**64, 1), (1, 10**30)],
    ids=str,
)
def test_huge_layers_are_refused(widths):
    """Their sizes would wrap around to small ones in 64 bits."""
    with pytest.raises(MemoryError, match=TOO_LARGE):
        cnn.Sequential([cnn.Linear(*widths)])
    with pytest.raises(MemoryError, match=TOO_LARGE):
        cnn.Sequential([cnn.Linear(2, widths[0]), cnn.Tanh(), cnn.Linear(*widths), cnn.MSELoss()])


def test_many_large_layers_are_refused():
    """Each of them could be there alone."""
    layers = [cnn.Linear(2**28, 2**28) for _ in range(80)]
    with pytest.raises(MemoryError, match=TOO_LARGE):
        cnn.Sequential(layers)


@pytest.mark.parametrize("rows", [2**40, 2**50, 2**58])
def test_huge_batches_are_refused(rows, dtype):
    """Rows that are all the same one take no memory before they are computed with."""
    model = cnn.Sequential([cnn.Linear(3, 300), cnn.Tanh(), cnn.Linear(300, 2), cnn.MSELoss()], cnn.SGD(), dtype=dtype)
    x, y = (np.broadcast_to(np.ones(1, dtype), (rows, n)) for n in (3, 2))
    before = model.parameters
    calls = [
        lambda: model.forward(x),
        lambda: model.train_step(x, y),
        lambda: model.loss_and_grad(x, y),
        lambda: model.predict(x),
        lambda: model.vjp(x, y),
        lambda: model.jvp(x, x),
    ]
    for call in calls:
        with pytest.raises((MemoryError, ValueError), match=f"{TOO_LARGE}|Unable to allocate|array is too big"):
            call()
    np.testing.assert_array_equal(model.parameters, before)
    assert np.isfinite(model.train_step(x[:4], y[:4]))
