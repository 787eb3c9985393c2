"""Sequential: forward, backward and step against the reference, and when backward refuses.

Tolerances are relative to the largest number of each array. float64: 1e-11, some 10**5 roundoffs,
for sums of up to a few hundred terms through up to eight layers. float32: 5e-4, the same number of
roundoffs less a factor of 50, since errors are random. Where a piecewise function is within 1e-4 of
its kink, float32 may take the other branch than the reference: such examples are not drawn.
"""

import logging

import numpy as np
import pytest
from arrays import looped
from grid import SMOOTH, build, chain, is_linear, specs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import assert_close, assert_gradients, assert_parameters, batch_for, model_gradients

import cnn

pytestmark = pytest.mark.filterwarnings("ignore:.*before it gives")  # any layers with any loss

RTOL = {np.dtype("float32"): 5e-4, np.dtype("float64"): 1e-11}
KINK = 1e-4
BATCHES = (1, 2, 3, 4, 5, 6, 16, 17, 33)
# Shapes that the products and the layouts treat in their own ways: narrow layers are kept
# transposed, wide ones have panels and odd strides.
SHAPES = [
    (1, 3, 1),
    (2, 8, 1),
    (300, 1),
    (300, 1, 300),
    (64, 4),
    (8, 2, 8, 2),
    (17, 256, 6),
    (33, 15, 16, 17),
    (5, 1100, 3),
    (784, 31, 10),
    (1, 1, 1, 1),
]


def assert_walks(model, network, x, targets, loss, rtol):
    """Outputs, loss, gradients and three steps of the model are those of the reference."""
    optimizer = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    model.optimizer = cnn.SGD(**optimizer)
    outputs = network.forward(x)
    assert_close(model(x), outputs, rtol, "outputs")
    assert_close(model.predict(x), outputs, rtol, "predict")
    if not loss:
        grad_output = np.cos(np.arange(outputs.size)).reshape(outputs.shape).astype(model.dtype)
        model(x)
        grad_x, grads = network.backward(grad_output.astype(np.float64))
        assert_close(model.backward(grad_output), grad_x, rtol, "grad_x")
        assert_gradients(model, grads, rtol)
        return
    for _ in range(3):
        expected, grad_x, grads = network.gradients(x, targets)
        assert_close(model(x, targets), expected, rtol, "loss")
        model.zero_grads()
        assert_close(model.backward(), grad_x, rtol, "grad_x")
        assert_gradients(model, grads, rtol)
        model.step()
        network.train_step(x, targets, **optimizer)
    assert_parameters(model, network, rtol)
    score = network.loss(network.forward(x), targets)[0]
    assert_close(model.evaluate(x, targets)["loss"], score, rtol, "evaluate")


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", None])
@given(spec=specs(), batch=st.sampled_from(BATCHES), seed=st.integers(0, 1000))
@settings(max_examples=20)
def test_random_networks(isa, dtype, loss, spec, batch, seed):
    model, network = build(spec, loss, dtype=dtype, seed=seed)
    x, targets = batch_for(spec, loss, batch, dtype, seed)
    network.forward(x)
    assume(network.distance_to_kinks() > KINK)
    assert_walks(model, network, x, targets, loss, RTOL[dtype])


@looped("batch", [1, 3, 5, 70])
@looped("widths", SHAPES)
def test_shapes(isa, dtype, widths, batch):
    spec = chain(*widths, activation=("silu", None))
    model, network = build(spec, "mse", dtype=dtype)
    x, targets = batch_for(spec, "mse", batch, dtype)
    assert_walks(model, network, x, targets, "mse", RTOL[dtype])


