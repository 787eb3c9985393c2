"""`TrainingState`: all that further training depends on beside a model's configuration, parameters and statistics.

A checkpoint with the training state saves it whole: as arrays, and numbers that JSON can hold.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._checks import integer
from ..files.safetensors_file import short
from .history import History

EPOCHS, HISTORY = "epochs", "history/"  # names of arrays: the epochs' numbers, and before the history's names
CALLBACK = "callback/"  # before the names of a callback's arrays: "callback/EarlyStopping/parameters"
STATISTICS = ("running_mean", "running_var")


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
        The last epoch that the present, or last, `fit` has completed, by its own count.
    epochs_seen : int
        Epochs with this optimizer, over all calls of `fit`: each has its own order and rates. One that a callback
        sets goes on with the number of its `fit`.
    position : tuple or None
        Within an epoch of `fit`: its number, the rows done, and four sums over them.
    history : History or None
        That of the last `fit`, including one that an exception ended.
    callbacks : dict of str to dict
        The states of the callbacks of the last `fit`, under the names of `names_of`.
    running : list of Callback
        Those of the `fit` that is running; their state is read when it is needed.
    """

    random_seed: int
    training: bool = True
    epoch: int = 0
    epochs_seen: int = 0
    position: tuple[Any, ...] | None = None
    history: History | None = None
    callbacks: dict[str, dict[Any, Any]] = field(default_factory=dict)
    running: list[Any] = field(default_factory=list)

    def begin(self, initial_epoch: int) -> int:
        """At the start of a run of `fit`, or after `initial_epoch` of its epochs: the epochs with this optimizer.

        A run that goes on where the model stands keeps their number, to which earlier runs may have added.
        """
        if initial_epoch not in (0, self.epoch):
            self.epochs_seen = initial_epoch
        self.epoch = initial_epoch
        return self.epochs_seen

    def ask(self) -> None:
        """Bring `callbacks` to what the callbacks of a running `fit` have now."""
        if self.running:
            states = {name: callback.state_dict() for name, callback in names_of(self.running).items()}
            self.callbacks = {name: _checked(name, state) for name, state in states.items() if state}

    def release(self) -> None:
        """When `fit` is over: keep the states of its callbacks, and not the callbacks."""
        try:
            self.ask()
        finally:
            self.running = []

    def to_parts(self, program: Any, optimizer: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What `from_parts` reads: copies of the arrays by name, and the numbers."""
        arrays = dict(program.state(_blocks(optimizer)))
        history = self.history
        if history is not None:
            arrays[EPOCHS] = np.array(history.epochs, np.int64)
            arrays |= {HISTORY + name: np.array(values, np.float64) for name, values in history.items()}
        self.ask()
        kept: dict[str, dict[Any, Any]] = {}
        for name, state in self.callbacks.items():
            kept[name] = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
            of_it = {key: value for key, value in state.items() if key not in kept[name]}
            arrays |= {f"{CALLBACK}{name}/{key}": np.array(value) for key, value in of_it.items()}
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
        return arrays, numbers | ({"callbacks": kept} if kept else {})

    @classmethod
    def from_parts(
        cls, arrays: dict[str, np.ndarray], numbers: Any, program: Any, optimizer: Any, dtype: np.dtype
    ) -> Any:
        """The state that `to_parts` gave; program, optimiser and schedule are brought to it.

        Raises
        ------
        ValueError
            If something is missing, unknown or no such number, or another program's or optimiser's.
        """
        names = {"epoch", "epochs_seen", "history", "position", "random_seed", "schedule", "training"}
        if not isinstance(numbers, dict) or numbers.keys() - {"callbacks"} != names:
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
        callbacks = _callbacks(arrays, numbers.get("callbacks", {}))
        schedule = stateful(optimizer)
        if (schedule is None) != (numbers["schedule"] is None):
            raise ValueError(f"training: schedule: {short(numbers['schedule'])} is not a state of {schedule!r}")
        if schedule is not None:
            schedule.load_state_dict(numbers["schedule"])
        for name, a in arrays.items():
            expected = np.dtype({"counters": np.int64, "statistics": np.float64}.get(name, dtype))
            if a.dtype != expected:
                raise ValueError(f"training: {short(name)}: expected dtype {expected}, got {a.dtype}")
        program.set_seed(numbers["random_seed"])
        program.set_state(arrays, _blocks(optimizer))
        kept = {name: numbers[name] for name in ("random_seed", "training", "epoch", "epochs_seen")}
        position = None if position is None else tuple(position)
        return cls(**kept, position=position, history=history, callbacks=callbacks)


def names_of(callbacks: list[Any]) -> dict[str, Any]:
    """Callbacks by the names that their states are kept under: the class, from its second object on with a number."""
    names: dict[str, Any] = {}
    for callback in callbacks:
        kind = type(callback).__name__
        same = sum(type(other).__name__ == kind for other in names.values())
        names[f"{kind}.{same + 1}" if same else kind] = callback
    return names


def best_of(core: Any) -> dict[str, Any]:
    """All that training changes in a model, for `bring_back`, as a checkpoint can hold it on any processor."""
    schedule = stateful(core.optimizer)
    return {
        "parameters": core.program.parameters,
        **{name: np.array(a) for name, a in core.named(*STATISTICS).items()},
        **core.program.state(_blocks(core.optimizer)),
        "epochs_seen": core.state.epochs_seen,
        "optimizer": type(core.optimizer).__name__,
        "schedule": schedule and schedule.state_dict(),
    }


def bring_back(core: Any, best: dict[str, Any]) -> None:
    """Make a model what it was when `best_of` was called; ValueError, and no change, if it was another model.

    Another optimiser, which a callback may have set since then, keeps its state.
    """
    state = dict(best)
    kind, blocks = state.pop("optimizer", None), _blocks(core.optimizer)
    another = kind is not None and (kind, sum(name.startswith("state.") for name in state)) != (
        type(core.optimizer).__name__,
        blocks,
    )
    own = core.named(*STATISTICS)
    try:
        parameters, seen, rates = (state.pop(name) for name in ("parameters", "epochs_seen", "schedule"))
        statistics = {name: state.pop(name) for name in own}
    except KeyError as error:
        raise ValueError(f"the best state: missing {error}") from None
    if np.shape(parameters) != core.program.parameters.shape or any(
        np.shape(a) != own[name].shape for name, a in statistics.items()
    ):
        raise ValueError("the best state: it belongs to another model")
    seen = integer("epochs_seen", seen, 0)
    if another:
        state = core.program.state(blocks) | {name: state[name] for name in ("statistics",) if name in state}
        seen, rates = core.state.epochs_seen, None
    core.program.set_state(state, blocks)
    core.program.set_parameters(parameters)
    for name, a in statistics.items():
        own[name][...] = a
    core.program.set_state(state, blocks)  # with the statistics before they were rounded
    core.state.epochs_seen = seen
    schedule = stateful(core.optimizer)
    if schedule is not None and rates is not None:
        schedule.load_state_dict(rates)


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


def _checked(name: str, state: Any) -> dict[str, Any]:
    """What a callback's `state_dict` has returned, if a checkpoint can hold it."""
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise TypeError(f"{name}.state_dict: expected a dict with str as keys, got {short(state)}")
    for key, value in state.items():
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "fiub":
                raise TypeError(f"{name}.state_dict: {key}: expected an array of numbers, got dtype {value.dtype}")
            continue
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}.state_dict: {key}: expected an array or what JSON can hold, got {value!r}"
            ) from None
    return state


def _callbacks(arrays: dict[str, np.ndarray], states: Any) -> dict[str, dict[Any, Any]]:
    """The callbacks' states; takes their arrays from the others."""
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise ValueError(f"training: callbacks: expected tables by name, got {short(states)}")
    found = {name: dict(state) for name, state in states.items()}
    for name in [name for name in arrays if name.startswith(CALLBACK)]:
        callback, _, key = name.removeprefix(CALLBACK).partition("/")
        if callback not in found or key in found[callback]:
            raise ValueError(f"training: {short(name)}: expected the name of one of the callbacks")
        found[callback][key] = arrays.pop(name)
    return found
