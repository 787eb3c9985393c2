"""Handwritten digits: train a network, plot the training curves, and load the checkpoint in a new process.

    python examples/digits.py                             writes digits.safetensors and digits.png
    python examples/digits.py --check digits.safetensors  prints the accuracy of a checkpoint

The data are the 1,797 digits of 8 x 8 pixels from scikit-learn. A fifth of them is the test set, a tenth of the others
the validation set. The network uses dropout and a 1cycle learning rate. If the validation loss does not improve for 10
epochs, training stops and restores the best parameters.
Needs the extra `demo` (scikit-learn, matplotlib).
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import cnn

REQUIRED = 0.97  # accuracy on the held-out digits
BATCH = 32

BLUE, ORANGE, ORANGE_TEXT = "#0072b2", "#e08e00", "#9c6200"
RED, GREY = "#c8102e", "#6b6b6b"


def data():
    """Standardised images (n, 64) and labels (n,) for training and test, and the raw test images."""
    images, labels = load_digits(return_X_y=True)  # pixels from 0 to 16
    x, x_test, y, y_test = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), y, scaler.transform(x_test), y_test, x_test


def train(x, y, epochs):
    """A trained model, its history, and the training time in seconds."""
    x, x_val, y, y_val = train_test_split(x, y, test_size=0.1, stratify=y, random_state=0)
    steps = epochs * -(-len(x) // BATCH)
    model = cnn.Sequential(
        [
            cnn.Linear(64, 128),
            cnn.ReLU(),
            cnn.Dropout(0.3),
            cnn.Linear(128, 10),
            cnn.CrossEntropyLoss(),
        ],
        optimizer=cnn.AdamW(schedule=cnn.OneCycleLR(max_lr=0.002, total_steps=steps)),
        seed=0,
    )
    start = time.perf_counter()
    history = model.fit(
        x,
        y,
        epochs=epochs,
        batch_size=BATCH,
        validation_data=(x_val, y_val),
        early_stopping=cnn.EarlyStopping(monitor="val_loss", patience=10),
        progress=True,
    )
    return model, history, time.perf_counter() - start


def check(path):
    """The accuracy of a checkpoint on the held-out digits."""
    _, _, x_test, y_test, _ = data()
    return cnn.load(path).evaluate(x_test, y_test)["accuracy"]


def plot(history, images, labels, predicted, seconds, path):
    """Left: loss, accuracy and learning rate. Right: held-out digits, misclassified ones first."""
    figure = Figure(figsize=(11.5, 6.2), dpi=120, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.suptitle(
        f"{np.mean(predicted == labels):.1%} of {len(labels)} unseen handwritten digits classified correctly "
        f"after {seconds:.2f} s of training",
        fontsize=15,
    )
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.15])
    plot_curves(left, history)
    plot_digits(right, images, labels, predicted)
    figure.savefig(path)


def plot_curves(figure, history):
    epochs = np.arange(1, len(history["loss"]) + 1)
    best = epochs.tolist().index(history.best_epoch)
    middle = (1 + epochs[-1]) / 2
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=[1, 1, 0.42])
    for axes, name, number in (loss, "loss", "{:.3f}"), (accuracy, "accuracy", "{:.1%}"):
        seen, held_out = history[name], history[f"val_{name}"]
        axes.plot(epochs, seen, color=BLUE, linewidth=2, label="training")
        axes.plot(epochs, held_out, color=ORANGE, linewidth=2, label="validation")
        axes.plot(epochs[best], held_out[best], "o", color=ORANGE, mec="white", markersize=9)
        axes.axvline(epochs[best], color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"best epoch, {epochs[best]}: {number.format(held_out[best])}",
            (epochs[best], held_out[best]),
            xytext=(-10 if epochs[best] > middle else 10, 18 if axes is loss else -28),
            textcoords="offset points",
            horizontalalignment="right" if epochs[best] > middle else "left",
            color=ORANGE_TEXT,
        )
    rate.plot(epochs, history["lr"], color=GREY, linewidth=2)
    rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e8e8e8")
        axes.set_axisbelow(True)
    loss.set_ylabel("cross-entropy")
    loss.set_yscale("log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_locator(NullLocator())
    loss.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, ncols=2)  # above the lines
    accuracy.set_ylabel("accuracy")
    accuracy.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], min_n_ticks=3))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    rate.set_ylabel("rate")
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10]))
    figure.align_ylabels()


def plot_digits(figure, images, labels, predicted, rows=6, columns=8):
    wrong = predicted != labels
    order = np.argsort(~wrong, kind="stable")[: rows * columns]
    title = f"Predictions: the {wrong.sum()} errors first, with the true digit in brackets"
    figure.suptitle(title, fontsize=12)
    for axes, i in zip(figure.subplots(rows, columns).flat, order, strict=False):
        axes.imshow(images[i].reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        axes.set(xticks=[], yticks=[])
        if wrong[i]:
            axes.set_title(f"{predicted[i]} (is {labels[i]})", color=RED, weight="bold", size=10.5)
            axes.spines[:].set(color=RED, linewidth=2.5)
        else:
            axes.set_title(f"{predicted[i]}", color=GREY, size=11)
            axes.spines[:].set(color="#cccccc")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where files go")
    parser.add_argument("--check", type=Path, metavar="FILE", help="only evaluate this checkpoint")
    options = parser.parse_args()
    if options.check:
        print(f"{check(options.check):.6f}")
        return

    x, y, x_test, y_test, images = data()
    model, history, seconds = train(x, y, options.epochs)
    accuracy = model.evaluate(x_test, y_test)["accuracy"]
    print(
        f"trained {len(history.epochs)} epochs on {len(x):,} digits in {seconds:.3f} s; best epoch {history.best_epoch}"
    )
    print(f"accuracy on {len(x_test)} held-out digits: {accuracy:.2%}")

    checkpoint, picture = options.out / "digits.safetensors", options.out / "digits.png"
    model.save(checkpoint)
    predicted = model.predict(x_test).argmax(axis=1)
    plot(history, images, y_test, predicted, seconds, picture)

    command = [sys.executable, __file__, "--check", str(checkpoint)]
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    print(f"accuracy of {checkpoint} in a new process: {float(again):.2%}")
    print(f"see {picture}")
    if again != f"{accuracy:.6f}":
        sys.exit("error: the accuracies of the checkpoint and the model differ")
    if accuracy < REQUIRED:
        sys.exit(f"error: the accuracy is below {REQUIRED:.0%}")


if __name__ == "__main__":
    main()
