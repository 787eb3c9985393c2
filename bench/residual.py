"""The residual of a physics-informed network beside JAX and PyTorch: float64, as many threads as the machine has cores.

    python bench/residual.py [points] [threads]

2-50-50-50-1 tanh, Poisson's equation: mean (u_xx + u_yy - f)**2 over random points of a square, and its gradient in all
parameters. JAX's best form is looked for among those that people use, all jitted: forward over reverse, forward over
forward, Taylor mode (`jet`), and a forward Laplacian written by hand for this network. PyTorch goes back twice with
`create_graph`. What is compared is checked first: loss and gradient must agree. Times are the least of ROUNDS, in
turns. Needs jax and torch.
"""

import itertools
import os
import sys
import time

POINTS = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
THREADS = int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count()
os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if THREADS > 1 else 'false'}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from goals import judge  # noqa: E402
from jax.experimental.jet import jet  # noqa: E402

import cnn  # noqa: E402

ROUNDS = 15
WIDTHS = (2, 50, 50, 50, 1)


def ours(x, f, arrays):
    layers = [layer for pair in itertools.pairwise(WIDTHS) for layer in (cnn.Linear(*pair), cnn.Tanh())]
    model = cnn.Sequential(layers[:-1], dtype="float64")
    model.parameters = np.concatenate([a.ravel() for a in arrays])

    def poisson(x, u, du, laplacian):
        residual = laplacian - f
        return np.mean(residual**2), None, None, 2 / len(x) * residual

    return lambda: model.residual_loss_and_grad(x, poisson, order="laplacian")


def with_jax(x, f, arrays):
    """By names, functions that return loss and gradient."""
    layers = [(jnp.array(w), jnp.array(b)) for w, b in zip(arrays[::2], arrays[1::2], strict=True)]
    x, f, axes = jnp.array(x), jnp.array(f[:, 0]), jnp.eye(2)

    def net(p, x):
        for w, b in p[:-1]:
            x = jnp.tanh(x @ w + b)
        return (x @ p[-1][0] + p[-1][1])[..., 0]

    def along(second):
        """Laplacians of all rows, of a function that gives the second derivative at a point along an axis."""
        return lambda p: jax.vmap(lambda x: sum(second(lambda z: net(p, z), x, axis) for axis in axes))(x)

    def by_hand(p):
        y, first, laplacian = x, [jnp.tile(axis, (len(x), 1)) for axis in axes], jnp.zeros_like(x)
        for i, (w, b) in enumerate(p):
            y, first, laplacian = y @ w + b, [t @ w for t in first], laplacian @ w
            if i < len(p) - 1:
                y = jnp.tanh(y)
                slope = 1 - y * y
                laplacian = slope * (laplacian - 2 * y * sum(t * t for t in first))
                first = [slope * t for t in first]
        return laplacian[:, 0]

    def forward_forward(u, x, axis):
        return jax.jvp(lambda z: jax.jvp(u, (z,), (axis,))[1], (x,), (axis,))[1]

    forms = {
        "forward over reverse": along(lambda u, x, axis: jax.jvp(jax.grad(u), (x,), (axis,))[1] @ axis),
        "forward over forward": along(forward_forward),
        "jet": along(lambda u, x, axis: jet(u, (x,), ((axis, jnp.zeros(2)),))[1][1]),
        "by hand": by_hand,
    }

    def prepared(form):
        run = jax.jit(jax.value_and_grad(lambda p: jnp.mean((form(p) - f) ** 2)))
        return lambda: jax.block_until_ready(run(layers))

    return {name: prepared(form) for name, form in forms.items()}


def with_torch(x, f, arrays):
    torch.set_num_threads(THREADS)
    parameters = [torch.tensor(a, requires_grad=True) for a in arrays]
    x, f = torch.tensor(x, requires_grad=True), torch.tensor(f)

    def run():
        u = x
        for i, (w, b) in enumerate(zip(parameters[::2], parameters[1::2], strict=True)):
            u = torch.addmm(b, u, w)
            u = torch.tanh(u) if i < len(WIDTHS) - 2 else u
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        second = [torch.autograd.grad(slope[:, k].sum(), x, create_graph=True)[0][:, k : k + 1] for k in range(2)]
        loss = ((sum(second) - f) ** 2).mean()
        return loss.item(), torch.autograd.grad(loss, parameters, materialize_grads=True)

    return run


def main():
    jax.config.update("jax_enable_x64", True)
    cnn.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (POINTS, 2))
    f = np.sin(np.pi * x[:, :1]) * np.sin(np.pi * x[:, 1:])
    arrays = []
    for n_in, n_out in itertools.pairwise(WIDTHS):
        arrays += [rng.standard_normal((n_in, n_out)) / np.sqrt(n_in), 0.1 * rng.standard_normal(n_out)]
    contenders = {"cnn": ours(x, f, arrays)}
    contenders |= {f"JAX, {name}": run for name, run in with_jax(x, f, arrays).items()}
    contenders["PyTorch"] = with_torch(x, f, arrays)
    answers = {}
    for name, run in contenders.items():
        loss, gradient = run()
        leaves = [gradient] if name == "cnn" else jax.tree.leaves(gradient) if "JAX" in name else gradient
        answers[name] = np.append(np.concatenate([np.asarray(leaf).ravel() for leaf in leaves]), float(loss))
        difference = np.abs(answers[name] - answers["cnn"]).max() / np.abs(answers["cnn"]).max()
        if difference > 1e-11:
            raise SystemExit(f"{name}: loss and gradient differ by {difference:.1e} of the largest number")
    times = dict.fromkeys(contenders, np.inf)
    for _ in range(ROUNDS):
        for name, run in contenders.items():
            began = time.perf_counter()
            run()
            times[name] = min(times[name], 1e3 * (time.perf_counter() - began))
    print(f"{POINTS:,} points, {THREADS} threads; the gradients agree to 1e-11\n")
    print("| | ms | times cnn |\n|---|---|---|")
    for name, best in times.items():
        print(f"| {name} | {best:.1f} | {best / times['cnn']:.1f} |")
    best = min(time for name, time in times.items() if "JAX" in name)
    judge("residual", "times as fast as JAX's best form", 2, best / times["cnn"])
    judge("residual", "times as fast as PyTorch", 4, times["PyTorch"] / times["cnn"])


if __name__ == "__main__":
    main()
