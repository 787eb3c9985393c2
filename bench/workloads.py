"""What is measured: every workload as data, the goals, and in which process each is run.

No library is imported here: a process must know its group before it is pinned, and be pinned before NumPy is
imported. The numbers of a workload come from problems.py, the implementations are in contenders.py, the clock is
in runner.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Workload:
    """A network, what is done with it, and what the library promises about it.

    Random normal inputs and targets, mean squared error.
    """

    id: str
    widths: tuple[int, ...]
    # "fit": passes over data; "step": one call a step; "gradient": loss and gradient; "predict"; "jvp" along x and the
    # parameters; "hvp" of the loss in the parameters; "grad_input": gradient of the loss in x
    kind: str
    batch: int
    steps: int  # that a contender with a compiled loop does in one unit of measurement
    python_steps: int  # the same for a loop in Python: a shorter stretch of the same work
    activation: str = "relu"
    optimizer: str = "sgd"
    full_batch: bool = False  # each step takes the same rows, else the data are steps * batch rows
    last_bias: bool = True
    entries: int = 0  # of a row of x, which is a CSR matrix; 0: x is an array
    residual: bool = False  # y = x + activation(x W + b) in every layer
    dtype: str = "float32"
    check_steps: int = 5  # after which the parameters are compared with the reference
    goal: float | None = None  # times as fast as the strongest peer
    limit: float | None = None  # microseconds, at most
    peak: float | None = None  # part of the measured peak, at least
    without: tuple[str, ...] = ()  # contenders that are left out
    note: str = ""

    @property
    def title(self) -> str:
        """As "784-256-10 ReLU, SGD, batch 64"."""
        widths = "-".join(map(str, self.widths))
        if self.residual:
            widths = f"{len(self.widths) - 1} residual layers of {self.widths[0]}"
        parts = [widths + {"relu": " ReLU", "tanh": " tanh"}[self.activation]]
        if self.kind in ("fit", "step"):
            parts.append({"sgd": "SGD", "adam": "Adam"}[self.optimizer])
        if self.dtype == "float64":
            parts.append("float64")
        parts.append(f"full batch of {self.batch:,}" if self.full_batch else f"batch {self.batch}")
        if self.entries:
            parts.append(f"{self.entries} non-zeros a row")
        return ", ".join(parts) + self.note

    @property
    def verb(self) -> str:
        return {"fit": "fit", "step": "train_step", "gradient": "loss_and_grad"}.get(self.kind, self.kind)

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products of one step.

        Forward, dX and dW cost 2 batch in out each; the first layer's dX is not needed.
        """
        widths = self.entries or self.widths[0], *self.widths[1:]
        sizes = [n_in * n_out for n_in, n_out in itertools.pairwise(widths)]
        if self.kind == "predict":
            return 2 * self.batch * sum(sizes)
        if self.kind == "grad_input":
            return 4 * self.batch * sum(sizes)
        if self.kind == "jvp":
            return 6 * self.batch * sum(sizes)
        if (
            self.kind == "hvp"
        ):  # x W, x W', x' W; dZ W^T, dZ' W^T, dZ W'^T; x^T dZ', x'^T dZ: the first has no x', no dX
            return self.batch * (16 * sum(sizes) - 10 * sizes[0])
        return self.batch * (6 * sum(sizes) - 2 * sizes[0])


# The rows of the table. `steps` is chosen so that a unit takes some 10 to 60 ms.
ROWS = [
    Workload("tiny", (1, 3, 1), "fit", 1, 100_000, 500, goal=1.1),
    Workload("sine", (1, 50, 300, 1), "fit", 1, 20_000, 300, goal=3.5),
    Workload("control1", (8, 64, 64, 4), "fit", 1, 20_000, 300, goal=4),
    Workload("control32", (8, 64, 64, 4), "fit", 32, 2000, 250, goal=2),
    Workload("rl256", (17, 256, 256, 6), "fit", 256, 50, 20, goal=1.25, peak=0.85),
    Workload("mnist64", (784, 256, 10), "fit", 64, 100, 50, goal=1.15, peak=0.85),
    Workload("mnist1024", (784, 256, 10), "fit", 1024, 8, 4, goal=1.1, peak=0.90),
    Workload("deep128", (784, 512, 512, 10), "fit", 128, 16, 8, optimizer="adam", goal=1.15, peak=0.88),
    Workload(
        "large1024",
        (1024, 4096, 4096, 1024),
        "fit",
        1024,
        3,
        1,
        check_steps=1,
        goal=1.12,
        peak=0.90,
        without=("sklearn",),
    ),
    Workload(
        "matexp",
        (4, 32, 16, 4),
        "fit",
        10_000,
        20,
        10,
        activation="tanh",
        optimizer="adam",
        full_batch=True,
        goal=2.5,
    ),
    Workload(
        "readme",
        (24, 8, 2),
        "gradient",
        200,
        1000,
        200,
        activation="tanh",
        last_bias=False,
        dtype="float64",
        goal=4.5,
        limit=4.0,
        note=", no second bias",
    ),
    Workload("call", (10, 20, 1), "step", 1, 2000, 300, goal=25, limit=1.0),
    Workload("act1", (17, 64, 64, 6), "predict", 1, 5000, 1000, activation="tanh", goal=3, limit=0.8),
    Workload("infer256", (17, 256, 256, 6), "predict", 256, 60, 40, goal=1.08),
    Workload("infer1024", (784, 256, 10), "predict", 1024, 10, 6, goal=1.0),
]
ROW = {row.id: row for row in ROWS}

