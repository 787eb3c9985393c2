"""Lets the disk run full while a model is saved: by RLIMIT_FSIZE, and on a small tmpfs where mounting is allowed.

    python tests/crash/full.py

The save must raise an OSError that names the file and the reason, the old file must be untouched, and nothing may be
left beside it. Prints what was tried, and ends with 1 at any failure.
"""

import contextlib
import errno
import os
import resource
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import cnn

SMALL, LARGE = 10, 500  # widths: files of 1 kB and 1 MB
ROOM = 300_000  # bytes


def network(width):
    return cnn.Sequential([cnn.Linear(width, width), cnn.MSELoss()], cnn.SGD(lr=0.1), seed=0)


def save(model, folder):
    model.save(folder / "model.safetensors")


def in_background(model, folder):
    model.fit(np.zeros((1, LARGE)), np.zeros((1, LARGE)), checkpoint=folder)


def check(folder, number, way):
    """Save a model for which there is no room."""
    small = network(SMALL)
    small.save(folder / "model.safetensors")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    raised = None
    try:
        way(network(LARGE), folder)
    except OSError as error:
        raised = error
    assert raised is not None, "it was saved"
    assert raised.errno == number, raised
    assert os.path.dirname(raised.filename) == str(folder), raised
    assert os.strerror(number) in str(raised), raised
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    np.testing.assert_array_equal(cnn.load(folder / "model.safetensors").parameters, small.parameters)
    small.save(folder / "model.safetensors")  # there is room for this one still


@contextlib.contextmanager
def limited():
    """A folder in which no file can be longer than ROOM."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryDirectory() as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, limits[1]))
        try:
            yield Path(folder), errno.EFBIG
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def mounted():
    """A file system of ROOM bytes; CalledProcessError where mounting is not allowed."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", folder]
        subprocess.run(command, check=True, capture_output=True)
        try:
            yield Path(folder), errno.ENOSPC
        finally:
            subprocess.run(["umount", folder], check=True)


def main():
    for place in (limited, mounted):
        for way in (save, in_background):
            try:
                with place() as (folder, number):
                    check(folder, number, way)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                if place is not mounted:
                    raise
                print(f"{place.__name__}: not allowed here: {error}")
            else:
                print(f"{place.__name__}, {way.__name__}: {os.strerror(number)}: the old file is untouched")


if __name__ == "__main__":
    main()
