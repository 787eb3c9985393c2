"""Levenberg-Marquardt and Newton's method by conjugate gradients: beside NumPy, and all that `fit` does with them.

The Gauss-Newton matrices of all parts of the library are in test_grid.py.
"""

import copy
import itertools
import pickle

import numpy as np
import pytest

import cnn
from cnn.optim import second_order
from cnn.training import objective

EXACT = {"tolerance_grad": 0.0, "tolerance_change": 0.0}
OPTIMIZERS = {
    "levenberg": lambda **common: cnn.LevenbergMarquardt(**common),
    "products": lambda **common: cnn.LevenbergMarquardt(exact_parameters=0, **common),
    "bayesian": lambda **common: cnn.LevenbergMarquardt(regularization="bayesian", **common),
    "newton": lambda **common: cnn.NewtonCG(**common),
}


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


def data(rows=120, columns=6, outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns))
    return x, np.sin(x @ rng.standard_normal((columns, outputs)))


def network(optimizer, dtype="float64", loss=None, widths=(6, 9, 2), act=cnn.Tanh, seed=0, **linear):
    layers = []
    for n_in, n_out in itertools.pairwise(widths[:-1]):
        layers += [cnn.Linear(n_in, n_out, **linear), act()]
    return cnn.Sequential([*layers, cnn.Linear(*widths[-2:], **linear), loss or cnn.MSELoss()], optimizer, dtype, seed)


def jacobian(model, x):
    """(rows, outputs, parameters) of a network with one hidden layer of tanh, in NumPy."""
    w1, b1, w2, _ = (np.float64(a) for a in model.state_dict().values())
    h = np.tanh(x @ w1 + b1)
    n, m = len(x), w2.shape[1]
    back = w2.T[None] * (1 - h**2)[:, None]  # rows, outputs, hidden
    parts = [
        np.einsum("ni,noh->noih", x, back).reshape(n, m, -1),
        back,
        np.einsum("nh,op->nohp", h, np.eye(m)).reshape(n, m, -1),
        np.broadcast_to(np.eye(m), (n, m, m)),
    ]
    return np.concatenate(parts, axis=2)


def curvature(model, threads=1):
    matrix = model._core.kernels.Curvature(model._core.program)
    matrix.begin_matrix(threads)
    return matrix


# the algebra ----------------------------------------------------------------------------------------------------------


def test_a_factor_of_any_size(isa, dtype):
    """Up to and beyond whole panels; the inverse and its trace, and what is not positive definite."""
    for n in (1, 8, 24, 25, 49, 97):
        rng = np.random.default_rng(n)
        x = rng.standard_normal((300, n)).astype(dtype)
        model = network(None, dtype, widths=(n, 1), bias=False)
        matrix = curvature(model, 2)
        y = model._core.program.targets(np.zeros((300, 1)), 300)
        matrix.add_rows(x, y, None, 0, 300, 300, 2)
        g = 2 * np.float64(x).T @ np.float64(x) / 300
        rtol = 1e-5 if dtype == "float32" else 1e-12
        np.testing.assert_allclose(matrix.matrix(), g, rtol=rtol, atol=rtol)
        shift = rng.random(n)
        assert matrix.factorize(shift, 2)
        b = rng.standard_normal(n)
        expected = np.linalg.solve(g + np.diag(shift), b)
        np.testing.assert_allclose(matrix.solve(b), expected, rtol=20 * rtol, atol=20 * rtol)
        trace = np.trace(np.linalg.inv(g + np.diag(shift)))
        assert matrix.trace_of_inverse(2) == pytest.approx(trace, rel=10 * rtol)
        assert not matrix.factorize(np.full(n, -1e4), 1)


