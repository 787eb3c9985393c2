"""Softmax, norms and initialisers beside PyTorch, in float64: gradients, training, statistics, distributions."""

import numpy as np
import pytest
import torch
from networks import explicit, fused

import cnn
from cnn import initializers

STEPS = 50
RTOL = 1e-10

# Layers of cnn with their twins, for 6 inputs and 4 outputs. No bias before a batch norm, which takes it away: its
# gradient would be a rounding error, and Adam divides that by its own size.
NETWORKS = {
    "batch_norm": (
        lambda: [cnn.Linear(6, 33, bias=False), cnn.BatchNorm1d(33), cnn.ReLU(), cnn.Linear(33, 4)],
        lambda nn: [nn.Linear(6, 33, bias=False), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 4)],
    ),
    "batch_norm settings": (
        lambda: [
            cnn.BatchNorm1d(6, momentum=None, affine=False),
            cnn.Linear(6, 17, bias=False),
            cnn.BatchNorm1d(17, eps=0.01, momentum=0.3),
            cnn.Tanh(),
            cnn.Linear(17, 4, bias=False),
            cnn.BatchNorm1d(4),
        ],
        lambda nn: [
            nn.BatchNorm1d(6, momentum=None, affine=False),
            nn.Linear(6, 17, bias=False),
            nn.BatchNorm1d(17, eps=0.01, momentum=0.3),
            nn.Tanh(),
            nn.Linear(17, 4, bias=False),
            nn.BatchNorm1d(4),
        ],
    ),
    "layer_norm": (
        lambda: [cnn.Linear(6, 33), cnn.LayerNorm(33), cnn.GELU(), cnn.Linear(33, 4)],
        lambda nn: [nn.Linear(6, 33), nn.LayerNorm(33), nn.GELU(), nn.Linear(33, 4)],
    ),
    "layer_norm settings": (
        lambda: [
            cnn.LayerNorm(6, elementwise_affine=False),
            cnn.Linear(6, 16),
            cnn.LayerNorm(16, eps=0.1, bias=False),
            cnn.Tanh(),
            cnn.Linear(16, 4),
            cnn.LayerNorm(4),
        ],
        lambda nn: [
            nn.LayerNorm(6, elementwise_affine=False),
            nn.Linear(6, 16),
            nn.LayerNorm(16, eps=0.1, bias=False),
            nn.Tanh(),
            nn.Linear(16, 4),
            nn.LayerNorm(4),
        ],
    ),
    "prelu": (
        lambda: [cnn.Linear(6, 33), cnn.PReLU(33), cnn.Linear(33, 4), cnn.PReLU(init=-0.5)],
        lambda nn: [nn.Linear(6, 33), nn.PReLU(33), nn.Linear(33, 4), nn.PReLU(init=-0.5)],
    ),
    "softmax": (
        lambda: [cnn.Linear(6, 15), cnn.Softmax(), cnn.Linear(15, 4), cnn.Softmax()],
        lambda nn: [nn.Linear(6, 15), nn.Softmax(dim=1), nn.Linear(15, 4), nn.Softmax(dim=1)],
    ),
    "log_softmax": (
        lambda: [cnn.Linear(6, 15), cnn.LogSoftmax(), cnn.Linear(15, 4), cnn.LogSoftmax()],
        lambda nn: [nn.Linear(6, 15), nn.LogSoftmax(dim=1), nn.Linear(15, 4), nn.LogSoftmax(dim=1)],
    ),
}
OPTIMIZERS = {
    "sgd": (lambda: cnn.SGD(lr=0.05, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adam": (lambda: cnn.Adam(lr=0.003), lambda p: torch.optim.Adam(p, lr=0.003)),
}


def pair(name, optimizer="sgd"):
    """The model and its twin, with the same parameters: the norms' are not 1 and 0."""
    ours, theirs = NETWORKS[name]
    model = cnn.Sequential([*ours(), cnn.MSELoss()], dtype="float64", seed=1, optimizer=OPTIMIZERS[optimizer][0]())
    rng = np.random.default_rng(0)
    model.parameters = model.parameters + 0.1 * rng.standard_normal(len(model.parameters))
    twin = torch.nn.Sequential(*theirs(torch.nn)).to(torch.float64)
    twin.load_state_dict({key: torch.from_numpy(np.array(a.T)) for key, a in model.state_dict().items()})
    return model, twin


def data(batch=11, steps=1):
    rng = np.random.default_rng(batch)
    return rng.standard_normal((steps, batch, 6)), rng.standard_normal((steps, batch, 4))


def assert_close(actual, expected, name):
    scale = abs(expected).max(initial=1e-3)  # what is zero but for rounding errors is zero
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=RTOL * scale, err_msg=name)


def assert_states(model, twin, where):
    state = {key: a.numpy() for key, a in twin.state_dict().items()}
    assert state.keys() == model.state_dict().keys()
    for name, array in model.state_dict().items():
        assert_close(array, state[name].T, f"{name}, {where}")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients(each_isa, name, training):
    (x,), (y,) = data()
    for isa in each_isa:
        model, twin = pair(name)
        for _ in range(2):  # statistics that are not those of the beginning
            model(x + 1)
            twin(torch.from_numpy(x + 1))
        model.train(training)
        twin.train(training)
        at = torch.from_numpy(x).requires_grad_()
        loss = torch.nn.functional.mse_loss(twin(at), torch.from_numpy(y))
        loss.backward()
        assert model(x, y) == pytest.approx(loss.item(), rel=RTOL)
        assert_close(model.backward(), at.grad.numpy(), f"x, {isa}")
        expected = np.concatenate([p.grad.numpy().T.ravel() for p in twin.parameters()])
        assert_close(model.gradients, expected, isa)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_training(each_isa, name, optimizer):
    """Losses, parameters and running statistics of 50 steps, then predictions."""
    xs, ys = data(16, STEPS)
    _, twin = pair(name)
    other = OPTIMIZERS[optimizer][1](twin.parameters())
    losses = []
    for x, y in zip(xs, ys, strict=True):
        other.zero_grad()
        loss = torch.nn.functional.mse_loss(twin(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        other.step()
        losses.append(loss.item())
    twin.eval()
    with torch.no_grad():
        predictions = twin(torch.from_numpy(xs[0])).numpy()
    for isa in each_isa:
        for step in fused, explicit:
            where = f"{isa}, {step.__name__}"
            model, _ = pair(name, optimizer)
            ours = [step(model, x, y) for x, y in zip(xs, ys, strict=True)]
            np.testing.assert_allclose(ours, losses, rtol=RTOL, err_msg=where)
            assert_states(model, twin, where)
            assert_close(model.predict(xs[0]), predictions, where)


def test_dropout_at_the_ends(isa):
    """Where chance decides nothing."""
    x = np.random.default_rng(0).standard_normal((5, 9))
    for p in (0.0, 1.0):
        expected = torch.nn.Dropout(p)(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(cnn.Dropout(p).forward(x), expected)


# initialisers -------------------------------------------------------------------------------------

INITIALIZERS = {
    "kaiming_uniform": (
        initializers.KaimingUniform(),
        lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    ),
    "kaiming_normal": (
        initializers.KaimingNormal("leaky_relu", a=0.2, mode="fan_out"),
        lambda w: torch.nn.init.kaiming_normal_(w, a=0.2, mode="fan_out"),
    ),
    "xavier_uniform": (
        initializers.XavierUniform("tanh"),
        lambda w: torch.nn.init.xavier_uniform_(w, torch.nn.init.calculate_gain("tanh")),
    ),
    "xavier_normal": (initializers.XavierNormal(0.7), lambda w: torch.nn.init.xavier_normal_(w, 0.7)),
    "orthogonal": (initializers.Orthogonal(2.0), lambda w: torch.nn.init.orthogonal_(w, 2.0)),
    "uniform": (initializers.Uniform(-1.0, 2.0), lambda w: torch.nn.init.uniform_(w, -1.0, 2.0)),
    "normal": (initializers.Normal(1.0, 2.0), lambda w: torch.nn.init.normal_(w, 1.0, 2.0)),
}


@pytest.mark.parametrize("shape", [(300, 200), (50, 1000)], ids=str)
@pytest.mark.parametrize("name", INITIALIZERS)
def test_initial_distributions(name, shape):
    """Two-sample Kolmogorov-Smirnov, exceeded by one pair in a million. PyTorch's weights are (out, in)."""
    ours, theirs = INITIALIZERS[name]
    torch.manual_seed(0)
    other = theirs(torch.empty(shape[::-1], dtype=torch.float64)).numpy()
    values = ours(shape, np.random.Generator(np.random.PCG64(0)))
    assert values.shape == other.T.shape
    values, other = np.sort(values, axis=None), np.sort(other, axis=None)
    rank = np.searchsorted(other, values, side="right")
    assert abs(rank - np.arange(1, values.size + 1)).max() / values.size < 2.69 * np.sqrt(2 / values.size)


@pytest.mark.parametrize("nonlinearity", initializers.GAINS)
def test_gains(nonlinearity):
    assert initializers.calculate_gain(nonlinearity) == pytest.approx(torch.nn.init.calculate_gain(nonlinearity))
