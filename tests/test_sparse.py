"""Sparse x: the same numbers as its dense form, for any way to hold the entries, and never a dense copy."""

import copy
import functools
import types
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from grid.optimizers import OPTIMIZERS

import cnn

RTOL = {"float32": 2e-5, "float64": 1e-12}


def matrix(rows, columns, density=0.15, seed=0):
    """CSR whose indices are not sorted, with entries of zero and two for one place, and rows without any."""
    rng = np.random.default_rng([seed, rows, columns])
    counts = rng.binomial(columns, density, rows)
    counts[rng.random(rows) < 0.2] = 0
    start = np.concatenate([[0], np.cumsum(counts)])
    column = rng.integers(0, columns, start[-1])
    value = rng.standard_normal(start[-1])
    value[rng.random(start[-1]) < 0.1] = 0
    return sp.csr_matrix((value, column, start), (rows, columns))


def numbers(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


def model_of(n_in, hidden=6, out=3, optimizer=None, activation=None, loss=None, **settings):
    layers = [cnn.Linear(n_in, hidden), activation or cnn.Tanh(), cnn.Linear(hidden, out), loss or cnn.MSELoss()]
    return cnn.Sequential(
        layers, copy.copy(optimizer or cnn.SGD(lr=0.05)), **{"seed": 1, "dtype": "float64", **settings}
    )


def assert_close(a, b, rtol):
    scale = np.abs(b).max(initial=1)
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)


def assert_same_training(train, model, x, rtol, *arrays):
    """Two copies of a model, trained with x and with its dense form, are the same."""
    models = model.copy(), model.copy()
    results = [train(one, form, *arrays) for one, form in zip(models, (x, x.toarray()), strict=True)]
    assert_close(models[0].parameters, models[1].parameters, rtol)
    assert not np.array_equal(models[0].parameters, model.parameters)
    return results


# the same numbers as dense --------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1), (2, 3, 2), (5, 40, 1), (17, 33, 16), (19, 7, 70), (40, 129, 3), (33, 1100, 5), (9, 30, 1201)]


@pytest.mark.parametrize(("rows", "columns", "hidden"), SHAPES)
def test_equals_dense(isa, dtype, rows, columns, hidden):
    """Layers that lie as (in, out) and as (out, in), of one vector to many; every call that takes x."""
    x, y = matrix(rows, columns).astype(dtype), numbers(rows, 3)
    dense, rtol = x.toarray(), RTOL[dtype.name]
    for activation in (cnn.ReLU(), cnn.GELU(), cnn.Identity()):
        model = model_of(columns, hidden, activation=activation, dtype=dtype)
        assert_close(model.predict(x), model.predict(dense), rtol)
        assert_close(model(x), model(dense), rtol)
        assert_close(model.hidden(x, 2), model.hidden(dense, 2), rtol)
        assert_close(model.evaluate(x, y)["loss"], model.evaluate(dense, y)["loss"], rtol)
        for a, b in zip(model.loss_and_grad(x, y), model.loss_and_grad(dense, y), strict=True):
            assert_close(a, b, rtol)
        expected = model.gradients
        model.zero_grads()
        for times in (1, 2):
            model(x, y)
            assert model.backward() is None
            assert_close(model.gradients, times * expected, rtol)
        for one in (slice(0, 1), slice(None)):
            losses = assert_same_training(lambda m, *xy: m.train_step(*xy), model, x[one], rtol, y[one])
            assert_close(*losses, rtol)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_dense_with_every_optimizer(dtype, name):
    """In batches in order and shuffled, of a layer of each layout; a second fit after the first; batches of one row."""
    x, y = matrix(23, 50).astype(dtype), numbers(23, 3)
    for hidden in (2, 20):
        model = model_of(50, hidden, optimizer=OPTIMIZERS[name].make(), dtype=dtype)
        for settings in ({"batch_size": 5, "epochs": 2}, {"batch_size": 1}):

            def fit(one, form, targets, settings=settings):
                return [one.fit(form, targets, shuffle=s, **settings)["loss"] for s in (False, True)]

            assert_close(*assert_same_training(fit, model, x, 10 * RTOL[dtype.name], y), RTOL[dtype.name])


