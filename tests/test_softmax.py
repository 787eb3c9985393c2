"""Softmax and LogSoftmax: values, gradients, extreme and bad inputs, in a model."""

import numpy as np
import pytest
import reference
from arrays import LAYOUTS, laid_out, unit_roundoff
from grid import CASES

import cnn

KINDS = {
    "softmax": (cnn.Softmax, reference.softmax, reference.softmax_backward),
    "log_softmax": (cnn.LogSoftmax, reference.log_softmax, reference.log_softmax_backward),
}
WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 100)
BATCHES = (1, 2, 5, 64)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def data(batch, n, dtype, scale=3.0):
    rng = np.random.default_rng([batch, n])
    return (scale * rng.standard_normal((batch, n))).astype(dtype), rng.standard_normal((batch, n)).astype(dtype)


def test_values_and_gradients(isa, kind, dtype):
    make, forward, backward = KINDS[kind]
    u = unit_roundoff(dtype)
    for n in WIDTHS:
        for batch in BATCHES:
            layer = make()
            x, grad = data(batch, n, dtype)
            y = layer.forward(x)
            assert y.dtype == dtype
            expected = forward(x.astype(float))
            # the exponential 3 ULP, the sum of n, the division; log_softmax: three numbers that are added
            atol = 8 * u * (1 + abs(expected).max())
            np.testing.assert_allclose(y, expected, rtol=(8 + n) * u, atol=atol, err_msg=f"{batch} x {n}")
            dx = layer.backward(grad)
            expected = backward(grad.astype(float), x.astype(float))
            # y and the sum over n products are off, too
            atol = (20 + n) * u * (1 + abs(grad).sum(axis=1, keepdims=True).max())
            np.testing.assert_allclose(dx, expected, rtol=0, atol=atol, err_msg=f"{batch} x {n}")


def test_finite_differences(isa, kind):
    """Of order 4, in float64, of a weighted sum of the outputs."""
    make = KINDS[kind][0]
    for n in (1, 3, 9, 17):
        x, grad = data(2, n, float, scale=1.0)
        layer = make()
        layer.forward(x)
        dx = layer.backward(grad)
        h = 1e-3
        for i, j in np.ndindex(x.shape):

            def f(step, i=i, j=j, x=x, grad=grad):
                moved = x.copy()
                moved[i, j] += step
                return (make().forward(moved) * grad).sum()

            difference = (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)
            assert difference == pytest.approx(dx[i, j], rel=5e-6, abs=1e-11)


def test_rows_sum_to_one_and_gradients_to_zero(isa, dtype):
    for n in WIDTHS:
        layer = cnn.Softmax()
        x, grad = data(9, n, dtype, scale=10.0)
        np.testing.assert_allclose(layer.forward(x).sum(axis=1), 1, rtol=(n + 8) * unit_roundoff(dtype))
        atol = (20 + n) * unit_roundoff(dtype) * abs(grad).sum(axis=1).max()
        np.testing.assert_allclose(layer.backward(grad).sum(axis=1), 0, atol=atol)


def test_extreme_inputs(isa, dtype):
    """Neither overflow nor underflow, up to the largest finite numbers."""
    big = np.finfo(dtype).max / 2
    y = cnn.Softmax().forward(np.array([[big, 0, -big], [-big, -big, -big], [1000, 999, 0], [0, 0, -np.inf]], dtype))
    e = np.exp(-1.0)
    expected = [[1, 0, 0], [1 / 3] * 3, [1 / (1 + e), e / (1 + e), 0], [0.5, 0.5, 0]]
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=0)
    y = cnn.LogSoftmax().forward(np.array([[1000, 999, 0], [-1000, -1000, -2000], [0, 0, -np.inf]], dtype))
    low, half = np.log(1 + e), np.log(2)
    expected = [[-low, -1 - low, -1000 - low], [-half, -half, -1000 - half], [-half, -half, -np.inf]]
    np.testing.assert_allclose(y, expected, rtol=2e-4 if dtype == np.float32 else 1e-12)


