"""save and load: bit-identical, safetensors' format byte by byte, damage, atomic replacement."""

import json
import os
import re
import stat
import struct

import numpy as np
import pytest
from networks import ACTIVATIONS, PARAMS, assert_close, batch_for, build, chain, is_linear
from safetensors.numpy import load_file, save_file

import cnn
from cnn import checkpoint

SPEC = [
    (300, 1, True),  # kept transposed in memory
    ("leaky_relu", 0.3),
    (1, 17, False),
    ("elu", 0.5),
    ("gelu_tanh", None),
    (17, 5, True),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def model(dtype):
    optimizer = cnn.SGD(lr=0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
    return build(SPEC, "cross_entropy", dtype=dtype, optimizer=optimizer)[0]


def assert_same(loaded, model):
    """The same configuration and the same bits."""
    assert loaded.get_config() == model.get_config()
    assert loaded.dtype == model.dtype
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in model.layers]
    assert list(loaded.state_dict()) == list(model.state_dict())
    for name, array in model.state_dict().items():
        assert loaded.state_dict()[name].dtype == array.dtype
        assert loaded.state_dict()[name].tobytes() == array.tobytes()


# round trip --------------------------------------------------------------------------------------


def test_round_trip(isa, path, model, dtype):
    """Trained, with odd numbers among the parameters; it predicts and goes on training the same."""
    x, y = batch_for(SPEC, "cross_entropy", 20, dtype)
    model.optimizer.momentum, model.optimizer.nesterov = 0.0, False  # momentum is not saved
    model.fit(x, y, epochs=2)
    model.layers[0].weight[:4, 0] = [-0.0, np.finfo(dtype).tiny / 2, np.finfo(dtype).max, 1e-30]
    model.save(path)
    loaded = cnn.load(path)
    assert_same(loaded, model)
    model.layers[0].weight[2, 0] = loaded.layers[0].weight[2, 0] = 1
    np.testing.assert_array_equal(loaded.predict(x), model.predict(x))
    assert loaded.train_step(x, y) == model.train_step(x, y)
    np.testing.assert_array_equal(loaded.parameters, model.parameters)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", None])
@pytest.mark.parametrize("optimizer", [None, cnn.SGD(lr=0.3, momentum=0.5, dampening=0.25)], ids=str)
def test_round_trip_of_every_layer(path, dtype, loss, optimizer):
    spec = [(name, p) for name in ACTIVATIONS for p in PARAMS.get(name, (None,))]
    spec = [*spec[:2], (3, 4, True), *spec, (4, 2, False), *spec[2:]]
    model, _ = build(spec, loss, dtype=dtype, optimizer=optimizer, seed=None)
    model.save(path)
    loaded = cnn.load(path)
    assert_same(loaded, model)
    assert loaded.seed is None
    assert (loaded.loss is None) == (loss is None)
    assert (loaded.optimizer is None) == (optimizer is None)


def test_nan_is_saved_as_it_is(path, model):
    model.parameters = np.full(model.parameters.size, np.nan)
    model.save(path)
    assert_same(cnn.load(path), model)


@pytest.mark.parametrize("kind", [str, os.fspath, lambda path: path])
def test_kinds_of_path(path, model, kind):
    model.save(kind(path))
    assert_same(cnn.load(kind(path)), model)


def test_relative_path(path, model, monkeypatch):
    monkeypatch.chdir(path.parent)
    model.save("here.safetensors")
    assert_same(cnn.load("here.safetensors"), model)
    assert os.listdir() == ["here.safetensors"]


# what is in the file -----------------------------------------------------------------------------


def test_the_file_is_safetensors(path, model, dtype):
    """As others read it: PyTorch's keys, weights (out, in), the configuration as JSON."""
    model.save(path)
    tensors = load_file(path)
    assert {name: a.shape for name, a in tensors.items()} == {
        "0.weight": (1, 300),
        "0.bias": (1,),
        "2.weight": (17, 1),
        "5.weight": (5, 17),
        "5.bias": (5,),
    }
    for name, array in model.state_dict().items():
        assert tensors[name].dtype == dtype
        np.testing.assert_array_equal(tensors[name].T, array)


def test_bytes(path):
    """Length of the header, header, numbers; little-endian, rows of (out, in)."""
    model = cnn.Sequential([cnn.Linear(2, 3), cnn.ReLU(), cnn.MSELoss()], cnn.SGD(lr=0.5), seed=4)
    model.layers[0].weight = [[1, 2, 3], [4, 5, 6]]
    model.layers[0].bias = [7, 8, 9]
    model.save(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__")
    assert {name: (a["dtype"], a["shape"]) for name, a in header.items()} == {
        "0.weight": ("F32", [3, 2]),
        "0.bias": ("F32", [3]),
    }
    numbers = {}
    for name, a in header.items():
        begin, end = a["data_offsets"]
        numbers[name] = content[8 + length + begin : 8 + length + end]
    assert numbers == {
        "0.weight": struct.pack("<6f", 1, 4, 2, 5, 3, 6),
        "0.bias": struct.pack("<3f", 7, 8, 9),
    }
    assert len(content) == 8 + length + 9 * 4
    assert set(metadata) == {"format", "version", "config"}
    assert metadata["format"] == "cnn"
    assert metadata["version"] == "1"
    assert json.loads(metadata["config"]) == {
        "layers": [
            {"name": "Linear", "in_features": 2, "out_features": 3, "bias": True},
            {"name": "ReLU"},
        ],
        "loss": {"name": "MSELoss", "reduction": "mean"},
        "optimizer": {
            "name": "SGD",
            "lr": 0.5,
            "momentum": 0.0,
            "dampening": 0.0,
            "weight_decay": 0.0,
            "nesterov": False,
        },
        "dtype": "float32",
        "seed": 4,
    }


def literal(config, numbers, *, form="cnn", version="1", shape=(1, 2)):
    """A file of one float32 tensor "0.weight", byte by byte."""
    header = {
        "__metadata__": {"format": form, "version": version, "config": config},
        "0.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * len(numbers)]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + struct.pack(f"<{len(numbers)}f", *numbers)


CONFIG = {
    "layers": [{"name": "Linear", "in_features": 2, "out_features": 1, "bias": False}, {"name": "Tanh"}],
    "loss": None,
    "optimizer": None,
    "dtype": "float32",
    "seed": None,
}


def test_a_file_of_version_1_can_be_read(path):
    """Written out here byte by byte: what is on people's disks must stay readable."""
    path.write_bytes(literal(json.dumps(CONFIG), [0.5, -1]))
    model = cnn.load(path)
    assert repr(model) == "Sequential(\n  (0): Linear(2, 1, bias=False)\n  (1): Tanh()\n)"
    assert_close(model.predict([[1, 2]]), np.tanh([[-1.5]]), 1e-6)


# damage ------------------------------------------------------------------------------------------


def assert_unreadable(path, reason=".*"):
    """An error that names the file."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{reason}"):
        cnn.load(path)


def test_truncated(path, model):
    model.save(path)
    content = path.read_bytes()
    for sixteenth in range(16):
        path.write_bytes(content[: len(content) * sixteenth // 16])
        assert_unreadable(path)
    for missing in (1, 7):
        path.write_bytes(content[:-missing])
        assert_unreadable(path)
    path.write_bytes(content + b"\0")
    assert_unreadable(path)


def test_every_byte_of_the_length_and_the_header_matters(path):
    """With one bit flipped: an error that names the file, or a model of the same shape all the same."""
    model = cnn.Sequential([cnn.Linear(2, 1), cnn.Tanh()], seed=0)
    model.save(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    refused = []
    for i in range(8 + length):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i % 8
        path.write_bytes(damaged)
        try:
            loaded = cnn.load(path)
        except ValueError as error:
            refused.append(str(error))
        else:  # a digit of the seed, a letter of an unused name, a space
            assert loaded.parameters.shape == (3,)
            assert len(loaded.layers) == 2
    assert len(refused) > 0.8 * (8 + length)
    assert all(message.startswith(f"{path}: ") for message in refused)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ".*"),
        (b"\0" * 100, ".*"),
        (b"PK\3\4 a zip file, as torch.save writes it", ".*"),
        (b"\xff" * 100, ".*"),
        (literal("", [1, 2], form="pt"), "not written by cnn"),
        (literal(json.dumps(CONFIG), [1, 2], version="2"), "version 2, and this library reads up to 1"),
        (literal(json.dumps(CONFIG), [1, 2], version="one"), ".*"),
        (literal(json.dumps(CONFIG), [1, 2, 3], shape=(1, 3)), r"expected shape \(2, 1\), got \(3, 1\)"),
        (literal(json.dumps(CONFIG), [1, 2], shape=(2, 1)), r"expected shape \(2, 1\), got \(1, 2\)"),
        (literal(json.dumps(CONFIG), [1, 2], shape=(2,)), r"expected shape \(2, 1\), got \(2,\)"),
        (literal("{", [1, 2]), ".*"),
        (literal("[]", [1, 2]), ".*"),
        (literal("null", [1, 2]), ".*"),
        (literal("[" * 100_000, [1, 2]), ".*"),
        (literal(json.dumps({**CONFIG, "layers": []}), [1, 2]), "at least one Linear"),
        (literal(json.dumps({**CONFIG, "layers": [{"name": "eval"}]}), [1, 2]), "unknown name 'eval'"),
        (literal(json.dumps({**CONFIG, "layers": [{"name": "Layer"}]}), [1, 2]), "unknown name 'Layer'"),
        (literal(json.dumps({**CONFIG, "layers": ["Linear"]}), [1, 2]), ".*"),
        (literal(json.dumps({**CONFIG, "loss": {"name": "HingeLoss"}}), [1, 2]), "unknown name 'HingeLoss'"),
        (literal(json.dumps({**CONFIG, "optimizer": {"name": "SGD", "lr": -1}}), [1, 2]), "lr"),
        (literal(json.dumps({**CONFIG, "optimizer": {"name": "SGD", "x": 1}}), [1, 2]), ".*"),
        (literal(json.dumps({**CONFIG, "dtype": "float16"}), [1, 2]), "float16"),
        (literal(json.dumps({**CONFIG, "dtype": ["float32"]}), [1, 2]), ".*"),
        (literal(json.dumps({**CONFIG, "seed": -1}), [1, 2]), "seed"),
        (literal(json.dumps({k: v for k, v in CONFIG.items() if k != "seed"}), [1, 2]), "seed"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else re.sub(r"\W+", "_", value),
)
def test_not_a_checkpoint(path, content, reason):
    path.write_bytes(content)
    assert_unreadable(path, reason)


def test_other_tensors(path, model):
    """Missing, too many: all are checked before anything is made."""
    model.save(path)
    tensors = load_file(path)
    metadata = {"format": "cnn", "version": "1", "config": json.dumps(model.get_config())}
    for name in tensors:
        save_file({n: a for n, a in tensors.items() if n != name}, path, metadata)
        assert_unreadable(path, f"(missing {name}|larger)")
    save_file({**tensors, "9.weight": np.zeros((1, 1))}, path, metadata)
    assert_unreadable(path, "unknown 9.weight")
    save_file({}, path, metadata)
    assert_unreadable(path)
    save_file(tensors, path)
    assert_unreadable(path, "not written by cnn")
    wide = {name: a.astype(complex) for name, a in tensors.items()}
    with pytest.raises(Exception, match="complex"):
        save_file(wide, path, metadata)


def test_a_configuration_too_large_for_its_tensors(path):
    """An error, and not an attempt to get that much memory."""
    layers = [{"name": "Linear", "in_features": 2**40, "out_features": 2**12, "bias": False}]
    path.write_bytes(literal(json.dumps({**CONFIG, "layers": layers}), [1, 2]))
    assert_unreadable(path)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors"):
        cnn.load(tmp_path / "nothing.safetensors")
    with pytest.raises(OSError, match=r"directory|denied") as error:
        cnn.load(tmp_path)
    assert str(tmp_path) in str(error.value)


# writing -----------------------------------------------------------------------------------------


def listing(path):
    return sorted(os.listdir(path.parent))


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file(path, model, monkeypatch, call):
    """Whatever fails: the old file is whole, nothing is left beside it, and the error is the system's."""
    model.save(path)
    old, state = path.read_bytes(), model.state_dict()
    model.parameters = model.parameters + 1

    def failing(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, call, failing)
        with pytest.raises(OSError, match="No space left on device"):
            model.save(path)
    assert path.read_bytes() == old
    assert listing(path) == ["model.safetensors"]
    for name, array in cnn.load(path).state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_interrupted_write(path, model, monkeypatch):
    model.save(path)
    old = path.read_bytes()

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.save(path)
    assert path.read_bytes() == old
    assert listing(path) == ["model.safetensors"]


def test_overwriting(path, model):
    """Nothing of the longer file that was there is left."""
    path.write_bytes(b"x" * 100_000)
    model.save(path)
    assert_same(cnn.load(path), model)
    assert listing(path) == ["model.safetensors"]


def test_file_mode(path, model):
    """A new file's by the umask, as open() would; an old file's is kept."""
    before = os.umask(0o027)
    try:
        model.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
        path.chmod(0o604)
        model.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_where_it_cannot_be_written(path, model):
    with pytest.raises(FileNotFoundError):
        model.save(path / "no" / "such.folder")
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        model.save(path)
    assert listing(path) == ["model.safetensors"]
    assert not os.listdir(path)


# state_dict, load_weights, get_config --------------------------------------------------------------


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
