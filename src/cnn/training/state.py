"""`TrainingState`: all that further training depends on beside a model's configuration, parameters and statistics.

A checkpoint with the training state saves it whole: as arrays, and numbers that JSON can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..files.safetensors_file import short
from .history import History

EPOCHS, HISTORY = "epochs", "history/"  # names of arrays: the epochs' numbers, and before the history's names


@dataclass
class TrainingState:
    """How far the training of a model is. The optimiser's arrays are in the program, and added when it is written.

    Attributes
    ----------
    random_seed : int
        Of the orders of the rows and of dropout: the model's seed, or one drawn for it.
    training : bool
        Training mode, as `Sequential.train` sets it.
    epoch : int
        The last epoch that `fit` has completed, by its own count.
    epochs_seen : int
        Epochs with this optimizer, over all calls of `fit`: each has its own order and rates.
    position : tuple or None
        Within an epoch of `fit`: its number, the rows done, and four sums over them.
    history : History or None
        Of the last `fit`, also of one that an exception has ended.
    """

    random_seed: int
    training: bool = True
    epoch: int = 0
    epochs_seen: int = 0
    position: tuple | None = None
    history: History | None = None

    def to_parts(self, program: Any, optimizer: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What `from_parts` reads: copies of the arrays by name, and the numbers."""
        arrays = dict(program.state(_blocks(optimizer)))
        history = self.history
        if history is not None:
            arrays[EPOCHS] = np.array(history.epochs, np.int64)
            arrays |= {HISTORY + name: np.array(values, np.float64) for name, values in history.items()}
        schedule = stateful(optimizer)
        numbers = {
            "epoch": self.epoch,
            "epochs_seen": self.epochs_seen,
            "history": None if history is None else list(history),
            "position": None if self.position is None else list(self.position),
            "random_seed": self.random_seed,
            "schedule": schedule and schedule.state_dict(),
            "training": self.training,
        }
        return arrays, numbers

    @classmethod
    def from_parts(cls, arrays: dict[str, np.ndarray], numbers: Any, program: Any, optimizer: Any, dtype: np.dtype):
        """The state that `to_parts` gave; program, optimiser and schedule are brought to it.

        Raises
        ------
        ValueError
            If something is missing, unknown or no such number, or another program's or optimiser's.
        """
        names = {"epoch", "epochs_seen", "history", "position", "random_seed", "schedule", "training"}
        if not isinstance(numbers, dict) or numbers.keys() != names:
            raise ValueError(f"training: expected {', '.join(sorted(names))}, got {short(numbers)}")
        for name in ("epoch", "epochs_seen", "random_seed"):
            if type(n := numbers[name]) is not int or not 0 <= n < 1 << 63:
                raise ValueError(f"training: {name}: expected an integer of at least 0, got {short(n)}")
        if not isinstance(numbers["training"], bool):
            raise ValueError(f"training: training: expected true or false, got {short(numbers['training'])}")
        position = numbers["position"]
        if position is not None and not (
            isinstance(position, list)
            and [type(n) for n in position] == [int, int, float, float, float, float]
            and position[0] >= 1
            and position[1] >= 0
        ):
            raise ValueError(f"training: position: expected epoch, rows and four sums, got {short(position)}")
        arrays = dict(arrays)
        history = None if numbers["history"] is None else _history(arrays, numbers["history"])
        schedule = stateful(optimizer)
        if (schedule is None) != (numbers["schedule"] is None):
            raise ValueError(f"training: schedule: {short(numbers['schedule'])} is no state of {schedule!r}")
        if schedule is not None:
            schedule.load_state_dict(numbers["schedule"])
        for name, a in arrays.items():
            expected = np.dtype({"counters": np.int64, "statistics": np.float64}.get(name, dtype))
            if a.dtype != expected:
                raise ValueError(f"training: {short(name)}: expected dtype {expected}, got {a.dtype}")
        program.set_seed(numbers["random_seed"])
        program.set_state(arrays, _blocks(optimizer))
        kept = {name: numbers[name] for name in ("random_seed", "training", "epoch", "epochs_seen")}
        return cls(**kept, position=None if position is None else tuple(position), history=history)


def _blocks(optimizer: Any) -> int:
    """How many arrays of state an optimiser keeps, each of the parameters' size."""
    return 0 if optimizer is None else optimizer.states


def stateful(optimizer: Any) -> Any:
    """The optimiser's schedule, if it has one with a state."""
    schedule = getattr(optimizer, "schedule", None)
    return schedule if hasattr(schedule, "state_dict") else None


def _history(arrays: dict[str, np.ndarray], names: Any) -> History:
    """The History of these names; takes its arrays from the others."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"training: history: expected a list of names, got {short(names)}")

    def taken(name, dtype):
        values = arrays.pop(name, None)
        if values is None or values.ndim != 1 or values.dtype != dtype:
            raise ValueError(f"training: {short(name)}: expected a vector of {np.dtype(dtype)}")
        return values.tolist()

    history = History({name: taken(HISTORY + name, np.float64) for name in names})
    history.epochs = taken(EPOCHS, np.int64)
    return history
