"""hvp, gnvp, jvp and hvp_input of two rows of workloads.py on two threads beside one: float32.

    python bench/products.py [rounds]

The results are compared first: they must have the same bits. Times are the least of the rounds, in turns; two cores
must be free. Then the goals. A pool that has met a busy core works alone for a while: each round begins without that.
"""

import itertools
import sys
import time

import numpy as np
from goals import judge
from workloads import ROW

import cnn


def main(rounds: int = 100) -> None:
    rng = np.random.default_rng(0)
    times = {}
    print("| | one thread, us | two, us | times |\n|---|---|---|---|")
    for name in ("rl256", "matexp"):
        row = ROW[name]
        act = {"relu": cnn.ReLU, "tanh": cnn.Tanh}[row.activation]
        layers = [layer for widths in itertools.pairwise(row.widths) for layer in (cnn.Linear(*widths), act())]
        model = cnn.Sequential([*layers[:-1], cnn.MSELoss()], seed=0)
        x, t = rng.standard_normal((2, row.batch, row.widths[0])).astype("float32")
        y, v = rng.standard_normal((row.batch, row.widths[-1])).astype("float32"), model.parameters
        calls = {
            "hvp": lambda m=model, x=x, y=y, v=v: m.hvp(x, y, v),
            "gnvp": lambda m=model, x=x, y=y, v=v: m.gnvp(x, y, v),
            "jvp": lambda m=model, x=x, t=t, v=v: m.jvp(x, t, v),
            "hvp_input": lambda m=model, x=x, y=y, t=t: m.hvp_input(x, t, y),
        }
        for call, run in calls.items():
            best, results = [np.inf, np.inf], [None, None]
            for _, n in itertools.product(range(rounds), (0, 1)):
                cnn.set_num_threads(n + 1)
                model._core.kernels.forget_waits()
                results[n] = run()
                for _ in range(4):
                    began = time.perf_counter()
                    run()
                    best[n] = min(best[n], 1e6 * (time.perf_counter() - began))
            if not np.array_equal(*results):
                raise SystemExit(f"{name} {call}: two threads give other bits than one")
            times[f"{name} {call}"] = best[0] / best[1]
            print(f"| {name} {call} | {best[0]:.0f} | {best[1]:.0f} | {best[0] / best[1]:.2f} |", flush=True)
    for what, achieved in times.items():
        if "input" not in what:
            judge(what, "times as fast on two threads", 1.8, achieved)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
