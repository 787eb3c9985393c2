"""save and load: bit-identical, safetensors' format byte by byte, damage, atomic replacement."""

import errno
import hashlib
import importlib.util
import json
import os
import re
import socket
import stat
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from networks import ACTIVATIONS, PARAMS, assert_close, batch_for, build, chain, is_linear, run_together
from safetensors.numpy import load_file, save_file

import cnn
from cnn.files import atomic_write, checkpoint, safetensors_file

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


def test_every_byte_matters(path):
    """With one bit flipped anywhere: an error that names the file, or, in the spaces, the same model."""
    model = cnn.Sequential([cnn.Linear(2, 1), cnn.Tanh()], seed=0)
    model.save(path)
    content = path.read_bytes()
    messages = []
    with path.open("r+b", buffering=0) as file:
        for i, byte in enumerate(content):
            os.pwrite(file.fileno(), bytes([byte ^ 1 << i % 8]), i)
            try:
                loaded = cnn.load(path)
            except ValueError as error:
                messages.append(str(error))
            else:
                assert_same(loaded, model)
            os.pwrite(file.fileno(), bytes([byte]), i)
    assert len(messages) > len(content) - 8  # the header is filled up with spaces to a multiple of 8
    assert all(message.startswith(f"{path}: ") for message in messages)


def test_the_digest(path, model):
    """As container.py says: the header in one spelling without the digest, then the numbers."""
    model.save(path)
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    digest = header["__metadata__"].pop("digest")
    spelled = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(spelled + content[8 + length :]).hexdigest() == digest


def test_the_same_model_gives_the_same_bytes(path, model):
    model.save(path)
    first = path.read_bytes()
    for _ in range(5):
        model.save(path)
        assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", ".*"),
        (b"\0" * 100, ".*"),
        (b"PK\3\4 a zip file, as torch.save writes it", ".*"),
        (b"\xff" * 100, ".*"),
        (literal("", [1, 2], form="pt"), "not written by cnn"),
        (literal(json.dumps(CONFIG), [1, 2], version="3"), "version 3, and this library reads up to 2"),
        (literal(json.dumps(CONFIG), [1, 2], version="2"), "digest"),
        (literal(json.dumps(CONFIG), [1, 2], version="1."), "expected a format version, got '1.'"),
        (literal(json.dumps(CONFIG), [1, 2], version="0"), "expected a format version, got '0'"),
        (literal(json.dumps(CONFIG), [1, 2], version="one"), "expected a format version, got 'one'"),
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


