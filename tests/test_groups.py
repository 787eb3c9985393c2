"""What optimisers do beyond one update: groups of layers, biases without decay, clipping, averages.

Steps are compared with the reference, which gets each array's own hyper-parameters. PyTorch is in peers/test_groups.py.
"""

import itertools
import json

import numpy as np
import pytest
from grid import RULES, build
from networks import apart, assert_close, assert_parameters, batch_for, explicit, fused, native_loop

import cnn
from cnn.optim import optimizers as optim

SPEC = [(5, 7, True), ("tanh", None), (7, 33, True), ("tanh", None), (33, 17, False), ("tanh", None), (17, 2, True)]
WAYS = [fused, explicit, native_loop]
RTOL = {np.dtype("float32"): 1e-3, np.dtype("float64"): 1e-10}
KINDS = [
    (cnn.SGD, {"lr": 0.05}),
    (cnn.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.03}),
    (cnn.Adam, {"lr": 0.003, "weight_decay": 0.03}),
    (cnn.AdamW, {"lr": 0.003, "amsgrad": True, "weight_decay": 0.3}),
    (cnn.RMSprop, {"lr": 0.001, "momentum": 0.5, "weight_decay": 0.03}),
    (cnn.Adagrad, {"lr": 0.02, "lr_decay": 0.1, "weight_decay": 0.03}),
]
GROUPS = [{"layers": [0, "6"], "lr": 0.01}, {"layers": [2], "weight_decay": 0.5}]


def hyper_by_name(names, kind, hyper, groups=(), decay_bias=True):
    """The arguments of the reference's rule for each array."""
    plain = kind(**hyper).get_config()
    arguments = {}
    for name in names:
        layer, what = name.split(".")
        own = next((group for group in groups if layer in map(str, group["layers"])), {})
        arguments[name] = {**plain, **{key: value for key, value in own.items() if key != "layers"}}
        if what == "bias" and not decay_bias:
            arguments[name]["weight_decay"] = 0.0
    return arguments


def reference_step(network, x, y, kind, arguments, change=lambda grads: grads):
    """One step of the reference with each array's own arguments; `change` clips the gradients."""
    loss, _, grads = network.gradients(x, y)
    network.step(change(grads), RULES[kind], arguments.get)
    return loss


# steps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "hyper"), KINDS, ids=str)
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("decay_bias", [True, False])
def test_groups_and_biases(isa, dtype, batch, decay_bias, kind, hyper):
    """By all ways to take a step in turn."""
    for groups in (GROUPS, []):
        optimizer = kind(**hyper, groups=groups, decay_bias=decay_bias)
        model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
        x, y = batch_for(SPEC, "mse", batch, dtype)
        arguments = hyper_by_name(network.parameters, kind, hyper, groups, decay_bias)
        for step in 6 * WAYS:
            assert_close(step(model, x, y), reference_step(network, x, y, kind, arguments), RTOL[dtype])
        assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize(("kind", "hyper"), KINDS, ids=str)
@pytest.mark.parametrize("batch", [2, 130])
def test_fused_step_with_groups_is_the_explicit_one(isa, dtype, batch, kind, hyper):
    """Bit for bit."""
    models = [
        build(SPEC, "mse", dtype=dtype, optimizer=kind(**hyper, groups=GROUPS, decay_bias=False))[0] for _ in range(2)
    ]
    x, y = batch_for(SPEC, "mse", batch, dtype)
    for _ in range(4):
        assert fused(models[0], x, y) == apart(models[1], x, y)
        np.testing.assert_array_equal(models[0].parameters, models[1].parameters)


@pytest.mark.parametrize("step", WAYS)
def test_a_layer_with_a_learning_rate_of_zero_stays(isa, dtype, step):
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.AdamW(lr=0.01, groups=[{"layers": [2, 4], "lr": 0}]))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    before = model.state_dict()
    model.optimizer.lr = 0.02
    for _ in range(3):
        step(model, x, y)
    for name, array in model.state_dict().items():
        assert (array == before[name]).all() == name.startswith(("2.", "4.")), name


def test_nothing_changes_where_groups_say_nothing_new(isa, dtype):
    x, y = batch_for(SPEC, "mse", 6, dtype)
    plain, grouped = (
        build(SPEC, "mse", dtype=dtype, optimizer=cnn.Adam(lr=0.01, weight_decay=0.1, **more))[0]
        for more in ({}, {"groups": [{"layers": [0]}, {"layers": ["2"], "lr": 0.01, "weight_decay": 0.1}]})
    )
    for step in WAYS:
        step(plain, x, y)
        step(grouped, x, y)
    np.testing.assert_array_equal(plain.parameters, grouped.parameters)


