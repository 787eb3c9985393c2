"""Work for the thread sanitizer: Python's threads that train and predict with the pool, which finds no race in it.

python tests/soak/races.py [calls of each thread, 5]
python tests/soak/races.py race         two threads write to one array: the sanitizer must say so
"""

import sys
import threading

import numpy as np

import cnn

THREADS = (1, 2, 3, 4, 8)

random = np.random.default_rng(0)
X, Y = random.standard_normal((3000, 100)).astype("f4"), random.standard_normal((3000, 10)).astype("f4")


def network():
    branch = cnn.Sequential([cnn.Linear(100, 300), cnn.Tanh(), cnn.BatchNorm1d(300), cnn.Dropout(0.1)])
    parts = [cnn.Add(branch, cnn.Linear(100, 300)), cnn.LayerNorm(300), cnn.Linear(300, 10), cnn.MSELoss()]
    return cnn.Sequential(parts, optimizer=cnn.Adam(), seed=0)


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

    together(*[work] * 4)
    print(f"{4 * calls * len(THREADS)} rounds of train_step, predict and evaluate in 4 threads: {len(wrong)} wrong")
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
