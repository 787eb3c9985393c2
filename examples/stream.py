"""A data stream with drift: a network predicts each row first and then learns from it.

    python examples/stream.py        writes stream.png

The class is a nonlinear function of four sensors. It changes abruptly after a third of the rows, and slowly in the last
third. At the start of the slow change a new sensor replaces the first one. In river's progressive validation each model
predicts a row before it learns the true class. The network of `cnn.river` standardises the features and accepts new
ones. The picture compares its error over the last 1,000 rows with a logistic regression and a Hoeffding tree.
Needs the extras `river` and `plot`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from river import evaluate, linear_model, metrics, preprocessing, tree

import cnn
from cnn.river import MLPClassifier

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#6b6b6b"
NOISE = 0.02


def stream(n):
    """Yield n rows (dict, bool)."""
    random = np.random.default_rng(0)
    x = random.standard_normal((n, 4))
    time = np.arange(n) / n
    early = x[:, 0] * x[:, 1] + x[:, 2] > 0
    middle = x[:, 0] ** 2 + x[:, 3] ** 2 > 1.4
    late = x[:, 0] - np.abs(x[:, 1]) + 0.5 > 0
    turned = random.random(n) < 3 * time - 2  # from 0 at two thirds to 1 at the end
    y = np.where(time < 1 / 3, early, np.where(turned, late, middle)) ^ (random.random(n) < NOISE)
    readings = x * [1.0, 20.0, 0.01, 3.0] + [5.0, 300.0, 0.0, -40.0]
    for row, label, late_row in zip(readings.tolist(), y.tolist(), (time >= 2 / 3).tolist(), strict=True):
        first = {"pressure_2": 40.0 * row[0] + 7.0} if late_row else {"pressure": row[0]}
        yield first | {"heat": row[1], "flow": row[2], "level": row[3]}, label


def models():
    scaled = preprocessing.StandardScaler()
    return [
        ("network", MLPClassifier((32, 16), optimizer=cnn.Adam(lr=0.01), seed=0), BLUE),
        ("logistic regression", scaled | linear_model.LogisticRegression(), ORANGE),
        ("Hoeffding tree", tree.HoeffdingTreeClassifier(), GREEN),
    ]


def plot(curves, rows, path):
    figure = Figure(figsize=(10, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, at, errors, colour in curves:
        axes.plot(at, errors, color=colour, linewidth=1.8, label=name)
    axes.axhline(NOISE, color=GREY, linewidth=1, linestyle=":")
    axes.annotate("noise", (rows, NOISE), (4, -4), textcoords="offset points", color=GREY)
    axes.axvline(rows / 3, color=GREY, linestyle="--", linewidth=1.2)
    axes.axvspan(2 * rows / 3, rows, color="#eeeeee", zorder=0)
    axes.set(xlim=(0, rows), ylim=(0, 0.7), xlabel="rows seen", ylabel="error over the last 1,000 rows")
    axes.text(rows / 3, 0.69, " abrupt drift", color=GREY, va="top")
    axes.text(2 * rows / 3, 0.69, " slow drift, and a new sensor", color=GREY, va="top")
    axes.set_title("Predict, then learn: errors on a stream with drift", fontsize=12.5, loc="left")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where stream.png goes")
    options = parser.parse_args()

    truth = np.array([y for _, y in stream(options.rows)])
    window, curves = min(1000, options.rows // 10), []
    for name, model, colour in models():
        start = time.perf_counter()
        steps = evaluate.iter_progressive_val_score(
            stream(options.rows), model, metrics.Accuracy(), step=1, yield_predictions=True
        )
        said = [step["Prediction"] for step in steps]
        seconds = time.perf_counter() - start
        wrong = np.array([label is None or label != y for label, y in zip(said, truth, strict=True)])
        total = np.cumsum(wrong)
        errors = (total[window:] - total[:-window]) / window
        print(f"{name:<20} error {wrong.mean():.1%}, of the last rows {errors[-1]:.1%}, {seconds:.1f} s")
        curves.append((name, np.arange(window, options.rows), errors, colour))
    plot(curves, options.rows, options.out / "stream.png")
    print(f"see {options.out / 'stream.png'}")


if __name__ == "__main__":
    main()
