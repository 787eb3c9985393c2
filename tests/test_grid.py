"""Every layer, activation, loss and optimiser beside every other: all pairs, with instruction sets, dtypes, odd widths,
batches, memory layouts and weights of rows, against the float64 truth of grid.py, which finite differences prove."""

import copy

import grid
import numpy as np
import pytest
from arrays import LAYOUTS, covering, laid_out, row_id
from networks import assert_close

import cnn
from cnn import _dispatch

# each with its default parameter and a negative one
ACTIVATIONS = [(name, p) for name, entry in grid.ACTIVATIONS.items() for p in entry.params[:2] or (None,)]
ROWS = covering(
    loss=list(grid.LOSSES),
    layer=list(grid.LAYERS),
    optimizer=list(grid.OPTIMIZERS),
    activation=ACTIVATIONS,
    layout=LAYOUTS,
    widths=((5, 7, 3), (1, 16, 2), (17, 3, 9), (3, 33, 1), (40, 2, 5), (8, 31, 17)),
    kernels=[(isa, dtype) for isa in _dispatch.AVAILABLE for dtype in ("float64", "float32")],
    batch=(1, 2, 5, 67),
    weighted=(False, True),
)
STEPS = 3


class Case:
    """A model, its truth, and data."""

    def __init__(self, *, loss, layer, activation, optimizer, widths, batch, dtype, seed):
        self.loss = grid.LOSSES[loss]
        self.optimizer = grid.OPTIMIZERS[optimizer]
        self.dtype = np.dtype(dtype)
        self.penalised = layer == "linear penalised"
        inner, (act, param) = grid.LAYERS[layer], activation
        n_in, n, m = widths
        if self.loss.targets in ("classes", "distributions"):
            m = max(m, 2)
        m = self.loss.width(m)
        if cnn.BatchNorm1d in inner.covers:
            batch = max(batch, 2)
        rng = self.rng = np.random.default_rng(seed)
        self.x = rng.standard_normal((batch, n_in)).astype(dtype)
        self.y = grid.targets(self.loss.targets, batch, m, rng)
        if self.loss.targets == "classes":
            self.y[0] = 0  # one row must count, where class 1 is ignored
        else:
            self.y = self.y.astype(dtype)
        last = [cnn.Softplus()] if self.loss.positive else []
        end = cnn.Linear(inner.width(n), m)
        first, second = (grid.ACTIVATIONS[act].make(param) for _ in range(2))
        parts = [cnn.Linear(n_in, n), first, inner.make(n, self.dtype), second, end, *last, self.loss.make(m)]
        self.model = cnn.Sequential(parts, self.optimizer.make(), dtype=dtype, seed=seed)
        first, second = (grid.Function(name=act, param=param) for _ in range(2))
        nodes = [grid.Linear(), first, inner.node(), second, grid.Linear()]
        nodes += [grid.Function(name="softplus") for _ in last]
        self.model.parameters = self.model.parameters + 0.1 * rng.standard_normal(self.model.parameters.size)
        self.truth = grid.Network(nodes, self.loss.truth(m), self.model.state_dict())
        self.masks = None
        if layer == "dropout":  # a model whose outputs are the masks: the same seed, the same place
            head = cnn.Linear(1, n, weight_init="zeros", bias_init="ones")
            self.masks = cnn.Sequential([head, cnn.Dropout(grid.DROPPED)], dtype=dtype, seed=seed)

    @property
    def own(self):
        return self.loss.own

    def expected(self, w=None, penalties=True):
        """The truth's loss, gradient of x and of the parameters, in the next training pass."""
        if self.masks is not None:
            self.truth.parts[2].mask = np.float64(self.masks(np.zeros((len(self.x), 1))))
        return self.truth.gradients(np.float64(self.x), self.y, w, penalties=penalties)

    def explicit(self, model):
        loss = model(self.x, self.y)
        model.zero_grads()
        model.backward()
        model.step()
        return loss

    def fused(self, model, w):
        if self.own:
            return model.fit(self.x, self.y, batch_size=len(self.x), shuffle=False)["loss"][0]
        return model.train_step(self.x, self.y, w)


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_every_pair(row, monkeypatch, tmp_path):
    isa, dtype = row["kernels"]
    monkeypatch.setattr(_dispatch, "ISA", isa)
    monkeypatch.setattr(_dispatch, "_loaded", {})
    chosen = {k: row[k] for k in ("loss", "layer", "activation", "optimizer", "widths", "batch")}
    case = Case(**chosen, dtype=dtype, seed=ROWS.index(row))
    model, truth, x, y = case.model, case.truth, case.x, case.y
    rtol = 1e-9 if dtype == "float64" else 2e-4
    w = case.rng.integers(1, 4, len(x)) / 2 if row["weighted"] and not case.own else None
    there = laid_out(x, row["layout"])

    # evaluation, and a file that holds all of it
    assert_close(model.predict(there), truth.forward(np.float64(x), False), rtol, "outputs")
    assert_close(model.evaluate(there, y, w)["loss"], truth.gradients(np.float64(x), y, w, False)[0], rtol, "loss")
    if case.own:
        with pytest.raises(TypeError, match="cannot be saved"):
            model.save(tmp_path / "model")
    else:
        model.save(tmp_path / "model")
        np.testing.assert_array_equal(cnn.load(tmp_path / "model").predict(x), model.predict(x))

    # gradients in training: running statistics and dropout's random numbers go on
    loss, dx, grads = case.expected(penalties=not case.own)
    if case.own:
        model(there)
        dx_found = model.backward(truth.output_gradient)
    else:
        assert_close(model(there, y), loss, rtol, "loss in training")
        dx_found = model.backward()
    terms = max(node.terms for _, node in truth.walk())
    assert_close(dx_found, dx, 5 * rtol, "gradient of x", terms)
    assert_vectors(model.gradients, grads, 5 * rtol)

    # steps: the fused way beside the truth and, where it is the same step, the explicit way
    other = None if w is not None or case.own else copy.copy(model)
    states = {}
    for step in range(STEPS):
        loss, _, grads = case.expected(w)
        case.optimizer.step(truth, grads, states)
        assert_close(case.fused(model, w), loss, 20 * rtol, f"loss of step {step}")
        if other is not None:
            assert_close(case.explicit(other), loss, 20 * rtol, f"loss of explicit step {step}")
    for trained in (model, other) if other is not None else (model,):
        assert_vectors(trained.parameters, truth.named(), 20 * rtol)
        state = trained.state_dict()
        for key, node in truth.walk():
            for name, a in node.statistics.items():
                assert_close(state[f"{key}.{name}"], a, 20 * rtol, name)


