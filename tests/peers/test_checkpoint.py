"""Checkpoints read by PyTorch as they are: norms, nested models, files with a training state."""

import json

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

import cnn
from cnn.files import checkpoint


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_and_nested_models(isa, dtype, tmp_path):
    model = cnn.Sequential(
        [
            *(cnn.Linear(5, 6), cnn.BatchNorm1d(6), cnn.ReLU(), cnn.Dropout(0.2), cnn.LayerNorm(6)),
            *(cnn.Sequential([cnn.Linear(6, 6, bias=False), cnn.Tanh()]), cnn.Linear(6, 3), cnn.CrossEntropyLoss()),
        ],
        optimizer=cnn.Adam(ema_decay=0.9),
        dtype=dtype,
    )
    theirs = nn.Sequential(
        *(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.LayerNorm(6)),
        *(nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh()), nn.Linear(6, 3)),
    )
    theirs.to(getattr(torch, dtype)).eval()
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)).astype(dtype), rng.integers(0, 3, 40)
    model.fit(x, y, epochs=3, progress=False)
    path = tmp_path / "model.safetensors"

    model.save(path)
    theirs.load_state_dict(safetensors.torch.load_file(path))
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    with torch.no_grad():
        np.testing.assert_allclose(
            model.predict(x), theirs(torch.from_numpy(x)).numpy(), rtol=tolerance, atol=tolerance
        )

    model.save(path, training_state=True)
    result = theirs.load_state_dict(safetensors.torch.load_file(path), strict=False)
    assert result.missing_keys == []
    assert result.unexpected_keys
    assert all(name.startswith(checkpoint.TRAINING) for name in result.unexpected_keys)


def test_our_own_file_as_arrays(tmp_path):
    """Its weights are (out, in): square ones are refused, and others say what they are."""
    path = tmp_path / "model.safetensors"
    for width, message in (3, "is square and comes from bytes"), (2, r"PyTorch and of files \(out, in\)"):
        model = cnn.Sequential([cnn.Linear(3, width)])
        model.save(path)
        with pytest.raises(ValueError, match=message):
            model.load_weights(safetensors.numpy.load_file(path))


def test_a_header_in_another_order(tmp_path):
    model = cnn.Sequential([cnn.Linear(3, 2), cnn.Tanh(), cnn.Linear(2, 2)])
    path = tmp_path / "model.safetensors"
    model.save(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(dict(reversed(json.loads(content[8 : 8 + length]).items()))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert safetensors.numpy.load_file(path).keys() == model.state_dict().keys()
    np.testing.assert_array_equal(cnn.load(path).parameters, model.parameters)
