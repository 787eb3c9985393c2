"""The linear layer's products on plain arrays: cnn.functional.linear_forward and linear_backward.

Compared with float64 NumPy under the error bound of the sum itself. A sum of k products and a start
value, in any order, fused or not, is off by at most (k + 2) u (sum of |a b| + |start|) with unit
roundoff u (Higham, Accuracy and Stability, 2002, section 3.1). For float64 the reference has the
same error, so the bound doubles. The bound is far below the effect of one product that is missing.
"""

import numpy as np
import pytest
from arrays import LAYOUTS, Guarded, covering, laid_out, looped, unit_roundoff
from grid import ACTIVATIONS, WITH_PARAMETERS

from cnn import functional

WIDTHS = (1, 2, 3, 5, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 257)
BATCHES = (0, 1, 2, 3, 17, 64, 257)
FORWARD = covering(
    n_in=WIDTHS,
    n_out=WIDTHS,
    activation=[(name, param) for name, param in WITH_PARAMETERS if param in (None, 0.2, 0.3)],
    layout=LAYOUTS,
    batch=BATCHES,
    bias=(True, False),
)
BACKWARD = covering(n_in=WIDTHS, n_out=WIDTHS, layout=LAYOUTS, batch=BATCHES, accumulate=(False, True))
# (batch, in, out) where the products are cut into blocks: k beyond 1024 (k is in, out and batch in
# the three products), panels of B packed, X^T packed (the last), rows of a batch of one or two in wide tiles.
LARGE = [
    (1, 1025, 3),
    (5, 1500, 33),
    (70, 1100, 65),
    (3, 1024, 16),
    (1, 3, 2000),
    (40, 1024, 512),  # rows of W a power of two apart
    (40, 5, 1100),
    (33, 40, 2050),
    (1025, 3, 5),
    (2100, 33, 17),
    (3000, 1, 1),
    (130, 1030, 1100),
    (2100, 300, 770),
]


def data(dtype, batch, n_in, n_out):
    """x, weight, bias and grad_output."""
    rng = np.random.default_rng([batch, n_in, n_out])
    shapes = (batch, n_in), (n_in, n_out), (n_out,), (batch, n_out)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def wide(*arrays):
    return [None if a is None else a.astype(np.float64) for a in arrays]


def assert_product(actual, a, b, start=0.0):
    """actual == a @ b + start within the bound above."""
    bound = (a.shape[1] + 2) * unit_roundoff(actual.dtype) * (np.abs(a) @ np.abs(b) + np.abs(start))
    if actual.dtype == np.float64:
        bound *= 2
    expected = a @ b + start
    assert actual.shape == expected.shape
    error = np.abs(actual - expected)
    assert (error <= bound).all(), f"error {error.max():g}, {(error > bound).sum()} beyond the bound"


def assert_activated(actual, pre, name, param):
    """actual == f(pre) within 8 units of roundoff of |f(pre)| + |pre|: what evaluation may cost."""
    expected = ACTIVATIONS[name].value(pre.astype(np.float64), param)
    u = unit_roundoff(actual.dtype)
    assert (np.abs(actual - expected) <= 8 * u * (np.abs(expected) + np.abs(pre))).all()


@looped("case", FORWARD)
def test_forward(isa, dtype, case):
    batch, n_in, n_out, (name, param) = (case[k] for k in ("batch", "n_in", "n_out", "activation"))
    x, weight, bias, _ = data(dtype, batch, n_in, n_out)
    bias = bias if case["bias"] else None
    arguments = [a if a is None else laid_out(a, case["layout"]) for a in (x, weight, bias)]
    if case["layout"] == "byte-swapped":
        arguments[0] = x  # the dtype of the result is that of x
    pre, out = Guarded((batch, n_out), dtype), Guarded((batch, n_out), dtype)
    result = functional.linear_forward(*arguments, name, param, out=out.array, pre=pre.array)
    assert result is out.array
    assert out.untouched()
    assert pre.untouched()
    x64, weight64, bias64 = wide(x, weight, bias)
    assert_product(pre.array, x64, weight64, 0 if bias is None else bias64)
    assert_activated(result, pre.array, name, param)
    # neither `pre`, nor `out`, nor the layout of the arguments changes a bit of the result
    plain = functional.linear_forward(x, weight, bias, name, param)
    assert plain.dtype == dtype
    assert plain.flags.c_contiguous
    np.testing.assert_array_equal(plain, result)
    np.testing.assert_array_equal(functional.activation_forward(name, pre.array, param), result)


