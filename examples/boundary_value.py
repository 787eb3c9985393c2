"""A differential equation solved by a network: u'' = f on [0, 1], u(0) = u(1) = 0, and the analytic solution.

    python examples/boundary_value.py        writes boundary_value.png

The network u(x) is 1-8-8-1 with tanh. Its residuals are u''(x_i) - f(x_i) at 120 points, and u at both ends.
`hvp_input`, the second derivative of the outputs along a direction, computes u'' exactly. Least squares
(Levenberg-Marquardt, SciPy) needs the derivatives of the residuals with respect to the parameters: the third
derivatives d/dtheta d2u/dx2. `hvp_input` with parameters=True computes d/dtheta du/dx exactly. Central differences of
order 4 supply the remaining derivative in x; with a step of 1e-3 they are accurate to 10 digits. A small error in
these derivatives may slow Levenberg-Marquardt down, but does not move the minimum of the exact residuals.
Needs SciPy and the extra `plot` (matplotlib).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import least_squares

import cnn

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#bdbdbd"
STEP = 1e-3  # of the finite differences
END = 10.0  # weight of the boundary conditions


def solution(x):
    return np.sin(np.pi * x) + 0.4 * np.sin(4 * np.pi * x)


def f(x):
    return -(np.pi**2) * (np.sin(np.pi * x) + 6.4 * np.sin(4 * np.pi * x))


def network(width):
    layers = [cnn.Linear(1, width), cnn.Tanh(), cnn.Linear(width, width), cnn.Tanh(), cnn.Linear(width, 1)]
    return cnn.Sequential(layers, dtype="float64", seed=0)


def inputs(x):
    return np.reshape(x, (-1, 1))


class Residuals:
    """The residuals as a function of the parameters, and their Jacobian."""

    def __init__(self, model, points):
        self.model = model
        self.x = inputs(np.linspace(0, 1, points))
        self.ends = inputs([0.0, 1.0])
        self.ones = np.ones_like(self.x)
        self.history = []

    def __call__(self, parameters):
        self.model.parameters = parameters
        curvature = self.model.hvp_input(self.x, self.ones)
        residuals = (curvature - f(self.x))[:, 0] / len(self.x) ** 0.5
        return np.concatenate([residuals, END * self.model.predict(self.ends)[:, 0]])

    def jacobian(self, parameters):
        """One row per residual."""
        self.model.parameters = parameters
        one = np.ones((1, 1))

        def mixed(x):
            return self.model.hvp_input(x, one, parameters=True)[1]

        rows = []
        for x in inputs(self.x)[:, None]:
            far = mixed(x - 2 * STEP) - mixed(x + 2 * STEP)
            near = mixed(x + STEP) - mixed(x - STEP)
            rows.append((far + 8 * near) / (12 * STEP) / len(self.x) ** 0.5)
        rows += [END * self.model.vjp(end[None], one, parameters=True)[1] for end in self.ends]
        self.history.append(np.max(abs(self.model.predict(self.x)[:, 0] - solution(self.x[:, 0]))))
        return np.array(rows)


def plot(x, before, after, history, name, path):
    """The solution, its error, and the error after each step."""
    figure = Figure(figsize=(11.5, 4.4), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.suptitle(f"u'' = f on [0, 1], u(0) = u(1) = 0, solved by a network {name}", fontsize=14)
    grid = figure.subplot_mosaic([["u", "steps"], ["error", "steps"]], height_ratios=[2, 1])
    grid["u"].plot(x, solution(x), color=GREY, linewidth=6, label="analytic solution")
    grid["u"].plot(x, after, color=BLUE, linewidth=2, label="network")
    grid["u"].plot(x, before, color=ORANGE, linewidth=1, linestyle="--", label="network before training")
    grid["u"].set_title("u(x)", fontsize=11, loc="left")
    grid["u"].set_ylim(-0.3, 1.8)
    grid["u"].legend(frameon=False, fontsize=9, loc="upper right", ncols=3)
    error = after - solution(x)
    grid["error"].axhline(0, color=GREY, linewidth=1)
    grid["error"].plot(x, error, color=BLUE, linewidth=1.5)
    grid["error"].set_title(f"error, at most {abs(error).max():.1e}", fontsize=11, loc="left")
    grid["error"].set_xlabel("x")
    grid["error"].yaxis.set_major_formatter("{x:.0e}")
    grid["steps"].semilogy(history, color=BLUE, linewidth=1.5)
    grid["steps"].set_title("largest error at the points", fontsize=11, loc="left")
    grid["steps"].set_xlabel("Levenberg-Marquardt steps")
    for axes in grid.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=120)
    parser.add_argument("--steps", type=int, default=150, help="maximum number of steps")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where boundary_value.png goes")
    options = parser.parse_args()

    model = network(options.width)
    residuals = Residuals(model, options.points)
    x = np.linspace(0, 1, 1001)
    before = model.predict(inputs(x))[:, 0]
    start = time.perf_counter()
    limits = {"max_nfev": options.steps, "ftol": 1e-15, "xtol": 1e-12, "gtol": 1e-12}
    result = least_squares(residuals, model.parameters, residuals.jacobian, method="lm", **limits)
    model.parameters = result.x
    after = model.predict(inputs(x))[:, 0]
    print(f"{model.parameters.size} parameters, {len(residuals.history)} steps, {time.perf_counter() - start:.1f} s")
    print(f"root mean square of u'' - f: {np.sqrt(np.mean(result.fun[:-2] ** 2 * options.points)):.3g}")
    print(f"largest error of u: {abs(after - solution(x)).max():.3g}")
    name = f"1-{options.width}-{options.width}-1"
    plot(x, before, after, residuals.history, name, options.out / "boundary_value.png")
    print(f"see {options.out / 'boundary_value.png'}")


if __name__ == "__main__":
    main()
