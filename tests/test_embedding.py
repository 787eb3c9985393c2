"""Prediction and derivatives from C and Cython without Python: the example project, built against this cnn, and a
module that looks closer at what cnn.h promises."""

import gc
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from grid import build, chain, inputs_of, random_model
from networks import run_together

import cnn

ROOT = Path(__file__).parents[1]
PACKAGE = Path(cnn.__file__).parents[1]

SETUP = """\
import cnn
from Cython.Build import cythonize
from setuptools import Extension, setup

setup(ext_modules=cythonize([Extension("probe", ["probe.pyx"], include_dirs=[cnn.get_include()])]))
"""

PROBE = """\
# cython: language_level=3
from libc.stdint cimport uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from cnn.embed cimport cnn_get_f32, cnn_get_f64, cnn_model_f32, cnn_model_f64

def sizes(handle, bint double):
    if double:
        return cnn_get_f64(handle).inputs, cnn_get_f64(handle).outputs, cnn_get_f64(handle).scratch
    return cnn_get_f32(handle).inputs, cnn_get_f32(handle).outputs, cnn_get_f32(handle).scratch

def predict_f32(handle, const float[:, ::1] x, float[:, ::1] y, int offset=0, int rubbish=0xff):
    cdef const cnn_model_f32* model = cnn_get_f32(handle)
    cdef Py_ssize_t n = x.shape[0], room = model.scratch + 1024
    cdef unsigned char* scratch = <unsigned char*>malloc(room)
    cdef bint intact = True
    cdef Py_ssize_t i
    memset(scratch, rubbish, room)
    with nogil:
        model.predict(model, &x[0, 0], &y[0, 0], n, scratch + offset)
    for i in range(offset):
        intact = intact and scratch[i] == rubbish
    for i in range(offset + model.scratch, room):
        intact = intact and scratch[i] == rubbish
    free(scratch)
    return intact

def predict_f64(handle, const double[:, ::1] x, double[:, ::1] y):
    cdef const cnn_model_f64* model = cnn_get_f64(handle)
    cdef Py_ssize_t n = x.shape[0]
    cdef void* scratch = malloc(model.scratch)
    with nogil:
        model.predict(model, &x[0, 0], &y[0, 0], n, scratch)
    free(scratch)

def nothing(handle):
    cdef const cnn_model_f32* model = cnn_get_f32(handle)
    model.predict(model, NULL, NULL, 0, NULL)
    model.vjp(model, NULL, NULL, NULL, NULL, 0, NULL)

"""
DERIVATIVES = """
def derivatives_TYPE(handle, const REAL[:, ::1] x, const REAL[:, ::1] v, const REAL[:, ::1] d, results, int offset,
                     bint wanted):
    # y, g by vjp; y, dy by jvp; y, g, h by hvp; returns whether nothing was written beside the scratch
    cdef const cnn_model_TYPE* model = cnn_get_TYPE(handle)
    cdef Py_ssize_t n = x.shape[0], room = model.derivative_scratch + 1024
    cdef unsigned char* scratch = <unsigned char*>malloc(room)
    cdef bint intact = True
    cdef Py_ssize_t i
    cdef REAL* at[7]
    cdef REAL[:, ::1] result
    for i in range(7):
        result = results[i]
        at[i] = &result[0, 0] if wanted or i not in (0, 2, 4, 5) else NULL
    memset(scratch, 0xff, room)
    with nogil:
        model.vjp(model, &x[0, 0], &v[0, 0], at[0], at[1], n, scratch + offset)
        model.jvp(model, &x[0, 0], &d[0, 0], at[2], at[3], n, scratch + offset)
        model.hvp(model, &x[0, 0], &v[0, 0], &d[0, 0], at[4], at[5], at[6], n, scratch + offset)
    for i in range(offset):
        intact = intact and scratch[i] == 0xff
    for i in range(offset + model.derivative_scratch, room):
        intact = intact and scratch[i] == 0xff
    free(scratch)
    return intact
"""
PROBE += "".join(DERIVATIVES.replace("TYPE", t).replace("REAL", r) for t, r in (("f32", "float"), ("f64", "double")))


