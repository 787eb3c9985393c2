"""fit with a loss of the user's own."""

import numpy as np
import pytest
from networks import assert_close, batch_for, chain, squared

import cnn


def with_loss(loss, **optimizer):
    layers = [cnn.Linear(5, 9), cnn.Tanh(), cnn.Linear(9, 3), loss]
    optimizer = cnn.SGD(**(optimizer or {"lr": 0.1, "momentum": 0.9}))
    return cnn.Sequential(layers, optimizer=optimizer, dtype="float64", seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 7, "shuffle": False},
        {"batch_size": 4, "accumulation_steps": 3},
        {"metrics": ["mae", "r2"], "validation_split": 0.25},
        {"callbacks": [cnn.LambdaCallback(on_batch_end=lambda batch, logs: None)]},
    ],
    ids=str,
)
@pytest.mark.parametrize("source", ["array", "blocks", "batches"])
def test_a_loss_of_ones_own(settings, source):
    """The numbers of the library's loss that computes the same."""
    x, y = batch_for(chain(5, 9, 3), "mse", 40, np.float64)
    if source == "batches" and "validation_split" in settings:
        settings = {"metrics": ["mae"], "validation_data": (x, y)}
    data = {
        "array": (x, y),
        "blocks": (cnn.Blocks(x, y, rows=16),),
        "batches": ([(x[i : i + 8], y[i : i + 8]) for i in range(0, 40, 8)],),
    }[source]
    own, native = with_loss(cnn.CallableLoss(squared)), with_loss(cnn.MSELoss())
    histories = [model.fit(*data, epochs=3, **settings) for model in (own, native)]
    assert list(histories[0]) == list(histories[1])
    for name in histories[0]:
        assert_close(histories[0][name], histories[1][name], 1e-10, name)
    assert_close(own.parameters, native.parameters, 1e-10)
    assert own._core.program.steps == native._core.program.steps
    scores = own.evaluate(*data, metrics=["rmse"])
    assert scores == pytest.approx(native.evaluate(*data, metrics=["rmse"]), rel=1e-10)


def test_a_loss_of_ones_own_with_a_schedule():
    x, y = batch_for(chain(5, 9, 3), "mse", 40, np.float64)
    schedule = cnn.OneCycleLR(max_lr=0.3, total_steps=15)
    own, native = (
        with_loss(loss, lr=0.1, momentum=0.9, schedule=schedule) for loss in (cnn.CallableLoss(squared), cnn.MSELoss())
    )
    histories = [model.fit(x, y, epochs=3, batch_size=8) for model in (own, native)]
    assert histories[0]["lr"] == histories[1]["lr"]
    assert_close(own.parameters, native.parameters, 1e-10)


def test_a_loss_of_ones_own_gets_the_targets_as_they_are():
    seen = []

    def own(outputs, targets):
        seen.append(targets)
        return float(np.sum(outputs**2)), 2 * outputs

    x, _ = batch_for(chain(5, 9, 3), "mse", 4, np.float64)
    y = np.array(["a", "b", "c", "d"])
    with_loss(cnn.CallableLoss(own)).fit(x, y, batch_size=2, shuffle=False)
    assert [targets.tolist() for targets in seen] == [["a", "b"], ["c", "d"]]


def test_a_loss_of_ones_own_that_fails():
    """The model is as it was before the epoch."""
    x, y = batch_for(chain(5, 9, 3), "mse", 40, np.float64)
    wrong = {"is": None}

    def own(outputs, targets):
        if wrong["is"] == "loss" and targets[0, 0] == y[24, 0]:
            return np.nan, outputs
        if wrong["is"] == "exception" and targets[0, 0] == y[24, 0]:
            raise KeyError("mine")
        return squared(outputs, targets)

    model = with_loss(cnn.CallableLoss(own))
    model.fit(x, y, epochs=2)
    before, steps = model.parameters, model._core.program.steps
    wrong["is"] = "loss"
    with pytest.raises(cnn.DivergenceError, match=r"in epoch 1, batch 3, at a learning rate of 0\.1;"):
        model.fit(x, y, batch_size=8, shuffle=False)
    np.testing.assert_array_equal(model.parameters, before)
    wrong["is"] = "exception"
    with pytest.raises(KeyError, match="mine"):
        model.fit(x, y, batch_size=8, shuffle=False)
    np.testing.assert_array_equal(model.parameters, before)
    assert model._core.program.steps == steps
    for weights in ({"sample_weight": np.ones(40)}, {"class_weight": {0: 1.0}}):
        with pytest.raises(ValueError, match=f"^{next(iter(weights))}: expected none with a loss of your own"):
            model.fit(x, y, **weights)


def test_inputs_that_are_not_finite_are_named_as_the_reason():
    x, y = batch_for(chain(5, 9, 3), "mse", 40, np.float64)
    model = with_loss(cnn.MSELoss())
    before = model.parameters
    x[11, 2] = np.nan
    with pytest.raises(
        cnn.DivergenceError, match=r"batch 1, .*before this epoch; x has NaN or infinity in this batch: fill or drop"
    ):
        model.fit(x, y, batch_size=8, shuffle=False)
    with pytest.raises(cnn.DivergenceError, match=r"; x has NaN or infinity in this batch: fill or drop"):
        model.fit(x, y, batch_size=8)
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_loss_that_sums(weight_decay):
    """The history is that of the same loss of the library, and does not depend on the size of the batches."""

    def squares(outputs, targets):
        d = outputs - targets
        return (d**2).sum(), 2 * d

    x = np.random.default_rng(0).standard_normal((37, 4))
    y = x[:, :2] ** 2
    own, native = cnn.CallableLoss(squares, reduction="sum"), cnn.MSELoss(reduction="sum")
    for size, steps in ((5, 1), (5, 3), (37, 1)):
        histories, scores = [], []
        for loss in (own, native):
            layers = [cnn.Linear(4, 6, l2=weight_decay), cnn.Tanh(), cnn.Linear(6, 2), loss]
            model = cnn.Sequential(layers, cnn.SGD(lr=1e-3), dtype="float64", seed=0)
            data = {"validation_data": (x, y), "shuffle": False}
            histories.append(model.fit(x, y, epochs=3, batch_size=size, accumulation_steps=steps, **data))
            scores.append(model.evaluate(x, y)["loss"])
        for name in ("loss", "val_loss"):
            np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-12)
        assert scores[0] == pytest.approx(scores[1], rel=1e-12)
    layers = [cnn.Linear(4, 2), own]
    totals = [
        cnn.Sequential(layers, cnn.SGD(lr=0.0), dtype="float64", seed=0).fit(x, y, batch_size=size)["loss"][0]
        for size in (1, 8, 37)
    ]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-12)