@looped("case", BACKWARD)
def test_backward(isa, dtype, case):
    batch, n_in, n_out, accumulate = (case[k] for k in ("batch", "n_in", "n_out", "accumulate"))
    x, weight, start, grad_output = data(dtype, batch, n_in, n_out)
    arguments = [laid_out(a, case["layout"]) for a in (grad_output, x, weight)]
    if case["layout"] == "byte-swapped":
        arguments[0] = grad_output
    outs = [Guarded(shape, dtype) for shape in ((batch, n_in), (n_in, n_out), (n_out,))]
    grad_input, grad_weight, grad_bias = (out.array for out in outs)
    start64 = 0.0
    if accumulate:
        grad_weight[...] = start
        grad_bias[...] = start
        start64 = start.astype(np.float64)
    result = functional.linear_backward(
        *arguments,
        grad_weight=grad_weight,
        grad_bias=grad_bias,
        grad_input=grad_input,
        accumulate=accumulate,
    )
    for given, returned, out in zip((grad_input, grad_weight, grad_bias), result, outs, strict=True):
        assert returned is given
        assert out.untouched()
    x64, weight64, g64 = wide(x, weight, grad_output)
    assert_product(grad_input, g64, weight64.T)
    assert_product(grad_weight, x64.T, g64, start64)
    assert_product(grad_bias[None], np.ones((1, batch)), g64, start64)
    if not accumulate:
        for fresh, given in zip(functional.linear_backward(grad_output, x, weight), result, strict=True):
            assert fresh.dtype == dtype
            np.testing.assert_array_equal(fresh, given)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large(isa, dtype, shape):
    x, weight, bias, grad_output = data(dtype, *shape)
    x64, weight64, bias64, g64 = wide(x, weight, bias, grad_output)
    assert_product(functional.linear_forward(x, weight, bias), x64, weight64, bias64)
    pre = np.empty(grad_output.shape, dtype)
    for name in ("relu", "tanh"):
        y = functional.linear_forward(x, weight, bias, name, pre=pre)
        assert_product(pre, x64, weight64, bias64)
        assert_activated(y, pre, name, None)
        np.testing.assert_array_equal(functional.linear_forward(x, weight, bias, name), y)
    grad_input, grad_weight, grad_bias = functional.linear_backward(grad_output, x, weight)
    ones = np.ones((1, shape[0]))
    assert_product(grad_input, g64, weight64.T)
    assert_product(grad_weight, x64.T, g64)
    assert_product(grad_bias[None], ones, g64)
    functional.linear_backward(grad_output, x, weight, grad_weight=grad_weight, grad_bias=grad_bias, accumulate=True)
    # twice the sum: the second is added to a first that is itself within the bound
    assert_product(grad_weight, np.hstack([x64.T, x64.T]), np.vstack([g64, g64]))
    assert_product(grad_bias[None], np.hstack([ones, ones]), np.vstack([g64, g64]))


@pytest.mark.parametrize(
    "shape", [(19, 33, 17), (64, 300, 1), (40, 64, 4), (9, 1100, 70), (65, 8, 1100), (40, 1024, 512)]
)
@pytest.mark.parametrize("name", ["identity", "relu", "gelu", "sigmoid"])
def test_rows_do_not_depend_on_the_batch(isa, dtype, shape, name):
    """A row's result is the same to the last bit, alone or beside any others."""
    x, weight, bias, _ = data(dtype, *shape)
    together = functional.linear_forward(x, weight, bias, name)
    for batch in (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31):
        for start in range(0, shape[0], batch):
            rows = slice(start, start + batch)
            some = functional.linear_forward(x[rows], weight, bias, name)
            np.testing.assert_array_equal(some, together[rows])


@pytest.mark.parametrize("n_out", [1, 16, 33])
def test_nan_and_infinity_stay_in_their_row(isa, dtype, n_out):
    x, weight, bias, _ = data(dtype, 11, 5, n_out)
    clean = functional.linear_forward(x, weight, bias, "relu")
    x[3, 2], x[7, 0] = np.nan, np.inf
    result = functional.linear_forward(x, weight, bias, "relu")
    assert np.isnan(result[3]).all()
    np.testing.assert_array_equal(result[7], np.where(weight[0] > 0, np.inf, 0))
    others = [i for i in range(11) if i not in (3, 7)]
    np.testing.assert_array_equal(result[others], clean[others])


