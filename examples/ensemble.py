"""A deep ensemble: 256 copies of a network with different seeds estimate the uncertainty of a prediction.

    python examples/ensemble.py        writes ensemble.png

Networks with different initial parameters agree where there are data, and diverge where there are none
(Lakshminarayanan, Pritzel and Blundell, 2017). Their mean is the prediction; their spread is a measure of its
uncertainty. The seed determines the initial parameters and the order of the rows; `cnn.Ensemble` trains all networks at
once. In the gap between the data the true function is within the band. Outside the range of the data it soon leaves
the band: the spread shows where a prediction is unreliable, not how large its error is.
Needs the extra `plot` (matplotlib).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cnn

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c8c8c"
GAP = (-0.3, 0.8)


def truth(x):
    return np.sin(2.5 * x) + 0.3 * x


def data(n, rng):
    """Points (n, 1) in [-2, 2] outside the gap, and their noisy values (n,)."""
    x = rng.uniform(-2, 2, 4 * n)
    x = x[(x < GAP[0]) | (x > GAP[1])][:n, None]
    return x, truth(x[:, 0]) + 0.1 * rng.normal(size=len(x))


def trained(members, x, y, epochs):
    """The trained ensemble. Large initial parameters make the networks as diverse as functions like this one."""
    wide, narrow = cnn.initializers.Normal(std=3.0), cnn.initializers.Normal(std=0.25)
    ensemble = cnn.Ensemble(
        [
            cnn.Linear(1, 32, weight_init=wide, bias_init=wide),
            cnn.Tanh(),
            cnn.Linear(32, 32, weight_init=narrow),
            cnn.Tanh(),
            cnn.Linear(32, 1, weight_init=narrow),
            cnn.MSELoss(),
        ],
        members,
        optimizer=cnn.Adam(lr=0.004, schedule=cnn.CosineAnnealingLR(epochs)),
        seed=0,
    )
    ensemble.fit(x, y, epochs=epochs, batch_size=32, progress=False)
    return ensemble


def plot(x, y, at, outputs, path):
    """Above: each network, their mean, and a band of two standard deviations. Below: the spread."""
    figure = Figure(figsize=(9.5, 5.4), dpi=110, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    mean, spread = outputs.mean(axis=0), outputs.std(axis=0)
    for axes in (above, below):
        axes.axvspan(*GAP, color="#f2f2f2", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    above.fill_between(
        at, mean - 2 * spread, mean + 2 * spread, color=BLUE, alpha=0.18, lw=0, label="2 std. deviations"
    )
    above.plot(at, outputs[:40].T, color=BLUE, linewidth=0.5, alpha=0.35)
    above.plot(at, mean, color=BLUE, linewidth=2.2, label=f"mean of {len(outputs)} networks")
    above.plot(at, truth(at), color=ORANGE, linewidth=1.6, linestyle="--", label="truth")
    above.plot(x[:, 0], y, "o", color=GREY, markersize=3, mew=0, label="data", zorder=1)
    above.set_ylim(-3, 3)
    above.set_title("Where there are no data, the networks disagree", fontsize=12.5, loc="left")
    above.legend(frameon=False, ncols=4, loc="upper center", fontsize=9.5)
    below.semilogy(at, spread, color=BLUE, linewidth=1.8)
    below.set(xlabel="x", ylabel="spread")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--members", type=int, default=256)
    parser.add_argument("--points", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where ensemble.png goes")
    options = parser.parse_args()

    x, y = data(options.points, np.random.default_rng(0))
    start = time.perf_counter()
    ensemble = trained(options.members, x, y, options.epochs)
    seconds = time.perf_counter() - start
    print(f"{len(ensemble)} networks of {ensemble.n_parameters:,} parameters trained in {seconds:.2f} s")

    at = np.linspace(-2.5, 2.5, 501)
    outputs = ensemble.predict(at[:, None])[:, :, 0]
    spread = outputs.std(axis=0)
    gap, beyond = (at > GAP[0]) & (at < GAP[1]), abs(at) > 2
    for name, where in (("among the data", ~gap & ~beyond), ("in the gap", gap), ("beyond the data", beyond)):
        error = np.sqrt(np.mean((outputs.mean(axis=0) - truth(at))[where] ** 2))
        print(f"{name:<15} spread {spread[where].mean():.3f}, error of the mean {error:.3f}")
    plot(x, y, at, outputs, options.out / "ensemble.png")
    print(f"see {options.out / 'ensemble.png'}")


if __name__ == "__main__":
    main()
