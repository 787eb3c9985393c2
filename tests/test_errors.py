"""What Sequential refuses: the message names what was expected, what came and where; nothing has changed.

Shapes and values are ValueErrors, types TypeErrors. Errors of layers, losses, optimisers, arrays and
files used alone are tested with them.
"""

import copy
import gc
import pickle
import sys

import numpy as np
import pytest
from arrays import looped
from grid import build
from networks import batch_for

import cnn

SPEC = [(5, 9, True), ("tanh", None), (9, 3, True)]
TAKER = r"for layer 0, Linear\(5, 9\)"
GIVER = r"for the outputs of layer 2, Linear\(9, 3\)"


class State:
    """A model in the middle of training, and what must not change of it: all that the next step depends on."""

    def __init__(self, loss, dtype):
        self.loss, self.dtype = loss, dtype
        self.x, self.y = batch_for(SPEC, loss, 6, dtype)
        self.model, self.untouched = self.trained(), self.trained()

    def trained(self):
        optimizer = cnn.SGD(lr=0.1, momentum=0.9)
        model, _ = build(SPEC, self.loss, dtype=self.dtype, optimizer=optimizer)
        model.train_step(self.x, self.y)
        model(self.x, self.y)
        model.backward()  # leaves gradients
        return model

    def assert_unchanged(self):
        """Parameters, gradients, momentum, number of steps and epochs, optimiser."""
        model, untouched = self.model, self.untouched
        np.testing.assert_array_equal(model.parameters, untouched.parameters)
        np.testing.assert_array_equal(model.gradients, untouched.gradients)
        assert model.get_config() == untouched.get_config()
        for each in (model, untouched):
            each.step()
            each.train_step(self.x, self.y)
            each.fit(self.x, self.y, batch_size=4)
        np.testing.assert_array_equal(model.parameters, untouched.parameters)


@pytest.fixture(params=["mse", "cross_entropy"])
def state(request, isa, dtype):
    state = State(request.param, dtype)
    yield state
    state.assert_unchanged()


def with_x(model, y):
    """All calls that take x; y fits it in the number of rows."""
    return {
        "predict": lambda x: model.predict(x),
        "forward": lambda x: model.forward(x),
        "call": lambda x: model(x),
        "loss": lambda x: model(x, y(x)),
        "loss_and_grad": lambda x: model.loss_and_grad(x, y(x)),
        "train_step": lambda x: model.train_step(x, y(x)),
        "fit": lambda x: model.fit(x, y(x)),
        "evaluate": lambda x: model.evaluate(x, y(x)),
    }


CALLS = list(with_x(None, None))
TRAINING = ("loss", "loss_and_grad", "train_step", "fit", "evaluate")


@pytest.mark.parametrize("call", CALLS)
def test_shape_of_x(state, call):
    call = with_x(state.model, lambda x: state.y)[call]
    for shape in ((6, 4), (6, 6), (4,), (6, 5, 1), (1, 6, 4), (), (0, 4)):
        got = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=rf"^x: expected shape \(batch, 5\) {TAKER}, got {got}$"):
            call(np.zeros(shape, state.dtype))
    with pytest.raises(ValueError, match=rf"^x: expected shape \(batch, 5\) {TAKER}, got \(2, 2\)$"):
        call([[1, 2], [3, 4]])


@pytest.mark.parametrize("call", CALLS)
@looped("kind", ["c8", "c16", "O", "U3", "S3", "M8[s]", "m8[s]", "V4"])
def test_type_of_x(state, call, kind):
    call = with_x(state.model, lambda x: state.y)[call]
    with pytest.raises(TypeError, match=r"^x: expected real numbers, got dtype "):
        call(np.zeros((6, 5), kind))


@pytest.mark.parametrize("call", CALLS)
def test_things_that_are_no_arrays(state, call):
    call = with_x(state.model, lambda x: state.y)[call]
    for x in (None, "text", [["a"] * 5] * 6, [[1j] * 5] * 6, object(), {1: 2}, [None] * 5):
        with pytest.raises(TypeError, match=r"^x: expected real numbers, got dtype "):
            call(x)
    with pytest.raises(ValueError, match="inhomogeneous"):
        call([[1, 2, 3, 4, 5], [1, 2]])


