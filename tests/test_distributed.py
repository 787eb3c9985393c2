"""Data-parallel training: the same bits on any number of ranks, and no rank that waits for ever.

The ranks are threads of one process (ranks.py); tests/mpi runs the same under mpiexec.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from grid.layers import LAYERS
from grid.losses import CASES, targets
from grid.optimizers import OPTIMIZERS
from ranks import Comm, World, ran, run

import cnn
from cnn.training.distributed import RankError, parts, program, rows
from cnn.training.distributed.group import Group
from cnn.training.distributed.local import LocalSteps
from cnn.training.distributed.objective import ShardObjective
from cnn.training.distributed.rows import cuts_of, ends_of

ROWS, INPUTS, OUTPUTS = 77, 5, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, INPUTS))
Y = RNG.integers(0, OUTPUTS, ROWS)
W = RNG.random(ROWS)


def mine(comm, *arrays):
    n, r, size = len(arrays[0]), comm.Get_rank(), comm.Get_size()
    return tuple(a[n * r // size : n * (r + 1) // size] for a in arrays)


def network(*middle, loss=None, optimizer=None, dtype="float32", width=9, seed=3):
    loss = cnn.CrossEntropyLoss() if loss is None else loss
    parts = [cnn.Linear(INPUTS, 9), cnn.Tanh(), *middle, cnn.Linear(width, OUTPUTS), loss]
    return cnn.Sequential(parts, optimizer=optimizer or cnn.SGD(lr=0.1, momentum=0.5), dtype=dtype, seed=seed)


def bits(model):
    arrays, _ = model._core.training_state()
    named = {**model.state_dict(), **arrays}
    return {name: np.asarray(a).tobytes() for name, a in named.items()}


@contextlib.contextmanager
def in_parts(small=True):
    """Take the steps of small models in parts, too, as on several machines."""
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(program, "LONG", 0)
            patch.setattr(parts, "BUCKET", 256)
            patch.setattr(program, "MANY", 1)
            patch.setattr(parts, "overlaps", lambda group: hasattr(group.comm, "Isend"))
        yield


def same_on_all(make, work, sizes=(1, 2, 4), **world):
    """work(model, comm) leaves all ranks, and any number of them, with the same model, and returns the same.

    The last number of ranks takes the steps in parts, as with a large model.
    """
    first = None
    for size in sizes:

        def job(comm):
            model = make()
            value = work(model, comm)
            return bits(model), value

        with in_parts(size == sizes[-1]):
            results = ran(size, job, **world)
        for result in results:
            first = result if first is None else first
            assert result[0] == first[0], f"other parameters or state on {size} ranks"
            assert repr(result[1]) == repr(first[1]), f"other results on {size} ranks"
    return first


def fitted(**options):
    def work(model, comm):
        history = model.fit(*mine(comm, X, Y), comm=comm, progress=False, **({"epochs": 2, "batch_size": 20} | options))
        return dict(history)

    return work


# the same bits --------------------------------------------------------------------------------------------------------


def test_every_layer():
    for layer, dtype in zip(LAYERS.values(), ["float32", "float64"] * len(LAYERS), strict=False):
        make = lambda layer=layer, dtype=dtype: network(layer.make(9, dtype), width=layer.width(9), dtype=dtype)  # noqa: E731
        same_on_all(make, fitted(epochs=1), (1, 4))


def test_every_optimizer():
    for case in OPTIMIZERS.values():
        same_on_all(lambda case=case: network(cnn.BatchNorm1d(9), optimizer=case.make()), fitted(epochs=1), (1, 2, 4))


def test_every_loss_and_weights():
    for name, case in CASES.items():
        if name == "own":
            continue
        y = targets(case.targets, ROWS, OUTPUTS, np.random.default_rng(1))

        def work(model, comm, y=y):
            x, t, w = mine(comm, X, y, W)
            model.fit(x, t, sample_weight=w, batch_size=20, comm=comm, progress=False)
            return model.train_step(x, t, comm=comm), model.evaluate(x, t, w, comm=comm)

        same_on_all(lambda case=case: _of_loss(case), work, (1, 2))


def _of_loss(case):
    parts = [cnn.Linear(INPUTS, 6), cnn.ReLU(), cnn.Linear(6, OUTPUTS), cnn.Softplus(), case.make(OUTPUTS)]
    return cnn.Sequential(parts, optimizer=cnn.SGD(lr=0.01), seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulation_steps": 3},
        {"batch_size": 5},  # shards without rows
        {"shuffle": False, "steps_per_epoch": 2},
        {"batch_size": None},
        {"drop_last": True, "metrics": ["top_2"]},
        {"class_weight": {1: 3.0}, "early_stopping": 1, "validation_data": (X, Y)},
    ],
    ids=lambda options: " ".join(options),
)
def test_options_of_fit(options):
    optimizer = lambda: cnn.AdamW(lr=0.02, clip_norm=0.5, ema_decay=0.9, schedule=cnn.CosineAnnealingLR(8))  # noqa: E731
    make = lambda: network(cnn.BatchNorm1d(9), cnn.Dropout(0.3), optimizer=optimizer())  # noqa: E731
    own = options.get("validation_data")

    def work(model, comm):
        here = options | ({"validation_data": mine(comm, *own)} if own else {})
        return fitted(**here)(model, comm)

    same_on_all(make, work, (1, 2, 8))


def test_other_numbers_of_ranks():
    make = lambda: network(cnn.BatchNorm1d(9))  # noqa: E731
    same_on_all(make, fitted(shards=12), (1, 3, 6, 12))


def test_long_vectors_are_summed_in_parts():
    make = lambda: cnn.Sequential([cnn.Linear(300, 123), cnn.MSELoss()], optimizer=cnn.Adam(lr=0.01), seed=1)  # noqa: E731
    x, y = np.random.default_rng(2).normal(size=(40, 300)), np.random.default_rng(3).normal(size=(40, 123))
    same_on_all(make, lambda model, comm: model.train_step(*mine(comm, x, y), comm=comm), (1, 2, 4, 8))


def test_one_array_for_all_ranks_and_files(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "f4", X.shape)
    x[:] = X
    x.flush()
    fit = {"epochs": 2, "batch_size": 20, "shard": "auto", "progress": False}
    memory = same_on_all(network, lambda model, comm: dict(model.fit(X.astype("f4"), Y, comm=comm, **fit)))
    files = same_on_all(
        network, lambda model, comm: dict(model.fit(np.load(tmp_path / "x.npy", mmap_mode="r"), Y, comm=comm, **fit))
    )
    assert files == memory  # one block
    whole = lambda: network(optimizer=cnn.LBFGS(), dtype="float64")  # noqa: E731
    work = lambda x: lambda model, comm: dict(model.fit(x, Y, epochs=2, comm=comm, shard="auto", progress=False))  # noqa: E731
    files = same_on_all(whole, work(np.load(tmp_path / "x.npy", mmap_mode="r")), (1, 2))
    assert files == same_on_all(whole, work(X.astype("f4")), (1,))
    alone, same = whole(), whole()
    alone.fit(np.load(tmp_path / "x.npy", mmap_mode="r"), Y, progress=False)
    same.fit(X.astype("f4"), Y, progress=False)
    assert bits(alone) == bits(same)


def test_forms_of_data_that_all_ranks_name(tmp_path):
    """Targets in files, several inputs, leading axes, sparse rows and pairs of targets: what arrays give."""
    x, y = X.astype("f4"), np.sin(X[:, :OUTPUTS]).astype("f4")
    maps = {}
    for name, a in {"x": x, "y": y, "w": W.astype("f4")}.items():
        np.save(tmp_path / f"{name}.npy", a)
        maps[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    regression = lambda: network(loss=cnn.MSELoss())  # noqa: E731
    chosen = lambda: network(loss=cnn.MSELoss(chosen=True))  # noqa: E731
    sparse = pytest.importorskip("scipy.sparse")
    square = 7 * 11
    pair = Y, y[:, 0]
    forms = [
        (regression, (x, y), [(x, maps["y"]), (maps["x"], maps["y"]), (cnn.Blocks(maps["x"], maps["y"]), None)]),
        (regression, (x, y), [([x[:, :2], x[:, 2:]], y), (x.reshape(7, 11, -1), y.reshape(7, 11, -1))]),
        (regression, (x, y), [(sparse.coo_matrix(x), y), (sparse.csc_array(x), y), (x.tolist(), y.tolist())]),
        (chosen, (x, pair), [(x.reshape(7, 11, -1), tuple(a.reshape(7, 11) for a in pair))]),
    ]
    assert len(x) == square
    for make, arrays, others in forms:
        found = []
        for form in (arrays, *others):

            def work(model, comm, form=form):
                options = {"epochs": 2, "batch_size": 20, "comm": comm, "progress": False}
                if isinstance(form[0], cnn.Blocks):  # each rank its own
                    rows = slice(*(len(x) * r // comm.Get_size() for r in (comm.Get_rank(), comm.Get_rank() + 1)))
                    return dict(model.fit(cnn.Blocks(maps["x"][rows], maps["y"][rows]), **options))
                return dict(model.fit(*form, shard="auto", **options))

            found.append(same_on_all(make, work, (1, 2, 4)))
        for one in found[1:]:
            if one[0] != found[0][0]:  # sparse rows are summed in another order
                np.testing.assert_allclose(one[1]["loss"], found[0][1]["loss"], rtol=1e-5)


def test_blocks_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "BLOCK_BYTES", 30 * 40)  # a block of 20 rows at a time
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "f8", X.shape)
    x[:] = X
    x.flush()
    work = lambda model, comm: dict(  # noqa: E731
        model.fit(np.load(tmp_path / "x.npy", mmap_mode="r"), Y, batch_size=10, comm=comm, shard="auto", progress=False)
    )
    same_on_all(network, work)


def test_iterables_and_sparse_rows():
    sparse = pytest.importorskip("scipy.sparse")
    thin = sparse.csr_matrix(np.where(X > 0.5, X, 0))

    def batches(model, comm):
        parts = [mine(comm, X[at : at + 16], Y[at : at + 16], W[at : at + 16]) for at in (0, 16, 32, 48)]
        return dict(model.fit(parts, comm=comm, progress=False, epochs=2))

    same_on_all(network, batches)
    make = lambda: cnn.Sequential(  # noqa: E731
        [cnn.Linear(INPUTS, 40), cnn.Tanh(), cnn.Linear(40, OUTPUTS), cnn.CrossEntropyLoss()], cnn.Adam(lr=0.01), seed=1
    )
    dense = lambda model, comm: dict(model.fit(*mine(comm, thin.toarray(), Y), comm=comm, progress=False))  # noqa: E731
    n = len(Y)
    part = lambda comm: slice(n * comm.rank // comm.world.size, n * (comm.rank + 1) // comm.world.size)  # noqa: E731
    work = lambda model, comm: dict(model.fit(thin[part(comm)], Y[part(comm)], comm=comm, progress=False))  # noqa: E731
    history = same_on_all(make, work)[1]
    np.testing.assert_allclose(history["loss"], same_on_all(make, dense)[1]["loss"], rtol=1e-5)


# the right numbers ----------------------------------------------------------------------------------------------------


def test_loss_and_gradient_are_those_of_all_rows():
    for layer in LAYERS.values():
        parts = lambda layer=layer: [layer.make(9, "float64")]  # noqa: E731
        alone = network(*parts(), width=layer.width(9), dtype="float64")
        loss, gradient = alone.loss_and_grad(X, Y)

        def work(comm, parts=parts, layer=layer):
            model = network(*parts(), width=layer.width(9), dtype="float64")
            return (*model.loss_and_grad(*mine(comm, X, Y), comm=comm), model.gradients, model.state_dict())

        for there in ran(2, work):
            np.testing.assert_allclose(there[0], loss, rtol=1e-12)
            np.testing.assert_allclose(there[1], gradient, rtol=1e-9, atol=1e-12)
            np.testing.assert_array_equal(there[1], there[2])
            for name, array in alone.state_dict().items():
                np.testing.assert_allclose(there[3][name], array, rtol=1e-12, atol=1e-14)


WHOLE = {
    "lbfgs": (cnn.LBFGS, "float64"),
    "newton": (lambda: cnn.NewtonCG(weight_decay=1e-3), "float32"),
    "matrix": (cnn.LevenbergMarquardt, "float32"),
    "products": (lambda: cnn.LevenbergMarquardt(exact_parameters=0, cg_iterations=9), "float64"),
    "bayesian": (lambda: cnn.LevenbergMarquardt(regularization="bayesian"), "float64"),
}


def test_optimizers_of_the_whole_data(monkeypatch):
    for name, (optimizer, dtype) in WHOLE.items():
        loss = cnn.MSELoss if name == "bayesian" else cnn.CrossEntropyLoss
        y = np.tanh(X[:, :OUTPUTS]) if name == "bayesian" else Y
        parts = lambda norm=name == "lbfgs": [cnn.BatchNorm1d(9) if norm else cnn.LayerNorm(9)]  # noqa: E731
        make = lambda: network(*parts(), loss=loss(), optimizer=optimizer(), dtype=dtype)  # noqa: B023, E731

        def work(model, comm, y=y, more=name != "bayesian"):
            x, t, w = mine(comm, X, y, W)
            own = {"validation_data": (x, t), "metrics": ["top_2"]} if more else {}
            history = model.fit(x, t, sample_weight=w, epochs=3, comm=comm, progress=False, shards=4, **own)
            return dict(history), model.train_step(x, t, comm=comm, shards=4), model._core.held is None

        history = same_on_all(make, work)[1][0]
        alone = make()
        own = {"validation_data": (X, y), "metrics": ["top_2"]} if name != "bayesian" else {}
        wanted = alone.fit(X, y, sample_weight=W, epochs=3, progress=False, **own)
        assert history["loss"][-1] < history["loss"][0]
        for key, values in wanted.items():
            np.testing.assert_allclose(history[key], values, rtol=1e-6 if dtype == "float64" else 2e-2, err_msg=key)
        if name in ("lbfgs", "matrix", "products"):  # in several blocks of rows, and all in one
            with monkeypatch.context() as patch:
                patch.setattr("cnn.training.objective.LEAST_ROWS", 12)
                patch.setattr("cnn.training.objective.ROOM_BYTES", 1)
                make = lambda: network(loss=loss(), optimizer=optimizer(), dtype=dtype)  # noqa: B023, E731
                several = same_on_all(make, work)[1][0]
            np.testing.assert_allclose(several["loss"], same_on_all(make, work, (1,))[1][0]["loss"], rtol=1e-3)


def test_memory_that_is_short_on_one_rank(monkeypatch):
    bytes_of = iter([1.0, 1e12])
    monkeypatch.setattr("cnn.optim.second_order._memory", lambda: next(bytes_of))

    def work(comm):
        model = network(optimizer=cnn.LevenbergMarquardt(cg_iterations=3))
        model.train_step(*mine(comm, X, Y), comm=comm)
        return model.optimizer.solver

    with pytest.warns(RuntimeWarning, match="by conjugate gradients"):
        assert ran(2, work) == ["cg", "cg"]


def test_an_optimizer_of_the_whole_data_that_is_interrupted(tmp_path, monkeypatch):
    def fit(comm, callbacks=(), **options):
        model = network(optimizer=cnn.LBFGS())
        options = {"epochs": 4, "progress": False, "checkpoint": tmp_path / "run"} | options
        model.fit(*mine(comm, X, Y), comm=comm, callbacks=callbacks, **options)
        return bits(model)

    truth = ran(1, lambda comm: fit(comm, checkpoint=None))[0]
    for error in (KeyboardInterrupt(), KeyError("oh")):
        results = run(2, lambda comm, error=error: fit(comm, [At(comm, 1, error, True)]))
        assert isinstance(results[1], type(error))
        assert isinstance(results[0], KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RankError)

    for size in (4, 1):
        for there in ran(size, lambda comm: fit(comm, resume=True)):
            evaluations = "history/evaluations"  # an iteration that was done is not counted again
            assert there == truth | {evaluations: there[evaluations]}

    sweep = ShardObjective._sweep

    def broken(objective):
        if objective.group.rank == 1 and objective.evaluations == 2:
            raise KeyboardInterrupt
        return sweep(objective)

    def in_a_search(comm):
        model = network(optimizer=cnn.LBFGS(lr=30))
        before = model.parameters
        try:
            return model.train_step(*mine(comm, X, Y), comm=comm)
        finally:
            assert (model.parameters == before).all()

    monkeypatch.setattr(ShardObjective, "_sweep", broken)
    assert all(isinstance(result, KeyboardInterrupt) for result in run(2, in_a_search))


def test_one_batch_is_that_of_all_rows():
    weights = np.where(np.arange(ROWS) % 3, W, 0)
    alone = network(cnn.BatchNorm1d(9), dtype="float64")
    loss = alone.train_step(X, Y, weights)

    def work(comm):
        model = network(cnn.BatchNorm1d(9), dtype="float64")
        x, y, w = mine(comm, X, Y, weights)
        there = model.train_step(x, y, w, comm=comm, shards=12)
        return there, model.parameters, model.evaluate(x, y, w, metrics=["top_2"], comm=comm, shards=12)

    scores = alone.evaluate(X, Y, weights, metrics=["top_2"])
    for there in ran(3, work):
        np.testing.assert_allclose(there[0], loss, rtol=1e-12)
        np.testing.assert_allclose(there[1], alone.parameters, rtol=1e-10, atol=1e-13)
        for name, score in scores.items():
            np.testing.assert_allclose(there[2][name], score, rtol=1e-10)


def test_cuts_take_each_row_once():
    random = np.random.default_rng(5)
    for _ in range(30):
        ranks, count = random.integers(1, 5), 2 ** random.integers(0, 3)
        sizes = random.integers(1, 60, ranks).tolist()
        shards = np.diff(ends_of(sizes, ranks * count), prepend=0)
        assert shards.sum() == sum(sizes)
        assert [part.sum() for part in np.split(shards, ranks)] == sizes
        batch_size = int(random.integers(1, 40))
        cuts = cuts_of(shards, batch_size)
        assert (cuts[0] == 0).all()
        assert (cuts[-1] == shards).all()
        assert (np.diff(cuts, axis=0) >= 0).all()
        assert (np.diff(cuts.sum(1))[:-1] == batch_size).all()
    even = cuts_of(np.full(8, 10), 16)
    assert (np.diff(even, axis=0) == 2).all()


def test_allreduce_of_the_communicator():
    def work(comm):
        model = network(dtype="float64")
        model.fit(*mine(comm, X, Y), epochs=2, batch_size=20, comm=comm, deterministic=False, progress=False)
        return model.parameters

    alone = ran(1, work)[0]
    for there in ran(4, work):
        np.testing.assert_allclose(there, alone, rtol=1e-9, atol=1e-12)


def test_local_steps_are_those_of_a_model_for_each_shard():
    fit = {"epochs": 2, "batch_size": 20, "shuffle": False, "shards": 2, "average_every": 3, "progress": False}

    def work(comm):
        model = network(optimizer=cnn.SGD(lr=0.1, momentum=0.9), dtype="float64")
        return dict(model.fit(*mine(comm, X[:76], Y[:76]), comm=comm, **fit)), model.parameters

    models = [network(optimizer=cnn.SGD(lr=0.1, momentum=0.9), dtype="float64") for _ in range(2)]
    losses = []
    for _ in range(2):
        losses.append(0.0)
        for at in range(0, 38, 10):
            for rank, model in enumerate(models):
                rows = slice(38 * rank + at, 38 * rank + min(at + 10, 38))
                losses[-1] += model.train_step(X[rows], Y[rows]) * len(Y[rows]) / 76
            if at >= 20:  # after three batches, and at the end
                mean = (models[0].parameters + models[1].parameters) / 2
                for model in models:
                    model.parameters = mean
        arrays = [model._core.training_state()[0] for model in models]
        for model in models:  # the momentum
            both = {"state.0": (arrays[0]["state.0"] + arrays[1]["state.0"]) / 2, "counters": arrays[0]["counters"]}
            model._core.program.set_state(both, 1)
    for history, parameters in ran(2, work):
        np.testing.assert_allclose(history["loss"], losses, rtol=1e-12)
        np.testing.assert_allclose(parameters, mean, rtol=1e-12, atol=1e-15)


def test_local_steps_on_any_number_of_ranks(tmp_path, monkeypatch):
    schedule = lambda: cnn.CosineAnnealingLR(20, interval="step")  # noqa: E731
    optimizer = lambda: cnn.AdamW(lr=0.02, clip_norm=0.5, ema_decay=0.9, schedule=schedule())  # noqa: E731
    make = lambda: network(cnn.BatchNorm1d(9), cnn.Dropout(0.3), optimizer=optimizer())  # noqa: E731
    local = {"average_every": 3, "metrics": ["top_2"]}

    def work(model, comm):
        x, y, w = mine(comm, X, Y, W)
        return fitted(**local, sample_weight=w, validation_data=(x, y), epochs=3)(model, comm)

    truth, history = same_on_all(make, work, (1, 2, 8))
    assert np.isfinite(history["val_loss"]).all()

    def frozen():
        model = network(optimizer=cnn.Adam(lr=0.1))
        model.layers[0].trainable = False
        return model

    trained = same_on_all(frozen, fitted(shards=12, batch_size=10, epochs=1, average_every=2), (1, 3))[0]
    assert trained["0.weight"] == frozen().layers[0].weight.tobytes()  # 12 shards, some without rows

    mean = LocalSteps._mean
    for when in (1, 2):  # within an epoch, and at its end
        calls = iter(range(when))

        def breaks(steps, *arguments, calls=calls):
            if steps.group.rank == 1 and next(calls, None) is None:
                raise KeyboardInterrupt
            return mean(steps, *arguments)

        def interrupted(comm, when=when):
            x, y, w = mine(comm, X, Y, W)
            own = {"validation_data": (x, y), "sample_weight": w, "checkpoint": tmp_path / str(when)}
            return fitted(**local, **own, epochs=3)(make(), comm)

        with monkeypatch.context() as patch:
            patch.setattr(LocalSteps, "_mean", breaks)
            assert all(isinstance(result, KeyboardInterrupt) for result in run(2, interrupted))

        def resumed(model, comm, when=when):
            x, y, w = mine(comm, X, Y, W)
            own = {"validation_data": (x, y), "sample_weight": w, "checkpoint": tmp_path / str(when), "resume": True}
            return fitted(**local, **own, epochs=3)(model, comm)

        assert same_on_all(make, resumed, (4,)) == (truth, history)

    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", "f8", X.shape)
    x[:] = X
    x.flush()
    monkeypatch.setattr(rows, "BLOCK_BYTES", 50 * 40)
    files = lambda model, comm: dict(  # noqa: E731
        model.fit(
            *(np.load(tmp_path / "x.npy", mmap_mode="r"), Y),
            **{**local, "batch_size": 26, "comm": comm, "shard": "auto", "progress": False},
        )
    )
    same_on_all(make, files)


# failures -------------------------------------------------------------------------------------------------------------


class At(cnn.Callback):
    """Raises or stops on one rank, at the end of an epoch, of a batch (True) or of the training ("end")."""

    def __init__(self, comm, rank, error, batch=False):
        self.act = comm.Get_rank() == rank
        self.error, self.batch = error, batch

    def on_train_end(self, logs=None):
        if self.batch == "end":
            self._raise()

    def _raise(self):
        if self.act and self.error is None:
            self.model.stop_training = True
        elif self.act:
            raise self.error

    def on_epoch_end(self, epoch, logs):
        if not self.batch:
            self._raise()

    def on_batch_end(self, batch, logs):
        if self.batch is True:
            self._raise()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_an_exception_on_one_rank_is_raised_on_all(size):
    def given(comm, make):
        model = network(cnn.BatchNorm1d(9))
        return model.fit(*mine(comm, X, Y), epochs=3, comm=comm, shards=4 * size, progress=False, **make(comm))

    def check(results, error, text):
        assert isinstance(results[1], error)
        for rank, result in enumerate(results):
            if rank != 1:
                assert isinstance(result, RankError), result
                assert text in str(result)

    for batch in (False, True, "end"):
        make = lambda comm, batch=batch: {"callbacks": [At(comm, 1, KeyError("oh"), batch)]}  # noqa: E731
        failed = run(size, lambda comm, make=make: given(comm, make))
        check(failed, KeyError, "rank 1: KeyError: 'oh'")
    failed = run(size, lambda comm: given(comm, lambda comm: {"threads": 0 if comm.rank == 1 else None}))
    check(failed, ValueError, "rank 1: ValueError: threads")

    def no_rows(comm):
        model = network()
        keep = slice(0, 0) if comm.rank == 1 else slice(None)
        return model.fit(X[keep], Y[keep], comm=comm, shards=4 * size, progress=False)

    check(run(size, no_rows), ValueError, "rank 1: ValueError: x: training needs at least one row")

    def broken(comm):
        def batches():
            for at in (0, 10, 20):
                if at == 20 and comm.rank == 1:
                    raise OSError("the disk is gone")
                yield X[at : at + 10], Y[at : at + 10]

        model = network()
        before = model.parameters
        try:
            model.fit(batches(), comm=comm, shards=4 * size, progress=False)
        finally:
            assert (model.parameters == before).all()

    check(run(size, broken), OSError, "rank 1: OSError: the disk is gone")


def _estimator(kind, **options):
    def call(comm, x, y, bad):
        estimators = pytest.importorskip("cnn.sklearn")
        more = {"max_iter": 1, "hidden_layer_sizes": (3,), "random_state": 0} | options
        return getattr(estimators, kind)(**more, **bad).fit(x, y, comm=comm)

    return call


def _trained(make, method="fit", **options):
    def call(comm, x, y, bad):
        model = make()
        if "optimizer" in bad:
            model.optimizer = None
            bad = {}
        return getattr(model, method)(x, y, comm=comm, **options, **bad)

    return call


def _twice(method):  # the group of ranks is kept from the call before
    def call(comm, x, y, bad):
        model = network()
        model.train_step(X, Y, comm=comm)
        return getattr(model, method)(x, y, comm=comm, **bad)

    return call


def _many(comm, x, y, bad):
    return cnn.fit_many([network(seed=i) for i in range(3)], [(x, y)] * 3, comm=comm, progress=False, **bad)


def _map(comm, x, y, bad):
    return network().fit(x, y, comm=comm, shard="auto", progress=False, **bad)


QUIET = {"progress": False}
MEMBERS = lambda: cnn.Ensemble.of([network(seed=i) for i in range(3)])  # noqa: E731
CALLS = {  # a call with comm, and arguments of its own that are bad
    "fit": (_trained(network, **QUIET), [{"epochs": 0}, {"batch": 3}, {"deterministic": 3}, {"optimizer": None}]),
    "fit of one array": (_map, [{"metrics": "none"}, {"shards": 0.5}]),
    "fit of batches": (lambda c, x, y, bad: network().fit([(x, y)], comm=c, **QUIET, **bad), [{"callbacks": [3]}]),
    "evaluate": (_trained(network, "evaluate"), [{"metrics": ["none"]}, {"shard": "some"}, {"threads": "two"}]),
    "train_step": (_trained(network, "train_step"), [{"sample_weight": [1.0]}, {"shards": 3}, {"optimizer": None}]),
    "another train_step": (_twice("train_step"), [{"sample_weight": [1.0]}, {"shards": 4}]),
    "loss_and_grad": (_trained(network, "loss_and_grad"), [{"shards": "many"}]),
    "another loss_and_grad": (_twice("loss_and_grad"), [{"shards": 4}]),
    "whole data": (_trained(lambda: network(optimizer=cnn.LBFGS()), **QUIET), [{"batch_size": 5}]),
    "a whole step": (
        _trained(lambda: network(optimizer=cnn.LevenbergMarquardt()), "train_step"),
        [{"sample_weight": [[1.0]]}],
    ),
    "ensemble": (_trained(MEMBERS, **QUIET), [{"shuffle": 3}, {"callback": 3}, {"bootstrap": 1}, {"optimizer": None}]),
    "many": (_many, [{"epochs": 0}, {"early_stopping": "late"}, {"epoch": 1}]),
    "classifier": (_estimator("MLPClassifier"), [{"alpha": -1}, {"dropout": 2}, {"solver": "newton"}]),
    "regressor": (_estimator("MLPRegressor"), [{"loss": "none"}, {"activation": "none"}]),
    "members": (_estimator("MLPClassifier", n_members=3), [{"ema_decay": 0.9}]),
}


UNEVEN = ("many", "members")  # on three ranks


def raised(size, work):
    """What work(comm) raises on each rank, none of which waits for another one in vain."""
    began = time.monotonic()
    results = run(size, work, patience=5)
    assert time.monotonic() - began < 5
    for result in results:
        assert isinstance(result, BaseException), result
        assert not isinstance(result, AssertionError), result
    return results


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_what_one_rank_refuses_is_raised_on_all():
    rows = [
        (np.full(X.shape, "one"), Y, {}),
        (X[:, :3], Y, {}),
        (X, Y[:-1], {}),
        (X, np.full(ROWS, np.nan), {}),
        (None, Y, {}),
    ]
    for name, (call, arguments) in CALLS.items():
        good = run(2, lambda comm, call=call: call(comm, X, Y, {}), patience=5)
        assert not any(isinstance(result, BaseException) for result in good), (name, good)
        for fault in [*rows, *((X, Y, bad) for bad in arguments)]:
            one = lambda comm, fault=fault, call=call: call(comm, *(fault if comm.rank == 1 else (X, Y, {})))  # noqa: E731
            print(name, fault)
            raised(3 if name in UNEVEN else 2, one)


def test_ranks_that_fail_at_once_each_elsewhere_in_a_call():
    faults = [{"batch": 3}, {"deterministic": 3}, {"epochs": 0}]
    for size in (2, 3, 4, 5):
        for turn in range(size):  # of the ranks: one fails at the first check, one before and one after a comparison

            def work(comm, turn=turn, size=size):
                rank = (comm.rank + turn) % size
                return network().fit(*mine(comm, X, Y), comm=comm, **dict(enumerate(faults)).get(rank, {}), shards=size)

            for result in raised(size, work):
                assert isinstance(result, (ValueError, TypeError, RankError)), result


def test_a_rank_with_fewer_batches_is_named():
    def work(comm):
        batches = [(X[:8], Y[:8])] * (3 if comm.rank else 2)
        return network().fit(batches, comm=comm, progress=False)

    for result in run(2, work):
        assert isinstance(result, ValueError)
        assert "the batches of rank 0 have ended before those of rank 1" in str(result)


def test_nan_on_one_rank_diverges_on_all():
    def work(comm):
        x, y = mine(comm, X.copy(), Y)
        if comm.rank == 1:
            x[3, 2] = np.nan
        schedule = cnn.CosineAnnealingLR(50, interval="step")
        model = network(optimizer=cnn.SGD(lr=0.1, momentum=0.5, schedule=schedule))
        before = model.parameters
        try:
            return model.fit(x, y, batch_size=4, comm=comm, progress=False, average_every=every)
        finally:
            assert (model.parameters == before).all()

    for every in (1, 64):
        results = run(2, work)
        assert all(isinstance(result, cnn.DivergenceError) for result in results)
        assert "x has NaN" in str(results[1])
        assert every == 1 or "in epoch 1, batch 0, at a learning rate of 0.1;" in str(results[1])


def test_stopping_on_one_rank_stops_all():
    for batch in (False, True):

        def work(comm, batch=batch):
            model = network()
            callback = At(comm, 1, None, batch)
            return model.fit(
                *mine(comm, X, Y), epochs=5, batch_size=20, comm=comm, callbacks=[callback], progress=False
            )

        assert [len(history["loss"]) for history in ran(2, work)] == [1, 1]


def test_ranks_that_differ_are_refused():
    def work(change):
        def job(comm):
            model = network(seed=3 if change != "seed" else comm.rank)
            if comm.rank == 2 and change == "optimizer":
                model.optimizer = cnn.SGD(lr=0.2)
            if comm.rank == 2 and change == "layers":
                model = network(cnn.ReLU())
            if comm.rank == 2 and change == "loss":
                model.loss = cnn.CrossEntropyLoss(label_smoothing=0.1)
            if change == "running statistics":
                model = network(cnn.BatchNorm1d(9))
                model.load_weights({**model.state_dict(), "2.running_mean": np.full(9, float(comm.rank == 2))})
            if change == "trainable":  # of layers within a layer
                model = network(cnn.Sequential([cnn.Linear(9, 9), cnn.Linear(9, 9)]))
                model.layers[2].layers[comm.rank == 2].trainable = False
            if comm.rank == 2 and change == "dtype":
                model = network(dtype="float64")
            x, y = mine(comm, X, Y)
            if comm.rank == 2 and change == "x":
                return model.fit([(x, y)], comm=comm, progress=False)
            options = {"batch_size": 32 if comm.rank == 2 and change == "batch_size" else 16}
            return model.fit(x, y, comm=comm, progress=False, **options)

        return run(4, job)

    kinds = ("seed", "optimizer", "layers", "loss", "dtype", "running statistics", "x", "batch_size", "trainable")
    for change in kinds:
        for result in work(change):
            assert isinstance(result, ValueError), (change, result)
            assert "the ranks differ in " in str(result)
            if change == "batch_size":
                assert "batch_size: ranks 0, 1, 3 have (16, 1, False); rank 2 has (32, 1, False)" in str(result)
            if change == "seed":
                assert "give the model a seed" in str(result)


def test_sigterm_is_as_ctrl_c(tmp_path):
    """Open MPI makes it of Ctrl-C; clusters send it before the end of a job."""

    class Ends(cnn.Callback):
        def on_batch_end(self, batch, logs):
            if batch == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        network().fit(
            X, Y, comm=Comm(World(1), 0), batch_size=10, callbacks=[Ends()], checkpoint=tmp_path, progress=False
        )
    assert signal.getsignal(signal.SIGTERM) is before
    model = network()
    model.fit(X, Y, batch_size=10, checkpoint=tmp_path, resume=True, progress=False)
    assert model._core.program.steps == 8


def test_an_interrupt_on_one_rank_leaves_a_checkpoint_for_other_numbers_of_ranks(tmp_path, monkeypatch):
    make = lambda: network(cnn.BatchNorm1d(9), cnn.Dropout(0.2), optimizer=cnn.Adam(lr=0.01))  # noqa: E731
    fit = {"batch_size": 10, "epochs": 3, "progress": False}

    def whole(comm):
        model = make()
        model.fit(*mine(comm, X, Y), comm=comm, **fit)
        return bits(model)

    truth = ran(1, whole)[0]

    def evaluate(*arguments):
        raise KeyboardInterrupt

    original = program.ShardProgram.run

    def pressed(self, *arguments, **more):
        self.runs = getattr(self, "runs", 0) + 1
        self.group.interrupted = self.group.rank == 1 and self.runs == 12  # in a step of the second epoch
        original(self, *arguments, **more)

    for when in ("epoch", "batch", "validation", "step"):
        folder = tmp_path / when

        def interrupted(comm, folder=folder, when=when):
            x, y = mine(comm, X, Y)
            own = {"validation_data": (x, y)} if when == "validation" else {}
            callback = At(comm, 1 if not own else None, KeyboardInterrupt(), when == "batch")
            callbacks = [] if when == "step" else [callback]
            make().fit(x, y, comm=comm, checkpoint=folder, callbacks=callbacks, **fit, **own)

        with monkeypatch.context() as patch:
            patch.setattr("cnn.training.fit._evaluate", evaluate)
            if when == "step":
                patch.setattr(program.ShardProgram, "run", pressed)
            with in_parts(when == "step"):
                assert all(isinstance(result, KeyboardInterrupt) for result in run(2, interrupted))

        def resumed(comm, folder=folder):
            model = make()
            model.fit(*mine(comm, X, Y), comm=comm, checkpoint=folder, resume=True, **fit)
            return bits(model)

        for size in (4, 1):
            for there in ran(size, resumed):
                for name, array in there.items():
                    assert array == truth[name], name


def test_only_rank_0_prints_and_writes(tmp_path, capsys):
    def work(comm):
        log = cnn.CSVLogger(tmp_path / f"log{comm.rank}.csv")
        network().fit(*mine(comm, X, Y), epochs=2, comm=comm, callbacks=[log], verbose=2)

    ran(2, work)
    assert capsys.readouterr().err.count("epoch 2/2") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["log0.csv"]


def test_what_is_refused():
    def refused(error, match, call, size=1):
        for result in run(size, call):
            assert isinstance(result, error), result
            assert match in str(result)

    own = lambda outputs, y: ((outputs**2).mean(), 2 * outputs / outputs.size)  # noqa: E731
    x, y = X, Y
    refused(ValueError, "one of your own", lambda c: network(loss=cnn.CallableLoss(own)).train_step(x, x, comm=c))
    lbfgs = lambda **options: network(optimizer=cnn.LBFGS(), **options)  # noqa: E731
    refused(ValueError, "got batches, as a list: join the batches", lambda c: lbfgs().fit([(x, y)], comm=c))
    refused(ValueError, "needs the whole data, 77 rows, got 32", lambda c: lbfgs().fit(x, y, batch_size=32, comm=c))
    refused(
        ValueError, "expected validation_data with comm", lambda c: network().fit(x, y, validation_split=0.2, comm=c)
    )
    refused(ValueError, "expected a dict with comm", lambda c: network().fit(x, y, class_weight="balanced", comm=c))
    refused(ValueError, "such as 12", lambda c: network().fit(*mine(c, x, y), comm=c, progress=False), 3)
    refused(ValueError, "such as 16", lambda c: network().fit(*mine(c, x, y), comm=c, progress=False), 16)
    refused(ValueError, "expected arrays", lambda c: network().evaluate([(x, y)], comm=c))
    batches = {"validation_data": [(x, y), (x, y)]}
    refused(ValueError, "expected arrays", lambda c: network().fit(x, y, comm=c, progress=False, **batches))
    refused(TypeError, "without Get_rank", lambda c: network().fit(x, y, comm="world"))
    auto = {"shard": "auto", "progress": False}
    short = lambda c: slice(0, len(x) - c.Get_rank())  # noqa: E731
    refused(
        ValueError,
        "rows of x: rank 0 has 77; rank 1 has 76",
        lambda c: network().fit(x[short(c)], y[short(c)], comm=c, **auto),
        2,
    )
    refused(
        ValueError,
        "y: expected as many rows as x has, (77,), got (76,)",
        lambda c: network().fit(x, y[1:], comm=c, **auto),
    )
    sobolev = lambda c: network(loss=cnn.SobolevLoss()).evaluate(x, (x, x), comm=c)  # noqa: E731
    refused(ValueError, "expected another loss than SobolevLoss", sobolev)
    refused(ValueError, "shard: expected None, or 'auto'", lambda c: network().fit(x, y, comm=c, shard="mine"))
    refused(ValueError, "shard: expected None, or 'auto'", lambda c: network().fit(x, y, shard="auto"))
    local = {"average_every": 4, "progress": False}
    refused(ValueError, "average_every: expected 1 without comm", lambda c: network().fit(x, y, **local))
    refused(ValueError, "expected 1 with LBFGS", lambda c: lbfgs().fit(x, y, comm=c, **local))
    refused(ValueError, "got batches", lambda c: network().fit([(x, y)], comm=c, **local))
    refused(ValueError, "on_batch_end", lambda c: network().fit(x, y, comm=c, callbacks=[At(c, 0, None)], **local))
    fitted = network()
    history = fitted.fit(x, y, progress=False)
    refused(ValueError, "on_batch", lambda c: fitted.fit(x, y, comm=c, callbacks=[At(c, 0, None)], **local), 1)
    assert fitted.history is history
    refused(ValueError, "with accumul", lambda c: network().fit(x, y, comm=c, accumulation_steps=2, **local))
    refused(ValueError, "BatchNorm1d", lambda c: network(cnn.BatchNorm1d(9)).train_step(x[:1], y[:1], comm=c))
    normed = lambda c: network(cnn.BatchNorm1d(9)).fit(*mine(c, x, y), batch_size=8, comm=c, **local)  # noqa: E731
    refused(ValueError, "batch_size: a shard would have one row of a batch of 8, and BatchNorm1d", normed)
    weightless = lambda c: network().fit(*mine(c, x, y), sample_weight=mine(c, 0 * W)[0], comm=c, progress=False)  # noqa: E731
    refused(ValueError, "sample_weight: expected at least one weight above 0", weightless)


def test_a_step_at_rates_of_a_wrong_form_leaves_the_model_free():
    def work(comm):
        model = network()
        model.train_step(X, Y, comm=comm)
        shards = model._core.ranks[2].program.shards(False)
        with pytest.raises((TypeError, ValueError), match="rates"):
            shards.step(np.zeros((1, 9)), parts.WHOLE, 0, len(shards.memory(parts.PARAMETERS)))
        return model.train_step(X, Y, comm=comm)

    assert np.isfinite(ran(1, work)).all()


def test_ranks_whose_rows_have_no_weight():
    w = np.where(np.arange(ROWS) < ROWS // 2, 0, W)
    for every in (1, 3):

        def work(model, comm, every=every):
            x, y, some = mine(comm, X, Y, w)
            options = {"batch_size": 20, "average_every": every, "progress": False}
            return dict(model.fit(x, y, sample_weight=some, comm=comm, **options))

        same_on_all(network, work)


def test_ranks_that_call_different_methods_are_named():
    def work(comm):
        model = network()
        model.train_step(*mine(comm, X, Y), comm=comm)
        if comm.rank:
            return model.loss_and_grad(*mine(comm, X, Y), comm=comm)
        group = model._core.ranks[2]
        with group.together():
            pass

    fit = lambda comm: network().fit(*mine(comm, X, Y), comm=comm, progress=False)  # noqa: E731
    for result in run(2, lambda comm: network().evaluate(X, Y, comm=comm) if comm.rank else fit(comm), patience=5):
        assert isinstance(result, ValueError)
        assert "the ranks differ in epochs: rank 0 has (1, 0, None, False); rank 1 has none" in str(result)
    for width in (9, 400):  # a short vector, and a long one
        make = lambda width=width: network(cnn.Linear(9, 400), cnn.Linear(400, width), width=width)  # noqa: E731
        step = lambda comm: make().train_step(X, Y, comm=comm)  # noqa: B023, E731
        for result in run(2, lambda c: make().loss_and_grad(X, Y, comm=c) if c.rank else step(c), patience=5):  # noqa: B023
            assert isinstance(result, RankError)
            assert "rank 0 is at a batch, and rank 1 at an evaluation" in str(result)
    results = run(2, work)
    assert all(isinstance(result, RankError) for result in results)
    assert "rank 0 is at the end of a call, and rank 1 at a count of rows" in str(results[1])


def test_sums_over_ranks():
    for size in (1, 2, 3, 4, 5, 8):

        def work(comm):
            group = Group(comm)
            vector = np.arange(20000.0) + comm.rank
            return group.sum(vector, 0), group.any(comm.rank == 1), group.gather(comm.rank, 0)

        for vector, flag, ranks in ran(size, work):
            np.testing.assert_array_equal(vector, size * np.arange(20000.0) + size * (size - 1) / 2)
            assert flag == (size > 1)
            assert ranks == list(range(size))


def test_steps_in_parts():
    """The same as whole steps: whatever the step does, with and without messages that overlap, in whatever order."""

    def make():
        optimizer = cnn.AdamW(lr=0.02, clip_norm=0.5, clip_value=0.1, ema_decay=0.9)
        parts = [cnn.Linear(INPUTS, 30, l1=0.01), cnn.LayerNorm(30), cnn.PReLU(), cnn.Linear(30, 40, l2=0.1)]
        parts += [cnn.BatchNorm1d(40), cnn.Tanh(), cnn.Linear(40, OUTPUTS), cnn.CrossEntropyLoss()]
        model = cnn.Sequential(parts, optimizer=optimizer, seed=3)
        model.layers[3].trainable = False
        return model

    class Blocking:
        def __init__(self, comm):
            for name in ("Get_rank", "Get_size", "Send", "Recv", "Sendrecv", "allgather"):
                setattr(self, name, getattr(comm, name))

    def work(model, comm, blocking=False):
        x, y = mine(comm, X, Y)
        comm = Blocking(comm) if blocking else comm
        history = model.fit(x, y, epochs=2, batch_size=20, comm=comm, progress=False)
        return dict(history), model.train_step(x, y, comm=comm), bits(model)

    expected = ran(1, lambda comm: work(make(), comm))[0]
    for size in (2, 4, 8):
        assert ran(size, lambda comm: work(make(), comm)) == [expected] * size
        with in_parts():
            assert ran(size, lambda comm: work(make(), comm), latency=1e-4, jitter=1e-3) == [expected] * size
            assert ran(size, lambda comm: work(make(), comm, True)) == [expected] * size


def test_buckets_are_of_whole_pieces():
    for seed in range(50):
        random = np.random.default_rng(seed)
        ops, at = [], 0
        for units, size in zip(random.integers(0, 9, 5).tolist(), random.choice([0, 16, 48], 5).tolist(), strict=True):
            ops.append((at, units, size))
            at += (units * size or 32 * (units > 0)) + 16 * (units > 0)
        n, unit, least = at + 16, 32, int(random.integers(1, 300))
        windows, buckets = parts.buckets_of(ops, n, unit, least)
        assert [high for _, high in buckets] == [n, *(low for low, _ in buckets[:-1])]
        assert buckets[-1][0] == 0
        assert all(low % unit == 0 for low, _ in buckets)
        assert windows[:, :, 1].sum(0).tolist() == [units for _, units, _ in ops]
        for i, (begin, units, size) in enumerate(ops):
            for unit_number in range(units):
                own = [b for b, (first, some) in enumerate(windows[:, i].tolist()) if 0 <= unit_number - first < some]
                assert len(own) == 1
                last = [b for b, (low, high) in enumerate(buckets) if low <= begin + unit_number * size < high]
                assert own[0] <= last[0], "sent before it is computed"


def test_a_message_takes_its_time():
    def work(comm):
        began = time.perf_counter()
        comm.Sendrecv(np.zeros(1), 1 - comm.rank, 0, np.zeros(1), 1 - comm.rank, 0)
        return time.perf_counter() - began

    assert max(ran(2, work, latency=0.01)) > 0.009  # the first to begin waits for the other too


def test_nothing_is_imported_without_a_communicator():
    code = "import cnn, sys; cnn.Sequential; print([m for m in sys.modules if 'distributed' in m or 'mpi4py' in m])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# many models ----------------------------------------------------------------------------------------------------------


def trained_together(make, work):
    """work(models, comm) leaves every rank, on any number of them, with the models and the history of a run without."""
    models = make()
    expected = work(models, None)
    for size in (1, 2, 3, 5):

        def job(comm):
            there = make()
            return work(there, comm), [bits(model) for model in getattr(there, "_members", there)]

        for history, found in ran(size, job):
            assert found == [bits(model) for model in getattr(models, "_members", models)], f"on {size} ranks"
            assert history.epochs == expected.epochs
            assert list(history.diverged) == list(expected.diverged)
            for name, values in (*expected.items(), ("", expected.last_epoch), ("", expected.best_epoch)):
                other = history.get(name, history.best_epoch if values is expected.best_epoch else history.last_epoch)
                np.testing.assert_array_equal(other, values)


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": "shared", "early_stopping": cnn.EarlyStopping("loss", 1, 0.05), "epochs": 4},
        {"bootstrap": True, "validation_data": (X, Y), "metrics": ["top_2"]},
        {"loss": True, "shuffle": "shared"},
    ],
    ids=lambda options: " ".join(options),
)
def test_members_of_an_ensemble(options):
    own = cnn.CallableLoss(lambda outputs, y: ((outputs**2).mean(), 2 * outputs / outputs.size))
    options = {"epochs": 2, "batch_size": 20, "progress": False} | options
    y = np.eye(OUTPUTS)[Y] if (python := options.pop("loss", False)) else Y

    def make():
        optimizer = cnn.Adam(
            lr=np.linspace(0.001, 0.1, 4), ema_decay=0.9, schedule=cnn.ReduceLROnPlateau(monitor="loss")
        )
        layers = [cnn.Linear(INPUTS, 9), cnn.BatchNorm1d(9), cnn.Dropout(0.2), cnn.Linear(9, OUTPUTS)]
        return cnn.Ensemble([*layers, own if python else cnn.CrossEntropyLoss()], 4, optimizer=optimizer, seed=1)

    def work(ensemble, comm):
        ensemble.fit(X, y, comm=comm, **options)
        return ensemble.fit(X, y, comm=comm, **options)  # from the members, optimisers and orders that it has left

    trained_together(make, work)


@pytest.mark.filterwarnings("ignore:1 of 5 members diverged")
def test_many_models():
    x = [X, np.where(X > 2, np.nan, X), X, X, X[:40]]  # four are in lanes
    data = [(a, Y[: len(a)]) for a in x]
    make = lambda: [network(seed=i, width=9, optimizer=cnn.SGD(0.1, momentum=0.5)) for i in range(5)]  # noqa: E731
    work = lambda models, comm: cnn.fit_many(models, data, epochs=2, progress=False, comm=comm)  # noqa: E731
    trained_together(make, work)


def test_ranks_that_train_members_fail_together():
    def job(comm, seed=None, epochs=2, x=X, y=Y, metrics=()):
        models = [network(seed=i if seed is None else seed + comm.rank) for i in range(3)]
        return cnn.Ensemble.of(models).fit(x, y, epochs=epochs, metrics=metrics, progress=False, comm=comm)

    for match, call in {
        "differ in parameters (checksum)": lambda comm: job(comm, seed=5),
        "differ in epochs: rank 0 has 1; rank 1 has 2": lambda comm: job(comm, epochs=1 + comm.rank),
        "differ in shapes of the data": lambda comm: job(comm, x=X[comm.rank :], y=Y[comm.rank :]),
    }.items():
        for result in run(2, call):
            assert isinstance(result, ValueError), result
            assert match in str(result)

    def metric(comm):
        def fails(y, outputs):
            if comm.rank == 1:
                raise OSError("no space")
            return 0.0

        return {"fails": fails}

    for size in (2, 3):
        results = run(size, lambda comm: job(comm, metrics=metric(comm)))
        assert isinstance(results.pop(1), OSError)
        for result in results:
            assert isinstance(result, RankError), result
            assert str(result) == "rank 1: OSError: no space"
    for result in run(2, lambda comm: job(comm, x=np.full_like(X, np.nan))):
        assert isinstance(result, cnn.DivergenceError)
        assert str(result).startswith("all 3 members diverged: member 0")


def test_only_rank_0_shows_how_members_train(capsys):
    def job(comm):
        return cnn.Ensemble.of([network(seed=i) for i in range(3)]).fit(X, Y, verbose=2, comm=comm)

    assert len(ran(3, job)) == 3
    assert capsys.readouterr().err.count("loss") == 1


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer", "ignore:lbfgs failed")
def test_estimators():
    estimators = pytest.importorskip("cnn.sklearn")
    more = {"max_iter": 3, "random_state": 0, "hidden_layer_sizes": (6,), "n_iter_no_change": 9}
    for options in (
        {"early_stopping": True},
        {"solver": "lbfgs"},
        {"dropout": 0.2, "class_weight": "balanced"},
        {"n_members": 3},
    ):
        first = None
        for size in (1, 2, 4):

            def job(comm, options=options):
                net = estimators.MLPClassifier(**more, **options)
                net.fit(X, Y, comm=comm)
                pickle.dumps(net)  # the communicator is not kept
                return net.predict_proba(X).tobytes(), net.loss_, net.n_iter_

            for result in ran(size, job):
                first = result if first is None else first
                assert result == first, (options, size)
        assert first[2] == 3

    for result in run(2, lambda comm: estimators.MLPRegressor(random_state=comm.rank).fit(X, Y, comm=comm)):
        assert isinstance(result, ValueError), result
        assert "differ in parameters (checksum)" in str(result)
    twice = lambda comm: estimators.MLPRegressor(solver="lbfgs", random_state=0).fit(X, X[:, :2], comm=comm)  # noqa: E731
    for result in run(2, twice):
        assert str(result).startswith("comm: expected one output with solver='lbfgs'")
    alone = estimators.MLPClassifier(**more, solver="lbfgs").fit(X, Y)
    for net in ran(2, lambda comm: estimators.MLPClassifier(**more, solver="lbfgs").fit(X, Y, comm=comm)):
        assert net.n_iter_ == 3
        np.testing.assert_allclose(net.predict_proba(X), alone.predict_proba(X), rtol=1e-6)
