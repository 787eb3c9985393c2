"""`Constant`: what the grid does not say of it."""

import numpy as np
import pytest

import cnn


def test_a_free_log_deviation(isa, dtype):
    """Its gradient is that of the log-likelihood; NaN and infinity in x do not reach it."""
    model = cnn.Sequential(
        [cnn.Linear(3, 4), cnn.Concat(cnn.Linear(4, 2), cnn.Constant(2, init=[-0.5, 1.0]))], dtype=dtype
    )
    x = np.random.default_rng(0).standard_normal((7, 3))
    np.testing.assert_array_equal(model.predict(x)[:, 2:], np.tile([-0.5, 1.0], (7, 1)))
    np.testing.assert_array_equal(model.predict(np.full((2, 3), np.nan))[:, 2:], np.tile([-0.5, 1.0], (2, 1)))
    model(x)
    grad_x = model.backward(np.tile([0, 0, 1, 2], (7, 1)))
    np.testing.assert_array_equal(model[1][1].grad_bias, [7, 14])
    assert not grad_x.any()
    assert list(model.state_dict()) == ["0.weight", "0.bias", "1.0.weight", "1.0.bias", "1.1.bias"]


def test_alone(isa, dtype):
    layer = cnn.Constant(3, init=2.0, dtype=dtype)
    for width in (1, 40):
        y = layer(np.ones((5, width)))
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, np.full((5, 3), 2.0))
        assert not layer.backward(np.ones((5, 3))).any()
    np.testing.assert_array_equal(layer.grad_bias, [10, 10, 10])
    layer.update_parameters(0.1)
    np.testing.assert_allclose(layer.bias, [1, 1, 1], rtol=1e-6)
    assert layer.weight is None
    assert layer(np.ones(4)).shape == (3,)


@pytest.mark.parametrize("n", [1, 5, 17, 64, 1100])
def test_training(isa, dtype, n):
    """It learns the mean, in every way to train, from any row to the next."""
    y = np.random.default_rng(0).standard_normal((50, n + 1))
    models = [
        cnn.Sequential(
            [cnn.Concat(cnn.Linear(2, 1), cnn.Constant(n)), cnn.MSELoss()], cnn.SGD(0.5 * (n + 1)), dtype, seed=0
        )
        for _ in range(3)
    ]
    x = np.zeros((50, 2))
    models[0].train_step(x, y)
    models[1].fit(x, y, batch_size=50, shuffle=False)
    models[2](x, y)
    models[2].backward()
    models[2].step()
    for model in models:
        np.testing.assert_allclose(model[0][1].bias, y.mean(axis=0)[1:], rtol=1e-4, atol=1e-5)
    model = models[0]
    model[0][1].trainable = False
    before = model[0][1].bias.copy()
    model.train_step(x, y)
    np.testing.assert_array_equal(model[0][1].bias, before)


def test_arguments(tmp_path):
    for wrong, error in (([1.0], ValueError), ("a", TypeError), (np.nan, ValueError), ([[1, 2]], ValueError)):
        with pytest.raises(error, match="init: expected"):
            cnn.Constant(2, init=wrong)
    with pytest.raises(ValueError, match="out_features"):
        cnn.Constant(0)
    assert repr(cnn.Constant(2, init=[1, 2])) == "Constant(2, init=[1.0, 2.0])"
    model = cnn.Sequential([cnn.Concat(cnn.Linear(1, 1), cnn.Constant(2, init=3))], seed=0)
    model.save(tmp_path / "m.safetensors")
    again = cnn.load(tmp_path / "m.safetensors")
    assert repr(again) == repr(model)
    np.testing.assert_array_equal(again.predict([[1.0]]), model.predict([[1.0]]))
    with pytest.raises(ValueError, match="x: expected shape"):
        cnn.Constant(2)(3.0)