@pytest.mark.parametrize("call", [call for call in CALLS if call in TRAINING])
def test_empty_batch(state, call):
    """Training and losses are not defined on no rows. (predict gives no rows: test_predict.py.)"""
    call = with_x(state.model, lambda x: state.y[:0])[call]
    with pytest.raises(ValueError, match=r"empty batch|at least one row"):
        call(state.x[:0])


def with_y(model, x, right):
    """All calls that take targets."""
    return {
        "loss": lambda y: model(x, y),
        "loss_and_grad": lambda y: model.loss_and_grad(x, y),
        "train_step": lambda y: model.train_step(x, y),
        "fit": lambda y: model.fit(x, y),
        "evaluate": lambda y: model.evaluate(x, y),
        "validation": lambda y: model.fit(x, right, validation_data=(x, y)),
    }


@pytest.fixture(params=list(with_y(None, None, None)))
def targets_of(request, state):
    """A call that takes nothing but targets."""
    return with_y(state.model, state.x, state.y)[request.param]


def test_number_of_targets(state, targets_of):
    for n in (0, 1, 5, 7):
        message = f"expected 6 rows, as many as x has, got {n}$"
        with pytest.raises(ValueError, match=message):
            targets_of(np.zeros((n, 3)) if state.loss == "mse" else np.zeros(n, int))


def test_shape_of_targets(state, targets_of):
    if state.loss == "mse":
        for shape in ((6,), (6, 2), (6, 1), (6, 3, 1), (), (3, 6)):
            with pytest.raises(ValueError, match=rf": expected shape \(batch, 3\) {GIVER}, got \("):
                targets_of(np.zeros(shape))
    else:
        for shape in ((6, 3), (), (1, 6), (6, 1, 1)):
            with pytest.raises(ValueError, match=r": .*expects class indices of shape \(batch,\), got \("):
                targets_of(np.zeros(shape, int))


def test_type_of_targets(state, targets_of):
    for kind in ("c16", "O", "U3", "M8[s]"):
        shape = (6, 3) if state.loss == "mse" else (6,)
        expected = "real numbers" if state.loss == "mse" else "integer class indices"
        with pytest.raises(TypeError, match=f": .*{expected}, got dtype "):
            targets_of(np.full(shape, None) if kind == "O" else np.zeros(shape, kind))
    if state.loss == "cross_entropy":
        for bad in (0.5, np.nan, np.inf):
            with pytest.raises(TypeError, match="and numbers that are not whole, or not finite: for numeric targets"):
                targets_of(np.full(6, bad))


@pytest.mark.parametrize("bad", [3, -1, 100, 2**62, -(2**63)])
@pytest.mark.parametrize("place", [0, 5])
def test_class_index_out_of_range(isa, dtype, bad, place):
    """The place and the index are named."""
    state = State("cross_entropy", dtype)
    for call in with_y(state.model, state.x, state.y).values():
        labels = state.y.copy()
        labels[place] = bad
        message = rf"\[{place}\] is {bad}, expected a class index from 0 to 2(: do the indices begin at 1\? .*)?$"
        with pytest.raises(ValueError, match=message):
            call(labels)
    state.assert_unchanged()


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_targets_without_a_loss(isa, dtype, loss):
    model, _ = build(SPEC, dtype=dtype, optimizer=cnn.SGD())
    x, y = batch_for(SPEC, loss, 6, dtype)
    before = model.parameters
    for call in (model, model.train_step, model.fit, model.evaluate, model.loss_and_grad):
        with pytest.raises(RuntimeError, match="the model has no loss: make a loss its last layer"):
            call(x, y)
    np.testing.assert_array_equal(model.parameters, before)
    assert model(x).shape == (6, 3)


# backward ----------------------------------------------------------------------------------------


