"""One training run of everything, for valgrind: the baseline's kernels, as it does not know AVX-512.

    CNN_ISA=baseline PYTHONMALLOC=malloc valgrind --error-exitcode=1 --undef-value-errors=yes \\
        python tests/soak/training.py [valgrind's log]

With the log: ends with 1 if an error in it has one of our modules in its stack.
"""

import re
import sys
from pathlib import Path

import numpy as np

import cnn


def train():
    random = np.random.default_rng(0)
    for dtype in ("float32", "float64"):
        branch = cnn.Sequential([cnn.Linear(7, 33), cnn.GELU(), cnn.BatchNorm1d(33), cnn.Dropout(0.1)], dtype=dtype)
        parts = [cnn.Add(branch, cnn.Linear(7, 33)), cnn.LayerNorm(33), cnn.Linear(33, 5), cnn.CrossEntropyLoss()]
        model = cnn.Sequential(parts, optimizer=cnn.AdamW(clip_norm=1.0), dtype=dtype, seed=0)
        x, y = random.standard_normal((130, 7)), random.integers(0, 5, 130)
        model.fit(x, y, epochs=2, batch_size=32, validation_split=0.2, threads=2)
        model.train_step(x[:3], y[:3])
        model.predict(x, threads=3)
        model.evaluate(x, y)
        plain = cnn.Sequential([cnn.Linear(7, 9), cnn.Tanh(), cnn.Linear(9, 1), cnn.MSELoss()], cnn.SGD(), dtype, 0)
        plain.fit(x, y.astype(float), batch_size=1)
        plain.hvp(x, y.astype(float), plain.parameters)
        plain.vjp(x, y.astype(float)[:, None], parameters=True)
        assert np.isfinite(model.parameters).all()
        assert np.isfinite(plain.parameters).all()


def ours(log):
    """The errors of valgrind's log with a module of ours in their stack."""
    errors = re.split(r"==\d+== \n", Path(log).read_text())
    return [error for error in errors if "_kernels_" in error and re.search(r"==\d+==    at 0x", error)]


if __name__ == "__main__":
    if sys.argv[1:]:
        found = ours(sys.argv[1])
        print("\n".join(found))
        print(f"{len(found)} errors in our modules")
        sys.exit(len(found) > 0)
    train()
    print("trained")
