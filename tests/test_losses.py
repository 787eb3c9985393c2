"""The losses used alone: value, gradient and Hessian product against the reference, extreme logits, weights, errors."""

import inspect
import json
import re
from contextlib import nullcontext

import numpy as np
import pandas
import pytest
from arrays import LAYOUTS, covering, laid_out, looped, zeros_of_padding
from grid import CASES
from grid.losses import ramp
from networks import squared

import cnn

SHAPES = covering(batch=(1, 2, 3, 17, 300), n=(1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 100, 1025), layout=LAYOUTS)
SMALL = [(1, 1), (1, 5), (4, 3), (7, 16), (5, 17), (3, 40)]


LOSSES = {name: case for name, case in CASES.items() if not case.own}
LABELLED = [name for name, case in LOSSES.items() if case.targets == "classes"]


def loss_of(name, n, **more):
    return LOSSES[name].make(LOSSES[name].width(n), **{"reduction": "mean", **more})


def expected_loss(name, outputs, targets, sample_weight, reduction):
    """Value and gradient in float64, whatever the outputs are."""
    targets = targets if targets.ndim == 1 else targets.astype(np.float64)
    truth = LOSSES[name].truth(outputs.shape[1], reduction=reduction)
    return truth(outputs.astype(np.float64), targets, sample_weight)


