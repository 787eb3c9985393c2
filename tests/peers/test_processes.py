"""PyTorch's DataLoader with workers, forked after threads of both libraries have run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cnn

CODE = """
import numpy as np, torch, cnn

class Predicted(torch.utils.data.Dataset):
    '''Rows with what a model of cnn makes of them, in the worker.'''

    def __init__(self, model, x):
        self.model, self.x = model, x

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.from_numpy(self.model.predict(self.x[i * 300 : (i + 1) * 300], threads=2))

if __name__ == "__main__":
    cnn.set_num_threads(3)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2400, 100)).astype("f4"), random.standard_normal((2400, 10)).astype("f4")
    parts = [cnn.Linear(100, 300), cnn.Tanh(), cnn.Linear(300, 10), cnn.MSELoss()]
    model = cnn.Sequential(parts, optimizer=cnn.SGD(lr=0.01), seed=0)
    model.train_step(x, y)
    torch.ones(500, 500) @ torch.ones(500, 500)
    expected = model.predict(x, threads=1)
    loader = torch.utils.data.DataLoader(Predicted(model, x), batch_size=1, num_workers=2,
                                         multiprocessing_context="{method}")
    for _ in range(2):
        got = np.concatenate([block[0].numpy() for block in loader])
        print((got == expected).all(), np.isfinite(model.train_step(x, y)))
        expected = model.predict(x, threads=1)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(CODE.replace("{method}", method))
    env = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"] * 4
