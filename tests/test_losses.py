"""The losses used alone: value and gradient against the reference, extreme logits, errors."""

import numpy as np
import pytest
import reference
from arrays import LAYOUTS, covering, laid_out, row_id

import cnn

CASES = covering(batch=(1, 2, 3, 17, 300), n=(1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 1025), layout=LAYOUTS)
LOSSES = {"mse": cnn.MSELoss, "cross_entropy": cnn.CrossEntropyLoss}


def data(name, dtype, batch, n):
    rng = np.random.default_rng([batch, n])
    outputs = (3 * rng.standard_normal((batch, n))).astype(dtype)
    if name == "mse":
        return outputs, rng.standard_normal((batch, n)).astype(dtype)
    return outputs, rng.integers(0, n, batch)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("case", CASES, ids=row_id)
def test_against_the_reference(isa, dtype, name, case):
    """Sums of a row are taken in the dtype, those over rows in double: n/8 roundoffs, 16 at least."""
    batch, n, layout = case["batch"], case["n"], case["layout"]
    outputs, targets = data(name, dtype, batch, n)
    loss = LOSSES[name]()
    given = outputs if layout == "byte-swapped" else laid_out(outputs, layout)
    value = loss(given, laid_out(targets, layout))
    targets = targets if name == "cross_entropy" else targets.astype(np.float64)
    expected, gradient = reference.LOSSES[name](outputs.astype(np.float64), targets)
    eps = float(np.finfo(dtype).eps)
    assert isinstance(value, float)
    assert value == pytest.approx(expected, rel=max(16, n / 8) * eps, abs=16 * eps)
    actual = loss.backward()
    assert actual.shape == outputs.shape
    assert actual.dtype == dtype
    # cross-entropy: softmax is off by the roundoff of its exponent, z - max, up to 20 here
    scale = 1 / batch if name == "cross_entropy" else np.abs(gradient)
    assert (np.abs(actual - gradient) <= 32 * eps * scale).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_in_a_model(isa, dtype, name):
    """A loss in a model is the loss alone: the value, and the gradient that backward starts from."""
    outputs, targets = data(name, dtype, 9, 6)
    model = cnn.Sequential([cnn.Linear(6, 6, bias=False), LOSSES[name]()], dtype=dtype)
    model.layers[0].weight = np.eye(6)
    alone = LOSSES[name]()
    assert model(outputs, targets) == alone(outputs, targets)
    np.testing.assert_array_equal(model.backward(), alone.backward())
    assert model.evaluate(outputs, targets)["loss"] == pytest.approx(
        alone(outputs, targets), rel=4 * float(np.finfo(dtype).eps)
    )
    with pytest.raises(RuntimeError, match=r"^backward needs a forward pass"):
        model.loss.backward()


def test_mean_squared_error_is_the_mean_over_all_elements(isa, dtype):
    outputs = np.array([[1, 2], [3, 4], [5, 6]], dtype)
    loss = cnn.MSELoss()
    assert loss(outputs, np.zeros((3, 2))) == np.float64(91) / 6
    np.testing.assert_allclose(loss.backward(), outputs / 3, rtol=1e-6)
    assert loss(outputs, outputs) == 0
    assert not loss.backward().any()


