"""One network on several ranks: the time of a step, measured and by the cost model; the same parameters on all.

    python examples/mpi_mnist_like.py                  writes mpi_mnist_like.png; starts mpiexec, if it is there
    mpiexec -n 2 python examples/mpi_mnist_like.py     trains on two ranks, and prints the time of a step

The rows are as those of handwritten digits: 784 numbers, 10 classes. Without mpi4py and mpiexec only one rank is
measured. Needs the extra `plot` (matplotlib); for ranks `mpi` and an MPI, as `pip install mpich`.
"""

import argparse
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np

import cnn

WIDTHS, BATCH = (784, 256, 10), 1024
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c8c8c"


def data(rows):
    """Images that are their class's mean and noise: x (rows, 784), y (rows,)."""
    rng = np.random.default_rng(0)
    means = rng.uniform(0, 1, (10, 784)).astype("float32")
    y = rng.integers(0, 10, rows)
    return means[y] + rng.normal(scale=2, size=(rows, 784)).astype("float32"), y


class Clock(cnn.Callback):
    """The fastest epoch."""

    best = float("inf")

    def on_epoch_begin(self, epoch, logs):
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch, logs):
        self.best = min(self.best, time.perf_counter() - self.began)


def train(comm, steps, epochs):
    """Train on the ranks of a communicator, or without one: seconds of a step, accuracy, checksum of the parameters."""
    x, y = data(steps * BATCH)
    model = cnn.Sequential(
        [cnn.Linear(784, 256), cnn.ReLU(), cnn.Linear(256, 10), cnn.CrossEntropyLoss()], cnn.Adam(lr=1e-3), seed=0
    )
    options = {} if comm is None else {"comm": comm, "shard": "auto"}
    clock = Clock()
    history = model.fit(x, y, epochs=epochs, batch_size=BATCH, threads=1, callbacks=[clock], progress=False, **options)
    return clock.best / steps, history["accuracy"][-1], zlib.crc32(model.parameters)


def measure(ranks, arguments):
    """The line that so many ranks print, or None."""
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None or importlib.util.find_spec("mpi4py") is None:
        return None
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [mpiexec, "-n", str(ranks), sys.executable, __file__, "--rank", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def model_of(compute, ranks, latency, bandwidth):
    """Seconds of a step by docs/distributed.md: the computation is shared out, the sum of the gradients is not."""
    nbytes = 4 * sum(a * b + b for a, b in itertools.pairwise(WIDTHS))
    stages = np.ceil(np.log2(ranks))
    shared = (ranks > 1) * 3 * nbytes / 8e9
    return compute / ranks + shared + 3 * stages * latency + 2 * nbytes * (1 - 1 / ranks) / bandwidth


def draw(measured, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ranks = 2.0 ** np.arange(13)
    for (latency, bandwidth, name), style in zip(
        [(2e-6, 12.5e9, "100 Gbit/s, 2 us"), (1e-5, 1.25e9, "10 Gbit/s, 10 us"), (5e-5, 1.25e8, "1 Gbit/s, 50 us")],
        ["-", "--", ":"],
        strict=True,
    ):
        axes.plot(ranks, 1e3 * model_of(measured[1], ranks, latency, bandwidth), style, color=BLUE, label=name)
    axes.plot(ranks, 1e3 * measured[1] / ranks, color=GREY, linewidth=0.8, label="computation alone")
    axes.plot(list(measured), [1e3 * took for took in measured.values()], "o", color=ORANGE, label="measured here")
    axes.set(xscale="log", yscale="log", xlabel="ranks", ylabel="ms a step", title="784-256-10, batches of 1,024 rows")
    axes.set_xticks([1, 4, 16, 64, 256, 1024, 4096], ["1", "4", "16", "64", "256", "1,024", "4,096"])
    axes.minorticks_off()
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path / "mpi_mnist_like.png", dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rank", action="store_true", help="this is one of several ranks")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the picture")
    options = parser.parse_args()
    if options.rank or any(name in os.environ for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK")):
        from mpi4py import MPI

        took, accuracy, bits = train(MPI.COMM_WORLD, options.steps, options.epochs)
        if MPI.COMM_WORLD.Get_rank() == 0:
            print(MPI.COMM_WORLD.Get_size(), took, accuracy, f"{bits:08x}")
        return
    arguments = ["--steps", str(options.steps), "--epochs", str(options.epochs)]
    measured = {1: train(None, options.steps, options.epochs)[0]}
    print(f"one process: {1e3 * measured[1]:.2f} ms a step")
    for ranks in options.ranks:
        line = measure(ranks, arguments)
        if line is None:
            print(f"{ranks} ranks: no mpiexec, or no mpi4py")
            continue
        _, took, accuracy, bits = line.split()
        if ranks > 1:
            measured[ranks] = float(took)
        print(f"{ranks} ranks: {1e3 * float(took):.2f} ms a step, accuracy {float(accuracy):.1%}, parameters {bits}")
    draw(measured, options.out)


if __name__ == "__main__":
    main()
