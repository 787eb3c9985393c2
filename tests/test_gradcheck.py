"""gradcheck: it agrees where the library is right, and says where a gradient is wrong."""

import numpy as np
import pytest
from grid import SMOOTH, build, graphs
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import numbers

import cnn


def small(loss=None, **options):
    layers = [cnn.Linear(3, 5), cnn.Tanh(), cnn.Add(cnn.Identity(), cnn.Sequential([cnn.Linear(5, 5), cnn.GELU()]))]
    return cnn.Sequential(
        [*layers, cnn.Linear(5, 2), *([loss] if loss else [])], **{"dtype": "float64", "seed": 1, **options}
    )


@given(parts=graphs(n_out=2, names=SMOOTH), seed=st.integers(0, 99))  # at a kink nothing can be said
@settings(max_examples=25)
def test_agrees_on_random_networks(parts, seed):
    model, _ = build(parts, cnn.MSELoss(), seed=seed)
    report = cnn.gradcheck(model, numbers(seed, 3, parts[0][0]), numbers(seed + 1, 3, 2), samples=30)
    assert report, str(report)
    assert [check.what for check in report.checks] == ["gradient", "input gradient", "Hessian product"]


def test_the_report():
    report = cnn.gradcheck(small(cnn.MSELoss()), numbers(1, 4, 3), numbers(2, 4, 2))
    lines = str(report).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("gradient: agrees in 62 numbers; worst ")
    assert lines[1].startswith("input gradient: agrees in 12 numbers; worst x[")
    assert all(check.error < 1 for check in report.checks)
    assert all(check.computed == pytest.approx(check.difference, abs=1e-6) for check in report.checks)


def test_leaves_the_model_as_it_was():
    model = small(cnn.MSELoss())
    x, y = numbers(1, 4, 3), numbers(2, 4, 2)
    model(x, y)
    model.backward()
    parameters, gradients = model.parameters, model.gradients
    model(x, y)
    cnn.gradcheck(model, x, y)
    np.testing.assert_array_equal(model.parameters, parameters)
    np.testing.assert_array_equal(model.gradients, gradients)
    assert model.training
    with pytest.raises(RuntimeError, match="gradcheck has run since"):
        model.backward()


def wrong(outputs, targets):
    """A squared error with one wrong gradient."""
    d = outputs - targets
    gradient = 2 * d / d.size
    gradient[0, 1] *= 1.01
    return np.mean(d**2), gradient


def test_finds_a_wrong_gradient():
    model = small(cnn.CallableLoss(wrong))
    x, y = numbers(1, 4, 3), numbers(2, 4, 2)
    report = cnn.gradcheck(model, x, y)
    assert not report
    assert [check.what for check in report.checks] == ["gradient", "input gradient"]
    worst = report.checks[0]
    assert worst.error > 100
    assert worst.worst.partition("[")[0] in model.state_dict()
    assert "DIFFERS" in str(report)
    assert report.checks[1].worst.startswith("x[0, ")
    with pytest.raises(ArithmeticError, match=r"gradient: DIFFERS in 62 numbers; worst \d"):
        cnn.gradcheck(model, x, y, raises=True)


def test_a_right_callable_and_no_loss():
    def squares(outputs, targets):
        d = outputs - targets
        return np.mean(d**2), 2 * d / d.size

    x, y = numbers(1, 4, 3), numbers(2, 4, 2)
    assert cnn.gradcheck(small(cnn.CallableLoss(squares)), x, y)
    report = cnn.gradcheck(small(), x)
    assert report
    assert len(report.checks) == 2


def test_nested_names(monkeypatch):
    """A wrong product of the library itself is found by name."""
    model = small(cnn.MSELoss())
    x, y = numbers(1, 4, 3), numbers(2, 4, 2)
    names = [f"{name}[{', '.join(map(str, i))}]" for name, a in model.state_dict().items() for i in np.ndindex(a.shape)]
    right = model.hvp
    at = names.index("2.1.0.weight[2, 4]")

    def off(x, y, v):
        product = right(x, y, v)
        product[at] += 0.1
        return product

    monkeypatch.setattr(model, "hvp", off)
    report = cnn.gradcheck(model, x, y)
    assert [bool(check) for check in report.checks] == [True, True, False]
    assert report.checks[2].worst == "2.1.0.weight[2, 4]"


def test_kinks_nearby():
    """Differences of the first step reach over ReLU's kink; those of the second do not."""
    model = cnn.Sequential([cnn.Linear(1, 1), cnn.ReLU(), cnn.MSELoss()], dtype="float64")
    model.parameters = [1.0, 0.0]
    assert cnn.gradcheck(model, [[0.0015]], [[1.0]])
    assert not cnn.gradcheck(model, [[0.0]], [[1.0]])


def test_arguments():
    x, y = numbers(1, 4, 3), numbers(2, 4, 2)
    for call, error, message in [
        (
            lambda: cnn.gradcheck(small(cnn.MSELoss(), dtype="float32"), x, y),
            ValueError,
            "expected dtype float64, got float32",
        ),
        (lambda: cnn.gradcheck("model", x, y), TypeError, "model: expected a Sequential, got 'model'"),
        (lambda: cnn.gradcheck(small(cnn.MSELoss()), x[:, :2], y), ValueError, r"x: expected shape \(batch, 3\)"),
        (lambda: cnn.gradcheck(small(cnn.MSELoss()), x[:0], y[:0]), ValueError, "x: expected at least one row"),
        (lambda: cnn.gradcheck(small(cnn.MSELoss()), x, y[:2]), ValueError, "expected"),
        (lambda: cnn.gradcheck(small(), x, y), RuntimeError, "the model has no loss"),
        (lambda: cnn.gradcheck(small(), x, rtol=0.0), ValueError, "rtol"),
        (lambda: cnn.gradcheck(small(), x, samples=0), ValueError, "samples"),
    ]:
        with pytest.raises(error, match=message):
            call()
