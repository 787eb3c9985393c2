"""`make coverage`: which lines of the Python layer and of the kernels the tests run, and whether they are enough.

Works on a copy of the tree in build/coverage. The kernels are built for gcov, for one instruction set (they are all one
source). gcov counts lines of the C file; Cython's comments in it say which line of which .pxi each comes from. A line
of a .pxi counts as run if any C line made of it has been.

    python tools/coverage_report.py [folders of tests]
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "coverage"
KEPT = (
    "setup.py",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "src",
    "tests",
    "bench",
    "examples",
    "docs",
)
MARK = re.compile(r'^\s*/\* "(src/cnn/[^"]+\.(?:pxi|pyx))":(\d+)$')
ALL_VARIANTS = ("test_build.py", "test_object_code.py", "soak")  # are of the wheel, or of all instruction sets
LEAST = {"python": 95.0, "kernels": 90.0}  # per cent


def copied() -> None:
    """The tree as it is, without anything compiled; what gcc has made before is kept."""
    for name in KEPT:
        source, target = ROOT / name, TREE / name
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info"))
        elif source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def run(*command: str, **environment: str) -> int:
    return subprocess.run(command, cwd=TREE, env={**os.environ, **environment}).returncode


def kernel_lines() -> dict[str, dict[int, bool]]:
    """For each source of the kernels, its lines that became code, and whether they have run."""
    c_file = TREE / "build/cython/src/cnn/_kernels.c"
    origin: list[tuple[str, int] | None] = [None]
    now = None
    for line in c_file.read_text().splitlines():
        if match := MARK.match(line):
            now = match[1], int(match[2])
        elif line.startswith(("static ", "#define ", "/* Module ", "/* Python wrapper")):
            now = None  # between functions is nobody's line; Cython's own helpers are not counted
        origin.append(now)
    lines: dict[str, dict[int, bool]] = defaultdict(dict)
    for data in TREE.glob("build/temp*/**/*.gcda"):
        if "_kernels" not in str(data):
            continue
        report = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(data)], cwd=TREE, capture_output=True, check=True
        ).stdout
        report = gzip.decompress(report) if report[:2] == b"\x1f\x8b" else report
        for file in json.loads(report.splitlines()[0])["files"]:
            name = os.path.relpath(TREE / file["file"], TREE)
            for entry in file["lines"]:
                number, ran = entry["line_number"], entry["count"] > 0
                if name.endswith("_kernels.c"):
                    place = origin[number] if number < len(origin) else None
                elif name.endswith("simd.h"):
                    place = "src/cnn/kernels/simd.h", number
                else:
                    continue
                if place is not None:
                    lines[place[0]][place[1]] = lines[place[0]].get(place[1], False) or ran
    return lines


def table(title: str, rows: dict[str, tuple[int, int, str]], least: float) -> bool:
    """Print what was covered, file by file, and whether the whole is enough."""
    total, ran = (sum(row[i] for row in rows.values()) for i in (0, 1))
    share = 100 * ran / max(total, 1)
    print(f"\n{title}: {ran} of {total} lines, {share:.1f} % (at least {least:g} %)")
    for name, (n, hit, missing) in sorted(rows.items(), key=lambda row: row[1][1] / max(row[1][0], 1)):
        print(f"  {100 * hit / max(n, 1):6.1f} %  {name}" + (f"  not run: {missing}" if hit < n * least / 100 else ""))
    return share >= least


def ranges(numbers) -> str:
    """1-3, 7, ..."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n <= parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def main(arguments: list[str]) -> int:
    copied()
    from cnn._dispatch import ISA as isa

    build = run(
        *(sys.executable, "setup.py", "-q", "build_ext", "--inplace"),
        CNN_VARIANTS=f"{isa}_f32,{isa}_f64",
        CFLAGS="--coverage -Wno-maybe-uninitialized",
        LDFLAGS="--coverage",
    )
    if build:
        return build
    for old in TREE.glob("build/temp*/**/*.gcda"):
        old.unlink()
    every = "test_every_instruction_set_and_dtype_drops_the_same"
    others = f"not {every} and " + " and ".join(f"not {name}" for name in ("v4", "v3", "baseline") if name != isa)
    run(sys.executable, "-m", "coverage", "erase")
    failed = 0
    for folder in arguments or ["tests"]:  # each on its own: pytest leaves out one that lies in another
        failed |= run(
            *(sys.executable, "-m", "coverage", "run", "--append", "--source=src/cnn"),
            *("-m", "pytest", folder, "-q", "-p", "no:cacheprovider", "-k", others),
            *(f"--ignore=tests/{name}" for name in ALL_VARIANTS),
            PYTHONPATH=os.pathsep.join(["src", "tests", *filter(None, [os.environ.get("PYTHONPATH")])]),
            CNN_ISA=isa,
        )
    run(sys.executable, "-m", "coverage", "json", "-q", "-o", "coverage.json")
    python = {}
    for name, file in json.loads((TREE / "coverage.json").read_text())["files"].items():
        missing = file["missing_lines"]
        n = len(file["executed_lines"]) + len(missing)
        python[name] = (n, n - len(missing), ranges(missing))
    kernels = {}
    for name, lines in kernel_lines().items():
        missing = [line for line, ran in lines.items() if not ran]
        kernels[name] = (len(lines), len(lines) - len(missing), ranges(missing))
    enough = [
        table("Python layer", python, LEAST["python"]),
        table("Kernels", kernels, LEAST["kernels"]),
    ]
    if failed:
        print("\nsome tests have failed")
    return int(not all(enough) or failed != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