@pytest.mark.parametrize(
    "spec",
    [
        [("sigmoid", None), (5, 3, True)],
        [("relu", None), ("tanh", None), (5, 3, False), ("softplus", None)],
        [(20, 33, True), ("sigmoid", None), ("softplus", None), (33, 1, True)],
        [(300, 1, True), ("relu", None), ("elu", 0.5), (1, 17, True), ("identity", None)],
        [(4, 4, True), (4, 4, True), (4, 4, True)],
        [(4, 4, True), ("relu", None), ("relu", None), ("relu", None)],
        [(100, 2, False), ("leaky_relu", -0.5), (2, 100, False), ("leaky_relu", 1.5)],
        [("identity", None), (3, 3, True), ("identity", None), ("identity", None)],
    ],
    ids=str,
)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", None])
def test_activations_anywhere(isa, dtype, spec, loss):
    """Before the first layer, two in a row, after the last: the activation is an op of its own."""
    for batch in (1, 2, 7):
        model, network = build(spec, loss, dtype=dtype)
        for seed in range(20):
            x, targets = batch_for(spec, loss, batch, dtype, seed)
            network.forward(x)
            if network.distance_to_kinks() > KINK:
                break
        assert_walks(model, network, x, targets, loss, RTOL[dtype])


@pytest.mark.parametrize("batch", [1023, 1024, 1025, 2500])
def test_batches_longer_than_a_block(isa, dtype, batch):
    """The weight gradient sums over the batch: beyond 1024 rows in several blocks."""
    spec = chain(5, 7, 3)
    model, network = build(spec, "cross_entropy", dtype=dtype)
    x, targets = batch_for(spec, "cross_entropy", batch, dtype)
    assert_walks(model, network, x, targets, "cross_entropy", RTOL[dtype])


# finite differences ------------------------------------------------------------------------------


def derivative(f, at, h=1e-3):
    """f'(at) for each element of `at` by the central difference of order 4."""
    result = np.empty_like(at)
    for i in np.ndindex(at.shape):
        samples = []
        for step in (-2, -1, 1, 2):
            moved = at.copy()
            moved[i] += step * h
            samples.append(f(moved))
        result[i] = (samples[0] - 8 * samples[1] + 8 * samples[2] - samples[3]) / (12 * h)
    return result


def loss_at(model, parameters, x, targets):
    model.parameters = parameters
    return model(x, targets)


def assert_differences(model, x, targets):
    """backward's gradients are the derivatives of the loss; rtol 5e-6 of each array's largest."""
    parameters = model.parameters
    model(x, targets)
    model.zero_grads()
    grad_x = model.backward()
    gradients = model.gradients
    numeric = derivative(lambda p: loss_at(model, p, x, targets), parameters)
    np.testing.assert_allclose(gradients, numeric, rtol=5e-6, atol=5e-6 * np.abs(numeric).max())
    model.parameters = parameters
    numeric = derivative(lambda x: model(x, targets), x)
    np.testing.assert_allclose(grad_x, numeric, rtol=5e-6, atol=5e-6 * np.abs(numeric).max())


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@given(
    spec=specs(widths=(1, 2, 3, 5, 9), depth=3, names=SMOOTH),
    batch=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=12)
def test_finite_differences(isa, loss, spec, batch, seed):
    model, _ = build(spec, loss, seed=seed)
    assert_differences(model, *batch_for(spec, loss, batch, np.float64, seed))


@pytest.mark.parametrize("activation", [("relu", None), ("leaky_relu", 0.2), ("elu", 0.5)], ids=str)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_finite_differences_with_kinks(isa, activation, loss):
    """The first batch whose pre-activations all stay on their side of the kink."""
    spec = chain(3, 5, 4, 2, activation=activation)
    model, network = build(spec, loss)
    for seed in range(1000):
        x, targets = batch_for(spec, loss, 3, np.float64, seed)
        network.forward(x)
        if network.distance_to_kinks() > 0.02:
            break
    assert network.distance_to_kinks() > 0.02
    assert_differences(model, x, targets)


