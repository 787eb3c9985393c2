"""`to_c` with CasADi's interface: the library is `casadi.external`, with exact derivatives, in NLPs and `map`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import casadi
import numpy as np
import pytest

import cnn


def graph_of(model, x):
    """A model of Linear and Tanh as CasADi's own graph."""
    for layer in model.layers:
        if isinstance(layer, cnn.Linear):
            x = casadi.mtimes(layer.weight.astype(float).T, x) + layer.bias.astype(float)
        else:
            x = casadi.tanh(x)
    return x


@pytest.fixture(scope="module", params=[(4, 3, "float64"), (2, 5, "float32"), (3, 1, "float64")], ids=str)
def case(request, tmp_path_factory):
    """The model, CasADi's own function, and the library's."""
    n_in, n_out, dtype = request.param
    layers = [cnn.Linear(n_in, 9), cnn.Tanh(), cnn.Linear(9, 8), cnn.Tanh(), cnn.Linear(8, n_out)]
    model = cnn.Sequential(layers, dtype=dtype, seed=0)
    x = casadi.SX.sym("x", n_in)
    own = casadi.Function("own", [x], [graph_of(model, x)])
    return model, own, external(model, tmp_path_factory.mktemp("casadi"))


def external(model, folder, **options):
    cnn.to_c(model, folder / "f.c", abi="casadi", **options)
    for std in ("c99", "c11"):
        flags = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", f"-std={std}"]
        subprocess.run(
            ["gcc", *flags, "-O2", "-shared", "-fPIC", folder / "f.c", "-o", folder / "f.so", "-lm"], check=True
        )
    return casadi.external("f", str(folder / "f.so"))


def equal(found, expected):
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-12, atol=1e-13)


def test_values_and_derivatives(case):
    _, own, f = case
    random = np.random.default_rng(0)
    n_in, n_out = own.size1_in(0), own.size1_out(0)
    x, v, d = random.standard_normal(n_in), random.standard_normal((n_out, 3)), random.standard_normal((n_in, 3))
    equal(f(x), own(x))
    equal(f(0), own(0))  # NULL
    equal(f.jacobian()(x, 0), own.jacobian()(x, 0))
    for n in 1, 3:
        equal(f.reverse(n)(x, 0, v[:, :n]), own.reverse(n)(x, 0, v[:, :n]))
        equal(f.forward(n)(x, 0, d[:, :n]), own.forward(n)(x, 0, d[:, :n]))
    for derivative, seed in (("reverse", v), ("forward", d)):
        mine, theirs = (getattr(g, derivative)(1).jacobian()(x, 0, seed[:, 0], 0) for g in (f, own))
        assert len(mine) == len(theirs) == 3
        for a, b in zip(mine, theirs, strict=True):
            equal(a, b)


def test_hessian_in_graphs_and_map(case):
    _, own, f = case
    x = casadi.MX.sym("x", own.size1_in(0), 6)
    points = np.random.default_rng(1).standard_normal(x.shape)
    results = []
    for g in (f, own):
        for threads in (("serial",), ("thread", 2)):
            y = g.map(6, *threads)(x)
            objective = casadi.sumsqr(casadi.sin(y))
            hessian, gradient = casadi.hessian(objective, casadi.vec(x))
            results.append(casadi.Function("h", [x], [hessian, gradient, casadi.jacobian(y, x)])(points))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            equal(a, b)


@pytest.mark.parametrize("approximation", ["exact", "limited-memory"])
def test_nlp(case, approximation):
    """The same optimum, and with exact Hessians the same number of iterations."""
    _, own, f = case
    found = []
    for g in (f, own):
        x = casadi.MX.sym("x", own.size1_in(0))
        y = g(x)
        nlp = {"x": x, "f": casadi.sumsqr(y - 0.3) + 0.01 * casadi.sumsqr(x), "g": casadi.sum1(y)}
        options = {"ipopt": {"print_level": 0, "hessian_approximation": approximation}, "print_time": False}
        solver = casadi.nlpsol("solver", "ipopt", nlp, options)
        solution = solver(x0=0.1, lbg=-0.2, ubg=0.2)
        assert solver.stats()["success"]
        found.append((np.array(solution["x"]), solver.stats()["iter_count"]))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)
    assert approximation != "exact" or found[0][1] == found[1][1]


def test_integrator(tmp_path):
    """Sensitivities through CVODES."""
    model = cnn.Sequential([cnn.Linear(2, 8), cnn.Tanh(), cnn.Linear(8, 2)], dtype="float64", seed=1)
    f, x = external(model, tmp_path), casadi.MX.sym("x", 2)
    s = casadi.SX.sym("s", 2)
    own = casadi.Function("own", [s], [graph_of(model, s)])
    ends = []
    for g in (f, own):
        step = casadi.integrator("step", "cvodes", {"x": x, "ode": g(x)}, 0, 1, {"reltol": 1e-10, "abstol": 1e-10})
        x0 = casadi.MX.sym("x0", 2)
        end = step(x0=x0)["xf"]
        ends.append(casadi.Function("end", [x0], [end, casadi.jacobian(end, x0)])([0.5, -0.2]))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-7)


def test_fewer_derivatives(tmp_path):
    model = cnn.Sequential([cnn.Linear(2, 3), cnn.Tanh(), cnn.Linear(3, 1)], seed=0)
    external(model, tmp_path, derivatives=1)
    text = (tmp_path / "f.c").read_text()
    assert "adj1_f(" in text
    assert "jac_adj1_f(" not in text
    with pytest.raises(
        ValueError, match="parameters: expected 'const' with abi='casadi', whose functions have one input"
    ):
        cnn.to_c(model, tmp_path / "f.c", abi="casadi", parameters="argument")


def test_swing_up(tmp_path):
    """The example, with CasADi's own graph beside it."""
    script = Path(__file__).parents[2] / "examples" / "swing_up.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(cnn.__file__).parents[1])}
    command = [sys.executable, script, "--rows", "4000", "--epochs", "30", "--steps", "40", "--compare"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "same iterations: True; states at most" in result.stdout
    assert float(re.search(r"the pole is ([\d.]+) degrees from upright", result.stdout).group(1)) < 5
    assert (tmp_path / "swing_up.png").stat().st_size > 20_000
