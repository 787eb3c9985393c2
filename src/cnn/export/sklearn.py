"""`from_sklearn`: a fitted `MLPClassifier` or `MLPRegressor` as a model."""

from __future__ import annotations

from typing import Any

from .. import layers, losses
from .._checks import needed
from ..models import Sequential

_ACTIVATIONS = {
    "identity": layers.Identity,
    "logistic": layers.Sigmoid,
    "tanh": layers.Tanh,
    "relu": layers.ReLU,
}


def from_sklearn(mlp: Any, *, optimizer: Any = None) -> Sequential:
    """The model that computes what a fitted multilayer perceptron of scikit-learn computes.

    `predict` returns the input of scikit-learn's output function:

    - MLPRegressor: the predictions, of shape (n, outputs) also where scikit-learn's are (n,). The loss is MSELoss.
      With ``loss="poisson"`` they are the logarithms of the predictions, and the loss is PoissonNLLLoss.
    - MLPClassifier of more than two classes: logits, whose softmax is `predict_proba`. The loss is CrossEntropyLoss;
      class index k is `mlp.classes_[k]`.
    - MLPClassifier of two classes: one column, the logit of `mlp.classes_[1]`; its sigmoid is
      `predict_proba(x)[:, 1]`, it is positive where that class is predicted. With several labels, one column each.

    Parameters
    ----------
    mlp : sklearn.neural_network.MLPClassifier or MLPRegressor
        Fitted. An estimator of `cnn.sklearn` works too: its `model_` is copied. In a `Pipeline` with a StandardScaler,
        the scaler becomes part of the first layer. Of a search object, `best_estimator_` is read.
    optimizer : optional
        For further training of the new model; scikit-learn's is not carried over.

    Returns
    -------
    Sequential
        Of the dtype that mlp was fitted with, float32 or float64.

    Raises
    ------
    TypeError
        If mlp is something else.
    ValueError
        If it is not fitted, or minimises a loss that this library does not have.
    """
    needed("from_sklearn", "sklearn", "'cnn[sklearn]'")
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    mlp = getattr(mlp, "best_estimator_", mlp)
    if isinstance(mlp, Pipeline):
        *before, (_, last) = [step for step in mlp.steps if step[1] not in (None, "passthrough")]
        model = from_sklearn(last, optimizer=optimizer)
        first: Any = model.layers[0]
        for name, scaler in reversed(before):
            if not isinstance(scaler, StandardScaler):
                raise TypeError(f"mlp: its step {name}: expected a StandardScaler, got {type(scaler).__name__}")
            weight = first.weight.astype("float64")
            if scaler.with_std:
                weight = weight / scaler.scale_[:, None]
            if scaler.with_mean:
                first.bias = first.bias - scaler.mean_ @ weight
            first.weight = weight
        return model
    if not isinstance(mlp, (MLPClassifier, MLPRegressor)):
        raise TypeError(f"mlp: expected an MLPClassifier or MLPRegressor, got {type(mlp).__name__}")
    if not hasattr(mlp, "coefs_"):
        raise ValueError(f"mlp: this {type(mlp).__name__} is not fitted: call fit first")
    if hasattr(mlp, "model_"):  # one of cnn.sklearn
        model = mlp.model_.copy()
        model.optimizer = optimizer
        return model
    loss = _loss(mlp)
    parts: list[Any] = []
    for weight, bias in zip(mlp.coefs_, mlp.intercepts_, strict=True):
        if parts:
            parts.append(_ACTIVATIONS[mlp.activation]())
        parts.append(layers.Linear.of(weight, bias))
    return Sequential([*parts, *([loss] if loss else [])], optimizer, parts[0].dtype)


def _loss(mlp) -> losses.Loss | None:
    """The loss that mlp was trained with, without its penalty alpha."""
    kind = mlp.out_activation_
    if kind == "softmax":
        return losses.CrossEntropyLoss()
    if kind == "logistic":
        return losses.BCEWithLogitsLoss()
    if kind == "identity":
        return losses.MSELoss()
    if kind == "exp":
        return losses.PoissonNLLLoss()
    raise ValueError(f"mlp: expected the output function identity, logistic, softmax or exp, got {kind!r}")
