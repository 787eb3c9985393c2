"""The matrix exponential: a small network learns expm of 2 x 2 matrices, the example of SimpleChains.jl.

    python examples/matrix_exponential.py        writes matrix_exponential.png

A network 4-32-16-4 with tanh is trained on 10,000 random matrices, with Adam and the whole training set as one batch.
After each step it is evaluated on 10,000 other matrices.
Needs the extra `demo` (matplotlib).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cnn

BLUE, ORANGE, GREY = "#0072b2", "#e08e00", "#6b6b6b"


def expm(a):
    """The exponentials of 2 x 2 matrices (n, 2, 2): e^s (cosh(q) I + sinh(q) / q (A - s I)), s half the trace and
    q^2 = -det(A - s I). SciPy's expm supports any size, but takes 500 us per matrix."""
    s = np.trace(a, axis1=1, axis2=2)[:, None, None] / 2
    rest = a - s * np.eye(2)
    q = np.emath.sqrt(-np.linalg.det(rest))[:, None, None]
    return (np.exp(s) * (np.cosh(q) * np.eye(2) + np.sinh(q) / q * rest)).real


def data(n, seed):
    """Matrices with normally distributed elements (n, 4), and their exponentials (n, 4)."""
    matrices = np.random.default_rng(seed).normal(size=(n, 2, 2))
    return matrices.reshape(n, 4), expm(matrices).reshape(n, 4)


def network(steps):
    return cnn.Sequential(
        [
            cnn.Linear(4, 32),
            cnn.Tanh(),
            cnn.Linear(32, 16),
            cnn.Tanh(),
            cnn.Linear(16, 4),
            cnn.MSELoss(),
        ],
        optimizer=cnn.Adam(lr=0.01, schedule=cnn.CosineAnnealingLR(steps, interval="step")),
        seed=0,
    )


def plot(history, true, predicted, title, path):
    """Left: the loss. Right: predicted against true values of each element of the exponentials."""
    figure = Figure(figsize=(11.5, 5.2), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.suptitle(title, fontsize=15)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    loss = left.subplots()
    variance = true.var()
    for name, label, colour in (("loss", "training", BLUE), ("val_loss", "unseen matrices", ORANGE)):
        loss.plot(history.epochs, history[name], color=colour, linewidth=1.6, label=label)
    loss.axhline(variance, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    loss.text(history.epochs[-1], variance * 1.15, "variance of the elements", color=GREY, ha="right")
    loss.set(xlabel="step", ylabel="mean squared error", yscale="log")
    loss.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.86))
    loss.spines[["top", "right"]].set_visible(False)
    grid = right.subplots(2, 2, sharex=True, sharey=True)
    some = np.random.default_rng(0).permutation(len(true))[:1200]
    shown = np.concatenate([true[some], predicted[some]])
    low, high = np.floor(shown.min()) - 1, np.ceil(shown.max()) + 1
    for i, axes in enumerate(grid.flat):
        axes.plot([low, high], [low, high], color="#b0b0b0", linewidth=1, zorder=0)
        axes.plot(true[some, i], predicted[some, i], "o", color=BLUE, markersize=2, mew=0)
        explained = 1 - np.mean((true[:, i] - predicted[:, i]) ** 2) / true[:, i].var()
        axes.set_title(f"element {i // 2 + 1},{i % 2 + 1}:  $R^2$ = {explained:.4f}", fontsize=11, loc="left")
        axes.set(xlim=(low, high), ylim=(low, high))
        axes.set_aspect("equal")
        axes.spines[["top", "right"]].set_visible(False)
    right.supxlabel("element of exp(A)", fontsize=10.5)
    right.supylabel("prediction", fontsize=10.5)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where matrix_exponential.png goes")
    options = parser.parse_args()

    x, y = data(10_000, seed=0)
    x_test, y_test = data(10_000, seed=1)
    model = network(options.steps)
    start = time.perf_counter()
    history = model.fit(x, y, epochs=options.steps, batch_size=len(x), validation_data=(x_test, y_test))
    seconds = time.perf_counter() - start
    error = model.evaluate(x_test, y_test, metrics=["r2", "mae"])
    print(f"{options.steps:,} steps with 10,000 matrices, with a validation after each, in {seconds:.2f} s")
    print(
        f"unseen matrices: mean squared error {error['loss']:.2e}, mean absolute error {error['mae']:.4f}, "
        f"R2 {error['r2']:.5f}"
    )
    title = f"exp(A), predicted by a network 4-32-16-4 after {options.steps:,} steps of Adam, {seconds:.1f} s"
    plot(history, y_test, model.predict(x_test), title, options.out / "matrix_exponential.png")
    print(f"see {options.out / 'matrix_exponential.png'}")


if __name__ == "__main__":
    main()
