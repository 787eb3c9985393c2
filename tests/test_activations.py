"""Activations and their derivatives: cnn.functional.activation_forward and activation_backward.

Accuracy is counted in units in the last place (ULP) of the exact result. float32 is judged by
float64, float64 by np.longdouble. Where that is no wider than float64 (not on x86-64 Linux), the
judge errs too, by at most 4 ULP in these formulas, and is given as much.
"""

import mpmath
import numpy as np
import pytest
from arrays import LAYOUTS, Guarded, laid_out, looped
from grid import ACTIVATIONS, WITH_PARAMETERS

from cnn import functional

JUDGE = {np.dtype("float32"): np.float64, np.dtype("float64"): np.longdouble}


def points(dtype, low, high, n=20_000):
    """n numbers of [low, high]: evenly spread, near 0, and of every magnitude down to denormals."""
    rng = np.random.default_rng(12)
    small = np.exp2(rng.uniform(np.finfo(dtype).minexp - 10, 1, n // 4)) * rng.choice([-1, 1], n // 4)
    z = [rng.uniform(low, high, n // 2), rng.uniform(-3, 3, n // 4), small]
    return np.concatenate(z).astype(dtype)


def ulps(actual, exact):
    """|actual - exact| in units in the last place of exact; at denormals, in the least number."""
    unit = np.spacing(np.abs(exact.astype(actual.dtype)))
    return np.abs(actual - exact) / unit


def judge_ulps(dtype):
    return 4 if dtype == np.float64 and np.finfo(np.longdouble).nmant <= 52 else 0


def derivative(name, z, param=None):
    return functional.activation_backward(name, np.ones_like(z), z, param)


# accuracy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if entry.in_ulp])
def test_error_in_ulp(isa, dtype, name):
    """At most 4 ULP wherever the result changes, denormal results included."""
    z = points(dtype, -750, 40) if dtype == np.float64 else points(dtype, -108, 20)
    y = functional.activation_forward(name, z)
    exact = ACTIVATIONS[name].value(z.astype(JUDGE[dtype]))
    assert y.dtype == dtype
    assert ulps(y, exact).max() <= 4 + judge_ulps(dtype)


@looped("name, param", WITH_PARAMETERS)
def test_error_relative_to_the_argument(isa, dtype, name, param):
    """|error| <= 2 eps max(|z|, 1), for every activation; a parameter is rounded to the dtype."""
    z = points(dtype, -40, 40)
    y = functional.activation_forward(name, z, param)
    exact = ACTIVATIONS[name].value(z.astype(np.float64), None if param is None else dtype.type(param))
    # gelu is judged in float64, whose own error is as large as the bound for float64
    bound = (2 if dtype == np.float32 else 4) * np.finfo(dtype).eps
    assert (np.abs(y - exact) <= bound * np.maximum(np.abs(z), 1)).all()


def test_gelu_tail(isa, dtype):
    """z Phi(z) keeps its relative accuracy as long as it is a normal number: at most 12 ULP."""
    z = np.linspace(-12.8 if dtype == np.float32 else -37.4, -0.01, 1500).astype(dtype)
    y = functional.activation_forward("gelu", z)
    with mpmath.workprec(120):
        for argument, value in zip(z.tolist(), y.tolist(), strict=True):
            exact = argument * mpmath.ncdf(argument)
            assert abs(value - exact) <= 12 * float(np.spacing(dtype.type(abs(exact))))


@looped("name, param", WITH_PARAMETERS)
def test_derivative_error(isa, dtype, name, param):
    """|error| <= 4 eps: the derivatives lie between -0.5 and 1.8, or are param."""
    z = points(dtype, -30, 30)
    slope = derivative(name, z, param)
    exact = ACTIVATIONS[name].slope(z.astype(np.float64), None if param is None else dtype.type(param))
    assert slope.dtype == dtype
    scale = 1 if param is None else max(1, abs(param))
    assert np.abs(slope - exact).max() <= 4 * scale * np.finfo(dtype).eps


@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if entry.decay])
def test_derivative_far_out(isa, dtype, name):
    """From z, the derivatives that vanish do so with a relative error of at most 8 ULP."""
    z = points(dtype, -80, 80) if dtype == np.float32 else points(dtype, -700, 700)
    z /= dtype.type(ACTIVATIONS[name].decay)
    exact = ACTIVATIONS[name].slope(z.astype(JUDGE[dtype]))
    assert ulps(derivative(name, z), exact).max() <= 8 + judge_ulps(dtype)


@looped("name, param", WITH_PARAMETERS)
def test_finite_differences(isa, name, param):
    """f' against differences of f of order 4, in float64: error about h**4 + 1e-16 / h = 1e-12."""
    h = 1e-3
    z = np.linspace(-8, 8, 4001) + 0.3 * h
    z = z[np.minimum(np.abs(z), ACTIVATIONS[name].distance(z)) > 2 * h]  # not across a kink

    def f(x):
        return functional.activation_forward(name, x, param)

    difference = (f(z - 2 * h) - 8 * f(z - h) + 8 * f(z + h) - f(z + 2 * h)) / (12 * h)
    np.testing.assert_allclose(derivative(name, z, param), difference, rtol=5e-6, atol=1e-11)


@looped("name, param", WITH_PARAMETERS)
def test_backward_multiplies(isa, dtype, name, param):
    """activation_backward gives grad_output f'(z)."""
    rng = np.random.default_rng(5)
    z, grad = rng.normal(0, 3, (2, 37, 19)).astype(dtype)
    actual = functional.activation_backward(name, grad, z, param)
    np.testing.assert_allclose(actual, grad * derivative(name, z, param), rtol=4 * np.finfo(dtype).eps)


# special values ----------------------------------------------------------------------------------


@looped("name", ACTIVATIONS)
def test_limits(isa, dtype, name):
    """Far out, f and f' are those of the formula; at the largest numbers, limits or lines, without overflow or NaN."""
    entry = ACTIVATIONS[name]
    for size in (1e4, 1e30):
        z = np.array([-size, size], dtype)
        exact, slope = (f(z.astype(np.float64)) for f in (entry.value, entry.slope))
        np.testing.assert_allclose(functional.activation_forward(name, z), exact, rtol=2 * np.finfo(dtype).eps)
        np.testing.assert_allclose(derivative(name, z), slope, rtol=1e-6, atol=np.finfo(dtype).tiny)
    slopes = np.where(np.isinf(entry.limits), entry.slope(np.array([-1e4, 1e4])), 0)
    for size in (np.finfo(dtype).max, np.inf):
        z = np.array([-size, size], dtype)
        with np.errstate(over="ignore"):  # selu's
            lines = [x * slope if np.isinf(end) else end for x, slope, end in zip(z, slopes, entry.limits, strict=True)]
            lines = np.array(lines).astype(dtype)
        np.testing.assert_allclose(functional.activation_forward(name, z), lines, rtol=2 * np.finfo(dtype).eps)
        np.testing.assert_allclose(derivative(name, z), slopes, rtol=1e-6)


@looped("name", ACTIVATIONS)
def test_zero(isa, dtype, name):
    """f(0), the sign of zero, and f' at 0 and beside it: at a kink, that from the left."""
    z = np.array([0.0, -0.0], dtype)
    y = functional.activation_forward(name, z)
    entry = ACTIVATIONS[name]
    value = entry.value(np.float64(0))
    np.testing.assert_allclose(y, value, rtol=np.finfo(dtype).eps)
    at, left, right = entry.slope(np.array([0, -1e-300, 1e-300])).astype(dtype)
    if value == 0 and left > 0:  # odd near 0
        np.testing.assert_array_equal(np.signbit(y), [False, True])
    one_ulp = {"rtol": np.finfo(dtype).eps, "atol": 0}
    np.testing.assert_allclose(derivative(name, z), [at, at], **one_ulp)
    beside = np.nextafter(dtype.type(0), np.array([-1, 1], dtype))
    np.testing.assert_allclose(derivative(name, beside), [left, right], **one_ulp)


@looped("name", ACTIVATIONS)
def test_nan(isa, dtype, name):
    """NaN passes through f, whatever its sign and payload, and touches no other element."""
    n = 70
    z = np.linspace(-3, 3, n).astype(dtype)
    clean = functional.activation_forward(name, z)
    lines = not ACTIVATIONS[name].curvature(z).any()  # made of lines: the slope takes part in no computation
    quiet = np.array([np.nan, -np.nan], dtype)
    quiet = np.append(quiet, (quiet[:1].view(f"u{dtype.itemsize}") + 5).view(dtype))
    for i in range(n):
        dirty = z.copy()
        dirty[i] = quiet[i % 3]
        y = functional.activation_forward(name, dirty)
        slope = derivative(name, dirty)
        assert np.isnan(y[i])
        assert np.isnan(slope[i]) or lines
        np.testing.assert_array_equal(np.delete(y, i), np.delete(clean, i))
    grad = np.full(n, np.nan, dtype)
    expected_nan = ACTIVATIONS[name].slope(z) != 0  # relu's is 0 for z <= 0, as PyTorch's
    np.testing.assert_array_equal(np.isnan(functional.activation_backward(name, grad, z)), expected_nan)


def test_relu_stops_infinite_gradients(isa, dtype):
    z = np.array([-1, 0, 1], dtype)
    grad = np.full(3, np.inf, dtype)
    np.testing.assert_array_equal(functional.activation_backward("relu", grad, z), [0, 0, np.inf])


@looped("name", ACTIVATIONS)
def test_denormal_results(isa, dtype, name):
    """Far to the left, where f is denormal, the result is, and 0 only where f is."""
    z = np.array([-100 if dtype == np.float32 else -740], dtype)
    y = functional.activation_forward(name, z)
    exact = ACTIVATIONS[name].value(z.astype(np.longdouble))
    assert ulps(y, exact)[0] <= 1 + judge_ulps(dtype)
    assert (y[0] == 0) == (np.abs(exact[0]) < np.longdouble(np.finfo(dtype).smallest_subnormal) / 2)


@pytest.mark.parametrize("name", [name for name, entry in ACTIVATIONS.items() if np.isfinite(entry.limits).all()])
def test_bounded(isa, dtype, name):
    """No result is beyond the limits, by not even one ULP: 1 - y and 1 - y**2 must not be negative."""
    y = functional.activation_forward(name, points(dtype, -60, 60))
    low, high = ACTIVATIONS[name].limits
    assert y.max() <= high
    assert y.min() >= low


# arrays ------------------------------------------------------------------------------------------


@looped("name", ACTIVATIONS)
def test_every_size(isa, dtype, name):
    """Sizes around the vectors': each element as it is alone, and nothing written beside `out`."""
    rng = np.random.default_rng(1)
    z, grad = rng.normal(0, 2, (2, 67)).astype(dtype)
    y = [functional.activation_forward(name, z[i : i + 1])[0] for i in range(67)]
    dz = [functional.activation_backward(name, grad[i : i + 1], z[i : i + 1])[0] for i in range(67)]
    for n in range(68):
        forward, backward = Guarded((n,), dtype), Guarded((n,), dtype)
        functional.activation_forward(name, z[:n], out=forward.array)
        functional.activation_backward(name, grad[:n], z[:n], out=backward.array)
        np.testing.assert_array_equal(forward.array, y[:n])
        np.testing.assert_array_equal(backward.array, dz[:n])
        assert forward.untouched()
        assert backward.untouched()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "shape"), [("tanh", (9, 7)), ("relu", (5, 33)), ("gelu", (61,))])
