"""Layers used alone, their initial values, and their arrays as views into a model."""

import gc
import inspect
import weakref

import numpy as np
import pytest
import reference
from grid import ACTIVATIONS, WITH_PARAMETERS, build, chain
from networks import assert_close, batch_for

import cnn


def data(dtype, *shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# Linear alone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(1, 1), (5, 3), (300, 1), (16, 33)], ids=str)
def test_linear_alone(isa, dtype, widths, bias):
    """Forward, backward (gradients add up), the update; against the reference."""
    rtol = 1e-5 if dtype == np.float32 else 1e-13
    layer = cnn.Linear(*widths, bias=bias, dtype=dtype.name, seed=1)
    weight = layer.weight.astype(np.float64)
    b = layer.bias.astype(np.float64) if bias else None
    x, grad_output = data(dtype, 7, widths[0]), data(dtype, 7, widths[1], seed=1)
    y = layer(x)
    assert y.dtype == dtype
    assert_close(y, reference.linear_forward(x.astype(np.float64), weight, b), rtol)
    grads = reference.linear_backward(grad_output.astype(np.float64), x.astype(np.float64), weight)
    x[...] = np.nan  # the layer has kept a copy
    assert_close(layer.backward(grad_output), grads[0], rtol)
    assert_close(layer.grad_weight, grads[1], rtol)
    layer.backward(grad_output)
    assert_close(layer.grad_weight, 2 * grads[1], rtol)
    if bias:
        assert_close(layer.grad_bias, 2 * grads[2], rtol)
    else:
        assert layer.bias is None
        assert layer.grad_bias is None
    layer.update_parameters(0.1)
    assert_close(layer.weight, weight - 0.2 * grads[1], rtol)
    if bias:
        assert_close(layer.bias, b - 0.2 * grads[2], rtol)
    layer.zero_grads()
    assert not layer.grad_weight.any()
    assert not bias or not layer.grad_bias.any()


def test_arrays_of_a_linear_alone(dtype):
    layer = cnn.Linear(5, 3, dtype=dtype.name)
    for array, shape in (
        (layer.weight, (5, 3)),
        (layer.bias, (3,)),
        (layer.grad_weight, (5, 3)),
        (layer.grad_bias, (3,)),
    ):
        assert array.shape == shape
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
    assert layer.weight is layer.weight
    assert not layer.grad_weight.any()
    assert not layer.grad_bias.any()


def test_assigning_to_weight_writes_into_it(isa, dtype):
    layer = cnn.Linear(2, 3, dtype=dtype.name)
    weight, bias = layer.weight, layer.bias
    layer.weight = [[1, 2, 3], [4, 5, 6]]
    layer.bias = np.array([True, False, True])
    assert layer.weight is weight
    assert layer.bias is bias
    np.testing.assert_array_equal(layer([[1, 1]]), [[6, 7, 10]])


def test_linear_refuses(isa, dtype):
    layer = cnn.Linear(5, 3, dtype=dtype.name, seed=0)
    before = layer.weight.copy()
    refused = [
        (lambda: layer(np.ones((2, 4))), ValueError, r"^x: expected shape \(batch, 5\)"),
        (lambda: layer(np.ones(4)), ValueError, r"^x: expected shape \(batch, 5\)"),
        (lambda: layer(np.ones((2, 5), complex)), TypeError, "^x: expected real numbers"),
        (lambda: setattr(layer, "weight", np.ones((3, 5))), ValueError, r"^weight: expected shape \(5, 3\), got"),
        (lambda: setattr(layer, "weight", 1.0), ValueError, r"^weight: expected shape \(5, 3\), got \(\)"),
        (lambda: setattr(layer, "weight", np.ones((5, 3), complex)), TypeError, "^weight: expected real"),
        (lambda: setattr(layer, "bias", np.ones((1, 3))), ValueError, r"^bias: expected shape \(3,\)"),
        (lambda: setattr(layer, "bias", ["a"] * 3), TypeError, "^bias: expected real numbers"),
    ]
    for call, error, message in refused:
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(RuntimeError, match=r"^backward needs a forward pass"):
        layer.backward(np.ones((2, 3)))
    layer(np.ones((2, 5)))
    for grad_output in (np.ones((2, 4)), np.ones((3, 3)), np.ones(3)):
        with pytest.raises(ValueError, match=r"^grad_output: expected"):
            layer.backward(grad_output)
    with pytest.raises(TypeError, match=r"^grad_output: expected real numbers"):
        layer.backward(np.ones((2, 3), object))
    np.testing.assert_array_equal(layer.weight, before)
    assert not layer.grad_weight.any()
    with pytest.raises(ValueError, match=r"^Linear\(5, 3, bias=False\) has no bias"):
        cnn.Linear(5, 3, bias=False).bias = [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, 3), ValueError, "^in_features: expected at least 1, got 0"),
        ((3, -1), ValueError, "^out_features: expected at least 1, got -1"),
        ((3.0, 1), TypeError, "^in_features: expected an int, got 3.0"),
        ((3, "1"), TypeError, "^out_features: expected an int, got '1'"),
        ((True, 1), TypeError, "^in_features: expected an int, got True"),
        ((None, 1), TypeError, "^in_features: expected an int, got None"),
    ],
    ids=str,
)
def test_widths(arguments, error, message):
    with pytest.raises(error, match=message):
        cnn.Linear(*arguments)


