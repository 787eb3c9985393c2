"""The main figures of the library beside NumPy, JAX and PyTorch, as a table in Markdown.

    python bench/quick.py

One core and one thread for all, float32. Results are compared with float64 before anything is timed.
The contenders take turns, round after round; the figure is the best round of each: what the code
costs without what else the machine was doing. JAX and PyTorch are measured if they can be imported,
the peak if there is a gcc. Figures of different runs do not compare, their ratios roughly do.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise

import machine

machine.pin()

import numpy as np  # noqa: E402, after the process is pinned
from peak import Peak  # noqa: E402

import cnn  # noqa: E402
from cnn import _dispatch  # noqa: E402
from cnn import functional as F  # noqa: E402

Contenders = dict[str, Callable[[], object]]  # name -> what is timed

PEERS = [name for name in ("jax", "torch") if find_spec(name)]
NAMES = {"cnn": "cnn", "numpy": "NumPy", "jax": "JAX", "torch": "PyTorch"}


# ---- measuring -----------------------------------------------------------------------------------


def best_seconds(contenders: Contenders, rounds: int, seconds: float) -> dict[str, float]:
    """Seconds of a call of each: the best of so many rounds, each `seconds` long, taken in turns."""
    repeats = {}
    for name, call in contenders.items():
        n = 1
        while (took := min(timed(call, n) for _ in range(3))) < seconds / 4:
            n *= 2
        repeats[name] = max(1, round(n * seconds / took))
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, call in contenders.items():
            best[name] = min(best[name], timed(call, repeats[name]) / repeats[name])
    return best


def timed(call: Callable[[], object], n: int) -> float:
    start = time.perf_counter()
    for _ in range(n):
        call()
    return time.perf_counter() - start


# ---- what is measured: products ------------------------------------------------------------------


def forward_contenders(x, w, b) -> Contenders:
    """relu(x W + b)."""
    out, out_numpy = (np.empty((len(x), w.shape[1]), np.float32) for _ in range(2))

    def numpy_forward():
        np.matmul(x, w, out=out_numpy)
        np.add(out_numpy, b, out=out_numpy)
        return np.maximum(out_numpy, 0, out=out_numpy)

    contenders: Contenders = {
        "cnn": lambda: F.linear_forward(x, w, b, "relu", out=out),
        "numpy": numpy_forward,
    }
    if "jax" in PEERS:
        import jax

        compiled = jax.jit(lambda x, w, b: jax.nn.relu(x @ w + b))
        arrays = [jax.device_put(a) for a in (x, w, b)]
        contenders["jax"] = lambda: compiled(*arrays).block_until_ready()
    if "torch" in PEERS:
        import torch

        x_, wt, b_ = (torch.from_numpy(a) for a in (x, np.ascontiguousarray(w.T), b))
        contenders["torch"] = torch.no_grad()(lambda: torch.relu_(torch.nn.functional.linear(x_, wt, b_)))
    return contenders


def backward_contenders(grad, x, w) -> tuple[Contenders, Contenders]:
    """grad W^T, and (x^T grad, sum of grad)."""
    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty(w.shape[1], np.float32)
    dx_numpy, dw_numpy, db_numpy = (np.empty_like(a) for a in (dx, dw, db))
    backward = _dispatch.kernels("float32").linear_backward  # cnn.functional always gives all three

    def numpy_weights():
        np.matmul(x.T, grad, out=dw_numpy)
        np.sum(grad, axis=0, out=db_numpy)
        return dw_numpy, db_numpy

    inputs: Contenders = {
        "cnn": lambda: backward(grad, x, w, dw, db, dx, False, True, False)[0],
        "numpy": lambda: np.matmul(grad, w.T, out=dx_numpy),
    }
    weights: Contenders = {
        "cnn": lambda: backward(grad, x, w, dw, db, dx, False, False, True)[1:],
        "numpy": numpy_weights,
    }
    if "jax" in PEERS:
        import jax

        jax_inputs, jax_weights = jax.jit(lambda g, w: g @ w.T), jax.jit(lambda g, x: (x.T @ g, g.sum(axis=0)))
        g_, x_, w_ = (jax.device_put(a) for a in (grad, x, w))
        inputs["jax"] = lambda: jax_inputs(g_, w_).block_until_ready()
        weights["jax"] = lambda: jax.block_until_ready(jax_weights(g_, x_))
    if "torch" in PEERS:
        import torch

        g, xt, wt = (torch.from_numpy(a) for a in (grad, x, np.ascontiguousarray(w.T)))
        inputs["torch"] = lambda: g @ wt
        weights["torch"] = lambda: (xt.T @ g, g.sum(0))
    return inputs, weights


def check(name: str, actual, expected) -> None:
    """Stop unless each array is right to 1e-5 of its largest number."""
    actual, expected = ([a] if not isinstance(a, tuple) else a for a in (actual, expected))
    for got, right in zip(actual, expected, strict=True):
        error = abs(np.asarray(got) - right).max() / abs(right).max()
        if not error < 1e-5:
            sys.exit(f"{name}: wrong result, relative error {error:.2g}")


def products(batch: int, n_in: int, n_out: int, options) -> list[tuple[str, int, dict[str, float]]]:
    """(name, FLOPs, seconds of each contender) of the products of a linear layer."""
    random = np.random.default_rng(0)
    x, w, b, grad = (
        random.standard_normal(shape, np.float32) for shape in ((batch, n_in), (n_in, n_out), (n_out,), (batch, n_out))
    )
    x64, w64, b64, grad64 = (a.astype(np.float64) for a in (x, w, b, grad))
    flops = 2 * batch * n_in * n_out
    inputs, weights = backward_contenders(grad, x, w)
    rows = []
    for name, contenders, expected in (
        ("X W + b, ReLU", forward_contenders(x, w, b), np.maximum(x64 @ w64 + b64, 0)),
        ("dW and db", weights, (x64.T @ grad64, grad64.sum(axis=0))),
        ("dX", inputs, grad64 @ w64.T),
    ):
        for peer, call in contenders.items():
            check(f"{name}, {peer}", call(), expected)
        rows.append((name, flops, best_seconds(contenders, options.rounds, options.seconds)))
    return rows


# ---- what is measured: steps of training ---------------------------------------------------------


class NumpyNetwork:
    """Linear layers with ReLU between them, mean squared error, gradient descent: written by hand."""

    def __init__(self, weights, lr):
        self.weights = [(w.copy(), b.copy()) for w, b in weights]
        self.lr = weights[0][0].dtype.type(lr)

    def step(self, x, y):
        inputs = [x]
        for w, b in self.weights[:-1]:
            inputs.append(np.maximum(inputs[-1] @ w + b, 0))
        w, b = self.weights[-1]
        error = inputs[-1] @ w + b - y
        grad = error * error.dtype.type(2 / error.size)
        for i in reversed(range(len(self.weights))):
            w, b = self.weights[i]
            a = inputs[i]
            before = (grad @ w.T) * (a > 0) if i else None
            w -= self.lr * (a.T @ grad)
            b -= self.lr * grad.sum(axis=0)
            grad = before
        return float(np.mean(error * error))


def step_contenders(weights, x, y, lr) -> Contenders:
    """One step of training, the loss returned as a float."""
    layers: list = []
    for w, _ in weights:
        layers += [cnn.Linear(*w.shape), cnn.ReLU()]
    layers[-1] = cnn.MSELoss()
    model = cnn.Sequential(layers, optimizer=cnn.SGD(lr=lr))
    model.parameters = np.concatenate([a.ravel() for pair in weights for a in pair])
    by_hand = NumpyNetwork(weights, lr)
    contenders: Contenders = {
        "cnn": lambda: model.train_step(x, y),
        "numpy": lambda: by_hand.step(x, y),
    }
    if "jax" in PEERS:
        contenders["jax"] = jax_step(weights, x, y, lr)
    if "torch" in PEERS:
        contenders["torch"] = torch_step(weights, x, y, lr)
    return contenders


def jax_step(weights, x, y, lr) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp

    def loss(params, x, y):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        w, b = params[-1]
        return jnp.mean((x @ w + b - y) ** 2)

    def update(params, x, y):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        return jax.tree.map(lambda p, g: p - lr * g, params, grads), value

    compiled = jax.jit(update, donate_argnums=0)
    params = jax.tree.map(jnp.array, weights)
    x, y = jax.device_put(x), jax.device_put(y)

    def step():
        nonlocal params
        params, value = compiled(params, x, y)
        return float(value)

    return step


def torch_step(weights, x, y, lr) -> Callable[[], float]:
    import torch

    layers: list = []
    for w, b in weights:
        linear = torch.nn.Linear(*w.shape)
        linear.load_state_dict({"weight": torch.tensor(w.T), "bias": torch.tensor(b)})
        layers += [linear, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    criterion = torch.nn.MSELoss()
    x, y = torch.from_numpy(x), torch.from_numpy(y)

    def step():
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def training(widths, batch: int, options) -> tuple[int, dict[str, float]]:
    """(FLOPs, seconds of each contender) of a step of a network with ReLU between its layers."""
    random = np.random.default_rng(0)
    weights = [
        (
            (random.standard_normal((n_in, n_out)) * (2 / n_in) ** 0.5).astype(np.float32),
            np.zeros(n_out, np.float32),
        )
        for n_in, n_out in pairwise(widths)
    ]
    x = random.standard_normal((batch, widths[0]), np.float32)
    y = random.standard_normal((batch, widths[-1]), np.float32)
    lr = 0.01
    exact = NumpyNetwork([(w.astype(np.float64), b.astype(np.float64)) for w, b in weights], lr)
    expected = np.array([exact.step(x.astype(np.float64), y) for _ in range(5)])
    contenders = step_contenders(weights, x, y, lr)
    for peer, call in contenders.items():
        check(f"training {widths}, {peer}", np.array([call() for _ in range(5)]), expected)
    products = [n_in * n_out for n_in, n_out in pairwise(widths)]
    flops = batch * (6 * sum(products) - 2 * products[0])
    return flops, best_seconds(contenders, options.rounds, options.seconds)


# ---- the report ----------------------------------------------------------------------------------


def versions() -> str:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    parts = [
        f"cnn {cnn.__version__} ({_dispatch.ISA})",
        f"NumPy {np.__version__} ({blas.get('name')} {blas.get('version')})",
        *(f"{NAMES[name]} {version(name)}" for name in PEERS),
        f"Python {platform.python_version()}",
    ]
    return ", ".join(parts)


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f}" if seconds >= 1e-4 else f"{seconds * 1e6:.3g}"


def table(header: list[str], rows: list[list[str]]) -> None:
    print("| " + " | ".join(header) + " |")
    print("|---|" + "---:|" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="of which the best counts")
    parser.add_argument("--seconds", type=float, default=0.004, help="of one round of a contender")
    options = parser.parse_args()
    if "torch" in PEERS:
        import torch

        torch.set_num_threads(1)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print(f"warning: the machine is busy, load {os.getloadavg()[0]:.1f}", file=sys.stderr)

    try:
        peak = Peak(_dispatch.ISA, "float32")
    except RuntimeError:  # there is no compiler
        peak = None
    if peak:
        peak(0.2)
    timings = [
        (f"{name}, {' x '.join(map(str, shape))}", flops, seconds)
        for shape in ((64, 784, 256), (1024, 1024, 1024))
        for name, flops, seconds in products(*shape, options)
    ]
    steps = [
        (f"step of {'-'.join(map(str, widths))}, batch {batch}", *training(widths, batch, options))
        for widths, batch in (((10, 20, 1), 1), ((784, 256, 10), 64))
    ]
    if peak:
        peak(0.2)  # and the better one counts: the machine may have been busy

    def part(flops: float, seconds: float) -> str:
        return f"{flops / seconds / peak.best:.0%}" if peak else "-"

    contenders = ["cnn", "numpy", *PEERS]
    header = ["cnn, of peak", *(NAMES[name] for name in contenders)]
    known = f"{peak.best / 1e9:.0f} GFLOP/s" if peak else "not measured, there is no gcc"
    about = f"{machine.describe()['processor']}, {platform.system()}"
    print(f"{about}; one core, one thread; float32; {versions()}.")
    print(f"Peak of the core, multiply-adds in registers: {known}.\n")
    table(
        ["GFLOP/s (batch x in x out)", *header],
        [
            [
                name,
                part(flops, seconds["cnn"]),
                *(f"{flops / seconds[peer] / 1e9:.0f}" for peer in contenders),
            ]
            for name, flops, seconds in timings
        ],
    )
    print()
    table(
        ["microseconds", *header],
        [
            [
                name,
                part(flops, seconds["cnn"]),
                *(microseconds(seconds[peer]) for peer in contenders),
            ]
            for name, flops, seconds in steps
        ],
    )


if __name__ == "__main__":
    main()
