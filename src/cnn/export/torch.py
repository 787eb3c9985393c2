"""`from_torch` and `to_torch`: a model and the `torch.nn.Sequential` that computes the same.

PyTorch keeps Linear.weight as (out, in); here it is (in, out).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import layers
from ..sequential import Sequential

# PyTorch's Softplus is the identity from `threshold` on. At its default, 20, that is 2e-9 from log(1 + exp(z)); from
# 40 on the two are one number in float64.
SOFTPLUS_LEAST, SOFTPLUS_EXACT = 20, 40


def from_torch(module, *, activation=None, loss=None, optimizer=None) -> Sequential:
    """The model that computes what a `torch.nn.Sequential` computes, with copies of its parameters.

    Parameters
    ----------
    module : torch.nn.Module or mapping of str to torch.Tensor
        A `torch.nn.Sequential`, nested ones included, or one layer: Linear, Identity, ReLU, LeakyReLU, ELU, Sigmoid,
        Tanh, GELU, SiLU, Softplus. Or a `state_dict`, if it is of Linear layers alone: their sizes follow
        from the shapes, what stands between them is `activation`.
    activation : Layer, or a class or function that makes one, optional
        For a `state_dict`: `cnn.ReLU()` or `cnn.ReLU`, for example.
    loss, optimizer : optional
        For the new model.

    Returns
    -------
    Sequential
        Of the module's dtype, float32 or float64.

    Raises
    ------
    TypeError
        If module is something else, or has a module, a dtype or an option that this library has not: the message
        names it and its place.
    ValueError
        If the layers do not follow from a `state_dict`: the message says what is missing.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))  # doctest: +SKIP
    >>> model = cnn.from_torch(net)                                                               # doctest: +SKIP
    """
    import torch

    if isinstance(module, torch.nn.Module):
        if activation is not None:
            raise TypeError("activation: is for a state_dict; a module brings its own")
        found: list[layers.Layer] = []
        _convert(module, "", found)
    elif isinstance(module, Mapping):
        found = _from_state_dict(module, activation)
    else:
        raise TypeError(f"module: expected a torch.nn.Module or its state_dict, got {type(module).__name__}")
    dtypes = {layer.dtype for layer in found if isinstance(layer, layers.Linear)}
    if len(dtypes) > 1:
        raise TypeError(f"module: expected parameters of one dtype, got {', '.join(sorted(map(str, dtypes)))}")
    return Sequential([*found, *([loss] if loss is not None else [])], optimizer, dtypes.pop() if dtypes else "float32")


def _array(tensor: Any, name: str) -> np.ndarray:
    """A parameter as a NumPy array, float32 or float64."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: expected float32 or float64, got {tensor.dtype}; module.float() converts")
    return tensor.detach().cpu().numpy()


def _linear(weight: Any, bias: Any, name: str) -> layers.Linear:
    w = _array(weight, f"{name}.weight".lstrip("."))
    layer = layers.Linear(w.shape[1], w.shape[0], bias=bias is not None, dtype=w.dtype)
    layer.weight = w.T
    if bias is not None:
        layer.bias = _array(bias, f"{name}.bias".lstrip("."))
    return layer


def _convert(module: Any, place: str, found: list[layers.Layer]) -> None:
    """Add the layers that a module consists of."""
    from torch import nn

    shown = repr(module)
    shown = shown if "\n" not in shown else f"{type(module).__name__}(...)"
    where = f"module {place}, {shown}" if place else f"module: {shown}"
    if module._forward_hooks or module._forward_pre_hooks:
        raise TypeError(f"{where}: has forward hooks (as weight_norm sets them), which are not carried over")
    if type(module) is nn.Sequential:
        for name, child in module.named_children():
            _convert(child, f"{place}.{name}".lstrip("."), found)
        return
    if type(module) is nn.Linear:
        found.append(_linear(module.weight, module.bias, place))
        return
    if type(module) is nn.Softplus and (module.beta != 1 or module.threshold < SOFTPLUS_LEAST):
        raise TypeError(f"{where}: expected beta=1 and a threshold of at least {SOFTPLUS_LEAST}")
    twin = _TWINS.get(type(module).__name__)
    if twin is None or type(module) is not getattr(nn, type(module).__name__, None):
        raise TypeError(
            f"{where}: has no counterpart here; known are Sequential, Linear and {', '.join(_TWINS)} of torch.nn"
        )
    found.append(twin(module))


