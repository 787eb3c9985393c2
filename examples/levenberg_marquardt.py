"""Training of second order: Levenberg-Marquardt, L-BFGS and Adam on the same network, loss over seconds.

    python examples/levenberg_marquardt.py        writes levenberg_marquardt.png

A surface with five hills, MATLAB's `peaks`, at 900 points, and a network 2-20-1 of 81 parameters. Each optimiser starts
five times, from the same five starts. Levenberg-Marquardt has the second derivatives that matter for a sum of squares,
and pays for them with a matrix of 81 x 81: on networks of up to a thousand parameters or so, a good bargain.
Right: with noise on few points, the same network overfits, and with regularization="bayesian" it does not: how much the
weights are held back, and how many parameters the data determine, follows from the data, without held-out points.
Needs the extra `demo` (matplotlib).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cnn

OPTIMIZERS = {  # label: optimizer, colour
    "Adam": (lambda: cnn.Adam(lr=0.01), "#6b6b6b"),
    "L-BFGS": (lambda: cnn.LBFGS(tolerance_change=0.0), "#0072b2"),
    "Levenberg-Marquardt": (lambda: cnn.LevenbergMarquardt(), "#d55e00"),
}
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"
POINTS, NOISE = 60, 0.3


def peaks(rows):
    """The surface on a grid of rows x rows: x (rows**2, 2), y (rows**2, 1), of variance 1."""
    a, b = (part.ravel() for part in np.meshgrid(*[np.linspace(-3, 3, rows)] * 2))
    y = 3 * (1 - a) ** 2 * np.exp(-(a**2) - (b + 1) ** 2) - np.exp(-((a + 1) ** 2) - b**2) / 3
    y -= 10 * (a / 5 - a**3 - b**5) * np.exp(-(a**2) - b**2)
    return np.column_stack([a, b]) / 2, ((y - y.mean()) / y.std())[:, None]


def network(n_in, hidden, optimizer, seed):
    layers = [cnn.Linear(n_in, hidden), cnn.Tanh(), cnn.Linear(hidden, 1), cnn.MSELoss()]
    return cnn.Sequential(layers, optimizer, dtype="float64", seed=seed)


class Clock(cnn.Callback):
    """The processor time at the end of each epoch; ends `fit` after `limit` seconds."""

    def __init__(self, limit):
        self.limit, self.seconds = limit, []

    def on_train_begin(self, logs):
        self.began = time.process_time()

    def on_epoch_end(self, epoch, logs):
        self.seconds.append(time.process_time() - self.began)
        self.stop = self.seconds[-1] > self.limit


def races(seconds, starts):
    """label -> [(seconds, losses) of each start]."""
    x, y = peaks(30)
    found = {label: [] for label in OPTIMIZERS}
    for seed in range(starts):
        for label, (optimizer, _) in OPTIMIZERS.items():
            clock = Clock(seconds)
            history = network(2, 20, optimizer(), seed).fit(x, y, epochs=10**6, callbacks=[clock])
            found[label].append((np.array(clock.seconds), np.array(history["loss"])))
    return found


def few_points():
    """Points with noise, and what the network makes of them without and with regularisation."""
    x = np.linspace(-1, 1, POINTS)[:, None]
    y = np.sin(2 * np.pi * x) + NOISE * np.random.default_rng(1).standard_normal(x.shape)
    grid = np.linspace(-1, 1, 401)[:, None]
    curves = {}
    for regularization in (None, "bayesian"):
        model = network(1, 20, cnn.LevenbergMarquardt(regularization=regularization), 0)
        history = model.fit(x, y, epochs=200)
        curves[regularization] = model.predict(grid), history
    return x, y, grid, curves


def plot(found, points, path):
    figure = Figure(figsize=(11.5, 5.0), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for label, runs in found.items():
        for i, (seconds, losses) in enumerate(runs):
            color = OPTIMIZERS[label][1]
            left.loglog(seconds, losses, color=color, linewidth=1.6, alpha=0.85, label=label if i == 0 else None)
    left.set_title("Loss over processor time, from five starts", fontsize=13, loc="left")
    left.set(xlabel="seconds", ylabel="mean squared error")
    left.legend(frameon=False, loc="lower left")

    x, y, grid, curves = points
    right.plot(x, y, "o", color="#9a9a9a", markersize=4, label=f"{POINTS} points")
    right.plot(grid, np.sin(2 * np.pi * grid), color=GREY, linestyle=(0, (5, 3)), linewidth=1.3, label="truth")
    right.plot(grid, curves[None][0], color=BLUE, linewidth=1.3, label="without")
    gamma = curves["bayesian"][1]["gamma"][-1]
    label = f"bayesian: {gamma:.0f} of 61 parameters"
    right.plot(grid, curves["bayesian"][0], color=ORANGE, linewidth=2.2, label=label)
    right.set_title('regularization="bayesian"', fontsize=13, loc="left")
    right.set(xlabel="x", xticks=np.linspace(-1, 1, 5), ylim=(-2.2, 2.9))
    right.legend(frameon=False, loc="upper left", ncols=2, fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each optimiser and start")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where levenberg_marquardt.png goes")
    options = parser.parse_args()

    cnn.set_num_threads(1)
    found = races(options.seconds, options.starts)
    for label, runs in found.items():
        median = np.median([losses[-1] for _, losses in runs])
        print(f"{label:20} {median:.2e} after {options.seconds} s, {len(runs[0][0])} epochs")
    points = few_points()
    *_, grid, curves = points
    for regularization, (curve, history) in curves.items():
        error = np.sqrt(np.mean((curve - np.sin(2 * np.pi * grid)) ** 2))
        rest = history["loss"][-1] ** 0.5
        print(f"regularization={regularization}: off the truth by {error:.3f}, the points by {rest:.3f}")
    beta = curves["bayesian"][1]["beta"][-1]
    print(f"noise {NOISE}, found {1 / np.sqrt(2 * beta):.3f}")
    plot(found, points, options.out / "levenberg_marquardt.png")
    print(f"see {options.out / 'levenberg_marquardt.png'}")


if __name__ == "__main__":
    main()
