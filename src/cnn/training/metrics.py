"""Metrics of `fit` and `evaluate`: accuracy, top_k, MAE, RMSE, R2, AUC, F1, and functions of the user's own.

Each metric is fed with block after block of targets and outputs, so that none has to be in memory as a whole; only AUC
and the user's functions keep what they are given. All of them count rows alike, whatever their weights.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .. import losses

KNOWN = ("accuracy", "auc", "f1", "mae", "r2", "rmse", "top_k")


class Metric:
    """A number made of targets and outputs, block by block: `reset`, `update` for each block, `result`.

    Targets are class indices of shape (rows,), or numbers of the outputs' shape (rows, outputs).
    """

    name = ""

    def check(self, targets: np.ndarray, width: int) -> None:
        """ValueError if the metric is not defined for such targets and `width` outputs."""

    def reset(self) -> None:
        """Forget all blocks."""
        raise NotImplementedError

    def update(self, targets: np.ndarray, outputs: np.ndarray) -> None:
        """Count a block."""
        raise NotImplementedError

    def result(self) -> float:
        """Of all blocks since `reset`; NaN where it is not defined."""
        raise NotImplementedError


class _Classifying(Metric):
    """What metrics of classifiers share: which class, or which classes, outputs stand for.

    One output: class 1 where it is above the threshold (None: unknown, see `losses.YES_ABOVE`). Class indices, or
    targets that are probabilities: the class of the largest output. With `several` each column is a class of its own,
    that a row may belong to or not.
    """

    def __init__(self, threshold: float | None, several: bool):
        self.threshold: Any = threshold
        self.several = several

    def check(self, targets, width):
        if width == 1 and self.threshold is None:
            raise ValueError(
                f"{self.name}: the loss does not say which outputs stand for class 1: end the model with a Sigmoid, or "
                "pass a function of (targets, outputs)"
            )
        if width == 1 or self.several:
            wrong = targets[(targets != 0) & (targets != 1)]
            if wrong.size:
                raise ValueError(f"{self.name}: expected targets 0 and 1, got {wrong[0]:g}")

    def classes(self, targets: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The true and the predicted classes: integers (rows,), or with `several` truth values (rows, outputs)."""
        if outputs.shape[1] == 1:
            return targets.reshape(-1).astype(np.int64), (outputs[:, 0] > self.threshold).astype(np.int64)
        if targets.ndim == 1:
            return targets, outputs.argmax(axis=1)
        if self.several:
            return targets > 0.5, outputs > self.threshold
        return targets.argmax(axis=1), outputs.argmax(axis=1)


class Accuracy(_Classifying):
    """The part of rows classified right; with several classes a row the part of decisions that are right."""

    name = "accuracy"

    def reset(self):
        self.right = self.count = 0

    def update(self, targets, outputs):
        true, predicted = self.classes(targets, outputs)
        self.right += int(np.count_nonzero(true == predicted))
        self.count += true.size

    def result(self):
        return self.right / self.count if self.count else np.nan


class F1(_Classifying):
    """2 tp / (2 tp + fp + fn) of class 1, where there are two classes; else the mean over the classes.

    The mean is over the classes that occur among the targets or the predictions, as in scikit-learn's
    f1_score(average="macro"); with several classes a row it is over the columns.
    """

    name = "f1"

    def reset(self):
        self.counts: Any = 0  # true positives, false positives, false negatives of each class

    def update(self, targets, outputs):
        true, predicted = self.classes(targets, outputs)
        self.columns = true.ndim == 2
        if self.columns:
            counts = [np.count_nonzero(a, axis=0) for a in (true & predicted, ~true & predicted, true & ~predicted)]
        else:
            n = max(2, outputs.shape[1])
            hits, predictions, truths = (
                np.bincount(a, minlength=n) for a in (true[true == predicted], predicted, true)
            )
            counts = [hits, predictions - hits, truths - hits]
        self.counts = self.counts + np.array(counts)

    def result(self):
        if not np.any(self.counts):
            return np.nan
        tp, fp, fn = self.counts
        occurring = 2 * tp + fp + fn
        f1 = 2 * tp / np.maximum(occurring, 1)
        if self.columns:
            return float(f1.mean())
        return float(f1[1] if f1.size == 2 else f1[occurring > 0].mean())


