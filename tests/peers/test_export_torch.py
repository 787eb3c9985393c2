"""PyTorch modules as models and back: the same outputs, and errors that name what cannot come along."""

import numpy as np
import pytest
import torch
from grid import ACTIVATIONS, WITH_PARAMETERS, build, chain, inputs_of, random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import cnn

RTOL = {"float32": 1e-6, "float64": 1e-14}


def assert_same(model, net, dtype, growth=1):
    """Equal within 1e-6 of the largest number: the error of a sum is relative to its terms.

    growth: how much the network may amplify a rounding error.
    """
    x = inputs_of(model, 20)
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    outputs = model.predict(x)
    assert outputs.dtype == expected.dtype == dtype
    largest = abs(expected).max(initial=1 if growth > 1 else 0)
    assert (abs(outputs - expected) <= growth * RTOL[dtype] * largest).all()


def described_net(spec, dtype):
    modules = [nn.Linear(*part) if len(part) == 3 else ACTIVATIONS[part[0]].make_torch(nn, part[1]) for part in spec]
    return nn.Sequential(*modules).to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", RTOL)
@pytest.mark.parametrize(("name", "param"), WITH_PARAMETERS)
def test_every_activation(name, param, dtype):
    spec = [(name, param), *chain(5, 7, 3, activation=(name, param))]
    model, _ = build(spec, dtype=dtype)
    torch.manual_seed(0)
    net = described_net(spec, dtype)
    ours = cnn.from_torch(net)
    assert_same(ours, net, dtype)
    assert list(map(repr, ours.layers)) == list(map(repr, model.layers))
    assert_same(model, cnn.to_torch(model), dtype)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from(list(RTOL)))
def test_random_networks_of_every_layer(seed, dtype):
    model = random_model(seed, dtype, branches=False).eval()
    net = cnn.to_torch(model)
    assert_same(model, net, dtype, growth=100)  # a norm divides by the deviation, down to sqrt(eps)
    again = cnn.from_torch(net)
    assert list(map(repr, again.layers)) == list(map(repr, model.layers))
    theirs = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    assert list(theirs) == list(model.state_dict()) == list(again.state_dict())
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array, err_msg=name)
        np.testing.assert_array_equal(theirs[name].T, array, err_msg=name)


def test_branches_are_refused():
    model = cnn.Sequential([cnn.Linear(2, 2), cnn.Sequential([cnn.Add(cnn.Linear(2, 2), cnn.Identity())])])
    with pytest.raises(TypeError, match=r"layer 1\.0, Add\(.*\): has no counterpart in torch\.nn"):
        cnn.to_torch(model)


def test_softplus_by_its_threshold():
    model = cnn.from_torch(nn.Sequential(nn.Linear(1, 1), nn.Softplus(threshold=30)).double())
    model.parameters = [1, 0]
    z = np.linspace(-50, 50, 201)[:, None]
    np.testing.assert_allclose(model.predict(z), np.logaddexp(0, z), rtol=1e-13)
    net = cnn.to_torch(model)
    np.testing.assert_allclose(net(torch.from_numpy(z)).detach(), np.logaddexp(0, z), rtol=1e-13)


def test_to_torch_gives_a_module_of_its_own():
    model = cnn.Sequential([cnn.Linear(3, 4), cnn.Tanh(), cnn.Linear(4, 2, bias=False), cnn.MSELoss()], seed=0)
    net = cnn.to_torch(model)
    assert [type(module) for module in net] == [nn.Linear, nn.Tanh, nn.Linear]
    assert list(net.state_dict()) == list(model.state_dict()) == ["0.weight", "0.bias", "2.weight"]
    assert net.training
    assert not cnn.to_torch(model.eval()).training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in net.parameters())
    before = model.parameters
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(model.parameters, before)


