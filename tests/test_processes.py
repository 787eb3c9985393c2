"""Other processes: joblib's workers, pools that are forked again and again beside threads that predict. A process that
hangs is killed, and the test fails. Forks of one process: test_threads.py; PyTorch's: peers/test_processes.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cnn

# Trains with threads, says whether a process has the answers of one thread.
WORK = """
import os, sys, threading
import numpy as np, cnn

random = np.random.default_rng(0)
x, y = random.standard_normal((1500, 100)).astype("f4"), random.standard_normal((1500, 10)).astype("f4")

def make():
    return cnn.Sequential([cnn.Linear(100, 300), cnn.Tanh(), cnn.Linear(300, 10), cnn.MSELoss()], cnn.Adam(), seed=0)

def work(threads):
    model = make()
    history = model.fit(x, y, batch_size=500, epochs=2, threads=threads)
    return np.concatenate([history["loss"], model.predict(x, threads=threads).ravel(), model.parameters])

def right(_=None):
    return bool((work(3) == work(1)).all())
"""


def output(tmp_path, code, seconds=100):
    """What the code prints; with a watchdog."""
    script = tmp_path / "script.py"
    script.write_text(WORK + code)
    env = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1]), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib(tmp_path, backend):
    code = f"""
if __name__ == "__main__":
    import joblib
    assert right()
    with joblib.parallel_config(backend="{backend}", n_jobs=2):
        print(*joblib.Parallel()(joblib.delayed(right)(i) for i in range(4)))
    print(right())
"""
    assert output(tmp_path, code) == ["True"] * 5


def test_workers_share_the_processors(tmp_path):
    """As many workers as processors have one thread each."""
    code = """
def threads(_):
    import cnn
    return cnn.get_num_threads()

if __name__ == "__main__":
    import joblib
    print(*joblib.Parallel(n_jobs=os.cpu_count(), backend="loky")(joblib.delayed(threads)(i) for i in range(4)))
"""
    assert set(output(tmp_path, code)) == {"1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_forks_beside_threads_that_predict(tmp_path):
    """The workspace of `predict` is in use at the fork, for good in the child: it works in memory of its own there."""
    code = """
model = make()
expected = model.predict(x, threads=1)
stop = []
def predicting():
    while not stop:
        model.predict(x, threads=3)
threads = [threading.Thread(target=predicting) for _ in range(3)]
for thread in threads:
    thread.start()
ends = []
for _ in range(12):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if (model.predict(x, threads=3) == expected).all() and right() else 1)
    ends.append(os.waitpid(pid, 0)[1])
stop.append(1)
for thread in threads:
    thread.join()
print(*ends)
"""
    assert output(tmp_path, code) == ["0"] * 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_child_that_ends_normally(tmp_path):
    """Its exit handlers run, and those of the threads that it has not; the parent goes on."""
    code = """
assert right()
pid = os.fork()
if pid == 0:
    sys.exit(0 if right() else 1)
print(os.waitpid(pid, 0)[1], right())
"""
    assert output(tmp_path, code) == ["0", "True"]
