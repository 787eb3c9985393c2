"""BatchNorm1d and LayerNorm: values, gradients, running statistics, modes, precision, errors."""

import numpy as np
import pytest
import reference
from arrays import LAYOUTS, laid_out
from networks import squared

import cnn

WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100)
RTOL = {"float32": 2e-5, "float64": 1e-12}
# Layer, the reference's axis, whether weight and bias are there.
LAYERS = {
    "batch": (cnn.BatchNorm1d, 0, True, True),
    "batch, plain": (lambda n, **kw: cnn.BatchNorm1d(n, affine=False, **kw), 0, False, False),
    "layer": (cnn.LayerNorm, 1, True, True),
    "layer, no bias": (lambda n, **kw: cnn.LayerNorm(n, bias=False, **kw), 1, True, False),
    "layer, plain": (lambda n, **kw: cnn.LayerNorm(n, elementwise_affine=False, **kw), 1, False, False),
}


@pytest.fixture(params=LAYERS)
def kind(request):
    return request.param


def made(kind, n, dtype, **options):
    """The layer, and its weight and bias in float64, random where there are some."""
    make, _, has_weight, has_bias = LAYERS[kind]
    layer = make(n, dtype=np.dtype(dtype).name, **options)
    rng = np.random.default_rng(n)
    weight, bias = 1.0, 0.0
    if has_weight:
        layer.weight = 1 + 0.5 * rng.standard_normal(n)
        weight = layer.weight.astype(float)
    if has_bias:
        layer.bias = rng.standard_normal(n)
        bias = layer.bias.astype(float)
    return layer, weight, bias


def data(batch, n, dtype):
    rng = np.random.default_rng([batch, n])
    return (3 * rng.standard_normal((batch, n)) + 2).astype(dtype), rng.standard_normal((batch, n)).astype(dtype)


def close(actual, expected, dtype, what=""):
    """Relative to the largest number: the terms of these sums cancel."""
    rtol = RTOL[np.dtype(dtype).name]
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=rtol * max(1, abs(expected).max()), err_msg=what)


def test_values_and_gradients(isa, kind, dtype):
    """eps = 0.1, so that rows of one or two numbers, which may be nearly equal, divide by nothing small."""
    _, axis, has_weight, has_bias = LAYERS[kind]
    for n in WIDTHS:
        for batch in (2, 3, 63, 64, 65, 130):
            where = f"{batch} x {n}"
            layer, weight, bias = made(kind, n, dtype, eps=0.1)
            x, grad = data(batch, n, dtype)
            y = layer.forward(x)
            assert y.dtype == dtype
            close(y, reference.norm(x.astype(float), axis, 0.1, weight, bias), dtype, where)
            dx = layer.backward(grad)
            expected = reference.norm_backward(grad.astype(float), x.astype(float), axis, 0.1, weight)
            close(dx, expected[0], dtype, where)
            if has_weight:
                close(layer.grad_weight, expected[1], dtype, where)
            if has_bias:
                close(layer.grad_bias, expected[2], dtype, where)


def test_finite_differences(isa, kind):
    """Of order 4, in float64, of a weighted sum of the outputs, by x, weight and bias."""
    for n in (1, 3, 17):
        layer, *_ = made(kind, n, "float64", eps=0.01)
        x, grad = data(4, n, float)
        names = [name for name in ("weight", "bias") if getattr(layer, name) is not None]
        layer.forward(x)
        found = {"x": layer.backward(grad)} | {name: getattr(layer, f"grad_{name}").copy() for name in names}
        for name, gradient in found.items():
            for at in list(np.ndindex(gradient.shape))[::3]:

                def f(step, at=at, name=name, n=n, x=x, grad=grad):
                    again, *_ = made(kind, n, "float64", eps=0.01)
                    moved = x.copy() if name == "x" else getattr(again, name)
                    moved[at] += step
                    return (again.forward(moved if name == "x" else x) * grad).sum()

                h = 1e-3
                difference = (f(-2 * h) - 8 * f(-h) + 8 * f(h) - f(2 * h)) / (12 * h)
                assert difference == pytest.approx(gradient[at], rel=5e-6, abs=1e-9), (name, n)


