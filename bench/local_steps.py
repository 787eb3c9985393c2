"""Local steps with averaged parameters beside larger batches: what each costs on a slow network, and how far it gets.

    python bench/local_steps.py             seconds an epoch by the cost model, and the losses reached (minutes)
    python bench/local_steps.py --cost      the first alone

Eight replicas take k steps each on an eighth of every batch, and average their parameters; `accumulation_steps=k` sends
as many messages, and takes one step on the k batches. Each form has the best learning rate of a grid.
"""

import argparse
import itertools

import numpy as np
from data_parallel import NETWORKS, added_seconds, network_seconds, size_of

RANKS = REPLICAS = 8
EVERY = (8, 32)


def batch_seconds(widths, batch, k, local, latency, bandwidth, *, ranks=RANKS, speed=1e11, memory=8e9, call=4e-6):
    """Seconds a batch takes by the cost model, where k of them share one sum."""
    parameters, flops = size_of(widths)
    nbytes = 4 * parameters
    step = 3 * nbytes / memory
    exchange = added_seconds(ranks, nbytes, memory, call) + network_seconds(ranks, nbytes, latency, bandwidth)
    return flops * batch / speed / ranks + (step if local else step / k) + exchange / k


def costs():
    print("Milliseconds a batch on 8 ranks by the cost model; k batches share one sum: local steps / accumulated.\n")
    networks = [("10 us, 10 Gbit/s", 1e-5, 10e9 / 8), ("100 us, 1 Gbit/s", 1e-4, 1e9 / 8)]
    head = [f"{title}: k = {k}" for title, *_ in networks for k in (1, *EVERY)]
    print("| network | one rank |", " | ".join(head), "|\n|---|---|" + "---|" * len(head))
    for name, (widths, batch) in NETWORKS.items():
        parameters, flops = size_of(widths)
        cells = [f"{(flops * batch / 1e11 + 12 * parameters / 8e9) * 1e3:.3g}"]
        for _, latency, bandwidth in networks:
            for k in (1, *EVERY):
                both = [1e3 * batch_seconds(widths, batch, k, local, latency, bandwidth) for local in (True, False)]
                cells.append(f"{both[0]:.3g}" if k == 1 else " / ".join(f"{took:.3g}" for took in both))
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
    """Training and validation loss after all epochs, of the mean of the replicas.

    kind: "sum": one step for k batches; "local": k steps of each replica; "post": the second half of the run is local.
    """
    import cnn

    make, batch, epochs = DATA[data]
    x, y, widths = make()
    order = np.random.default_rng(1).permutation(len(x))
    x, y, held = x[order], y[order], len(x) // 5
    x, y, x_val, y_val = x[held:].astype("f4"), y[held:], x[:held].astype("f4"), y[:held]
    layers = [part for a, b in itertools.pairwise(widths) for part in (cnn.Linear(a, b), cnn.Tanh())][:-1]
    loss = cnn.CrossEntropyLoss() if data == "digits" else cnn.MSELoss()
    random = np.random.default_rng(seed)
    stream = np.concatenate([random.permutation(len(x)) for _ in range(epochs)])
    sums = stream[: len(stream) // (batch * k) * batch * k].reshape(-1, k, batch)  # rows of each
    rate = cnn.CosineAnnealingLR(len(sums) * (1 if kind == "sum" else k), interval="step")
    members = cnn.Ensemble(
        [*layers, loss], 1 if kind == "sum" else REPLICAS, optimizer=optimizer(lr=lr, schedule=rate), seed=seed
    )
    members.parameters = np.broadcast_to(members.parameters[:1], members.parameters.shape)
    for number, batches in enumerate(sums):
        if kind == "sum":
            members.train_step(x[batches.ravel()], y[batches.ravel()])
            continue
        for last, rows in enumerate(batches, 1 - k):
            mine = rows.reshape(REPLICAS, -1)
            members.train_step(x[mine], y[mine])
            if not last or (kind == "post" and number < len(sums) // 2):
                mean = members.parameters.mean(0)
                members.parameters = np.broadcast_to(mean, members.parameters.shape)
    return members[0].evaluate(x, y)["loss"], members[0].evaluate(x_val, y_val)["loss"]


def losses(seeds):
    import cnn

    kinds = [("sum", 1), *((kind, k) for k in EVERY for kind in ("sum", "local", "post"))]
    forms = {
        "SGD, momentum 0.9": (lambda **o: cnn.SGD(momentum=0.9, **o), 0.02 * 3.0 ** np.arange(-2, 4)),
        "Adam": (cnn.Adam, 0.003 * 3.0 ** np.arange(-2, 4)),
    }
    print("\n| data, optimiser | form | k | best lr | training loss | validation loss | spread |")
    print("|---|---|---|---|---|---|---|")
    for data in DATA:
        for name, (optimizer, rates) in forms.items():
            for kind, k in kinds:
                found = {}
                for lr in rates:
                    with np.errstate(all="ignore"):
                        runs = np.array([loss_after(data, kind, k, optimizer, lr, seed) for seed in range(seeds)])
                    found[lr] = np.where(np.isfinite(runs), runs, np.inf)
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
