"""The four documents that the library comes from: every figure and every call in them.

They are notes on a linear layer, notes on back-propagation, a container of layers and a network that
trains one sample at a time. Where a figure in them is wrong, the right one is tested; the comment
beside it says what was printed.
"""

import inspect
import json
import math

import grid
import numpy as np
import pytest
from grid import build
from networks import assert_close

import cnn
from cnn import functional

W = [[0.5, -1.0], [1.5, 0.0]]
B = [0.1, 0.2]


@pytest.fixture
def linear(isa, dtype):
    layer = cnn.Linear(2, 2, dtype=dtype.name)
    layer.weight = W
    layer.bias = B  # the notes write (2, 1) in one place; there is one for each output: (2,)
    return layer


# notes on the linear layer -----------------------------------------------------------------------


def test_linear_forward(linear, dtype):
    y = linear.forward(np.array([[1.0, 2.0]], dtype))
    assert y.shape == (1, 2)
    np.testing.assert_allclose(y, [[3.6, -0.8]], rtol=1e-6)
    np.testing.assert_allclose(functional.linear_forward([[1.0, 2.0]], W, B), [[3.6, -0.8]], rtol=1e-15)


def test_linear_backward(linear):
    """dL/dW = x^T dL/dz (the notes first write (dz/dW)^T dL/dz); dL/dx = dL/dz W^T."""
    linear.forward([[1.0, 2.0]])
    grad_input = linear.backward([[1.0, 2.0]])
    np.testing.assert_array_equal(linear.grad_weight, [[1.0, 2.0], [2.0, 4.0]])
    np.testing.assert_array_equal(linear.grad_bias, [1.0, 2.0])
    np.testing.assert_array_equal(grad_input, [[-1.5, 1.5]])  # printed: -1.6


def test_bias_gradient_is_summed_over_the_batch(linear):
    linear.forward(np.zeros((3, 2)))
    linear.backward([[0.1, -0.2], [0.3, -0.1], [0.2, 0.0]])
    np.testing.assert_allclose(linear.grad_bias, [0.6, -0.3], rtol=1e-6)  # printed: +0.3
    _, _, grad_bias = functional.linear_backward([[0.1, -0.2], [0.3, -0.1], [0.2, 0.0]], np.zeros((3, 2)), W)
    np.testing.assert_allclose(grad_bias, [0.6, -0.3], rtol=1e-15)


def test_update_parameters(linear):
    """W_ij <- W_ij - lr dL/dW_ij, and the same for the bias."""
    linear.forward([[1.0, 2.0]])
    linear.backward([[1.0, 2.0]])
    linear.update_parameters(0.1)
    np.testing.assert_allclose(linear.weight, [[0.4, -1.2], [1.3, -0.4]], rtol=1e-6)
    np.testing.assert_allclose(linear.bias, [0.0, 0.0], atol=1e-7)


def test_nested_functions(isa, dtype):
    """o = a3(W3 a2(W2 a1(W1 x + b1) + b2) + b3), and the chain rule through it."""
    spec = [(3, 4, True), ("tanh", None), (4, 3, True), ("sigmoid", None), (3, 2, True), ("relu", None)]
    model, network = build(spec, dtype=dtype, seed=2)
    x = np.array([[0.3, -0.2, 0.5], [1.0, 0.1, -0.4]], dtype)
    rtol = 1e-5 if dtype == np.float32 else 1e-13
    assert_close(model(x), network.forward(x), rtol)
    grad_x, grads = network.backward(np.ones((2, 2)))
    assert_close(model.backward(np.ones((2, 2))), grad_x, rtol)
    assert_close(model.gradients, np.concatenate([g.ravel() for g in grads.values()]), rtol)


# notes on back-propagation -----------------------------------------------------------------------