def test_cross_entropy_of_equal_logits_is_log_n(isa, dtype):
    loss = cnn.CrossEntropyLoss()
    for n in (1, 2, 10, 33):
        for level in (-1e4, 0, 1e4):
            assert loss(np.full((3, n), level, dtype), [0, n - 1, n // 2]) == pytest.approx(np.log(n), rel=1e-6)
            np.testing.assert_allclose(loss.backward().sum(axis=1), 0, atol=1e-6)


def test_cross_entropy_is_shift_invariant(isa, dtype):
    """Adding a power of two to small integers is exact: the same to the last bit."""
    logits = np.random.default_rng(0).integers(-8, 8, (20, 37)).astype(dtype)
    labels = np.arange(20)
    loss = cnn.CrossEntropyLoss()
    value = loss(logits, labels)
    gradient = loss.backward()
    for shift in (2.0**10, -(2.0**15)):
        assert loss(logits + dtype.type(shift), labels) == pytest.approx(value, rel=1e-12)
        np.testing.assert_array_equal(loss.backward(), gradient)


def test_extreme_logits(isa, dtype):
    """No overflow, no log of zero: the loss is the difference of the logits then."""
    largest = float(np.finfo(dtype).max)
    loss = cnn.CrossEntropyLoss()
    for low, high in ((0, 1e4), (-1e4, 1e4), (-largest / 4, largest / 4), (-(2.0**100), 0)):
        logits = np.array([[low, high, low]], dtype)
        assert loss(logits, [1]) == 0
        np.testing.assert_array_equal(loss.backward(), [[0, 0, 0]])
        assert loss(logits, [0]) == pytest.approx(float(logits[0, 1]) - float(logits[0, 0]), rel=1e-7)
        np.testing.assert_array_equal(loss.backward(), [[-1, 1, 0]])
    logits = np.array([[-np.inf, 0, 0]], dtype)  # a class that has been ruled out
    assert loss(logits, [1]) == pytest.approx(np.log(2))
    np.testing.assert_allclose(loss.backward(), [[0, -0.5, 0.5]], atol=1e-7)
    assert loss(logits, [0]) == np.inf


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("n", [1, 5, 16, 40])
def test_nan_comes_through(isa, dtype, name, n):
    """One NaN anywhere makes the loss NaN, and only its row's gradient."""
    outputs, targets = data(name, dtype, 4, n)
    loss = LOSSES[name]()
    loss(outputs, targets)
    clean = loss.backward()
    for column in range(n):
        bad = outputs.copy()
        bad[2, column] = np.nan
        assert np.isnan(loss(bad, targets))
        gradient = loss.backward()
        assert np.isnan(gradient[2]).any()
        np.testing.assert_array_equal(gradient[[0, 1, 3]], clean[[0, 1, 3]])


@pytest.mark.parametrize("name", list(LOSSES))
def test_backward(isa, name):
    """A copy; RuntimeError without forward; the gradient of the last forward that succeeded."""
    loss = LOSSES[name]()
    with pytest.raises(RuntimeError, match=r"^backward needs a forward pass"):
        loss.backward()
    outputs, targets = data(name, np.float64, 4, 3)
    loss(outputs, targets)
    gradient = loss.backward()
    expected = gradient.copy()
    gradient[...] = 0
    with pytest.raises(ValueError, match="targets"):
        loss(outputs, targets[:2])
    np.testing.assert_array_equal(loss.backward(), expected)


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 3)), ValueError, r"^targets: expected shape \(batch, 2\), got \(3, 3\)"),
        (np.ones((3, 2)), np.ones(3), ValueError, r"^targets: expected shape \(batch, 2\), got \(3,\)"),
        (np.ones((3, 2)), np.ones((2, 2)), ValueError, "^targets: expected 3 rows, as many as outputs has, got 2"),
        (np.ones(3), np.ones(3), ValueError, r"^outputs: expected shape 2 dimensions, got \(3,\)"),
        (np.ones((0, 2)), np.ones((0, 2)), ValueError, r"^outputs: expected at least one row .*\(0, 2\)"),
        (np.ones((2, 0)), np.ones((2, 0)), ValueError, r"^outputs: expected at least one row .*\(2, 0\)"),
        (np.ones((3, 2), complex), np.ones((3, 2)), TypeError, "^outputs: expected real numbers"),
        (np.ones((3, 2)), [["a", "b"]] * 3, TypeError, "^targets: expected real numbers"),
        (np.ones((3, 2)), np.ones((3, 2), object), TypeError, "^targets: expected real numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (str(value) if isinstance(value, str) else None),
)
def test_mean_squared_error_refuses(isa, outputs, targets, error, message):
    with pytest.raises(error, match=message):
        cnn.MSELoss()(outputs, targets)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, 1, 3], ValueError, r"^targets\[2\] is 3, expected a class index from 0 to 2"),
        ([0, -1, 0], ValueError, r"^targets\[1\] is -1, expected a class index from 0 to 2"),
        (np.array([2**64 - 1, 0, 0], np.uint64), ValueError, r"^targets\[0\] is 18446744073709551615, expected"),
        (np.array([0, 0, 255], np.uint8), ValueError, r"^targets\[2\] is 255, expected a class index from"),
        ([0, 1], ValueError, "^targets: expected 3 rows, as many as outputs has, got 2"),
        ([[0], [1], [2]], ValueError, r"^targets: .*class indices of shape \(batch,\), got \(3, 1\)"),
        (1, ValueError, r"^targets: .*class indices of shape \(batch,\), got \(\)"),
        ([0.0, 1.0, 2.0], TypeError, "^targets: .*integer class indices, got dtype float64"),
        ([True, False, True], TypeError, "^targets: .*integer class indices, got dtype bool"),
        (["0", "1", "2"], TypeError, "^targets: .*integer class indices, got dtype <U1"),
        (np.zeros(3, object), TypeError, "^targets: .*integer class indices, got dtype object"),
        (None, TypeError, "^targets: .*integer class indices, got dtype object"),
    ],
    ids=str,
)
def test_cross_entropy_refuses(isa, targets, error, message):
    with pytest.raises(error, match=message):
        cnn.CrossEntropyLoss()(np.ones((3, 3)), targets)


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u4", "i4", "i8", "u8", ">i4", ">i8"])
def test_labels_of_every_integer_type(isa, kind):
    outputs, labels = data("cross_entropy", np.float64, 9, 5)
    expected = cnn.CrossEntropyLoss()(outputs, labels)
    assert cnn.CrossEntropyLoss()(outputs, labels.astype(kind)) == expected
    assert cnn.CrossEntropyLoss()(outputs, labels.tolist()) == expected
