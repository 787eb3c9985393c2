"""Copies of models and layers, `lerp`, parts of another model's parameters, seeds, and attributes that do nothing."""

import copy
import gc
import pickle

import grid
import numpy as np
import pytest
from grid import inputs_of, random_model
from networks import assert_close

import cnn


def data(dtype="float64", rows=64):
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, 5)).astype(dtype), rng.standard_normal((rows, 2)).astype(dtype)


def built(dtype="float64", seed=0, optimizer=None, loss=None):
    branch = cnn.Sequential([cnn.Linear(8, 4), cnn.Tanh(), cnn.BatchNorm1d(4)])
    parts = [cnn.Linear(5, 8), cnn.ReLU(), cnn.Dropout(0.3), cnn.Concat(branch, cnn.Identity()), cnn.BatchNorm1d(12)]
    parts += [cnn.Linear(12, 2), loss or cnn.MSELoss()]
    return cnn.Sequential(parts, optimizer, dtype=dtype, seed=seed)


def arrays(model):
    return [model.parameters, *model.state_dict().values(), *model._core.training_state()[0].values()]


OPTIMIZERS = {
    "none": lambda: None,
    "sgd": lambda: cnn.SGD(0.01, momentum=0.9, groups=[{"layers": [0], "lr": 0.1}], decay_bias=False),
    "adam": lambda: cnn.Adam(0.01, ema_decay=0.9, schedule=cnn.StepLR(1, 0.5)),
    "plateau": lambda: cnn.RMSprop(0.01, schedule=cnn.ReduceLROnPlateau(monitor="loss", patience=0)),
}
WAYS = {
    "copy": lambda m: m.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
def test_training_goes_on_alike_in_a_copy(isa, dtype, way, optimizer):
    x, y = data(dtype)
    model = built(dtype, optimizer=OPTIMIZERS[optimizer]())
    if model.optimizer is not None:
        model.fit(x, y, epochs=3, batch_size=16)
    other = WAYS[way](model)
    for mine, theirs in zip(arrays(model), arrays(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert other.get_config() == model.get_config()
    assert not other.gradients.any()
    before = arrays(model)
    if model.optimizer is None:
        other.parameters = other.parameters + 1
    else:
        history = other.fit(x, y, epochs=6, initial_epoch=3, batch_size=16)
    for mine, theirs in zip(arrays(model), before, strict=True):  # nothing is shared
        np.testing.assert_array_equal(mine, theirs)
    if model.optimizer is not None:
        assert model.fit(x, y, epochs=6, initial_epoch=3, batch_size=16) == history
        for mine, theirs in zip(arrays(model), arrays(other), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        other.optimizer.lr = 7.0
        assert model.optimizer.lr != 7.0


@pytest.mark.parametrize("seed", range(10))
def test_copies_of_random_models(isa, dtype, seed):
    model = random_model(seed, np.dtype(dtype).name)
    x = inputs_of(model, 7)
    model(x)  # statistics
    outputs = model.predict(x)
    for way in WAYS.values():
        other = way(model)
        np.testing.assert_array_equal(other.predict(x), outputs)
        np.testing.assert_array_equal(way(model)(x), model.copy()(x))
        v = np.ones((7, model._core.out_features))
        np.testing.assert_array_equal(other.vjp(x, v), model.vjp(x, v))
        assert [repr(layer) for layer in other] == [repr(layer) for layer in model]
    del other
    gc.collect()
    assert np.isfinite(model.predict(x)).all()  # the copies took none of its memory with them


def test_modes_and_what_is_trained_go_along():
    model = built(optimizer=cnn.SGD(0.1)).eval()
    model[0].trainable = {"weight": False}
    model[2].train()
    other = model.copy()
    assert [layer.training for layer in other] == [layer.training for layer in model]
    assert not other.training
    x, y = data()
    kept = other[0].weight.copy()
    assert other.train_step(x, y) == model.train_step(x, y)
    np.testing.assert_array_equal(other[0].weight, kept)
    np.testing.assert_array_equal(other.parameters, model.parameters)
    other[2].eval()
    assert model[2].training


def test_parts_of_a_copy_are_on_its_memory():
    model = built()
    other = model.copy()
    del model
    gc.collect()
    branch = other[3][0]
    branch.layers[0].weight[...] = 3
    assert (other.state_dict()["3.0.0.weight"] == 3).all()
    assert branch.predict(np.ones((2, 8))).shape == (2, 4)
    other[:2].parameters = np.zeros(48)
    assert not other.parameters[:48].any()


def test_who_holds_a_layer_beside_its_model_holds_the_copys_layer():
    class Headed(cnn.Sequential):
        def __init__(self, parts):
            super().__init__(parts, seed=0)
            self._head = self.layers[-1]

    agent = {"model": built(), "headed": Headed([cnn.Linear(2, 2), cnn.Linear(2, 1)])}
    agent |= {"head": agent["model"][5], "branch": agent["model"][3][0]}
    other = copy.deepcopy(agent)
    assert other["head"] is other["model"][5] is not agent["head"]
    assert other["branch"] is other["model"][3][0]
    assert other["headed"]._head is other["headed"][-1] is not agent["headed"][-1]
    other["head"].weight[...] = 0
    assert not other["model"][5].weight.any()
    assert agent["head"].weight.any()


def test_a_subclass_keeps_what_it_has():
    class Named(cnn.Sequential):
        def __init__(self, parts):
            super().__init__(parts, seed=0)
            self._name = ["x"]

    inner = Named([cnn.Linear(2, 2)])
    outer = cnn.Sequential([cnn.Linear(2, 2), inner])
    for other in (copy.deepcopy(Named([cnn.Linear(2, 2)])), copy.deepcopy(inner), outer.copy()[1]):
        assert type(other) is Named
        assert other._name == ["x"]
        assert other.predict(np.ones((1, 2))).shape == (1, 2)


@pytest.mark.parametrize("name", grid.LAYERS)
def test_layers_of_a_model_travel_alone(isa, dtype, name):
    """A copy of a layer is in no model, and has the numbers."""
    entry = grid.LAYERS[name]
    model = cnn.Sequential([cnn.Linear(5, 6), entry.make(6, dtype), cnn.Linear(entry.width(6), 2)], dtype=dtype, seed=0)
    x = data(dtype)[0]
    model(x)
    model.eval()
    inner = model.hidden(x, 1)
    expected = model[1](inner)
    for way in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))):
        layer = way(model[1])
        np.testing.assert_array_equal(layer(inner), expected)
        for child in (layer, *layer.children):
            assert child._model is None or child._owner() is layer
        other = cnn.Sequential([cnn.Linear(5, 6), layer, cnn.Linear(entry.width(6), 2)], dtype=dtype, seed=1)
        assert other[1] is layer
        before = model.parameters
        other.parameters = other.parameters + 1
        np.testing.assert_array_equal(model.parameters, before)


def test_layers_of_another_model_are_copied():
    """By one rule, whatever is still alive."""
    x = data()[0]
    model = built().eval()
    kept = copy.deepcopy(model)
    for layers in (model.layers[:4], copy.deepcopy(model).layers[:4], kept.layers[:4]):
        gc.collect()
        other = cnn.Sequential(layers, dtype="float64")
        assert not any(mine is theirs for mine, theirs in zip(other, layers, strict=True))
        np.testing.assert_array_equal(other.predict(x), model.hidden(x, 4))
        other.parameters = np.zeros_like(other.parameters)
    np.testing.assert_array_equal(model.predict(x), kept.predict(x))
    dropout = cnn.Dropout(0.5)  # a layer without parameters, too: each model sets its mode
    one, two = (cnn.Sequential([cnn.Linear(5, 3, seed=0), dropout]) for _ in range(2))
    one.eval()
    np.testing.assert_array_equal(one(x), one.predict(x))
    assert two[1].training


# lerp -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0, 0.005, 0.3, 1, 1.0])
def test_lerp(isa, dtype, tau):
    x, y = data(dtype)
    source, target = built(dtype, 0, cnn.SGD(0.01)), built(dtype, 1)
    source.fit(x, y, epochs=2)
    target(x)
    before, other = target.state_dict(), source.state_dict()
    target.lerp(source, tau)
    rtol = 1e-6 if dtype == np.float32 else 1e-14
    for name, array in target.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert array == (other if tau == 1 else before)[name]
        else:
            assert_close(array, before[name] + tau * (other[name] - before[name]), rtol, name)
    np.testing.assert_array_equal(source.parameters, np.concatenate([a.ravel() for a in parameters_of(other)]))
    if tau == 1:
        np.testing.assert_array_equal(target.predict(x), source.predict(x))


def parameters_of(state):
    return [a for name, a in state.items() if name.endswith(("weight", "bias"))]


def test_copy_from(isa, dtype):
    x, y = data(dtype)
    source, target = built(dtype, 0, cnn.SGD(0.01)), built(dtype, 1)
    source.fit(x, y)
    target(x, y)
    target.copy_from(source)
    with pytest.raises(RuntimeError, match="the parameters have been changed since"):
        target.backward()
    np.testing.assert_array_equal(target.predict(x), source.predict(x))
    for mine, theirs in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_statistics_follow_in_double():
    """A float32 number would stop moving when it is a few roundings from where it goes."""
    source, target = (cnn.Sequential([cnn.Linear(1, 1), cnn.BatchNorm1d(1)]) for _ in range(2))
    source[1].running_mean = [1.0]
    for _ in range(60_000):
        target.lerp(source, 1e-4)
    np.testing.assert_allclose(target[1].running_mean, 1 - (1 - 1e-4) ** 60_000, rtol=1e-6)
    target[1].running_mean = [5.0]  # what somebody writes counts
    target.lerp(source, 0.5)
    np.testing.assert_allclose(target[1].running_mean, 3.0)


def test_lerp_of_parts(isa, dtype):
    source, target = built(dtype, 0), built(dtype, 1)
    others = target.parameters[48:]
    target[:2].lerp(source[:2], 0.5)
    np.testing.assert_array_equal(target.parameters[48:], others)
    target[:2].copy_from(source[:2])
    np.testing.assert_array_equal(target.parameters[:48], source.parameters[:48])
    for m in (source, target):
        m.loss = squares  # a program behind a loss of one's own
    target.copy_from(source)
    np.testing.assert_array_equal(target.parameters, source.parameters)


def squares(outputs, targets):
    d = outputs - targets
    return float((d**2).mean()), 2 * d / d.size


def test_what_lerp_refuses():
    target = built()
    before = target.parameters
    with pytest.raises(ValueError, match="source: expected a model of the same layers"):
        target.lerp(cnn.Sequential([cnn.Linear(5, 2)], dtype="float64"), 0.1)
    with pytest.raises(ValueError, match="source: expected a model of the same layers"):
        cnn.Sequential([cnn.Linear(2, 3)]).copy_from(cnn.Sequential([cnn.Linear(3, 2)]))
    for last in (cnn.ReLU(), cnn.Softmax(), cnn.BatchNorm1d(2)):
        with pytest.raises(ValueError, match="source: expected a model of the same layers"):
            cnn.Sequential([cnn.Linear(2, 2), cnn.Tanh()]).copy_from(cnn.Sequential([cnn.Linear(2, 2), last]))
    with pytest.raises(TypeError, match="source: expected a model of dtype float64, got float32"):
        target.copy_from(built("float32"))
    with pytest.raises(TypeError, match=r"source: expected a cnn.Sequential, got ndarray"):
        target.copy_from(before)
    for tau in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match="tau: expected"):
            target.lerp(built(), tau)
    np.testing.assert_array_equal(target.parameters, before)


