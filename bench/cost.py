"""What it costs to have the library: time to import, resident memory, size of the wheel and of the installation.

    python bench/cost.py [--wheel dist/cnn-*.whl]

Each import is timed in a fresh interpreter that has imported NumPy before, because every contender needs that too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# import name -> (label, distribution)
LIBRARIES = {
    "cnn": ("cnn", "cnn"),
    "torch": ("PyTorch", "torch"),
    "jax": ("JAX", "jax"),
    "sklearn.neural_network": ("scikit-learn", "scikit-learn"),
    "onnxruntime": ("ONNX Runtime", "onnxruntime"),
}
BESIDE = {"jax": ["jaxlib"], "scikit-learn": ["scipy"]}  # without which it does not work

SCRIPT = """
import json, sys, time
import numpy

def resident():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

before, start = resident(), time.perf_counter()
__import__(sys.argv[1])
took = time.perf_counter() - start
print(json.dumps({"seconds": took, "resident": resident() - before}))
"""


def measure(wheel: Path | None = None, rounds: int = 7) -> dict[str, dict[str, Any]]:
    """{label: {"seconds", "resident", "installed", for cnn "wheel"}}: seconds of the fastest import, sizes in bytes.

    What is not known is None.
    """
    there = [name for name in LIBRARIES if find_spec(name.partition(".")[0])]
    found: dict[str, dict[str, Any]] = {}
    for turn in range(rounds):
        for name in there:
            if turn > 2 and name != "cnn":
                continue  # they take seconds, and a millisecond does not matter
            output = subprocess.run(
                [sys.executable, "-c", SCRIPT, name], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            cost = json.loads(output)
            label, distribution = LIBRARIES[name]
            if label not in found:
                found[label] = cost | {"installed": installed(distribution)}
            for what in "seconds", "resident":
                found[label][what] = min(found[label][what], cost[what])
    found["cnn"]["wheel"] = os.path.getsize(wheel) if wheel else None
    return found


def installed(distribution: str) -> int | None:
    """Bytes of the installed files, with those of what it cannot do without beside NumPy."""
    total = 0
    for name in [distribution, *BESIDE.get(distribution, [])]:
        try:
            listed = files(name) or []
        except PackageNotFoundError:
            return None
        total += sum(path.stat().st_size for file in listed if (path := Path(str(file.locate()))).is_file())
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path)
    for label, cost in measure(parser.parse_args().wheel).items():
        sizes = {what: f"{size / 1e6:.1f} MB" for what, size in cost.items() if what != "seconds" and size}
        print(f"{label:14} {cost['seconds'] * 1e3:7.1f} ms ", *(f" {what} {size}" for what, size in sizes.items()))


if __name__ == "__main__":
    main()
