"""Metrics of `fit` and `evaluate`: accuracy, top_k, MAE, RMSE, R2, AUC, F1, and user-defined functions (`Metric`).

Each metric is updated block by block, so the targets and outputs need not fit into memory; only AUC and user-defined
functions store them all. Metrics ignore sample weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np

from .. import losses
from .._checks import flag
from .._dispatch import kernels


class Metric:
    """A user-defined metric for `fit` and `evaluate`.

    A plain function is enough if it takes the outputs of `predict`. Use this class if it takes probabilities or class
    labels, or to name it.

    Parameters
    ----------
    function : callable
        Takes (targets, outputs) and returns a number. Targets are class indices (rows,), or numbers (rows, targets).
        With one output, both have shape (rows, 1).
    proba : bool
        Whether it takes probabilities, as `Sequential.predict_proba` returns them.
    labels : bool
        Whether it takes the true and the predicted classes: two arrays of integers (rows,), or of booleans
        (rows, outputs) for multilabel targets.
    name : str, optional
        Name in the history. None: the function's name.

    Raises
    ------
    TypeError
        If function is not callable, or a class.
    ValueError
        If both proba and labels are True.

    Examples
    --------
    >>> from sklearn.metrics import balanced_accuracy_score, log_loss       # doctest: +SKIP
    >>> metrics = [cnn.Metric(balanced_accuracy_score, labels=True),        # doctest: +SKIP
    ...            cnn.Metric(log_loss, proba=True, name="log_loss")]
    """

    def __init__(
        self, function: Callable[..., Any], *, proba: bool = False, labels: bool = False, name: str | None = None
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise TypeError(f"function: expected a function of (targets, outputs), got {function!r}")
        if proba and labels:
            raise ValueError("labels: expected either proba or labels, got both")
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name: expected a str, got {name!r}")
        self.function = function
        self.proba: bool = flag("proba", proba)
        self.labels: bool = flag("labels", labels)
        self.name: str = str(name or getattr(function, "__name__", type(function).__name__))

    def __repr__(self) -> str:
        return f"Metric({self.name})"


class Known:
    """A metric of the library, computed block by block: `reset`, `update` for each block, `result`.

    Targets are class indices of shape (rows,), or numbers of the outputs' shape (rows, outputs).
    """

    name = ""
    more_is_better = True

    def check(self, targets: np.ndarray, width: int) -> None:
        """ValueError if the metric is not defined for such targets and `width` outputs."""

    def reset(self) -> None:
        """Start again, without blocks."""
        raise NotImplementedError

    def update(self, targets: np.ndarray, outputs: np.ndarray) -> None:
        """Add a block."""
        raise NotImplementedError

    def result(self) -> float:
        """The metric of all blocks since `reset`; NaN if it is not defined."""
        raise NotImplementedError


class _Classifying(Known):
    """Base of classification metrics: converts outputs to classes.

    With one output, a row has class 1 if its output is above the threshold (None: unknown, see `losses.YES_ABOVE`).
    With class indices, or targets that are probabilities, it has the class of the largest output. With `several`, each
    column is a separate class, which a row may have or not.
    """

    def __init__(self, threshold: float | None, several: bool) -> None:
        self.threshold: Any = threshold
        self.several = several

    def check(self, targets: Any, width: int) -> None:
        if width == 1 and self.threshold is None:
            raise ValueError(
                f"{self.name}: the loss does not define which outputs mean class 1: end the model with a Sigmoid, or "
                "pass a function of (targets, outputs)"
            )
        if width == 1 or self.several:
            wrong = targets[(targets != 0) & (targets != 1)]
            if wrong.size:
                raise ValueError(f"{self.name}: expected targets 0 and 1, got {wrong[0]:g}")

    def classes(self, targets: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The true and the predicted classes: integers (rows,), or with `several` booleans (rows, outputs)."""
        if outputs.shape[1] == 1:
            return targets.reshape(-1).astype(np.int64), (outputs[:, 0] > self.threshold).astype(np.int64)
        if targets.ndim == 1:
            return targets, outputs.argmax(axis=1)
        if self.several:
            return targets > 0.5, outputs > self.threshold
        return targets.argmax(axis=1), outputs.argmax(axis=1)