def test_grad_output(state):
    model = state.model
    model(state.x)
    for grad_output, error, message in (
        (np.ones((6, 2)), ValueError, rf"^grad_output: expected shape \(batch, 3\) {GIVER}, got \(6, 2\)"),
        (np.ones(3), ValueError, rf"^grad_output: expected shape \(batch, 3\) {GIVER}, got \(3,\)"),
        (1.0, ValueError, rf"^grad_output: expected shape \(batch, 3\) {GIVER}, got \(\)"),
        (np.ones((5, 3)), ValueError, "^grad_output: expected 6 rows, as the last forward pass had, got 5"),
        (np.ones((0, 3)), ValueError, "^grad_output: expected 6 rows, as the last forward pass had, got 0"),
        (np.ones((6, 3), complex), TypeError, "^grad_output: expected real numbers, got dtype complex128"),
        (np.ones((6, 3), object), TypeError, "^grad_output: expected real numbers, got dtype object"),
        ("text", TypeError, "^grad_output: expected real numbers, got dtype"),
    ):
        for debug in (False, True):
            with pytest.raises(error, match=message):
                model.backward(grad_output, debug=debug)
    state.untouched(state.x)


# fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "^epochs: expected at least 1, got 0"),
        ({"epochs": -3}, ValueError, "^epochs: expected at least 1, got -3"),
        ({"epochs": 1.0}, TypeError, "^epochs: expected an int, got 1.0"),
        ({"epochs": "2"}, TypeError, "^epochs: expected an int, got '2'"),
        ({"epochs": None}, TypeError, "^epochs: expected an int, got None"),
        ({"epochs": True}, TypeError, "^epochs: expected an int, got True"),
        ({"batch_size": 0}, ValueError, "^batch_size: expected at least 1, got 0"),
        ({"batch_size": -1}, ValueError, "^batch_size: expected at least 1, got -1"),
        ({"batch_size": 2.5}, TypeError, "^batch_size: expected an int, got 2.5"),
        ({"batch_size": "all"}, TypeError, "^batch_size: expected an int, got 'all'"),
        ({"steps_per_epoch": 0}, ValueError, "^steps_per_epoch: expected at least 1, got 0"),
        ({"validation_freq": 0}, ValueError, "^validation_freq: expected at least 1, got 0"),
        ({"drop_last": 1}, TypeError, "^drop_last: expected True or False, got 1"),
        ({"shuffle": "batch"}, TypeError, "^shuffle: expected True or False, got 'batch'"),
        ({"drop_last": True, "batch_size": 99}, ValueError, "^drop_last: .* rows do not fill a batch of 99"),
        ({"stratify": True}, ValueError, "^stratify: expected a validation_split with it, got none"),
        ({"weigh_validation": "yes"}, TypeError, "^weigh_validation: expected True or False, got 'yes'"),
        ({"progress": "yes"}, ValueError, "^progress: expected 'auto', True or False, got 'yes'"),
        ({"progress": None}, ValueError, "^progress: expected 'auto', True or False, got None"),
        ({"validation_data": 3}, ValueError, r"^validation_data: expected a pair \(x, y\)"),
        ({"validation_data": ()}, ValueError, r"^validation_data: expected a pair \(x, y\)"),
        ({"validation_data": (1, 2, 3)}, ValueError, r"^validation_data: expected a pair \(x, y\)"),
        (
            {"validation_data": (np.ones((2, 4)), None)},
            ValueError,
            rf"^validation_data\[0\]: expected shape \(batch, 5\) {TAKER}, got \(2, 4\)",
        ),
        (
            {"validation_data": (np.ones((2, 5), complex), None)},
            TypeError,
            r"^validation_data\[0\]: expected real numbers",
        ),
        ({"epochs": 10**6, "nonsense": 1}, TypeError, "nonsense"),
    ],
    ids=str,
)
def test_arguments_of_fit(state, arguments, error, message):
    with pytest.raises(error, match=message):
        state.model.fit(state.x, state.y, **arguments)