@pytest.mark.parametrize("optimizer", grid.WHOLE_DATA)
@pytest.mark.parametrize(
    ("loss", "layer"), [(loss, list(grid.LAYERS)[i % len(grid.LAYERS)]) for i, loss in enumerate(grid.LOSSES)]
)
def test_optimizers_of_the_whole_data(optimizer, loss, layer):
    """Where the loss is what the truth says, before and after, and no higher; refused where it is random, or has a kink
    that weights come to rest in, or no second derivative of each row that is of use."""
    chosen = {"loss": loss, "layer": layer, "optimizer": "sgd", "activation": ("tanh", None)}
    case = Case(**chosen, widths=(5, 7, 3), batch=21, dtype="float64", seed=0)
    model, truth, x, y = case.model, case.truth, case.x, case.y
    cls, options = grid.WHOLE_DATA[optimizer]
    model.optimizer = cls(**options)
    curved = model.loss.has_second_derivative and (cls is cnn.NewtonCG or model.loss.gauss_newton)
    refused = {
        "makes the loss random|expected l1=0": layer in ("dropout", "linear penalised"),
        "makes rows depend on each other": cls is not cnn.LBFGS and layer in ("batch", "batch bare"),
        "needs a loss": cls is not cnn.LBFGS and not curved,
    }
    if any(refused.values()):
        with pytest.raises(ValueError, match="|".join(message for message, there in refused.items() if there)):
            model.fit(x, y)
        return
    w = None if case.own else case.rng.integers(1, 4, len(x)) / 2
    before = case.expected(w)[0]
    history = model.fit(x, y, sample_weight=w, epochs=3)
    state = model.state_dict()
    for key, node in truth.walk():
        for name, a in node.arrays.items():
            a[...] = state[f"{key}.{name}"]
    after = case.expected(w)[0]
    assert_close(history["loss"][-1], after, 1e-9, "loss")
    assert after < before or history.converged