def test_finite_differences_of_a_narrow_layer(isa):
    """300 -> 1 and 8 -> 2 are kept transposed."""
    for widths in ((300, 1), (8, 2, 3)):
        spec = chain(*widths, activation=("gelu", None))
        model, _ = build(spec, "mse")
        assert_differences(model, *batch_for(spec, "mse", 4, np.float64))


# what backward does, and when it refuses ----------------------------------------------------------


@pytest.fixture
def small(isa, dtype):
    """A model with an optimiser, x and targets."""
    spec = [(5, 9, True), ("tanh", None), (9, 3, True)]
    model, _ = build(spec, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.1))
    return model, *batch_for(spec, "mse", 6, dtype)


def test_gradients_add_up(small):
    model, x, y = small
    model(x, y)
    model.backward()
    once = [g.copy() for g in model_gradients(model)]
    model(x, y)
    model.backward()
    for twice, g in zip(model_gradients(model), once, strict=True):
        np.testing.assert_array_equal(twice, 2 * g)
    model.zero_grads()
    assert not model.gradients.any()
    model(x, y)
    model.backward()
    for again, g in zip(model_gradients(model), once, strict=True):
        np.testing.assert_array_equal(again, g)


def test_gradients_of_two_batches_add_up(isa, dtype):
    """Two micro-batches are one batch of both, up to the mean that the loss takes."""
    spec = chain(5, 20, 3)
    model, network = build(spec, "mse", dtype=dtype)
    x, y = batch_for(spec, "mse", 12, dtype)
    for rows in (slice(0, 5), slice(5, 12)):
        outputs = model(x[rows])
        model.backward(2 * (outputs - y[rows]) / y.size)
    assert_gradients(model, network.gradients(x, y)[2], RTOL[dtype])


def test_backward_with_grad_output_may_be_repeated(small):
    """Nothing that a backward pass needs is lost by it; but the loss's gradient is used up."""
    model, x, y = small
    outputs = model(x)
    grad_output = (2 * (outputs - y) / y.size).astype(outputs.dtype)
    first = model.backward(grad_output)
    np.testing.assert_array_equal(model.backward(grad_output), first)
    model(x, y)
    np.testing.assert_array_equal(model.backward(grad_output), first)
    with pytest.raises(RuntimeError, match=r"^backward needs grad_output, or a forward pass with"):
        model.backward()


@pytest.mark.parametrize("batch", [1, 3, 6, 40])
def test_x_is_copied(isa, dtype, batch):
    spec = [("silu", None), (5, 9, True), ("tanh", None), (9, 3, True)]
    model, network = build(spec, "mse", dtype=dtype)
    x, y = batch_for(spec, "mse", batch, dtype)
    _, grad_x, grads = network.gradients(x, y)
    model(x, y)
    x[...] = np.nan
    y[...] = np.nan
    assert_close(model.backward(), grad_x, RTOL[dtype])
    assert_gradients(model, grads, RTOL[dtype])


def test_results_are_not_views_of_the_workspace(small):
    model, x, y = small
    outputs = model(x)
    kept = outputs.copy()
    grad_x = model.backward(np.ones_like(outputs))
    kept_grad = grad_x.copy()
    model(2 * x, y)
    model.backward()
    np.testing.assert_array_equal(outputs, kept)
    np.testing.assert_array_equal(grad_x, kept_grad)
    for array in (outputs, grad_x):
        assert array.flags.owndata
        assert array.flags.writeable


def test_without_forward(small):
    model, x, _ = small
    message = "^backward needs a forward pass, but there was no forward pass$"
    for arguments in ((), (np.ones((6, 3)),)):
        with pytest.raises(RuntimeError, match=message):
            model.backward(*arguments)
    model.predict(x)
    with pytest.raises(RuntimeError, match=message):
        model.backward()


def test_forward_without_targets_needs_grad_output(small):
    model, x, _ = small
    model(x)
    with pytest.raises(RuntimeError, match=r"^backward needs grad_output, or a forward pass with"):
        model.backward()