class Accuracy(_Classifying):
    """The fraction of rows classified correctly; for multilabel targets, the fraction of correct decisions."""

    name = "accuracy"

    def reset(self) -> None:
        self.right: int = 0
        self.count: int = 0

    def update(self, targets: Any, outputs: Any) -> None:
        true, predicted = self.classes(targets, outputs)
        self.right += int(np.count_nonzero(true == predicted))
        self.count += true.size

    def result(self) -> float:
        return self.right / self.count if self.count else np.nan


class F1(_Classifying):
    """2 tp / (2 tp + fp + fn) of class 1 if there are two classes; otherwise the mean over the classes.

    The mean is over the classes that occur among the targets or the predictions, as in scikit-learn's
    f1_score(average="macro"); for multilabel targets it is over the columns.
    """

    name = "f1"

    def reset(self) -> None:
        self.counts: Any = 0  # true positives, false positives, false negatives of each class

    def update(self, targets: Any, outputs: Any) -> None:
        true, predicted = self.classes(targets, outputs)
        self.columns: bool = true.ndim == 2
        if self.columns:
            counts = [np.count_nonzero(a, axis=0) for a in (true & predicted, ~true & predicted, true & ~predicted)]
        else:
            n = max(2, outputs.shape[1])
            hits, predictions, truths = (
                np.bincount(a, minlength=n) for a in (true[true == predicted], predicted, true)
            )
            counts = [hits, predictions - hits, truths - hits]
        self.counts = self.counts + np.array(counts)

    def result(self) -> float:
        if not np.any(self.counts):
            return np.nan
        tp, fp, fn = self.counts
        occurring = 2 * tp + fp + fn
        f1 = 2 * tp / np.maximum(occurring, 1)
        if self.columns:
            return float(f1.mean())
        return float(f1[1] if f1.size == 2 else f1[occurring > 0].mean())


