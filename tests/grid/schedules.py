"""Schedules: the learning rates of steps 0 to 5, worked out by hand for lr = 0.1."""

from typing import Any

import cnn

_cosine = [0.1, 0.1 * (2 + 2**0.5) / 4, 0.05, 0.1 * (2 - 2**0.5) / 4]
SCHEDULES: dict[Any, list[float]] = {
    cnn.ConstantLR(0.5, 2, interval="step"): [0.05, 0.05, 0.1, 0.1, 0.1, 0.1],
    cnn.LinearLR(0.5, 1.0, 4, interval="step"): [0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1],
    cnn.PolynomialLR(4, 2.0, interval="step"): [0.1, 0.05625, 0.025, 0.00625, 0, 0],
    cnn.StepLR(2, 0.1, interval="step"): [0.1, 0.1, 0.01, 0.01, 0.001, 0.001],
    cnn.MultiStepLR([1, 4], 0.5, interval="step"): [0.1, 0.05, 0.05, 0.05, 0.025, 0.025],
    cnn.ExponentialLR(0.5, interval="step"): [0.1, 0.05, 0.025, 0.0125, 0.00625, 0.003125],
    cnn.CosineAnnealingLR(4, interval="step"): [*_cosine, 0.0, _cosine[3]],
    cnn.CosineAnnealingWarmRestarts(4, interval="step"): [*_cosine, *_cosine[:2]],
    cnn.OneCycleLR(
        0.2, 6, pct_start=0.5, div_factor=2, final_div_factor=4, anneal_strategy="linear", cycle_momentum=False
    ): [0.1, 0.15, 0.2, 0.2 - 0.175 / 3, 0.2 - 0.35 / 3, 0.025],
    cnn.SequentialLR([cnn.ConstantLR(0.5, 9, interval="step"), cnn.StepLR(1, 0.1, interval="step")], [2]): [
        0.05,
        0.05,
        0.1,
        0.01,
        0.001,
        0.0001,
    ],
    cnn.ReduceLROnPlateau(factor=0.5): [0.1] * 6,
}