def data(name, dtype, batch, n, seed=0):
    """Outputs, targets and sample weights, all exact in float32."""
    rng = np.random.default_rng([batch, n, seed])
    n = LOSSES[name].width(n)
    outputs = (3 * rng.standard_normal((batch, n))).astype(np.float32).astype(dtype)
    if LOSSES[name].positive:
        outputs = np.abs(outputs) + dtype.type(0.125)
    kind = LOSSES[name].targets.removeprefix("some ")
    if kind == "classes":
        targets = rng.integers(0, n, batch)
        targets[targets == loss_of(name, n).ignore_index] = 0
    elif kind == "counts":
        targets = rng.poisson(3, (batch, n)).astype(dtype)
    elif kind in ("probabilities", "distributions"):
        targets = np.clip(rng.uniform(-0.2, 1.2, (batch, n)), 0, 1).astype(np.float32).astype(dtype)
        targets[:, 0] = 0.5  # no row of zeros
    else:
        targets = rng.standard_normal((batch, n // 2 if kind == "halves" else n)).astype(np.float32).astype(dtype)
    if LOSSES[name].targets.startswith("some "):
        targets[(rng.random(targets.shape) < 0.25) & (np.arange(targets.size).reshape(targets.shape) > 0)] = np.nan
    weights = 0.25 * rng.integers(0, 5, batch)
    weights[batch // 2] = 1.25
    return outputs, targets, weights


@looped("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_against_the_reference(isa, dtype, name, reduction):
    """Sums of a row are taken in the dtype, those over rows in double: n/8 roundoffs, 32 at least.

    Where terms of both signs meet, they are roundoffs of the terms.
    """
    eps = float(np.finfo(dtype).eps)
    for case in SHAPES if name in ("mse", "cross_entropy") else SHAPES[reduction == "sum" :: 5]:
        batch, n, layout = case["batch"], case["n"], case["layout"]
        outputs, targets, weights = data(name, dtype, batch, n)
        loss = loss_of(name, n, reduction=reduction)
        given = outputs if layout == "byte-swapped" else laid_out(outputs, layout)
        weights = laid_out(weights, layout) if batch % 2 else None
        value = loss(given, laid_out(targets, layout), weights)
        expected, gradient = expected_loss(name, outputs, targets, reduction=reduction, sample_weight=weights)
        assert isinstance(value, float)
        rows = batch if reduction == "sum" else 1
        terms = rows * (1 + np.abs(outputs).max() * (1 + (np.nanmax(targets) if targets.ndim == 2 else 1)))
        assert abs(value - expected) <= max(32, n / 8) * eps * (abs(expected) + terms), case
        actual = loss.backward()
        assert actual.shape == outputs.shape
        assert actual.dtype == dtype
        if LOSSES[name].loss.exact:
            scale = np.abs(gradient)
        else:
            scale = np.abs(gradient) + np.abs(gradient).max(axis=1, keepdims=True) + 8.0 * rows / batch
        assert (np.abs(actual - gradient) <= 32 * eps * scale).all(), case


@looped("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_derivatives_by_finite_differences(isa, name, reduction):
    """Along a random direction, of fourth order: the loss gives the gradient, the gradient the Hessian product."""
    h = 1e-3
    for batch, n in SMALL:
        outputs, targets, weights = data(name, np.dtype(np.float64), batch, n)
        rng = np.random.default_rng(batch)
        if LOSSES[name].targets == "numbers":  # away from the kinks: at 0, delta and beta
            outputs = targets + rng.choice([-3.1, -1.6, -0.6, -0.1, 0.15, 0.5, 1.7, 2.9], targets.shape)
        direction = rng.uniform(-1, 1, outputs.shape)
        loss = loss_of(name, n, reduction=reduction)

        def slope(f, outputs=outputs, direction=direction):
            near, far = f(outputs + h * direction), f(outputs + 2 * h * direction)
            near, far = near - f(outputs - h * direction), far - f(outputs - 2 * h * direction)
            return (8 * near - far) / (12 * h)

        def gradient(y, loss=loss, targets=targets, weights=weights):
            loss(y, targets, weights)
            return loss.backward()

        along = (gradient(outputs) * direction).sum()
        assert slope(lambda y, loss=loss, t=targets, w=weights: loss(y, t, w)) == pytest.approx(
            along, rel=5e-6, abs=1e-9
        )
        product = loss.hvp(outputs, targets, direction, weights)
        np.testing.assert_allclose(product, slope(gradient), rtol=5e-6, atol=1e-9)
        if LOSSES[name].loss.linear or name == "smooth_l1 0":
            assert not product.any()


@looped("name", LOSSES)
def test_hessian_product_in_both_dtypes(isa, dtype, name):
    """Symmetric, linear, and in float32 that of float64; layouts do not matter."""
    for batch, n in SMALL:
        outputs, targets, weights = data(name, dtype, batch, n)
        u, v = np.random.default_rng(1).integers(-8, 9, (2, *outputs.shape)).astype(dtype)
        loss = loss_of(name, n)
        hu, hv = (loss.hvp(outputs, targets, a, weights) for a in (u, v))
        assert hv.dtype == dtype
        eps = float(np.finfo(dtype).eps)
        scale = np.abs(hu).max() + np.abs(hv).max() + 1 / batch
        assert abs((u * hv).sum() - (v * hu).sum()) <= 256 * eps * scale * batch * n
        wide = loss.hvp(outputs.astype(np.float64), targets, v, weights)
        np.testing.assert_allclose(hv, wide, rtol=0, atol=64 * eps * scale)
        for layout in LAYOUTS:
            again = loss.hvp(outputs, laid_out(targets, layout), laid_out(v, layout), laid_out(weights, layout))
            np.testing.assert_array_equal(again, hv)


@looped("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_in_a_model(isa, dtype, name, reduction):
    """A loss in a model is the loss alone: the value, the gradient that backward starts from, a step with weights."""
    eps = float(np.finfo(dtype).eps)
    for batch in (1, 9, 70):
        outputs, targets, weights = data(name, dtype, batch, 6)
        if LOSSES[name].targets == "classes":
            targets[1::4] = loss_of(name, 6).ignore_index
        alone = loss_of(name, 6, reduction=reduction)
        model = cnn.Sequential(
            [cnn.Linear(6, 6, bias=False), loss_of(name, 6, reduction=reduction)], cnn.SGD(lr=0.5), dtype=dtype
        )
        model.layers[0].weight = np.eye(6)
        expected = alone(outputs, targets)
        assert model(outputs, targets) == pytest.approx(expected, rel=1e-13)
        np.testing.assert_array_equal(model.backward(), alone.backward())
        if reduction == "mean":
            assert model.evaluate(outputs, targets)["loss"] == pytest.approx(expected, rel=4 * eps)
        with pytest.raises(RuntimeError, match=r"^backward needs a forward pass"):
            model.loss.backward()
        expected = alone(outputs, targets, weights)
        assert model.train_step(outputs, targets, weights) == pytest.approx(expected, rel=1e-13)
        step = np.eye(6) - model.layers[0].weight
        wide = 0.5 * outputs.T.astype(np.float64) @ alone.backward().astype(np.float64)
        np.testing.assert_allclose(step, wide, rtol=0, atol=16 * eps * (1 + np.abs(wide).max()) * (1 + batch / 8))


@looped("name", LOSSES)
def test_padding_stays_zero(isa, dtype, name):
    """A loss whose formula gives no 0 at (0, 0) must not write that behind the rows of its gradient."""
    for n in (3, 5, 9, 17):
        x, targets, _ = data(name, dtype, 6, n)
        n = x.shape[1]
        model = cnn.Sequential([cnn.Linear(n, n), loss_of(name, n)], dtype=dtype)
        model.layers[0].weight = np.eye(n)
        model(x, targets)
        model.backward()
        padding = zeros_of_padding(model.layers[0].grad_weight)
        assert not padding.any(), n


def test_mean_squared_error_is_the_mean_over_all_elements(isa, dtype):
    outputs = np.array([[1, 2], [3, 4], [5, 6]], dtype)
    loss = cnn.MSELoss()
    assert loss(outputs, np.zeros((3, 2))) == np.float64(91) / 6
    np.testing.assert_allclose(loss.backward(), outputs / 3, rtol=1e-6)
    assert loss(outputs, outputs) == 0
    assert not loss.backward().any()
    assert cnn.MSELoss(reduction="sum")(outputs, np.zeros((3, 2))) == 91


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


def test_the_same_loss_said_differently(isa, dtype):
    """Pairs of losses that are one: labels and one-hot rows, log-softmax and NLL, two classes and one logit, ..."""
    rng = np.random.default_rng(3)
    z, labels = rng.standard_normal((9, 5)).astype(dtype), rng.integers(0, 5, 9)
    weight, w = ramp(5), rng.uniform(0, 2, 9)
    onehot = np.eye(5, dtype=dtype)[labels]
    log_p = (z - np.log(np.exp(z.astype(np.float64)).sum(axis=1, keepdims=True))).astype(dtype)
    d = rng.standard_normal((9, 5)).astype(dtype)
    one = np.stack([np.zeros(9, dtype), z[:, 0]], axis=1)
    pairs = [
        (cnn.CrossEntropyLoss(label_smoothing=0.2), labels, cnn.CrossEntropyLoss(label_smoothing=0.2), onehot, z, z),
        (
            cnn.CrossEntropyLoss(weight, reduction="sum"),
            labels,
            cnn.CrossEntropyLoss(weight, reduction="sum"),
            onehot,
            z,
            z,
        ),
        (cnn.CrossEntropyLoss(weight), labels, cnn.NLLLoss(weight), labels, z, log_p),
        (cnn.CrossEntropyLoss(), labels % 2, cnn.BCEWithLogitsLoss(), (labels % 2)[:, None], one, z[:, :1]),
        (cnn.SmoothL1Loss(beta=0), d, cnn.L1Loss(), d, z, z),
        (cnn.SmoothL1Loss(beta=1e-30), d, cnn.L1Loss(), d, z, z),
        (cnn.SmoothL1Loss(beta=1e-60), d, cnn.L1Loss(), d, z, z),
        (cnn.QuantileLoss([0.5] * 5), d, cnn.L1Loss(), d / 2, z, z / 2),
        (cnn.HuberLoss(delta=1e30), d, cnn.MSELoss(), d * dtype.type(0.5**0.5), z, z * dtype.type(0.5**0.5)),
    ]
    for first, first_targets, second, second_targets, first_outputs, second_outputs in pairs:
        value = first(first_outputs, first_targets, w)
        assert value == pytest.approx(
            second(second_outputs, second_targets, w), rel=1e-5 if dtype == np.float32 else 1e-12
        )


def test_extreme_logits(isa, dtype):
    """No overflow, no log of zero: the loss is the difference of the logits then."""
    largest = float(np.finfo(dtype).max)
    loss = cnn.CrossEntropyLoss()
    for low, high in ((0, 1e4), (-1e4, 1e4), (-1e30, 1e30), (-largest / 4, largest / 4), (-(2.0**100), 0)):
        logits = np.array([[low, high, low]], dtype)
        assert loss(logits, [1]) == 0
        np.testing.assert_array_equal(loss.backward(), [[0, 0, 0]])
        assert loss(logits, [0]) == pytest.approx(float(logits[0, 1]) - float(logits[0, 0]), rel=1e-7)
        np.testing.assert_array_equal(loss.backward(), [[-1, 1, 0]])
        np.testing.assert_array_equal(loss.hvp(logits, [0], np.ones((1, 3))), [[0, 0, 0]])
        assert loss(logits, [[0.0, 1.0, 0.0]]) == 0
        assert loss(logits, [[0.5, 0.5, 0.0]]) == pytest.approx(
            (float(logits[0, 1]) - float(logits[0, 0])) / 2, rel=1e-6
        )
        np.testing.assert_array_equal(loss.backward(), [[-0.5, 0.5, 0]])
    logits = np.array([[-np.inf, 0, 0]], dtype)  # a class that has been ruled out
    assert loss(logits, [1]) == pytest.approx(np.log(2))
    np.testing.assert_allclose(loss.backward(), [[0, -0.5, 0.5]], atol=1e-7)
    assert loss(logits, [[0.0, 0.5, 0.5]]) == pytest.approx(np.log(2))
    assert loss(logits, [0]) == np.inf
    assert cnn.CrossEntropyLoss([0, 1, 1], reduction="sum")(logits, [0]) == 0


@pytest.mark.parametrize("pos_weight", [None, 3.0])
def test_extreme_logits_of_yes_and_no(isa, dtype, pos_weight):
    positive = pos_weight or 1
    loss = cnn.BCEWithLogitsLoss(pos_weight=pos_weight, reduction="sum")
    for z in (200.0, 1e4, 1e30):
        logits = np.array([[z, -z, z, -z, z, -z]], dtype)
        z = float(logits[0, 0])
        targets = [[1, 0, 0, 1, 0.5, 0.5]]
        expected = [0, 0, z, positive * z, z / 2, positive * z / 2]
        assert loss(logits, targets) == pytest.approx(sum(expected), rel=1e-6)
        tiny = loss.backward()
        np.testing.assert_allclose(tiny, [[0, 0, 1, -positive, 0.5, -positive / 2]], rtol=1e-6, atol=1e-80)
        assert float(np.abs(loss.hvp(logits, targets, np.ones((1, 6)))).max()) < 1e-80
    # far out the loss and its gradient are exp(-|z|), not what is left of a difference
    logits = np.array([[30.0, -30.0]], dtype)
    assert loss(logits, [[1, 0]]) == pytest.approx((1 + positive) * np.exp(-30.0), rel=1e-5)
    np.testing.assert_allclose(loss.backward(), [[-positive * np.exp(-30.0), np.exp(-30.0)]], rtol=1e-5)


def test_extreme_counts(isa, dtype):
    loss = cnn.PoissonNLLLoss(full=True)
    assert loss(np.array([[-1e30]], dtype), [[0]]) == 0
    assert loss(np.array([[1e4]], dtype), [[0]]) == np.inf
    assert loss(np.array([[0.0]], dtype), [[1]]) == 1  # no Stirling at 1
    # -log of the probability of 50 where 50 are expected, but for Stirling's 1 / (12 * 50)
    assert loss(np.array([[np.log(50.0)]], dtype), [[50]]) == pytest.approx(np.log(2 * np.pi * 50) / 2, rel=1e-5)
    rates = cnn.PoissonNLLLoss(log_input=False)
    assert rates(np.array([[0.0]], dtype), [[2]]) == pytest.approx(-2 * np.log(1e-8), rel=1e-6)
    assert np.isnan(rates(np.array([[-1.0]], dtype), [[2]]))


@looped("name", LOSSES)
@looped("n", [1, 5, 16, 40])
def test_nan_comes_through(isa, dtype, name, n):
    """One NaN anywhere makes the loss NaN, and only its row's gradient."""
    outputs, targets, _ = data(name, dtype, 4, n)
    if np.isnan(targets).any():
        targets[2] = 0.5
    loss = loss_of(name, n)
    loss(outputs, targets)
    clean = loss.backward()
    for column in range(outputs.shape[1]):
        bad = outputs.copy()
        bad[2, column] = np.nan
        assert np.isnan(loss(bad, targets))
        gradient = loss.backward()
        assert np.isnan(gradient[2]).any() or name.startswith("nll")
        np.testing.assert_array_equal(gradient[[0, 1, 3]], clean[[0, 1, 3]])


@looped("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_rows_of_weight_zero_do_not_count(isa, dtype, name, reduction):
    """As if they were not there, even with outputs that are not finite."""
    for n in (1, 5, 16, 40):
        outputs, targets, weights = data(name, dtype, 9, n)
        weights = weights + 0.5
        out = np.array([0, 4, 8])
        kept = np.delete(np.arange(9), out)
        loss = loss_of(name, n, reduction=reduction)
        expected = loss(outputs[kept], targets[kept], weights[kept])
        gradient = loss.backward()
        weights[out] = 0
        outputs[out] = np.array([np.nan, np.inf, -np.inf])[:, None]
        assert loss(outputs, targets, weights) == expected
        np.testing.assert_array_equal(loss.backward()[kept], gradient)
        assert not loss.backward()[out].any()
        product = loss.hvp(outputs, targets, np.ones(outputs.shape), weights)
        assert np.isfinite(product).all()
        assert not product[out].any()


@looped("name", LABELLED)
@pytest.mark.parametrize("ignore_index", [-100, -1, 2, 1000, -(2**63), 2**63 - 1])
def test_ignored_rows_do_not_count(isa, dtype, name, ignore_index):
    for reduction in ("mean", "sum"):
        for n in (3, 16, 40):
            outputs, targets, weights = data(name, dtype, 9, n)
            targets = np.where(targets == 2, 0, targets)
            out = np.array([0, 4, 8])
            kept = np.delete(np.arange(9), out)
            loss = loss_of(name, n, reduction=reduction, ignore_index=ignore_index)
            expected = loss(outputs[kept], targets[kept], weights[kept])
            gradient = loss.backward()
            targets[out] = ignore_index
            outputs[out] = np.array([np.nan, np.inf, -np.inf])[:, None]
            assert loss(outputs, targets, weights) == expected
            np.testing.assert_array_equal(loss.backward()[kept], gradient)
            assert not loss.backward()[out].any()
            assert not loss.hvp(outputs, targets, np.ones((9, n)), weights)[out].any()


@looped("name", LABELLED)
def test_no_row_counts(isa, dtype, name):
    """The mean over nothing is not defined (PyTorch: NaN), the sum is 0; the last gradient stays what it was."""
    outputs, targets, _ = data(name, dtype, 4, 3)
    loss = loss_of(name, 3)
    ignored = loss.ignore_index
    loss(outputs, targets)
    before = loss.backward()
    message = "^the mean loss is not defined: all rows are ignored or have the weight 0"
    with pytest.raises(ValueError, match=message):
        loss(outputs, [ignored] * 4)
    with pytest.raises(ValueError, match=message):
        loss(outputs, targets, np.zeros(4))
    with pytest.raises(ValueError, match=message):
        loss(outputs, [ignored, 2, ignored, ignored], [1, 0, 1, 1])
    np.testing.assert_array_equal(loss.backward(), before)
    total = loss_of(name, 3, reduction="sum")
    assert total(outputs, [ignored] * 4) == 0
    assert total(outputs, targets, np.zeros(4)) == 0
    assert not total.backward().any()


@looped("name", LOSSES)
def test_a_row_is_the_same_in_any_batch(isa, dtype, name):
    """Bitwise: value and gradient of a row do not depend on its neighbours."""
    for n in (1, 5, 17):
        outputs, targets, weights = data(name, dtype, 7, n)
        loss = loss_of(name, n, reduction="sum")
        loss(outputs, targets, weights)
        gradient = loss.backward()
        values = []
        for i in range(7):
            values.append(loss(outputs[i : i + 1], targets[i : i + 1], weights[i : i + 1]))
            np.testing.assert_array_equal(loss.backward(), gradient[i : i + 1])
        assert loss(outputs, targets, weights) == pytest.approx(sum(values), rel=1e-13)


@looped("name", LOSSES)
def test_weights_scale(isa, dtype, name):
    """A power of two more in all weights: nothing for the mean, that much for the sum. A row twice is weight 2."""
    outputs, targets, weights = data(name, dtype, 9, 6)
    mean, total = loss_of(name, 6), loss_of(name, 6, reduction="sum")
    assert mean(outputs, targets, 4 * weights) == mean(outputs, targets, weights)
    assert total(outputs, targets, 4 * weights) == 4 * total(outputs, targets, weights)
    assert mean(outputs, targets, np.ones(9)) == pytest.approx(mean(outputs, targets), rel=1e-14)
    twice = np.repeat(np.arange(9), 2)
    assert mean(outputs[twice], targets[twice]) == pytest.approx(mean(outputs, targets, np.full(9, 2)), rel=1e-12)


def test_targets_of_quantiles(isa, dtype):
    """One target for all quantiles, (batch,) or (batch, 1), or one for each."""
    outputs, targets = data("quantile", dtype, 6, 3)[:2]
    loss = cnn.QuantileLoss([0.1, 0.5, 0.9])
    expected = loss(outputs, np.repeat(targets[:, :1], 3, axis=1))
    assert loss(outputs, targets[:, 0]) == expected
    assert loss(outputs, targets[:, :1].tolist()) == expected
    one = cnn.QuantileLoss(0.3)
    assert one(outputs[:, :1], targets[:, 0]) == one(outputs[:, :1], targets[:, :1])
    with pytest.raises(ValueError, match=r"^targets: expected shape \(batch, 3\), got \(6, 2\)"):
        loss(outputs, targets[:, :2])


def test_quantiles_of_several_targets(isa, dtype):
    """The outputs are (batch, targets, quantiles): the loss is the mean over those of each target alone."""
    rng = np.random.default_rng(0)
    outputs, targets = rng.standard_normal((7, 2, 3)).astype(dtype), rng.standard_normal((7, 2)).astype(dtype)
    loss = cnn.QuantileLoss([0.1, 0.5, 0.9])
    alone, gradients = [], []
    for j in range(2):
        alone.append(loss(outputs[:, j], targets[:, j]))
        gradients.append(loss.backward())
    flat = outputs.reshape(7, 6)
    assert loss(flat, targets) == pytest.approx(np.mean(alone), rel=4e-7)
    np.testing.assert_allclose(loss.backward(), np.hstack(gradients) / 2, rtol=4e-7)
    assert loss(flat, np.repeat(targets, 3, axis=1)) == loss(flat, targets)
    model = cnn.Sequential([cnn.Linear(4, 6), loss], cnn.SGD(lr=0.1), dtype=dtype, seed=0)
    x = rng.standard_normal((7, 4))
    assert model.fit(x, targets, batch_size=7)["loss"] == [pytest.approx(loss(model.predict(x), targets), rel=1)]


OF_CHOSEN = [
    name
    for name, case in LOSSES.items()
    if "chosen" in inspect.signature(case.loss.cls).parameters and "gaps" not in name
]


@looped("name", OF_CHOSEN)
@pytest.mark.parametrize("n", [1, 2, 5, 17])
def test_the_loss_of_a_chosen_output(isa, dtype, name, n):
    """That of the chosen outputs, as a column; the others have no gradient."""
    outputs, values, weights = data(name, dtype, 9, n)
    columns = np.random.default_rng(1).integers(0, n, 9)
    loss, plain = loss_of(name, n, chosen=True), loss_of(name, 1)
    rows = np.arange(9)
    expected = plain(outputs[rows, columns][:, None], values[:, :1], weights)
    assert loss(outputs, (columns, values[:, 0]), weights) == pytest.approx(expected, rel=1e-6)
    gradient = np.zeros((9, n), dtype)
    gradient[rows, columns] = plain.backward()[:, 0]
    np.testing.assert_allclose(loss.backward(), gradient, rtol=1e-6)
    assert loss(outputs, (columns[:, None], values[:, :1].tolist()), weights) == pytest.approx(expected, rel=1e-6)
    model = cnn.Sequential([cnn.Linear(n, n, bias=False), loss_of(name, n, chosen=True)], cnn.SGD(lr=0.5), dtype=dtype)
    for batch in (1, 9):
        model.layers[0].weight = np.eye(n)
        x, y = outputs[:batch], (columns[:batch], values[:batch, 0])
        expected = loss(x, y)
        assert model(x, y) == pytest.approx(expected, rel=1e-6)
        assert model.evaluate(x, y, metrics="mae")["mae"] == pytest.approx(
            np.abs(x[rows[:batch], y[0]] - y[1]).mean(), rel=1e-5, abs=1e-6
        )
        ways = [
            lambda x=x, y=y: model.train_step(x, y),
            lambda x=x, y=y: model.fit(x, y, batch_size=9, shuffle=False)["loss"][0],
        ]
        steps = []
        for way in ways:
            model.layers[0].weight = np.eye(n)
            assert way() == pytest.approx(expected, rel=1e-6)
            steps.append(np.eye(n) - model.layers[0].weight)
            np.testing.assert_allclose(
                steps[-1], 0.5 * x.T @ loss.backward(), rtol=1e-4, atol=1e-5 * np.abs(x).max() ** 2
            )
        np.testing.assert_array_equal(*steps)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        (([0, 1, 3], [1.0, 1, 1]), ValueError, r"^targets\[0\]\[2\] is 3, expected a column from 0 to 2"),
        (([0, -1, 2], [1.0, 1, 1]), ValueError, r"^targets\[0\]\[1\] is -1, expected a column from 0 to 2"),
        (([0.0, 1, 2], [1.0, 1, 1]), TypeError, r"^targets\[0\]: expected integers, the columns that are chosen, got "),
        (([0, 1], [1.0, 1, 1]), ValueError, r"^targets\[0\]: expected shape \(3,\), a number for each row, got \(2,\)"),
        (
            ([0, 1, 2], [[1.0, 1, 1]]),
            ValueError,
            r"^targets\[1\]: expected shape \(3,\), a number for each row, got",
        ),
        (([0, 1, 2], [1.0], [1.0]), ValueError, r"^targets: expected a pair \(columns, values\), got a tuple of 3"),
        (([0, 1, 2], ["a"] * 3), TypeError, r"^targets\[1\]: expected real numbers"),
    ],
)
def test_pairs_that_are_refused(isa, targets, error, message):
    with pytest.raises(error, match=message):
        cnn.MSELoss(chosen=True)(np.ones((3, 3)), targets)


@pytest.mark.parametrize("name", [name for name, case in LOSSES.items() if case.targets.startswith("some ")])
def test_targets_that_are_nan_do_not_count(isa, dtype, name):
    """Whatever the outputs and x are: neither in the loss nor in any gradient; nor do rows without a target."""
    outputs, targets, weights = data(name, dtype, 9, 6)
    loss = loss_of(name, 6)
    expected, gradient = loss(outputs, targets, weights), loss.backward()
    lost = outputs.copy()
    lost[np.tile(np.isnan(targets), outputs.shape[1] // targets.shape[1])] = np.nan
    assert loss(lost, targets, weights) == expected
    np.testing.assert_array_equal(loss.backward(), gradient)
    out = np.array([1, 4, 8])
    kept = np.delete(np.arange(9), out)
    targets[out] = np.nan
    expected = loss(outputs[kept], targets[kept], weights[kept])
    assert loss(outputs, targets, weights) == pytest.approx(expected, rel=1e-6)
    end = [cnn.Softplus()] * LOSSES[name].positive + [loss]
    results = []
    for rows in (np.arange(9), kept):
        x = outputs.copy()
        x[out] = [[np.nan], [np.inf], [0]]
        model = cnn.Sequential([cnn.Linear(6, 6), *end], cnn.SGD(lr=0.1), dtype=dtype, seed=1)
        model.train_step(x[rows], targets[rows])
        history = model.fit(x[rows], targets[rows], batch_size=9, shuffle=False)
        results.append((model.parameters, history["loss"][0], model.evaluate(x[kept], targets[kept])["loss"]))
        assert np.isfinite(results[-1][0]).all()
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="the mean loss is not defined") if loss.reduction == "mean" else nullcontext():
        loss(outputs, np.full_like(targets, np.nan))


@pytest.mark.parametrize("log_var", [True, False])
def test_variances(isa, dtype, log_var):
    """Below eps the loss is that of eps; a variance below 0 makes NaN; logarithms may be of any size."""
    loss = cnn.GaussianNLLLoss(log_var=log_var, eps=0.25)
    tiny, least = (-50.0, np.log(0.25)) if log_var else (0.0, 0.25)
    assert loss(np.array([[1, tiny]], dtype), [2]) == pytest.approx(loss(np.array([[1, least]], dtype), [2]), rel=1e-6)
    if log_var:
        assert loss(np.array([[0, 2000]], dtype), [1]) == 1000
        np.testing.assert_array_equal(loss.backward(), [[0, 0.5]])
    else:
        assert np.isnan(loss(np.array([[0, -1]], dtype), [1]))


def test_quantiles_are_found(isa):
    """The constant that minimises the loss is the quantile of the targets."""
    targets = np.random.default_rng(0).exponential(size=2001)
    q = np.array([0.1, 0.5, 0.9])
    loss = cnn.QuantileLoss(q)
    best = np.quantile(targets, q)
    least = loss(np.tile(best, (2001, 1)), targets)
    for step in np.eye(3):
        for sign in (-0.05, 0.05):
            assert loss(np.tile(best + sign * step, (2001, 1)), targets) > least


@looped("name", [name for name, case in LOSSES.items() if not case.loss.by_row])
def test_one_output_takes_a_vector(isa, dtype, name):
    outputs, targets, weights = data(name, dtype, 5, 1)
    loss = loss_of(name, 1)
    assert loss(outputs, targets[:, 0], weights) == loss(outputs, targets, weights)


@looped("name", LOSSES)
def test_backward(isa, name):
    """A copy; RuntimeError without forward; the gradient of the last forward that succeeded."""
    loss = loss_of(name, 3)
    with pytest.raises(RuntimeError, match=r"^backward needs a forward pass"):
        loss.backward()
    outputs, targets, _ = data(name, np.dtype(np.float64), 4, 3)
    loss(outputs, targets)
    gradient = loss.backward()
    expected = gradient.copy()
    gradient[...] = 0
    with pytest.raises(ValueError, match="targets"):
        loss(outputs, targets[:2])
    loss.hvp(outputs, targets, np.ones(outputs.shape))
    np.testing.assert_array_equal(loss.backward(), expected)


# errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "targets", "error", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 3)), ValueError, r"^targets: expected shape \(batch, 2\), got \(3, 3\)"),
        (np.ones((3, 2)), np.ones(3), ValueError, r"^targets: expected shape \(batch, 2\), got \(3,\)"),
        (np.ones((3, 2)), np.ones((2, 2)), ValueError, "^targets: expected 3 rows, as many as outputs has, got 2"),
        (
            np.ones(3),
            np.ones(3),
            ValueError,
            r"^outputs: expected shape \(rows, columns\), got \(3,\): \[None, :\] makes it a row",
        ),
        (np.ones((0, 2)), np.ones((0, 2)), ValueError, r"^outputs: expected at least one row .*\(0, 2\)"),
        (np.ones((2, 0)), np.ones((2, 0)), ValueError, r"^outputs: expected at least one row .*\(2, 0\)"),
        (np.ones((3, 2), complex), np.ones((3, 2)), TypeError, "^outputs: expected real numbers"),
        (np.ones((3, 2)), [["a", "b"]] * 3, TypeError, "^targets: expected real numbers"),
        (np.ones((3, 2)), np.ones((3, 2), object), TypeError, "^targets: expected real numbers"),
        (np.ones((3, 2)), None, TypeError, "^targets: expected real numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or (str(value) if isinstance(value, str) else None),
)
@looped(
    "name",
    [name for name, case in LOSSES.items() if not case.loss.by_row and case.make(2).outputs_per_target == 1],
)
def test_elementwise_losses_refuse(isa, name, outputs, targets, error, message):
    with pytest.raises(error, match=message):
        loss_of(name, 2)(outputs, targets)


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, 1, 3], ValueError, r"^targets\[2\] is 3, expected a class index from 0 to 2"),
        ([0, -1, 0], ValueError, r"^targets\[1\] is -1, expected a class index from 0 to 2"),
        (np.array([2**64 - 1, 0, 0], np.uint64), ValueError, r"^targets\[0\] is 18446744073709551615, expected"),
        (np.array([0, 2**64 - 100, 0], np.uint64), ValueError, r"^targets\[1\] is 18446744073709551516, expected"),
        (np.array([0, 0, 255], np.uint8), ValueError, r"^targets\[2\] is 255, expected a class index from"),
        ([0, 1], ValueError, "^targets: expected 3 rows, as many as outputs has, got 2"),
        ([[0], [1], [3]], ValueError, r"^targets\[2\] is 3, expected a class index from 0 to 2"),
        (
            np.eye(3, dtype=int)[:, ::-1] * 2,
            ValueError,
            r"^targets: .*class indices .*\(3, 3\).* must have one 1",
        ),
        (np.ones((3, 3), int), ValueError, r"^targets: .*class indices .*\(3, 3\).* must have one 1 and zeros"),
        (np.eye(3, 4, dtype=int), ValueError, r"^targets: .*class indices .*\(3, 4\)"),
        (1, ValueError, r"^targets: .*class indices of shape \(batch,\), got \(\)"),
        (
            [0.0, 1.0, 2.5],
            TypeError,
            "^targets: .*class indices, got dtype float64 and numbers that are not whole",
        ),
        ([0.0, 1.0, np.nan], TypeError, "^targets: .*integer class indices, got dtype float64 and .* not finite"),
        (
            ["0", "1", "2"],
            TypeError,
            r"^targets: .*integer class indices, got dtype <U1: .* np.unique\(y, return",
        ),
        (
            np.array(["a", "b", "c"], object),
            TypeError,
            r"^targets: .*got dtype object: .* np.unique\(y, ret",
        ),
        (pandas.Series(["a", "b", "c"], dtype="category"), TypeError, r"^targets: .*got dtype object: .* np.unique\("),
        (np.array([0, 1, None]), TypeError, "^targets: .*integer class indices, got dtype object"),
        (None, TypeError, "^targets: .*integer class indices, got dtype object"),
    ],
    ids=str,
)
@looped("name", LABELLED)
def test_class_indices_refused(isa, name, targets, error, message):
    with pytest.raises(error, match=message):
        loss_of(name, 3)(np.ones((3, 3)), targets)


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (
            cnn.CrossEntropyLoss(),
            [[0.5, 0.5], [0.5, 0.5], [1.0, 0.0]],
            r"^targets: expected shape \(batch, 3\), got \(3, 2\)",
        ),
        (
            cnn.CrossEntropyLoss(),
            [[0, 0, 1.0], [0, -0.5, 0.5], [1, 0, 0]],
            r"^targets\[1, 1\] is -0.5, expected a finite class",
        ),
        (
            cnn.CrossEntropyLoss(),
            [[0, 0, 1.0], [0, 0, 1], [1, 0, np.nan]],
            r"^targets\[2, 2\] is nan, expected a finite class",
        ),
        (
            cnn.CrossEntropyLoss(),
            [[np.inf, 0, 1.0], [0, 0, 1], [1, 0, 0]],
            r"^targets\[0, 0\] is inf, expected a finite class",
        ),
        (cnn.CrossEntropyLoss(), np.ones((2, 3)), "^targets: expected 3 rows, as many as outputs has, got 2"),
        (cnn.BCEWithLogitsLoss(), [[0, 1, 0], [1, 0, 1], [0, 1.5, 0]], r"^targets\[2, 1\] is 1.5, expected a prob"),
        (cnn.BCEWithLogitsLoss(), [[0, 1, 0], [1, 0, -1], [0, 1, 0]], r"^targets\[1, 2\] is -1.0, expected a prob"),
        (cnn.BCEWithLogitsLoss(), [[np.nan, 1, 0], [1, 0, 1], [0, 1, 0]], r"^targets\[0, 0\] is nan, expected a prob"),
        (
            cnn.PoissonNLLLoss(),
            [[0, 1, 2], [3, 4, 5], [6, -7, 8]],
            r"^targets\[2, 1\] is -7.0, expected a finite count",
        ),
        (
            cnn.PoissonNLLLoss(),
            [[0, 1, np.inf], [3, 4, 5], [6, 7, 8]],
            r"^targets\[0, 2\] is inf, expected a finite count",
        ),
        (
            cnn.PoissonNLLLoss(log_input=False),
            [[0, 1, 2], [np.nan, 4, 5], [6, 7, 8]],
            r"^targets\[1, 0\] is nan, expected",
        ),
    ],
)
@pytest.mark.parametrize("layout", ["contiguous", "rows apart", "rows reversed"])
def test_targets_out_of_range(isa, dtype, loss, targets, message, layout):
    with pytest.raises(ValueError, match=message):
        loss(np.ones((3, 3), dtype), laid_out(np.asarray(targets, dtype), layout))


