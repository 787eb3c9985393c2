"""Data larger than memory: training on a file ten times as large as the memory limit of the process.

    python examples/out_of_core.py        writes out_of_core.png, and temporarily rows.bin, 320 MB

The script writes rows of 64 numbers and one target to a file. It limits its additional memory (RLIMIT_DATA,
`ulimit -d`) to a tenth of the file, so that reading the file as an array fails. `fit` on a memory map reads it block by
block, in a different order in each epoch. For comparison, the same number of steps on the tenth of the rows that fits
into memory gives a larger error on unseen rows.
Linux; needs the extra `plot` (matplotlib).
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import cnn

WIDTH, CHUNK = 64, 2_500  # inputs per row (plus one target); rows per block
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#6b6b6b"


def teacher():
    """The network that computes the targets, before noise."""
    model = cnn.Sequential([cnn.Linear(WIDTH, 32), cnn.Tanh(), cnn.Linear(32, 1)], seed=1)
    model.layers[0].weight = 6 * model.layers[0].weight
    model.layers[2].weight = 6 * model.layers[2].weight
    return model


def rows(n, seed):
    """n rows (n, 64 + 1), float32, the target in the last column."""
    rng = np.random.default_rng(seed)
    made = np.empty((n, WIDTH + 1), np.float32)
    made[:, :-1] = rng.standard_normal((n, WIDTH), dtype=np.float32)
    made[:, -1] = teacher().predict(made[:, :-1])[:, 0] + 0.5 * rng.standard_normal(n, dtype=np.float32)
    return made


def write(path, n):
    """Write a file of n rows block by block; return a memory map of it."""
    with open(path, "wb") as file:
        for i in range(0, n, CHUNK):
            file.write(rows(min(CHUNK, n - i), seed=2 + i).data)
    return np.memmap(path, np.float32, "r", shape=(n, WIDTH + 1))


def used():
    """Bytes of data in the process, without memory-mapped files."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmData")) << 10


class Memory(cnn.Callback):
    """Records the largest memory use."""

    most = 0

    def on_epoch_end(self, epoch, logs):
        self.most = max(self.most, used())


def train(table, epochs, test, memory):
    model = cnn.Sequential(
        [
            cnn.Linear(WIDTH, 128),
            cnn.GELU(),
            cnn.Linear(128, 64),
            cnn.GELU(),
            cnn.Linear(64, 1),
            cnn.MSELoss(),
        ],
        optimizer=cnn.Adam(lr=0.002, schedule=cnn.CosineAnnealingLR(epochs)),
        seed=0,
    )
    data = cnn.Blocks(table[:, :-1], table[:, -1], rows=CHUNK)
    validation = test[:, :-1], test[:, -1]
    return model.fit(data, epochs=epochs, batch_size=250, validation_data=validation, callbacks=[memory], threads=1)


def plot(histories, sizes, path):
    figure = Figure(figsize=(11.5, 4.6), dpi=110, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    for label, steps, history, colour in histories:
        at = steps * np.array(history.epochs) / history.epochs[-1] / 1000
        left.plot(at, history["val_loss"], color=colour, linewidth=2, marker="o", markersize=4, label=label)
    left.axhline(0.25, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    left.text(0, 0.244, "noise of the targets", color=GREY, ha="left", va="top")
    left.set(xlabel="thousands of steps", ylabel="mean squared error, unseen rows", yscale="log", ylim=(0.2, 4))
    left.set_yticks([0.2, 0.3, 0.5, 1, 2, 3], [0.2, 0.3, 0.5, 1, 2, 3])
    left.yaxis.set_minor_locator(NullLocator())
    left.set_title("The same number of steps", fontsize=13, loc="left")
    left.legend(frameon=False, loc="upper right")
    names = list(sizes)
    values = [size / 1e6 for size in sizes.values()]
    bars = right.barh(names[::-1], values[::-1], color=[BLUE, "#8a8a8a", "#c4c4c4"], height=0.55)
    right.bar_label(bars, labels=[f"{value:.0f} MB" for value in values[::-1]], padding=5)
    right.set_title("Memory", fontsize=13, loc="left")
    right.set(xticks=[], xlim=(0, 1.2 * max(values)))
    right.spines[["top", "right", "bottom"]].set_visible(False)
    right.tick_params(length=0)
    left.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--memory", type=int, default=32, metavar="MB", help="limit of additional memory")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where files go")
    options = parser.parse_args()

    n = options.memory * 10_000_000 // (4 * (WIDTH + 1))
    path = options.out / "rows.bin"
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = used()
    resource.setrlimit(resource.RLIMIT_DATA, (before + options.memory * 1_000_000, hard))
    try:
        table, test = write(path, n), rows(4 * CHUNK, seed=0)
        try:
            np.array(table)
        except MemoryError as error:
            print(f"as an array: {error}")
        memory = Memory()
        start = time.perf_counter()
        whole = train(table, options.epochs, test, memory)
        seconds = time.perf_counter() - start
        print(
            f"{options.epochs} epochs of {n:,} rows, {table.nbytes / 1e6:.0f} MB each, in {seconds:.1f} s "
            f"with {(memory.most - before) / 1e6:.0f} MB of memory"
        )
        part = train(table[: n // 10], 10 * options.epochs, test, memory)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        path.unlink(missing_ok=True)
    print(f"mean squared error of unseen rows: {whole['val_loss'][-1]:.3f}, with a tenth {part['val_loss'][-1]:.3f}")

    steps = options.epochs * n // 250
    sizes = {"file": table.nbytes, "allowed": options.memory * 1_000_000, "used": memory.most - before}
    histories = [
        ("a tenth that fits into memory, ten times the epochs", steps, part, ORANGE),
        ("the whole file", steps, whole, BLUE),
    ]
    plot(histories, sizes, options.out / "out_of_core.png")
    print(f"see {options.out / 'out_of_core.png'}")


if __name__ == "__main__":
    main()
