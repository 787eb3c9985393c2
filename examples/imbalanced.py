"""Imbalanced classes: the effect of class_weight="balanced" if one class has 1 % of the rows.

    python examples/imbalanced.py        writes imbalanced.png

The same network is trained twice on three overlapping classes (94, 5 and 1 % of the rows). Without class weights it
misclassifies half of the rare rows. With class_weight="balanced" all classes have the same total weight: the network
finds most of the rare rows, but raises more false alarms. The precision-recall curves show a different point on a lower
curve (average precision 0.60 instead of 0.69): the few rare rows have such large weights that the network overfits
them. The unweighted network with a lower threshold for "rare" finds as many with fewer false alarms. Accuracy says
little here: a constant prediction of the common class has 94 %.
Needs the extra `demo` (scikit-learn, matplotlib).
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import make_classification
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import cnn

CLASSES, PARTS = ("common", "less so", "rare"), (0.94, 0.05, 0.01)
RARE = 2
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"


def data(rows):
    """Standardised rows (n, 12) and their classes (n,), for training and test."""
    x, y = make_classification(
        rows,
        n_features=12,
        n_informative=8,
        n_redundant=2,
        n_classes=3,
        n_clusters_per_class=2,
        weights=list(PARTS),
        class_sep=1.0,
        flip_y=0.0,
        random_state=3,
    )
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.5, stratify=y, random_state=0)
    scaler = StandardScaler().fit(x)
    return scaler.transform(x), y, scaler.transform(x_test), y_test


def train(x, y, class_weight, epochs):
    model = cnn.Sequential(
        [
            cnn.Linear(12, 32),
            cnn.ReLU(),
            cnn.Dropout(0.1),
            cnn.Linear(32, 3),
            cnn.CrossEntropyLoss(),
        ],
        optimizer=cnn.AdamW(lr=0.003),
        seed=0,
    )
    model.fit(x, y, epochs=epochs, batch_size=128, class_weight=class_weight, metrics=["f1"])
    return model


def plot_confusion(axes, counts, title, colour):
    """Rows are the true classes; the shade is the fraction of the row."""
    parts = counts / counts.sum(axis=1, keepdims=True)
    axes.imshow(parts, cmap="Blues" if colour == BLUE else "Oranges", vmin=0, vmax=1.15)
    for (i, j), part in np.ndenumerate(parts):
        text = f"{part:.0%}\n{counts[i, j]:,}"
        axes.text(j, i, text, ha="center", va="center", color="white" if part > 0.62 else "#222222", size=11)
    axes.set_xticks(range(3), CLASSES)
    axes.set_yticks(range(3), CLASSES, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=12.5, loc="left", color=colour)
    axes.set_xlabel("predicted class")


def plot(results, y_test, path):
    figure = Figure(figsize=(12, 4.6), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    first, second, curves = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    positive = y_test == RARE
    for axes, (name, score, average, counts, colour) in zip((first, second), results, strict=True):
        plot_confusion(axes, counts, name, colour)
        precision, recall, _ = precision_recall_curve(positive, score)
        curves.plot(recall, precision, color=colour, linewidth=1.8, label=f"{name}, average precision {average:.2f}")
        said, right = counts[:, RARE].sum(), counts[RARE, RARE]
        point = right / counts[RARE].sum(), right / max(1, said)
        curves.plot(*point, "o", color=colour, markersize=11, mec="white", mew=1.5, zorder=3)
    first.set_ylabel("true class")
    curves.set_title("The rare class (dots: matrices on the left)", fontsize=12.5, loc="left")
    curves.set(xlabel="recall: rare rows that are found", ylabel="precision: alarms that are correct")
    curves.set(xlim=(0, 1.01), ylim=(0, 1.25), yticks=np.linspace(0, 1, 6))
    curves.legend(frameon=False, loc="upper left", fontsize=10)
    curves.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where imbalanced.png goes")
    options = parser.parse_args()

    x, y, x_test, y_test = data(options.rows)
    print(f"{len(x):,} training rows: " + ", ".join(f"{n:,} {c}" for n, c in zip(np.bincount(y), CLASSES, strict=True)))
    results = []
    for name, class_weight, colour in (("unweighted", None, ORANGE), ("balanced", "balanced", BLUE)):
        model = train(x, y, class_weight, options.epochs)
        scores = model.evaluate(x_test, y_test, metrics=["f1"])
        logits = model.predict(x_test)
        counts = confusion_matrix(y_test, logits.argmax(axis=1))
        score = logits[:, RARE] - np.delete(logits, RARE, axis=1).max(axis=1)  # above 0: predicted as "rare"
        average = average_precision_score(y_test == RARE, score)
        found = counts.diagonal() / counts.sum(axis=1)
        print(
            f"{name:<12} accuracy {scores['accuracy']:.3f}, F1 {scores['f1']:.3f}, recall: "
            + ", ".join(f"{c} {part:.0%}" for c, part in zip(CLASSES, found, strict=True))
            + f"; average precision of the rare class {average:.2f}"
        )
        results.append((name, score, average, counts, colour))
    plot(results, y_test, options.out / "imbalanced.png")
    print(f"see {options.out / 'imbalanced.png'}")


if __name__ == "__main__":
    main()