def clipped(clip_norm, clip_value):
    """The reference's clipping: each number, then the norm of all."""

    def change(grads):
        if clip_value is not None:
            grads = {name: np.clip(grad, -clip_value, clip_value) for name, grad in grads.items()}
        if clip_norm is not None:
            norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
            grads = {name: grad * min(1, clip_norm / (norm + 1e-6)) for name, grad in grads.items()}
        return grads

    return change


@pytest.mark.parametrize(("kind", "hyper"), KINDS, ids=str)
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize(
    "limits",
    [{"clip_norm": 0.3}, {"clip_value": 0.02}, {"clip_norm": 0.2, "clip_value": 0.05}, {"clip_norm": 1e9}],
    ids=str,
)
def test_clipping(isa, dtype, batch, limits, kind, hyper):
    x, y = batch_for(SPEC, "mse", batch, dtype)
    y *= 3
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=kind(**hyper, **limits))
    arguments = hyper_by_name(network.parameters, kind, hyper)
    change = clipped(limits.get("clip_norm"), limits.get("clip_value"))
    _, _, grads = network.gradients(x, y)
    same = all(np.array_equal(grads[name], grad) for name, grad in change(grads).items())
    assert same == (limits.get("clip_norm") == 1e9)
    for step in 4 * WAYS:
        assert_close(step(model, x, y), reference_step(network, x, y, kind, arguments, change), RTOL[dtype])
    assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize("batch", [1, 6])
def test_clipping_is_the_same_by_all_ways(isa, dtype, batch):
    """Bit for bit: a clipped step is never fused."""
    x, y = batch_for(SPEC, "mse", batch, dtype)
    models = [build(SPEC, "mse", dtype=dtype, optimizer=cnn.Adam(clip_norm=0.2, clip_value=0.1))[0] for _ in WAYS]
    for _ in range(5):
        for model, step in zip(models, WAYS, strict=True):
            step(model, x, y)
            np.testing.assert_array_equal(model.parameters, models[0].parameters)


@pytest.mark.parametrize("size", [1e30, 1.0, 1e-30])
def test_clipping_of_huge_gradients(isa, dtype, size):
    """Squares of float32 gradients do not overflow: the norm is summed in double."""
    model, _ = build([(3, 2, True)], dtype=dtype, optimizer=cnn.SGD(lr=1.0, clip_norm=1e-3))
    model.parameters = np.zeros(8)
    model(np.ones((1, 3)))
    model.backward(np.full((1, 2), size))
    model.step()
    norm = np.sqrt(8) * size
    assert_close(model.parameters, np.full(8, -size * min(1, 1e-3 / (norm + 1e-6))), 1e-6)


