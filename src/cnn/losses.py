"""Losses. One may be the last layer of a `Sequential`, which then computes it natively; each also works alone.

Names, formulas and defaults are PyTorch's. What they have in common:

Outputs are (batch, out_features). `reduction="mean"` divides the weighted sum of the rows' losses by the sum of their
weights, and takes the mean over the columns of an elementwise loss; "sum" adds everything up. A row's weight is that of
its sample (`sample_weight`, 1 without), times the class weight of its class index. Rows of sample weight 0 and rows
whose class index is `ignore_index` do not count at all, whatever the outputs are; where no row counts, the mean loss is
not defined: ValueError (PyTorch: NaN).

Targets are those of the class, (batch, out_features) for elementwise losses; with one output, (batch,) will do. Values
that a loss is not defined for are a ValueError that names the place. NaN in the outputs makes the loss NaN.

Losses of numbers have two more arguments. With `ignore_nan` an element whose target is NaN does not count, as rows of
weight 0 do not: a mean is over the elements that count. With `chosen` one output of each row counts: targets may be a
pair (columns, values), the number of that output and its target, both of shape (batch,). It is what Q-learning asks
for, with the actions as columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from ._checks import choice, flag, fraction, integer, number, positive
from ._configurable import Configurable
from ._dispatch import kernels
from ._types import ArrayLike
from .functional import real_dtype

__all__ = [
    "BCEWithLogitsLoss",
    "CallableLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "QuantileLoss",
    "SmoothL1Loss",
    "SobolevLoss",
]
__dir__ = __all__.copy  # for completion


# What outputs can be, and above which of them a row, or a column, belongs to class 1.
YES_ABOVE = {
    "values": 0.5,  # what the targets are, as numbers
    "log_values": math.log(0.5),
    "logits": 0.0,
    "probabilities": 0.5,
    "log_probabilities": math.log(0.5),
}


def probabilities_of(model: Any, who: str = "predict_proba") -> str:
    """What makes probabilities of a model's outputs: "classes" for the softmax of logits, "logits" for their sigmoid,
    "log_probabilities" for the exponential, "probabilities" for nothing.

    ValueError if nothing does.
    """
    loss = model.loss
    kind = model.outputs or (loss and loss.outputs)
    if kind in ("probabilities", "log_probabilities"):
        return kind
    if kind == "logits":
        return "classes" if loss.targets == "labels" else kind
    if loss is None:
        why = "the model has neither a loss nor probabilities as outputs: end it with a loss, or a cnn.Softmax()"
    elif kind is None:
        why = f"{loss!r} does not define probabilities: end the layers with a cnn.Softmax() or cnn.Sigmoid()"
    else:
        why = f"the outputs are {kind.replace('log_', 'logarithms of ')} with {loss!r}, not logits: predict gives them"
    raise ValueError(f"{who}: {why}")


def _int64(name: str, value) -> int:
    """An int of 64 bits."""
    if integer(name, value, -(2**63)) >= 2**63:
        raise ValueError(f"{name}: expected a 64-bit int, got {value}")
    return int(value)


def _numbers(name: str, value, what: str, good: Callable[..., Any]) -> np.ndarray:
    """A sequence of numbers, one for each output, as a read-only float64 vector; `what` they are if `good`."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected numbers, got dtype {array.dtype}")
    array = array.astype(np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name}: expected one number for each output, got an array of shape {array.shape}")
    bad = np.flatnonzero(~good(array))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] is {array[bad[0]]}, expected {what}")
    array.flags.writeable = False
    return array


def _weights(name: str, value) -> np.ndarray | None:
    """Weights, one for each output, or None."""
    if value is None:
        return None
    return _numbers(name, value, "a finite number, not below 0", lambda w: np.isfinite(w) & (w >= 0))


_made_of: WeakKeyDictionary[Loss, dict[Any, dict[int, Any]]] = WeakKeyDictionary()  # beside the losses: these pickle