def test_gauss_newton_matrices():
    """Of every activation, layer and loss that has one, beside products with the unit vectors."""
    activations, layers = list(ACTIVATIONS), list(grid.LAYERS)
    losses = [name for name, entry in grid.LOSSES.items() if not entry.own]
    for i in range(max(len(activations), len(layers), len(losses))):
        chosen = {"loss": losses[i % len(losses)], "layer": layers[i % len(layers)], "optimizer": "sgd"}
        case = Case(
            **chosen, activation=activations[i % len(activations)], widths=(4, 5, 2), batch=11, dtype="float64", seed=i
        )
        model, x = case.model, case.x
        if not model.loss.gauss_newton:
            continue
        model.eval()
        w = case.rng.integers(0, 3, len(x)) / 2
        w[0] = 1  # one row counts
        program = model._core.program
        y, matrix = program.targets(case.y, len(x)), model._core.kernels.Curvature(program)
        matrix.begin_matrix(1)
        whole = program.weight_of(y, w)
        for start in (0, 7):
            matrix.add_rows(x, y, w, start, min(start + 7, len(x)), whole, 1)
        l2 = np.diag(2 * matrix.diagonals()[1])
        expected = [model._core.derivatives.second(x, y, None, None, e, False, 1, True, w)[1] for e in np.eye(len(l2))]
        assert_close(matrix.matrix() + l2, np.array(expected), 1e-9, str(chosen))


def assert_vectors(vector, arrays, rtol):
    """A packed vector beside arrays by name; errors in proportion to the largest number of all."""
    scale = max(np.abs(a).max() for a in arrays.values())
    assert vector.size == sum(a.size for a in arrays.values())
    for name, a in arrays.items():
        part, vector = vector[: a.size].reshape(a.shape), vector[a.size :]
        np.testing.assert_allclose(part, a, rtol=rtol, atol=rtol * scale, err_msg=name)


# derivatives ----------------------------------------------------------------------------------------------------------


def difference(f, h):
    """f'(0) of order 4, and whether there is no kink: a step twice as small agrees, and so do both sides."""
    found = [(8 * (f(s) - f(-s)) - (f(2 * s) - f(-2 * s))) / (12 * s) for s in (h, h / 2)]
    scale = 1e-7 * (1 + np.abs(found[1]).max())
    bend = (f(h / 100) - 2 * f(0.0) + f(-h / 100)) / (h / 100)
    return found[1], np.allclose(*found, rtol=1e-6, atol=scale) and np.abs(bend).max() < 1e4 * scale


def smooth(case_of, course, h=1e-3):
    """(case, derivative of course(case)(s) at s = 0) for the first seed that has no kink nearby."""
    for seed in range(40):
        case = case_of(seed)
        derivative, good = difference(course(case), h)
        if good:
            return case, derivative
    raise AssertionError("no point without a kink nearby")


def along(truth, direction, f):
    """s -> f() with the parameters moved by s along a direction; they are put back."""
    start = truth.vector

    def moved(s):
        truth.vector = start + s * direction
        try:
            return f()
        finally:
            truth.vector = start

    return moved


DERIVED = covering(
    loss=list(grid.LOSSES),
    layer=list(grid.LAYERS),
    activation=ACTIVATIONS,
    widths=((3, 5, 2), (5, 2, 3)),
)