# some of the weights --------------------------------------------------------------------------------------------------


def test_partial_weights(capsys):
    old = cnn.Sequential([cnn.Linear(5, 8), cnn.BatchNorm1d(8), cnn.Linear(8, 4)], seed=0)
    old(data("float32")[0])
    new = cnn.Sequential([cnn.Linear(5, 8), cnn.BatchNorm1d(8), cnn.Linear(8, 3), cnn.Linear(3, 1)], seed=1)
    before, state = new.state_dict(), old.state_dict()
    with pytest.raises(ValueError, match=r"missing 3.weight, 3.bias"):
        new.load_weights(state)
    names = new.load_weights(state | {"9.weight": np.zeros(3)}, partial=True, verbose=True)
    assert names == [name for name in state if not name.startswith("2")]
    assert capsys.readouterr().out.startswith("0.weight (5, 8)\n0.bias (8,)\n1.weight")
    for name, array in new.state_dict().items():
        np.testing.assert_array_equal(array, (state if name in names else before)[name])
    assert new[1].num_batches_tracked == 1
    with pytest.raises(ValueError, match=r"nothing fits: it has a \(3,\); expected 0.weight \(5, 8\), "):
        new.load_weights({"a": np.zeros(3)}, partial=True)
    with pytest.raises(ValueError, match="too large for float32"):
        new.load_weights({"0.bias": np.full(8, 1e300), "3.bias": [1.0]}, partial=True)
    np.testing.assert_array_equal(new[3].bias, before["3.bias"])


