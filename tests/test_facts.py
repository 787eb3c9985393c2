"""What the library knows of a layer or a loss stands on its class: each class says all of it, and it is true."""

import math

import numpy as np
import pytest
from grid import inputs_of, random_model

import cnn
from cnn._configurable import Configurable
from cnn.export.onnx import OLDEST_OPSET, Value
from cnn.layers import Activation, Branches, Layer
from cnn.losses import YES_ABOVE, Loss

ARGUMENTS = {
    "Linear": (3, 4),
    "BatchNorm1d": (3,),
    "LayerNorm": (3,),
    "Columns": (1, 3),
    "Constant": (3,),
    "Sequential": ([cnn.Linear(3, 4), cnn.Tanh()],),
    "QuantileLoss": (0.3,),
    "CallableLoss": (lambda outputs, targets: (0.0, 0 * outputs),),
}
KINDS = [Layer, Loss, cnn.optim.Optimizer, cnn.optim.Schedule, cnn.initializers.Initializer]
ACTIVATIONS = [cls for cls in Layer.known.values() if issubclass(cls, Activation)]


def example(cls):
    """A layer for three inputs, or a loss."""
    if issubclass(cls, Branches):
        return cls(cnn.Identity(), cnn.Linear(3, 3))
    return cls(*ARGUMENTS.get(cls.__name__, ()))


# registries -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_registered_is_public_and_the_other_way_round(kind):
    home = cnn.initializers if kind is cnn.initializers.Initializer else cnn
    public = {value for value in (getattr(home, name) for name in home.__all__) if isinstance(value, type)}
    assert set(kind.known.values()) == {cls for cls in public if issubclass(cls, kind)} - {kind}
    for name, cls in kind.known.items():
        assert cls.__module__.startswith("cnn.")
        assert name in cls.names


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_says_every_fact(kind):
    for cls in kind.known.values():
        for fact in cls.facts:
            assert hasattr(cls, fact), (cls, fact)


SWISH = {
    "__module__": "cnn.layers.activations",
    "function": "swish",
    "param": 0.0,
    "gain": None,
    "torch_name": "SiLU",
    "onnx": cnn.SiLU.onnx,
    "onnx_formula": cnn.SiLU.onnx_formula,
    "c": cnn.SiLU.c,
}


@pytest.fixture
def registries(monkeypatch):
    """Copies, which a test may fill."""
    monkeypatch.setattr(Layer, "known", dict(Layer.known))
    monkeypatch.setattr(cnn.functional, "DEFAULT_PARAM", dict(cnn.functional.DEFAULT_PARAM))
    monkeypatch.setattr(cnn.initializers, "GAINS", dict(cnn.initializers.GAINS))


@pytest.mark.parametrize("fact", ["function", "gain", "torch_name", "onnx", "c"])
def test_a_class_without_a_fact_cannot_be_defined(registries, fact):
    known = dict(Layer.known)
    with pytest.raises(TypeError, match=f"^Swish: expected '{fact}' in the class"):
        type("Swish", (Activation,), {name: value for name, value in SWISH.items() if name != fact})
    with pytest.raises(TypeError, match=f"^Swish: expected '{fact}' .* only SiLU has one"):
        type("Swish", (cnn.SiLU,), {name: value for name, value in SWISH.items() if name != fact})
    assert Layer.known == known
    assert type("Swish", (Activation,), dict(SWISH)) is Layer.known["Swish"]


@pytest.mark.parametrize("fact", ["op", "torch_name", "_to_onnx", "_to_c"])
def test_a_layer_without_a_fact_cannot_be_defined(registries, fact):
    facts = {"__module__": "cnn.layers.scale", "op": "scale", "torch_name": None, "_to_onnx": None, "_to_c": None}
    del facts[fact]
    with pytest.raises(TypeError, match=f"^Scale: expected '{fact}' in the class, as each layer; it has none"):
        type("Scale", (Layer,), facts)


@pytest.mark.parametrize("fact", ["kind", "outputs", "targets", "convex"])
def test_a_loss_without_a_fact_cannot_be_defined(fact):
    facts = {"__module__": "cnn.losses", "kind": "hinge", "outputs": "logits", "targets": "labels", "convex": True}
    del facts[fact]
    with pytest.raises(TypeError, match=f"^HingeLoss: expected '{fact}' in the class, as each loss"):
        type("HingeLoss", (Loss,), facts)
    assert "HingeLoss" not in Loss.known


def test_two_classes_of_one_name(registries):
    with pytest.raises(TypeError, match=r"^SiLU: there is a layer 'SiLU' already"):
        type("SiLU", (Activation,), dict(SWISH))


