"""Schedules: their courses beside loops written to be read, their configuration, errors, and the plateau's state.

That the values are PyTorch's is tested in peers/test_schedules.py.
"""

import json
import math

import numpy as np
import pytest

import cnn
from cnn.optim import schedules

# One of each, and the number of steps of its course.
SETTINGS = [
    (cnn.ConstantLR(), 8),
    (cnn.ConstantLR(factor=0.0, total_iters=1), 4),
    (cnn.ConstantLR(factor=1, total_iters=7, interval="step"), 10),
    (cnn.LinearLR(), 8),
    (cnn.LinearLR(start_factor=0.01, end_factor=0.5, total_iters=1), 4),
    (cnn.LinearLR(1.0, 0.0, 20, interval="step"), 30),
    (cnn.PolynomialLR(), 8),
    (cnn.PolynomialLR(total_iters=12, power=2.5), 20),
    (cnn.StepLR(1), 5),
    (cnn.StepLR(7, gamma=0.5, interval="step"), 40),
    (cnn.MultiStepLR([]), 5),
    (cnn.MultiStepLR([0, 3, 3, 10], gamma=0.3), 15),
    (cnn.ExponentialLR(0.9), 50),
    (cnn.ExponentialLR(0.0), 3),
    (cnn.CosineAnnealingLR(10), 35),
    (cnn.CosineAnnealingLR(T_max=1, eta_min=0.02), 5),
    (cnn.CosineAnnealingWarmRestarts(5), 22),
    (cnn.CosineAnnealingWarmRestarts(3, T_mult=2, eta_min=0.01, interval="step"), 60),
    (cnn.CosineAnnealingWarmRestarts(1, 3), 50),
    (cnn.OneCycleLR(0.5, 100), 110),
    (cnn.OneCycleLR(0.5, 40, three_phase=True, anneal_strategy="linear", pct_start=0.25), 50),
    (cnn.OneCycleLR(0.5, 9, cycle_momentum=False, div_factor=3, final_div_factor=7), 12),
    (cnn.OneCycleLR(0.5, 1), 3),
    (cnn.OneCycleLR(0.5, 10, pct_start=0.1), 12),
    (cnn.OneCycleLR(0.5, 10, pct_start=1.0, interval="epoch"), 12),
    (cnn.SequentialLR([cnn.LinearLR(0.1, total_iters=4), cnn.CosineAnnealingLR(20)], [4]), 30),
    (cnn.SequentialLR([cnn.OneCycleLR(0.5, 10), cnn.StepLR(3, interval="step"), cnn.OneCycleLR(0.2, 5)], [10, 17]), 30),
    (cnn.SequentialLR([cnn.StepLR(2)], []), 7),
    (cnn.ReduceLROnPlateau(factor=0.5, patience=2), 5),
]
LR = 0.3


def annealed(s, t, low, high, end):
    """OneCycleLR at step t, by torch.optim.lr_scheduler.OneCycleLR's loop over the phases."""
    t, last = min(t, s.total_steps - 1), s.total_steps - 1
    phases = [(s.pct_start * s.total_steps - 1, low, high), (last, high, end)]
    if s.three_phase:
        phases[1:] = [(2 * s.pct_start * s.total_steps - 2, high, low), (last, low, end)]
    start = 0.0
    for stop, begin, to in phases:
        if t <= stop or stop == last:
            part = (t - start) / (stop - start) if stop != start else 1.0
            if s.anneal_strategy == "linear":
                return begin + (to - begin) * part
            return to + (begin - to) / 2 * (1 + math.cos(math.pi * part))
        start = stop
    raise AssertionError