def compile_here(folder):
    """Build the extension module of a folder in place, with this interpreter and the cnn under test."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "CFLAGS": "-O1 -Wall -Werror -Wno-unused-function"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_example_project(tmp_path):
    for path in (ROOT / "examples" / "embedding").iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    compile_here(tmp_path)
    command = [sys.executable, "main.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE), str(tmp_path)])}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("the same as with model.predict\n")


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    (folder / "setup.py").write_text(SETUP)
    (folder / "probe.pyx").write_text(PROBE)
    compile_here(folder)
    sys.path.insert(0, str(folder))
    try:
        import probe
    finally:
        sys.path.remove(str(folder))
    return probe


def embedded(probe, model, x, **options):
    """The outputs by the handle."""
    handle = model.handle()
    double = model.dtype == np.float64
    y = np.full((len(x), probe.sizes(handle, double)[1]), np.nan, model.dtype)
    if double:
        probe.predict_f64(handle, x, y)
    else:
        assert probe.predict_f32(handle, x, y, **options), "wrote beside its scratch"
    return y


SPECS = [
    chain(17, 64, 64, 6),
    chain(1, 1),
    chain(3, 200, 1, 5, activation=("gelu", None)),
    [("softplus", None), (7, 3, False), ("relu", None)],
    [(300, 2, True), ("silu", None), ("elu", 0.5), (2, 33, True)],
]


def models(dtype):
    yield from (build(spec, dtype=dtype)[0] for spec in SPECS)
    yield from (random_model(seed, dtype) for seed in range(20))


def test_is_predict_to_the_bit(probe, isa, dtype):
    for model in models(dtype):
        for rows in 1, 2, 63, 64, 65, 300:
            x = inputs_of(model, rows)
            np.testing.assert_array_equal(embedded(probe, model, x), model.predict(x), err_msg=repr(model))


@pytest.mark.parametrize("offset", [0, 8, 56])
def test_derivatives_are_the_model_s(probe, isa, dtype, offset):
    """To the bit; those that nobody wants are left out."""
    suffix = {"float32": "f32", "float64": "f64"}[dtype.name]
    for model in models(dtype):
        for rows in (1, 5, 64, 131):
            x = inputs_of(model, rows)
            y = model.predict(x)
            random = np.random.default_rng(rows)
            v, d = random.standard_normal(y.shape).astype(dtype), random.standard_normal(x.shape).astype(dtype)
            g, dy, h = model.vjp(x, v), model.jvp(x, d), model.hvp_input(x, d, grad_output=v)
            expected = [y, g, y, dy, y, g, h]
            results = [np.full_like(a, np.nan) for a in expected]
            handle, compute = model.handle(), getattr(probe, f"derivatives_{suffix}")
            assert compute(handle, x, v, d, results, offset, True), "wrote beside its scratch"
            for i, (found, truth) in enumerate(zip(results, expected, strict=True)):
                if i == 5:  # beside the Hessian product the sums for dx run in another order
                    np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-4 * abs(truth).max())
                else:
                    np.testing.assert_array_equal(found, truth, err_msg=f"{i}: {model}")
            again = [np.full_like(a, np.nan) for a in expected]
            assert compute(handle, x, v, d, again, offset, False)
            for i, (found, before) in enumerate(zip(again, results, strict=True)):
                np.testing.assert_array_equal(found, np.nan if i in (0, 2, 4, 5) else before)


@pytest.mark.parametrize("offset", [0, 8, 16, 56])
def test_scratch_may_be_full_of_rubbish_and_lie_anywhere(probe, isa, offset):
    """A scratch of 0xff is NaN throughout."""
    for model in models("float32"):
        x = inputs_of(model, 70)
        np.testing.assert_array_equal(embedded(probe, model, x, offset=offset), model.predict(x))


def test_snapshot(probe):
    """What happens to the model does not happen to the handle, and the handle outlives it."""
    model = cnn.Sequential([cnn.Linear(4, 8), cnn.Tanh(), cnn.Linear(8, 2), cnn.MSELoss()], optimizer=cnn.SGD(0.1))
    x = np.ones((5, 4), np.float32)
    before = model.predict(x)
    handle = model.handle()
    model.train_step(x, np.zeros((5, 2)))
    model[0].weight = np.zeros((4, 8))
    y = np.empty((5, 2), np.float32)
    assert probe.predict_f32(handle, x, y)
    np.testing.assert_array_equal(y, before)
    del model
    gc.collect()
    y[...] = 0
    assert probe.predict_f32(handle, x, y)
    np.testing.assert_array_equal(y, before)
    assert probe.sizes(handle, False)[:2] == (4, 2)


def test_leaves_the_model_as_it_was():
    model = cnn.Sequential([cnn.Linear(4, 2), cnn.MSELoss()], optimizer=cnn.SGD(0.1))
    model(np.ones((3, 4)), np.zeros((3, 2)))
    model.handle()
    assert model.backward().shape == (3, 4)


def test_threads_run_together(probe):
    model, _ = build(chain(17, 64, 64, 6), dtype="float32")
    handle = model.handle()
    x = np.random.default_rng(0).standard_normal((500, 17)).astype(np.float32)
    expected = model.predict(x)

    def work():
        for _ in range(20):
            y = np.empty((500, 6), np.float32)
            assert probe.predict_f32(handle, x, y)
            np.testing.assert_array_equal(y, expected)

    run_together(*[work] * 4)


def test_lock_is_not_needed(probe):
    """Other Python threads run meanwhile."""
    model, _ = build(chain(500, 500, 500, activation=("tanh", None)), dtype="float32")
    handle = model.handle()
    x = np.zeros((2000, 500), np.float32)
    y = np.empty((2000, 500), np.float32)
    worker = threading.Thread(target=probe.predict_f32, args=(handle, x, y))
    turns = 0
    worker.start()
    while worker.is_alive():
        turns += 1
    worker.join()
    assert turns > 100


def test_no_rows(probe):
    probe.nothing(build(chain(3, 2), dtype="float32")[0].handle())


@pytest.mark.parametrize("what", [None, 3, "handle", object()])
def test_what_is_no_handle(probe, what):
    with pytest.raises(TypeError, match=r"handle: expected what model\.handle\(\) of a float32 model"):
        probe.sizes(what, False)


def test_handle_of_the_other_dtype(probe):
    single, double = (build(chain(3, 2), dtype=dtype)[0].handle() for dtype in ("float32", "float64"))
    with pytest.raises(TypeError, match="of a float64 model of this cnn returns, got <capsule"):
        probe.sizes(single, True)
    with pytest.raises(TypeError, match="of a float32 model of this cnn returns, got <capsule"):
        probe.sizes(double, False)


def test_handles_are_released():
    """A hundred handles of 4 MB each leave no trace."""
    model = cnn.Sequential([cnn.Linear(1000, 1000)])
    model.handle()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100):
        model.handle()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_header_and_pxd_are_in_the_package():
    assert {"cnn.h", "cnn.f90"} <= {path.name for path in Path(cnn.get_include()).iterdir()}
    assert Path(cnn.get_include()).parent == Path(cnn.__file__).parent
    assert Path(cnn.__file__).with_name("embed.pxd").is_file()
