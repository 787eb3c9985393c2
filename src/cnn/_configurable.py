"""`Configurable`: objects that are defined by a class and arguments, with a JSON-serialisable configuration.

The base of layers, losses, optimisers, schedules and initialisers. Each kind has a registry of the library's classes;
a class is registered when it is defined. Only registered classes are created from a configuration. Registration also
checks that a class defines all required attributes of its kind.
"""

from __future__ import annotations

import contextlib
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

# Names in other libraries, and the names here.
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
    "n_members": ("members",),
    "n_estimators": ("members", "n_members"),
    "Dense": ("Linear",),
    "Model": ("Sequential",),
    "Module": ("Sequential",),
    "nn": ("layers",),
    "BatchNormalization": ("BatchNorm1d",),
    "LayerNormalization": ("LayerNorm",),
    "BCELoss": ("BCEWithLogitsLoss",),
    "BinaryCrossentropy": ("BCEWithLogitsLoss",),
    "CategoricalCrossentropy": ("CrossEntropyLoss",),
    "SparseCategoricalCrossentropy": ("CrossEntropyLoss",),
    "MeanSquaredError": ("MSELoss",),
    "MeanAbsoluteError": ("L1Loss",),
    "MAELoss": ("L1Loss",),
    "score": ("evaluate",),
    "weights": ("parameters",),
    "get_weights": ("state_dict",),
    "set_weights": ("load_weights",),
    "load_state_dict": ("load_weights",),
    "named_parameters": ("state_dict",),
    "save_weights": ("save",),
    "partial_fit": ("train_step",),
    "train_on_batch": ("train_step",),
    "optimiser": ("optimizer",),
}

BATCH_SIZE = "only fit has a batch size, other calls take any number of rows"

# Arguments of other libraries that have another place here.
ELSEWHERE = {
    "loss": "the loss is the last of the layers, as cnn.MSELoss()",
    "loss_fn": "the loss is the last of the layers, as cnn.MSELoss()",
    "activation": "an activation is a separate layer after this one, as cnn.ReLU()",
    "learning_rate": "pass it to the optimizer, as cnn.Adam(lr=0.001)",
    "lr": "pass it to the optimizer, as cnn.Adam(lr=0.001)",
    "optimizer": "set it on the model: model.optimizer = cnn.Adam()",
    "device": "cnn runs on the CPU only: omit it",
    "compile": "the loss is the last of the layers, and the optimizer an argument of Sequential",
    "add": "pass all layers to Sequential, as a list",
    "coefs_": "the weights are model.layers[0].weight, ..., or model.state_dict()",
    "to": "cnn runs on the CPU only, and dtype is an argument of Sequential",
    "history": "it is the dict itself, as history['loss']",
    "batch_size": BATCH_SIZE,
}

