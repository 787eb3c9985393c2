"""Measure everything and write RESULTS.md, results.png and scaling.png; or, with --quick, print one table.

    python bench/report.py [--quick] [--wheel FILE] [--rounds N] [--from .benchmarks/results.json]

All figures are kept in .benchmarks/results.json, from which --from writes the report anew. This process measures
nothing itself: each group of workloads runs in its own (runner.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import cost as costs
import goals
import machine
import runner
import workloads
from goals import LABELS

HERE = Path(__file__).resolve().parent
STORE = HERE.parent / ".benchmarks" / "results.json"
PEERS = ("numpy", "torch", "jax", "sklearn", "onnxruntime")
FULL = ("main", "readme", "threads2", "noisy", "float64", "avx2", "exported", "derivatives", "sparse", "scaling")


# ---- measuring ---------------------------------------------------------------------------------------------------


def groups_with(rows: list[str] | None, names: tuple[str, ...]) -> list[str]:
    """The groups among these that have one of the rows, and that this machine can run."""
    known = {row.id for name in names for row in workloads.GROUPS[name].rows}
    if unknown := set(rows or ()) - known:
        sys.exit(f"no row {', '.join(sorted(unknown))}: there are {', '.join(sorted(known))}")
    from cnn._dispatch import AVAILABLE

    chosen = []
    for name in names:
        group = workloads.GROUPS[name]
        if rows is not None and not any(row.id in rows for row in group.rows):
            continue
        if group.threads > len(machine.cores()):
            print(f"{name}: left out, there are fewer than {group.threads} cores", file=sys.stderr)
        elif group.isa and group.isa not in AVAILABLE[1:]:
            print(f"{name}: left out, {group.isa} is not a lesser instruction set here", file=sys.stderr)
        else:
            chosen.append(name)
    return chosen


def measure(groups, rows=None, rounds=None, wheel=None, cost=True) -> dict[str, Any]:
    """All results of these groups, as they are stored."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5:
        print(f"warning: the machine is busy, its load is {load:.1f}", file=sys.stderr)
    start = time.perf_counter()
    results: dict[str, Any] = {
        "date": date.today().isoformat(),
        "load": load,
        "machine": machine.describe(),
        "versions": machine.versions(),
        "groups": {},
        "cost": costs.measure(wheel) if cost else None,
    }
    for name in groups:
        wanted = None if rows is None else [row.id for row in workloads.GROUPS[name].rows if row.id in rows]
        results["groups"][name] = runner.run_group(name, wanted, rounds)
    results["seconds"] = time.perf_counter() - start
    return results


# ---- the report --------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, thousands separated."""
    if value >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    text = f"{value:#.3g}"
    return text.rstrip(".")


def micros(times: dict[str, Any] | None, which: str = "best") -> str:
    return number(times[which] * 1e6) if times else "-"


def table(header: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """Markdown; so many columns are aligned to the left."""
    rule = "|" + "---|" * left + "---:|" * (len(header) - left)
    return ["| " + " | ".join(header) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows), ""]


def present(group: dict[str, Any]) -> list[str]:
    """The peers that were measured in at least one row."""
    return [peer for peer in PEERS if any(peer in times for times in group["rows"].values())]


