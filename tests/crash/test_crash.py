"""Short runs of the scripts beside this file: kills at random moments and at each step of a save, a full disk."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def printed(name, *arguments):
    """What a script prints; it must end well."""
    command = [sys.executable, HERE / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(tmp_path, seed):
    assert re.match(r"8 kills in \d+ saves: .* 0 failures\n$", printed("kill.py", 8, seed, tmp_path))


def test_killed_at_each_step(tmp_path):
    """The old file is there until the rename, the new one from then on."""
    count, old, new = map(int, re.findall(r"\d+", printed("kill.py", "steps", tmp_path))[:3])
    assert count == old + new - 1
    assert old > 10
    assert new > 3


def test_full_disk():
    lines = printed("full.py").splitlines()
    assert lines[:2] == [
        "limited, save: File too large: the old file is untouched",
        "limited, in_background: File too large: the old file is untouched",
    ]
    for line in lines[2:]:  # a tmpfs, where mounting is allowed
        assert re.search(r"No space left on device: the old file is untouched|not allowed here", line)