def test_sum_times_factor(isa, dtype):
    """f(x, y, z) = (x + y) z: q = x + y and f = q z are products with a matrix.

    The add gate hands its gradient to both sides; the multiply gate swaps its factors.
    """
    x, y, z = -2.0, 5.0, -4.0
    ones = np.ones((2, 1), dtype)
    xy, factor = np.array([[x, y]], dtype), np.array([[z]], dtype)
    q = functional.linear_forward(xy, ones)
    f = functional.linear_forward(q, factor)
    assert (q, f) == ([[3]], [[-12]])
    df_dq, df_dz, _ = functional.linear_backward(np.ones((1, 1), dtype), q, factor)
    assert (df_dq, df_dz) == ([[z]], [[x + y]])
    df_dxy, _, _ = functional.linear_backward(df_dq, xy, ones)
    np.testing.assert_array_equal(df_dxy, [[-4, -4]])


def test_copy_gate(isa, dtype):
    """The gradients of the copies of a number are added: x goes to two outputs."""
    layer = cnn.Linear(1, 2, bias=False, dtype=dtype.name)
    layer.weight = [[1.0, 1.0]]
    np.testing.assert_array_equal(layer.forward([[7.0]]), [[7.0, 7.0]])
    np.testing.assert_array_equal(layer.backward([[3.0, 4.0]]), [[7.0]])


def test_sigmoid_neuron(isa, dtype):
    """L = sigmoid(w0 x0 + w1 x1 + w2) and its five gradients, by the notes' own program."""
    w0, x0, w1, x1, w2 = 2.0, -1.0, -3.0, -2.0, -3.0
    s0 = w0 * x0
    s1 = w1 * x1
    s2 = s0 + s1
    s3 = s2 + w2
    loss = 1 / (1 + math.exp(-s3))
    grad_s3 = (1 - loss) * loss
    grad_w2 = grad_s2 = grad_s3
    grad_s0 = grad_s1 = grad_s2
    grad_w1, grad_x1 = grad_s1 * x1, grad_s1 * w1
    grad_w0, grad_x0 = grad_s0 * x0, grad_s0 * w0  # printed: grad_x0 = grad_w0 * w0

    model = cnn.Sequential([cnn.Linear(2, 1), cnn.Sigmoid()], dtype=dtype)
    layer = model.layers[0]
    layer.weight = [[w0], [w1]]
    layer.bias = [w2]
    rtol = 1e-6 if dtype == np.float32 else 1e-15
    np.testing.assert_allclose(model.forward([[x0, x1]]), [[loss]], rtol=rtol)
    grad_x = model.backward([[1.0]])
    np.testing.assert_allclose(grad_x, [[grad_x0, grad_x1]], rtol=rtol)
    np.testing.assert_allclose(layer.grad_weight, [[grad_w0], [grad_w1]], rtol=rtol)
    np.testing.assert_allclose(layer.grad_bias, [grad_w2], rtol=rtol)
    # the figures that this example is known by: 0.73, and 0.2 for the sum
    assert round(loss, 2) == 0.73
    np.testing.assert_allclose(layer.grad_bias, [0.1966], atol=5e-5)
    np.testing.assert_allclose(grad_x, [[0.3932, -0.5898]], atol=5e-5)


def test_sigmoid_derivative(isa, dtype):
    """sigma'(x) = (1 - sigma(x)) sigma(x)."""
    z = np.linspace(-8, 8, 101).astype(dtype)
    s = cnn.Sigmoid().forward(z)
    # 1 - s cancels: its error is that of s, half a roundoff unit of 1
    atol = np.finfo(dtype).eps
    np.testing.assert_allclose(cnn.Sigmoid().derivative(z), (1 - s) * s, rtol=1e-6, atol=atol)