def main_table(results: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    """The rows with goals."""
    groups = [results["groups"][name] for name in names if name in results["groups"]]
    peers = [peer for peer in PEERS if any(peer in present(group) for group in groups)]
    rows = []
    for workload in workloads.ROWS:
        for group in groups:
            times = group["rows"].get(workload.id)
            if times is None:
                continue
            judged = list(goals.of_row(workload, group))
            strongest = goals.strongest_peer(times)
            ratio = times[strongest]["best"] / times["cnn"]["best"]
            part = workload.flops / times["cnn"]["best"] / group["peaks"][workload.id]
            rows.append(
                [
                    f"**{workload.id}**: {workload.title}; `{workload.verb}`",
                    f"**{micros(times['cnn'])}**",
                    *(micros(times.get(peer)) for peer in peers),
                    f"**{ratio:.2f}** {LABELS[strongest]}",
                    percent(part),
                    "; ".join(short(goal) for goal in judged),
                    verdict(judged),
                ]
            )
    header = ["µs a step", "cnn", *(LABELS[peer] for peer in peers)]
    return table([*header, "faster than the best peer", "of peak", "goal", "met"], rows)


def percent(part: float) -> str:
    return f"{part:.0%}" if part >= 0.095 else f"{part:.1%}"


def short(goal: goals.Goal) -> str:
    if goal.what == "of the peak":
        return f"≥ {goal.required:.0%} of peak"
    if goal.what == "microseconds":
        return f"≤ {goal.required:g} µs"
    return f"{'≥' if goal.more_is_better else '≤'} {goal.required:g}x"


def verdict(judged: list[goals.Goal]) -> str:
    missed = [goal for goal in judged if not goal.met]
    return "**no**: " + ", ".join(short(goal) for goal in missed) if missed else "yes" if judged else ""


def plain_table(group: dict[str, Any]) -> list[str]:
    """Rows without goals."""
    known = {row.id: row for row in workloads.GROUPS[group["group"]].rows}
    peers = present(group)
    rows = []
    for id, times in group["rows"].items():
        workload = known[id]
        own = times["cnn"]["best"]
        strongest = goals.strongest_peer(times)
        rows.append(
            [
                f"**{id}**: {workload.title}; `{workload.verb}`",
                f"**{micros(times['cnn'])}**",
                *(micros(times.get(peer)) for peer in peers),
                f"**{times[strongest]['best'] / own:.2f}** {LABELS[strongest]}",
                percent(workload.flops / own / group["peaks"][workload.id]),
            ]
        )
    return table(["µs a step", "cnn", *(LABELS[peer] for peer in peers), "faster than the best peer", "of peak"], rows)


def forms_table(group: dict[str, Any]) -> list[str]:
    """JAX: what each form took that was tried."""
    tried = {id: times["jax"]["tried"] for id, times in group["rows"].items() if times.get("jax", {}).get("tried")}
    names = list(dict.fromkeys(name for times in tried.values() for name in times))
    names = [name for name in names if name.startswith(("rows", "columns"))]
    rows = [
        [f"**{id}**", micros(group["rows"][id]["cnn"]), *(number(times[n] * 1e6) if n in times else "-" for n in names)]
        for id, times in tried.items()
        if names[0] in times
    ]
    return table(["µs a step", "cnn", *(f"JAX, {name}" for name in names)], rows) if rows else []


def exported_table(group: dict[str, Any]) -> list[str]:
    """A network as C beside `predict` and the strongest runtime of another."""
    names = list(dict.fromkeys(who for times in group["rows"].values() for who in times))
    known = {row.id: row for row in workloads.GROUPS[group["group"]].rows}
    rows = [
        [f"**{id}**: {known[id].title}; `{known[id].verb}`", *(micros(times.get(who)) for who in names)]
        for id, times in group["rows"].items()
    ]
    return table(["µs a step", *(LABELS[who] for who in names)], rows)


def threads_table(group: dict[str, Any]) -> list[str]:
    peers = present(group)
    rows = []
    for id, times in group["rows"].items():
        judged = list(goals.of_threads(id, times))
        strongest = goals.strongest_peer(times)
        own = times["cnn"]["best"]
        rows.append(
            [
                f"**{id}**: {workloads.ROW[id].title}",
                micros(times["cnn-1"]),
                f"**{micros(times['cnn'])}**",
                *(micros(times.get(peer)) for peer in peers),
                f"**{times['cnn-1']['best'] / own:.2f}**",
                f"**{times[strongest]['best'] / own:.2f}** {LABELS[strongest]}",
                f"≥ {workloads.THREADS2_OVER_ONE:g}x own; ≥ {workloads.THREADS2_OVER_PEER:g}x peer",
                verdict(judged),
            ]
        )
    header = ["µs a step", "cnn, one core", "cnn, two cores", *(LABELS[peer] for peer in peers)]
    return table([*header, "faster than on one core", "faster than the best peer", "goal", "met"], rows)


def noisy_table(group: dict[str, Any]) -> list[str]:
    lines = []
    for id, times in group["rows"].items():
        rows = []
        for who, found in times.items():
            quiet, busy = found["median"], found["busy"]["median"]
            threads = 1 if who == "cnn-1" else group["threads"]
            times_text = [number(quiet * 1e6), number(busy * 1e6), f"{busy / quiet:.2f}"]
            rows.append([LABELS[who].partition(",")[0], str(threads), *times_text])
        lines += table(["contender", "threads", "µs a step, quiet", "beside a busy process", "slower by"], rows)
        (goal,) = goals.of_noise(id, times)
        lines += [
            f"Goal: two threads beside the busy process take at most {goal.required:g} times what one thread takes "
            f"beside it. Measured: {goal.achieved:.2f}; {'met' if goal.met else '**not met**'}.",
            "",
        ]
    return lines


def cost_table(cost: dict[str, dict[str, Any]]) -> list[str]:
    def megabytes(size: int | None) -> str:
        return f"{size / 1e6:,.1f}" if size else "-"

    rows = [
        [label, f"{c['seconds'] * 1e3:,.0f}", *(megabytes(c.get(what)) for what in ("resident", "installed", "wheel"))]
        for label, c in cost.items()
    ]
    judged = list(goals.of_cost(cost))
    bounds = ", ".join(f"{goal.required:g} {goal.what}" for goal in judged)
    missed = [f"{goal.what} {goal.achieved:.3g}" for goal in judged if not goal.met]
    return [
        *table(["after `import numpy`", "import, ms", "resident, MB", "installed, MB", "wheel, MB"], rows),
        f"Goal: at most {bounds}. {'Not met: **' + ', '.join(missed) + '**.' if missed else 'Met.'}",
        "",
    ]


def report(results: dict[str, Any]) -> str:
    """RESULTS.md."""
    groups = results["groups"]
    about = results["machine"]
    judged = goals.all_goals(results)
    missed = [goal for goal in judged if not goal.met]
    peak: dict[str, float] = {}
    for group in groups.values():
        if group["isa"] == groups["main"]["isa"]:
            for dtype, speed in group["peak"].items():
                peak[dtype] = max(peak.get(dtype, 0.0), speed)
    one_core = ", ".join(f"{speed / 1e9:.0f} GFLOP/s {dtype}" for dtype, speed in sorted(peak.items()))
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    lines = [
        "# Results",
        "",
        "Written by `make bench`; how it is measured stands at the end. Times are microseconds a step, less is better.",
        "",
        "![For each workload a line with a mark for every library at the GFLOP/s that it reaches on one core, on a",
        "logarithmic scale that ends at the measured limit of the core.](results.png)",
        "",
        *table(
            ["", ""],
            [
                ["date", results["date"]],
                ["processor", f"{about['processor']}, {about['cores']} cores"],
                ["peak of one core, measured", one_core],
                ["system", f"{about['system']}, Python {about['python']}"],
                ["versions", versions],
                ["instruction set of cnn; BLAS of NumPy", f"{groups['main']['isa']}; {groups['main']['blas']}"],
                ["load at the start; time it took", f"{results['load']:.2f}; {results['seconds'] / 60:.1f} minutes"],
            ],
            left=2,
        ),
        f"**{len(judged) - len(missed)} of {len(judged)} goals met.**" + (" Not met:" if missed else ""),
        "",
        *(f"- {goal}" for goal in missed),
        *([""] if missed else []),
        "## One core, float32",
        "",
        *main_table(results, ("main", "readme")),
        '`readme` is float64 and compared with the float64 peak. "-": the library cannot do it, or it would take',
        "minutes (scikit-learn on large1024).",
        "",
    ]
    if "threads2" in groups:
        lines += ["## Two cores", "", *threads_table(groups["threads2"])]
    if "noisy" in groups:
        lines += [
            "## Beside another process",
            "",
            "mnist64 with two threads on two cores, while another process computes on one of them. Medians.",
            "",
            *noisy_table(groups["noisy"]),
        ]
    if results["cost"]:
        lines += [
            "## What it costs to have it",
            "",
            *cost_table(results["cost"]),
            "Installed: with what the library cannot do without, but without NumPy.",
            "",
        ]
    if "float64" in groups:
        lines += ["## float64", "", *plain_table(groups["float64"])]
    if "avx2" in groups:
        speed = groups["avx2"]["peak"]["float32"] / 1e9
        lines += [
            "## AVX2",
            "",
            f"cnn, NumPy, PyTorch and scikit-learn held to AVX2, float32; the peak of one core is then {speed:.0f}",
            "GFLOP/s. JAX is told so too (`xla_cpu_max_isa`), but the matrix products of 0.10 do not heed it: it takes",
            "as long as in the first table. ONNX Runtime has no switch for it.",
            "",
            *plain_table(groups["avx2"]),
        ]
    if "exported" in groups:
        lines += [
            "## As C",
            "",
            "What `cnn.to_c` writes, compiled with -O3 -march=native and called from C.",
            "",
            *exported_table(groups["exported"]),
        ]
    if "derivatives" in groups:
        lines += [
            "## Derivative products and branches",
            "",
            "JAX jitted, PyTorch's torch.func; jvp along the inputs and the parameters, hvp in the parameters.",
            "",
            *plain_table(groups["derivatives"]),
        ]
    if "sparse" in groups:
        lines += [
            "## Sparse rows",
            "",
            "x is a CSR matrix of SciPy, as a text makes it: 50,000 columns and 100 non-zeros a row, float64.",
            "",
            *plain_table(groups["sparse"]),
        ]
    if "scaling" in groups:
        lines += [
            "## Scaling",
            "",
            "![Left: time of a step against the batch size from 1 to 4096. Right: against the width from 8 to 2048.",
            "For each library a line; beneath them the line of the work divided by the peak.](scaling.png)",
            "",
        ]
    lines += HOW.splitlines()
    if forms := forms_table(groups["main"]):
        lines += ["", "JAX in the forms that were tried, best of three; the fastest went into the tables:", "", *forms]
    return "\n".join(lines).rstrip() + "\n"


HOW = """\
## How it is measured

    make bench         # everything: this file, results.png and scaling.png
    make bench-quick   # the rows that matter while working, printed
    .venv-bench/bin/python -m pytest bench -k mnist64    # one row, each contender by itself, with pytest-benchmark
    .venv-bench/bin/python bench/check.py                # fails if a row is more than a tenth below its goal

- Random normal data, mean squared error. A step is one mini-batch. FLOPs of a step are those of the matrix products:
  6 batch in out for each layer, less 2 batch in out for the first, whose gradient of the inputs is not needed.
- All contenders of a table run in one process, pinned to one core (two in the tables that say so) and to as many
  threads, in turns: a round of all, then the next, the first of a round being another each time. What counts is the
  shortest turn. A turn takes some 10 to 60 ms. Ratios of one run compare; microseconds of different runs do not.
- Before anything is timed, each contender does the first steps (or predicts) from the same parameters, and loss and
  parameters, gradient or outputs are compared with a naive float64 reference: within 0.001 of the distance that
  training moved the parameters (float64: 1e-9).
- The peak, fused multiply-adds on independent registers, takes turns with the contenders, of 20 ms each: for shorter
  stretches the processor is some per cent faster, and from minute to minute it differs by as much.
- cnn: `fit`, without shuffling, on NumPy arrays; `train_step`, `loss_and_grad` and `predict` where single calls from
  Python are measured. JAX: the whole pass over the data is one jitted `lax.scan` with donated parameters, data on
  the device, asynchronous dispatch off (it costs more than it hides on one core); samples in rows, as usual, or in
  columns, and four steps of a small batch unrolled into one turn of the loop, whichever is the fastest. PyTorch:
  eager, Adam in its fused form. scikit-learn: `partial_fit` on all rows at once. NumPy: written by hand. ONNX
  Runtime: io-binding, input and output bound once. In `call` and `act1` PyTorch, JAX, NumPy and scikit-learn get
  NumPy arrays and give a float or a NumPy array, as cnn does.
- Goals of time in microseconds stem from another machine, a 2-core Zen 5; only ratios carry over.
"""


def write(results: dict[str, Any]) -> None:
    import figures

    (HERE / "RESULTS.md").write_text(report(results))
    figures.draw_results(results, HERE / "results.png")
    if "scaling" in results["groups"]:
        figures.draw_scaling(results["groups"]["scaling"], HERE / "scaling.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="print the most telling rows, write nothing")
    parser.add_argument("--rows", nargs="+", help="with --quick: these alone")
    parser.add_argument("--wheel", type=Path, help="whose size is reported")
    parser.add_argument("--rounds", type=int, help="turns of each contender; fewer for a trial run")
    parser.add_argument("--from", dest="stored", type=Path, metavar="FILE", help="measure nothing, take these results")
    options = parser.parse_args()
    if options.quick:
        results = measure(["quick"], options.rows, options.rounds, cost=False)
        print("\n".join(main_table(results, ("quick",))))
        return
    if options.stored:
        results = json.loads(options.stored.read_text())
    else:
        results = measure(groups_with(None, FULL), rounds=options.rounds, wheel=options.wheel)
        STORE.parent.mkdir(exist_ok=True)
        STORE.write_text(json.dumps(results, indent=1))
    write(results)
    print(f"{HERE / 'RESULTS.md'}, results.png, scaling.png: {results['seconds'] / 60:.1f} minutes")


if __name__ == "__main__":
    main()
