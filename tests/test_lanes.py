"""Models in the lanes of the vectors: the same as one after the other but for roundings, and no lane sees another."""

import copy
import itertools

import grid
import numpy as np
import pytest
from arrays import looped
from test_ensemble import ROWS, WIDTH, data, layers

import cnn
from cnn.training import many

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}  # relative to the largest number: roundings of sums, over some steps
LANES = {"float32": 16, "float64": 8}  # of AVX-512


def both(make, members, optimizer, x, y, monkeypatch, dtype="float64", **options):
    """The ensembles and their histories: one after the other, and in the lanes."""
    found = []
    for lanes in (False, True):
        monkeypatch.setattr(many, "LANES", lanes)
        ensemble = cnn.Ensemble(make(), members, optimizer, dtype, 5)
        found.append((ensemble, ensemble.fit(x, y, progress=False, **options)))
    return found


def assert_near(found, dtype="float64", differ=True):
    (alone, one), (lanes, two) = found
    scale = np.abs(alone.parameters).max()
    np.testing.assert_allclose(lanes.parameters, alone.parameters, rtol=0, atol=TOLERANCE[str(dtype)] * scale)
    assert not differ or (lanes.parameters != alone.parameters).any()  # else nothing was in a lane
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=10 * TOLERANCE[str(dtype)], atol=1e-7)
    for a, b in zip(alone, lanes, strict=True):  # the state of further training too
        state, other = a._core.training_state()[0], b._core.training_state()[0]
        np.testing.assert_array_equal(state["counters"], other["counters"])
        for name in (name for name in state if name.startswith("state.")):
            atol = 10 * TOLERANCE[str(dtype)] * max(np.abs(state[name]).max(), 1e-30)
            np.testing.assert_allclose(other[name], state[name], rtol=0, atol=atol)


@pytest.mark.parametrize("members", [3, 4, 7, 8, 9, 15, 16, 17, 33])
@pytest.mark.parametrize("shuffle", ["own", "shared", False])
def test_numbers_of_members(isa, dtype, members, shuffle, monkeypatch):
    x, y = data(dtype=dtype)
    make = lambda: layers(cnn.Linear(5, 7, bias=False), cnn.ReLU(), cnn.Linear(7, 5))  # noqa: E731
    found = both(make, members, cnn.SGD(0.1), x, y, monkeypatch, dtype, epochs=2, batch_size=6, shuffle=shuffle)
    assert_near(found, dtype)


