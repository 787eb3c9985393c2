"""`MLPClassifier` and `MLPRegressor` for streams, in river's interface: they learn one dictionary at a time.

A row is packed into an array in one call where its features are those of the row before; what comes and goes is looked
up by name. The network has columns in reserve: it is made anew, with its parameters and the optimiser's state, only
when they are used up or a class appears.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from struct import error as StructError
from struct import pack, pack_into
from typing import Any

import numpy as np
from river import base

from . import layers, losses, optim
from ._configurable import Public
from ._dispatch import kernels
from .models import Sequential

__all__ = ["MLPClassifier", "MLPRegressor"]
__dir__ = __all__.copy

pack_row, standardized = kernels("float64").pack_row, kernels("float64").standardized
RESERVE = 8  # columns of the first layer at least
PENDING = 256  # rows at most that the running statistics wait for
STALE = 16  # they are brought up to date when more than a 16th of the rows is missing
INF, NAN = float("inf"), float("nan")


class _Scale:
    """Running means and deviations of columns (Welford; Chan et al. for several rows), NaN not counted.

    Attributes
    ----------
    mean, factor : ndarray of shape (columns,)
        What standardises: (x - mean) * factor. The factor of a column that is constant so far is 0.
    """

    def __init__(self, columns: int) -> None:
        self.count, self.mean, self.squares, self.factor = np.zeros((4, columns))

    def widen(self, columns: int) -> None:
        for name, array in vars(self).items():
            setattr(self, name, np.concatenate([array, np.zeros(columns - len(array))]))

    def update(self, rows: np.ndarray) -> None:
        known = ~np.isnan(rows)
        n = known.sum(axis=0)
        mean = np.where(known, rows, 0.0).sum(axis=0) / np.maximum(n, 1)
        squares = (np.where(known, rows - mean, 0.0) ** 2).sum(axis=0)
        total, delta = self.count + n, mean - self.mean
        part = n / np.maximum(total, 1)
        self.squares += squares + delta**2 * self.count * part
        self.mean += delta * part
        self.count = total
        variance = self.squares / np.maximum(total, 1)
        constant = variance <= 1e-20 * self.mean**2  # roundings
        self.factor = np.where(constant, 0.0, 1.0 / np.sqrt(np.where(constant, 1.0, variance)))


class _Online(Public):
    """What the two have in common: features, standardisation, the network and its growth."""

    _outputs = 1
    _losses: tuple[type, ...]

    def __init__(
        self,
        hidden_layer_sizes: Any = (32,),
        activation: Any = "relu",
        optimizer: Any = None,
        loss: Any = None,
        standardize: Any = True,
        l2: float = 0.0,
        seed: Any = None,
    ) -> None:
        self.hidden_layer_sizes: Any = hidden_layer_sizes
        self.activation: str = activation
        self.optimizer: Any = optimizer
        self.loss: Any = loss
        self.standardize: bool = standardize
        self.l2: float = l2
        self.seed: Any = seed
        self._check()
        self._model: Any = None
        self._names: tuple[Any, ...] = ()
        self._columns: dict[Any, int] = {}
        self._format = "0d"
        self._scale = _Scale(RESERVE)
        self._rows = np.zeros((PENDING, RESERVE))  # that the statistics wait for
        self._pending = self._seen = 0
        self._random = np.random.default_rng(seed)

    def _check(self: Any) -> None:
        sizes = self.hidden_layer_sizes
        sizes = tuple(sizes) if isinstance(sizes, Iterable) else (sizes,)
        if not all(isinstance(n, (int, np.integer)) and n > 0 for n in sizes):
            raise ValueError(f"hidden_layer_sizes: expected positive integers, got {self.hidden_layer_sizes!r}")
        layers.activations.made_of(self.activation, len(sizes))
        if not (self.optimizer is None or isinstance(self.optimizer, optim.Optimizer)):
            raise TypeError(f"optimizer: expected one such as cnn.Adam(lr=0.01), got {self.optimizer!r}")
        schedule = getattr(self.optimizer, "schedule", None)
        if schedule is not None and schedule.interval != "step":
            raise ValueError(
                f"optimizer: expected a schedule that counts steps (interval='step'), got {schedule!r}: a "
                "stream has no epochs"
            )
        if not (self.loss is None or isinstance(self.loss, self._losses)):
            known = ", ".join(f"cnn.{kind.__name__}()" for kind in self._losses)
            raise ValueError(f"loss: expected one of {known}, got {self.loss!r}")

    # the network ------------------------------------------------------------------------------------------------------

    @property
    def model_(self: Any) -> Sequential | None:
        """The network, None before the first row. Its inputs are standardised features in the order of their
        appearance, then columns in reserve, which are 0."""
        return self._model

    def _made(self: Any, columns: int) -> Sequential:
        """A new network with this number of columns."""
        sizes = self.hidden_layer_sizes
        widths = [columns, *(sizes if isinstance(sizes, Iterable) else [sizes]), self._outputs]
        kinds = layers.activations.made_of(self.activation, len(widths) - 2)
        parts: list[Any] = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            parts += [layers.Linear(n_in, n_out, l2=self.l2), *kinds[i : i + 1]]
        parts.append(self._losses[0]() if self.loss is None else copy.deepcopy(self.loss))
        return Sequential(parts, None, "float64", self._draw())

    def _draw(self: Any) -> int:
        return int(self._random.integers(1 << 31))

    def _grow(self: Any) -> None:
        """Make the network anew, as wide as rows and classes are now: what there was keeps its parameters and the
        optimiser's state; columns in reserve are 0."""
        old, new = self._model, self._made(self._rows.shape[1])
        first = new.layers[0].weight
        if old is None:
            first[...] = 0.0
            new.optimizer = optim.Adam(lr=0.01) if self.optimizer is None else copy.deepcopy(self.optimizer)
        else:
            arrays, kept = new._core.named("weight", "bias"), old._core.named("weight", "bias")
            if first.shape[0] > old.layers[0].weight.shape[0]:
                first[...] = 0.0
            for name, array in kept.items():
                arrays[name][tuple(map(slice, array.shape))] = array
            optimizer, epochs = old.optimizer, old._core.state.epochs_seen
            state = old._core.program.state(optimizer.states)
            shapes = [(array.shape, arrays[name].shape) for name, array in kept.items()]
            for name, vector in state.items():
                if name != "counters":
                    state[name] = _widened(vector, shapes)
            new.optimizer = optimizer
            new._core.state.epochs_seen = epochs
            new._core.program.set_state(state, optimizer.states)
        self._model = new

    def _learn_names(self: Any, names) -> None:
        """Give new features a column each, with fresh weights: the same in whatever order they come."""
        new = [name for name in names if name not in self._columns]
        if not new and self._model is not None:
            return
        self._update()
        self._names += tuple(new)
        n = len(self._names)
        self._columns = {name: i for i, name in enumerate(self._names)}
        self._format = f"{n}d"
        if n > self._rows.shape[1]:
            columns = max(n, 2 * self._rows.shape[1])
            self._rows = np.zeros((PENDING, columns))
            self._scale.widen(columns)
        self._rows[...] = self._scale.count[n - len(new) :] = 0.0  # the rows' columns in reserve have been counted
        if self._model is None or self._rows.shape[1] > self._model.layers[0].weight.shape[0]:
            self._grow()
        if new:
            weight = self._model.layers[0].weight
            fresh = layers.Linear(n, weight.shape[1], seed=self._draw()).weight
            for name, row in zip(sorted(new, key=repr), fresh, strict=False):
                weight[self._columns[name]] = row

    # rows -------------------------------------------------------------------------------------------------------------

    def _update(self: Any) -> None:
        """Bring the statistics up to date."""
        if self._pending:
            self._scale.update(self._rows[: self._pending])
            self._seen += self._pending
            self._pending = 0

    def _row(self: Any, x: dict[Any, Any], learns: bool) -> np.ndarray:
        """A row as the network takes it, (1, columns); the statistics learn it as well, or a feature that is new."""
        k = self._pending
        row: Any = self._rows[k] if learns else np.zeros(self._rows.shape[1])
        if not pack_row(x, self._names, row):
            row = self._unusual_row(x, learns)
        if not self.standardize:
            return standardized(row)
        if learns:
            self._pending = k = self._pending + 1
            if k == PENDING or k * STALE > self._seen:
                self._update()
        return standardized(row, self._scale.mean, self._scale.factor)

    def _unusual_row(self: Any, x: dict, learns: bool) -> np.ndarray:
        """The same before it is standardised, where features are new, missing or in another order, or not floats."""
        if learns and not self._columns.keys() >= x.keys():
            _check_row(x)
            self._learn_names(x)
        row: Any = self._rows[self._pending] if learns else np.zeros(self._rows.shape[1])
        try:
            pack_into(self._format, row, 0, *[x.get(name, NAN) for name in self._names])
        except (StructError, TypeError):
            _check_row(x)
            raise
        if np.isinf(row).any():
            _check_row(x)
        return row

    def _matrix(self: Any, X, values: np.ndarray, learns: bool) -> np.ndarray:
        """The same of the rows of a DataFrame, with its values."""
        if learns:
            self._learn_names(X.columns)
        z = np.zeros((len(X), self._rows.shape[1]))
        z[:, : len(self._names)] = np.nan
        for column, name in zip(values.T, X.columns, strict=True):
            if name in self._columns:
                z[:, self._columns[name]] = column
        if self.standardize:
            if learns:
                self._update()
                self._scale.update(z)
                self._seen += len(z)
            z = (z - self._scale.mean) * self._scale.factor
        return np.nan_to_num(z, copy=False)

    def _step(self: Any, z: np.ndarray, t: np.ndarray) -> None:
        loss = self._model.train_step(z, t)
        if not loss < INF:
            raise _diverged(loss)