def test_other_inputs_are_converted(isa):
    """Lists and integers are computed with as float64; float16 as float32; x decides."""
    assert functional.linear_forward([[1, 2]], [[0.5], [1.5]]).dtype == np.float64
    np.testing.assert_array_equal(functional.linear_forward([[1, 2]], [[0.5], [1.5]], [1]), [[4.5]])
    half = np.array([[1, 2]], np.float16)
    result = functional.linear_forward(half, np.array([[0.5], [1.5]]), [True])
    assert result.dtype == np.float32
    assert result == [[4.5]]
    single = np.array([[1, 2]], np.float32)
    assert functional.linear_forward(single, np.eye(2)).dtype == np.float32
    integers = np.array([[1, 2]], np.int8)
    assert functional.linear_forward(integers, np.eye(2, dtype=np.float32)).dtype == np.float64
    subclass = np.ma.masked_array(single)
    assert type(functional.linear_forward(subclass, np.eye(2))) is np.ndarray


def test_zero_widths(isa, dtype):
    """No inputs: the bias alone. No outputs: an empty result."""
    bias = np.arange(3, dtype=dtype)
    y = functional.linear_forward(np.empty((2, 0), dtype), np.empty((0, 3), dtype), bias)
    np.testing.assert_array_equal(y, [bias, bias])
    x = np.ones((2, 4), dtype)
    assert functional.linear_forward(x, np.empty((4, 0), dtype)).shape == (2, 0)
    grad_input, grad_weight, grad_bias = functional.linear_backward(np.empty((2, 0), dtype), x, np.empty((4, 0), dtype))
    np.testing.assert_array_equal(grad_input, np.zeros((2, 4)))
    assert (grad_weight.shape, grad_bias.shape) == ((4, 0), (0,))


def unsuitable(shape, dtype):
    """Result arrays that must be refused, with words of the message."""
    shape_and_dtype = rf"expected shape {shape} and dtype {dtype}, got ".replace("(", r"\(")
    shape_and_dtype = shape_and_dtype.replace(")", r"\)")
    other = np.float64 if dtype == np.float32 else np.float32
    read_only = np.empty(shape, dtype)
    read_only.flags.writeable = False
    taller = (shape[0] + 1, *shape[1:])
    yield np.empty(taller, dtype), shape_and_dtype
    yield np.empty((*shape, 1), dtype), shape_and_dtype
    yield np.empty(shape, other), shape_and_dtype
    yield np.empty(shape, int), shape_and_dtype
    yield laid_out(np.zeros(shape, dtype), "byte-swapped"), "expected "
    yield laid_out(np.zeros(shape, dtype), "columns apart"), "expected a C-contiguous array"
    yield read_only, "expected a writeable, aligned array"
    yield laid_out(np.zeros(shape, dtype), "unaligned"), "expected a writeable, aligned array"
    if len(shape) == 2:
        yield laid_out(np.zeros(shape, dtype), "fortran"), "expected a C-contiguous array"
        yield laid_out(np.zeros(shape, dtype), "rows apart"), "expected a C-contiguous array"


@pytest.mark.parametrize("name", ["out", "pre"])
def test_forward_refuses_unsuitable_results(isa, dtype, name):
    x, weight, _, _ = data(dtype, 3, 5, 4)
    for array, message in unsuitable((3, 4), dtype):
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            functional.linear_forward(x, weight, **{name: array})
    with pytest.raises(TypeError, match=f"^{name}: expected a NumPy array, got list"):
        functional.linear_forward(x, weight, **{name: [[0.0] * 4] * 3})


@pytest.mark.parametrize(("name", "shape"), [("grad_input", (3, 5)), ("grad_weight", (5, 4)), ("grad_bias", (4,))])
def test_backward_refuses_unsuitable_results(isa, dtype, name, shape):
    x, weight, _, grad_output = data(dtype, 3, 5, 4)
    for array, message in unsuitable(shape, dtype):
        with pytest.raises(ValueError, match=f"^{name}: {message}"):
            functional.linear_backward(grad_output, x, weight, **{name: array})
    with pytest.raises(TypeError, match=f"^{name}: expected a NumPy array, got list"):
        functional.linear_backward(grad_output, x, weight, **{name: [0.0]})