def test_gradients_of_a_model(isa):
    """Both norms between other layers, first and last: differences of the loss by every parameter, in float64."""

    def model():
        layers = [
            cnn.LayerNorm(5),
            cnn.Linear(5, 17),
            cnn.BatchNorm1d(17),
            cnn.Tanh(),
            cnn.LayerNorm(17, bias=False),
            cnn.Linear(17, 3),
            cnn.BatchNorm1d(3),
        ]
        return cnn.Sequential([*layers, cnn.MSELoss()], dtype="float64", seed=1)

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 5)), rng.standard_normal((6, 3))
    for training in (True, False):
        mode = model().train(training)
        start = mode.parameters + 0.1 * np.random.default_rng(1).standard_normal(len(mode.parameters))
        mode.parameters = start
        _, gradient = mode.loss_and_grad(x, y)
        h = 1e-3
        for i in range(0, len(start), 4):

            def loss(step, i=i, start=start, training=training):
                moved = model().train(training)
                at = start.copy()
                at[i] += step
                moved.parameters = at
                return moved(x, y)

            difference = (loss(-2 * h) - 8 * loss(-h) + 8 * loss(h) - loss(2 * h)) / (12 * h)
            assert difference == pytest.approx(gradient[i], rel=5e-6, abs=1e-9), (training, i)


def test_fused_and_separate_steps(isa, dtype):
    """train_step and forward, backward, step: the same numbers to rounding, and so are the running statistics."""

    def model():
        layers = [cnn.Linear(4, 33), cnn.BatchNorm1d(33), cnn.ReLU(), cnn.LayerNorm(33), cnn.Linear(33, 2)]
        return cnn.Sequential(
            [*layers, cnn.MSELoss()], optimizer=cnn.SGD(lr=0.1, momentum=0.9), dtype=dtype.name, seed=1
        )

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((30, 4)).astype(dtype), rng.standard_normal((30, 2)).astype(dtype)
    fused, separate = model(), model()
    for _ in range(5):
        fused.train_step(x, y)
        separate(x, y)
        separate.zero_grads()
        separate.backward()
        separate.step()
    rtol = 1e-3 if dtype == np.float32 else 1e-11
    for name, array in fused.state_dict().items():
        np.testing.assert_allclose(array, separate.state_dict()[name], rtol=rtol, atol=rtol, err_msg=name)


