"""Levenberg-Marquardt beside Adam, SciPy's least_squares and a PyTorch implementation: float64, one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python bench/second_order.py [epochs of Adam]

The goal of a run is the loss that Adam has after so many epochs. All others start from the same weights, on the same
data, and stop as soon as they are there, or after LONGEST times our time; if ours does not get there in Adam's time,
the run is lost. Times are the processor's, the least of TURNS, but for Adam's. SciPy gets the Jacobian from our `vjp`,
row by row. PyTorch's is torch-levenberg-marquardt of PyPI, if it is installed. Last come the goals, and the FLOP/s of
J^T J and of the Cholesky factorisation, beside the limit of the machine.
"""

import contextlib
import importlib.util
import itertools
import sys
import time
import types

import numpy as np
from goals import judge
from peak import Peak
from scipy.optimize import least_squares

import cnn
from cnn import _dispatch

SEEDS = range(5)
TURNS = 3
LONGEST = 40  # times our time: then SciPy and PyTorch are stopped, whatever their loss
# NIST StRD, Thurber: log of density, electron mobility.
THURBER = np.fromstring(
    """
    -3.067 80.574 -2.981 84.248 -2.921 87.264 -2.912 87.195 -2.840 89.076 -2.797 89.608 -2.702 89.868 -2.699 90.101
    -2.633 92.405 -2.481 95.854 -2.363 100.696 -2.322 101.060 -1.501 401.672 -1.460 390.724 -1.274 567.534
    -1.212 635.316 -1.100 733.054 -1.046 759.087 -0.915 894.206 -0.714 990.785 -0.566 1090.109 -0.545 1080.914
    -0.400 1122.643 -0.309 1178.351 -0.109 1260.531 -0.103 1273.514 0.010 1288.339 0.119 1327.543 0.377 1353.863
    0.790 1414.509 0.963 1425.208 1.006 1421.384 1.115 1442.962 1.572 1464.350 1.841 1468.705 2.047 1447.894
    2.200 1457.628
    """,
    sep=" ",
).reshape(-1, 2)


def scaled(x, y, *hidden):
    """Columns of mean 0 and variance 1, and the widths of the hidden layers."""
    x, y = (np.asarray(a, np.float64).reshape(len(x), -1) for a in (x, y))
    return (x - x.mean(axis=0)) / x.std(axis=0), (y - y.mean(axis=0)) / y.std(axis=0), hidden


def friedman(kind, rng, rows=500):
    if kind == 1:
        x = rng.random((rows, 10))
        y = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
        return scaled(x, y + rng.standard_normal(rows), 16)
    low, high = np.array([0, 40 * np.pi, 0, 1]), np.array([100, 560 * np.pi, 1, 11])
    x = low + (high - low) * rng.random((rows, 4))
    inner = x[:, 1] * x[:, 2] - 1 / (x[:, 1] * x[:, 3])
    return scaled(x, np.hypot(x[:, 0], inner) if kind == 2 else np.arctan(inner / x[:, 0]), 16)


def peaks():
    a, b = (g.ravel() for g in np.meshgrid(*[np.linspace(-3, 3, 30)] * 2))
    z = 3 * (1 - a) ** 2 * np.exp(-(a**2) - (b + 1) ** 2) - np.exp(-((a + 1) ** 2) - b**2) / 3
    return scaled(np.column_stack([a, b]), z - 10 * (a / 5 - a**3 - b**5) * np.exp(-(a**2) - b**2), 20)


def spirals(rows=200):
    angle = np.sqrt(np.linspace(0.05, 1, rows)) * 3 * np.pi
    one = np.column_stack([angle * np.cos(angle), angle * np.sin(angle)])
    return scaled(np.concatenate([one, -one]), np.repeat([-1, 1], rows), 20, 10)


def kinematics(rng, rows=1000):
    """Eight angles of an arm, and the distance of its end from a point: as in the data set kin8nm."""
    x = rng.uniform(-np.pi / 2, np.pi / 2, (rows, 8))
    angle = np.cumsum(x, axis=1)
    end = np.stack([np.cos(angle).sum(axis=1), np.sin(angle).sum(axis=1)])
    return scaled(x, np.hypot(*(end - 3)) + 0.1 * rng.standard_normal(rows), 16)


def problems(seed):
    """name -> x, y, hidden widths."""
    rng = np.random.default_rng(seed)
    t = np.linspace(-1, 1, 200)
    return {
        "sine, 1-10-1": scaled(t, np.sin(3 * np.pi * t), 10),
        "Friedman 1, 10-16-1": friedman(1, rng),
        "Friedman 2, 4-16-1": friedman(2, rng),
        "Friedman 3, 4-16-1": friedman(3, rng),
        "peaks, 2-20-1": peaks(),
        "two spirals, 2-20-10-1": spirals(),
        "NIST Thurber, 1-5-1": scaled(*THURBER.T, 5),
        "kin-like, 8-16-1": kinematics(rng),
    }


def network(widths, optimizer, seed):
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [cnn.Linear(n_in, n_out), cnn.Tanh()]
    return cnn.Sequential([*layers[:-1], cnn.MSELoss()], optimizer, dtype="float64", seed=seed)


class Goal(cnn.Callback):
    """Ends `fit` when the loss is low enough, or the time is over."""

    def __init__(self, loss, seconds):
        self.loss, self.end = loss, time.process_time() + seconds
        self.there = False

    def on_epoch_end(self, epoch, logs):
        self.there = logs["loss"] <= self.loss
        self.stop = self.there or time.process_time() > self.end


class Reached(Exception):
    pass