# seeds and attributes -------------------------------------------------------------------------------------------------


def test_a_generator_gives_each_model_its_seed():
    def models():
        rng = np.random.default_rng(3)
        return [cnn.Sequential([cnn.Linear(4, 4)], seed=rng) for _ in range(3)], cnn.Linear(4, 4, seed=rng)

    (first, second, third), layer = models()
    again, _ = models()
    assert len({first.seed, second.seed, third.seed, layer.seed}) == 4
    for one, other in zip((first, second, third), again, strict=True):
        np.testing.assert_array_equal(one.parameters, other.parameters)
        assert one.seed == other.seed
    assert not np.array_equal(first.parameters, second.parameters)
    np.testing.assert_array_equal(cnn.Sequential([cnn.Linear(4, 4)], seed=first.seed).parameters, first.parameters)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda: built(), "seed", "seed: can only be set in the constructor"),
        (lambda: built(), "layers", "layers: can only be set in the constructor"),
        (lambda: built(), "optimiser", r"Sequential has no attribute 'optimiser': did you mean optimizer\?"),
        (lambda: built(), "requires_grad", r"has no attribute 'requires_grad': did you mean trainable\?"),
        (lambda: built()[0], "requires_grad", r"Linear has no attribute 'requires_grad': did you mean trainable\?"),
        (lambda: built()[3], "requires_grad", r"Concat has no attribute 'requires_grad': did you mean trainable\?"),
        (
            lambda: copy.deepcopy(built())[0],
            "requires_grad",
            r"Linear has no attribute 'requires_grad': did you mean trainable\?",
        ),
        (lambda: built().copy(), "optimiser", r"Sequential has no attribute 'optimiser': did you mean optimizer\?"),
        (lambda: built()[:2], "optimiser", r"Sequential has no attribute 'optimiser': did you mean optimizer\?"),
        (lambda: built()[2], "rate", r"Dropout has no attribute 'rate': did you mean p\?"),
        (
            lambda: cnn.CrossEntropyLoss(),
            "label_smothing",
            r"no attribute 'label_smothing': did you mean label_smoothing\?",
        ),
        (lambda: built()[4], "weigth", r"BatchNorm1d has no attribute 'weigth': did you mean weight\?"),
    ],
)
def test_attributes_that_would_do_nothing(make, name, message):
    with pytest.raises(AttributeError, match=message):
        setattr(make(), name, False)