def test_errors_of_targets_name_them(state):
    """`y` in fit, validation_data[1] in its validation data."""
    labels = state.loss == "cross_entropy"
    bad = np.zeros(5, int) if labels else np.zeros((5, 3))
    with pytest.raises(ValueError, match=r"^y: expected 6 rows, as many as x has, got 5"):
        state.model.fit(state.x, bad)
    with pytest.raises(ValueError, match=r"^validation_data\[1\]: expected 6 rows, as many as x has, got 5"):
        state.model.fit(state.x, state.y, validation_data=(state.x, bad))
    empty = (state.x[:0], state.y[:0])
    with pytest.raises(ValueError, match=r"^validation_data: expected at least one row, got none"):
        state.model.fit(state.x, state.y, validation_data=empty)
    wrong = np.full(6, 7) if labels else np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"^y\b"):
        state.model.fit(state.x, wrong)
    with pytest.raises(ValueError, match=r"^validation_data\[1\]"):
        state.model.fit(state.x, state.y, validation_data=(state.x, wrong))


def test_parameters(state):
    model = state.model
    n = model.parameters.size
    for vector, error, message in (
        (np.zeros(n - 1), ValueError, rf"^parameters: expected shape \({n},\), got \({n - 1},\)"),
        (np.zeros((n, 1)), ValueError, rf"^parameters: expected shape \({n},\), got \({n}, 1\)"),
        (0.0, ValueError, rf"^parameters: expected shape \({n},\), got \(\)"),
        (np.zeros(n, complex), TypeError, "^parameters: expected real numbers, got dtype complex128"),
        (["a"] * n, TypeError, "^parameters: expected real numbers, got dtype <U1"),
        (None, TypeError, "^parameters: expected real numbers, got dtype object"),
    ):
        with pytest.raises(error, match=message):
            model.parameters = vector


# making a model ----------------------------------------------------------------------------------


def test_widths_must_follow_from_one_another():
    with pytest.raises(
        ValueError,
        match=r"^layer 2, Linear\(100, 10\): expects 100 inputs, but layer 0, Linear\(64, 128\), gives 128$",
    ):
        cnn.Sequential([cnn.Linear(64, 128), cnn.ReLU(), cnn.Linear(100, 10), cnn.CrossEntropyLoss()])
    with pytest.raises(ValueError, match=r"^layer 1, Linear\(3, 4\): expects 3 inputs, but layer 0, Linear\(2, 5\)"):
        cnn.Sequential([cnn.Linear(2, 5), cnn.Linear(3, 4)])


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        (list, ValueError, "^layers: expected at least one Linear, .*, got none"),
        (lambda: [cnn.ReLU()], ValueError, "^layers: expected at least one Linear, .*, got none"),
        (lambda: [cnn.MSELoss()], ValueError, "^layers: expected at least one Linear, .*, got none"),
        (
            lambda: [cnn.Linear(2, 2), cnn.MSELoss(), cnn.ReLU()],
            ValueError,
            r"^layer 1, MSELoss\(\): expected a loss only as the last layer",
        ),
        (
            lambda: [cnn.Linear(2, 2), cnn.MSELoss(), cnn.MSELoss()],
            ValueError,
            r"^layer 1, MSELoss\(\): expected a loss only as the last layer",
        ),
        (lambda: [cnn.Linear(2, 2), "relu"], TypeError, "^layer 1: expected a layer, got 'relu'"),
        (lambda: [cnn.Linear(2, 2), None], TypeError, "^layer 1: expected a layer, got None"),
        (
            lambda: [cnn.Linear(2, 2), cnn.ReLU],
            TypeError,
            r"^layer 1: expected a layer, got <class 'cnn.layers.activations.ReLU'> \(pass an object, not the class\)",
        ),
        (lambda: [cnn.Linear(2, 2), cnn.SGD()], TypeError, r"^layer 1: expected a layer, got SGD\("),
        (
            lambda: [cnn.Sequential([cnn.Linear(2, 2), cnn.MSELoss()])],
            ValueError,
            r"^layer 0: a Sequential in a model has no loss of its own, got MSELoss\(",
        ),
        (
            lambda: [cnn.Sequential([cnn.Linear(2, 2)], optimizer=cnn.SGD())],
            ValueError,
            r"^layer 0: a Sequential in a model has no optimizer of its own, got SGD\(",
        ),
        (lambda: cnn.Linear(2, 2), TypeError, r"^layers: expected a list of layers, got Linear\(2, 2\)"),
        (
            lambda: [cnn.Linear(2, 2), [cnn.ReLU()]],
            TypeError,
            r"^layer 1: expected a layer, got \[ReLU\(\)\]: one list of layers, or a cnn.Sequential for the inner ones",
        ),
        (lambda: None, TypeError, "^layers: expected a list of layers, got None"),
        (lambda: 3, TypeError, "^layers: expected a list of layers, got 3"),
    ],
)
def test_layers(layers, error, message):
    with pytest.raises(error, match=message):
        cnn.Sequential(layers())


