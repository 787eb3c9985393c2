"""What tests of networks share: data, comparisons, ways to take a step, threads."""

import threading

import numpy as np
from grid import build, chain, is_linear, specs

import cnn

__all__ = [  # build, chain, is_linear and specs are grid's
    "assert_close",
    "assert_gradients",
    "assert_parameters",
    "batch_for",
    "build",
    "chain",
    "explicit",
    "fused",
    "is_linear",
    "model_gradients",
    "model_of",
    "native_loop",
    "numbers",
    "run_together",
    "specs",
    "squared",
]


HYPER = {"lr": 5e-4, "momentum": 0.9, "weight_decay": 0.01}  # nothing diverges, however wide


def model_of(spec, loss, dtype, seed=0, **hyper):
    return build(spec, loss, dtype=dtype, seed=seed, optimizer=cnn.SGD(**(hyper or HYPER)))[0]


def squared(outputs, targets):
    """The mean squared error, as a loss of the user's own."""
    d = outputs - targets
    return (d**2).mean(), 2 * d / d.size


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def batch_for(spec, loss, batch, dtype, seed=0):
    """x and targets."""
    linears = [part for part in spec if is_linear(part)]
    rng = np.random.default_rng([seed, batch])
    x = rng.standard_normal((batch, linears[0][0])).astype(dtype)
    if loss == "cross_entropy":
        return x, rng.integers(0, linears[-1][1], batch)
    return x, rng.standard_normal((batch, linears[-1][1])).astype(dtype)


def assert_close(actual, expected, rtol, what="", terms=0.0):
    """Equal within rtol of the array's largest number, or of the terms that it is summed from, if they are larger."""
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape, what
    scale = np.abs(expected).max(initial=terms)
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


# ways to take a step: each returns the loss ---------------------------------------------------------


def fused(model, x, y):
    return model.train_step(x, y)


def explicit(model, x, y):
    loss = model(x, y)
    model.zero_grads()
    model.backward()
    model.step()
    return loss


def apart(model, x, y):
    """The step that `train_step` fuses, in two calls whose sums have the same order: of rows in the lanes of vectors
    `loss_and_grad` and `step`, of others `explicit`."""
    if not model._core.program.in_lanes(len(x)):
        return explicit(model, x, y)
    loss, _ = model.loss_and_grad(x, y)
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
