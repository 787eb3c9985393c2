"""Measures two ratios of times, which a busy machine blurs, until they are good or a minute has passed.

    python tests/soak/threads.py

Models trained at once: each of two Python threads trains one, and both together do 1.2 times the work of one at least.
Threads without a processor: where the pool's workers share one with the caller, it does not wait for them, so that four
threads take less than twice the time of one. Prints a line for each, and ends with 1 at a failure.
"""

import os
import sys
import threading
import time
from itertools import pairwise

import numpy as np

import cnn

WORK = [((8, 32, 1), 1), ((8, 64, 64, 4), 32), ((200, 100, 10), 256)]  # widths, and the batch


def seconds(*calls):
    """The time of calls that run each in a thread of its own."""
    threads = [threading.Thread(target=call) for call in calls]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


def ratio(of, to, limit, turns=10):
    """The best time of one call in that of another, of some turns or until it is at most limit."""
    best, stop = [np.inf, np.inf], time.monotonic() + 60
    while turns > 0 or (best[0] > limit * best[1] and time.monotonic() < stop):
        best = [min(best[0], of()), min(best[1], to())]
        turns -= 1
    return best[0] / best[1]


def model(widths):
    layers = []
    for n_in, n_out in pairwise(widths):
        layers += [cnn.Linear(n_in, n_out), cnn.ReLU()]
    return cnn.Sequential([*layers[:-1], cnn.MSELoss()], optimizer=cnn.SGD(lr=1e-4), seed=0)


def trained_at_once(widths, batch_size, rows=20_000):
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((rows, n)).astype("f4") for n in (widths[0], widths[-1]))

    def fit(model):
        return lambda: model.fit(x, y, batch_size=batch_size, epochs=3, threads=1, progress=False)

    one, two = fit(model(widths)), fit(model(widths))
    return ratio(lambda: seconds(one, two), lambda: seconds(one), 2 / 1.2)


def without_a_processor():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    x, y = np.ones((2500, 100), "f4"), np.ones((2500, 10), "f4")
    m = model((100, 300, 10))

    def fit(threads):
        return lambda: m.fit(x, y, batch_size=500, threads=threads, epochs=5, progress=False)

    return ratio(lambda: seconds(fit(4)), lambda: seconds(fit(1)), 2)


def main():
    failures = 0

    def report(what, found, limit):
        nonlocal failures
        failures += found > limit
        print(f"{what}: {found:.2f} of the time, at most {limit:.2f}", flush=True)

    if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
        for widths, batch_size in WORK:
            report(f"two models at once, {widths}, batch {batch_size}", trained_at_once(widths, batch_size), 2 / 1.2)
    if hasattr(os, "sched_setaffinity"):
        report("four threads on one processor", without_a_processor(), 2)
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
