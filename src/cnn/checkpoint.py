"""Checkpoints: a safetensors file with the parameters, and the model's configuration as JSON in its metadata.

In the file weights are (out, in), as PyTorch keeps them, so that
`torch_model.load_state_dict(safetensors.torch.load_file(path))` works; in memory they are (in, out). Loading runs
nothing from the file: the configuration may only name the library's own classes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 1


def save(model: Any, path: str | os.PathLike) -> None:
    """Write a model to a file: complete, or not at all."""
    from safetensors.numpy import save as to_bytes

    tensors = {name: np.ascontiguousarray(a.T) for name, a in model.state_dict().items()}
    config = json.dumps(model.get_config())
    _replace(Path(path), to_bytes(tensors, {"format": "cnn", "version": str(FORMAT_VERSION), "config": config}))


def _replace(path: Path, content: bytes) -> None:
    """Write to a temporary file in the same folder, flush it to disk, rename it to `path`, flush the folder."""
    import tempfile  # here, because it would be a third of the time that `import cnn` takes

    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: str | os.PathLike):
    """The model that `Sequential.save` wrote.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    Sequential

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is damaged, no checkpoint of this library, or of a newer version; names the file.
    """
    from safetensors import SafetensorError, safe_open

    from .sequential import Sequential

    path = Path(path)
    with path.open("rb"):  # an OSError that says why
        pass
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        if metadata.get("format") != "cnn":
            raise ValueError("it was not written by cnn.Sequential.save")
        version = int(metadata.get("version", ""))
        if version > FORMAT_VERSION:
            raise ValueError(f"its format is version {version}, and this library reads up to {FORMAT_VERSION}")
        config = json.loads(metadata["config"])
        room = sum(part["in_features"] * part["out_features"] for part in config["layers"] if "in_features" in part)
        if room > sum(a.size for a in tensors.values()):  # before a model of that size is made
            raise ValueError("its configuration describes larger layers than its tensors")
        model = Sequential.from_config(config)
        model.load_weights({name: a.T for name, a in tensors.items()})
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: no readable checkpoint: {error}") from error
    return model
