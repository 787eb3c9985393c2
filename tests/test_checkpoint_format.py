"""save and load: bit-identical, and safetensors' format byte by byte."""

import importlib.util
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CONFIG, SPEC, assert_same, literal, network
from grid import WITH_PARAMETERS
from networks import assert_close, batch_for, build
from safetensors.numpy import load_file

import cnn
from cnn.files import checkpoint


@pytest.fixture
def model(dtype):
    return network(dtype)


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
    spec = list(WITH_PARAMETERS)
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
    assert list(metadata) == ["config", "digest", "format", "version"]
    assert metadata["format"] == "cnn"
    assert metadata["version"] == "2"
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


def test_a_file_of_version_1_can_be_read(path):
    """Written out here byte by byte: what is on people's disks must stay readable."""
    path.write_bytes(literal(json.dumps(CONFIG), [0.5, -1]))
    model = cnn.load(path)
    assert repr(model) == "Sequential(\n  (0): Linear(2, 1, bias=False)\n  (1): Tanh()\n)"
    assert_close(model.predict([[1, 2]]), np.tanh([[-1.5]]), 1e-6)


FIXTURES = Path(__file__).parent / "fixtures"
spec = importlib.util.spec_from_file_location("fixtures_make", FIXTURES / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def test_there_are_fixtures_of_every_version():
    names = {
        f"v{version}-{name}" for version in range(1, checkpoint.FORMAT_VERSION + 1) for name in make.NAMES[version]
    }
    assert {file.stem for file in FIXTURES.glob("*.safetensors")} == names


@pytest.mark.parametrize("fixture", sorted(FIXTURES.glob("*.safetensors")), ids=lambda file: file.stem)
def test_files_of_all_versions_can_be_read(fixture):
    """Files that were written when the version was new; what they hold is known from make.py."""
    loaded, expected = cnn.load(fixture), make.model(fixture.stem.partition("-")[2])
    assert_same(loaded, expected)
    if expected.history is not None:  # with the training state
        assert checkpoint.to_bytes(loaded) == checkpoint.to_bytes(expected)