def test_second_backward_needs_grad_output(small):
    model, x, y = small
    model(x, y)
    model.backward()
    before = model.gradients
    with pytest.raises(RuntimeError, match=r"^backward needs grad_output, or a forward pass with"):
        model.backward()
    np.testing.assert_array_equal(model.gradients, before)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m, x, y: m.step(), "a step has changed the parameters since"),
        (lambda m, x, y: m.train_step(x, y), "train_step has run since"),
        (lambda m, x, y: m.fit(x, y), "fit has run since"),
        (lambda m, x, y: m.load_weights(m.state_dict()), "the parameters have been changed since"),
        (
            lambda m, x, y: setattr(m, "parameters", m.parameters),
            "the parameters have been changed since",
        ),
        (
            lambda m, x, y: setattr(m.layers[0], "weight", m.layers[0].weight),
            "the parameters have been changed since",
        ),
        (
            lambda m, x, y: setattr(m.layers[2], "bias", [0, 0, 0]),
            "the parameters have been changed since",
        ),
        (
            lambda m, x, y: m.layers[0].update_parameters(0.1),
            "the parameters have been changed since",
        ),
    ],
    ids=["step", "train_step", "fit", "load_weights", "parameters", "weight", "bias", "update"],
)
def test_backward_after_a_change(small, change, why):
    """Never a wrong number: the gradients would be those of other parameters."""
    model, x, y = small
    for targets in (None, y):
        model(x, targets)
        change(model, x, y)
        before = model.gradients
        for arguments in ((), (np.ones((6, 3)),)):
            with pytest.raises(RuntimeError, match=f"^backward needs a forward pass, but {why}$"):
                model.backward(*arguments)
        np.testing.assert_array_equal(model.gradients, before)
    model(x, y)
    assert np.isfinite(model.backward()).all()


def test_backward_after_divergence(small):
    model, x, y = small
    model(x, y)
    with pytest.raises(cnn.DivergenceError):
        model.fit(np.full_like(x, np.nan), y)
    with pytest.raises(RuntimeError, match=r"^backward needs a forward pass, but the parameters "):
        model.backward()


def test_a_pending_backward_is_left_alone(isa, dtype):
    """predict, evaluate, refused calls and reading do not disturb what backward needs."""
    spec = chain(5, 9, 3)
    model, network = build(spec, "mse", dtype=dtype, optimizer=cnn.SGD())
    x, y = batch_for(spec, "mse", 6, dtype)
    other, _ = batch_for(spec, "mse", 50, dtype, seed=9)
    _, grad_x, grads = network.gradients(x, y)
    model(x, y)
    model.predict(other)
    model.evaluate(other, np.zeros((50, 3)))
    model.predict(np.empty((0, 5)))
    for refused in (
        lambda: model(x[:, :4]),
        lambda: model(x, y[:, :2]),
        lambda: model(x, y[:3]),
        lambda: model(x[:0], y[:0]),
        lambda: model.train_step(x, y[:3]),
        lambda: model.train_step(x[:0], y[:0]),
        lambda: model.fit(x, y[:3]),
        lambda: model.fit(x, y, epochs=0),
        lambda: model.backward(np.ones((6, 4))),
        lambda: model.backward(np.ones((5, 3))),
        lambda: model.load_weights({}),
    ):
        with pytest.raises(ValueError, match=r"expected|missing|empty|row"):
            refused()
    assert model.parameters.shape == model.gradients.shape
    model.state_dict()
    assert_close(model.backward(), grad_x, RTOL[dtype])
    assert_gradients(model, grads, RTOL[dtype])


def test_forward_of_an_empty_batch(small):
    """Outputs of no rows, also as the very first call; backward over them adds nothing."""
    model, x, y = small
    assert model(x[:0]).shape == (0, 3)
    assert model.backward(np.empty((0, 3))).shape == (0, 5)
    assert not model.gradients.any()
    with pytest.raises(ValueError, match="empty batch"):
        model(x[:0], y[:0])
    model(x, y)
    assert model(x[:0]).shape == (0, 3)