@pytest.mark.parametrize("more", [1, 2, 3, 4, 6])
def test_layers_one_after_another(more):
    """As torch.nn.Sequential takes them."""
    with pytest.raises(
        TypeError, match=r"^layers: expected one list, Sequential\(\[Linear\(2, 2\), ...\]\), got the layers"
    ):
        cnn.Sequential(cnn.Linear(2, 2), *[cnn.ReLU() for _ in range(more - 1)], cnn.MSELoss())


def test_a_layer_stands_in_one_place_of_one_model():
    shared, relu = cnn.Linear(4, 4), cnn.ReLU()
    with pytest.raises(ValueError, match=r"^layer 1, Linear\(4, 4\): used twice in the model"):
        cnn.Sequential([shared, shared])
    with pytest.raises(ValueError, match=r"^layer 2, ReLU\(\): used twice in the model"):
        cnn.Sequential([relu, cnn.Linear(4, 4), relu])
    model = cnn.Sequential([shared, cnn.ReLU()], seed=0)
    before = model.parameters
    fresh = cnn.Linear(4, 4)
    other = cnn.Sequential([fresh, shared])  # has a copy
    assert other[0] is fresh
    assert other[1] is not shared
    np.testing.assert_array_equal(other[1].weight, shared.weight)
    np.testing.assert_array_equal(model.parameters, before)
    shared.weight[0, 0] = 42
    assert model.parameters[0] == 42
    assert other[1].weight[0, 0] != 42
    del model
    gc.collect()
    again = cnn.Sequential([shared])  # by the same rule
    assert again[0] is not shared
    assert again.parameters[0] == 42


def test_a_model_that_cannot_be_made_takes_no_layer():
    """The layers are as before: their values, and free for another model."""
    first, second = cnn.Linear(2, 3, seed=0), cnn.Linear(4, 5, seed=0)
    weight = first.weight
    with pytest.raises(ValueError, match="expects 4 inputs"):
        cnn.Sequential([first, second], dtype="float64")
    assert first.weight is weight
    assert first.dtype == np.float32
    huge = [first, cnn.Linear(3, 2**40), cnn.Linear(2**40, 2**20)]
    with pytest.raises(MemoryError):
        cnn.Sequential(huge)
    assert first.weight is weight
    model = cnn.Sequential([first])
    np.testing.assert_array_equal(model.layers[0].weight, weight)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"^seed: expected at least 0 and below 2\*\*63, got -1"),
        ({"seed": 2**63}, ValueError, r"^seed: expected at least 0 and below 2\*\*63, got 9223372036854775808"),
        ({"seed": 1.0}, TypeError, "^seed: expected an int, a numpy.random.Generator or None, got 1.0"),
        ({"seed": "0"}, TypeError, "^seed: expected an int, a numpy.random.Generator or None, got '0'"),
        ({"seed": True}, TypeError, "^seed: expected an int, a numpy.random.Generator or None, got True"),
        ({"dtype": "float16"}, ValueError, "^dtype: expected float32 or float64, got 'float16'"),
        ({"dtype": int}, ValueError, "^dtype: expected float32 or float64, got <class 'int'>"),
        ({"dtype": None}, TypeError, "^dtype: expected float32 or float64, got None"),
        ({"optimizer": "sgd"}, TypeError, "^optimizer: expected an optimiser such as cnn.SGD"),
        ({"optimizer": cnn.MSELoss()}, TypeError, "^optimizer: expected an optimiser such as cnn.SGD"),
    ],
    ids=str,
)
def test_arguments_of_sequential(arguments, error, message):
    with pytest.raises(error, match=message):
        cnn.Sequential([cnn.Linear(2, 2)], **arguments)


