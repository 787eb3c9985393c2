"""Initial values: their distributions, that they are the same everywhere, names, configurations, errors."""

import json
import math
import statistics

import numpy as np
import pytest

import cnn
from cnn import initializers
from cnn.initializers import (
    Constant,
    KaimingNormal,
    KaimingUniform,
    LeCunNormal,
    LeCunUniform,
    Normal,
    Ones,
    Orthogonal,
    Uniform,
    XavierNormal,
    XavierUniform,
    Zeros,
)

N_IN, N_OUT = 300, 200
# Initialiser, distribution, mean, standard deviation by the formulas of torch.nn.init (gain / sqrt(fan) and so on).
MOMENTS = [
    (KaimingUniform(), "uniform", 0, math.sqrt(2 / N_IN)),
    (KaimingNormal(), "normal", 0, math.sqrt(2 / N_IN)),
    (KaimingUniform("tanh"), "uniform", 0, 5 / 3 / math.sqrt(N_IN)),
    (KaimingNormal("leaky_relu", a=math.sqrt(5)), "normal", 0, math.sqrt(1 / 3 / N_IN)),
    (KaimingUniform(mode="fan_out"), "uniform", 0, math.sqrt(2 / N_OUT)),
    (KaimingNormal("linear", mode="fan_out"), "normal", 0, math.sqrt(1 / N_OUT)),
    (XavierUniform(), "uniform", 0, math.sqrt(2 / (N_IN + N_OUT))),
    (XavierNormal(), "normal", 0, math.sqrt(2 / (N_IN + N_OUT))),
    (XavierUniform(gain=0.5), "uniform", 0, 0.5 * math.sqrt(2 / (N_IN + N_OUT))),
    (XavierNormal(gain="relu"), "normal", 0, math.sqrt(2) * math.sqrt(2 / (N_IN + N_OUT))),
    (LeCunUniform(), "uniform", 0, math.sqrt(1 / N_IN)),
    (LeCunNormal(), "normal", 0, math.sqrt(1 / N_IN)),
    (Uniform(), "uniform", 0.5, math.sqrt(1 / 12)),
    (Uniform(-3.0, 1.0), "uniform", -1, 4 / math.sqrt(12)),
    (Normal(), "normal", 0, 1),
    (Normal(mean=2.0, std=0.1), "normal", 2, 0.1),
]
NAMES = {
    "kaiming_uniform": KaimingUniform(),
    "kaiming_normal": KaimingNormal(),
    "xavier_uniform": XavierUniform(),
    "xavier_normal": XavierNormal(),
    "he_uniform": KaimingUniform(),
    "he_normal": KaimingNormal(),
    "glorot_uniform": XavierUniform(),
    "glorot_normal": XavierNormal(),
    "lecun_uniform": LeCunUniform(),
    "lecun_normal": LeCunNormal(),
    "orthogonal": Orthogonal(),
    "zeros": Zeros(),
    "ones": Ones(),
    "constant": Constant(),
    "uniform": Uniform(),
    "normal": Normal(),
}
FOR_BIASES = ("zeros", "ones", "constant", "uniform", "normal")


