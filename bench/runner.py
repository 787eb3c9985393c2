"""The clock: measures a group of workloads in a process of its own, and prints what it found as JSON.

    python bench/runner.py main [--rows mnist64,call] [--rounds 20]

The process is pinned to its cores before anything is imported. Each contender's answer is checked first
(verify.py). Then the contenders take turns, round after round, the first of a round being another each time, so
that drift of the machine hits all alike; what counts is the shortest turn of each, divided by its steps. The
processor's peak takes its turns with them.
`run_group` starts such a process and returns what it prints.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import machine
from workloads import GROUPS

LEAST_ROUNDS = 4
PEAK_TURN = 0.02  # seconds: as long as most turns; a processor is some per cent faster for less than a millisecond


def run_group(name: str, rows: list[str] | None = None, rounds: int | None = None) -> dict[str, Any]:
    """Measure a group of workloads.GROUPS in a new process.

    Raises
    ------
    subprocess.CalledProcessError
        If a contender gives a wrong answer, or anything else fails; the process has said what.
    """
    command = [sys.executable, __file__, name]
    if rows is not None:
        command += ["--rows", ",".join(rows)]
    if rounds is not None:
        command += ["--rounds", str(rounds)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


# ---- in the new process ------------------------------------------------------------------------------------------


def measure_group(name: str, rows: list[str] | None, rounds: int | None, budget: float) -> dict[str, Any]:
    """All rows of the group. machine.pin has been called."""
    import numpy as np
    from contenders import Run, contender
    from peak import Peak

    from cnn._dispatch import ISA

    group = GROUPS[name]
    loops: dict[str, Peak] = {}
    peaks: dict[str, float] = {}
    found: dict[str, Any] = {}
    for workload in group.rows:
        if rows is not None and workload.id not in rows:
            continue
        loop = loops.setdefault(workload.dtype, Peak(ISA, workload.dtype))
        contenders = {
            who: made
            for who in group.contenders
            if who not in workload.without and (made := contender(who, group.threads)).can(workload)
        }
        began = time.perf_counter()
        runs, errors = prepare(workload, contenders)
        call, flops = loop.turn(PEAK_TURN)
        turns = runs | {"peak": Run(call, parameters=lambda: None, steps=flops)}
        result = measure(turns, rounds or group.rounds, budget)
        peaks[workload.id] = 1 / result.pop("peak")["best"]
        if group.busy:
            with busy_process(machine.cores()[0]):
                for who, times in measure(runs, rounds or group.rounds, budget).items():
                    result[who]["busy"] = times
        for who, times in result.items():
            run = runs[who]
            times |= {"form": run.form, "tried": run.tried, "error": errors[who], "steps": run.steps}
        del runs, turns, run
        found[workload.id] = result
        line = ", ".join(f"{who} {times['best'] * 1e6:.4g}" for who, times in result.items())
        print(f"{name} {workload.id}, microseconds: {line}  ({time.perf_counter() - began:.0f} s)", file=sys.stderr)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return {
        "group": name,
        "threads": group.threads,
        "isa": ISA,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "peak": {d: max(peaks[row.id] for row in group.rows if row.id in peaks and row.dtype == d) for d in loops},
        "peaks": peaks,
        "rows": found,
    }


def prepare(workload, contenders) -> tuple[dict, dict[str, float]]:
    """The runs, each checked and warm, and how far each is from the reference, as a part of what is allowed."""
    from problems import problem
    from verify import Truth

    truth = Truth(workload)
    long, short = problem(workload, workload.steps), problem(workload, workload.python_steps)
    runs, errors = {}, {}
    for who, contender in contenders.items():
        run = contender.prepare(workload, short if contender.python_loop else long)
        errors[who] = truth.check(contender, run.form)
        run()
        runs[who] = run
    return runs, errors


def measure(runs: dict, rounds: int, budget: float) -> dict[str, dict[str, Any]]:
    """Seconds a step of each run: the best turn, the median, and all of them.

    After `budget` seconds there are no more rounds, but at least LEAST_ROUNDS are done.
    """
    turns: dict[str, list[float]] = {who: [] for who in runs}
    order = list(runs)
    stop = time.perf_counter() + budget
    gc.collect()
    gc.disable()
    try:
        for done in range(rounds):
            if done >= LEAST_ROUNDS and time.perf_counter() > stop:
                break
            for who in order:
                start = time.perf_counter()
                runs[who]()
                turns[who].append((time.perf_counter() - start) / runs[who].steps)
            order.append(order.pop(0))
    finally:
        gc.enable()
    return {who: {"best": min(t), "median": statistics.median(t), "turns": t} for who, t in turns.items()}


@contextlib.contextmanager
def busy_process(core: int) -> Iterator[None]:
    """Another process that computes on this core for as long as the context lasts."""
    script = f"import os\nhasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--rows", help="only these, separated by commas")
    parser.add_argument("--rounds", type=int, help="turns of each contender")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds, for the rounds of one row")
    options = parser.parse_args()
    rows = options.rows and options.rows.split(",")
    known = [row.id for row in GROUPS[options.group].rows]
    if unknown := [row for row in rows or () if row not in known]:
        parser.error(f"no row {', '.join(unknown)} in {options.group}: it has {', '.join(known)}")
    machine.pin(GROUPS[options.group].threads, GROUPS[options.group].isa)
    json.dump(measure_group(options.group, rows, options.rounds, options.budget), sys.stdout)


if __name__ == "__main__":
    main()
