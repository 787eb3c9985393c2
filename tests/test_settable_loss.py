"""Losses that are set later, and models with a loss of one's own that are saved, loaded, pickled and continued."""

import functools
import pickle

import numpy as np
import pytest
from networks import squared

import cnn

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 5)), RNG.normal(size=(40, 3))


class Scaled:
    """An object that can be called, with a state."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, outputs, targets):
        loss, gradient = squared(outputs, targets)
        return self.factor * loss, self.factor * gradient


def model_of(loss, seed=0):
    layers = [cnn.Linear(5, 9), cnn.Dropout(0.2), cnn.Tanh(), cnn.Linear(9, 3)]
    optimizer = cnn.Adam(0.01, schedule=cnn.StepLR(1, 0.9))
    return cnn.Sequential([*layers, *([] if loss is None else [loss])], optimizer, dtype="float64", seed=seed)


def test_another_loss(isa):
    """It is as if the model had been made with it."""
    quantiles = cnn.QuantileLoss([0.1, 0.5, 0.9])
    losses = [cnn.MSELoss(), cnn.CrossEntropyLoss(), squared, cnn.HuberLoss(), quantiles, None, cnn.L1Loss()]
    model, labels = model_of(cnn.MSELoss()), RNG.integers(0, 3, 40)
    model.train_step(X, Y)
    for loss in losses:
        model.loss = loss
        if loss is None:
            with pytest.raises(RuntimeError, match="the model has no loss"):
                model.train_step(X, Y)
            assert model.loss is None
            continue
        y = labels if isinstance(loss, cnn.CrossEntropyLoss) else Y[:, 0] if isinstance(loss, cnn.QuantileLoss) else Y
        made = model_of(loss)
        made.optimizer = None
        made.copy_from(model)
        assert repr(model.loss) == repr(made.loss)
        assert model.evaluate(X, y) == made.evaluate(X, y)
        for m in (model, made):
            m.eval()
        np.testing.assert_array_equal(model.loss_and_grad(X, y)[1], made.loss_and_grad(X, y)[1])
        model.train()
        if isinstance(loss, (cnn.CrossEntropyLoss, cnn.HuberLoss)):
            np.testing.assert_array_equal(model.hvp(X, y, made.parameters), made.hvp(X, y, made.parameters))
        before = model.copy()
        assert model.fit(X, y, epochs=2) == before.fit(X, y, epochs=2)


def test_a_pending_backward_is_of_the_old_loss():
    model = model_of(cnn.MSELoss())
    model(X, Y)
    model.loss = cnn.L1Loss()
    with pytest.raises(RuntimeError, match="the loss has been changed since"):
        model.backward()


def test_what_no_loss_is():
    model = model_of(cnn.MSELoss())
    for wrong in (0.7, "mse", cnn.MSELoss, cnn.ReLU()):
        with pytest.raises(TypeError, match="loss: expected a loss such as"):
            model.loss = wrong
    with pytest.raises(ValueError, match="weight has 2 entries, but there are 3 outputs"):
        model.loss = cnn.CrossEntropyLoss([1.0, 2.0])
    assert isinstance(model.loss, cnn.MSELoss)
    assert model._core.loss is model.loss
    model.train_step(X, Y)
    with pytest.raises(RuntimeError, match="a part of a model has no loss of its own"):
        model[:2].loss = cnn.MSELoss()


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("loss", [squared, cnn.CallableLoss(squared, reduction="sum"), Scaled(3.0), cnn.MSELoss()])
def test_files_without_the_loss(isa, tmp_path, loss, state):
    path = tmp_path / "model.safetensors"
    model = model_of(loss)
    model.fit(X, Y, epochs=2)
    if not isinstance(loss, cnn.MSELoss):
        with pytest.raises(TypeError, match=r"model.save\(path, loss=False\) and then cnn.load"):
            model.save(path, training_state=state)
        assert not path.exists()
    model.save(path, training_state=state, loss=False)
    assert cnn.load(path).loss is None
    again = cnn.load(path, loss=loss)
    assert repr(again.loss) == repr(model.loss)
    np.testing.assert_array_equal(again.parameters, model.parameters)
    if state:
        assert again.fit(X, Y, epochs=4, initial_epoch=2) == model.fit(X, Y, epochs=4, initial_epoch=2)
        np.testing.assert_array_equal(again.parameters, model.parameters)


def test_a_loss_in_place_of_the_files(tmp_path):
    path = tmp_path / "model.safetensors"
    model_of(cnn.MSELoss()).save(path)
    assert isinstance(cnn.load(path, loss=cnn.L1Loss()).loss, cnn.L1Loss)
    assert isinstance(cnn.load(path).loss, cnn.MSELoss)
    with pytest.raises(TypeError, match="loss: expected a loss"):
        cnn.load(path, loss=3)


@pytest.mark.parametrize("seed", [0, 9, None])
@pytest.mark.parametrize("loss", [squared, Scaled(3.0), cnn.MSELoss()])
def test_checkpoints(isa, tmp_path, loss, seed):
    """A run that is killed goes on as if nothing had happened, whatever the seed of the model that goes on."""
    whole = model_of(loss)
    expected = whole.fit(X, Y, epochs=6)
    model_of(loss).fit(X, Y, epochs=3, checkpoint=tmp_path / "run")
    model = model_of(loss, seed=seed)
    assert model.fit(X, Y, epochs=6, checkpoint=tmp_path / "run", resume=True) == expected
    np.testing.assert_array_equal(model.parameters, whole.parameters)


@pytest.mark.parametrize("loss", [squared, functools.partial(squared), Scaled(3.0)])
def test_pickles(isa, loss):
    model = model_of(loss)
    model.fit(X, Y, epochs=2)
    again = pickle.loads(pickle.dumps(model))
    assert again.fit(X, Y, epochs=4, initial_epoch=2) == model.fit(X, Y, epochs=4, initial_epoch=2)
    np.testing.assert_array_equal(again.parameters, model.parameters)


def test_what_pickle_cannot():
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(model_of(lambda outputs, targets: squared(outputs, targets)))


def test_copies_keep_the_function():
    function = lambda outputs, targets: squared(outputs, targets)  # noqa: E731
    model = model_of(function)
    other = model.copy()
    assert other.loss.function is function
    assert other.fit(X, Y, epochs=2) == model.fit(X, Y, epochs=2)
    state = Scaled(2.0)
    other = model_of(state).copy()
    other.loss.function.factor = 5.0
    assert state.factor == 2.0
