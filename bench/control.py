"""Derivatives that leave Python: C with a Jacobian beside CasADi's own, model predictive control, a Fortran column.

    python bench/control.py

Needs gcc, CasADi (pip install casadi), gfortran and l4casadi; what is missing is left out. Prints the rows of
docs/control.md: the least of interleaved rounds, in microseconds, and the seconds that the compiler takes; and the
goals. The results are compared first.

l4casadi 2.0 is built from source, with PyTorch there: CMAKE_POLICY_VERSION_MINIMUM=3.5 pip install scikit-build cmake
ninja, and then pip install --no-build-isolation --no-deps l4casadi. Its networks are float32.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from goals import judge

import cnn

FLAGS = ["-O3", "-march=native"]  # of programs that run here and are thrown away; the wheel has none of them
ROUNDS = 15


def compiled(folder, sources, library, *flags):
    """The library, and the seconds that it took; sources are C, the rest objects and flags."""
    began = time.perf_counter()
    command = ["gcc", *FLAGS, "-shared", "-fPIC", *sources, "-o", library, *flags, "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / library)), time.perf_counter() - began


def least(calls, repeats):
    """Microseconds of a call each, in interleaved rounds; a call takes how often it repeats."""
    best = dict.fromkeys(calls, np.inf)
    for _ in range(ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter()
            call(repeats)
            best[name] = min(best[name], (time.perf_counter() - began) / repeats * 1e6)
    return best


def network(*widths, seed=0):
    layers = [part for n, m in itertools.pairwise(widths) for part in (cnn.Linear(n, m), cnn.Tanh())]
    return cnn.Sequential(layers[:-1], dtype="float64", seed=seed)


def graph_of(model, x):
    """The network as CasADi's graph: of numbers if x is SX, of matrices if it is MX."""
    import casadi

    for layer in model.layers:
        x = casadi.mtimes(layer.weight.T, x) + layer.bias if isinstance(layer, cnn.Linear) else casadi.tanh(x)
    return x


def jacobian(folder, own=True):
    """Value and Jacobian of 6-64-64-64-3, one point: {who: (microseconds, seconds of the compiler)}."""
    model = network(6, 64, 64, 64, 3)
    cnn.to_c(model, folder / "net.h", derivatives=1)
    (folder / "loop.c").write_text(
        '#include "net.h"\n'
        "void run(long n, double *x, double *y, double *J)\n{\n"
        "    while (n-- > 0) {\n        net_jacobian(x, y, J);\n        x[0] += 1e-9;\n    }\n}\n"
    )
    x, y, j = np.linspace(-1, 1, 6), np.empty(3), np.empty((3, 6))
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, y, j)]
    libraries = {"cnn.to_c": compiled(folder, ["loop.c"], "loop.so")}
    if own:
        import casadi

        for kind in casadi.SX, casadi.MX:
            point = kind.sym("x", 6)
            value = graph_of(model, point)
            name = f"own{kind.__name__}"
            casadi.Function(name, [point], [value, casadi.jacobian(value, point)]).generate(
                f"{name}.c", {"with_header": False}
            )
            shutil.move(f"{name}.c", folder / f"{name}.c")
            (folder / f"loop{name}.c").write_text(
                f'#include "{name}.c"\n'
                "static casadi_int iw[1000]; static double w[2000000];\n"
                "void run(long n, double *x, double *y, double *J)\n{\n"
                "    while (n-- > 0) {\n        const double *arg[64] = {x};\n        double *res[64] = {y, J};\n"
                f"        {name}(arg, res, iw, w, 0);\n        x[0] += 1e-9;\n    }}\n}}\n"
            )
            libraries[f"CasADi {kind.__name__}"] = compiled(folder, [f"loop{name}.c"], f"{name}.so")
    calls, results = {}, []
    for name, (library, _) in libraries.items():
        calls[name] = lambda n, run=library.run: run(ctypes.c_long(n), *pointers)
        x[0] = -1
        calls[name](1)
        results.append((y.copy(), j.copy() if name == "cnn.to_c" else j.reshape(6, 3).T.copy()))
        assert all(np.allclose(a, b, rtol=1e-10) for a, b in zip(results[0], results[-1], strict=True)), name
    seconds = {name: seconds for name, (_, seconds) in libraries.items()}
    if own and importlib.util.find_spec("l4casadi"):
        began = time.perf_counter()
        calls["l4casadi"] = by_l4casadi(model, *results[0])
        seconds["l4casadi"] = time.perf_counter() - began
    best = least(calls, 200)
    return {name: (best[name], seconds[name]) for name in calls}


def by_l4casadi(model, value, jacobian):
    """The same by l4casadi, at the same point, once its results have been compared with these: float32."""
    import casadi
    import l4casadi
    import torch

    torch.set_num_threads(1)
    x = casadi.MX.sym("x", 1, 6)
    y = l4casadi.L4CasADi(cnn.to_torch(model).float(), name="l4casadi_net")(x)
    both, run = casadi.Function("both", [x], [y, casadi.jacobian(y, x)]).buffer()  # no objects are made in a call
    point, found = np.linspace(-1, 1, 6), (np.empty(3), np.empty((6, 3)))
    both.set_arg(0, memoryview(point))
    for i, a in enumerate(found):
        both.set_res(i, memoryview(a))
    run()
    assert np.allclose(found[0], value, rtol=1e-3, atol=1e-5), "l4casadi"
    assert np.allclose(found[1].T, jacobian, rtol=1e-3, atol=1e-5), "l4casadi"
    return lambda times, _alive=(both, point, found): [run() for _ in range(times)]