# torch.nn's activation, by name -> ours
_TWINS: dict[str, Callable[[Any], layers.Layer]] = {
    "Identity": lambda module: layers.Identity(),
    "ReLU": lambda module: layers.ReLU(),
    "LeakyReLU": lambda module: layers.LeakyReLU(module.negative_slope),
    "ELU": lambda module: layers.ELU(module.alpha),
    "Sigmoid": lambda module: layers.Sigmoid(),
    "Tanh": lambda module: layers.Tanh(),
    "GELU": lambda module: layers.GELU(module.approximate),
    "SiLU": lambda module: layers.SiLU(),
    "Softplus": lambda module: layers.Softplus(),
}


def _from_state_dict(tensors: Mapping, activation: Any) -> list[layers.Layer]:
    """Linear layers in the order of their names, with activations between them."""
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        prefix, _, kind = str(name).rpartition(".")
        if kind not in ("weight", "bias"):
            raise ValueError(f"state_dict: {name} is no weight or bias of a Linear: pass the module itself")
        groups.setdefault(prefix, {})[kind] = tensor
    if not groups:
        raise ValueError("state_dict: is empty")
    if any(prefix.isdigit() for prefix in groups):
        groups = dict(sorted(groups.items(), key=lambda group: int(group[0]) if group[0].isdigit() else -1))
    found: list[layers.Layer] = []
    last = width = None
    for prefix, group in groups.items():
        label = f"{prefix}.weight".lstrip(".")
        if "weight" not in group:
            raise ValueError(f"state_dict: {label} is missing")
        if np.ndim(group["weight"]) != 2:
            raise ValueError(
                f"state_dict: {label} has shape {tuple(group['weight'].shape)}, that of a Linear has 2 dimensions: "
                "pass the module itself"
            )
        layer = _linear(group["weight"], group.get("bias"), prefix)
        if last is not None:
            if layer.in_features != width:
                raise ValueError(f"state_dict: {label} expects {layer.in_features} inputs, but {last} gives {width}")
            found += _between(last, prefix, activation)
        found.append(layer)
        last, width = prefix, layer.out_features
    return found


def _between(before: str, after: str, activation: Any) -> list[layers.Layer]:
    """What stands between two Linear layers, as their names tell: 0 and 2 have one layer between them."""
    gap = int(after) - int(before) - 1 if before.isdigit() and after.isdigit() else 1
    if gap == 0:
        return []
    if gap > 1:
        raise ValueError(
            f"state_dict: between {before} and {after} stand {gap} layers without parameters: pass the module itself"
        )
    if activation is None:
        raise ValueError(
            f"state_dict: it does not say what stands between {before} and {after}: pass the module itself, or "
            "activation=cnn.ReLU(), for example"
        )
    layer = copy.copy(activation) if isinstance(activation, layers.Layer) else activation()
    if not isinstance(layer, layers.Activation):
        raise TypeError(f"activation: expected an activation such as cnn.ReLU(), got {activation!r}")
    return [layer]


def to_torch(model):
    """The `torch.nn.Sequential` that computes what `model` predicts, with copies of its parameters.

    The loss is left out. Names and shapes are those of a checkpoint (`Sequential.save`).

    Parameters
    ----------
    model : Sequential

    Returns
    -------
    torch.nn.Sequential
        Of the model's dtype, on the CPU, in training mode if the model is.

    Raises
    ------
    TypeError
        If model is no Sequential, or a layer has no counterpart in torch.nn; the message names it.
    """
    import torch

    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected a cnn.Sequential, got {type(model).__name__}")
    net = torch.nn.Sequential(*(_to_module(layer, f"layer {i}, {layer!r}") for i, layer in enumerate(model.layers)))
    return net.to(getattr(torch, model.dtype.name)).train(model.training)


def _to_module(layer: layers.Layer, where: str) -> Any:
    import torch
    from torch import nn

    if isinstance(layer, layers.Linear):
        dtype = getattr(torch, layer.dtype.name)
        linear = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features, bias=layer.has_bias, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(layer.weight.T))
            if layer.has_bias:
                linear.bias.copy_(torch.from_numpy(layer.bias))
        return linear
    if isinstance(layer, layers.Softplus):
        return nn.Softplus(threshold=SOFTPLUS_EXACT)
    name = type(layer).__name__
    if name not in _TWINS:
        raise TypeError(f"{where}: has no counterpart in torch.nn")
    return getattr(nn, name)(**layer.get_config())