@pytest.mark.parametrize("row", DERIVED, ids=row_id)
def test_derivatives(row):
    """The truth's gradients by finite differences of its loss; the library's jvp, hvp and hvp_input by those of the
    truth's gradients. Evaluation mode; training mode of the truth as well."""

    def case_of(seed):
        case = Case(**row, optimizer="sgd", batch=3, dtype="float64", seed=seed)
        case.v = case.rng.standard_normal(case.truth.vector.size)
        case.v /= np.linalg.norm(case.v)
        case.t = case.rng.standard_normal(case.x.shape) / 3
        case.truth.parts[2].mask = case.rng.integers(0, 2, (3, row["widths"][1])) * 2.0
        return case

    def check_truth(training):
        def loss(c, s=0.0):
            return c.truth.gradients(c.x + s * c.t, c.y, None, training)[0]

        case, slope = smooth(case_of, lambda c: along(c.truth, c.v, lambda: loss(c)))
        np.testing.assert_allclose(case.truth.packed(case.x, case.y, training) @ case.v, slope, **close)
        case, slope = smooth(case_of, lambda c: lambda s: loss(c, s))
        np.testing.assert_allclose(
            (case.truth.gradients(case.x, case.y, None, training)[1] * case.t).sum(), slope, **close
        )

    close = {"rtol": 1e-6, "atol": 1e-10}  # rounding of the differences, where the derivative is 0
    check_truth(False)
    check_truth(True)

    def outputs(c):
        return lambda s: along(c.truth, c.v, lambda: c.truth.forward(c.x + s * c.t, False))(s)

    case, tangent = smooth(case_of, outputs)
    assert_close(case.model.jvp(case.x, case.t, parameters=case.v), tangent, 1e-6, "jvp")
    g = case.rng.standard_normal(tangent.shape)
    of_x, of_parameters = case.model.vjp(case.x, g, parameters=True)
    assert_close((of_x * case.t).sum() + of_parameters @ case.v, (g * tangent).sum(), 1e-6, "vjp")

    if case.own:
        with pytest.raises(RuntimeError, match="loss"):
            case.model.hvp(case.x, case.y, case.v)
        return
    case, product = smooth(case_of, lambda c: along(c.truth, c.v, lambda: c.truth.packed(c.x, c.y, False)))
    assert_close(case.model.hvp(case.x, case.y, case.v), product, 1e-5, "hvp")
    case, product = smooth(case_of, lambda c: lambda s: c.truth.gradients(c.x + s * c.t, c.y, None, False)[1])
    assert_close(case.model.hvp_input(case.x, case.t, case.y), product, 1e-5, "hvp_input")


# schedules, and that nothing is missing -------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", grid.SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("fused", [True, False])
def test_schedules(schedule, fused):
    """On y = w x with the loss d**2, whose gradient is known, each step shows its learning rate."""
    expected = grid.SCHEDULES[schedule]
    line = cnn.Linear(1, 1, bias=False)
    model = cnn.Sequential([line, cnn.MSELoss()], cnn.SGD(lr=0.1, schedule=schedule), dtype="float64", seed=0)
    rates = []
    for _ in expected:
        before = line.weight.item()
        if fused:
            model.train_step([[1.0]], [[before - 1.0]])
        else:
            model([[1.0]], [[before - 1.0]])
            model.zero_grads()
            model.backward()
            model.step()
        rates.append((before - line.weight.item()) / 2)
    np.testing.assert_allclose(rates, expected, rtol=1e-9, atol=1e-14)


def public(base):
    """The public classes of a kind."""
    found = {thing for name in cnn.__all__ if isinstance(thing := getattr(cnn, name), type) and issubclass(thing, base)}
    assert found
    return found


def missing():
    """What is public and has no entry in grid.py."""
    entries = {cls for layer in grid.LAYERS.values() for cls in layer.covers}
    entries |= {type(activation.make()) for activation in grid.ACTIVATIONS.values()}
    entries |= {type(loss.make(3)) for loss in grid.LOSSES.values()}
    entries |= {cnn.SobolevLoss}  # not of outputs alone: test_sobolev.py has its truth
    entries |= {optimizer.cls for optimizer in grid.OPTIMIZERS.values()} | {cls for cls, _ in grid.WHOLE_DATA.values()}
    entries |= {type(schedule) for schedule in grid.SCHEDULES}
    kinds = (cnn.layers.Layer, cnn.losses.Loss, cnn.optim.Optimizer, cnn.optim.schedules.Schedule)
    return {cls.__name__ for kind in kinds for cls in public(kind)} - {cls.__name__ for cls in entries}


def test_everything_has_an_entry():
    assert missing() == set()
    functions = set(cnn._dispatch.kernels("float32").ACTIVATIONS)
    assert functions == set(grid.ACTIVATIONS)


def test_a_layer_without_an_entry_is_noticed(monkeypatch):
    class Swish(cnn.SiLU):
        pass

    monkeypatch.setattr(cnn, "Swish", Swish, raising=False)
    monkeypatch.setattr(cnn, "__all__", [*cnn.__all__, "Swish"])
    assert missing() == {"Swish"}