class TopK(Metric):
    """The part of rows whose class is among the k largest outputs; of equal outputs the first counts as larger."""

    def __init__(self, k: int):
        self.k = k
        self.name = f"top_{k}"

    def check(self, targets, width):
        if targets.ndim != 1 and width == 1:
            raise ValueError(f"{self.name}: expected a classifier with several outputs, got one output")
        if self.k > width:
            raise ValueError(f"{self.name}: expected k of at most {width}, the number of outputs, got {self.k}")

    def reset(self):
        self.right = self.count = 0

    def update(self, targets, outputs):
        true = (targets if targets.ndim == 1 else targets.argmax(axis=1))[:, None]
        own = np.take_along_axis(outputs, true, axis=1)
        above = (outputs > own) | ((outputs == own) & (np.arange(outputs.shape[1]) < true))
        self.right += int(np.count_nonzero((np.count_nonzero(above, axis=1) < self.k) & ~np.isnan(own[:, 0])))
        self.count += len(outputs)

    def result(self):
        return self.right / self.count if self.count else np.nan


class _Regression(Metric):
    def check(self, targets, width):
        if targets.ndim != 2:
            raise ValueError(f"{self.name}: expected targets that are numbers, got class indices")


class MAE(_Regression):
    """The mean of |outputs - targets| over all elements."""

    name = "mae"

    def reset(self):
        self.total, self.count = 0.0, 0

    def update(self, targets, outputs):
        self.total += float(np.abs(outputs - targets).sum(dtype=np.float64))
        self.count += outputs.size

    def result(self):
        return self.total / self.count if self.count else np.nan


class RMSE(_Regression):
    """The root of the mean of (outputs - targets)**2 over all elements."""

    name = "rmse"

    def reset(self):
        self.total, self.count = 0.0, 0

    def update(self, targets, outputs):
        self.total += float(np.square(outputs - targets, dtype=np.float64).sum())
        self.count += outputs.size

    def result(self):
        return (self.total / self.count) ** 0.5 if self.count else np.nan


class R2(_Regression):
    """1 - sum((outputs - targets)**2) / sum((targets - mean)**2), the mean over the columns: scikit-learn's r2_score.

    A column of equal targets counts 1 if the outputs are right, else 0. The sums of squares of blocks are joined by
    Chan, Golub and LeVeque's formula (1979), which does not cancel.
    """

    name = "r2"

    def reset(self):
        self.count = 0
        self.mean: Any = 0.0
        self.spread: Any = 0.0
        self.residual: Any = 0.0

    def update(self, targets, outputs):
        t = targets.astype(np.float64)
        n = len(t)
        if not n:
            return
        mean = t.mean(axis=0)
        away = mean - self.mean
        self.spread = self.spread + ((t - mean) ** 2).sum(axis=0) + away**2 * (self.count * n / (self.count + n))
        self.mean = self.mean + away * (n / (self.count + n))
        self.residual = self.residual + ((outputs - t) ** 2).sum(axis=0)
        self.count += n

    def result(self):
        if self.count < 2:
            return np.nan
        constant = self.spread == 0
        scores = 1 - self.residual / np.where(constant, 1, self.spread)
        return float(np.where(constant, self.residual == 0, scores).mean())


class _Whole(Metric):
    """A metric that needs all targets and outputs at once."""

    def reset(self):
        self.targets: list[np.ndarray] = []
        self.outputs: list[np.ndarray] = []

    def update(self, targets, outputs):
        self.targets.append(np.array(targets))
        self.outputs.append(np.array(outputs))

    def result(self):
        if not self.targets:
            return np.nan
        return self.of(np.concatenate(self.targets), np.concatenate(self.outputs))

    def of(self, targets: np.ndarray, outputs: np.ndarray) -> float:
        raise NotImplementedError