def by_scipy(model, x, y, loss, seconds):
    n = len(x) * y.shape[1]
    ones, end = np.eye(y.shape[1]), time.process_time() + seconds

    def residuals(parameters):
        model.parameters = parameters
        found = (model.predict(x) - y).ravel()
        if found @ found / n <= loss or time.process_time() > end:
            raise Reached
        return found

    def jacobian(parameters):
        model.parameters = parameters
        return np.array([model.vjp(x[i : i + 1], e[None], parameters=True)[1] for i in range(len(x)) for e in ones])

    with contextlib.suppress(Reached):
        least_squares(residuals, model.parameters, jacobian, method="lm" if n >= model.parameters.size else "trf")


def torch_levenberg_marquardt():
    """The package, or None. Part of it, which is not called here, needs some others."""
    for package, name in (("pytorch_lightning", "LightningModule"), ("torchmetrics", "Metric"), ("tqdm", "tqdm")):
        if importlib.util.find_spec(package) is None and package not in sys.modules:
            sys.modules[package] = types.SimpleNamespace(**{name: object})
    try:
        return importlib.import_module("torch_levenberg_marquardt")
    except ImportError:
        return None
    finally:
        for package in [package for package, module in sys.modules.items() if type(module) is types.SimpleNamespace]:
            del sys.modules[package]


def by_torch(model, x, y, loss, seconds):
    import torch

    torch.set_num_threads(1)
    tlm = torch_levenberg_marquardt()
    module = tlm.training.LevenbergMarquardtModule(cnn.to_torch(model), tlm.loss.MSELoss(), solve_method="cholesky")
    x, y = torch.from_numpy(x), torch.from_numpy(y)
    end = time.process_time() + seconds
    while time.process_time() < end:
        _, value, stop, _ = module.training_step(x, y)
        if float(value) <= loss or stop:
            break


def timed(function, *args):
    began = time.process_time()
    found = function(*args)
    return time.process_time() - began, found


def kernels():
    """J^T J and the factorisation, in GFLOP/s."""
    print("\n| P, rows, outputs | J^T J | Cholesky | limit |\n|---|---|---|---|")
    for dtype in ("float64", "float32"):
        limit = Peak(_dispatch.ISA or _dispatch.AVAILABLE[-1], dtype)(0.5)
        for widths, rows in (((8, 16, 1), 1000), ((20, 45, 1), 2000), ((50, 55, 3), 2000)):
            model = network(widths, cnn.LevenbergMarquardt(), 0)
            model = cnn.Sequential(list(model.layers), cnn.LevenbergMarquardt(), dtype=dtype)
            model.loss = cnn.MSELoss()
            rng, program, n, out = np.random.default_rng(0), model._core.program, model.parameters.size, widths[-1]
            x = rng.standard_normal((rows, widths[0])).astype(dtype)
            y = program.targets(rng.standard_normal((rows, out)), rows)
            matrix = model._core.kernels.Curvature(program)
            times = [np.inf] * 2
            for _ in range(9):
                matrix.begin_matrix(1)
                times[0] = min(times[0], timed(matrix.add_rows, x, y, None, 0, rows, rows, 1)[0])
                times[1] = min(times[1], timed(matrix.factorize, np.ones(n), 1)[0])
            squares, factor = rows * out * n**2 / times[0] / 1e9, n**3 / 3 / times[1] / 1e9
            print(f"| {n}, {rows}, {out}, {dtype} | {squares:.1f} | {factor:.1f} | {limit / 1e9:.1f} |")


def main(epochs: int = 10_000) -> None:
    cnn.set_num_threads(1)
    torch = torch_levenberg_marquardt() is not None
    print(f"| problem | Adam, {epochs:,} epochs, s | L-M, ms | times Adam | times SciPy | times PyTorch | won |")
    print("|---|---|---|---|---|---|---|")
    won, medians = [], {}
    for name in problems(0):
        rows = []
        for seed in SEEDS:
            x, y, hidden = problems(seed)[name]
            widths = (x.shape[1], *hidden, y.shape[1])
            adam = network(widths, cnn.Adam(lr=0.01), seed)
            adam_seconds, _ = timed(lambda model=adam, x=x, y=y: model.fit(x, y, epochs=epochs))
            loss = adam.evaluate(x, y)["loss"]
            seconds = np.inf
            for _ in range(TURNS):
                goal = Goal(loss, adam_seconds)
                model = network(widths, cnn.LevenbergMarquardt(tolerance_change=0.0), seed)
                took, _ = timed(lambda m=model, x=x, y=y, g=goal: m.fit(x, y, epochs=10**6, callbacks=[g]))
                seconds = min(seconds, took)
            others = [np.nan, np.nan]
            if goal.there:
                contenders = [by_scipy] + [by_torch] * torch
                for i, contender in enumerate(contenders):
                    limit = LONGEST * seconds
                    others[i] = min(
                        timed(contender, network(widths, None, seed), x, y, loss, limit)[0] / seconds
                        for _ in range(TURNS)
                    )
            rows.append((adam_seconds, 1e3 * seconds, adam_seconds / seconds if goal.there else 0.0, *others))
            won.append(goal.there and adam_seconds >= 10 * seconds)
        numbers = medians[name] = np.median(rows, axis=0)
        shown = " | ".join(f"{n:.3g}" for n in numbers)
        print(f"| {name} | {shown} | {sum(won[-len(SEEDS) :])} of {len(SEEDS)} |", flush=True)
    print()
    judge("Levenberg-Marquardt", "of the runs in a tenth of Adam's time or less", 0.8, np.mean(won))
    for name, numbers in medians.items():
        judge(name, "times as fast as SciPy's least_squares", 10, numbers[3])
        if torch:
            judge(name, "times as fast as torch-levenberg-marquardt", 20, numbers[4])
    kernels()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