@pytest.mark.parametrize("step", WAYS)
@pytest.mark.parametrize("decay", [0.0, 0.9, 0.999])
def test_average(isa, dtype, step, decay):
    """It begins as a copy at the first step. The steps are those without it."""
    x, y = batch_for(SPEC, "mse", 6, dtype)
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.05, ema_decay=decay))
    plain, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.05))
    average = None
    assert model._core.program.average is None
    for _ in range(20):
        step(model, x, y)
        step(plain, x, y)
        now = plain.parameters.astype(np.float64)
        average = now if average is None else decay * average + (1 - decay) * now
        np.testing.assert_array_equal(model.parameters, plain.parameters)
        assert_close(model._core.program.average, average, 4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("clip_norm", [None, 0.4])
def test_penalties(isa, dtype, batch, clip_norm):
    """l1 sum |W| + l2 sum W**2: its gradient is part of every step, before clipping; of a weight of 0 it is 0."""
    penalties = [(0.01, 0.0), (0.0, 0.03), (0.02, 0.01)]
    shapes = [(5, 33), (33, 17), (17, 2)]  # the last is kept transposed
    layers = [cnn.Linear(*n, l1=l1, l2=l2) for n, (l1, l2) in zip(shapes, penalties, strict=True)]
    spec = [(*shapes[0], True), ("tanh", None), (*shapes[1], True), ("tanh", None), (*shapes[2], True)]
    parts = [layers[0], cnn.Tanh(), layers[1], cnn.Tanh(), layers[2], cnn.MSELoss()]
    model = cnn.Sequential(parts, optimizer=cnn.SGD(lr=0.05, clip_norm=clip_norm), dtype=dtype, seed=0)
    layers[1].weight[3, 4] = 0
    _, network = build(spec, "mse", dtype=dtype)
    network.parameters = {name: a.astype(np.float64) for name, a in model.state_dict().items()}
    x, y = batch_for(spec, "mse", batch, dtype)

    def penalised(grads):
        for layer, (l1, l2) in zip((0, 2, 4), penalties, strict=True):
            w = network.parameters[f"{layer}.weight"]
            grads[f"{layer}.weight"] = grads[f"{layer}.weight"] + l1 * np.sign(w) + 2 * l2 * w
        return clipped(clip_norm, None)(grads)

    arguments = hyper_by_name(network.parameters, cnn.SGD, {"lr": 0.05})
    for step in 4 * WAYS:
        step(model, x, y)
        reference_step(network, x, y, cnn.SGD, arguments, penalised)
        assert_parameters(model, network, RTOL[dtype])


# the table --------------------------------------------------------------------------------------------------------

NAMES = ["0.weight", "0.bias", "2.weight", "3.1.0.weight", "3.1.0.bias", "3.1.2.weight", "3.1.2.bias", "31.weight"]
DIMS = [2, 1, 1, 2, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (None, [0, 0, 0, 0, 0, 0, 0, 0]),
        ([{"layers": [0]}], [1, 1, 0, 0, 0, 0, 0, 0]),
        ([{"layers": ["2"]}, {"layers": ["0"]}], [2, 2, 1, 0, 0, 0, 0, 0]),
        ([{"layers": [3]}], [0, 0, 0, 1, 1, 1, 1, 0]),
        ([{"layers": ["3.1"]}, {"layers": [31, 2]}], [0, 0, 2, 1, 1, 1, 1, 2]),
        ([{"layers": ["3.1.2", np.int64(0)]}], [1, 1, 0, 0, 0, 1, 1, 0]),
        ([{"layers": ["3.1", "3", 3]}], [0, 0, 0, 1, 1, 1, 1, 0]),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS[1:]])
def test_assign(kind, groups, expected):
    rows = kind(groups=groups).assign(NAMES, DIMS)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected
    without = kind(groups=groups, decay_bias=False, weight_decay=0.5)
    assert without.assign(NAMES, DIMS).tolist() == [
        row + (d == 1) * (1 + len(groups or [])) for row, d in zip(expected, DIMS, strict=True)
    ]
    decay = without.table[without.assign(NAMES, DIMS), optim.WEIGHT_DECAY]
    assert decay.tolist() == [0.0 if d == 1 else 0.5 for d in DIMS]


def test_assign_refuses():
    with pytest.raises(
        ValueError,
        match=r"^groups\[1\]: the model has no layer 1 with parameters: expected one of 0, 2, 3.1.0, 3.1.2, 31$",
    ):
        cnn.SGD(groups=[{"layers": [0]}, {"layers": [2, 1]}]).assign(NAMES, DIMS)
    with pytest.raises(ValueError, match=r"^groups\[0\]: the model has no layer '3.1.0.w' with"):
        cnn.SGD(groups=[{"layers": ["3.1.0.w"]}]).assign(NAMES, DIMS)
    with pytest.raises(ValueError, match=r"^groups: 3.1.0.weight is in groups\[0\] and in groups\[1\]"):
        cnn.SGD(groups=[{"layers": ["3.1"]}, {"layers": [3]}]).assign(NAMES, DIMS)


def test_models_refuse_unknown_layers(isa, dtype):
    """State untouched: the optimiser from before goes on."""
    model, _ = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(lr=0.1))
    x, y = batch_for(SPEC, "mse", 6, dtype)
    model.train_step(x, y)
    with pytest.raises(
        ValueError, match=r"^groups\[0\]: the model has no layer 1 with parameters: expected one of 0, 2, 4, 6$"
    ):
        model.optimizer = cnn.Adam(groups=[{"layers": [1]}])
    assert model.optimizer.lr == 0.1
    model.train_step(x, y)


