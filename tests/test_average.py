"""The moving average of the parameters as users see it; its values are compared with PyTorch in peers/."""

import numpy as np
import pytest

import cnn

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 4)), RNG.normal(size=(64, 2))


def model_of(**hyper):
    layers = [cnn.Linear(4, 7), cnn.BatchNorm1d(7), cnn.Tanh(), cnn.Linear(7, 2), cnn.MSELoss()]
    return cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1, **hyper), dtype="float64", seed=0)


def test_formula():
    """Before the first step the average is the parameters; the first step makes it begin with theirs after it."""
    model = model_of(ema_decay=0.75)
    np.testing.assert_array_equal(model.averaged_parameters, model.parameters)
    model.train_step(X, Y)
    average = model.parameters
    np.testing.assert_allclose(model.averaged_parameters, average, rtol=1e-15)
    for _ in range(4):
        model.train_step(X, Y)
        average = 0.75 * average + 0.25 * model.parameters
    np.testing.assert_allclose(model.averaged_parameters, average, rtol=1e-13)


def test_using_average(tmp_path):
    model = model_of(ema_decay=0.9)
    model.fit(X, Y, epochs=5, progress=False)
    trained, average = model.parameters, model.averaged_parameters
    assert not np.allclose(trained, average)
    with model.using_average() as same:
        assert same is model
        np.testing.assert_array_equal(model.parameters, average)
        predicted = model.predict(X)
        model.save(tmp_path / "average.safetensors")
    np.testing.assert_array_equal(model.parameters, trained)
    np.testing.assert_array_equal(cnn.load(tmp_path / "average.safetensors").predict(X), predicted)
    assert not np.allclose(model.predict(X), predicted)
    with pytest.raises(KeyError), model.using_average():
        raise KeyError
    np.testing.assert_array_equal(model.parameters, trained)


@pytest.mark.parametrize("optimizer", [None, cnn.SGD()])
def test_no_average(optimizer):
    model = cnn.Sequential([cnn.Linear(4, 2)], optimizer=optimizer)
    before = model.parameters
    with pytest.raises(RuntimeError, match=r"^there is no average: expected an optimizer with ema_decay, got"):
        model.averaged_parameters  # noqa: B018
    with pytest.raises(RuntimeError, match=r"^there is no average"), model.using_average():
        pass
    np.testing.assert_array_equal(model.parameters, before)
