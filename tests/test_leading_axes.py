"""x with other leading axes than (batch,): each (in_features,) is a row, and results have the axes of x."""

import numpy as np
import pytest
from arrays import looped
from grid import LAYERS
from networks import squared

import cnn

LEADING = [(), (1,), (4,), (2, 3), (2, 1, 3), (0, 3), (1, 0, 2)]


def model_of(outputs, loss, **options):
    parts = [cnn.Linear(5, 7), cnn.Tanh(), cnn.Linear(7, outputs), loss]
    return cnn.Sequential(parts, cnn.SGD(lr=0.1), seed=0, **options)


LOSSES = {
    "mse": (3, cnn.MSELoss, lambda rng, lead: rng.standard_normal((*lead, 3))),
    "mse of one": (1, cnn.MSELoss, lambda rng, lead: rng.standard_normal(lead)),
    "mse of a column": (1, cnn.MSELoss, lambda rng, lead: rng.standard_normal((*lead, 1))),
    "chosen": (
        3,
        lambda: cnn.HuberLoss(chosen=True),
        lambda rng, lead: (rng.integers(0, 3, lead), rng.standard_normal(lead)),
    ),
    "gaussian": (2, cnn.GaussianNLLLoss, lambda rng, lead: rng.standard_normal(lead)),
    "cross_entropy": (3, cnn.CrossEntropyLoss, lambda rng, lead: rng.integers(0, 3, lead)),
    "probabilities": (3, cnn.CrossEntropyLoss, lambda rng, lead: rng.dirichlet(np.ones(3), lead)),
    "own": (3, lambda: cnn.CallableLoss(squared), lambda rng, lead: rng.standard_normal((*lead, 3))),
}


def rows_of(a, axes):
    """The same with one leading axis."""
    if isinstance(a, tuple):
        return tuple(rows_of(one, axes) for one in a)
    return np.reshape(a, (int(np.prod(np.shape(a)[:axes])), *np.shape(a)[axes:]))


@pytest.mark.parametrize("lead", LEADING, ids=str)
def test_outputs(isa, dtype, lead):
    x = np.random.default_rng(0).standard_normal((*lead, 5)).astype(dtype)
    model = model_of(3, cnn.CrossEntropyLoss(), dtype=dtype)
    flat = x.reshape(-1, 5)
    for f in (model.predict, model.forward, model.predict_proba):
        for given in (x, np.asfortranarray(x), x.astype(np.float64), x.tolist()) if x.size else (x,):
            y = f(given)
            assert y.shape == (*lead, 3)
            np.testing.assert_array_equal(y.reshape(-1, 3), f(flat))
    out = np.empty((*lead, 3), dtype)
    assert model.predict(x, out=out) is out
    np.testing.assert_array_equal(out.reshape(-1, 3), model.predict(flat))
    if len(lead) != 1:
        with pytest.raises(ValueError, match=r"^out: expected shape"):
            model.predict(x, out=np.empty((len(flat), 3), dtype))


@looped("lead", [lead for lead in LEADING if 0 not in lead])
@pytest.mark.parametrize("loss", LOSSES)
def test_training(isa, dtype, lead, loss):
    outputs, make, draw = LOSSES[loss]
    rng = np.random.default_rng(1)
    x, y, w = rng.standard_normal((*lead, 5)), draw(rng, lead), rng.integers(1, 4, lead)
    flat, flat_y, flat_w = rows_of(x, len(lead)), rows_of(y, len(lead)), rows_of(w, len(lead))
    weights = (None,) if loss == "own" else (None, w)
    for weight in weights:
        flat_weight = None if weight is None else flat_w
        models = [model_of(outputs, make(), dtype=dtype) for _ in range(2)]
        found = []
        for model, a, b, c in zip(models, (x, flat), (y, flat_y), (weight, flat_weight), strict=True):
            values = [model(a, b), model.backward().reshape(-1, 5), *model.loss_and_grad(a, b)]
            values += [model.train_step(a, b, c), model.evaluate(a, b, c)["loss"]]
            values += [model.fit(a, b, sample_weight=c, validation_data=(a, b))["val_loss"][0], model.parameters]
            found.append(values)
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)


