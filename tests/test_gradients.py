"""Gradients that the user sets, clips or leaves out, and outputs that come with a product."""

import numpy as np
import pytest
from networks import assert_close, squared

import cnn

X, Y = (np.random.default_rng(0).standard_normal((20, n)) for n in (5, 2))


def built(dtype="float64", seed=0, **options):
    parts = [cnn.Linear(5, 8), cnn.BatchNorm1d(8), cnn.Tanh(), cnn.Concat(cnn.Linear(8, 2), cnn.Constant(1))]
    return cnn.Sequential([*parts, cnn.Linear(3, 2), cnn.MSELoss()], cnn.SGD(0.1, **options), dtype=dtype, seed=seed)


def test_assigning(isa, dtype):
    model = built(dtype)
    g = np.random.default_rng(1).standard_normal(len(model.parameters))
    model.gradients = g
    np.testing.assert_array_equal(model.gradients, g.astype(dtype))
    np.testing.assert_array_equal(model[0].grad_weight.ravel(), g[:40].astype(dtype))
    model.gradients += 1
    assert_close(model.gradients, g + 1, 1e-6)
    for wrong in (g[1:], g[None]):
        with pytest.raises(ValueError, match="gradients: expected"):
            model.gradients = wrong
    with pytest.raises(TypeError, match="gradients: expected real numbers"):
        model.gradients = ["a"] * len(g)


def test_a_step_with_gradients(isa, dtype):
    one, other = built(dtype, momentum=0.9, clip_norm=0.5), built(dtype, momentum=0.9, clip_norm=0.5)
    g = np.random.default_rng(1).standard_normal(len(one.parameters))
    for _ in range(3):
        one.step(gradients=g)
        other.gradients = g
        other.step()
    np.testing.assert_array_equal(one.parameters, other.parameters)
    before = one.parameters
    with pytest.raises(ValueError, match="gradients: expected"):
        one.step(gradients=g[1:])
    np.testing.assert_array_equal(one.parameters, before)


def test_frozen_parameters_have_no_gradient(isa):
    model = built()
    model[0].trainable = {"bias": False}
    model[4].trainable = False
    frozen = np.concatenate([a.ravel() for a in (model[0].bias, model[4].weight, model[4].bias)])
    model.step(gradients=np.ones(len(model.parameters)))
    assert not model[0].grad_bias.any()
    assert model[0].grad_weight.all()
    now = np.concatenate([a.ravel() for a in (model[0].bias, model[4].weight, model[4].bias)])
    np.testing.assert_array_equal(now, frozen)


def test_clip_grad_norm(isa, dtype):
    models = built(dtype), cnn.Sequential([cnn.Linear(3, 300)], dtype=dtype, seed=1)
    for model in models:
        model.gradients = np.random.default_rng(2).standard_normal(len(model.parameters))
    both = np.concatenate([model.gradients for model in models])
    norm = np.linalg.norm(both.astype(float))
    rtol = 1e-6 if dtype == np.float32 else 1e-14
    assert_close(cnn.clip_grad_norm(models, 2 * norm), norm, rtol)
    np.testing.assert_array_equal(np.concatenate([model.gradients for model in models]), both)
    assert_close(cnn.clip_grad_norm(iter(models), 0.5), norm, rtol)
    assert_close(np.concatenate([model.gradients for model in models]), both * (0.5 / (norm + 1e-6)), rtol)
    assert cnn.clip_grad_norm(models[0], 1.0) < 0.5  # one model
    alone = cnn.clip_grad_norm(models[1], 1.0)
    part = models[0][:1]
    inside = np.linalg.norm(models[0].gradients[:48].astype(float))
    others = models[0].gradients[48:]
    assert_close(cnn.clip_grad_norm([part, models[1]], 0.1), np.hypot(inside, alone), rtol)
    np.testing.assert_array_equal(models[0].gradients[48:], others)


def test_clip_grad_norm_is_the_optimizers(isa):
    one, other = built(clip_norm=0.01), built()
    for model in (one, other):
        model(X, Y)
        model.backward()
    cnn.clip_grad_norm(other, 0.01)
    one.step()
    other.step()
    assert_close(one.parameters, other.parameters, 1e-14)  # the sum of the squares has another order


def test_what_clip_grad_norm_refuses():
    model = built()
    with pytest.raises(TypeError, match=r"models: expected a cnn\.Sequential or several, got 3"):
        cnn.clip_grad_norm(3, 1.0)
    with pytest.raises(TypeError, match=r"models: expected a cnn.Sequential or several, got Linear"):
        cnn.clip_grad_norm([model, model[0]], 1.0)
    with pytest.raises(ValueError, match="the same model was passed twice"):
        cnn.clip_grad_norm([model, model], 1.0)
    for part in (model[:1], model[1:]):
        with pytest.raises(ValueError, match="models: one is part of another"):
            cnn.clip_grad_norm([model, part], 1.0)
    with pytest.raises(ValueError, match="max_norm: expected"):
        cnn.clip_grad_norm(model, 0)


@pytest.mark.parametrize("own", [False, True])
def test_backward_without_parameters(isa, own):
    model, reference = built(), built()
    model.loss = reference.loss = squared if own else cnn.MSELoss()
    model.gradients = np.arange(len(model.parameters))
    for m in (model, reference):
        m(X, Y)
    np.testing.assert_array_equal(model.backward(parameters=False), reference.backward())
    np.testing.assert_array_equal(model.gradients, np.arange(len(model.parameters)))
    g = np.ones_like(Y)
    for m in (model, reference):
        m(X)
    np.testing.assert_array_equal(model.backward(g, parameters=False), reference.backward(g))
    np.testing.assert_array_equal(model.gradients, np.arange(len(model.parameters)))


@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_with_a_product(isa, dtype, threads):
    before = cnn.get_num_threads()
    cnn.set_num_threads(threads)
    try:
        model = built(dtype)
        x = np.random.default_rng(1).standard_normal((3000, 5))
        v = np.ones((3000, 2))
        expected = model.vjp(x, v, parameters=True)
        of_x, of_parameters, y = model.vjp(x, v, parameters=True, outputs=True)
        np.testing.assert_array_equal(of_x, expected[0])
        np.testing.assert_array_equal(of_parameters, expected[1])
        assert_close(y, model.predict(x), 1e-6 if dtype == np.float32 else 1e-14)
        again = model.vjp(x, v, outputs=True)
        assert len(again) == 2
        np.testing.assert_array_equal(again[1], y)
    finally:
        cnn.set_num_threads(before)
