"""Gradients of whole networks beside those that jax.grad derives, in float64."""

import jax
import numpy as np
import pytest
from peers.twins import ACTIVATIONS, LOSSES, Network, data

# Relative to the largest gradient of an array: sums are taken in another order.
CLOSE = 1e-13


def assert_close(actual, expected, name):
    expected = np.asarray(expected)
    scale = abs(expected).max()
    assert scale > 0, name
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=CLOSE * scale, err_msg=name)


def gradients(model):
    return {
        f"{i}.{kind}": getattr(layer, f"grad_{kind}")
        for i, layer in enumerate(model.layers)
        for kind in ("weight", "bias")
        if getattr(layer, kind, None) is not None
    }


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradient_of_a_loss(isa, activation, loss, batch, bias):
    network = Network((11, 70, 18, 3), activation, bias=bias)
    x, y = data(loss, batch, 11, 3)
    make, _, criterion = LOSSES[loss]
    model = network.cnn(make(), dtype="float64", seed=2)

    def jax_loss(weights, x):
        return criterion(network.jax(weights, x), y)

    weights = model.state_dict()
    value, (expected, expected_x) = jax.value_and_grad(jax_loss, argnums=(0, 1))(weights, x)

    np.testing.assert_allclose(model(x, y), value, rtol=1e-13)
    assert_close(model.backward(), expected_x, "x")
    assert gradients(model).keys() == weights.keys()
    for name, gradient in gradients(model).items():
        assert_close(gradient, expected[name], name)
    value, vector = model.loss_and_grad(x, y)
    assert_close(vector, np.concatenate([expected[name].ravel() for name in weights]), "packed")


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_vector_jacobian_product(isa, activation, batch):
    """backward(grad_output), for a network without a loss that ends in an activation."""
    network = Network((11, 33, 4), activation, extra=[activation])
    x, grad_output = data("mse", batch, 11, 4)
    model = network.cnn(dtype="float64", seed=2)
    weights = model.state_dict()
    outputs, vjp = jax.vjp(network.jax, weights, x)
    expected, expected_x = vjp(grad_output)

    np.testing.assert_allclose(model(x), outputs, rtol=1e-13, atol=1e-15)
    assert_close(model.backward(grad_output), expected_x, "x")
    for name, gradient in gradients(model).items():
        assert_close(gradient, expected[name], name)
