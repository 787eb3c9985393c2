"""Transfer learning: frozen layers from one task help with another task that has few examples.

    python examples/transfer.py        writes transfer.png

A network learns to classify digits. ``model.hidden(x, 2)``, the outputs of its second layer, separates unseen digits. A
second network learns another task: does the digit have a closed loop (0, 6, 8, 9)? It uses a copy of these layers, with
``trainable = False``, and a new last layer. For comparison, the same network learns from scratch. With few examples the
frozen layers help. With hundreds of examples training from scratch is better, since it adapts all layers.
Needs the extra `demo` (scikit-learn, matplotlib).
"""

import argparse
import copy
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

import cnn

LOOPS = 0, 6, 8, 9
FEATURES = 64
BLUE, ORANGE = "#0072b2", "#d55e00"
COUNTS = 10, 20, 50, 100, 200, 400


def data():
    """Images (n, 64), scaled to [0, 1], and labels (n,): one half for the digits, one half for the loops."""
    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16, y, test_size=0.5, stratify=y, random_state=0)


def network(first, classes, seed):
    """`first` are the layers up to the features."""
    layers = [*first, cnn.Linear(FEATURES, classes), cnn.CrossEntropyLoss()]
    return cnn.Sequential(layers, optimizer=cnn.Adam(lr=0.01), seed=seed)


def untrained():
    return [cnn.Linear(64, FEATURES), cnn.ReLU()]


def accuracy(model, x, y, x_test, y_test):
    """Accuracy after training on a few rows."""
    model.fit(x, y, epochs=60, batch_size=16, progress=False)
    return model.evaluate(x_test, y_test)["accuracy"]


def compare(model, x, y, draws):
    """Accuracies with frozen layers and from scratch, (2, draws, counts), for random rows; the others are the test."""
    scores = np.zeros((2, draws, len(COUNTS)))
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(len(x))
        x_test, y_test = x[order[max(COUNTS) :]], y[order[max(COUNTS) :]]
        for k, count in enumerate(COUNTS):
            few = order[:count]
            frozen = network([copy.deepcopy(model[:2])], 2, seed=draw)
            frozen.layers[0].trainable = False
            for i, one in enumerate((frozen, network(untrained(), 2, seed=draw))):
                scores[i, draw, k] = accuracy(one, x[few], y[few], x_test, y_test)
    return scores


def plot(hidden, y, scores, path):
    """Left: digits in the second layer. Right: accuracy against the number of examples."""
    figure = Figure(figsize=(11, 4.6), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    left, right = figure.subplots(1, 2)
    for digit in range(10):
        colour = BLUE if digit in LOOPS else ORANGE
        for at in hidden[y == digit][:40]:
            left.text(*at, str(digit), color=colour, fontsize=8.5, ha="center", va="center")
    left.set(xlim=(hidden[:, 0].min(), hidden[:, 0].max()), ylim=(hidden[:, 1].min(), hidden[:, 1].max()))
    left.set(xticks=(), yticks=(), xlabel="blue: with a closed loop")
    left.set_title("Unseen digits in the second layer (two principal components)", fontsize=12, loc="left")
    for values, name, colour in zip(scores, ("frozen layers", "from scratch"), (BLUE, ORANGE), strict=True):
        mean, spread = values.mean(axis=0), values.std(axis=0)
        right.fill_between(COUNTS, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
        right.plot(COUNTS, mean, "o-", color=colour, linewidth=1.8, label=name)
    right.set(xscale="log", xticks=COUNTS, xticklabels=COUNTS, xlabel="examples")
    right.minorticks_off()
    right.set_title("Is there a loop? Accuracy, and its standard deviation", fontsize=12, loc="left")
    right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where transfer.png goes")
    options = parser.parse_args()

    x_read, x, y_read, y = data()
    model = network(untrained(), 10, seed=0)
    model.fit(x_read, y_read, epochs=20, batch_size=32, progress=False)
    print(f"accuracy on unseen digits: {model.evaluate(x, y)['accuracy']:.1%}")
    before = model.parameters.copy()
    scores = compare(model, x, np.isin(y, LOOPS).astype(int), options.draws)
    assert np.array_equal(model.parameters, before)  # only the copies were trained
    print(f"{'examples':<15}" + " ".join(f"{count:6d}" for count in COUNTS))
    for name, values in zip(("frozen layers", "from scratch"), scores.mean(axis=1), strict=True):
        print(f"{name:<15}" + " ".join(f"{value:6.1%}" for value in values))
    plot(PCA(2).fit_transform(model.hidden(x, 2)), y, scores, options.out / "transfer.png")
    print(f"see {options.out / 'transfer.png'}")


if __name__ == "__main__":
    main()