@looped("name", LOSSES)
def test_sample_weights_refused(isa, dtype, name):
    outputs, targets, weights = data(name, dtype, 4, 3)
    loss = loss_of(name, 3)
    for bad in (-1.0, np.nan, np.inf, -np.inf):
        weights[2] = bad
        with pytest.raises(ValueError, match=rf"^sample_weight\[2\] is {bad}, expected a finite weight, not below 0"):
            loss(outputs, targets, weights)
    for shape in ((3,), (4, 1), (), (5,)):
        with pytest.raises(ValueError, match=rf"^sample_weight: expected shape \(4,\), got {re.escape(str(shape))}"):
            loss(outputs, targets, np.ones(shape))
    with pytest.raises(TypeError, match=r"^sample_weight: expected real numbers"):
        loss(outputs, targets, ["a"] * 4)
    with pytest.raises(ValueError, match=r"^vector: expected 4 rows, as many as outputs has, got 3"):
        loss.hvp(outputs, targets, np.ones((3, outputs.shape[1])))
    with pytest.raises(ValueError, match=r"^vector: expected shape \(batch, [34]\), got \(4, 2\)"):
        loss.hvp(outputs, targets, np.ones((4, 2)))


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u4", "i4", "i8", "u8", ">i4", ">i8"])
def test_labels_of_every_integer_type(isa, kind):
    outputs, labels, _ = data("cross_entropy", np.dtype(np.float64), 9, 5)
    expected = cnn.CrossEntropyLoss()(outputs, labels)
    assert cnn.CrossEntropyLoss()(outputs, labels.astype(kind)) == expected
    assert cnn.CrossEntropyLoss()(outputs, labels.tolist()) == expected


