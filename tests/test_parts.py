"""Parts of a model, `model[:k]`, branches, nested models: models on the same memory. Outputs of inner layers."""

import copy
import gc

import numpy as np
import pytest
from grid import random_model

import cnn


def built(dtype="float64"):
    """A model with a branch that is a Sequential; and the branch."""
    branch = cnn.Sequential([cnn.Linear(5, 4), cnn.Tanh(), cnn.BatchNorm1d(4)])
    parts = [cnn.Linear(5, 5), cnn.ReLU(), cnn.Concat(branch, cnn.Linear(5, 3)), cnn.BatchNorm1d(7), cnn.Linear(7, 2)]
    model = cnn.Sequential([*parts, cnn.MSELoss()], cnn.Adam(), dtype=dtype, seed=0)
    x, y = data(dtype)
    model.fit(x, y, epochs=2)
    return model, branch


def data(dtype="float64", rows=300):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 5)).astype(dtype), rng.standard_normal((rows, 2)).astype(dtype)


def one_by_one(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def test_hidden_before_the_first_linear(isa, dtype):
    """Layers without parameters, whose width is that of the model's input."""
    layers = [cnn.Dropout(0.5), cnn.Tanh(), cnn.Softmax(), cnn.Linear(5, 2)]
    model = cnn.Sequential(layers, dtype=dtype, seed=0)
    x, _ = data(dtype, 20)
    model.eval()
    for k in (1, 2, 3):
        y = model.hidden(x, k)
        assert y.dtype == dtype
        np.testing.assert_allclose(y, one_by_one(layers[:k], x), rtol=1e-5)
    model.train()
    np.testing.assert_array_equal(model.hidden(x, 1), x)
    with pytest.raises(ValueError, match=r"expected shape \(batch, 5\)"):
        model.hidden(x[:, :3], 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_hidden(isa, dtype, threads):
    model, _ = built(dtype)
    model.eval()
    x, _ = data(dtype, 3000)
    for k in range(1, 6):
        y = model.hidden(x, k, threads)
        assert y.dtype == dtype
        np.testing.assert_allclose(
            y, one_by_one(model.layers[:k], x), rtol=2e-4, atol=1e-5 if dtype == np.float32 else 1e-12
        )
        np.testing.assert_array_equal(y, model[:k].predict(x))
        np.testing.assert_array_equal(y, model.hidden(x, k - 5) if k < 5 else model.predict(x))
    model.layers[0].weight[...] = 0  # the same memory
    assert (model.hidden(x, 2) == np.maximum(model.layers[0].bias, 0)).all()


@pytest.mark.parametrize("k", [0, 6, -5, -6])
def test_no_such_layer(k):
    with pytest.raises(ValueError, match="k: expected 1 to 5 layers, or -1 to -4, got"):
        built()[0].hidden(data()[0], k)


@pytest.mark.parametrize("seed", range(8))
def test_every_part_of_random_models(isa, dtype, seed):
    model = random_model(seed, np.dtype(dtype).name).eval()
    n = len(model)
    x = np.random.default_rng(0).standard_normal((7, model._core.in_features)).astype(dtype)
    for k in range(1, n):
        try:
            first, rest = model[:k], model[k:]
        except ValueError:  # nothing says how wide one of the two is
            continue
        np.testing.assert_array_equal(rest.predict(first.predict(x)), model.predict(x))


def test_a_part_is_a_model(isa, dtype, tmp_path):
    model, branch = built(dtype)
    x, _ = data(dtype)
    v = np.ones((len(x), 5))
    for part in (model[:2], model[:4], branch, model[2:]):
        inputs = x
        expected = part.predict(inputs)
        assert part.dtype == dtype == expected.dtype
        part.save(tmp_path / "part.safetensors")
        for again in (cnn.load(tmp_path / "part.safetensors"), copy.deepcopy(part)):
            assert again.dtype == dtype
            np.testing.assert_array_equal(again.predict(inputs), expected)
        assert list(part.state_dict())
        assert len(part.parameters) == sum(layer_size(layer) for layer in part.layers)
        cnn.to_c(part, tmp_path / "part.h")
        part.handle()
        part.summary()
        state = part.state_dict()
        part.parameters = part.parameters + 1
        assert not np.array_equal(part.predict(inputs), expected)
        part.load_weights(state)
        np.testing.assert_array_equal(part.predict(inputs), expected)
    assert model[:2].vjp(x, v).shape == (300, 5)


def layer_size(layer):
    if isinstance(layer, cnn.Sequential):
        return layer.n_parameters
    return layer.n_parameters + sum(layer_size(child) for child in layer.children)


def test_the_same_memory(isa, dtype):
    model, branch = built(dtype)
    part = model[:2]
    others = model.parameters[30:]
    part.parameters = np.arange(30)
    np.testing.assert_array_equal(model.parameters[:30], np.arange(30))
    np.testing.assert_array_equal(model.parameters[30:], others)  # nobody else's
    model.layers[0].bias = np.ones(5)
    np.testing.assert_array_equal(part.parameters[25:], np.ones(5))
    branch.layers[0].weight[...] = 3
    assert (model.state_dict()["2.0.0.weight"] == 3).all()
    gradients = model.gradients
    part(data(dtype)[0])
    part.zero_grads()
    part.backward(np.ones((300, 5)))
    np.testing.assert_array_equal(model.gradients[30:], gradients[30:])
    np.testing.assert_array_equal(model.gradients[:30], part.gradients)


def test_a_pending_backward_notices(isa):
    model, _ = built()
    x, y = data()
    part = model[:2]
    part(x)
    model.train_step(x, y)
    with pytest.raises(RuntimeError, match="the parameters have been changed since"):
        part.backward(np.ones((300, 5)))
    model(x, y)
    part.parameters = part.parameters * 2
    with pytest.raises(RuntimeError, match="the parameters of a part have been changed since"):
        model.backward()


def test_writing_into_a_view_is_noticed(isa, dtype):
    """`layer.weight[...] = w` is `layer.weight = w`: a backward over the earlier numbers would be wrong."""
    model, _ = built(dtype)
    x, y = data(dtype)
    view = model.layers[4].weight
    model(x, y)
    view[0, 0] += 1
    with pytest.raises(RuntimeError, match="the parameters have been changed since"):
        model.backward()
    model(x, y)
    assert view[0, 0] == model.layers[4].weight[0, 0]  # reading is allowed
    model.backward()


def test_the_model_lives_as_long_as_its_part():
    x, _ = data()
    part = built()[0][:2]
    expected = part.predict(x)
    gc.collect()
    np.testing.assert_array_equal(part.predict(x), expected)


def test_a_part_follows_what_is_trained():
    """Also by changes after its first use."""
    model, _ = built()
    x, _ = data()
    part, layer = model[:2], model.layers[0]
    for value in (True, False, {"bias": True}, True):
        layer.trainable = value
        model.zero_grads()
        part(x)
        part.backward(np.ones((len(x), 5)))
        assert layer.grad_weight.any() == (value is True)
        assert layer.grad_bias.any() == (value is not False)


def test_what_a_part_is_not():
    model, branch = built()
    for part in (model[:2], branch):
        with pytest.raises(RuntimeError, match="a part of a model has no optimizer of its own"):
            part.optimizer = cnn.SGD()
    with pytest.raises(ValueError, match=r"model\[3:2\]: expected at least one of the 5 layers, got none"):
        model[3:2]
    assert model[1] is model.layers[1]


def test_branches_called_alone(isa, dtype):
    """Their parameters are those of the layers inside, in a model or not."""
    alone = cnn.Add(cnn.Linear(5, 5, dtype=np.dtype(dtype).name, seed=0), cnn.Identity())
    x = data(dtype)[0]
    weight, bias = (a.copy() for a in (alone[0].weight, alone[0].bias))
    rtol = 1e-4 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(alone(x), x @ weight + bias + x, rtol=rtol, atol=1e-5)
    alone.backward(np.ones((300, 5)))
    np.testing.assert_allclose(alone[0].grad_bias, np.full(5, 300), rtol=rtol)
    model = cnn.Sequential([alone, cnn.Linear(5, 1)], dtype=dtype)
    np.testing.assert_array_equal(alone[0].weight, weight)
    np.testing.assert_array_equal(alone(x), model.hidden(x, 1))


def test_parts_of_float64_models_lose_nothing(isa, tmp_path):
    """A branch that was made as float32 is of the model's dtype, in files and exports as well."""
    branch = cnn.Sequential([cnn.Linear(5, 4), cnn.Tanh()])
    model = cnn.Sequential([cnn.Concat(branch, cnn.Linear(5, 2)), cnn.Linear(6, 1)], dtype="float64", seed=0)
    model.parameters = model.parameters + 1e-12
    for part in (branch, model[:1]):
        part.save(tmp_path / "p.safetensors")
        np.testing.assert_array_equal(cnn.load(tmp_path / "p.safetensors").parameters, part.parameters)
        cnn.to_c(part, tmp_path / "p.h")
        assert "double" in (tmp_path / "p.h").read_text()
        assert "f64" in repr(part.handle())
        assert cnn.Sequential([part[0]], dtype="float64").dtype == np.float64
        assert part.copy().dtype == copy.copy(part).dtype == np.float64
