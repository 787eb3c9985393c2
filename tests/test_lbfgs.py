"""L-BFGS: beside SciPy's L-BFGS-B, which has the same line search, and all that `fit` does with such an optimiser."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from scipy.optimize import minimize

import cnn
from cnn.training import objective

EXACT = {"tolerance_grad": 0.0, "tolerance_change": 0.0}


def data(rows=120, columns=6, outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, columns))
    return x, np.sin(x @ rng.standard_normal((columns, outputs)))


def network(optimizer, dtype="float64", loss=None, widths=(6, 9, 2), act=cnn.Tanh, seed=0, norm=False, **linear):
    layers = []
    for n_in, n_out in itertools.pairwise(widths[:-1]):
        layers += [cnn.Linear(n_in, n_out, **linear), *([cnn.BatchNorm1d(n_out)] if norm else []), act()]
    return cnn.Sequential([*layers, cnn.Linear(*widths[-2:], **linear), loss or cnn.MSELoss()], optimizer, dtype, seed)


def states(model):
    """All but the numbers of evaluations, of which a run that is resumed needs one more."""
    training = model._core.training_state()[0].items()
    own = [a for name, a in training if name != "history/evaluations"]
    return [model.parameters, *model.state_dict().values(), *own]


def assert_same(a, b):
    for mine, theirs in zip(states(a), states(b), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def by_scipy(model, x, y, decay=0.0, trace=None, **options):
    """SciPy's result; decay: of each parameter."""

    def function(parameters):
        model.parameters = parameters
        loss, gradient = model.loss_and_grad(x, y)
        loss += 0.5 * (decay * parameters**2).sum()
        if trace is not None:
            trace.append(loss)
        return loss, gradient + decay * parameters

    options = {"ftol": 0.0, "gtol": 0.0, **options}
    return minimize(function, model.parameters, jac=True, method="L-BFGS-B", options=options)


# the algorithm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [{}, {"l2": 0.01}])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("decay_bias", [True, False])
def test_the_iterates_are_those_of_scipy(isa, decay_bias, decay, linear):
    """The first 15, before rounding tells them apart; decay: with a group, which has another one."""
    x, y = data()
    groups = [{"layers": [2], "weight_decay": 3 * decay}] * (decay > 0)
    optimizer = cnn.LBFGS(weight_decay=decay, groups=groups, decay_bias=decay_bias, history_size=5, **EXACT)
    model = network(optimizer, **linear)
    each = [
        np.full(a.size, (3 if name.startswith("2") else 1) * decay * (decay_bias or a.ndim == 2))
        for name, a in model.state_dict().items()
    ]
    result = by_scipy(network(None, **linear), x, y, np.concatenate(each), maxiter=15, maxcor=5)
    history = model.fit(x, y, epochs=15)
    np.testing.assert_allclose(model.parameters, result.x, rtol=1e-7, atol=1e-8)
    assert sum(history["evaluations"]) == result.nfev
    assert history["loss"][-1] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-12)


PROBLEMS = [  # loss, rows, widths, activation
    (cnn.MSELoss, 100, (6, 10, 1), cnn.Tanh),
    (cnn.MSELoss, 200, (4, 30, 2), cnn.Sigmoid),
    (cnn.MSELoss, 60, (10, 8, 8, 3), cnn.Tanh),
    (cnn.MSELoss, 150, (6, 20, 1), cnn.ReLU),
    (cnn.HuberLoss, 150, (6, 12, 2), cnn.Tanh),
    (cnn.CrossEntropyLoss, 150, (6, 10, 3), cnn.Tanh),
    (cnn.CrossEntropyLoss, 100, (8, 16, 16, 4), cnn.ReLU),
    (cnn.CrossEntropyLoss, 200, (12, 5), cnn.Tanh),
    (cnn.BCEWithLogitsLoss, 150, (6, 10, 1), cnn.Tanh),
    (cnn.BCEWithLogitsLoss, 80, (5, 6, 6, 2), cnn.SiLU),
]


def test_no_more_evaluations_than_scipy():
    """Over ten problems, to the loss that both have reached after 40 iterations."""
    ours = theirs = 0
    for seed, (loss, rows, widths, act) in enumerate(PROBLEMS):
        x, y = data(rows, widths[0], widths[-1], seed)
        y = y.argmax(axis=1) if loss is cnn.CrossEntropyLoss else y > 0 if loss is cnn.BCEWithLogitsLoss else y
        shape = {"loss": loss(), "widths": widths, "act": act, "seed": seed, "l2": 1e-4}
        trace = []
        by_scipy(network(None, **shape), x, y, trace=trace, maxiter=40)
        history = network(cnn.LBFGS(**EXACT), **shape).fit(x, y, epochs=40)
        goal = max(min(trace), history["loss"][-1]) * (1 + 1e-9)
        theirs += 1 + next(i for i, value in enumerate(trace) if value <= goal)
        ours += sum(history["evaluations"][: 1 + next(i for i, v in enumerate(history["loss"]) if v <= goal)])
    assert ours <= 1.1 * theirs