class TopK(Known):
    """The fraction of rows whose class is among the k largest outputs; among equal outputs, the first ranks higher."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.name: str = f"top_{k}"

    def check(self, targets: Any, width: int) -> None:
        if targets.ndim != 1 and width == 1:
            raise ValueError(f"{self.name}: expected a classifier with several outputs, got one output")
        if self.k > width:
            raise ValueError(f"{self.name}: expected k of at most {width}, the number of outputs, got {self.k}")

    def reset(self) -> None:
        self.right: int = 0
        self.count: int = 0

    def update(self, targets: Any, outputs: Any) -> None:
        true = (targets if targets.ndim == 1 else targets.argmax(axis=1))[:, None]
        own = np.take_along_axis(outputs, true, axis=1)
        above = (outputs > own) | ((outputs == own) & (np.arange(outputs.shape[1]) < true))
        self.right += int(np.count_nonzero((np.count_nonzero(above, axis=1) < self.k) & ~np.isnan(own[:, 0])))
        self.count += len(outputs)

    def result(self) -> float:
        return self.right / self.count if self.count else np.nan


class _Regression(Known):
    """A regression metric; elements whose target is NaN are ignored."""

    def check(self, targets: Any, width: int) -> None:
        if targets.ndim != 2:
            raise ValueError(f"{self.name}: expected numeric targets, got class indices")
        if targets.shape[1] != width:
            raise ValueError(
                f"{self.name}: expected targets of the outputs' shape (rows, {width}), got {targets.shape}"
            )


class MAE(_Regression):
    """The mean of |outputs - targets| over all elements."""

    name = "mae"
    more_is_better = False

    def reset(self) -> None:
        self.total: float = 0.0
        self.count: int = 0

    def update(self, targets: Any, outputs: Any) -> None:
        known = _known(targets)
        self.total += float(np.abs(outputs - targets)[known].sum(dtype=np.float64))
        self.count += int(np.count_nonzero(known))

    def result(self) -> float:
        return self.total / self.count if self.count else np.nan


class RMSE(_Regression):
    """The root of the mean of (outputs - targets)**2 over all elements."""

    name = "rmse"
    more_is_better = False

    def reset(self) -> None:
        self.total: float = 0.0
        self.count: int = 0

    def update(self, targets: Any, outputs: Any) -> None:
        known = _known(targets)
        self.total += float(np.square(outputs - targets, dtype=np.float64)[known].sum())
        self.count += int(np.count_nonzero(known))

    def result(self) -> float:
        return (self.total / self.count) ** 0.5 if self.count else np.nan


class R2(_Regression):
    """1 - sum((outputs - targets)**2) / sum((targets - mean)**2), averaged over the columns: scikit-learn's r2_score.

    A column of equal targets has the score 1 if all outputs are exact, otherwise 0. The formula of Chan, Golub and
    LeVeque (1979) combines the sums of squares of blocks without cancellation.
    """

    name = "r2"

    def reset(self) -> None:
        self.count: Any = 0  # here and below, of each column
        self.mean: Any = 0.0
        self.spread: Any = 0.0
        self.residual: Any = 0.0

    def update(self, targets: Any, outputs: Any) -> None:
        t = targets.astype(np.float64)
        known = _known(t)
        n = np.count_nonzero(known, axis=0)
        if not len(t):
            return
        mean = t.sum(axis=0, where=known) / np.maximum(n, 1)
        away = mean - self.mean
        rows = np.maximum(self.count + n, 1)
        self.spread = self.spread + ((t - mean) ** 2).sum(axis=0, where=known) + away**2 * (self.count * n / rows)
        self.mean = self.mean + away * (n / rows)
        self.residual = self.residual + ((outputs - t) ** 2).sum(axis=0, where=known)
        self.count = self.count + n

    def result(self) -> float:
        if np.any(np.less(self.count, 2)):
            return np.nan
        constant = self.spread == 0
        scores = 1 - self.residual / np.where(constant, 1, self.spread)
        return float(np.where(constant, self.residual == 0, scores).mean())


def _known(targets: np.ndarray) -> np.ndarray:
    """A mask of the targets that are not NaN."""
    return ~np.isnan(targets)


class _Whole(Known):
    """A metric that needs all targets and outputs at once."""

    def reset(self) -> None:
        self.targets: list[np.ndarray] = []
        self.outputs: list[np.ndarray] = []

    def update(self, targets: Any, outputs: Any) -> None:
        self.targets.append(np.array(targets))
        self.outputs.append(np.array(outputs))

    def result(self) -> float:
        if not self.targets:
            return np.nan
        return self.of(np.concatenate(self.targets), np.concatenate(self.outputs))

    def of(self, targets: np.ndarray, outputs: np.ndarray) -> float:
        raise NotImplementedError


class AUC(_Whole):
    """Area under the ROC curve: the probability that a row of class 1 has a higher score than a row of class 0.

    It is computed from the ranks; equal scores share their mean rank (Mann and Whitney, 1947). The score is the output,
    or with two outputs the second minus the first. For multilabel targets it is the mean over the columns. For more
    classes it uses probabilities: "ovr" is the mean over the classes, each against the rest, and "ovo" the mean over
    the pairs of classes (Hand and Till, 2001); both equal scikit-learn's with average="macro". NaN if a class does not
    occur, or is the only one.
    """

    def __init__(self, name: str = "auc", probabilities: Any = None, several: bool = False) -> None:
        self.name = name
        self.pairs: bool = name == "auc_ovo"
        self.probabilities = probabilities  # function of outputs; None: they are probabilities, or there is one output
        self.several = several

    def check(self, targets: Any, width: int) -> None:
        if width > 2 and targets.ndim != 1 and not self.several:
            raise ValueError(
                f"{self.name}: expected class indices, one output, or a multilabel loss such as "
                f"BCEWithLogitsLoss, got {width} outputs and numeric targets"
            )
        if width <= 2 or self.several:
            if width == 2 and targets.ndim != 1 and not self.several:
                raise ValueError(
                    f"{self.name}: expected one output, or class indices, got 2 outputs and numeric targets"
                )
            wrong = targets[(targets != 0) & (targets != 1)]
            if wrong.size:
                raise ValueError(f"{self.name}: expected targets 0 and 1, got {wrong[0]:g}")

    def of(self, targets: Any, outputs: Any) -> float:
        n = outputs.shape[1]
        if targets.ndim == 2 and n > 1:
            return float(np.mean([_auc(targets[:, j] > 0.5, outputs[:, j]) for j in range(n)]))
        scores = outputs.astype(np.float64)
        if n <= 2:
            return _auc(targets.reshape(-1) > 0.5, scores[:, -1] - (scores[:, 0] if n == 2 else 0))
        if self.probabilities is not None:
            scores = self.probabilities(scores)
        if not self.pairs:
            return float(np.mean([_auc(targets == j, scores[:, j]) for j in range(n)]))
        areas = []
        for a, b in combinations(range(n), 2):
            rows = (targets == a) | (targets == b)
            t, pair = targets[rows], scores[rows]
            areas.append((_auc(t == a, pair[:, a]) + _auc(t == b, pair[:, b])) / 2)
        return float(np.mean(areas))


def _auc(positive: np.ndarray, score: np.ndarray) -> float:
    """The AUC of a score; NaN unless there are positive and negative rows."""
    n, p = len(score), np.count_nonzero(positive)
    if p in (0, n) or np.isnan(score).any():
        return np.nan
    _, which, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[which.reshape(-1)]
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * (n - p)))


class Own(_Whole):
    """A user-defined metric. `classify` converts targets and outputs to classes, if the metric takes classes."""

    def __init__(self, metric: Metric, probabilities: Any, classify: _Classifying | None) -> None:
        self.function: Any = metric.function
        self.name: str = metric.name
        self.probabilities: Any = probabilities if metric.proba else None
        self.classify: Any = classify if metric.labels else None

    def check(self, targets: Any, width: int) -> None:
        if self.classify is not None:
            self.classify.name = self.name
            self.classify.check(targets, width)

    def of(self, targets: Any, outputs: Any) -> float:
        if self.classify is not None:
            targets, outputs = self.classify.classes(targets, outputs)
        elif self.probabilities is not None:
            outputs = self.probabilities(outputs)
        try:
            value = self.function(targets, outputs)
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(
                    f"metric {self.name}: it was called with targets {targets.shape} and outputs {outputs.shape}; "
                    f"cnn.Metric({self.name}, labels=True) passes classes, proba=True probabilities"
                )
            raise
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TypeError(f"metric {self.name}: expected it to return a number, got {value!r}") from None


class Metrics:
    """The metrics of one call of `fit` or `evaluate`.

    Parameters
    ----------
    wanted : str, callable, Metric, sequence of them, or dict
        Names, with "top_3" and the like for top_k, or functions of (targets, outputs) that return a number. A dict
        sets their names in the history.
    model : Sequential
    free : tuple of str
        Names that the model reports anyway; they are omitted here.

    Raises
    ------
    ValueError
        If a name is unknown, or is used twice.
    TypeError
        If an entry is neither a name nor a function.
    """

    def __init__(self, wanted: Any, model: Any, free: tuple[str, ...] = ()) -> None:
        if isinstance(wanted, (str, Metric)) or callable(wanted):
            wanted = (wanted,)
        given: list[Any] = [None]
        if isinstance(wanted, Mapping):
            given, wanted = list(wanted), wanted.values()
        try:
            wanted = list(wanted)
        except TypeError:
            raise TypeError(f"metrics: expected names and functions, got {wanted!r}") from None
        self.ignored: Any = getattr(model.loss, "ignore_index", None)
        self.per_target: Any = getattr(model.loss, "outputs_per_target", 1)
        self.of_values = isinstance(model.loss, losses.SobolevLoss)
        chosen = [_metric(one, model) for one in wanted]
        if given != [None]:
            for name, metric in zip(given, chosen, strict=True):
                if not isinstance(name, str):
                    raise TypeError(f"metrics: expected a dict of names, got the key {name!r}")
                metric.name = name
        names = [metric.name for metric in chosen]
        for name in names:
            if names.count(name) > 1 or name in ("loss", "lr", "epoch") or name.startswith("val_"):
                raise ValueError(f"metrics: the name {name!r} is reserved or used twice: pass a dict with other names")
        self.list: Any = [metric for metric in chosen if metric.name not in free]

    def __bool__(self) -> bool:
        return bool(self.list)

    @property
    def names(self) -> list[str]:
        return [metric.name for metric in self.list]

    def check(self, targets: np.ndarray, width: int) -> None:
        """ValueError if a metric is not defined for such targets and `width` outputs."""
        targets, outputs = self.paired(targets, np.empty((0, width)))
        for metric in self.list:
            metric.check(targets, outputs.shape[1])

    def paired(self, targets: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Targets, as a column if there is one output, and the outputs to compare with them. GaussianNLLLoss: only the
        means of the outputs; SobolevLoss: only the values of the targets."""
        if self.of_values:
            targets = targets[:, : outputs.shape[1]]
        if outputs.shape[1] == 1 and targets.ndim == 1:
            targets = targets[:, None]
        if self.per_target > 1:
            outputs = outputs[:, : targets.shape[1]]
        return targets, outputs

    def reset(self) -> None:
        for metric in self.list:
            metric.reset()

    def update(self, targets: np.ndarray, outputs: np.ndarray) -> None:
        """Add a block, without the rows whose target is the loss's `ignore_index`."""
        targets, outputs = self.paired(targets, outputs)
        if self.ignored is not None and targets.ndim == 1:
            kept = targets != self.ignored
            if not kept.all():
                targets, outputs = targets[kept], outputs[kept]
        for metric in self.list:
            metric.update(targets, outputs)

    def results(self) -> dict[str, float]:
        return {metric.name: float(metric.result()) for metric in self.list}