def test_gradients(isa, dtype):
    """backward takes the gradient in the outputs' shape and gives that of x in x's."""
    x = np.random.default_rng(0).standard_normal((2, 3, 5))
    model = model_of(4, cnn.MSELoss(), dtype=dtype)
    g = np.random.default_rng(1).standard_normal((2, 3, 4))
    model(x.reshape(6, 5))
    expected = model.backward(g.reshape(6, 4))
    assert expected.shape == (6, 5)
    model(x)
    np.testing.assert_array_equal(model.backward(g), expected.reshape(2, 3, 5))
    model(x[0, 0])
    assert model.backward(g[0, 0]).shape == (5,)
    model(x[0, 0][None])
    with pytest.raises(ValueError, match=r"^grad_output: expected shape"):
        model.backward(g[0, 0])


@pytest.mark.parametrize("name", LAYERS)
def test_layers_alone(isa, dtype, name):
    layer = LAYERS[name].make(6, dtype)
    if isinstance(layer, cnn.Sequential):
        return
    layer.training = False
    x = np.random.default_rng(0).standard_normal((2, 3, 6)).astype(dtype)
    expected = layer(x.reshape(6, 6))
    g = np.random.default_rng(1).standard_normal(expected.shape).astype(dtype)
    grad_x = layer.backward(g)
    np.testing.assert_array_equal(layer(x), expected.reshape(2, 3, -1))
    np.testing.assert_array_equal(layer.backward(g.reshape(2, 3, -1)), grad_x.reshape(2, 3, 6))
    assert layer(x[0, 0]).shape == expected[0].shape
    assert layer.backward(g[0]).shape == (6,)


def test_leading_axes_that_differ():
    model = model_of(3, cnn.CrossEntropyLoss())
    x, y = np.ones((2, 3, 5)), np.zeros((2, 3), int)
    for call in (model, model.train_step, model.evaluate, model.loss_and_grad, model.fit):
        with pytest.raises(ValueError, match=r"^(y|targets): expected the leading axes of x, \(2, 3\), got shape \(3"):
            call(x, y.T)
    with pytest.raises(ValueError, match=r"^sample_weight: expected the leading axes of x, \(2, 3\), got shape \(6,\)"):
        model.train_step(x, y, np.ones(6))
    with pytest.raises(ValueError, match=r"^x: expected shape \(batch, 5\) .*got \(2, 5, 3\)"):
        model.predict(x.transpose(0, 2, 1))


def test_one_output_is_a_column():
    """Also where y was a vector; metrics never take a column from a vector."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 5)), rng.standard_normal(50)
    model = model_of(1, cnn.MSELoss(), dtype="float64")
    outputs = model.predict(x)
    assert outputs.shape == (50, 1)
    shapes = []

    def mse(targets, outputs):
        shapes.append((targets.shape, outputs.shape))
        return np.mean((targets - outputs) ** 2)

    for targets in (y, y[:, None]):
        scores = model.evaluate(x, targets, metrics=["mae", "rmse", mse])
        assert scores["mae"] == pytest.approx(np.abs(outputs[:, 0] - y).mean())
        assert scores["mse"] == pytest.approx(scores["loss"])
        assert scores["rmse"] == pytest.approx(scores["loss"] ** 0.5)
    assert set(shapes) == {((50, 1), (50, 1))}
    own = model_of(1, cnn.CallableLoss(squared), dtype="float64")
    with pytest.raises(
        ValueError, match=r"got \(50, 50\): outputs are a column, targets are not: use targets\[:, None\]"
    ):
        own.train_step(x, y)
    with pytest.raises(
        ValueError, match=r"^x: expected shape \(batch, 1\) .*got \(50,\): \[:, None\] makes it a column"
    ):
        cnn.Sequential([cnn.Linear(1, 1)]).predict(y)