@looped("name", LABELLED)
def test_what_else_may_stand_for_labels(isa, dtype, name):
    """Bools, whole floats, columns, rows of one 1 (scikit-learn's LabelBinarizer), pandas' integers."""
    outputs, labels, weights = data(name, dtype, 9, 3)
    loss = loss_of(name, 3)
    expected = loss(outputs, labels, weights)
    one_hot = np.eye(3, dtype=int)[labels]
    others = [labels.astype(float), labels.astype("f4"), labels[:, None], labels[:, None].astype(float), one_hot]
    others += [one_hot.astype(bool), labels.astype(object), pandas.Series(labels, dtype="Int64")]
    for other in others:
        assert loss(outputs, other, weights) == expected
    loss, two = loss_of(name, 2), labels % 2
    if loss.ignore_index not in (0, 1):
        assert loss(outputs[:, :2], two.astype(bool)) == loss(outputs[:, :2], two)


def test_ignored_in_unsigned_labels(isa):
    """An unsigned index above those of the classes can be ignored too."""
    outputs = data("cross_entropy", np.dtype(np.float64), 3, 5)[0]
    loss = cnn.CrossEntropyLoss(ignore_index=255)
    assert loss(outputs, np.array([1, 255, 2], np.uint8)) == loss(outputs[[0, 2]], [1, 2])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (cnn.CrossEntropyLoss([1, 2]), "^CrossEntropyLoss: weight has 2 entries, but there are 3 outputs"),
        (cnn.NLLLoss([1, 2, 3, 4]), "^NLLLoss: weight has 4 entries, but there are 3 outputs"),
        (cnn.BCEWithLogitsLoss(pos_weight=[1, 2]), "^BCEWithLogitsLoss: pos_weight has 2 entries, but there are 3 out"),
        (cnn.QuantileLoss([0.1, 0.5]), "^QuantileLoss: expected 2 outputs for each target, got 3 outputs"),
        (cnn.GaussianNLLLoss(), "^GaussianNLLLoss: expected 2 outputs for each target, got 3 outputs"),
    ],
)
def test_a_loss_that_does_not_fit_the_outputs(isa, dtype, loss, message):
    """Alone when it is called, in a model when that is built."""
    with pytest.raises(ValueError, match=message):
        loss(np.ones((2, 3), dtype), [0, 1])
    with pytest.raises(ValueError, match=message):
        cnn.Sequential([cnn.Linear(5, 3), loss], dtype=dtype)


