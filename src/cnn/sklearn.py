"""`MLPClassifier` and `MLPRegressor`: scikit-learn's estimators, trained and evaluated by this library's kernels.

The estimators are subclasses of scikit-learn's: its parameters, validation of the input, orders of the rows, stopping
rules and messages are inherited. What costs the time is replaced: the batches of an epoch are one native call
(`_train`), and so is a prediction. What scikit-learn does not have (dropout, norms, other activations, losses, ...)
is trained by `Sequential.fit` (`_train_layers`), and so is `solver="lbfgs"`, by `LBFGS`; for several outputs of a
squared error it stays SciPy's, since scikit-learn's gradient is not that of its loss there: sparse rows become dense.

The hooks are private to scikit-learn (`_fit_stochastic`, `_initialize`, `_loss_grad_lbfgs`, `_forward_pass_fast`,
`_predict`, `_score`), hence the bound on its version in the extra `sklearn`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, overload

import numpy as np
import sklearn
import sklearn.neural_network as peers
from joblib import effective_n_jobs
from scipy.sparse import issparse
from scipy.special import xlogy
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, SGDOptimizer
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from . import layers, losses, optim
from ._threads import MOST, threads_for
from ._types import Array, ArrayLike
from .models import Sequential
from .models.ensemble import Ensemble
from .optim.optimizers import WEIGHT_DECAY
from .training import Callback, EarlyStopping, History
from .training.fit import DivergenceError
from .training.ranks import among_ranks

__all__ = ["MLPClassifier", "MLPRegressor"]
__dir__ = __all__.copy

if not sklearn.__version__.startswith("1.9."):
    raise ImportError(f"cnn.sklearn needs scikit-learn 1.9, got {sklearn.__version__}: pip install 'cnn[sklearn]'")

NATIVE_WORK = 1 << 31  # multiply-adds of one native call of training: 0.1 s, in which Ctrl-C waits
LOSSES: dict[str, Any] = {
    "squared_error": losses.MSELoss,
    "absolute_error": losses.L1Loss,
    "huber": losses.HuberLoss,
    "smooth_l1": losses.SmoothL1Loss,
    "poisson": losses.PoissonNLLLoss,
    "gaussian": losses.GaussianNLLLoss,
}
SCIPY_FTOL = 2.22e-9  # of L-BFGS-B
NON_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be preprocessed."
)


class _Native:
    """The arithmetic that replaces scikit-learn's; it precedes scikit-learn's class in the order of inheritance."""

    _model: Sequential | None

    def __dir__(self) -> list[str]:
        """The public names, for completion."""
        return [name for name in super().__dir__() if not name.startswith("_")]

    # the network ------------------------------------------------------------------------------------------------------

    @property
    def model_(self: Any) -> Sequential:
        """The fitted network. Its outputs are what the output function (softmax, sigmoid, exp) is applied to."""
        check_is_fitted(self)
        return self._network()

    @property
    def ensemble_(self: Any) -> Ensemble:
        """The fitted networks, if ``n_members > 1``; `model_`, `coefs_` and `intercepts_` are a copy of the first."""
        check_is_fitted(self)
        if vars(self).get("_ensemble") is None:
            raise AttributeError(f"ensemble_: expected n_members > 1 in fit, got n_members={self.n_members}")
        return self._ensemble

    @property
    def history_(self: Any) -> History:
        """The loss of each epoch, and what else there is: "val_score", "val_loss", "lr", ..."""
        check_is_fitted(self)
        if "_history" in vars(self):
            return self._history
        if self.solver == "lbfgs":
            raise AttributeError("history_: solver='lbfgs' has none for several outputs: use solver='adam'")
        scores = {"val_score": self.validation_scores_} if self.validation_scores_ else {}
        return History({"loss": self.loss_curve_, **scores})

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw `history_`: see `History.plot`.

        Parameters
        ----------
        path : str or path, optional
            Where to save the picture.

        Returns
        -------
        list of matplotlib.axes.Axes
        """
        return self.history_.plot(path)

    def _made_of(self: Any) -> tuple[Any, ...]:
        """What the layers depend on beside the coefficients."""
        return repr(self.activation), repr(self.loss), self.dropout, self.batch_norm, self.layer_norm

    def _network(self: Any) -> Sequential:
        """The model whose memory `coefs_` and `intercepts_` are; assigned arrays are copied into it."""
        arrays, model = [*self.coefs_, *self.intercepts_], vars(self).get("_model")
        views = vars(self).get("_views", ())
        if model is not None and len(views) == len(arrays) and all(a is b for a, b in zip(views, arrays, strict=True)):
            return model
        if model is None or not all(
            a.shape == b.shape and b.dtype == model.dtype for a, b in zip(self._arrays(), arrays, strict=False)
        ):
            self._model = Sequential([*self._layers(), self._loss()], None, arrays[0].dtype, self._seed())
            self._of = self._made_of()
        else:
            for own, a in zip(self._arrays(), arrays, strict=True):
                own[...] = a
        self._take_arrays()
        return self._model

    def _arrays(self: Any) -> list[np.ndarray]:
        own = [layer for layer in self._model.layers if isinstance(layer, layers.Linear)]
        return [layer.weight for layer in own] + [layer.bias for layer in own]

    def _take_arrays(self: Any) -> None:
        self._views = views = self._arrays()
        self.coefs_, self.intercepts_ = views[: len(views) // 2], views[len(views) // 2 :]

    def _layers(self: Any) -> list[Any]:
        """New layers with the coefficients and intercepts."""
        parts: list[Any] = []
        kinds = layers.activations.made_of(self.activation, len(self.coefs_) - 1)
        for i, (w, b) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
            parts.append(layers.Linear.of(w, b))
            if i < len(kinds):
                width = w.shape[1]
                parts += [layers.BatchNorm1d(width)] * self.batch_norm + [layers.LayerNorm(width)] * self.layer_norm
                parts += [kinds[i]] + [layers.Dropout(self.dropout)] * (self.dropout > 0)
        return parts

    def _seed(self: Any) -> int:
        """Of dropout and of the orders of `Sequential.fit`; nothing is drawn for scikit-learn's own options."""
        state = vars(self).get("_random_state")
        return int(state.randint(1 << 31)) if state is not None and self._beyond() else 0

    def _beyond(self: Any) -> list[str]:
        """The options in use that scikit-learn does not have, and that its loop over the batches does not support."""
        used = [name for name in ("batch_norm", "layer_norm", "callbacks") if getattr(self, name)]
        used += ["n_members"] * (self.n_members > 1)
        more = ("schedule", "clip_norm", "ema_decay", "optimizer")
        used += [name for name in more if getattr(self, name) is not None]
        used += ["dropout"] * (self.dropout > 0) + ["loss"] * (not self._own_loss())
        used += ["X_val"] * ("_validation" in vars(self)) + ["comm"] * ("_comm" in vars(self))
        own = isinstance(self.activation, str) and self.activation in self._scikit_activations
        return used + ["activation"] * (not own)

    _scikit_activations = ("identity", "logistic", "tanh", "relu")

    def _own_loss(self: Any) -> bool:
        return isinstance(self.loss, str) and self.loss in ("log_loss", "squared_error", "poisson")

    def _loss(self: Any) -> losses.Loss:
        """A loss of the network, made of `loss` and the kind of the targets."""
        kind = vars(self).get("out_activation_")
        if self.loss == "log_loss":
            return losses.CrossEntropyLoss() if kind == "softmax" else losses.BCEWithLogitsLoss()
        loss = LOSSES[self.loss]() if isinstance(self.loss, str) and self.loss in LOSSES else self.loss
        if not isinstance(loss, losses.Loss):
            known = "log_loss" if is_classifier(self) else ", ".join(LOSSES)
            raise ValueError(f"loss: expected a loss such as {self._such_as}, or one of {known}, got {loss!r}")
        fits = {"softmax": losses.CrossEntropyLoss, "logistic": losses.BCEWithLogitsLoss}
        if kind in fits and not isinstance(loss, fits[kind]):
            what = "more than two classes" if kind == "softmax" else "two classes or several labels"
            raise ValueError(f"loss: expected {fits[kind].__name__} for {what}, got {loss!r}")
        if kind not in fits and loss.targets != "numbers" and loss.targets is not None:
            raise ValueError(f"loss: expected one for numeric targets, such as {self._such_as}, got {loss!r}")
        return copy.deepcopy(loss)

    def _factors(self: Any) -> tuple[float, float]:
        """What our loss, a mean over the outputs, is multiplied by to be scikit-learn's; and our gradient."""
        if not self._own_loss():
            return 1.0, 1.0
        k = self.n_outputs_
        return {"softmax": (1.0, 1.0), "identity": (0.5, k / 2)}.get(self.out_activation_, (k, k))

    def _targets(self: Any, y):
        """Targets in the form that the loss expects."""
        y = y.argmax(axis=1) if self.out_activation_ == "softmax" else np.asarray(y, self.coefs_[0].dtype)
        return self._network()._core.program.targets(y, len(y), "y")

    def _deviance(self: Any, y):
        """What the deviance of counts has beside the loss, for each row; 0 for other losses."""
        return (xlogy(y, y) - y).sum(axis=1) if self.loss == "poisson" else 0.0

    def _threads(self: Any) -> int:
        return threads_for(None if self.n_jobs is None else min(effective_n_jobs(self.n_jobs), MOST))

    @classmethod
    def from_sklearn(cls: Any, mlp: Any) -> Any:
        """An estimator with the parameters of a fitted one of scikit-learn.

        Parameters
        ----------
        mlp : sklearn.neural_network.MLPClassifier or MLPRegressor
            Fitted. Its optimiser is not copied: `partial_fit` starts a new one.

        Returns
        -------
        MLPClassifier or MLPRegressor

        Raises
        ------
        TypeError
            If mlp is something else.
        """
        if not isinstance(mlp, cls._peer):
            raise TypeError(f"mlp: expected sklearn.neural_network.{cls._peer.__name__}, got {type(mlp).__name__}")
        check_is_fitted(mlp)
        return _with_state(cls(**mlp.get_params(deep=False)), mlp)

    def to_sklearn(self: Any) -> Any:
        """scikit-learn's own estimator, fitted as this one is.

        Returns
        -------
        sklearn.neural_network.MLPClassifier or MLPRegressor
            Its `partial_fit` starts a new optimiser.

        Raises
        ------
        ValueError
            If the network has parts that scikit-learn does not have.
        """
        check_is_fitted(self)
        parts = ("batch_norm", "layer_norm", "activation", "loss", "n_members")
        if foreign := [f"{name}={getattr(self, name)!r}" for name in self._beyond() if name in parts]:
            raise ValueError(f"to_sklearn: scikit-learn's networks have no {', '.join(foreign)}")
        known = self._peer().get_params()
        return _with_state(self._peer(**{name: getattr(self, name) for name in known}), self)

    def __getstate__(self: Any) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_views"}

    def __setstate__(self: Any, state: Any) -> None:
        added_since = type(self)().get_params(deep=False)  # of a version that did not have them yet
        super().__setstate__(added_since | state)  # type: ignore[misc]
        if vars(self).get("_model") is not None and hasattr(self, "coefs_"):
            self._network()  # the copies are not the model's memory

    # training ---------------------------------------------------------------------------------------------------------

    def fit(
        self: Any,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        X_val: ArrayLike | None = None,
        y_val: ArrayLike | None = None,
        comm: Any = None,
    ) -> Any:
        """Fit the network to X and y.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
        y : array_like of shape (n_samples,) or (n_samples, n_outputs)
            Class labels, or numbers.
        sample_weight : array_like of shape (n_samples,), optional
            Not negative.
        X_val, y_val : array_like, optional
            Rows to validate on after each epoch: `history_` has "val_loss", and ``early_stopping=True`` takes these
            rows instead of a part of X.
        comm : mpi4py.MPI.Comm, optional
            Ranks that train together, each on its part of the rows, or with ``n_members`` its part of the members. All
            pass the same arrays, and need the same ``random_state``. One network is trained as by `Sequential.fit`,
            whose order of the rows is another than scikit-learn's.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If an argument has a wrong type, shape or value.
        """
        with among_ranks(comm):
            if (X_val is None) != (y_val is None):
                raise ValueError(f"{'X_val' if X_val is None else 'y_val'}: expected both X_val and y_val, or none")
            if X_val is not None:
                self._validation = X_val, y_val
            if comm is not None:
                self._comm = comm
            try:
                return super().fit(X, y, sample_weight)  # type: ignore[misc]
            finally:
                vars(self).pop("_validation", None)
                vars(self).pop("_comm", None)

    def _initialize(self: Any, y, layer_units, dtype):
        loss = LOSSES.get(self.loss) if isinstance(self.loss, str) else self.loss
        layer_units[-1] *= getattr(loss, "outputs_per_target", 1)
        super()._initialize(y, layer_units, dtype)  # type: ignore[misc]
        self._model = self._ensemble = None
        vars(self).pop("_history", None)

    def _fit_stochastic(self: Any, X, y, sample_weight, *rest):
        incremental = rest[-1]
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        if vars(self).get("_of") != self._made_of():
            self._model = None  # set_params has been called since
        sample_weight = self._weights(y, sample_weight, incremental)
        train, val = (X, y, sample_weight), (None, None, None)
        if "_validation" in vars(self):
            val = self._own_validation()
        elif self.early_stopping:
            train, val = self._split(X, y, sample_weight)
        train_with = self._train_layers if self._beyond() else self._train
        (self._train_members if self.n_members > 1 else train_with)(*train, val, incremental)

    def _weights(self: Any, y, sample_weight, incremental=False):
        """The rows' weights times those of their classes."""
        wanted = getattr(self, "class_weight", None)
        if wanted is None:
            return sample_weight
        if incremental and isinstance(wanted, str):
            raise ValueError(
                f"class_weight: {wanted!r} needs all of y, which partial_fit does not get: pass a dict, or the weights "
                "of the rows as sample_weight"
            )
        if isinstance(wanted, dict) and (unknown := [label for label in wanted if label not in self.classes_]):
            raise ValueError(f"class_weight: {unknown} are no classes of y, which has {self.classes_.tolist()}")
        rows = compute_sample_weight(wanted, self._label_binarizer.inverse_transform(y))
        return rows if sample_weight is None else rows * sample_weight

    def _split(self: Any, X, y, sample_weight):
        """Rows to train on, and rows to validate on, with labels as they came: scikit-learn's split."""
        arrays = [X, y] if sample_weight is None else [X, y, sample_weight]
        parts = train_test_split(
            *arrays,
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=y if is_classifier(self) and self.n_outputs_ == 1 else None,  # not several labels
        )
        train, val = [*parts[::2], None][:3], [*parts[1::2], None][:3]
        if val[0].shape[0] < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if is_classifier(self):
            val[1] = self._label_binarizer.inverse_transform(val[1])
        return train, val

    def _own_validation(self: Any):
        X, y = self._validation
        try:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], dtype=(np.float64, np.float32), reset=False)
        except ValueError as error:
            raise ValueError(f"X_val: {error}") from None
        y = np.asarray(y)
        if len(y) != X.shape[0]:
            raise ValueError(f"y_val: expected {X.shape[0]} rows, as X_val has, got {len(y)}")
        if is_classifier(self) and (unknown := set(np.unique(y)) - set(self.classes_)):
            odd = np.sort(list(unknown)).tolist()
            raise ValueError(f"y_val: {odd} are no classes of y, which has {self.classes_.tolist()}")
        return X, y, None

    def _batch_size(self: Any, n: int) -> int:
        if self.batch_size == "auto":
            return min(200, n)
        if self.batch_size > n:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=2
            )
        return int(np.clip(self.batch_size, 1, n))

    def _new_optimizer(self: Any, decay: float, factor: float):
        """Ours with scikit-learn's hyper-parameters, for a gradient that is its one divided by factor."""
        if self.solver == "sgd":
            nesterov = bool(self.nesterovs_momentum and self.momentum > 0)
            return optim.SGD(self.learning_rate_init * factor, self.momentum, 0, decay, nesterov, decay_bias=False)
        betas = self.beta_1, self.beta_2
        return optim.Adam(self.learning_rate_init, betas, self.epsilon / factor, decay, decay_bias=False)

    def _train(self: Any, X, y, sample_weight, val, incremental: bool) -> None:
        """scikit-learn's `_fit_stochastic`, with the batches of an epoch in one native call."""
        model = self._network()
        shown, factor = self._factors()
        if not incremental or model.optimizer is None or "_optimizer" not in vars(self):
            model.optimizer = self._new_optimizer(0.0, factor)
            options = (self.learning_rate, self.momentum, self.nesterovs_momentum, self.power_t)
            self._optimizer = (  # knows the course of the learning rate; it updates nothing
                SGDOptimizer([], self.learning_rate_init, *options)
                if self.solver == "sgd"
                else AdamOptimizer([], self.learning_rate_init, self.beta_1, self.beta_2, self.epsilon)
            )
        batches = _Batches(self, model, X, y, sample_weight, self._batch_size(X.shape[0]), factor)
        stopping = "Validation score" if self.early_stopping else "Training loss"
        stopping += " did not improve more than tol=%f for %d consecutive epochs."
        order = np.arange(batches.n, dtype=np.int64)
        try:
            self.n_iter_ = 0
            for _ in range(self.max_iter):
                if self.shuffle:  # as sklearn.utils.shuffle draws
                    places = np.arange(batches.n)
                    self._random_state.shuffle(places)
                    order = order[places]
                self.loss_: float = batches.epoch(order if self.shuffle else None, shown)
                self.n_iter_ += 1
                self.t_ += batches.n
                self.loss_curve_.append(self.loss_)
                if self.verbose:
                    print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")
                self._update_no_improvement_count(self.early_stopping, *val)
                self._optimizer.iteration_ends(self.t_)
                if self._no_improvement_count > self.n_iter_no_change:
                    if self._optimizer.trigger_stopping(stopping % (self.tol, self.n_iter_no_change), self.verbose):
                        break
                    self._no_improvement_count = 0
                if incremental:
                    break
                if self.n_iter_ == self.max_iter:
                    self._warn_of_the_end()
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
        if self.early_stopping:
            self.coefs_, self.intercepts_ = self._best_coefs, self._best_intercepts

    def _warn_of_the_end(self: Any) -> None:
        warnings.warn(
            f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't converged "
            "yet.",
            ConvergenceWarning,
            stacklevel=2,
        )

    def _train_layers(self: Any, X, y, sample_weight, val, incremental: bool) -> None:
        """The same with what scikit-learn does not have: `Sequential.fit`, with its stopping rule as a callback."""
        if self.solver == "sgd" and self.learning_rate != "constant" and self.optimizer is None:
            raise ValueError(
                f"learning_rate: expected 'constant' with {self._beyond()[0]}, got {self.learning_rate!r}: pass "
                "schedule=, such as cnn.ReduceLROnPlateau() or cnn.CosineAnnealingLR(epochs)"
            )
        if incremental and self.ema_decay is not None:
            raise ValueError("ema_decay: expected none with partial_fit, after which training goes on: use fit")
        model, batch_size = self._network(), self._batch_size(X.shape[0])
        others = vars(self).pop("_optimizer", None)  # made by `_train`
        if not incremental or model.optimizer is None or others is not None:
            model.optimizer = self._chosen_optimizer(batch_size, sample_weight)
        watch, validation = _Watch(self, val, X.shape[0], self._factors()[0]), self._validation_rows(val)
        self.n_iter_ = 0
        try:
            history = model.fit(
                X,
                self._targets(y),
                epochs=1 if incremental else self.max_iter,
                batch_size=batch_size,
                shuffle=self.shuffle,
                validation_data=validation,
                sample_weight=sample_weight,
                callbacks=[*self._callbacks(), watch],
                threads=self._threads(),
                progress=bool(self.verbose),
                **self._ranks(),
            )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
            history = model.history
        except DivergenceError as error:
            raise ValueError(f"{NON_FINITE} ({error})") from None
        self._history = _extended(vars(self).get("_history") if incremental or self.warm_start else None, history)
        if watch.best is not None:
            model.load_weights(watch.best)
        elif self.ema_decay is not None:
            model.parameters = model.averaged_parameters
        if not incremental and self.n_iter_ == self.max_iter and not watch.stop:
            self._warn_of_the_end()

    def _ranks(self: Any) -> dict[str, Any]:
        """What `Sequential.fit` is told of the ranks that train together."""
        if (comm := vars(self).get("_comm")) is None:
            return {}
        from .training.distributed import shards_for

        return {"comm": comm, "shard": "auto", "shards": shards_for(comm.Get_size())}

    def _validation_rows(self: Any, val):
        """Rows to validate on as `fit` takes them, or None."""
        X, y, weight = val
        if X is None:
            return None
        t = self._label_binarizer.transform(y) if is_classifier(self) else _columns(y)
        return (X, self._targets(t), *([] if weight is None else [weight]))

    def _train_members(self: Any, X, y, sample_weight, val, incremental: bool) -> None:
        """The same for several networks, natively and at once; they begin and end member by member."""
        if self.callbacks or self.ema_decay is not None:
            name = "callbacks" if self.callbacks else "ema_decay"
            raise ValueError(f"{name}: expected none with n_members={self.n_members}")
        batch_size, n = self._batch_size(X.shape[0]), X.shape[0]
        ensemble = self._ensemble
        if ensemble is None or len(ensemble) != self.n_members or self._of != self._made_of():
            ensemble = self._ensemble = Ensemble.of(self._new_members())
        if not incremental or ensemble.optimizer is None:
            ensemble.optimizer = self._chosen_optimizer(batch_size, sample_weight)
        stop, validation = None, self._validation_rows(val)
        if not incremental:
            monitor = "val_loss" if self.early_stopping else "loss"
            stop = EarlyStopping(monitor, self.n_iter_no_change + 1, self.tol, restore_best_weights=self.early_stopping)
        try:
            history = ensemble.fit(
                X,
                self._targets(y),
                epochs=1 if incremental else self.max_iter,
                batch_size=batch_size,
                shuffle=self.shuffle,
                validation_data=validation,
                sample_weight=sample_weight,
                early_stopping=stop,
                threads=self._threads(),
                progress=bool(self.verbose),
                comm=vars(self).get("_comm"),
            )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=2)
            history = ensemble.history
        except DivergenceError as error:
            raise ValueError(f"{NON_FINITE} ({error})") from None
        losses_of = self._factors()[0] * np.nanmean(history["loss"], axis=1)
        means = History({name: np.nanmean(values, axis=1).tolist() for name, values in history.items()})
        self._history = _extended(vars(self).get("_history") if incremental or self.warm_start else None, means)
        self.n_iter_ = len(losses_of)
        self.t_ += n * self.n_iter_
        self.loss_curve_ += losses_of.tolist()
        self.loss_, self.best_loss_ = self.loss_curve_[-1], None if self.early_stopping else min(self.loss_curve_)
        self._model = ensemble[0]
        self._take_arrays()
        if not incremental and not np.isnan(history["loss"][-1]).any() and self.n_iter_ == self.max_iter:
            self._warn_of_the_end()

    def _new_members(self: Any) -> list[Sequential]:
        """Networks of their own initial weights, dropout and order of the rows; the first is that of one alone."""
        first, dtype = self._network(), self.coefs_[0].dtype
        arrays, members = (self.coefs_, self.intercepts_), [first]
        for i in range(1, self.n_members):
            drawn = [self._init_coef(*w.shape, dtype) for w in arrays[0]]
            self.coefs_, self.intercepts_ = [w for w, _ in drawn], [b for _, b in drawn]
            members.append(Sequential([*self._layers(), self._loss()], None, dtype, first.seed + i))
        self.coefs_, self.intercepts_ = arrays
        return members

    def _callbacks(self: Any) -> list:
        return [self.callbacks] if isinstance(self.callbacks, Callback) else list(self.callbacks or ())

    def _chosen_optimizer(self: Any, batch_size: int, sample_weight):
        """`optimizer`, or the solver's, with the requested schedule, clipping and averaging."""
        factor = self._factors()[1]
        weight = batch_size if sample_weight is None else batch_size * np.mean(sample_weight)
        decay = self.alpha / weight / factor
        more = {name: getattr(self, name) for name in ("schedule", "clip_norm", "ema_decay")}
        if self.optimizer is None:
            made = self._new_optimizer(decay, factor)
            given = {name: copy.deepcopy(value) for name, value in more.items() if value is not None}
            return type(made).from_config({**made.get_config(), **given})
        if not isinstance(self.optimizer, optim.Optimizer):
            raise ValueError(f"optimizer: expected one such as cnn.AdamW(1e-3), got {self.optimizer!r}")
        if taken := [name for name, value in more.items() if value is not None]:
            raise ValueError(f"{taken[0]}: expected none beside optimizer=, which takes it: {self.optimizer!r}")
        return copy.copy(self.optimizer)

    def _fit_lbfgs(self: Any, X, y, sample_weight, *rest):
        if taken := [name for name in self._beyond() if name not in ("activation", "loss", "comm")]:
            raise ValueError(f"{taken[0]}: expected solver='adam' or 'sgd' with it, got 'lbfgs'")
        sample_weight, model = self._weights(y, sample_weight), self._network()
        shown, factor = self._factors()
        if shown != factor and "_comm" in vars(self):
            raise ValueError("comm: expected one output with solver='lbfgs' and the squared error, or another solver")
        if shown != factor:  # scikit-learn's gradient is not that of its loss: only its own line search goes its way
            vars(self).pop("_history", None)
            super()._fit_lbfgs(_dense(X), y, sample_weight, *rest)  # type: ignore[misc]
            return
        total = X.shape[0] if sample_weight is None else sample_weight.sum()
        decay = self.alpha / total
        model.optimizer = optim.LBFGS(
            tolerance_grad=self.tol / factor,
            tolerance_change=SCIPY_FTOL / factor,
            weight_decay=decay / factor,
            decay_bias=False,
        )
        history = self._history = model.fit(
            X,
            self._targets(y),
            epochs=self.max_iter,
            sample_weight=sample_weight,
            callbacks=[_Evaluations(self.max_fun)],
            threads=self._threads(),
            progress=bool(self.verbose),
            **self._ranks(),
        )
        self.n_iter_ = len(history.epochs)
        constant = np.average(np.broadcast_to(self._deviance(y), len(y)), weights=sample_weight)
        penalty = 0.5 * decay * sum(float(np.vdot(w, w)) for w in self.coefs_)
        self.loss_ = shown * history["loss"][-1] + constant + penalty
        if history.converged is None or sum(history["evaluations"]) > self.max_fun:
            warnings.warn(
                f"lbfgs failed to converge after {self.n_iter_} iteration(s): increase max_iter or max_fun, or scale "
                "the data",
                ConvergenceWarning,
                stacklevel=2,
            )

    def _loss_grad_lbfgs(self: Any, packed, X, y, sample_weight, *_):
        """The loss of the whole data and its gradient, packed as scikit-learn packs them."""
        model = self._network()
        own_arrays = self.coefs_ + self.intercepts_
        ends = np.cumsum([a.size for a in own_arrays])
        for array, numbers in zip(own_arrays, np.split(packed, ends[:-1]), strict=True):
            array[...] = numbers.reshape(array.shape)
        loss: Any = model.loss
        shown, factor = self._factors()
        total = X.shape[0] if sample_weight is None else sample_weight.sum()
        value = loss.forward(model.forward(_dense(X)), self._targets(y), sample_weight)
        model.zero_grads()
        model.backward(loss.backward())
        decay = self.alpha / total
        own = [layer for layer in model.layers if isinstance(layer, layers.Linear)]
        weights = [factor * layer.grad_weight + decay * layer.weight for layer in own]
        gradient = np.concatenate([a.ravel() for a in [*weights, *(factor * layer.grad_bias for layer in own)]])
        penalty = 0.5 * decay * sum(float(np.vdot(w, w)) for w in self.coefs_)
        constant = np.average(np.broadcast_to(self._deviance(y), len(y)), weights=sample_weight)
        return shown * value + constant + penalty, gradient

    # prediction -------------------------------------------------------------------------------------------------------

    def _rows(self: Any, X):
        """X, validated as scikit-learn does; at once where nothing can be wrong with it."""
        own = vars(self)
        if (
            type(X) is np.ndarray
            and X.ndim == 2
            and X.dtype.char in "fd"
            and X.shape[0]
            and X.shape[1] == own.get("n_features_in_")
            and "coefs_" in own
            and "feature_names_in_" not in own
            and np.isfinite(X).all()
        ):
            return X
        check_is_fitted(self)
        return validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)

    def _forward_pass_fast(self: Any, X, check_input=True):
        X = self._rows(X) if check_input else X
        outputs = [self._outputs_of(model, X) for model in self._models()]
        return outputs[0] if len(outputs) == 1 else np.mean(outputs, axis=0)

    def _models(self: Any) -> list[Sequential]:
        """All networks: what is predicted is the mean over them."""
        ensemble = vars(self).get("_ensemble")
        return [self._network()] if ensemble is None else ensemble._members

    def _outputs_of(self: Any, model, X):
        """Of one network: probabilities, or numbers."""
        if self.out_activation_ in ("softmax", "logistic"):
            return model.predict_proba(X, threads=self._threads())
        z = model.predict(X, threads=self._threads())
        per_target = getattr(model.loss, "outputs_per_target", 1)
        if isinstance(model.loss, losses.GaussianNLLLoss):
            return z[:, : z.shape[1] // 2]
        if per_target > 1 and self.n_outputs_ > 1:
            return z.reshape(len(z), self.n_outputs_, per_target)
        return np.exp(z, out=z) if getattr(model.loss, "outputs", None) == "log_values" else z


class _Batches:
    """The rows that `_train` trains on, as the native program reads them."""

    def __init__(self, mlp: Any, model: Any, X: Any, y: Any, sample_weight: Any, size: Any, factor: float) -> None:
        self.program, self.optimizer, self.mlp = model._core.program, model.optimizer, mlp
        self.n, self.size, self.factor, self.threads = len(y), size, factor, mlp._threads()
        self.X = self.program.rows(X)
        self.y = mlp._targets(y)
        self.deviance = np.broadcast_to(mlp._deviance(y), self.n)
        self.weights = None if sample_weight is None else self.program.weights(sample_weight, self.n)
        self.starts = np.arange(0, self.n, size)
        self.sizes = np.minimum(size, self.n - self.starts)
        self.constant = float(self.deviance.sum())
        self.chunk = max(1, NATIVE_WORK // (3 * self.program.n_parameters) // size) * size  # rows of a native call

    def epoch(self, order: Any, shown: float) -> float:
        """Train on the rows in this order; scikit-learn's loss, NaN if that of a batch is not finite."""
        weights, totals, constant = None, self.sizes, self.constant
        if self.weights is not None:
            weights, totals = self._shares(order)
            constant = float(weights @ self.deviance)
        rates, sums = self._rates(totals), np.zeros(5)
        at, diverged = 0, False
        while at < self.n:
            stop = min(self.n, at - at % self.chunk + self.chunk)
            steps = rates[at // self.size : -(-stop // self.size)]
            args = (self.X, self.y, weights, order, at, stop, self.size, steps, None, self.threads, 1, sums)
            bad = self.program.train_batches(*args)
            if bad >= 0:
                stop, diverged = bad + self.size, True
                self.program.clear_padding()
            at = stop
        return np.nan if diverged else float(shown * sums[0] + self.factor * sums[4] + constant) / self.n

    def _shares(self, order):
        """Weights of the rows whose sum in each batch is that of its rows, so that sums over batches are
        scikit-learn's; and the sums of the weights as they were."""
        assert self.weights is not None
        weights = self.weights if order is None else self.weights[order]
        totals = np.add.reduceat(weights.astype(float), self.starts)
        if not totals.all():
            raise ValueError("sample_weight: the weights of all rows of a batch are 0: raise batch_size")
        shares = weights * np.repeat(self.sizes / totals, self.sizes).astype(weights.dtype)
        if order is not None:
            in_order, shares = shares, np.empty_like(shares)
            shares[order] = in_order
        return shares, totals

    def _rates(self, totals: np.ndarray) -> np.ndarray:
        """The optimiser's table at each step: the penalty is divided by the weight of the batch, the epsilon of Adam is
        added before the correction of v's bias, and a velocity of SGD contains the learning rates it was made with."""
        mlp = self.mlp
        if mlp.solver == "sgd":
            lr, before = mlp._optimizer.learning_rate * self.factor, self.optimizer.lr
            if lr != before:
                state = self.program.state(self.optimizer.states)
                for name in [name for name in state if name.startswith("state.")]:
                    state[name] *= before / lr
                self.program.set_state(state, self.optimizer.states)
                self.optimizer.lr = lr
        rates = np.repeat(self.optimizer.table[None], len(totals), 0)
        rates[:, 0, WEIGHT_DECAY] = mlp.alpha / self.factor / totals
        if mlp.solver == "adam":
            t = self.program.steps + np.arange(1, 1 + len(totals))
            rates[:, :, vars(optim.Adam)["eps"].column] = (mlp.epsilon / self.factor / np.sqrt(1 - mlp.beta_2**t))[
                :, None
            ]
        return rates


class _Evaluations(Callback):
    """Stops L-BFGS after the iteration in which the evaluations have become more than max_fun."""

    def __init__(self, max_fun: Any) -> None:
        self.max_fun = max_fun

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        if sum(self.model.history["evaluations"]) > self.max_fun:
            self.model.stop_training = True


class _Watch(Callback):
    """After each epoch: the attributes that scikit-learn has, and its rule when to stop."""

    _turn = 2

    def __init__(self, mlp: Any, val: Any, n: int, shown: float) -> None:
        self.mlp, self.val, self.n, self.shown = mlp, val, n, shown
        self.best: Any = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        mlp = self.mlp
        mlp.n_iter_ += 1
        mlp.t_ += self.n
        mlp.loss_ = self.shown * logs["loss"]
        mlp.loss_curve_.append(mlp.loss_)
        averaged = mlp.early_stopping and mlp.ema_decay is not None
        before = mlp.best_validation_score_
        with self.model.using_average() if averaged else contextlib.nullcontext():
            mlp._update_no_improvement_count(mlp.early_stopping, *self.val)
            if mlp.early_stopping and mlp.best_validation_score_ > before:
                self.best = self.model.state_dict()
        self.stop = mlp._no_improvement_count > mlp.n_iter_no_change


def _with_state(new, fitted):
    """An estimator with copies of what another one has been fitted to, but for the optimiser."""
    left = {"_optimizer", "_model", "_views", "_history", *fitted.get_params(deep=False)}
    state = {name: value for name, value in vars(fitted).items() if name not in left}
    vars(new).update(copy.deepcopy(state))
    return new


def _dense(X):
    return X.toarray() if issparse(X) else X


def _columns(y):
    return y.reshape(-1, 1) if y.ndim == 1 else y


def _extended(history, more):
    """A history with the epochs of another one added."""
    if history is None or set(history) != set(more):
        return more
    for name, values in more.items():
        history[name].extend(values)
    history.epochs = list(range(1, 1 + len(history["loss"])))
    return history


_CONSTRAINTS: dict[str, list[Any]] = {
    "activation": [str, list, tuple, layers.Activation],
    "loss": [str, losses.Loss],
    "dropout": [Interval(Real, 0, 1, closed="left")],
    "batch_norm": ["boolean"],
    "layer_norm": ["boolean"],
    "optimizer": [optim.Optimizer, None],
    "schedule": [optim.schedules.Schedule, None],
    "clip_norm": [Interval(Real, 0, None, closed="neither"), None],
    "ema_decay": [Interval(Real, 0, 1, closed="left"), None],
    "callbacks": [Callback, list, tuple, None],
    "n_jobs": [Integral, None],
    "n_members": [Interval(Integral, 1, None, closed="left")],
}


class MLPClassifier(_Native, peers.MLPClassifier):
    """`sklearn.neural_network.MLPClassifier` with native training and more options.

    It has all parameters, attributes and methods of scikit-learn's class, with the same names, defaults, meanings and
    results. The parameters below are new. `class_weight` and `n_jobs` keep scikit-learn's training loop. With any
    other, `Sequential.fit` trains: the initial weights and the stopping rule are scikit-learn's, but the order of the
    rows differs, and the reported losses exclude the penalty.

    Parameters
    ----------
    activation : str, Activation, or list of them
        Also "gelu", "silu", "elu", "leakyrelu", "softplus", or a layer such as ``cnn.GELU()``; a list has one for each
        hidden layer.
    loss : str or Loss
        "log_loss", or a `CrossEntropyLoss` for more than two classes, a `BCEWithLogitsLoss` for two classes or
        multilabel targets.
    class_weight : dict, "balanced" or list of dicts, optional
        As for scikit-learn's other classifiers. They multiply the sample weights.
    dropout : float
        The fraction of each hidden layer's outputs that training drops.
    batch_norm, layer_norm : bool
        Whether to put a `BatchNorm1d` or a `LayerNorm` before each activation.
    optimizer : Optimizer, optional
        Such as ``cnn.AdamW(1e-3)``, in place of `solver`, `alpha`, the learning rate and related options.
    schedule : Schedule, optional
        Of the learning rate, such as `StepLR`.
    clip_norm, ema_decay : float, optional
        As for `Optimizer`. With ema_decay the fitted parameters are the average.
    callbacks : list of Callback, optional
    n_jobs : int, optional
        Threads, -1 for all processors. None: those of `cnn.set_num_threads`. Results do not depend on it.
    n_members : int
        Networks that are trained at once, natively, each with its own initial weights and order of the rows (a deep
        ensemble). Predictions are the mean over them: for classes, the mean probabilities. Each stops separately; with
        `early_stopping`, by its own validation loss.

    Attributes
    ----------
    model_ : Sequential
        The fitted network, on the memory of `coefs_` and `intercepts_`: for `save`, `cnn.to_onnx`, `cnn.to_c`, ...
    history_ : History
        The loss of each epoch, "val_loss" if there are `X_val` and `y_val`, ...; of several networks the mean.
    ensemble_ : Ensemble
        The fitted networks, if ``n_members > 1``; `model_` is then a copy of the first.

    Examples
    --------
    >>> from cnn.sklearn import MLPClassifier
    >>> X, y = [[0.0], [1.0], [2.0], [3.0]], ["low", "low", "high", "high"]
    >>> mlp = MLPClassifier(solver="lbfgs", random_state=0).fit(X, y)
    >>> mlp.predict([[0.2], [2.8]]).tolist()
    ['low', 'high']
    >>> type(mlp.model_).__name__
    'Sequential'
    """

    _parameter_constraints: ClassVar[dict[Any, Any]] = {
        **peers.MLPClassifier._parameter_constraints,
        **_CONSTRAINTS,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }
    _peer = peers.MLPClassifier
    _such_as = "cnn.CrossEntropyLoss()"

    def __init__(
        self,
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str | None = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        loss: Any = "log_loss",
        class_weight: Any = None,
        dropout: float = 0.0,
        batch_norm: bool = False,
        layer_norm: bool = False,
        optimizer: Any = None,
        schedule: Any = None,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        callbacks: Any = None,
        n_jobs: int | None = None,
        n_members: int = 1,
    ) -> None:
        self.__dict__.update({name: value for name, value in dict(locals()).items() if name != "self"})

    def predict(self, X: Any) -> np.ndarray:
        """The classes of rows.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        return self._predict(X)

    def _predict(self: Any, X, check_input=True):
        X = self._rows(X) if check_input else X
        if self._label_binarizer.sparse_input_ or len(self.classes_) == 1:
            return super()._predict(X, False)
        if several := self.n_members > 1:
            z = self._forward_pass_fast(X, False)
        else:
            z = self._network().predict(X, threads=self._threads())
        if self.out_activation_ == "softmax":
            return self.classes_.take(z.argmax(axis=1))
        yes = (z > (0.5 if several else 0)).astype(np.intp)  # whose sigmoid is above 1/2
        return self.classes_.take(yes[:, 0]) if self.n_outputs_ == 1 else yes

    def predict_proba(self: Any, X: Any) -> Array:
        """The probabilities of the classes.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`; of several labels that of each.
        """
        p = self._forward_pass_fast(X)
        if self.n_outputs_ > 1:
            return p
        both = np.empty((len(p), 2), p.dtype)
        both[:, 1] = p[:, 0]
        np.subtract(1, both[:, 1], out=both[:, 0])
        return both


class MLPRegressor(_Native, peers.MLPRegressor):
    """`sklearn.neural_network.MLPRegressor` with native training and more options.

    It has all parameters, attributes and methods of scikit-learn's class, with the same names, defaults, meanings and
    results. The parameters below are new; the other new parameters and attributes are those of `MLPClassifier`.

    Parameters
    ----------
    loss : str or Loss
        "squared_error", "poisson"; "absolute_error", "huber", "smooth_l1", "gaussian"; or a loss of numbers of this
        library. With ``cnn.QuantileLoss([0.1, 0.5, 0.9])`` `predict` gives shape (n_samples, 3), and of several targets
        (n_samples, n_outputs, 3); with "gaussian" the means.

    Examples
    --------
    >>> from cnn.sklearn import MLPRegressor
    >>> mlp = MLPRegressor(solver="lbfgs", random_state=0).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
    >>> float(mlp.predict([[1.5]]).round()[0])
    4.0
    """

    _parameter_constraints: ClassVar[dict[Any, Any]] = {**peers.MLPRegressor._parameter_constraints, **_CONSTRAINTS}
    _peer = peers.MLPRegressor
    _such_as = "cnn.HuberLoss()"

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str | None = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: int = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        max_fun: int = 15000,
        dropout: float = 0.0,
        batch_norm: bool = False,
        layer_norm: bool = False,
        optimizer: Any = None,
        schedule: Any = None,
        clip_norm: float | None = None,
        ema_decay: float | None = None,
        callbacks: Any = None,
        n_jobs: int | None = None,
        n_members: int = 1,
    ) -> None:
        self.__dict__.update({name: value for name, value in dict(locals()).items() if name != "self"})

    @overload
    def predict(self, X: Any, return_std: Literal[False] = False) -> Array: ...

    @overload
    def predict(self, X: Any, return_std: Literal[True]) -> tuple[Array, Array]: ...

    def predict(self: Any, X: Any, return_std: bool = False) -> Any:
        """The predicted numbers.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
        return_std : bool
            Whether to return their standard deviations too: over the networks (``n_members > 1``), and with the loss
            "gaussian" the root of that squared and the mean of the predicted variances.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs), or a pair of them
            With a `QuantileLoss` the last axis is that of the quantiles.

        Raises
        ------
        ValueError
            If `return_std` is True, but there is one network, and its loss is not "gaussian".
        """
        return (self._predict(X), self._deviations(X)) if return_std else self._predict(X)

    def _deviations(self: Any, X):
        X, models = self._rows(X), self._models()
        gaussian = isinstance(models[0].loss, losses.GaussianNLLLoss)
        if len(models) == 1 and not gaussian:
            raise ValueError('return_std: expected an estimator with n_members > 1 or loss="gaussian"')
        variance = np.var([self._outputs_of(model, X) for model in models], axis=0)
        if gaussian:
            spreads = [model.predict(X, threads=self._threads())[:, variance.shape[1] :] for model in models]
            variance += np.mean(np.exp(spreads) if models[0].loss.log_var else spreads, axis=0)
        std = np.sqrt(variance)
        return std[:, 0] if std.ndim == 2 and std.shape[1] == 1 else std

    def _score(self: Any, X, y, sample_weight=None):
        if getattr(self._network().loss, "outputs_per_target", 1) == 1:
            return super()._score(X, y, sample_weight=sample_weight)
        X, models = self._rows(X), self._models()
        z = np.mean([model.predict(X, threads=self._threads()) for model in models], axis=0)
        return -copy.copy(models[0].loss).forward(z, self._targets(_columns(y)), sample_weight)
