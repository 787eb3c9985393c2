"""Local steps with averaged parameters beside larger batches: what each costs on a slow network, and how far it gets.

    python bench/local_steps.py             seconds an epoch by the cost model, and the losses reached (minutes)
    python bench/local_steps.py --cost      the first alone

`fit(average_every=k)` with 8 shards beside `accumulation_steps=k`, which sends as many messages, and takes one step for
k batches. Each form has the best learning rate of a grid.
"""

import argparse
import itertools

import numpy as np
from data_parallel import LONG, NETWORKS, added_seconds, network_seconds, size_of

RANKS = REPLICAS = 8
EVERY = (8, 32)


def batch_seconds(widths, batch, k, local, latency, bandwidth, *, ranks=RANKS, speed=1e11, memory=8e9, call=4e-6):
    """Seconds a batch takes by the cost model, where k of them share one sum."""
    parameters, flops = size_of(widths)
    nbytes = 4 * parameters
    step = 3 * nbytes / memory * (1 if local or nbytes < LONG else 1 / ranks)
    exchange = added_seconds(ranks, nbytes, memory, call) + network_seconds(ranks, nbytes, latency, bandwidth)
    return flops * batch / speed / ranks + (step if local else step / k) + exchange / k


def costs():
    print("Milliseconds a batch on 8 ranks by the cost model; k batches share one sum: local steps / accumulated.\n")
    networks = [("10 us, 10 Gbit/s", 1e-5, 10e9 / 8), ("100 us, 1 Gbit/s", 1e-4, 1e9 / 8)]
    head = [f"{title}: k = {k}" for title, *_ in networks for k in (1, *EVERY)]
    print("| network | one rank |", " | ".join(head), "|\n|---|---|" + "---|" * len(head))
    for name, (widths, batch) in NETWORKS.items():
        flops = size_of(widths)[1]
        cells = [f"{flops * batch / 1e11 * 1e3:.3g}"]
        for _, latency, bandwidth in networks:
            for k in (1, *EVERY):
                both = [1e3 * batch_seconds(widths, batch, k, local, latency, bandwidth) for local in (True, False)]
                cells.append(f"{both[1]:.3g}" if k == 1 else " / ".join(f"{took:.3g}" for took in both))
        print("|", name, "|", " | ".join(cells), "|")


def digits():
    """1,797 pictures of digits: 64 inputs, 10 classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data / 16, data.target, (64, 64, 10)


def function():
    """A smooth function of 8 numbers, with noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=(5000, 8))
    y = np.sin(x[:, 0] * x[:, 1]) + 0.5 * x[:, 2] ** 2 - np.tanh(x[:, 3] + x[:, 4]) * x[:, 5]
    return x, (y + 0.1 * random.normal(size=len(y)))[:, None], (8, 64, 64, 1)


DATA = {"digits": (digits, 64, 40), "function": (function, 128, 40)}  # rows of a batch, epochs


def loss_after(data, kind, k, optimizer, lr, seed):
    """Training and validation loss after all epochs.

    kind: "sum": one step for k batches; "local": averages every k; "post": the second half of the run is local.
    """
    import ranks

    import cnn

    make, batch, epochs = DATA[data]
    x, y, widths = make()
    order = np.random.default_rng(1).permutation(len(x))
    x, y, held = x[order], y[order], len(x) // 5
    x, y, x_val, y_val = x[held:].astype("f4"), y[held:], x[:held].astype("f4"), y[:held]
    layers = [part for a, b in itertools.pairwise(widths) for part in (cnn.Linear(a, b), cnn.Tanh())][:-1]
    loss = cnn.CrossEntropyLoss() if data == "digits" else cnn.MSELoss()
    steps = -(-len(x) // batch)  # an epoch
    rate = cnn.CosineAnnealingLR(epochs * (-(-steps // k) if kind == "sum" else steps), interval="step")
    model = cnn.Sequential([*layers, loss], optimizer=optimizer(lr=lr, schedule=rate), seed=seed)
    comm = ranks.Comm(ranks.World(1), 0)
    options = {"batch_size": batch, "comm": comm, "shards": REPLICAS, "progress": False}
    done = epochs // 2 if kind == "post" else 0
    try:
        if done:
            model.fit(x, y, epochs=done, **options)
        options["accumulation_steps" if kind == "sum" else "average_every"] = k
        model.fit(x, y, epochs=epochs, initial_epoch=done, **options)
    except cnn.DivergenceError:
        return np.inf, np.inf
    return model.evaluate(x, y)["loss"], model.evaluate(x_val, y_val)["loss"]


def losses(seeds):
    import cnn

    kinds = [("sum", 1), *((kind, k) for k in EVERY for kind in ("sum", "local", "post"))]
    forms = {
        "SGD, momentum 0.9": (lambda **o: cnn.SGD(momentum=0.9, **o), 0.02 * 3.0 ** np.arange(-2, 5)),
        "Adam": (cnn.Adam, 0.003 * 3.0 ** np.arange(-2, 5)),
    }
    print("\n| data, optimiser | form | k | best lr | training loss | validation loss | spread |")
    print("|---|---|---|---|---|---|---|")
    for data in DATA:
        for name, (optimizer, rates) in forms.items():
            for kind, k in kinds:
                found = {}
                for lr in rates:
                    found[lr] = np.array([loss_after(data, kind, k, optimizer, lr, seed) for seed in range(seeds)])
                best = min(found, key=lambda lr: found[lr][:, 1].mean())
                train, validation = found[best].mean(0)
                print(
                    f"| {data}, {name} | {kind} | {k} | {best:.3g} | {train:.4g} | {validation:.4g} | "
                    f"{np.ptp(found[best][:, 1]):.2g} |",
                    flush=True,
                )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    costs()
    if not options.cost:
        losses(options.seeds)


if __name__ == "__main__":
    main()
