"""What each feature of training costs: `fit` with it beside `fit` without it.

    python bench/features.py [--rounds 20]

For mnist64 (784-256-10, ReLU, batch 64) and a network of the digits' size (64-128-10, batch 32), float32, one thread,
SGD without momentum. Every feature is added alone. They take turns, round after round, as in runner.py; what counts is
the shortest turn of each, in seconds of processor time (all is one thread), relative to the shortest plain one.
"""

from __future__ import annotations

import argparse
import gc
import io
import sys
import time

import machine
import numpy as np

import cnn

SIZES = {"784-256-10, batch 64": (784, 256, 10, 64, 3200), "64-128-10, batch 32": (64, 128, 10, 32, 6400)}


class Terminal(io.StringIO):
    """What the progress bar takes for a terminal."""

    def isatty(self):
        return True


class Nothing(cnn.Callback):
    """Callbacks that do nothing."""

    def __init__(self, *methods):
        for method in methods:
            setattr(self, method, lambda number, logs: None)


SGD = {"lr": 0.01}
# name: (optimiser, layers after the first Linear, arguments of fit)
FEATURES = {
    "plain": (cnn.SGD, SGD, lambda h: [cnn.ReLU()], {}),
    "momentum": (cnn.SGD, {**SGD, "momentum": 0.9}, None, {}),
    "Adam": (cnn.Adam, {}, None, {}),
    "AdamW, AMSGrad": (cnn.AdamW, {"amsgrad": True}, None, {}),
    "RMSprop": (cnn.RMSprop, {"lr": 1e-3}, None, {}),
    "Adagrad": (cnn.Adagrad, {}, None, {}),
    "weight decay": (cnn.SGD, {**SGD, "weight_decay": 0.01}, None, {}),
    "two groups": (cnn.SGD, {**SGD, "groups": [{"layers": [0], "lr": 0.02}]}, None, {}),
    "schedule by step": (cnn.SGD, {**SGD, "schedule": cnn.CosineAnnealingLR(1000, interval="step")}, None, {}),
    "clip_value": (cnn.SGD, {**SGD, "clip_value": 1.0}, None, {}),
    "clip_norm": (cnn.SGD, {**SGD, "clip_norm": 1.0}, None, {}),
    "EMA": (cnn.SGD, {**SGD, "ema_decay": 0.999}, None, {}),
    "accumulation of 4": (cnn.SGD, SGD, None, {"accumulation_steps": 4}),
    "dropout": (cnn.SGD, SGD, lambda h: [cnn.ReLU(), cnn.Dropout(0.3)], {}),
    "batch norm": (cnn.SGD, SGD, lambda h: [cnn.BatchNorm1d(h), cnn.ReLU()], {}),
    "layer norm": (cnn.SGD, SGD, lambda h: [cnn.LayerNorm(h), cnn.ReLU()], {}),
    "GELU for ReLU": (cnn.SGD, SGD, lambda h: [cnn.GELU()], {}),
    "sample weights": (cnn.SGD, SGD, None, {"sample_weight": True}),
    "class weights": (cnn.SGD, SGD, None, {"class_weight": "balanced"}),
    "metric f1": (cnn.SGD, SGD, None, {"metrics": ["f1"]}),
    "validation, 10 % more rows": (cnn.SGD, SGD, None, {"validation_data": True}),
    "on_epoch_end": (cnn.SGD, SGD, None, {"callbacks": [Nothing("on_epoch_end")]}),
    "on_batch_end": (cnn.SGD, SGD, None, {"callbacks": [Nothing("on_batch_end")]}),
    "early stopping": (cnn.SGD, SGD, None, {"early_stopping": cnn.EarlyStopping("loss", patience=1000)}),
    "progress bar": (cnn.SGD, SGD, None, {"progress": "auto"}),
}


def turn(name, size):
    """A function that trains an epoch."""
    n_in, hidden, n_out, batch, rows = size
    optimizer, hyper, layers, settings = FEATURES[name]
    layers = (layers or FEATURES["plain"][2])(hidden)
    model = cnn.Sequential(
        [cnn.Linear(n_in, hidden), *layers, cnn.Linear(hidden, n_out), cnn.CrossEntropyLoss()],
        optimizer=optimizer(**hyper),
        seed=0,
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, n_in), dtype=np.float32)
    y = rng.integers(0, n_out, rows)
    settings = {"batch_size": batch, "threads": 1, "progress": False, **settings}
    if "sample_weight" in settings:
        settings["sample_weight"] = rng.random(rows, dtype=np.float32)
    if "validation_data" in settings:
        settings["validation_data"] = x[: rows // 10], y[: rows // 10]

    def run():
        model.fit(x, y, epochs=3, **settings)

    return run


def measure(size, rounds):
    """Seconds of each turn, by feature."""
    runs = {name: turn(name, size) for name in FEATURES}
    times: dict[str, list[float]] = {name: [] for name in runs}
    stderr, sys.stderr = sys.stderr, Terminal()
    gc.collect()
    gc.disable()
    try:
        for round_ in range(-1, rounds):
            for name, run in runs.items():
                start = time.process_time()
                run()
                if round_ >= 0:
                    times[name].append(time.process_time() - start)
    finally:
        gc.enable()
        sys.stderr = stderr
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    machine.pin(1)
    columns = {}
    plain = {}
    for label, size in SIZES.items():
        times = measure(size, options.rounds)
        plain[label] = min(times["plain"]) / (3 * size[4] / size[3])
        columns[label] = {name: min(turns) / min(times["plain"]) for name, turns in times.items()}
    print("| time of `fit` with it, relative to `fit` without | " + " | ".join(SIZES) + " |")
    print("|---|" + "---:|" * len(SIZES))
    print("| plain, microseconds a step | " + " | ".join(f"{plain[label] * 1e6:.3g}" for label in SIZES) + " |")
    for name in list(FEATURES)[1:]:
        print(f"| {name} | " + " | ".join(f"{columns[label][name]:.2f}" for label in SIZES) + " |")


if __name__ == "__main__":
    main()
