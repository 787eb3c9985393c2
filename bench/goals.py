"""What the library promises, held against what was measured: all of report.py and check.py; `judge` for the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import workloads

LABELS = {
    "cnn": "cnn",
    "cnn-1": "cnn, one thread",
    "cnn-c": "cnn.to_c",
    "numpy": "NumPy",
    "torch": "PyTorch",
    "jax": "JAX",
    "sklearn": "scikit-learn",
    "onnxruntime": "ONNX Runtime",
}


@dataclass(frozen=True)
class Goal:
    """One promise about one row.

    relative: both sides were measured in the same run, so that it means the same on any machine.
    """

    row: str
    what: str
    required: float
    achieved: float
    more_is_better: bool = True
    relative: bool = True
    at_peak: float | None = None  # what would be achieved at the measured peak

    @property
    def score(self) -> float:
        """At least 1 if the goal is met."""
        if self.more_is_better:
            return self.achieved / self.required
        return self.required / self.achieved

    @property
    def met(self) -> bool:
        return self.score >= 1

    def __str__(self) -> str:
        at_peak = f" (at the peak of this machine it would be {self.at_peak:.3g})" if self.at_peak else ""
        return f"{self.row}: {self.what} {self.achieved:.3g}, {self.bound}{at_peak}"

    @property
    def bound(self) -> str:
        return f"{'at least' if self.more_is_better else 'at most'} {self.required:g}"


def judge(*args: Any, **options: Any) -> None:
    """Print a goal, given as to `Goal`, and whether it is met."""
    goal = Goal(*args, **options)
    print(f"{'met' if goal.met else 'not met':8} {goal}", flush=True)


def strongest_peer(times: dict[str, dict[str, Any]]) -> str:
    """The fastest of those that are not cnn."""
    return min((who for who in times if not who.startswith("cnn")), key=lambda who: times[who]["best"])


def of_row(workload: workloads.Workload, group: dict[str, Any]) -> Iterator[Goal]:
    """The goals of a row that is measured on one core."""
    times = group["rows"][workload.id]
    own = times["cnn"]["best"]
    if workload.goal is not None:
        peer = strongest_peer(times)
        ratio, least = times[peer]["best"] / own, workload.flops / group["peaks"][workload.id]
        what = f"times as fast as {LABELS[peer]}"
        yield Goal(workload.id, what, workload.goal, ratio, at_peak=times[peer]["best"] / least)
    if workload.limit is not None:
        yield Goal(workload.id, "microseconds", workload.limit, own * 1e6, more_is_better=False, relative=False)
    if workload.peak is not None:
        part = workload.flops / own / group["peaks"][workload.id]
        yield Goal(workload.id, "of the peak", workload.peak, part, relative=False)


def of_threads(row: str, times: dict[str, dict[str, Any]]) -> Iterator[Goal]:
    """Two cores against our own one, and against the strongest peer on two."""
    own, peer = times["cnn"]["best"], strongest_peer(times)
    name = f"{row}, two cores"
    yield Goal(name, "times as fast as on one", workloads.THREADS2_OVER_ONE, times["cnn-1"]["best"] / own)
    yield Goal(name, f"times as fast as {LABELS[peer]}", workloads.THREADS2_OVER_PEER, times[peer]["best"] / own)


def of_noise(row: str, times: dict[str, dict[str, Any]]) -> Iterator[Goal]:
    """Two threads beside a busy process, against one thread beside it. Medians: a hindrance is not the best case."""
    ratio = times["cnn"]["busy"]["median"] / times["cnn-1"]["busy"]["median"]
    what = "times the time of one thread"
    yield Goal(f"{row}, two threads, one core busy", what, workloads.NOISY_AT_MOST, ratio, more_is_better=False)


def of_cost(cost: dict[str, dict[str, Any]]) -> Iterator[Goal]:
    own = cost["cnn"]
    for what, required, achieved, relative in (
        ("ms to import", workloads.IMPORT_MS, own["seconds"] * 1e3, False),
        ("MB resident", workloads.RESIDENT_MB, own["resident"] / 1e6, True),
        ("MB of wheel", workloads.WHEEL_MB, own["wheel"] and own["wheel"] / 1e6, True),
    ):
        if achieved is not None:
            yield Goal("cost", what, required, max(achieved, 1e-9), more_is_better=False, relative=relative)


def all_goals(results: dict[str, Any]) -> list[Goal]:
    """Of all that has been measured: {"groups": {name: what runner.run_group returned}, "cost": ...}."""
    groups = results["groups"]
    goals: list[Goal] = []
    for name in "main", "readme", "quick", "derivatives", "sparse":
        for row in groups.get(name, {}).get("rows", ()):
            goals += of_row(workloads.ROW[row], groups[name])
    for row, times in groups.get("threads2", {}).get("rows", {}).items():
        goals += of_threads(row, times)
    for row, times in groups.get("noisy", {}).get("rows", {}).items():
        goals += of_noise(row, times)
    if results.get("cost"):
        goals += of_cost(results["cost"])
    return goals