def raw(header, data=b"", length=None):
    """A container with any bytes, or anything that JSON can hold, as its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


METADATA = {"format": "cnn", "version": "1", "config": json.dumps(CONFIG)}
WEIGHT = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}


def header(**weight):
    """The header of a good file, its only tensor changed."""
    return {"__metadata__": METADATA, "0.weight": {**WEIGHT, **weight}}


def two(first, second, shape=(1, 1)):
    """A header of two tensors with these offsets."""
    return {"__metadata__": METADATA} | {
        name: {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}
        for name, offsets in (("0.weight", first), ("0.bias", second))
    }


def configured(text):
    """A file with this text as its configuration."""
    return raw({"__metadata__": {**METADATA, "config": text}, "0.weight": WEIGHT}, bytes(8))


def linear(n_in, n_out):
    """A file that describes a layer of these widths, and holds two numbers."""
    layers = [{"name": "Linear", "in_features": n_in, "out_features": n_out, "bias": False}]
    return configured(json.dumps({**CONFIG, "layers": layers}))


FIELDS = {
    "good": (raw(header(), bytes(8)), None),
    "spaces behind the header": (raw(json.dumps(header()).encode() + b"  \n", bytes(8)), None),
    "too short for a length": (b"\x08\0\0", "truncated: 3 bytes"),
    "header beyond the file": (raw(header(), bytes(8), 1 << 20), "truncated, or no safetensors file"),
    "header of 2**64 - 1 bytes": (raw(header(), bytes(8), 2**64 - 1), "header of 18446744073709551615 bytes in a"),
    "header of 3 MB": (raw(b"{" + b" " * 3_000_000), "at most 2097152 are read"),
    "space before the header": (raw(b" " + json.dumps(header()).encode(), bytes(8)), "begin with {"),
    "header not closed": (raw(b'{"a": {'), "header: expected JSON"),
    "header not UTF-8": (raw(b'{"\xff": 1}'), "header: expected UTF-8"),
    "header in UTF-16": (raw(json.dumps(header()).encode("utf-16")), "begin with {"),
    "header nested 100,000 deep": (raw(b'{"a":' + b"[" * 100_000), "header: nested too deeply"),
    "header nested 500 deep": (raw(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}"), "expected dtype, shape and data"),
    "a name twice": (raw(b'{"a":1,"a":2}'), "header: a table has the same name twice"),
    "dtype twice": (raw(json.dumps(header()).replace('"F32"', '"F32","dtype":"F64"').encode(), bytes(8)), "twice"),
    "config twice": (raw(json.dumps(header()).replace('"version"', '"config":"","version"').encode()), "twice"),
    "metadata no table": (raw({"__metadata__": []}), "__metadata__: expected a table of strings"),
    "metadata no strings": (raw({"__metadata__": {**METADATA, "version": 1}}), "expected a table of strings"),
    "metadata too many": (raw({"__metadata__": {**METADATA, "digest": ""}}), "expected config, format, version, got"),
    "metadata too few": (raw({"__metadata__": {"format": "cnn", "version": "1"}}), "expected config, format, version"),
    "training state in version 1": (raw({"__metadata__": {**METADATA, "training": "{}"}}), "__metadata__: expected"),
    "entry no table": (raw({"0.weight": 1}), "0.weight: expected dtype, shape and data_offsets"),
    "entry with more": (raw({"a": {**WEIGHT, "b": 1}}, bytes(8)), "a: expected dtype, shape and data_offsets"),
    "dtype F16": (raw(header(dtype="F16"), bytes(8)), "0.weight: expected one of the dtypes F32, F64, I64, got 'F16'"),
    "dtype no string": (raw(header(dtype=["F32"]), bytes(8)), "expected one of the dtypes"),
    "dtype of another model": (
        raw(header(dtype="F64", data_offsets=[0, 16]), bytes(16)),
        "0.weight: expected dtype float32, got float64",
    ),
    "integers": (raw(header(dtype="I64", data_offsets=[0, 16]), bytes(16)), "expected dtype float32, got int64"),
    "shape no list": (raw(header(shape=2), bytes(8)), "expected a shape"),
    "shape negative": (raw(header(shape=[-1, -2]), bytes(8)), "expected a shape"),
    "shape of floats": (raw(header(shape=[1, 2.0]), bytes(8)), "expected a shape"),
    "shape of bools": (raw(header(shape=[True, 2]), bytes(8)), "expected a shape"),
    "shape beyond 63 bits": (raw(header(shape=[2**64 + 1, 2]), bytes(8)), "expected a shape"),
    "shape of 100 axes": (raw(header(shape=[1] * 99 + [2]), bytes(8)), "expected a shape of at most 8 integers"),
    "product overflows to 8": (raw(header(shape=[2**62 + 1, 2, 2]), bytes(8)), "8 bytes do not hold F32 of shape"),
    "product overflows to 0": (raw(header(shape=[2**32, 2**32], data_offsets=[0, 0])), "0 bytes do not hold F32"),
    "shape too small": (raw(header(shape=[1, 1]), bytes(8)), "8 bytes do not hold F32"),
    "three offsets": (raw(header(data_offsets=[0, 4, 8]), bytes(8)), "expected two offsets"),
    "offsets reversed": (raw(header(data_offsets=[8, 0]), bytes(8)), "follows a gap"),
    "offset negative": (raw(header(data_offsets=[-8, 0]), bytes(8)), "expected two offsets"),
    "gap before the first": (
        raw(header(data_offsets=[8, 16]), bytes(16)),
        "0.weight: follows a gap: it begins at byte 8",
    ),
    "gap": (raw(two((0, 4), (8, 12)), bytes(12)), "0.bias: follows a gap: it begins at byte 8 instead of 4"),
    "overlap": (raw(two((0, 4), (0, 4)), bytes(4)), "0.bias: overlaps with the tensor before it, or is out of order"),
    "out of order": (raw(two((4, 8), (0, 4)), bytes(8)), "0.weight: follows a gap"),
    "file too long": (raw(header(), bytes(9)), "by its header, got"),
    "file too short": (raw(header(), bytes(7)), "by its header, got"),
    "no tensors": (raw({"__metadata__": METADATA}), "with 0 numbers for all layers"),
    "config a list": (configured("[]"), "config: expected a table"),
    "config not closed": (configured("{"), "config: expected JSON"),
    "config nested": (configured('{"layers":' + "[" * 100_000), "config: nested too deeply"),
    "config with a name twice": (configured('{"layers": [], "layers": []}'), "config: a table has the same name twice"),
    "config of half a character": (configured('{"\ud800": 1}'), "config"),
    "layers nested": (configured(json.dumps({**CONFIG, "layers": [[[{}]]]})), "config"),
    "too many layers": (
        configured(json.dumps({**CONFIG, "layers": [{"name": "Tanh"}] * 10_001})),
        "at most 10000 layers, got 10001",
    ),
    "width negative": (linear(-2, 1), "in_features: expected at least 1, got -2"),
    "widths negative": (linear(-(2**40), -1), "in_features: expected at least 1"),
    "width 0": (linear(2, 0), "out_features: expected at least 1, got 0"),
    "width no integer": (linear(2.0, 1), "in_features of 2.0, with 2 numbers for all layers"),
    "width no number": (linear([2], 1), r"in_features of \[2\], with 2 numbers"),
    "width true": (linear(2, True), "out_features of True"),
    "width of 2**40": (linear(2**40, 1), "in_features of 1099511627776, with 2 numbers for all layers"),
    "width of 1,000 digits": (linear(10**1000, 1), "in_features of 1000000"),
    "width of 5,000 digits": (linear(1, 2).replace(b"2,", b"2" * 5000 + b","), "."),
    "too large together": (linear(2, 2), "have 4 numbers at least and 13 at most, the file 2"),
}


@pytest.mark.parametrize(("content", "reason"), FIELDS.values(), ids=FIELDS)
def test_damaged_field(path, content, reason):
    """One field at a time, the others as they should be; little memory, whatever the fields claim."""
    path.write_bytes(content)
    if reason is None:
        assert cnn.load(path).parameters.tolist() == [0, 0]
    else:
        tracemalloc.start()
        try:
            assert_unreadable(path, reason)
            assert tracemalloc.get_traced_memory()[1] < 100e6
        finally:
            tracemalloc.stop()


def test_other_tensors(path, model):
    """Missing, too many: all are checked before anything is made."""
    model.save(path)
    tensors = load_file(path)
    metadata = {"format": "cnn", "version": "1", "config": json.dumps(model.get_config())}
    for name in tensors:
        save_file({n: a for n, a in tensors.items() if n != name}, path, metadata)
        assert_unreadable(path, f"(missing {name}|numbers for|numbers at)")
    save_file({**tensors, "9.weight": np.zeros((1, 1))}, path, metadata)
    assert_unreadable(path, "unknown 9.weight")
    save_file({}, path, metadata)
    assert_unreadable(path)
    save_file(tensors, path)
    assert_unreadable(path, "not written by cnn")
    wide = {name: a.astype(complex) for name, a in tensors.items()}
    with pytest.raises(Exception, match="complex"):
        save_file(wide, path, metadata)


def test_files_that_are_no_files(tmp_path):
    """Refused, and not waited for."""
    with pytest.raises(FileNotFoundError, match=r"nothing.safetensors"):
        cnn.load(tmp_path / "nothing.safetensors")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        cnn.load(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match=r"expected a regular file, got a FIFO: '.*/fifo'"):
        cnn.load(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match=r"expected a regular file, got a socket: '.*/socket'"):
            cnn.load(tmp_path / "socket")
    with pytest.raises(OSError, match=r"expected a regular file, got a device: '/dev/zero'"):
        cnn.load("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match="loop"):
        cnn.load(tmp_path / "loop")
    (tmp_path / "to fifo").symlink_to(tmp_path / "fifo")
    with pytest.raises(OSError, match="expected a regular file"):
        cnn.load(tmp_path / "to fifo")
    with pytest.raises(TypeError):
        cnn.load(3)


@pytest.mark.parametrize(
    ("begin", "size", "reason"),
    [
        (b"", 5_000_000_000, "begin with {"),
        (raw(header(), bytes(8)), 5_000_000_000, "by its header, got 5000000000"),
        (raw(header(shape=[5 << 28], data_offsets=[0, 5 << 30])), 5 << 30, "the file 1342177280"),
        (raw(header(shape=[1, 2], data_offsets=[0, 5 << 30])), 5 << 30, "5368709120 bytes do not hold F32"),
    ],
    ids=["zeros", "zeros behind a good file", "one large tensor", "one small tensor"],
)
def test_sparse_file_of_5_gb(path, begin, size, reason):
    path.write_bytes(begin)
    os.truncate(path, size if size % 1000 == 0 else len(begin) + size)
    tracemalloc.start()
    try:
        assert_unreadable(path, reason)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_digest_before_memory(path):
    """A file that describes a large network as it should, and whose numbers are not those of its digest."""
    width = 1 << 12
    layers = [{"name": "Linear", "in_features": width, "out_features": width, "bias": False}]
    config = json.dumps({**CONFIG, "layers": layers})
    metadata = {"format": "cnn", "version": "2", "digest": "0" * 64, "config": config}
    size = 4 * width * width
    entry = {"dtype": "F32", "shape": [width, width], "data_offsets": [0, size]}
    content = raw({"__metadata__": metadata, "0.weight": entry})
    path.write_bytes(content)
    os.truncate(path, len(content) + size)
    tracemalloc.start()
    try:
        assert_unreadable(path, "does not fit its digest")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_changed_while_it_is_read(path, model, monkeypatch):
    model.save(path)
    load_weights = cnn.Sequential.load_weights

    def meanwhile(self, state):
        os.truncate(path, 0)
        load_weights(self, state)

    monkeypatch.setattr(cnn.Sequential, "load_weights", meanwhile)
    assert_unreadable(path, "it was changed while it was read")


def test_shorter_while_it_is_read(path, model, monkeypatch):
    model.save(path)
    arrays = safetensors_file.Container.arrays

    def meanwhile(self):
        os.truncate(path, 500)
        return arrays(self)

    monkeypatch.setattr(safetensors_file.Container, "arrays", meanwhile)
    assert_unreadable(path, "it became shorter while it was read")


def test_replaced_while_it_is_read(path, model, monkeypatch):
    """The file that was opened is read to its end, though another has its name by then."""
    model.save(path)
    other, _ = build(SPEC, "cross_entropy", dtype=model.dtype, seed=9)
    arrays = safetensors_file.Container.arrays

    def meanwhile(self):
        monkeypatch.undo()
        other.save(path)
        return arrays(self)

    monkeypatch.setattr(safetensors_file.Container, "arrays", meanwhile)
    assert_same(cnn.load(path), model)
    assert_same(cnn.load(path), other)


# writing -----------------------------------------------------------------------------------------


def listing(path):
    return sorted(os.listdir(path.parent))


@pytest.mark.parametrize("call", ["open", "fdopen", "fsync", "replace", "fchmod"])
def test_a_failed_write_leaves_the_old_file(path, model, monkeypatch, call):
    """Whatever fails: the old file is whole, nothing is left beside it, and the error is the system's."""
    model.save(path)
    old, state = path.read_bytes(), model.state_dict()
    model.parameters = model.parameters + 1

    def failing(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic_write.os, call, failing)
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
        patch.setattr(atomic_write.os, "fsync", interrupted)
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


