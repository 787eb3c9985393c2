"""The files of tests/fixtures/models, which have the forms of others' files: equal to ONNX Runtime, or refused."""

from pathlib import Path

import numpy as np
import pytest

import cnn

FOLDER = Path(__file__).parents[1] / "fixtures" / "models"
VALUES = np.load(FOLDER / "values.npz")
OUTPUTS = {"two_heads": ("mean", "std")}
REFUSED = {
    "argmax": r"node 'i' \(ArgMax\): no layer of this library computes it; pass outputs='h'",
    "cast_to_integers": r"node 'whole' \(Cast\): expected a cast to float32 or float64; pass outputs='h'",
    "convolution": r"node 'conv' \(Conv\): no layer of this library computes it; it reads 'x', the input",
    "dropout_training": r"node 'drop' \(Dropout\): expected training_mode false; .* model\.eval\(\); pass outputs='h'",
    "exp_last": r"node 'y' \(Exp\): no layer of this library computes it; pass outputs='h'",
    "l2_norm": r"node 'unit' \(LpNormalization\): no layer of this library computes it; pass outputs='h'",
    "product_of_two": r"node 'gram' \(MatMul\): expected x, then constant weights, got 'h' and 't'; pass outputs='h'",
    "sin": r"node 'wave' \(Sin\): no layer of this library computes it; pass outputs='h'",
    "skl2onnx_regressor_of_two": r"node 'Reshape' \(Reshape\): expected rows of 2 columns, got 1; pass outputs='add_",
    "softmax_of_rows": r"node 'soft' \(Softmax\): expected the axis of the columns, -1 or 1, got 0; pass outputs='h'",
    "thresholded_relu": r"node 'y' \(ThresholdedRelu\): no layer of this library computes it; pass outputs='h'",
    "transposed": r"node 'turn' \(Transpose\): no layer of this library computes it; it reads 'x', the input",
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.onnx")), ids=lambda path: path.stem)
def test_file(path):
    name = path.stem
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            cnn.from_onnx(path)
        return
    x, y = VALUES[f"{name} x"], VALUES[f"{name} y"]
    outputs = OUTPUTS.get(name, ("mean", "std") if name.endswith("_policy") else None)
    model = cnn.from_onnx(path, outputs=outputs)
    assert model.dtype == x.dtype
    tolerance = 1e-5 if x.dtype == np.float32 else 1e-12
    rows = x.reshape(len(y) if x.ndim > 1 else 1, -1)
    predicted = model.predict(rows).reshape(y.shape)
    np.testing.assert_allclose(predicted, y, rtol=tolerance, atol=tolerance * max(1, abs(y).max()))


def test_what_is_refused_is_there():
    assert {path.stem for path in FOLDER.glob("*.onnx")} >= {*REFUSED, *OUTPUTS}