def test_layouts(isa, dtype, name, shape, layout):
    """The same numbers, however z and grad_output lie in memory; they are not changed."""
    rng = np.random.default_rng(2)
    z, grad = rng.normal(0, 2, (2, *shape)).astype(dtype)
    z_apart, grad_apart = laid_out(z, layout), laid_out(grad, layout)
    y = functional.activation_forward(name, z_apart if layout != "byte-swapped" else z)
    dz = functional.activation_backward(name, grad_apart, z_apart if layout != "byte-swapped" else z)
    np.testing.assert_array_equal(y, functional.activation_forward(name, z))
    np.testing.assert_array_equal(dz, functional.activation_backward(name, grad, z))
    np.testing.assert_array_equal(z_apart, z)
    np.testing.assert_array_equal(grad_apart, grad)
    assert y.dtype == dz.dtype == dtype
    assert y.shape == dz.shape == shape


@looped("name", ACTIVATIONS)
def test_any_shape(isa, dtype, name):
    for shape in ((), (1,), (0,), (3, 0, 2), (2, 3, 4, 5)):
        z = np.full(shape, 0.5, dtype)
        y = functional.activation_forward(name, z)
        dz = functional.activation_backward(name, z, z)
        assert isinstance(y, np.ndarray)
        assert y.shape == dz.shape == shape
        expected = ACTIVATIONS[name].value(z.astype(np.float64))
        np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps)


