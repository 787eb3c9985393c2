"""Swing-up of a pendulum: model predictive control of a cart, with a learned model of the dynamics.

    python examples/swing_up.py        writes swing_up.png

The network learns the accelerations of cart and pole from simulated motions; its inputs are angle, angular velocity and
force. `cnn.to_c` exports it with CasADi's interface, and `casadi.external` loads it as a function with exact
derivatives. Every 0.05 s ipopt solves a nonlinear program: 30 steps ahead, with the cart within its rails. The force
acts on the true pendulum. With `--compare` the script also solves the program with CasADi's own graph of the network,
and compares states, iterations and times.
Needs gcc, CasADi (pip install casadi) and the extra `plot` (matplotlib).
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import casadi
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

import cnn

CART, POLE, LENGTH, GRAVITY = 1.0, 0.2, 0.5, 9.81
DT, HORIZON, RAIL, FORCE = 0.05, 30, 1.0, 12.0


def accelerations(state, force):
    """True accelerations of the cart and of the angle, which is 0 for an upright pole. state (..., 4) is position,
    angle, and their velocities."""
    angle, spin = state[..., 1], state[..., 3]
    s, c = np.sin(angle), np.cos(angle)
    cart = (force + POLE * s * (LENGTH * spin**2 - GRAVITY * c)) / (CART + POLE * s**2)
    return np.stack([cart, (GRAVITY * s - cart * c) / LENGTH], axis=-1)


def simulate(state, force, substeps=10):
    """The true pendulum after DT (Runge-Kutta, order 4)."""

    def slope(s):
        return np.concatenate([s[..., 2:], accelerations(s, force)], axis=-1)

    h = DT / substeps
    for _ in range(substeps):
        a = slope(state)
        b = slope(state + h / 2 * a)
        c = slope(state + h / 2 * b)
        state = state + h / 6 * (a + 2 * b + 2 * c + slope(state + h * c))
    return state


def features(angle, spin, force, m):
    """The inputs of the network; m is numpy or casadi."""
    return m.sin(angle), m.cos(angle), spin / 8, force / FORCE


def learn(rows, epochs, width):
    """A network from the features to the accelerations divided by 10, and its error."""
    random = np.random.default_rng(0)
    state = random.uniform([0, -np.pi, 0, -10], [0, np.pi, 0, 10], (rows, 4))
    force = random.uniform(-FORCE, FORCE, rows)
    x = np.stack(features(state[:, 1], state[:, 3], force, np), axis=1)
    y = accelerations(state, force) / 10
    layers = [
        cnn.Linear(4, width),
        cnn.Tanh(),
        cnn.Linear(width, width),
        cnn.Tanh(),
        cnn.Linear(width, 2),
        cnn.MSELoss(),
    ]
    model = cnn.Sequential(layers, dtype="float64", seed=0)
    for lr in 3e-3, 3e-4:
        model.optimizer = cnn.Adam(lr=lr)
        model.fit(x, y, epochs=epochs, batch_size=64, progress=False)
    return model, float(np.sqrt(model.evaluate(x, y)["loss"]) * 10)


def external(model, folder):
    """The network as compiled C with CasADi's interface, and the compile time in seconds."""
    cnn.to_c(model, folder / "dynamics.c", abi="casadi")
    began = time.perf_counter()
    command = ["gcc", "-O3", "-march=native", "-shared", "-fPIC", "dynamics.c", "-o", "dynamics.so", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    seconds = time.perf_counter() - began
    return casadi.external("dynamics", str(folder / "dynamics.so")), seconds


def own_graph(model):
    """The network as CasADi's graph of matrices."""
    x = y = casadi.MX.sym("x", model[0].in_features)
    for layer in model.layers:
        y = casadi.mtimes(layer.weight.T, y) + layer.bias if isinstance(layer, cnn.Linear) else casadi.tanh(y)
    return casadi.Function("own", [x], [y])


def controller(dynamics):
    """The nonlinear program of one step (multiple shooting): a solver and its bounds."""
    state, force = casadi.MX.sym("state", 4), casadi.MX.sym("force")

    def slope(s):
        return casadi.vertcat(s[2:], 10 * dynamics(casadi.vertcat(*features(s[1], s[3], force, casadi))))

    a = slope(state)
    b = slope(state + DT / 2 * a)
    c = slope(state + DT / 2 * b)
    after = state + DT / 6 * (a + 2 * b + 2 * c + slope(state + DT * c))
    step = casadi.Function("step", [state, force], [after])

    start = casadi.MX.sym("start", 4)
    states, forces = casadi.MX.sym("states", 4, HORIZON + 1), casadi.MX.sym("forces", 1, HORIZON)
    gaps = casadi.horzcat(states[:, 0] - start, states[:, 1:] - step.map(HORIZON)(states[:, :-1], forces))
    cost = (
        5 * casadi.sum2(1 - casadi.cos(states[1, :]))
        + casadi.sumsqr(states[0, :])
        + 0.02 * casadi.sumsqr(states[2:, :])
    )
    cost += 30 * (1 - casadi.cos(states[1, -1])) + 1e-3 * casadi.sumsqr(forces)
    program = {"x": casadi.veccat(states, forces), "p": start, "f": cost, "g": casadi.vec(gaps)}
    quiet = {"print_time": False, "ipopt": {"print_level": 0, "sb": "yes", "tol": 1e-6}}
    solver = casadi.nlpsol("solver", "ipopt", program, quiet)
    most = np.concatenate([np.tile([RAIL, np.inf, np.inf, np.inf], HORIZON + 1), np.full(HORIZON, FORCE)])
    return solver, {"lbx": -most, "ubx": most, "lbg": 0, "ubg": 0}


def drive(dynamics, steps):
    """Control the true pendulum, initially hanging at rest: states, forces, iterations and seconds per solve."""
    solver, bounds = controller(dynamics)
    state = np.array([0.0, np.pi, 0.0, 0.0])
    guess = np.concatenate([np.tile(state, HORIZON + 1), np.tile([1.0, -1.0], HORIZON // 2)])
    states, forces, solves = [state], [], []
    for _ in range(steps):
        began = time.perf_counter()
        solution = solver(x0=guess, p=state, **bounds)
        solves.append((solver.stats()["iter_count"], time.perf_counter() - began))
        guess = np.array(solution["x"])[:, 0]
        force = guess[4 * (HORIZON + 1)]
        state = simulate(state, force)
        states.append(state)
        forces.append(force)
        planned = guess[: 4 * (HORIZON + 1)].reshape(-1, 4)
        guess = np.concatenate([planned[1:].ravel(), planned[-1], guess[4 * (HORIZON + 1) + 1 :], [0]])
    return np.array(states), np.array(forces), np.array(solves)


def plot(states, forces, path):
    figure = Figure(figsize=(11, 5.2), dpi=110, layout="constrained")
    axes = figure.subplots(2, 2, width_ratios=(1.25, 1))
    motion = figure.add_subplot(axes[0, 0].get_gridspec()[:, 0])
    for panel in axes[:, 0]:
        panel.remove()
    times = DT * np.arange(len(states))
    shown = np.arange(0, len(states), 2)
    colors = colormaps["viridis"](shown / shown[-1])
    for i, color in zip(shown, colors, strict=True):
        position, angle = states[i, :2]
        tip = position + LENGTH * np.sin(angle), LENGTH * np.cos(angle)
        motion.plot([position, tip[0]], [0, tip[1]], color=color, linewidth=1.2)
        motion.plot(*tip, "o", color=color, markersize=5)
    motion.plot([-RAIL, RAIL], [0, 0], color="0.2", linewidth=3, zorder=0, solid_capstyle="butt")
    motion.set(aspect="equal", xlabel="position, m", xlim=(-RAIL - 0.2, RAIL + 0.2), ylim=(-0.7, 0.7))
    motion.set_title("the true pendulum, from dark to light", fontsize=11.5, loc="left")
    top, bottom = axes[:, 1]
    turns = 360 * np.round(states[-1, 1] / (2 * np.pi))
    top.plot(times, np.degrees(states[:, 1]) - turns, color="tab:blue")
    top.axhline(0, color="0.8", zorder=0)
    top.set_yticks(range(-180, 1, 90))
    top.set(ylabel="angle from upright, degrees")
    bottom.step(times[:-1], forces, where="post", color="tab:orange")
    for limit in -FORCE, FORCE:
        bottom.axhline(limit, color="0.7", linestyle=":")
    bottom.set(xlabel="time, s", ylabel="force, N")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--compare", action="store_true", help="also solve with CasADi's own graph of the network")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where swing_up.png goes")
    options = parser.parse_args()

    model, error = learn(options.rows, options.epochs, options.width)
    print(f"the network learns the accelerations to {error:.3f} (root mean square, of up to 100)")
    with tempfile.TemporaryDirectory() as folder:
        dynamics, seconds = external(model, Path(folder))
        states, forces, solves = drive(dynamics, options.steps)
        print(
            f"compiled in {seconds:.1f} s; {options.steps} solves, {1e3 * np.median(solves[:, 1]):.1f} ms each (median)"
        )
        if options.compare:
            other = drive(own_graph(model), options.steps)
            same = np.array_equal(solves[:, 0], other[2][:, 0])
            print(
                f"CasADi's own graph: {1e3 * np.median(other[2][:, 1]):.1f} ms each; same iterations: {same}; "
                f"states at most {abs(states - other[0]).max():.1e} apart"
            )
    angle = (states[-1, 1] + np.pi) % (2 * np.pi) - np.pi
    print(f"at the end the pole is {abs(np.degrees(angle)):.2f} degrees from upright")
    plot(states, forces, options.out / "swing_up.png")
    print(f"see {options.out / 'swing_up.png'}")


if __name__ == "__main__":
    main()