def test_the_order_of_a_write(path, model, monkeypatch):
    """The content is on the disk before the file has its name, and the name before save returns."""
    calls = []

    def recorded(name):
        call = getattr(os, name)

        def record(*arguments, **keywords):
            where = arguments[0]
            folder = isinstance(where, int) and stat.S_ISDIR(os.fstat(where).st_mode)
            calls.append((name, folder))
            if name == "fsync" and not folder:
                assert os.fstat(where).st_size > 2000
            return call(*arguments, **keywords)

        return record

    for name in ("fsync", "replace"):
        monkeypatch.setattr(atomic_write.os, name, recorded(name))
    model.save(path)
    assert calls == [("fsync", False), ("replace", False), ("fsync", True)]


def test_a_folder_that_cannot_be_flushed(path, model, monkeypatch):
    """Some network file systems say so with EINVAL: all that can be done has been done. Other errors are told."""
    fsync = os.fsync

    def failing(number):
        def call(handle):
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(handle)

        return call

    monkeypatch.setattr(atomic_write.os, "fsync", failing(errno.EINVAL))
    model.save(path)
    monkeypatch.setattr(atomic_write.os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=f"Input/output error: '{path}'"):
        model.save(path)
    assert_same(cnn.load(path), model)


def test_symbolic_links(path, model):
    """The link stays, its target is replaced, or made; in the target's folder, for a rename cannot leave it."""
    folder = path.parent / "elsewhere"
    folder.mkdir()
    path.symlink_to("elsewhere/file")
    for _ in range(2):  # made, replaced
        model.save(path)
        assert path.readlink() == Path("elsewhere/file")
        assert os.listdir(folder) == ["file"]
        assert_same(cnn.load(folder / "file"), model)
    loop = path.parent / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match=r"symbolic links: '.*/loop'"):
        model.save(loop)
    assert loop.is_symlink()


