"""Many models at once: `Ensemble.fit` beside JAX in four forms, and beside a loop over our own `fit`.

    python bench/ensembles.py [--rounds 7] [--rows tiny ...] [--processor-time]
    python bench/ensembles.py --ragged [--rounds 7]

Random normal inputs and targets that all members share, as they lie; ReLU, mean squared error, float32, one thread of
one core. JAX is compiled in four forms: a scan over the batches of a vmap over the members, a map over the members of a
scan, a vmap of a scan, and a scan of a map; the fastest counts. The parameters of all are compared with ours after a
pass, before anything is timed. They take turns, round after round; what counts is the shortest turn of each, by the
clock, or by the processor time of this process (on a machine that others use too).

--ragged: `fit_many` of 1,000 models 10-32-1, each on rows of its own, 200 to 2,000: on two cores, on one, and beside a
loop over PyTorch on one core. PyTorch trains every 50th model, which is checked against ours; its time is scaled by the
rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import machine

TURN = 1_000_000_000  # FLOPs of a turn, about


@dataclass(frozen=True)
class Row:
    """So many members of a network, and what the library promises: times as fast as JAX's best form."""

    id: str
    members: int
    widths: tuple[int, ...]
    batch: int
    optimizer: str
    goal: float
    most: int = 1000  # steps

    @property
    def flops(self) -> int:
        """Of the matrix products of one member's step: forward, dW, and dX but for the first layer."""
        sizes = [a * b for a, b in zip(self.widths[:-1], self.widths[1:], strict=True)]
        return self.batch * (6 * sum(sizes) - 2 * sizes[0])

    @property
    def steps(self) -> int:
        return max(4, min(self.most, TURN // (self.members * self.flops)))

    @property
    def title(self) -> str:
        optimizer = {"sgd": "SGD", "adam": "Adam"}[self.optimizer]
        return f"{self.members:,} of {'-'.join(map(str, self.widths))}, batch {self.batch}, {optimizer}"


ROWS = [
    Row("tiny", 1000, (1, 3, 1), 1, "sgd", 2.5, most=10_000),
    Row("small", 256, (4, 16, 1), 8, "adam", 8),
    Row("control", 64, (8, 64, 64, 4), 32, "adam", 1.6),
    Row("housing", 10, (13, 128, 128, 1), 64, "adam", 1.25),
    Row("digits", 16, (64, 256, 10), 128, "adam", 1.5),
]
LR, BETA1, BETA2, EPS = 1e-3, 0.9, 0.999, 1e-8


def ours(row: Row, x, y, looped: bool):
    """A function that trains a pass, one that gives the parameters, and the initial ones."""
    import cnn

    layers = []
    for a, b in zip(row.widths[:-1], row.widths[1:], strict=True):
        layers += [cnn.Linear(a, b), cnn.ReLU()]
    layers = [*layers[:-1], cnn.MSELoss()]
    make = cnn.SGD if row.optimizer == "sgd" else cnn.Adam
    ensemble = cnn.Ensemble(layers, row.members, make(lr=LR), seed=0)
    start = ensemble.state_dict()
    settings = {"batch_size": row.batch, "shuffle": False, "threads": 1, "progress": False}
    if looped:
        models = list(ensemble)
        return lambda: [model.fit(x, y, **settings) for model in models], None, start
    return lambda: ensemble.fit(x, y, **settings), lambda: ensemble.parameters, start


def jax_forms(row: Row, x, y, start):
    """The same pass by JAX, by form: a function that trains a pass, and one that gives the parameters."""
    import jax
    import jax.numpy as jnp

    names = [(f"{2 * i}.weight", f"{2 * i}.bias") for i in range(len(row.widths) - 1)]
    params = [(jnp.array(start[weight]), jnp.array(start[bias])) for weight, bias in names]
    data = tuple(jnp.array(a.reshape(-1, row.batch, a.shape[1])) for a in (x, y))

    def loss(params, x, y):
        for i, (w, b) in enumerate(params):
            x = x @ w + b
            x = jax.nn.relu(x) if i < len(params) - 1 else x
        return ((x - y) ** 2).mean()

    def update(state, x, y):
        params, m, v, t = state
        grads = jax.grad(loss)(params, x, y)
        if row.optimizer == "sgd":
            return jax.tree.map(lambda p, g: p - LR * g, params, grads), m, v, t
        t = t + 1
        m = jax.tree.map(lambda m, g: m + (1 - BETA1) * (g - m), m, grads)
        v = jax.tree.map(lambda v, g: v + (1 - BETA2) * (g * g - v), v, grads)
        size, correction = LR / (1 - BETA1**t), 1 / (1 - BETA2**t)
        params = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v * correction) + EPS), params, m, v)
        return params, m, v, t

    def one(state):
        return jax.lax.scan(lambda s, batch: (update(s, *batch), None), state, data)[0]

    def mapped(state, batch):
        return jax.lax.map(lambda s: update(s, *batch), state)

    forms = {
        "scan(vmap)": lambda s: jax.lax.scan(lambda s, b: (jax.vmap(lambda a: update(a, *b))(s), None), s, data)[0],
        "map(scan)": lambda s: jax.lax.map(one, s),
        "vmap(scan)": jax.vmap(one),
        "scan(map)": lambda s: jax.lax.scan(lambda s, b: (mapped(s, b), None), s, data)[0],
    }

    def form(function):
        compiled = jax.jit(function, donate_argnums=0)
        zeros = [jax.tree.map(jnp.zeros_like, params) for _ in range(2)]
        box = [(jax.tree.map(jnp.copy, params), *zeros, jnp.zeros(row.members))]

        def call():
            box[0] = jax.block_until_ready(compiled(box[0]))

        def parameters():
            import numpy as np

            flat = [np.asarray(a).reshape(row.members, -1) for pair in box[0][0] for a in pair]
            return np.concatenate(flat, axis=1)

        return call, parameters

    return {f"JAX {name}": form(function) for name, function in forms.items()}


