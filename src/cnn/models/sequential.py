"""`Sequential`: a chain of layers, compiled once into a native program that does all the work.

This file turns layers into the program, and calls on the model into calls on the program. The training loop is in
training.py, files in checkpoint.py.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import weakref
import zlib
from typing import Any

import numpy as np

from .. import layers, losses, optim
from .._dispatch import kernels
from .._threads import get_num_threads, threads_for
from ..files import checkpoint
from ..layers import graph as compilation
from ..layers.graph import Graph, Place, chain
from ..optim.optimizers import MOMENTUM
from ..training import fit as training
from ..training.history import History
from . import derivatives

__all__ = ["Sequential"]

PARAMETERS = ("weight", "bias")
STATISTICS = ("running_mean", "running_var")


class Sequential(layers.Chain):
    """A chain of layers that trains and predicts natively.

    Parameters
    ----------
    layers : sequence of Layer
        Layers in order, among them a `Linear`; a loss may stand last, or a function of your own, as for `CallableLoss`.
        Widths must follow from one another.
    optimizer : Optimizer, optional
        Needed for `step`, `train_step` and `fit`. Setting another one later begins anew: momentum, schedule, and the
        orders of the rows in `fit`.
    dtype : {"float32", "float64"}
        Of parameters and arithmetic. Inputs of another dtype are converted.
    seed : int, optional
        Of the initial parameters and of the order in `fit`: the same numbers on every platform. None: different at
        every run.

    Attributes
    ----------
    layers : list of Layer
        The objects passed in, without the loss. Their arrays are views into the model's memory.
    optimizer, loss, dtype, seed
        As passed in; `loss` is None if there is none.
    training : bool
        What `train` and `eval` set.

    Raises
    ------
    ValueError
        If there is no Linear, widths do not follow from one another, a loss does not stand last, or a layer is used
        twice or belongs to another model.
    TypeError
        If something is no layer.

    Examples
    --------
    >>> model = Sequential([Linear(2, 8), Tanh(), Linear(8, 1), MSELoss()], optimizer=SGD(lr=0.2), seed=0)
    >>> x, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    >>> for _ in range(2000):
    ...     loss = model.train_step(x, y)
    >>> model.predict(x).round().ravel().tolist()
    [0.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, layers, optimizer=None, dtype="float32", seed=None):
        self._kernels = kernels(dtype)
        self.dtype = self._kernels.DTYPE
        self.layers, self._loss = _split(layers)
        self._own_loss = self._loss if isinstance(self._loss, losses.CallableLoss) else None
        self.seed = _seed(seed)
        self.training = True
        self._epochs_seen = 0  # by fit: each epoch has its own order
        self._random_seed: int = int.from_bytes(os.urandom(8), "little") >> 1 if self.seed is None else self.seed
        self._compiled: Any = None
        self._derivatives: Any = None
        self._nested_in: Any = None  # weak reference to the model that this one is part of
        self._graph = self._checked()
        self._parametric = self._graph.parameters()
        self._optimizer: Any = None
        self._make_program()
        self.optimizer = optimizer

    # from layers to the program ---------------------------------------------------------------------------------------

    def _checked(self) -> Graph:
        """The graph of the layers; what is wrong with them is said here."""
        width = compilation.in_features(self.layers)
        if width is None:
            raise ValueError("layers: expected at least one Linear, got none: nothing says how wide the input is")
        graph = Graph([(width,)])
        chain(graph, self.layers, 0)
        for place in graph.seen.values():
            owner = place.layer._owner() if isinstance(place.layer, layers.Parametric) else None
            if owner is not None and id(owner) not in graph.seen:
                raise ValueError(f"{place}: belongs to another Sequential already")
        if not graph.ops:
            raise ValueError("layers: expected at least one layer that computes something")
        return graph

    def _make_program(self) -> None:
        """Make the native program, and move the layers' arrays into it."""
        spec = None if self.loss is None else self.loss.spec()
        program = compilation.program(self._kernels, self._graph, spec, self._random_seed)
        inner = [place.layer for place in self._graph.seen.values() if isinstance(place.layer, Sequential)]
        for model in inner:
            model._move_into(self)
        bits = np.random.PCG64(self._random_seed)
        self._drawn = [place.layer for _, place in self._parametric if not place.layer._arrays]
        for op, place in self._parametric:
            place.layer._join(self, program, op, self.dtype, bits)
        self._compiled = program
        self._initial = zlib.crc32(program.parameters)

    def _move_into(self, model: Sequential) -> None:
        """Become part of another model, which computes for this one from now on.

        Parameters that this model has drawn without a seed of its own, and that nobody has changed, are drawn anew.
        """
        if self._compiled is not None:
            if self.seed is None and zlib.crc32(self._compiled.parameters) == self._initial:
                for layer in self._drawn:
                    layer._arrays = {}
            self._compiled = None
        self._nested_in = weakref.ref(model)

    @property
    def _program(self):
        """The native program."""
        if self._compiled is None:
            raise RuntimeError("this Sequential is part of another model, which computes for it: use that one")
        return self._compiled

    def _set_optimizer(self) -> None:
        optimizer = self._optimizer
        if optimizer is None:
            return
        program = self._compiled
        named = self._named(*PARAMETERS)
        rows = dict(zip(named, optimizer.assign(list(named), [a.ndim for a in named.values()]), strict=True))
        groups = [(0, 0)] * len(self._graph.ops)
        for op, place in self._parametric:
            groups[op] = (rows.get(f"{place.key}.weight", 0), rows.get(f"{place.key}.bias", 0))
        program.set_optimizer(optimizer.table, groups, optimizer.clip_norm, optimizer.clip_value, optimizer.ema_decay)

    @property
    def loss(self):
        return self._loss

    @property
    def optimizer(self):
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer):
        if optimizer is not None and not isinstance(optimizer, optim.Optimizer):
            raise TypeError(f"optimizer: expected an optimiser such as cnn.SGD(), got {optimizer!r}")
        before = self._optimizer
        self._optimizer = optimizer
        if self._compiled is not None:
            try:
                self._set_optimizer()
            except ValueError:
                self._optimizer = before
                raise
            self._epochs_seen = 0

    def _need_optimizer(self) -> None:
        if self._optimizer is None:
            raise RuntimeError("the model has no optimizer: pass one to Sequential, or set model.optimizer")

    # in another model -------------------------------------------------------------------------------------------------

    def _in_features(self):
        return self._graph.widths[0]

    def _changes_width(self):
        return True

    def _may_nest(self, where):
        for name, part in (("loss", self.loss), ("optimizer", self.optimizer)):
            if part is not None:
                raise ValueError(f"{where}: a Sequential in a model has no {name} of its own, got {part!r}")

    # the explicit loop ------------------------------------------------------------------------------------------------

    def forward(self, x, targets=None):
        """Outputs, or with targets the loss; what `backward` needs is kept.

        Parameters
        ----------
        x : array_like of shape (batch, in_features)
            Copied: changing it later does not change what `backward` computes.
        targets : array_like, optional
            As the loss wants them: class indices of shape (batch,), or numbers of shape (batch, out_features).

        Returns
        -------
        ndarray of shape (batch, out_features), or float
            Without targets the outputs of the last layer (before the loss), else the loss.

        Raises
        ------
        ValueError, TypeError
            If x or targets do not fit.
        RuntimeError
            If there are targets but no loss.
        """
        self._own_gradient = None
        loss = self._own_loss
        if targets is None or loss is None:
            return self._program.forward(x, targets, get_num_threads(), self.training)
        outputs = self._program.forward(x, None, get_num_threads(), self.training)
        if not len(outputs):
            raise ValueError("the loss of an empty batch is not defined")
        value, self._own_gradient = loss.value_and_gradient(outputs, targets)
        return value + self._program.penalty()

    __call__ = forward

    _own_gradient: np.ndarray | None = None  # of the outputs, by the last `forward` with a loss of the user's own

    def backward(self, grad_output=None, debug=False):
        """Go back over the last `forward`; the gradients of the parameters are added to.

        Parameters
        ----------
        grad_output : array_like of shape (batch, out_features), optional
            Gradient with respect to the outputs. None: that of the loss, if the last `forward` had targets.
        debug : bool
            Report the graph through `logging`, logger "cnn", level INFO: op by op, going back, what it reads and
            writes, and shapes and norms of its output and of the gradients; raise FloatingPointError at the first op
            where a gradient is NaN.

        Returns
        -------
        ndarray of shape (batch, in_features)
            The gradient of x.

        Raises
        ------
        RuntimeError
            If there was no `forward`, or something has since overwritten what it kept, or changed the parameters.
        ValueError, TypeError
            If grad_output does not fit.
        """
        if not debug:
            return self._backward(grad_output)
        before = self.gradients
        grad_x = self._backward(grad_output)
        try:
            from . import diagram  # loads logging, subprocess and more, which `import cnn` does without

            diagram.report(self)
        except FloatingPointError:
            self._unpack(before, "grad_weight", "grad_bias")
            raise
        return grad_x

    def _backward(self, grad_output=None) -> np.ndarray:
        own = self._own_gradient if grad_output is None else None
        grad_x = self._program.backward(grad_output if own is None else own, get_num_threads())
        if own is not None:
            self._program.penalty(True)
        self._own_gradient = None
        return grad_x

    def step(self) -> None:
        """Take the optimiser's step with the gradients as they are. RuntimeError if there is no optimizer."""
        self._need_optimizer()
        self._program.step(self._rates())

    def _rates(self) -> np.ndarray | None:
        """lr and momentum of the next step, where a schedule sets them step by step."""
        schedule = self._optimizer.schedule
        if schedule is None or schedule.interval != "step":
            return None
        return schedule.rates(self._program.steps, 1, self._optimizer.lr, self._optimizer.table[0, MOMENTUM])

    def zero_grads(self) -> None:
        """Set all gradients to zero."""
        self._program.zero_grads()

    def loss_and_grad(self, x, y) -> tuple[float, np.ndarray]:
        """The loss and its gradient as one vector, in the order of `parameters`: what scipy.optimize wants.

        The model's gradients are this gradient afterwards.
        """
        if self._own_loss is None:
            return self._program.loss_and_grad(x, y, get_num_threads(), self.training)
        loss = self.forward(x, y)
        self.zero_grads()
        self._backward()
        self._program.forget("loss_and_grad has run since")
        return loss, self.gradients

    # derivative products ----------------------------------------------------------------------------------------------

    def vjp(self, x, v, parameters=False):
        """v^T J: the vector-Jacobian product with respect to the inputs and, asked for, the parameters.

        The model is in evaluation mode, as in all derivative products. A pending `backward` needs another forward pass
        afterwards; `gradients` stay as they are.

        Parameters
        ----------
        x : array_like of shape (batch, in_features)
        v : array_like of shape (batch, out_features)
        parameters : bool
            Whether the product with respect to the parameters is wanted too. Penalties are no part of it.

        Returns
        -------
        ndarray of shape (batch, in_features), or a pair of it and an ndarray of shape (n_parameters,)
            The second is the sum over the rows, in the order of `parameters`.

        Raises
        ------
        ValueError, TypeError
            If x or v do not fit.
        """
        of_inputs, of_parameters = derivatives.native(self).vjp(x, v, get_num_threads(), bool(parameters))
        return (of_inputs, of_parameters) if parameters else of_inputs

    def jvp(self, x, t=None, parameters=None):
        """J t: the Jacobian-vector product, along tangents of the inputs and of the parameters.

        Parameters
        ----------
        x : array_like of shape (batch, in_features)
        t : array_like of shape (batch, in_features), optional
            Tangent of x; None: zero.
        parameters : array_like of shape (n_parameters,), optional
            Tangent of the parameters, in the order of `parameters`; None: zero.

        Returns
        -------
        ndarray of shape (batch, out_features)

        Raises
        ------
        ValueError, TypeError
            If both tangents are None, or something does not fit.
        """
        if t is None and parameters is None:
            raise ValueError("jvp: expected a tangent of the inputs or of the parameters, got neither")
        return derivatives.native(self).jvp(x, t, parameters)[1]

    def jacobian(self, x) -> np.ndarray:
        """The Jacobian of each row, (batch, out_features, in_features): min(in, out) products. For small networks."""
        return derivatives.jacobian(self, x)

    def grad_input(self, x, y=None) -> np.ndarray:
        """The gradient of the loss with respect to x, (batch, in_features); without y, that of the only output.

        ValueError if there is no y and the model has several outputs: `vjp` is for them.
        """
        return derivatives.grad_input(self, x, y)

    def hvp(self, x, y, v) -> np.ndarray:
        """Hessian of the loss in the parameters times v, exact (Pearlmutter, 1994); about 2.7 times a gradient's work.

        Penalties are part of the loss: l2 adds 2 l2 v. ReLU and its like have the second derivative 0 wherever they
        have one. The model is in evaluation mode: `loss_and_grad` has this Hessian after `eval()`.

        Parameters
        ----------
        x : array_like of shape (batch, in_features)
        y : array_like
            As `targets` of `forward`.
        v : array_like of shape (n_parameters,)
            In the order of `parameters`.

        Returns
        -------
        ndarray of shape (n_parameters,)

        Raises
        ------
        ValueError, TypeError
            If something does not fit.
        RuntimeError
            If the model has no loss.
        NotImplementedError
            If the loss is a Python function.
        """
        return derivatives.curvature(self, x, y, v, False)

    def gnvp(self, x, y, v) -> np.ndarray:
        """Gauss-Newton matrix of the loss, J^T (d2 loss / d outputs2) J, times v; as `hvp`.

        Positive semi-definite where the loss is convex in the outputs, as all of the library's are. l2 adds 2 l2 v.
        """
        return derivatives.curvature(self, x, y, v, True)

    def hvp_input(self, x, v, y=None, grad_output=None, parameters=False):
        """Hessian with respect to the inputs times v, row by row.

        Parameters
        ----------
        x, v : array_like of shape (batch, in_features)
        y : array_like, optional
            Targets: the Hessian is that of the loss. Without them it is that of sum(grad_output * outputs).
        grad_output : array_like of shape (batch, out_features), optional
            Instead of y; None: ones, for a model with one output its second derivatives.
        parameters : bool
            Whether the mixed product is wanted too, the derivative along v of the gradient in the parameters: without y
            the gradient of sum(grad_output * J v), for losses on derivatives of the network.

        Returns
        -------
        ndarray of shape (batch, in_features), or a pair of it and an ndarray of shape (n_parameters,)

        Raises
        ------
        ValueError, TypeError
            If something does not fit, or both y and grad_output are given.
        NotImplementedError
            If there is y and the loss is a Python function.
        """
        of_inputs, mixed = derivatives.input_curvature(self, x, v, y, grad_output)
        return (of_inputs, mixed) if parameters else of_inputs

    def hessian_operator(self, x, y, gauss_newton=False):
        """`hvp` (or `gnvp`) on x, y as a scipy.sparse.linalg.LinearOperator, for `eigsh`, `cg` and the like.

        Needs SciPy. It keeps copies of x and y, and uses the parameters as they are when it is applied.
        """
        return derivatives.hessian_operator(self, x, y, bool(gauss_newton))

    # native training and prediction -----------------------------------------------------------------------------------

    def train_step(self, x, y, sample_weight=None) -> float:
        """Forward, loss, backward and the optimiser's step in one native call.

        The step is fused into the computation of the gradients, which are not kept: `gradients` stay as they are. With
        a loss of your own nothing is fused, and they are those of this step. The result is that of `forward`,
        `backward` and `step`: to the last bit from two rows on. A single row goes through a network of linear layers
        and activations in sums of another order, and differs by a few roundings.

        Parameters
        ----------
        x : array_like of shape (batch, in_features)
        y : array_like
            As `targets` of `forward`.
        sample_weight : array_like of shape (batch,), optional
            How much each row counts: finite, at least 0.

        Returns
        -------
        float
            The loss of the batch, before the step.

        Raises
        ------
        ValueError, TypeError
            If x or y do not fit, or the batch is empty.
        RuntimeError
            If there is no loss or no optimizer.
        """
        if self._optimizer is None:
            self._need_optimizer()
        if self._own_loss is not None:
            return self._own_train_step(self._own_loss, x, y, sample_weight)
        rates = None if self._optimizer._schedule is None else self._rates()
        return (self._compiled or self._program).train_step(x, y, get_num_threads(), sample_weight, rates)

    def _own_train_step(self, own: losses.CallableLoss, x, y, sample_weight) -> float:
        """`train_step` with a loss of the user's own."""
        if sample_weight is not None:
            raise ValueError("sample_weight: expected none with a loss of your own, which weighs the rows itself")
        x = self._program.inputs(x)
        if not len(x):
            raise ValueError("x: training needs at least one row, got an empty batch")
        outputs = self._program.forward(x, None, get_num_threads(), True)
        loss, gradient = own.value_and_gradient(outputs, y)
        self.zero_grads()
        self._program.backward(gradient, get_num_threads())
        loss += self._program.penalty(True)
        self.step()
        if not math.isfinite(loss):
            self._program.clear_padding()
        return loss

    _position: tuple | None = None  # within an epoch of fit: its number, the rows done, the sums so far
    history: History | None = None  # of the last fit, also of one that an exception has ended
    stop_training = False  # set to True in a callback, ends fit after this batch or epoch
    _fitting = False

    def fit(
        self,
        x,
        y=None,
        *,
        epochs=1,
        batch_size=32,
        shuffle=True,
        validation_data=None,
        validation_split=0.0,
        sample_weight=None,
        class_weight=None,
        metrics=(),
        callbacks=(),
        early_stopping=None,
        initial_epoch=None,
        accumulation_steps=1,
        threads=None,
        progress="auto",
        checkpoint=None,
        checkpoint_every=1,
        keep=3,
        resume=False,
    ):
        """Train for a number of epochs, in native code.

        Parameters
        ----------
        x : array_like of shape (n, in_features), memory map, Blocks, or iterable of batches
            A `numpy.memmap` may be larger than memory: it is read and converted in blocks of about 64 MiB, which come
            in random order, with their rows in random order (see `cnn.Blocks`). An iterable gives (x, y) or
            (x, y, sample_weight) for each batch, and is gone over anew in each epoch; a Sequence of batches is
            shuffled by batches.
        y : array_like, optional
            Targets as the loss wants them: class indices of shape (n,), or numbers of shape (n, out_features). None if
            x brings them.
        epochs : int
            The number of the last epoch, counted from 1.
        batch_size : int
            The last batch of an epoch, or of a block, may be smaller. 1 trains one sample at a time.
        shuffle : bool
            Whether each epoch takes the rows in a random order of its own, which depends on the model's seed and the
            epoch's number alone.
        validation_data : (x, y), (x, y, sample_weight), or batches as for x, optional
            Evaluated after each epoch.
        validation_split : float
            The part of the rows, the last ones, that is held out for validation instead; from 0 to below 1.
        sample_weight : array_like of shape (n,), optional
            Not negative. The loss is the weighted mean.
        class_weight : dict or "balanced", optional
            Weights of class indices, 1 for those that are not named. "balanced": n / (classes * count of the class), as
            in scikit-learn. They multiply the sample weights, in training only.
        metrics : sequence of str or callable
            Of training rows, by the outputs that they had in the training step, and of validation rows: "accuracy",
            "top_k" ("top_3", ...), "mae", "rmse", "r2", "auc", "f1", or functions of (targets, outputs) that return a
            number. Weights do not enter.
        callbacks : sequence of Callback
            See `cnn.Callback`.
        early_stopping : EarlyStopping, int or True, optional
            An int is its patience; True is 10.
        initial_epoch : int, optional
            How many epochs have been done: a run that is continued has the orders, and the rates of a schedule by
            epoch, that one run would have had, and its history goes on where `model.history` ends, if that has the same
            numbers. A model that was interrupted within the following epoch (0: the first), or saved there with its
            training state (by a callback), goes on at that batch; metrics of training rows are then those of the rest.
            None: a run of its own from the first row on, with a new history; orders and rates are those after the
            epochs that this model has done with its optimizer.
        accumulation_steps : int
            Batches whose mean gradient makes one step of the optimiser.
        threads : int, optional
            At most so many; None: as `cnn.set_num_threads` says. The result does not depend on it.
        progress : {"auto", True, False}
            "auto": a bar on a terminal or in a notebook, if tqdm is installed, else silence. True: where there is no
            bar, one line an epoch on stderr. False: silence.
        checkpoint : str or path, optional
            A folder, into which a checkpoint is written after every `checkpoint_every` epochs; the last `keep` stay.
        resume : bool
            Whether to go on after the newest checkpoint in that folder, if there is one.

        Returns
        -------
        History
            A dict of lists, one number an epoch: "loss" (over the epoch, as the parameters changed), with
            CrossEntropyLoss "accuracy", the metrics, the same of the validation data with "val_" before, and with a
            schedule "lr".

        Raises
        ------
        ValueError, TypeError
            If something does not fit; nothing has changed then. If it is a batch of an iterable or a block of a file
            that does not fit, the parameters are those from before the epoch; so they are if the iterable, a metric or
            a loss of your own raises something.
        OSError
            If the file of a memory map cannot be read, or has been cut short; likewise.
        RuntimeError
            If there is no loss or no optimizer, or a callback calls fit.
        DivergenceError
            If the loss is no finite number: names epoch, batch and learning rate. The parameters are those from before
            that epoch.

        Notes
        -----
        Ctrl-C stops within about 0.1 s and leaves a valid model; `model.history` has the epochs so far.
        """
        return training.fit(
            self,
            x,
            y,
            epochs=epochs,
            batch_size=batch_size,
            shuffle=shuffle,
            validation_data=validation_data,
            validation_split=validation_split,
            sample_weight=sample_weight,
            class_weight=class_weight,
            metrics=metrics,
            callbacks=callbacks,
            early_stopping=early_stopping,
            initial_epoch=initial_epoch,
            accumulation_steps=accumulation_steps,
            threads=threads_for(threads),
            progress=progress,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            keep=keep,
            resume=resume,
        )

    def predict(self, x, out=None, threads=None):
        """The outputs of the last layer (logits, where the loss is CrossEntropyLoss) in evaluation mode.

        Any number of rows: they are run in chunks that stay in cache. Does not disturb a pending `backward`.

        Parameters
        ----------
        x : array_like of shape (batch, in_features)
            The batch may be empty.
        out : ndarray of shape (batch, out_features), optional
            Where the result goes; of the model's dtype, rows contiguous.
        threads : int, optional
            At most so many; None: as `cnn.set_num_threads` says. The result does not depend on it.

        Returns
        -------
        ndarray of shape (batch, out_features)

        Raises
        ------
        ValueError, TypeError
            If x or out do not fit.
        """
        return (self._compiled or self._program).predict(x, out, threads_for(threads))

    def evaluate(self, x, y=None, sample_weight=None, metrics=(), threads=None) -> dict[str, float]:
        """The loss and the metrics of x and y, in evaluation mode.

        Parameters
        ----------
        x, y, sample_weight, metrics, threads
            As for `fit`; memory maps and iterables as well.

        Returns
        -------
        dict
            {"loss": ..., and with CrossEntropyLoss or NLLLoss "accuracy": the part of rows classified right, and the
            metrics}.

        Raises
        ------
        ValueError, TypeError
            If something does not fit, or there are no rows.
        RuntimeError
            If there is no loss.
        """
        return training.evaluate(self, x, y, sample_weight, metrics, threads_for(threads))

    @property
    def _scored(self) -> list[str]:
        """The names of what the native loop reports."""
        return ["loss", "accuracy"] if self.loss is not None and self.loss.targets == "labels" else ["loss"]

    def _scores(self, loss: float, weight: float, right: float, rows: float) -> dict[str, float]:
        """The loss, and the accuracy if it is known, from the sums over the rows."""
        scores = {"loss": float(loss)}
        if getattr(self.loss, "reduction", "mean") == "mean":
            scores["loss"] = float(loss / weight) if weight else 0.0
        if "accuracy" in self._scored:
            scores["accuracy"] = float(right / rows) if rows else float("nan")
        return scores

    def train(self, mode: bool = True) -> Sequential:
        """Set training mode, in which regularising layers act; returns the model."""
        self.training = bool(mode)
        return self

    def eval(self) -> Sequential:
        """Set evaluation mode; returns the model."""
        return self.train(False)

    # parameters -------------------------------------------------------------------------------------------------------

    def _named(self, *kinds: str) -> dict[str, np.ndarray]:
        """Views of the arrays, by their names in `state_dict`."""
        return {name: a for _, place in self._parametric for name, a in self._named_of(place, *kinds).items()}

    def _named_of(self, place: Place, *kinds: str) -> dict[str, np.ndarray]:
        place.layer._array("weight")  # makes the arrays, if they have not been made
        arrays = {f"{place.key}.{kind}": place.layer._arrays.get(kind) for kind in kinds}
        return {name: a for name, a in arrays.items() if a is not None}

    def _unpack(self, vector: np.ndarray, *kinds: str) -> None:
        at = 0
        for array in self._named(*kinds).values():
            array[...] = vector[at : at + array.size].reshape(array.shape)
            at += array.size

    @property
    def parameters(self) -> np.ndarray:
        """All parameters as one vector (a copy), in the order of `state_dict`. Assigning writes them back."""
        return self._program.parameters

    @parameters.setter
    def parameters(self, vector):
        self._program.set_parameters(vector)

    @property
    def gradients(self) -> np.ndarray:
        """All gradients as one vector (a copy), in the order of `parameters`."""
        return self._program.gradients

    @property
    def averaged_parameters(self) -> np.ndarray:
        """The moving average of the parameters that `ema_decay` of the optimizer asks for, as `parameters` (a copy).

        Before the first step the parameters. RuntimeError if the optimizer has no ema_decay.
        """
        if self._optimizer is None or self._optimizer.ema_decay is None:
            raise RuntimeError(f"there is no average: expected an optimizer with ema_decay, got {self._optimizer!r}")
        average = self._program.average
        return self.parameters if average is None else average

    @contextlib.contextmanager
    def using_average(self):
        """``with model.using_average():`` the parameters are `averaged_parameters`, and after it what they were before.

        For `predict`, `evaluate` and `save`; a step that is taken meanwhile is undone. The running statistics of
        `BatchNorm1d` stay those of training. To keep the average: ``model.parameters = model.averaged_parameters``.
        """
        before, average = self.parameters, self.averaged_parameters
        self.parameters = average
        try:
            yield self
        finally:
            self.parameters = before

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of the parameters by name: "0.weight" of shape (in_features, out_features), "0.bias", "2.weight", ...

        The number is the layer's place in the model, activations counted, as in PyTorch.
        """
        state: dict[str, np.ndarray] = {}
        for op, place in self._parametric:
            names = {**self._named_of(place, *PARAMETERS), **self._named_of(place, *STATISTICS)}
            state |= {name: np.array(a, order="C") for name, a in names.items()}
            if place.layer.statistic_names:
                state[f"{place.key}.num_batches_tracked"] = np.array(self._program.tracked(op))
        return state

    def load_weights(self, state_dict, config=None, verbose=False) -> None:
        """Set the parameters: all of them, or none if anything does not fit.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            As `state_dict` returns it: weights are (in_features, out_features).
        config : dict, optional
            As `get_config` returns it: must describe layers like this model's.
        verbose : bool
            Print what is loaded.

        Raises
        ------
        ValueError
            If names are missing or unknown, shapes differ, or config describes another network.
        TypeError
            If values are no arrays of real numbers, or are PyTorch's tensors, whose weights are the other way round.
        """
        if config is not None:
            expected = self.get_config()["layers"]
            got = config.get("layers") if isinstance(config, dict) else config
            if got != expected:
                raise ValueError(f"config: expected the layers of this model, {expected}, got {got}")
        own = self._named(*PARAMETERS, *STATISTICS)
        counts = {f"{p.key}.num_batches_tracked": op for op, p in self._parametric if p.layer.statistic_names}
        expected_names = [*own, *counts]
        if missing := [name for name in own if name not in state_dict]:
            raise ValueError(f"state_dict: missing {', '.join(missing)}; it has {', '.join(state_dict)}")
        if unknown := [str(name) for name in state_dict if name not in expected_names]:
            raise ValueError(f"state_dict: unknown {', '.join(unknown)}; expected {', '.join(expected_names)}")
        arrays = {}
        for name in (name for name in expected_names if name in state_dict):
            value = state_dict[name]
            if type(value).__module__.partition(".")[0] == "torch":
                raise TypeError(
                    f"state_dict: {name} is a PyTorch tensor. PyTorch keeps Linear.weight as (out, in); "
                    "here it is (in, out): use cnn.from_torch"
                )
            shape = own[name].shape if name in own else ()
            arrays[name] = np.asarray(value)
            if arrays[name].dtype.kind not in ("fiub" if name in own else "iu"):
                raise TypeError(f"{name}: expected real numbers, got dtype {arrays[name].dtype}")
            if arrays[name].shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {arrays[name].shape}")
            if verbose:
                print(f"{name} {shape}")
        parameters = self._named(*PARAMETERS)
        self._program.set_parameters(np.concatenate([arrays[name].ravel() for name in parameters]))
        for name in own:
            if name not in parameters:
                own[name][...] = arrays[name]
        for name, op in counts.items():
            if name in arrays:
                self._program.set_tracked(op, int(arrays[name]))

    def get_config(self) -> dict[str, Any]:
        """All that `from_config` needs to build this model anew, as JSON can hold it; without the parameters."""

        return {
            "layers": [layer.to_config() for layer in self.layers],
            "loss": self.loss and self.loss.to_config(),
            "optimizer": self.optimizer and self.optimizer.to_config(),
            "dtype": self.dtype.name,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config) -> Sequential:
        """The model that `get_config` described, with new initial parameters.

        Raises
        ------
        ValueError
            If config is not as `get_config` makes it, or names an unknown layer, loss or optimiser.
        """

        try:
            parts = [layers.Layer.from_config(layer) for layer in config["layers"]]
            loss = None if config["loss"] is None else losses.Loss.from_config(config["loss"])
            optimizer = None if config["optimizer"] is None else optim.Optimizer.from_config(config["optimizer"])
            return cls([*parts, *([loss] if loss else [])], optimizer, config["dtype"], config["seed"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"config: not as get_config makes it: {error!r}") from error

    def save(self, path, *, training_state=False) -> None:
        """Write the model to a safetensors file; see `cnn.load`.

        The file is complete or not there: it is written under another name, flushed to disk and then renamed. A file
        that is there is replaced and keeps its mode. Of a symbolic link the target is replaced.

        Parameters
        ----------
        path : str or path
        training_state : bool
            Write also all that further training depends on: the optimiser's and the schedule's state, averaged
            parameters, the state of the random numbers, the number of epochs, the history. After `cnn.load` training
            goes on to the bit as if it had not been interrupted. The gradients are not written.

        Raises
        ------
        OSError
            If it cannot be written; a file that was there before is untouched.

        Notes
        -----
        In the file weights are (out_features, in_features), as PyTorch keeps them, under PyTorch's names::

            torch_model.load_state_dict(safetensors.torch.load_file(path))

        The training state is further tensors, whose names begin with "cnn.training/": a file that has it wants
        ``strict=False`` there.
        """
        checkpoint.save(self, path, training_state)

    def __reduce__(self):
        """For pickle, copy and joblib: the content of a file with the training state, without gradients.

        To unpickle is to trust: whoever made a pickle can have it run anything. Files of `save` are safe from anywhere.
        """
        return checkpoint.from_bytes, (type(self), checkpoint.to_bytes(self))

    def handle(self):
        """A snapshot of the model that C and Cython programs predict with, without Python: see include/cnn.h.

        It is immutable and independent of the model: what is changed here afterwards does not change it. The handle
        keeps it alive. In Cython, `cnn_get_f32(handle)` (for a float64 model `cnn_get_f64`) of `cnn.embed` gives the
        model as C sees it; `cnn.get_include()` is the folder of the header.

        Returns
        -------
        capsule
            Of the kernels that this process uses: it cannot be sent to another one.
        """
        parts = [layers.Layer.from_config(layer.to_config()) for layer in self.layers]
        snapshot = Sequential(parts, dtype=self.dtype)
        snapshot.load_weights(self.state_dict())
        return self._kernels.handle(snapshot._program)

    # for people -------------------------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Print a table of the layers, with output shapes, parameters, FLOPs a sample and memory."""
        from . import summary

        print(summary.text(self))

    def _repr_html_(self) -> str:
        from . import summary

        return summary.html(self)

    def plot(self, path=None):
        """Draw the network: layers and branches with the number of their outputs and parameters.

        Parameters
        ----------
        path : str or path, optional
            Where the picture goes; its suffix is the format (.png, .svg, .pdf).

        Returns
        -------
        matplotlib.figure.Figure or None
            The figure if there is no path.

        Raises
        ------
        ValueError
            If the suffix is another one.
        ImportError
            If matplotlib is not installed (extra `plot`).
        """
        from . import diagram

        return diagram.plot(self, path)

    def __repr__(self) -> str:
        parts = [*self.layers, *([self.loss] if self.loss else [])]
        lines = "".join(f"  ({i}): {part!r}\n" for i, part in enumerate(parts))
        return f"Sequential(\n{lines}){'' if self.dtype == np.float32 else f' {self.dtype}'}"

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i):
        return self.layers[i]


def _split(parts) -> tuple[list, losses.Loss | None]:
    """The layers and the loss, checked."""
    if isinstance(parts, layers.Layer) or not hasattr(parts, "__iter__"):
        raise TypeError(f"layers: expected a list of layers, got {parts!r}")
    parts = list(parts)
    if parts and (inspect.isroutine(parts[-1]) or isinstance(parts[-1], functools.partial)):
        parts[-1] = losses.CallableLoss(parts[-1])
    loss = parts.pop() if parts and isinstance(parts[-1], losses.Loss) else None
    if loss is not None:
        compilation.computes_natively(loss, f"loss {loss!r}")
    for i, part in enumerate(parts):
        if isinstance(part, losses.Loss):
            raise ValueError(f"layer {i}, {part!r}: a loss can only stand last")
        if not isinstance(part, layers.Layer):
            hint = " (pass an object, not the class)" if isinstance(part, type) else ""
            raise TypeError(f"layer {i}: expected a layer, got {part!r}{hint}")
        part._may_nest(f"layer {i}")
    return parts, loss


def _seed(seed) -> int | None:
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed: expected an int or None, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected at least 0 and below 2**63, got {seed}")
    return int(seed)
