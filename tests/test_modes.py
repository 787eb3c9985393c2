"""Training and evaluation mode, and what is trained: of a model, of its layers one by one, in every way to train."""

import grid
import numpy as np
import pytest
from networks import explicit, fused, native_loop

import cnn

WAYS = {
    "train_step": fused,
    "explicit": explicit,
    "fit": native_loop,
    "own loss": fused,
    "clipped": fused,
    "accumulated": lambda m, x, y: m.fit(x, y, batch_size=len(x) // 2, accumulation_steps=2, shuffle=False)["loss"][0],
}


def squares(outputs, targets):
    d = outputs - targets
    return float((d**2).mean()), 2 * d / d.size


def model(dtype="float64", loss=None, **options):
    parts = [cnn.Linear(5, 8), cnn.BatchNorm1d(8), cnn.ReLU(), cnn.Dropout(0.5), cnn.Linear(8, 2)]
    optimizer = cnn.SGD(0.1, momentum=0.9, weight_decay=0.01, **options)
    return cnn.Sequential([*parts, loss or cnn.MSELoss()], optimizer, dtype=dtype, seed=0)


def made(way, dtype):
    return model(dtype, squares if way == "own loss" else None, **({"clip_norm": 0.5} if way == "clipped" else {}))


def data(dtype="float64", rows=32):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 5)).astype(dtype), rng.standard_normal((rows, 2)).astype(dtype)


@pytest.mark.parametrize("name", grid.LAYERS)
def test_layers_called_one_by_one(isa, dtype, name):
    """PyTorch's way to a hidden layer: the mode of the model is that of its layers, and nothing moves."""
    entry = grid.LAYERS[name]
    m = cnn.Sequential([cnn.Linear(5, 6), entry.make(6, dtype), cnn.Linear(entry.width(6), 3)], dtype=dtype, seed=0)
    x, _ = data(dtype)
    m(x)
    m.eval()
    expected = m.predict(x)
    h = x
    for layer in m.layers:
        assert not layer.training
        h = layer(h)
    np.testing.assert_allclose(h, expected, rtol=1e-4 if dtype == np.float32 else 1e-11, atol=1e-6)
    np.testing.assert_array_equal(m.predict(x), expected)


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_mode_holds_in_training(isa, way):
    """Dropout passes on what it gets, the running statistics are used and stay, as in forward, backward and step."""
    x, y = data()
    m, reference = made(way, "float64").eval(), made(way, "float64").eval()
    for _ in range(3):
        WAYS[way](m, x, y)
        explicit(reference, x, y)
    np.testing.assert_allclose(m.parameters, reference.parameters, rtol=1e-12)
    norm = m.layers[1]
    assert not norm.running_mean.any()
    assert norm.num_batches_tracked == 0
    assert m.train().training
    WAYS[way](m, x, y)
    assert norm.running_mean.any()


def test_a_layer_has_a_mode_of_its_own(isa):
    x, y = data()
    m = model().eval()
    m.layers[3].train()  # Monte Carlo dropout
    assert not np.array_equal(m(x), m(x))
    assert not m.layers[1].running_mean.any()
    np.testing.assert_array_equal(m.predict(x), m.predict(x))
    m.train()
    m.layers[1].eval()
    m.train_step(x[:1], y[:1])  # one row is enough
    assert not m.layers[1].running_mean.any()


def test_the_mode_reaches_layers_inside():
    inner = cnn.Sequential([cnn.Linear(4, 4), cnn.Dropout(0.5)])
    m = cnn.Sequential([cnn.Linear(3, 4), cnn.Add(cnn.Identity(), inner), cnn.Linear(4, 1)]).eval()
    assert not inner.training
    assert not inner.layers[1].training
    x = data("float32")[0][:, :3]
    np.testing.assert_allclose(m(x), m.predict(x), rtol=1e-6)
    for layer, expected in zip((inner.layers[0], m.layers[0], m.layers[2]), (True, True, False), strict=True):
        layer.trainable = False
        assert (m.trainable, inner.trainable) == (expected, False)
    inner.layers[0].trainable = {"bias": True}
    assert (m.trainable, inner.trainable) == (True, True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("frozen", [(0,), (0, 1), (4,), (0, 1, 4)])
def test_frozen_layers(isa, way, frozen):
    """They stay as they are, to the bit, and the others are trained as if these were constants."""
    x, y = data()
    m, reference = (made(way, "float64").eval() for _ in range(2))
    before = m.state_dict()
    for i in frozen:
        m.layers[i].trainable = False
    keep = reference.parameters, [f"{i}." for i in frozen]
    for _ in range(3):
        WAYS[way](m, x, y)
        explicit_step(reference, x, y, keep, way)
    for name, array in m.state_dict().items():
        if name.split(".")[0] in map(str, frozen):
            np.testing.assert_array_equal(array, before[name])
    np.testing.assert_allclose(m.parameters, reference.parameters, rtol=1e-12)
    assert m.trainable is any(layer.trainable for layer in m.layers if layer.n_parameters)


def explicit_step(reference, x, y, keep, way):
    """A step, the frozen numbers put back; with clipping, the norm is that of the trained ones."""
    vector, names = keep
    mask = np.concatenate(
        [
            np.full(a.size, any(name.startswith(n) for n in names))
            for name, a in reference.state_dict().items()
            if name.endswith(("weight", "bias"))
        ]
    )
    for layer in reference.layers:
        layer.trainable = True
    reference(x, y)
    reference.zero_grads()
    reference.backward()
    at = 0
    for layer in reference.layers:
        for name in layer.parameter_names:
            gradient = getattr(layer, f"grad_{name}")
            gradient[mask[at : at + gradient.size].reshape(gradient.shape)] = 0
            at += gradient.size
    reference.step()
    now = reference.parameters
    now[mask] = vector[mask]
    reference.parameters = now


def test_frozen_statistics(isa):
    x, y = data()
    m = model()
    m.layers[1].trainable = False
    m.fit(x, y, epochs=2)
    assert not m.layers[1].running_mean.any()
    assert m.layers[1].num_batches_tracked == 0
    m.layers[1].trainable = True
    m.fit(x, y, epochs=2)
    assert m.layers[1].running_mean.any()


def test_weight_or_bias(isa, dtype):
    x, y = data(dtype)
    for name, other in (("weight", "bias"), ("bias", "weight")):
        for i in (0, 1, 4):
            m = model(dtype)
            layer = m.layers[i]
            layer.trainable = {name: False}
            assert layer.trainable == {name: False, other: True}
            kept, moved = getattr(layer, name).copy(), getattr(layer, other).copy()
            m.fit(x, y, epochs=2, batch_size=8)
            np.testing.assert_array_equal(getattr(layer, name), kept)
            assert not np.array_equal(getattr(layer, other), moved)
            m.loss_and_grad(x, y)
            assert not getattr(layer, f"grad_{name}").any()
            assert getattr(layer, f"grad_{other}").any()


def test_derivatives_do_not_ask_what_is_trained(isa):
    x, _ = data()
    m = model()
    v = np.ones((len(x), 2))
    expected = m.vjp(x, v, parameters=True)[1]
    m.trainable = False
    np.testing.assert_array_equal(m.vjp(x, v, parameters=True)[1], expected)


def test_what_trainable_is_not():
    layer = cnn.Linear(2, 3)
    with pytest.raises(TypeError, match="trainable: expected True or False, got 1"):
        layer.trainable = 1
    with pytest.raises(ValueError, match=r"trainable: unknown 'wieght': Linear.2, 3. has weight, bias"):
        layer.trainable = {"wieght": False}
