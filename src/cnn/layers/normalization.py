"""Batch normalisation and layer normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import flag, fraction, integer, positive
from .base import Parametric

__all__ = ["BatchNorm1d", "LayerNorm"]


class Norm(Parametric):
    """What the norms have in common: a weight and a bias for each feature, 1 and 0 at first."""

    _fixed = ("num_features", "normalized_shape", "elementwise_affine", "eps", "momentum", "affine", "has_bias")

    def __init__(self, features: int, eps: float, weight: bool, bias: bool, dtype):
        super().__init__(dtype)
        self._features = features
        self.eps = positive("eps", eps)
        self._has_weight, self._has_bias = weight, bias

    def _draw(self, bits):
        ones, zeros = np.ones(self._features, self.dtype), np.zeros(self._features, self.dtype)
        return {"weight": ones if self._has_weight else None, "bias": zeros if self._has_bias else None}

    def _in_features(self):
        return self._features

    def _add(self, graph, source, place, kind: str, **options) -> int:
        graph.expect(place, source, self._features)
        return graph.add(
            place,
            kind,
            [source],
            self._features,
            param=self.eps,
            weight=self._has_weight,
            bias=self._has_bias,
            **options,
        )


class BatchNorm1d(Norm):
    """y = (x - mean) / sqrt(var + eps) weight + bias, mean and variance being those of the feature in the batch.

    Outside training they are the running ones: after each batch in training, running = (1 - momentum) running +
    momentum of the batch's, the variance there with batch - 1 (Ioffe and Szegedy, 2015; torch.nn.BatchNorm1d).

    Parameters
    ----------
    num_features : int
        Width of x.
    eps : float
        Above 0.
    momentum : float or None
        From 0 to 1. None: the running statistics are the means over all batches so far.
    affine : bool
        Whether there are weight and bias.
    dtype : {"float32", "float64"}
        Of the parameters, as long as the layer is used alone; a model brings its own.

    Attributes
    ----------
    weight, bias : ndarray of shape (num_features,), or None
        Initially 1 and 0.
    grad_weight, grad_bias : ndarray of shape (num_features,), or None
        Their gradients; `backward` adds to them.
    running_mean, running_var : ndarray of shape (num_features,)
        Initially 0 and 1.
    num_batches_tracked : int
        Batches that they have seen.

    Notes
    -----
    Training needs at least two rows in a batch. PyTorch's track_running_stats=False is not here: a prediction would
    depend on the other rows of its batch.
    """

    statistic_names = ("running_mean", "running_var")
    _tracked = 0  # batches, as long as the layer is used alone
    _op: Any = None  # in a model, the program and the number of the op that count them

    def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, *, dtype="float32"):
        self.num_features = integer("num_features", num_features, 1)
        self.momentum = None if momentum is None else fraction("momentum", momentum)
        self.affine = flag("affine", affine)
        super().__init__(self.num_features, eps, self.affine, self.affine, dtype)

    def _draw(self, bits):
        statistics = {
            "running_mean": np.zeros(self.num_features, self.dtype),
            "running_var": np.ones(self.num_features, self.dtype),
        }
        return super()._draw(bits) | statistics

    def _join(self, model, program, op, dtype, bits):
        tracked = self.num_batches_tracked
        super()._join(model, program, op, dtype, bits)
        self._op = program, op
        program.set_tracked(op, tracked)

    def forward(self, x):
        """y for x of shape (batch, num_features), in the layer's dtype; keeps what `backward` needs.

        Takes the statistics of the batch and adds them to the running ones if `training`, which is so at first.
        """
        alone = self._program_for(self.num_features, self.dtype)
        alone.set_tracked(0, self.num_batches_tracked)
        y = super().forward(x)
        self._tracked = alone.tracked(0)
        if self._op is not None:
            self._op[0].set_tracked(self._op[1], self._tracked)
        return y

    def _compile(self, graph, source, place):
        return self._add(graph, source, place, "batch_norm", momentum=-1.0 if self.momentum is None else self.momentum)

    @property
    def running_mean(self):
        return self._array("running_mean")

    @running_mean.setter
    def running_mean(self, value):
        self._assign("running_mean", value)

    @property
    def running_var(self):
        return self._array("running_var")

    @running_var.setter
    def running_var(self, value):
        self._assign("running_var", value)

    @property
    def num_batches_tracked(self) -> int:
        """Batches that the running statistics have seen."""
        return self._tracked if self._op is None else self._op[0].tracked(self._op[1])

    def get_config(self):
        return {
            "num_features": self.num_features,
            "eps": self.eps,
            "momentum": self.momentum,
            "affine": self.affine,
        }


class LayerNorm(Norm):
    """y = (x - mean) / sqrt(var + eps) weight + bias, mean and variance being those of the row.

    Ba, Kiros and Hinton, 2016; torch.nn.LayerNorm.

    Parameters
    ----------
    normalized_shape : int
        Width of x.
    eps : float
        Above 0.
    elementwise_affine : bool
        Whether there is a weight and, if `bias`, a bias.
    bias : bool
        Whether there is a bias.
    dtype : {"float32", "float64"}
        Of the parameters, as long as the layer is used alone; a model brings its own.

    Attributes
    ----------
    weight, bias : ndarray of shape (normalized_shape,), or None
        Initially 1 and 0.
    grad_weight, grad_bias : ndarray of shape (normalized_shape,), or None
        Their gradients; `backward` adds to them.
    """

    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, *, dtype="float32"):
        self.normalized_shape = integer("normalized_shape", normalized_shape, 1)
        self.elementwise_affine = flag("elementwise_affine", elementwise_affine)
        self.has_bias = flag("bias", bias)
        weight = self.elementwise_affine
        super().__init__(self.normalized_shape, eps, weight, weight and self.has_bias, dtype)

    def _compile(self, graph, source, place):
        return self._add(graph, source, place, "layer_norm")

    def get_config(self):
        return {
            "normalized_shape": self.normalized_shape,
            "eps": self.eps,
            "elementwise_affine": self.elementwise_affine,
            "bias": self.has_bias,
        }