def test_weights_too_large_for_float32(isa):
    loss = cnn.CrossEntropyLoss([1.0, 1e300])
    assert loss(np.ones((2, 2)), [0, 1]) == pytest.approx(np.log(2))
    with pytest.raises(ValueError, match=r"^CrossEntropyLoss: weight\[1\] is 1e\+300, too large for float32"):
        loss(np.ones((2, 2), np.float32), [0, 1])


# constructors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: cnn.MSELoss(reduction="none"), ValueError, "^reduction: expected one of 'mean', 'sum', got 'none'"),
        (lambda: cnn.MSELoss(reduction=None), ValueError, "^reduction: expected one of 'mean', 'sum', got None"),
        (lambda: cnn.MSELoss("sum"), TypeError, "positional"),
        (lambda: cnn.HuberLoss(delta=0), ValueError, "^delta: expected a number above 0, got 0"),
        (lambda: cnn.HuberLoss(delta=np.inf), ValueError, "^delta: expected a finite number, got inf"),
        (lambda: cnn.HuberLoss(delta="1"), TypeError, "^delta: expected a number, got '1'"),
        (lambda: cnn.HuberLoss(delta=True), TypeError, "^delta: expected a number, got True"),
        (lambda: cnn.SmoothL1Loss(beta=-1), ValueError, "^beta: expected a finite number of at least 0, got -1"),
        (lambda: cnn.SmoothL1Loss(beta=np.nan), ValueError, "^beta: expected a finite number of at least 0, got nan"),
        (lambda: cnn.BCEWithLogitsLoss(pos_weight=-1), ValueError, "^pos_weight: expected a finite number of at least"),
        (lambda: cnn.BCEWithLogitsLoss(pos_weight=[1, np.nan]), ValueError, r"^pos_weight\[1\] is nan, expected a fin"),
        (lambda: cnn.BCEWithLogitsLoss(pos_weight=[[1, 2]]), ValueError, r"^pos_weight: expected one number for each"),
        (lambda: cnn.BCEWithLogitsLoss(pos_weight="heavy"), TypeError, "^pos_weight: expected a number, got 'heavy'"),
        (
            lambda: cnn.CrossEntropyLoss([1, -2]),
            ValueError,
            r"^weight\[1\] is -2.0, expected a finite number, not below",
        ),
        (lambda: cnn.CrossEntropyLoss([np.inf, 1]), ValueError, r"^weight\[0\] is inf, expected a finite number, not"),
        (lambda: cnn.CrossEntropyLoss(3.0), ValueError, r"^weight: expected one number .*array of shape \(\)"),
        (lambda: cnn.CrossEntropyLoss([]), ValueError, r"^weight: expected one number .*array of shape \(0,\)"),
        (lambda: cnn.CrossEntropyLoss(["a"]), TypeError, "^weight: expected numbers, got dtype <U1"),
        (lambda: cnn.CrossEntropyLoss([True]), TypeError, "^weight: expected numbers, got dtype bool"),
        (lambda: cnn.CrossEntropyLoss(ignore_index=1.0), TypeError, "^ignore_index: expected an int, got 1.0"),
        (lambda: cnn.CrossEntropyLoss(ignore_index=2**63), ValueError, "^ignore_index: expected a 64-bit int"),
        (
            lambda: cnn.CrossEntropyLoss(label_smoothing=1.5),
            ValueError,
            "^label_smoothing: expected a number from 0 to 1, got 1.5",
        ),
        (
            lambda: cnn.CrossEntropyLoss(label_smoothing=-0.1),
            ValueError,
            "^label_smoothing: expected a number from 0 to 1",
        ),
        (lambda: cnn.NLLLoss([1, np.nan]), ValueError, r"^weight\[1\] is nan"),
        (lambda: cnn.NLLLoss(ignore_index=None), TypeError, "^ignore_index: expected an int, got None"),
        (lambda: cnn.PoissonNLLLoss(eps=-1), ValueError, "^eps: expected a finite number of at least 0, got -1"),
        (lambda: cnn.PoissonNLLLoss(log_input=1), TypeError, "^log_input: expected True or False, got 1"),
        (lambda: cnn.PoissonNLLLoss(full="yes"), TypeError, "^full: expected True or False, got 'yes'"),
        (
            lambda: cnn.QuantileLoss([0.5, 1.0]),
            ValueError,
            r"^quantiles\[1\] is 1.0, expected a number between 0 and 1",
        ),
        (lambda: cnn.QuantileLoss([0, 0.5]), ValueError, r"^quantiles\[0\] is 0.0, expected a number between 0 and 1"),
        (lambda: cnn.QuantileLoss(np.nan), ValueError, r"^quantiles\[0\] is nan, expected a number between 0 and 1"),
        (lambda: cnn.QuantileLoss([]), ValueError, r"^quantiles: expected one number for each output, .*\(0,\)"),
        (lambda: cnn.CallableLoss(3), TypeError, r"^function: expected a callable \(outputs, targets\) -> .*, got 3"),
    ],
)
def test_constructors_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


