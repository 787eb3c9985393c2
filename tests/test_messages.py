"""What came, what was expected, the most likely mend: arrays that other libraries' users pass first."""

import numpy as np
import pandas
import pytest

import cnn


class Half:
    """A loss of one's own that is an object."""

    def __call__(self, outputs, targets):
        d = outputs - targets
        return (d**2).mean() / 2, d / d.size


def frame(**columns):
    return pandas.DataFrame({"a": [1.0, 2, 3], "b": [1, 2, 3], **columns})


CALLS = {
    "predict": lambda model, x: model.predict(x),
    "forward": lambda model, x: model(x),
    "fit": lambda model, x: model.fit(x, np.zeros((3, 2))),
    "evaluate": lambda model, x: model.evaluate(x, np.zeros((3, 2))),
    "train_step": lambda model, x: model.train_step(x, np.zeros((3, 2))),
    "layer": lambda model, x: model.layers[0](x),
    "targets": lambda model, x: cnn.MSELoss()(np.zeros((3, 3)), x),
}


def test_a_batch_size_where_there_is_none():
    model = cnn.Sequential([cnn.Linear(3, 2), cnn.MSELoss()], cnn.SGD())
    x, y = np.zeros((4, 3)), np.zeros((4, 2))
    for call in (lambda: model.predict(x, 32), lambda: model.evaluate(x, y, 32), lambda: model.train_step(x, y, 32)):
        with pytest.raises((TypeError, ValueError), match=r"got .*: only fit has a batch size, other calls take any"):
            call()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (frame(city=["x", "y", "z"]), "got dtype object: column 'city' is (str|object): encode categories"),
        (
            frame(city=pandas.Categorical(["x", "y", "z"])),
            "column 'city' is category: encode categories",
        ),
        (frame(n=pandas.array([1, None, 3], dtype="Int64")), r"column 'n' is Int64: .*with \.fillna"),
        (frame(n=pandas.array([True, None, True], dtype="boolean")), r"column 'n' is boolean: .*with \.fillna"),
        (frame(n=pandas.to_datetime(["2020-01-01"] * 3)), "column 'n' is datetime64"),
        (np.array([["a", "b", "c"]] * 3), "got dtype <U1: encode text as numbers"),
    ],
    ids=["text", "category", "Int64", "boolean", "dates", "U"],
)
def test_arrays_that_are_not_numbers(call, x, message):
    model = cnn.Sequential([cnn.Linear(3, 2), cnn.MSELoss()], cnn.SGD(), seed=0)
    with pytest.raises(TypeError, match=rf"^(x|targets): expected real numbers, .*{message}"):
        CALLS[call](model, x)
    with pytest.raises(TypeError, match=rf"^validation_data\[0\]: expected real numbers, .*{message}"):
        model.fit(np.eye(3), np.zeros((3, 2)), validation_data=(x, np.zeros((3, 2))))


@pytest.mark.parametrize("call", CALLS)
def test_frames_of_numbers_are_taken(call):
    model = cnn.Sequential([cnn.Linear(3, 2), cnn.MSELoss()], cnn.SGD(), seed=0)
    for c in ([True, False, True], np.float32([1, 2, 3]), pandas.array([1, 2, 3], dtype="Int64")):
        x = frame(c=c)
        CALLS[call](model, x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.ones((3, 7)),
            r"^x: expected shape \(batch, 3\) .*got \(3, 7\): are the axes exchanged\? \.T",
        ),
        (np.ones((7, 4)), r"^x: expected shape \(batch, 3\) .*got \(7, 4\)$"),
        (np.ones(4), r"^x: expected shape \(batch, 3\) .*got \(4,\)$"),
    ],
)
def test_shapes(x, message):
    with pytest.raises(ValueError, match=message):
        cnn.Sequential([cnn.Linear(3, 2)]).predict(x)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, r"^x: expected real numbers, got dtype object, of NoneType$"),
        ({"a": [1]}, TypeError, r"^x: .* of dict: a dict's arrays are x\[key\]$"),
        (np.ones((2, 3), object), TypeError, r"^x: .* object: if all elements are numbers, pass \.astype\(float\)"),
        ([[1, 2, 3], [4]], ValueError, r"^x: list cannot be read as an array: .*inhomogeneous"),
    ],
)
def test_what_is_no_array_of_numbers(x, error, message):
    with pytest.raises(error, match=message):
        cnn.Sequential([cnn.Linear(3, 2)]).predict(x)


def test_warnings_name_the_line_of_the_caller():
    model = cnn.Sequential([cnn.Linear(3, 2), cnn.CrossEntropyLoss()], cnn.SGD(), seed=0)
    x, y = np.ones((6, 3)), [0, 0, 0, 1, 1, 1]
    for call in (
        lambda: model.fit(x, y, validation_split=0.5),
        lambda: model.evaluate(x, y, np.zeros(6)),
        lambda: cnn.Sequential([cnn.Linear(3, 2), cnn.Softmax(), cnn.CrossEntropyLoss()]),
    ):
        with pytest.warns() as found:
            call()
        assert [warning.filename for warning in found] == [__file__]


def test_weights_the_other_way_round():
    layer = cnn.Linear(3, 2)
    model = cnn.Sequential([cnn.Linear(3, 2)])
    state = model.state_dict()
    mend = r"expected shape \(3, 2\), got \(2, 3\): cnn's weights are .* use cnn\.load\(path\), or \.T$"
    with pytest.raises(ValueError, match="^weight: " + mend):
        layer.weight = np.ones((2, 3))
    with pytest.raises(ValueError, match="^0.weight: " + mend):
        model.load_weights(state | {"0.weight": np.ones((2, 3))})
    with pytest.raises(ValueError, match=r"^bias: expected shape \(2,\), got \(3,\)$"):
        layer.bias = np.ones(3)


@pytest.mark.parametrize(
    ("loss", "y", "w", "message"),
    [
        (cnn.MSELoss(), [0, 1], None, r"^targets: .*\(2,\): MSELoss expects a number for each output; for class"),
        (cnn.CrossEntropyLoss(), [1, 3], None, r"^targets\[1\] is 3, .* do the indices begin at 1\? Pass targets - 1$"),
        (cnn.CrossEntropyLoss(), [0, 3], None, r"^targets\[1\] is 3, expected a class index from 0 to 2$"),
        (
            cnn.CrossEntropyLoss(),
            [0, 1],
            [[1], [2]],
            r"^sample_weight: .*got \(2, 1\): \.reshape\(2\) makes it a vector$",
        ),
    ],
)
def test_targets_and_weights(loss, y, w, message):
    with pytest.raises(ValueError, match=message):
        loss(np.zeros((2, 3)), y, w)


def test_objects_as_losses():
    x, y = np.random.default_rng(0).standard_normal((2, 7, 3))
    models = [
        cnn.Sequential([cnn.Linear(3, 3), loss], cnn.SGD(), seed=0) for loss in (Half(), cnn.CallableLoss(Half()))
    ]
    assert models[0].train_step(x, y) == models[1].train_step(x, y)
    assert isinstance(models[0].loss, cnn.CallableLoss)
    with pytest.raises(TypeError, match=r"^layer 1: expected a layer, got <class '.*Half'> \(pass an object, no"):
        cnn.Sequential([cnn.Linear(3, 3), Half])
