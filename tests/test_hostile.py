"""Callers who do what nobody should: the library refuses, or does what it documents, and the model stays whole."""

import contextlib
import gc
import threading

import numpy as np
import pytest

import cnn

X = np.random.default_rng(0).standard_normal((8, 3))
Y = np.zeros((8, 2))


def model(optimizer=None):
    parts = [cnn.Linear(3, 5), cnn.LeakyReLU(0.1), cnn.Linear(5, 2), cnn.MSELoss()]
    return cnn.Sequential(parts, optimizer or cnn.SGD(lr=0.1, momentum=0.9), dtype="float64", seed=0)


def truth(m, x=X):
    w, b, v, c = m.state_dict().values()
    z = x @ w + b
    return np.where(z > 0, z, 0.1 * z) @ v + c


def assert_whole(m):
    """The model is what its state says, and it can be trained."""
    np.testing.assert_allclose(m.predict(X), truth(m), rtol=1e-12, atol=1e-14)
    m.optimizer = cnn.SGD(lr=0.01)
    assert m.train_step(X, Y) > m.train_step(X, Y)


# layers and parameters ------------------------------------------------------------------------------------------------


def test_layers_are_of_one_model():
    m = model()
    for parts in ([m[0]], [cnn.Add(m[0], cnn.Linear(3, 5))], [cnn.Sequential([cnn.Linear(3, 3)]), m[0]]):
        other = cnn.Sequential(parts)
        assert m[0] not in (*other, *(child for layer in other for child in layer.children))
        other.parameters = np.zeros_like(other.parameters)
    assert_whole(m)
    layer = m[0]
    del m
    gc.collect()
    expected = layer.weight.copy()
    other = cnn.Sequential([layer, cnn.MSELoss()], dtype="float64")  # its model is gone: it brings its numbers
    np.testing.assert_array_equal(other[0].weight, expected)


