"""Lets memory run out, by RLIMIT_AS: while models are made, in their first calls, inside of fit.

    python tests/soak/memory.py [how many limits, 40]

Each call runs under limits from nothing to more than it needs. It must raise a MemoryError or succeed; after a
MemoryError the model must be as before or, after fit, a model that trains on, and must give what an equal model gives
that never failed. Prints the counts, and ends with 1 at any failure. Linux only: the size comes from /proc.
"""

import ctypes
import resource
import sys
from pathlib import Path

import numpy as np

import cnn

ROOM = 256 << 20  # bytes: more than any of the calls takes
ROWS = 6_000

random = np.random.default_rng(0)
X, Y = random.standard_normal((ROWS, 100)).astype("f4"), random.standard_normal((ROWS, 30)).astype("f4")


def network():
    parts = [cnn.Linear(100, 200), cnn.Tanh(), cnn.LayerNorm(200), cnn.Linear(200, 30), cnn.MSELoss()]
    return cnn.Sequential(parts, optimizer=cnn.Adam(lr=1e-3), seed=3)


def tangent(model):
    return np.ones_like(model.parameters)


def large():
    return cnn.Sequential([cnn.Linear(1500, 1500), cnn.MSELoss()], optimizer=cnn.SGD())


CALLS = {
    "predict": lambda m: m.predict(X),
    "evaluate": lambda m: m.evaluate(X, Y),
    "forward": lambda m: m(X),
    "train_step": lambda m: m.train_step(X, Y),
    "loss_and_grad": lambda m: m.loss_and_grad(X, Y),
    "vjp": lambda m: m.vjp(X, Y),
    "jvp": lambda m: m.jvp(X, X),
    "hvp": lambda m: m.hvp(X, Y, tangent(m)),
    "fit": lambda m: m.fit(X, Y, epochs=1, batch_size=ROWS // 2, validation_data=(X, Y)),
    "converted": lambda m: m.train_step(X.astype("f8"), Y),
}


def under(limit, call):
    """Run a call with so much memory more than there is; what it gives, or the MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + limit, hard))
    try:
        return call()
    except MemoryError as error:
        return error.with_traceback(None)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def state(model):
    return model.state_dict() | model._core.program.state(model.optimizer.states)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def main(limits):
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back, the next call asks anew
    for call in CALLS.values():  # what is imported or started when first needed
        call(network())
    failures, counts = 0, {}
    for name, call in CALLS.items():
        errors = 0
        for i in range(limits):
            model, twin = network(), network()
            before = state(model)
            result = under(ROOM * i * i // (limits - 1) ** 2, lambda m=model, c=call: c(m))
            if isinstance(result, MemoryError):
                errors += 1
                if name != "fit" and not same(state(model), before):
                    print(f"{name}, limit {i}: changed by a call that failed")
                    failures += 1
                if name == "fit":  # epochs that it has done stay
                    twin = network()
                    twin.load_weights(model.state_dict())
                    twin._core.program.set_state(model._core.program.state(2), 2)
                    twin._core.state.epochs_seen = model._core.state.epochs_seen
            else:
                call(twin)
            call(model)
            call(twin)
            if not same(state(model), state(twin)) or not np.isfinite(model.parameters).all():
                print(f"{name}, limit {i}: goes on with other numbers")
                failures += 1
        counts[name] = errors
    errors = 0
    for i in range(limits):
        result = under(ROOM * i * i // (limits - 1) ** 2, large)
        errors += isinstance(result, MemoryError)
        if not isinstance(result, (MemoryError, cnn.Sequential)):
            failures += 1
    counts["construction"] = errors
    if not all(0 <= count < limits for count in counts.values()) or sum(map(bool, counts.values())) < len(counts) - 2:
        print("a call always failed, or more than two never did")
        failures += 1
    print(", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"{sum(counts.values())} MemoryErrors in {limits * len(counts)} calls: {failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:] or [40])))