KNOWN: dict[str, type[Known]] = {
    "accuracy": Accuracy,
    "auc": AUC,
    "auc_ovo": AUC,
    "auc_ovr": AUC,
    "f1": F1,
    "mae": MAE,
    "r2": R2,
    "rmse": RMSE,
    "top_k": TopK,
}


def more_is_better(name: str) -> bool:
    """Whether larger values of a number of the history are better.

    ValueError if the name does not tell.
    """
    base = re.sub(r"^top_\d+$", "top_k", name.removeprefix("val_"))
    if base == "loss":
        return False
    if base not in KNOWN:
        raise ValueError(f"mode: 'auto' cannot tell whether a higher {name} is better: pass mode='min' or mode='max'")
    return KNOWN[base].more_is_better


def _metric(one, model) -> Known:
    if callable(one) and not isinstance(one, type):
        one = Metric(one)
    several = model.loss is not None and model.loss.targets == "probabilities"
    outputs = model.outputs or (model.loss and model.loss.outputs)
    classify = _Classifying(None if outputs is None else losses.YES_ABOVE[outputs], several)
    if isinstance(one, Metric):
        return Own(one, _probabilities(model) if one.proba else None, classify)
    if not isinstance(one, str):
        raise TypeError(f"metrics: expected a name or a function of (targets, outputs), got {one!r}")
    kind = KNOWN.get(one, Known)
    if issubclass(kind, _Regression):
        return kind()
    if kind is AUC:
        logits = outputs in ("logits", "log_probabilities") and not several
        return AUC(one, _probabilities(model) if logits else None, several)
    if top := re.fullmatch(r"top_([1-9]\d*)", one):
        return TopK(int(top[1]))
    if not issubclass(kind, _Classifying):
        from difflib import get_close_matches  # only for errors

        names = [name for name in KNOWN if name.startswith(one)] or get_close_matches(one, KNOWN, 1)
        near = f" (did you mean {names[0]!r}?)" if names else ""
        raise ValueError(
            f"metrics: unknown name {one!r}{near}: expected one of {', '.join(KNOWN)} (top_3, ...), or a function"
        )
    return kind(classify.threshold, several)


def _probabilities(model):
    """The function that turns outputs into probabilities; ValueError if there is none."""
    kind = losses.probabilities_of(model)
    if kind == "probabilities":
        return None
    return lambda outputs: kernels(outputs.dtype).probabilities(np.array(outputs, order="C"), kind)
