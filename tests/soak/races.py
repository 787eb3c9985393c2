"""Work for the thread sanitizer: Python's threads that train and predict with the pool, which finds no race in it.

python tests/soak/races.py [calls of each thread, 5]
python tests/soak/races.py race         two threads write to one array: the sanitizer must say so
"""

import sys
import threading
from itertools import pairwise

import numpy as np

import cnn

THREADS = (1, 2, 3, 4, 8)

random = np.random.default_rng(0)
X, Y = random.standard_normal((3000, 100)).astype("f4"), random.standard_normal((3000, 10)).astype("f4")


def network():
    branch = cnn.Sequential([cnn.Linear(100, 300), cnn.Tanh(), cnn.BatchNorm1d(300), cnn.Dropout(0.1)])
    parts = [cnn.Add(branch, cnn.Linear(100, 300)), cnn.LayerNorm(300), cnn.Linear(300, 10), cnn.MSELoss()]
    return cnn.Sequential(parts, optimizer=cnn.Adam(), seed=0)


def one_at_a_time(*widths):
    """A network that trains on single rows, and as many rows for it."""
    parts = [part for n_in, n_out in pairwise(widths) for part in (cnn.Linear(n_in, n_out), cnn.ReLU())]
    model = cnn.Sequential([*parts[:-1], cnn.MSELoss()], optimizer=cnn.SGD(1e-4), seed=0)
    return model, X[:, : widths[0]], Y[:, : widths[-1]]


def together(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(calls):
    shared = network()
    expected = shared.predict(X, threads=1)
    wrong = []
    trained = {}  # widths -> the parameters that each thread ended with

    def work():
        model = network()
        for _ in range(calls):
            for threads in THREADS:
                cnn.set_num_threads(threads)
                model.train_step(X, Y)
                wrong.extend([] if np.array_equal(shared.predict(X), expected) else ["predict"])
                shared.evaluate(X, Y)
        model.fit(X, Y, batch_size=1000)
        wrong.extend([] if np.isfinite(model.parameters).all() else ["fit"])
        for widths in (8, 4, 1), (50, 64, 10):  # one vector a layer, and more
            model, x, y = one_at_a_time(*widths)
            parameters = model.parameters
            model.fit(x, y, batch_size=1, shuffle=False)
            trained.setdefault(widths, []).append(model.parameters)
            wrong.extend(["no step"] if np.array_equal(parameters, model.parameters) else [])

    together(*[work] * 4)
    wrong.extend("one row" for same in trained.values() for p in same if not np.array_equal(p, same[0]))
    rounds = f"{4 * calls * len(THREADS)} rounds of train_step, predict and evaluate"
    print(f"{rounds}, {4 * len(trained)} times 3,000 steps on one row, in 4 threads: {len(wrong)} wrong")
    return len(wrong) > 0


def race():
    model, out = network(), np.empty((3000, 10), "f4")
    start = threading.Barrier(2)

    def write():
        start.wait()
        for _ in range(5):
            model.predict(X, out=out, threads=1)

    together(write, write)


if __name__ == "__main__":
    if sys.argv[1:] == ["race"]:
        race()
    else:
        sys.exit(main(*map(int, sys.argv[1:] or [5])))
