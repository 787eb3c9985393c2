"""derivatives and residual_loss_and_grad: against jets in NumPy, the derivative products, and finite differences.

The products (jacobian, hvp_input) are proved by test_derivatives.py; the gradients in the parameters are held against
central differences of the losses, of order 4 as there.
"""

import functools
import itertools

import grid
import numpy as np
import pytest
from arrays import LAYOUTS, laid_out
from grid import ACTIVATIONS, GATES, LAYERS, build
from networks import assert_close
from test_derivatives import along, numbers

import cnn

ORDERS = (1, 2, "laplacian")


def parts_of_the_table():
    """Descriptions of networks by names, in each of which a part of the table stands between linear layers, and where
    it can also first and last."""
    for name, entry in ACTIVATIONS.items():
        for param in (entry.params or (None,))[:3]:
            yield f"{name} {param}", [(3, 9, True), (name, param), (9, 5, False), ("identity", None), (name, param)]
    for name, entry in LAYERS.items():
        if not name.startswith("linear"):
            yield name, [(3, 9, True), ("tanh", None), (name, 9), (entry.width(9), 2, True)]
    for gate in GATES:
        branches = [[("sigmoid", None)], [(9, 9, True), ("tanh", None)], [(9, 9, False)]]
        yield gate, [(3, 9, True), ("silu", None), (gate, branches), (27 if gate == "concat" else 9, 2, True)]
        yield f"{gate} of x", [("sigmoid", None), (gate, [[(3, 8, True), ("mish", None)], [(3, 8, True)]])]
    yield "deep", [(2, 50, True), ("tanh", None), (50, 50, True), ("tanh", None), (50, 1, True, 0.1)]
    yield "wide", [(20, 33, True), ("gelu", None), (33, 1, True)]
    yield "one input", [(1, 17, True), ("softplus", None), (17, 2, True)]
    yield "softmax last", [(3, 7, True), ("elu", 1.0), (7, 4, True), ("softmax", 4)]


def away_from_kinks(truth, x):
    """The rows of x that lie far from every kink, also of second derivatives: all that went into activations does."""
    near = np.zeros(len(x), bool)
    for row in range(len(x)):
        truth.forward(x[row : row + 1])
        for _, node in truth.walk():
            if isinstance(node, grid.Function):
                near[row] |= node.entry.distance(node.x).min() < 5e-3
            elif type(node).__name__ == "PReLU":
                near[row] |= abs(node.x).min() < 5e-3
            elif isinstance(node, grid.Gate) and node.kind == "maximum":
                ends = np.sort(node.ends, axis=0)
                near[row] |= (ends[-1] - ends[-2]).min() < 5e-3
    return x[~near][:6]


def products(model, x):
    """u, du and d2u by the derivative products."""
    n_in, n_out = x.shape[1], model.predict(x).shape[1]
    second = np.empty((len(x), n_out, n_in))
    for o, k in itertools.product(range(n_out), range(n_in)):
        e, g = np.zeros_like(x), np.zeros((len(x), n_out))
        e[:, k], g[:, o] = 1, 1
        second[:, o, k] = model.hvp_input(x, e, grad_output=g)[:, k]
    return model.predict(x), model.jacobian(x), second


def weighted(weights):
    """A loss that is linear in all derivatives."""
    return lambda x, *parts: (sum(np.sum(w * p) for w, p in zip(weights, parts, strict=True)), *weights)


