"""Looks for memory that is never given back: training steps, models, errors.

    python tests/soak/growth.py [steps, 100000] [models, 10000] [errors, 10000]

Each kind of work runs a tenth as a warm-up, then in full. Afterwards the process may have no more Python objects, no
more bytes from malloc (where there is mallinfo2) and no more resident memory (where there is /proc) than before, but
for what is named below. Prints a line for each kind, and ends with 1 at any failure.
"""

import ctypes
import gc
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import cnn

OBJECTS, BYTES, RESIDENT = 1000, 100_000, 4 << 20  # caches of Python, NumPy and malloc; not more, however long it runs

random = np.random.default_rng(0)
X, Y = random.standard_normal((64, 5)), random.standard_normal((64, 3))


class Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "free", "keep")
    ]


def used():
    """Python's blocks, bytes from malloc, resident bytes."""
    gc.collect()
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        taken = 0
    else:
        mallinfo.restype = Mallinfo
        info = mallinfo()
        taken = info.uordblks + info.hblkhd
    statm = Path("/proc/self/statm")
    resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if statm.exists() else 0
    return sys.getallocatedblocks(), taken, resident


def network(dtype="float32", **more):
    parts = [cnn.Linear(5, 7), cnn.Tanh(), cnn.Dropout(0.1), cnn.Linear(7, 3), cnn.MSELoss()]
    return cnn.Sequential(parts, optimizer=cnn.Adam(lr=1e-3, **more), dtype=dtype, seed=0)


def steps():
    """Every way to train and to ask, one after the other."""
    models = [network(), network("float64", clip_norm=1.0)]
    one = cnn.Sequential([cnn.Linear(5, 3), cnn.MSELoss()], optimizer=cnn.SGD(lr=1e-3), seed=0)
    i = 0
    while True:
        model = models[i % 2]
        match i % 8:
            case 0:
                model.fit(X, Y, epochs=1, batch_size=16, validation_split=0.25)
            case 1:
                model(X, Y)
                model.zero_grads()
                model.backward()
                model.step()
            case 2:
                model.hvp(X, Y, model.parameters)
                model.vjp(X, Y)
                model.jvp(X, X)
            case 3:
                model.predict(X[: i % 64 + 1])
                model.evaluate(X, Y)
            case 4:
                one.train_step(X[:1], Y[:1])
            case 5:
                model.loss_and_grad(X.tolist(), Y)
                model.parameters = model.parameters
            case _:
                model.train_step(X[: i % 64 + 1], Y[: i % 64 + 1])
        i += 1
        yield


def models():
    """Made, trained and dropped; nested, with branches, loaded."""
    folder = tempfile.mkdtemp()
    path = Path(folder, "model.safetensors")
    i = 0
    while True:
        if i % 10 == 0:
            network().save(path)
            cnn.load(path).predict(X)
        elif i % 3:
            model = network("float64", ema_decay=0.9)
            model.train_step(X, Y)
            model.predict(X)
        else:
            inner = cnn.Sequential([cnn.Linear(5, 5), cnn.BatchNorm1d(5), cnn.ReLU()])
            parts = [cnn.Add(inner, cnn.Identity()), cnn.Linear(5, 3), cnn.MSELoss()]
            cnn.Sequential(parts, optimizer=cnn.SGD(lr=0.1)).train_step(X, Y)
        i += 1
        yield


def calls_that_fail():
    model = network()
    classes = cnn.Sequential([cnn.Linear(5, 3), cnn.CrossEntropyLoss()], optimizer=cnn.SGD(lr=0.1), seed=0)
    lost = cnn.Sequential([cnn.Linear(5, 3), cnn.MSELoss()], optimizer=cnn.SGD(lr=1e30), seed=0)
    huge = np.broadcast_to(np.float32(1), (1 << 58, 5))

    class Stop(cnn.Callback):
        def on_epoch_end(self, epoch, logs):
            raise KeyError(epoch)

    return [
        lambda: model.train_step(X[:, :4], Y),
        lambda: model.train_step(X, Y[:3]),
        lambda: model.train_step(X.astype(complex), Y),
        lambda: model.train_step(np.empty((0, 5)), np.empty((0, 3))),
        lambda: model.predict([["a"]]),
        lambda: model.predict(X, out=np.empty((64, 2), "f4")),
        lambda: model.predict(huge),
        lambda: model.train_step(huge, np.broadcast_to(np.float32(1), (1 << 58, 3))),
        lambda: network().backward(),
        lambda: model.load_weights({"0.weight": np.zeros((5, 7))}),
        lambda: model.fit(X, Y, batch_size=0),
        lambda: model.fit(X, Y, epochs=1, callbacks=[Stop()]),
        lambda: model.hvp(X, Y, [1.0]),
        lambda: classes.train_step(X, np.full(64, 3)),
        lambda: classes.fit(X, np.full(64, -1)),
        lambda: lost.fit(X, Y, epochs=9),
        lambda: cnn.Linear(0, 3),
        lambda: cnn.Sequential([cnn.Linear(5, 3), cnn.Linear(4, 3)]),
        lambda: cnn.Sequential([cnn.Linear(1 << 40, 1 << 40)]),
        lambda: model.copy_from(classes),
        lambda: cnn.Sequential.from_config({"layers": [{"name": "Lineal"}]}),
        lambda: cnn.load("/nowhere/model.safetensors"),
        lambda: cnn.functional.linear_forward(X, Y),
        lambda: cnn.SGD(lr=-1),
    ]


def errors():
    """Every call fails."""
    calls, i = calls_that_fail(), 0
    while True:
        try:
            calls[i % len(calls)]()
        except (ValueError, TypeError, RuntimeError, KeyError, MemoryError, OSError, ArithmeticError):
            pass
        else:
            raise AssertionError(f"call {i % len(calls)} did not fail")
        i += 1
        yield


def grown(work, count):
    """What is used after so many pieces of work, beyond what was used after a tenth of them."""
    run = work()
    for _ in range(max(count // 10, 100)):
        next(run)
    before = used()
    for _ in range(count):
        next(run)
    return [after - b for after, b in zip(used(), before, strict=True)]


def main(counts):
    failures = 0
    for work, count in zip((steps, models, errors), counts, strict=True):
        objects, taken, resident = grown(work, count)
        failures += objects > OBJECTS or taken > BYTES or resident > RESIDENT
        print(f"{count} {work.__name__}: {objects} objects, {taken} bytes, {resident} resident bytes more")
    print(f"{failures} failures")
    return failures > 0


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main([*given, *(100_000, 10_000, 10_000)[len(given) :]]))
