"""state_dict, load_weights, get_config, from_config."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CONFIG, SPEC, network
from networks import assert_close, batch_for, build, chain, is_linear

import cnn


@pytest.fixture
def model(dtype):
    return network(dtype)


FIXTURES = Path(__file__).parent / "fixtures"
spec = importlib.util.spec_from_file_location("fixtures_make", FIXTURES / "make.py")


def test_state_dict_is_a_snapshot(isa, model):
    state = model.state_dict()
    assert {name: a.shape for name, a in state.items()} == {
        "0.weight": (300, 1),
        "0.bias": (1,),
        "2.weight": (1, 17),
        "5.weight": (17, 5),
        "5.bias": (5,),
    }
    before = model.parameters
    for array in state.values():
        assert array.flags.c_contiguous
        assert array.flags.owndata
        array[...] = 42
    np.testing.assert_array_equal(model.parameters, before)
    model.load_weights(state)
    assert (model.parameters == 42).all()


def test_load_weights(isa, model, dtype):
    """From arrays of any real dtype, lists, another model's state; printed where that is wished."""
    other, _ = build(SPEC, "cross_entropy", dtype="float64", seed=5)
    x, _ = batch_for(SPEC, None, 7, dtype)
    model.load_weights(other.state_dict(), config=other.get_config())
    np.testing.assert_array_equal(model.parameters, other.parameters.astype(dtype))
    assert_close(model.predict(x), other.predict(x), 1e-5)
    model.load_weights({name: (a > 0).tolist() for name, a in other.state_dict().items()})
    np.testing.assert_array_equal(model.parameters, other.parameters > 0)


def test_load_weights_is_silent_unless_verbose(model, capsys):
    model.load_weights(model.state_dict())
    assert capsys.readouterr() == ("", "")
    model.load_weights(model.state_dict(), verbose=True)
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in printed] == list(model.state_dict())
    assert "(300, 1)" in printed[0]


def changed(state, **changes):
    """The state with some arrays replaced, those given as None left out."""
    state = {name: a for name, a in state.items() if changes.get(name, a) is not None}
    return state | {name: a for name, a in changes.items() if a is not None}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"0.weight": None}, ValueError, r"^state_dict: missing 0.weight; it has 0.bias, 2.weight,"),
        ({"5.bias": None, "0.bias": None}, ValueError, "^state_dict: missing 0.bias, 5.bias"),
        ({"2.bias": np.zeros(17)}, ValueError, "^state_dict: unknown 2.bias; expected 0.weight, 0.bias"),
        ({"5.weight": np.zeros((5, 17))}, ValueError, r"^5.weight: expected shape \(17, 5\), got \(5, 17\)"),
        ({"5.bias": np.zeros((1, 5))}, ValueError, r"^5.bias: expected shape \(5,\), got \(1, 5\)"),
        ({"5.bias": 0.0}, ValueError, r"^5.bias: expected shape \(5,\), got \(\)"),
        ({"5.bias": np.zeros(5, complex)}, TypeError, "^5.bias: expected real numbers, got dtype complex128"),
        ({"5.bias": ["a"] * 5}, TypeError, "^5.bias: expected real numbers, got dtype <U1"),
        ({"5.bias": np.zeros(5, object)}, TypeError, "^5.bias: expected real numbers, got dtype object"),
    ],
    ids=str,
)
def test_load_weights_changes_all_or_nothing(isa, model, changes, error, message):
    before = model.parameters
    state = {name: a + 1 for name, a in model.state_dict().items()}
    with pytest.raises(error, match=message):
        model.load_weights(changed(state, **changes))
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("value", [1e300, -1e300, 3.5e38])
def test_numbers_too_large_for_float32(value):
    """In every way to set parameters; infinity itself and NaN may come from a model that diverged."""
    model = cnn.Sequential([cnn.Linear(3, 2), cnn.BatchNorm1d(2)], seed=0)
    before = model.parameters
    state = changed(model.state_dict(), **{"0.weight": np.full((3, 2), 1.0)})
    state["0.weight"][2, 1] = value
    shown = re.escape(str(value))
    with pytest.raises(ValueError, match=rf"^0.weight\[2, 1\] is {shown}, too large for float32: build the model with"):
        model.load_weights(state)
    with pytest.raises(ValueError, match=rf"^weight\[2, 1\] is {shown}, too large for float32"):
        model.layers[0].weight = state["0.weight"]
    with pytest.raises(ValueError, match=rf"^parameters\[1\] is {shown}, too large for float32"):
        model.parameters = np.array([0, value, *before[2:]])
    with pytest.raises(ValueError, match=rf"^gradients\[1\] is {shown}, too large for float32"):
        model.gradients = np.array([0, value, *before[2:]])
    np.testing.assert_array_equal(model.parameters, before)
    for other in (np.inf, np.nan):
        state["0.weight"][2, 1] = other
        model.load_weights(state)
    wide = cnn.Sequential([cnn.Linear(3, 2), cnn.BatchNorm1d(2)], dtype="float64")
    state["0.weight"][2, 1] = value
    wide.load_weights(state)
    assert wide.layers[0].weight[2, 1] == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("1.running_var", [1.0, -1e-3], r"^1.running_var\[1\] is -0.001, expected at least 0"),
        ("1.running_var", [-np.inf, 1.0], r"^1.running_var\[0\] is -inf, expected at least 0"),
        ("1.running_mean", [1.0, 1e300], r"^1.running_mean\[1\] is 1e\+300, too large for float32"),
        ("1.num_batches_tracked", np.array(-1), r"^1.num_batches_tracked is -1, expected at least 0"),
        ("1.num_batches_tracked", np.uint64(2**63), r"^1.num_batches_tracked is 9223372036854775808, expected at most"),
    ],
)
def test_statistics_that_cannot_be(name, value, message):
    model = cnn.Sequential([cnn.Linear(3, 2), cnn.BatchNorm1d(2)], seed=0)
    before = model.state_dict()
    with pytest.raises(ValueError, match=message):
        model.load_weights({key: array + (array.ndim > 0) for key, array in before.items()} | {name: value})
    for key, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[key])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], r"got list: a vector is set by model\.parameters = vector"),
        (np.zeros(3), r"got ndarray: a vector is set by model\.parameters = vector"),
        ("model.safetensors", r"got str: cnn\.load\(path\) reads a file"),
        (None, "got NoneType$"),
    ],
    ids=str,
)
def test_load_weights_refuses_what_has_no_names(model, given, message):
    with pytest.raises(TypeError, match=rf"^state_dict: expected arrays by name, as model.state_.*, {message}"):
        model.load_weights(given)