def test_blocks_of_rows_and_threads_change_nothing(isa, dtype, monkeypatch):
    x, y = data(3000)
    whole = network(cnn.LBFGS(), dtype)
    whole.fit(x, y, epochs=5, threads=1)
    monkeypatch.setattr(objective, "ROOM_BYTES", 1)  # 512 rows
    models = [network(cnn.LBFGS(), dtype) for _ in range(2)]
    for threads, model in enumerate(models, 1):
        model.fit(x, y, epochs=5, threads=threads)
    assert_same(*models)
    np.testing.assert_allclose(models[0].parameters, whole.parameters, rtol=1e-3 if dtype == "float32" else 1e-9)


def test_weights_are_rows(isa, dtype):
    x, y = data(40)
    w = np.arange(40) % 3
    models = [network(cnn.LBFGS(), dtype) for _ in range(2)]
    models[0].fit(x, y, sample_weight=w, epochs=4)
    models[1].fit(np.repeat(x, w, axis=0), np.repeat(y, w, axis=0), epochs=4)
    np.testing.assert_allclose(models[0].parameters, models[1].parameters, rtol=1e-3 if dtype == "float32" else 1e-9)


def test_a_step_to_where_the_loss_overflows(isa, dtype):
    """The line search comes back from there."""
    x, _ = data(50)
    y = np.full((50, 1), 5.0)
    model = network(cnn.LBFGS(lr=1e6), dtype, cnn.PoissonNLLLoss(), widths=(6, 8, 1))
    before = model.evaluate(x, y)["loss"]
    history = model.fit(x, y, epochs=3)
    assert history["evaluations"][0] > 5
    assert history["loss"][0] < before
    assert history["loss"] == sorted(history["loss"], reverse=True)


def test_the_learning_rate_scales_the_first_trial(isa):
    x, y = data()
    small, none = network(cnn.LBFGS(lr=1e-3)), network(cnn.LBFGS(lr=0.0))
    before = small.parameters
    small.fit(x, y, epochs=1)
    _, gradient = network(None).loss_and_grad(x, y)
    moved = small.parameters - before
    step = moved @ -gradient / (gradient @ gradient) * np.linalg.norm(gradient)
    assert step / 1e-3 == pytest.approx(round(step / 1e-3))  # 1, or extrapolated from it
    np.testing.assert_allclose(moved, -step * gradient / np.linalg.norm(gradient), rtol=1e-6, atol=1e-12)
    history = none.fit(x, y, epochs=3)
    np.testing.assert_array_equal(none.parameters, before)
    assert history["evaluations"] == [1, 1, 1]


# the end --------------------------------------------------------------------------------------------------------------


def test_it_ends_where_nothing_changes(isa, dtype):
    x, y = data(200)
    for options, why in (
        ({"tolerance_grad": 1e-2}, "no number of the gradient is larger than 0.01"),
        ({"tolerance_change": 1e-4}, "the last iteration has lowered the loss by"),
        (EXACT, ("the line search finds no lower loss", "the last iteration has lowered the loss by 0 only")),
    ):
        model = network(cnn.LBFGS(**options), dtype, widths=(6, 2))
        history = model.fit(x, y, epochs=500)
        assert history.converged.startswith(why)
        assert repr(history).endswith(f"; converged: {history.converged})")
        assert len(history.epochs) < 200
        assert np.isfinite(model.parameters).all()
        assert history["loss"][-1] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-5)
        assert len(model.fit(x, y, epochs=3).epochs) <= 2  # at once again


def test_a_start_without_a_gradient(isa, dtype):
    model = network(cnn.LBFGS(), dtype)
    model.parameters = 0 * model.parameters
    x, y = data()
    history = model.fit(x, 0 * y, epochs=9)
    assert history == {"loss": [0.0], "evaluations": [1]}
    assert history.converged == "no number of the gradient is larger than 1e-07"
    assert not model.parameters.any()


def test_data_that_are_not_finite(isa, dtype):
    x, y = data()
    model = network(cnn.LBFGS(), dtype)
    model.fit(x, y, epochs=2)
    before = states(model)
    y[3] = np.nan
    with pytest.raises(cnn.DivergenceError, match=r"not finite in epoch 1, batch 0, .*; y has NaN or infinity"):
        model.fit(x, y, epochs=2)
    assert np.isnan(model.train_step(x, y))
    np.testing.assert_array_equal(model.parameters, before[0])


