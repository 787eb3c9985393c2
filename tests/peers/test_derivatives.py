"""Derivative products beside jax.vjp, jax.jvp and jax.hessian in float64, on random networks with branches; and once
beside torch.func."""

import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from grid import build, graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from peers.twins import jax_loss

import cnn

LOSSES = {name: case for name, case in grid.LOSSES.items() if not case.own and not case.in_pairs}


def targets_for(name, batch, seed):
    y = grid.targets(LOSSES[name].targets, batch, 3, np.random.default_rng(seed))
    if y.ndim == 1:  # class 1 may be ignored
        y[0] = 0
    return y


def with_loss(parts, name, seed):
    """Model and truth; outputs are above 0, where the loss needs them."""
    case = LOSSES[name]
    return build([*parts, ("softplus", None)] if case.positive else parts, case.make(3), seed=seed)


def assert_close(actual, expected, what):
    expected = np.asarray(expected)
    scale = abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * scale + 1e-14, err_msg=what)


def functions_of(truth):
    """The outputs, of the vector of parameters and of x, and the penalty, of the vector, in JAX."""

    def penalty(vector):
        truth.vector = vector
        return truth.penalty() + 0.0 * vector.sum()

    return lambda vector, x: truth.outputs(x, vector), penalty


@given(
    parts=graphs(n_out=3),
    name=st.sampled_from(list(LOSSES)),
    batch=st.sampled_from((1, 2, 5, 9)),
    seed=st.integers(0, 99),
)
@settings(max_examples=10)
def test_random_networks(parts, name, batch, seed):
    function = jax_loss(LOSSES[name], 3)
    model, truth = with_loss(parts, name, seed)
    outputs, extra = functions_of(truth)
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
    function = jax_loss(LOSSES[name], 3)
    parts = [
        (4, 5, True, 0.1),
        ("tanh", None),
        ("add", [[("identity", None)], [(5, 5, True), ("gelu", None)]]),
        ("layer", 5),
        (5, 3, True),
    ]
    random = np.random.default_rng(1)
    x, y = random.standard_normal((7, 4)), targets_for(name, 7, 1)
    model, truth = with_loss(parts, name, 3)
    outputs, extra = functions_of(truth)
    hessian = jax.jit(jax.hessian(lambda p: function(outputs(p, x), y) + extra(p)))(model.parameters)
    jacobian = jax.jit(jax.vmap(jax.jacobian(lambda row: outputs(model.parameters, row[None])[0])))(x)
    for _ in each_isa:
        model, _ = with_loss(parts, name, 3)
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


@given(parts=graphs(n_out=2, names=grid.SMOOTH), batch=st.sampled_from((1, 2, 5)), seed=st.integers(0, 99))
@settings(max_examples=3)
def test_jets_of_random_networks(parts, batch, seed):
    """u, du and d2u, and the gradient of a loss that is not linear in them."""
    model, truth = build(parts, seed=seed)
    outputs, _ = functions_of(truth)
    x = np.random.default_rng(seed).standard_normal((batch, parts[0][0]))
    vector = jnp.array(model.parameters)

    def jets(vector, x):
        def u(row):
            return outputs(vector, row[None])[0]

        second = jax.vmap(jax.jacfwd(jax.jacfwd(u)))(x)
        return jax.vmap(u)(x), jax.vmap(jax.jacfwd(u))(x), jnp.diagonal(second, axis1=2, axis2=3)

    def loss(vector):
        u, du, d2u = jets(vector, x)
        return jnp.sum(u**2) + jnp.sum(jnp.sin(du)) + jnp.sum(d2u * d2u)

    def f(x, u, du, d2u):
        return np.sum(u**2) + np.sum(np.sin(du)) + np.sum(d2u**2), 2 * u, np.cos(du), 2 * d2u

    for what, one, other in zip(("u", "du", "d2u"), model.derivatives(x), jets(vector, x), strict=True):
        assert_close(one, other, what)
    value, gradient = model.residual_loss_and_grad(x, f)
    expected, slope = jax.value_and_grad(loss)(vector)
    assert_close(value - model._core.program.penalty(), expected, "loss")
    penalties = model.residual_loss_and_grad(x, lambda *_: (0.0, None, None, None))[1]
    assert_close(gradient - penalties, slope, "gradient")