def test_j_of_numpy(isa, dtype):
    """J^T J beside NumPy's in float64, with weights and several rounds of rows."""
    x, y = data(600)
    w = np.random.default_rng(1).random(600)
    model = network(None, dtype)
    j = jacobian(model, x)
    expected = np.einsum("n,nop,noq->pq", w / w.sum(), j, j)
    matrix, program = curvature(model), model._core.program
    args = program.inputs(x), program.targets(y, 600), program.weights(w, 600)
    matrix.add_rows(*args, 0, 600, w.sum(), 1)
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(matrix.matrix(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("exact", [3000, 0])
def test_a_step_is_that_of_numpy(exact):
    """With penalties, weight decay, a frozen layer and a learning rate."""
    x, y = data()
    optimizer = cnn.LevenbergMarquardt(
        damping=0.5, exact_parameters=exact, cg_iterations=500, weight_decay=0.03, lr=0.5
    )
    model = network(optimizer, l2=0.01)
    model.layers[2].trainable = False
    before = model.parameters
    j = jacobian(model, x)
    _, gradient = model.loss_and_grad(x, y)
    weights = np.concatenate([np.full(a.size, a.ndim == 2) for a in model.state_dict().values()])
    free = np.arange(len(before)) < 63
    g = np.einsum("nop,noq->pq", j, j) / len(x) + np.diag(0.02 * weights + 0.03 + 0.5)
    gradient += 0.03 * before
    expected = -0.5 * np.linalg.solve(g[:63, :63], gradient[:63])
    model.fit(x, y, epochs=1)
    moved = model.parameters - before
    np.testing.assert_array_equal(moved[~free], 0)
    scale = 0.1 if exact == 0 else 1e-10  # conjugate gradients end at a tenth of the gradient
    np.testing.assert_allclose(moved[free], expected, atol=scale * np.abs(expected).max())
    assert optimizer.solver == ("cholesky" if exact else "cg")


def test_the_damping_follows_the_gain():
    x, y = data(60)
    model = network(cnn.LevenbergMarquardt(damping=1e-12, **EXACT))
    history = model.fit(x, y, epochs=40)
    assert history["loss"] == sorted(history["loss"], reverse=True)
    assert history["evaluations"][0] > 3  # the first steps were too long
    assert history["damping"][0] > 1e-10
    steps = np.diff(np.log(history["damping"]))
    assert (steps < 0).any()


def test_a_newton_step_solves_what_is_quadratic(dtype):
    x, y = data(100)
    model = network(cnn.NewtonCG(radius=1e3, **EXACT), dtype, widths=(6, 2))
    loss = model.fit(x, y, epochs=12)["loss"]
    ones = np.column_stack([x, np.ones(100)])
    least = ((ones @ np.linalg.lstsq(ones, y, rcond=None)[0] - y) ** 2).mean()
    assert loss[-1] == pytest.approx(least, rel=1e-5 if dtype == "float32" else 1e-12)


def test_a_radius_bounds_the_step():
    """At a saddle, too, from which a direction that curves down leads away."""
    x, y = data(50, outputs=1)
    model = network(cnn.NewtonCG(radius=0.1), widths=(6, 5, 1))
    model.parameters = 0.01 * model.parameters
    before = model.parameters
    history = model.fit(x, y, epochs=1)
    assert np.linalg.norm(model.parameters - before) == pytest.approx(0.1)
    assert history["radius"] == [0.2]
    model = network(cnn.NewtonCG(radius=0.1), widths=(6, 5, 1))
    model.fit(x, y, epochs=1, threads=1)
    model.optimizer.lr = 0.5
    at = model.parameters
    model.fit(x, y, epochs=1)
    assert np.linalg.norm(model.parameters - at) <= 0.5 * 0.2 * (1 + 1e-9)


def test_they_find_what_made_the_data(make):
    x, _ = data(200, 3)
    y = network(None, widths=(3, 4, 1), seed=5).predict(x)
    model = network(make(**EXACT), widths=(3, 4, 1))
    history = model.fit(x, y, epochs=80)
    assert min(history["loss"]) < 1e-5 * np.var(y)


def test_the_evidence_is_that_of_numpy():
    """alpha, beta and gamma by the formulas of the docstring; noise of 0.1 is found."""
    x, y = data(300, 2, 1)
    y = y + 0.1 * np.random.default_rng(0).standard_normal(y.shape)
    model = network(cnn.LevenbergMarquardt(regularization="bayesian"), widths=(2, 12, 1))
    history = model.fit(x, y, epochs=60)
    w = model.parameters
    history = model.fit(x, y, epochs=1)
    alpha, beta, gamma = (history[name][0] for name in ("alpha", "beta", "gamma"))
    j = jacobian(model, x)[:, 0]
    errors, squares = ((model.predict(x) - y) ** 2).sum(), (w**2).sum()
    inverse = np.linalg.inv(2 * alpha * np.eye(len(w)) + 2 * beta * j.T @ j)
    assert gamma == pytest.approx(len(w) - 2 * alpha * np.trace(inverse), rel=0.02)
    assert alpha == pytest.approx(gamma / (2 * squares), rel=0.02)
    assert beta == pytest.approx((300 - gamma) / (2 * errors), rel=0.02)
    assert (1 / np.sqrt(2 * beta)) == pytest.approx(0.1, rel=0.1)
    assert 5 < gamma < len(w)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [10, 40])
def test_the_evidence_is_finite_where_the_data_can_be_fitted_exactly(rows, dtype):
    x = np.random.default_rng(0).standard_normal((rows, 3))
    model = network(cnn.LevenbergMarquardt(regularization="bayesian"), dtype, widths=(3, 8, 1))
    for y in (x[:, :1] ** 2, x[:, :1] ** 2 + 1, np.zeros((rows, 1))):
        history = model.fit(x, y, epochs=60)
        evidence = np.array([history[name] for name in ("alpha", "beta", "gamma")])
        assert np.isfinite(evidence).all()
        assert (evidence > 0).all()
        assert (evidence[2, 1:] <= min(rows, model.n_parameters)).all()
        assert not y.any() or np.std(evidence[2, -5:]) < 1  # not that of rounding errors
        assert history["loss"][-1] < 1e-4
        assert history.converged or (rows, dtype) != (10, "float64")


def test_evidence_without_parameters_or_rows():
    x, y = data(30, outputs=1)
    for frozen in (True, False):
        loss = cnn.MSELoss(ignore_nan=True)
        model = network(cnn.LevenbergMarquardt(regularization="bayesian"), widths=(6, 5, 1), loss=loss)
        model.trainable = not frozen
        if frozen:
            history = model.fit(x, y, epochs=3)
            assert history["alpha"][-1] == history["gamma"][-1] == 0
            assert "gradient" in history.converged
        else:
            with pytest.raises(ValueError, match="no row counts"):
                model.fit(x, np.full_like(y, np.nan), epochs=3)


def test_one_optimizer_in_two_models_that_step_in_turn():
    """As on two threads: one model's iteration begins and ends within another's."""

    class Nested(cnn.LevenbergMarquardt):
        def _solve(self, point, *arguments):
            if inner:
                inner.pop().train_step(x, y)
            return super()._solve(point, *arguments)

    x, y = data()
    for size, other in itertools.permutations([4, 40]):
        steps = []
        for optimizer in (Nested(exact_parameters=150), cnn.LevenbergMarquardt(exact_parameters=150)):
            outer, nested = (network(optimizer, widths=(6, width, 2)) for width in (size, other))
            inner = [nested] if type(optimizer) is Nested else []
            outer.train_step(x, y)
            if type(optimizer) is not Nested:
                nested.train_step(x, y)
            steps.append((outer, nested))
        for shared, alone in zip(*steps, strict=True):
            np.testing.assert_array_equal(shared.parameters, alone.parameters)


# bits -----------------------------------------------------------------------------------------------------------------


def states(model):
    training = model._core.training_state()[0].items()
    own = [a for name, a in training if name not in ("history/evaluations", "history/products")]
    return [model.parameters, *model.state_dict().values(), *own]


def assert_same(a, b):
    for mine, theirs in zip(states(a), states(b), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_threads_and_native_calls_change_nothing(dtype, make, monkeypatch):
    x, y = data(1500)
    models = [network(make(), dtype, widths=(6, 30, 2)) for _ in range(3)]
    for threads, model in enumerate(models[:2], 1):
        model.fit(x, y, epochs=2, threads=threads)
    monkeypatch.setattr(second_order, "CALL_WORK", 1)
    models[2].fit(x, y, epochs=2)
    assert_same(models[0], models[1])
    assert_same(models[0], models[2])


def test_blocks_of_rows_change_nothing_much(make, monkeypatch):
    x, y = data(1300)
    models = [network(make(), loss=cnn.MSELoss(reduction=r)) for r in ("mean", "sum", "mean", "sum")]
    models[0].fit(x, y, epochs=1)
    models[1].fit(x, y, epochs=1)
    monkeypatch.setattr(objective, "ROOM_BYTES", 1)  # 512 rows
    for whole, model in zip(models, models[2:], strict=False):
        model.fit(x, y, epochs=1)
        np.testing.assert_allclose(model.parameters, whole.parameters, rtol=1e-6, atol=1e-8)


def test_weights_are_rows(make):
    """Rows of weight 0 do not count, whatever is in them."""
    x, y = data(40)
    w = np.arange(40) % 3
    models = [network(make()) for _ in range(2)]
    models[1].fit(np.repeat(x, w, axis=0), np.repeat(y, w, axis=0), epochs=1)
    x[::3] = np.nan
    models[0].fit(x, y, sample_weight=w, epochs=1)
    np.testing.assert_allclose(models[0].parameters, models[1].parameters, rtol=1e-6, atol=1e-9)


WAYS = {"copy": copy.copy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "file": None}


@pytest.mark.parametrize("way", WAYS)
def test_resumed_to_the_bit(dtype, make, way, tmp_path):
    x, y = data(100)
    straight = network(make(ema_decay=0.5, schedule=cnn.ExponentialLR(0.9), **EXACT), dtype)
    part = straight.copy()
    whole = straight.fit(x, y, epochs=9, threads=2)
    part.fit(x, y, epochs=5, threads=1)
    if way == "file":
        part.save(tmp_path / "model", training_state=True)
        other = cnn.load(tmp_path / "model")
    else:
        other = WAYS[way](part)
    history = other.fit(x, y, epochs=9, initial_epoch=5, threads=1)
    assert_same(other, straight)
    assert history["loss"] == whole["loss"]


def test_from_a_folder_of_checkpoints(make, tmp_path):
    x, y = data()
    straight, first, second = (network(make()) for _ in range(3))
    straight.fit(x, y, epochs=6)
    first.fit(x, y, epochs=4, checkpoint=tmp_path)
    second.fit(x, y, epochs=6, checkpoint=tmp_path, resume=True)
    assert_same(second, straight)


def test_interrupted_within_an_iteration(make, monkeypatch):
    """The parameters are those from before it, and so is what it goes on from."""
    x, y = data()
    model, other = (network(make()) for _ in range(2))
    model.fit(x, y, epochs=3)
    other.fit(x, y, epochs=3)
    evaluate = objective.Objective.__call__

    def interrupted(self):
        if self.evaluations:  # the first was where it begins
            raise KeyboardInterrupt
        return evaluate(self)

    monkeypatch.setattr(objective.Objective, "__call__", interrupted)
    at = model.parameters
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=9, initial_epoch=3)
    np.testing.assert_array_equal(model.parameters, at)
    monkeypatch.setattr(objective.Objective, "__call__", evaluate)
    for one in (model, other):
        one.fit(x, y, epochs=6, initial_epoch=3)
    assert_same(model, other)


def test_train_step_is_an_iteration(make):
    x, y = data()
    by_step, by_fit = (network(make()) for _ in range(2))
    losses = [by_step.train_step(x, y) for _ in range(5)]
    history = by_fit.fit(x, y, epochs=5)
    np.testing.assert_array_equal(by_step.parameters, by_fit.parameters)
    assert losses[1:] == history["loss"][:-1]
    by_step.optimizer = cnn.Adam()
    by_step.train_step(x, y)
    by_step.optimizer = make()
    assert by_step.train_step(x, y) > by_step.train_step(x, y)


def test_another_loss():
    """Whose second derivative needs more room."""
    x, y = data(300, outputs=5)
    model = network(cnn.LevenbergMarquardt(), widths=(6, 9, 5))
    model.train_step(x, y)
    model.loss = cnn.CrossEntropyLoss()
    before = model.train_step(x, y.argmax(axis=1))
    assert model.train_step(x, y.argmax(axis=1)) < before
    model.optimizer.exact_parameters = 9
    model.train_step(x, y.argmax(axis=1))
    assert model.optimizer.solver == "cg"


# with the rest of fit -------------------------------------------------------------------------------------------------


def test_validation_metrics_early_stopping_and_schedule(make):
    x, y = data(90)
    x += 0.5 * np.random.default_rng(1).standard_normal(x.shape)
    model = network(make(schedule=cnn.StepLR(2)), widths=(6, 30, 2))
    stop = cnn.EarlyStopping(patience=5)
    history = model.fit(x, y, epochs=100, validation_split=0.3, early_stopping=stop, metrics=["r2"])
    assert history["lr"][:4] == [1, 1, 0.1, 0.1]
    best = history.epochs.index(history.best_epoch)
    train, held = model.evaluate(x[:63], y[:63], metrics=["r2"]), model.evaluate(x[63:], y[63:])
    for name, value in train.items():
        assert history[name][best] == pytest.approx(value, rel=1e-9)
    assert history["val_loss"][best] == pytest.approx(held["loss"], rel=1e-9)


def test_a_learning_rate_of_zero(make):
    x, y = data()
    model = network(make(lr=0.0))
    before = model.parameters
    history = model.fit(x, y, epochs=2)
    np.testing.assert_array_equal(model.parameters, before)
    assert history["evaluations"] == [1, 1]


def test_starts_that_are_singular(dtype, make):
    """Weights of zero; columns that are constant; rows that are there twice; fewer rows than parameters."""
    x, y = data(20)
    x[:, 2] = 3
    x[:, 3] = x[:, 1]
    x = np.concatenate([x, x])
    y = np.concatenate([y, y]) + 1
    model = network(make(), dtype)
    model.parameters = 0 * model.parameters
    before = model.evaluate(x, y)["loss"]
    history = model.fit(x, y, epochs=30)
    assert np.isfinite(model.parameters).all()
    assert history["loss"][-1] < before
    assert history["loss"][-1] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-5)


