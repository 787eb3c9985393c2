"""Checkpoints: a model in a safetensors file, with all that training depends on if that is wished; `load` and `Saver`.

The tensors are the parameters by PyTorch's names, weights (out, in) as PyTorch keeps them, so that
`torch_model.load_state_dict(safetensors.torch.load_file(path))` works; in memory they are (in, out). The training state
is further tensors, whose names begin with TRAINING. The metadata are strings:

    format      "cnn"
    version     of this description: 1 had neither digest nor training state
    config      JSON: what Sequential.get_config gives
    training    JSON, with the training state only: the numbers that are no arrays
    digest      SHA-256 of all that, see safetensors_file.py

Loading runs nothing from the file: the configuration may only name the library's own classes.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from . import atomic_write, safetensors_file

FORMAT_VERSION = 2
TRAINING = "cnn.training/"
EPOCHS, HISTORY = "epochs", "history/"  # follow it: the numbers of the history's epochs, and what there is of each
METADATA = {1: {"format", "version", "config"}, 2: {"format", "version", "config", "digest"}}  # besides "training"
WIDTHS = ("in_features", "out_features", "num_features", "normalized_shape")  # of layers, in their configurations
MOST_LAYERS = 10_000
SMALL = 1 << 20  # numbers of a model that is made in no time

Parts = tuple[dict[str, np.ndarray], dict[str, str]]  # of a file: tensors and metadata


# writing --------------------------------------------------------------------------------------------------------------


def save(model: Any, path: str | os.PathLike, training_state: bool = False) -> None:
    """See Sequential.save."""
    atomic_write.replace(path, safetensors_file.pack(*_parts(model, training_state)))


def to_bytes(model: Any) -> bytes:
    """The content of a file with the training state, for pickle."""
    return b"".join(safetensors_file.pack(*_parts(model, True)))


def _parts(model: Any, training_state: bool, epoch: int | None = None, history: Any = None) -> Parts:
    """Copies of all that goes into the file, so that the model can go on while it is written.

    epoch, history: instead of the model's, while `fit` has not ended.
    """
    config = model.get_config()
    tensors = {name: a.T for name, a in model.state_dict().items()}
    _check_config(type(model), config, sum(a.size for a in tensors.values()))
    metadata = {"format": "cnn", "version": str(FORMAT_VERSION), "config": json.dumps(config)}
    if training_state:
        arrays, numbers = _training_state(model, epoch, history)
        tensors |= {TRAINING + name: a for name, a in arrays.items()}
        metadata["training"] = json.dumps(numbers)
    return tensors, metadata


def _training_state(model: Any, epoch: int | None, history: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `_set_training_state` sets: arrays, and numbers as JSON can hold them."""
    arrays = dict(model._program.state(_states(model)))
    history = model.history if history is None else history
    if history is not None:
        arrays[EPOCHS] = np.array(history.epochs, np.int64)
        arrays |= {HISTORY + name: np.array(values, np.float64) for name, values in history.items()}
    schedule = _schedule(model)
    numbers = {
        "epoch": model._epochs_seen if epoch is None else epoch,
        "epochs_seen": model._epochs_seen,
        "history": None if history is None else list(history),
        "position": None if model._position is None else list(model._position),
        "random_seed": model._random_seed,
        "schedule": schedule and schedule.state_dict(),
        "training": model.training,
    }
    return arrays, numbers


def _states(model: Any) -> int:
    """How many blocks of state the model's optimiser has."""
    return model.optimizer.states if model.optimizer is not None else 0


def _schedule(model: Any) -> Any:
    """The schedule of the model's optimiser, if it has one with a state."""
    schedule = getattr(model.optimizer, "schedule", None)
    return schedule if hasattr(schedule, "state_dict") else None


# reading --------------------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike):
    """The model that `Sequential.save` wrote, ready to go on training if it was saved with its training state.

    Files of all earlier versions of this library can be read. Nothing from the file is run, and nothing of a size that
    the file only claims is allocated: it may come from anywhere.

    Parameters
    ----------
    path : str or path
        Of a regular file.

    Returns
    -------
    Sequential

    Raises
    ------
    OSError
        If the file cannot be read, or is a directory, a FIFO or a device.
    ValueError
        If it is damaged, no checkpoint of this library, or of a newer version; names the file and the reason.
    """
    return _load(path)[0]