@pytest.mark.parametrize(
    ("layer", "names"),
    [
        (cnn.Linear(3, 3, l1=0.1), ("in_features", "out_features", "has_bias", "l1", "l2")),
        (cnn.Dropout(0.1), ("p",)),
        (cnn.LeakyReLU(), ("param", "negative_slope")),
        (cnn.ELU(), ("param", "alpha")),
        (cnn.GELU(), ("approximate",)),
        (cnn.BatchNorm1d(3), ("num_features", "eps", "momentum", "affine", "num_batches_tracked")),
        (cnn.LayerNorm(3), ("normalized_shape", "eps", "elementwise_affine", "has_bias")),
        (cnn.Add(cnn.ReLU(), cnn.Identity()), ("branches",)),
        (cnn.HuberLoss(), ("delta", "reduction")),
        (cnn.CrossEntropyLoss([1.0, 2.0]), ("weight", "ignore_index", "label_smoothing", "reduction")),
        (cnn.QuantileLoss(0.5), ("quantiles",)),
        (cnn.CallableLoss(lambda y, t: (0.0, y)), ("function",)),
        (model(), ("layers", "seed")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_model_was_compiled_of_cannot_change(layer, names):
    """The model would not notice, and a file would say what it does not do."""
    before = repr(layer)
    for name in names:
        with pytest.raises(AttributeError):
            setattr(layer, name, 0.7)
    assert repr(layer) == before
    if isinstance(layer, cnn.CrossEntropyLoss):
        with pytest.raises(ValueError, match="read-only"):
            layer.weight[0] = 5


def test_parameters_cannot_be_resized_or_deleted():
    m = model()
    before = m.parameters
    for value in (np.zeros((3, 6)), np.zeros((4, 5)), 0.0, [[1.0]], np.zeros((3, 5, 1))):
        with pytest.raises(ValueError, match=r"^weight: expected shape \(3, 5\)"):
            m[0].weight = value
    for value in (np.zeros((3, 5), complex), [["a"] * 5] * 3, None):
        with pytest.raises(TypeError, match=r"^weight: expected real numbers"):
            m[0].weight = value
    with pytest.raises(ValueError, match="resize"):
        m[0].weight.resize((4, 5))
    with pytest.raises(AttributeError):
        del m[0].weight
    np.testing.assert_array_equal(m.parameters, before)
    assert_whole(m)


def test_read_only_weights_are_read_only_for_python():
    m = model()
    m[0].weight.flags.writeable = False
    before = m.parameters
    with pytest.raises(ValueError, match="read-only"):
        m[0].weight = np.zeros((3, 5))
    np.testing.assert_array_equal(m.parameters, before)
    assert_whole(m)


def test_views_outlive_the_model():
    m = model()
    views = [m[0].weight, m[2].bias, m[0].grad_weight]
    expected = [v.copy() for v in views]
    del m
    gc.collect()
    [np.ones(100_000) for _ in range(50)]  # somebody else's memory
    for view, array in zip(views, expected, strict=True):
        np.testing.assert_array_equal(view, array)
        view[...] = 1


# arrays that share memory ---------------------------------------------------------------------------------------------


def test_outputs_into_the_models_own_weight():
    m = cnn.Sequential([cnn.Linear(3, 3), cnn.Tanh(), cnn.Linear(3, 3)], dtype="float64", seed=0)
    expected = m.predict(X[:3])
    m.predict(X[:3], out=m[0].weight)
    np.testing.assert_array_equal(m[0].weight, expected)
    np.testing.assert_allclose(m.predict(X), np.tanh(X @ expected + m[0].bias) @ m[2].weight + m[2].bias, rtol=1e-12)
    with pytest.raises(ValueError, match="out: shares memory with x"):
        m.predict(X, out=X)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_on_the_models_own_weights(rows):
    """x and targets are views of the parameters that the step changes: as with copies of them."""
    one, other = model(), model()
    assert one.train_step(one[0].weight[:rows, :3], one[2].weight[:rows]) == other.train_step(
        other[0].weight[:rows, :3].copy(), other[2].weight[:rows].copy()
    )
    np.testing.assert_array_equal(one.parameters, other.parameters)
    one.parameters = one.parameters
    one[0].weight = one[0].weight
    np.testing.assert_array_equal(one.parameters, other.parameters)


def test_arrays_that_change_while_they_are_used():
    """Another thread writes into x, y and the weights: the numbers are anyone's, the memory is not."""
    m = model(cnn.SGD(lr=1e-6))
    x, y = np.tile(X, (500, 1)), np.tile(Y, (500, 1))
    done = threading.Event()
    weight = m[0].weight

    def disturb():
        rng = np.random.default_rng(1)
        while not done.is_set():
            x[rng.integers(len(x))] = rng.standard_normal(3)
            y[rng.integers(len(y))] = 0.5
            weight[0] = rng.standard_normal(5)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        history = m.fit(x, y, epochs=30, batch_size=16, progress=False)
        assert np.isfinite(m.predict(x)).all()
    finally:
        done.set()
        thread.join()
    assert np.isfinite(history["loss"]).all()
    assert_whole(m)


def test_labels_that_change_after_they_were_checked():
    """`fit` checks class indices once and holds its own: to change them meanwhile reads no memory out of range."""
    labels = np.arange(8) % 2
    parts = [cnn.Linear(3, 2), cnn.CrossEntropyLoss()]
    m = cnn.Sequential(parts, cnn.SGD(lr=0.1), seed=0)

    class Spoil(cnn.Callback):
        def on_epoch_begin(self, epoch, logs):
            if epoch == 2:
                labels[...] = 10**12

    m.fit(X, labels, epochs=3, batch_size=2, callbacks=[Spoil()], progress=False)
    assert np.isfinite(m.parameters).all()


# subclasses -----------------------------------------------------------------------------------------------------------


def test_subclasses_that_change_nothing_work(tmp_path):
    class Dense(cnn.Linear):
        pass

    class Rectifier(cnn.ReLU):
        pass

    class Squares(cnn.MSELoss):
        pass

    class Model(cnn.Sequential):
        def forward(self, x, targets=None):
            return 2 * super().forward(x, targets)

    one = Model([Dense(3, 5), Rectifier(), Dense(5, 2), Squares()], cnn.SGD(lr=0.1), seed=0)
    other = cnn.Sequential([cnn.Linear(3, 5), cnn.ReLU(), cnn.Linear(5, 2), cnn.MSELoss()], cnn.SGD(lr=0.1), seed=0)
    assert one.train_step(X, Y) == other.train_step(X, Y)
    np.testing.assert_array_equal(one.forward(X), 2 * other.forward(X))
    np.testing.assert_array_equal(Rectifier()(X), np.maximum(X, 0))


@pytest.mark.parametrize("base", [cnn.Linear, cnn.ReLU, cnn.Dropout, cnn.BatchNorm1d, cnn.layers.Layer, cnn.Sequential])
@pytest.mark.parametrize("method", ["forward", "backward", "__call__"])
def test_subclasses_that_compute_something_else_are_refused(base, method):
    """A model would compute what the base class does."""
    made = type("Mine", (base,), {method: lambda self, x: x})
    layer = made(*{cnn.Linear: (3, 3), cnn.BatchNorm1d: (3,), cnn.Sequential: ([cnn.Linear(3, 3)],)}.get(base, ()))
    for parts in ([cnn.Linear(3, 3), layer], [cnn.Linear(3, 3), cnn.Add(cnn.Identity(), layer)]):
        with pytest.raises(TypeError, match=rf"Mine overrides {method}, which a compiled model does not call"):
            cnn.Sequential(parts)
        layer = made(*{cnn.Linear: (3, 3), cnn.BatchNorm1d: (3,), cnn.Sequential: ([cnn.Linear(3, 3)],)}.get(base, ()))


def test_a_loss_that_computes_something_else_is_refused():
    class Scaled(cnn.MSELoss):
        def forward(self, outputs, targets, sample_weight=None):
            return 10 * super().forward(outputs, targets, sample_weight)

    assert Scaled().forward([[1.0]], [[0.0]]) == 10
    with pytest.raises(TypeError, match="Scaled overrides forward"):
        cnn.Sequential([cnn.Linear(3, 2), Scaled()])


def test_an_activation_that_nobody_knows():
    class Mine(cnn.layers.Activation):
        pass

    with pytest.raises(NotImplementedError, match=r"layer 1, Mine\(\): cannot be part of a model"):
        cnn.Sequential([cnn.Linear(3, 3), Mine()])


# callbacks and iterables ----------------------------------------------------------------------------------------------


class Do(cnn.Callback):
    """Calls a function after each batch, or epoch."""

    def __init__(self, function, when="on_batch_end"):
        setattr(self, when, lambda number, logs: function(self.model))


def fitted(function, when="on_batch_end", **options):
    m = model()
    options = {"epochs": 3, "batch_size": 2, "progress": False} | options
    history = m.fit(X, Y, callbacks=[Do(function, when)], **options)
    assert np.isfinite(history["loss"]).all()
    assert_whole(m)
    return m


@pytest.mark.parametrize(
    "function",
    [
        lambda m: m.predict(X),
        lambda m: m.train_step(X, Y),
        lambda m: (m(X, Y), m.backward(), m.step()),
        lambda m: m(np.zeros((5000, 3))),  # a larger workspace
        lambda m: m.loss_and_grad(X, Y),
        lambda m: m.hvp(X, Y, m.parameters),
        lambda m: setattr(m, "parameters", 0.9 * m.parameters),
        lambda m: setattr(m[0], "weight", 0.9 * m[0].weight),
        lambda m: m.load_weights(m.state_dict()),
        lambda m: setattr(m, "optimizer", cnn.Adam(lr=0.01)),
        lambda m: setattr(m, "optimizer", cnn.SGD(lr=0.01, ema_decay=0.9, clip_norm=1.0)),
        lambda m: setattr(m.optimizer, "lr", 0.5 * m.optimizer.lr),
        lambda m: setattr(m.optimizer, "schedule", cnn.StepLR(2)),
        lambda m: m.eval(),
        lambda m: gc.collect(1),  # what is new: all of it takes long
    ],
)
@pytest.mark.parametrize("when", ["on_batch_end", "on_epoch_end", "on_epoch_begin"])
def test_callbacks_may_use_the_model(function, when):
    fitted(function, when)


def test_callbacks_that_are_refused():
    for function, error in (
        (lambda m: m.fit(X, Y), "has called fit again"),
        (lambda m: setattr(m, "optimizer", None), "the model has no optimizer"),
    ):
        m = model()
        with pytest.raises(RuntimeError, match=error):
            m.fit(X, Y, epochs=3, callbacks=[Do(function)], progress=False)
        assert_whole(m)
    m = model()
    with pytest.raises(RuntimeError, match="loss: cannot be set while fit is running"):
        m.fit(X, Y, callbacks=[Do(lambda m: setattr(m, "loss", cnn.L1Loss()))], progress=False)
    assert_whole(m)


@pytest.mark.parametrize(
    "new", [cnn.SGD(lr=1e30), cnn.Adam(lr=1e300, ema_decay=0.9), cnn.RMSprop(lr=1e300, centered=True)]
)
@pytest.mark.parametrize("old", [cnn.SGD(lr=0.1), cnn.SGD(lr=0.1, momentum=0.9, ema_decay=0.5), cnn.Adam(amsgrad=True)])
def test_an_optimizer_that_comes_and_diverges(old, new):
    """The epoch's snapshot is another optimiser's: parameters are put back, an average that it does not hold is not."""
    m = model(old)
    m.fit(X, Y, epochs=1, progress=False)
    before = m.parameters
    with pytest.raises(cnn.DivergenceError):
        m.fit(X, Y, epochs=9, batch_size=1, callbacks=[Do(lambda m: setattr(m, "optimizer", new))], progress=False)
    assert np.isfinite(m.parameters).all()
    assert m.parameters.shape == before.shape
    assert_whole(m)


def test_an_optimizer_with_less_state_that_comes_before_an_error():
    """The epoch is undone, whose snapshot holds more blocks of state than there is room for now."""
    m = model(cnn.LBFGS(history_size=40))
    before = m.parameters

    def fails(targets, outputs):
        raise RuntimeError("mine")

    swap = Do(lambda m: setattr(m, "optimizer", cnn.SGD(lr=0.1)), "on_batch_end")
    with pytest.raises(RuntimeError, match="mine"):
        m.fit(X, Y, epochs=3, callbacks=[swap], metrics=fails, progress=False)
    np.testing.assert_array_equal(m.parameters, before)
    assert_whole(m)


def test_backward_after_calls_that_fail():
    """They have taken the memory that the forward pass had: there is nothing to go back over."""
    x, none = np.ones((5000, 3)), np.full((5000, 2), np.nan)
    fails = {
        "forward": lambda m: m(x, none),
        "loss_and_grad": lambda m: m.loss_and_grad(x, none),
        "train_step": lambda m: m.train_step(x, none),
        "weights": lambda m: m.train_step(x, np.ones((5000, 2)), sample_weight=np.zeros(5000)),
        "jvp": lambda m: m.jvp(x, parameters=np.zeros(3)),
        "hvp": lambda m: m.hvp(x, np.ones((5000, 2)), np.zeros(3)),
    }
    for name, fail in fails.items():
        parts = [cnn.Linear(3, 5), cnn.Tanh(), cnn.Linear(5, 2), cnn.MSELoss(ignore_nan=True)]
        m = cnn.Sequential(parts, cnn.SGD(lr=0.1), dtype="float64", seed=0)
        m(X, Y)
        m.backward()
        expected = m.gradients
        m.zero_grads()
        m(X, Y)
        with pytest.raises((ValueError, TypeError)):
            fail(m)
        with contextlib.suppress(RuntimeError):
            m.backward()
            np.testing.assert_array_equal(m.gradients, expected, err_msg=name)


def test_best_weights_of_another_optimizer():
    m = model(cnn.SGD(lr=1e-3))
    swap = Do(lambda m: setattr(m, "optimizer", cnn.Adam(lr=0.5, ema_decay=0.9)), "on_epoch_end")
    stopping = cnn.EarlyStopping(monitor="loss", patience=1)
    m.fit(X, Y, epochs=20, callbacks=[stopping, swap], progress=False)
    assert_whole(m)


@pytest.mark.parametrize("when", ["on_train_begin", "on_epoch_begin", "on_batch_end", "on_epoch_end", "on_train_end"])
@pytest.mark.parametrize(
    "error", [KeyError("mine"), KeyboardInterrupt(), SystemExit(3), MemoryError(), StopIteration()]
)
def test_exceptions_in_callbacks(when, error):
    class Raises(cnn.Callback):
        def fail(self, *arguments):
            raise error

    setattr(Raises, when, Raises.fail)
    m = model()
    with pytest.raises(type(error)):
        m.fit(X, Y, epochs=2, batch_size=2, callbacks=[Raises()], progress=False)
    m.fit(X, Y, epochs=2, progress=False)  # nothing is locked
    assert_whole(m)


def test_batches_that_raise():
    def batches():
        yield X[:4], Y[:4]
        raise KeyError("mine")

    m = model()
    before = m.parameters
    with pytest.raises(KeyError, match="mine"):
        m.fit(batches(), progress=False)
    np.testing.assert_array_equal(m.parameters, before)
    assert_whole(m)


def test_batches_that_train_the_model_meanwhile():
    m = model()

    def batches():
        for _ in range(3):
            m.train_step(X, Y)
            m.predict(X)
            yield X[:4], Y[:4]

    m.fit(batches(), progress=False)
    assert m._core.program.steps == 6
    assert_whole(m)


def test_one_optimizer_for_two_models():
    shared = cnn.Adam(lr=0.1)
    one, other, alone = model(shared), model(shared), model(cnn.Adam(lr=0.1))
    for _ in range(3):
        for m in (one, other, alone):
            m.train_step(X, Y)
    np.testing.assert_array_equal(one.parameters, alone.parameters)
    np.testing.assert_array_equal(other.parameters, alone.parameters)
