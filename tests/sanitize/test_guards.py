"""The guard bytes of debug builds: who writes beside an arena is found at the next pass. For `make sanitize`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cnn

CODE = """
import ctypes, numpy as np, cnn
model = cnn.Sequential([cnn.Linear(3, 5), cnn.BatchNorm1d(5), cnn.MSELoss()], cnn.SGD(lr=0.1, ema_decay=0.9), seed=0)
x, y = np.ones((4, 3), "f4"), np.ones((4, 5), "f4")
model.train_step(x, y)
at = model.layers[0].weight.ctypes.data         # where the arena begins; the line before it has its size
size = ctypes.c_size_t.from_address(at - 64).value
{damage}
print("damaged", flush=True)
{then}
print("not noticed")
"""


def run(damage, then):
    env = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1])}
    code = CODE.format(damage=damage and f"ctypes.c_float.from_address({damage}).value = 1", then=then)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)


@pytest.mark.parametrize("then", ["model.predict(x)", "model.train_step(x, y)", "del model"])
@pytest.mark.parametrize(("damage", "where"), [("at - 4", "before"), ("at + size", "behind")])
def test_damage_is_noticed(damage, where, then):
    result = run(damage, then)
    assert result.stdout == "damaged\n"
    assert f"cnn: something wrote {where} an arena of" in result.stderr
    assert result.returncode != 0


def test_no_damage():
    result = run("", "model.train_step(x, y); del model")
    assert result.stdout == "damaged\nnot noticed\n", result.stderr
