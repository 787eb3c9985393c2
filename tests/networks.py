"""Random networks for the tests: the library's model and the reference of the same numbers, from one description.

A description ("spec") is a list of (in, out, bias) for a linear layer and (name, param) for an
activation, as [(3, 8, True), ("elu", 0.5), (8, 1, False)].
"""

import functools
import threading
from itertools import pairwise

import numpy as np
import reference
from hypothesis import strategies as st

import cnn

ACTIVATIONS = {
    "identity": lambda param: cnn.Identity(),
    "relu": lambda param: cnn.ReLU(),
    "leaky_relu": cnn.LeakyReLU,
    "elu": cnn.ELU,
    "sigmoid": lambda param: cnn.Sigmoid(),
    "tanh": lambda param: cnn.Tanh(),
    "gelu": lambda param: cnn.GELU(),
    "gelu_tanh": lambda param: cnn.GELU(approximate="tanh"),
    "silu": lambda param: cnn.SiLU(),
    "softplus": lambda param: cnn.Softplus(),
}
SMOOTH = ("identity", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu", "softplus")
PARAMS = {"leaky_relu": (0.01, 0.2, -0.5, 1.5), "elu": (1.0, 0.5, -0.3, 2.0)}
LOSSES = {"mse": cnn.MSELoss, "cross_entropy": cnn.CrossEntropyLoss}
# Around the widths of a vector and of two, and narrow or long enough to be kept transposed.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 300)


def is_linear(part):
    return len(part) == 3


def build(spec, loss=None, *, optimizer=None, dtype="float64", seed=0):
    """The model and the reference network."""
    layers = [cnn.Linear(*part) if is_linear(part) else ACTIVATIONS[part[0]](part[1]) for part in spec]
    if loss:
        layers.append(LOSSES[loss]())
    model = cnn.Sequential(layers, optimizer=optimizer, dtype=dtype, seed=seed)
    described = [("linear", None) if is_linear(part) else part for part in spec]
    return model, reference.Network(described, loss, model.state_dict())


def batch_for(spec, loss, batch, dtype, seed=0):
    """x and targets."""
    linears = [part for part in spec if is_linear(part)]
    rng = np.random.default_rng([seed, batch])
    x = rng.standard_normal((batch, linears[0][0])).astype(dtype)
    if loss == "cross_entropy":
        return x, rng.integers(0, linears[-1][1], batch)
    return x, rng.standard_normal((batch, linears[-1][1])).astype(dtype)


def chain(*widths, activation=("tanh", None), bias=True):
    """The description of linear layers of these widths with activations between them."""
    spec = []
    for n_in, n_out in pairwise(widths):
        spec += [(n_in, n_out, bias), activation]
    return spec[:-1]


def assert_close(actual, expected, rtol, what=""):
    """Equal within rtol of the array's largest number: the error of a sum is relative to its terms."""
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape, what
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * scale, err_msg=what)


def assert_parameters(model, network, rtol):
    state = model.state_dict()
    assert list(state) == list(network.parameters)
    for name, array in state.items():
        assert_close(array, network.parameters[name], rtol, name)


def assert_gradients(model, grads, rtol):
    gradients = dict(zip(model.state_dict(), model_gradients(model), strict=True))
    assert list(gradients) == list(grads)
    for name, array in gradients.items():
        assert_close(array, grads[name], rtol, name)


def model_gradients(model):
    """Views of the gradients, in the order of state_dict."""
    linears = [layer for layer in model.layers if isinstance(layer, cnn.Linear)]
    arrays = [a for layer in linears for a in (layer.grad_weight, layer.grad_bias)]
    return [a for a in arrays if a is not None]


@st.composite
def activations(draw, most, names=tuple(ACTIVATIONS)):
    """Up to so many activations in a row."""
    chosen = draw(st.lists(st.sampled_from(names), max_size=most))
    return [(name, draw(st.sampled_from(PARAMS.get(name, (None,))))) for name in chosen]


@st.composite
def specs(draw, widths=WIDTHS, depth=4, names=tuple(ACTIVATIONS)):
    """Networks of up to `depth` linear layers, with any activations before, between and behind them."""
    spec = draw(activations(1, names))
    n = draw(st.sampled_from(widths))
    for _ in range(draw(st.integers(1, depth))):
        n_out = draw(st.sampled_from(widths))
        spec.append((n, n_out, draw(st.booleans())))
        spec += draw(activations(2, names))
        n = n_out
    return spec


# optimisers ---------------------------------------------------------------------------------------

RULES = {
    cnn.SGD: reference.sgd_step,
    cnn.Adam: reference.adam_step,
    cnn.AdamW: functools.partial(reference.adam_step, decoupled=True),
    cnn.RMSprop: reference.rmsprop_step,
    cnn.Adagrad: reference.adagrad_step,
}


def rule_of(optimizer):
    """The arguments of reference.Network.train_step for this optimiser: its rule and hyper-parameters."""
    return {**optimizer.get_config(), "rule": RULES[type(optimizer)]}


# ways to take a step: each returns the loss ---------------------------------------------------------


def fused(model, x, y):
    return model.train_step(x, y)


def explicit(model, x, y):
    loss = model(x, y)
    model.zero_grads()
    model.backward()
    model.step()
    return loss


def native_loop(model, x, y):
    return model.fit(x, y, batch_size=len(x), shuffle=False)["loss"][0]


# Python's threads ---------------------------------------------------------------------------------


def run_together(*calls):
    """Run each call in a thread of its own, all starting at one moment; raise what they raise."""
    barrier = threading.Barrier(len(calls))
    errors = []

    def run(call):
        barrier.wait()
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]
