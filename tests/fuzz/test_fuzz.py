"""A short run of the fuzzer beside this file."""

import re
import subprocess
import sys
from pathlib import Path


def test_damaged_files_are_refused():
    script = Path(__file__).with_name("fuzz_load.py")
    done = subprocess.run([sys.executable, script, "500", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {
        what: int(n) for n, what in re.findall(r"(\d+) ([a-z: ]+)[,;]", done.stdout.partition("; the slowest")[0] + ";")
    }
    assert sum(counts.values()) == 500
    assert counts["refused"] > 250
    assert counts["sealed again: refused"] > 100
    assert counts["sealed again: another model"] > 0  # the changes reach what lies behind the digest