def test_from_torch_gives_a_model_of_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model = cnn.from_torch(net, loss=cnn.MSELoss(), optimizer=cnn.SGD(0.1))
    before = [parameter.clone() for parameter in net.parameters()]
    assert model.train_step(np.ones((5, 3)), np.ones((5, 2))) > 0
    for parameter, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_one_layer_and_nested_chains():
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Sequential(nn.Linear(4, 5)), nn.Tanh()),
        nn.Linear(5, 2),
    )
    assert_same(cnn.from_torch(net), net, "float32")
    linear = nn.Linear(3, 2)
    assert_same(cnn.from_torch(linear), nn.Sequential(linear), "float32")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1)),
            r"module 1, Conv1d\(.*: has no counterpart in cnn: expected",
        ),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.RReLU())), r"module 0\.1, RReLU\(.*: has no"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(2, 2)), r"module 0, Flatten\(.*: has no counterpart in cnn"),
        (nn.LSTM(2, 2), r"module: LSTM\(2, 2\): has no counterpart in cnn"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softplus(beta=2)), r"module 1, Softplus\(.*: expected beta=1"),
        (nn.Sequential(nn.Linear(2, 2), nn.Softplus(threshold=5)), "expected beta=1 and a threshold of at least 20"),
        (nn.Linear(2, 2).half(), r"weight: expected float32 or float64, got torch\.float16: call module\.fl"),
        (nn.Linear(2, 2, dtype=torch.bfloat16), r"weight: expected float32 or float64, got torch\.bfloat16"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
            r"expected one dtype, but 0\.bias is float32 and 1\.bias is float64",
        ),
        (torch.ones(3), r"module: expected a torch\.nn\.Module or its state_dict, got Tensor"),
        (nn.Linear, "module: expected .* got type"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)),
            "module 1, .*: expected running st",
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.LayerNorm((2, 2))),
            "module 1, .*: expected a normalized_shape of one dimens",
        ),
        (nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=0)), r"module 1, Softmax\(dim=0\): expected dim=1, the columns"),
    ],
)
def test_what_from_torch_refuses(module, message):
    with pytest.raises(TypeError, match=message):
        cnn.from_torch(module)


