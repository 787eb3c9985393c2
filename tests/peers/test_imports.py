"""Imports beside PyTorch, JAX and scikit-learn, in any order: their runtimes and ours work on in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cnn

ORDERS = [
    ("cnn", "torch", "jax", "sklearn.ensemble"),
    ("torch", "cnn", "sklearn.ensemble", "jax"),
    ("jax", "sklearn.ensemble", "torch", "cnn"),
]
CODE = """
import {modules}
import numpy as np, cnn, jax.numpy, torch
from sklearn.ensemble import HistGradientBoostingRegressor

cnn.set_num_threads(3)
random = np.random.default_rng(0)
x, y = random.standard_normal((2000, 100)).astype("f4"), random.standard_normal((2000, 10)).astype("f4")
parts = [cnn.Linear(100, 300), cnn.Tanh(), cnn.Linear(300, 10), cnn.MSELoss()]
model = cnn.Sequential(parts, optimizer=cnn.SGD(lr=0.01), seed=0)
expected = model.predict(x, threads=1)
for _ in range(2):
    assert (model.predict(x) == expected).all()
    product = x.T @ x
    assert np.allclose((torch.from_numpy(x).T @ torch.from_numpy(x)).numpy(), product, rtol=1e-3, atol=1e-2)
    assert np.allclose(jax.numpy.asarray(x).T @ jax.numpy.asarray(x), product, rtol=1e-3, atol=1e-2)
    HistGradientBoostingRegressor(max_iter=2).fit(x, y[:, 0])   # OpenMP
    assert np.float32(1e-40) * np.float32(1) > 0
print(np.isfinite(model.train_step(x, y)))
"""


@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_any_order(order):
    env = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1])}
    command = [sys.executable, "-c", CODE.format(modules=", ".join(order))]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]