def test_relu(isa, dtype):
    """[1, -2, 3, -3] -> [1, 0, 3, 0]; [4, -1, 5, 9] comes back as [4, 0, 5, 0]. ReLU'(0) = 0."""
    relu = cnn.ReLU()
    x = np.array([1, -2, 3, -3], dtype)
    np.testing.assert_array_equal(relu.forward(x), [1, 0, 3, 0])
    np.testing.assert_array_equal(relu.backward(np.array([4, -1, 5, 9], dtype)), [4, 0, 5, 0])
    jacobian = np.diag([1, 0, 1, 0])  # which is never formed
    np.testing.assert_array_equal(np.diag(relu.derivative(x)), jacobian)
    np.testing.assert_array_equal(relu.derivative(np.array([0.0, -0.0], dtype)), [0, 0])


def test_matrix_product_gradients(isa, dtype):
    """y = x w: dL/dx = dL/dy w^T, dL/dw = x^T dL/dy, element by element for (N, D) = (2, 3), M = 4."""
    rng = np.random.default_rng(0)
    x, w, dy = (rng.integers(-9, 10, shape).astype(dtype) for shape in ((2, 3), (3, 4), (2, 4)))
    dx, dw, _ = functional.linear_backward(dy, x, w)
    for i, j in np.ndindex(2, 3):
        assert dx[i, j] == np.dot(w[j], dy[i])
    for j, k in np.ndindex(3, 4):
        assert dw[j, k] == np.dot(x[:, j], dy[:, k])


# the container -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("__init__", {"layers": inspect.Parameter.empty}),
        ("backward", {"debug": False}),
        ("get_config", {}),
        ("load_weights", {"state_dict": inspect.Parameter.empty, "config": None, "verbose": False}),
        ("state_dict", {}),
        ("step", {}),
        ("zero_grads", {}),
    ],
)
def test_container_signatures(method, parameters):
    """All methods, with the parameters and defaults of the document; others are optional."""
    signature = inspect.signature(getattr(cnn.Sequential, method))
    own = {name: p.default for name, p in signature.parameters.items() if name != "self" and p.kind != p.VAR_POSITIONAL}
    assert parameters.items() <= own.items()
    assert all(own[name] is not inspect.Parameter.empty for name in own.keys() - parameters.keys())


def test_container(isa, dtype, capsys):
    """Its whole life: gradients by the chain rule, t(k+1) = t(k) - lr grad, weights out and in."""
    layers = [cnn.Linear(3, 5), cnn.Tanh(), cnn.Linear(5, 2), cnn.MSELoss()]
    model = cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.5), dtype=dtype)
    assert model.layers == layers[:3]
    x = np.array([[1, 2, 3], [0, -1, 1]], dtype)
    y = np.array([[1, 0], [0, 1]], dtype)
    before = model.state_dict()
    model(x, y)
    model.zero_grads()
    model.backward(debug=False)
    gradients = {"0": layers[0], "2": layers[2]}
    model.step()
    for name, array in model.state_dict().items():
        place, _, kind = name.partition(".")
        gradient = getattr(gradients[place], f"grad_{kind}")
        assert gradient.any()
        assert_close(array, before[name] - 0.5 * gradient, 1e-6)
    config = json.loads(json.dumps(model.get_config()))
    again = cnn.Sequential.from_config(config)
    assert (again.parameters != model.parameters).any()
    again.load_weights(model.state_dict(), config=config, verbose=True)
    assert "0.weight" in capsys.readouterr().out
    np.testing.assert_array_equal(again.predict(x), model.predict(x))
    model.zero_grads()
    assert not model.gradients.any()


def test_chain_rule_is_a_product_with_the_jacobian(isa):
    """grad_t z = J^T grad_x f, equation (1), with the Jacobian from as many backward passes."""
    spec = [(3, 4, True), ("gelu", None), (4, 5, True), ("tanh", None)]
    model, network = build(spec)
    x = np.array([[0.2, -1.0, 0.7]])
    model(x)
    jacobian = np.vstack([model.backward(row[None]) for row in np.eye(5)])
    v = np.array([[1.0, -2.0, 0.5, 3.0, -1.0]])
    np.testing.assert_allclose(model.backward(v), v @ jacobian, rtol=1e-12)
    network.forward(x)
    np.testing.assert_allclose(jacobian, np.vstack([network.backward(row[None])[0] for row in np.eye(5)]), rtol=1e-12)