class MLPClassifier(_Online, base.MiniBatchClassifier):
    """A network that classifies the rows of a stream.

    Features may appear, vanish and come back, and classes may appear, at any time. A missing feature, or NaN, is
    replaced by the feature's mean (without `standardize`: by 0). A new feature gets fresh initial weights, a new
    class an output; the parameters and the optimiser's state of the others stay as they are.

    Parameters
    ----------
    hidden_layer_sizes : int or tuple of int, default (32,)
    activation : str, Activation or tuple of them, default "relu"
        Of all hidden layers, or one for each.
    optimizer : Optimizer, optional
        Any of `cnn`'s; a copy is used. ``Adam(lr=0.01)`` by default.
    loss : CrossEntropyLoss, optional
        With options of its own.
    standardize : bool, default True
        Standardise features by their running means and deviations. These may lag by a 16th of the rows, at most by 256
        rows.
    l2 : float, default 0.0
        ``l2 * sum(W ** 2)`` of each layer is part of the loss.
    seed : int, optional
        Of the initial weights.

    Examples
    --------
    >>> from cnn.river import MLPClassifier
    >>> model = MLPClassifier(seed=0)
    >>> for i in range(200):
    ...     model.learn_one({"a": i % 7, "b": i % 2}, "odd" if i % 2 else "even")
    >>> model.predict_one({"a": 3, "b": 1})
    'odd'
    """

    _outputs = 0
    _losses = (losses.CrossEntropyLoss,)

    def __init__(
        self,
        hidden_layer_sizes: int | tuple[int, ...] = (32,),
        activation: Any = "relu",
        optimizer: Any = None,
        loss: Any = None,
        standardize: bool = True,
        l2: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(hidden_layer_sizes, activation, optimizer, loss, standardize, l2, seed)
        self._classes: dict[Any, int] = {}
        self._t = np.zeros(1, np.int64)

    @property
    def _multiclass(self):
        return True

    def _unit_test_skips(self):
        return {"check_learn_many_matches_learn_one"}  # a batch is one step, as in river's linear models

    def _learn_classes(self, labels) -> None:
        known = len(self._classes)
        for label in dict.fromkeys(labels):  # one that is not hashable leaves no other behind
            self._classes.setdefault(label, len(self._classes))
        if len(self._classes) > known:
            self._outputs = len(self._classes)
            if self._model is not None:
                self._grow()

    def learn_one(self, x: dict[Any, Any], y: Any) -> None:
        """Learn one row: a step of the optimiser.

        Parameters
        ----------
        x : dict
            Numbers by the features' names; NaN or no entry where one is missing.
        y : hashable
            The class.

        Raises
        ------
        TypeError, ValueError
            If a value is not a number, or infinite.
        RuntimeError
            If training diverges.
        """
        if y not in self._classes:
            _check_row(x)
            self._learn_classes([y])
        if self._model is None:
            self._learn_names(x)
        z = self._row(x, True)
        self._t[0] = self._classes[y]
        loss = self._model.train_step(z, self._t)
        if not loss < INF:
            raise _diverged(loss)

    def predict_proba_one(self, x: dict[Any, Any], **kwargs: Any) -> dict[Any, float]:
        """Probabilities of the classes seen so far.

        Parameters
        ----------
        x : dict
        **kwargs
            Of river's interface: not used.

        Returns
        -------
        dict
            By the classes; empty before the first row.
        """
        if self._model is None:
            return {}
        return dict(zip(self._classes, self._model.predict_proba(self._row(x, False))[0].tolist(), strict=True))

    def predict_one(self, x: dict[Any, Any], **kwargs: Any) -> Any:
        """The most likely class.

        Parameters
        ----------
        x : dict
        **kwargs
            Of river's interface: not used.

        Returns
        -------
        hashable
            None before the first row.
        """
        if self._model is None:
            return None
        return list(self._classes)[self._model.predict(self._row(x, False)).argmax()]

    def learn_many(self, X: Any, y: Any) -> None:
        """Learn a mini-batch: one step of the optimiser on the mean of the losses.

        Parameters
        ----------
        X : pandas.DataFrame
            Features by columns; NaN where one is missing.
        y : pandas.Series
            The classes.

        Raises
        ------
        TypeError, ValueError
            If X is not of numbers, or y of another length.
        RuntimeError
            If training diverges.
        """
        labels = _as_long(y, X).tolist()
        if labels:
            values = _numbers(X)
            self._learn_classes(labels)
            self._step(self._matrix(X, values, True), np.array([self._classes[label] for label in labels]))

    def predict_proba_many(self, X: Any) -> Any:
        """Probabilities of the classes seen so far.

        Parameters
        ----------
        X : pandas.DataFrame

        Returns
        -------
        pandas.DataFrame
            A column for each class.
        """
        import pandas as pd

        known = self._model is not None
        p = self._model.predict_proba(self._matrix(X, _numbers(X), False)) if known else np.empty((len(X), 0))
        return pd.DataFrame(p, index=X.index, columns=list(self._classes))

    def predict_many(self, X: Any) -> Any:
        """The most likely classes.

        Parameters
        ----------
        X : pandas.DataFrame

        Returns
        -------
        pandas.Series
            None before the first row.
        """
        import pandas as pd

        if self._model is None:
            return pd.Series([None] * len(X), index=X.index, dtype="object")
        best = self._model.predict(self._matrix(X, _numbers(X), False)).argmax(axis=1)
        return pd.Series(list(self._classes), dtype=_dtype_of(self._classes)).take(best).set_axis(X.index)


class MLPRegressor(_Online, base.MiniBatchRegressor):
    """A network that predicts a number for each row of a stream.

    Features may appear, vanish and come back at any time, as for `MLPClassifier`.

    Parameters
    ----------
    hidden_layer_sizes : int or tuple of int, default (32,)
    activation : str, Activation or tuple of them, default "relu"
        Of all hidden layers, or one for each.
    optimizer : Optimizer, optional
        Any of `cnn`'s; a copy is used. ``Adam(lr=0.01)`` by default.
    loss : MSELoss, L1Loss, HuberLoss, SmoothL1Loss or QuantileLoss of one quantile, optional
        The mean squared error by default.
    standardize : bool, default True
        Standardise features and targets by their running means and deviations. Those of the features may lag by a 16th
        of the rows, at most by 256 rows.
    l2 : float, default 0.0
        ``l2 * sum(W ** 2)`` of each layer is part of the loss.
    seed : int, optional
        Of the initial weights.

    Examples
    --------
    >>> from cnn.river import MLPRegressor
    >>> model = MLPRegressor(seed=0)
    >>> for i in range(300):
    ...     model.learn_one({"a": i % 7}, 10 * (i % 7))
    >>> round(model.predict_one({"a": 3}), -1)
    30.0
    """

    _losses = (losses.MSELoss, losses.L1Loss, losses.HuberLoss, losses.SmoothL1Loss, losses.QuantileLoss)

    def __init__(
        self,
        hidden_layer_sizes: int | tuple[int, ...] = (32,),
        activation: Any = "relu",
        optimizer: Any = None,
        loss: Any = None,
        standardize: bool = True,
        l2: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__(hidden_layer_sizes, activation, optimizer, loss, standardize, l2, seed)
        if getattr(loss, "outputs_per_target", 1) != 1:
            raise ValueError(
                f"loss: expected one output for each target, such as cnn.QuantileLoss([0.5]), got {loss!r}"
            )
        self._count, self._mean, self._squares, self._deviation = 0, 0.0, 0.0, 1.0
        self._t = np.zeros((1, 1))

    def _unit_test_skips(self):
        return {"check_learn_many_matches_learn_one"}  # a batch is one step, as in river's linear models

    def _learn_target(self, y: float) -> float:
        """y standardised, by statistics that include it."""
        self._count = n = self._count + 1
        delta = y - self._mean
        self._mean = mean = self._mean + delta / n
        self._squares = squares = self._squares + delta * (y - mean)
        if squares > 1e-20 * n * mean * mean:
            self._deviation = (squares / n) ** 0.5
        return (y - mean) / self._deviation

    def learn_one(self, x: dict[Any, Any], y: float) -> None:
        """Learn one row: a step of the optimiser.

        Parameters
        ----------
        x : dict
            Numbers by the features' names; NaN or no entry where one is missing.
        y : float
            The target, finite.

        Raises
        ------
        TypeError, ValueError
            If a value is not a number, or infinite.
        RuntimeError
            If training diverges.
        """
        if type(y) is not float or y - y != 0.0:
            y = _target(y)
        if self._model is None:
            _check_row(x)
            self._learn_names(x)
        z = self._row(x, True)
        self._t[0, 0] = self._learn_target(y) if self.standardize else y
        loss = self._model.train_step(z, self._t)
        if not loss < INF:
            raise _diverged(loss)

    def predict_one(self, x: dict[Any, Any]) -> float:
        """The prediction for one row.

        Parameters
        ----------
        x : dict

        Returns
        -------
        float
            0 before the first row.
        """
        if self._model is None:
            return 0.0
        return self._model.predict(self._row(x, False)).item() * self._deviation + self._mean

    def learn_many(self, X: Any, y: Any) -> None:
        """Learn a mini-batch: one step of the optimiser on the mean of the losses.

        Parameters
        ----------
        X : pandas.DataFrame
            Features by columns; NaN where one is missing.
        y : pandas.Series
            The targets.

        Raises
        ------
        TypeError, ValueError
            If X or y are not of numbers, or y is of another length.
        RuntimeError
            If training diverges.
        """
        targets = [_target(target) for target in _as_long(y, X)]
        if targets:
            z = self._matrix(X, _numbers(X), True)
            if self.standardize:
                for target in targets:
                    self._learn_target(target)
            self._step(z, (np.array(targets)[:, None] - self._mean) / self._deviation)

    def predict_many(self, X: Any) -> Any:
        """The predictions for the rows of a mini-batch.

        Parameters
        ----------
        X : pandas.DataFrame

        Returns
        -------
        pandas.Series
            0 before the first row.
        """
        import pandas as pd

        y = np.zeros((len(X), 1)) if self._model is None else self._model.predict(self._matrix(X, _numbers(X), False))
        return pd.Series(y[:, 0] * self._deviation + self._mean, index=X.index)


def _widened(vector: np.ndarray, shapes: list[Any]) -> np.ndarray:
    """Parameters packed in one vector, from the first of each pair of shapes to the second; 0 where they are new."""
    at, parts = 0, []
    for old, new in shapes:
        part, size = np.zeros(new), int(np.prod(old))
        part[tuple(map(slice, old))] = vector[at : at + size].reshape(old)
        parts.append(part.ravel())
        at += size
    return np.concatenate(parts)


def _check_row(x: dict[Any, Any]) -> None:
    """TypeError or ValueError if a row cannot be learned; before its names and its class are."""
    for name, value in x.items():
        try:
            pack("d", value)
        except (StructError, TypeError):
            raise TypeError(
                f"x[{name!r}]: expected a number, got {value!r}: encode categories, as "
                "river.preprocessing.OneHotEncoder does, and leave out what is missing"
            ) from None
        if abs(float(value)) == INF:
            raise ValueError(f"x: expected finite numbers, or NaN where one is missing, got {x!r}")


def _numbers(X: Any) -> np.ndarray:
    """The rows of a DataFrame."""
    try:
        values = X.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        raise TypeError(f"X: expected numbers, got columns of {sorted(set(map(str, X.dtypes)))}") from None
    if np.isinf(values).any():
        raise ValueError("X: expected finite numbers, or NaN where one is missing, got inf")
    return values


def _diverged(loss: float) -> Exception:
    return RuntimeError(f"the loss is {loss}: training has diverged. Lower the optimizer's lr")


def _target(y) -> float:
    try:
        value = float(y)
    except (TypeError, ValueError):
        raise TypeError(f"y: expected a number, got {y!r}") from None
    if not -np.inf < value < np.inf:
        raise ValueError(f"y: expected a finite number, got {y!r}")
    return value


def _as_long(y, X):
    if len(y) != len(X):
        raise ValueError(f"y: expected {len(X)} targets, one for each row of X, got {len(y)}")
    return y


def _dtype_of(labels):
    return None if len({type(label) for label in labels}) == 1 else "object"