# for people --------------------------------------------------------------------------------------


def test_summary(capsys):
    spec = [(300, 1, True), ("relu", None), (1, 17, False)]
    model, _ = build(spec, "mse", dtype="float64", optimizer=cnn.SGD(lr=0.1))
    model.summary()
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines]
    assert table[2] == ["0", "Linear(300,", "1)", "(batch,", "1)", "301", "600"]
    assert table[4] == ["2", "Linear(1,", "17,", "bias=False)", "(batch,", "17)", "17", "34"]
    assert "318 parameters, float64, SGD(lr=0.1)" in lines
    assert any(line.startswith("634 FLOPs a sample forward") for line in lines)
    assert repr(model) == (
        "Sequential(\n"
        "  (0): Linear(300, 1)\n"
        "  (1): ReLU()\n"
        "  (2): Linear(1, 17, bias=False)\n"
        "  (3): MSELoss()\n"
        ") float64"
    )


def test_a_model_is_a_sequence_of_its_layers():
    layers = [cnn.Linear(2, 3), cnn.ReLU(), cnn.Linear(3, 1)]
    model = cnn.Sequential([*layers, cnn.MSELoss()])
    assert len(model) == 3
    assert model[0] is layers[0]
    assert model[-1] is layers[2]
    assert list(model) == layers
    assert isinstance(model.loss, cnn.MSELoss)
    assert model.training is True
    assert model.eval() is model
    assert model.training is False
    assert model.train() is model
    assert model.training is True


# unknown arguments and attributes ------------------------------------------------------------------------------------


UNKNOWN = [
    (lambda: cnn.Adam(learning_rate=1), "Adam: unknown argument 'learning_rate': did you mean lr?"),
    (lambda: cnn.SGD(clipnorm=1), "SGD: unknown argument 'clipnorm': did you mean clip_norm?"),
    (lambda: cnn.AdamW(scheduler=None), "AdamW: unknown argument 'scheduler': did you mean schedule?"),
    (lambda: cnn.StepLR(3, decay_rate=0.1), "StepLR: unknown argument 'decay_rate': did you mean gamma?"),
    (lambda: cnn.Adam([0.1], lr=0.1), "Adam: 'lr' was passed twice, by position and by name"),
    (
        lambda: cnn.Ensemble([cnn.Linear(1, 1)], n_members=2),
        "Ensemble: unknown argument 'n_members': did you mean members?",
    ),
    (lambda: cnn.StepLR(3, warmup=1), "StepLR: unknown argument 'warmup': expected step_size, gamma, interval"),
    (lambda: cnn.Linear(2, 3, use_bias=False), "Linear: unknown argument 'use_bias': did you mean bias?"),
    (lambda: cnn.Dropout(rate=0.3), "Dropout: unknown argument 'rate': did you mean p?"),
    (lambda: cnn.ReLU(inplace=True), "ReLU: unknown argument 'inplace': expected none"),
    (
        lambda: cnn.CrossEntropyLoss(smoothing=0.1),
        "CrossEntropyLoss: unknown argument 'smoothing': did you mean label_smoothing?",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(1, 1)], optimiser=None),
        "Sequential: unknown argument 'optimiser': did you mean optimizer?",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(1, 1)], loss="mse"),
        "Sequential: unknown argument 'loss': the loss is the last of the layers, as cnn.MSELoss()",
    ),
    (
        lambda: cnn.Linear(1, 2, activation="relu"),
        "Linear: unknown argument 'activation': an activation is a separate layer after this one, as cnn.ReLU()",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(1, 1)]).fit([[1]], lr=1),
        "fit: unknown argument 'lr': pass it to the optimizer, as cnn.Adam(lr=0.001)",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(1, 1)], "adam"),
        "optimizer: expected an optimiser such as cnn.SGD(), got 'adam': did you mean cnn.Adam()?",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(1, 1), "relu"]),
        "layer 1: expected a layer, got 'relu': did you mean cnn.ReLU()?",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(1, 1)]).fit([[1]], keep=2),
        "fit: unknown argument 'keep': did you mean max_to_keep?",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(1, 1)]).fit([[1]], n_epochs=2),
        "fit: unknown argument 'n_epochs': did you mean epochs?",
    ),
    (
        lambda: cnn.Sequential([cnn.Linear(1, 1)]).evaluate([[1]], verbose=0),
        "evaluate: unknown argument 'verbose': expected x, y, sample_weight, metrics, threads, class_weight, comm, "
        "shards, shard",
    ),
]