# the custom network ------------------------------------------------------------------------------


def custom_network(dtype, hidden=3, lr=0.01):
    """MLP(Linear(1, 3), ReLU(), Linear(3, 1), Identity()), trained one sample at a time."""
    layers = [cnn.Linear(1, hidden), cnn.ReLU(), cnn.Linear(hidden, 1), cnn.Identity()]
    return cnn.Sequential([*layers, cnn.MSELoss()], optimizer=cnn.SGD(lr=lr), dtype=dtype, seed=0)


def samples(n, dtype=np.float64):
    x = np.random.default_rng(0).random((n, 1)).astype(dtype)
    return x, 3 * np.sin(20 * x)


def test_custom_network(isa):
    """Its job in small, 10 passes over f(x) = 3 sin(20 x): sample by sample as in NumPy."""
    x, y = samples(300)
    model = custom_network("float64")
    nodes = [grid.Linear(), grid.Function(name="relu"), grid.Linear(), grid.Function(name="identity")]
    network = grid.Network(nodes, "mse", model.state_dict())
    history = model.fit(x, y, epochs=10, batch_size=1, shuffle=False)
    for epoch in range(10):
        losses = [network.train_step(x[i : i + 1], y[i : i + 1], lr=0.01) for i in range(300)]
        assert history["loss"][epoch] == pytest.approx(np.mean(losses), rel=1e-9)
    for name, array in model.state_dict().items():
        np.testing.assert_allclose(array, network.parameters[name], rtol=1e-7, atol=1e-9)
    assert history["loss"][-1] < history["loss"][0]


def test_custom_networks_loop(isa, dtype):
    """cost and back_prop one after the other are train_step, which returns the cost before the step."""
    x, y = samples(50, dtype)
    model, fitted = custom_network(dtype), custom_network(dtype)
    costs = []
    for row, target in zip(x, y, strict=True):
        costs.append(model.evaluate(row[None], target[None])["loss"])
        assert model.train_step(row[None], target[None]) == pytest.approx(costs[-1], rel=1e-6)
    history = fitted.fit(x, y, batch_size=1, shuffle=False)
    np.testing.assert_array_equal(fitted.parameters, model.parameters)
    assert history["loss"][0] == pytest.approx(np.mean(costs), rel=1e-5)


def test_custom_network_learns(isa, dtype):
    """With 50 hidden units it follows the sine's first wave: a fifth of the variance of 4.5 is gone."""
    x, y = samples(5000, dtype)
    model = custom_network(dtype, hidden=50, lr=0.02)
    history = model.fit(x, y, epochs=20, batch_size=1)
    assert history["loss"][-1] < 3.6 < history["loss"][0]
    assert model.evaluate(x, y)["loss"] < 3.6


def test_gradient_of_two_outputs_is_exact(isa, dtype):
    """The document's network averages the error over the outputs before it sends it back: that is no
    gradient. Here the mean squared error is the mean over all elements, and its gradient is exact."""
    model = cnn.Sequential([cnn.Linear(1, 2), cnn.MSELoss()], optimizer=cnn.SGD(lr=1.0), dtype=dtype)
    layer = model.layers[0]
    for step in (lambda x, y: model.train_step(x, y), lambda x, y: model.fit(x, y, batch_size=1)):
        layer.weight, layer.bias = [[1.0, 1.0]], [0.0, 0.0]
        step(np.array([[2.0]], dtype), np.array([[1.0, -1.0]], dtype))
        # errors [1, 3]; d(mean of squares)/dW = 2 / 2 * error * x
        np.testing.assert_array_equal(layer.weight, [[-1.0, -5.0]])
        np.testing.assert_array_equal(layer.bias, [-1.0, -3.0])
