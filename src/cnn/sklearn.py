"""`MLPClassifier` and `MLPRegressor`: scikit-learn's estimators, trained and evaluated by this library's kernels.

The estimators are subclasses of scikit-learn's: parameters, validation of the input, orders of the rows, stopping rules
and messages are inherited. What costs the time is replaced: forward pass, loss, backward pass and step of a batch are
one native call on a `Sequential`, and so is a prediction. Sparse rows are made dense, batch by batch in training.

The hooks are private to scikit-learn (`_fit_stochastic`, `_backprop`, `_loss_grad_lbfgs`, `_forward_pass_fast`), hence
the bound on its version in the extra `sklearn`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import sklearn.neural_network as peers
from scipy.sparse import issparse
from scipy.special import xlogy
from sklearn.utils.validation import check_is_fitted, validate_data

from . import layers, losses
from .models import Sequential
from .optim import SGD, Adam

__all__ = ["MLPClassifier", "MLPRegressor"]

_ACTIVATIONS: dict[str, Any] = {
    "identity": layers.Identity,
    "logistic": layers.Sigmoid,
    "tanh": layers.Tanh,
    "relu": layers.ReLU,
}
_LOSSES: dict[str, Any] = {  # by the output function
    "softmax": losses.CrossEntropyLoss,
    "logistic": losses.BCEWithLogitsLoss,
    "identity": losses.MSELoss,
    "exp": losses.PoissonNLLLoss,
}


class _Native:
    """What stands in for scikit-learn's arithmetic, before its class in the order of inheritance."""

    _model: Sequential | None

    @property
    def model_(self: Any) -> Sequential:
        """The fitted network. Its outputs are what the output function (softmax, sigmoid, exp) is applied to."""
        check_is_fitted(self)
        return self._network()

    def _network(self: Any) -> Sequential:
        """The model whose memory `coefs_` and `intercepts_` are; made anew if somebody has set others."""
        arrays = list(zip(self.coefs_, self.intercepts_, strict=True))
        model = self.__dict__.get("_model")
        if model is not None:
            own = [layer for layer in model.layers if isinstance(layer, layers.Linear)]
            if len(own) == len(arrays) and all(
                layer.weight.shape == w.shape and np.shares_memory(layer.weight, w) and np.shares_memory(layer.bias, b)
                for layer, (w, b) in zip(own, arrays, strict=True)
            ):
                return model
        parts: list = []
        for w, b in arrays:
            if parts:
                parts.append(_ACTIVATIONS[self.activation]())
            parts.append(layers.Linear.of(w, b))
        loss = _LOSSES[self.out_activation_](reduction="sum")
        self._model = Sequential([*parts, loss], None, parts[0].dtype, 0)
        self._take_arrays()
        return self._model

    def _take_arrays(self: Any) -> None:
        own = [layer for layer in self._model.layers if isinstance(layer, layers.Linear)]
        self.coefs_, self.intercepts_ = [layer.weight for layer in own], [layer.bias for layer in own]

    def __setstate__(self: Any, state):
        super().__setstate__(state)  # type: ignore[misc]
        model = self.__dict__.get("_model")
        if model is not None:
            own = [layer for layer in model.layers if isinstance(layer, layers.Linear)]
            now = [a for layer in own for a in (layer.weight, layer.bias)]
            saved = [a for pair in zip(self.coefs_, self.intercepts_, strict=True) for a in pair]
            if len(now) == len(saved) and all(map(np.array_equal, now, saved)):
                self._take_arrays()  # the copies are not the model's memory; the optimiser's state is worth keeping

    def _penalty(self: Any) -> float:
        """Half the sum of the squares of the weights, times alpha."""
        return 0.5 * self.alpha * sum(float(np.vdot(w, w)) for w in self.coefs_) if self.alpha else 0.0

    def _targets(self: Any, y):
        """Targets as the loss wants them."""
        return y.argmax(axis=1) if self.out_activation_ == "softmax" else np.asarray(y, self.coefs_[0].dtype)

    def _reported(self: Any, loss: float, y, shares) -> float:
        """scikit-learn's number for our sum: the mean over outputs of squares; for counts the deviance's constant."""
        if self.out_activation_ == "identity":
            return loss / self.n_outputs_
        if self.out_activation_ == "exp":
            return loss + float(np.sum(shares * (xlogy(y, y) - y).sum(axis=1)))
        return loss

    def _shares(self: Any, n: int, sample_weight) -> tuple[np.ndarray, float]:
        """How much each row counts in a batch, in all 1, and the sum of the weights."""
        if sample_weight is None:
            return np.full(n, 1.0 / n), n
        total = sample_weight.sum()
        return sample_weight / total, total

    def _fit_stochastic(self: Any, *args):
        incremental = args[-1]
        if not incremental or not hasattr(self, "_optimizer"):
            model = self._network()
            if self.solver == "sgd":
                nesterov = bool(self.nesterovs_momentum and self.momentum > 0)
                model.optimizer = SGD(self.learning_rate_init, self.momentum, nesterov=nesterov, decay_bias=False)
            else:
                betas = self.beta_1, self.beta_2
                model.optimizer = Adam(self.learning_rate_init, betas, self.epsilon, decay_bias=False)
        super()._fit_stochastic(*args)  # type: ignore[misc]

    def _backprop(self: Any, X, y, sample_weight, *_):
        """Train on a batch, natively; the loss before the step. No gradients remain for scikit-learn's optimiser."""
        model = self._network()
        optimizer: Any = model.optimizer
        shares, total = self._shares(X.shape[0], sample_weight)
        penalty, scale = self._penalty() / total, 1.0
        if self.solver == "sgd":  # its velocity contains the rate: another rate scales the gradient, not the momentum
            scale = self._optimizer.learning_rate / optimizer.lr
        else:  # its epsilon is added before the correction of v's bias
            optimizer.eps = self.epsilon / np.sqrt(1 - self.beta_2 ** (self._optimizer.t + 1))
        optimizer.weight_decay = self.alpha / total * scale
        factor = scale * (0.5 if self.out_activation_ == "identity" else 1.0)
        loss = model.train_step(_dense(X), self._targets(y), shares * factor)
        return self._reported(loss / scale, y, shares) + penalty, [], []

    def _loss_grad_lbfgs(self: Any, packed, X, y, sample_weight, *_):
        """The loss of the whole data and its gradient, packed as scikit-learn packs them."""
        model = self._network()
        for i, (start, stop, shape) in enumerate(self._coef_indptr):
            self.coefs_[i][...] = packed[start:stop].reshape(shape)
        for i, (start, stop) in enumerate(self._intercept_indptr):
            self.intercepts_[i][...] = packed[start:stop]
        loss: Any = model.loss
        shares, total = self._shares(X.shape[0], sample_weight)
        factor = 0.5 if self.out_activation_ == "identity" else 1.0
        z = model.forward(_dense(X))
        rows = (shares * factor).astype(z.dtype)
        value = loss.forward(z, self._targets(y), rows)
        model.zero_grads()
        model.backward(loss.backward())
        own = [layer for layer in model.layers if isinstance(layer, layers.Linear)]
        weights = [layer.grad_weight + self.alpha / total * layer.weight for layer in own]
        gradient = np.concatenate([a.ravel() for a in [*weights, *(layer.grad_bias for layer in own)]])
        return self._reported(value, y, shares) + self._penalty() / total, gradient

    def _forward_pass_fast(self: Any, X, check_input=True):
        if check_input:
            X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        model = self._network()
        if self.out_activation_ in ("softmax", "logistic"):
            return model.predict_proba(_dense(X))
        z = model.predict(_dense(X))
        return np.exp(z, out=z) if self.out_activation_ == "exp" else z


def _dense(X):
    return X.toarray() if issparse(X) else X


class MLPClassifier(_Native, peers.MLPClassifier):
    """`sklearn.neural_network.MLPClassifier`, trained natively: parameters, attributes and methods are those.

    Threads are those of `cnn.set_num_threads`.

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


class MLPRegressor(_Native, peers.MLPRegressor):
    """`sklearn.neural_network.MLPRegressor`, trained natively: parameters, attributes and methods are those.

    Threads are those of `cnn.set_num_threads`.

    Examples
    --------
    >>> from cnn.sklearn import MLPRegressor
    >>> mlp = MLPRegressor(solver="lbfgs", random_state=0).fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
    >>> float(mlp.predict([[1.5]]).round()[0])
    4.0
    """