def test_shift_changes_nothing(isa, dtype):
    """x + c, c so that the sum is exact."""
    x = np.random.default_rng(0).integers(-8, 8, (7, 19)).astype(dtype)
    for make, *_ in KINDS.values():
        np.testing.assert_array_equal(make().forward(x + 64), make().forward(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("n", [3, 16, 21])
def test_nan_stays_in_its_row(isa, kind, dtype, n, bad):
    """Not even in the padding, which the next layer multiplies."""
    make = KINDS[kind][0]
    x, _ = data(5, n, dtype)
    model = cnn.Sequential([make(), cnn.Linear(n, 2)], dtype=dtype.name, seed=0)
    expected = model.predict(x)
    x[2, n - 1] = bad
    y, outputs = make().forward(x), model.predict(x)
    assert np.isnan(y[2]).all()
    assert np.isnan(outputs[2]).all()
    assert np.isfinite(np.delete(y, 2, axis=0)).all()
    np.testing.assert_array_equal(np.delete(outputs, 2, axis=0), np.delete(expected, 2, axis=0))


def test_layouts(isa, kind, dtype):
    """Strided, read-only, unaligned inputs and gradients; they are not written."""
    make = KINDS[kind][0]
    x, grad = data(6, 19, dtype)
    layer = make()
    y, dx = layer.forward(x), layer.backward(grad)
    for layout in LAYOUTS:
        if layout == "byte-swapped":  # computed in float64, as all that is not float32
            continue
        layer = make()
        np.testing.assert_array_equal(layer.forward(laid_out(x, layout)), y)
        np.testing.assert_array_equal(layer.backward(laid_out(grad, layout)), dx)


def test_in_a_model(isa, kind, dtype):
    """Outputs, and gradients of the weights before it, against the reference; behind another layer and first."""
    make, forward, backward = KINDS[kind]
    rtol = 1e-4 if dtype == np.float32 else 1e-11
    for n in (1, 3, 15, 16, 17, 33):
        rng = np.random.default_rng(n)
        x, t = rng.standard_normal((11, 5)).astype(dtype), rng.random((11, n)).astype(dtype)
        model = cnn.Sequential([cnn.Linear(5, n), make(), cnn.MSELoss()], dtype=dtype.name, seed=n)
        z = x.astype(float) @ model[0].weight.astype(float) + model[0].bias
        loss, d_out = CASES["mse"].truth(1)(forward(z), t)
        dz = backward(d_out, z)
        assert model(x, t) == pytest.approx(loss, rel=rtol)
        np.testing.assert_allclose(model.backward(), dz @ model[0].weight.T, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(model[0].grad_weight, x.T @ dz, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(model[0].grad_bias, dz.sum(axis=0), rtol=rtol, atol=rtol)


def test_a_row_is_the_same_alone(isa, kind):
    model = cnn.Sequential([cnn.Linear(4, 19), KINDS[kind][0]()], seed=0)
    x = np.random.default_rng(0).standard_normal((700, 4))
    y = model.predict(x)
    for i in (0, 1, 63, 699):
        np.testing.assert_array_equal(model.predict(x[i : i + 1]), y[i : i + 1])
    assert model.predict(x[:0]).shape == (0, 19)


def test_configuration():
    model = cnn.Sequential([cnn.Linear(4, 3), cnn.LogSoftmax(), cnn.Softmax()])
    assert [repr(layer) for layer in model.layers[1:]] == ["LogSoftmax()", "Softmax()"]
    again = cnn.Sequential.from_config(model.get_config())
    assert [type(layer) for layer in again.layers] == [cnn.Linear, cnn.LogSoftmax, cnn.Softmax]
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


def test_refuses(kind):
    layer = KINDS[kind][0]()
    with pytest.raises(RuntimeError, match=r"^backward needs a forward pass"):
        layer.backward(np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"^x: expected shape \(batch, in_features\), got \(\)"):
        layer.forward(3.0)
    with pytest.raises(TypeError, match=r"^x: expected real numbers"):
        layer.forward(np.ones((2, 3), complex))
    layer.forward(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"^grad_output: expected"):
        layer.backward(np.ones((2, 4)))