def test_the_whole_data(dtype):
    """L-BFGS sweeps the rows in blocks."""
    x, y = matrix(1200, 40).astype(dtype), numbers(1200, 3)
    model = model_of(40, 4000, optimizer=cnn.LBFGS(), dtype=dtype)  # so wide that 512 rows are a block
    losses = assert_same_training(lambda one, *xy: one.fit(*xy, epochs=3)["loss"], model, x, 1e4 * RTOL[dtype.name], y)
    assert_close(*losses, 100 * RTOL[dtype.name])
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation_steps": 3},
        {"validation_split": 0.3},
        {"validation_split": 0.3, "stratify": True},
        {"sample_weight": abs(numbers(40)), "class_weight": "balanced"},
        {"metrics": ["accuracy", "f1"], "drop_last": True, "steps_per_epoch": 3},
        {"early_stopping": cnn.EarlyStopping("loss", patience=1), "callbacks": [cnn.Callback()]},
        {"batch_size": None},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_what_fit_can_do(settings):
    x, y = matrix(40, 30), np.arange(40) ** 2 % 3
    model = model_of(30, loss=cnn.CrossEntropyLoss())

    def fit(one, form, targets):
        return one.fit(form, targets, **{"epochs": 3, "batch_size": 4, "validation_data": None, **settings})

    sparse, dense = assert_same_training(fit, model, x, 1e-11, y)
    assert list(sparse) == list(dense)
    for name in dense:
        assert_close(sparse[name], dense[name], 1e-11)


def test_layers_that_are_not_trained_and_branches():
    x, y = matrix(20, 30), numbers(20, 3)
    parts = {"weight": (False, True), "bias": (True, False), "none": (False, False)}
    for weight, bias in parts.values():
        for hidden in (2, 20):
            model = model_of(30, hidden, optimizer=cnn.Adam(eps=0.01))
            model.layers[0].trainable = {"weight": weight, "bias": bias}
            before = model.layers[0].weight.copy()
            assert_same_training(lambda m, *xy: m.fit(*xy, epochs=2), model, x, 1e-11, y)
            assert_close(*(model.loss_and_grad(form, y)[1] for form in (x, x.toarray())), 1e-12)
            assert weight or np.array_equal(model.layers[0].weight, before)
    branches = cnn.Add(cnn.Linear(30, 3), cnn.Sequential([cnn.Linear(30, 8), cnn.BatchNorm1d(8), cnn.Linear(8, 3)]))
    model = cnn.Sequential([branches, cnn.Dropout(0.2), cnn.MSELoss()], cnn.Adam(eps=0.01), seed=0, dtype="float64")
    assert_same_training(lambda m, *xy: m.fit(*xy, epochs=2, batch_size=7), model, x, 1e-10, y)


def test_a_loss_of_ones_own():
    def loss(outputs, targets):
        return float(((outputs - targets) ** 2).mean()), 2 * (outputs - targets) / outputs.size

    x, y = matrix(20, 30), numbers(20, 3)
    model = model_of(30, loss=cnn.CallableLoss(loss))
    for train in (lambda m, *xy: m.fit(*xy, epochs=2, batch_size=3), lambda m, *xy: m.train_step(*xy)):
        assert_same_training(train, model, x, 1e-12, y)


@pytest.mark.parametrize("hidden", [1, 64])
@pytest.mark.parametrize("optimizer", [cnn.SGD(lr=0.1), cnn.Adam(), cnn.SGD(lr=0.1, clip_norm=0.5)], ids=repr)
def test_threads_change_no_bit(isa, dtype, optimizer, hidden):
    x, y = matrix(2000, 20_000, 0.002).astype(dtype), numbers(2000, 3)
    results = []
    for threads in (1, 2):
        model = model_of(20_000, hidden, optimizer=optimizer, dtype=dtype)
        model.fit(x, y, batch_size=700, threads=threads)
        results.append((model.parameters, model.predict(x, threads=threads), model.evaluate(x, y, threads=threads)))
    for a, b in zip(*results, strict=True):
        assert np.array_equal(a, b)


