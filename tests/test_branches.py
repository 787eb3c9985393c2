"""Branches and nested models: what is refused at construction, names, parameters, values and gradients.

Values are held against the NumPy forward pass of tests/grid, gradients against central differences of order 4 of it.
"""

from itertools import pairwise

import grid
import numpy as np
import pytest
from arrays import looped
from grid import GATES, SMOOTH, build, graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import apart, assert_close, explicit, fused, numbers

import cnn

BATCHES = (1, 2, 5, 17, 130)


def chain(*widths):
    """Linear layers of these widths with Tanh between them, as a model."""
    layers = [cnn.Linear(widths[0], widths[1])]
    for a, b in pairwise(widths[1:]):
        layers += [cnn.Tanh(), cnn.Linear(a, b)]
    return cnn.Sequential(layers)


# construction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", [cnn.Add, cnn.Multiply, cnn.Maximum, cnn.Concat])
def test_what_is_no_set_of_branches(gate):
    name = gate.__name__
    layer = cnn.Tanh()
    for branches, error, message in [
        ((), ValueError, rf"^{name}: expected 2 to 64 branches, got 0"),
        ((cnn.Linear(2, 2),), ValueError, rf"^{name}: expected 2 to 64 branches, got 1"),
        (tuple(cnn.Tanh() for _ in range(65)), ValueError, rf"^{name}: expected 2 to 64 branches, got 65"),
        ((layer, layer), ValueError, rf"^{name}: the same branch was passed twice"),
        (([cnn.Tanh(), cnn.Tanh()],), TypeError, rf"^{name}: expected branches as arguments"),
        ((cnn.Tanh(), cnn.Tanh), TypeError, rf"^{name}\[1\]: expected a layer or a Sequential, got .*pass an object"),
        ((cnn.Tanh(), cnn.MSELoss()), TypeError, rf"^{name}\[1\]: expected a layer or a Sequential, got MSELoss"),
        ((3, cnn.Tanh()), TypeError, rf"^{name}\[0\]: expected a layer or a Sequential, got 3"),
        (
            (cnn.Tanh(), cnn.Sequential([cnn.Linear(2, 2), cnn.MSELoss()])),
            ValueError,
            rf"^{name}\[1\]: a Sequential in a model has no loss of its own, got MSELoss\(\)",
        ),
        (
            (cnn.Sequential([cnn.Linear(2, 2)], optimizer=cnn.SGD(0.1)), cnn.Tanh()),
            ValueError,
            rf"^{name}\[0\]: a Sequential in a model has no optimizer of its own, got SGD",
        ),
    ]:
        with pytest.raises(error, match=message):
            gate(*branches)


