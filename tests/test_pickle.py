"""pickle, copy and joblib: a model comes back with its training state, to the bit, and on its own."""

import copy
import multiprocessing
import pickle
import pickletools
import subprocess
import sys

import joblib
import numpy as np
import pytest
from safetensors.numpy import load_file

import cnn
from cnn.files import checkpoint

X = np.random.default_rng(0).standard_normal((40, 4))
Y = np.random.default_rng(1).integers(0, 3, 40)


def network(dtype="float32"):
    inner = cnn.Sequential([cnn.Linear(8, 8), cnn.BatchNorm1d(8), cnn.Dropout(0.2)])
    layers = [cnn.Linear(4, 8), cnn.Add(inner, cnn.Identity()), cnn.GELU(), cnn.Linear(8, 3), cnn.CrossEntropyLoss()]
    return cnn.Sequential(layers, cnn.AdamW(lr=0.01, ema_decay=0.9, schedule=cnn.StepLR(2)), dtype=dtype)


def through_joblib(model, folder):
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


WAYS = {
    **{
        f"pickle {protocol}": lambda model, folder, protocol=protocol: pickle.loads(pickle.dumps(model, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "copy": lambda model, folder: copy.copy(model),
    "joblib": through_joblib,
}


@pytest.mark.parametrize("way", WAYS)
def test_copies(way, tmp_path, dtype):
    """Equal, training on the same, and sharing nothing."""
    model = network(dtype)
    model.fit(X, Y, epochs=3, progress=False)
    model.eval()
    model.optimizer.lr = 0.005
    twin = WAYS[way](model, tmp_path)
    assert twin is not model
    assert type(twin) is cnn.Sequential
    assert not twin.training
    assert checkpoint.to_bytes(twin) == checkpoint.to_bytes(model)
    before = checkpoint.to_bytes(model)
    twin.train().fit(X, Y, epochs=5, initial_epoch=3, progress=False)
    assert checkpoint.to_bytes(model) == before
    model.train().fit(X, Y, epochs=5, initial_epoch=3, progress=False)
    assert checkpoint.to_bytes(twin) == checkpoint.to_bytes(model)


def test_a_model_without_optimizer_and_loss():
    model = cnn.Sequential([cnn.Linear(2, 3), cnn.Tanh()])
    twin = copy.deepcopy(model)
    assert twin.parameters.tobytes() == model.parameters.tobytes()
    assert twin.optimizer is None
    assert twin.loss is None


class Own(cnn.Sequential):
    """A class of the user's."""


def test_subclass():
    model = Own([cnn.Linear(2, 3)], seed=1)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(twin) is Own
        assert twin.parameters.tobytes() == model.parameters.tobytes()


class OfAWidth(cnn.Sequential):
    """A class with a constructor and attributes of its own."""

    def __init__(self, width):
        super().__init__([cnn.Linear(4, width), cnn.Linear(width, 3), cnn.CrossEntropyLoss()], cnn.SGD(0.1))
        self._names = ["a"]


@pytest.mark.parametrize("way", WAYS)
def test_a_class_with_another_constructor(way, tmp_path):
    model = OfAWidth(7)
    twin = WAYS[way](model, tmp_path)
    assert type(twin) is OfAWidth
    assert twin._names == ["a"]
    assert twin._names is not model._names
    assert twin.train_step(X, Y) == model.train_step(X, Y)
    twin = WAYS[way](model[:1], tmp_path)
    assert type(twin) is OfAWidth
    np.testing.assert_array_equal(twin.predict(X), model.hidden(X, 1))


@pytest.mark.parametrize("way", WAYS)
def test_modes_and_what_is_trained(way, tmp_path):
    """What a file does not hold."""
    model = network()
    model[0].trainable = {"bias": False}
    model[1][0].layers[1].trainable = False
    model[1][0].layers[2].eval()
    twin = WAYS[way](model, tmp_path)
    for a, b in zip(model._core.graph.seen.values(), twin._core.graph.seen.values(), strict=True):
        assert (a.layer.trainable, a.layer.training) == (b.layer.trainable, b.layer.training)
    for _ in range(3):
        assert twin.train_step(X, Y) == model.train_step(X, Y)
    np.testing.assert_array_equal(twin.parameters, model.parameters)
    assert checkpoint.to_bytes(twin) == checkpoint.to_bytes(model)


def test_within_other_objects():
    """One model twice in a list stays one."""
    model = network()
    first, second = pickle.loads(pickle.dumps([model, model]))
    assert first is second
    first, second = copy.deepcopy([model, model])
    assert first is second


def test_what_a_pickle_names():
    """The function that reads the bytes of a file, and the class: no array, no layer."""
    named = [argument for code, argument, _ in pickletools.genops(pickle.dumps(network(), 2)) if code.name == "GLOBAL"]
    assert [name for name in named if "codecs" not in name] == [
        "cnn.files.checkpoint from_bytes",
        "cnn.models.sequential Sequential",
    ]


def test_damaged_pickle():
    content = bytearray(checkpoint.to_bytes(network()))
    content[-1] ^= 1
    with pytest.raises(ValueError, match="digest"):
        checkpoint.from_bytes(cnn.Sequential, bytes(content))


def test_in_other_processes():
    """As multiprocessing and joblib hand it to their workers."""
    model = network()
    expected = model.predict(X)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        answer = pool.apply_async(cnn.Sequential.predict, (model, X))
        np.testing.assert_array_equal(answer.get(timeout=100), expected)  # a worker that dies never answers


def test_in_another_process_by_file(tmp_path):
    model = network()
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(model))
    script = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).parameters.tobytes().hex())"
    command = [sys.executable, "-c", script, str(tmp_path / "model.pickle")]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == model.parameters.tobytes().hex()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_square_weights_by_pickle(protocol):
    """From protocol 5 on they come back in bytes, as weights that lie the other way round in files do."""
    model, other = (cnn.Sequential([cnn.Linear(3, 3), cnn.Tanh(), cnn.Linear(3, 3)], seed=seed) for seed in (0, 1))
    other.load_weights(pickle.loads(pickle.dumps(model.state_dict(), protocol)))
    np.testing.assert_array_equal(other.parameters, model.parameters)


def test_square_weights_of_other_bytes_are_refused(tmp_path):
    model = cnn.Sequential([cnn.Linear(3, 3)])
    model.save(tmp_path / "model.safetensors")
    tensors = load_file(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"0\.weight is square and comes from bytes, as safetensors\.numpy\.load_file"):
        model.load_weights(tensors)
    model.load_weights({name: array.T for name, array in tensors.items()})
