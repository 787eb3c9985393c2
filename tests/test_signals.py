"""Signals: fit ends at SIGINT with a model that is whole, and the pool's threads take no signal from anyone."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cnn

SCRIPT = Path(__file__).parent / "soak" / "interrupts.py"


def output(*arguments):
    command = [sys.executable, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("seed", [1, 2])
def test_fit_is_interrupted(seed):
    """What the model then is, its optimiser and running statistics included, is what whole steps give, bit for bit."""
    assert re.match(r"6 interrupts in \d+ steps: 0 failures\n$", output(SCRIPT, 6, seed))


def test_fit_hears_of_a_signal_in_time():
    """One epoch, one part, many batches: the native calls are cut short enough for a handler to run between them."""
    code = """
import signal, threading, os, numpy as np, cnn
heard = []
def handler(number, frame):
    heard.append(number)
    model.stop_training = True
signal.signal(signal.SIGALRM, handler)
x, y = np.ones((100_000, 50), "f4"), np.ones((100_000, 5), "f4")
model = cnn.Sequential([cnn.Linear(50, 64), cnn.Tanh(), cnn.Linear(64, 5), cnn.MSELoss()], cnn.SGD(lr=1e-9), seed=0)
signal.setitimer(signal.ITIMER_REAL, 0.2)
history = model.fit(x, y, epochs=100_000, batch_size=10)
print(len(heard), len(history["loss"]) < 100_000)
"""
    assert output("-c", code).split() == ["1", "True"]


@pytest.mark.skipif(not hasattr(signal, "sigwait"), reason="this platform has no sigwait")
def test_workers_take_no_signals():
    """The program blocks a signal after the pool has started, to wait for it: a thread that did not would die of it."""
    code = """
import os, signal, threading, numpy as np, cnn
cnn.set_num_threads(4)
x = np.ones((5000, 100), "f4")
model = cnn.Sequential([cnn.Linear(100, 300), cnn.Tanh(), cnn.Linear(300, 10)], seed=0)
model.predict(x)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
for number in (signal.SIGUSR1, signal.SIGTERM):
    os.kill(os.getpid(), number)
    print(signal.sigwait({signal.SIGUSR1, signal.SIGTERM}) == number)
if os.path.isdir("/proc/self/task"):
    for task in os.listdir("/proc/self/task"):
        status = open(f"/proc/self/task/{task}/status").read()
        blocked = int(status.split("SigBlk:")[1].split()[0], 16)
        assert int(task) == os.getpid() or blocked & 1 << signal.SIGINT - 1, status
"""
    assert output("-c", code).split() == ["True", "True"]