# Where the time goes as the work grows: a network of fixed widths at growing batches, one batch at growing widths.
SCALING_BATCH = [
    Workload(f"batch{batch}", (64, 256, 256, 10), "fit", batch, max(2, 8000 // batch), max(1, 4000 // batch))
    for batch in (1, 4, 16, 64, 256, 1024, 4096)
]
SCALING_WIDTH = [
    Workload(f"width{n}", (n, n, n), "fit", 128, max(2, 5000 // (n * n // 256 + 8)), max(1, 2000 // (n * n // 256 + 8)))
    for n in (8, 32, 128, 512, 2048)
]


def _in_float64(row: Workload) -> Workload:
    return replace(row, dtype="float64", goal=None, limit=None, peak=None)


def _plain(row: Workload) -> Workload:
    return replace(row, goal=None, limit=None, peak=None)


def _derivative(id: str, kind: str, steps: int, python_steps: int) -> Workload:
    row = ROW[id]
    return replace(
        row, id=f"{id}-{kind}", kind=kind, steps=steps, python_steps=python_steps, full_batch=False, goal=1.0, peak=None
    )


# Products of derivatives beside those of JAX and torch.func, and a network with branches.
DERIVATIVES = [
    *(_derivative("rl256", kind, 40, 20) for kind in ("gradient", "jvp", "hvp", "grad_input")),
    *(_derivative("matexp", kind, 20, 10) for kind in ("gradient", "jvp", "hvp", "grad_input")),
    Workload("residual", (64,) * 9, "gradient", 256, 100, 40, residual=True, goal=1.0, without=("torch",)),
]
# Text: the first layer's weights are read where x has words, and Adam's step goes over all of them.
SPARSE = [
    Workload("text", (50_000, 100, 10), "fit", 200, 8, 2, optimizer="adam", entries=100, dtype="float64", goal=5),
    Workload("text-sgd", (50_000, 100, 10), "fit", 200, 16, 2, entries=100, dtype="float64", goal=5),
    Workload("text-predict", (50_000, 100, 10), "predict", 200, 40, 20, entries=100, dtype="float64", goal=2.5),
]
ROW |= {row.id: row for row in (*DERIVATIVES, *SPARSE)}


@dataclass(frozen=True)
class Group:
    """Workloads that are measured in one process, and how that process is set up."""

    rows: tuple[Workload, ...]
    contenders: tuple[str, ...] = ("cnn", "numpy", "torch", "jax", "sklearn", "onnxruntime")
    threads: int = 1  # and so many cores
    isa: str | None = None  # "v3": AVX2 for every contender that can be told
    rounds: int = 25
    busy: bool = False  # measured quiet, then again while another process keeps one core busy


QUICK = ("tiny", "control1", "control32", "rl256", "mnist64", "mnist1024", "call", "act1", "infer256")
MIDDLE = ("sine", "control1", "control32", "rl256", "mnist64", "mnist1024", "deep128", "infer256", "infer1024")

GROUPS = {
    "main": Group(tuple(row for row in ROWS if row.dtype == "float32")),
    "readme": Group((ROW["readme"],)),
    "threads2": Group(
        (_plain(ROW["mnist1024"]), _plain(ROW["large1024"])),
        ("cnn", "cnn-1", "numpy", "torch", "jax"),
        threads=2,
    ),
    "noisy": Group((_plain(ROW["mnist64"]),), ("cnn", "cnn-1", "torch", "jax", "sklearn"), threads=2, busy=True),
    "float64": Group(tuple(_in_float64(ROW[id]) for id in MIDDLE), rounds=10),
    "avx2": Group(
        tuple(_plain(ROW[id]) for id in MIDDLE), ("cnn", "numpy", "torch", "jax", "sklearn"), isa="v3", rounds=10
    ),
    "derivatives": Group(tuple(DERIVATIVES), ("cnn", "torch", "jax")),
    "sparse": Group(tuple(SPARSE), ("cnn", "sklearn"), rounds=8),
    "scaling": Group((*SCALING_BATCH, *SCALING_WIDTH), ("cnn", "numpy", "torch", "jax", "sklearn"), rounds=8),
    "exported": Group((_plain(ROW["act1"]),), ("cnn", "cnn-c", "onnxruntime")),
    "quick": Group(tuple(ROW[id] for id in QUICK), ("cnn", "numpy", "jax", "onnxruntime"), rounds=10),
}

# Goals that are no comparison with a peer on one core.
THREADS2_OVER_ONE = 1.85  # times as fast as our own one core
THREADS2_OVER_PEER = 1.2
NOISY_AT_MOST = 1.10  # times the time of our own single thread
IMPORT_MS, RESIDENT_MB, WHEEL_MB = 20.0, 10.0, 1.5
