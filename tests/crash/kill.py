"""Kills a process that saves in a loop, at random moments, and looks at what is on the disk.

    python tests/crash/kill.py [how many times, 500] [seed, 0] [folder]
    python tests/crash/kill.py steps [folder]

After each kill the file must load and be the last that was reported as saved, or the one after it; all numbers in it
are one number, which says which it is. Half of the runs save to one path, half are a `ModelCheckpoint` with its thread.
At most one temporary file may be left, and a save a day later must remove it. "steps": not at random, but before and
after each call of the operating system that a save makes. Prints the counts, and ends with 1 at any failure.
"""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

import cnn
from cnn.files import atomic_write

WIDTHS = (8, 64, 700)  # files of 1 kB, 17 kB and 2 MB
LONGEST = 0.03  # seconds from the first save to the kill


def network(width):
    return cnn.Sequential([cnn.Linear(width, width), cnn.MSELoss()], cnn.SGD(lr=0.1), seed=0)


def number_in(model):
    """The number that all parameters are."""
    numbers = np.unique(model.parameters)
    assert numbers.size == 1, f"a mixture of {numbers}"
    return int(numbers[0])


class ByPath:
    """Saves to one path."""

    def __init__(self, folder, width):
        self.path = folder / "model.safetensors"
        self.model = network(width)

    def save(self, i):
        self.model.save(self.path)

    def load(self):
        return cnn.load(self.path)


class InBackground:
    """A ModelCheckpoint as `fit` uses it; waits for its thread, so that it is known what has been saved."""

    def __init__(self, folder, width):
        self.folder = folder
        self.model = network(width)
        self.saver = cnn.ModelCheckpoint(folder, max_to_keep=2)
        self.saver.model = self.model

    def save(self, i):
        self.model._core.state.epoch = i
        self.saver.on_epoch_end(i, {})
        self.saver._close()

    def load(self):
        model = network(self.model.layers[0].in_features)
        assert cnn.ModelCheckpoint(self.folder).resume(model) == number_in(model)
        return model


def save_for_ever(way, pipe):
    """The child: numbers from 1 on, each reported after it was saved."""
    i = 0
    while True:
        i += 1
        way.model.parameters = np.full(way.model.parameters.size, i)
        way.save(i)
        os.write(pipe, i.to_bytes(8, "little"))


class Killing:
    """Stands in for the module `os`, and kills the process before or after its n-th call of a function."""

    def __init__(self, n):
        self.left = n

    def __getattr__(self, name):
        function = getattr(os, name)
        if not callable(function) or isinstance(function, type):
            return function

        def call(*arguments, **keywords):
            self.count()
            result = function(*arguments, **keywords)
            self.count()
            return result

        return call

    def count(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def steps(parent=None):
    """Kill a save at each step of it in turn, until one comes to its end."""
    found = Counter()
    for n in range(1000):
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            way = ByPath(Path(folder), WIDTHS[1])
            for i in (1, 2):
                way.model.parameters = np.full(way.model.parameters.size, i)
                if i == 1:
                    way.save(i)
            child = os.fork()
            if child == 0:
                atomic_write.os = Killing(n)
                way.save(2)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            found[number_in(way.load())] += 1
            check_left(Path(folder), way)
            if status == 0:
                break
            assert os.WTERMSIG(status) == signal.SIGKILL, status
    print(f"killed at {n} steps: found {found[1]} times the old file, {found[2]} times the new one; 0 failures")
    return 0


def check_left(folder, way):
    """After a kill: how many temporary files there are; a save removes those that are old, and no others."""
    left = [name for name in os.listdir(folder) if atomic_write.TEMPORARY.fullmatch(name)]
    assert len(left) <= 1, left
    way.save(0)
    assert set(left) <= set(os.listdir(folder)), "it might have been another writer's"
    for name in left:
        os.utime(folder / name, (0, time.time() - atomic_write.STALE - 1))
    way.save(0)
    assert not [name for name in os.listdir(folder) if atomic_write.TEMPORARY.fullmatch(name)], "not removed"
    return len(left)


def run(folder, kind, width, delay):
    """One kill; what was found: "the last saved" or "the next one", and whether a temporary file was left."""
    way = kind(folder, width)
    reports, pipe = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_for_ever(way, pipe)
        finally:
            traceback.print_exc()
            os._exit(1)
    os.close(pipe)
    with os.fdopen(reports, "rb") as reports:
        first = reports.read(8)
        assert len(first) == 8, "the child has died by itself"
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        all_reports = first + reports.read()
    saved = int.from_bytes(all_reports[len(all_reports) // 8 * 8 - 8 :][:8], "little")
    found = number_in(way.load())
    assert found in (saved, saved + 1), f"saved up to {saved}, found {found}"
    return ("the last saved", "the next one")[found - saved], check_left(folder, way), saved


def main(times=500, seed=0, parent=None):
    random_ = random.Random(seed)
    found, left, saves, failures = Counter(), 0, 0, 0
    for i in range(times):
        kind, width, delay = (ByPath, InBackground)[i % 2], random_.choice(WIDTHS), random_.uniform(0, LONGEST)
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            try:
                what, temporary, saved = run(Path(folder), kind, width, delay)
            except Exception as error:
                failures += 1
                print(
                    f"run {i}, {kind.__name__}, width {width}, killed after {delay:.4f} s: {error!r}", file=sys.stderr
                )
                continue
        found[what] += 1
        left += temporary
        saves += saved
    print(
        f"{times} kills in {saves} saves: found {found['the last saved']} times the last that was reported, "
        f"{found['the next one']} times the one after it; {left} times a temporary file was left, and removed; "
        f"{failures} failures"
    )
    return failures


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["steps"]:
        sys.exit(steps(*arguments[1:]))
    sys.exit(main(*map(int, arguments[:2]), *arguments[2:3]) > 0)