def test_modules_of_ones_own():
    """What to do instead, with the names that there are; and it works."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc2(torch.relu(self.fc1(x)))

    net = Net()
    with pytest.raises(
        TypeError, match=r"state_dict\(\), activation=cnn\.ReLU\(\)\).* fc1\.weight \(4, 3\), fc1\.bias"
    ):
        cnn.from_torch(net)
    x = np.random.default_rng(0).standard_normal((5, 3)).astype("float32")
    expected = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(cnn.from_torch(net.state_dict(), activation=cnn.ReLU()).predict(x), expected, rtol=1e-5)


def test_subclasses_and_hooks_are_refused():
    """Their forward may compute something else."""

    class Linear(nn.Linear):
        def forward(self, x):
            return -super().forward(x)

    with pytest.raises(TypeError, match=r"module 0, Linear.*: has no counterpart in cnn"):
        cnn.from_torch(nn.Sequential(Linear(2, 2)))
    hooked = nn.Linear(2, 2)
    hooked.register_forward_hook(lambda module, inputs, output: -output)
    with pytest.raises(TypeError, match=r"module 0, Linear\(.*: has forward hooks"):
        cnn.from_torch(nn.Sequential(hooked))


def test_to_torch_refuses_what_is_no_model():
    with pytest.raises(TypeError, match=r"model: expected a cnn\.Sequential, got Linear"):
        cnn.to_torch(cnn.Linear(2, 2))


# state_dict ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [cnn.ELU(0.5), lambda: cnn.ELU(0.5)], ids=["object", "function"])
def test_state_dict(activation):
    net = nn.Sequential(nn.Linear(3, 4), nn.ELU(0.5), nn.Linear(4, 4, bias=False), nn.ELU(0.5), nn.Linear(4, 2))
    model = cnn.from_torch(net.state_dict(), activation=activation)
    assert_same(model, net, "float32")
    assert_same(cnn.from_torch(net.double().state_dict(), activation=activation), net, "float64")
    assert len({id(layer) for layer in model.layers}) == 5


def test_state_dict_of_named_layers_and_in_any_order():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc2(torch.tanh(self.fc1(x)))

    net = Net()
    assert_same(cnn.from_torch(net.state_dict(), activation=cnn.Tanh), net, "float32")
    with pytest.raises(TypeError, match=r"module: Net.*: has no counterpart in cnn"):
        cnn.from_torch(net)
    numbered = nn.Sequential(*(nn.Linear(3, 3) for _ in range(12)))
    tensors = dict(sorted(numbered.state_dict().items()))  # 0, 1, 10, 11, 2, ...
    assert_same(cnn.from_torch(tensors, activation=cnn.Identity), numbered, "float32")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "state_dict: expected at least one tensor, got none"),
        (
            {"0.weight": torch.ones(4, 3), "2.weight": torch.ones(2, 4)},
            "it does not name the activation between 0 and 2",
        ),
        (
            {"0.weight": torch.ones(4, 3), "3.weight": torch.ones(2, 4)},
            "without parameters between 0 and 3, got 2: pass",
        ),
        ({"0.weight": torch.ones(4, 3), "1.weight": torch.ones(2, 5)}, r"1\.weight expects 5 inputs, but 0 gives 4"),
        ({"0.bias": torch.ones(4)}, r"state_dict: 0\.weight is missing"),
        ({"0.weight": torch.ones(4)}, r"0\.weight: expected 2 dimensions, as a Linear's weight has, got shape \(4,\)"),
        (
            {"0.weight": torch.ones(4, 3), "1.running_mean": torch.ones(4)},
            r"1\.running_mean is not a weight or bias of a",
        ),
        ({"0.weight": torch.ones(4, 3), "0.bias": torch.ones(3)}, r"bias: expected shape \(4,\), got \(3,\)"),
    ],
)
def test_state_dicts_that_say_too_little(tensors, message):
    with pytest.raises(ValueError, match=message):
        cnn.from_torch(tensors)


def test_state_dict_of_something_else():
    with pytest.raises(TypeError, match=r"0\.weight: expected a torch\.Tensor, got ndarray"):
        cnn.from_torch({"0.weight": np.ones((2, 2))})
    with pytest.raises(TypeError, match="activation: expected an activation such as"):
        cnn.from_torch(
            {"0.weight": torch.ones(4, 3), "2.weight": torch.ones(2, 4)}, activation=lambda: cnn.Linear(4, 4)
        )
    with pytest.raises(TypeError, match="activation: expected none with a module, which has its own"):
        cnn.from_torch(nn.Linear(2, 2), activation=cnn.ReLU())


def test_load_weights_points_to_from_torch():
    """A square weight must not load transposed in silence."""
    model = cnn.Sequential([cnn.Linear(3, 3)])
    before = model.parameters
    with pytest.raises(TypeError, match=r"0\.weight is a PyTorch tensor.*cnn\.from_torch"):
        model.load_weights(nn.Sequential(nn.Linear(3, 3)).state_dict())
    np.testing.assert_array_equal(model.parameters, before)


def test_branches_of_float64_models():
    branch = cnn.Sequential([cnn.Linear(5, 4), cnn.Tanh()])
    cnn.Sequential([cnn.Concat(branch, cnn.Linear(5, 2)), cnn.Linear(6, 1)], dtype="float64", seed=0)
    assert_same(branch, cnn.to_torch(branch), "float64")


# modules in the wild ------------------------------------------------------------------------------


def test_modules_that_stand_several_times():
    act, square = nn.ReLU(), nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(3, 4), act, square, act, square, act, nn.Linear(4, 2))
    model = cnn.from_torch(net)
    assert_same(model, net, "float32")
    assert list(model.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_effective_weights_wrappers_subclasses(norm):
    class Chain(nn.Sequential):
        pass

    net = Chain(nn.Flatten(), norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2)).eval()
    assert_same(cnn.from_torch(nn.DataParallel(net)), net, "float32")
    assert_same(cnn.from_torch(torch.compile(net, backend="eager")), net, "float32")


def test_replaced_forward_and_meta():
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].forward = lambda x: -x
    with pytest.raises(TypeError, match="its forward has been replaced"):
        cnn.from_torch(net)
    with pytest.raises(TypeError, match="has no values"):
        cnn.from_torch(nn.Linear(2, 2, device="meta"))


@pytest.mark.parametrize("activation", ["relu", nn.ReLU(), nn.ReLU, torch.relu, nn.functional.relu])
@pytest.mark.parametrize("step", [1, 2])
def test_prefixed_keys_in_any_order(step, activation):
    linears = [nn.Linear(3, 3) for _ in range(12)]
    net = nn.Sequential(*[part for linear in linears for part in (linear, nn.ReLU())][:-1])
    tensors = {f"net.{i * step}.{k}": t for i, part in enumerate(linears) for k, t in part.state_dict().items()}
    assert_same(cnn.from_torch(dict(sorted(tensors.items())), activation=activation), net, "float32")


@pytest.mark.parametrize("names", [("actor.0", "critic.0"), ("net.0", "net.3"), ("fc1", "mean", "value"), ("a", "b")])
def test_state_dicts_whose_order_cannot_be_known(names):
    with pytest.raises(ValueError, match=r"state_dict: .* (ambiguous|do not give|between .* got 2)"):
        cnn.from_torch({f"{name}.weight": torch.ones(3, 3) for name in names}, activation="relu")


def test_square_weights_of_torch_arrays_are_refused():
    model = cnn.Sequential([cnn.Linear(3, 3)])
    state = {name: tensor.numpy() for name, tensor in cnn.to_torch(model).state_dict().items()}
    with pytest.raises(ValueError, match="is square and comes from a tensor of PyTorch"):
        model.load_weights(state)
    model.load_weights({name: array.T for name, array in state.items()})


def layers_of(*shapes):
    return {f"{name}.weight": torch.randn(*shape) for name, shape in shapes}


@pytest.mark.parametrize(
    ("shapes", "order"),
    [
        ([("fc1", (4, 3)), ("fc2", (4, 4)), ("out", (2, 4))], "fc1 fc2 out"),
        ([("out", (2, 4)), ("fc1", (4, 3)), ("fc2", (4, 4))], "fc1 fc2 out"),
        ([("fc1", (4, 4)), ("fc2", (2, 4)), ("input", (4, 3))], "input fc1 fc2"),
    ],
)
def test_two_kinds_of_names_whose_widths_say_the_order(shapes, order):
    tensors = layers_of(*shapes)
    model = cnn.from_torch(tensors, activation="relu")
    for layer, name in zip(model.layers[::2], order.split(), strict=True):
        np.testing.assert_array_equal(layer.weight.T, tensors[f"{name}.weight"])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([("fc1", (4, 4)), ("fc2", (4, 4)), ("out", (4, 4))], "fc1 and out have the same number of inputs"),
        ([("fc1", (4, 3)), ("fc2", (3, 4)), ("out", (3, 3))], "fc1 and out have the same number of inputs"),
        ([("fc1", (4, 3)), ("fc2", (4, 4)), ("mid", (4, 4))], "allow several orders of fc1, fc2, mid: expected one"),
        ([("fc1", (4, 3)), ("fc2", (2, 4)), ("out", (1, 5))], "allow no order of fc1, fc2, out: expected one"),
    ],
)
def test_two_kinds_of_names_whose_widths_do_not(shapes, message):
    with pytest.raises(ValueError, match=message):
        cnn.from_torch(layers_of(*shapes), activation="relu")


def test_weights_computed_before_each_pass():
    """Pruned, and by the older weight_norm: hooks, not parametrisations."""
    with pytest.warns(FutureWarning, match="weight_norm"):
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.utils.weight_norm(nn.Linear(8, 2)))
    prune.random_unstructured(net[0], "weight", 0.5)
    model = cnn.from_torch(net)
    assert_same(model, net, "float32")
    assert (model[0].weight == 0).sum() == 12


def test_lazy_modules_and_absent_ones():
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU())
    with pytest.raises(TypeError, match=r"0\.weight: has no values \(meta device, or a lazy module\)"):
        cnn.from_torch(net)
    net(torch.ones(2, 3))
    assert_same(cnn.from_torch(net), net, "float32")
    net[1] = None
    with pytest.raises(TypeError, match=r"module: Sequential\(...\): its child module 1 is None"):
        cnn.from_torch(net)


def test_chains_in_modules_of_ones_own():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x):
            return 2 * self.net(x)

    policy = Policy()
    with pytest.raises(TypeError, match=r"pass torch\.nn\.Sequential of its modules, such as module\.net"):
        cnn.from_torch(policy)
    assert_same(cnn.from_torch(policy.net), policy.net, "float32")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_inside(wrap):
    net = nn.Sequential(wrap(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), wrap(nn.Linear(4, 2)))
    assert_same(cnn.from_torch(net), net, "float32")