def test_hard_links(path, model):
    model.save(path)
    old = path.read_bytes()
    os.link(path, path.parent / "other")
    model.parameters = model.parameters + 1
    model.save(path)
    assert (path.parent / "other").read_bytes() == old
    assert_same(cnn.load(path), model)


def test_what_is_no_file_is_not_replaced(path, model):
    os.mkfifo(path)
    with pytest.raises(OSError, match=f"is no regular file: '{path}'"):
        model.save(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert listing(path) == ["model.safetensors"]


def test_a_read_only_file_is_not_replaced(path, model, monkeypatch):
    model.save(path)
    old = path.read_bytes()
    # Whoever runs the tests may be root, who may write to everything.
    monkeypatch.setattr(atomic_write.os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match=f"is read-only: '{path}'"):
        model.save(path)
    assert path.read_bytes() == old
    assert listing(path) == ["model.safetensors"]


@pytest.mark.parametrize("owner", [None, PermissionError], ids=["may give files away", "may not"])
def test_owner(path, model, monkeypatch, owner):
    model.save(path)
    given = []

    def fchown(handle, user, group):
        given.append((user, group))
        if owner:
            raise owner

    monkeypatch.setattr(atomic_write.os, "fchown", fchown)
    model.save(path)
    assert given == [(path.stat().st_uid, path.stat().st_gid)]
    assert_same(cnn.load(path), model)


def test_stale_temporary_files_are_removed(path, model):
    """A day after the last write to them, of this version or an earlier one; nothing that only looks similar is."""
    random = "0123456789abcdef"
    stale = [f".cnn-{2 * random}.tmp", f".cnn-12345-{random}.tmp"]
    recent = f".cnn-{2 * random[::-1]}.tmp"
    others = [f".cnn-{random}.tmp.txt", f"cnn-{random}.tmp", f".cnn-{'g' * 16}.tmp", ".cnn-.tmp"]
    now = time.time()
    for name in (*stale, recent, *others):
        (path.parent / name).write_bytes(b"x")
        os.utime(path.parent / name, (0, now - atomic_write.STALE + (60 if name == recent else -60)))
    (path.parent / ".cnn-aa.tmp").symlink_to("nowhere")
    (path.parent / ".cnn-bb.tmp").mkdir()
    os.utime(path.parent / ".cnn-bb.tmp", (0, 0))
    model.save(path)
    assert listing(path) == sorted([recent, *others, ".cnn-aa.tmp", ".cnn-bb.tmp", "model.safetensors"])


def test_a_writer_is_left_alone(path, model, monkeypatch):
    """Another save into the same folder, while this one writes, does not remove its file."""
    fsync, seen = os.fsync, []

    def meanwhile(handle):
        monkeypatch.undo()
        model.save(path.parent / "other")
        seen.extend(listing(path))
        fsync(handle)

    monkeypatch.setattr(atomic_write.os, "fsync", meanwhile)
    model.save(path)
    assert [name for name in seen if atomic_write.TEMPORARY.fullmatch(name)]
    assert listing(path) == ["model.safetensors", "other"]


def test_saves_at_the_same_time(path, dtype):
    """From several threads: each is whole, and one of them is the last."""
    models = [build(SPEC, dtype=dtype, seed=seed)[0] for seed in range(4)]

    def save(model):
        for _ in range(5):
            model.save(path)
            cnn.load(path)

    run_together(*(lambda model=model: save(model) for model in models))
    assert cnn.load(path).parameters.tobytes() in {model.parameters.tobytes() for model in models}
    assert listing(path) == ["model.safetensors"]


def test_nothing_is_left_open(path, model):
    open_files = len(os.listdir("/dev/fd"))
    for _ in range(3):
        model.save(path)
        cnn.load(path)
        with pytest.raises(OSError, match="directory"):
            model.save(path.parent)
        path.write_bytes(b"damaged")
        assert_unreadable(path)
    assert len(os.listdir("/dev/fd")) == open_files


def test_a_header_that_could_not_be_read_again_is_not_written(path, monkeypatch):
    model = cnn.Sequential([cnn.Linear(1, 1) for _ in range(60)])
    monkeypatch.setattr(safetensors_file, "MOST_HEADER", 10_000)
    with pytest.raises(ValueError, match=r"a header of \d+ bytes is longer than the 10000 that can be read again"):
        model.save(path)
    assert listing(path) == []


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