def control(folder, width=64):
    """One solve of examples/swing_up.py from hanging down: {who: (microseconds, iterations)}, and gcc's seconds."""
    spec = importlib.util.spec_from_file_location("swing_up", Path(__file__).parents[1] / "examples" / "swing_up.py")
    swing_up = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(swing_up)
    model, _ = swing_up.learn(4000, 20, width)
    dynamics, seconds = swing_up.external(model, folder)
    state = np.array([0.0, np.pi, 0.0, 0.0])
    guess = np.concatenate([np.tile(state, swing_up.HORIZON + 1), np.tile([1.0, -1.0], swing_up.HORIZON // 2)])
    found = {}
    for name, function in (("cnn.to_c", dynamics), ("CasADi MX", swing_up.own_graph(model))):
        solver, bounds = swing_up.controller(function)
        best = np.inf
        for _ in range(5):
            began = time.perf_counter()
            solution = solver(x0=guess, p=state, **bounds)
            best = min(best, time.perf_counter() - began)
        found[name] = best * 1e6, solver.stats()["iter_count"], float(solution["f"])
    (_, mine, optimum), (_, theirs, other) = found.values()
    assert mine == theirs, (mine, theirs)
    assert abs(optimum - other) < 1e-6 * abs(other), (optimum, other)
    return found, seconds


COLUMN = """
module columns
    use, intrinsic :: iso_c_binding
    use cnn
    implicit none
    procedure(cnn_value_f64), bind(C, name="column") :: column
contains
    subroutine run_fortran(times, n, x, y) bind(C)
        integer(c_long), value :: times, n
        real(c_double) :: x(64, n), y(64, n)
        type(cnn_network_f64) :: net
        integer(c_long) :: i
        net = cnn_network_f64(64, 64, column)
        do i = 1, times
            call net%predict(x, y)
        end do
    end subroutine
end module
"""


def fortran(folder):
    """A 64-64-64 network in Fortran and in C: {columns: {who: microseconds a call}}."""
    cnn.to_c(network(64, 64, 64), folder / "column.c")
    (folder / "columns.f90").write_text(COLUMN)
    (folder / "c.c").write_text(
        "void column(const double *x, double *y);\nvoid run_c(long times, long n, const double *x, double *y)\n"
        "{\n    while (times-- > 0)\n        for (long i = 0; i < n; i++)\n"
        "            column(x + 64 * i, y + 64 * i);\n}\n"
    )
    sources = [Path(cnn.get_include(), "cnn.f90"), "columns.f90"]
    for source in sources:
        subprocess.run(["gfortran", *FLAGS, "-fPIC", "-c", source], cwd=folder, check=True)
    library, _ = compiled(folder, ["column.c", "c.c"], "columns.so", "cnn.o", "columns.o", "-lgfortran")
    found = {}
    for n in 1, 10_000:
        x, y = np.random.default_rng(0).standard_normal((n, 64)), np.empty((n, 64))
        at = [ctypes.c_void_p(a.ctypes.data) for a in (x, y)]

        def timed(run, n=n, at=at):
            return lambda times: run(ctypes.c_long(times), ctypes.c_long(n), *at)

        calls = {"Fortran": timed(library.run_fortran), "C": timed(library.run_c)}
        found[n] = least(calls, 500 if n == 1 else 1)
    return found


def main():
    there = importlib.util.find_spec("casadi") is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # where CasADi writes
        print("value and Jacobian of 6-64-64-64-3, float64, one point")
        times = jacobian(folder, there)
        for who, (microseconds, seconds) in times.items():
            print(f"  {who:10} {microseconds:9.2f} us    compiled in {seconds:5.1f} s")
        best = {who: microseconds for who, (microseconds, _) in times.items()}
        judge("value and Jacobian", "microseconds", 5, best["cnn.to_c"], more_is_better=False)
        if there:
            own = min(time for who, time in best.items() if who.startswith("CasADi"))
            judge("value and Jacobian", "times as fast as CasADi's own graph", 5, own / best["cnn.to_c"])
        if "l4casadi" in best:
            judge("value and Jacobian", "times as fast as l4casadi", 10, best["l4casadi"] / best["cnn.to_c"])
        if there:
            found, seconds = control(folder)
            print(f"one solve of the swing-up, 30 nodes, network of 64-64 (compiled in {seconds:.1f} s)")
            for who, (microseconds, iterations, _) in found.items():
                print(f"  {who:10} {microseconds / 1e3:9.1f} ms    {iterations} iterations")
            (own, _, _), (graph, _, _) = found.values()
            judge("one solve", "times as fast as with CasADi's own graph", 3, graph / own)
            judge("one solve", "seconds of the compiler", 5, seconds, more_is_better=False)
        if shutil.which("gfortran"):
            for n, best in fortran(folder).items():
                print(f"64-64-64, float64, {n} columns: Fortran {best['Fortran']:.2f} us, C {best['C']:.2f} us")
                judge("Fortran", "times as long as C", 1.1, best["Fortran"] / best["C"], more_is_better=False)


if __name__ == "__main__":
    sys.exit(main())
