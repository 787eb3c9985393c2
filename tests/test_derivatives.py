"""Derivative products: against finite differences of the reference, and the identities that hold between them.

Differences are central, of order 4, in float64. With steps of 1e-3 their error is some 1e-11 of the function's size;
tolerances are 1e-8 of each array's largest number. Kinked activations are held against the identities here, and against
JAX in peers/test_derivatives.py.
"""

import grid
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse.linalg
from grid import ACTIVATIONS, SMOOTH, build, graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import assert_close, numbers

import cnn

RTOL = 1e-8
H = 1e-3
BATCHES = (1, 2, 3, 7, 130)
LOSSES = {name: case for name, case in grid.LOSSES.items() if not case.own and not case.in_pairs}


def along(f, h=H):
    """f'(0) by the central difference of order 4."""
    return (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)


def targets_for(name, batch, n, seed=0):
    y = grid.targets(LOSSES[name].targets, batch, n, np.random.default_rng(seed))
    if y.ndim == 1:  # class 1 may be ignored
        y[0] = 0
    return y


def rates(parts, name):
    """Outputs above 0, where the loss needs them."""
    return [*parts, ("softplus", None)] if LOSSES[name].positive else parts


# first derivatives --------------------------------------------------------------------------------------------------


@given(parts=graphs(names=SMOOTH), batch=st.sampled_from(BATCHES), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_jvp_and_vjp_are_derivatives_of_the_reference(isa, parts, batch, seed):
    model, truth = build(parts, seed=seed)
    outputs = truth.outputs
    x = numbers(seed, batch, parts[0][0])
    t, p = numbers(seed + 1, *x.shape), numbers(seed + 2, model.parameters.size) / 5
    start = model.parameters

    assert_close(model.predict(x), outputs(x, start), 1e-11)
    of_inputs, of_parameters = model.jvp(x, t), model.jvp(x, parameters=p)
    noise = 1e-4 * np.abs(outputs(x, start)).max()  # differences of it: a softmax of one column is constant
    assert_close(of_inputs, along(lambda h: outputs(x + h * t, start)), RTOL, "inputs", noise)
    assert_close(of_parameters, along(lambda h: outputs(x, start + h * p)), RTOL, "parameters", noise)
    assert_close(model.jvp(x, t, p), of_inputs + of_parameters, 1e-12, "both")

    v = numbers(seed + 3, *of_inputs.shape)
    gradient, vector = model.vjp(x, v, parameters=True)
    size = np.linalg.norm(v) * (np.linalg.norm(of_inputs) + np.linalg.norm(of_parameters)) + 1e-300
    np.testing.assert_allclose(np.sum(v * of_inputs), np.sum(gradient * t), atol=1e-11 * size)
    np.testing.assert_allclose(np.sum(v * of_parameters), vector @ p, atol=1e-11 * size)
    np.testing.assert_array_equal(model.vjp(x, v), gradient)


@given(parts=graphs(), batch=st.sampled_from(BATCHES), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_products_from_left_and_right_agree(isa, dtype, parts, batch, seed):
    """v^T (J t) = (v^T J) t, kinks or not, in both dtypes."""
    model, _ = build(parts, seed=seed, dtype=dtype)
    x = numbers(seed, batch, parts[0][0])
    t, p = numbers(seed + 1, *x.shape), numbers(seed + 2, model.parameters.size)
    pushed = model.jvp(x, t, p)
    assert pushed.dtype == dtype
    v = numbers(seed + 3, *pushed.shape)
    gradient, vector = model.vjp(x, v, parameters=True)
    size = np.linalg.norm(gradient) * np.linalg.norm(t) + np.linalg.norm(vector) * np.linalg.norm(p)
    eps = 300 * np.finfo(dtype).eps
    np.testing.assert_allclose(np.sum(v * pushed), np.sum(gradient * t) + vector @ p, atol=eps * (size + 1e-30))


@pytest.mark.parametrize("widths", [(5, 3), (3, 5), (300, 1), (1, 17), (4, 4)], ids=str)
def test_jacobian(isa, dtype, widths):
    """By either mode: row by row the derivatives, and what jvp and vjp say."""
    n_in, n_out = widths
    parts = [(n_in, 8, True), ("tanh", None), (8, n_out, True)]
    model, _ = build(parts, dtype=dtype)
    x = numbers(1, 3, n_in).astype(dtype)
    jacobian = model.jacobian(x)
    assert jacobian.shape == (3, n_out, n_in)
    assert jacobian.dtype == dtype
    state = model.state_dict()
    slope = 1 - np.tanh(x @ state["0.weight"] + state["0.bias"]) ** 2
    expected = np.einsum("jk,bj,ij->bki", state["2.weight"], slope, state["0.weight"])
    assert_close(jacobian, expected, 100 * np.finfo(dtype).eps)
    t, v = numbers(2, 3, n_in), numbers(3, 3, n_out)
    assert_close(model.jvp(x, t), np.einsum("bki,bi->bk", jacobian, t), 1000 * np.finfo(dtype).eps)
    assert_close(model.vjp(x, v), np.einsum("bki,bk->bi", jacobian, v), 1000 * np.finfo(dtype).eps)
    if n_out == 1:
        assert_close(model.grad_input(x), jacobian[:, 0], 10 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", [1, 5])
def test_grad_input_of_a_loss(isa, name, batch):
    parts = [(4, 9, True, 0.1), ("tanh", None), (9, 3, True)]
    model, _ = build(rates(parts, name), LOSSES[name].make(3))
    x, y = numbers(1, batch, 4), targets_for(name, batch, 3, seed=1)
    model.training = True
    gradients, gradient = model.gradients, model.grad_input(x, y)
    t = numbers(2, batch, 4)
    expected = along(lambda h: model(x + h * t, y))
    np.testing.assert_allclose(np.sum(gradient * t), expected, rtol=1e-7, atol=1e-11)
    np.testing.assert_array_equal(model.gradients, gradients)
    assert model.training


def test_products_are_of_evaluation_mode(isa):
    parts = [(4, 9, True), ("batch", 9), ("dropout", 9), (9, 1, True)]
    model, _ = build(parts, cnn.MSELoss())
    x, y = numbers(1, 5, 4), numbers(2, 5, 1)
    state, before = model.state_dict(), model.predict(x)
    t = numbers(3, 5, 4)
    for _ in range(2):
        assert_close(model.jvp(x, t), along(lambda h: model.predict(x + h * t)), RTOL)
        assert_close(model.grad_input(x), model.vjp(x, np.ones((5, 1))), 1e-14)
        model.hvp(x, y, model.parameters)
        model.grad_input(x, y)
    assert model.training
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, state[name], name)
    np.testing.assert_array_equal(model.predict(x), before)


# second derivatives -------------------------------------------------------------------------------------------------


def assert_hessian(model, x, y, seed, rtol=RTOL):
    """hvp is the derivative of the gradient, and symmetric; gnvp is symmetric and positive."""
    model.eval()
    start = model.parameters
    u, v = numbers(seed + 1, start.size), numbers(seed + 2, start.size)
    product = model.hvp(x, y, v)

    def gradient(h):
        model.parameters = start + h * v / np.linalg.norm(v)
        return model.loss_and_grad(x, y)[1] * np.linalg.norm(v)

    expected = along(gradient)
    model.parameters = start
    scale = abs(expected).max() + 1e-3 * abs(gradient(0)).max() + 1e-12
    np.testing.assert_allclose(product, expected, rtol=0, atol=rtol * scale)
    size = np.linalg.norm(u) * (np.linalg.norm(product) + np.linalg.norm(gradient(0)))
    np.testing.assert_allclose(u @ product, v @ model.hvp(x, y, u), atol=1e-11 * size)
    curved = model.gnvp(x, y, v)
    np.testing.assert_allclose(u @ curved, v @ model.gnvp(x, y, u), atol=1e-11 * size)
    assert v @ curved >= -1e-12 * size


@given(
    parts=graphs(n_out=3, names=SMOOTH),
    name=st.sampled_from(list(LOSSES)),
    batch=st.sampled_from(BATCHES),
    seed=st.integers(0, 9),
)
@settings(max_examples=80)
def test_hessian_of_random_networks(isa, parts, name, batch, seed):
    model, _ = build(rates(parts, name), LOSSES[name].make(3), seed=seed)
    x, y = numbers(seed, batch, parts[0][0]), targets_for(name, batch, 3, seed)
    if LOSSES[name].loss.kinked:
        y = model.predict(x) + np.where(numbers(seed + 7, *y.shape) > 0, 2.0, 0.15)  # on one side of every kink
    assert_hessian(model, x, y, seed, rtol=1e-7)


@given(parts=graphs(n_out=2), batch=st.sampled_from(BATCHES), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_hessian_is_symmetric_with_kinks(isa, dtype, parts, batch, seed):
    model, _ = build(parts, cnn.MSELoss(), seed=seed, dtype=dtype)
    x, y = numbers(seed, batch, parts[0][0]), numbers(seed + 1, batch, 2)
    u, v = numbers(seed + 2, model.parameters.size), numbers(seed + 3, model.parameters.size)
    for product in (model.hvp, model.gnvp):
        hu, hv = product(x, y, u), product(x, y, v)
        assert hv.dtype == dtype
        size = np.linalg.norm(u) * np.linalg.norm(hv) + np.linalg.norm(v) * np.linalg.norm(hu)
        np.testing.assert_allclose(u @ hv, v @ hu, atol=300 * np.finfo(dtype).eps * size + 1e-30)
        np.testing.assert_array_equal(hv, product(x, y, v))


@given(parts=graphs(names=SMOOTH), batch=st.sampled_from(BATCHES), seed=st.integers(0, 9))
@settings(max_examples=40)
def test_input_hessian(isa, parts, batch, seed):
    """hvp_input is the derivative of vjp along x, and so is the mixed product with respect to the parameters."""
    model, _ = build(parts, seed=seed)
    x, t = numbers(seed, batch, parts[0][0]), numbers(seed + 1, batch, parts[0][0])
    g = numbers(seed + 2, *model.predict(x).shape)
    of_inputs, mixed = model.hvp_input(x, t, grad_output=g, parameters=True)
    expected = along(lambda h: model.vjp(x + h * t, g))
    expected_mixed = along(lambda h: model.vjp(x + h * t, g, parameters=True)[1])
    floor = 1e-3 * abs(model.vjp(x, g)).max() + 1e-12
    np.testing.assert_allclose(of_inputs, expected, rtol=0, atol=RTOL * (abs(expected).max() + floor))
    floor = 1e-3 * abs(model.vjp(x, g, parameters=True)[1]).max() + 1e-12
    np.testing.assert_allclose(mixed, expected_mixed, rtol=0, atol=RTOL * (abs(expected_mixed).max() + floor))
    np.testing.assert_array_equal(model.hvp_input(x, t, grad_output=g), of_inputs)


def test_input_hessian_of_a_loss_and_by_default(isa):
    parts = [(4, 9, True, 0.1), ("tanh", None), (9, 3, True)]
    model, _ = build(parts, cnn.MSELoss())
    x, t, y = numbers(1, 6, 4), numbers(2, 6, 4), numbers(3, 6, 3)
    assert_close(model.hvp_input(x, t, y), along(lambda h: model.grad_input(x + h * t, y)), RTOL)
    np.testing.assert_array_equal(model.hvp_input(x, t), model.hvp_input(x, t, grad_output=np.ones((6, 3))))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_derivative_of_activations(isa, activation):
    """Wide and near zero, fused and on its own: d2/dx2 of f(x), by its formula and by differences of f'."""
    layer = ACTIVATIONS[activation].make()
    z = np.concatenate([np.linspace(-30, 30, 401), np.linspace(-0.01, 0.01, 41), [-700.0, 700.0, 1e-9]])
    z = z[ACTIVATIONS[activation].distance(z) > 1e-3]
    expected = along(lambda h: layer.derivative(z + h), 2e-4)
    for layers in ([cnn.Linear(1, 1)], [cnn.Linear(1, 1), cnn.Identity(), cnn.Identity()]):
        model = cnn.Sequential([*layers, ACTIVATIONS[activation].make()], dtype="float64")
        model.parameters = [1.0, 0.0]
        np.testing.assert_allclose(model.hvp_input(z[:, None], np.ones((len(z), 1)))[:, 0], expected, atol=2e-11)
        formula = ACTIVATIONS[activation].curvature(z)
        np.testing.assert_allclose(model.hvp_input(z[:, None], np.ones((len(z), 1)))[:, 0], formula, atol=1e-13)


@pytest.mark.parametrize("penalty", [{"l1": 0.3}, {"l2": 0.3}, {"l1": 0.1, "l2": 0.2}], ids=str)
@pytest.mark.parametrize("widths", [(5, 3), (33, 1), (1, 33)], ids=str)
def test_penalties(isa, widths, penalty):
    n_in, n_out = widths
    layers = [cnn.Linear(n_in, 4), cnn.Tanh(), cnn.Linear(4, n_in), cnn.Linear(n_in, n_out, **penalty), cnn.MSELoss()]
    model = cnn.Sequential(layers, dtype="float64", seed=1)
    x, y = numbers(1, 6, n_in), numbers(2, 6, n_out)
    assert_hessian(model, x, y, 3)


def test_l2_of_nested_layers_counts_once(isa):
    parts = [(4, 4, True, 0.1), ("tanh", None)]
    model, truth = build(parts, cnn.MSELoss())
    x, y = numbers(1, 6, 4), numbers(2, 6, 4)
    np.testing.assert_allclose(model.loss_and_grad(x, y)[0], truth.gradients(x, y)[0], rtol=1e-13)


@pytest.mark.parametrize("batch", [127, 128, 129, 300])
@pytest.mark.parametrize("widths", [(5, 70, 3), (300, 2, 300), (2, 1100, 1)], ids=str)
def test_batches_longer_than_a_chunk(isa, batch, widths):
    """Products of a long batch are made of those of its rows."""
    parts = [(widths[0], widths[1], True), ("gelu", None), (widths[1], widths[2], True)]
    model, _ = build(parts, cnn.MSELoss(reduction="sum"))
    x, y, t = numbers(1, batch, widths[0]), numbers(2, batch, widths[2]), numbers(4, batch, widths[0])
    v = numbers(3, model.parameters.size)
    whole = model.hvp(x, y, v)
    assert_close(whole, model.hvp(x[:100], y[:100], v) + model.hvp(x[100:], y[100:], v), 1e-11)
    rows = [model.jvp(x[i : i + 1], t[i : i + 1])[0] for i in range(0, batch, 40)]
    assert_close(model.jvp(x, t)[::40], np.array(rows), 1e-12)


@pytest.mark.parametrize("batch", [900, 1500])
def test_long_batches_on_any_number_of_threads(isa, batch):
    """Bits do not depend on threads, and numbers not on the batch that a row is in. With 1500 rows, all products pass
    the rows through the room of a chunk, with 900 only jvp."""
    model, _ = build([(4, 9, True), ("tanh", None), (9, 2, True)], cnn.MSELoss(reduction="sum"))
    x, t, y = numbers(1, batch, 4), numbers(2, batch, 4), numbers(3, batch, 2)
    v, used = numbers(4, model.parameters.size), cnn.get_num_threads()

    def products(rows):
        return {
            "jvp": model.jvp(x[rows], t[rows], v),
            "hvp_input": model.hvp_input(x[rows], t[rows], y[rows]),
            "hvp": model.hvp(x[rows], y[rows], v),
            "gnvp": model.gnvp(x[rows], y[rows], v),
        }

    try:
        found = []
        for threads in (1, 2):
            cnn.set_num_threads(threads)
            model._core.kernels.forget_waits()
            found.append(products(slice(None)))
    finally:
        cnn.set_num_threads(used)
    parts = [products(slice(at, at + 100)) for at in range(0, batch, 100)]
    for name, one in found[0].items():
        np.testing.assert_array_equal(one, found[1][name], name)
        join = np.concatenate if one.ndim == 2 else sum
        assert_close(one, join([part[name] for part in parts]), 1e-11, name)


# use ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small():
    parts = [(3, 5, True), ("tanh", None), (5, 2, True)]
    return build(parts, cnn.MSELoss())[0], numbers(1, 4, 3), numbers(2, 4, 2)


def test_gradients_and_parameters_are_left_alone(small):
    model, x, y = small
    model(x, y)
    model.backward()
    gradients, parameters = model.gradients, model.parameters
    n = parameters.size
    model.vjp(x, y, parameters=True)
    model.jvp(x, x, parameters)
    model.hvp(x, y, np.ones(n))
    model.gnvp(x, y, np.ones(n))
    model.hvp_input(x, x, parameters=True)
    model.grad_input(x, y)
    model.jacobian(x)
    np.testing.assert_array_equal(model.gradients, gradients)
    np.testing.assert_array_equal(model.parameters, parameters)


@pytest.mark.parametrize("call", ["vjp", "jvp", "hvp", "hvp_input", "grad_input"])
def test_a_pending_backward_is_refused_afterwards(small, call):
    model, x, y = small
    arguments = {
        "vjp": (x, y),
        "jvp": (x, x),
        "hvp": (x, y, model.parameters),
        "hvp_input": (x, x),
        "grad_input": (x, y),
    }
    model(x, y)
    getattr(model, call)(*arguments[call])
    with pytest.raises(RuntimeError, match=r"forward pass, but (a derivative product|grad_input) has run"):
        model.backward(y)


def test_empty_batches(small):
    model, _, _ = small
    empty = np.empty((0, 3))
    assert model.jvp(empty, empty).shape == (0, 2)
    assert model.vjp(empty, np.empty((0, 2))).shape == (0, 3)
    np.testing.assert_array_equal(
        model.vjp(empty, np.empty((0, 2)), parameters=True)[1], np.zeros(model.parameters.size)
    )
    assert model.jacobian(empty).shape == (0, 2, 3)
    for call in (lambda: model.hvp(empty, np.empty((0, 2)), model.parameters), lambda: model.hvp_input(empty, empty)):
        with pytest.raises(ValueError, match="x: expected at least one row"):
            call()


def test_arguments_that_do_not_fit(small):
    model, x, y = small
    n = model.parameters.size
    for call, message in [
        (lambda: model.vjp(x, y[:, :1]), r"v: expected shape \(batch, 2\) for the outputs of layer 2, Linear\(5, 2\)"),
        (lambda: model.vjp(x, y[:3]), "v: expected 4 rows, as many as x has, got 3"),
        (lambda: model.vjp(x[:, :2], y), r"x: expected shape \(batch, 3\) for layer 0"),
        (lambda: model.jvp(x, x[:, :2]), r"t: expected shape \(batch, 3\)"),
        (lambda: model.jvp(x, x[:1]), "t: expected 4 rows"),
        (lambda: model.jvp(x), "jvp: expected a tangent of the inputs or of the parameters, got neither"),
        (lambda: model.jvp(x, parameters=np.ones(n + 1)), rf"parameters: expected shape \({n},\)"),
        (lambda: model.hvp(x, y, np.ones(n - 1)), rf"v: expected shape \({n},\), got \({n - 1},\)"),
        (lambda: model.hvp(x, y, np.ones((n, 1))), "v: expected shape"),
        (lambda: model.hvp(x, y[:2], np.ones(n)), "y: expected 4 rows|y: expected shape"),
        (lambda: model.gnvp(x, y, 1.0), "v: expected shape"),
        (lambda: model.grad_input(x), "grad_input: without y the model must have one output, got 2: use vjp"),
        (lambda: model.hvp_input(x, x, y, y), "hvp_input: expected y or grad_output, got both"),
        (lambda: model.hvp_input(x, x, grad_output=y[:, :1]), r"grad_output: expected shape \(batch, 2\)"),
        (lambda: model.hvp_input(x, x[:2]), "v: expected 4 rows"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    for wrong in (np.ones(n, complex), np.array(["a"] * n), [object()] * n):
        with pytest.raises(TypeError, match="v: expected real numbers, got dtype"):
            model.hvp(x, y, wrong)
    with pytest.raises(TypeError, match="v: expected real numbers"):
        model.vjp(x, y * 1j)
    np.testing.assert_array_equal(model.hvp(x, y, np.ones(n, int)), model.hvp(x, y, np.ones(n)))


def test_without_a_loss():
    model = cnn.Sequential([cnn.Linear(3, 1)], dtype="float64", seed=0)
    x = numbers(1, 4, 3)
    for call in (model.hvp, model.gnvp):
        with pytest.raises(RuntimeError, match="the model has no loss"):
            call(x, np.ones(4), np.ones(4))
    assert_close(model.grad_input(x), np.broadcast_to(model.layers[0].weight.T, (4, 3)), 1e-15)


def test_a_loss_in_python_has_no_hessian():
    def log_cosh(outputs, targets):
        d = outputs - targets
        return np.log(np.cosh(d)).mean(), np.tanh(d) / d.size

    model = cnn.Sequential(
        [cnn.Linear(3, 5), cnn.Tanh(), cnn.Linear(5, 2), cnn.CallableLoss(log_cosh)], dtype="float64", seed=0
    )
    x, y, t = numbers(1, 4, 3), numbers(2, 4, 2), numbers(3, 4, 3)
    for call in (
        lambda: model.hvp(x, y, model.parameters),
        lambda: model.gnvp(x, y, model.parameters),
        lambda: model.hvp_input(x, t, y),
        lambda: model.hessian_operator(x, y),
    ):
        with pytest.raises(NotImplementedError, match=r"CallableLoss\(.*log_cosh\) has no second derivative"):
            call()
    expected = along(lambda h: log_cosh(model.predict(x + h * t), y)[0])
    np.testing.assert_allclose(np.sum(model.grad_input(x, y) * t), expected, rtol=1e-9)
    assert model.hvp_input(x, t).shape == x.shape


def test_memory_is_linear():
    """In the batch and in the network: no Jacobian and no Hessian anywhere."""

    def size(batch, width, depth):
        layers = [layer for _ in range(depth) for layer in (cnn.Linear(width, width), cnn.Tanh())]
        model = cnn.Sequential([*layers, cnn.MSELoss()], dtype="float64", seed=0)
        x = numbers(1, batch, width)
        model.hvp(x, x, model.parameters)
        return model._core.derivatives.nbytes, model.parameters.nbytes + depth * x.nbytes

    def of_jvp(batch):
        model = cnn.Sequential([cnn.Linear(8, 8), cnn.Tanh()], seed=0)
        model.jvp(np.ones((batch, 8), "float32"), np.ones((batch, 8), "float32"))
        return model._core.derivatives.nbytes

    assert of_jvp(100_000) <= of_jvp(128 * cnn.get_num_threads())
    for batch, width, depth in [(1, 64, 2), (256, 64, 2), (256, 64, 8), (1024, 64, 8), (64, 256, 4)]:
        used, linear = size(batch, width, depth)
        assert used <= 6 * linear


def test_linear_operator(small):
    model, x, y = small
    n = model.parameters.size
    operator = model.hessian_operator(x, y)
    v = numbers(5, n)
    np.testing.assert_array_equal(operator @ v, model.hvp(x, y, v))
    np.testing.assert_array_equal(operator.T @ v, model.hvp(x, y, v))
    hessian = operator @ np.eye(n)
    assert_close(hessian, hessian.T, 1e-12)
    expected = np.linalg.eigvalsh(hessian)
    found = scipy.sparse.linalg.eigsh(operator, k=3, which="LA", return_eigenvectors=False, v0=np.ones(n))
    np.testing.assert_allclose(np.sort(found), expected[-3:], rtol=1e-8)
    gauss_newton = model.hessian_operator(x, y, gauss_newton=True) @ np.eye(n)
    assert np.linalg.eigvalsh(gauss_newton).min() > -1e-12
    kept = x.copy()
    x[...] = 0
    assert_close(operator @ v, model.hvp(kept, y, v), 1e-15)
    with pytest.raises(ValueError, match=r"y: expected"):
        model.hessian_operator(x, y[:2])


@pytest.mark.parametrize("method", ["Newton-CG", "trust-ncg", "trust-krylov", "L-BFGS-B"])
def test_scipy_minimisers(method):
    """They come to a point without slope."""
    parts = [(2, 5, True), ("tanh", None), (5, 1, True, 0.01)]
    model, _ = build(parts, cnn.MSELoss(), seed=3)
    x = numbers(1, 50, 2)
    y = np.sin(x[:, :1]) * x[:, 1:]

    def loss_and_grad(p):
        model.parameters = p
        return model.loss_and_grad(x, y)

    def hessp(p, v):
        model.parameters = p
        return model.hvp(x, y, v)

    start = model.parameters
    second = {} if method == "L-BFGS-B" else {"hessp": hessp}
    options = {"L-BFGS-B": {"maxiter": 300}, "Newton-CG": {"xtol": 1e-9}}.get(method, {"gtol": 1e-5})
    result = scipy.optimize.minimize(loss_and_grad, start, jac=True, method=method, options=options, **second)
    assert result.fun < 0.5 * loss_and_grad(start)[0]
    assert abs(result.jac).max() < (1e-3 if method == "L-BFGS-B" else 1e-4)
