"""load refuses what is damaged, forged, no file, or changed while it is read."""

import hashlib
import json
import os
import re
import socket
import struct
import tracemalloc

import numpy as np
import pytest
from checkpoints import CONFIG, SPEC, assert_same, assert_unreadable, literal, network
from networks import build
from safetensors.numpy import load_file, save_file

import cnn
from cnn.files import safetensors_file


@pytest.fixture
def model(dtype):
    return network(dtype)


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
    """As safetensors_file.py says: the header in one spelling without the digest, then the numbers."""
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
        (literal(json.dumps(CONFIG), [1, 2], version="3"), "version is 3, but this release reads up to 2"),
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
    "too short for a length": (b"\x08\0\0", "truncated: expected at least 8 bytes, got 3"),
    "header beyond the file": (raw(header(), bytes(8), 1 << 20), "truncated, or not a safetensors file"),
    "header of 2**64 - 1 bytes": (raw(header(), bytes(8), 2**64 - 1), "header of 18446744073709551615 bytes in "),
    "header of 3 MB": (raw(b"{" + b" " * 3_000_000), "at most 2097152 bytes, got 3000001"),
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
    "overlap": (raw(two((0, 4), (0, 4)), bytes(4)), "0.bias: overlaps with the tensor before it"),
    "out of order": (raw(two((4, 12), (0, 4)), bytes(8)), "0.weight: 8 bytes do not hold F32"),
    "file too long": (raw(header(), bytes(9)), "by its header, got"),
    "file too short": (raw(header(), bytes(7)), "by its header, got"),
    "no tensors": (raw({"__metadata__": METADATA}), "need 2 to 3 numbers, but the file has 0"),
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
    "width no integer": (linear(2.0, 1), "in_features: expected an int, got 2.0"),
    "width no number": (linear([2], 1), r"in_features: expected an int, got \[2\]"),
    "width true": (linear(2, True), "out_features: expected an int, got True"),
    "width of 2**40": (linear(2**40, 1), "need 1099511627776 to 1099511627777 numbers, but the file has 2"),
    "width of 1,000 digits": (linear(10**1000, 1), "need 1000000.* numbers"),
    "width of 5,000 digits": (linear(1, 2).replace(b"2,", b"2" * 5000 + b","), "."),
    "too large together": (linear(2, 2), "need 4 to 6 numbers, but the file has 2"),
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
        assert_unreadable(path, f"(missing {name}|numbers, but)")
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
        (raw(header(shape=[5 << 28], data_offsets=[0, 5 << 30])), 5 << 30, "the file has 1342177280"),
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
        assert_unreadable(path, "does not match its digest")
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
    assert_unreadable(path, "it was changed while it was being read")


def test_shorter_while_it_is_read(path, model, monkeypatch):
    model.save(path)
    arrays = safetensors_file.Container.arrays

    def meanwhile(self):
        os.truncate(path, 500)
        return arrays(self)

    monkeypatch.setattr(safetensors_file.Container, "arrays", meanwhile)
    assert_unreadable(path, "it was truncated while it was being read")


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
