"""The examples and the benchmark run, as a user would start them, and print and write what they say."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compilers import needs_gfortran

import cnn

ROOT = Path(__file__).parents[1]


def run(script, *arguments, cwd):
    """Start a script of the project with this interpreter, with the cnn that is under test."""
    package = str(Path(cnn.__file__).parents[1])
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": package, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000


def percentages(text):
    return [float(number) / 100 for number in re.findall(r"([\d.]+)%", text)]


def test_digits(tmp_path):
    result = run("examples/digits.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    accuracy, again = percentages(result.stdout)
    assert accuracy == again >= 0.97
    assert is_picture(tmp_path / "digits.png")
    assert len(cnn.load(tmp_path / "digits.safetensors")) == 4
    assert re.search(r"^epoch 25/40  loss 0\.\d+ .* val_accuracy 0\.9", result.stderr, re.MULTILINE)

    check = run("examples/digits.py", "--check", "digits.safetensors", cwd=tmp_path)
    assert float(check.stdout) == pytest.approx(accuracy, abs=1e-4)


def test_digits_fails_below_the_required_accuracy(tmp_path):
    (tmp_path / "files").mkdir()
    result = run("examples/digits.py", "--epochs", 1, "--out", "files", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.endswith("error: the accuracy is below 97%\n")
    accuracy, again = percentages(result.stdout)
    assert 0.7 < accuracy == again < 0.97
    assert sorted(os.listdir(tmp_path / "files")) == ["digits.png", "digits.safetensors"]
    assert os.listdir(tmp_path) == ["files"]


def test_sine(tmp_path):
    result = run("examples/sine.py", "--points", 20_000, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("1-")]
    assert [row.split()[0] for row in rows] == ["1-3-1", "1-64-64-1"]
    small, large = (float(row.split()[-2]) for row in rows)
    assert small > 1  # a constant has 4.5
    assert large < 0.05
    assert is_picture(tmp_path / "sine.png")


def test_quantiles(tmp_path):
    result = run("examples/quantiles.py", "--points", 8000, "--epochs", 40, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    below = re.findall(r"^ +(0\.\d+) +(0\.\d+)$", result.stdout, re.MULTILINE)
    assert len(below) == 9
    assert all(abs(float(quantile) - float(part)) < 0.04 for quantile, part in below)
    ours, best = map(float, re.search(r"network ([\d.]+), of the true quantiles ([\d.]+)", result.stdout).groups())
    assert best < ours < 1.03 * best
    assert is_picture(tmp_path / "quantiles.png")


def test_levenberg_marquardt(tmp_path):
    options = ("--seconds", 0.1, "--starts", 1, "--out", tmp_path)
    result = run("examples/levenberg_marquardt.py", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    losses = {name: float(loss) for name, loss in re.findall(r"^(\S+) +([\d.e-]+) after", result.stdout, re.MULTILINE)}
    assert losses["Levenberg-Marquardt"] < losses["Adam"]
    plain, careful = map(float, re.findall(r"off the truth by ([\d.]+)", result.stdout))
    assert careful < plain
    assert is_picture(tmp_path / "levenberg_marquardt.png")


def test_imbalanced(tmp_path):
    """Weights find more of the rare, and cost accuracy."""
    result = run("examples/imbalanced.py", "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plain, balanced = (line for line in result.stdout.splitlines() if " accuracy " in line)
    assert percentages(plain)[-1] < 0.6 < 0.7 < percentages(balanced)[-1]
    accuracies = [float(re.search(r"accuracy ([\d.]+)", line)[1]) for line in (plain, balanced)]
    assert accuracies[0] > 0.95 > accuracies[1] > 0.8
    precisions = [float(re.search(r"precision of the rare class ([\d.]+)", line)[1]) for line in (plain, balanced)]
    assert precisions[0] > precisions[1] + 0.03  # what the text says of the curves
    assert is_picture(tmp_path / "imbalanced.png")


def test_tabular(tmp_path):
    """Calibration mends the probabilities, and leaves the order of the rows."""
    pytest.importorskip("sklearn", minversion="1.9")
    result = run("examples/tabular.py", "--rows", 6000, "--epochs", 10, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "Brier" in line]
    trained, calibrated, truth = (float(re.search(r"Brier score ([\d.]+)", line)[1]) for line in lines)
    assert trained > 0.13 > 0.11 > calibrated > truth
    predicted, left = percentages(lines[1])
    assert predicted == pytest.approx(left, abs=0.02)
    areas = [float(re.search(r"ROC ([\d.]+)", line)[1]) for line in lines[:2]]
    assert areas[0] == pytest.approx(areas[1], abs=0.02)
    assert min(areas) > 0.74
    assert is_picture(tmp_path / "tabular.png")


def test_matrix_exponential(tmp_path):
    result = run("examples/matrix_exponential.py", "--steps", 500, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"R2 ([\d.]+)", result.stdout)[1]) > 0.85
    assert is_picture(tmp_path / "matrix_exponential.png")


def test_out_of_core(tmp_path):
    """240 MB of rows in 24 MB of memory: the script limits itself."""
    result = run("examples/out_of_core.py", "--memory", 24, "--epochs", 1, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("as an array: Unable to allocate 229. MiB")
    assert float(re.search(r"240 MB each, in [\d.]+ s with (\d+) MB", result.stdout)[1]) <= 24
    whole, tenth = map(float, re.search(r"rows: ([\d.]+), with a tenth ([\d.]+)$", result.stdout, re.M).groups())
    assert whole < tenth
    assert os.listdir(tmp_path) == ["out_of_core.png"]
    assert is_picture(tmp_path / "out_of_core.png")


def test_boundary_value(tmp_path):
    result = run("examples/boundary_value.py", "--points", 100, "--steps", 60, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"largest error of u: (\S+)", result.stdout)[1]) < 1e-2
    assert is_picture(tmp_path / "boundary_value.png")


def test_sobolev(tmp_path):
    result = run("examples/sobolev.py", "--steps", 250, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    values, both = (float(line.split()[-1]) for line in result.stdout.splitlines()[:2])
    assert both < 0.06 < 0.15 < values
    assert is_picture(tmp_path / "sobolev.png")


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"examples/{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_the_surface_and_its_gradients():
    sobolev, x, step = module("sobolev"), np.random.default_rng(1).uniform(-1, 1, (5, 2)), 1e-5
    far = [sobolev.surface(x + h * np.eye(2)[i])[0] for i in range(2) for h in (step, -step)]
    slopes = np.hstack([(far[0] - far[1]) / (2 * step), (far[2] - far[3]) / (2 * step)])
    np.testing.assert_allclose(sobolev.surface(x)[1], slopes, atol=1e-8)


def test_poisson(tmp_path):
    """The solution that the residual asks for: its Laplacian, by differences, is the right side."""
    result = run("examples/poisson.py", "--points", 200, "--steps", 100, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"largest error of u ([\d.]+)", result.stdout)[1]) < 0.1
    assert is_picture(tmp_path / "poisson.png")
    solution, x, h = module("poisson").solution, np.random.default_rng(1).uniform(-1, 1, (5, 2)), 1e-3
    far = sum(solution(x + sign * h * axis)[0] for axis in np.eye(2) for sign in (1, -1))
    np.testing.assert_allclose(solution(x)[1], (far - 4 * solution(x)[0]) / h**2, atol=1e-4)


def test_ensemble(tmp_path):
    """The networks disagree most where there are no data."""
    result = run("examples/ensemble.py", "--members", 16, "--epochs", 100, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    among, gap, beyond = map(float, re.findall(r"spread ([\d.]+)", result.stdout))
    assert 5 * among < min(gap, beyond)
    assert is_picture(tmp_path / "ensemble.png")


def test_sensors(tmp_path):
    """Most models find out what their sensor reads."""
    result = run("examples/sensors.py", "--sensors", 40, "--looped", 4, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert float(re.search(r"median ([\d.]+)", result.stdout)[1]) < 0.15
    assert is_picture(tmp_path / "sensors.png")


def test_mpi_mnist_like(tmp_path):
    result = run("examples/mpi_mnist_like.py", "--epochs", 2, "--steps", 1, "--ranks", "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "ms a step" in result.stdout
    assert is_picture(tmp_path / "mpi_mnist_like.png")


def test_transfer(tmp_path):
    """Frozen layers are ahead with few examples, and behind with many."""
    result = run("examples/transfer.py", "--draws", 4, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    read, frozen, scratch = (percentages(line) for line in result.stdout.splitlines() if "%" in line)
    assert read[0] > 0.94
    assert frozen[0] > scratch[0]
    assert frozen[-1] < scratch[-1]
    assert is_picture(tmp_path / "transfer.png")


def test_text(tmp_path):
    result = run("examples/text.py", "--messages", 2000, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert percentages(result.stdout)[0] > 0.75
    assert is_picture(tmp_path / "text.png")


def test_stream(tmp_path):
    pytest.importorskip("river", minversion="0.21")
    result = run("examples/stream.py", "--rows", 6000, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    network, logistic, tree = percentages(result.stdout)[::2]
    assert network < min(logistic, tree)
    assert network < 0.25
    assert is_picture(tmp_path / "stream.png")


def test_newton(tmp_path):
    options = ("--points", 100, "--width", 5, "--work", 1500)
    result = run("examples/newton.py", *options, "--out", tmp_path, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[1:5]]
    assert [row[0] for row in rows] == ["L-BFGS-B", "Newton-CG", "trust-ncg", "trust-krylov"]
    assert all(float(row[2]) < 0.1 for row in rows)  # 0.2 at first
    assert is_picture(tmp_path / "newton.png")


def test_quick_benchmark(tmp_path):
    """It checks its results itself and prints a table; the figures are not looked at."""
    result = run("bench/report.py", "--quick", "--rounds", 1, "--rows", "call", "act1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert [row.split(":")[0] for row in rows[2:]] == ["| **call**", "| **act1**"]
    assert "NumPy" in rows[0]
    assert os.listdir(tmp_path) == []


@needs_gfortran
def test_fortran(tmp_path):
    result = run("examples/fortran/main.py", "--epochs", 15, "--steps", 200, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    apart, before, after = map(float, re.findall(r"\d+\.\d+", result.stdout))
    assert apart < 1
    assert after < before / 5
    assert is_picture(tmp_path / "fortran.png")