def test_it_ends_where_nothing_changes(dtype, make):
    x, y = data(200)
    for options, why in (
        ({"tolerance_grad": 1e-2}, "no number of the gradient is larger than 0.01"),
        ({"tolerance_grad": 0.0, "tolerance_change": 1e-3}, ("the last iteration has lowered", "no step lowers")),
        (EXACT, ("no step lowers the loss", "the last iteration has lowered the loss by 0 only")),
    ):
        model = network(make(**options), dtype, widths=(6, 2))
        history = model.fit(x, y, epochs=2000)
        assert history.converged.startswith(why)
        assert history["loss"][-1] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-5)


def test_data_that_are_not_finite(dtype, make):
    x, y = data()
    model = network(make(), dtype)
    model.fit(x, y, epochs=2)
    before = states(model)
    y[3] = np.nan
    with pytest.raises(cnn.DivergenceError, match=r"not finite in epoch 1, batch 0, .*; y has NaN or infinity"):
        model.fit(x, y, epochs=2)
    assert np.isnan(model.train_step(x, y))
    np.testing.assert_array_equal(model.parameters, before[0])


def test_a_matrix_that_does_not_fit(monkeypatch):
    x, y = data()
    monkeypatch.setattr(second_order, "_memory", lambda: 1e4)
    optimizer = cnn.LevenbergMarquardt()
    model = network(optimizer)
    with pytest.warns(RuntimeWarning, match=r"J\^T J of 83 parameters takes 0.0 GB, more than is free: .*conjugate"):
        history = model.fit(x, y, epochs=5)
    assert optimizer.solver == "cg"
    assert history["loss"][-1] < history["loss"][0]