# debug --------------------------------------------------------------------------------------------


def test_debug_reports_each_layer(small, caplog):
    model, x, y = small
    model(x, y)
    expected = model.backward()
    gradients = model.gradients
    model.zero_grads()
    model(x, y)
    with caplog.at_level(logging.INFO, logger="cnn"):
        np.testing.assert_array_equal(model.backward(debug=True), expected)
    np.testing.assert_array_equal(model.gradients, gradients)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(",")[0] for line in lines] == ["layer 2"] * 4 + ["layer 0"] * 4
    norm = np.linalg.norm(model.predict(x))
    assert lines[0] == f"layer 2, Linear(9, 3): linear of buffer 1 gives buffer 2, (6, 3), norm {norm:.6g}"
    assert lines[1].startswith("layer 2, Linear(9, 3): gradient of output (6, 3), norm ")
    norm = np.linalg.norm(model.layers[2].grad_weight)
    assert lines[2] == f"layer 2, Linear(9, 3): gradient of weight (9, 3), norm {norm:.6g}"
    assert lines[3].startswith("layer 2, Linear(9, 3): gradient of bias (3,), norm ")
    assert lines[4].startswith("layer 0, Linear(5, 9) + layer 1, Tanh(): linear of buffer 0 gives buffer 1, (6, 9)")
    assert lines[5].startswith("layer 0, Linear(5, 9) + layer 1, Tanh(): gradient of x W + b (6, 9)")


def test_debug_finds_nan(small):
    """The error names the layer; the gradients are as before."""
    model, x, y = small
    model(x, y)
    model.backward()
    before = model.gradients
    outputs = model(x)
    grad_output = np.ones_like(outputs)
    grad_output[2, 1] = np.nan
    with pytest.raises(FloatingPointError, match=r"^layer 2, Linear\(9, 3\): the gradient of output"):
        model.backward(grad_output, debug=True)
    np.testing.assert_array_equal(model.gradients, before)
    model(x)
    model.backward(np.zeros_like(outputs))
    np.testing.assert_array_equal(model.gradients, before)


# the vectors --------------------------------------------------------------------------------------


def test_parameters_and_gradients_are_packed_in_state_dict_order(isa, dtype):
    spec = [(300, 1, True), ("relu", None), (1, 17, False), (17, 33, True)]
    model, _ = build(spec, "mse", dtype=dtype)
    state = model.state_dict()
    assert list(state) == ["0.weight", "0.bias", "2.weight", "3.weight", "3.bias"]
    np.testing.assert_array_equal(model.parameters, np.concatenate([a.ravel() for a in state.values()]))
    count = sum(part[0] * part[1] + part[2] * part[1] for part in spec if is_linear(part))
    vector = np.arange(count, dtype=dtype)
    model.parameters = vector
    np.testing.assert_array_equal(model.parameters, vector)
    at = 0
    for array in model.state_dict().values():
        np.testing.assert_array_equal(array.ravel(), vector[at : at + array.size])
        at += array.size
    assert model.gradients.shape == (count,)
    assert model.parameters.dtype == model.gradients.dtype == dtype
    model.parameters[...] = 0  # a copy
    np.testing.assert_array_equal(model.parameters, vector)


def test_loss_and_grad(isa, dtype):
    spec = chain(5, 9, 3)
    model, network = build(spec, "cross_entropy", dtype=dtype)
    x, y = batch_for(spec, "cross_entropy", 6, dtype)
    for _ in range(2):  # the gradient does not add up
        loss, gradient = model.loss_and_grad(x, y)
        expected, _, grads = network.gradients(x, y)
        assert isinstance(loss, float)
        assert_close(loss, expected, RTOL[dtype])
        assert_close(gradient, np.concatenate([g.ravel() for g in grads.values()]), RTOL[dtype])
        np.testing.assert_array_equal(model.gradients, gradient)
