"""`cnn.as_torch`: a module over the model's memory, beside the module of `to_torch`."""

import copy
import pickle

import numpy as np
import pytest
import torch
from grid import inputs_of, random_model

import cnn


def built(dtype="float64", norm=True):
    inner = cnn.Sequential([cnn.Linear(8, 8), cnn.Tanh()])
    parts = [cnn.Linear(5, 8), cnn.ReLU(), *([cnn.BatchNorm1d(8)] if norm else []), cnn.LayerNorm(8), inner]
    return cnn.Sequential([*parts, cnn.Linear(8, 2)], dtype=dtype, seed=0)


def data(dtype, rows=30):
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.standard_normal((rows, n)).astype(dtype)) for n in (5, 2)]


@pytest.mark.parametrize("width", [5, 16, 64])
def test_lbfgs_of_torch(width):
    """It wants contiguous gradients; where rows have no padding, autograd gives them the strides of the parameters."""
    layers = [cnn.Linear(5, width), cnn.Tanh(), cnn.Linear(width, 2)]
    module = cnn.as_torch(cnn.Sequential(layers, dtype="float64", seed=0))
    x, y = data("float64")
    found = []
    for m in (cnn.to_torch(module.model), module, copy.deepcopy(module)):
        optimizer = torch.optim.LBFGS(m.parameters(), max_iter=15, line_search_fn="strong_wolfe")

        def closure(m=m, optimizer=optimizer):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(m(x), y)
            loss.backward()
            return loss

        first = optimizer.step(closure).item()
        found.append(closure().item())
        assert found[-1] < 0.8 * first
    np.testing.assert_allclose(found, found[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_training_as_the_twin(dtype, optimizer):
    model = built(dtype)
    twin, module = cnn.to_torch(model), cnn.as_torch(model)
    x, y = data(dtype)
    assert list(module.state_dict()) == list(twin.state_dict())
    for name, tensor in module.state_dict().items():
        assert tensor.shape == twin.state_dict()[name].shape
    steps = [optimizer(m.parameters(), 0.01) for m in (module, twin)]
    for _ in range(10):
        losses = []
        for m, step in zip((module, twin), steps, strict=True):
            step.zero_grad()
            inputs = x.clone().requires_grad_()
            loss = torch.nn.functional.huber_loss(m(inputs), y)
            loss.backward()
            step.step()
            losses.append((loss.item(), inputs.grad.numpy()))
        np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=1e-4 if dtype == "float32" else 1e-9)
        np.testing.assert_allclose(losses[0][1], losses[1][1], rtol=1e-3 if dtype == "float32" else 1e-7, atol=1e-6)
    module.eval()
    twin.eval()
    assert not model.training
    np.testing.assert_allclose(
        model.predict(x.numpy()), twin(x).detach().numpy(), rtol=1e-3 if dtype == "float32" else 1e-7, atol=1e-5
    )


@pytest.mark.parametrize("seed", range(6))
def test_gradients_of_random_models(seed):
    model = random_model(seed, "float64").eval()
    module = cnn.as_torch(model)
    x = torch.from_numpy(inputs_of(model, 6)).requires_grad_()
    v = torch.from_numpy(np.random.default_rng(0).standard_normal((6, model._core.out_features)))
    (module(x) * v).sum().backward()
    of_x, of_parameters = model.vjp(x.detach().numpy(), v.numpy(), parameters=True)
    np.testing.assert_allclose(x.grad.numpy(), of_x, rtol=1e-9, atol=1e-12)
    packed = np.concatenate([p.grad.numpy().T.ravel() for p in module.parameters()])
    np.testing.assert_allclose(packed, of_parameters, rtol=1e-9, atol=1e-12)


def test_the_same_memory():
    model = built()
    module = cnn.as_torch(model)
    with torch.no_grad():
        module.get_parameter("0.weight")[...] = 3
        module.get_buffer("2.running_mean")[...] = 4
    assert (model[0].weight == 3).all()
    assert (model[2].running_mean == 4).all()
    model[0].bias = np.arange(8)
    np.testing.assert_array_equal(module.get_parameter("0.bias").detach().numpy(), np.arange(8))
    module.load_state_dict(cnn.as_torch(built()).state_dict())
    np.testing.assert_array_equal(model.parameters, built().parameters)


def test_state_dicts_go_both_ways():
    """With the number of batches, which is no array of the model's."""
    x, _ = data("float64")
    model, other = built(), built()
    module, twin = cnn.as_torch(model), cnn.to_torch(model)
    for _ in range(3):
        module(x)
        twin(x)
    assert module.state_dict()["2.num_batches_tracked"] == model[2].num_batches_tracked == 3
    for taker in (cnn.as_torch(other), torch.nn.ModuleDict({"inner": cnn.as_torch(other)})):
        other.load_weights(built().state_dict())
        prefix = "inner." if isinstance(taker, torch.nn.ModuleDict) else ""
        taker.load_state_dict({prefix + name: tensor for name, tensor in twin.state_dict().items()})
        for name, array in model.state_dict().items():
            np.testing.assert_allclose(other.state_dict()[name], array, rtol=1e-12, err_msg=name)
        assert other[2].num_batches_tracked == 3
        assert taker.state_dict()[prefix + "2.num_batches_tracked"] == 3


def test_tensors_that_would_do_nothing():
    """The model computes with its own memory: another tensor in the place of one over it is refused."""
    x, _ = data("float64")
    model = built()
    module = cnn.as_torch(model)
    module(x)
    doubled = {name: tensor * 2 for name, tensor in module.state_dict().items()}
    for name in ("0.weight", "5.bias", "2.running_var"):
        with pytest.raises(RuntimeError, match=f"a {name[2:]} has been replaced by another tensor"):
            torch.func.functional_call(module, {name: doubled[name]}, (x,))
    module(x)
    module.load_state_dict(doubled, assign=True)
    with torch.no_grad(), pytest.raises(RuntimeError, match="has been replaced by another tensor"):
        module(x)
    module = cnn.as_torch(model)
    module.get_parameter("0.bias").data = doubled["0.bias"]
    with pytest.raises(RuntimeError, match="a bias has been replaced by another tensor"):
        module(x)


def test_a_model_that_becomes_a_part():
    inner = built()
    module = cnn.as_torch(inner)
    outer = cnn.Sequential([inner, cnn.Linear(2, 1)], dtype="float64")
    x = data("float64")[0]
    with pytest.raises(RuntimeError, match="has become part of another model, which now owns the parameters"):
        module(x)
    for part in (inner, outer[:1]):
        module = cnn.as_torch(part)
        with torch.no_grad():
            next(module.parameters())[...] = 0
        module.eval()(x).sum().backward()
        assert not inner[0].weight.any()
        inner[0].weight = np.ones((5, 8))


@pytest.mark.parametrize("way", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_and_pickles(way):
    """Also inside of another module, with what requires gradients."""
    net = torch.nn.ModuleDict({"ours": cnn.as_torch(built()), "theirs": torch.nn.Linear(2, 2)})
    net["ours"].get_parameter("0.bias").requires_grad_(False)
    x = data("float64")[0]
    other = way(net)
    assert other["ours"].model is not net["ours"].model
    assert torch.equal(other["ours"](x), net["ours"](x))
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in net.parameters()]
    with torch.no_grad():
        other["ours"].get_parameter("0.weight")[...] = 0
    assert net["ours"].model[0].weight.all()
    assert not other["ours"].model[0].weight.any()
    model, module = way([net["ours"].model, net["ours"]])
    assert module.model is model


def test_without_gradients_of_an_x_that_has_one():
    x = data("float64")[0].requires_grad_()
    for mode in (True, False):
        module = cnn.as_torch(built()).train(mode)
        with torch.no_grad():
            assert not module(x).requires_grad


def test_several_forward_passes():
    """Two critics' losses, targets without gradients, in between: what is pending is repeated."""
    model = built(norm=False)
    module, twin = cnn.as_torch(model), cnn.to_torch(model)
    x, y = data("float64")
    for m in (module, twin):
        first, second = m(x), m(2 * x)
        with torch.no_grad():
            target = m(3 * x)
        model.predict(x)
        model(x.numpy())
        ((first - y) ** 2 + (second - target) ** 2).mean().backward()
    for ours, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_what_cannot_be_gone_back_over():
    x, _ = data("float64")
    model = built()
    module = cnn.as_torch(model)
    out = module(x)
    module(x)
    with pytest.raises(RuntimeError, match="the model has run forward again since"):
        out.sum().backward()
    model.eval()
    out = module(x)
    module(x)
    out.sum().backward()
    out = module(x)
    model.parameters = model.parameters + 1
    with pytest.raises(RuntimeError, match="the parameters have been changed since the forward pass"):
        out.sum().backward()
    inputs = x.clone().requires_grad_()
    with pytest.raises(
        RuntimeError, match="create_graph=True is not supported, because the gradient has no derivative"
    ):
        torch.autograd.grad(module(inputs).sum(), inputs, create_graph=True)


def test_what_is_not_trained():
    model = built()
    model[0].trainable = {"weight": False}
    module = cnn.as_torch(model)
    assert not module.get_parameter("0.weight").requires_grad
    module(data("float64")[0]).sum().backward()
    assert module.get_parameter("0.weight").grad is None
    assert module.get_parameter("0.bias").grad is not None


def test_it_stays_where_it_is():
    module = cnn.as_torch(built())
    module.to("cpu", torch.float64)
    for move in (module.float, module.half, lambda: module.to("meta")):
        with pytest.raises(TypeError, match=r"expected the CPU and torch\.float64"):
            move()
    with pytest.raises(TypeError, match=r"model: expected a cnn.Sequential, got int"):
        cnn.as_torch(3)
    with pytest.raises(ValueError, match="expected a tensor on the CPU, got one on meta"):
        module(torch.zeros((2, 5), device="meta"))
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.get_parameter("0.weight")[...] = 0
    assert module.model[0].weight.all()


def test_other_shapes_and_dtypes():
    module = cnn.as_torch(built(norm=False))
    assert module(torch.zeros((3, 4, 5))).shape == (3, 4, 2)
    x = torch.zeros((3, 5), dtype=torch.float32, requires_grad=True)
    y = module(x)
    assert y.dtype == torch.float64
    y.sum().backward()
    assert x.grad.dtype == torch.float32
