"""Checkpoints: a model in a safetensors file, optionally with its training state.

The tensors are the parameters by PyTorch's names, weights (out, in) as PyTorch keeps them, so that
`torch_model.load_state_dict(safetensors.torch.load_file(path))` works; in memory they are (in, out). The training state
is further tensors, whose names begin with TRAINING. The metadata are strings:

    format      "cnn"
    version     of this description: 1 had neither digest nor training state
    config      JSON: what Sequential.get_config gives
    training    JSON, with the training state only: the numbers that are no arrays
    digest      SHA-256 of all that, see safetensors_file.py

Loading executes no code from the file: the configuration may only name this library's classes.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ..layers import Layer
from ..losses import CallableLoss
from . import atomic_write, safetensors_file
from .safetensors_file import parsed, short

FORMAT_VERSION = 2
TRAINING = "cnn.training/"
METADATA = {1: {"format", "version", "config"}, 2: {"format", "version", "config", "digest"}}  # besides "training"
MOST_LAYERS = 10_000
SMALL = 1 << 20  # numbers of a model that is made in no time

Parts = tuple[dict[str, np.ndarray], dict[str, str]]  # of a file: tensors and metadata

# writing --------------------------------------------------------------------------------------------------------------


def save(model: Any, path: str | os.PathLike[str], training_state: bool = False, loss: bool = True) -> None:
    """See Sequential.save."""
    write(path, parts_of(model, training_state, loss))


def can_hold(loss: Any) -> bool:
    """Whether a file can say which loss it is: not of a Python function."""
    return not isinstance(loss, CallableLoss)


def to_bytes(model: Any) -> bytes:
    """The content of a file with the training state, for pickle."""
    return b"".join(safetensors_file.pack(*parts_of(model, True, can_hold(model.loss))))


def parts_of(model: Any, training_state: bool, loss: bool = True) -> Parts:
    """Copies of the content of the file, so that training can continue while it is written. loss: include the loss."""
    config = model.get_config(loss)
    tensors = {name: a.T for name, a in model.state_dict().items()}
    check_config(type(model), config, sum(a.size for a in tensors.values()))
    metadata = {"format": "cnn", "version": str(FORMAT_VERSION), "config": json.dumps(config)}
    if training_state:
        arrays, numbers = model._core.training_state()
        tensors |= {TRAINING + name: a for name, a in arrays.items()}
        metadata["training"] = json.dumps(numbers)
    return tensors, metadata


def write(path: str | os.PathLike[str], parts: Parts) -> None:
    """Write the file, complete or not at all."""
    atomic_write.replace(path, safetensors_file.pack(*parts))


# reading --------------------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], loss: Any = None) -> Any:
    """Load a model written by `Sequential.save`; training can continue if its training state was saved.

    It reads files of all earlier versions. Untrusted files are safe to load: no code in them is executed, and memory is
    allocated only after the sizes in the header are checked against the file's size.

    Parameters
    ----------
    path : str or path
        Of a regular file.
    loss : Loss or callable, optional
        Training loss, in place of the file's; needed if `save` omitted it.

    Returns
    -------
    Sequential

    Raises
    ------
    OSError
        If the file cannot be read, or is a directory, a FIFO or a device.
    ValueError
        If it is damaged, not a checkpoint of this library, or of a newer version; names the file and the reason.
    """
    model = read(path)[0]
    if loss is not None:
        model.loss = loss
    return model


def read(path: str | os.PathLike[str]) -> tuple[Any, bool]:
    """The model, and whether the file has a training state; errors as those of `load`."""
    path = os.fsdecode(path)
    with safetensors_file.opened(path) as (file, size):
        try:
            return _model(Layer.known["Sequential"], file, size)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: cannot be read as a checkpoint: {error}") from error


def from_bytes(cls: type, content: bytes, loss: Any = None) -> Any:
    """The model of class `cls` that `to_bytes` packed, with its loss if that is a Python function."""
    model = _model(Layer.known["Sequential"], io.BytesIO(content), len(content))[0]
    model.__class__ = cls  # whose constructor may take other arguments
    if loss is not None:
        model.loss = loss
    return model


def _model(cls: Any, file: BinaryIO, size: int) -> tuple[Any, bool]:
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
            raise ValueError(f"unknown {', '.join(arrays)}: the file has no training state")
    else:
        model._core.set_training_state(arrays, training)
    return model, training is not None


def _read(cls: Any, file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, np.ndarray], Any]:
    """Configuration, tensors, and the numbers of the training state or None; all that can be checked alone is."""
    box = safetensors_file.Container(file, size)
    metadata = box.metadata
    if metadata.get("format") != "cnn":
        hint = ": cnn.Ensemble.load reads it" if metadata.get("format") == "cnn.ensemble" else ""
        raise ValueError(f"it was not written by cnn.Sequential.save{hint}")
    if not re.fullmatch("[1-9][0-9]{0,8}", metadata.get("version", "")):
        raise ValueError(f"expected a format version, got {short(metadata.get('version'))}")
    version = int(metadata["version"])
    if version > FORMAT_VERSION:
        raise ValueError(
            f"its format version is {version}, but this release reads up to {FORMAT_VERSION}: install a newer cnn"
        )
    names = set(metadata) - ({"training"} if version > 1 else set())
    if names != METADATA[version]:
        expected = ", ".join(sorted(METADATA[version]))
        raise ValueError(f"__metadata__: expected {expected}, got {short(sorted(names))}")
    config = parsed(metadata["config"], "config")
    sizes = [tensor.size for name, tensor in box.tensors.items() if not name.startswith(TRAINING)]
    check_config(cls, config, sum(sizes))
    if version > 1 and metadata["digest"] != box.digest():
        raise ValueError("it is damaged: its content does not match its digest")
    training = parsed(metadata["training"], "training") if "training" in metadata else None
    return config, box.arrays(), training


def check_config(cls: Any, config: Any, available: int) -> None:
    """ValueError if a configuration's layers cannot be those of a file with so many numbers, or are too many.

    Before the numbers are read or a model is made, which would take memory and time in proportion. Whether they fit to
    the last one is seen when they are loaded.
    """
    if not isinstance(config, dict):
        raise ValueError(f"config: expected a table, got {short(config)}")
    least = most = layers = 0
    for layer in _tables(config.get("layers")):
        layers += 1
        try:
            numbers = Layer.stored_numbers(layer)
        except (TypeError, ValueError) as error:
            raise ValueError(f"config: {error}") from None
        least, most = least + numbers[0], most + numbers[1]
    if layers > MOST_LAYERS:
        raise ValueError(f"config: expected at most {MOST_LAYERS} layers, got {layers}")
    if not least <= available <= most:
        if least < SMALL:
            cls.from_config(config)  # which says more, if it is for an unknown layer that they do not fit
        raise ValueError(
            f"config: its layers need {short(least)} to {short(most)} numbers, but the file has {available}"
        )


def _tables(value: Any) -> Iterator[dict[Any, Any]]:
    """The tables in a JSON value, with those inside them."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left += value.values()
        elif isinstance(value, list):
            left += value


def adopt(model: Any, saved: Any, path: str) -> None:
    """Make a model what another of the same configuration is; ValueError, and no change, if it has another one.

    Its optimiser and schedule stay the same objects, because callbacks may refer to them.
    """
    own, other = model.get_config(can_hold(model.loss)), saved.get_config()
    for key in ("layers", "loss", "dtype"):
        if own[key] != other[key]:
            raise ValueError(f"{path}: has another architecture: expected {key} {own[key]}, got {other[key]}")
    optimizer = model.optimizer
    kinds = [part and (part["name"], part.get("schedule")) for part in (own["optimizer"], other["optimizer"])]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{path}: has another optimizer: expected {optimizer!r}, got {saved.optimizer!r}")
    arrays, numbers = saved._core.training_state()
    if optimizer is not None:
        schedule, table = optimizer.schedule, optimizer.table
        vars(optimizer).update(vars(saved.optimizer))
        optimizer.schedule = schedule
        if table.shape == optimizer.table.shape:  # other models that share the optimiser read it, too
            table[...] = optimizer.table
            optimizer.table = table
        model.optimizer = optimizer  # the program reads its table anew
    model.load_weights(saved.state_dict())
    model._core.set_training_state(arrays, numbers | {"training": model.training})