# what is taken --------------------------------------------------------------------------------------------------------

FORMS = {
    "csr_array": sp.csr_array,
    "csc": sp.csc_matrix,
    "coo": sp.coo_array,
    "lil": sp.lil_matrix,
    "bsr": sp.bsr_array,
    "bool": lambda x: x.astype(bool),
    "int8": lambda x: (10 * x).astype(np.int8),
    "uint64": lambda x: abs(10 * x).astype(np.uint64),
    "float32": lambda x: x.astype(np.float32),
    "longdouble": lambda x: x.astype(np.longdouble),
    "big-endian": lambda x: sp.csr_matrix((x.data.astype(">f8"), x.indices, x.indptr), x.shape),
    "strided": lambda x: sp.csr_matrix((np.repeat(x.data, 2)[::2], x.indices, x.indptr), x.shape),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form, dtype):
    x = matrix(20, 30)
    x.sum_duplicates()
    made, model = FORMS[form](x), model_of(30, dtype=dtype)
    assert_close(model.predict(made), model.predict(made.toarray().astype(dtype)), RTOL[dtype.name])


class Csr:
    """What has been converted to CSR elsewhere: SciPy is not asked for."""

    def __init__(self, data, indices, indptr, shape):
        self.data, self.indices, self.indptr, self.shape = data, indices, indptr, shape
        self.ndim, self.size = len(shape), data.size

    def tocsr(self):
        return types.SimpleNamespace(data=self.data, indices=self.indices, indptr=self.indptr)


def test_arrays_that_cannot_be_written_to_and_wide_indices():
    x = matrix(20, 30)
    model = model_of(30)
    expected = model.predict(x)
    for kind in (np.int32, np.int64, np.uint16):
        arrays = [x.data.copy(), x.indices.astype(kind), x.indptr.astype(kind)]
        for a in arrays:
            a.flags.writeable = False
        assert np.array_equal(model.predict(Csr(*arrays, x.shape)), expected)
    longer = [np.append(a, a[:1]) for a in (x.data, x.indices)]  # SciPy allows room behind the last entry
    assert np.array_equal(model.predict(Csr(*longer, x.indptr, x.shape)), expected)


def test_batches_blocks_and_validation_data():
    x, y = matrix(24, 30), numbers(24, 3)
    dense, model = x.toarray(), model_of(30)
    batches = [[(form[at : at + 4], y[at : at + 4]) for at in range(0, 24, 4)] for form in (x, dense)]
    for settings in ({}, {"accumulation_steps": 4}):
        losses = [model.copy().fit(b, epochs=2, **settings)["loss"] for b in batches]
        assert_close(*losses, 1e-12)
    mixed = [batches[0][0], batches[1][1]]
    model.copy().fit(mixed)
    with pytest.raises(TypeError, match=r"^x: expected batches of a step that are all sparse or all dense, got both$"):
        model.copy().fit(mixed, accumulation_steps=2)
    x.has_canonical_format = True  # blocks are slices that the matrix itself gives
    blocks = [model.copy().fit(cnn.Blocks(form, y, rows=8), epochs=2, batch_size=4)["loss"] for form in (x, dense)]
    assert_close(*blocks, 1e-12)
    one = model.copy()
    found = one.fit(dense, y, validation_data=(x, y, np.arange(24.0)))["val_loss"][0]
    assert found == pytest.approx(one.evaluate(dense, y, np.arange(24.0))["loss"], rel=1e-12)
    assert cnn.find_lr(model, x, y, steps=10).loss == pytest.approx(cnn.find_lr(model, dense, y, steps=10).loss)


