"""What the tests of checkpoints share: networks, files byte by byte, runs that are resumed, and what is asserted."""

import json
import re
import struct

import numpy as np
import pytest
from networks import build

import cnn
from cnn.files import checkpoint

SPEC = [
    (300, 1, True),  # kept transposed in memory
    ("leaky_relu", 0.3),
    (1, 17, False),
    ("elu", 0.5),
    ("gelu_tanh", None),
    (17, 5, True),
]


def network(dtype):
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


def assert_unreadable(path, reason=".*"):
    """An error that names the file."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{reason}"):
        cnn.load(path)


# files byte by byte ---------------------------------------------------------------------------------------------------

CONFIG = {
    "layers": [{"name": "Linear", "in_features": 2, "out_features": 1, "bias": False}, {"name": "Tanh"}],
    "loss": None,
    "optimizer": None,
    "dtype": "float32",
    "seed": None,
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


# runs that are broken off and resumed ---------------------------------------------------------------------------------


def plain(optimizer, loss=None, *, dtype="float32", seed=3):
    layers = [cnn.Linear(5, 17), cnn.Tanh(), cnn.Linear(17, 3), cnn.CrossEntropyLoss() if loss is None else loss]
    return cnn.Sequential(layers, optimizer, dtype=dtype, seed=seed)


def every_layer(optimizer, *, dtype="float32", seed=3):
    """Random numbers, running statistics, branches and a nested model."""
    inner = cnn.Sequential([cnn.Linear(12, 12), cnn.BatchNorm1d(12), cnn.ReLU(), cnn.Dropout(0.3)])
    layers = [
        *(cnn.Dropout(0.1), cnn.Linear(5, 12), cnn.LayerNorm(12), cnn.ReLU(), cnn.Add(inner, cnn.Identity())),
        *(cnn.Concat(cnn.Linear(12, 4), cnn.Linear(12, 4, bias=False)), cnn.BatchNorm1d(8), cnn.Linear(8, 3)),
        cnn.CrossEntropyLoss(),
    ]
    return cnn.Sequential(layers, optimizer, dtype=dtype, seed=seed)


def fit(model, epochs, initial_epoch=0, **arguments):
    """Train on numbers that each process makes anew; the last batch of an epoch is smaller."""
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((70, 5)), rng.integers(0, 3, 70)
    y = labels if isinstance(model.loss, cnn.CrossEntropyLoss) else np.eye(3)[labels]
    arguments = {"batch_size": 16, "validation_data": (x[:20], y[:20])} | arguments
    return model.fit(x, y, epochs=epochs, initial_epoch=initial_epoch, progress=False, **arguments)


def same(model, other):
    """All that a file with the training state holds, to the bit."""
    return checkpoint.to_bytes(model) == checkpoint.to_bytes(other)