def generator(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize(("init", "distribution", "mean", "std"), MOMENTS, ids=lambda v: str(v))
def test_moments(init, distribution, mean, std):
    """Mean, variance and kurtosis within 5 standard deviations of their estimates; bounds of the uniform ones."""
    values = init((N_IN, N_OUT), generator())
    assert values.shape == (N_IN, N_OUT)
    assert values.dtype == np.float64
    n = values.size
    z = (values - mean) / std
    kurtosis = {"uniform": 9 / 5, "normal": 3}[distribution]
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt((kurtosis - 1) / n)
    eighth = {"uniform": 9, "normal": 105}[distribution]
    assert abs((z**4).mean() - kurtosis) < 5 * math.sqrt((eighth - kurtosis**2) / n)
    if distribution == "uniform":
        assert abs(z).max() <= math.sqrt(3) * (1 + 1e-15)
        assert abs(z).max() > math.sqrt(3) * (1 - 20 / n)
    # neighbours in a row and in a column are not correlated
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 5 / math.sqrt(n)
    assert abs((z[1:] * z[:-1]).mean()) < 5 / math.sqrt(n)


def test_standard_normal_is_the_inverse_distribution_function():
    """In the centre, in both tails, at the last numbers before 0 and 1."""

    class Bits:
        def __init__(self, raw):
            self.bit_generator = self
            self.raw = np.array(raw, np.uint64)

        def random_raw(self, n):
            assert n == len(self.raw)
            return self.raw

    exponents = [2**k + 2 ** (k // 2) for k in range(64)]
    raw = [0, 2**64 - 1, *exponents, *(2**64 - 1 - e for e in exponents)]
    raw += np.random.PCG64(1).random_raw(5000).tolist()
    values = initializers.standard_normal(Bits(raw), (len(raw),))
    expected = [statistics.NormalDist().inv_cdf(((r >> 12) + 0.5) / 2**52) for r in raw]
    np.testing.assert_allclose(values, expected, rtol=4e-15)
    assert values[0] == -values[1] < -8


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (7, 3), (3, 7), (1, 4), (4, 1), (200, 33), (33, 200)])
@pytest.mark.parametrize(("gain", "factor"), [(1.0, 1.0), (0.3, 0.3), ("relu", math.sqrt(2))])
def test_orthogonal(shape, gain, factor):
    q = Orthogonal(gain)(shape, generator(2))
    assert q.shape == shape
    product = q @ q.T if shape[0] < shape[1] else q.T @ q
    np.testing.assert_allclose(product, factor**2 * np.eye(min(shape)), rtol=0, atol=1e-12)


def test_orthogonal_matrices_are_equally_likely():
    """Of Haar's distribution: any element has mean 0 and variance 1 / n, the determinant is 1 as often as -1."""
    rng = generator(3)
    n, m = 3, 1000
    q = np.stack([Orthogonal()((n, n), rng) for _ in range(m)])
    assert (abs(q.mean(axis=0)) < 5 / math.sqrt(n * m)).all()
    np.testing.assert_allclose((q**2).mean(axis=0), 1 / n, atol=5 * math.sqrt(2 / m) / n)
    assert abs((np.linalg.det(q) > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(m)


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        (KaimingUniform(), ["0x1.8caef48df7124p-2", "-0x1.4d626b4b33b91p-1", "-0x1.4c5ee4553b69ep+0"]),
        (XavierNormal("relu"), ["0x1.40e1ef77424f6p-2", "-0x1.18ee60a038ea8p-1", "-0x1.8e4c8520dc658p+0"]),
        (Uniform(-1, 2), ["0x1.d25f86df1a8f0p-1", "-0x1.866e30b3bb948p-3", "-0x1.c1108e08272c9p-1"]),
    ],
    ids=lambda v: str(v),
)
def test_numbers_stay_as_they_are(init, expected):
    """To the last bit, on every machine and with every version of NumPy."""
    values = init((3, 2), generator(0)).ravel()
    assert [v.hex() for v in values[:3]] == expected


@pytest.mark.parametrize("name", NAMES)
def test_by_name(isa, name):
    """The object's numbers, on every dtype, alone and in a model; the stream of the seed runs on into the bias."""
    rng = generator(5)
    weight = NAMES[name]((9, 4), rng)
    bias = (2 * ((rng.bit_generator.random_raw(4) >> np.uint64(11)) * 2.0**-53) - 1) * 9**-0.5
    for dtype in ("float64", "float32"):
        alone = cnn.Linear(9, 4, weight_init=name, dtype=dtype, seed=5)
        part = cnn.Linear(9, 4, weight_init=name)
        cnn.Sequential([part, cnn.MSELoss()], dtype=dtype, seed=5)
        for layer in (alone, part):
            np.testing.assert_array_equal(layer.weight, weight.astype(dtype))
            np.testing.assert_array_equal(layer.bias, bias.astype(dtype))


@pytest.mark.parametrize("name", FOR_BIASES)
def test_bias_by_name(name):
    layer = cnn.Linear(9, 4, weight_init="zeros", bias_init=name, dtype="float64", seed=5)
    np.testing.assert_array_equal(layer.bias, NAMES[name]((4,), generator(5)))
    assert not layer.weight.any()


def test_constants():
    layer = cnn.Linear(2, 3, weight_init=Constant(0.25), bias_init="ones")
    assert (layer.weight == 0.25).all()
    assert (layer.bias == 1).all()


def test_callable(isa):
    seen = []

    def init(shape, rng):
        seen.append((shape, type(rng)))
        return rng.integers(-5, 5, shape)

    model = cnn.Sequential([cnn.Linear(3, 2, weight_init=init, bias_init=init), cnn.MSELoss()], seed=0)
    assert seen == [((3, 2), np.random.Generator), ((2,), np.random.Generator)]
    rng = generator(0)
    np.testing.assert_array_equal(model[0].weight, rng.integers(-5, 5, (3, 2)))
    np.testing.assert_array_equal(model[0].bias, rng.integers(-5, 5, 2))
    assert model[0].get_config() == {"in_features": 3, "out_features": 2, "bias": True}


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.ones((2, 3)), ValueError, r"^Linear\(3, 2\): weight_init: expected shape \(3, 2\), got \(2, 3\)"),
        (1.0, ValueError, r"weight_init: expected shape \(3, 2\), got \(\)"),
        (np.full((3, 2), np.nan), ValueError, "weight_init: expected finite numbers, got NaN"),
        (np.full((3, 2), 1j), TypeError, "weight_init: expected real numbers, got dtype complex128"),
        ([["a"] * 2] * 3, TypeError, "weight_init: expected real numbers"),
    ],
    ids=["turned", "scalar", "nan", "complex", "strings"],
)
def test_callable_of_bad_values(values, error, message):
    layer = cnn.Linear(3, 2, weight_init=lambda shape, rng: values)
    with pytest.raises(error, match=message):
        layer.weight  # noqa: B018
    with pytest.raises(error, match=message):
        cnn.Sequential([layer, cnn.MSELoss()])