def test_no_rows_and_no_entries():
    model, y = model_of(30), np.zeros((0, 3))
    assert model.predict(sp.csr_matrix((0, 30))).shape == (0, 3)
    assert model(sp.csr_matrix((0, 30))).shape == (0, 3)
    for call in (model.fit, model.train_step, model.evaluate, model.loss_and_grad, model):
        with pytest.raises(ValueError, match=r"at least one row|empty batch"):
            call(sp.csr_matrix((0, 30)), y)
    nothing = sp.csr_array((5, 30))
    assert_same_training(lambda m, x: m.train_step(x, np.ones((5, 3))), model, nothing, 1e-12)
    assert_close(model.predict(nothing), model.predict(np.zeros((5, 30))), 1e-15)


def test_numbers_that_are_not_finite():
    x, y, model = matrix(20, 30, 0.5), numbers(20, 3), model_of(30)
    good = model.predict(x)
    row = int(np.argmax(np.diff(x.indptr)))
    for bad in (np.nan, np.inf):
        odd = x.copy()
        odd.data[odd.indptr[row]] = bad
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = model.predict(odd)
        rest = np.arange(20) != row
        assert np.array_equal(found[rest], good[rest])
        assert bad == np.inf or np.isnan(found[row]).all()
        with pytest.raises(
            cnn.DivergenceError, match=r"; x has NaN or infinity in this batch: fill or drop those rows$"
        ):
            model_of(30, activation=cnn.Identity()).fit(odd, y, shuffle=False)
        with pytest.warns(RuntimeWarning, match="^x has NaN or infinity"):
            model_of(30, activation=cnn.Identity()).evaluate(odd, y)
        train = functools.partial(cnn.Sequential.train_step, sample_weight=rest.astype(float))
        fit = functools.partial(cnn.Sequential.fit, sample_weight=rest.astype(float), batch_size=6)
        for call in (train, fit):  # a row that does not count may have anything
            assert_same_training(call, model, odd, 1e-12, y)


def test_the_matrix_may_change_after_the_call():
    x, y, model = matrix(20, 30), numbers(20, 3), model_of(30)
    expected = model.loss_and_grad(x, y)[1]
    model.zero_grads()
    model(x, y)
    x.data[:] = x.indices[:] = 0
    model.backward()
    assert_close(model.gradients, expected, 1e-12)


# what is refused ------------------------------------------------------------------------------------------------------

CALLS = {
    "predict": lambda model, x: model.predict(x),
    "forward": lambda model, x: model(x),
    "fit": lambda model, x: model.fit(x, np.zeros((3, 3))),
    "evaluate": lambda model, x: model.evaluate(x, np.zeros((3, 3))),
    "train_step": lambda model, x: model.train_step(x, np.zeros((3, 3))),
    "loss_and_grad": lambda model, x: model.loss_and_grad(x, np.zeros((3, 3))),
}
EYE = sp.csr_matrix(np.eye(3))


def damaged(data=EYE.data, indices=EYE.indices, indptr=EYE.indptr, shape=(3, 3)):
    return Csr(np.asarray(data), np.asarray(indices), np.asarray(indptr), shape)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (sp.csr_matrix((5, 4)), ValueError, r"expected shape \(batch, 3\) .*, got \(5, 4\)$"),
        (sp.coo_array(np.ones(3)), ValueError, r"expected shape \(batch, 3\) .*, got \(3,\)"),
        (EYE.astype(complex), TypeError, r"expected real numbers, got dtype complex128"),
        (damaged(np.array([1, 2, None])), TypeError, r"expected real numbers, got dtype object"),
        (damaged(indices=[0, 3, 1]), ValueError, r"damaged Csr: row 1 has an entry in column 3, of 3 columns$"),
        (damaged(indices=[0, 1, -1]), ValueError, r"damaged Csr: row 2 has an entry in column -1, of 3 columns$"),
        (damaged(indices=[2**32, 1, 1]), ValueError, r"damaged Csr: row 0 has an entry in column 4294967296"),
        (damaged(indices=np.array([2**64 - 1, 1, 1], np.uint64)), ValueError, r"damaged Csr: .* column 18446744"),
        (damaged(indptr=[0, 2, 1, 3]), ValueError, r"damaged Csr: expected an indptr of 4 non-decreasing"),
        (damaged(indptr=[1, 1, 2, 3]), ValueError, r"damaged Csr: expected an indptr of 4 non-decreasing"),
        (damaged(indptr=[0, 1, 3]), ValueError, r"damaged Csr: expected an indptr of 4 non-decreasing"),
        (damaged(indptr=[0, 1, 2, 4]), ValueError, r"damaged Csr: its indptr has 4 entries, but there are 3 indices"),
        (damaged(data=[1.0, 2.0]), ValueError, r"damaged Csr: .*3 indices and 2 numbers"),
    ],
)
def test_matrices_that_do_not_fit(call, x, error, message):
    model = model_of(3)
    before = model.parameters
    with pytest.raises(error, match=rf"^x: {message}"):
        CALLS[call](model, x)
    with pytest.raises(error, match=rf"^validation_data\[0\]: {message}"):
        model.fit(np.eye(3), np.zeros((3, 3)), validation_data=(x, np.zeros((3, 3))))
    assert np.array_equal(model.parameters, before)


