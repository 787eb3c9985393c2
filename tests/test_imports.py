"""What an import leaves alone: the floating-point state of the process, other libraries, other interpreters.

Beside PyTorch and JAX: peers/test_imports.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cnn
from cnn import _cpu

# Says what an import might change: rounding, flushing to zero, traps, of this thread and of one started later.
STATE = """
import ctypes, threading, numpy as np
def floats():
    one, tiny = np.float32(1), np.float32(1e-40)
    small = np.array([1.4e-45], "f4"), np.array([5e-324], "f8")
    return [float((a * a.dtype.type(1))[0]) for a in small] + [
        float(tiny * one), 2.3e-308 / 4, float(np.float64(2.3e-308) / 4),
        0.1 + 0.2, -0.1 - 0.2, float(one / np.float32(3)), float(-one / np.float32(3)),
        ctypes.CDLL(None).fegetround()]
def state():
    there = []
    thread = threading.Thread(target=lambda: there.extend(floats()))
    thread.start()
    thread.join()
    return floats(), there
"""


def run(code, **environment):
    env = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1]), **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def output(code, **environment):
    result = run(code, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("isa", _cpu.supported())
def test_floating_point_state_is_kept(isa):
    """By the import, and by training and predicting with threads."""
    code = (
        STATE
        + """
before = state()
import cnn
assert state() == before, (state(), before)
cnn.set_num_threads(3)
x, y = np.ones((2000, 100), "f4"), np.ones((2000, 10), "f4")
model = cnn.Sequential([cnn.Linear(100, 300), cnn.Tanh(), cnn.Linear(300, 10), cnn.MSELoss()], cnn.Adam(), seed=0)
model.fit(x, y)
model.predict(x)
assert state() == before, (state(), before)
print(before[0][0] > 0, before[0] == before[1])
"""
    )
    assert output(code, CNN_ISA=isa).split() == ["True", "True"]


@pytest.mark.parametrize(
    "order", [("cnn", "scipy.linalg", "sklearn.neural_network"), ("sklearn.neural_network", "cnn")]
)
def test_any_order_of_imports(order):
    code = f"""
import {", ".join(order)}
import numpy as np, scipy.linalg, cnn
random = np.random.default_rng(0)
a = random.standard_normal((300, 300))
assert np.allclose(scipy.linalg.inv(a) @ a, np.eye(300), atol=1e-6)
cnn.set_num_threads(3)
x, y = random.standard_normal((2000, 100)).astype("f4"), random.standard_normal((2000, 10)).astype("f4")
model = cnn.Sequential([cnn.Linear(100, 300), cnn.Tanh(), cnn.Linear(300, 10), cnn.MSELoss()], cnn.Adam(), seed=0)
print(repr(model.train_step(x, y)), repr(float(model.predict(x).sum())))
"""
    assert output(code) == output(code.replace(", ".join(order), "cnn"))


def test_a_second_import_is_the_first():
    code = """
import sys, importlib, cnn
from cnn import _dispatch
first = _dispatch.kernels("float32")
for name in [name for name in sys.modules if name == "cnn" or name.startswith("cnn.")]:
    del sys.modules[name]
try:
    import cnn as again
except ImportError as error:
    print("refused", error)
else:
    x = [[1.0, 2.0]]
    layers = lambda c: c.Sequential([c.Linear(2, 3), c.Tanh()], seed=0)
    print((layers(cnn).predict(x) == layers(again).predict(x)).all())
"""
    assert output(code) == "True"


# other interpreters in one process --------------------------------------------------------------------------------

INTERPRETER = """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import cnn
number = interpreters.create()
code = '''
import sys
sys.path[:0] = {path!r}
try:
    import cnn
    print(cnn.Sequential([cnn.Linear(2, 3)], seed=0).predict([[1.0, 2.0]]).tolist())
except ImportError as error:
    print("ImportError:", " ".join(str(error).split()))
'''
print(cnn.Sequential([cnn.Linear(2, 3)], seed=0).predict([[1.0, 2.0]]).tolist(), flush=True)
interpreters.{run}(number, code)
interpreters.destroy(number)
print(cnn.Sequential([cnn.Linear(2, 3)], seed=0).predict([[1.0, 2.0]]).tolist(), flush=True)
"""


def test_other_interpreters():
    """Refused with an ImportError, or the same answers; and the first interpreter goes on."""
    name = "run_string"
    if sys.version_info >= (3, 13):
        name = "exec"
    path = [str(Path(cnn.__file__).parents[1])]
    first, other, last = output(INTERPRETER.format(path=path, run=name)).splitlines()
    assert first == last
    assert other == first or other.startswith("ImportError: ")


def test_what_is_imported_when_it_is_used():
    later = cnn._LATER
    modules = sorted({f"cnn.{module}" for module in later.values()})
    assert output(f"import sys, cnn; print([name for name in {modules} if name in sys.modules])") == "[]"
    assert set(later) <= {*cnn.__all__, "LearningRates"}
    for name, module in later.items():
        assert getattr(cnn, name).__module__ == f"cnn.{module}"
