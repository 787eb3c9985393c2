"""Exit with an error if a row has fallen below its goal by more than a tenth. For use by hand and at night.

    python bench/check.py [--rows mnist64,call] [--wheel FILE] [--from .benchmarks/results.json]

Only goals that compare two measurements of the same run are judged, and the sizes: they mean the same on any
machine. Microseconds and parts of the peak are printed and not judged.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import goals
import report

MARGIN = 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", help="only these, separated by commas")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--wheel", type=Path, help="whose size is judged")
    parser.add_argument("--from", dest="stored", type=Path, metavar="FILE", help="judge these results, measure nothing")
    options = parser.parse_args()
    if options.stored:
        results = json.loads(options.stored.read_text())
    else:
        rows = options.rows.split(",") if options.rows else None
        groups = report.groups_with(rows, ("main", "readme", "threads2", "noisy"))
        results = report.measure(groups, rows, options.rounds, options.wheel, cost=rows is None)
    failed = 0
    for goal in goals.all_goals(results):
        below = goal.relative and goal.score < 1 - MARGIN
        failed += below
        verdict = "FAILED" if below else "met" if goal.met else "within a tenth" if goal.relative else "not met"
        print(f"{verdict:15} {goal}")
    if failed:
        sys.exit(f"{failed} {'goals' if failed > 1 else 'goal'} missed by more than {MARGIN:.0%}")


if __name__ == "__main__":
    main()
