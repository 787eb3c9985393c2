"""Configurations: objects of the library as JSON can hold them, and back. Nothing but its own classes is ever built."""

from __future__ import annotations

from typing import Any


def described(part: Any) -> dict[str, Any] | None:
    """{"name": class, ...arguments}, or None for None."""
    return None if part is None else {"name": type(part).__name__, **part.get_config()}


def known(kind: str) -> dict[str, type]:
    """The classes by name that may stand as a "layer", "loss" or "optimizer"."""
    from . import layers, losses, models
    from .optim import optimizers

    modules: dict[str, tuple] = {
        "layer": (layers, models),
        "loss": (losses,),
        "optimizer": (optimizers,),
    }
    return {name: getattr(module, name) for module in modules[kind] for name in module.__all__}


def built(part: Any, kind: str) -> Any:
    """The object that `described` described; ValueError or TypeError if it is not as that makes it."""
    if part is None:
        return None
    if not isinstance(part, dict):
        raise TypeError(f"expected a dict with a name, got {part!r}")
    arguments = dict(part)
    name = arguments.pop("name")
    classes = known(kind)
    if name not in classes:
        raise ValueError(f"unknown name {name!r}: expected a {kind}, one of {', '.join(classes)}")
    built_class: Any = classes[name]
    if "branches" in arguments:
        return built_class(*(built(branch, "layer") for branch in arguments["branches"]))
    if name == "Sequential":
        return built_class.from_config(arguments)
    return built_class(**arguments)
