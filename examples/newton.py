"""Second-order training: SciPy's Newton methods with exact Hessian products, compared with L-BFGS-B.

    python examples/newton.py        writes newton.png

A network 2-12-12-1 with tanh learns a smooth function of two variables from 400 points, in float64 with l2 = 1e-3.
`loss_and_grad` computes the loss and the gradient for SciPy; `hvp` computes the Hessian times a vector, without forming
the Hessian. The unit of work is one gradient; a Hessian product costs about 2.7. Near the minimum the Newton methods
converge superlinearly, as theory predicts; before that L-BFGS-B, which estimates curvature from gradients, needs less
work. With `hessian_operator` a Lanczos iteration (`eigsh`) finds the largest eigenvalues of the Hessian at the minimum.
Needs SciPy and the extra `plot` (matplotlib).
"""

import argparse
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize
from scipy.sparse.linalg import eigsh

import cnn

METHODS = {"L-BFGS-B": "#7f7f7f", "Newton-CG": "#0072b2", "trust-ncg": "#d55e00", "trust-krylov": "#009e73"}
PRODUCT = 2.7  # work of a Hessian product, in gradients


def problem(points):
    x = np.random.default_rng(0).uniform(-2, 2, (points, 2))
    return x, (np.sin(2 * x[:, :1]) * np.exp(-(x[:, 1:] ** 2)) + 0.3 * x[:, :1])


def network(width):
    widths = [2, width, width, 1]
    layers: list = []
    for n_in, n_out in pairwise(widths):
        layers += [cnn.Linear(n_in, n_out, l2=1e-3), cnn.Tanh()]
    return cnn.Sequential([*layers[:-1], cnn.MSELoss()], dtype="float64", seed=0)


class Counted:
    """The loss, its gradient and its Hessian products for SciPy, with a count of the work."""

    def __init__(self, model, x, y, most):
        self.model, self.x, self.y, self.most = model, x, y, most
        self.work = 0.0
        self.history = []  # (work, loss, largest gradient)

    def loss_and_grad(self, parameters):
        self.model.parameters = parameters
        self.work += 1
        loss, gradient = self.model.loss_and_grad(self.x, self.y)
        if np.isfinite(loss):
            self.history.append((self.work, loss, abs(gradient).max()))
        if self.work > self.most or not np.isfinite(loss):
            raise StopIteration
        return loss, gradient

    def product(self, parameters, v):
        self.model.parameters = parameters
        self.work += PRODUCT
        return self.model.hvp(self.x, self.y, v)


def train(method, model, x, y, most):
    """Minimise until the gradient is small or the work is used up. Returns the history and the parameters."""
    counted = Counted(model, x, y, most)
    options = {"L-BFGS-B": {"maxiter": 10**6, "maxfun": 10**6, "maxcor": 20, "ftol": 0.0, "gtol": 1e-9}}
    options["Newton-CG"] = {"xtol": 1e-12}
    options["trust-krylov"] = {"gtol": 1e-7}  # closer to the minimum SciPy's Lanczos vectors become NaN
    second = {} if method == "L-BFGS-B" else {"hessp": counted.product}
    chosen = options.get(method, {"gtol": 1e-9})
    start = model.parameters
    with suppress(StopIteration):
        minimize(counted.loss_and_grad, start, method=method, jac=True, options=chosen, **second)
    return np.array(counted.history), model.parameters


def plot(courses, largest, title, path):
    """Loss and gradient against work; eigenvalues of the Hessian."""
    figure = Figure(figsize=(11.5, 4.4), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.suptitle(title, fontsize=14)
    loss, gradient, curvature = figure.subplots(1, 3)
    for method, course in courses.items():
        colour = METHODS[method]
        for axes, column in ((loss, 1), (gradient, 2)):
            best = np.minimum.accumulate(course[:, column])
            axes.loglog(course[:, 0], best, color=colour, linewidth=1.8, label=method)
    loss.set_title("loss", fontsize=11, loc="left")
    gradient.set_title("largest element of the gradient", fontsize=11, loc="left")
    for axes in (loss, gradient):
        axes.set_xlabel("work, in gradients")
    loss.legend(frameon=False, fontsize=9)
    curvature.semilogy(np.arange(1, len(largest) + 1), largest, "o", color="#0072b2", markersize=4)
    curvature.set_title("largest Hessian eigenvalues at the end", fontsize=11, loc="left")
    curvature.set_xlabel("number")
    for axes in (loss, gradient, curvature):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=400)
    parser.add_argument("--width", type=int, default=12)
    parser.add_argument("--work", type=int, default=20_000, help="maximum for each method, in gradients")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where newton.png goes")
    options = parser.parse_args()

    x, y = problem(options.points)
    courses, ends = {}, {}
    print("method            work        loss  gradient")
    for method in METHODS:
        courses[method], ends[method] = train(method, network(options.width), x, y, options.work)
        work, loss, gradient = courses[method][np.argmin(courses[method][:, 1])]
        print(f"{method:<12} {work:9.0f}  {loss:.8f}  {gradient:8.1e}")
    model = network(options.width)
    model.parameters = ends[min(courses, key=lambda method: courses[method][-1, 2])]
    operator = model.hessian_operator(x, y)
    start = np.ones(model.parameters.size)
    largest = eigsh(operator, k=20, which="LA", return_eigenvectors=False, v0=start)
    largest = np.sort(largest)[::-1]
    print(f"Hessian eigenvalues: {largest[0]:.3g}, {largest[1]:.3g}, {largest[2]:.3g}, ...")
    title = f"2-{options.width}-{options.width}-1 tanh, {model.parameters.size} parameters, {options.points} points"
    plot(courses, largest, title, options.out / "newton.png")
    print(f"see {options.out / 'newton.png'}")


if __name__ == "__main__":
    main()