@looped("shuffle", ["own", "shared", False])
@looped("members", [31, 48, 97])
def test_vectors_side_by_side(isa, dtype, members, shuffle):
    """Steps of one row, of several vectors of models at once: to the bit as of one vector. On three threads, there are
    too few models for several."""
    x, y = data(dtype=dtype)
    make = [cnn.Linear(WIDTH, 4), cnn.ReLU(), cnn.Linear(4, 3, bias=False), cnn.Linear(3, 2), cnn.ReLU(), cnn.MSELoss()]
    found = []
    for threads in (1, 3):
        ensemble = cnn.Ensemble(make, members, cnn.SGD(0.02), dtype, 5)
        history = ensemble.fit(x, y, epochs=2, batch_size=1, shuffle=shuffle, threads=threads, progress=False)
        found.append((ensemble.parameters, history["loss"]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_many_vectors_side_by_side(dtype, monkeypatch):
    x, y = data(dtype=dtype)
    make = lambda: [cnn.Linear(WIDTH, 4), cnn.ReLU(), cnn.Linear(4, 2), cnn.ReLU(), cnn.MSELoss()]  # noqa: E731
    own = [np.stack(a) for a in zip(*(data(seed=i, dtype=dtype) for i in range(50)), strict=True)]
    for x_i, y_i in ((x, y), own):
        assert_near(both(make, 50, cnn.SGD(0.02), x_i, y_i, monkeypatch, dtype, epochs=2, batch_size=1), dtype)


@pytest.mark.parametrize("batch_size", [1, 2, 5, None])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_rows_of_a_batch(isa, dtype, rows, batch_size, monkeypatch):
    x, y = data(rows, dtype=dtype)
    assert_near(both(layers, 9, cnn.SGD(0.1), x, y, monkeypatch, dtype, epochs=2, batch_size=batch_size), dtype)


@pytest.mark.parametrize(("name", "given"), grid.WITH_PARAMETERS)
def test_activations(dtype, name, given, monkeypatch):
    x, y = data(dtype=dtype)
    make = lambda: [cnn.Linear(WIDTH, 5), grid.ACTIVATIONS[name].make(given), cnn.Linear(5, 2), cnn.MSELoss()]  # noqa: E731
    assert_near(both(make, 9, cnn.SGD(0.1), x, y, monkeypatch, dtype, epochs=2, batch_size=6), dtype)


def test_members_that_differ(monkeypatch):
    """In a number of an activation, or in how long their schedules are."""
    x, y = data()
    parts = [[grid.ACTIVATIONS[name].make(given) for given in (0.1, 0.5)] for name in ("leaky_relu", "elu", "celu")]
    lists = [[[cnn.Linear(WIDTH, 5), pair[i % 2], cnn.Linear(5, 2)] for i in range(9)] for pair in parts]
    plain = [[cnn.Linear(WIDTH, 5), cnn.Tanh(), cnn.Linear(5, 2)] for _ in range(9)]
    cycles = [cnn.SGD(0.01, schedule=cnn.OneCycleLR(0.05, 8 + i, base_momentum=0.0)) for i in range(9)]
    for members, optimizers in [*((parts, [cnn.SGD(0.1)] * 9) for parts in lists), (plain, cycles)]:
        found = []
        for lanes in (False, True):
            monkeypatch.setattr(many, "LANES", lanes)
            models = [
                cnn.Sequential([*copy.deepcopy(part), cnn.MSELoss()], copy.deepcopy(optimizer), "float64", i)
                for i, (part, optimizer) in enumerate(zip(members, optimizers, strict=True))
            ]
            history = cnn.fit_many(models, [(x, y)] * 9, epochs=2, batch_size=6, progress=False)
            found.append((cnn.Ensemble.of(models), history))
        assert_near(found, differ=members is plain)


@pytest.mark.parametrize("name", [name for name, case in grid.CASES.items() if not case.own])
def test_losses(name, monkeypatch):
    case = grid.CASES[name]
    m = case.width(3)
    y = grid.targets(case.targets, ROWS, m, np.random.default_rng(1))
    tail = [cnn.Softplus()] if case.positive else []
    make = lambda: [cnn.Linear(WIDTH, 5), cnn.Tanh(), cnn.Linear(5, m), *tail, case.make(m)]  # noqa: E731
    found = both(make, 9, cnn.SGD(0.01), data()[0], y, monkeypatch, epochs=2, batch_size=6)
    assert_near(found, differ=False)  # some losses train one after the other


@pytest.mark.parametrize("name", grid.OPTIMIZERS)
def test_optimizers(name, dtype, monkeypatch):
    case = grid.OPTIMIZERS[name]
    x, y = data(dtype=dtype)
    optimizer = case.cls(**{**case.options, **case.common, "lr": np.linspace(0.001, 0.01, 9)})
    found = both(layers, 9, optimizer, x, y, monkeypatch, dtype, epochs=3, batch_size=6)
    assert_near(found, dtype, differ=False)


ADAM = {
    "lr": lambda: cnn.Adam(np.geomspace(1e-3, 1e-1, 9)),
    "all": lambda: cnn.AdamW(
        0.01, betas=(np.linspace(0, 0.9, 9), np.linspace(0.9, 0.99, 9)), weight_decay=np.arange(9.0)
    ),
    "momentum": lambda: cnn.SGD(0.01, momentum=np.linspace(0.1, 0.9, 9), weight_decay=np.linspace(0, 0.1, 9)),
    "amsgrad": lambda: cnn.Adam(0.01, amsgrad=True, eps=np.geomspace(1e-8, 1e-3, 9)),
    "cycle": lambda: cnn.Adam(np.linspace(0.001, 0.01, 9), schedule=cnn.OneCycleLR(0.02, 12)),
    "by epoch": lambda: cnn.SGD(0.1, momentum=0.5, schedule=cnn.StepLR(1, 0.5)),
    "momentum that comes": lambda: cnn.SGD(0.01, schedule=cnn.OneCycleLR(0.05, 12)),
    "momentum that goes": lambda: cnn.SGD(0.01, momentum=0.5, schedule=cnn.OneCycleLR(0.05, 12, base_momentum=0.0)),
}


@pytest.mark.parametrize("name", ADAM)
def test_hyper_parameters(name, isa, dtype, monkeypatch):
    """Of each lane, over two calls of `fit`: the powers of the betas go on."""
    x, y = data(dtype=dtype)
    found = both(layers, 9, ADAM[name](), x, y, monkeypatch, dtype, epochs=2, batch_size=6)
    for (ensemble, _), lanes in zip(found, (False, True), strict=True):
        monkeypatch.setattr(many, "LANES", lanes)
        ensemble.fit(x, y, epochs=1, batch_size=6, progress=False)
    assert_near(found, dtype)


@pytest.mark.filterwarnings("ignore:OneCycleLR. training goes on")
def test_slices_of_time_change_nothing(monkeypatch):
    """A call that the clock ends leaves members that have not begun, and others in the middle of the epoch."""
    x, y = data(ROWS * 8)
    for name, lanes in itertools.product(ADAM, (False, True)):
        monkeypatch.setattr(many, "LANES", lanes)
        found = []
        for seconds in (60, 0):
            monkeypatch.setattr(many, "SLICE", seconds)
            ensemble = cnn.Ensemble(layers(), 9, ADAM[name](), "float64", seed=0)
            ensemble.fit(x, y, epochs=2, batch_size=6, threads=1, progress=False)
            found.append(ensemble.parameters)
        np.testing.assert_array_equal(*found, err_msg=f"{name}, lanes: {lanes}")


def test_own_data(monkeypatch):
    xs, ys = (np.stack(a) for a in zip(*(data(seed=i) for i in range(9)), strict=True))
    assert_near(both(layers, 9, cnn.SGD(0.1), xs, ys, monkeypatch, epochs=2, batch_size=6))
    x, y = data()
    assert_near(both(layers, 9, cnn.SGD(0.1), x, y, monkeypatch, epochs=2, batch_size=6, bootstrap=True))
    labels = np.random.default_rng(0).integers(0, 2, (9, ROWS))
    make = lambda: layers(loss=cnn.CrossEntropyLoss())  # noqa: E731
    assert_near(both(make, 9, cnn.SGD(0.1), xs, labels, monkeypatch, epochs=2, batch_size=6, validation_split=0.3))


def test_ragged(monkeypatch):
    """Neighbours with as many rows share a vector; the others train alone."""
    parts = [data(n, seed=i) for i, n in enumerate([21] * 5 + [7, 8, 9] + [30] * 9 + [4])]
    x, y = [x for x, _ in parts], [y for _, y in parts]
    assert_near(both(layers, len(parts), cnn.Adam(0.01), x, y, monkeypatch, epochs=2, batch_size=6))


@pytest.mark.parametrize("members", [9, 20])
def test_lanes_do_not_see_each_other(dtype, members):
    """A member is the same to the bit in any lane, whatever is in the others, on any number of threads."""
    x, y = data(dtype=dtype)
    ensemble = cnn.Ensemble(layers(), members, cnn.Adam(0.01), dtype, 5)
    ensemble.fit(x, y, epochs=2, batch_size=6, threads=1, progress=False)
    others = cnn.Ensemble(layers(), members + 6, cnn.Adam(0.01), dtype, 1)
    others.parameters = others.parameters * 3
    others.fit(x, y, epochs=2, batch_size=6, threads=3, progress=False)
    assert (others.parameters[:4] != ensemble.parameters[:4]).any()
    later = cnn.Ensemble(layers(), members + 4, cnn.Adam(0.01), dtype, 1)  # its member 4 has the seed 5
    later.fit(x, y, epochs=2, batch_size=6, threads=2, progress=False)
    np.testing.assert_array_equal(later.parameters[4:], ensemble.parameters)


def test_divergence_stays_in_its_lane(isa, dtype):
    x, y = data(dtype=dtype)
    lrs = np.full(18, 0.01)
    calm = cnn.Ensemble(layers(), 18, cnn.SGD(lrs), dtype, 5)
    calm.fit(x, y, epochs=3, batch_size=6, progress=False)
    lrs[[2, 17]] = 1e30 if dtype == "float32" else 1e250
    ensemble = cnn.Ensemble(layers(), 18, cnn.SGD(lrs), dtype, 5)
    ensemble.parameters = start = ensemble.parameters
    x = x.copy()
    with pytest.warns(RuntimeWarning, match="2 of 18 members diverged and were stopped: 2, 17"):
        history = ensemble.fit(x, y, epochs=3, batch_size=6, progress=False)
    assert "in epoch 1, batch" in str(history.diverged[2])
    np.testing.assert_array_equal(ensemble.parameters[[2, 17]], start[[2, 17]])
    rest = [i for i in range(18) if i not in (2, 17)]
    np.testing.assert_array_equal(ensemble.parameters[rest], calm.parameters[rest])
    assert ensemble.train_step(x, y).shape == (18,)


def test_divergence_where_vectors_are_side_by_side(dtype):
    x, y = data(dtype=dtype)
    lrs = np.full(60, 0.01)
    lrs[[2, 41, 59]] = 1e30 if dtype == "float32" else 1e250
    make = [cnn.Linear(WIDTH, 5), cnn.Linear(5, 2), cnn.MSELoss()]
    ensemble = cnn.Ensemble(make, 60, cnn.SGD(lrs), dtype, 5)
    start = ensemble.parameters.copy()
    with pytest.warns(RuntimeWarning, match="3 of 60 members diverged and were stopped: 2, 41, 59"):
        history = ensemble.fit(x, y, epochs=2, batch_size=1, threads=1, progress=False)
    np.testing.assert_array_equal(ensemble.parameters[[2, 41, 59]], start[[2, 41, 59]])
    alone = cnn.Ensemble(make, 3, cnn.SGD(lrs[41]), dtype, 46)
    with pytest.raises(cnn.DivergenceError) as error:
        alone.fit(x, y, epochs=2, batch_size=1, progress=False)
    assert str(history.diverged[41]).partition("epoch")[2] in str(error.value)


@pytest.mark.parametrize("loss", [cnn.MSELoss, cnn.HuberLoss])
def test_nan_in_the_data_of_one(loss):
    xs, ys = (np.stack(a) for a in zip(*(data(seed=i) for i in range(9)), strict=True))
    calm = cnn.Ensemble(layers(loss=loss()), 9, cnn.Adam(0.01), "float64", 5)
    calm.fit(xs, ys, epochs=2, batch_size=4, progress=False)
    xs[1, 3, 0] = np.nan
    ensemble = cnn.Ensemble(layers(loss=loss()), 9, cnn.Adam(0.01), "float64", 5)
    with pytest.warns(RuntimeWarning, match="1 of 9"):
        ensemble.fit(xs, ys, epochs=2, batch_size=4, progress=False)
    rest = [0, *range(2, 9)]
    np.testing.assert_array_equal(ensemble.parameters[rest], calm.parameters[rest])


def test_deadline(monkeypatch):
    """Calls that end after some steps change nothing, but where the powers of Adam's betas begin anew."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((3000, 20)), rng.standard_normal((3000, 1))
    make = lambda: [cnn.Linear(20, 30), cnn.ReLU(), cnn.Linear(30, 1), cnn.MSELoss()]  # noqa: E731
    found = []
    for seconds in (1.0, 0.0):
        monkeypatch.setattr(many, "SLICE", seconds)
        ensemble = cnn.Ensemble(make(), 9, cnn.SGD(0.001, momentum=0.9), "float64", 5)
        ensemble.fit(x, y, epochs=2, progress=False)
        found.append(ensemble.parameters)
    np.testing.assert_array_equal(*found)


def test_early_stopping(monkeypatch):
    """Members stop one by one: those that are left close up."""
    x, y = data(60)
    options = {"epochs": 30, "batch_size": 8, "validation_split": 0.4, "early_stopping": 2}
    found = both(layers, 20, cnn.Adam(np.geomspace(1e-3, 0.1, 20)), x, y, monkeypatch, **options)
    assert len(set(found[0][1].last_epoch.tolist())) > 2
    np.testing.assert_array_equal(found[0][1].best_epoch, found[1][1].best_epoch)
    assert_near(found)


def test_steps(monkeypatch):
    x, y = data()
    results = []
    for lanes in (False, True):
        monkeypatch.setattr(many, "LANES", lanes)
        ensemble = cnn.Ensemble(layers(), 9, cnn.Adam(0.01), "float64", 5)
        results.append(np.stack([ensemble.train_step(x, y) for _ in range(4)]))
    np.testing.assert_allclose(*results, rtol=1e-12)
    assert (results[0] != results[1]).any()


def test_random_numbers_are_kept():
    """A member that leaves the lanes goes on as the model alone: its counters and its state are in it."""
    x, y = data()
    ensemble = cnn.Ensemble(layers(), 9, cnn.Adam(0.01), "float64", 5)
    ensemble.fit(x, y, epochs=2, batch_size=6, progress=False)
    model = ensemble[3]
    ensemble.fit(x, y, epochs=1, batch_size=6, progress=False)
    model.fit(x, y, epochs=1, batch_size=6, progress=False)
    np.testing.assert_allclose(model.parameters, ensemble[3].parameters, rtol=1e-11, atol=1e-14)
