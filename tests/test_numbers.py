"""Numbers that nobody likes: NaN, infinity, denormals, logits of 1e30, rates of 0 and 1e30, sizes beyond memory.

docs/numbers.md says what comes of each; here it does.
"""

import grid
import numpy as np
import pytest
from arrays import looped

import cnn

BAD = [np.nan, np.inf]


def model(optimizer=None, loss=None, dtype="float64", act=cnn.ReLU):
    parts = [cnn.Linear(3, 5), act(), cnn.Linear(5, 2), loss or cnn.MSELoss()]
    return cnn.Sequential(parts, optimizer or cnn.SGD(lr=0.1), dtype=dtype, seed=0)


def data(rows=4, dtype="float64"):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 3)).astype(dtype), rng.standard_normal((rows, 2)).astype(dtype)


# NaN and infinity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", BAD)
@looped("layer", grid.LAYERS)
def test_a_bad_row_spoils_no_other_row(isa, dtype, bad, layer):
    """`predict`: rows are independent, to the last bit."""
    entry = grid.LAYERS[layer]
    parts = [cnn.Linear(3, 5), cnn.Tanh(), entry.make(5, dtype), cnn.Linear(entry.width(5), 2)]
    m = cnn.Sequential(parts, dtype=dtype, seed=0)
    x, _ = data(70, dtype)
    expected = m.predict(x)
    x[3, 1] = x[66, 0] = bad
    y = m.predict(x)
    good = np.delete(np.arange(70), [3, 66])
    np.testing.assert_array_equal(y[good], expected[good])
    if np.isnan(bad):
        assert np.isnan(y[[3, 66]]).all()


@pytest.mark.parametrize("bad", BAD)
@looped("loss", grid.LOSSES)
def test_losses(isa, dtype, bad, loss):
    """NaN in the outputs makes every loss NaN; a bad target is refused or makes the loss no finite number."""
    entry = grid.LOSSES[loss]
    if entry.own:
        assert not np.isfinite(cnn.CallableLoss(lambda y, t: (bad, y))([[1.0]], None))
        return
    criterion = entry.make(4)
    y = np.random.default_rng(0).random((5, 4)).astype(dtype) + 0.1
    t = grid.targets(entry.targets, 5, 4, np.random.default_rng(1))
    gaps, kind = entry.targets.startswith("some "), entry.targets.removeprefix("some ")
    t[2] = 0 if gaps else t[2]
    if entry.targets == "classes":
        t[...] = 0  # the entries ignore class 1
    assert np.isfinite(criterion(y, t))
    y[2, 1] = np.nan
    assert np.isnan(criterion(y, t))
    y[2, 1] = 0.5
    if entry.targets == "classes":
        with pytest.raises(TypeError, match="class indices"):
            criterion(y, t + bad)
    else:
        t[2, 1] = bad
        if gaps and np.isnan(bad):
            assert np.isfinite(criterion(y, t))
        elif kind in ("numbers", "halves"):
            assert not np.isfinite(criterion(y, t))
        else:
            with pytest.raises(ValueError, match="targets"):
                criterion(y, t)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("act", [cnn.ReLU, cnn.Tanh])
@looped(
    "optimizer",
    [cnn.SGD(lr=0.1), cnn.SGD(lr=0.1, momentum=0.9), cnn.Adam(), cnn.SGD(clip_norm=1.0), cnn.SGD(clip_value=1.0)],
)
@looped(
    "spoil",
    ["x", "grad_output", "gradient of a weight", "x, fused", "target, fused", "x, accumulated", "own loss"],
)
def test_right_weights_are_right_again(isa, dtype, bad, act, optimizer, spoil):
    """After a step with numbers that are not finite, parameters that are written anew, in place, give what they gave.

    The padding between the rows, which nobody sees, must not keep NaN: 0 x NaN would reach every output.
    """
    m = model(optimizer, dtype=dtype, act=act)
    x, y = data(4, dtype)
    state, expected = m.state_dict(), m.predict(x)
    spoiled, target = x.copy(), y.copy()
    if spoil.startswith("x"):
        spoiled[1, 0] = bad
    if spoil == "target, fused":
        target[1, 0] = bad
    if spoil == "gradient of a weight":
        m[0].grad_weight[1] = m[2].grad_bias[0] = bad
        m.step()
    elif spoil == "x, accumulated":
        m(x, y)
        m.backward()
        m(spoiled, y)
        m.backward()
        m.step()
    elif spoil == "own loss":
        own = cnn.CallableLoss(lambda outputs, targets: (np.nan, outputs * bad))
        m = model(optimizer, own, dtype, act)
        with pytest.raises(cnn.DivergenceError):
            m.fit(x, y, progress=False)
    elif spoil.endswith("fused"):
        m.train_step(spoiled, target)
    else:
        g = np.ones((4, 2))
        g[1, 1] = bad if spoil == "grad_output" else 1
        m(spoiled)
        m.backward(g)
        m.step()
    for name, layer in (("0", m[0]), ("2", m[2])):
        layer.weight[...] = state[f"{name}.weight"]
        layer.bias[...] = state[f"{name}.bias"]
    np.testing.assert_array_equal(m.predict(x), expected)
    m.optimizer = cnn.SGD(lr=0.1)  # no state
    fresh = model(cnn.SGD(lr=0.1), dtype=dtype, act=act)
    m.zero_grads()
    if m.loss.__class__ is cnn.MSELoss:
        for _ in range(3):
            assert m.train_step(x, y) == fresh.train_step(x, y)
        np.testing.assert_array_equal(m.parameters, fresh.parameters)


