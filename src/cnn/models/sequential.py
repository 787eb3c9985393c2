"""`Sequential`: a chain of layers, compiled once into a native program that does all the work.

This file turns calls on the model into calls on the program. core.py compiles the model, derivatives.py has derivative
products, training/fit.py the training loop, files/checkpoint.py files.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .. import layers, losses, optim
from .._checks import foreign, fraction, in_range, integer, seed_of, transposed, users_line
from .._configurable import no_attribute, object_for
from .._dispatch import kernels
from .._threads import get_num_threads, threads_for
from .._types import Array, ArrayLike, DTypeLike
from ..files import checkpoint
from ..layers import Layer
from ..layers.graph import computes_natively
from ..training import fit as fitting
from ..training.history import History
from ..training.state import STATISTICS
from . import derivatives, residual
from .core import PARAMETERS, Core

__all__ = ["Sequential"]


class Sequential(layers.Chain):
    """A chain of layers that trains and predicts natively.

    Parameters
    ----------
    layers : sequence of Layer
        Layers in order, at least one of them a `Linear`. The last may be a loss, or a function as for `CallableLoss`.
        Each layer must accept the width of the one before. A layer that already belongs to a model is copied with its
        parameters (`model[:k]` shares memory instead); a `Sequential` becomes part of the new model.
    optimizer : Optimizer, optional
        Needed for `step`, `train_step` and `fit`. Setting another one later resets momentum, schedule and the order of
        the rows in `fit`.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic. Inputs of another dtype are converted.
    seed : int or numpy.random.Generator, optional
        For the initial parameters and the order of the rows in `fit`; gives the same numbers on every platform. None:
        different in every run. A generator is used to draw a seed, so that models made with it one after another
        differ.
    *rest
        Not used: layers that are passed one by one, not as a list, raise a TypeError.

    Attributes
    ----------
    layers : list of Layer
        The layers passed in, or their copies, without the loss. Their arrays are views of the model's memory.
    optimizer, loss, dtype, seed
        As passed in; `loss` is None if there is none. The optimizer and the loss can be set.
    training : bool
        The mode, which `train` and `eval` set.

    Raises
    ------
    ValueError
        If there is no Linear, widths do not match, a loss is not last, or a layer is used twice.
    TypeError
        If something in the list is not a layer.

    Examples
    --------
    >>> model = Sequential([Linear(2, 8), Tanh(), Linear(8, 1), MSELoss()], optimizer=SGD(lr=0.2), seed=0)
    >>> x, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    >>> for _ in range(2000):
    ...     loss = model.train_step(x, y)
    >>> model.predict(x).round().ravel().tolist()
    [0.0, 1.0, 1.0, 0.0]
    """

    _fixed = ("layers", "seed")

    def __init__(
        self, layers: Any, optimizer: Any = None, dtype: DTypeLike = "float32", seed: Any = None, *rest: Any
    ) -> None:
        if rest or (isinstance(layers, Layer) and isinstance(optimizer, (Layer, losses.Loss))):
            raise TypeError(
                f"layers: expected one list, Sequential([{layers!r}, ...]), got the layers as separate arguments"
            )
        kernels(dtype)  # the first argument to be wrong is the first to be named
        parts, self._loss = _split(layers)
        self.layers: list[Layer] = _in_no_other_model(parts)
        self.seed: int | None = seed_of(seed)
        self._core = Core(self.layers, dtype, self.seed)
        self._core.compile(self, self._loss)
        self.optimizer = optimizer
        _warn_of_twice(self)

    if not TYPE_CHECKING:
        __getattr__ = no_attribute

    @property
    def n_parameters(self) -> int:
        """Number of parameters, of all layers."""
        return int(self._core.program.n_parameters)

    @property
    def dtype(self) -> np.dtype:
        """Of parameters and arithmetic: numpy.dtype("float32") or numpy.dtype("float64")."""
        return self._core.dtype

    @property
    def loss(self) -> losses.Loss | None:
        """The loss, or None. Another loss can be set, or a function as for `CallableLoss`."""
        return self._loss

    @loss.setter
    def loss(self, loss: Any) -> None:
        loss = _as_loss(loss)
        if loss is not None and not isinstance(loss, losses.Loss):
            mend = object_for(loss, losses.Loss.known)
            raise TypeError(f"loss: expected a loss such as cnn.MSELoss(), a function, or None, got {loss!r}{mend}")
        if loss is not None:
            computes_natively(loss, f"loss {loss!r}")
        self._core.set_loss(loss)
        self._loss = loss
        _warn_of_twice(self)

    @property
    def optimizer(self) -> optim.Optimizer | None:
        """The optimiser, or None. Setting another one resets momentum, schedule and the order of the rows in `fit`."""
        return self._core.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        if optimizer is not None and not isinstance(optimizer, optim.Optimizer):
            mend = object_for(optimizer, optim.Optimizer.known)
            raise TypeError(f"optimizer: expected an optimiser such as cnn.SGD(), got {optimizer!r}{mend}")
        self._core.set_optimizer(optimizer)

    @property
    def training(self) -> bool:
        """Whether the model is in training mode; its layers may have other modes, see `Layer.training`."""
        return self._core.state.training

    @training.setter
    def training(self, mode: Any) -> None:
        self._core.state.training = bool(mode)
        for layer in self.layers:
            layer.training = mode

    @property
    def history(self) -> History | None:
        """The history of the last `fit`, including one that an exception ended; None before the first."""
        return self._core.state.history

    @history.setter
    def history(self, history: Any) -> None:
        self._core.state.history = history

    @property
    def _kernels(self):
        return self._core.kernels

    # in another model -------------------------------------------------------------------------------------------------

    def _in_features(self):
        return self._core.in_features

    def _changes_width(self):
        return True

    def _may_nest(self, where):
        for name, part in (("loss", self.loss), ("optimizer", self.optimizer)):
            if part is not None:
                raise ValueError(f"{where}: a Sequential in a model has no {name} of its own, got {part!r}")

    # the explicit loop ------------------------------------------------------------------------------------------------

    @overload
    def forward(self, x: Any, targets: None = None) -> Array: ...
    @overload
    def forward(self, x: Any, targets: ArrayLike) -> float: ...
    def forward(self, x: Any, targets: ArrayLike | None = None) -> Any:
        """Compute the outputs, or with targets the loss, and store what `backward` needs.

        Parameters
        ----------
        x : array_like or sparse matrix of shape (batch, in_features)
            Copied: changing it later does not change what `backward` computes. With other leading axes, or sparse,
            as for `predict`.
        targets : array_like, optional
            In the form that the loss expects: class indices of shape (batch,), or numbers of shape (batch,
            out_features); if x has several leading axes, those in place of batch.

        Returns
        -------
        ndarray of shape (batch, out_features), or float
            Without targets, the outputs of the last layer before the loss; with targets, the loss.

        Raises
        ------
        ValueError, TypeError
            If x or targets have the wrong shape or dtype.
        RuntimeError
            If there are targets but no loss.
        """
        core = self._core
        if core.nested:
            core.tell_modes()
        return core.program.forward(x, targets, get_num_threads())

    __call__ = forward

    def backward(self, grad_output: ArrayLike | None = None, debug: bool = False, parameters: bool = True) -> Any:
        """Compute the gradients of the last `forward`, and add those of the parameters to `gradients`.

        Parameters
        ----------
        grad_output : array_like of shape (batch, out_features), optional
            The gradient of the outputs. None: that of the loss, if the last `forward` had targets.
        debug : bool
            Log each op of the backward pass through `logging`, logger "cnn", level INFO: what it reads and writes, and
            the shapes and norms of its output and its gradients. Raise FloatingPointError at the first op with a NaN
            gradient.
        parameters : bool
            False: compute only the gradient of x, and leave `gradients` as they are.

        Returns
        -------
        ndarray of shape (batch, in_features), or None
            The gradient of x; None if x was sparse.

        Raises
        ------
        RuntimeError
            If there was no `forward`, or if a later call has overwritten what it stored or changed the parameters.
        ValueError, TypeError
            If grad_output has the wrong shape or dtype, or parameters is False and x was sparse.
        """
        core = self._core
        if not debug:
            return core.program.backward(grad_output, get_num_threads(), bool(parameters))
        before = self.gradients
        grad_x = core.program.backward(grad_output, get_num_threads(), bool(parameters))
        try:
            from . import diagram  # loads logging, subprocess and more, which `import cnn` does without

            diagram.report(self)
        except FloatingPointError:
            core.unpack(before, "grad_weight", "grad_bias")
            raise
        return grad_x

    def step(self, gradients: ArrayLike | None = None) -> None:
        """Take a step of the optimiser, with the current gradients or with given ones.

        Parameters
        ----------
        gradients : array_like of shape (n_parameters,), optional
            In the order of `parameters`; they are set before the step.

        Raises
        ------
        RuntimeError
            If there is no optimizer.
        ValueError, TypeError
            If gradients has the wrong shape or dtype.
        """
        self._core.need_optimizer()
        if gradients is not None:
            self.gradients = gradients
        self._core.program.step(self._core.rates())

    def end_epoch(self, logs: dict[str, Any] | None = None) -> None:
        """End an epoch of your own training loop; `fit` does this itself.

        A schedule with ``interval="epoch"`` moves to its next learning rate, and `ReduceLROnPlateau` reads the value
        that it monitors. A later `fit` continues with the learning rate and the order of the rows of the next epoch.

        Parameters
        ----------
        logs : mapping or float, optional
            Needed for `ReduceLROnPlateau` only: numbers by name, such as "val_loss", or the number that it monitors.

        Raises
        ------
        RuntimeError
            If there is no optimizer.
        ValueError, TypeError
            If the schedule monitors a name that is not in logs.

        Examples
        --------
        >>> model = Sequential([Linear(1, 1), MSELoss()], optimizer=SGD(lr=0.1, schedule=StepLR(1)), seed=0)
        >>> for epoch in range(3):
        ...     loss = model.train_step([[0.0], [1.0]], [1.0, 3.0])
        ...     model.end_epoch()
        """
        self._core.need_optimizer()
        self._core.end_epoch(logs)

    def zero_grads(self) -> None:
        """Set all gradients to zero."""
        self._core.program.zero_grads()

    def loss_and_grad(self, x: Any, y: ArrayLike, *, comm: Any = None, shards: int = 8) -> tuple[float, Array]:
        """The loss and its gradient as one vector, in the order of `parameters`, as scipy.optimize expects them.

        It also sets `gradients`. The model stays in its mode, training or evaluation.

        Parameters
        ----------
        x : array_like or sparse matrix of shape (batch, in_features)
        y : array_like
            As `targets` of `forward`.
        comm, shards : optional
            As for `fit`: x and y are the rows of this rank, and the loss is that of all rows.

        Returns
        -------
        loss : float
        gradient : ndarray of shape (n_parameters,)

        Raises
        ------
        ValueError, TypeError
            If x or y have the wrong shape or dtype, or the batch is empty.
        RuntimeError
            If there is no loss.
        """
        core = self._core
        if comm is not None:
            with _shared(self, comm, shards) as (program, threads):
                return program.loss_and_grad(x, y, threads, core.state.training)
        return core.program.loss_and_grad(x, y, get_num_threads(), core.state.training)

    # derivative products (derivatives.py) -----------------------------------------------------------------------------

    vjp = derivatives.vjp
    jvp = derivatives.jvp
    jacobian = derivatives.jacobian
    grad_input = derivatives.grad_input
    hvp = derivatives.hvp
    gnvp = derivatives.gnvp
    hvp_input = derivatives.hvp_input
    hessian_operator = derivatives.hessian_operator
    derivatives = residual.derivatives
    residual_loss_and_grad = residual.residual_loss_and_grad

    # native training and prediction -----------------------------------------------------------------------------------

    def train_step(
        self, x: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, *, comm: Any = None, shards: int = 8
    ) -> float:
        """Forward, loss, backward and the optimiser's step in one native call.

        The step is fused with the computation of the gradients, which are not stored: `gradients` stay as they are.
        With a loss of your own nothing is fused, and `gradients` are those of this step. From two rows on, the result
        equals that of `loss_and_grad` and `step` to the last bit. That of `forward`, `backward` and `step` may differ
        by a few roundings, because the order of sums differs: for one row, and for many rows of narrow networks.

        For an optimiser that needs the whole data (`LBFGS`), these rows are the whole data of one iteration.

        Parameters
        ----------
        x : array_like or sparse matrix of shape (batch, in_features)
        y : array_like
            As `targets` of `forward`.
        sample_weight : array_like of shape (batch,), optional
            Weights of the rows: finite, at least 0.
        comm, shards : optional
            As for `fit`: the arrays are the rows of this rank, and the batch is those of all ranks.

        Returns
        -------
        float
            The loss of the batch, before the step.

        Raises
        ------
        ValueError, TypeError
            If x or y have the wrong shape or dtype, or the batch is empty.
        RuntimeError
            If there is no loss or no optimizer.
        """
        core = self._core
        if comm is not None:
            with _shared(self, comm, shards) as (program, threads):
                core.need_optimizer()
                if core.optimizer.whole_data:
                    return program.whole_step(core, x, y, sample_weight, threads)
                return program.train_step(x, y, threads, sample_weight, core.rates())
        if core.optimizer is None:
            core.need_optimizer()
        if core.optimizer.whole_data:
            return core.whole_step(x, y, sample_weight, get_num_threads())
        rates = None if core.optimizer._schedule is None else core.rates()
        return core.program.train_step(x, y, get_num_threads(), sample_weight, rates)

    stop_training = False  # set to True in a callback, ends fit after this batch or epoch

    def hidden(self, x: Any, k: int, threads: int | None = None) -> Array:
        """The outputs of an inner layer in evaluation mode, fused and threaded as `predict` is.

        Parameters
        ----------
        x : array_like or sparse matrix of shape (batch, in_features)
        k : int
            Number of layers: the outputs are those of ``model[:k]``, that is of ``model.layers[k - 1]``. Negative
            numbers count from the end: -1 omits the last layer.
        threads : int, optional
            As for `predict`.

        Returns
        -------
        ndarray of shape (batch, features)

        Raises
        ------
        ValueError, TypeError
            If x has the wrong shape or dtype, or k is out of range.

        Examples
        --------
        >>> model = Sequential([Linear(2, 8), Tanh(), Linear(8, 1)], seed=0)
        >>> model.hidden([[0.0, 1.0]], 2).shape
        (1, 8)
        """
        n, k = len(self.layers), integer("k", k)
        if not (0 < k <= n or -n < k < 0):
            raise ValueError(f"k: expected 1 to {n} layers, or -1 to {1 - n}, got {k}")
        k %= n
        if k == 0:
            return self.predict(x, None, threads)
        return self._core.first(self.layers[:k]).predict(x, None, threads_for(threads))

    fit = fitting.fit
    evaluate = fitting.evaluate

    def predict(self, x: Any, out: np.ndarray | None = None, threads: int | None = None) -> Array:
        """The outputs of the last layer in evaluation mode. With CrossEntropyLoss they are logits: see `predict_proba`.

        The number of rows is not limited: they are processed in chunks that fit in the cache. A pending `backward` is
        not affected.

        **The result of a model with one output is a column, (batch, 1)**, even if y was a vector (batch,): the
        difference of the two has the shape (batch, batch). Compare ``predict(x)[:, 0]`` with such a y.

        Parameters
        ----------
        x : array_like or sparse matrix of shape (batch, in_features)
            The batch may be empty. Other leading axes are kept: (in_features,) gives (out_features,), and
            (T, N, in_features) gives (T, N, out_features). A list of arrays (batch, columns), whose columns add up to
            in_features, is concatenated. SciPy's sparse matrices, and other objects with a method `tocsr`, are not made
            dense; the model must begin with a Linear.
        out : ndarray of shape (batch, out_features), optional
            Array for the result, of the model's dtype, with contiguous rows.
        threads : int, optional
            At most this many; None: as `cnn.set_num_threads` says. The result does not depend on it.

        Returns
        -------
        ndarray of shape (batch, out_features)

        Raises
        ------
        ValueError, TypeError
            If x or out has the wrong shape or dtype.
        """
        return self._core.program.predict(x, out, threads_for(threads))

    def predict_proba(self, x: Any, threads: int | None = None) -> Array:
        """Probabilities, in evaluation mode: the softmax of `predict` with CrossEntropyLoss, the sigmoid with
        BCEWithLogitsLoss.

        With one output, the column is the probability of class 1; ``np.hstack([1 - p, p])`` gives the two columns of
        scikit-learn. The outputs of a model that ends with a `Softmax` or a `Sigmoid` are returned as they are, and
        those of `LogSoftmax` or NLLLoss are exponentiated.

        Parameters
        ----------
        x : array_like or sparse matrix of shape (batch, in_features)
            As for `predict`.
        threads : int, optional
            As for `predict`.

        Returns
        -------
        ndarray of shape (batch, out_features)

        Raises
        ------
        ValueError, TypeError
            If x has the wrong shape or dtype, or the outputs are neither probabilities nor logits.
        """
        kind = losses.probabilities_of(self)
        y = self.predict(x, threads=threads)
        if kind != "probabilities":
            self._core.kernels.probabilities(y.reshape(-1, y.shape[-1]), kind)
        return y

    # parameters -------------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> Array:
        """A copy of all parameters as one vector (n_parameters,), in the order of `state_dict`. Assigning sets them."""
        return self._core.program.parameters

    @parameters.setter
    def parameters(self, vector: Any) -> None:
        in_range("parameters", np.asarray(vector), self.dtype)
        self._core.program.set_parameters(vector)

    @property
    def gradients(self) -> Array:
        """A copy of all gradients as one vector (n_parameters,), in the order of `parameters`. Assigning sets them.

        The gradients of parameters that are not trained are always zero.
        """
        return self._core.program.gradients

    @gradients.setter
    def gradients(self, vector: Any) -> None:
        in_range("gradients", np.asarray(vector), self.dtype)
        self._core.program.set_gradients(vector)

    @property
    def averaged_parameters(self) -> Array:
        """A copy of the moving average of the parameters, of shape (n_parameters,); see the optimizer's `ema_decay`.

        Before the first step it equals the parameters.

        Raises
        ------
        RuntimeError
            If the optimizer has no ema_decay.
        """
        if self.optimizer is None or self.optimizer.ema_decay is None:
            raise RuntimeError(f"there is no average: expected an optimizer with ema_decay, got {self.optimizer!r}")
        average = self._core.program.average
        return self.parameters if average is None else average

    @contextlib.contextmanager
    def using_average(self) -> Iterator[Sequential]:
        """In ``with model.using_average():`` the parameters are `averaged_parameters`.

        Use it for `predict`, `evaluate` and `save`. At the end the parameters are restored, and a step taken inside is
        undone. The running statistics of `BatchNorm1d` stay those of training. To keep the average, assign it:
        ``model.parameters = model.averaged_parameters``.

        Yields
        ------
        Sequential
            The model itself.

        Raises
        ------
        RuntimeError
            If the optimizer has no ema_decay.
        """
        before, average = self.parameters, self.averaged_parameters
        self.parameters = average
        try:
            yield self
        finally:
            self.parameters = before

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by name: "0.weight" of shape (in_features, out_features), "0.bias", "2.weight", ...

        The number is the position of the layer in the model, counting activations, as in PyTorch.

        Returns
        -------
        dict of str to ndarray
        """
        state: dict[str, np.ndarray] = OrderedDict()
        for op, place in self._core.parametric:
            names = {**self._core.named_of(place, *PARAMETERS), **self._core.named_of(place, *STATISTICS)}
            state.update({name: np.array(a, order="C") for name, a in names.items()})
            if place.layer.statistic_names:
                state[f"{place.key}.num_batches_tracked"] = np.array(self._core.program.tracked(op))
        return state

    def load_weights(
        self, state_dict: Any, config: dict[Any, Any] | None = None, verbose: bool = False, partial: bool = False
    ) -> list[str] | None:
        """Set the parameters: all of them, or none if an array is invalid. With `partial`, those that match.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            As `state_dict` returns it: weights are (in_features, out_features).
        config : dict, optional
            As `get_config` returns it; it must describe the layers of this model.
        verbose : bool
            Print what is loaded.
        partial : bool
            Set only the parameters whose name and shape match, for example those of the first layers if the last layer
            differs; the others stay as they are.

        Returns
        -------
        list of str or None
            With `partial`, the names that were set.

        Raises
        ------
        ValueError
            If names are missing or unknown, shapes differ, config describes another network, a number is too large for
            the model's dtype, or a variance or a count is negative. With `partial`: if no name and shape match. If all
            weights are square, and one is a view of a PyTorch tensor or of bytes (``safetensors.numpy.load_file``
            returns such views): the weights may be (out, in), and their shapes cannot show it.
        TypeError
            If state_dict is not a mapping, or a value is not an array of real numbers, or is a PyTorch tensor, whose
            weights are (out, in).
        """
        arrays, fits = self._to_load(state_dict, config, verbose, partial)
        self._load(arrays)
        return fits

    def _to_load(
        self, state_dict: Any, config: Any = None, verbose: bool = False, partial: bool = False
    ) -> tuple[dict[str, np.ndarray], list[str] | None]:
        """The arrays that `load_weights` sets, checked, and what it returns."""
        if not isinstance(state_dict, Mapping):
            hint = (
                ": cnn.load(path) reads a file, and model.copy_from(cnn.load(path)) takes over its parameters"
                if isinstance(state_dict, (str, os.PathLike))
                else ""
            )
            hint = hint or ": a vector is set by model.parameters = vector" * isinstance(state_dict, (list, np.ndarray))
            raise TypeError(
                "state_dict: expected arrays by name, as model.state_dict() returns them, got "
                f"{type(state_dict).__name__}{hint}"
            )
        if config is not None:
            expected = self.get_config(loss=False)["layers"]
            got = config.get("layers") if isinstance(config, dict) else config
            if got != expected:
                raise ValueError(f"config: expected the layers of this model, {expected}, got {got}")
        own = self._core.named(*PARAMETERS, *STATISTICS)
        counts = {f"{p.key}.num_batches_tracked": op for op, p in self._core.parametric if p.layer.statistic_names}
        expected_names = [*own, *counts]
        if partial:
            fits = [n for n in expected_names if n in state_dict and np.shape(state_dict[n]) == np.shape(own.get(n, 0))]
            if not fits:
                raise ValueError(
                    f"state_dict: nothing fits: it has {_with_shapes(state_dict)}; expected {_with_shapes(own)}"
                )
            state_dict = {**{name: own[name] for name in own if name not in fits}, **{n: state_dict[n] for n in fits}}
        if missing := [name for name in own if name not in state_dict]:
            raise ValueError(f"state_dict: missing {', '.join(missing)}; it has {', '.join(state_dict)}")
        if unknown := [str(name) for name in state_dict if name not in expected_names]:
            raise ValueError(f"state_dict: unknown {', '.join(unknown)}; expected {', '.join(expected_names)}")
        arrays = {}
        weights = [name for name, array in own.items() if array.ndim == 2 and (not partial or name in fits)]
        square = all(len(set(own[name].shape)) == 1 for name in weights)  # shapes do not tell (in, out) from (out, in)
        for name in (name for name in expected_names if name in state_dict):
            value = state_dict[name]
            if type(value).__module__.partition(".")[0] == "torch":
                raise TypeError(
                    f"state_dict: {name} is a PyTorch tensor. PyTorch keeps Linear.weight as (out, in), "
                    "cnn as (in, out): use cnn.from_torch"
                )
            shape = own[name].shape if name in own else ()
            arrays[name] = np.asarray(value)
            if arrays[name].dtype.kind not in ("fiub" if name in own else "iu"):
                raise TypeError(f"{name}: expected real numbers, got dtype {arrays[name].dtype}")
            if arrays[name].shape != shape:
                raise ValueError(
                    f"{name}: expected shape {shape}, got {arrays[name].shape}{transposed(shape, arrays[name].shape)}"
                )
            if square and name in weights and (source := foreign(value, state_dict)):
                raise ValueError(
                    f"state_dict: {name} is square and comes from {source}: PyTorch and files keep weights as (out, "
                    "in), cnn as (in, out). Use cnn.load(path) or cnn.from_torch, or pass its .T; if it is (in, out) "
                    "already, pass np.array of it"
                )
            in_range(name, arrays[name], self.dtype)
            if verbose and (not partial or name in fits):
                print(f"{name} {shape}")
        return arrays, fits if partial else None

    def _load(self, arrays: dict[str, np.ndarray]) -> None:
        """Set the parameters to what `_to_load` gave."""
        parameters = self._core.named(*PARAMETERS)
        self._core.program.set_parameters(np.concatenate([arrays[name].ravel() for name in parameters]))
        for name, own in self._core.named(*STATISTICS).items():
            own[...] = arrays[name]
        for op, place in self._core.parametric:
            if (name := f"{place.key}.num_batches_tracked") in arrays:
                self._core.program.set_tracked(op, int(arrays[name]))

    # copies -----------------------------------------------------------------------------------------------------------

    def copy(self) -> Sequential:
        """An independent model with the same layers, parameters and training state; its gradients are zero.

        `copy.copy` and `copy.deepcopy` do the same. Both models continue training in the same way. A loss of your own
        keeps its function.

        Returns
        -------
        Sequential

        Examples
        --------
        >>> target = model.copy()  # doctest: +SKIP
        """
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: Any) -> Sequential:
        other = memo[id(self)] = object.__new__(type(self))
        own = other.__dict__
        made: dict[int, Any] = {}
        if self._core.nested:
            Sequential.__init__(other, copy.deepcopy(self.layers, memo), dtype=self.dtype, seed=self.seed)
            other._core.state.training = self.training
        else:
            own["seed"] = self.seed
            own["layers"] = [layer._twin(made) for layer in self.layers]
            own["_loss"] = self._loss
            if not inspect.isroutine(getattr(self._loss, "function", len)):  # a method stays that of its object
                own["_loss"] = copy.deepcopy(self._loss, memo)
            self._core.clone(other, made)
            memo.update(made)  # who holds a layer beside the model holds, in the copy, the copy's
        for name, value in self._attributes().items():
            if name not in own:
                own[name] = value if type(value) in (bool, int) else copy.deepcopy(value, memo)
        own["_complete"] = True
        return other

    __copy__ = copy

    def _twin(self, made):
        twin = super()._twin(made)
        twin.__dict__.pop("_of", None)
        twin.__dict__["layers"] = [layer._twin(made) for layer in self.layers]
        twin.__dict__["_core"] = Core.part(self, twin.layers)
        return twin

    def copy_from(self, source: Any) -> None:
        """Copy the parameters and the running statistics of a model with the same layers.

        Parameters
        ----------
        source : Sequential
            Of the same widths, kinds of layers, and dtype.

        Raises
        ------
        ValueError, TypeError
            If source is not a model with the same layers and dtype.
        """
        self.lerp(source, 1.0)

    def lerp(self, source: Any, tau: float) -> None:
        """Move the parameters towards those of another model: p = p + tau (source's p - p).

        Target networks are updated in this way. It includes the running statistics of `BatchNorm1d` and frozen
        parameters. The gradients and the optimiser's state stay as they are.

        Parameters
        ----------
        source : Sequential
            Of the same widths, kinds of layers, and dtype.
        tau : float
            From 0 to 1; 1 copies source.

        Raises
        ------
        ValueError, TypeError
            If source is not a model with the same layers and dtype, or tau is out of range.

        Examples
        --------
        >>> target.lerp(critic, 0.005)  # doctest: +SKIP
        """
        tau = float(tau) if type(tau) is float and 0 <= tau <= 1 else fraction("tau", tau)
        if not isinstance(source, Sequential):
            raise TypeError(f"source: expected a cnn.Sequential, got {type(source).__name__}")
        if source.dtype != self.dtype:
            raise TypeError(f"source: expected a model of dtype {self.dtype}, got {source.dtype}")
        mine, other = (getattr(m._core.program, "native", None) or m._core.program for m in (self, source))
        if not mine.lerp(other, tau):
            raise ValueError(f"source: expected a model of the same layers,\n{self!r}, got\n{source!r}")

    def get_config(self, loss: bool = True) -> dict[str, Any]:
        """The configuration from which `from_config` builds this model, without the parameters; JSON can hold it.

        Parameters
        ----------
        loss : bool
            False omits the loss, which may be a Python function.

        Returns
        -------
        dict
            "layers", "loss", "optimizer", "dtype" and "seed".

        Raises
        ------
        TypeError
            If the loss or an initialiser is a Python function.
        """
        return {
            "layers": [layer.to_config() for layer in self.layers],
            "loss": self.loss.to_config() if self.loss is not None and loss else None,
            "optimizer": self.optimizer and self.optimizer.to_config(),
            "dtype": self.dtype.name,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sequential:
        """The model that a configuration of `get_config` describes, with new initial parameters.

        Parameters
        ----------
        config : dict

        Returns
        -------
        Sequential

        Raises
        ------
        ValueError
            If config is not as `get_config` returns it, or names an unknown layer, loss or optimiser.
        """

        try:
            parts = [layers.Layer.from_config(layer) for layer in config["layers"]]
            loss = None if config["loss"] is None else losses.Loss.from_config(config["loss"])
            optimizer = None if config["optimizer"] is None else optim.Optimizer.from_config(config["optimizer"])
            return cls([*parts, *([loss] if loss else [])], optimizer, config["dtype"], config["seed"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"config: expected a dict as get_config returns it, got one that raises {error!r}"
            ) from error

    def save(self, path: str | os.PathLike[str], *, training_state: bool = False, loss: bool = True) -> None:
        """Write the model to a safetensors file; see `cnn.load`.

        The file is never incomplete: it is written under another name, flushed to disk and then renamed. An existing
        file is replaced and keeps its mode. If path is a symbolic link, its target is replaced.

        Parameters
        ----------
        path : str or path
        training_state : bool
            Also write the state of the optimiser, the schedule and the random numbers, averaged parameters, the number
            of epochs and the history. After `cnn.load`, training continues to the bit as if it had not been
            interrupted. The gradients are not written.
        loss : bool
            False omits the loss. A function of your own cannot be written: omit it, and pass it to
            ``cnn.load(path, loss=function)``.

        Raises
        ------
        TypeError
            If the loss is a Python function and is not omitted.
        OSError
            If the file cannot be written; an existing file stays as it was.

        Notes
        -----
        In the file, weights are (out_features, in_features) and have PyTorch's names::

            torch_model.load_state_dict(safetensors.torch.load_file(path))

        The tensors of the training state have names that begin with "cnn.training/"; for a file with them, pass
        ``strict=False``.
        """
        checkpoint.save(self, path, training_state, loss)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickle and joblib: the content of a file with the training state, without gradients; a loss of your own
        beside it, if pickle can write its function.

        To unpickle is to trust: whoever made a pickle can have it run anything. Files of `save` are safe from anywhere.
        """
        own = () if checkpoint.can_hold(self.loss) else (self.loss,)
        layers = [(place.layer._training, place.layer._trainable) for place in self._core.graph.seen.values()]
        return checkpoint.from_bytes, (type(self), checkpoint.to_bytes(self), *own), (self._attributes(), layers)

    def __setstate__(self, state: Any) -> None:
        """For pickle: what a file does not hold, attributes of a subclass, the layers' modes and what is trained."""
        attributes, layers = state
        self.__dict__.update(attributes)
        for place, (training, trainable) in zip(self._core.graph.seen.values(), layers, strict=True):
            place.layer._training, place.layer._trainable = training, trainable
            place.layer._tell()

    def _attributes(self) -> dict[str, Any]:
        """The attributes that the library has not set, but those of a class of the user's, or a callback."""
        ours = ("layers", "_loss", "_core", "seed", "_of", "_complete", *self._of_model)
        return {name: value for name, value in self.__dict__.items() if name not in ours}

    def handle(self) -> Any:
        """A snapshot of the model, with which C and Cython programs predict without Python; see include/cnn.h.

        It is immutable: later changes of the model do not affect it. The handle keeps it alive. In Cython,
        `cnn_get_f32(handle)` of `cnn.embed` (`cnn_get_f64` for a float64 model) returns the C struct of the model;
        `cnn.get_include()` is the folder of the header.

        Returns
        -------
        capsule
            It belongs to the kernels of this process and cannot be sent to another process.
        """
        parts = [layers.Layer.from_config(layer.to_config()) for layer in self.layers]
        snapshot = Sequential(parts, dtype=self.dtype)
        snapshot.load_weights(self.state_dict())
        return self._core.kernels.handle(snapshot._core.program)

    # for people -------------------------------------------------------------------------------------------------------

    def summary(self) -> str:
        """Print a table of the layers, with output shapes, parameters, FLOPs a sample and memory.

        Returns
        -------
        str
            The same text. Its repr is empty, so that an interpreter does not show it twice.
        """
        from . import summary

        text = summary.Text(summary.text(self))
        print(text)
        return text

    def _repr_html_(self) -> str:
        from . import summary

        return summary.html(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the network: layers and branches with their numbers of outputs and parameters.

        Parameters
        ----------
        path : str or path, optional
            File for the picture; its suffix gives the format (.png, .svg, .pdf).

        Returns
        -------
        matplotlib.figure.Figure or None
            The figure if there is no path.

        Raises
        ------
        ValueError
            If the suffix is not one of these.
        ImportError
            If matplotlib is not installed (extra `plot`).
        """
        from . import diagram

        return diagram.plot(self, path)

    def __repr__(self) -> str:
        parts = [*self.layers, *([self.loss] if self.loss else [])]
        lines = "".join(f"  ({i}): {part!r}\n".replace("\n", "\n  ")[:-2] for i, part in enumerate(parts))
        return f"Sequential(\n{lines}){'' if self.dtype == np.float32 else f' {self.dtype}'}"

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i: Any) -> Any:
        """A layer, or with a slice a part of the model: a model of some of the layers on the same memory.

        ``model[:4]`` predicts, saves and is exported as any model; what is written into its parameters is written into
        those of this model, and the other way round. It has no loss and no optimizer: train this model.
        """
        if not isinstance(i, slice):
            return self.layers[i]
        chosen = self.layers[i]
        if not chosen:
            raise ValueError(f"model[{_shown(i)}]: expected at least one of the {len(self.layers)} layers, got none")
        part = object.__new__(type(self))
        part.layers, part._loss, part.seed, part._complete = chosen, None, None, True
        part._of = self  # which has the parameters
        part._core = Core.part(self, chosen)
        return part


@contextlib.contextmanager
def _shared(model: Sequential, comm: Any, shards: int):
    """The program and the number of threads for a call that all ranks of a communicator make."""
    from ..training import distributed

    with distributed.ranks_of(model, comm, shards) as group:
        yield group.program, distributed.threads_of(group.places, group.rank, get_num_threads())


def _shown(i: slice) -> str:
    return ":".join("" if n is None else str(n) for n in (i.start, i.stop, *([] if i.step is None else [i.step])))


def _split(parts) -> tuple[list[Any], losses.Loss | None]:
    """The layers and the loss, checked."""
    if isinstance(parts, layers.Layer) or not hasattr(parts, "__iter__"):
        raise TypeError(f"layers: expected a list of layers, got {parts!r}")
    parts = list(parts)
    if parts:
        parts[-1] = _as_loss(parts[-1])
    loss = parts.pop() if parts and isinstance(parts[-1], losses.Loss) else None
    if loss is not None:
        computes_natively(loss, f"loss {loss!r}")
    for i, part in enumerate(parts):
        if isinstance(part, losses.Loss):
            raise ValueError(f"layer {i}, {part!r}: expected a loss only as the last layer")
        if not isinstance(part, layers.Layer):
            hint = object_for(part, {**layers.Layer.known, **losses.Loss.known})
            if isinstance(part, (list, tuple)):
                hint = ": one list of layers, or a cnn.Sequential for the inner ones"
            raise TypeError(f"layer {i}: expected a layer, got {part!r}{hint}")
        part._may_nest(f"layer {i}")
    return parts, loss


def _as_loss(part: Any) -> Any:
    """A function, or another object that can be called, as a loss; all else as it is."""
    own = callable(part) and not isinstance(part, (type, layers.Layer, losses.Loss))
    return losses.CallableLoss(part) if own else part


def _in_no_other_model(parts: list[Any]) -> list[Any]:
    """The layers of a new model: copies of those that belong to another model, or belonged to one that is deleted."""
    inside: set[int] = set()
    _gather(parts, inside)
    return [copy.deepcopy(part) if _stands_elsewhere(part, inside) else part for part in parts]


def _gather(parts, inside: set[int]) -> None:
    for part in parts:
        inside.add(id(part))
        _gather(part.children, inside)


def _stands_elsewhere(part: layers.Layer, inside: set[int]) -> bool:
    elsewhere = part._model is not None and id(part._owner()) not in inside
    return elsewhere or any(_stands_elsewhere(child, inside) for child in part.children)


def _warn_of_twice(model: Sequential) -> None:
    """Warn if the outputs are probabilities already, and the loss would apply softmax or sigmoid again."""
    last, loss = model.layers[-1], model.loss
    if loss is None or last.outputs is None or loss.outputs in (None, last.outputs):
        return
    mend = {"logits": f"leave {last!r} out", "log_probabilities": "use cnn.LogSoftmax() instead"}
    if loss.outputs in mend and (last.outputs == "probabilities" or loss.targets != "labels"):
        warnings.warn(
            f"{loss!r} expects {loss.outputs.replace('_', ' ')}, and {last!r} before it gives "
            f"{last.outputs.replace('_', ' ')}: {mend[loss.outputs]}; predict_proba gives probabilities",
            UserWarning,
            stacklevel=users_line(),
        )


def _with_shapes(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {np.shape(a)}" for name, a in arrays.items())