# training goes on -----------------------------------------------------------------------------------------------------

WAYS = {
    "copy": copy.copy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("way", ["file", *WAYS])
@pytest.mark.parametrize("norm", [False, True])
def test_resumed_to_the_bit(isa, dtype, norm, way, tmp_path):
    x, y = data(200)
    optimizer = cnn.LBFGS(history_size=4, ema_decay=0.5, schedule=cnn.ExponentialLR(0.9))
    straight = network(optimizer, dtype, norm=norm)
    part = straight.copy()
    whole = straight.fit(x, y, epochs=12, threads=2)
    part.fit(x, y, epochs=7, threads=1)
    if way == "file":
        part.save(tmp_path / "model", training_state=True)
        other = cnn.load(tmp_path / "model")
    else:
        other = WAYS[way](part)
    history = other.fit(x, y, epochs=12, initial_epoch=7, threads=1)
    assert_same(other, straight)
    assert history["loss"] == whole["loss"]
    assert history["evaluations"][:7] == whole["evaluations"][:7]
    assert history["evaluations"][7] == whole["evaluations"][7] + 1  # where it goes on


def test_from_a_folder_of_checkpoints(isa, tmp_path):
    x, y = data()
    straight, first, second = (network(cnn.LBFGS()) for _ in range(3))
    straight.fit(x, y, epochs=6)
    first.fit(x, y, epochs=4, checkpoint=tmp_path)
    second.fit(x, y, epochs=6, checkpoint=tmp_path, resume=True)
    assert_same(second, straight)


def test_interrupted_within_a_line_search(isa, dtype):
    """The parameters are those from before the iteration, and so is what it goes on from."""
    x, y = data()
    left = [9]

    def loss(outputs, targets):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        d = outputs - targets
        return (d**2).mean(), 2 * d / d.size

    model, native = (network(cnn.LBFGS(), dtype, loss=one) for one in (cnn.CallableLoss(loss), cnn.MSELoss()))
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=30)
    done = len(model.history.epochs)
    assert 3 <= done < 9
    native.fit(x, y, epochs=done)
    rtol = 1e-3 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(model.parameters, native.parameters, rtol=rtol, atol=rtol / 10)
    at = model.parameters
    left[0] = 1
    with pytest.raises(KeyboardInterrupt):
        model.train_step(x, y)
    np.testing.assert_array_equal(model.parameters, at)
    model.fit(x, y, epochs=done + 3, initial_epoch=done)
    native.fit(x, y, epochs=done + 3, initial_epoch=done)
    np.testing.assert_allclose(model.parameters, native.parameters, rtol=10 * rtol, atol=rtol)


def test_train_step_is_an_iteration(isa, dtype):
    x, y = data()
    by_step, by_fit = (network(cnn.LBFGS(), dtype) for _ in range(2))
    losses = [by_step.train_step(x, y) for _ in range(6)]
    history = by_fit.fit(x, y, epochs=6)
    np.testing.assert_array_equal(by_step.parameters, by_fit.parameters)
    assert losses[1:] == history["loss"][:-1]
    other, targets = data(30, seed=1)
    assert by_step.train_step(other, targets, np.ones(30)) > 0  # other rows, whenever
    by_step.optimizer = cnn.Adam()
    by_step.train_step(x, y)
    by_step.optimizer = cnn.LBFGS(history_size=3)
    assert by_step.train_step(x, y) > by_step.train_step(x, y)


# with the rest of fit -------------------------------------------------------------------------------------------------


def test_layers_that_stay_fixed(isa, dtype):
    """From the beginning, or by a callback in the midst, when the history knows how they have moved."""
    x, y = data()
    model = network(cnn.LBFGS(), dtype, widths=(6, 9, 5, 2))
    model.layers[2].trainable = False
    fixed = model.layers[2].weight.copy()

    class Exchange(cnn.Callback):
        def on_epoch_end(self, epoch, logs):
            if epoch == 4:
                self.first = model.layers[0].weight.copy()
                model.layers[0].trainable, model.layers[2].trainable = False, True

    exchange = Exchange()
    history = model.fit(x, y, epochs=8, callbacks=[exchange])
    assert history["loss"] == sorted(history["loss"], reverse=True)
    np.testing.assert_array_equal(model.layers[0].weight, exchange.first)
    assert (model.layers[2].weight != fixed).any()
    assert history["evaluations"][4] > 1  # the gradient was another one


def test_a_callback_that_changes_the_parameters(isa):
    x, y = data()

    class Shake(cnn.Callback):
        def on_epoch_end(self, epoch, logs):
            self.model.layers[0].weight[0] += 0.1 * (epoch == 3)

    model = network(cnn.LBFGS())
    history = model.fit(x, y, epochs=6, callbacks=[Shake()])
    assert history["loss"][-1] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-12)