def expected(s, t, lr):
    """(lr, momentum) at step t, one number at a time."""
    name = type(s).__name__
    if name == "ConstantLR":
        return (lr * s.factor if t < s.total_iters else lr), math.nan
    if name == "LinearLR":
        part = min(t / s.total_iters, 1)
        return lr * ((1 - part) * s.start_factor + part * s.end_factor), math.nan
    if name == "PolynomialLR":
        return lr * max(0, 1 - t / s.total_iters) ** s.power, math.nan
    if name == "StepLR":
        return lr * math.prod(s.gamma for i in range(1, t + 1) if i % s.step_size == 0), math.nan
    if name == "MultiStepLR":
        return lr * math.prod(s.gamma for m in s.milestones if m <= t), math.nan
    if name == "ExponentialLR":
        return lr * math.prod([s.gamma] * t), math.nan
    if name == "CosineAnnealingLR":
        return s.eta_min + (lr - s.eta_min) * math.cos(math.pi * t / s.T_max / 2) ** 2, math.nan
    if name == "CosineAnnealingWarmRestarts":
        length = s.T_0
        while t >= length:
            t, length = t - length, length * s.T_mult
        return s.eta_min + (lr - s.eta_min) * math.cos(math.pi * t / length / 2) ** 2, math.nan
    if name == "OneCycleLR":
        low = s.max_lr / s.div_factor
        momentum = annealed(s, t, s.max_momentum, s.base_momentum, s.max_momentum)
        return annealed(s, t, low, s.max_lr, low / s.final_div_factor), momentum if s.cycle_momentum else math.nan
    if name == "SequentialLR":
        starts = [0, *s.milestones]
        i = max(i for i, start in enumerate(starts) if start <= t)
        return expected(s.schedules[i], t - starts[i], lr)
    return lr, math.nan  # a plateau that has seen nothing


@pytest.mark.parametrize(("schedule", "course"), SETTINGS, ids=str)
def test_course(schedule, course):
    rates = schedule.rates(0, course, LR, 0.9)
    assert rates.shape == (course, 2)
    assert rates.dtype == np.float64
    assert rates.flags.c_contiguous
    np.testing.assert_allclose(rates, [expected(schedule, t, LR) for t in range(course)], rtol=1e-13, atol=1e-16)
    if schedule.cycles_momentum:
        assert np.isfinite(rates[:, 1]).any()
    else:
        assert np.isnan(rates[:, 1]).all()


@pytest.mark.parametrize(("schedule", "course"), SETTINGS, ids=str)
def test_any_part_of_the_course(schedule, course):
    """Bit for bit the same, whatever is asked for at once, and as often as one likes."""
    whole = schedule.rates(0, course, LR)
    for first in range(course):
        np.testing.assert_array_equal(schedule.rates(first, 1, LR), whole[first : first + 1])
        np.testing.assert_array_equal(schedule.rates(first, course - first, LR), whole[first:])
    assert schedule.rates(0, 0, LR).shape == (0, 2)
    assert schedule.rates(10**7, 2, LR).shape == (2, 2)


def test_one_cycle_stays_at_its_end():
    rates = cnn.OneCycleLR(0.5, 20).rates(0, 100, LR)
    np.testing.assert_array_equal(rates[20:], np.broadcast_to(rates[19], (80, 2)))
    np.testing.assert_allclose(rates[19], [0.5 / 25 / 1e4, 0.95], rtol=1e-13)
    np.testing.assert_allclose(rates[:, 0].max(), 0.5, rtol=1e-13)


@pytest.mark.parametrize("count", [np.int64(3), 3])
def test_arguments_of_rates(count):
    schedule = cnn.StepLR(2)
    assert schedule.rates(np.int32(1), count, np.float32(0.5)).shape == (3, 2)
    for first, n in ((-1, 2), (2, -1)):
        with pytest.raises(ValueError, match=r"^(first|count): expected at least 0, got -1"):
            schedule.rates(first, n, 0.1)
    for first, n in ((0.5, 2), (2, None), (True, 1)):
        with pytest.raises(TypeError, match=r"^(first|count): expected an int, got "):
            schedule.rates(first, n, 0.1)


# the object ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "course"), SETTINGS, ids=str)
def test_config_and_repr(schedule, course):
    config = json.loads(json.dumps(schedule.get_config()))
    for again in (
        type(schedule)(**config),
        schedules.from_config({"name": type(schedule).__name__, **config}),
        eval(repr(schedule), vars(cnn)),
    ):
        assert type(again) is type(schedule)
        assert again.get_config() == schedule.get_config()
        assert repr(again) == repr(schedule)
        np.testing.assert_array_equal(again.rates(0, course, LR), schedule.rates(0, course, LR))


def test_every_schedule_is_tested_and_public():
    assert {type(schedule).__name__ for schedule, _ in SETTINGS} == set(schedules.__all__)
    assert set(schedules.__all__) <= set(cnn.__all__)