def test_dtype():
    for dtype in ("float16", "int32"):
        with pytest.raises(ValueError, match=r"^dtype: expected float32 or float64"):
            cnn.Linear(2, 3, dtype=dtype)
    assert cnn.Linear(2, 3).dtype == np.float32
    assert cnn.Linear(np.int64(2), np.uint8(3), dtype=np.float64).weight.dtype == np.float64


# initial values ----------------------------------------------------------------------------------

SEED_0 = {  # Linear(3, 2, seed=0), float64: the bits of PCG64, on every machine
    "weight": [
        ["0x1.43e401fe365a5p-3", "-0x1.10350f3506379p-2"],
        ["-0x1.0f612805d4a71p-1", "-0x1.1dd503cf0e84bp-1"],
        ["0x1.726a37c3a8298p-2", "0x1.e80c366bbf5e8p-2"],
    ],
    "bias": ["0x1.f859aaa33b701p-4", "0x1.0f5c1bb527baap-2"],
}


def known(name):
    rows = SEED_0[name]
    flat = [float.fromhex(text) for row in rows for text in (row if name == "weight" else [row])]
    return np.reshape(flat, (3, 2) if name == "weight" else (2,))


def test_values_of_seed_0(dtype):
    layer = cnn.Linear(3, 2, dtype=dtype.name, seed=0)
    np.testing.assert_array_equal(layer.weight, known("weight").astype(dtype))
    np.testing.assert_array_equal(layer.bias, known("bias").astype(dtype))


def test_values_of_a_models_seed(isa, dtype):
    """The layers draw from one stream, weight before bias, first layer first."""
    model = cnn.Sequential(
        [cnn.Linear(3, 2), cnn.ReLU(), cnn.Linear(2, 5), cnn.Linear(5, 1, bias=False)],
        dtype=dtype,
        seed=0,
    )
    first = np.concatenate([known("weight").ravel(), known("bias")])
    np.testing.assert_array_equal(model.parameters[:8].astype(np.float32), first.astype(np.float32))
    raw = np.random.PCG64(0).random_raw(8 + 15 + 5)
    unit = (raw >> np.uint64(11)) / 2.0**53
    bounds = np.repeat([3**-0.5, 2**-0.5, 5**-0.5], [8, 15, 5])
    np.testing.assert_allclose(model.parameters, (2 * unit - 1) * bounds, rtol=1e-6)


def test_seeds():
    def parameters(**arguments):
        return cnn.Sequential([cnn.Linear(20, 30), cnn.ReLU(), cnn.Linear(30, 2)], **arguments).parameters

    np.testing.assert_array_equal(parameters(seed=5), parameters(seed=5))
    single = parameters(seed=5)
    np.testing.assert_array_equal(single, parameters(seed=5, dtype="float64").astype(np.float32))
    assert (single != parameters(seed=6)).all()
    assert (parameters() != parameters()).any()
    assert (cnn.Linear(9, 9).weight != cnn.Linear(9, 9).weight).any()
    parameters(seed=0)
    parameters(seed=2**63 - 1)


@pytest.mark.parametrize("n_in", [1, 10, 400])
def test_initial_values_are_uniform(n_in):
    """In +-1/sqrt(in), as torch.nn.Linear's: Kolmogorov-Smirnov distance below its 0.1 % point."""
    layer = cnn.Linear(n_in, 4000 // n_in, seed=3, dtype="float64")
    bound = n_in**-0.5
    for values in (layer.weight.ravel(), cnn.Linear(n_in, 4000, seed=4).bias.astype(np.float64)):
        assert np.abs(values).max() <= bound
        cdf = (np.sort(values) / bound + 1) / 2
        n = len(values)
        steps = np.arange(n + 1) / n
        distance = max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())
        assert distance < 1.95 / np.sqrt(n)


