"""`cnn.sklearn` beside scikit-learn: fit, predict and a search, in float64, as there by default.

    python bench/estimators.py [--rows NAME ...] [--rounds 5]

Both sides are checked before they are timed: the coefficients of a fit and the predictions must agree to 1e-6. They
take turns, on one core and one thread, and what counts is the shortest turn; the search has two workers on two cores,
and is timed by the clock on the wall. "at peak" is what the ratio would be if our matrix products ran at the speed of
the processor's largest ones (OpenBLAS, 512 x 512), and nothing else took time: the bound of a goal in the same
arithmetic. Prints a table.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import machine

SIZES = {  # rows, features, classes
    "digits": (1797, 64, 10),
    "breast_cancer": (569, 30, 2),
    "wine": (6497, 11, 7),
    "20,000": (20_000, 50, 2),
    "covertype": (581_012, 54, 7),
}
WORK = 40_000  # rows that a turn of a fit takes at least, in as many epochs


@dataclass(frozen=True)
class Row:
    """What is timed. kind: "fit", a method of a fitted estimator, or "search"."""

    kind: str
    data: str
    goal: float
    rows: int = 0  # of a prediction
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        more = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return " ".join(part for part in (self.kind, self.data, f"{self.rows:,} rows" * bool(self.rows), more) if part)


ROWS = [
    *(Row("fit", data, 5) for data in SIZES),
    *(Row("fit", data, 8, options={"batch_size": 32}) for data in SIZES if data != "covertype"),
    *(
        Row("fit", data, 2.5, options={"batch_size": 1024, "hidden_layer_sizes": (512, 512)})
        for data in ("digits", "20,000")
    ),
    *(
        Row(kind, "digits", goal, rows)
        for kind in ("predict", "predict_proba")
        for rows, goal in ((1, 10), (100, 5), (100_000, 2.5))
    ),
    Row("search", "digits", 5),
]


def data(name: str):
    """Rows and classes: scikit-learn's own sets, standardised, or normal numbers of the same size."""
    import numpy as np
    from sklearn import datasets
    from sklearn.preprocessing import scale

    if hasattr(datasets, f"load_{name}") and name != "wine":
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        return scale(x), y
    n, width, classes = SIZES[name]
    x = np.random.default_rng(0).standard_normal((n, width))
    return x, np.digitize(x[:, 0] + x[:, 1], np.linspace(-2, 2, classes - 1))


def prepared(row: Row, module) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """A turn, and the numbers in what it returns that must agree."""
    import numpy as np

    x, y = data(row.data)
    if row.kind == "fit":
        epochs = max(1, WORK // len(x))
        mlp = module.MLPClassifier(random_state=0, max_iter=epochs, tol=0, n_iter_no_change=epochs, **row.options)
        return lambda: mlp.fit(x, y), lambda mlp: np.concatenate([w.ravel() for w in mlp.coefs_])
    if row.kind == "search":
        from sklearn.model_selection import GridSearchCV

        grid = {"alpha": [1e-4, 1e-2], "hidden_layer_sizes": [(50,), (100,)], "learning_rate_init": [1e-3, 1e-2]}
        mlp = module.MLPClassifier(random_state=0, max_iter=30)
        search = GridSearchCV(mlp, grid, cv=3, n_jobs=2, refit=False)  # 24 fits
        return lambda: search.fit(x, y), lambda search: search.cv_results_["mean_test_score"]
    mlp = module.MLPClassifier(random_state=0, max_iter=20).fit(x, y)
    call, rows = getattr(mlp, row.kind), np.resize(x, (row.rows, x.shape[1]))
    loop = max(1, 1000 // row.rows)

    def turn():
        for _ in range(loop):
            answer = call(rows)
        return answer

    return turn, lambda answer: answer


def flops(row: Row) -> float:
    """Of the matrix products of a turn; 0 for a search."""
    n, width, classes = SIZES[row.data]
    sizes = [width, *row.options.get("hidden_layer_sizes", (100,)), 1 if classes == 2 else classes]
    products = [a * b for a, b in itertools.pairwise(sizes)]
    if row.kind == "fit":
        return max(1, WORK // n) * n * (6 * sum(products) - 2 * products[0])
    return 2 * row.rows * sum(products) * max(1, 1000 // row.rows) if row.rows else 0.0


def peak() -> float:
    """Floating-point operations a second of a product of 512 x 512."""
    import numpy as np

    a = np.random.default_rng(0).standard_normal((512, 512))
    return 2 * 512**3 / min(timed(lambda: a @ a, time.process_time)[0] for _ in range(30))


def timed(turn: Callable[[], Any], clock: Callable[[], float]) -> tuple[float, Any]:
    began = clock()
    answer = turn()
    return clock() - began, answer


def measure(row: Row, rounds: int) -> tuple[float, float]:
    """Seconds of a turn of cnn and of scikit-learn; ValueError if their answers differ."""
    import numpy as np
    import sklearn.neural_network as theirs

    import cnn.sklearn as ours

    clock = time.perf_counter if row.kind == "search" else time.process_time  # what else runs here counts as little
    best, answers = [np.inf, np.inf], []
    both = [prepared(row, module) for module in (ours, theirs)]
    for turn in range(rounds):
        for i, (call, numbers) in enumerate(both):
            seconds, answer = timed(call, clock)
            best[i] = min(best[i], seconds)
            if turn == 0:
                answers.append(numbers(answer))
        if turn == 0 and not np.allclose(*answers, rtol=1e-6, atol=1e-6):
            raise ValueError(f"{row.name}: the answers differ by {abs(answers[0] - answers[1]).max():g}")
        if sum(best) > 20:
            break
    return best[0], best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="*", metavar="NAME", help="those whose name begins so")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cores = machine.cores()
    machine.pin(1)
    warnings.simplefilter("ignore")
    speed = peak()
    print(f"| {'row':<62} | cnn, ms | scikit-learn, ms | times as fast | goal | at peak |")
    print("|---|---|---|---|---|---|")
    for row in ROWS:
        if options.rows and not any(row.name.startswith(name) for name in options.rows):
            continue
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores[: 1 + (row.kind == "search")])
        ours, theirs = measure(row, options.rounds)
        bound = f"{theirs * speed / flops(row):.1f}" if flops(row) else ""
        cells = [f"{ours * 1e3:.4g}", f"{theirs * 1e3:.4g}", f"{theirs / ours:.1f}", f"{row.goal:g}", bound]
        print(f"| {row.name:<62} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
