"""The table of the library's parts: one entry for each activation, loss, optimiser, layer and schedule, with its truth.

test_grid.py proves the truths by finite differences and the library by the truths; it fails if something public has no
entry. Random networks are drawn from the entries, and the tests beside PyTorch and JAX go through them. After PyTorch's
OpInfo.
"""

from .activations import ACTIVATIONS, SMOOTH, WITH_PARAMETERS, Activation
from .layers import DROPPED, LAYERS, Chain, Function, Gate, Linear, Network
from .losses import CASES, LOSSES, targets
from .networks import GATES, WIDTHS, build, chain, graphs, inputs_of, is_linear, random_model, specs
from .optimizers import OPTIMIZERS, RULES, WHOLE_DATA, rule_of
from .schedules import SCHEDULES

__all__ = [
    "ACTIVATIONS",
    "CASES",
    "DROPPED",
    "GATES",
    "LAYERS",
    "LOSSES",
    "OPTIMIZERS",
    "RULES",
    "SCHEDULES",
    "SMOOTH",
    "WHOLE_DATA",
    "WIDTHS",
    "WITH_PARAMETERS",
    "Activation",
    "Chain",
    "Function",
    "Gate",
    "Linear",
    "Network",
    "build",
    "chain",
    "graphs",
    "inputs_of",
    "is_linear",
    "random_model",
    "rule_of",
    "specs",
    "targets",
]
