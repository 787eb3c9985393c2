"""Optimisers that need the whole data: an iteration evaluates the loss at several points."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from .._checks import integer, number
from .._dispatch import kernels
from .optimizers import Optimizer

__all__ = ["LBFGS"]

EVALUATE, MOVED, FLAT = (kernels("float32").ITERATION[name] for name in ("evaluate", "moved", "flat"))


class WholeDataOptimizer(Optimizer, abstract=True):
    """What these optimisers have in common: `fit` and `train_step` call `iterate`, and there is no step by a gradient.

    An iteration is an epoch of `fit`, which takes the whole data as one batch. The loss has to be the same whenever it
    is evaluated at the same parameters: dropout in training mode is refused, and so is clipping.
    """

    whole_data = True
    kernel: ClassVar[str | None] = None
    has_momentum = False
    logs: tuple[str, ...] = ()  # what the history has beside the loss

    def _check_common(self, name, value):
        if value is not None and name in ("clip_norm", "clip_value"):
            raise ValueError(
                f"{name}: expected none with {type(self).__name__}, which needs the gradient of the loss as it is: its "
                "line search shortens a step that is too long"
            )
        if name == "groups" and any("lr" in group for group in value or ()):
            raise ValueError(
                f"groups: expected no 'lr' with {type(self).__name__}, which takes one step with all parameters: "
                "layer.trainable = False keeps a layer as it is"
            )

    def minimizer(self, kernels: Any, program: Any) -> Any:
        """The native object that iterates on a program; it lives as long as the program has this optimiser.

        Parameters
        ----------
        kernels : module
            The compiled kernels of the model's dtype.
        program : Program
            The model's.

        Returns
        -------
        object
            What `iterate` is given.
        """
        raise NotImplementedError

    def iterate(self, minimizer: Any, objective: Any, lr: float) -> str | None:
        """Do one iteration, and leave the parameters and `objective` at the new point.

        Parameters
        ----------
        minimizer : object
            What `minimizer` returned.
        objective : Objective
            Evaluated at the present parameters when it is called.
        lr : float
            Now, by the schedule.

        Returns
        -------
        str or None
            Why further iterations would change nothing; None: they may.
        """
        raise NotImplementedError


class LBFGS(WholeDataOptimizer):
    """L-BFGS (Nocedal, 1980) with a line search for the strong Wolfe conditions; the names are torch.optim.LBFGS's.

    Each iteration, an epoch of `fit`, takes the whole data::

        d = -H g        (H: the inverse Hessian, as the last `history_size` changes of w and g show it)
        w = w + t d     (t by the line search of More and Thuente, 1994: first lr, at the first iteration lr / |g|)

    `fit` ends when the gradient or the change of the loss is small, or nothing lower can be found at the dtype's
    precision, and says so in ``history.converged``; ``history["evaluations"]`` counts.

    Parameters
    ----------
    lr : float
        Scales the first step that each line search tries; 1 is nearly always right, and 0 stops training.
    max_eval : int
        At most this many evaluations in a line search; then it restarts along the gradient, without a history.
    tolerance_grad : float
        `fit` ends when no element of the gradient is larger than this (SciPy's gtol).
    tolerance_change : float
        `fit` ends when an iteration lowers the loss by at most this, times the loss if that is above 1 (SciPy's ftol).
    history_size : int
        Pairs of changes that are kept; each takes twice the memory of the parameters. Only the constructor can set it.
    line_search_fn : {"strong_wolfe"}
        There is no other.
    weight_decay : float
        At least 0: weight_decay / 2 w**2 is a term of what is minimised, though not of the loss that is reported.
    **common
        groups (without "lr"), decay_bias, ema_decay, schedule: as for `Optimizer`.
    """

    def __init__(
        self,
        lr: float = 1.0,
        max_eval: int = 20,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 10,
        line_search_fn: str = "strong_wolfe",
        weight_decay: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(lr, weight_decay, **common)
        self.max_eval = max_eval
        self.tolerance_grad = tolerance_grad
        self.tolerance_change = tolerance_change
        self._history_size = integer("history_size", history_size, 1)
        self.line_search_fn = line_search_fn

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_eval":
            value = integer(name, value, 1)
        elif name in ("tolerance_grad", "tolerance_change"):
            value = number(name, value, 0)
        elif name == "line_search_fn" and value != "strong_wolfe":
            raise ValueError(f"line_search_fn: expected 'strong_wolfe', the only one, got {value!r}")
        super().__setattr__(name, value)

    @property
    def history_size(self) -> int:
        """Pairs of changes that are kept; only the constructor can set it."""
        return self._history_size

    @history_size.setter
    def history_size(self, value: Any) -> None:
        raise AttributeError("history_size: can only be set in the constructor: create a new optimizer")

    @property
    def states(self) -> int:
        """How many numbers of state each parameter has."""
        return 2 * self._history_size

    def minimizer(self, kernels: Any, program: Any) -> Any:
        return kernels.LBFGS(program, self._history_size)

    def iterate(self, minimizer: Any, objective: Any, lr: float) -> Any:
        known = objective.known
        before = objective.value if known else objective()
        if not math.isfinite(before) or lr == 0:
            return None
        try:
            now = minimizer.begin(before, known, lr, self.tolerance_grad, self.max_eval)
            while now == EVALUATE:
                now = minimizer.advance(objective())
        except BaseException:  # Ctrl-C in the midst of a line search, or an error in a loss of the user's own
            if minimizer.back():
                objective.back()
            raise
        if now == MOVED:
            objective.hold()
            fall = before - objective.value
            if fall > self.tolerance_change * max(abs(before), abs(objective.value), 1):
                return None
            return f"the last iteration has lowered the loss by {fall:.3g} only, of {before:.3g}"
        if now == FLAT:
            objective.back()
            objective.hold()
            return f"no number of the gradient is larger than {self.tolerance_grad:g}"
        objective()  # once more: the last evaluation was elsewhere
        objective.back()
        objective.hold()
        return f"the line search finds no lower loss: {before:.9g} is as exact as {objective.dtype} allows"
