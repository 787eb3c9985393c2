"""Layers, one concept a file. Each works alone, forward and backward; a `Sequential` compiles them together."""

from .activations import ELU, GELU, Activation, Identity, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from .base import Layer, Parametric
from .branches import Add, Branches, Concat, Maximum, Multiply
from .dropout import Dropout
from .linear import Linear
from .normalization import BatchNorm1d, LayerNorm
from .softmax import LogSoftmax, Softmax

__all__ = [
    "ELU",
    "GELU",
    "Activation",
    "Add",
    "BatchNorm1d",
    "Branches",
    "Concat",
    "Dropout",
    "Identity",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Maximum",
    "Multiply",
    "Parametric",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]