def test_lists_and_integers(isa):
    """Anything but float32 is computed with in float64."""
    for z in ([-1, 2], np.array([-1, 2]), np.array([-1, 2], ">f8"), (-1.0, 2.0)):
        y = functional.activation_forward("leaky_relu", z)
        assert y.dtype == np.float64
        np.testing.assert_array_equal(y, [-0.01, 2])


@looped("name", ACTIVATIONS)
def test_out(isa, dtype, name):
    """`out` is where the result goes, also if it is the argument itself."""
    rng = np.random.default_rng(3)
    z, grad = rng.normal(0, 2, (2, 5, 21)).astype(dtype)
    y = functional.activation_forward(name, z)
    dz = functional.activation_backward(name, grad, z)
    assert not np.shares_memory(y, z)
    assert not np.shares_memory(dz, grad)
    out = np.full_like(z, np.nan)
    assert np.shares_memory(functional.activation_forward(name, z, out=out), out)
    np.testing.assert_array_equal(out, y)
    assert np.shares_memory(functional.activation_backward(name, grad, z, out=out), out)
    np.testing.assert_array_equal(out, dz)
    in_place, grad_in_place = z.copy(), grad.copy()
    functional.activation_forward(name, in_place, out=in_place)
    np.testing.assert_array_equal(in_place, y)
    functional.activation_backward(name, grad_in_place, z, out=grad_in_place)
    np.testing.assert_array_equal(grad_in_place, dz)


# errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Tanh", "swish", "", None, 3, ["relu"]])
def test_unknown_name(isa, name):
    """The error lists the names that are known."""
    known = r"identity, relu, .*, softplus, "
    for call in (
        lambda: functional.activation_forward(name, np.ones(3)),
        lambda: functional.activation_backward(name, np.ones(3), np.ones(3)),
    ):
        with pytest.raises(ValueError, match=known) as caught:
            call()
        assert repr(name) in str(caught.value)
        assert all(known in str(caught.value) for known in ACTIVATIONS)


def test_wrong_arrays(isa, dtype):
    z = np.ones((3, 4), dtype)
    with pytest.raises(ValueError, match=r"grad_output: expected shape \(3, 4\).*got \(4, 3\)"):
        functional.activation_backward("tanh", z.T.copy(), z)
    other = np.float32 if dtype == np.float64 else np.float64
    for out in (np.zeros((4, 3), dtype), np.zeros((3, 4), other), np.zeros((4, 3), dtype).T):
        with pytest.raises(ValueError, match="out"):
            functional.activation_forward("tanh", z, out=out)
        assert not out.any()
    overlapping = np.zeros(13, dtype)
    with pytest.raises(ValueError, match="out"):
        functional.activation_forward("tanh", overlapping[:12], out=overlapping[1:])
    with pytest.raises(TypeError):
        functional.activation_forward("tanh", np.ones(3, complex))
