"""Files of an `Ensemble`: one safetensors file, its tensors with a leading axis of the members.

As a checkpoint of one model (checkpoint.py), with these metadata:

    format      "cnn.ensemble"
    version     of this description
    config      JSON: "members", "model" (what Sequential.get_config gives of the first member), "seed", and of each
                member "seeds" and "optimizers" (null: the first member's)
    training    JSON, with the training state only: the numbers of each member that are no arrays
    digest      SHA-256 of all that
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from ..layers import Layer
from . import atomic_write, safetensors_file
from .checkpoint import TRAINING, check_config
from .safetensors_file import parsed, short

FORMAT, VERSION = "cnn.ensemble", "1"
NAMES = {"format", "version", "config", "digest"}
MOST_MEMBERS = 1_000_000


def save(ensemble: Any, path: str | os.PathLike[str], training_state: bool, loss: bool) -> None:
    """See Ensemble.save."""
    members = ensemble._members
    configs = [member.get_config(loss) for member in members]
    optimizers = [config["optimizer"] for config in configs]
    config = {
        "members": len(members),
        "model": configs[0],
        "seed": ensemble.seed,
        "seeds": [config["seed"] for config in configs],
        "optimizers": None if all(one == optimizers[0] for one in optimizers) else optimizers,
    }
    tensors = {name: _turned(a) for name, a in ensemble.state_dict().items()}
    metadata = {"format": FORMAT, "version": VERSION, "config": json.dumps(config)}
    if training_state:
        found = [_state_of(member) for member in members]
        tensors |= {TRAINING + name: np.stack([arrays[name] for arrays, _ in found]) for name in found[0][0]}
        metadata["training"] = json.dumps([numbers for _, numbers in found])
    atomic_write.replace(path, safetensors_file.pack(tensors, metadata))


def _turned(a: np.ndarray) -> np.ndarray:
    """Weights (members, in, out) as (members, out, in), and back."""
    return np.ascontiguousarray(a.swapaxes(1, 2)) if a.ndim == 3 else a


def _state_of(member: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The training state of a member, without its history."""
    state = member._core.state
    kept, state.history, state.callbacks = (state.history, state.callbacks), None, {}
    try:
        return member._core.training_state()
    finally:
        state.history, state.callbacks = kept


def load(cls: Any, path: str | os.PathLike[str]) -> Any:
    """See Ensemble.load."""
    path = os.fsdecode(path)
    with safetensors_file.opened(path) as (file, size):
        try:
            return _ensemble(cls, safetensors_file.Container(file, size))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, AttributeError) as error:
            raise ValueError(f"{path}: cannot be read as an ensemble: {error}") from error


def _ensemble(cls: Any, box: Any):
    metadata = box.metadata
    if metadata.get("format") != FORMAT:
        hint = ": cnn.load reads it" if metadata.get("format") == "cnn" else ""
        raise ValueError(f"it was not written by cnn.Ensemble.save{hint}")
    if metadata.get("version") != VERSION:
        raise ValueError(f"expected version {VERSION}, got {short(metadata.get('version'))}")
    if set(metadata) - {"training"} != NAMES:
        raise ValueError(f"__metadata__: expected {', '.join(sorted(NAMES))}, got {short(sorted(metadata))}")
    config = parsed(metadata["config"], "config")
    if not isinstance(config, dict) or config.keys() != {"members", "model", "seed", "seeds", "optimizers"}:
        raise ValueError(f"config: expected members, model, seed, seeds and optimizers, got {short(config)}")
    n, seeds, optimizers = (config[name] for name in ("members", "seeds", "optimizers"))
    if type(n) is not int or not 1 <= n <= MOST_MEMBERS:
        raise ValueError(f"members: expected 1 to {MOST_MEMBERS}, got {short(n)}")
    for name, part in (("seeds", seeds), ("optimizers", optimizers)):
        if part is not None and (not isinstance(part, list) or len(part) != n):
            raise ValueError(f"{name}: expected one for each of {n} members, got {short(part)}")
    model = Layer.known["Sequential"]
    sizes = [tensor.size for name, tensor in box.tensors.items() if not name.startswith(TRAINING)]
    if sum(sizes) % n:
        raise ValueError(f"expected arrays of {n} members, got {sum(sizes)} numbers")
    check_config(model, config["model"], sum(sizes) // n)
    if metadata["digest"] != box.digest():
        raise ValueError("it is damaged: its content does not match its digest")
    arrays = box.arrays()
    for name, a in arrays.items():
        if a.ndim < 1 or len(a) != n:
            raise ValueError(f"{short(name)}: expected a first axis of {n} members, got shape {a.shape}")
    members = []
    for i in range(n):
        own = {"seed": seeds[i]} | ({} if optimizers is None else {"optimizer": optimizers[i]})
        members.append(model.from_config(config["model"] | own))
    ensemble = object.__new__(cls)
    ensemble.seed = config["seed"]
    ensemble._take(members)
    state = {name: _turned(a) for name, a in arrays.items() if not name.startswith(TRAINING)}
    for name, a in state.items():
        if a.dtype.kind == "f" and a.dtype != ensemble.dtype:
            raise ValueError(f"{short(name)}: expected dtype {ensemble.dtype}, got {a.dtype}")
    ensemble.load_weights(state)
    if "training" in metadata:
        numbers = parsed(metadata["training"], "training")
        if not isinstance(numbers, list) or len(numbers) != n:
            raise ValueError(f"training: expected one for each of {n} members, got {short(numbers)}")
        further = {name.removeprefix(TRAINING): a for name, a in arrays.items() if name.startswith(TRAINING)}
        for i, member in enumerate(members):
            member._core.set_training_state({name: a[i] for name, a in further.items()}, numbers[i])
    return ensemble