@pytest.mark.parametrize(
    ("last", "loss", "mend"),
    [
        (cnn.Softmax, cnn.CrossEntropyLoss, r"leave Softmax\(\) out"),
        (cnn.Sigmoid, cnn.BCEWithLogitsLoss, r"leave Sigmoid\(\) out"),
        (cnn.Softmax, cnn.NLLLoss, r"use cnn.LogSoftmax\(\) instead"),
        (lambda: cnn.Sequential([cnn.Linear(3, 3), cnn.Softmax()]), cnn.CrossEntropyLoss, "leave .* out"),
        (cnn.LogSoftmax, cnn.BCEWithLogitsLoss, "leave .* out"),
    ],
)
def test_probabilities_where_logits_are_expected(last, loss, mend):
    with pytest.warns(UserWarning, match=f"(?s)before it gives .*probabilities: {mend}") as warned:
        cnn.Sequential([cnn.Linear(2, 3), last(), loss()])
    assert warned[0].filename == __file__
    model = cnn.Sequential([cnn.Linear(2, 3), last()])
    with pytest.warns(UserWarning, match="before it gives"):
        model.loss = loss()


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        (cnn.Softmax, cnn.MSELoss),
        (cnn.Sigmoid, cnn.L1Loss),
        (cnn.LogSoftmax, cnn.NLLLoss),
        (cnn.LogSoftmax, cnn.CrossEntropyLoss),  # of log-probabilities it is the same
        (cnn.Softmax, lambda: squares),
        (cnn.Tanh, cnn.CrossEntropyLoss),
    ],
)
def test_probabilities_where_they_are_expected(last, loss):
    cnn.Sequential([cnn.Linear(2, 3), last(), loss()])