@pytest.mark.parametrize(("make", "message"), UNKNOWN, ids=[message for _, message in UNKNOWN])
def test_unknown_arguments_name_the_right_one(make, message):
    with pytest.raises(TypeError) as error:
        make()
    assert str(error.value) == message


def parts():
    """One object of every kind that has attributes."""
    model = cnn.Sequential(
        [cnn.Linear(2, 3), cnn.ReLU(), cnn.Linear(3, 2), cnn.CrossEntropyLoss()], optimizer=cnn.Adam()
    )
    return {
        "optimiser": model.optimizer,
        "schedule": cnn.StepLR(3),
        "layer": cnn.Linear(2, 3),
        "activation": cnn.ReLU(),
        "loss": model.loss,
        "model": model,
    }


@pytest.mark.parametrize("kind", parts())
def test_unknown_attributes_are_refused(kind):
    """They would do nothing. A copy, a pickle and a new object are the same in this."""
    one = parts()[kind]
    for made in (one, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        before = dict(vars(made))
        with pytest.raises(AttributeError, match=f"^{type(made).__name__} has no attribute 'no_such_thing': expected "):
            made.no_such_thing = 1
        assert vars(made) == before


@pytest.mark.parametrize(
    ("kind", "name", "right"),
    [
        ("optimiser", "learning_rate", "lr"),
        ("optimiser", "clipnorm", "clip_norm"),
        ("optimiser", "momentum", "beta1"),
        ("optimiser", "scheduler", "schedule"),
        ("schedule", "decay_rate", "gamma"),
        ("loss", "smoothing", "label_smoothing"),
        ("model", "optimiser", "optimizer"),
    ],
)
def test_unknown_attributes_name_the_right_one(kind, name, right):
    one = parts()[kind]
    with pytest.raises(AttributeError) as error:
        setattr(one, name, 0.1)
    assert str(error.value) == f"{type(one).__name__} has no attribute {name!r}: did you mean {right}?"


@pytest.mark.parametrize(
    ("kind", "name"), [("model", "seed"), ("model", "layers"), ("layer", "seed"), ("layer", "weight_init")]
)
def test_what_only_the_constructor_uses_is_fixed(kind, name):
    one = parts()[kind]
    before = getattr(one, name)
    with pytest.raises(AttributeError, match=f"^{name}: can only be set in the constructor: create a new layer"):
        setattr(one, name, 5)
    assert getattr(one, name) is before


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: cnn.Dense, "cnn has no attribute 'Dense': did you mean Linear?"),
        (lambda: cnn.nn, "cnn has no attribute 'nn': did you mean layers?"),
        (lambda: cnn.relu, "cnn has no attribute 'relu': did you mean ReLU?"),
        (lambda: cnn.MSE, "cnn has no attribute 'MSE': did you mean MSELoss?"),
        (lambda: cnn.Conv2d, "cnn has no attribute 'Conv2d'"),
        (lambda: parts()["model"].score, "Sequential has no attribute 'score': did you mean evaluate?"),
        (
            lambda: parts()["model"].compile,
            "Sequential has no attribute 'compile': the loss is the last of the layers, ",
        ),
        (
            lambda: cnn.Ensemble([cnn.Linear(1, 1)], 2).score,
            "Ensemble has no attribute 'score': did you mean evaluate?",
        ),
        (lambda: parts()["model"].load, "Sequential has no attribute 'load': cnn.load(path) makes the model of a file"),
        (lambda: parts()["model"].save_weights, "Sequential has no attribute 'save_weights': did you mean save?"),
        (lambda: parts()["optimiser"].step, "Adam has no attribute 'step': the model takes the steps: model.step()"),
        (lambda: parts()["optimiser"].zero_grad, "Adam has no attribute 'zero_grad': the model has the gradients: "),
        (lambda: parts()["model"]._anything, "Sequential has no attribute '_anything'"),
        (
            lambda: cnn.History().history,
            "History has no attribute 'history': it is the dict itself, as history['loss']",
        ),
    ],
)
def test_names_of_other_libraries(read, message):
    with pytest.raises(AttributeError) as error:
        read()
    assert str(error.value).startswith(message)


