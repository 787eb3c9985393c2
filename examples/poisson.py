"""Poisson's equation on a square: a network is trained until its Laplacian equals the given one.

    python examples/poisson.py        writes poisson.png

Lagaris and others ("Artificial Neural Networks for Solving Ordinary and Partial Differential Equations", 1998): with
u(x, y) = b(x) b(y) N(x, y) and b(t) = 1 - t**2, u is zero on the boundary of [-1, 1]**2 whatever the network N is, and
what is left to be minimised is the residual of u_xx + u_yy = f at points inside. N, its slopes and its Laplacian come
out of one native forward pass; ``residual_loss_and_grad`` takes the loss's derivatives by them back to the parameters,
exactly. L-BFGS of SciPy does the rest. f belongs to a solution that is known, for comparison: two bumps.
Needs SciPy and the extra `plot` (matplotlib).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize

import cnn


def solution(x):
    """Values (n, 1) and Laplacians (n, 1) of (1 - x**2) (1 - y**2) (exp(-4 r**2) - exp(-4 s**2)), r and s the distances
    from the centres of the bumps."""
    b, slope, second = boundary(x)
    value, laplacian = 0.0, 0.0
    for sign, centre in ((1, 0.4), (-1, -0.4)):
        d = x - centre
        bump = sign * np.exp(-4 * np.sum(d**2, axis=1, keepdims=True))
        slopes, curved = -8 * d * bump, (64 * np.sum(d**2, axis=1, keepdims=True) - 16) * bump
        value = value + b * bump
        laplacian = laplacian + second * bump + 2 * np.sum(slope * slopes, axis=1, keepdims=True) + b * curved
    return value, laplacian


def boundary(x):
    """B(x, y) = (1 - x**2) (1 - y**2): values (n, 1), slopes (n, 2), Laplacians (n, 1)."""
    b = 1 - x**2
    return b[:, :1] * b[:, 1:], -2 * x * b[:, ::-1], -2 * np.sum(b, axis=1, keepdims=True)


def residuals(points, f):
    """A loss for `residual_loss_and_grad`: with u = B N, the Laplacian of u is B_ N + 2 grad B grad N + B N_."""
    b, slope, second = boundary(points)

    def loss(x, n, dn, laplacian):
        residual = second * n + 2 * np.sum(slope * dn[:, 0], axis=1, keepdims=True) + b * laplacian - f
        r = 2 / len(x) * residual
        return np.mean(residual**2), r * second, 2 * (r * slope)[:, None], r * b

    return loss


def plot(u, error, losses, points, path):
    """The solution, its error, and the loss; images (n, n)."""
    figure = Figure(figsize=(12, 3.8), dpi=110, layout="constrained")
    axes = figure.subplots(1, 3)
    limits = abs(u).max(), abs(error).max()
    for panel, image, limit, title in zip(axes, (u, error), limits, ("solution u", "error of u"), strict=False):
        style = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit, "extent": (-1, 1, -1, 1), "origin": "lower"}
        figure.colorbar(panel.imshow(image, **style), ax=panel, shrink=0.85)
        panel.set_title(title, fontsize=11.5, loc="left")
        panel.set(xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes[0].plot(*points.T, ".", color="black", markersize=1, alpha=0.5)
    axes[2].semilogy(losses, color="#0b6e99")
    axes[2].set(xlabel="evaluations")
    axes[2].set_title("mean squared residual", fontsize=11.5, loc="left")
    axes[2].grid(alpha=0.3)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=600)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where poisson.png goes")
    options = parser.parse_args()

    x = np.random.default_rng(0).uniform(-1, 1, (options.points, 2))
    layers = [cnn.Linear(2, 32), cnn.Tanh(), cnn.Linear(32, 32), cnn.Tanh(), cnn.Linear(32, 1)]
    model = cnn.Sequential(layers, dtype="float64", seed=0)
    equation, losses = residuals(x, solution(x)[1]), []

    def objective(parameters):
        model.parameters = parameters
        loss, gradient = model.residual_loss_and_grad(x, equation, order="laplacian")
        losses.append(loss)
        return loss, gradient

    began = time.perf_counter()
    limits = {"maxiter": options.steps}
    model.parameters = minimize(objective, model.parameters, jac=True, method="L-BFGS-B", options=limits).x
    seconds = time.perf_counter() - began
    side = np.linspace(-1, 1, 81)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    u, truth = boundary(grid)[0] * model.predict(grid), solution(grid)[0]
    print(f"residual {losses[0]:.3g} -> {losses[-1]:.3g} in {len(losses)} evaluations, {seconds:.1f} s")
    print(f"largest error of u {abs(u - truth).max():.2g}, of a solution up to {abs(truth).max():.2g}")
    images = (a.reshape(len(side), -1) for a in (u, u - truth))
    plot(*images, losses, x, options.out / "poisson.png")
    print(f"see {options.out / 'poisson.png'}")


if __name__ == "__main__":
    main()
