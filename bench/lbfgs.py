"""L-BFGS beside SciPy's on the same gradients, and beside scikit-learn's solver="lbfgs": float64, one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python bench/lbfgs.py [iterations]

All start from scikit-learn's initial weights and do the same iterations, in turns; times are the least of ROUNDS. What
is compared is checked first: the losses at the end must agree.
"""

import itertools
import sys
import time
import warnings

import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor

import cnn

ROUNDS = 15
ROWS = [(1_000, 20, (50,)), (1_000, 20, (50, 50)), (5_000, 54, (100,)), (200, 8, (10,))]


def layers(widths):
    """Of a network with ReLU between linear layers."""
    parts = []
    for n_in, n_out in itertools.pairwise(widths):
        parts += [cnn.Linear(n_in, n_out), cnn.ReLU()]
    return parts[:-1]


def main(iterations: int = 100) -> None:
    cnn.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(
        "| rows, columns, hidden | cnn, ms | SciPy, ms | scikit-learn, ms | times SciPy | times scikit-learn | loss |"
    )
    print("|---|---|---|---|---|---|---|")
    for rows, columns, hidden in ROWS:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, columns))
        y = np.sin(x[:, :3].sum(axis=1)) + 0.1 * x[:, 3] ** 2
        options = {"solver": "lbfgs", "alpha": 0.0, "tol": 0.0, "random_state": 0, "hidden_layer_sizes": hidden}
        start = MLPRegressor(**options, max_iter=1, warm_start=True)
        start.fit(x, y)  # one iteration: the common start

        def model(optimizer, start=start, widths=(columns, *hidden, 1)):
            made = cnn.Sequential([*layers(widths), cnn.MSELoss()], optimizer, dtype="float64")
            arrays = [a for pair in zip(start.coefs_, start.intercepts_, strict=True) for a in pair]
            made.parameters = np.concatenate([a.ravel() for a in arrays])
            return made

        def ours(x=x, y=y, model=model):
            optimizer = cnn.LBFGS(tolerance_grad=0.0, tolerance_change=0.0)
            history = model(optimizer).fit(x, y, epochs=iterations)
            return history["loss"][-1], sum(history["evaluations"])

        def scipy(x=x, y=y, model=model):
            other = model(None)

            def function(parameters):
                other.parameters = parameters
                return other.loss_and_grad(x, y)

            limits = {"maxiter": iterations, "ftol": 0.0, "gtol": 0.0}
            result = minimize(function, other.parameters, jac=True, method="L-BFGS-B", options=limits)
            return result.fun, result.nfev

        def sklearn(x=x, y=y, start=start, options=options):
            other = MLPRegressor(**options, max_iter=iterations, warm_start=True)
            vars(other).update({name: value for name, value in vars(start).items() if name.endswith("_")})
            other._label_binarizer, other._random_state = None, np.random.RandomState(0)
            other.coefs_, other.intercepts_ = [[a.copy() for a in s] for s in (start.coefs_, start.intercepts_)]
            other.fit(x, y)
            return 2 * other.loss_, None

        contenders = [ours, scipy, sklearn]
        answers = [contender() for contender in contenders]
        losses = [loss for loss, _ in answers]
        if max(losses) > 1.05 * min(losses):
            raise SystemExit(f"{rows} rows: the losses differ: {losses}")
        times = [np.inf] * 3
        for _ in range(ROUNDS):
            for i, contender in enumerate(contenders):
                began = time.perf_counter()
                contender()
                times[i] = min(times[i], 1e3 * (time.perf_counter() - began))
        shown = " | ".join(f"{t:.1f}" for t in times)
        print(
            f"| {rows:,}, {columns}, {hidden} | {shown} | {times[1] / times[0]:.2f} | {times[2] / times[0]:.2f} | "
            f"{losses[0]:.6g}, {answers[0][1]} evaluations; SciPy {losses[1]:.6g}, {answers[1][1]} |"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