def test_results_must_not_overlap_with_inputs(isa, dtype):
    n = 6
    x, weight, bias, grad_output = data(dtype, n, n, n)
    memory = np.zeros(3 * n * n, dtype)
    here, shifted = memory[: n * n].reshape(n, n), memory[n : n + n * n].reshape(n, n)

    def refused(name, call, *arguments, **results):
        with pytest.raises(ValueError, match=f"^{name}: shares memory with"):
            call(*arguments, **results)

    forward, backward = functional.linear_forward, functional.linear_backward
    refused("out", forward, here, weight, out=here)
    refused("out", forward, here, weight, out=shifted)
    refused("out", forward, x, here, out=shifted)
    refused("out", forward, x, weight, memory[:n], out=here)
    refused("out", forward, x, weight, bias, out=here, pre=shifted)
    refused("pre", forward, here, weight, pre=here)
    refused("pre", forward, x, here, pre=shifted)
    refused("grad_input", backward, here, x, weight, grad_input=here)
    refused("grad_input", backward, grad_output, here, weight, grad_input=shifted)
    refused("grad_input", backward, grad_output, x, here, grad_input=shifted)
    refused("grad_weight", backward, here, x, weight, grad_weight=here)
    refused("grad_weight", backward, grad_output, x, here, grad_weight=here)
    refused("grad_weight", backward, grad_output, x, weight, grad_weight=here, grad_input=shifted)
    refused("grad_weight", backward, grad_output, x, weight, grad_weight=here, grad_bias=memory[:n])
    refused("grad_bias", backward, here, x, weight, grad_bias=memory[:n])
    refused("grad_bias", backward, grad_output, x, weight, grad_bias=memory[:n], grad_input=here)
    assert not memory.any()
    # arrays that only lie in one block are no overlap
    beside = memory[n * n : 2 * n * n].reshape(n, n)
    here[...] = x
    assert_product(forward(here, weight, out=beside), *wide(x, weight))


def test_accumulate_needs_something_to_add_to(isa, dtype):
    x, weight, bias, grad_output = data(dtype, 3, 5, 4)
    for given in ({}, {"grad_weight": weight.copy()}, {"grad_bias": bias.copy()}):
        before = {name: a.copy() for name, a in given.items()}
        with pytest.raises(ValueError, match=r"^accumulate: expected grad_weight and grad_bias"):
            functional.linear_backward(grad_output, x, weight, accumulate=True, **given)
        for name, a in given.items():
            np.testing.assert_array_equal(a, before[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (3, 6)}, r"^x: expected shape \(batch, 5\) for this weight, got \(3, 6\)"),
        ({"x": (4,)}, r"^x: expected shape \(batch, 5\) for this weight, got \(4,\)"),
        ({"x": (1, 5, 3)}, r"^x: expected shape \(batch, 5\) for this weight, got \(1, 5, 3\)"),
        ({"weight": (5,)}, r"^weight: expected shape \(rows, columns\), got \(5,\)"),
        ({"bias": (3,)}, r"^bias: expected shape \(4,\), got \(3,\)"),
        ({"bias": (1, 4)}, r"^bias: expected shape \(4,\), got \(1, 4\)"),
    ],
    ids=str,
)
def test_forward_shapes(isa, dtype, change, message):
    shapes = {"x": (3, 5), "weight": (5, 4), "bias": (4,)} | change
    arrays = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        functional.linear_forward(**arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad_output": (3, 5)}, r"^grad_output: expected shape \(batch, 4\) .*, got \(3, 5\)"),
        ({"grad_output": (2, 4)}, "^grad_output: expected 3 rows, as many as x has, got 2"),
        ({"x": (3, 4)}, r"^x: expected shape \(batch, 5\) for this weight, got \(3, 4\)"),
        ({"weight": (1, 5, 4)}, r"^weight: expected shape \(rows, columns\), got \(1, 5, 4\)"),
    ],
    ids=str,
)
def test_backward_shapes(isa, dtype, change, message):
    shapes = {"grad_output": (3, 4), "x": (3, 5), "weight": (5, 4)} | change
    arrays = {name: np.ones(shape, dtype) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match=message):
        functional.linear_backward(**arrays)


@pytest.mark.parametrize("bad", ["c16", "O", "U3", "S3", "M8[s]", "m8[s]"])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((functional.linear_forward, name) for name in ("x", "weight", "bias")),
        *((functional.linear_backward, name) for name in ("grad_output", "x", "weight")),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_only_real_numbers(isa, dtype, function, name, bad):
    shapes = {"x": (3, 5), "weight": (5, 4), "bias": (4,), "grad_output": (3, 4)}
    other = "grad_output" if function is functional.linear_forward else "bias"
    arrays = {n: np.ones(shape, dtype) for n, shape in shapes.items() if n != other}
    arrays[name] = np.zeros(shapes[name], bad)
    with pytest.raises(TypeError, match=f"^{name}: expected real numbers, got dtype "):
        function(**arrays)


def test_unknown_activation(isa, dtype):
    x, weight, _, _ = data(dtype, 3, 5, 4)
    for name in ("swish", "ReLU", "", None, 3, ["relu"]):
        with pytest.raises(ValueError, match=r"^activation: expected one of identity, relu, .*; got "):
            functional.linear_forward(x, weight, None, name)
