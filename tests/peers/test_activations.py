"""Activations and losses: values and derivatives beside PyTorch's."""

import numpy as np
import pytest
import torch
from peers.twins import ACTIVATIONS, LOSSES, data

# PyTorch computes in float64, also what float32 is compared with. The absolute part is for tails,
# where both sides take differences such as 1 - tanh(z)**2, and PyTorch also 1 + erf(z), times z: they
# leave nothing but rounding errors.
CLOSE = {
    "float64": {"rtol": 1e-12, "atol": 1e-14},
    "float32": {"rtol": 4 * 2.0**-23, "atol": 4 * 2.0**-23},  # 4 units in the last place
}


def points(dtype):
    """Dense where functions bend, signed powers of ten from 1e-30 to 1e3, and zero."""
    powers = 10.0 ** np.arange(-30, 4)
    z = np.concatenate([np.linspace(-12, 12, 4001), np.linspace(-60, 60, 601), powers, -powers, [0]])
    return z.astype(dtype)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forward_and_backward(isa, activation, dtype):
    make, make_torch, _ = ACTIVATIONS[activation]
    ours, theirs = make(), make_torch()
    z = points(dtype)
    grad = np.random.default_rng(0).uniform(-1, 1, z.shape).astype(dtype)
    at = torch.from_numpy(z.astype("float64")).requires_grad_()
    y = theirs(at)
    y.backward(torch.from_numpy(grad.astype("float64")))

    np.testing.assert_allclose(ours.forward(z), y.detach().numpy(), **CLOSE[dtype])
    close = CLOSE[dtype]
    if activation.startswith(("celu", "hardsigmoid")):  # PyTorch's 1 / alpha and 1 / 6 in the derivative are float32
        close = {"rtol": 2e-7, "atol": 1e-7}
    np.testing.assert_allclose(ours.backward(grad), at.grad.numpy(), **close)
    np.testing.assert_allclose(ours.derivative(z) * grad, at.grad.numpy(), **close)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivative_at_kinks(isa, activation, dtype):
    """Where f' or f'' jumps, and one number to the left and to the right."""
    make, make_torch, _ = ACTIVATIONS[activation]
    kinks = np.array([-6, -3, 0, 3, 6], dtype)
    z = np.concatenate([kinks, -kinks, *(np.nextafter(kinks, kinks.dtype.type(end)) for end in (-9, 9))])
    at = torch.from_numpy(z).requires_grad_()
    make_torch()(at).sum().backward()
    tolerance = 2e-6 if dtype == "float32" else 2e-7  # PyTorch's own errors; the jumps are 1/6 or more
    np.testing.assert_allclose(make().derivative(z), at.grad.numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", [(1, 1), (1, 10), (7, 3), (64, 100)])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(isa, loss, shape, dtype):
    make, make_torch, _ = LOSSES[loss]
    ours, theirs = make(), make_torch()
    outputs, targets = data(loss, *shape, shape[1])
    outputs = (5 * outputs).astype(dtype)
    if loss == "mse":
        targets = targets.astype(dtype)
    at = torch.from_numpy(outputs.astype("float64")).requires_grad_()
    value = theirs(at, torch.from_numpy(targets.astype("float64") if loss == "mse" else targets))
    value.backward()
    np.testing.assert_allclose(ours(outputs, targets), value.item(), **CLOSE[dtype])
    np.testing.assert_allclose(ours.backward(), at.grad.numpy(), **CLOSE[dtype])
