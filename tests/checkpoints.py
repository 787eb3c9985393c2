"""What the tests of checkpoints share: a network, and what is asserted of files."""

import re

import pytest
from networks import build

import cnn

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
