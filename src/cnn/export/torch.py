"""`from_torch` and `to_torch`: a model and the `torch.nn.Sequential` that computes the same.

PyTorch keeps Linear.weight as (out, in); here it is (in, out).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import layers
from ..layers.graph import in_features
from ..models import Sequential


def from_torch(module, *, activation=None, loss=None, optimizer=None) -> Sequential:
    """The model that computes what a `torch.nn.Sequential` computes, with copies of its parameters.

    Parameters
    ----------
    module : torch.nn.Module or mapping of str to torch.Tensor
        A `torch.nn.Sequential`, nested ones included, or one layer: Linear, Identity, ReLU, LeakyReLU, ELU, Sigmoid,
        Tanh, GELU, SiLU, Softplus, SELU, CELU, Mish, Softsign, ReLU6, Hardsigmoid, Hardswish, PReLU, Softmax,
        LogSoftmax, Dropout, BatchNorm1d, LayerNorm. Or a `state_dict`, if it is of Linear layers alone: their sizes
        follow from the shapes, what stands between them is `activation`.
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
        tensors = module.state_dict()
    elif isinstance(module, Mapping):
        tensors = module
    else:
        raise TypeError(f"module: expected a torch.nn.Module or its state_dict, got {type(module).__name__}")
    dtype = _dtype(tensors)
    parts = _from_state_dict(tensors, activation) if tensors is module else _parts(module, "", dtype)
    return Sequential([*parts, *([loss] if loss is not None else [])], optimizer, dtype)


def _dtype(tensors: Mapping) -> str:
    """The dtype of all tensors but counters: "float32" or "float64"."""
    import torch

    found = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in (torch.float32, torch.float64) and not name.endswith("num_batches_tracked"):
            raise TypeError(f"{name}: expected float32 or float64, got {tensor.dtype}; module.float() converts")
        if tensor.is_floating_point():
            found[str(tensor.dtype).removeprefix("torch.")] = name
    if len(found) > 1:
        raise TypeError(f"module: expected one dtype, but {' and '.join(f'{v} is {k}' for k, v in found.items())}")
    return next(iter(found), "float32")


def _parts(module: Any, place: str, dtype: str) -> list[layers.Layer]:
    """The layers that a module consists of. A chain in a chain stays one, so that names in `state_dict` stay."""
    from torch import nn

    shown = repr(module) if "\n" not in repr(module) else f"{type(module).__name__}(...)"
    where = f"module {place}, {shown}" if place else f"module: {shown}"
    if module._forward_hooks or module._forward_pre_hooks:
        raise TypeError(f"{where}: has forward hooks (as weight_norm sets them), which are not carried over")
    name = type(module).__name__
    if type(module) is nn.Sequential:
        found: list[layers.Layer] = []
        for child, inner in module.named_children():
            parts = _parts(inner, f"{place}.{child}".lstrip("."), dtype)
            nested = type(inner) is nn.Sequential and in_features(parts) is not None
            found += [Sequential(parts, dtype=dtype)] if nested else parts
        return found
    twins = {layer.torch_name: layer for layer in layers.Layer.known.values() if layer.torch_name is not None}
    if name not in twins or type(module) is not getattr(nn, name):
        mend = ""
        if not place and list(module.children()):
            own = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in module.state_dict().items())
            mend = (
                ". What its forward does is not known here: of a chain, pass torch.nn.Sequential of its modules; of "
                "Linear layers also from_torch(module.state_dict(), activation=cnn.ReLU()) will do; else "
                f"load_weights of a cnn.Sequential built alike, with the weights transposed. Its tensors: {own}"
            )
        raise TypeError(f"{where}: has no counterpart here; known are {', '.join(twins)} of torch.nn{mend}")
    try:
        return [twins[name]._from_torch(module, dtype)]
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None


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
        if group["weight"].ndim != 2:
            raise ValueError(
                f"state_dict: {label} has shape {tuple(group['weight'].shape)}, that of a Linear has 2 dimensions: "
                "pass the module itself"
            )
        weight, bias = group["weight"].detach().cpu().numpy().T, group.get("bias")
        layer = layers.Linear.of(weight, None if bias is None else bias.detach().cpu().numpy())
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
    return _module(model, "", getattr(torch, model.dtype.name)).train(model.training)


def _module(layer: layers.Layer, place: str, dtype: Any) -> Any:
    """The module of a layer, filled."""
    import torch

    if isinstance(layer, Sequential):
        parts = (_module(part, f"{place}.{i}".lstrip("."), dtype) for i, part in enumerate(layer.layers))
        return torch.nn.Sequential(*parts)
    if getattr(layer, "torch_name", None) is None:
        raise TypeError(f"layer {place}, {layer!r}: has no counterpart in torch.nn")
    module = layer._to_torch(torch.nn, dtype)
    with torch.no_grad():
        for name, array in layer._torch_arrays().items():
            if array is not None:
                getattr(module, name).copy_(torch.from_numpy(np.array(array)))
    return module