@looped("name", LOSSES)
def test_config_is_the_constructors_arguments(name):
    """Through JSON and back: the same loss."""
    loss = loss_of(name, 3, reduction="sum")
    config = json.loads(json.dumps(loss.get_config()))
    names = inspect.signature(type(loss)).parameters
    assert list(config) == [name for name in names if name not in loss._if_used or getattr(loss, name)]
    again = type(loss)(**config)
    assert again.get_config() == config
    assert again.spec() == loss.spec()
    outputs, targets, weights = data(name, np.dtype(np.float64), 5, 3)
    assert again(outputs, targets, weights) == loss(outputs, targets, weights)
    assert eval(repr(loss), vars(cnn).copy()).get_config() == config


def test_defaults_are_pytorchs():
    assert [repr(make()) for make in (cnn.MSELoss, cnn.HuberLoss, cnn.CrossEntropyLoss, cnn.PoissonNLLLoss)] == [
        "MSELoss()",
        "HuberLoss()",
        "CrossEntropyLoss()",
        "PoissonNLLLoss()",
    ]
    assert cnn.HuberLoss().get_config() == {"delta": 1.0, "reduction": "mean"}
    assert cnn.SmoothL1Loss(chosen=True).get_config() == {"beta": 1.0, "reduction": "mean", "chosen": True}
    assert cnn.BCEWithLogitsLoss().get_config() == {"pos_weight": None, "reduction": "mean"}
    expected = {"log_var": True, "full": False, "eps": 1e-6, "reduction": "mean"}
    assert cnn.GaussianNLLLoss().get_config() == expected
    assert cnn.GaussianNLLLoss(ignore_nan=True).get_config() == {**expected, "ignore_nan": True}
    assert cnn.NLLLoss().get_config() == {"weight": None, "ignore_index": -100, "reduction": "mean"}
    expected = {"weight": None, "ignore_index": -100, "label_smoothing": 0.0, "reduction": "mean"}
    assert cnn.CrossEntropyLoss().get_config() == expected
    expected = {"log_input": True, "full": False, "eps": 1e-8, "reduction": "mean"}
    assert cnn.PoissonNLLLoss().get_config() == expected
    assert repr(cnn.CrossEntropyLoss([1, 2], label_smoothing=0.1)) == (
        "CrossEntropyLoss(weight=[1.0, 2.0], label_smoothing=0.1)"
    )