class AUC(_Whole):
    """Area under the receiver operating characteristic: how often a row of class 1 is above one of class 0.

    By the ranks, equal outputs having the mean of theirs (Mann and Whitney, 1947). NaN if there is one class only.
    The score is the output, or where there are two, the second less the first.
    """

    name = "auc"

    def check(self, targets, width):
        if width > 2 or (width == 2 and targets.ndim != 1):
            raise ValueError(f"auc: expected one output, or two and class indices, got {width} outputs")
        wrong = targets[(targets != 0) & (targets != 1)]
        if wrong.size:
            raise ValueError(f"auc: expected targets 0 and 1, got {wrong[0]:g}")

    def of(self, targets, outputs):
        score = outputs[:, -1].astype(np.float64)
        if outputs.shape[1] == 2:
            score -= outputs[:, 0]
        positive = targets.reshape(-1) > 0.5
        n, p = len(score), np.count_nonzero(positive)
        if p in (0, n) or np.isnan(score).any():
            return np.nan
        _, which, counts = np.unique(score, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[which.reshape(-1)]
        return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))


class Own(_Whole):
    """A function of the user's own, of (targets, outputs)."""

    def __init__(self, function):
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def of(self, targets, outputs):
        value = self.function(targets, outputs)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TypeError(f"metric {self.name}: expected a number from it, got {value!r}") from None


class Metrics:
    """The metrics that a call of `fit` or `evaluate` asks for.

    Parameters
    ----------
    wanted : str, callable, or sequence of them
        Names, with "top_3" and the like for top_k, or functions of (targets, outputs) that return a number.
    model : Sequential
    free : tuple of str
        Names that the model reports anyway; they are left out here.

    Raises
    ------
    ValueError
        For an unknown name, or one that comes twice.
    TypeError
        For what is neither a name nor a function.
    """

    def __init__(self, wanted, model, free: tuple[str, ...] = ()):
        if isinstance(wanted, str) or callable(wanted):
            wanted = (wanted,)
        try:
            wanted = list(wanted)
        except TypeError:
            raise TypeError(f"metrics: expected names and functions, got {wanted!r}") from None
        self.ignored = getattr(model.loss, "ignore_index", None)
        chosen = [_metric(one, model) for one in wanted]
        names = [metric.name for metric in chosen]
        for name in names:
            if names.count(name) > 1 or name in ("loss", "lr", "epoch") or name.startswith("val_"):
                raise ValueError(f"metrics: the name {name!r} is taken")
        self.list = [metric for metric in chosen if metric.name not in free]

    def __bool__(self) -> bool:
        return bool(self.list)

    @property
    def names(self) -> list[str]:
        return [metric.name for metric in self.list]

    def check(self, targets: np.ndarray, width: int) -> None:
        """ValueError if a metric is not defined for such targets and `width` outputs."""
        if width == 1 and targets.ndim == 1:
            targets = targets[:, None]
        for metric in self.list:
            metric.check(targets, width)

    def reset(self) -> None:
        for metric in self.list:
            metric.reset()

    def update(self, targets: np.ndarray, outputs: np.ndarray) -> None:
        """Count a block; rows whose target is the loss's `ignore_index` are left out."""
        if outputs.shape[1] == 1 and targets.ndim == 1:
            targets = targets[:, None]
        if self.ignored is not None and targets.ndim == 1:
            kept = targets != self.ignored
            if not kept.all():
                targets, outputs = targets[kept], outputs[kept]
        for metric in self.list:
            metric.update(targets, outputs)

    def results(self) -> dict[str, float]:
        return {metric.name: float(metric.result()) for metric in self.list}


def _metric(one, model) -> Metric:
    if not isinstance(one, str):
        if not callable(one) or isinstance(one, type):
            raise TypeError(f"metrics: expected a name or a function of (targets, outputs), got {one!r}")
        return Own(one)
    simple = {"mae": MAE, "rmse": RMSE, "r2": R2, "auc": AUC}
    if one in simple:
        return simple[one]()
    if top := re.fullmatch(r"top_([1-9]\d*)", one):
        return TopK(int(top[1]))
    if one not in ("accuracy", "f1"):
        raise ValueError(
            f"metrics: unknown name {one!r}: expected one of {', '.join(KNOWN)} (top_3, ...), or a function"
        )
    outputs = model.outputs or model.loss.outputs
    threshold = None if outputs is None else losses.YES_ABOVE[outputs]
    return (Accuracy if one == "accuracy" else F1)(threshold, several=model.loss.targets == "probabilities")
