"""Sobolev training: a network that also fits the gradients of a function needs far fewer points.

    python examples/sobolev.py        writes sobolev.png

Values and gradients of a surface are known at a few random points, for example from a simulation with an adjoint
(Czarnecki et al., "Sobolev Training for Neural Networks", 2017). The same network is fitted twice by L-BFGS: to the
values, and to values and gradients, with ``cnn.SobolevLoss``. Needs the extra `plot` (matplotlib).
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cnn


def surface(x):
    """Values (n, 1) and gradients (n, 2) at points (n, 2) in [-1, 1]**2."""
    a, b = 3 * x[:, :1], 3 * x[:, 1:]
    wave, hill = np.sin(a) * np.cos(b), np.exp(-(a**2) - b**2)
    return wave + hill, 3 * np.hstack([np.cos(a) * np.cos(b) - 2 * a * hill, -np.sin(a) * np.sin(b) - 2 * b * hill])


def network(width, loss):
    layers = [cnn.Linear(2, width), cnn.Tanh(), cnn.Linear(width, width), cnn.Tanh(), cnn.Linear(width, 1), loss]
    return cnn.Sequential(layers, cnn.LBFGS(), dtype="float64", seed=0)


def plot(x, surface, errors, path):
    """The surface, and the error of each network; `errors` maps titles to images (n, n)."""
    figure = Figure(figsize=(12, 4), dpi=110, layout="constrained")
    axes = figure.subplots(1, 3)
    limit = 0.5
    pictures = [axes[0].imshow(surface, extent=(-1, 1, -1, 1), origin="lower", cmap="viridis")]
    axes[0].set_title(f"the surface, known at {len(x)} points", fontsize=11.5, loc="left")
    for panel, (title, error) in zip(axes[1:], errors.items(), strict=True):
        style = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}
        pictures.append(panel.imshow(error, extent=(-1, 1, -1, 1), origin="lower", **style))
        panel.set_title(title, fontsize=11.5, loc="left")
    for panel in axes:
        panel.plot(*x.T, "o", color="black", markersize=3.5, mec="white", mew=0.7, clip_on=False)
        panel.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    figure.colorbar(pictures[0], ax=axes[0], shrink=0.8)
    figure.colorbar(pictures[2], ax=axes[1:], shrink=0.8, extend="both")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=30)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where sobolev.png goes")
    options = parser.parse_args()

    x = np.random.default_rng(0).uniform(-1, 1, (options.points, 2))
    y, gradients = surface(x)
    side = np.linspace(-1, 1, 81)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    truth = surface(grid)[0]
    errors = {}
    for name, loss, targets in (
        ("values", cnn.MSELoss(), y),
        ("values and gradients", cnn.SobolevLoss(0.2), (y, gradients[:, None])),
    ):
        model = network(options.width, loss)
        model.fit(x, targets, epochs=options.steps, progress=False)
        error = model.predict(grid) - truth
        rms = np.sqrt(np.mean(error**2))
        print(f"fitted to {name:<21} root mean square error at unseen points {rms:.4f}")
        errors[f"fitted to {name}: error {rms:.3f}"] = error.reshape(len(side), -1)
    plot(x, truth.reshape(len(side), -1), errors, options.out / "sobolev.png")
    print(f"see {options.out / 'sobolev.png'}")


if __name__ == "__main__":
    main()