def test_parameters_are_drawn_when_needed():
    """A layer that nobody has looked at gets its values from the model; otherwise it brings its own."""
    looked_at, fresh = cnn.Linear(4, 4, seed=7), cnn.Linear(4, 4, seed=7)
    own = looked_at.weight.copy()
    own_bias = looked_at.bias.copy()
    own_bias[0] = looked_at.bias[0] = 42
    cnn.Sequential([looked_at, fresh], seed=0)
    np.testing.assert_array_equal(looked_at.weight, own)
    np.testing.assert_array_equal(looked_at.bias, own_bias)
    other = cnn.Linear(4, 4)
    cnn.Sequential([other], seed=0)
    np.testing.assert_array_equal(fresh.weight, other.weight)
    large = cnn.Linear(2**20, 2**20)  # 4 TB that are never drawn
    assert repr(large) == "Linear(1048576, 1048576)"


# activations alone -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "param"), WITH_PARAMETERS)
def test_activation_alone(isa, dtype, name, param):
    layer = ACTIVATIONS[name].make(param)
    rtol = 1e-6 if dtype == np.float32 else 1e-14
    for shape in ((), (3,), (4, 5), (2, 3, 4), (0, 3)):
        z, grad_output = data(dtype, *shape), data(dtype, *shape, seed=1)
        z64 = z.astype(np.float64)
        value = ACTIVATIONS[name].value(z64, param)
        slope = ACTIVATIONS[name].slope(z64, param)
        y, derivative = layer(z), layer.derivative(z)
        assert y.dtype == derivative.dtype == dtype
        assert_close(y, value, rtol)
        assert_close(derivative, slope, rtol)
        z = z.copy()
        layer.forward(z)
        z[...] = np.nan  # the layer has kept a copy
        assert_close(layer.backward(grad_output), grad_output * slope, rtol)
    assert layer([1, 2]).dtype == np.float64


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activation_refuses(isa, name):
    layer = ACTIVATIONS[name].make()
    with pytest.raises(RuntimeError, match=r"^backward needs a forward pass"):
        layer.backward(np.ones(3))
    with pytest.raises(TypeError, match=r"^z: expected real numbers, got dtype complex128"):
        layer(np.ones(3, complex))
    layer(np.ones(3))
    with pytest.raises(ValueError, match=r"^grad_output: expected shape \(3,\), as z has, got \(4,\)"):
        layer.backward(np.ones(4))


@pytest.mark.parametrize("build_layer", [cnn.LeakyReLU, cnn.ELU])
def test_parameters_of_activations(build_layer):
    name = {cnn.LeakyReLU: "negative_slope", cnn.ELU: "alpha"}[build_layer]
    layer = build_layer(**{name: np.float32(0.25)})
    assert getattr(layer, name) == 0.25
    assert layer.get_config() == {name: 0.25}
    assert isinstance(layer.get_config()[name], float)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number, got "):
            build_layer(bad)
    for bad in ("1", None, True, [1.0], 1j):
        with pytest.raises(TypeError, match=f"^{name}: expected a number, got "):
            build_layer(bad)


def test_gelu_approximations():
    assert cnn.GELU().approximate == "none"
    for bad in ("exact", None, True):
        with pytest.raises(ValueError, match=r"^approximate: expected one of 'none', 'tanh', got "):
            cnn.GELU(approximate=bad)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (cnn.Linear(3, 4), "Linear(3, 4)"),
        (cnn.Linear(3, 4, bias=False), "Linear(3, 4, bias=False)"),
        (cnn.Identity(), "Identity()"),
        (cnn.ReLU(), "ReLU()"),
        (cnn.LeakyReLU(), "LeakyReLU()"),
        (cnn.ELU(2), "ELU(alpha=2.0)"),
        (cnn.Sigmoid(), "Sigmoid()"),
        (cnn.Tanh(), "Tanh()"),
        (cnn.GELU("tanh"), "GELU(approximate='tanh')"),
        (cnn.SiLU(), "SiLU()"),
        (cnn.Softplus(), "Softplus()"),
        (cnn.MSELoss(), "MSELoss()"),
        (cnn.CrossEntropyLoss(), "CrossEntropyLoss()"),
    ],
    ids=str,
)
def test_repr_and_config(layer, text):
    """The text is what makes the same layer; the configuration too."""
    assert repr(layer) == text
    again = eval(text, vars(cnn))
    assert again.get_config() == layer.get_config()
    assert type(layer)(**layer.get_config()).get_config() == layer.get_config()