@pytest.mark.parametrize(
    "first",
    [
        cnn.Dropout(0.5),
        cnn.BatchNorm1d(3),
        cnn.ReLU(),
        cnn.LayerNorm(3),
        cnn.Add(cnn.Linear(3, 3), cnn.Identity()),
        cnn.Concat(cnn.Linear(3, 3), cnn.ReLU()),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_models_that_do_not_begin_with_linear(first):
    model = cnn.Sequential([first, cnn.Linear(6 if isinstance(first, cnn.Concat) else 3, 3), cnn.MSELoss()], cnn.SGD())
    for call in CALLS.values():
        with pytest.raises(TypeError, match=r"^x: expected a dense array.*, got csr_matrix: only Linear reads sparse"):
            call(model, EYE)


def test_calls_that_take_no_sparse_x():
    model, y = model_of(3, out=1), np.zeros((3, 1))
    calls = [
        lambda: model.grad_input(EYE),
        lambda: model.grad_input(EYE, y),
        lambda: model.jacobian(EYE),
        lambda: model.vjp(EYE, y),
        lambda: model.jvp(EYE, np.eye(3)),
        lambda: model.hvp(EYE, y, model.parameters),
        lambda: model.hvp_input(EYE, y, np.eye(3)),
        lambda: model.layers[0](EYE),
        lambda: cnn.MSELoss()(np.eye(3), EYE),
        lambda: cnn.functional.linear_forward(EYE, np.eye(3)),
        lambda: model.predict(np.eye(3), out=EYE),
        lambda: model.fit(np.eye(3), EYE),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"csr_matrix is sparse: pass \.toarray\(\)|expected a NumPy array"):
            call()
    with pytest.raises(TypeError, match=r"^y: expected targets, or an iterable of batches"):
        model.fit(EYE)
    model(EYE, y)
    with pytest.raises(
        ValueError, match=r"^the gradient of sparse rows is not computed: pass x\.toarray\(\) to forward"
    ):
        model.backward(parameters=False)
    model.backward()
    with pytest.raises(ValueError, match=r"^out: shares memory with x$"):
        model.predict(EYE, out=EYE.data[:, None])


# cost -----------------------------------------------------------------------------------------------------------------


def test_no_dense_copy_is_made():
    """80 GB as float32; the model trains and predicts in what its parameters take and some."""
    rows, columns = 200_000, 100_000
    start = np.minimum(np.arange(rows + 1), 5000) * 20
    x = sp.csr_matrix(
        (np.ones(100_000, np.float32), np.random.default_rng(0).integers(0, columns, 100_000), start), (rows, columns)
    )
    model = model_of(columns, 4, dtype="float32", loss=cnn.CrossEntropyLoss())
    before = model._core.program.nbytes
    assert_close(model.predict(x)[:64], model.copy().predict(x[:64].toarray()), 1e-5)
    model.fit(x[:6000], np.arange(6000) % 3, validation_data=(x[-2000:], np.zeros(2000, int)))
    model(x[:200])
    assert model._core.program.nbytes < before + (16 << 20)
