"""Checkpoints read by PyTorch as they are: norms, nested models, files with a training state."""

import numpy as np
import pytest
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
