"""`Ensemble`: many models of one shape, trained, evaluated and run together.

An ensemble has a `Sequential` for each member and passes their programs to native calls that run all of them, a member
on each thread at a time (training/many.py). Derivatives and files loop over the members.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .. import _configurable, losses, optim
from .._checks import choice, flag, in_range, integer, seed_of
from .._sparse import is_sparse
from .._threads import get_num_threads, threads_for
from .._types import Array, ArrayLike, DTypeLike
from ..optim.many import ManyOptimizers, parts_of
from ..training import many
from ..training.history import ManyHistory
from ..training.ranks import takes_comm
from .sequential import Sequential

__all__ = ["Ensemble"]


class Ensemble(_configurable.Public):
    """Models of one shape, each with its own parameters, hyper-parameters and random numbers.

    Member i equals ``Sequential(layers, optimizer, dtype, seed + i)``, and training changes it as it would change that
    model alone: bit for bit, or, where narrow members share vectors, but for roundings of sums.

    Parameters
    ----------
    layers : sequence of Layer
        As for `Sequential`, the last may be a loss; each member gets copies.
    members : int
    optimizer : Optimizer, optional
        Its hyper-parameters are numbers, or arrays of length `members`:
        ``Adam(lr=np.geomspace(1e-4, 0.1, 256))``.
    dtype : {"float32", "float64"}
    seed : int or numpy.random.Generator, optional
        Member i has ``seed + i``. None: different in every run.

    Attributes
    ----------
    seed : int or None
    optimizer : ManyOptimizers or None
        The members' optimisers as one; each is a copy of that passed in. ``ensemble.optimizer.lr`` is the rate of all,
        or a read-only array of shape (members,) where they differ; setting it, to a number or such an array, sets that
        of all members for the next step, and so with every other number. Setting another optimizer resets its state,
        as for `Sequential`.
    history : ManyHistory or None
        Of the last `fit`.
    stop_training : bool
        If a callback sets it to True, `fit` ends after this epoch.

    Raises
    ------
    ValueError, TypeError
        As for `Sequential`; if the optimizer's arrays are not of length `members`.

    Examples
    --------
    >>> ensemble = Ensemble([Linear(1, 16), Tanh(), Linear(16, 1), MSELoss()], members=8, optimizer=Adam(), seed=0)
    >>> x = [[i / 50] for i in range(50)]
    >>> history = ensemble.fit(x, [0.5] * 50, epochs=5)
    >>> history["loss"].shape, ensemble.predict(x).shape
    ((5, 8), (8, 50, 1))
    """

    stop_training = False

    if not TYPE_CHECKING:
        __getattr__ = _configurable.no_attribute

    @_configurable.constructor
    def __init__(
        self, layers: Any, members: int, optimizer: Any = None, dtype: DTypeLike = "float32", seed: Any = None
    ) -> None:
        members = integer("members", members, 1)
        self.seed: int | None = seed_of(seed)
        if self.seed is not None and self.seed + members > 2**63:
            raise ValueError(f"seed: expected at most 2**63 - members, got {seed}")
        layers = list(layers) if hasattr(layers, "__iter__") else layers
        seeds = [None if self.seed is None else self.seed + i for i in range(members)]
        self._take([Sequential(_copies(layers), dtype=dtype, seed=one) for one in seeds])
        self.optimizer = optimizer

    @classmethod
    def of(cls, models: Any) -> Ensemble:
        """An ensemble of copies of models of one shape, with their optimizers and the state of their training.

        Parameters
        ----------
        models : sequence of Sequential

        Returns
        -------
        Ensemble

        Raises
        ------
        ValueError, TypeError
            If they are not models, or differ in layers, loss or dtype.
        """
        models = list(models)
        if not models:
            raise ValueError("models: expected at least one, got none")
        for i, model in enumerate(models):
            if not isinstance(model, Sequential):
                raise TypeError(f"models[{i}]: expected a cnn.Sequential, got {type(model).__name__}")
            shapes = [{name: a.shape for name, a in m.state_dict().items()} for m in (models[0], model)]
            kinds = [[type(layer) for layer in m.layers] for m in (models[0], model)]
            if shapes[0] != shapes[1] or kinds[0] != kinds[1] or type(model.loss) is not type(models[0].loss):
                raise ValueError(f"models[{i}]: expected the layers and the loss of models[0], got\n{model!r}")
            if model.dtype != models[0].dtype:
                raise TypeError(f"models[{i}]: expected dtype {models[0].dtype}, got {model.dtype}")
            if (model.optimizer is None) != (models[0].optimizer is None):
                raise ValueError(f"models[{i}]: expected optimizers in all models, or in none")
        self = object.__new__(cls)
        self.seed = None
        self._take([copy.deepcopy(model) for model in models])
        return self

    def _take(self, members: list[Sequential]) -> None:
        self._members = members
        self._crew: Any = None  # the native programs that train together, made when first needed
        self.history: ManyHistory | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_crew": None}  # for copies and pickle

    # what members have in common --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._members)

    @overload
    def __getitem__(self, i: int) -> Sequential: ...
    @overload
    def __getitem__(self, i: slice) -> Ensemble: ...
    def __getitem__(self, i: Any) -> Any:
        """A copy of a member, with its optimizer and the state of its training; for a slice, an ensemble of copies."""
        if isinstance(i, slice):
            if not (members := self._members[i]):
                raise IndexError(f"ensemble[...]: expected a slice with some of {len(self)} members, got {i}")
            return Ensemble.of(members)
        i, n = integer("ensemble[i]", i), len(self)
        if not -n <= i < n:
            raise IndexError(f"ensemble[{i}]: expected a member from {-n} to {n - 1}")
        i %= n
        model = copy.deepcopy(self._members[i])
        model.history = None if self.history is None else self.history.of(i)
        return model

    def __iter__(self) -> Iterator[Sequential]:
        return map(self.__getitem__, range(len(self)))

    def __repr__(self) -> str:
        return f"Ensemble({len(self)} members of {self._members[0]!r})"

    @property
    def dtype(self) -> np.dtype:
        """Of parameters and arithmetic."""
        return self._members[0].dtype

    @property
    def loss(self) -> losses.Loss | None:
        """The loss, or None. Another one can be set, as for `Sequential`."""
        return self._members[0].loss

    @loss.setter
    def loss(self, loss: Any) -> None:
        if any(member._core.fitting for member in self._members):
            raise RuntimeError("loss: cannot be set while fit is running")
        for member in self._members:
            member.loss = copy.deepcopy(loss)
        self._crew = None

    @property
    def optimizer(self) -> Any:
        """The members' optimisers as one, or None; setting another one resets its state, as for `Sequential`."""
        members = self._members
        if members[0].optimizer is None:
            return None
        return ManyOptimizers([one.optimizer for one in members], lambda: any(one._core.fitting for one in members))

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        if isinstance(optimizer, ManyOptimizers) and len(optimizer) != len(self):
            raise ValueError(f"optimizer: expected {len(self)} numbers in arrays, one a member, got {len(optimizer)}")
        if optimizer is not None and not isinstance(optimizer, (optim.Optimizer, ManyOptimizers)):
            raise TypeError(f"optimizer: expected an optimiser such as cnn.SGD(), got {optimizer!r}")
        if any(member._core.fitting for member in self._members):
            raise RuntimeError(
                "optimizer: it cannot be set while fit runs, but its numbers can, as in ensemble.optimizer.lr = 0.01"
            )
        for member, own in zip(self._members, parts_of("optimizer", optimizer, len(self)), strict=True):
            member.optimizer = own

    @property
    def n_parameters(self) -> int:
        """Parameters of one member."""
        return self._members[0]._core.program.n_parameters

    @property
    def parameters(self) -> Array:
        """A copy of all parameters, (members, n_parameters): a row for each member. Assigning sets them."""
        return np.stack([member.parameters for member in self._members])

    @parameters.setter
    def parameters(self, rows: Any) -> None:
        rows = np.asarray(rows)
        if rows.shape != (len(self), self.n_parameters):
            raise ValueError(f"parameters: expected shape {(len(self), self.n_parameters)}, got {rows.shape}")
        if rows.dtype.kind not in "fiub":
            raise TypeError(f"parameters: expected real numbers, got dtype {rows.dtype}")
        in_range("parameters", rows, self.dtype)
        for member, row in zip(self._members, rows, strict=True):
            member.parameters = row

    @property
    def averaged_parameters(self) -> Array:
        """Copies of the moving averages, (members, n_parameters): see `Sequential.averaged_parameters`."""
        return np.stack([member.averaged_parameters for member in self._members])

    @contextlib.contextmanager
    def using_average(self) -> Iterator[Ensemble]:
        """In ``with ensemble.using_average():`` the parameters are `averaged_parameters`, as for `Sequential`.

        Yields
        ------
        Ensemble
            Itself.

        Raises
        ------
        RuntimeError
            If the optimizer has no ema_decay.
        """
        with contextlib.ExitStack() as stack:
            for member in self._members:
                stack.enter_context(member.using_average())
            yield self

    def copy(self) -> Ensemble:
        """An independent ensemble with the same members and the state of their training.

        Returns
        -------
        Ensemble
        """
        return copy.deepcopy(self)

    def summary(self) -> str:
        """Print the number of members and the table of one: see `Sequential.summary`.

        Returns
        -------
        str
            The table of a member.
        """
        print(f"{len(self)} members, each:")
        return self._members[0].summary()

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by name, as `Sequential.state_dict` has them, with a leading axis of the members.

        Returns
        -------
        dict of str to ndarray
            "0.weight" of shape (members, in_features, out_features), ...
        """
        states = [member.state_dict() for member in self._members]
        return {name: np.stack([state[name] for state in states]) for name in states[0]}

    def load_weights(self, state_dict: Any) -> None:
        """Set the parameters of all members: all of them, or none if an array is invalid.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            As `state_dict` returns it.

        Raises
        ------
        ValueError, TypeError
            As for `Sequential.load_weights`.
        """
        if not isinstance(state_dict, Mapping):
            self._members[0].load_weights(state_dict)  # says what is expected
        for name, a in state_dict.items():
            if np.ndim(a) < 1 or len(a) != len(self):
                raise ValueError(f"{name}: expected a first axis of {len(self)} members, got shape {np.shape(a)}")
        states = [{name: a[i] for name, a in state_dict.items()} for i in range(len(self))]
        found = [member._to_load(state)[0] for member, state in zip(self._members, states, strict=True)]
        for member, arrays in zip(self._members, found, strict=True):
            member._load(arrays)

    # data -------------------------------------------------------------------------------------------------------------

    def _own(self, a, dims: int, name: str) -> list[Any] | None:
        """An array for each member, or None: all share it. dims: axes of one member's."""
        if isinstance(a, (list, tuple)) and a and all(isinstance(part, np.ndarray) or is_sparse(part) for part in a):
            if a[0].ndim < dims:  # rows of one array
                return None
            columns, width = [part.shape[-1] for part in a], self._members[0]._core.in_features
            if dims == 2 and sum(columns) == width and width not in columns:
                raise ValueError(
                    f"{name}: expected an array of {width} columns for each member, got some of {columns}: pass "
                    "several inputs side by side, as np.hstack(x)"
                )
        else:
            a = a if is_sparse(a) else np.asarray(a)
            if a.ndim <= dims:
                return None
        return self._of_each(a, name)

    def _of_each(self, a: Any, name: str) -> list[Any]:
        """The parts of a list or an array, if there is one for each member."""
        if len(a) != len(self):
            raise ValueError(f"{name}: expected data for each of {len(self)} members, got {len(a)}")
        return list(a)

    def _data(self, x, y, w, names: Any = ("x", "y", "sample_weight")) -> tuple[list[Any], bool]:
        """(x, y, w) of each member, or of all; whether all share it."""
        own_x = self._own(x, 2, names[0])
        ys, ws = y, w
        if y is not None:
            ys = self._own_targets(y, own_x, x, names[1])
        if w is not None:
            ws = self._own(w, 1, names[2])
        if own_x is None and (y is None or ys is None) and (w is None or ws is None):
            return [(x, y, w)], True
        n = len(self)
        xs = [x] * n if own_x is None else own_x
        ys = [y] * n if ys is None else ys
        ws = [w] * n if ws is None else ws
        return list(zip(xs, ys, ws, strict=True)), False

    def _own_targets(self, y, own_x, x, name: str) -> list[Any] | None:
        """Targets of each member, or None: all share them."""
        if getattr(self.loss, "chosen", False) and isinstance(y, (list, tuple)) and y:
            if isinstance(y, tuple):
                return None  # which outputs, and their targets
            if all(isinstance(part, tuple) for part in y):
                return self._of_each(y, name)
        if isinstance(y, (list, tuple)) and y and isinstance(y[0], np.ndarray) and (own_x is not None or y[0].ndim > 1):
            return self._own(y, y[0].ndim, name)
        y = np.asarray(y)
        rows = np.shape(x if own_x is None else own_x[0])[0]
        if y.ndim < 2 or y.shape[:2] != (len(self), rows):
            return None
        shared = own_x is None and y.ndim == 2 and y.shape == (rows, self._members[0]._core.out_features)
        return None if shared else list(y)

    def bootstrap_rows(self, n: int) -> np.ndarray:
        """The rows that each member draws, with replacement, in ``fit(..., bootstrap=True)``; they depend on its seed.

        Parameters
        ----------
        n : int
            Rows of the training data.

        Returns
        -------
        ndarray of shape (members, n), int64
        """
        n = integer("n", n, 1, 2**31 - 1)
        return np.stack([_drawn(member, n) for member in self._members])

    # training ---------------------------------------------------------------------------------------------------------

    @takes_comm
    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int = 1,
        batch_size: int | str | None = "auto",
        shuffle: bool | str = "own",
        bootstrap: bool = False,
        validation_data: Any = None,
        validation_split: float = 0.0,
        stratify: bool = False,
        validation_freq: int = 1,
        sample_weight: ArrayLike | None = None,
        class_weight: Any = None,
        weigh_validation: bool = False,
        metrics: Any = (),
        callbacks: Any = (),
        early_stopping: Any = None,
        initial_epoch: int | None = None,
        steps_per_epoch: int | None = None,
        drop_last: bool = False,
        accumulation_steps: int = 1,
        threads: int | None = None,
        progress: bool | str = "auto",
        verbose: int | None = None,
        comm: Any = None,
    ) -> ManyHistory:
        """Train all members for a number of epochs, together and in native code.

        Parameters
        ----------
        x : array_like of shape (n, in_features) or (members, n, in_features), or list of ndarray or sparse matrices
            Shared by all members, or an array for each: stacked, or in a list if their numbers of rows differ.
        y : array_like, or list of ndarray
            Targets in the form that the loss expects; for each member, with a leading axis of members or in a list.
        epochs : int
            Number of epochs.
        batch_size : int, "auto" or None
            As for `Sequential.fit`, for each member.
        shuffle : {"own", "shared"} or bool
            "own" or True: the seed of each member gives its order of the rows. "shared": all members use the order of
            the first, which is faster for small networks. False: the rows are not shuffled.
        bootstrap : bool
            Whether each member trains on n rows drawn with replacement, see `bootstrap_rows`.
        validation_data : (x, y) or (x, y, sample_weight), optional
            Shared, or for each member, as x and y.
        validation_split : float
            As for `Sequential.fit`; `bootstrap` draws from the remaining rows.
        stratify : bool
            As for `Sequential.fit`.
        validation_freq : int
            As for `Sequential.fit`.
        sample_weight : array_like of shape (n,) or (members, n), optional
            Not negative.
        class_weight : dict or "balanced", optional
            As for `Sequential.fit`.
        weigh_validation : bool
            As for `Sequential.fit`.
        metrics : sequence of str, callable or Metric, or dict
            As for `Sequential.fit`; the history has arrays of shape (members,).
        callbacks : sequence of Callback
            See `cnn.Callback`. Their `model` is the ensemble, and the numbers in `logs` are arrays of shape (members,),
            NaN for members that have ended. ``ensemble.stop_training = True`` ends all. `on_batch_end`, `EarlyStopping`
            and `ModelCheckpoint` are not supported, nor any callback if Python trains the members one after another.
        early_stopping : EarlyStopping, int or True, optional
            For each member: it ends when its monitored value stops improving, and its best epoch is restored.
        initial_epoch : int, optional
            The number of epochs that are done, to continue a run, as for `Sequential.fit`; early stopping and callbacks
            start afresh. None: a new run.
        steps_per_epoch : int, optional
            Batches after which an epoch ends.
        drop_last : bool
            Whether to leave out a last batch that is smaller.
        accumulation_steps : int
            Number of batches whose mean gradient is used for one step of the optimiser.
        threads : int, optional
            At most this many; None: as `cnn.set_num_threads` says.
        progress : bool or "auto"
            As for `Sequential.fit`. The numbers beside the bar are the means over the members.
        verbose : int, optional
            Keras's argument, in place of `progress`: 0, 1 or 2.
        comm : mpi4py.MPI.Comm, optional
            Ranks that divide the members among them: rank r of R trains those from ``n * r // R`` to
            ``n * (r + 1) // R``. In the end all ranks have all members, with the same bits as without `comm`. All ranks
            pass the same data.

        Returns
        -------
        ManyHistory
            A dict of arrays of shape (epochs, members). A member that has ended has NaN in later epochs.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid; then nothing has changed.
        RuntimeError
            If there is no loss or no optimizer, or a callback calls fit or sets the optimizer. With `comm` also if
            another rank has failed, which it names.
        DivergenceError
            If the loss of every member became infinite or NaN.

        Warns
        -----
        RuntimeWarning
            If some members diverged: they stop, the others continue, and `ManyHistory.diverged` says which and where.

        Notes
        -----
        Ctrl-C stops within about 0.1 s and leaves valid members, with their last parameters.
        """
        if shuffle not in ("own", "shared", True, False):
            raise ValueError(f"shuffle: expected 'own', 'shared', True or False, got {shuffle!r}")
        data, shared = self._data(x, y, sample_weight)
        validation, shared_too = None, False
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
                raise ValueError("validation_data: expected a pair (x, y), or (x, y, sample_weight)")
            names = [f"validation_data[{k}]" for k in range(3)]
            a, b, w = [*validation_data, None][:3]
            validation, shared_too = self._data(a, b, w, names)
        bags = None
        if flag("bootstrap", bootstrap):

            def bags(n):
                return [_drawn(member, int(k)) for member, k in zip(self._members, n, strict=True)]

        history = many.train(
            self._members, data, validation, comm=comm, epochs=epochs, batch_size=batch_size, shuffle=bool(shuffle),
            validation_split=validation_split, stratify=stratify, validation_freq=validation_freq,
            class_weight=class_weight, weigh_validation=weigh_validation, metrics=metrics,
            early_stopping=early_stopping, steps_per_epoch=steps_per_epoch, drop_last=drop_last,
            accumulation_steps=accumulation_steps, threads=threads, progress=progress, verbose=verbose,
            shared=(shared, shared_too), one_order=shuffle == "shared", bags=bags, histories=False,
            callbacks=callbacks, initial_epoch=initial_epoch, owner=self,
        )  # fmt: skip
        self.history = history
        return history

    def train_step(self, x: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Array:
        """A step of every member: forward, loss, backward and the optimiser's step, in one native call.

        Parameters
        ----------
        x : array_like of shape (batch, in_features) or (members, batch, in_features)
        y : array_like
        sample_weight : array_like of shape (batch,) or (members, batch), optional

        Returns
        -------
        ndarray of shape (members,), float64
            The loss of each, before the step.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid, or the batch is empty.
        RuntimeError
            If there is no loss or no optimizer.
        """
        for member in self._members:
            member._core.need_optimizer()
        data, shared = self._data(x, y, sample_weight)
        if not many.all_native(self._members, [a for a, _, _ in data]):
            data = data * len(self) if shared else data
            return np.array([m.train_step(*rows) for m, rows in zip(self._members, data, strict=True)])
        rows = many.Rows(self._members, many.sources_of(self._members, data, True, shared))
        crew, self._crew = self._crew, None  # another thread does not find it
        if crew is None:
            programs = [member._core.program for member in self._members]
            crew = self._members[0]._core.kernels.Crew(programs, True)
        losses = many.step(crew, self._members, rows, get_num_threads())
        self._crew = crew
        return losses

    # evaluation and prediction ----------------------------------------------------------------------------------------

    def evaluate(
        self,
        x: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        metrics: Any = (),
        threads: int | None = None,
        class_weight: Any = None,
    ) -> dict[str, np.ndarray]:
        """The loss and the metrics of every member, in evaluation mode.

        Parameters
        ----------
        x : array_like of shape (n, in_features) or (members, n, in_features), or list of ndarray
            As for `fit`.
        y : array_like, or list of ndarray
            As for `fit`.
        sample_weight : array_like of shape (n,) or (members, n), optional
            Not negative.
        metrics : sequence of str, callable or Metric, or dict
            As for `Sequential.evaluate`.
        threads : int, optional
            At most this many; None: as `cnn.set_num_threads` says.
        class_weight : dict or "balanced", optional
            As for `fit`.

        Returns
        -------
        dict of str to ndarray of shape (members,)
            As `Sequential.evaluate`.

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid, or there are no rows.
        RuntimeError
            If there is no loss.
        """
        data, shared = self._data(x, y, sample_weight)
        if metrics or not many.all_native(self._members, [a for a, _, _ in data]):
            data = data * len(self) if shared else data
            pairs = zip(self._members, data, strict=True)
            found = [m.evaluate(x, y, w, metrics, threads, class_weight) for m, (x, y, w) in pairs]
            return {name: np.array([one[name] for one in found]) for name in found[0]}
        rows = many.Rows(self._members, many.sources_of(self._members, data, False, shared), class_weight)
        return many.scores(self._members, rows, threads_for(threads))

    def predict(
        self, x: ArrayLike, reduce: str | None = None, quantiles: Any = None, threads: int | None = None
    ) -> Any:
        """The outputs of every member, or a statistic over the members, in evaluation mode.

        Parameters
        ----------
        x : array_like of shape (n, in_features) or (members, n, in_features), or list of ndarray
            Shared, or an array for each member. Other leading axes are kept, as in `Sequential.predict`: a shared
            (in_features,) gives (members, out_features).
        reduce : {None, "mean", "std", "quantiles"}
            A statistic over the members, computed block by block without an array of all outputs: the mean, the
            standard deviation (of the population, as `numpy.std`), or quantiles.
        quantiles : sequence of float, optional
            From 0 to 1, for ``reduce="quantiles"``; None: (0.05, 0.5, 0.95).
        threads : int, optional
            At most this many; None: as `cnn.set_num_threads` says. The result does not depend on it.

        Returns
        -------
        ndarray of shape (members, n, out_features)
            A list if the arrays of x have different shapes. (n, out_features) with "mean" and "std",
            (len(quantiles), n, out_features) with "quantiles".

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid.
        """
        return self._predict(x, reduce, quantiles, threads, lambda outputs: outputs)

    def predict_proba(
        self, x: ArrayLike, reduce: str | None = None, quantiles: Any = None, threads: int | None = None
    ) -> Any:
        """The probabilities of every member, or a statistic over the members: see `Sequential.predict_proba`.

        Parameters
        ----------
        x : array_like of shape (n, in_features) or (members, n, in_features), or list of ndarray
            As for `predict`.
        reduce : {None, "mean", "std", "quantiles"}
            As for `predict`: of the probabilities, not of the outputs.
        quantiles : sequence of float, optional
            As for `predict`.
        threads : int, optional
            As for `predict`.

        Returns
        -------
        ndarray of shape (members, n, out_features)
            Or of the shapes that `predict` returns.

        Raises
        ------
        ValueError, TypeError
            As for `predict`, or if the outputs are neither probabilities nor logits.
        """
        core, kind = self._members[0]._core, losses.probabilities_of(self._members[0])

        def probabilities(outputs):
            if kind != "probabilities":
                core.kernels.probabilities(outputs.reshape(-1, core.out_features), kind)
            return outputs

        return self._predict(x, reduce, quantiles, threads, probabilities)

    def _predict(self, x: Any, reduce: Any, quantiles: Any, threads: Any, made: Callable[[Any], Any]) -> Any:
        """`predict`, of what is made in place of the outputs of some members and rows."""
        if reduce is not None:
            choice("reduce", reduce, ("mean", "std", "quantiles"))
        if quantiles is not None and reduce != "quantiles":
            raise ValueError(f"quantiles: expected reduce='quantiles' with them, got reduce={reduce!r}")
        quantiles = (0.05, 0.5, 0.95) if quantiles is None else quantiles
        own = self._own(x, 2, "x")
        x = x if own or hasattr(x, "shape") else np.asarray(x)
        width = self._members[0]._core.out_features
        leading = [np.shape(a)[:-1] for a in own or [x]]
        program = self._members[0]._core.program
        threads = threads_for(threads)
        if len(set(leading)) > 1 and reduce is not None:
            raise ValueError("x: expected one shape for all members: pass reduce=None for different ones")
        if any(map(is_sparse, own or [x])):
            pairs = zip(self._members, own or [x] * len(self), strict=True)
            outs = [made(member.predict(a, threads=threads)) for member, a in pairs]
            if len(set(leading)) > 1:
                return outs
            return np.stack(outs) if reduce is None else _reduced(np.stack(outs), reduce, quantiles)
        xs = [program.inputs(a, f"x[{i}]") for i, a in enumerate(own)] if own else [program.inputs(x)]
        if len(set(leading)) > 1:
            outs = [made(out) for out in many.outputs(self._members, xs, threads)]
            return [out.reshape(*shape, width) for out, shape in zip(outs, leading, strict=True)]
        if reduce is None:
            return made(many.outputs(self._members, xs, threads)).reshape(len(self), *leading[0], width)
        n = len(xs[0])
        shape = (n, width) if reduce != "quantiles" else (*np.shape(quantiles), n, width)
        result = np.empty(shape, self.dtype)
        rows = max(1, many.BLOCK // max(1, len(self) * width * self.dtype.itemsize))
        for at in range(0, n, rows):
            block = made(many.outputs(self._members, [a[at : at + rows] for a in xs], threads))
            result[..., at : at + rows, :] = _reduced(block, reduce, quantiles)
        return result.reshape(*result.shape[:-2], *leading[0], width)

    # derivatives, member by member ------------------------------------------------------------------------------------

    def _each(self, name: str, *arrays):
        """Call a method of each member with its own arrays: (array, axes of one member's)."""
        split = [None if a is None else self._own(a, dims, f"argument {k}") for k, (a, dims) in enumerate(arrays)]
        found = []
        for i, member in enumerate(self._members):
            own = [a if part is None else part[i] for (a, _), part in zip(arrays, split, strict=True)]
            found.append(getattr(member, name)(*own))
        return found

    def loss_and_grad(self, x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
        """The loss of every member and its gradient: see `Sequential.loss_and_grad`.

        Parameters
        ----------
        x, y : array_like
            As for `fit`.

        Returns
        -------
        losses : ndarray of shape (members,)
        gradients : ndarray of shape (members, n_parameters)

        Raises
        ------
        ValueError, TypeError
            If an argument is invalid.
        RuntimeError
            If there is no loss.
        """
        data, shared = self._data(x, y, None)
        data = data * len(self) if shared else data
        found = [m.loss_and_grad(a, t) for m, (a, t, _) in zip(self._members, data, strict=True)]
        return np.array([loss for loss, _ in found]), np.stack([gradient for _, gradient in found])

    def vjp(self, x: ArrayLike, v: ArrayLike) -> Array:
        """v^T J of every member with respect to the inputs: see `Sequential.vjp`.

        Parameters
        ----------
        x, v : array_like
            Shared, or with a leading axis of the members.

        Returns
        -------
        ndarray of shape (members, n, in_features)
        """
        return np.stack(self._each("vjp", (x, 2), (v, 2)))

    def jvp(self, x: ArrayLike, t: ArrayLike | None = None, parameters: ArrayLike | None = None) -> Array:
        """J t of every member: see `Sequential.jvp`.

        Parameters
        ----------
        x, t : array_like
            Shared, or with a leading axis of the members.
        parameters : array_like of shape (n_parameters,) or (members, n_parameters), optional

        Returns
        -------
        ndarray of shape (members, n, out_features)
        """
        return np.stack(self._each("jvp", (x, 2), (t, 2), (parameters, 1)))

    def hvp(self, x: ArrayLike, y: ArrayLike, v: ArrayLike) -> Array:
        """The Hessian of every member's loss in its parameters times v: see `Sequential.hvp`.

        Parameters
        ----------
        x, y : array_like
            As for `fit`.
        v : array_like of shape (n_parameters,) or (members, n_parameters)

        Returns
        -------
        ndarray of shape (members, n_parameters)
        """
        data, shared = self._data(x, y, None)
        data = data * len(self) if shared else data
        vs = self._own(v, 1, "v") or [v] * len(self)
        return np.stack([m.hvp(a, t, u) for m, (a, t, _), u in zip(self._members, data, vs, strict=True)])

    def train(self, mode: bool = True) -> Ensemble:
        """Training mode, or with False evaluation mode, as `Sequential.train`.

        Parameters
        ----------
        mode : bool

        Returns
        -------
        Ensemble
            Itself.
        """
        for member in self._members:
            member.train(mode)
        return self

    def eval(self) -> Ensemble:
        """Evaluation mode.

        Returns
        -------
        Ensemble
            Itself.
        """
        return self.train(False)

    # files ------------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], *, training_state: bool = False, loss: bool = True) -> None:
        """Write all members to one safetensors file; see `Ensemble.load`.

        Parameters
        ----------
        path : str or path
        training_state : bool
            Write also all that further training depends on, but the history.
        loss : bool
            False omits the loss, as for `Sequential.save`.

        Raises
        ------
        TypeError
            If the loss is a Python function and is not omitted.
        OSError
            If it cannot be written; a file that was there before is untouched.

        Notes
        -----
        The tensors have a leading axis of the members, as `torch.func.stack_module_state` gives them: weights are
        (members, out_features, in_features).
        """
        from ..files import ensemble_file

        ensemble_file.save(self, path, flag("training_state", training_state), flag("loss", loss))

    @classmethod
    def load(cls, path: str | os.PathLike[str], loss: Any = None) -> Ensemble:
        """The ensemble that `save` wrote.

        Parameters
        ----------
        path : str or path
        loss : Loss or callable, optional
            Training loss, in place of the file's; needed if `save` omitted it.

        Returns
        -------
        Ensemble

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is damaged, or no file of an ensemble.
        """
        from ..files import ensemble_file

        ensemble: Ensemble = ensemble_file.load(cls, path)
        if loss is not None:
            ensemble.loss = loss
        return ensemble


def _drawn(member: Sequential, n: int) -> np.ndarray:
    """n of n rows, with replacement, by a member's seed: the same on every platform."""
    bits = np.random.PCG64([member._core.state.random_seed, 1]).random_raw(n)
    return ((bits >> np.uint64(33)) * np.uint64(n) >> np.uint64(31)).astype(np.int64)


def _reduced(outputs: np.ndarray, reduce: str, quantiles) -> np.ndarray:
    """The mean, ... over the members."""
    return np.quantile(outputs, quantiles, axis=0) if reduce == "quantiles" else getattr(outputs, reduce)(axis=0)


def _copies(layers):
    """Copies of layers of which parts that have no seed of their own get other parameters in each model."""
    copies = copy.deepcopy(layers)
    left = list(zip(layers, copies, strict=True)) if isinstance(layers, list) else []
    while left:
        own, other = left.pop()
        if isinstance(own, Sequential) and not own._core.nested:
            other._core.draw_as(own._core)
        left += zip(getattr(own, "children", ()), getattr(other, "children", ()), strict=True)
    return copies