@pytest.mark.parametrize("name", dict(parts_of_the_table()))
def test_every_part_of_the_table(name):
    model, truth = build(dict(parts_of_the_table())[name], seed=3)
    x = away_from_kinks(truth, numbers(5, 40, model._core.in_features))
    assert len(x)
    expected = products(model, x)
    u, du, d2u = model.derivatives(x)
    laplacian = model.derivatives(x, "laplacian")[2]
    for one, other in zip((u, du, d2u, laplacian), (*expected, expected[2].sum(axis=2)), strict=True):
        assert_close(one, other, 1e-12, "", 1e-3)
    start = model.parameters
    for i, order in enumerate(ORDERS):
        shown = model.derivatives(x, order)
        loss = weighted([numbers(i + k, *part.shape) for k, part in enumerate(shown)])
        value, gradient = model.residual_loss_and_grad(x, loss, order)
        v = numbers(9, start.size)
        v /= np.linalg.norm(v)

        def moved(h, loss=loss, order=order, v=v):
            model.parameters = start + h * v
            return loss(x, *model.derivatives(x, order))[0] + model._core.program.penalty()

        expected_slope = along(moved)
        model.parameters = start
        assert value == pytest.approx(moved(0), rel=1e-13)
        floor = 1e-2 * np.linalg.norm(gradient) + 1e-9 * abs(value)
        assert gradient @ v == pytest.approx(expected_slope, rel=0, abs=1e-8 * (abs(expected_slope) + floor) + 1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_third_derivative_of_activations(name, isa):
    """Wide and near zero, number by number: the gradient in the biases of the sum of d2u, by differences of f''."""
    entry = ACTIVATIONS[name]
    z = np.concatenate([np.linspace(-30, 30, 121), np.linspace(-3, 3, 61), [-0.01, 1e-9, 0.01, -700.0, 700.0]])
    z = z[entry.distance(z) > 1e-3]
    for spacer in ([], [cnn.Identity(), cnn.Identity()]):
        model = cnn.Sequential([cnn.Linear(len(z), len(z)), *spacer, entry.make()], dtype="float64")
        model.parameters = np.concatenate([np.eye(len(z)).ravel(), np.zeros(len(z))])
        _, gradient = model.residual_loss_and_grad(
            z[None], lambda x, u, du, lap: (lap.sum(), None, None, np.ones_like(lap)), order="laplacian"
        )
        expected = along(lambda h: entry.curvature(z + h), 2e-4)
        np.testing.assert_allclose(gradient[-len(z) :], expected, atol=5e-11)


def numpy_jets(model, x):
    """u, du and d2u of linear layers and Tanh, in their precision of NumPy: the formulas as they stand in books."""
    state = list(model.state_dict().values())
    y, d1, d2 = x.astype(float), np.broadcast_to(np.eye(x.shape[1]), (len(x), x.shape[1], x.shape[1])), 0.0
    for i, (w, b) in enumerate(zip(state[::2], state[1::2], strict=True)):
        w, b = w.astype(float), b.astype(float)
        y, d1, d2 = y @ w + b, d1 @ w, d2 @ w if i else np.zeros((len(x), x.shape[1], w.shape[1]))
        if i < len(state) // 2 - 1:
            y = np.tanh(y)
            slope = (1 - y**2)[:, None]
            d1, d2 = slope * d1, -2 * y[:, None] * slope * d1**2 + slope * d2
    return y, d1.transpose(0, 2, 1), d2.transpose(0, 2, 1)


@pytest.mark.parametrize("widths", [(1, 5, 1), (2, 50, 50, 1), (3, 8, 17, 4), (17, 3, 2), (33, 100, 1)], ids=str)
def test_jets_of_numpy(widths, dtype, isa):
    """Odd shapes, one row to several blocks of them, and no row depends on those beside it."""
    model, _ = build(grid.chain(*widths), dtype=dtype, seed=1)
    model.parameters = 0.3 * numbers(4, model.parameters.size).astype(dtype)
    x = numbers(2, 67, widths[0]).astype(dtype)
    expected = numpy_jets(model, x)
    for batch in (1, 2, 67):
        found = model.derivatives(x[:batch])
        for part, other in zip(found, expected, strict=True):
            assert part.dtype == dtype
            assert_close(part, other[:batch], 100 * np.finfo(dtype).eps)
    for one, several in zip(model.derivatives(x[30:31]), found, strict=True):
        assert_close(one, several[30:31], 20 * np.finfo(dtype).eps)
    assert_close(model.derivatives(x, "laplacian")[2], expected[2].sum(axis=2), 200 * np.finfo(dtype).eps)
    assert len(model.derivatives(x, 1)) == 2


def test_float32_gradient_is_that_of_float64():
    models = [build(grid.chain(2, 20, 20, 1), dtype=dtype, seed=1)[0] for dtype in ("float32", "float64")]
    models[1].parameters = models[0].parameters
    x = numbers(2, 300, 2).astype("float32")

    def square(x, u, du, lap):
        return np.mean((lap + u) ** 2), 2 * (lap + u) / len(x), None, 2 * (lap + u) / len(x)

    answers = [model.residual_loss_and_grad(x, square, "laplacian") for model in models]
    assert answers[0][1].dtype == "float32"
    assert answers[0][0] == pytest.approx(answers[1][0], rel=1e-5)
    assert_close(answers[0][1], answers[1][1], 2e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    model, _ = build(grid.chain(3, 9, 2), seed=1)
    x = numbers(2, 7, 3)
    given = laid_out(x, layout)
    for part, expected in zip(model.derivatives(given), model.derivatives(x), strict=True):
        np.testing.assert_array_equal(part, expected)
    weights = [laid_out(numbers(3, *part.shape).reshape(7, -1), layout) for part in model.derivatives(x)]
    weights = [w.reshape(part.shape) for w, part in zip(weights, model.derivatives(x), strict=True)]
    found = model.residual_loss_and_grad(given, weighted(weights))[1]
    expected = model.residual_loss_and_grad(x, weighted([np.array(w, float) for w in weights]))[1]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(given, x)


@pytest.fixture
def threads():
    """A function that runs another one on so many threads."""
    before = cnn.get_num_threads()

    def run(n, function):
        cnn.set_num_threads(n)
        for k in (cnn._dispatch.kernels(dtype) for dtype in ("float32", "float64")):
            k.forget_waits()
        return function()

    yield run
    cnn.set_num_threads(before)


@pytest.mark.parametrize(
    "spec",
    [
        grid.chain(2, 50, 50, 1),
        grid.chain(17, 130, 130, 6, activation=("relu", None)),
        [
            (5, 64, True),
            ("layer", 64),
            ("prelu columns", 64),
            (64, 64, True),
            ("batch", 64),
            ("tanh", None),
            (64, 3, True),
        ],
    ],
    ids=("narrow", "wide", "norms"),
)
def test_threads_do_not_change_a_bit(spec, dtype, threads):
    model, _ = build(spec, cnn.MSELoss(), dtype=dtype, seed=1)
    n_in, n_out = model._core.in_features, model._core.out_features
    for batch in (200, 1100):
        x, t, y = (numbers(i, batch, n).astype(dtype) for i, n in enumerate((n_in, n_in, n_out)))
        v = numbers(5, model.parameters.size).astype(dtype)

        def linear(x, u, du, lap):
            return 1.0, u, du, lap

        def everything(x=x, t=t, y=y, v=v, few=slice(0, 200)):
            found = [model.hvp(x, y, v), model.gnvp(x, y, v), model.jvp(x, t, v), model.vjp(x, y)]
            found += model.hvp_input(x, t, y, parameters=True)
            found += model.derivatives(x[few], "laplacian")
            return [*found, model.residual_loss_and_grad(x[few], linear, "laplacian")[1]]

        one = threads(1, everything)
        for n in (2, 3):
            for a, b in zip(one, threads(n, everything), strict=True):
                np.testing.assert_array_equal(a, b)


def test_segments_of_a_long_batch_are_its_rows(threads):
    """hvp and gnvp of rows in segments, each with a gradient of its own, are the sums of those of the rows."""
    for spec in (grid.chain(4, 32, 4), [(4, 32, True), ("layer", 32), ("prelu", 32), (32, 4, True)]):
        model, _ = build(spec, cnn.MSELoss(reduction="sum"), seed=2)
        x, y, v = numbers(1, 1500, 4), numbers(2, 1500, 4), numbers(3, model.parameters.size)
        for call in (model.hvp, model.gnvp):
            assert_close(
                threads(2, functools.partial(call, x, y, v)), call(x[:90], y[:90], v) + call(x[90:], y[90:], v), 1e-11
            )


# use ----------------------------------------------------------------------------------------------------------------


def test_gradients_penalties_and_what_is_not_trained():
    layers = [cnn.Linear(2, 9, l2=0.1), cnn.Tanh(), cnn.Linear(9, 1, l1=0.2)]
    model = cnn.Sequential(layers, dtype="float64", seed=0)
    x = numbers(1, 5, 2)
    layers[0].trainable = False
    value, gradient = model.residual_loss_and_grad(x, lambda x, u, du, d2u: (0.0, None, None, None))
    w = [layer.weight for layer in (layers[0], layers[2])]
    assert value == pytest.approx(0.1 * np.sum(w[0] ** 2) + 0.2 * np.sum(abs(w[1])))
    np.testing.assert_array_equal(model.gradients, gradient)
    np.testing.assert_array_equal(gradient[-10:-1], 0.2 * np.sign(w[1][:, 0]))
    model.residual_loss_and_grad(x, lambda x, u, du, d2u: (0.0, np.ones_like(u), None, None))
    assert not layers[0].grad_bias.any()
    assert layers[2].grad_bias[0] == 5


def test_training_by_residuals():
    """u'' = -u, u(0) = 0, u'(0) = 1: the sine, by Adam on the gradients."""
    model = cnn.Sequential(
        [cnn.Linear(1, 16), cnn.Tanh(), cnn.Linear(16, 1)], cnn.Adam(lr=0.01), dtype="float64", seed=0
    )
    x = np.linspace(0, 2, 30)[:, None]

    def equation(x, u, du, d2u):
        residual = d2u[:, :, 0] + u
        by_u, by_du = 2 * residual / len(x), np.zeros_like(du)
        by_u[0] += 20 * u[0]
        by_du[0] = 20 * (du[0] - 1)
        loss = np.mean(residual**2) + 10 * u[0, 0] ** 2 + 10 * (du[0, 0, 0] - 1) ** 2
        return loss, by_u, by_du, 2 * residual[:, :, None] / len(x)

    for _ in range(600):
        loss, _ = model.residual_loss_and_grad(x, equation)
        model.step()
    assert loss < 2e-3
    assert abs(model.predict(x) - np.sin(x)).max() < 0.05


def test_modes_parts_and_pending_passes():
    parts = [(3, 9, True), ("batch", 9), ("dropout", 9), ("tanh", None), (9, 2, True)]
    model, _ = build(parts, cnn.MSELoss())
    x, y = numbers(1, 5, 3), numbers(2, 5, 2)
    model.training = True
    state = model.state_dict()
    np.testing.assert_array_equal(model.derivatives(x)[0], model.predict(x))
    model(x, y)
    model.derivatives(x)
    model.zero_grads()
    model.backward()  # the forward pass that was pending is still there
    for name, array in state.items():
        if "running" not in name and "tracked" not in name:
            np.testing.assert_array_equal(model.state_dict()[name], array)
    hidden = model[:4]
    assert_close(hidden.derivatives(x)[1], hidden.jacobian(x), 1e-12)
    _, gradient = hidden.residual_loss_and_grad(x, lambda x, u, du, d2u: (1.0, u, None, None))
    assert gradient.shape == hidden.parameters.shape
    assert_close(gradient, hidden.vjp(x, hidden.predict(x), parameters=True)[1], 1e-12)
    copied = model.copy()
    np.testing.assert_array_equal(copied.derivatives(x)[2], model.derivatives(x)[2])


def test_empty_and_small():
    model, _ = build(grid.chain(3, 5, 2))
    assert [part.shape for part in model.derivatives(np.empty((0, 3)))] == [(0, 2), (0, 2, 3), (0, 2, 3)]
    assert model.derivatives(np.empty((0, 3)), "laplacian")[2].shape == (0, 2)
    assert model.derivatives([[1, 2, 3]], order=2)[0].shape == (1, 2)
    with pytest.raises(ValueError, match="x: expected at least one row"):
        model.residual_loss_and_grad(np.empty((0, 3)), lambda *parts: (0.0, None, None, None))


def test_one_input_has_one_second_derivative():
    model, _ = build(grid.chain(1, 8, 1))
    x = numbers(1, 5, 1)
    second, laplacian = model.derivatives(x)[2], model.derivatives(x, "laplacian")[2]
    np.testing.assert_array_equal(second[:, :, 0], laplacian)


def test_what_does_not_fit():
    model, _ = build(grid.chain(3, 5, 2))
    x = numbers(1, 4, 3)
    zero = np.zeros((4, 2))

    def returning(*result, order="laplacian"):
        return lambda: model.residual_loss_and_grad(x, lambda *parts: result if len(result) > 1 else result[0], order)

    nan = zero.copy()
    nan[2, 1] = np.nan
    for call, error, message in [
        (lambda: model.derivatives(x[:, :2]), ValueError, r"^x: expected shape \(batch, 3\) for layer 0"),
        (lambda: model.derivatives(x, 3), ValueError, '^order: expected 1, 2 or "laplacian", got 3'),
        (lambda: model.derivatives(x, True), ValueError, "^order: expected 1, 2 or .*, got True"),
        (lambda: model.derivatives(x * 1j), TypeError, "^x: expected real numbers"),
        (lambda: model.residual_loss_and_grad(x, 3.0), TypeError, "^f: expected a callable .*, got 3.0"),
        (returning(1.0), TypeError, r"^f: expected a tuple \(loss, loss_u, loss_du, loss_d2u\), got float"),
        (returning(1.0, None), TypeError, "^f: expected a tuple .*, got 2 of them"),
        (returning(1.0, None, None, order=2), TypeError, "^f: expected a tuple .*, got 3 of them"),
        (returning(zero, None, None, None), TypeError, r"^f: expected a number .*, got ndarray of shape \(4, 2\)"),
        (returning(1.0, zero[:, :1], None, None), ValueError, r"^f: loss_u: expected shape \(4, 2\), .* got \(4, 1\)"),
        (
            returning(1.0, None, None, zero[:, :, None]),
            ValueError,
            r"^f: loss_d2u: expected shape \(4, 2\), as d2u has",
        ),
        (returning(1.0, None, None, zero * 1j), TypeError, "^f: loss_d2u: expected real numbers, got dtype complex128"),
        (returning(1.0, nan, None, None), ValueError, r"^f: loss_u\[2, 1\] is nan"),
    ]:
        with pytest.raises(error, match=message):
            call()