@pytest.mark.parametrize("where", ["x", "y", "sample_weight"])
@pytest.mark.parametrize("bad", BAD)
def test_fit(isa, where, bad):
    """x and y: divergence, and the parameters from before; weights are checked first."""
    m = model()
    x, y = data(40)
    w = np.ones(40)
    {"x": x, "y": y, "sample_weight": w}[where][33] = bad
    before = m.parameters
    error = ValueError if where == "sample_weight" else cnn.DivergenceError
    with pytest.raises(error, match=r"sample_weight\[33\]" if error is ValueError else "epoch 1, batch"):
        m.fit(x, y, sample_weight=w, batch_size=8, epochs=2, progress=False)
    np.testing.assert_array_equal(m.parameters, before)


# denormals, small and large -------------------------------------------------------------------------------------------


def test_denormals_are_numbers(isa, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    m = cnn.Sequential([cnn.Linear(3, 3, bias=False), cnn.ReLU()], dtype=dtype)
    m[0].weight = np.eye(3)
    x = np.array([[tiny, 4 * tiny, np.finfo(dtype).tiny]], dtype)
    np.testing.assert_array_equal(m.predict(x), x)
    np.testing.assert_array_equal(m(x), x)
    np.testing.assert_array_equal(m.backward(x), x)


@pytest.mark.parametrize("name", grid.ACTIVATIONS)
def test_activations_at_the_ends(isa, dtype, name):
    """Finite where the function is, its limit at infinity, NaN at NaN."""
    entry = grid.ACTIVATIONS[name]
    z = np.array([1e30, -1e30, 1e-30, -1e-30, 0.0, -0.0], dtype)
    layer = entry.make()
    y, slope = layer(z), layer.backward(np.ones_like(z))
    assert np.isfinite(y).all()
    assert np.isfinite(slope).all()
    assert np.isnan(layer(np.full(3, np.nan, dtype))).all()
    limits = layer(np.array([np.inf, -np.inf], dtype))
    np.testing.assert_array_equal(limits, np.array(entry.limits[::-1], dtype))


@pytest.mark.parametrize("size", [1e30, -1e30])
def test_logits(isa, dtype, size):
    """Cross-entropies of logits of 1e30: no overflow on the way, gradients from -1 to 1."""
    z = np.array([[size, 0, 0], [0, size, -size]], dtype)
    for loss, t in ((cnn.CrossEntropyLoss(), [0, 1]), (cnn.BCEWithLogitsLoss(), [[1, 0, 0.5], [0, 1, 0]])):
        value = loss(z, t)
        gradient = loss.backward()
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() <= 1
    y = cnn.Softmax()(z)
    np.testing.assert_array_equal(y.sum(axis=1), 1)
    assert np.isfinite(cnn.LogSoftmax()(z)).all()


def test_batch_norm_of_a_constant(isa, dtype):
    """The variance is 0: the output is the bias, the gradient is finite and sums to 0."""
    m = cnn.Sequential([cnn.Linear(3, 4), cnn.BatchNorm1d(4), cnn.MSELoss()], cnn.SGD(lr=0.1), dtype=dtype, seed=0)
    x = np.full((6, 3), 0.5, dtype)
    np.testing.assert_allclose(m(x), np.zeros((6, 4)), atol=1e-3)
    dx = m.backward(np.random.default_rng(0).standard_normal((6, 4)))
    assert np.isfinite(dx).all()
    assert m[1].running_var.min() >= 0
    for _ in range(20):
        assert np.isfinite(m.train_step(x, np.ones((6, 4))))
    np.testing.assert_allclose(m[1].bias, 1 - 0.95**21, atol=0.05)
    norm = cnn.LayerNorm(1, dtype="float64")  # one feature is always its own mean
    np.testing.assert_array_equal(norm(np.array([[1e30], [3.0]])), [[0.0], [0.0]])


def test_batches_of_one(isa, dtype):
    m = model(cnn.Adam(), dtype=dtype)
    x, y = data(5, dtype)
    m.fit(x, y, batch_size=1, progress=False)
    assert m._core.program.steps == 5
    normed = cnn.Sequential([cnn.Linear(3, 2), cnn.BatchNorm1d(2), cnn.MSELoss()], cnn.SGD(), dtype=dtype)
    for call in (
        lambda: normed.train_step(x[:1], y[:1]),
        lambda: normed(x[:1]),
        lambda: normed.fit(x, y, batch_size=2),
    ):
        with pytest.raises(ValueError, match="BatchNorm1d"):
            call()
    assert normed.predict(x[:1]).shape == (1, 2)


# rates and sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [cnn.SGD, cnn.Adam, cnn.AdamW, cnn.RMSprop, cnn.Adagrad])
def test_learning_rates(isa, dtype, cls):
    x, y = data(8, dtype)
    m = model(cls(lr=0.0), dtype=dtype)
    before = m.parameters
    m.fit(x, y, epochs=3, progress=False)
    np.testing.assert_array_equal(m.parameters, before)
    for bad, error in ((-1e-9, ValueError), (np.nan, ValueError), (np.inf, ValueError), ("0.1", TypeError)):
        with pytest.raises(error, match=r"^lr: expected"):
            cls(lr=bad)
        with pytest.raises(error, match=r"^lr: expected"):
            m.optimizer.lr = bad
    assert m.optimizer.lr == 0
    m = model(cls(lr=1e30 if dtype == np.float32 else 1e300), dtype=dtype)
    before = m.parameters
    with pytest.raises(cnn.DivergenceError, match=r"epoch \d+, batch \d+, at a learning rate of 1e\+30"):
        m.fit(x, y, epochs=5, batch_size=4, progress=False)
    assert np.isfinite(m.parameters).all()
    assert np.isfinite(m.predict(x)).all() or not np.array_equal(m.parameters, before)


@pytest.mark.parametrize(
    "widths",
    [(2**31, 2**31), (2**40, 2**40), (2**62, 4), (2**33, 2**31), (1, 2**62), (2**63, 1), (2**64, 2**64)],
)
def test_sizes_beyond_memory(dtype, widths):
    """An error, no crash and no number that has wrapped around."""
    with pytest.raises((MemoryError, ValueError, OverflowError)):
        cnn.Sequential([cnn.Linear(*widths)], dtype=dtype)
    with pytest.raises((MemoryError, ValueError, OverflowError)):
        cnn.Linear(*widths, dtype=dtype).weight  # noqa: B018


def test_many_layers_beyond_memory():
    with pytest.raises(MemoryError):
        cnn.Sequential([cnn.Linear(2**28, 2**28, weight_init=lambda shape, rng: 1 / 0) for _ in range(40)])


def test_counts_beyond_the_data(isa):
    x, y = data(5)
    one, other = model(), model()
    one.fit(x, y, batch_size=2**62, accumulation_steps=2**62, progress=False)
    other.fit(x, y, batch_size=5, progress=False)
    np.testing.assert_array_equal(one.parameters, other.parameters)
    for options in ({"batch_size": 2**70}, {"threads": 2**40}, {"batch_size": 0}, {"accumulation_steps": 0}):
        with pytest.raises((ValueError, OverflowError)):
            one.fit(x, y, progress=False, **options)
    with pytest.raises((MemoryError, ValueError)):
        one.predict(np.broadcast_to(np.zeros((1, 3)), (2**45, 3)))
    np.testing.assert_array_equal(one.parameters, other.parameters)


# rows that do not count ---------------------------------------------------------------------------------------------


def explicit(m, x, y, w):
    m(x, y)
    m.zero_grads()
    m.backward()
    m.step()


WAYS = [
    lambda m, x, y, w: m.train_step(x, y, w),
    lambda m, x, y, w: m.fit(x, y, sample_weight=w, batch_size=1),
    lambda m, x, y, w: m.fit(x, y, sample_weight=w, batch_size=7, shuffle=False),
    lambda m, x, y, w: m.fit(x, y, sample_weight=w, batch_size=16),
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("how", "train"), [(how, way) for how in ("weight", "label") for way in WAYS] + [("label", explicit)]
)
def test_rows_that_do_not_count_are_left_out(isa, dtype, bad, threads, train, how):
    """Their gradients are not multiplied by zero: NaN times zero is NaN."""
    x, y = data(40, dtype)
    w, loss = None, cnn.MSELoss()
    if how == "weight":
        w = np.ones(40)
        w[[3, 17]] = 0
    else:
        y, loss = np.arange(40) % 2, cnn.CrossEntropyLoss()
        y[[3, 17]] = -100
    before = cnn.get_num_threads()
    cnn.set_num_threads(threads)
    results = []
    try:
        for value in (0.0, bad):
            x[3, 1] = x[17, 0] = value
            m = model(loss=loss, dtype=dtype, act=cnn.Tanh)
            train(m, x, y, w)
            results.append(m.parameters)
    finally:
        cnn.set_num_threads(before)
    assert np.isfinite(results[1]).all()
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-7)


@pytest.mark.parametrize(("logit", "target"), [(np.inf, 1.0), (-np.inf, 0.0)])
def test_certain_and_right(isa, dtype, logit, target):
    """The limit of the binary cross-entropy, not 0 times infinity."""
    loss = cnn.BCEWithLogitsLoss()
    outputs = np.array([[logit, 0.5]], dtype)
    expected = cnn.BCEWithLogitsLoss()(np.array([[0.5]], dtype), [[1.0]]) / 2
    assert loss(outputs, [[target, 1.0]]) == pytest.approx(expected, rel=1e-6)
    assert loss.backward()[0, 0] == 0
    assert loss(-outputs, [[target, 1.0]]) == np.inf
