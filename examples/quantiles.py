"""Regression with uncertainty: one network predicts nine quantiles of y for noise that depends on x.

    python examples/quantiles.py        writes quantiles.png

The data are y = sin(3 x) + noise. The noise grows with x and is skewed (a gamma distribution), so neither a mean nor a
symmetric error bar describes it. The pinball loss (cnn.QuantileLoss) is minimal at the quantiles. Unseen points test
the result: 10 % of them should be below the quantile 0.1, and so on.
Needs the extra `demo` (matplotlib; SciPy for the true quantiles).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import gamma

import cnn

QUANTILES = np.array([0.025, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.975])
SHAPE = 2.0  # of the gamma distribution
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"


def trend(x):
    return np.sin(3 * x)


def width(x):
    return 0.05 + 0.2 * (x + 1)


def sample(n, seed):
    """n points: x (n, 1) in [-1, 1], y (n,)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    return x[:, None], trend(x) + width(x) * rng.gamma(SHAPE, size=n)


def truth(x):
    """The true quantiles (n, 9) at x (n,)."""
    return trend(x)[:, None] + width(x)[:, None] * gamma(SHAPE).ppf(QUANTILES)


def train(x, y, epochs):
    model = cnn.Sequential(
        [
            cnn.Linear(1, 64),
            cnn.Tanh(),
            cnn.Linear(64, 64),
            cnn.Tanh(),
            cnn.Linear(64, len(QUANTILES)),
            cnn.QuantileLoss(QUANTILES),
        ],
        optimizer=cnn.Adam(lr=0.005, schedule=cnn.CosineAnnealingLR(epochs)),
        seed=0,
    )
    model.fit(x, y, epochs=epochs, batch_size=128, validation_split=0.1, early_stopping=20)
    return model


def plot(model, x, y, covered, path):
    grid = np.linspace(-1, 1, 401)
    predicted, true = model.predict(grid[:, None]), truth(grid)
    middle = len(QUANTILES) // 2
    figure = Figure(figsize=(11.5, 5.2), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    left, right = figure.subplots(1, 2, width_ratios=[2.1, 1])

    left.plot(x[:1500, 0], y[:1500], ".", color="#9a9a9a", markersize=2.5, zorder=0)
    for i in range(middle):
        label = f"{QUANTILES[-1 - i] - QUANTILES[i]:.0%} of the points"
        shade = 0.14 + 0.13 * i
        left.fill_between(grid, predicted[:, i], predicted[:, -1 - i], color=BLUE, alpha=shade, lw=0, label=label)
    left.plot(grid, predicted[:, middle], color=BLUE, linewidth=2.5, label="median")
    for i in (0, middle, -1):
        label = "true 2.5 %, 50 %, 97.5 %" if i == 0 else None
        left.plot(grid, true[:, i], color=ORANGE, linewidth=1.3, linestyle=(0, (5, 3)), label=label)
    left.set_title("Predicted quantiles of y, and true ones (dashed)", fontsize=13, loc="left")
    left.set(xlabel="x", ylabel="y", ylim=(-1.35, 4.2))
    left.legend(frameon=False, loc="upper left", ncols=2, fontsize=9.5)

    right.plot([0, 1], [0, 1], color="#bdbdbd", linewidth=5, solid_capstyle="round", zorder=0)
    right.plot(QUANTILES, covered, "o", color=BLUE, markersize=8, mec="white")
    right.set_title("Held-out points below each quantile", fontsize=13, loc="left")
    right.set(xlabel="quantile", ylabel="fraction of the points", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    worst = abs(covered - QUANTILES).max()
    right.text(0.97, 0.05, f"largest error {worst:.3f}", color=GREY, fontsize=11, ha="right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    left.margins(x=0.01)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where quantiles.png goes")
    options = parser.parse_args()

    x, y = sample(options.points, seed=0)
    start = time.perf_counter()
    model = train(x, y, options.epochs)
    print(f"trained {len(model.history['loss'])} epochs on {len(x):,} points in {time.perf_counter() - start:.2f} s")

    x_test, y_test = sample(20_000, seed=1)
    covered = np.mean(y_test[:, None] < model.predict(x_test), axis=0)
    print("quantile  points below")
    for quantile, part in zip(QUANTILES, covered, strict=True):
        print(f"{quantile:8.3f}  {part:12.3f}")
    best = cnn.QuantileLoss(QUANTILES)(truth(x_test[:, 0]), y_test)
    print(f"loss of the network {model.evaluate(x_test, y_test)['loss']:.5f}, of the true quantiles {best:.5f}")
    plot(model, x_test, y_test, covered, options.out / "quantiles.png")
    print(f"see {options.out / 'quantiles.png'}")


if __name__ == "__main__":
    main()