def test_widths_are_named_with_their_path():
    for layers, message in [
        (
            [cnn.Linear(4, 8), cnn.Tanh(), cnn.Linear(8, 8), cnn.Add(cnn.Identity(), chain(7, 8))],
            r"^layer 3\.Add\[1\]\.0, Linear\(7, 8\): expects 7 inputs, but layer 2, Linear\(8, 8\), gives 8$",
        ),
        (
            [cnn.Linear(4, 8), cnn.Add(cnn.Identity(), cnn.Linear(8, 7))],
            r"^1\.Add\[1\]: expected a branch of 8 outputs, as 1\.Add\[0\] has, got 7$",
        ),
        (
            [cnn.Linear(4, 8), cnn.Concat(cnn.Tanh(), chain(8, 3)), cnn.Linear(8, 1)],
            r"^layer 2, Linear\(8, 1\): expects 8 inputs, but layer 1, Concat\(.*\), gives 11$",
        ),
        (
            [cnn.Linear(4, 8), cnn.Multiply(cnn.Tanh(), cnn.Maximum(cnn.ReLU(), cnn.LayerNorm(5)))],
            r"^layer 1\.Multiply\[1\]\.Maximum\[1\], LayerNorm.*: expects 5 inputs, but layer 0, Linear.*, gives 8$",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            cnn.Sequential(layers)


def test_a_layer_stands_in_a_model_once():
    shared = cnn.Linear(4, 4)
    for layers, message in [
        (
            [shared, cnn.Tanh(), shared],
            r"^layer 2, Linear\(4, 4\): used twice in the model, first as layer 0",
        ),
        (
            [
                shared,
                cnn.Add(cnn.Identity(), cnn.Sequential([cnn.Tanh(), cnn.Linear(4, 4)])),
                cnn.Add(cnn.Tanh(), shared),
            ],
            r"^layer 2\.Add\[1\], Linear\(4, 4\): used twice in the model, first as layer 0: create a second layer$",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            cnn.Sequential(layers)
    inner = chain(4, 4, 4)
    with pytest.raises(ValueError, match=r"^layer 1, Sequential.*: used twice in the model"):
        cnn.Sequential([inner, inner])
    block = cnn.Add(cnn.Identity(), cnn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"^layer 1, Add.*: used twice in the model"):
        cnn.Sequential([block, block])


def test_a_layer_belongs_to_one_model():
    linear = cnn.Linear(4, 4)
    owner = cnn.Sequential([linear])
    add = cnn.Add(cnn.Identity(), linear)
    other = cnn.Sequential([cnn.Linear(4, 4), add])
    assert other[1] is not add
    np.testing.assert_array_equal(other[1][1].weight, linear.weight)
    linear.weight[...] = 0
    assert other[1][1].weight.any()
    assert owner.predict(np.ones((1, 4))).shape == (1, 4)


def test_nothing_says_how_wide_the_input_is():
    for layers in ([cnn.Add(cnn.Tanh(), cnn.Identity())], [cnn.Concat(cnn.Tanh(), cnn.ReLU()), cnn.Linear(8, 2)]):
        with pytest.raises(ValueError, match="expected at least one Linear, which sets the number"):
            cnn.Sequential(layers)
    assert cnn.Sequential([cnn.Add(cnn.Tanh(), cnn.Identity()), cnn.Linear(8, 2)]).predict(np.ones((1, 8))).shape == (
        1,
        2,
    )


# nested models ------------------------------------------------------------------------------------------------------


def test_parameters_of_nested_models():
    """From the outer seed, unless the inner model had a seed of its own or has been changed."""

    def outer(inner):
        return cnn.Sequential([cnn.Linear(3, 3), cnn.Add(cnn.Identity(), inner)], seed=5).state_dict()

    flat = cnn.Sequential([cnn.Linear(3, 3), cnn.Linear(3, 4), cnn.Tanh(), cnn.Linear(4, 3)], seed=5).state_dict()
    for _ in range(2):
        state = outer(chain(3, 4, 3))
        assert list(state) == ["0.weight", "0.bias", "1.1.0.weight", "1.1.0.bias", "1.1.2.weight", "1.1.2.bias"]
        for ours, theirs in zip(state.values(), flat.values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    seeded = cnn.Sequential([cnn.Linear(3, 4), cnn.Tanh(), cnn.Linear(4, 3)], seed=9)
    own = seeded.state_dict()
    touched = chain(3, 4, 3)
    touched.parameters = touched.parameters * 2
    changed = touched.state_dict()
    for inner, kept in ((seeded, own), (touched, changed)):
        state = outer(inner)
        for name, array in kept.items():
            np.testing.assert_array_equal(state[f"1.1.{name}"], array)
        np.testing.assert_array_equal(state["0.weight"], flat["0.weight"])


def test_an_activation_behind_a_nested_chain():
    """It joins a Linear that ends the chain, and follows one that has its activation."""
    x = numbers(1, 5, 3)
    for inner, f in [
        ([cnn.Linear(3, 4)], lambda z: np.maximum(z, 0)),
        ([cnn.Linear(3, 4), cnn.Identity()], lambda z: np.maximum(z, 0)),
        ([cnn.Linear(3, 4), cnn.Tanh()], lambda z: np.maximum(np.tanh(z), 0)),
        ([cnn.Linear(3, 4), cnn.Tanh(), cnn.Sigmoid()], lambda z: np.maximum(1 / (1 + np.exp(-np.tanh(z))), 0)),
    ]:
        model = cnn.Sequential([cnn.Sequential(inner), cnn.ReLU()], dtype="float64", seed=1)
        state = model.state_dict()
        assert_close(model.predict(x), f(x @ state["0.0.weight"] + state["0.0.bias"]), 1e-14)
        v = numbers(2, 5, 4)
        assert_close(model.vjp(x, v), np.einsum("bki,bk->bi", model.jacobian(x), v), 1e-13)


# values and gradients -----------------------------------------------------------------------------------------------


@given(parts=graphs(n_out=3, names=SMOOTH), batch=st.sampled_from(BATCHES), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_gradients_of_random_graphs(isa, parts, batch, seed):
    """Loss, loss_and_grad and backward, along random directions."""
    model, truth = build(parts, cnn.MSELoss(), seed=seed)
    model.eval()
    x, y = numbers(seed, batch, parts[0][0]), numbers(seed + 1, batch, 3)
    start = model.parameters

    def loss(x, vector):
        return np.mean((truth.outputs(x, vector) - y) ** 2) + truth.penalty()

    value, gradient = model.loss_and_grad(x, y)
    np.testing.assert_allclose(value, loss(x, start), rtol=1e-11)
    model.zero_grads()
    np.testing.assert_allclose(model(x, y), value, rtol=1e-14)
    grad_x = model.backward()
    assert_close(model.gradients, gradient, 1e-13)
    v, t = numbers(seed + 2, start.size), numbers(seed + 3, *x.shape)
    v /= np.linalg.norm(v)
    t /= np.linalg.norm(t)
    for actual, f in (
        (gradient @ v, lambda h: loss(x, start + h * v)),
        (np.sum(grad_x * t), lambda h: loss(x + h * t, start)),
    ):
        h = 3e-4
        expected = (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)
        np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-9 * (1 + value))


@given(
    parts=graphs(n_out=3),
    batch=st.sampled_from(BATCHES),
    seed=st.integers(0, 99),
    optimizer=st.sampled_from([cnn.SGD(0.01, momentum=0.9), cnn.Adam(0.01)]),
)
@settings(max_examples=40)
def test_the_fused_step_is_the_explicit_one(isa, dtype, parts, batch, seed, optimizer):
    """Bit for bit, in training mode, with one thread and with two."""
    batch = max(batch, 2)  # batch normalisation
    x, y = numbers(seed, batch, parts[0][0]).astype(dtype), numbers(seed + 1, batch, 3).astype(dtype)
    results = []
    for threads, step in ((1, fused), (1, apart), (2, fused), (2, apart)):
        model, _ = build(
            parts, cnn.MSELoss(), dtype=dtype, seed=seed, optimizer=type(optimizer)(**optimizer.get_config())
        )
        before = cnn.get_num_threads()
        cnn.set_num_threads(threads)
        try:
            losses = [step(model, x, y) for _ in range(3)]
        finally:
            cnn.set_num_threads(before)
        results.append((losses, model.parameters))
    for losses, parameters in results[1:]:
        assert losses == results[0][0]
        np.testing.assert_array_equal(parameters, results[0][1])


@pytest.mark.parametrize("name", [*grid.ACTIVATIONS, *grid.LAYERS])
@looped("n", [1, 5])
def test_the_padding_stays_zero(isa, dtype, name, n):
    """Whatever a branch is: what it leaves beside its gradient is not added to that of the other branch's input. The
    penalty, which sums over the padding of W, would tell."""
    entry = grid.LAYERS.get(name) or grid.ACTIVATIONS[name]

    def model():
        part = entry.make(n, dtype) if name in grid.LAYERS else entry.make(None)
        width = entry.width(n) if name in grid.LAYERS else n
        wide = cnn.Sequential([cnn.Linear(n, 7), cnn.Add(cnn.Identity(), cnn.Linear(7, 7))], dtype=dtype)
        layers = [cnn.Linear(3, n, l2=0.1), cnn.Concat(part, wide), cnn.Linear(width + 7, 2), cnn.MSELoss()]
        return cnn.Sequential(layers, cnn.SGD(0.1), dtype=dtype, seed=0)

    x, y = numbers(0, 6, 3).astype(dtype), numbers(1, 6, 2).astype(dtype)
    a, b = model(), model()
    for _ in range(3):
        assert fused(a, x, y) == explicit(b, x, y)
    np.testing.assert_array_equal(a.parameters, b.parameters)


@given(parts=graphs(), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_a_row_alone_and_in_a_batch(isa, dtype, parts, seed):
    model, _ = build(parts, dtype=dtype, seed=seed)
    x = numbers(seed, 203, parts[0][0]).astype(dtype)
    whole = model.predict(x)
    for rows in (slice(0, 1), slice(7, 8), slice(100, 203), slice(202, 203)):
        np.testing.assert_array_equal(model.predict(x[rows]), whole[rows])
    np.testing.assert_array_equal(model.predict(x, threads=2), whole)
    model.eval()
    assert_close(model(x), whole, 1e-5 if dtype == "float32" else 1e-13)


@looped("n", [1, 3, 8, 17, 70])
@looped("sources", [2, 3, 64])
@pytest.mark.parametrize("gate", GATES)
def test_gates_of_many_branches(isa, dtype, gate, sources, n):
    branches = [cnn.Linear(5, n) for _ in range(sources)]
    model = cnn.Sequential([cnn.Linear(5, 5), GATES[gate](*branches)], dtype=dtype, seed=0)
    x = numbers(1, 6, 5).astype(dtype)
    state = model.state_dict()
    hidden = x @ state["0.weight"] + state["0.bias"]
    ends = np.array([hidden @ state[f"1.{i}.weight"] + state[f"1.{i}.bias"] for i in range(sources)], np.float64)
    expected = {
        "add": lambda: ends.sum(axis=0),
        "multiply": lambda: ends.prod(axis=0),
        "maximum": lambda: ends.max(axis=0),
        "concat": lambda: np.concatenate(ends, axis=1),
    }[gate]()
    np.testing.assert_allclose(
        model.predict(x), expected, rtol=3e-4 if dtype == "float32" else 1e-11, atol=abs(expected).max() * 1e-5
    )
    v, t = numbers(2, *expected.shape), numbers(3, *x.shape)
    gradient = model.vjp(x, v).astype(np.float64)
    size = np.linalg.norm(gradient) * np.linalg.norm(t)
    np.testing.assert_allclose(
        np.sum(v * model.jvp(x, t)), np.sum(gradient * t), atol=100 * np.finfo(dtype).eps * size + 1e-30
    )


def scaled(factor):
    """A branch that multiplies its only input by a number."""
    layer = cnn.Linear(1, 1, bias=False, dtype="float64")
    layer.weight = [[factor]]
    return layer


def test_maximum_ties_go_to_the_first(isa):
    """Equal branches, among them zeros of either sign: the first gets all of the gradient."""
    branches = [scaled(a) for a in (1.0, 2.0, 2.0)]
    model = cnn.Sequential([cnn.Maximum(*branches)], dtype="float64")
    x = np.array([[3.0], [-3.0], [0.0], [-0.0]])
    np.testing.assert_array_equal(model.predict(x), [[6.0], [-3.0], [0.0], [0.0]])
    model(x)
    np.testing.assert_array_equal(model.backward(np.ones((4, 1))), [[2.0], [1.0], [1.0], [1.0]])
    assert [branch.grad_weight.item() for branch in branches] == [-3.0, 3.0, 0.0]
    np.testing.assert_array_equal(model.jvp(x, np.ones((4, 1))), [[2.0], [1.0], [1.0], [1.0]])


@pytest.mark.parametrize("n", [1, 9, 17])
def test_nan_goes_through(isa, dtype, n):
    """Through every gate, from any branch, in its own row and column only."""
    for gate in (cnn.Add, cnn.Multiply, cnn.Maximum):
        for bad in range(3):
            columns = [cnn.Linear(n, n, bias=False) for _ in range(3)]
            model = cnn.Sequential([gate(*columns)], dtype=dtype, seed=0)
            for i, layer in enumerate(columns):
                weight = np.eye(n)
                if i == bad:
                    weight[:, n - 1] = np.nan
                layer.weight = weight
            y = model.predict(np.ones((3, n)))
            np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(np.arange(n) == n - 1, (3, n)))


def test_one_source_read_by_all(isa):
    """Branches that are all Identity: y = x + x, x x, max(x, x), (x, x)."""
    x, t = numbers(1, 5, 3), numbers(2, 5, 3)
    for gate, value, slope in [
        (cnn.Add, x + x, 2 * t),
        (cnn.Multiply, x * x, 2 * x * t),
        (cnn.Maximum, x, t),
        (cnn.Concat, np.hstack([x, x]), np.hstack([t, t])),
    ]:
        linear = cnn.Linear(3, 3, bias=False)
        model = cnn.Sequential([linear, gate(cnn.Identity(), cnn.Identity())], dtype="float64")
        linear.weight = np.eye(3)
        assert_close(model.predict(x), value, 1e-15)
        assert_close(model.jvp(x, t), slope, 1e-15)
        v = numbers(3, *value.shape)
        np.testing.assert_allclose(np.sum(model.vjp(x, v) * t), np.sum(v * slope), rtol=1e-12)
    square = cnn.Sequential(
        [cnn.Multiply(cnn.Identity(), cnn.Identity(), cnn.Linear(3, 3, bias=False))], dtype="float64"
    )
    square.layers[0][2].weight = np.eye(3)
    assert_close(square.predict(x), x**3, 1e-14)
    assert_close(square.hvp_input(x, t), 6 * x * t, 1e-13)


# files and tables ---------------------------------------------------------------------------------------------------


def deep():
    block = cnn.Sequential([cnn.LayerNorm(6), cnn.Linear(6, 4), cnn.GELU(), cnn.Linear(4, 6)])
    gated = cnn.Multiply(
        cnn.Sequential([cnn.Linear(6, 2), cnn.Sigmoid()]), cnn.Maximum(cnn.Linear(6, 2), cnn.Linear(6, 2))
    )
    layers = [cnn.Linear(3, 6), cnn.Add(cnn.Identity(), block), cnn.Concat(gated, cnn.BatchNorm1d(6))]
    return cnn.Sequential([*layers, cnn.MSELoss()], dtype="float64", seed=4)


NAMES = [
    *("0.weight", "0.bias", "1.1.0.weight", "1.1.0.bias", "1.1.1.weight", "1.1.1.bias", "1.1.3.weight", "1.1.3.bias"),
    *("2.0.0.0.weight", "2.0.0.0.bias", "2.0.1.0.weight", "2.0.1.0.bias", "2.0.1.1.weight", "2.0.1.1.bias"),
    *("2.1.weight", "2.1.bias", "2.1.running_mean", "2.1.running_var", "2.1.num_batches_tracked"),
]


def test_state_and_round_trips(tmp_path):
    model = deep()
    x, y = numbers(1, 6, 3), numbers(2, 6, 8)
    model(x, y)  # running statistics
    state = model.state_dict()
    assert list(state) == NAMES
    outputs = model.predict(x)
    model.save(tmp_path / "model.safetensors")
    again = cnn.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.predict(x), outputs)
    assert repr(again) == repr(model)
    assert again.get_config() == model.get_config()
    anew = cnn.Sequential.from_config(model.get_config())
    for name, array in anew.state_dict().items():
        if "running" not in name and "tracked" not in name:
            np.testing.assert_array_equal(array, deep().state_dict()[name])
    anew.load_weights(state, model.get_config())
    np.testing.assert_array_equal(anew.predict(x), outputs)
    with pytest.raises(ValueError, match=r"missing 1\.1\.0\.bias"):
        anew.load_weights({name: a for name, a in state.items() if name != "1.1.0.bias"})
    position = sum(array.size for name, array in list(state.items())[:4])
    vector = model.parameters
    assert vector[position] == state["1.1.1.weight"][0, 0]


def test_indexing_and_repr():
    model = deep()
    add = model[1]
    assert len(add) == 2
    assert isinstance(add[1], cnn.Sequential)
    assert len(add[1]) == 4
    assert (
        repr(cnn.Add(cnn.Identity(), chain(2, 3, 2)))
        == "Add(Identity(), Sequential(Linear(2, 3), Tanh(), Linear(3, 2)))"
    )


def test_learns_a_product():
    """Multiply of two linear branches can represent x0 x1; a linear model cannot."""
    model = cnn.Sequential(
        [cnn.Multiply(cnn.Linear(2, 4), cnn.Linear(2, 4)), cnn.Linear(4, 1), cnn.MSELoss()],
        optimizer=cnn.Adam(0.02),
        seed=1,
    )
    x = numbers(1, 500, 2)
    y = x[:, :1] * x[:, 1:]
    model.fit(x, y, epochs=60, batch_size=50, progress=False)
    assert model.evaluate(x, y)["loss"] < 1e-3 * np.var(y)


# the notes' worked graphs -------------------------------------------------------------------------------------------


def test_sum_times_factor(isa):
    """f(x, y, z) = (x + y) z at (-2, 5, -4): q = 3, f = -12; df/dx = df/dy = z = -4, df/dz = q = 3."""
    total = cnn.Linear(3, 1, bias=False, dtype="float64")
    total.weight = [[1.0], [1.0], [0.0]]
    factor = cnn.Linear(3, 1, bias=False, dtype="float64")
    factor.weight = [[0.0], [0.0], [1.0]]
    model = cnn.Sequential([cnn.Multiply(total, factor)], dtype="float64")
    point = [[-2.0, 5.0, -4.0]]
    assert model.predict(point).item() == -12.0
    np.testing.assert_array_equal(model.grad_input(point), [[-4.0, -4.0, 3.0]])
    hessian = [model.hvp_input(point, [row])[0] for row in np.eye(3)]
    np.testing.assert_array_equal(hessian, [[0, 0, 1], [0, 0, 1], [1, 1, 0]])


def test_flat_sigmoid_neuron(isa):
    """L = sigmoid(w0 x0 + w1 x1 + w2) and its five gradients, as the notes' flat code has them (there grad_x0 is
    printed as grad_w0 * w0; it is grad_s0 * w0)."""
    w0, x0, w1, x1, w2 = 2.0, -1.0, -3.0, -2.0, -3.0
    neuron = cnn.Linear(2, 1, dtype="float64")
    neuron.weight, neuron.bias = [[w0], [w1]], [w2]
    model = cnn.Sequential([neuron, cnn.Sigmoid()], dtype="float64")
    s = 1 / (1 + np.exp(-(w0 * x0 + w1 * x1 + w2)))
    grad_s3 = (1 - s) * s
    of_inputs, of_parameters = model.vjp([[x0, x1]], [[1.0]], parameters=True)
    np.testing.assert_allclose(model.predict([[x0, x1]]), [[s]], rtol=1e-15)
    np.testing.assert_allclose(of_parameters, grad_s3 * np.array([x0, x1, 1.0]), rtol=1e-14)
    np.testing.assert_allclose(of_inputs, grad_s3 * np.array([[w0, w1]]), rtol=1e-14)
    product = model.hvp_input([[x0, x1]], [[1.0, 0.0]])
    np.testing.assert_allclose(product, grad_s3 * (1 - 2 * s) * w0 * np.array([[w0, w1]]), rtol=1e-13)


def test_relu_and_its_diagonal_jacobian(isa):
    x, upstream = np.array([[1.0, -2.0, 3.0, -3.0]]), np.array([[4.0, -1.0, 5.0, 9.0]])
    identity = cnn.Linear(4, 4, bias=False, dtype="float64")
    identity.weight = np.eye(4)
    model = cnn.Sequential([identity, cnn.ReLU()], dtype="float64")
    np.testing.assert_array_equal(model.predict(x), [[1.0, 0.0, 3.0, 0.0]])
    np.testing.assert_array_equal(model.jacobian(x), [np.diag([1.0, 0.0, 1.0, 0.0])])
    np.testing.assert_array_equal(model.vjp(x, upstream), [[4.0, 0.0, 5.0, 0.0]])
    np.testing.assert_array_equal(model.jvp(x, upstream), [[4.0, 0.0, 5.0, 0.0]])
    np.testing.assert_array_equal(model.hvp_input(x, upstream), np.zeros((1, 4)))


def test_matrix_product(isa):
    """y = x w: dL/dx = dL/dy w^T, dL/dw = x^T dL/dy."""
    layer = cnn.Linear(3, 2, bias=False, dtype="float64")
    layer.weight = [[3.0, 2.0], [1.0, 2.0], [3.0, 2.0]]
    model = cnn.Sequential([layer], dtype="float64")
    x, upstream = np.array([[2.0, 1.0, -3.0], [-3.0, 4.0, 2.0]]), np.array([[2.0, 3.0], [-8.0, 1.0]])
    of_inputs, of_weight = model.vjp(x, upstream, parameters=True)
    np.testing.assert_array_equal(of_inputs, upstream @ layer.weight.T)
    np.testing.assert_array_equal(of_weight.reshape(3, 2), x.T @ upstream)
