"""Every loss with every option: value, gradient and Hessian product beside PyTorch's."""

import itertools

import numpy as np
import pytest
import torch

import cnn

SHAPES = [(1, 1), (1, 10), (7, 3), (33, 37)]

# PyTorch computes in float64, also what float32 is compared with. The absolute part, relative to the largest number
# that goes into an element, is for differences that leave nothing but rounding errors.
CLOSE = {"float64": {"rtol": 1e-10, "atol": 1e-13}, "float32": {"rtol": 2e-5, "atol": 2e-6}}


def options(**values):
    """All combinations, as dicts."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


# Loss, arguments, what the targets are; "per column" becomes an array of positive numbers.
CASES = [
    *(("MSELoss", more, "numbers") for more in options(reduction=["mean", "sum"])),
    *(("L1Loss", more, "numbers") for more in options(reduction=["mean", "sum"])),
    *(("HuberLoss", more, "numbers") for more in options(delta=[1.0, 0.3], reduction=["mean", "sum"])),
    *(("SmoothL1Loss", more, "numbers") for more in options(beta=[1.0, 0.3, 0.0], reduction=["mean", "sum"])),
    *(
        ("BCEWithLogitsLoss", more, "probabilities")
        for more in options(pos_weight=[None, "per column"], reduction=["mean", "sum"])
    ),
    *(
        ("PoissonNLLLoss", more, "counts")
        for more in options(log_input=[True, False], full=[True, False], eps=[1e-8, 0.5], reduction=["mean", "sum"])
    ),
    *(
        ("CrossEntropyLoss", more, "labels")
        for more in options(
            weight=[None, "per column"],
            label_smoothing=[0.0, 0.1, 1.0],
            ignore_index=[-100, 0],
            reduction=["mean", "sum"],
        )
    ),
    *(
        ("CrossEntropyLoss", more, "probabilities")
        for more in options(weight=[None, "per column"], label_smoothing=[0.0, 0.1, 1.0], reduction=["mean", "sum"])
    ),
    *(
        ("NLLLoss", more, "labels")
        for more in options(weight=[None, "per column"], ignore_index=[-100, 0], reduction=["mean", "sum"])
    ),
]


def case_id(case):
    name, more, targets = case
    return "-".join([name, targets, *(f"{value}" for value in more.values())])


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_against_pytorch(isa, case, dtype):
    name, more, kind = case
    for batch, n in SHAPES:
        random = np.random.default_rng([batch, n])
        outputs = (4 * random.standard_normal((batch, n))).astype(dtype)
        if kind == "labels":
            targets = random.integers(n, size=batch)
            targets[1::3] = more["ignore_index"]
            targets[0] = n - 1
        elif kind == "counts":
            targets = random.poisson(2.0, (batch, n)).astype(dtype)
        elif kind == "probabilities":
            targets = random.uniform(size=(batch, n)).astype(dtype)
        else:
            targets = random.standard_normal((batch, n)).astype(dtype)
        if not more.get("log_input", True):
            outputs = np.abs(outputs) + outputs.dtype.type(0.1)
        if kind == "labels" and more["ignore_index"] == targets[0]:
            continue  # no row counts: PyTorch gives NaN, the library an error
        column = random.uniform(0.1, 3, n).astype("float32").astype("float64")
        arguments = {key: column if value == "per column" else value for key, value in more.items()}
        torch_arguments = {key: torch.from_numpy(a) if a is column else a for key, a in arguments.items()}
        ours, theirs = getattr(cnn, name)(**arguments), getattr(torch.nn, name)(**torch_arguments)

        at = torch.from_numpy(outputs.astype("float64")).requires_grad_()
        aim = torch.from_numpy(targets if kind == "labels" else targets.astype("float64"))
        value = theirs(at, aim)
        value.backward()
        direction = random.standard_normal((batch, n)).astype(dtype)
        product = torch.autograd.functional.hvp(
            lambda y, theirs=theirs, aim=aim: theirs(y, aim), at.detach(), torch.from_numpy(direction.astype("float64"))
        )[1]
        size = max(1, np.abs(outputs).max(), np.abs(targets).max() if kind == "counts" else 0)
        if more["reduction"] == "sum":
            size *= batch * n
        close = {"rtol": CLOSE[dtype]["rtol"], "atol": CLOSE[dtype]["atol"] * size}
        np.testing.assert_allclose(ours(outputs, targets), value.item(), **close)
        np.testing.assert_allclose(ours.backward(), at.grad.numpy(), **close)
        np.testing.assert_allclose(ours.hvp(outputs, targets, direction), product.numpy(), **close)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["MSELoss", "BCEWithLogitsLoss", "PoissonNLLLoss", "HuberLoss", "CrossEntropyLoss"])
def test_sample_weights_of_integers_are_repetitions(isa, name, reduction):
    """PyTorch has no sample weights, but rows can be repeated."""
    random = np.random.default_rng(0)
    outputs, targets = random.standard_normal((9, 4)), random.uniform(size=(9, 4))
    times = random.integers(0, 4, 9)
    expected = getattr(torch.nn, name)(reduction=reduction)(
        torch.from_numpy(outputs.repeat(times, axis=0)), torch.from_numpy(targets.repeat(times, axis=0))
    )
    actual = getattr(cnn, name)(reduction=reduction)(outputs, targets, times)
    assert actual == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits(isa, dtype, size):
    """PyTorch is as stable as we are."""
    z = np.array([[-size, size, 0.5 * size], [size, size, -size], [0, -size, size]], dtype)
    for name, targets in (
        ("CrossEntropyLoss", np.array([0, 1, 2])),
        ("CrossEntropyLoss", np.array([[0.5, 0.5, 0], [0, 1, 0], [0.25, 0.25, 0.5]])),
        ("BCEWithLogitsLoss", np.array([[0.0, 1, 0.5], [0, 0.25, 1], [1, 1, 0]])),
    ):
        ours = getattr(cnn, name)()
        at = torch.from_numpy(z.astype("float64")).requires_grad_()
        value = getattr(torch.nn, name)()(at, torch.from_numpy(targets))
        value.backward()
        np.testing.assert_allclose(ours(z, targets), value.item(), rtol=1e-6)
        np.testing.assert_allclose(ours.backward(), at.grad.numpy(), rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
def test_where_pytorch_gives_nan(isa, name):
    """A batch of ignored rows: a mean over nothing."""
    outputs, targets = np.zeros((2, 3)), np.array([-100, -100])
    assert np.isnan(getattr(torch.nn, name)()(torch.from_numpy(outputs), torch.from_numpy(targets)).item())
    with pytest.raises(ValueError, match=r"^the mean loss is not defined"):
        getattr(cnn, name)()(outputs, targets)