def refused(optimizer=None, **options):
    return network(optimizer or cnn.LevenbergMarquardt(), **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: refused().fit(x, y, batch_size=32), ValueError, "batch_size: LevenbergMarquardt needs the whole"),
        (
            lambda x, y: refused(loss=cnn.L1Loss()).fit(x, y),
            ValueError,
            r"convex and curved in the outputs, such as MSELoss, got L1Loss.*: train with LBFGS or NewtonCG",
        ),
        (
            lambda x, y: refused(cnn.NewtonCG(), loss=cnn.CallableLoss(lambda a, b: (0.0, a))).fit(x, y),
            ValueError,
            r"NewtonCG needs a loss with a second derivative.*: train with LBFGS$",
        ),
        (lambda x, y: refused(act=lambda: cnn.BatchNorm1d(9)).fit(x, y), ValueError, r"layer.eval\(\), or use LBFGS"),
        (lambda x, y: refused(act=cnn.Dropout).fit(x, y), ValueError, "makes the loss random"),
        (lambda x, y: refused(l1=0.1).fit(x, y), ValueError, "expected l1=0 with LevenbergMarquardt"),
        (
            lambda x, y: refused(cnn.LevenbergMarquardt(regularization="bayesian", weight_decay=0.1)).fit(x, y),
            ValueError,
            "no weight_decay and no l2",
        ),
        (
            lambda x, y: refused(cnn.LevenbergMarquardt(regularization="bayesian"), loss=cnn.HuberLoss()).fit(x, y),
            ValueError,
            "'bayesian' needs MSELoss, got HuberLoss",
        ),
        (
            lambda x, y: refused(cnn.LevenbergMarquardt(regularization="bayesian", exact_parameters=9)).fit(x, y),
            ValueError,
            "up to exact_parameters=9 and",
        ),
        (lambda x, y: refused().step(), RuntimeError, "use fit or train_step"),
        (lambda x, y: cnn.LevenbergMarquardt(clip_norm=1.0), ValueError, "clip_norm: expected none with Levenberg"),
        (lambda x, y: cnn.LevenbergMarquardt(damping=0), ValueError, "damping"),
        (lambda x, y: cnn.LevenbergMarquardt(damping_increase=1), ValueError, "expected a number above 1"),
        (lambda x, y: cnn.LevenbergMarquardt(damping_decrease=1), ValueError, "damping_decrease"),
        (lambda x, y: cnn.LevenbergMarquardt(regularization="l2"), ValueError, "regularization"),
        (lambda x, y: cnn.NewtonCG(cg_iterations=0), ValueError, "cg_iterations"),
        (lambda x, y: cnn.NewtonCG(radius=-1), ValueError, "radius"),
        (lambda x, y: cnn.NewtonCG(damping=1), TypeError, "unknown argument 'damping'"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(*data())


def test_sparse_rows_are_refused(make):
    sparse = pytest.importorskip("scipy.sparse")
    x, y = data()
    with pytest.raises(TypeError, match=r"expected a dense array with .*: pass x.toarray\(\), or use LBFGS"):
        network(make()).fit(sparse.csr_matrix(x), y)


def test_their_configuration(make):
    optimizer = make(weight_decay=0.0, ema_decay=0.9)
    again = cnn.optim.Optimizer.from_config(optimizer.to_config())
    assert again.get_config() == optimizer.get_config()
    assert again.states == optimizer.states
    assert "ema_decay=0.9" in repr(optimizer)