def test_the_groups_follow_the_learning_rate():
    """In proportion, without drift; a group's own decay stays, the others follow."""
    optimizer = cnn.Adam(
        lr=0.1,
        weight_decay=0.2,
        groups=[{"layers": [0], "lr": 0.02}, {"layers": [1], "weight_decay": 0.5}, {"layers": [2], "lr": 0.0}],
        decay_bias=False,
    )
    table = optimizer.table
    for lr in (0.3, 0.0, 1e-5, 7.0, 0.1):
        optimizer.lr = lr
        np.testing.assert_allclose(table[:, optim.LR], np.tile([lr, 0.2 * lr, lr, 0.0], 2), rtol=1e-15)
        assert optimizer.lr == lr
    assert optimizer.groups[0] == {"layers": [0], "lr": pytest.approx(0.02, rel=1e-15)}
    optimizer.weight_decay = 0.7
    assert table[:, optim.WEIGHT_DECAY].tolist() == [0.7, 0.7, 0.5, 0.7, 0, 0, 0, 0]
    optimizer.betas = (0.5, 0.6)
    assert (table[:, optim.MOMENTUM] == 0.5).all()
    assert (table[:, type(optimizer).beta2.column] == 0.6).all()
    assert optimizer.table is table


def test_groups_of_an_optimiser_whose_learning_rate_is_zero():
    """There is no proportion to keep."""
    optimizer = cnn.SGD(lr=0.0, groups=[{"layers": [0], "lr": 0.02}, {"layers": [1]}])
    optimizer.lr = 0.5
    assert optimizer.table[:, optim.LR].tolist() == [0.5, 0.02, 0.5]


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS[1:]])
def test_config(kind):
    more = {
        "groups": [{"layers": [0, "3.1"], "lr": 0.02}, {"layers": ["2"], "weight_decay": 0.0}],
        "decay_bias": False,
        "clip_norm": 1.0,
        "clip_value": 0.5,
        "ema_decay": 0.99,
        "schedule": cnn.CosineAnnealingLR(10),
    }
    for n in range(len(more) + 1):
        for names in itertools.combinations(more, n):
            optimizer = kind(lr=0.1, **{name: more[name] for name in names})
            config = json.loads(json.dumps(optimizer.get_config()))
            assert set(more) & set(config) == set(names)
            for again in (kind(**config), eval(repr(optimizer), vars(cnn))):
                assert again.get_config() == config
                np.testing.assert_array_equal(again.table, optimizer.table)
    assert optimizer.groups == more["groups"]
    optimizer.groups[0]["layers"].append(7)  # a copy
    assert optimizer.groups == more["groups"]


def test_models_config():
    model, _ = build(SPEC, "mse", optimizer=cnn.SGD(groups=GROUPS, clip_norm=0.5, schedule=cnn.StepLR(3)))
    again = cnn.Sequential.from_config(json.loads(json.dumps(model.get_config())))
    assert again.get_config() == model.get_config()
    np.testing.assert_array_equal(again.optimizer.table, model.optimizer.table)


