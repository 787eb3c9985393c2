"""One sample at a time: two networks learn f(x) = 3 sin(20 x) on [0, 1] from 100,000 random points.

    python examples/sine.py        writes sine.png

One call of `fit` makes ten passes, with a step of gradient descent after each sample. The first network, 1-3-1 with
ReLU, has at most three kinks and cannot represent six extrema; the second can. The inputs are 2 x - 1, scaled to
[-1, 1].
Needs the extra `plot` (matplotlib).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cnn

BLUE, ORANGE = "#0072b2", "#d55e00"


def f(x):
    return 3 * np.sin(20 * x)


def small():
    layers = [cnn.Linear(1, 3), cnn.ReLU(), cnn.Linear(3, 1), cnn.MSELoss()]
    return cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.01), seed=0)


def large():
    layers = [
        cnn.Linear(1, 64),
        cnn.Tanh(),
        cnn.Linear(64, 64),
        cnn.Tanh(),
        cnn.Linear(64, 1),
        cnn.MSELoss(),
    ]
    return cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.005), seed=0)


def inputs(x):
    return (2 * x - 1)[:, None]


def plot(x, fits, title, path):
    """Above: both fits and the true function. Below: the errors."""
    figure = Figure(figsize=(11.5, 6.2), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.suptitle(title, fontsize=15)
    grid = figure.subplots(2, 2, sharex=True, height_ratios=[1.7, 1])
    for (above, below), (name, predicted, colour) in zip(grid.T, fits, strict=True):
        error = predicted - f(x)
        above.set_title(name, fontsize=13, loc="left")
        above.plot(x, f(x), color="#bdbdbd", linewidth=6, label="3 sin(20 x)")
        above.plot(x, predicted, color=colour, linewidth=2, label="network")
        above.set_ylim(-3.6, 4.6)
        above.legend(frameon=False, loc="upper right", ncols=2)
        below.axhline(0, color="#bdbdbd", linewidth=1)
        below.plot(x, error, color=colour, linewidth=1.5)
        limit = 1.25 * abs(error).max()
        below.set_ylim(-limit, limit)
        below.set_title(
            f"mean squared error {np.mean(error**2):.2g}, largest error {abs(error).max():.2g}",
            fontsize=11,
            loc="left",
        )
        below.set_xlabel("x")
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    grid[0, 0].set_ylabel("f(x)")
    grid[1, 0].set_ylabel("error")
    figure.align_ylabels()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where sine.png goes")
    options = parser.parse_args()

    x = np.random.default_rng(0).random(options.points)
    grid = np.linspace(0, 1, 2001)
    fits = []
    print("network         parameters  s per pass  ns per sample  mean sq. error  largest error")
    for name, model, colour in (
        ("1-3-1 ReLU", small(), ORANGE),
        ("1-64-64-1 tanh", large(), BLUE),
    ):
        start = time.perf_counter()
        model.fit(inputs(x), f(x), epochs=options.epochs, batch_size=1, progress=False)
        seconds = (time.perf_counter() - start) / options.epochs
        predicted = model.predict(inputs(grid))[:, 0]
        error = predicted - f(grid)
        print(
            f"{name:<14}  {model.parameters.size:10,}  {seconds:10.4f}"
            f"  {seconds / options.points * 1e9:13.0f}"
            f"  {np.mean(error**2):14.5f}  {abs(error).max():13.3f}"
        )
        fits.append((name, predicted, colour))
    title = f"{options.epochs} passes over {options.points:,} points, one sample at a time"
    plot(grid, fits, title, options.out / "sine.png")
    print(f"see {options.out / 'sine.png'}")


if __name__ == "__main__":
    main()
