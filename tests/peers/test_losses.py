"""Every loss with the options of the table: value, gradient and Hessian product beside PyTorch's."""

import grid
import numpy as np
import pytest
import torch
from peers.twins import torch_loss

import cnn

SHAPES = [(1, 1), (1, 10), (7, 3), (33, 37)]

# PyTorch computes in float64, also what float32 is compared with. The absolute part, relative to the largest number
# that goes into an element, is for differences that leave nothing but rounding errors.
CLOSE = {"float64": {"rtol": 1e-10, "atol": 1e-13}, "float32": {"rtol": 2e-5, "atol": 2e-6}}


CASES = {name: case for name, case in grid.CASES.items() if case.torch and not case.in_pairs}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_against_pytorch(isa, name, reduction, dtype):
    case = CASES[name]
    for batch, n in SHAPES:
        random = np.random.default_rng([batch, n])
        outputs = (4 * random.standard_normal((batch, n))).astype(dtype)
        targets = grid.targets(case.targets, batch, n, random)
        if case.targets == "classes":
            targets[1::3] = case.make(n).ignore_index
            targets[0] = 0  # one row must count: PyTorch gives NaN, the library an error
        else:
            targets = targets.astype(dtype)
        if case.positive:
            outputs = np.abs(outputs) + outputs.dtype.type(0.1)
        ours, theirs = case.make(n, reduction=reduction), torch_loss(case, n, reduction=reduction)

        at = torch.from_numpy(outputs.astype("float64")).requires_grad_()
        aim = torch.from_numpy(targets if case.targets == "classes" else targets.astype("float64"))
        value = theirs(at, aim)
        value.backward()
        direction = random.standard_normal((batch, n)).astype(dtype)
        product = torch.autograd.functional.hvp(
            lambda y, theirs=theirs, aim=aim: theirs(y, aim), at.detach(), torch.from_numpy(direction.astype("float64"))
        )[1]
        size = max(1, np.abs(outputs).max(), np.abs(targets).max() if case.targets == "counts" else 0)
        if reduction == "sum":
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


def beside(ours, theirs, outputs, targets):
    """Value, gradient and Hessian product of ours and of a function of torch's outputs."""
    at = torch.from_numpy(outputs).requires_grad_()
    value = theirs(at)
    value.backward()
    direction = np.random.default_rng(7).standard_normal(outputs.shape)
    product = torch.autograd.functional.hvp(theirs, at.detach(), torch.from_numpy(direction))[1]
    np.testing.assert_allclose(ours(outputs, targets), value.item(), rtol=1e-12)
    np.testing.assert_allclose(ours.backward(), at.grad.numpy(), rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(ours.hvp(outputs, targets, direction), product.numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("eps", [1e-6, 0.25])
@pytest.mark.parametrize("log_var", [True, False])
@pytest.mark.parametrize(("batch", "targets"), [(1, 1), (7, 3), (33, 20)])
def test_gaussian_nll(isa, log_var, eps, full, reduction, batch, targets):
    """Also where variances are below eps: the gradient is PyTorch's there."""
    random = np.random.default_rng(batch)
    outputs, t = 2 * random.standard_normal((batch, 2 * targets)), random.standard_normal((batch, targets))
    if not log_var:
        outputs[:, targets:] = np.abs(outputs[:, targets:]) + 1e-3
    theirs = torch.nn.GaussianNLLLoss(full=full, eps=eps, reduction=reduction)
    aim = torch.from_numpy(t)

    def loss(y):
        mean, var = y.chunk(2, dim=1)
        return theirs(mean, aim, var.exp() if log_var else var)

    beside(cnn.GaussianNLLLoss(log_var=log_var, eps=eps, full=full, reduction=reduction), loss, outputs, t)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_of_yes_and_no(isa, smoothing):
    """PyTorch's loss of smoothed targets; Keras' formula."""
    random = np.random.default_rng(0)
    outputs, t, weight = random.standard_normal((9, 5)), random.integers(0, 2, (9, 5)).astype(float), random.random(5)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.from_numpy(weight))
    aim = torch.from_numpy(t * (1 - smoothing) + smoothing / 2)
    beside(cnn.BCEWithLogitsLoss(pos_weight=weight, label_smoothing=smoothing), lambda y: theirs(y, aim), outputs, t)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", ["MSELoss", "L1Loss", "HuberLoss", "SmoothL1Loss"])
def test_missing_and_chosen(isa, name, reduction):
    """PyTorch's loss of the elements picked out by a mask, or by gather, as ports of DQN write it."""
    random = np.random.default_rng(0)
    q, t = 2 * random.standard_normal((2, 9, 5))
    theirs = getattr(torch.nn, name)(reduction=reduction)
    mask = torch.from_numpy(random.random((9, 5)) < 0.6)
    gaps = np.where(mask.numpy(), t, np.nan)
    aim = torch.from_numpy(t)
    beside(getattr(cnn, name)(reduction=reduction, ignore_nan=True), lambda y: theirs(y[mask], aim[mask]), q, gaps)
    actions, values = random.integers(0, 5, 9), t[:, 0]
    column, aim = torch.from_numpy(actions)[:, None], torch.from_numpy(values)[:, None]
    beside(
        getattr(cnn, name)(reduction=reduction, chosen=True),
        lambda y: theirs(y.gather(1, column), aim),
        q,
        (actions, values),
    )


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