def test_weights_are_a_copy():
    weight = np.array([1.0, 2.0])
    loss = cnn.CrossEntropyLoss(weight)
    weight[0] = 5
    assert loss.weight.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        loss.weight[0] = 3


# a loss of the user's own ------------------------------------------------------------------------


def test_callable_loss(isa, dtype):
    outputs, targets, _ = data("mse", dtype, 5, 3)
    loss, native = cnn.CallableLoss(squared), cnn.MSELoss()
    assert loss(outputs, targets) == pytest.approx(native(outputs, targets), rel=1e-6)
    assert loss.backward().dtype == dtype
    np.testing.assert_allclose(loss.backward(), native.backward(), rtol=1e-5, atol=1e-7)
    assert loss.spec() is None
    assert repr(loss) == "CallableLoss(squared)"
    with pytest.raises(TypeError, match=r"^CallableLoss\(squared\) holds a Python function, which cannot be saved"):
        loss.get_config()
    with pytest.raises(NotImplementedError, match=r"^CallableLoss\(squared\) has no second derivative"):
        loss.hvp(outputs, targets, outputs)
    with pytest.raises(ValueError, match=r"^sample_weight: expected none with CallableLoss\(squared\)"):
        loss(outputs, targets, np.ones(5))
    with pytest.raises(RuntimeError, match=r"^backward needs a forward pass"):
        cnn.CallableLoss(squared).backward()


