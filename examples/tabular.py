"""A table with text, categories and missing values: preprocessing, grid search and calibration in one pipeline.

    python examples/tabular.py        writes tabular.png

The data are synthetic customers of a telephone company; the target is whether a customer leaves within a year. Numbers
are missing, towns are text, plans are categories. A `ColumnTransformer` encodes them, and `GridSearchCV` chooses the
dropout and the activation of `cnn.sklearn.MLPClassifier`. With class_weight="balanced" the classifier finds the few
customers that leave, but its probabilities are far too high. `CalibratedClassifierCV` corrects them, as the reliability
diagram (left) shows. The ROC curve (right) hardly changes, and is close to that of the true probabilities, which is the
best possible. Needs the extras `demo` and `sklearn`, and pandas.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from cnn.sklearn import MLPClassifier

TOWNS = np.array(["Aachen", "Bern", "Cork", "Delft", "Evora", "Faro", "Gent", "Hull"])
PLANS = np.array(["prepaid", "monthly", "two years"])
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"


def customers(rows):
    """A table (n, 6), whether each customer leaves (n,), and the probability of it (n,)."""
    random = np.random.default_rng(1)
    age = random.uniform(18, 85, rows)
    income = np.exp(random.normal(10.3, 0.5, rows)) * (0.7 + np.sin((age - 18) / 67 * np.pi) * 0.6)
    months, calls = random.exponential(30, rows), random.poisson(1.5, rows)
    town, plan = random.integers(len(TOWNS), size=rows), random.choice(3, rows, p=[0.3, 0.5, 0.2])
    logit = (
        -3.6
        + 0.7 * calls * (plan != 2)  # calls are a sign of dissatisfaction; a long contract prevents leaving
        + 1.6 * np.exp(-months / 12)
        + 1.2 * np.cos((age - 30) / 9) * (plan == 1)
        + np.linspace(-0.8, 0.8, len(TOWNS))[town]
        - 0.6 * (income > 40_000)
    )
    p = 1 / (1 + np.exp(-logit))
    table = pd.DataFrame(
        {
            "age": age.round(),
            "income": np.where(random.random(rows) < 0.2, np.nan, income.round(-2)),
            "months": np.where(random.random(rows) < 0.05, np.nan, months.round()),
            "calls": calls,
            "town": TOWNS[town],
            "plan": pd.Categorical(PLANS[plan], PLANS),
        }
    )
    return table, random.random(rows) < p, p


def pipeline(epochs):
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    prepare = make_column_transformer(
        (numbers, make_column_selector(dtype_include="number")),
        (OneHotEncoder(handle_unknown="ignore"), make_column_selector(dtype_exclude="number")),
        sparse_threshold=0,
    )
    network = MLPClassifier((48, 24), class_weight="balanced", max_iter=epochs, random_state=0)
    return make_pipeline(prepare, network)


def plot(y, found, path):
    """found: (name, probabilities, colour)."""
    figure = Figure(figsize=(11, 4.8), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    reliability, roc = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
    for name, p, colour in found:
        style = {"color": colour, "linewidth": 1.2 if colour == GREY else 2}
        if colour != GREY:
            part, mean = calibration_curve(y, p, n_bins=12, strategy="quantile")
            reliability.plot(mean, part, "o-", markersize=6, label=name, **style)
        false, true, _ = roc_curve(y, p)
        roc.plot(
            false, true, label=f"{name}, area {roc_auc_score(y, p):.3f}", zorder=1 if colour == GREY else 2, **style
        )
    reliability.set(xlabel="probability of leaving, as predicted", ylabel="fraction that left")
    reliability.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    reliability.set_title("Calibration corrects the probabilities", fontsize=12.5, loc="left")
    roc.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    roc.set(xlim=(0, 1), ylim=(0, 1))
    roc.set_title("The ROC curve hardly changes", fontsize=12.5, loc="left")
    for axes in (reliability, roc):
        axes.legend(frameon=False, loc="lower right" if axes is roc else "upper left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--workers", type=int, default=None, help="processes of the search, which share the cores")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where tabular.png goes")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is intended

    table, y, truth = customers(options.rows)
    train, test, y_train, y_test, _, truth = train_test_split(
        table, y, truth, test_size=0.5, stratify=y, random_state=0
    )
    gaps = table.isna().any(axis=1).mean()
    print(f"{len(train):,} training customers, {gaps:.0%} with missing values; {y_train.mean():.1%} leave")
    grid = {"mlpclassifier__dropout": [0.0, 0.3], "mlpclassifier__activation": ["relu", ["gelu", "tanh"]]}
    search = GridSearchCV(pipeline(options.epochs), grid, scoring="roc_auc", cv=3, n_jobs=options.workers)
    search.fit(train, y_train)
    chosen = {name.rpartition("_")[2]: value for name, value in search.best_params_.items()}
    print(f"best of {len(search.cv_results_['params'])}: {chosen}, cross-validated ROC area {search.best_score_:.3f}")
    calibrated = CalibratedClassifierCV(search.best_estimator_, cv=3).fit(train, y_train)
    found = [("true probabilities", truth, GREY)]
    for name, model, colour in (("as trained", search, ORANGE), ("calibrated", calibrated, BLUE)):
        p = model.predict_proba(test)[:, 1]
        found.append((name, p, colour))
        print(
            f"{name:<11} Brier score {brier_score_loss(y_test, p):.4f}, area under ROC {roc_auc_score(y_test, p):.3f}, "
            f"predicted {p.mean():.1%} leave, {y_test.mean():.1%} did"
        )
    print(f"{'true':<11} Brier score {brier_score_loss(y_test, truth):.4f}")
    plot(y_test, found, options.out / "tabular.png")
    print(f"see {options.out / 'tabular.png'}")


if __name__ == "__main__":
    main()