def test_validation_metrics_and_early_stopping(isa, dtype):
    x, y = data(90, outputs=3)
    labels = y.argmax(axis=1)
    x += np.random.default_rng(1).standard_normal(x.shape)
    model = network(cnn.LBFGS(), dtype, cnn.CrossEntropyLoss(), widths=(6, 30, 3))
    stop = cnn.EarlyStopping(patience=5)
    history = model.fit(x, labels, epochs=200, validation_split=0.3, early_stopping=stop, metrics=["f1"])
    assert len(history.epochs) < 200
    assert history.converged is None
    best = history.epochs.index(history.best_epoch)
    train, held = model.evaluate(x[:63], labels[:63], metrics=["f1"]), model.evaluate(x[63:], labels[63:])
    for name, value in train.items():  # of the parameters that the iteration has led to
        assert history[name][best] == pytest.approx(value, rel=1e-5)
    assert history["val_loss"][best] == pytest.approx(held["loss"], rel=1e-5)


def test_running_statistics_follow_once_an_iteration(isa):
    x, y = data()
    model = network(cnn.LBFGS(), norm=True)
    history = model.fit(x, y, epochs=5)
    assert sum(history["evaluations"]) > 5
    assert model.state_dict()["1.num_batches_tracked"] == 5


def refused(**options):
    return network(cnn.LBFGS(), **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda x, y: refused().fit(x, y, batch_size=32),
            ValueError,
            "batch_size: LBFGS needs the whole data, 120 rows",
        ),
        (lambda x, y: refused().fit([(x, y)] * 2), ValueError, "x: LBFGS needs the whole data in each evaluation"),
        (lambda x, y: refused().fit(cnn.Blocks(x, y)), ValueError, "memory maps that fit into it, got Blocks"),
        (lambda x, y: refused(l1=0.1).fit(x, y), ValueError, "expected l1=0 with LBFGS"),
        (lambda x, y: refused(act=cnn.Dropout).fit(x, y), ValueError, "makes the loss random, .*layer.eval()"),
        (lambda x, y: refused(act=cnn.Dropout).train_step(x, y), ValueError, "makes the loss random"),
        (lambda x, y: refused().step(), RuntimeError, "not a gradient alone: use fit or train_step"),
        (lambda x, y: refused().train_step(x[:0], y[:0]), ValueError, "at least one row"),
        (lambda x, y: cnn.find_lr(refused(), x, y), ValueError, "got LBFGS, which chooses its steps itself"),
        (lambda x, y: cnn.LBFGS(clip_norm=1.0), ValueError, "clip_norm: expected none with LBFGS"),
        (lambda x, y: setattr(cnn.LBFGS(), "clip_value", 1.0), ValueError, "clip_value: expected none with LBFGS"),
        (
            lambda x, y: cnn.LBFGS(groups=[{"layers": [0], "lr": 0}]),
            ValueError,
            "layer.trainable = False keeps a layer",
        ),
        (lambda x, y: cnn.LBFGS(history_size=0), ValueError, "history_size"),
        (lambda x, y: setattr(cnn.LBFGS(), "history_size", 5), AttributeError, "only be set in the constructor"),
        (lambda x, y: cnn.LBFGS(line_search_fn=None), ValueError, "expected 'strong_wolfe', the only one, got None"),
        (lambda x, y: cnn.LBFGS(tolerance_grad=-1), ValueError, "tolerance_grad"),
        (lambda x, y: cnn.LBFGS(max_iter=20), TypeError, "unknown argument 'max_iter'"),
    ],
)
def test_what_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(*data())


def test_dropout_in_evaluation_mode(isa):
    x, y = data()
    model = network(cnn.LBFGS(), act=cnn.Dropout)
    model.layers[1].eval()
    history = model.fit(x, y, epochs=3)
    assert history["loss"] == sorted(history["loss"], reverse=True)


def test_its_configuration():
    optimizer = cnn.LBFGS(lr=0.5, history_size=7, weight_decay=0.1, ema_decay=0.9)
    assert optimizer.get_config() == {
        "lr": 0.5,
        "max_eval": 20,
        "tolerance_grad": 1e-07,
        "tolerance_change": 1e-09,
        "history_size": 7,
        "line_search_fn": "strong_wolfe",
        "weight_decay": 0.1,
        "ema_decay": 0.9,
    }
    assert cnn.optim.Optimizer.from_config(optimizer.to_config()).get_config() == optimizer.get_config()
    assert repr(optimizer) == "LBFGS(lr=0.5, history_size=7, weight_decay=0.1, ema_decay=0.9)"
    assert optimizer.states == 14
