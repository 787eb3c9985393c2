"""What the tests of pytest-benchmark share."""

import time

import pytest
import runner
from contenders import CONTENDERS, contender


def cases(rows):
    """A parameter set (workload, contender's name) for every contender that is installed and can do the workload.

    Its clock is divided by the steps of a unit, so that what pytest-benchmark prints is the time of one step.
    """
    sets = []
    for row in rows:
        for who in CONTENDERS:
            made = contender(who)
            if who in row.without or not made.can(row):
                continue
            steps = row.python_steps if made.python_loop else row.steps
            mark = pytest.mark.benchmark(group=row.title, timer=lambda steps=steps: time.perf_counter() / steps)
            sets.append(pytest.param(row, who, id=f"{row.id}-{who}", marks=mark))
    return sets


def time_checked(benchmark, workload, who):
    """Compare with the reference, then time some units of work."""
    runs, errors = runner.prepare(workload, {who: contender(who)})
    run = runs[who]
    benchmark.extra_info |= {"steps_a_unit": run.steps, "form": run.form, "error": errors[who]}
    benchmark.pedantic(run, rounds=3 if workload.flops > 1e10 else 8)