def measure(row: Row, rounds: int, clock=time.perf_counter) -> dict[str, float]:
    """Microseconds of one member's step, by contender; RuntimeError if their results differ."""
    import numpy as np

    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((row.steps * row.batch, n), dtype=np.float32) for n in (row.widths[0], row.widths[-1]))
    call, parameters, start = ours(row, x, y, False)
    runs = {"cnn": (call, parameters), "cnn, a loop": ours(row, x, y, True)[:2], **jax_forms(row, x, y, start)}
    for name, (run, result) in runs.items():
        run()
        if result is not None and not np.allclose(result(), parameters(), rtol=1e-2, atol=2e-3):
            raise RuntimeError(f"{row.id}: {name} has other parameters: {abs(result() - parameters()).max():.3g} apart")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (run, _) in runs.items():
            began = clock()
            run()
            times[name].append(clock() - began)
    return {name: 1e6 * min(turns) / (row.steps * row.members) for name, turns in times.items()}


def torch_loop(models, data) -> float:
    """Seconds of PyTorch for an epoch of these models on their data; RuntimeError if it ends with other parameters."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    made = []
    for model in models:
        layers = []
        for linear in [layer for layer in model.layers if hasattr(layer, "weight")]:
            layers += [torch.nn.Linear(linear.in_features, linear.out_features), torch.nn.ReLU()]
            layers[-2].weight.data[:] = torch.tensor(linear.weight.T)
            layers[-2].bias.data[:] = torch.tensor(linear.bias)
        net = torch.nn.Sequential(*layers[:-1])
        made.append((net, torch.optim.Adam(net.parameters(), lr=LR)))
    loss = torch.nn.MSELoss()
    began = time.perf_counter()
    for (net, optimizer), (x, y) in zip(made, data, strict=True):
        for xs, ys in zip(torch.from_numpy(x).split(32), torch.from_numpy(y).split(32), strict=True):
            optimizer.zero_grad()
            loss(net(xs), ys).backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    for model, (x, y), (net, _) in zip(models, data, made, strict=True):
        model.fit(x, y, batch_size=32, shuffle=False, progress=False)
        if not np.allclose(model.predict(x), net(torch.from_numpy(x)).detach().numpy(), rtol=1e-2, atol=2e-3):
            raise RuntimeError("PyTorch has other parameters")
    return seconds


def ragged(rounds: int, epochs: int = 20) -> None:
    """Print the times of an epoch of 1,000 models, each on rows of its own."""
    import numpy as np

    import cnn

    rng = np.random.default_rng(0)
    rows = rng.integers(200, 2001, 1000).tolist()
    data = [tuple(rng.standard_normal((n, width), dtype=np.float32) for width in (10, 1)) for n in rows]
    layers = [cnn.Linear(10, 32), cnn.ReLU(), cnn.Linear(32, 1), cnn.MSELoss()]
    models = [cnn.Sequential(layers, optimizer=cnn.Adam(lr=LR), seed=i) for i in range(len(rows))]
    peer = torch_loop(models[::50], data[::50]) * sum(rows) / sum(rows[::50])
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for threads, turns in times.items():
            began = time.perf_counter()
            cnn.fit_many(models, data, epochs=epochs, batch_size=32, threads=threads, progress=False)
            turns.append((time.perf_counter() - began) / epochs)
    one, two = (min(turns) for turns in times.values())
    print("| 1,000 of 10-32-1, 200 to 2,000 rows each, batch 32, Adam | ms an epoch | faster | goal |")
    print("|---|---:|---:|---:|")
    print(f"| `fit_many`, two cores | **{1e3 * two:.1f}** | | |")
    print(f"| `fit_many`, one core | {1e3 * one:.1f} | {one / two:.2f} | 1.9 |")
    print(f"| a loop over PyTorch, one core | {1e3 * peer:,.0f} | {peer / two:.0f} | 20 |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", nargs="*", default=[row.id for row in ROWS])
    parser.add_argument("--processor-time", action="store_true", help="of this process, not the clock's")
    parser.add_argument("--ragged", action="store_true", help="models with rows of their own, on two cores")
    options = parser.parse_args()
    machine.pin(2 if options.ragged else 1)
    if options.ragged:
        ragged(options.rounds)
        return
    print("| us a member's step | cnn | a loop over `fit` | JAX, best form | faster | goal | GFLOP/s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in ROWS:
        if row.id not in options.rows:
            continue
        times = measure(row, options.rounds, time.process_time if options.processor_time else time.perf_counter)
        best = min((name for name in times if name.startswith("JAX")), key=times.__getitem__)
        print(
            f"| {row.title} | **{times['cnn']:.4g}** | {times['cnn, a loop']:.4g} | {times[best]:.4g} {best[4:]} "
            f"| {times[best] / times['cnn']:.2f} | {row.goal:g} | {row.flops / times['cnn'] / 1e3:.0f} |",
            flush=True,
        )
        print({name: float(f"{time:.4g}") for name, time in times.items()}, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