def test_classes_of_users_are_not_registered():
    """A file may build none of them."""

    class Mine(cnn.ReLU):
        pass

    assert "Mine" not in Layer.known
    assert Mine().to_config() == {"name": "Mine"}
    with pytest.raises(ValueError, match=r"^layer: unknown name 'Mine', expected one of "):
        Layer.from_config(Mine().to_config())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("config", [None, "ReLU", {}, {"name": None}, {"name": ["ReLU"]}, {"name": "object"}], ids=str)
def test_configurations_of_nothing_known(kind, config):
    error = ValueError if isinstance(config, dict) else TypeError
    with pytest.raises(error, match=f"^{kind.kind_of_class}: (expected a dict|unknown name)"):
        kind.from_config(config)


def test_from_config_on_a_class_takes_its_own_kind():
    assert cnn.ELU.from_config({"alpha": 2.0}).alpha == 2.0
    assert Activation.from_config({"name": "ELU"}).alpha == 1.0
    with pytest.raises(ValueError, match=r"unknown name 'Linear', expected one of Identity, ReLU, "):
        Activation.from_config({"name": "Linear", "in_features": 1, "out_features": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_one(kind):
    """One codec and one repr."""
    assert issubclass(kind, Configurable)
    for cls in kind.known.values():
        assert cls.to_config is Configurable.to_config or cls.to_config.__func__ is Configurable.to_config
        own = next(base for base in cls.__mro__ if "__repr__" in vars(base))
        assert own in (Configurable, Branches, cnn.Sequential, cnn.CallableLoss)


# shapes and costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Layer.known)
def test_shapes_and_numbers_of_a_layer(name):
    layer = example(Layer.known[name])
    model = cnn.Sequential([cnn.Linear(3, 3), layer])
    assert (1, *layer.output_shape((3,))) == model.predict(np.zeros((1, 3))).shape
    numbers = {key: a for key, a in model.state_dict().items() if key.startswith("1.")}
    trained = [a for key, a in numbers.items() if key.endswith(("weight", "bias"))]
    inside = [place.layer for place in model._core.graph.seen.values() if place.key.startswith("1")]
    assert sum(one.n_parameters for one in inside if one.parameter_names) == sum(a.size for a in trained)
    assert layer.flops((3,)) == (24 if name == "Linear" else 0)
    bounds = [Layer.stored_numbers(one.to_config()) for one in inside]
    stored = sum(a.size for a in numbers.values())
    assert sum(least for least, _ in bounds) <= stored <= sum(most for _, most in bounds)


@pytest.mark.parametrize("seed", range(20))
def test_facts_of_a_model_are_those_of_its_layers(seed):
    model = random_model(seed)
    places = list(model._core.graph.seen.values())
    sizes = [place.layer.n_parameters for place in places if place.layer.parameter_names]
    assert sum(sizes) == model.n_parameters == model.parameters.size
    assert (1, *model.output_shape(model._core.graph.shapes[0])) == model.predict(inputs_of(model, 1)).shape
    bounds = [Layer.stored_numbers(place.layer.to_config()) for place in places]
    stored = sum(a.size for a in model.state_dict().values())
    assert sum(least for least, _ in bounds) <= stored <= sum(most for _, most in bounds)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            {"name": "Linear", "in_features": 0, "out_features": 1},
            ValueError,
            "^in_features: expected at least 1, got 0",
        ),
        (
            {"name": "Linear", "in_features": 2.0, "out_features": 1},
            TypeError,
            "^in_features: expected an int, got 2.0",
        ),
        ({"name": "Linear", "in_features": 2}, TypeError, "^out_features: expected an int, got None"),
        (
            {"name": "BatchNorm1d", "num_features": "9" * 9},
            TypeError,
            "^num_features: expected an int, got '999999999'",
        ),
        ({"name": "LayerNorm", "normalized_shape": True}, TypeError, "^normalized_shape: expected an int, got True"),
    ],
)
def test_stored_numbers_of_hostile_tables(config, error, message):
    with pytest.raises(error, match=message):
        Layer.stored_numbers(config)


def test_stored_numbers_of_other_tables():
    for config in ({}, {"name": "nothing"}, {"name": ["Linear"]}, {"name": None}, {"name": "ReLU"}):
        assert Layer.stored_numbers(config) == (0, 0)
    huge = {"in_features": 10**30, "out_features": 10**30}
    assert cnn.Linear.stored_numbers(huge) == (10**60, 10**60 + 10**30)


# activations ----------------------------------------------------------------------------------------------------------