class Loss(Configurable, kind="loss"):
    """A function of outputs and targets with its gradient: `loss(outputs, targets)`, then `loss.backward()`.

    Parameters
    ----------
    reduction : {"mean", "sum"}
        What is done with the losses of the rows, see the module's docstring.

    Attributes
    ----------
    kind : str
        The kernels' name for it.
    outputs : str or None
        What the outputs are, a key of `YES_ABOVE`; None if nothing says so.
    targets : {"numbers", "labels", "probabilities"} or None
        "numbers" of the outputs' shape; "labels", class indices or the classes' probabilities; "probabilities", one yes
        or no for each output. None if nothing says so.
    convex : bool
        Whether it is convex in the outputs.
    has_second_derivative : bool
        Whether `hvp` is defined.
    gauss_newton : bool
        Whether its Gauss-Newton matrix is of use: convex, and not made of planes.
    column : str or None
        The argument that has a number for each output.
    outputs_per_target : int
        How many outputs belong to a target.
    criterion : dict
        What the targets are, as the kernels check them: see `Criterion` in kernels/targets.pxi.
    """

    facts: ClassVar[tuple[str, ...]] = (
        "kind",
        "outputs",
        "targets",
        "criterion",
        "convex",
        "has_second_derivative",
        "column",
        "_parameters",
    )
    kind: ClassVar[str]
    outputs: str | None
    targets: ClassVar[str | None]
    convex: ClassVar[bool]
    has_second_derivative: ClassVar[bool] = True
    gauss_newton: ClassVar[bool] = True
    column: ClassVar[str | None] = None
    outputs_per_target: int = 1
    criterion: ClassVar[dict[str, Any]] = {"targets": "numbers"}
    _if_used: ClassVar[tuple[str, ...]] = ("ignore_nan", "chosen")  # earlier versions read files without them

    def __init__(self, *, reduction: str = "mean") -> None:
        self.reduction: str = choice("reduction", reduction, ("mean", "sum"))
        self._gradient: np.ndarray | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__ and not name.startswith("_"):  # a model has been compiled of it
            raise AttributeError(f"{name}: can only be set in the constructor: create a new loss")
        super().__setattr__(name, value)

    def forward(self, outputs: ArrayLike, targets: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """The loss. Its gradient is kept for `backward`.

        Parameters
        ----------
        outputs : array_like of shape (batch, out_features)
            float32 arrays are computed with in float32, everything else in float64.
        targets : array_like
            See the class.
        sample_weight : array_like of shape (batch,), optional
            Weights of the rows, finite and not negative.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If the batch is empty, the shapes do not fit, a target or a weight is out of range, or no row counts in a
            mean.
        TypeError
            If the arrays are not made of real numbers, or class indices are not integers.
        """
        k = kernels(real_dtype(outputs))
        loss, self._gradient = k.loss_and_gradient(self, self._made(k), outputs, targets, sample_weight)
        return loss

    __call__ = forward

    def backward(self) -> np.ndarray:
        """The gradient of the last `forward` with respect to its outputs.

        Returns
        -------
        ndarray of shape (batch, out_features)
            A copy, of the dtype that `forward` computed with.

        Raises
        ------
        RuntimeError
            If there was no `forward`.
        """
        if self._gradient is None:
            raise RuntimeError("backward needs a forward pass, but there was none: call forward first")
        return self._gradient.copy()

    def hvp(
        self, outputs: ArrayLike, targets: ArrayLike, vector: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> np.ndarray:
        """The second derivative of the loss with respect to the outputs, times a vector of their shape.

        Where the second derivative is zero almost everywhere (`L1Loss`, `QuantileLoss`, `NLLLoss`), so is this.

        Parameters
        ----------
        outputs, targets : array_like
            As in `forward`.
        vector : array_like of shape (batch, out_features)
        sample_weight : array_like of shape (batch,), optional
            As in `forward`.

        Returns
        -------
        ndarray of shape (batch, out_features)

        Raises
        ------
        ValueError, TypeError
            As in `forward`, or if vector has the wrong shape.
        NotImplementedError
            If `has_second_derivative` is False.
        """
        if not self.has_second_derivative:
            raise NotImplementedError(f"{self!r} has no second derivative")
        k = kernels(real_dtype(outputs))
        return k.loss_and_gradient(self, self._made(k), outputs, targets, sample_weight, vector)[1]

    def _made(self, k) -> dict[int, Any]:
        """Number of outputs -> what these kernels have made of the loss, which cannot change; filled in by them."""
        return _made_of.setdefault(self, {}).setdefault(k, {})

    def spec(self) -> dict[str, Any] | None:
        """The description of the loss for the kernels (`Criterion` in kernels/targets.pxi).

        Returns
        -------
        dict or None
            None if the kernels do not support the loss.
        """
        spec: dict[str, Any] = {
            "kind": self.kind,
            "name": type(self).__name__,
            "mean": self.reduction == "mean",
            "parameters": [float(number) for number in self._parameters()],
            "per_target": self.outputs_per_target,
            **self.criterion,
        }
        if hasattr(self, "ignore_index"):
            spec["ignore_index"] = self.ignore_index
        if self.column is not None:
            numbers = getattr(self, self.column)
            spec["column"] = numbers.tolist() if isinstance(numbers, np.ndarray) else numbers
            spec["column_name"] = self.column
        return spec

    def _parameters(self) -> tuple[Any, ...]:
        """The numbers of the formula, in the kernels' order."""
        return ()

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments; those of `_if_used` only where they are in use.

        Returns
        -------
        dict
            By name, as JSON can hold them.
        """
        return {name: value for name, value in super().get_config().items() if value or name not in self._if_used}


class _OfNumbers(Loss, abstract=True):
    """A loss of targets that are numbers, some of which may be missing.

    Parameters
    ----------
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.
    """

    targets: ClassVar[str | None] = "numbers"
    chosen = False

    def __init__(self, *, reduction: str = "mean", ignore_nan: bool = False) -> None:
        super().__init__(reduction=reduction)
        self.ignore_nan: bool = flag("ignore_nan", ignore_nan)

    def spec(self) -> Any:
        spec: Any = super().spec()
        return {**spec, "ignore_nan": self.ignore_nan or self.chosen, "chosen": self.chosen}


class _OfChosen(_OfNumbers, abstract=True):
    """A loss of numbers that can be that of one output of each row.

    Parameters
    ----------
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.
    chosen : bool
        Whether targets are pairs (columns, values); implies ignore_nan.
    """

    outputs: str | None = "values"

    def __init__(self, *, reduction: str = "mean", ignore_nan: bool = False, chosen: bool = False) -> None:
        super().__init__(reduction=reduction, ignore_nan=ignore_nan)
        self.chosen: bool = flag("chosen", chosen)


class MSELoss(_OfChosen):
    """Mean squared error: (outputs - targets)**2.

    Parameters
    ----------
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.
    chosen : bool
        Whether one output of each row counts, and targets are pairs (columns, values); implies ignore_nan.

    Examples
    --------
    >>> loss = MSELoss()
    >>> loss([[1.0, 2.0]], [[0.0, 0.0]])
    2.5
    >>> loss.backward()
    array([[1., 2.]])
    >>> MSELoss(chosen=True)([[1.0, 2.0], [3.0, 4.0]], ([1, 0], [2.5, 4.0]))
    0.625
    """

    kind = "mse"
    convex = True


class L1Loss(_OfChosen):
    """Mean absolute error: abs(outputs - targets). Where they are equal, the gradient is 0.

    Parameters
    ----------
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.
    chosen : bool
        Whether one output of each row counts, and targets are pairs (columns, values); implies ignore_nan.
    """

    kind = "l1"
    convex = True
    gauss_newton = False


class HuberLoss(_OfChosen):
    """Squared near the target, linear far from it: with d = outputs - targets, d**2 / 2 where abs(d) <= delta, and
    delta (abs(d) - delta / 2) elsewhere.

    Parameters
    ----------
    delta : float
        Where the loss becomes linear, above 0.
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.
    chosen : bool
        Whether one output of each row counts, and targets are pairs (columns, values); implies ignore_nan.
    """

    kind = "huber"
    convex = True

    def __init__(
        self, delta: float = 1.0, *, reduction: str = "mean", ignore_nan: bool = False, chosen: bool = False
    ) -> None:
        super().__init__(reduction=reduction, ignore_nan=ignore_nan, chosen=chosen)
        self.delta: float = positive("delta", delta)

    def _parameters(self):
        return self.delta, 1.0


class SmoothL1Loss(_OfChosen):
    """`HuberLoss(delta=beta)` divided by beta: far from the target its slope is 1, whatever beta is.

    Parameters
    ----------
    beta : float
        Where the loss becomes linear, at least 0; 0 is `L1Loss`.
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.
    chosen : bool
        Whether one output of each row counts, and targets are pairs (columns, values); implies ignore_nan.
    """

    kind = "huber"
    convex = True

    def __init__(
        self, beta: float = 1.0, *, reduction: str = "mean", ignore_nan: bool = False, chosen: bool = False
    ) -> None:
        super().__init__(reduction=reduction, ignore_nan=ignore_nan, chosen=chosen)
        self.beta: float = number("beta", beta, 0)

    def _parameters(self):
        return self.beta, self.beta


class BCEWithLogitsLoss(Loss):
    """Binary cross-entropy of sigmoid(outputs): one yes or no for each output.

    With p = sigmoid(y): -(pos_weight t log(p) + (1 - t) log(1 - p)), computed from the logits y so that nothing
    overflows. t is a target, a probability from 0 to 1, less label_smoothing times (target - 1/2).

    Parameters
    ----------
    pos_weight : float or array_like of shape (out_features,), optional
        Weight of the positives, one for all outputs or one for each: number of negatives / number of positives balances
        them. Finite and not negative.
    label_smoothing : float
        From 0 to 1.
    reduction : {"mean", "sum"}
    """

    kind = "bce"
    outputs: str | None = "logits"
    targets: ClassVar[str | None] = "probabilities"
    convex = True
    criterion: ClassVar[dict[str, Any]] = {"targets": "numbers", "high": 1.0, "expected": "a probability from 0 to 1"}
    column: ClassVar[str | None] = "pos_weight"
    _if_used: ClassVar = ("label_smoothing",)

    def __init__(
        self, *, pos_weight: float | ArrayLike | None = None, label_smoothing: float = 0.0, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction=reduction)
        self.label_smoothing: float = fraction("label_smoothing", label_smoothing)
        one = pos_weight is not None and np.ndim(pos_weight) == 0
        self.pos_weight: Any = number("pos_weight", pos_weight, 0) if one else _weights("pos_weight", pos_weight)

    def _parameters(self):
        return (self.label_smoothing,)


class CrossEntropyLoss(Loss):
    """Cross-entropy of softmax(outputs); the outputs are logits (batch, classes).

    Targets are class indices, integers of shape (batch,) from 0 to classes - 1, or class probabilities, floats of shape
    (batch, classes), which are used as they are: their sum is not made 1. Whole floats and bools of shape (batch,), a
    column (batch, 1), and integers of shape (batch, classes) with one 1 in each row are class indices too. A row's loss
    is the sum over the classes c of -weight[c] q[c] log(softmax(outputs)[c]), where q is (1 - label_smoothing) times
    the probabilities (1 for the class index) plus label_smoothing / classes. The mean divides by the sum of the weights
    of the class indices, or by the number of rows for class probabilities, as in PyTorch, and either with the sample
    weights.

    Parameters
    ----------
    weight : array_like of shape (classes,), optional
        Class weights, finite and not negative.
    ignore_index : int
        Rows with this class index do not count.
    label_smoothing : float
        From 0 to 1 (Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2016).
    reduction : {"mean", "sum"}

    Examples
    --------
    >>> loss = CrossEntropyLoss()
    >>> loss([[1.0, 1.0], [0.0, 100.0]], [0, 1])
    0.34657359027997264
    >>> loss([[1.0, 1.0], [0.0, 100.0]], [0, -100])
    0.6931471805599453
    """

    kind = "cross_entropy"
    outputs: str | None = "logits"
    targets: ClassVar[str | None] = "labels"
    convex = True
    criterion: ClassVar[dict[str, Any]] = {
        "targets": "labels or probabilities",
        "high": np.inf,
        "expected": "a finite class probability, not below 0",
    }
    column: ClassVar[str | None] = "weight"

    def __init__(
        self,
        weight: ArrayLike | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.weight: np.ndarray | None = _weights("weight", weight)
        self.ignore_index: int = _int64("ignore_index", ignore_index)
        self.label_smoothing: float = fraction("label_smoothing", label_smoothing)

    def spec(self) -> dict[str, Any]:
        spec: Any = super().spec()
        if spec["column"] is None and self.label_smoothing:
            spec["column"] = 1.0  # smoothing goes by the class weights
        return spec

    def _parameters(self):
        return (self.label_smoothing,)


class NLLLoss(Loss):
    """Negative log-likelihood: -outputs[target], the outputs being log-probabilities (batch, classes).

    After `LogSoftmax`, which together are `CrossEntropyLoss`. Targets are class indices as there.

    Parameters
    ----------
    weight : array_like of shape (classes,), optional
        Class weights, finite and not negative.
    ignore_index : int
        Rows with this class index do not count.
    reduction : {"mean", "sum"}
    """

    kind = "nll"
    outputs: str | None = "log_probabilities"
    targets: ClassVar[str | None] = "labels"
    convex = True
    gauss_newton = False
    criterion: ClassVar[dict[str, Any]] = {"targets": "labels"}
    column: ClassVar[str | None] = "weight"

    def __init__(self, weight: ArrayLike | None = None, *, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        self.weight: np.ndarray | None = _weights("weight", weight)
        self.ignore_index: int = _int64("ignore_index", ignore_index)


class PoissonNLLLoss(_OfNumbers):
    """Negative log-likelihood of counts with a Poisson distribution: exp(y) - t y, or y - t log(y + eps).

    Targets t are counts: finite and not negative, not necessarily whole.

    Parameters
    ----------
    log_input : bool
        Whether the outputs y are logarithms of the rates (the first formula) or the rates (the second), which must then
        be above -eps: elsewhere the loss is NaN.
    full : bool
        Add Stirling's approximation of log(t!), t log(t) - t + log(2 pi t) / 2, for t > 1. It changes no gradient.
    eps : float
        Keeps log(0) away if log_input is False.
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.
    """

    kind = "poisson"
    convex = True
    criterion: ClassVar[dict[str, Any]] = {
        "targets": "numbers",
        "high": np.inf,
        "expected": "a finite count, not below 0",
    }

    def __init__(
        self,
        *,
        log_input: bool = True,
        full: bool = False,
        eps: float = 1e-8,
        reduction: str = "mean",
        ignore_nan: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, ignore_nan=ignore_nan)
        self.log_input: bool = flag("log_input", log_input)
        self.full: bool = flag("full", full)
        self.eps: float = number("eps", eps, 0)

    @property
    def outputs(self) -> str:  # type: ignore[override]
        """What the outputs are: rates or their logarithms."""
        return "log_values" if self.log_input else "values"

    def _parameters(self):
        return self.log_input, self.full, self.eps


class QuantileLoss(_OfNumbers):
    """Pinball loss: with d = targets - outputs, max(q d, (q - 1) d), least where the output is the targets' quantile q.

    One output for each quantile (Koenker and Bassett, Regression Quantiles, 1978). Of several targets, those of the
    first come first: ``outputs.reshape(batch, targets, quantiles)``. Targets are (batch, targets), each for all of its
    quantiles, or of the outputs' shape; with one target, (batch,) will do. Where d is 0, the gradient is 0.

    Parameters
    ----------
    quantiles : float or array_like of shape (n_quantiles,)
        Between 0 and 1, both excluded.
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.

    Examples
    --------
    >>> QuantileLoss([0.1, 0.5, 0.9])([[0.0, 1.0, 2.0]], [3.0])
    0.7333333333333334
    """

    kind = "quantile"
    outputs: str | None = "values"
    convex = True
    gauss_newton = False
    criterion: ClassVar[dict[str, Any]] = {"targets": "numbers", "repeat": True}
    column: ClassVar[str | None] = "quantiles"

    @property
    def outputs_per_target(self) -> int:  # type: ignore[override]
        """As many as there are quantiles."""
        return len(self.quantiles)

    def __init__(self, quantiles: float | ArrayLike, *, reduction: str = "mean", ignore_nan: bool = False) -> None:
        super().__init__(reduction=reduction, ignore_nan=ignore_nan)
        values = [quantiles] if np.ndim(quantiles) == 0 else quantiles
        self.quantiles: np.ndarray = _numbers(
            "quantiles", values, "a number between 0 and 1", lambda q: (q > 0) & (q < 1)
        )


class GaussianNLLLoss(_OfNumbers):
    """Negative log-likelihood of numbers with a normal distribution: (log(v) + (m - t)**2 / v) / 2.

    Two outputs for each target t: the first half of a row's outputs are the means m, the second half the logarithms of
    the variances v, or with ``log_var=False`` the variances: ``mean, log_var = np.split(outputs, 2, axis=1)``. v is eps
    where it would be less, and the gradient is then that of the formula at eps. Both are PyTorch's, whose loss takes
    means and variances as two arguments. Targets are (batch, out_features / 2); with two outputs, (batch,) will do.

    Parameters
    ----------
    log_var : bool
        Whether the second half are logarithms. If not, variances must not be negative: let that half end with a
        `Softplus`; the loss is NaN where they are.
    full : bool
        Add the constant log(2 pi) / 2.
    eps : float
        The least variance, at least 0.
    reduction : {"mean", "sum"}
    ignore_nan : bool
        Whether elements whose target is NaN do not count.

    Examples
    --------
    >>> GaussianNLLLoss()([[1.0, 0.0]], [3.0])
    2.0
    """

    kind = "gaussian"
    outputs: str | None = "values"
    convex = False
    gauss_newton = False
    outputs_per_target = 2

    def __init__(
        self,
        *,
        log_var: bool = True,
        full: bool = False,
        eps: float = 1e-6,
        reduction: str = "mean",
        ignore_nan: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, ignore_nan=ignore_nan)
        self.log_var: bool = flag("log_var", log_var)
        self.full: bool = flag("full", full)
        self.eps: float = number("eps", eps, 0)

    def _parameters(self):
        return self.log_var, self.full, self.eps


class SobolevLoss(Loss):
    """Squared errors of the outputs and of their derivatives by the inputs (Czarnecki et al., Sobolev Training for
    Neural Networks, 2017): mean (u - y)**2 + weight mean (du/dx - dy)**2.

    A target is a row of values and then derivatives, those of the first output by each input first:
    ``np.column_stack([y, dy.reshape(batch, -1)])`` with y (batch, out_features) and dy (batch, out_features,
    in_features), or the pair ``(y, dy)``. Each mean is over the elements that count; rows have their sample weights.

    Parameters
    ----------
    weight : float
        Of the derivatives, at least 0. Where they are of another size than the values it makes up for that.
    reduction : {"mean", "sum"}
        "sum" adds all elements up.
    ignore_nan : bool
        Whether elements whose target is NaN do not count, as values or derivatives that are not known.

    Notes
    -----
    The gradient in the parameters is exact; the loss's step is not fused. Derivatives are those of evaluation mode, and
    no layer may do something else in training: `Dropout` and `BatchNorm1d` are refused. There is no gradient in x, and
    no Hessian. Metrics are of the values. Alone, the loss takes pairs (values, derivatives) for outputs and targets.

    Examples
    --------
    >>> import cnn, numpy as np
    >>> x = np.linspace(-1, 1, 8)[:, None]
    >>> layers = [cnn.Linear(1, 16), cnn.Tanh(), cnn.Linear(16, 1), cnn.SobolevLoss()]
    >>> model = cnn.Sequential(layers, cnn.LBFGS(), dtype="float64", seed=0)
    >>> history = model.fit(x, (np.sin(3 * x), 3 * np.cos(3 * x)), epochs=200)
    >>> history["loss"][-1] < 1e-3
    True
    """

    kind = "sobolev"  # not in the kernels
    outputs = "values"
    targets = "numbers"
    convex = has_second_derivative = False
    gauss_newton = False

    def __init__(self, weight: float = 1.0, *, reduction: str = "mean", ignore_nan: bool = False) -> None:
        super().__init__(reduction=reduction)
        self.weight = number("weight", weight, 0)
        self.ignore_nan = flag("ignore_nan", ignore_nan)
        self._squares = MSELoss(reduction=reduction, ignore_nan=ignore_nan)

    def value_and_gradients(
        self, outputs: Any, targets: Any, sample_weight: Any = None
    ) -> tuple[float, list[np.ndarray]]:
        """The loss, and its gradients by the values and by the derivatives.

        Parameters
        ----------
        outputs, targets : pair of array_like
            Values (batch, out_features) and derivatives (batch, out_features * in_features).
        sample_weight : array_like of shape (batch,), optional

        Returns
        -------
        loss : float
        gradients : list of two ndarray
            Of the outputs' shapes.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid.
        """
        total, gradients = 0.0, []
        for factor, output, target in zip((1.0, self.weight), outputs, targets, strict=True):
            counts = np.ones(len(output), bool) if sample_weight is None else np.asarray(sample_weight) > 0
            if self.ignore_nan:
                counts = counts & ~np.isnan(target).all(axis=1)
            if not counts.any():
                gradients.append(np.zeros_like(output))
                continue
            total += factor * self._squares.forward(output, target, sample_weight)
            gradients.append(factor * self._squares.backward())
        return total, gradients

    def forward(self, outputs: Any, targets: Any, sample_weight: Any = None) -> float:
        """The loss of pairs (values, derivatives). Its gradients are kept for `backward`.

        Parameters
        ----------
        outputs, targets : pair of array_like
            Values (batch, out_features) and derivatives (batch, out_features, in_features).
        sample_weight : array_like of shape (batch,), optional

        Returns
        -------
        float

        Raises
        ------
        ValueError, TypeError
            If these are not pairs, or an argument is invalid.
        """
        pairs = []
        for name, pair in (("outputs", outputs), ("targets", targets)):
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(f"{name}: expected a pair (values, derivatives), got {_described(pair)}")
            pairs.append(tuple(np.asarray(part).reshape(len(part), -1) for part in pair))
        loss, gradients = self.value_and_gradients(pairs[0], pairs[1], sample_weight)
        self._gradient = tuple(g.reshape(np.shape(part)) for g, part in zip(gradients, outputs, strict=True))  # type: ignore[assignment]
        return loss

    __call__ = forward

    def backward(self) -> Any:
        """The gradients of the last `forward` with respect to its outputs.

        Returns
        -------
        tuple of two ndarray
            Of the shapes of values and derivatives.

        Raises
        ------
        RuntimeError
            If there was no `forward`.
        """
        if self._gradient is None:
            raise RuntimeError("backward needs a forward pass, but there was none: call forward first")
        return tuple(g.copy() for g in self._gradient)

    def spec(self) -> None:
        """None: the kernels do not support this loss."""


class CallableLoss(Loss):
    """A loss of your own, in Python.

    Parameters
    ----------
    function : callable
        `function(outputs, targets)` returns (loss, gradient): a number, and its gradient with respect to the outputs,
        an array of their shape. outputs is an array (batch, out_features) that must not be changed; targets are what
        was passed as targets.
    reduction : {"mean", "sum"}
        Whether the function returns the mean or the sum over the rows of a batch. The history of `fit`, and `evaluate`,
        then do not depend on the batch size.

    Notes
    -----
    The forward and backward passes run in native code, the function between them in Python; the update is not fused.
    Sample weights and second derivatives are not supported. A model file cannot store the function. Because the meaning
    of the outputs is unknown, the metrics "accuracy" and "f1" of one output need a `Sigmoid` as the last layer.

    Examples
    --------
    >>> import numpy as np
    >>> def log_cosh(outputs, targets):
    ...     d = outputs - targets
    ...     return np.log(np.cosh(d)).mean(), np.tanh(d) / d.size
    >>> loss = CallableLoss(log_cosh)
    >>> round(loss([[1.0]], [[0.0]]), 6)
    0.433781
    """

    kind = "callable"  # not in the kernels
    outputs: str | None = None
    targets: ClassVar[str | None] = None
    convex = has_second_derivative = False
    gauss_newton = False

    def __init__(self, function: Callable[..., Any], *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        if not callable(function):
            raise TypeError(f"function: expected a callable (outputs, targets) -> (loss, gradient), got {function!r}")
        self.function = function

    def forward(self, outputs: ArrayLike, targets: Any, sample_weight: Any = None) -> float:
        """The function's loss. Its gradient is kept for `backward`.

        Parameters
        ----------
        outputs : array_like of shape (batch, out_features)
        targets : object
            What the function takes.
        sample_weight : None
            There is none.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If outputs are no matrix, the gradient has another shape or is not finite, or sample_weight is given.
        TypeError
            If the function does not return a number and an array of real numbers.
        """
        if sample_weight is not None:
            raise ValueError(f"sample_weight: expected none with {self!r}, whose function weights the rows itself")
        array = np.asarray(outputs)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"outputs: expected real numbers, got dtype {array.dtype}")
        if array.ndim != 2:
            raise ValueError(f"outputs: expected shape (batch, out_features), got {array.shape}")
        loss, self._gradient = self.value_and_gradient(array.astype(real_dtype(outputs), copy=False), targets)
        return loss

    __call__ = forward

    def value_and_gradient(self, outputs: np.ndarray, targets: Any) -> tuple[float, np.ndarray]:
        """What the function returns, checked. A loss that is not finite is passed on, as that of every other loss.

        Parameters
        ----------
        outputs : ndarray of shape (batch, out_features)
        targets : object
            What the function takes.

        Returns
        -------
        loss : float
        gradient : ndarray of shape (batch, out_features)
            C-contiguous, of the outputs' dtype.

        Raises
        ------
        ValueError, TypeError
            As in `forward`.
        """
        result = self.function(outputs, targets)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"{self!r}: expected (loss, gradient), got {_described(result)}")
        value, gradient = np.asarray(result[0]), np.asarray(result[1])
        if value.dtype.kind not in "fiu" or value.size != 1:
            raise TypeError(f"{self!r}: expected a number for the loss, got {_described(result[0])}")
        if gradient.dtype.kind not in "fiu":
            raise TypeError(f"{self!r}: expected a gradient of real numbers, got dtype {gradient.dtype}")
        if gradient.shape != outputs.shape:
            flat = outputs.shape[1] == 1 and np.ndim(targets) == 1
            mend = ": outputs are a column, targets are not: use targets[:, None]" if flat else ""
            raise ValueError(
                f"{self!r}: expected a gradient of the outputs' shape {outputs.shape}, got {gradient.shape}{mend}"
            )
        loss = float(value.item())
        if np.isfinite(loss) and not np.isfinite(gradient).all():
            row, column = np.argwhere(~np.isfinite(gradient))[0]
            raise ValueError(f"{self!r}: the gradient at [{row}, {column}] is {gradient[row, column]}")
        return loss, np.array(gradient, dtype=outputs.dtype, order="C")

    def spec(self) -> None:
        """None: the kernels do not support this loss."""

    def get_config(self) -> dict[str, Any]:
        """TypeError: a function cannot be written down as JSON."""
        raise TypeError(
            f"{self!r} holds a Python function, which cannot be saved: call model.save(path, loss=False) and then "
            "cnn.load(path, loss=function), or use a loss of the library"
        )

    def __repr__(self) -> str:
        return f"CallableLoss({getattr(self.function, '__qualname__', repr(self.function))})"


def _described(value) -> str:
    """Type and shape of what a user's function returned."""
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    return f"{type(value).__name__}{shape}"