def _load(path: str | os.PathLike) -> tuple[Any, int | None]:
    """The model, and the last epoch that it had done, if the file has a training state."""
    from ..models.sequential import Sequential

    path = os.fsdecode(path)
    with safetensors_file.opened(path) as (file, size):
        try:
            return _model(Sequential, file, size)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: no readable checkpoint: {error}") from error


def from_bytes(cls: type, content: bytes):
    """The model of class `cls` that `to_bytes` packed."""
    return _model(cls, io.BytesIO(content), len(content))[0]


def _model(cls: Any, file: BinaryIO, size: int) -> tuple[Any, int | None]:
    config, tensors, training = _read(cls, file, size)
    model = cls.from_config(config)
    state = {name: a.T for name, a in tensors.items() if not name.startswith(TRAINING)}
    for name, own in model.state_dict().items():
        if name in state and state[name].dtype != own.dtype:
            raise ValueError(f"{name}: expected dtype {own.dtype}, got {state[name].dtype}")
    model.load_weights(state)
    arrays = {name.removeprefix(TRAINING): a for name, a in tensors.items() if name.startswith(TRAINING)}
    if training is None:
        if arrays:
            raise ValueError(f"unknown {', '.join(arrays)}: the file has no other training state")
        return model, None
    return model, _set_training_state(model, arrays, training)


def _read(cls: Any, file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, np.ndarray], Any]:
    """Configuration, tensors, and the numbers of the training state or None; all that can be checked alone is."""
    box = safetensors_file.Container(file, size)
    metadata = box.metadata
    if metadata.get("format") != "cnn":
        raise ValueError("it was not written by cnn.Sequential.save")
    if not re.fullmatch("[1-9][0-9]{0,8}", metadata.get("version", "")):
        raise ValueError(f"expected a format version, got {safetensors_file.short(metadata.get('version'))}")
    version = int(metadata["version"])
    if version > FORMAT_VERSION:
        raise ValueError(f"its format is version {version}, and this library reads up to {FORMAT_VERSION}")
    names = set(metadata) - ({"training"} if version > 1 else set())
    if names != METADATA[version]:
        expected = ", ".join(sorted(METADATA[version]))
        raise ValueError(f"__metadata__: expected {expected}, got {safetensors_file.short(sorted(names))}")
    config = safetensors_file.parsed(metadata["config"], "config")
    sizes = [tensor.size for name, tensor in box.tensors.items() if not name.startswith(TRAINING)]
    _check_config(cls, config, sum(sizes))
    if version > 1 and metadata["digest"] != box.digest():
        raise ValueError("it is damaged: its content does not fit its digest")
    training = safetensors_file.parsed(metadata["training"], "training") if "training" in metadata else None
    return config, box.arrays(), training


def _check_config(cls: Any, config: Any, available: int) -> None:
    """ValueError if a configuration's layers cannot be those of a file with so many numbers, or are too many.

    Before the numbers are read or a model is made, which would take memory and time in proportion. Whether they fit to
    the last one is seen when they are loaded.
    """
    if not isinstance(config, dict):
        raise ValueError(f"config: expected a table, got {safetensors_file.short(config)}")
    least = most = layers = 0
    for layer in _tables(config.get("layers")):
        layers += 1
        widths = {name: layer[name] for name in WIDTHS if name in layer}
        for name, width in widths.items():
            if type(width) is int and width < 1:
                raise ValueError(f"config: {name}: expected at least 1, got {width}")
            if type(width) is not int or width > available:
                raise ValueError(f"config: {name} of {safetensors_file.short(width)}, with {available} numbers for all layers")
        if widths:
            weights = math.prod(widths.values())
            least += weights if len(widths) > 1 else 0  # there are normalisations without parameters
            most += weights + 4 * max(widths.values()) + 1  # weight, bias, running mean and variance, a count
    if layers > MOST_LAYERS:
        raise ValueError(f"config: expected at most {MOST_LAYERS} layers, got {layers}")
    if not least <= available <= most:
        if least < SMALL:
            cls.from_config(config)  # which says more, if it is for an unknown layer that they do not fit
        raise ValueError(f"config: its layers have {least} numbers at least and {most} at most, the file {available}")


