"""`Configurable`: objects that are made of a class and arguments, written down as JSON can hold them and built again.

The base of layers, losses, optimisers, schedules and initialisers. Each of these kinds has a registry of the library's
own classes, which fills itself when they are defined; nothing but these classes is ever built from a configuration. The
same place makes sure that a class says all the facts of its kind.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

PACKAGE = __name__.partition(".")[0]
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

_arguments: dict[type, dict[str, Any]] = {}


def arguments_of(cls: type) -> dict[str, Any]:
    """The constructor's arguments, without *args and **kwargs: defaults by name, as JSON can hold them.

    Where there is no default it is `inspect.Parameter.empty`.
    """
    if cls not in _arguments:
        parameters = inspect.signature(cls).parameters
        _arguments[cls] = {name: plain(p.default) for name, p in parameters.items() if p.kind not in VARIADIC}
    return _arguments[cls]


def plain(value: Any) -> Any:
    """A value as JSON can hold it: arrays and tuples as lists, configurable objects as tables."""
    if type(value) in (int, float, str, bool):
        return value
    if isinstance(value, Configurable):
        return value.to_config()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


class Configurable:
    """An object that its class and its constructor's arguments describe.

    The arguments are attributes of the same names (`_argument` says where they are not). A class of the library
    enters the registry of its kind under its name, unless it is declared with ``abstract=True``; ``kind="layer"``
    begins a registry.

    Attributes
    ----------
    kind_of_class : str
        What error messages call the kind.
    known : dict of str to type
        The registry: the kind's classes by the names that configurations have for them.
    facts : tuple of str
        Attributes that a registered class has to define: itself, or by an abstract base.
    names : tuple of str
        What the class is registered as, the first of them in configurations; by default its own name.
    """

    kind_of_class: ClassVar[str]
    known: ClassVar[dict[str, Any]] = {}
    facts: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, kind: str | None = None, abstract: bool = False) -> None:
        super().__init_subclass__()
        if kind is not None:
            cls.kind_of_class, cls.known = kind, {}
        if kind is None and not abstract and cls.__module__.partition(".")[0] == PACKAGE:
            cls._register()

    @classmethod
    def _register(cls) -> None:
        """Enter the registry. TypeError if a fact is missing, or would be that of another registered class."""
        registered = set(cls.known.values())
        for fact in cls.facts:
            owner = next((base for base in cls.__mro__ if fact in vars(base)), None)
            if owner is None or owner in registered:
                has = f"only {owner.__name__} has one" if owner else "it has none"
                raise TypeError(f"{cls.__name__}: expected {fact!r} in the class, as each {cls.kind_of_class}; {has}")
        if "names" not in vars(cls):
            cls.names = (cls.__name__,)
        for name in cls.names:
            if name in cls.known:
                raise TypeError(f"{cls.__name__}: there is a {cls.kind_of_class} {name!r} already")
            cls.known[name] = cls

    def _argument(self, name: str) -> Any:
        """The value of an argument of the constructor."""
        return getattr(self, name)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments.

        Returns
        -------
        dict
            By name, as JSON can hold them.
        """
        return {name: plain(self._argument(name)) for name in arguments_of(type(self))}

    def to_config(self) -> dict[str, Any]:
        """What `from_config` makes the same object of.

        Returns
        -------
        dict
            ``{"name": ..., argument: value, ...}``, as JSON can hold it.
        """
        names = vars(type(self)).get("names") or (type(self).__name__,)
        return {"name": names[0], **self.get_config()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """The object that a configuration describes.

        Parameters
        ----------
        config : mapping
            As `to_config` returns it, or, for a class that is no base class, as `get_config` does: without a name.

        Returns
        -------
        object
            Of a class of the library.

        Raises
        ------
        TypeError
            If config is no mapping, or has arguments that the class does not take.
        ValueError
            If the name is none of this kind, or a value is out of range.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"{cls.kind_of_class}: expected a dict with a name and arguments, got {config!r}")
        arguments = dict(config)
        if "name" not in arguments and cls in cls.known.values():
            return cls._from_arguments(arguments)
        name = arguments.pop("name", None)
        known = {key: one for key, one in cls.known.items() if issubclass(one, cls)}
        if not isinstance(name, str) or name not in known:
            raise ValueError(f"{cls.kind_of_class}: unknown name {name!r}, expected one of {', '.join(known)}")
        return known[name]._from_arguments(arguments)

    @classmethod
    def _from_arguments(cls, arguments: dict[str, Any]) -> Any:
        """The object with the arguments that `get_config` gave."""
        return cls(**arguments)

    # `repr` shows what makes the same object: `positional` arguments without their names, the rest where `_shows` it.
    positional: ClassVar[tuple[str, ...]] = ()

    def _shows(self, name: str, differs: bool) -> bool:
        """Whether `repr` shows an argument; `differs`: whether it is another than the default."""
        return differs

    def _shown(self, name: str) -> Any:
        """The value that `repr` shows of an argument."""
        return self._argument(name)

    def __repr__(self) -> str:
        texts = []
        defaults = arguments_of(type(self))
        for name, value in self.get_config().items():
            differs = name not in defaults or value != defaults[name]
            if name in self.positional or self._shows(name, differs):
                shown = self._shown(name)
                text = reprlib.repr(shown.tolist()) if isinstance(shown, np.ndarray) else repr(shown)
                texts.append(text if name in self.positional else f"{name}={text}")
        return f"{type(self).__name__}({', '.join(texts)})"