CONFIGS = [
    ("glorot_uniform", "xavier_uniform"),
    ("he_normal", "kaiming_normal"),
    (KaimingNormal(), "kaiming_normal"),
    (
        KaimingUniform("leaky_relu", a=0.2),
        {"name": "kaiming_uniform", "nonlinearity": "leaky_relu", "a": 0.2, "mode": "fan_in"},
    ),
    (XavierNormal(gain="tanh"), {"name": "xavier_normal", "gain": "tanh"}),
    ({"name": "normal", "std": 0.02}, {"name": "normal", "mean": 0.0, "std": 0.02}),
    (Orthogonal(np.float32(2)), {"name": "orthogonal", "gain": 2.0}),
]


@pytest.mark.parametrize(("init", "config"), CONFIGS, ids=lambda v: str(v))
def test_configuration(init, config):
    layer = cnn.Linear(4, 3, weight_init=init, bias_init="zeros", seed=7)
    found = json.loads(json.dumps(layer.get_config()))
    assert found == {
        "in_features": 4,
        "out_features": 3,
        "bias": True,
        "weight_init": config,
        "bias_init": "zeros",
    }
    again = cnn.Linear(**found, seed=7)
    np.testing.assert_array_equal(again.weight, layer.weight)
    assert repr(again) == repr(layer) == f"Linear(4, 3, weight_init={config!r}, bias_init='zeros')"
    model = cnn.Sequential([layer, cnn.MSELoss()], seed=1)
    assert cnn.Sequential.from_config(model.get_config())[0].weight_init == layer.weight_init