def test_names_are_pytorchs():
    """Classes and arguments, in PyTorch's order, less those about devices and autograd."""
    signatures = {
        cnn.Linear: ["in_features", "out_features", "bias"],
        cnn.LeakyReLU: ["negative_slope"],
        cnn.ELU: ["alpha"],
        cnn.GELU: ["approximate"],
        cnn.SGD: ["lr", "momentum", "dampening", "weight_decay", "nesterov"],
    }
    for cls, names in signatures.items():
        assert list(inspect.signature(cls).parameters)[: len(names)] == names
    for name in cnn.__all__:
        assert getattr(cnn, name).__doc__, name


# views into a model ------------------------------------------------------------------------------


def block(array):
    """The object that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base


def test_arrays_are_views_of_the_model(isa, dtype):
    """(in, out), whatever the layout; writing into them changes what the model computes."""
    spec = [(300, 1, True), ("relu", None), (1, 17, False), (17, 33, True)]
    model, network = build(spec, dtype=dtype)
    linears = [model.layers[i] for i in (0, 2, 3)]
    for layer in linears:
        for array, shape in (
            (layer.weight, (layer.in_features, layer.out_features)),
            (layer.grad_weight, (layer.in_features, layer.out_features)),
            (layer.bias, (layer.out_features,)),
            (layer.grad_bias, (layer.out_features,)),
        ):
            if not layer.has_bias and len(shape) == 1:
                assert array is None
                continue
            assert array.shape == shape
            assert array.dtype == dtype
            assert array.flags.writeable
            assert array.flags.aligned
            assert block(array) is model._core.program
        assert layer.weight is layer.weight
        assert np.shares_memory(layer.weight, layer.weight)
        assert not np.shares_memory(layer.weight, layer.grad_weight)
        assert layer.dtype == dtype
    x, _ = batch_for(spec, None, 5, dtype)
    for i, layer in zip((0, 2, 3), linears, strict=True):
        layer.weight[...] *= 2
        layer.weight[0, 0] = 0.5
        network.parameters[f"{i}.weight"] *= 2
        network.parameters[f"{i}.weight"][0, 0] = 0.5
    linears[0].bias[:] = [3]
    network.parameters["0.bias"][:] = [3]
    rtol = 1e-5 if dtype == np.float32 else 1e-13
    assert_close(model.predict(x), network.forward(x), rtol)
    assert_close(model(x), network.forward(x), rtol)


def test_views_keep_the_memory_alive(isa, dtype):
    model, _ = build(chain(20, 30, 2), dtype=dtype)
    layer = model.layers[0]
    weight, expected = layer.weight, layer.weight.copy()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    for _ in range(20):  # what else would take the place
        build(chain(20, 30, 2), dtype=dtype)
    np.testing.assert_array_equal(weight, expected)
    weight += 1
    np.testing.assert_array_equal(layer.weight, expected + 1)


def test_layers_survive_their_model(isa, dtype):
    """They still compute, and another model may take them, with the values they have."""
    model, _ = build(chain(5, 9, 3), dtype=dtype)
    layers = model.layers
    state = model.state_dict()
    x = data(dtype, 4, 5)
    expected = model.predict(x)
    del model
    gc.collect()
    for layer in layers:
        x = layer(x)
    assert_close(x, expected, 1e-6)
    again = cnn.Sequential(layers, dtype=dtype, seed=99)
    for name, array in again.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_layers_of_a_model_compute_on_their_own(isa, dtype):
    """Their gradients are the model's, and their update is the model's."""
    spec = [(64, 4, True), ("tanh", None), (4, 17, True)]
    model, network = build(spec, dtype=dtype)
    x, grad = data(dtype, 6, 64), data(dtype, 6, 17, seed=1)
    rtol = 1e-4 if dtype == np.float32 else 1e-12
    y = x
    for layer in model.layers:
        y = layer.forward(y)
    assert_close(y, network.forward(x), rtol)
    grad_x, grads = network.backward(grad.astype(np.float64))
    for layer in reversed(model.layers):
        grad = layer.backward(grad)
    assert_close(grad, grad_x, rtol)
    assert_close(model.gradients, np.concatenate([g.ravel() for g in grads.values()]), rtol)
    for i in (0, 2):
        model.layers[i].update_parameters(0.5)
        assert_close(
            model.state_dict()[f"{i}.weight"], network.parameters[f"{i}.weight"] - 0.5 * grads[f"{i}.weight"], rtol
        )
        model.layers[i].zero_grads()
    assert not model.gradients.any()