def _tables(value: Any) -> Iterator[dict]:
    """The tables in a JSON value, with those inside them."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left += value.values()
        elif isinstance(value, list):
            left += value


def _set_training_state(model: Any, arrays: dict[str, np.ndarray], numbers: Any) -> int:
    """Set what `_training_state` gave, checked; returns the last epoch done."""
    names = {"epoch", "epochs_seen", "history", "position", "random_seed", "schedule", "training"}
    if not isinstance(numbers, dict) or numbers.keys() != names:
        raise ValueError(f"training: expected {', '.join(sorted(names))}, got {safetensors_file.short(numbers)}")
    for name in ("epoch", "epochs_seen", "random_seed"):
        if type(n := numbers[name]) is not int or not 0 <= n < 1 << 63:
            raise ValueError(f"training: {name}: expected an integer of at least 0, got {safetensors_file.short(n)}")
    if not isinstance(numbers["training"], bool):
        raise ValueError(f"training: training: expected true or false, got {safetensors_file.short(numbers['training'])}")
    position = numbers["position"]
    if position is not None and not (
        isinstance(position, list)
        and [type(n) for n in position] == [int, int, float, float, float, float]
        and position[0] >= 1
        and position[1] >= 0
    ):
        raise ValueError(f"training: position: expected epoch, rows and four sums, got {safetensors_file.short(position)}")
    arrays = dict(arrays)
    model.history = None if numbers["history"] is None else _history(arrays, numbers["history"])
    schedule = _schedule(model)
    if (schedule is None) != (numbers["schedule"] is None):
        raise ValueError(f"training: schedule: {safetensors_file.short(numbers['schedule'])} is no state of {schedule!r}")
    if schedule is not None:
        schedule.load_state_dict(numbers["schedule"])
    for name, a in arrays.items():
        dtype = np.dtype(np.int64) if name == "counters" else model.dtype
        if a.dtype != dtype:
            raise ValueError(f"training: {safetensors_file.short(name)}: expected dtype {dtype}, got {a.dtype}")
    model._random_seed = numbers["random_seed"]
    model._program.set_seed(model._random_seed)
    model._program.set_state(arrays, _states(model))
    model._epochs_seen = numbers["epochs_seen"]
    model._position = None if position is None else tuple(position)
    model.train(numbers["training"])
    return numbers["epoch"]


def _history(arrays: dict[str, np.ndarray], names: Any) -> Any:
    """The History of these names; takes its arrays from the others."""
    from ..training.history import History

    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"training: history: expected a list of names, got {safetensors_file.short(names)}")

    def taken(name, dtype):
        values = arrays.pop(name, None)
        if values is None or values.ndim != 1 or values.dtype != dtype:
            raise ValueError(f"training: {safetensors_file.short(name)}: expected a vector of {np.dtype(dtype)}")
        return values.tolist()

    history = History({name: taken(HISTORY + name, np.float64) for name in names})
    history.epochs = taken(EPOCHS, np.int64)
    return history


# while training -------------------------------------------------------------------------------------------------------


class Saver:
    """Checkpoints of a training run in a folder, written in the background: `fit(checkpoint=...)`.

    Files are numbered through; a higher number is newer. Writing takes place in a thread, from copies. What comes while
    a file is being written waits for it, but a later epoch takes the place of one that waits: so the loop never does.

    Parameters
    ----------
    model : Sequential
    folder : str or path
        Made if it is not there. For one run at a time.
    every : int
        Epochs from one checkpoint to the next.
    keep : int
        How many files are left in the folder, at least 1; older ones are removed after a newer one is complete.

    Raises
    ------
    TypeError, ValueError
        If every or keep are no integers of at least 1.
    OSError
        If the folder cannot be made.
    """

    FILE = re.compile(r"checkpoint-(\d{1,18})\.safetensors")

    def __init__(self, model: Any, folder: str | os.PathLike, every: int = 1, keep: int = 3):
        for name, value in (("checkpoint_every", every), ("keep", keep)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name}: expected an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.model = model
        self.folder = os.fsdecode(folder)
        self.every = int(every)
        self.keep = int(keep)
        os.makedirs(self.folder, exist_ok=True)
        self._lock = threading.Lock()
        self._waiting: Parts | None = None  # the next file's, until the thread takes them
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def files(self) -> dict[int, str]:
        """Paths of the checkpoints by their numbers, the newest first."""
        found = {int(match[1]): match[0] for name in os.listdir(self.folder) if (match := self.FILE.fullmatch(name))}
        return {number: os.path.join(self.folder, found[number]) for number in sorted(found, reverse=True)}

    def resume(self) -> int | None:
        """Bring the model to where the newest checkpoint that can be read has it.

        Its parameters, training state and history, and the hyper-parameters of its optimiser as they were then. Files
        that cannot be read are passed over with a warning that names them.

        Returns
        -------
        int or None
            The last epoch that was done; None if there is no checkpoint: the model is as it was.

        Raises
        ------
        ValueError
            If the checkpoint is of another architecture, or has another optimiser; the model is as it was.
        """
        for path in self.files().values():
            try:
                saved, epoch = _load(path)
                if epoch is None:
                    raise ValueError(f"{path}: it has no training state")
            except (ValueError, OSError) as error:
                warnings.warn(f"checkpoint passed over: {error}", RuntimeWarning, stacklevel=2)
                continue
            _adopt(self.model, saved, path)
            return epoch
        return None

    def epoch_done(self, epoch: int, history: Any) -> None:
        """After each epoch: take a copy of the model if it is time for that, and have it written.

        Parameters
        ----------
        epoch : int
            Its number, counted from 1.
        history : History
            So far.

        Raises
        ------
        OSError
            If an earlier file could not be written.
        """
        self._raise()
        if epoch % self.every:
            return
        parts = _parts(self.model, True, epoch, history)
        with self._lock:
            self._waiting = parts
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="cnn checkpoint")
                self._thread.start()

    def close(self) -> None:
        """Wait until all is written. OSError if it could not be."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        self._raise()

    def _raise(self) -> None:
        with self._lock:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self) -> None:
        """The thread: write what waits, until nothing does."""
        while True:
            with self._lock:
                parts, self._waiting = self._waiting, None
                if parts is None:
                    self._thread = None
                    return
            try:
                number = max(self.files(), default=0) + 1
                path = os.path.join(self.folder, f"checkpoint-{number:06d}.safetensors")
                atomic_write.replace(path, safetensors_file.pack(*parts))
                for old in list(self.files().values())[self.keep :]:
                    os.unlink(old)
            except BaseException as error:
                with self._lock:
                    self._error = error


def _adopt(model: Any, saved: Any, path: str) -> None:
    """Make a model what another of the same configuration is; ValueError, and no change, if it has another one.

    Its optimiser and schedule stay the same objects: callbacks may know them.
    """
    own, other = model.get_config(), saved.get_config()
    for key in ("layers", "loss", "dtype"):
        if own[key] != other[key]:
            raise ValueError(f"{path}: is of another architecture: expected {key} {own[key]}, got {other[key]}")
    optimizer = model.optimizer
    kinds = [part and (part["name"], part.get("schedule")) for part in (own["optimizer"], other["optimizer"])]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{path}: is of another optimizer: expected {optimizer!r}, got {saved.optimizer!r}")
    arrays, numbers = _training_state(saved, None, None)
    if optimizer is not None:
        schedule = optimizer.schedule
        vars(optimizer).update(vars(saved.optimizer))
        optimizer.schedule = schedule
        model.optimizer = optimizer  # the program reads its table anew
    model.load_weights(saved.state_dict())
    _set_training_state(model, arrays, numbers | {"training": model.training})
