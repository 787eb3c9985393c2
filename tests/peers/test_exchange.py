"""A checkpoint read by PyTorch as it is, and initial parameters of PyTorch's distribution."""

import numpy as np
import pytest
import safetensors.torch
import torch
from peers.twins import ACTIVATIONS, Network

import cnn

RTOL = {"float32": 2e-6, "float64": 1e-14}


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_checkpoint_loads_in_torch(isa, activation, bias, dtype, tmp_path):
    network = Network((13, 40, 21, 2), activation, bias=bias)
    model = network.cnn(dtype=dtype, seed=3)
    model.save(tmp_path / "model.safetensors")

    theirs = network.torch(dtype=getattr(torch, dtype))
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    x = np.random.default_rng(0).standard_normal((50, 13)).astype(dtype)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model.predict(x), expected, rtol=RTOL[dtype], atol=RTOL[dtype])


def test_torch_parameters_load_here():
    """The other way round: NumPy arrays of a PyTorch state_dict, weights transposed."""
    network = Network((13, 40, 2), "tanh")
    theirs = network.torch()
    model = network.cnn(dtype="float64")
    model.load_weights({k: v.numpy().T for k, v in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((50, 13))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(model.predict(x), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("where", ["alone", "in a model"])
@pytest.mark.parametrize(("n_in", "n_out"), [(3, 20_000), (300, 200), (1000, 60)])
def test_initial_parameters(n_in, n_out, where):
    """Weight and bias: bounds, mean, variance, and the distance between distribution functions."""
    if where == "alone":
        layer = cnn.Linear(n_in, n_out, seed=0)
    else:
        layer = cnn.Sequential([cnn.Linear(n_in, n_out)], seed=0)[0]
    torch.manual_seed(0)
    theirs = torch.nn.Linear(n_in, n_out)
    bound = n_in**-0.5
    for ours, other in (layer.weight, theirs.weight), (layer.bias, theirs.bias):
        ours, other = np.sort(ours, axis=None), np.sort(other.detach().numpy(), axis=None)
        n = ours.size
        assert n == other.size
        assert abs(ours).max() <= np.float32(bound)
        assert abs(ours).max() > bound * (1 - 20 / n)  # missed by one generator in 5e8
        for sample in ours, other:  # within 5 standard deviations of the estimates
            assert abs(sample.mean()) < 5 * bound / np.sqrt(3 * n)
            assert abs(sample.var() / (bound**2 / 3) - 1) < 5 * np.sqrt(0.8 / n)
        # two-sample Kolmogorov-Smirnov, exceeded by one pair in a million
        rank = np.searchsorted(other, ours, side="right")
        distance = abs(rank - np.arange(1, n + 1)).max() / n
        assert distance < 2.69 * np.sqrt(2 / n)