@pytest.mark.parametrize(("schedule", "course"), SETTINGS, ids=str)
def test_optimisers_keep_it(schedule, course):
    optimizer = cnn.SGD(lr=LR, schedule=schedule)
    assert optimizer.schedule is schedule
    config = json.loads(json.dumps(optimizer.get_config()))
    for again in (cnn.SGD(**config), eval(repr(optimizer), vars(cnn))):
        assert again.get_config() == optimizer.get_config()
        np.testing.assert_array_equal(again.schedule.rates(0, course, LR), schedule.rates(0, course, LR))
    assert optimizer.lr == LR


def test_intervals():
    assert cnn.StepLR(2).interval == "epoch"
    assert cnn.OneCycleLR(0.1, 10).interval == "step"
    assert cnn.SequentialLR([cnn.OneCycleLR(0.1, 10)], []).interval == "step"
    assert cnn.ReduceLROnPlateau().interval == "epoch"
    for schedule in schedules.__all__:
        if schedule not in ("SequentialLR", "ReduceLROnPlateau"):
            arguments = {"OneCycleLR": (0.1, 10), "MultiStepLR": ([1],), "ExponentialLR": (0.5,)}.get(schedule, (3,))
            if schedule in ("ConstantLR", "LinearLR", "PolynomialLR"):
                arguments = ()
            with pytest.raises(ValueError, match=r"^interval: expected one of 'step', 'epoch', got 'batch'"):
                getattr(cnn, schedule)(*arguments, interval="batch")


