"""Derivative products beside jax.vjp, jax.jvp and jax.hessian in float64, on random networks with branches; and once
beside torch.func."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from grid import build, forward, graphs, penalty
from hypothesis import given, settings
from hypothesis import strategies as st

import cnn

JAX = {
    "identity": lambda z, p: z,
    "relu": lambda z, p: jax.nn.relu(z),
    "leaky_relu": lambda z, p: jnp.where(z > 0, z, p * z),
    "elu": lambda z, p: jnp.where(z > 0, z, p * jnp.expm1(jnp.where(z > 0, 0.0, z))),
    "sigmoid": lambda z, p: jax.nn.sigmoid(z),
    "tanh": lambda z, p: jnp.tanh(z),
    "gelu": lambda z, p: jax.nn.gelu(z, approximate=False),
    "gelu_tanh": lambda z, p: jax.nn.gelu(z, approximate=True),
    "silu": lambda z, p: jax.nn.silu(z),
    "softplus": lambda z, p: jax.nn.softplus(z),
}


def activation(name, z, param):
    return JAX[name](z, param)


def huber(d, delta):
    return jnp.where(abs(d) <= delta, d * d / 2, delta * (abs(d) - delta / 2))


def quantile(d, q):
    return jnp.maximum(q * d, (q - 1) * d)


Q = np.array([0.1, 0.5, 0.9])
W = np.array([0.5, 1.0, 2.0])


def cross_entropy(z, t):
    """Class weights W and label smoothing 0.1."""
    log_p = jax.nn.log_softmax(z)
    shares = W * (0.9 * jax.nn.one_hot(t, 3) + 0.1 / 3)
    return -(shares * log_p).sum() / W[t].sum()


# The loss, and its function of outputs (batch, 3) and targets.
LOSSES = {
    "mse": (cnn.MSELoss(), lambda y, t: jnp.mean((y - t) ** 2)),
    "l1": (cnn.L1Loss(reduction="sum"), lambda y, t: abs(y - t).sum()),
    "huber": (cnn.HuberLoss(delta=0.7), lambda y, t: huber(y - t, 0.7).mean()),
    "smooth_l1": (cnn.SmoothL1Loss(beta=0.3), lambda y, t: huber(y - t, 0.3).mean() / 0.3),
    "bce": (
        cnn.BCEWithLogitsLoss(pos_weight=W),
        lambda y, t: (-(W * t * jax.nn.log_sigmoid(y) + (1 - t) * jax.nn.log_sigmoid(-y))).mean(),
    ),
    "cross_entropy": (cnn.CrossEntropyLoss(W, label_smoothing=0.1), cross_entropy),
    "probabilities": (cnn.CrossEntropyLoss(), lambda z, t: -(t * jax.nn.log_softmax(z)).sum(axis=1).mean()),
    "nll": (cnn.NLLLoss(), lambda y, t: -y[jnp.arange(len(t)), t].mean()),
    "poisson": (cnn.PoissonNLLLoss(), lambda y, t: (jnp.exp(y) - t * y).mean()),
    "quantile": (cnn.QuantileLoss(Q), lambda y, t: quantile(t - y, Q).mean()),
}


def targets_for(name, batch, seed):
    random = np.random.default_rng(seed)
    if name in ("cross_entropy", "nll"):
        return random.integers(0, 3, batch)
    if name == "probabilities":
        return random.dirichlet(np.ones(3), batch)
    if name == "bce":
        return random.random((batch, 3))
    return random.poisson(2.0, (batch, 3)) + random.random((batch, 3))


def assert_close(actual, expected, what):
    expected = np.asarray(expected)
    scale = abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * scale + 1e-14, err_msg=what)


def functions_of(parts, model):
    """The outputs, of the vector of parameters and of x, and the penalty, of the vector, in JAX."""
    state = model.state_dict()
    named = [(name, a.shape) for name, a in model._named("weight", "bias").items()]

    def arrays_of(vector):
        arrays, at = dict(state), 0
        for name, shape in named:
            size = int(np.prod(shape))
            arrays[name] = vector[at : at + size].reshape(shape)
            at += size
        return arrays

    def outputs(vector, x):
        return forward(parts, x, arrays_of(vector), jnp, activation)

    return outputs, lambda vector: penalty(parts, arrays_of(vector)) + 0.0 * vector.sum()


@given(
    parts=graphs(n_out=3),
    name=st.sampled_from(list(LOSSES)),
    batch=st.sampled_from((1, 2, 5, 9)),
    seed=st.integers(0, 99),
)
@settings(max_examples=10)
def test_random_networks(parts, name, batch, seed):
    loss, function = LOSSES[name]
    model = build(parts, loss, seed=seed)
    outputs, extra = functions_of(parts, model)
    random = np.random.default_rng(seed)
    p, x, y = model.parameters, random.standard_normal((batch, parts[0][0])), targets_for(name, batch, seed)
    t, v, dp, u = (random.standard_normal(shape) for shape in (x.shape, (batch, 3), p.shape, p.shape))

    def of_loss(p, x):
        return function(outputs(p, x), y) + extra(p)

    value, pushed = jax.jvp(outputs, (p, x), (dp, t))
    of_parameters, of_inputs = jax.vjp(outputs, p, x)[1](jnp.asarray(v))
    hvp = jax.jvp(lambda p: jax.grad(of_loss)(p, x), (p,), (u,))[1]
    grad_x, hvp_x = jax.jvp(lambda x: jax.grad(of_loss, 1)(p, x), (x,), (t,))
    mixed = jax.jvp(lambda x: jax.vjp(lambda p: outputs(p, x), p)[1](jnp.asarray(v))[0], (x,), (t,))[1]
    along = jax.jvp(lambda p: outputs(p, x), (p,), (u,))[1]
    curved = jax.jvp(jax.grad(lambda y_: function(y_, y)), (value,), (along,))[1]
    gnvp = jax.vjp(lambda p: outputs(p, x), p)[1](curved)[0]
    gnvp = gnvp + jax.jvp(jax.grad(extra), (p,), (u,))[1]

    assert_close(model.jvp(x, t, dp), pushed, "jvp")
    ours = model.vjp(x, v, parameters=True)
    assert_close(ours[0], of_inputs, "vjp")
    assert_close(ours[1], of_parameters, "vjp, parameters")
    assert_close(model.grad_input(x, y), grad_x, "grad_input")
    assert_close(model.hvp_input(x, t, y), hvp_x, "hvp_input")
    assert_close(model.hvp_input(x, t, grad_output=v, parameters=True)[1], mixed, "mixed")
    assert_close(model.hvp(x, y, u), hvp, "hvp")
    assert_close(model.gnvp(x, y, u), gnvp, "gnvp")


@pytest.mark.parametrize("name", LOSSES)
def test_whole_hessian_and_jacobian(each_isa, name):
    """Every loss, column by column: jax.hessian and jax.jacobian."""
    loss, function = LOSSES[name]
    parts = [
        (4, 5, True, 0.1),
        ("tanh", None),
        ("add", [[("identity", None)], [(5, 5, True), ("gelu", None)]]),
        ("layer", 5),
        (5, 3, True),
    ]
    random = np.random.default_rng(1)
    x, y = random.standard_normal((7, 4)), targets_for(name, 7, 1)
    model = build(parts, loss, seed=3)
    outputs, extra = functions_of(parts, model)
    hessian = jax.jit(jax.hessian(lambda p: function(outputs(p, x), y) + extra(p)))(model.parameters)
    jacobian = jax.jit(jax.vmap(jax.jacobian(lambda row: outputs(model.parameters, row[None])[0])))(x)
    for _ in each_isa:
        model = build(parts, loss, seed=3)
        columns = [model.hvp(x, y, v) for v in np.eye(model.parameters.size)]
        assert_close(np.array(columns), hessian, "hessian")
        assert_close(model.jacobian(x), jacobian, "jacobian")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # by torch.func.jvp itself
def test_torch_func(each_isa):
    """The same network in PyTorch: jvp, vjp, and hvp as the jvp of a gradient."""
    network = torch.nn.Sequential(
        torch.nn.Linear(6, 9), torch.nn.GELU(), torch.nn.LayerNorm(9), torch.nn.Linear(9, 4), torch.nn.SiLU()
    ).double()
    weights = {name: a.detach() for name, a in network.named_parameters()}
    random = np.random.default_rng(0)
    x, t, v, y = (random.standard_normal((5, n)) for n in (6, 6, 4, 4))

    def outputs(weights, x):
        return torch.func.functional_call(network, weights, x)

    def loss(weights):
        return ((outputs(weights, torch.from_numpy(x)) - torch.from_numpy(y)) ** 2).mean()

    for _ in each_isa:
        layers = [cnn.Linear(6, 9), cnn.GELU(), cnn.LayerNorm(9), cnn.Linear(9, 4), cnn.SiLU(), cnn.MSELoss()]
        model = cnn.Sequential(layers, dtype="float64")
        model.load_weights({name: a.numpy().T for name, a in weights.items()})
        u = random.standard_normal(model.parameters.size)
        tangents, at = {}, 0
        for name, a in weights.items():
            shape = tuple(reversed(a.shape))
            tangents[name] = torch.from_numpy(u[at : at + a.numel()].reshape(shape).T.copy())
            at += a.numel()
        pushed = torch.func.jvp(lambda x: outputs(weights, x), (torch.from_numpy(x),), (torch.from_numpy(t),))[1]
        pulled = torch.func.vjp(lambda x: outputs(weights, x), torch.from_numpy(x))[1](torch.from_numpy(v))[0]
        hvp = torch.func.jvp(torch.func.grad(loss), (weights,), (tangents,))[1]
        assert_close(model.jvp(x, t), pushed, "jvp")
        assert_close(model.vjp(x, v), pulled, "vjp")
        assert_close(model.hvp(x, y, u), np.concatenate([a.numpy().T.ravel() for a in hvp.values()]), "hvp")