def test_callable_loss_gets_what_was_passed():
    """Targets of any kind go through untouched; an array of one number is a number."""
    seen = []

    def function(outputs, targets):
        seen.append((outputs, targets))
        return np.array([[2.5]]), np.ones((2, 1), int)

    targets = {"left": object()}
    loss = cnn.CallableLoss(function)
    assert loss([[1], [2]], targets) == 2.5
    assert seen[0][1] is targets
    assert seen[0][0].dtype == np.float64
    np.testing.assert_array_equal(loss.backward(), [[1.0], [1.0]])


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (1.0, TypeError, r"expected \(loss, gradient\), got float"),
        (np.ones(2), TypeError, r"expected \(loss, gradient\), got ndarray of shape \(2,\)"),
        (None, TypeError, r"expected \(loss, gradient\), got NoneType"),
        (("a", np.ones((3, 2))), TypeError, "expected a number for the loss, got str"),
        ((np.ones(3), np.ones((3, 2))), TypeError, r"expected a number for the loss, got ndarray of shape \(3,\)"),
        ((None, np.ones((3, 2))), TypeError, "expected a number for the loss, got NoneType"),
        ((1.0, None), TypeError, "expected a gradient of real numbers, got dtype object"),
        ((1.0, 1j * np.ones((3, 2))), TypeError, "expected a gradient of real numbers, got dtype complex128"),
        ((1.0, np.ones((2, 3))), ValueError, r"expected a gradient of the outputs' shape \(3, 2\), got \(2, 3\)"),
        ((1.0, 1.0), ValueError, r"expected a gradient of the outputs' shape \(3, 2\), got \(\)"),
        ((1.0, np.full((3, 2), np.nan)), ValueError, r"the gradient at \[0, 0\] is nan"),
    ],
)
def test_what_a_callable_returns_is_checked(result, error, message):
    def mine(outputs, targets):
        return result

    loss = cnn.CallableLoss(mine)
    with pytest.raises(error, match=r"^CallableLoss\(.*mine\): " + message):
        loss(np.ones((3, 2)), np.ones((3, 2)))


def test_a_callable_may_diverge():
    """A loss that is not finite is passed on: fit makes a DivergenceError of it."""
    loss = cnn.CallableLoss(lambda outputs, targets: (np.nan, np.full((3, 2), np.nan)))
    assert np.isnan(loss(np.ones((3, 2)), None))
    with pytest.raises(TypeError, match=r"^outputs: expected real numbers"):
        loss(np.ones((3, 2), complex), None)
    with pytest.raises(ValueError, match=r"^outputs: expected shape \(batch, out_features\), got \(3,\)"):
        loss(np.ones(3), None)
