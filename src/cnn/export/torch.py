"""`from_torch` and `to_torch`: a model and the `torch.nn.Sequential` that computes the same.

PyTorch keeps Linear.weight as (out, in); here it is (in, out).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .. import layers
from .._checks import needed
from ..layers.graph import in_features
from ..models import Sequential


def from_torch(module: Any, *, activation: Any = None, loss: Any = None, optimizer: Any = None) -> Sequential:
    """The model that computes what a `torch.nn.Sequential` computes, with copies of its parameters.

    Parameters
    ----------
    module : torch.nn.Module or mapping of str to torch.Tensor
        A `torch.nn.Sequential`, nested ones included, or one layer. A module that occurs several times is
        copied: the copies predict the same, but are trained independently. Subclasses that keep their `forward`
        are converted, with parametrised weights evaluated; `Flatten` becomes the identity. The layers: Linear,
        Identity, ReLU, LeakyReLU, ELU, Sigmoid, Tanh, GELU, SiLU, Softplus, SELU, CELU, Mish, Softsign, ReLU6,
        Hardsigmoid, Hardswish, PReLU, Softmax, LogSoftmax, Dropout, BatchNorm1d, LayerNorm. Or a `state_dict` of
        Linear layers alone: their sizes follow from the shapes, and `activation` goes between them.
    activation : Layer, or a class or function that makes one, or PyTorch's, or its name, optional
        For a `state_dict`: `cnn.ReLU()`, `nn.ReLU()`, `torch.relu` or "relu", for example; `cnn.Identity()` if there
        is none. It goes between any two layers whose numbers are consecutive or skip one.
    loss, optimizer : optional
        For the new model.

    Returns
    -------
    Sequential
        Of the module's dtype, float32 or float64.

    Raises
    ------
    TypeError
        If module is something else, or has a module, a dtype or an option that this library does not support; the
        message names it and its place.
    ValueError
        If a `state_dict` does not determine the layers; the message says what is missing.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))  # doctest: +SKIP
    >>> model = cnn.from_torch(net)                                                               # doctest: +SKIP
    """
    needed("from_torch", "torch", "torch")
    import torch

    if isinstance(module, torch.nn.Module):
        module = _unwrapped(module)
        if activation is not None:
            raise TypeError("activation: expected none with a module, which has its own: it is for a state_dict")
        tensors = module.state_dict()
    elif isinstance(module, Mapping):
        tensors = module
    else:
        raise TypeError(f"module: expected a torch.nn.Module or its state_dict, got {type(module).__name__}")
    dtype = _dtype(tensors)
    parts = _from_state_dict(tensors, activation) if tensors is module else _parts(module, "", dtype)
    return Sequential([*parts, *([loss] if loss is not None else [])], optimizer, dtype)


def _dtype(tensors: Mapping[str, Any]) -> str:
    """The dtype of all tensors but counters: "float32" or "float64"."""
    import torch

    found = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.is_meta or isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
            raise TypeError(f"{name}: has no values (meta device, or a lazy module): load the weights first")
        if tensor.dtype not in (torch.float32, torch.float64) and not name.endswith("num_batches_tracked"):
            raise TypeError(f"{name}: expected float32 or float64, got {tensor.dtype}: call module.float()")
        if tensor.is_floating_point():
            found[str(tensor.dtype).removeprefix("torch.")] = name
    if len(found) > 1:
        raise TypeError(f"module: expected one dtype, but {' and '.join(f'{v} is {k}' for k, v in found.items())}")
    return next(iter(found), "float32")


def _unwrapped(module: Any) -> Any:
    """The module in torch.compile, DataParallel and DistributedDataParallel."""
    from torch import nn

    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def _known(module: Any, kinds: Iterable[str]) -> Any:
    """The class of torch.nn, one of `kinds` by name, whose forward the module uses; None if it uses another."""
    from torch import nn

    for base in type(module).__mro__:
        if base.__name__ in kinds and base is getattr(nn, base.__name__, None):
            same = all(
                getattr(type(module), f, None) is getattr(base, f, None) for f in ("forward", "__call__", "__iter__")
            )
            return base if same else None
    return None


@contextlib.contextmanager
def _effective(module: Any, where: str) -> Iterator[None]:
    """The module with the weights that it uses in evaluation mode: those of parametrisations and weight_norm."""
    from torch.nn.utils.prune import BasePruningMethod
    from torch.nn.utils.spectral_norm import SpectralNorm
    from torch.nn.utils.weight_norm import WeightNorm

    hooks = list(module._forward_pre_hooks.values())
    computed = (WeightNorm, SpectralNorm, BasePruningMethod)
    if module._forward_hooks or not all(isinstance(hook, computed) for hook in hooks):
        raise TypeError(f"{where}: has forward hooks, which cannot be converted: remove them first")
    before = {part: part.training for part in module.modules()}
    try:
        for part in before:
            part.training = False  # in training mode spectral_norm would continue its iteration
        for hook in hooks:
            hook(module, ())
        yield
    finally:
        for part, training in before.items():
            part.training = training


def _parts(module: Any, place: str, dtype: str) -> list[layers.Layer]:
    """The layers of a module. A nested chain stays nested, so that the names in `state_dict` stay."""

    module = _unwrapped(module)
    shown = repr(module) if "\n" not in repr(module) else f"{type(module).__name__}(...)"
    where = f"module {place}, {shown}" if place else f"module: {shown}"
    if "forward" in vars(module):
        raise TypeError(f"{where}: its forward has been replaced, and its code cannot be converted")
    if _known(module, {"Sequential"}):
        if module._forward_hooks or module._forward_pre_hooks:
            raise TypeError(f"{where}: has forward hooks, which cannot be converted: remove them first")
        found: list[layers.Layer] = []
        for child, inner in module._modules.items():  # named_children leaves out repeated modules
            if inner is None:
                raise TypeError(f"{where}: its child module {child} is None: remove it")
            parts = _parts(inner, f"{place}.{child}".lstrip("."), dtype)
            nested = _known(_unwrapped(inner), {"Sequential"}) and in_features(parts) is not None
            found += [Sequential(parts, dtype=dtype)] if nested else parts
        return found
    twins = {layer.torch_name: layer for layer in layers.Layer.known.values() if layer.torch_name is not None}
    if _known(module, {"Flatten"}) and (module.start_dim, module.end_dim) == (1, -1):
        return [layers.Identity()]
    kind = _known(module, twins)
    if kind is None:
        mend = ""
        if not place and list(module.children()):
            own = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in module.state_dict().items())
            chains = [key for key, child in module.named_children() if _known(child, {"Sequential"})]
            part = f", such as module.{chains[0]}" if chains else ""
            mend = (
                f". The code of its forward cannot be converted. If it is a chain, pass torch.nn.Sequential of its "
                f"modules{part}; if it has only Linear layers, from_torch(module.state_dict(), activation=cnn.ReLU()) "
                "works too; otherwise build a cnn.Sequential of the same layers, transpose the weights and pass them "
                f"to its load_weights. Its tensors: {own}"
            )
        raise TypeError(f"{where}: has no counterpart in cnn: expected one of torch.nn's {', '.join(twins)}{mend}")
    try:
        with _effective(module, where):
            return [twins[kind.__name__]._from_torch(module, dtype)]
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None


def _from_state_dict(tensors: Mapping[str, Any], activation: Any) -> list[layers.Layer]:
    """Linear layers in the order of their names, with activations between them."""
    groups: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        prefix, _, kind = str(name).rpartition(".")
        if kind not in ("weight", "bias"):
            raise ValueError(f"state_dict: {name} is not a weight or bias of a Linear: pass the module itself")
        groups.setdefault(prefix, {})[kind] = tensor
    if not groups:
        raise ValueError("state_dict: expected at least one tensor, got none")
    for prefix, group in groups.items():
        label = f"{prefix}.weight".lstrip(".")
        if "weight" not in group:
            raise ValueError(f"state_dict: {label} is missing")
        if group["weight"].ndim != 2:
            raise ValueError(
                f"state_dict: {label}: expected 2 dimensions, as a Linear's weight has, got shape "
                f"{tuple(group['weight'].shape)}: pass the module itself"
            )
    order, absent = _ordered(list(groups), {prefix: group["weight"].shape for prefix, group in groups.items()})
    found: list[layers.Layer] = []
    last = width = None
    for prefix in order:
        group, label = groups[prefix], f"{prefix}.weight".lstrip(".")
        weight, bias = group["weight"].detach().cpu().numpy().T, group.get("bias")
        layer = layers.Linear.of(weight, None if bias is None else bias.detach().cpu().numpy())
        if last is not None:
            if layer.in_features != width:
                raise ValueError(f"state_dict: {label} expects {layer.in_features} inputs, but {last} gives {width}")
            found += _between(last, prefix, absent[prefix], activation)
        found.append(layer)
        last, width = prefix, layer.out_features
    return found


def _ordered(prefixes: list[str], shapes: Mapping[str, Any]) -> tuple[list[str], dict[str, int]]:
    """The names of Linear layers in the order of their numbers, and how many numbers are absent before each.

    The names may differ in their number alone. Two kinds of names, such as fc1, fc2, out, are possible if the widths
    allow exactly one order. ValueError if the order is ambiguous.
    """
    numbers = {prefix: [int(n) for n in re.findall("[0-9]+", prefix)] for prefix in prefixes}
    forms = {re.sub("[0-9]+", "#", prefix) for prefix in prefixes}
    parents = {form.rpartition(".")[0] for form in forms}
    moving = (
        {i for row in numbers.values() for i, n in enumerate(row) if n != numbers[prefixes[0]][i]}
        if len(forms) == 1
        else set()
    )
    if len(parents) > 1 or len(moving) > 1 or len(forms) > 2:
        raise ValueError(
            f"state_dict: the names do not give the order of the layers: {', '.join(prefixes)}. Pass the module, or "
            "the tensors of one chain, {k: v for k, v in tensors.items() if k.startswith('actor.')}, for example"
        )
    if len(forms) == 2:  # fc1, fc2, out
        by_form = {form: [p for p in prefixes if re.sub("[0-9]+", "#", p) == form] for form in forms}
        first = by_form[re.sub("[0-9]+", "#", prefixes[0])]
        second = [prefix for prefix in prefixes if prefix not in first]
        if shapes[first[0]][1] == shapes[second[0]][1]:
            raise ValueError(
                f"state_dict: {first[0]} and {second[0]} have the same number of inputs, so their order is "
                "ambiguous: pass the module itself"
            )
        rows = [sorted(form, key=numbers.get) for form in (first, second)]  # type: ignore[arg-type]
        orders = list(itertools.islice(_chains(rows, shapes), 2))
        if len(orders) != 1:
            raise ValueError(
                f"state_dict: the widths allow {'several orders' if orders else 'no order'} of {', '.join(prefixes)}: "
                "expected one, because the names do not give it: pass the module itself"
            )
        return orders[0], dict.fromkeys(orders[0], 1)
    order = sorted(prefixes, key=numbers.get)  # type: ignore[arg-type]
    at = next(iter(moving), 0)
    absent = {b: numbers[b][at] - numbers[a][at] - 1 for a, b in itertools.pairwise(order)}
    if len(set(absent.values())) > 1 and 0 in absent.values():
        raise ValueError(
            f"state_dict: {', '.join(order)}: some numbers are consecutive and some are not, so the places of the "
            "activations are ambiguous: pass the module itself"
        )
    return order, absent


def _chains(rows: list[list[str]], shapes: Mapping[str, Any], before: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """The orders in which each layer has as many inputs as the one before has outputs; each row keeps its order."""
    if not any(rows):
        yield list(before)
    for i, row in enumerate(rows):
        if row and (not before or shapes[row[0]][1] == shapes[before[-1]][0]):
            yield from _chains([other[i == j :] for j, other in enumerate(rows)], shapes, (*before, row[0]))


def _between(before: str, after: str, gap: int, activation: Any) -> list[layers.Layer]:
    """The activation between two Linear layers, if at most one number is absent between them."""
    if gap > 1:
        raise ValueError(
            f"state_dict: expected at most one layer without parameters between {before} and {after}, got {gap}: pass "
            "the module itself"
        )
    if activation is None:
        raise ValueError(
            f"state_dict: it does not name the activation between {before} and {after}: pass the module itself, or "
            "activation=cnn.ReLU(), for example"
        )
    layer = _activation(activation)
    if not isinstance(layer, layers.Activation):
        raise TypeError(f"activation: expected an activation such as cnn.ReLU(), got {activation!r}")
    return [layer]


def _activation(given: Any) -> Any:
    """A new layer for an activation of this library or of PyTorch: an object, a class, a function or a name."""
    import torch

    if isinstance(given, layers.Layer):
        return copy.copy(given)
    if isinstance(given, type) and issubclass(given, torch.nn.Module):
        given = given()
    if isinstance(given, torch.nn.Module):
        return _parts(given, "", "float32")[0]
    name = given if isinstance(given, str) else getattr(given, "__name__", "")
    in_torch = [getattr(where, name, None) for where in (torch, torch.nn.functional)]
    if isinstance(given, str) or any(given is function for function in in_torch):
        known = {kind.function: kind for kind in layers.Layer.known.values() if issubclass(kind, layers.Activation)}
        if name.lower() not in known:
            raise TypeError(
                f"activation: expected an activation such as cnn.ReLU(), or one of {', '.join(known)}, got {name!r}"
            )
        return known[name.lower()]()
    if not callable(given):
        raise TypeError(f"activation: expected an activation such as cnn.ReLU(), got {given!r}")
    return given()


def to_torch(model: Any) -> Any:
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
        If model is not a Sequential, or a layer has no counterpart in torch.nn; the message names it.
    """
    needed("to_torch", "torch", "torch")
    import torch

    if not isinstance(model, Sequential):
        raise TypeError(f"model: expected a cnn.Sequential, got {type(model).__name__}")
    return _module(model, "", getattr(torch, model.dtype.name)).train(model.training)


def _module(layer: layers.Layer, place: str, dtype: Any) -> Any:
    """The torch.nn module of a layer, with its parameters."""
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