BAD = [
    ({"groups": {"layers": [0]}}, TypeError, "groups: expected a list of dicts, got {"),
    ({"groups": [[0]]}, TypeError, r"groups\[0\]: expected a dict, got \[0\]"),
    ({"groups": [{"lr": 0.1}]}, TypeError, r"groups\[0\]: expected a list of layers' names as 'layers', got None"),
    ({"groups": [{"layers": 0}]}, TypeError, r"groups\[0\]: expected a list of layers' names as 'layers', got 0"),
    ({"groups": [{"layers": "0"}]}, TypeError, r"groups\[0\]: expected a list of layers' names as 'layers', got '0'"),
    ({"groups": [{"layers": []}]}, ValueError, r"groups\[0\]: expected at least one layer's name, got none"),
    ({"groups": [{"layers": [True]}]}, TypeError, r"groups\[0\]: expected a layer's name, such as .*, got True"),
    ({"groups": [{"layers": [0.5]}]}, TypeError, r"groups\[0\]: expected a layer's name, such as .*, got 0.5"),
    (
        {"groups": [{"layers": [0]}, {"layers": [1], "decay": 1}]},
        ValueError,
        r"groups\[1\]: unknown 'decay': expected layers, lr, weight_decay",
    ),
    ({"groups": [{"layers": [0], "lr": -1}]}, ValueError, r"groups\[0\]: lr: expected a finite number of at least 0"),
    ({"groups": [{"layers": [0], "lr": "1"}]}, TypeError, r"groups\[0\]: lr: expected a number, got '1'"),
    (
        {"groups": [{"layers": [0], "weight_decay": np.nan}]},
        ValueError,
        r"groups\[0\]: weight_decay: expected a finite number of at least 0, got nan",
    ),
    ({"decay_bias": 0}, TypeError, "decay_bias: expected True or False, got 0"),
    ({"clip_norm": 0}, ValueError, "clip_norm: expected a number above 0, got 0"),
    ({"clip_norm": -1.0}, ValueError, "clip_norm: expected a number above 0, got -1.0"),
    ({"clip_norm": np.inf}, ValueError, "clip_norm: expected a finite number, got inf"),
    ({"clip_value": np.nan}, ValueError, "clip_value: expected a finite number, got nan"),
    ({"clip_value": "1"}, TypeError, "clip_value: expected a number, got '1'"),
    ({"ema_decay": 1.0}, ValueError, "ema_decay: expected a finite number of at least 0 and below 1, got 1.0"),
    ({"ema_decay": True}, TypeError, "ema_decay: expected a number, got True"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[message for *_, message in BAD])
@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS[1:]])
def test_errors(kind, arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        kind(**arguments)


def test_what_cannot_be_changed():
    """Models have taken it over: a change would not reach them."""
    optimizer = cnn.Adam(clip_norm=0.5, groups=GROUPS)
    before = optimizer.get_config()
    for name, value in (("decay_bias", False), ("ema_decay", 0.5), ("groups", [])):
        with pytest.raises(AttributeError, match=f"{name}.*"):
            setattr(optimizer, name, value)
    for key, value in (("layers", [3]), ("momentum", 0.5)):
        with pytest.raises(
            AttributeError, match=rf"^groups\[1\]: expected lr or weight_decay, as '{key}' cannot be set"
        ):
            optimizer.groups[1][key] = value
    for name, value in (("clip_norm", 0), ("clip_value", -1.0)):
        with pytest.raises(ValueError, match=f"^{name}: expected a number above 0"):
            setattr(optimizer, name, value)
    with pytest.raises(ValueError, match=r"^groups\[0\]: lr: expected a finite number of at least 0"):
        optimizer.groups[0]["lr"] = -1
    assert optimizer.get_config() == before


CHANGES = {
    "clip_norm": [0.1, None, 0.3],
    "clip_value": [None, 0.01, 1e3],
    "lr": [0.1, 0.0, 0.02],
    "weight_decay": [0.0, 0.5, 0.1],
    "momentum": [0.5, 0.9, 0.1],
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("step", WAYS)
def test_rates_change_between_steps(isa, dtype, batch, step, name):
    """Each step is that of a model whose optimiser was made with what holds then."""
    hyper = {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.03}
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=cnn.SGD(**hyper))
    x, y = batch_for(SPEC, "mse", batch, dtype)
    for value in CHANGES[name]:
        setattr(model.optimizer, name, value)
        now = {**hyper, name: value}
        limits = [now.pop(limit, None) for limit in ("clip_norm", "clip_value")]
        arguments = hyper_by_name(network.parameters, cnn.SGD, now)
        for _ in range(2):
            assert_close(
                step(model, x, y), reference_step(network, x, y, cnn.SGD, arguments, clipped(*limits)), RTOL[dtype]
            )
    assert_parameters(model, network, RTOL[dtype])


@pytest.mark.parametrize("decay_bias", [True, False])
def test_rates_of_groups_change_between_steps(isa, dtype, decay_bias):
    hyper = {"lr": 0.05, "weight_decay": 0.03}
    optimizer = cnn.SGD(**hyper, groups=GROUPS, decay_bias=decay_bias)
    model, network = build(SPEC, "mse", dtype=dtype, optimizer=optimizer)
    x, y = batch_for(SPEC, "mse", 6, dtype)
    groups = [dict(group) for group in GROUPS]
    for i, key, value in ((0, "lr", 0.3), (1, "lr", 0.01), (1, "weight_decay", 0.0), (0, "weight_decay", 0.7)):
        optimizer.groups[i][key] = groups[i][key] = value
        assert optimizer.groups == groups
        for step in WAYS:
            arguments = hyper_by_name(network.parameters, cnn.SGD, hyper, groups, decay_bias)
            assert_close(step(model, x, y), reference_step(network, x, y, cnn.SGD, arguments), RTOL[dtype])
    assert_parameters(model, network, RTOL[dtype])
    optimizer.lr = 0.1
    assert [group["lr"] for group in optimizer.groups] == pytest.approx([0.6, 0.02])
