"""Many models: one network for each of 1,000 sensors, trained in one call and compared with a loop.

    python examples/sensors.py        writes sensors.png

Each sensor depends on the hour of the day and the temperature in a different way, and has a different number of
readings. `cnn.fit_many` trains a small network for each sensor in one native call on all processors. Early stopping
uses separate validation rows for each model.
Needs the extra `plot` (matplotlib).
"""

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cnn

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c8c8c"


class Sensor:
    """The noise-free readings of a sensor at hours (n,) and temperatures (n,)."""

    def __init__(self, rng):
        self.amplitude, self.peak, self.slope = rng.uniform(0.5, 2), rng.uniform(0, 24), rng.normal(scale=0.5)
        self.sharp = rng.uniform(0.5, 3)

    def reads(self, hour, temperature):
        day = np.tanh(self.sharp * np.cos((hour - self.peak) * np.pi / 12))
        return self.amplitude * day + self.slope * temperature


def inputs(hour, temperature):
    """(n, 3): the hour on a circle, and the temperature."""
    angle = hour * np.pi / 12
    return np.stack([np.cos(angle), np.sin(angle), temperature], axis=1).astype("float32")


def readings(sensor, n, rng):
    """x (n, 3) and y (n,)."""
    hour, temperature = rng.uniform(0, 24, n), rng.normal(size=n)
    return inputs(hour, temperature), sensor.reads(hour, temperature) + 0.3 * rng.normal(size=n)


def network(seed):
    layers = [cnn.Linear(3, 16), cnn.Tanh(), cnn.Linear(16, 1), cnn.MSELoss()]
    return cnn.Sequential(layers, optimizer=cnn.Adam(lr=0.02), seed=seed)


SETTINGS = {"epochs": 30, "batch_size": 32, "validation_split": 0.2, "early_stopping": 5, "progress": False}


def plot(sensors, models, data, path):
    """Nine sensors: readings, true function and model over the day, at temperature 0."""
    figure = Figure(figsize=(9.5, 6.2), dpi=110, layout="constrained")
    hour = np.linspace(0, 24, 241)
    for i, axes in enumerate(figure.subplots(3, 3, sharex=True, sharey=True).ravel()):
        x, y = data[i]
        then = np.arctan2(x[:, 1], x[:, 0]) * 12 / np.pi % 24
        axes.plot(then, y - sensors[i].slope * x[:, 2], ".", color=GREY, markersize=2, alpha=0.5, label="readings")
        axes.plot(hour, sensors[i].reads(hour, 0), color=ORANGE, linewidth=1.4, linestyle="--", label="truth")
        axes.plot(hour, models[i].predict(inputs(hour, 0 * hour))[:, 0], color=BLUE, linewidth=1.8, label="model")
        axes.set_title(f"sensor {i}, {len(y):,} readings", fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(xlim=(0, 24), xticks=(0, 6, 12, 18, 24), ylim=(-3.5, 3.5))
    figure.axes[0].legend(frameon=False, ncols=3, fontsize=8, loc="upper left", columnspacing=0.8, handlelength=1.2)
    figure.supxlabel("hour of the day", fontsize=10)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sensors", type=int, default=1000)
    parser.add_argument("--looped", type=int, default=50, help="number of models in the timed loop")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where sensors.png goes")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    sensors = [Sensor(rng) for _ in range(options.sensors)]
    data = [readings(sensor, rng.integers(200, 2001), rng) for sensor in sensors]
    models = [network(seed) for seed in range(options.sensors)]
    start = time.perf_counter()
    history = cnn.fit_many(models, data, **SETTINGS)
    once = time.perf_counter() - start
    rows = sum(len(y) for _, y in data)
    print(f"{len(models):,} models on {rows:,} readings with fit_many: {once:.2f} s")

    start = time.perf_counter()
    for model, (x, y) in zip(map(network, range(options.looped)), data, strict=False):
        model.fit(x, y, **SETTINGS)
    looped = (time.perf_counter() - start) * len(models) / min(options.looped, len(models))
    print(f"in a loop, extrapolated: {looped:.2f} s")

    hour, temperature = rng.uniform(0, 24, 500), rng.normal(size=500)
    errors = np.array([
        np.sqrt(np.mean((model.predict(inputs(hour, temperature))[:, 0] - sensor.reads(hour, temperature)) ** 2))
        for model, sensor in zip(models, sensors, strict=True)
    ])  # fmt: skip
    print(f"RMS error against noise-free readings: median {np.median(errors):.3f}, worst {errors.max():.3f}")
    print(f"best epochs: {history.best_epoch.min()} to {history.best_epoch.max()}")
    plot(sensors, models, data, options.out / "sensors.png")
    print(f"see {options.out / 'sensors.png'}")


if __name__ == "__main__":
    main()