def test_load_weights_refuses_torch_tensors(model):
    """Their weights lie the other way round; a square one would be taken without a word."""
    tensor = type("Tensor", (), {"__module__": "torch", "shape": (300, 1)})()
    before = model.parameters
    with pytest.raises(TypeError, match=r"^state_dict: 0.weight is a PyTorch tensor.*cnn.from_torch"):
        model.load_weights(changed(model.state_dict(), **{"0.weight": tensor}))
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("config", [{}, {"layers": []}, {"layers": None}, [], "config", 3], ids=str)
def test_load_weights_refuses_another_configuration(model, config):
    before = model.parameters
    state = {name: a + 1 for name, a in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^config: "):
        model.load_weights(state, config=config)
    other, _ = build([(300, 1, True), ("relu", None)], dtype=model.dtype)
    with pytest.raises(ValueError, match=r"^config: expected the layers of this model"):
        model.load_weights(state, config=other.get_config())
    np.testing.assert_array_equal(model.parameters, before)


def test_get_config_is_json(model):
    config = model.get_config()
    assert json.loads(json.dumps(config)) == config
    again = cnn.Sequential.from_config(config)
    assert again.get_config() == config
    np.testing.assert_array_equal(again.parameters, build(SPEC, dtype=model.dtype)[0].parameters)
    assert config == model.get_config()  # from_config has not eaten it


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        [],
        "Sequential",
        {**CONFIG, "layers": None},
        {**CONFIG, "layers": [None]},
        {**CONFIG, "layers": [{}]},
        {**CONFIG, "layers": [{"name": None}]},
        {**CONFIG, "layers": [{"name": "Linear"}]},
        {**CONFIG, "layers": [{"name": "Linear", "in_features": "2", "out_features": 1}]},
        {**CONFIG, "layers": [{"name": "MSELoss"}]},
        {**CONFIG, "loss": {"name": "ReLU"}},
        {**CONFIG, "loss": "mse"},
        {**CONFIG, "optimizer": "sgd"},
        {**CONFIG, "optimizer": {"name": "SGD", "lr": "fast"}},
        {**CONFIG, "seed": 1.5},
    ],
    ids=lambda config: (
        str({**config, **{k: "" for k in config if config[k] == CONFIG[k]}})
        if isinstance(config, dict)
        else str(config)
    ),
)
def test_from_config_refuses(config):
    with pytest.raises(ValueError, match=r"config|name"):
        cnn.Sequential.from_config(config)


def test_keys_count_activations():
    """As PyTorch numbers the modules of a Sequential."""
    spec = [("relu", None), *chain(3, 4, 5), ("tanh", None), (5, 2, False)]
    model, _ = build(spec)
    places = [i for i, part in enumerate(spec) if is_linear(part)]
    assert places == [1, 3, 5]
    assert list(model.state_dict()) == ["1.weight", "1.bias", "3.weight", "3.bias", "5.weight"]