def test_modules_to_import(monkeypatch):
    monkeypatch.delattr(cnn, "sklearn", raising=False)
    with pytest.raises(AttributeError, match=r"^cnn has no attribute 'sklearn' yet: import cnn\.sklearn$"):
        _ = cnn.sklearn


def test_errors_of_a_property_are_its_own():
    class Model(cnn.Sequential):
        @property
        def broken(self):
            raise AttributeError("of the property")

    with pytest.raises(AttributeError, match=r"^of the property$"):
        _ = Model([cnn.Linear(2, 2)]).broken


def test_one_output_for_classes():
    model = cnn.Sequential([cnn.Linear(2, 1), cnn.CrossEntropyLoss()])
    with pytest.raises(ValueError, match=r"the model has one output; for two classes .* BCEWithLogitsLoss"):
        model.evaluate(np.ones((2, 2)), [0, 1])


def test_rows_from_a_generator():
    model = parts()["model"]
    with pytest.raises(TypeError, match=r"^x: .* of generator: pass an iterable of batches \(x, y\) as x, without y"):
        model.fit((row for row in np.ones((2, 2))), [0, 1])


def test_a_key_that_the_history_lacks():
    with pytest.raises(KeyError, match="val_loss: there are loss, accuracy"):
        cnn.History(loss=[1.0], accuracy=[0.5])["val_loss"]


@pytest.mark.parametrize(
    ("call", "module", "message"),
    [
        (lambda: cnn.to_onnx(parts()["model"], "m.onnx"), "onnx", r"^to_onnx needs onnx: pip install 'cnn\[onnx\]'"),
        (lambda: cnn.from_onnx("m.onnx"), "onnx", "^from_onnx needs onnx"),
        (lambda: cnn.from_torch(None), "torch", "^from_torch needs torch: pip install torch"),
        (lambda: cnn.to_torch(parts()["model"]), "torch", "^to_torch needs torch"),
        (lambda: cnn.as_torch(parts()["model"]), "torch", "^as_torch needs torch"),
        (lambda: cnn.from_sklearn(None), "sklearn", r"^from_sklearn needs sklearn: pip install 'cnn\[sklearn\]'"),
    ],
)
def test_packages_that_are_missing(call, module, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        call()


def test_a_part_of_a_model_has_no_other_attributes_either():
    with pytest.raises(AttributeError, match=r"^Sequential has no attribute 'learning_rate'"):
        parts()["model"][:2].learning_rate = 0.1


def test_classes_of_ones_own_have_attributes_of_their_own():
    class Model(cnn.Sequential):
        def __init__(self, width, **settings):
            self.width = width
            super().__init__([cnn.Linear(2, width)], **settings)
            self.epochs = 3

    model = Model(4, seed=0)
    model.epochs = model.width = 5
    with pytest.raises(AttributeError, match=r"^Model has no attribute 'epoch': did you mean epochs\?"):
        model.epoch = 1
