"""A loss of the user's own, a function in Python, in all that a model does with a loss."""

import copy
import functools
import threading

import numpy as np
import pytest
from networks import squared

import cnn

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 5)), RNG.normal(size=(40, 3))


def model_of(loss, **hyper):
    layers = [cnn.Linear(5, 9, l1=1e-3, l2=1e-2), cnn.Dropout(0.2), cnn.Tanh(), cnn.Linear(9, 3), loss]
    hyper = {"lr": 0.01, "clip_norm": 0.5, **hyper}
    return cnn.Sequential(layers, optimizer=cnn.Adam(**hyper), dtype="float64", seed=0)


def assert_close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-13)


@pytest.fixture
def pair():
    """A model with a loss of its own, and one with the library's that computes the same."""
    return model_of(squared), model_of(cnn.MSELoss())


def test_train_step(pair):
    own, native = pair
    for _ in range(5):
        assert_close(own.train_step(X, Y), native.train_step(X, Y))
    assert_close(own.parameters, native.parameters)


def test_train_step_with_a_schedule():
    own, native = (
        model_of(loss, schedule=cnn.StepLR(2, gamma=0.1, interval="step")) for loss in (squared, cnn.MSELoss())
    )
    for _ in range(5):
        own.train_step(X, Y)
        native.train_step(X, Y)
    assert_close(own.parameters, native.parameters)


def test_explicit_loop(pair):
    for _ in range(3):
        losses = [model(X, Y) for model in pair]
        assert_close(*losses)
        for model in pair:
            model.zero_grads()
        assert_close(*[model.backward() for model in pair])
        assert_close(*[model.gradients for model in pair])
        for model in pair:
            model.step()
    assert_close(*[model.parameters for model in pair])


def test_loss_and_grad(pair):
    (loss, gradient), (expected, expected_gradient) = (model.eval().loss_and_grad(X, Y) for model in pair)
    assert_close(loss, expected)
    assert_close(gradient, expected_gradient)
    with pytest.raises(RuntimeError, match="loss_and_grad has run since"):
        pair[0].backward()


def test_penalties_in_fit_and_evaluate(pair):
    histories = [
        model.fit(X, Y, epochs=3, batch_size=8, accumulation_steps=2, validation_split=0.2, progress=False)
        for model in pair
    ]
    for name in histories[1]:
        assert_close(histories[0][name], histories[1][name])
    assert_close(*[model.parameters for model in pair])
    assert_close(*[model.evaluate(X, Y)["loss"] for model in pair])


def test_a_second_backward_needs_another_forward(pair):
    own, _ = pair
    own(X, Y)
    own.backward()
    with pytest.raises(RuntimeError, match="targets that no backward has used"):
        own.backward()
    own(X, Y)
    own(X)  # without targets
    with pytest.raises(RuntimeError, match="targets that no backward has used"):
        own.backward()
    own(X, Y)
    own.train_step(X, Y)
    with pytest.raises(RuntimeError, match="backward needs a forward pass"):
        own.backward()


@pytest.mark.parametrize("loss", [squared, functools.partial(squared), cnn.CallableLoss(squared)])
def test_what_may_stand_last(loss):
    model = cnn.Sequential([cnn.Linear(5, 3), loss])
    assert isinstance(model.loss, cnn.CallableLoss)
    assert model(X, Y) == pytest.approx(squared(model.predict(X), Y)[0])


def test_errors():
    model = model_of(squared)
    before = model.parameters
    with pytest.raises(ValueError, match=r"^sample_weight: expected none with a loss of your own"):
        model.train_step(X, Y, np.ones(40))
    for call in (model, model.train_step):
        with pytest.raises(ValueError, match="empty batch"):
            call(X[:0], Y[:0])
    wrong = model_of(lambda outputs, targets: (1.0, outputs[:, :1]))
    for call in (wrong, wrong.train_step):
        with pytest.raises(ValueError, match=r"expected a gradient of the outputs' shape \(40, 3\), got \(40, 1\)$"):
            call(X, Y)
    np.testing.assert_array_equal(model.parameters, before)
    np.testing.assert_array_equal(wrong.parameters, before)
    with pytest.raises(TypeError, match=r"^layer 0: expected a layer, got <function squared"):
        cnn.Sequential([squared, cnn.Linear(5, 3)])
    with pytest.raises(TypeError, match="pass an object, not the class"):
        cnn.Sequential([cnn.Linear(5, 3), cnn.MSELoss])


def test_grad_input_and_evaluation(pair):
    """A pending backward is refused afterwards, as with the library's losses."""
    assert_close(*[model.grad_input(X, Y) for model in pair])
    for model in pair:
        model(X, Y)
        model.grad_input(X, Y)
        with pytest.raises(RuntimeError, match="grad_input has run since"):
            model.backward()
    assert_close(*[model.evaluate(X, Y, metrics=["mae"])["mae"] for model in pair])


def test_a_copy_of_a_model_whose_loss_is_a_method():
    """The method stays that of its object, which may hold what cannot be copied, and the model itself."""

    class Trainer:
        def __init__(self):
            self.lock = threading.Lock()
            self.model = model_of(self.loss)

        def loss(self, outputs, targets):
            with self.lock:
                return squared(outputs, targets)

    trainer = Trainer()
    for other in (trainer.model.copy(), copy.copy(trainer.model), copy.deepcopy(trainer.model)):
        assert other.loss.function.__self__ is trainer
        assert other.train_step(X, Y) == trainer.model.copy().train_step(X, Y)


def test_weights_with_a_configuration():
    """What describes the layers says nothing of the loss."""
    model, other = model_of(squared), model_of(cnn.MSELoss())
    for config in (model.get_config(loss=False), other.get_config()):
        model.load_weights(other.state_dict(), config=config)
    np.testing.assert_array_equal(model.parameters, other.parameters)
    with pytest.raises(ValueError, match="config: expected the layers of this model"):
        model.load_weights(other.state_dict(), config=cnn.Sequential([cnn.Linear(5, 3)]).get_config())
