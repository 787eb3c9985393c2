"""Interrupts `fit` by SIGINT at random moments.

    python tests/soak/interrupts.py [how many, 200] [seed, 0]

After each KeyboardInterrupt the parameters must be, bit for bit, those that as many steps of training on the same
batches give: none is half done. Then the same model trains on. Shuffling, callbacks, validation and threads are
drawn at random. Prints the counts, and ends with 1 at any failure.
"""

import os
import random
import signal
import sys
import threading
import time

import numpy as np

import cnn

LONGEST = 0.08  # seconds from the beginning of fit to the signal
ROWS, BATCH = 700, 32

numbers = np.random.default_rng(0)
X, Y = numbers.standard_normal((ROWS, 20)).astype("f4"), numbers.standard_normal((ROWS, 5)).astype("f4")


def network():
    parts = [cnn.Linear(20, 130), cnn.Tanh(), cnn.BatchNorm1d(130), cnn.Dropout(0.2), cnn.Linear(130, 5), cnn.MSELoss()]
    return cnn.Sequential(parts, optimizer=cnn.Adam(lr=1e-3), seed=7)


class Slow(cnn.Callback):
    """Python code for the signal to come into."""

    def on_batch_end(self, batch, logs):
        sum(range(100))


def interrupted(model, **settings):
    """Run fit until a signal ends it; whether it did."""
    pid, wait = os.getpid(), random.uniform(0, LONGEST)

    def send():
        time.sleep(wait)
        os.kill(pid, signal.SIGINT)

    sender = threading.Thread(target=send)
    try:
        sender.start()
        model.fit(X, Y, epochs=100_000, batch_size=BATCH, **settings)
    except KeyboardInterrupt:
        return True
    finally:
        sender.join()
    return False


def replay(model, steps, shuffle):
    """The steps that a fit took on an equal model, one by one; epochs are as fit's."""
    batches = -(-ROWS // BATCH)
    for step in range(steps):
        if step % batches == 0:
            order = np.arange(ROWS)
            if shuffle:
                order = model._core.kernels.permutation(
                    ROWS, model._core.state.random_seed, model._core.state.epochs_seen
                )
        at = step % batches * BATCH
        model.train_step(X[order[at : at + BATCH]], Y[order[at : at + BATCH]])
        model._core.state.epochs_seen += step % batches == batches - 1


def same(a, b):
    """Whether two models are equal, their optimisers' and norms' states included."""
    one, two = (m.state_dict() | m._core.program.state(m.optimizer.states) for m in (a, b))
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def main(count, seed):
    random.seed(seed)
    model, twin = network(), network()
    failures = steps = 0
    for i in range(count):
        shuffle = random.random() < 0.5
        settings = {"shuffle": shuffle, "progress": False, "threads": random.choice((1, 2, 3))}
        if random.random() < 0.5:
            settings["callbacks"] = [Slow()]
        if random.random() < 0.5:
            settings["validation_data"] = (X, Y)
        before = model._core.program.steps
        seen = model._core.state.epochs_seen
        if not interrupted(model, **settings):
            print(f"interrupt {i}: fit ended by itself")
            failures += 1
        taken = model._core.program.steps - before
        twin._core.state.epochs_seen = seen
        replay(twin, taken, shuffle)
        steps += taken
        most = max(model._core.state.epochs_seen, twin._core.state.epochs_seen)
        model._core.state.epochs_seen = twin._core.state.epochs_seen = most
        if not same(model, twin):
            print(f"interrupt {i}: {taken} steps of fit, {settings}: not what the same steps give one by one")
            failures += 1
            twin._core.program.restore(model._core.program.snapshot(model.optimizer.states))
        if not np.isfinite(model.train_step(X, Y)) or not np.array_equal(model.predict(X), model.predict(X)):
            failures += 1
        twin.train_step(X, Y)
    print(f"{count} interrupts in {steps} steps: {failures} failures")
    return failures > 0


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*given, *(200, 0)[len(given) :]))