BAD = [
    (lambda: cnn.ConstantLR(1.5), ValueError, "factor: expected a number from 0 to 1, got 1.5"),
    (lambda: cnn.ConstantLR(-0.1), ValueError, "factor: expected a number from 0 to 1, got -0.1"),
    (lambda: cnn.ConstantLR(total_iters=0), ValueError, "total_iters: expected at least 1, got 0"),
    (lambda: cnn.LinearLR(0.0), ValueError, "start_factor: expected a number above 0, got 0.0"),
    (lambda: cnn.LinearLR(1.1), ValueError, "start_factor: expected a number from 0 to 1, got 1.1"),
    (lambda: cnn.LinearLR(end_factor=2), ValueError, "end_factor: expected a number from 0 to 1, got 2"),
    (
        lambda: cnn.LinearLR(end_factor=np.nan),
        ValueError,
        "end_factor: expected a finite number, got nan",
    ),
    (lambda: cnn.LinearLR(total_iters=2.0), TypeError, "total_iters: expected an int, got 2.0"),
    (lambda: cnn.PolynomialLR(power=0), ValueError, "power: expected a number above 0, got 0"),
    (lambda: cnn.PolynomialLR(0), ValueError, "total_iters: expected at least 1, got 0"),
    (lambda: cnn.StepLR(0), ValueError, "step_size: expected at least 1, got 0"),
    (lambda: cnn.StepLR("3"), TypeError, "step_size: expected an int, got '3'"),
    (lambda: cnn.StepLR(3, gamma=-1), ValueError, "gamma: expected a finite number of at least 0, got -1"),
    (lambda: cnn.StepLR(3, gamma=None), TypeError, "gamma: expected a number, got None"),
    (lambda: cnn.MultiStepLR([3, 2]), ValueError, r"milestones: expected increasing numbers, got \[3, 2\]"),
    (lambda: cnn.MultiStepLR([-1]), ValueError, r"milestones\[0\]: expected at least 0, got -1"),
    (lambda: cnn.MultiStepLR([1, 2.5]), TypeError, r"milestones\[1\]: expected an int, got 2.5"),
    (lambda: cnn.MultiStepLR(3), TypeError, "milestones: expected a list of int, got 3"),
    (lambda: cnn.ExponentialLR(np.inf), ValueError, "gamma: expected a finite number of at least 0, got inf"),
    (lambda: cnn.ExponentialLR(True), TypeError, "gamma: expected a number, got True"),
    (lambda: cnn.CosineAnnealingLR(0), ValueError, "T_max: expected at least 1, got 0"),
    (lambda: cnn.CosineAnnealingLR(5, -1), ValueError, "eta_min: expected a finite number of at least 0, got -1"),
    (lambda: cnn.CosineAnnealingWarmRestarts(0), ValueError, "T_0: expected at least 1, got 0"),
    (lambda: cnn.CosineAnnealingWarmRestarts(5, 0), ValueError, "T_mult: expected at least 1, got 0"),
    (lambda: cnn.CosineAnnealingWarmRestarts(5, 1.5), TypeError, "T_mult: expected an int, got 1.5"),
    (lambda: cnn.OneCycleLR(0, 5), ValueError, "max_lr: expected a number above 0, got 0"),
    (lambda: cnn.OneCycleLR(0.1, 0), ValueError, "total_steps: expected at least 1, got 0"),
    (lambda: cnn.OneCycleLR(0.1, 5, pct_start=2), ValueError, "pct_start: expected a number from 0 to 1, got 2"),
    (
        lambda: cnn.OneCycleLR(0.1, 5, anneal_strategy="cosine"),
        ValueError,
        "anneal_strategy: expected one of 'cos', 'linear', got 'cosine'",
    ),
    (
        lambda: cnn.OneCycleLR(0.1, 5, max_momentum=1.0),
        ValueError,
        "max_momentum: expected a finite number of at least 0 and below 1, got 1.0",
    ),
    (lambda: cnn.OneCycleLR(0.1, 5, cycle_momentum=1), TypeError, "cycle_momentum: expected True or False, got 1"),
    (lambda: cnn.OneCycleLR(0.1, 5, three_phase="yes"), TypeError, "three_phase: expected True or False, got 'yes'"),
    (lambda: cnn.OneCycleLR(0.1, 5, div_factor=0), ValueError, "div_factor: expected a number above 0, got 0"),
    (lambda: cnn.SequentialLR([], []), ValueError, "schedules: expected at least one schedule, got none"),
    (lambda: cnn.SequentialLR(cnn.StepLR(2), []), TypeError, "schedules: expected a list of schedules, got StepLR"),
    (lambda: cnn.SequentialLR(["StepLR"], []), TypeError, r"schedules\[0\]: expected a schedule, got 'StepLR'"),
    (
        lambda: cnn.SequentialLR([cnn.StepLR(2), cnn.ReduceLROnPlateau()], [3]),
        ValueError,
        r"schedules\[1\]: ReduceLROnPlateau cannot be part of a SequentialLR",
    ),
    (
        lambda: cnn.SequentialLR([cnn.StepLR(2), cnn.StepLR(2, interval="step")], [3]),
        ValueError,
        r"schedules\[1\]: expected interval 'epoch', as the first, got 'step'",
    ),
    (
        lambda: cnn.SequentialLR([cnn.StepLR(2), cnn.StepLR(2)], []),
        ValueError,
        r"milestones: expected 1, one fewer than schedules, got \[\]",
    ),
    (
        lambda: cnn.SequentialLR([cnn.StepLR(2)] * 3, [4, 4]),
        ValueError,
        r"milestones: expected increasing numbers, got \[4, 4\]",
    ),
    (lambda: cnn.SequentialLR([cnn.StepLR(2)] * 2, [0]), ValueError, r"milestones\[0\]: expected at least 1, got 0"),
    (lambda: cnn.ReduceLROnPlateau("least"), ValueError, "mode: expected one of 'min', 'max', got 'least'"),
    (lambda: cnn.ReduceLROnPlateau(factor=1.0), ValueError, "factor: .* at least 0 and below 1, got 1.0"),
    (lambda: cnn.ReduceLROnPlateau(patience=-1), ValueError, "patience: expected at least 0, got -1"),
    (lambda: cnn.ReduceLROnPlateau(threshold_mode="r"), ValueError, "threshold_mode: expected one of 'rel', 'abs'"),
    (lambda: cnn.ReduceLROnPlateau(monitor=3), TypeError, "monitor: expected a str or None, got 3"),
    (
        lambda: schedules.from_config({"name": "CyclicLR"}),
        ValueError,
        "schedule: unknown name 'CyclicLR', expected one of ConstantLR, ",
    ),
    (
        lambda: schedules.from_config({"step_size": 2}),
        ValueError,
        "schedule: unknown name None, expected one of ConstantLR, ",
    ),
    (
        lambda: schedules.from_config({"name": "StepLR", "size": 2}),
        TypeError,
        r"StepLR: unknown argument 'size': did you mean step_size\?",
    ),
    (lambda: cnn.SGD(schedule="StepLR"), TypeError, "schedule: expected a schedule such as .*, got 'StepLR'"),
    (lambda: cnn.SGD(schedule=cnn.StepLR), TypeError, "schedule: expected a schedule such as "),
    (
        lambda: cnn.Adagrad(schedule=cnn.OneCycleLR(0.1, 10)),
        ValueError,
        r"schedule: OneCycleLR\(max_lr=0.1, total_steps=10\) cycles the momentum, which Adagrad does not have",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_errors(make, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make()


def test_a_schedule_that_is_refused_changes_nothing():
    schedule = cnn.StepLR(2)
    optimizer = cnn.Adagrad(schedule=schedule)
    for bad in (3, cnn.OneCycleLR(0.1, 10)):
        with pytest.raises((TypeError, ValueError), match=r"^schedule: "):
            optimizer.schedule = bad
    assert optimizer.schedule is schedule
    optimizer.schedule = cnn.OneCycleLR(0.1, 10, cycle_momentum=False)
    optimizer.schedule = None
    assert "schedule" not in optimizer.get_config()


# the plateau --------------------------------------------------------------------------------------------------------


def lr_of(schedule, lr=1.0):
    rates = schedule.rates(5, 3, lr)
    assert (rates[:, 0] == rates[0, 0]).all()
    return rates[0, 0]


def test_plateau():
    """patience bad epochs are borne, the next one reduces; then the count begins anew."""
    schedule = cnn.ReduceLROnPlateau(factor=0.5, patience=2, threshold=0.0)
    seen = []
    for metric in (3.0, 2.0, 2.0, 2.5, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, np.nan):
        schedule.step(metric)
        seen.append(lr_of(schedule))
    assert seen == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_plateau_ends_at_min_lr_and_ignores_what_is_smaller_than_eps():
    schedule = cnn.ReduceLROnPlateau(factor=0.1, patience=0, min_lr=1e-3)
    for _ in range(20):
        schedule.step(1.0)
    np.testing.assert_allclose(lr_of(schedule), 1e-3, rtol=1e-14)
    assert lr_of(schedule, 1e-4) == 1e-4
    schedule = cnn.ReduceLROnPlateau(factor=0.1, patience=0, eps=0.05)
    for _ in range(20):
        schedule.step(1.0)
    np.testing.assert_allclose(lr_of(schedule), 0.01, rtol=1e-14)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 3])
def test_plateau_state_can_be_saved(mode, threshold_mode, cooldown):
    settings = {"mode": mode, "threshold_mode": threshold_mode, "cooldown": cooldown, "patience": 1, "threshold": 0.1}
    whole, first, second = (cnn.ReduceLROnPlateau(**settings) for _ in range(3))
    metrics = np.random.default_rng(0).standard_normal(40)
    for metric in metrics[:17]:
        whole.step(metric)
        first.step(metric)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for metric in metrics[17:]:
        whole.step(metric)
        second.step(metric)
    assert second.state_dict() == whole.state_dict()
    assert whole.reductions > 3
    assert json.loads(json.dumps(cnn.ReduceLROnPlateau().state_dict())) == cnn.ReduceLROnPlateau().state_dict()


def test_plateau_state_that_does_not_fit():
    schedule = cnn.ReduceLROnPlateau()
    schedule.step(0.5)
    before = schedule.state_dict()
    for state, error in (
        ({}, "state: expected best, num_bad_epochs, cooldown_counter, reductions, got "),
        ({**before, "lr": 1}, "state: expected best, .*, got .*, lr"),
        ({**before, "reductions": -1}, "reductions: expected at least 0, got -1"),
    ):
        with pytest.raises(ValueError, match=f"^{error}"):
            schedule.load_state_dict(state)
    with pytest.raises(TypeError, match=r"^num_bad_epochs: expected an int"):
        schedule.load_state_dict({**before, "best": 3.0, "num_bad_epochs": 1.5})
    with pytest.raises(ValueError, match="could not convert string to float"):
        schedule.step("low")
    assert schedule.state_dict() == before


# the picture --------------------------------------------------------------------------------------------------------


def test_plot():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    for schedule in (cnn.OneCycleLR(0.1, 50), cnn.StepLR(10)):
        ax = schedule.plot(60, lr=0.2)
        (line,) = ax.get_lines()
        np.testing.assert_array_equal(line.get_ydata(), schedule.rates(0, 60, 0.2)[:, 0])
        assert (ax.get_xlabel(), ax.get_ylabel()) == (schedule.interval, "learning rate")
        assert len(ax.figure.axes) == 1 + schedule.cycles_momentum
        assert cnn.StepLR(3).plot(10, ax=ax) is ax
        plt.close(ax.figure)


def test_plot_to_a_file(tmp_path):
    pytest.importorskip("matplotlib")
    for schedule in (cnn.OneCycleLR(0.1, 50), cnn.StepLR(10)):
        schedule.plot(60, lr=0.2, path=tmp_path / "course.png")
        assert len(schedule.plot(tmp_path / "path.png").lines[0].get_xdata()) == 100
        assert (tmp_path / "path.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / "course.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "course.png").unlink()


# by every way to train ------------------------------------------------------------------------------------------------


X, Y = np.linspace(-1, 1, 8).reshape(4, 2), np.linspace(0, 1, 4)


def scheduled(schedule, lr=0.01, **more):
    layers = [cnn.Linear(2, 3), cnn.Tanh(), cnn.Linear(3, 1), cnn.MSELoss()]
    return cnn.Sequential(layers, optimizer=cnn.SGD(lr=lr, schedule=schedule, **more), dtype="float64", seed=0)


def step_of(model, way):
    if way == "train_step":
        model.train_step(X, Y)
    else:
        model.forward(X, Y)
        model.zero_grads()
        model.backward()
        model.step()


def rate_of(model, way):
    """The learning rate of a step: how far the parameters go, by what they would go at 1."""
    before = model.parameters.copy()
    _, gradient = model.loss_and_grad(X, Y)
    step_of(model, way)
    return np.linalg.norm(model.parameters - before) / np.linalg.norm(gradient)


@pytest.mark.parametrize("way", ["train_step", "explicit"])
@pytest.mark.parametrize("schedule", [cnn.StepLR(1, 0.1), cnn.StepLR(1, 0.1, interval="step")], ids=repr)
def test_a_loop_of_ones_own(way, schedule):
    """Epochs are ended by `end_epoch`; steps count themselves."""
    model = scheduled(schedule)
    rates = []
    for _ in range(4):
        rates.append(rate_of(model, way))
        model.end_epoch()
    np.testing.assert_allclose(rates, [1e-2, 1e-3, 1e-4, 1e-5], rtol=1e-6)


@pytest.mark.parametrize("way", ["train_step", "explicit"])
def test_a_step_after_fit_has_the_next_rate(way):
    model = scheduled(cnn.StepLR(1, 0.1))
    assert model.fit(X, Y, epochs=2, progress=False)["lr"] == pytest.approx([1e-2, 1e-3])
    assert rate_of(model, way) == pytest.approx(1e-4, rel=1e-6)
    model.end_epoch()
    assert model.fit(X, Y, epochs=1, progress=False)["lr"] == pytest.approx([1e-5])


def test_a_loop_of_ones_own_is_fit():
    """Order of rows aside, bit for bit, with every schedule."""
    for schedule in (
        cnn.CosineAnnealingLR(5),
        cnn.ReduceLROnPlateau(patience=0, threshold=0.5),
        cnn.OneCycleLR(0.1, 12),
    ):
        fitted, looped = scheduled(schedule.from_config(schedule.to_config())), scheduled(schedule)
        history = fitted.fit(X, Y, epochs=6, batch_size=2, shuffle=False, progress=False)
        for epoch in range(6):
            for rows in (slice(0, 2), slice(2, 4)):
                looped.train_step(X[rows], Y[rows])
            looped.end_epoch({"loss": history["loss"][epoch]})
        np.testing.assert_array_equal(fitted.parameters, looped.parameters)


@pytest.mark.parametrize(("interval", "steps"), [("step", 2), ("epoch", 1)])
def test_one_cycle_says_that_training_goes_on_after_it(interval, steps):
    model = scheduled(cnn.OneCycleLR(0.1, 3 * steps, interval=interval))
    model.fit(X, Y, epochs=3, batch_size=2, progress=False)  # no warning, which would be an error
    with pytest.warns(RuntimeWarning, match=rf"^OneCycleLR: training goes on after total_steps={3 * steps}, "):
        model.fit(X, Y, epochs=1, batch_size=2, progress=False)


@pytest.mark.parametrize("way", ["train_step", "explicit"])
def test_reductions_hold_by_every_way(way):
    model = scheduled(cnn.ReduceLROnPlateau(patience=0))
    for metric, rate in ((1.0, 1e-2), (1.0, 1e-3), (1.0, 1e-4)):
        model.optimizer.schedule.step(metric)
        assert rate_of(model, way) == pytest.approx(rate, rel=1e-6)
    model.end_epoch(1.0)
    assert rate_of(model, way) == pytest.approx(1e-5, rel=1e-6)
    model.end_epoch({"loss": 1.0, "accuracy": 0.5})
    assert model.fit(X, Y, epochs=1, progress=False)["lr"] == pytest.approx([1e-6])


def test_end_epoch_says_what_it_needs():
    model = scheduled(cnn.ReduceLROnPlateau(patience=0))
    with pytest.raises(
        ValueError, match=r"^logs: expected a number for ReduceLROnPlateau.*model.end_epoch\(val_loss\)"
    ):
        model.end_epoch()
    with pytest.raises(ValueError, match=r"^schedule: no 'loss' to monitor: there are accuracy"):
        model.end_epoch({"accuracy": 0.5})
    with pytest.raises(TypeError, match=r"^logs: expected a number, got '1'"):
        model.end_epoch("1")
    assert model._core.state.epochs_seen == 0
    with pytest.raises(RuntimeError, match="no optimizer"):
        cnn.Sequential([cnn.Linear(1, 1)]).end_epoch()


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_early_stopping_puts_the_schedule_back_to_the_best_epoch(interval):
    """Whatever it counts. A number of the training rows belongs to the parameters that its epoch began with."""
    model = scheduled(cnn.ExponentialLR(0.5, interval=interval))
    values = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    history = model.fit(
        X, Y, epochs=5, batch_size=4, progress=False, metrics=[Given(values)], early_stopping=stopping(monitor="given")
    )
    assert history.epochs == [1, 2, 3, 4]
    assert rate_of(model, "train_step") == pytest.approx(0.01 * 0.5, rel=1e-6)


def test_early_stopping_puts_a_plateau_back_to_the_best_epoch():
    schedule = cnn.ReduceLROnPlateau(patience=0, monitor="given", mode="min")
    values = iter([3.0, 1.0, 2.0, 2.0, 2.0])
    model = scheduled(schedule)
    model.fit(X, Y, epochs=5, progress=False, metrics=[Given(values)], early_stopping=stopping(monitor="given"))
    assert schedule.state_dict() == {"best": 3.0, "num_bad_epochs": 0, "cooldown_counter": 0, "reductions": 0}


class Given:
    """A metric of given values."""

    __name__ = "given"

    def __init__(self, values):
        self.values = values

    def __call__(self, targets, outputs):
        return next(self.values)


def stopping(**more):
    return cnn.EarlyStopping(patience=2, mode="min", **more)


@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_a_plateau_of_a_negative_metric(mode, sign, threshold_mode):
    """A threshold asks for more than an improvement, whatever the sign of the metric."""
    for value in (10.0, -10.0):
        better, worse, little = value - sign * 2.0, value + sign * 0.5, value - sign * 0.5
        threshold = 0.1 if threshold_mode == "rel" else 1.0
        for metric, improves in ((better, True), (worse, False), (little, False), (value, False)):
            schedule = cnn.ReduceLROnPlateau(mode, threshold=threshold, threshold_mode=threshold_mode)
            schedule.step(value)
            schedule.step(metric)
            assert (schedule.best == metric) == (improves or metric == value), metric
            assert schedule.num_bad_epochs == (not improves)


def test_a_learning_rate_of_zero_stays():
    for schedule in (cnn.OneCycleLR(0.1, 10), cnn.CosineAnnealingLR(5, eta_min=0.1), cnn.ReduceLROnPlateau(min_lr=0.1)):
        assert not schedule.rates(0, 12, 0.0)[:, 0].any()


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_what_changes_between_steps_holds_from_the_next(interval):
    """Rates are computed ahead, and again when something that they are made of has changed."""
    inner = cnn.ExponentialLR(0.5, interval=interval)
    model = scheduled(cnn.SequentialLR([inner, cnn.StepLR(1, interval=interval)], [100]), groups=[{"layers": [0]}])
    optimizer = model.optimizer

    def expect(rate):
        assert rate_of(model, "train_step") == pytest.approx(rate, rel=1e-6)
        model.end_epoch()

    expect(0.01)
    expect(0.005)
    inner.gamma = 0.25
    expect(0.01 * 0.25**2)
    optimizer.lr = 0.1
    expect(0.1 * 0.25**3)
    optimizer.schedule = cnn.StepLR(5, interval=interval)
    expect(0.1)
    expect(0.01)
    optimizer.schedule = None
    expect(0.1)