# Attributes that another one here is spelt like.
ATTRIBUTES = {
    "load": "cnn.load(path) makes the model of a file",
    "step": "the model takes the steps: model.step()",
    "zero_grad": "the model has the gradients: model.zero_grads()",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """The most likely meaning of `name` in `known`, from other libraries' names or the spelling; "" if none."""
    known = list(known)
    for other in OTHER_NAMES.get(name, ()):
        if other in known:
            return other
    from difflib import get_close_matches  # only for errors

    lower = {one.lower().replace("_", ""): one for one in known}
    letters = name.lower().replace("_", "")
    close = get_close_matches(letters, lower, 1, 0.7) or [one for one in lower if letters in one]
    return lower[close[0]] if len(close) == 1 else ""


def keywords_of(cls: type) -> list[str]:
    """The names of the constructor's arguments, including those that it passes to its bases as **kwargs."""
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


def constructor(init: F) -> F:
    """Wrap `init`: suggest the right name for an unknown argument, and record when the object is complete."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        outermost = cls.__init__ is __init__
        if outermost and kwargs and init.__module__.partition(".")[0] == PACKAGE:
            known = keywords_of(cls)
            code = inspect.unwrap(init).__code__
            for name in code.co_varnames[1 : code.co_argcount][: len(args)]:
                if name in kwargs:
                    raise TypeError(f"{cls.__name__}: {name!r} was passed twice, by position and by name")
            for name in kwargs:
                if name not in known:
                    raise TypeError(f"{cls.__name__}: unknown argument {name!r}: {_mend(name, known)}")
        init(self, *args, **kwargs)
        if outermost:
            self.__dict__["_complete"] = True

    return __init__  # type: ignore[return-value]


def names_arguments(function: F, within: Callable[[dict[str, Any]], Any] = lambda _: contextlib.nullcontext()) -> F:
    """Wrap a function or method: suggest the right name for an unknown argument; within: of the arguments by name, the
    context of a call."""
    code = inspect.unwrap(function).__code__  # a signature takes long to make, at import
    known = [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]

    @functools.wraps(function)
    def method(*args: Any, **kwargs: Any) -> Any:
        with within(kwargs):
            for name in kwargs:
                if name not in known:
                    who = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]
                    raise TypeError(f"{who}: unknown argument {name!r}: {_mend(name, known)}")
            return function(*args, **kwargs)

    return method  # type: ignore[return-value]


def settable(one: Any) -> list[str]:
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
    return f"did you mean {likely}?" if likely else ELSEWHERE.get(name) or f"expected {', '.join(known) or 'none'}"


def unknown(owner: str, name: str, known: Iterable[str]) -> AttributeError:
    """The error for an attribute that does not exist, with a hint if there is one."""
    likely = "" if name.startswith("_") or name in ATTRIBUTES else nearest(name, known)
    hint = f"did you mean {likely}?" if likely else ATTRIBUTES.get(name, ELSEWHERE.get(name))
    return AttributeError(f"{owner} has no attribute {name!r}" + (f": {hint}" if hint else ""))


def no_attribute(self: Any, name: str) -> Any:
    """The `__getattr__` of classes whose missing attributes get a hint."""
    if hasattr(type(self), name):  # a property that raised an AttributeError
        return object.__getattribute__(self, name)
    raise unknown(type(self).__name__, name, () if name.startswith("_") else dir(self))


def object_for(given: Any, known: Iterable[str]) -> str:
    """A hint if a class or a name was passed where an object of the library was expected; otherwise ""."""
    if isinstance(given, type):
        return " (pass an object, not the class)"
    likely = nearest(given, known) if isinstance(given, str) else ""
    return f": did you mean cnn.{likely}()?" if likely else ""


def arguments_of(cls: type) -> dict[str, Any]:
    """The constructor's arguments, without *args and **kwargs: JSON-serialisable defaults by name.

    An argument without a default has `inspect.Parameter.empty`.
    """
    if cls not in _arguments:
        parameters = inspect.signature(cls).parameters
        _arguments[cls] = {name: plain(p.default) for name, p in parameters.items() if p.kind not in VARIADIC}
    return _arguments[cls]


def plain(value: Any) -> Any:
    """A JSON-serialisable value: arrays and tuples become lists, configurable objects dicts."""
    if type(value) in (int, float, str, bool):
        return value
    if isinstance(value, Configurable):
        return value.to_config()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


class Public:
    """Base of classes whose `dir`, and so completion, shows public names only."""

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if not name.startswith("_")]


class Configurable(Public):
    """An object that is defined by its class and its constructor's arguments.

    The arguments are attributes of the same names (`_argument` handles exceptions). A class of the library is
    registered under its name, unless it is declared with ``abstract=True``; ``kind="layer"`` starts a new registry.

    Attributes
    ----------
    kind_of_class : str
        Name of the kind in error messages.
    known : dict of str to type
        The registry: the classes of the kind, by their names in configurations.
    facts : tuple of str
        Attributes that a registered class must define, directly or through an abstract base.
    names : tuple of str
        The names under which the class is registered, by default its own; configurations use the first.
    """

    kind_of_class: ClassVar[str]
    known: ClassVar[dict[str, Any]] = {}
    facts: ClassVar[tuple[str, ...]] = ()
    names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, kind: str | None = None, abstract: bool = False) -> None:
        super().__init_subclass__()
        if "__init__" in vars(cls):
            cls.__init__ = constructor(cls.__init__)  # type: ignore[method-assign]
        if kind is not None:
            cls.kind_of_class, cls.known = kind, {}
        if kind is None and not abstract and cls.__module__.partition(".")[0] == PACKAGE:
            cls._register()

    @classmethod
    def _register(cls) -> None:
        """Register the class. TypeError if it lacks a required attribute, or inherits it from a registered class."""
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
        """Reject unknown attributes once the object is complete: they would have no effect."""
        own = self.__dict__
        if "_complete" in own and name not in own and not name.startswith("_") and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}: {_mend(name, settable(self))}")
        super().__setattr__(name, value)

    @constructor
    def __init__(self) -> None:
        pass

    def __dir__(self) -> list[str]:
        """The public attributes, for completion: without internals of the class."""
        hidden = {"kind_of_class", "known", "facts", "names", "positional", *self.facts} - {*vars(self)}
        return [name for name in super().__dir__() if name not in hidden]

    def _argument(self, name: str) -> Any:
        """The value of an argument of the constructor."""
        return getattr(self, name)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments.

        Returns
        -------
        dict
            By name, JSON-serialisable.
        """
        return {name: plain(self._argument(name)) for name in arguments_of(type(self))}

    def to_config(self) -> dict[str, Any]:
        """The configuration from which `from_config` creates the same object.

        Returns
        -------
        dict
            ``{"name": ..., argument: value, ...}``, JSON-serialisable.
        """
        names = vars(type(self)).get("names") or (type(self).__name__,)
        return {"name": names[0], **self.get_config()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Create the object from its configuration.

        Parameters
        ----------
        config : mapping
            What `to_config` returned. A registered class also accepts what `get_config` returned, without a name.

        Returns
        -------
        object
            Of a class of the library.

        Raises
        ------
        TypeError
            If config is not a mapping, or has arguments that the class does not have.
        ValueError
            If this kind has no such name, or a value is out of range.
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
        """Create the object from what `get_config` returned."""
        return cls(**arguments)

    # `repr` shows a call that creates the same object: `positional` arguments without names, the rest if `_shows` it.
    positional: ClassVar[tuple[str, ...]] = ()

    def _shows(self, name: str, differs: bool) -> bool:
        """Whether `repr` shows an argument; `differs`: whether it differs from the default."""
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