@pytest.mark.parametrize("shape", [(2000, 33), (700, 300)])
def test_threads_make_no_difference(isa, shape):
    """Bitwise: the sums over the batch run in one order."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype("f4")
    found = []
    used = cnn.get_num_threads()
    try:
        for threads in (1, 2, 3):
            cnn.set_num_threads(threads)
            n = shape[1]
            layers = [cnn.Linear(n, n), cnn.BatchNorm1d(n), cnn.LayerNorm(n), cnn.MSELoss()]
            model = cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1), seed=3)
            found.append([model.train_step(x, x) for _ in range(2)])
            found[-1] += [a.tobytes() for a in model.state_dict().values()]
    finally:
        cnn.set_num_threads(used)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_a_row_is_predicted_the_same_alone(isa, kind):
    make = LAYERS[kind][0]
    layers = [cnn.Linear(4, 19), make(19), cnn.Linear(19, 3), cnn.MSELoss()]
    model = cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1), seed=0)
    x = np.random.default_rng(0).standard_normal((700, 4)).astype("f4")
    model.fit(x, x[:, :3], epochs=1)
    y = model.predict(x)
    for i in (0, 1, 63, 699):
        np.testing.assert_array_equal(model.predict(x[i : i + 1]), y[i : i + 1])
    assert model.predict(x[:0]).shape == (0, 3)


def test_layouts(isa, kind, dtype):
    x, grad = data(6, 19, dtype)
    layer, *_ = made(kind, 19, dtype)
    y, dx = layer.forward(x), layer.backward(grad)
    for layout in LAYOUTS:
        layer, *_ = made(kind, 19, dtype)
        np.testing.assert_array_equal(layer.forward(laid_out(x, layout)), y)
        np.testing.assert_array_equal(layer.backward(laid_out(grad, layout)), dx)


@pytest.mark.parametrize("kind", ["batch", "layer"])
def test_nan_stays_in_its_row_or_column(isa, kind, dtype):
    make, axis, *_ = LAYERS[kind]
    for n in (3, 16, 21):
        x, grad = data(5, n, dtype)
        layer = make(n, dtype=dtype.name)
        y, dx = layer.forward(x), layer.backward(grad)
        x[2, n - 1] = np.nan
        layer = make(n, dtype=dtype.name)
        bad = np.zeros(x.shape, bool)
        bad[(slice(None), n - 1) if axis == 0 else (2, slice(None))] = True
        for actual, expected in ((layer.forward(x), y), (layer.backward(grad), dx)):
            assert np.isnan(actual[bad]).all()
            np.testing.assert_array_equal(actual[~bad], expected[~bad])


# running statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.37, None])
@pytest.mark.parametrize("where", ["alone", "in a model"])
def test_running_statistics(isa, momentum, where, dtype):
    """After each batch (1 - m) r + m s, s with batch - 1 for the variance; None: the means of all batches."""
    n = 17
    part = cnn.BatchNorm1d(n, momentum=momentum, dtype=dtype.name)
    layer = part if where == "alone" else cnn.Sequential([part, cnn.Linear(n, 2)], dtype=dtype.name)
    mean, var = np.zeros(n), np.ones(n)
    assert (part.running_mean == mean).all()
    assert (part.running_var == var).all()
    for t, batch in enumerate((5, 2, 64, 65, 200), 1):
        x = data(batch, n, dtype)[0]
        layer.forward(x)
        m = 1 / t if momentum is None else momentum
        mean += m * (x.astype(float).mean(axis=0) - mean)
        var += m * (x.astype(float).var(axis=0, ddof=1) - var)
        close(part.running_mean, mean, dtype)
        close(part.running_var, var, dtype)
        assert part.num_batches_tracked == t
    x, grad = data(3, n, dtype)
    part.training = False  # used alone
    if where == "alone":
        close(part.forward(x), (x - mean) / np.sqrt(var + 1e-5), dtype)
        close(part.backward(grad), grad / np.sqrt(var + 1e-5), dtype)
        close(part.grad_weight, (grad * (x - mean) / np.sqrt(var + 1e-5)).sum(axis=0), dtype)
    else:
        y = (x - mean) / np.sqrt(var + 1e-5) @ layer[1].weight + layer[1].bias
        close(layer.predict(x), y, dtype)
        close(layer.eval()(x), y, dtype)
        close(layer.backward(grad[:, :2]), grad[:, :2] @ layer[1].weight.T / np.sqrt(var + 1e-5), dtype)
    assert part.num_batches_tracked == 5  # evaluation changes nothing
    close(part.running_mean, mean, dtype)


def test_statistics_are_saved_and_restored(tmp_path):
    def model():
        layers = [cnn.Linear(3, 5), cnn.BatchNorm1d(5, momentum=None), cnn.MSELoss()]
        return cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1), seed=0)

    trained = model()
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((40, 5))
    trained.fit(x, y, epochs=2, batch_size=10)
    assert trained[1].num_batches_tracked == 8
    trained.save(tmp_path / "model.safetensors")
    loaded, filled = cnn.load(tmp_path / "model.safetensors"), model()
    filled.load_weights(trained.state_dict())
    for other in (loaded, filled):
        assert other[1].num_batches_tracked == trained[1].num_batches_tracked
        for name, array in trained.state_dict().items():
            np.testing.assert_array_equal(other.state_dict()[name], array)
        np.testing.assert_array_equal(other.predict(x), trained.predict(x))
        trained(x)
        other(x)  # goes on from there
        np.testing.assert_allclose(other[1].running_var, trained[1].running_var, rtol=1e-6)  # rounded in the file
        filled.load_weights(trained.state_dict())


def test_statistics_of_a_layer_move_into_a_model():
    layer = cnn.BatchNorm1d(3, dtype="float64")
    x = data(20, 3, float)[0]
    layer.forward(x)
    mean = layer.running_mean.copy()
    model = cnn.Sequential([layer, cnn.Linear(3, 1), cnn.MSELoss()], dtype="float32")
    assert layer.num_batches_tracked == 1
    np.testing.assert_array_equal(layer.running_mean, mean.astype("f4"))
    layer.running_mean = [1, 2, 3]
    np.testing.assert_array_equal(model.state_dict()["0.running_mean"], [1, 2, 3])


# precision ----------------------------------------------------------------------------------------


def test_a_million_rows(isa):
    """In float32, far from zero: sums of float32 alone would be off by 1 %."""
    x = 100 + np.random.default_rng(0).standard_normal((1_000_000, 2), dtype="f4")
    layer = cnn.BatchNorm1d(2, momentum=1.0)
    layer.forward(x)
    np.testing.assert_allclose(layer.running_mean, x.mean(axis=0, dtype=float), rtol=1e-7)
    np.testing.assert_allclose(layer.running_var, x.var(axis=0, dtype=float), rtol=2e-6)


def test_far_from_zero(isa, dtype):
    """mean / deviation = 1000: the variance is of differences, not the difference of squares."""
    n = 40
    x = (1000 + np.random.default_rng(0).standard_normal((50, n))).astype(dtype)
    for kind in ("batch, plain", "layer, plain"):
        make, axis, *_ = LAYERS[kind]
        expected = reference.norm(x.astype(float), axis, 1e-5)
        atol = 4 * 1000 * np.finfo(dtype).eps  # the mean's rounding
        np.testing.assert_allclose(make(n, dtype=dtype.name).forward(x), expected, atol=atol)


def test_constant_rows_and_columns(isa, dtype):
    """No variance: the outputs are the bias, the gradients finite."""
    x = np.full((6, 19), 2.5, dtype)
    for kind in LAYERS:
        layer, _, bias = made(kind, 19, dtype)
        np.testing.assert_allclose(layer.forward(x), np.zeros(x.shape) + bias, atol=1e-12)
        assert np.isfinite(layer.backward(data(6, 19, dtype)[1])).all()


# configuration, errors ----------------------------------------------------------------------------


def test_attributes():
    layer = cnn.BatchNorm1d(4)
    assert (layer.num_features, layer.eps, layer.momentum, layer.affine) == (4, 1e-5, 0.1, True)
    assert layer.weight.tolist() == [1, 1, 1, 1]
    assert layer.bias.tolist() == [0, 0, 0, 0]
    assert layer.grad_weight.shape == layer.grad_bias.shape == (4,)
    assert layer.num_batches_tracked == 0
    layer = cnn.LayerNorm(4, elementwise_affine=False)
    assert layer.weight is layer.bias is layer.grad_weight is layer.grad_bias is None
    with pytest.raises(ValueError, match=r"^LayerNorm\(.*\) has no weight"):
        layer.weight = [1, 2, 3, 4]
    assert cnn.LayerNorm(4, bias=False).bias is None


def test_configuration():
    layers = [cnn.Linear(2, 4), cnn.BatchNorm1d(4, 1e-3, None, False), cnn.LayerNorm(4, 0.1, True, False)]
    model = cnn.Sequential(layers, seed=0)
    assert repr(model[1]) == "BatchNorm1d(num_features=4, eps=0.001, momentum=None, affine=False)"
    assert repr(model[2]) == "LayerNorm(normalized_shape=4, eps=0.1, bias=False)"
    again = cnn.Sequential.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    statistics = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert list(again.state_dict()) == ["0.weight", "0.bias", *statistics, "2.weight"]


ERRORS = {
    "width": (lambda: cnn.BatchNorm1d(0), ValueError, r"^num_features: expected at least 1, got 0"),
    "width's type": (lambda: cnn.BatchNorm1d(3.0), TypeError, r"^num_features: expected an int, got 3.0"),
    "shape": (lambda: cnn.LayerNorm((3, 4)), TypeError, r"^normalized_shape: expected an int, got \(3, 4\)"),
    "no width": (lambda: cnn.LayerNorm(-1), ValueError, r"^normalized_shape: expected at least 1, got -1"),
    "eps": (lambda: cnn.BatchNorm1d(3, eps=0), ValueError, r"^eps: expected a number above 0, got 0"),
    "eps nan": (lambda: cnn.LayerNorm(3, eps=np.nan), ValueError, r"^eps: expected a finite number, got nan"),
    "eps type": (lambda: cnn.LayerNorm(3, eps="a"), TypeError, r"^eps: expected a number, got 'a'"),
    "momentum": (lambda: cnn.BatchNorm1d(3, momentum=1.5), ValueError, r"^momentum: expected a number from 0 to 1"),
    "momentum's type": (lambda: cnn.BatchNorm1d(3, momentum="a"), TypeError, r"^momentum: expected a number, got 'a'"),
    "affine": (lambda: cnn.BatchNorm1d(3, affine=1), TypeError, r"^affine: expected True or False, got 1"),
    "bias": (lambda: cnn.LayerNorm(3, bias=None), TypeError, r"^bias: expected True or False, got None"),
    "dtype": (lambda: cnn.LayerNorm(3, dtype="float16"), ValueError, r"^dtype: expected float32 or float64"),
    "in a model": (
        lambda: cnn.Sequential([cnn.Linear(3, 4), cnn.BatchNorm1d(5)]),
        ValueError,
        r"^layer 1, BatchNorm1d\(num_features=5\).*expects 5 inputs, but layer 0, Linear\(3, 4\), gives 4",
    ),
    "input": (lambda: cnn.LayerNorm(3).forward(np.ones((2, 4))), ValueError, r"^x: expected .*3.*got"),
    "one dimension": (lambda: cnn.LayerNorm(3).forward(np.ones(4)), ValueError, r"^x: expected shape \(batch, 3\)"),
    "complex": (lambda: cnn.LayerNorm(3).forward(np.ones((2, 3), complex)), TypeError, r"^x: expected real numbers"),
    "no forward": (lambda: cnn.BatchNorm1d(3).backward(np.ones((2, 3))), RuntimeError, r"^backward needs a forward"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call()


def test_a_batch_of_one_has_no_variance(isa):
    """In training, where PyTorch refuses it, too; the model stays as it was. Evaluation takes it."""
    layers = [cnn.Linear(2, 3), cnn.BatchNorm1d(3), cnn.MSELoss()]
    model = cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1), seed=0)
    x, y = np.ones((1, 2)), np.ones((1, 3))
    before = model.state_dict()
    calls = (
        lambda: model.train_step(x, y),
        lambda: model(x, y),
        lambda: model.loss_and_grad(x, y),
        lambda: cnn.BatchNorm1d(2).forward(x),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"at least 2|two rows|more than one"):
            call()
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert np.isfinite(model.predict(x)).all()
    assert np.isfinite(model.eval()(x, y))


# far from zero ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 86400.1, -1e6])
def test_constant_and_offset_columns(isa, dtype, offset):
    """A constant column gives the bias, in training and, after many batches, in evaluation; a shift changes little."""
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(dtype)
    x[:, 0] = 0
    shifted = (x + np.asarray(offset, dtype)).astype(dtype)
    model = cnn.Sequential([cnn.BatchNorm1d(3), cnn.Linear(3, 3, bias=False)], dtype=dtype, seed=0)
    model.layers[1].weight = np.eye(3)
    exact = shifted.astype(np.float64)
    expected = (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0) + 1e-5)
    expected[:, 0] = 0  # NumPy's mean of equal numbers may be another
    eps = np.finfo(dtype).eps * max(1, abs(offset))
    np.testing.assert_allclose(model(shifted), expected, atol=20 * eps)
    assert (model(shifted)[:, 0] == 0).all()
    for _ in range(400):
        model(shifted)
    y = model.predict(shifted)
    assert np.abs(y[:, 0]).max() <= (0 if dtype == np.float32 else 1e-6)  # a mean in double stops 5 roundings away
    running = (exact - exact.mean(axis=0)) / np.sqrt(exact.var(axis=0, ddof=1) + 1e-5)
    running[:, 0] = 0
    np.testing.assert_allclose(y, running, atol=max(20 * eps, 1e-6))


@pytest.mark.parametrize("offset", [0.0, 86400.1, -1e6])
@pytest.mark.parametrize("n", [5, 16, 37])
def test_layer_norm_far_from_zero(isa, dtype, offset, n):
    rows = np.random.default_rng(0).standard_normal((4, n)).astype(dtype)
    rows[0] = 0
    x = (rows + np.asarray(offset, dtype)).astype(dtype)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(axis=1, keepdims=True)) / np.sqrt(exact.var(axis=1, keepdims=True) + 1e-5)
    expected[0] = 0
    y = cnn.LayerNorm(n, dtype=dtype).forward(x)
    np.testing.assert_allclose(y, expected, atol=20 * np.finfo(dtype).eps * max(1, abs(offset)))
    assert (y[0] == 0).all()


def test_the_default_batch_size_leaves_no_batch_of_one_row():
    def layers(loss):
        return [cnn.Linear(2, 3), cnn.BatchNorm1d(3), cnn.Linear(3, 1), loss]

    for rows, size in ((33, 33), (65, 33), (1057, 31), (34, 32)):
        x = np.random.default_rng(0).standard_normal((rows, 2))
        for loss in (cnn.MSELoss(), squared):
            models = [cnn.Sequential(layers(loss), cnn.SGD(0.01), "float64", seed=0) for _ in range(2)]
            for model, chosen in zip(models, ("auto", size), strict=True):
                model.fit(x, x[:, :1], batch_size=chosen)
            np.testing.assert_array_equal(models[0].parameters, models[1].parameters)
            members = cnn.Ensemble(layers(loss), 2, cnn.SGD(0.01), "float64", seed=0)
            members.fit(x, x[:, :1], shuffle=True)
            assert members[0]._core.program.steps == -(-rows // size)
        if rows % 32 == 1:
            with pytest.raises(ValueError, match="the last of the batches of 32 would have one row"):
                models[0].fit(x, x[:, :1], batch_size=32)
    plain = cnn.Sequential([cnn.Linear(2, 1), cnn.MSELoss()], cnn.SGD(0.01), seed=0)
    plain.fit(np.ones((33, 2)), np.ones(33))
    assert plain._core.program.steps == 2
