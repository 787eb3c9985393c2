"""`Configurable`: objects that are made of a class and arguments, written down as JSON can hold them and built again.

The base of layers, losses, optimisers, schedules and initialisers. Each of these kinds has a registry of the library's
own classes, which fills itself when they are defined; nothing but these classes is ever built from a configuration. The
same place makes sure that a class says all the facts of its kind.
"""

from __future__ import annotations

import functools
import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
PACKAGE = __name__.partition(".")[0]
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

_arguments: dict[type, dict[str, Any]] = {}
_keywords: dict[type, list[str]] = {}

# Other libraries' names, and ours.
OTHER_NAMES = {
    "learning_rate": ("lr",),
    "eta": ("lr",),
    "decay": ("weight_decay", "lr_decay"),
    "l2_regularization": ("weight_decay", "l2"),
    "epsilon": ("eps",),
    "rho": ("alpha",),
    "beta_1": ("beta1", "betas"),
    "beta_2": ("beta2", "betas"),
    "momentum": ("beta1", "betas"),
    "beta1": ("betas",),
    "beta2": ("betas",),
    "global_clipnorm": ("clip_norm",),
    "max_grad_norm": ("clip_norm",),
    "param_groups": ("groups",),
    "params": ("groups",),
    "use_ema": ("ema_decay",),
    "ema_momentum": ("ema_decay",),
    "lr_scheduler": ("schedule",),
    "lr_schedule": ("schedule",),
    "scheduler": ("schedule",),
    "step": ("step_size",),
    "steps": ("total_steps", "total_iters", "T_max"),
    "decay_rate": ("gamma",),
    "decay_steps": ("step_size", "T_max", "total_iters"),
    "units": ("out_features",),
    "n_in": ("in_features",),
    "n_out": ("out_features",),
    "input_dim": ("in_features",),
    "output_dim": ("out_features",),
    "input_size": ("in_features",),
    "output_size": ("out_features",),
    "hidden_size": ("out_features",),
    "use_bias": ("bias",),
    "kernel_initializer": ("weight_init",),
    "kernel_regularizer": ("l2",),
    "rate": ("p",),
    "dropout": ("p",),
    "alpha": ("negative_slope", "label_smoothing"),
    "axis": ("dim",),
    "class_weight": ("weight", "class_weight"),
    "random_state": ("seed",),
    "rng": ("seed",),
    "requires_grad": ("trainable",),
    "n_epochs": ("epochs",),
    "max_iter": ("epochs",),
    "max_epochs": ("epochs",),
    "keep": ("max_to_keep",),
    "validation_steps": ("validation_data",),
    "validation_fraction": ("validation_split",),
    "eval_set": ("validation_data",),
    "n_iter_no_change": ("early_stopping",),
    "patience": ("early_stopping",),
    "n_jobs": ("threads",),
    "workers": ("threads",),
}

# What stands somewhere else here.
ELSEWHERE = {
    "loss": "a loss stands last in layers",
    "loss_fn": "a loss stands last in layers",
    "activation": "an activation is a layer of its own behind it, as cnn.ReLU()",
    "learning_rate": "it is the optimizer's, as cnn.Adam(lr=0.001)",
    "lr": "it is the optimizer's, as cnn.Adam(lr=0.001)",
    "optimizer": "it is the model's: model.optimizer = cnn.Adam()",
    "device": "everything is computed on the CPU",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The name of `known` that `name` stands for, by other libraries' names or by its letters; "" if there is none."""
    known = list(known)
    for other in OTHER_NAMES.get(name, ()):
        if other in known:
            return other
    from difflib import get_close_matches  # for errors alone

    lower = {one.lower().replace("_", ""): one for one in known}
    letters = name.lower().replace("_", "")
    close = get_close_matches(letters, lower, 1, 0.7) or [one for one in lower if letters in one]
    return lower[close[0]] if len(close) == 1 else ""


def keywords_of(cls: type) -> list[str]:
    """The constructor's arguments by name, with those that it hands on to its bases as **kwargs."""
    if cls in _keywords:
        return _keywords[cls]
    names: list[str] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind not in VARIADIC and p.name not in names]
        if not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    _keywords[cls] = names
    return names


def _constructor(init: F) -> F:
    """`init` that names the right argument where an unknown one comes, and notes when the object is complete."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        outermost = cls.__init__ is __init__
        if outermost and kwargs and init.__module__.partition(".")[0] == PACKAGE:
            known = keywords_of(cls)
            for name in kwargs:
                if name not in known:
                    raise TypeError(f"{cls.__name__}: unknown argument {name!r}: {_mend(name, known)}")
        init(self, *args, **kwargs)
        if outermost:
            self.__dict__["_complete"] = True

    return __init__  # type: ignore[return-value]


def names_arguments(function: F) -> F:
    """A function or method that names the right argument where an unknown one comes."""
    known = [name for name in inspect.signature(function).parameters if name != "self"]

    @functools.wraps(function)
    def method(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                raise TypeError(f"{function.__name__}: unknown argument {name!r}: {_mend(name, known)}")
        return function(*args, **kwargs)

    return method  # type: ignore[return-value]


def _settable(one: Any) -> list[str]:
    """The public attributes of an object that can be set."""
    found = [name for name in vars(one) if not name.startswith("_")]
    for name in dir(type(one)):
        descriptor = inspect.getattr_static(type(one), name)
        settable = hasattr(descriptor, "__set__") and getattr(descriptor, "fset", True) is not None
        if settable and not name.startswith("_") and name not in found:
            found.append(name)
    return found


def _mend(name: str, known: list[str]) -> str:
    likely = nearest(name, known)
    return f"{likely}?" if likely else ELSEWHERE.get(name) or f"expected {', '.join(known) or 'none'}"


def object_for(given: Any, known: Iterable[str]) -> str:
    """The mend where an object of the library is expected and a class or a name came, or nothing to say."""
    if isinstance(given, type):
        return " (pass an object, not the class)"
    likely = nearest(given, known) if isinstance(given, str) else ""
    return f": cnn.{likely}()?" if likely else ""


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
        if "__init__" in vars(cls):
            cls.__init__ = _constructor(cls.__init__)  # type: ignore[method-assign]
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

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse, once the object is complete, attributes that it does not have: they would do nothing."""
        own = self.__dict__
        if "_complete" in own and name not in own and not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}: {_mend(name, _settable(self))}")
        super().__setattr__(name, value)

    @_constructor
    def __init__(self) -> None:
        pass

    def __dir__(self) -> list[str]:
        """The public attributes, for completion: without what the library says of the class."""
        hidden = {"kind_of_class", "known", "facts", "names", "positional", *self.facts} - {*vars(self)}
        return [name for name in super().__dir__() if not name.startswith("_") and name not in hidden]

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