OPERATORS = {
    "Abs": np.abs,
    "Add": np.add,
    "Clip": np.clip,
    "Div": np.divide,
    "Erf": np.vectorize(math.erf),
    "Exp": np.exp,
    "Greater": np.greater,
    "Log": np.log,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Sub": np.subtract,
    "Where": np.where,
}


class Number(Value):
    """A value that is computed instead of written."""

    def __init__(self, value):
        self.value = value

    def op(self, operator, *others):
        others = (other.value if isinstance(other, Number) else other for other in others)
        return Number(OPERATORS[operator](self.value, *others))

    in_float32 = op


VARIANTS = [
    *(cls() for cls in ACTIVATIONS),
    cnn.GELU("tanh"),
    cnn.ELU(-0.3),
    cnn.CELU(0.3),
    cnn.LeakyReLU(-0.5),
    cnn.LeakyReLU(1.5),
]


@pytest.mark.parametrize("layer", VARIANTS, ids=str)
def test_formulas_in_onnx(layer):
    """Computed in NumPy; without one the operator must do everywhere."""
    z = np.linspace(-6, 6, 97)
    if type(layer).onnx_formula is not Activation.onnx_formula:
        np.testing.assert_allclose(layer.onnx_formula(Number(z)).value, layer.forward(z), rtol=1e-12, atol=1e-14)
    else:
        assert layer.onnx.operator is not None
        assert layer.onnx.float64
        assert layer.onnx.opset <= OLDEST_OPSET


@pytest.mark.parametrize("cls", ACTIVATIONS)
def test_defaults_and_gains(cls):
    """Those of the functions on plain arrays, and of initialisers."""
    z = np.linspace(-3, 3, 13)
    np.testing.assert_array_equal(cnn.functional.activation_forward(cls.function, z), cls().forward(z))
    if cls.gain is None:
        assert cls.function not in cnn.initializers.GAINS
    else:
        expected = cls.gain(cls.param) if callable(cls.gain) else cls.gain
        assert cnn.initializers.calculate_gain(cls.function) == expected
        assert cnn.initializers.KaimingUniform(cls.function, a=cls.param).std(4, 9) == expected / 2


def test_every_activation_of_the_kernels_has_a_class():
    found = {layer.function for layer in VARIANTS}
    assert found == set(cnn._dispatch.kernels("float32").ACTIVATIONS)


@pytest.mark.parametrize("name", Layer.known)
def test_what_the_outputs_are(name):
    layer = example(Layer.known[name])
    model = cnn.Sequential([cnn.Linear(3, 3), layer], seed=0)
    y = model.predict(np.random.default_rng(0).standard_normal((9, 3)))
    if model.outputs == "log_probabilities":
        y = np.exp(y)
    assert model.outputs in (None, "probabilities", "log_probabilities")
    assert model.outputs is None or ((y >= 0) & (y <= 1)).all()


# losses ---------------------------------------------------------------------------------------------------------------


def targets_for(loss, random, shape):
    if loss.targets == "labels":
        return random.integers(0, shape[1], shape[0])
    return random.integers(0, 2, shape).astype(float) if loss.targets == "probabilities" else random.random(shape)


@pytest.mark.parametrize("name", Loss.known)
def test_facts_of_a_loss(name):
    loss = example(Loss.known[name])
    random = np.random.default_rng(1)
    shape = (6, 1) if name == "QuantileLoss" else (6, 4)
    if name == "CallableLoss":
        assert (loss.outputs, loss.targets, loss.spec()) == (None, None, None)
    else:
        assert loss.outputs in YES_ABOVE
        assert loss.targets in ("numbers", "labels", "probabilities")
    a, b, v = random.random((3, *shape)) + 0.1
    t = targets_for(loss, random, (shape[0], shape[1] // loss.outputs_per_target))
    if loss.has_second_derivative:
        assert np.isfinite(loss.hvp(a, t, v)).all()
    else:
        with pytest.raises(NotImplementedError):
            loss.hvp(a, t, v)
    if loss.convex:
        slopes = []
        for outputs in (a, b):
            loss(outputs, t)
            slopes.append(loss.backward())
        assert np.sum((slopes[0] - slopes[1]) * (a - b)) >= -1e-12
    model = cnn.Sequential([cnn.Linear(3, shape[1]), loss])
    t = random.random((6, 16)) if name == "SobolevLoss" else t  # with derivatives
    scores = model.evaluate(random.random((6, 3)), t) if name != "PoissonNLLLoss" else {"loss": 0.0}
    assert ("accuracy" in scores) == (loss.targets == "labels")
