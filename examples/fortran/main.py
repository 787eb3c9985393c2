"""A network in Fortran: a column of moist air is predicted with it, and another one is trained there.

    python examples/fortran/main.py        writes fortran.png

The network learns here how fast saturated air cools as it rises, dT/dp by temperature and pressure: a formula with an
exponential and a division, as parametrisations of weather models have many. `cnn.to_c` writes it as lapse.c, and with
its parameters as an argument as learner.c; moist.f90 calls both by the interfaces of cnn.f90. There the network climbs
a column level by level, and then learns, step by step, from measurements of air that holds a third less water.
Needs gcc, gfortran and the extra `plot` (matplotlib).
"""

import argparse
import itertools
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import cnn

HERE = Path(__file__).parent


def lapse(t, p, humidity=1.0):
    """dT/dp, K/hPa, of saturated air at t, K, and p, hPa: the moist-adiabatic lapse rate (AMS Glossary)."""
    gas, vapour, heat, latent = 287.04, 461.5, 1004.7, 2.501e6
    pressure = 6.112 * np.exp(17.67 * (t - 273.15) / (t - 29.65))  # of saturation (Bolton, 1980)
    r = humidity * gas / vapour * pressure / np.maximum(p - pressure, 50)
    return gas * t / (heat * p) * (1 + latent * r / (gas * t)) / (1 + latent**2 * r / (heat * vapour * t**2))


def scaled(x):
    """What the networks read, of temperatures and pressures; they give dT/dp in K for 10 hPa."""
    return (x - [260, 600]) / [30, 300]


def states(n, seed):
    """Temperatures and pressures (n, 2) as columns have them: the higher, the colder."""
    random = np.random.default_rng(seed)
    p = random.uniform(150, 1050, n)
    return np.stack([random.uniform(215, 310, n) * (p / 1000) ** 0.12, p], axis=1)


def compile_program(model, folder):
    """moist, in this folder, for the processor that it is compiled on: -march=native is for no other."""
    cnn.to_c(model, folder / "lapse.c")
    cnn.to_c(model, folder / "learner.c", derivatives=1, parameters="argument")
    for name in "lapse", "learner":
        subprocess.run(["gcc", "-O3", "-march=native", "-c", f"{name}.c"], cwd=folder, check=True)
    sources = [Path(cnn.get_include(), "cnn.f90"), HERE.resolve() / "moist.f90"]
    objects = ["lapse.o", "learner.o", "-o", "moist", "-lm"]
    subprocess.run(["gfortran", "-O3", "-march=native", *sources, *objects], cwd=folder, check=True)


def climb(t, p, **options):
    """The temperatures of a column by the formula, from t at the first of the pressures."""
    found = [t]
    for low, high in itertools.pairwise(p):
        found.append(found[-1] + lapse(found[-1], low, **options) * (high - low))
    return np.array(found)


def plot(p, columns, losses, path):
    """columns: (ground temperature, by the formula, by the network in Fortran)."""
    figure = Figure(figsize=(10.5, 4.4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for ground, exact, found in columns:
        left.plot(exact, p, color="0.7", linewidth=4, label="formula")
        left.plot(found[::5], p[::5], ".", color="tab:blue", label="network, in Fortran")
        left.annotate(f"{ground:.0f} K", (exact[0], p[0]), (-14, -14), textcoords="offset points", fontsize=9)
    handles, labels = left.get_legend_handles_labels()
    left.legend(handles[:2], labels[:2], frameon=False)
    left.set(xlabel="temperature, K", ylabel="pressure, hPa", ylim=(1075, 190))
    left.set_title("saturated air that rises from the ground", fontsize=11.5, loc="left")
    right.semilogy(np.sqrt(losses), color="tab:orange")
    right.set(xlabel="step of Adam, in Fortran", ylabel="error of dT/dp, K for 10 hPa")
    right.set_title("learning air that holds a third less water", fontsize=11.5, loc="left")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=800, help="in Fortran")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where fortran.png goes")
    options = parser.parse_args()

    x = states(4000, 0)
    layers = [cnn.Linear(2, 32), cnn.Tanh(), cnn.Linear(32, 32), cnn.Tanh(), cnn.Linear(32, 1), cnn.MSELoss()]
    model = cnn.Sequential(layers, dtype="float64", seed=0)
    for lr in 3e-3, 3e-4:
        model.optimizer = cnn.Adam(lr=lr)
        model.fit(scaled(x), 10 * lapse(*x.T)[:, None], epochs=options.epochs, batch_size=64, progress=False)

    p = np.linspace(1000, 200, 100)
    columns = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compile_program(model, folder)
        for ground in 275.0, 288.0, 300.0:
            np.savetxt(folder / "levels.txt", [ground, *p])
            subprocess.run([folder / "moist", "predict"], cwd=folder, check=True)
            _, found, slopes = np.loadtxt(folder / "column.txt").T
            here = model.predict(scaled(np.stack([found, p], axis=1)))[:, 0]
            assert np.allclose(slopes, here, rtol=1e-9), "not what predict computes"
            columns.append((ground, climb(ground, p), found))
        x = states(300, 1)
        measured = 10 * lapse(*x.T, humidity=2 / 3)
        sizes, numbers = (
            [len(model.parameters), len(x), options.steps],
            [*model.parameters, *scaled(x).ravel(), *measured],
        )
        (folder / "measured.txt").write_text("\n".join(" ".join(map(str, one)) for one in (sizes, numbers)))
        subprocess.run([folder / "moist", "train"], cwd=folder, check=True)
        losses = np.loadtxt(folder / "losses.txt")
    worst = max(abs(exact - found).max() for _, exact, found in columns)
    print(f"temperatures of three columns, by the formula and in Fortran: at most {worst:.2f} K apart")
    print(f"error of dT/dp while Fortran trains: {losses[0] ** 0.5:.4f} -> {losses[-1] ** 0.5:.4f} K for 10 hPa")
    plot(p, columns, losses, options.out / "fortran.png")
    print(f"see {options.out / 'fortran.png'}")


if __name__ == "__main__":
    main()