def test_saved_and_loaded(tmp_path):
    """With the values of a callable, which itself is not saved."""
    layers = [cnn.Linear(4, 4, weight_init="orthogonal"), cnn.Linear(4, 2, weight_init=lambda s, rng: np.eye(*s))]
    model = cnn.Sequential([*layers, cnn.MSELoss()], seed=1)
    model.save(tmp_path / "model.safetensors")
    again = cnn.load(tmp_path / "model.safetensors")
    assert again[0].weight_init == Orthogonal()
    assert again[1].weight_init == "default"
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], array)


def test_default_is_not_in_the_configuration():
    assert cnn.Linear(4, 3, weight_init="default").get_config() == cnn.Linear(4, 3).get_config()
    assert repr(cnn.Linear(4, 3, bias_init="default")) == "Linear(4, 3)"


def test_gains():
    gains = {"linear": 1, "sigmoid": 1, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 0.75}
    for nonlinearity, gain in gains.items():
        assert initializers.calculate_gain(nonlinearity) == gain
    assert initializers.calculate_gain("leaky_relu") == math.sqrt(2 / 1.0001)
    assert initializers.calculate_gain("leaky_relu", 0.5) == math.sqrt(1.6)


ERRORS = {
    "unknown name": (
        lambda: cnn.Linear(2, 3, weight_init="he"),
        ValueError,
        "^weight_init: expected one of default, .*, kaiming_uniform, he_uniform, .*, or a callable, got 'he'",
    ),
    "unknown name in a dict": (lambda: cnn.Linear(2, 3, bias_init={"name": "one"}), ValueError, "^bias_init: expected"),
    "no name": (lambda: cnn.Linear(2, 3, weight_init={"gain": 1.0}), TypeError, "^weight_init: expected a name"),
    "None": (lambda: cnn.Linear(2, 3, weight_init=None), TypeError, "^weight_init: expected a name, .*, got None"),
    "a number": (lambda: cnn.Linear(2, 3, bias_init=0.0), TypeError, "^bias_init: expected a name, .*, got 0.0"),
    "unknown argument": (
        lambda: cnn.Linear(2, 3, weight_init={"name": "normal", "sd": 1.0}),
        TypeError,
        r"^weight_init: normal: Normal: unknown argument 'sd': did you mean std\?",
    ),
    "bad argument": (
        lambda: cnn.Linear(2, 3, weight_init={"name": "normal", "std": -1}),
        ValueError,
        "^weight_init: normal: std: expected a finite number of at least 0, got -1",
    ),
    "for weights only": (
        lambda: cnn.Linear(2, 3, bias_init="orthogonal"),
        ValueError,
        r"^bias_init: Orthogonal\(gain=1.0\) is for weight matrices",
    ),
    "nonlinearity": (
        lambda: KaimingNormal("gelu"),
        ValueError,
        "^nonlinearity: expected one of 'linear', .*got 'gelu'",
    ),
    "gain's name": (lambda: XavierNormal("elu"), ValueError, "^gain: expected one of 'linear', .*, got 'elu'"),
    "gain": (lambda: XavierUniform(math.inf), ValueError, "^gain: expected a finite number, got inf"),
    "gain's type": (lambda: Orthogonal(None), TypeError, "^gain: expected a number, got None"),
    "mode": (lambda: KaimingUniform(mode="fan"), ValueError, "^mode: expected one of 'fan_in', 'fan_out', got 'fan'"),
    "slope": (lambda: KaimingUniform(a="b"), TypeError, "^a: expected a number, got 'b'"),
    "bounds": (lambda: Uniform(1.0, 0.0), ValueError, "^b: expected at least a = 1.0, got 0.0"),
    "constant": (lambda: Constant(math.nan), ValueError, "^val: expected a finite number, got nan"),
    "no matrix": (
        lambda: LeCunNormal()((3,), generator()),
        ValueError,
        r"^LeCunNormal\(\): expected the shape \(in, out\) of a weight matrix, got \(3,\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        call()
