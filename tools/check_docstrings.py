"""Validates the docstrings of the public API with numpydoc; the checks are those of pyproject.toml.

    python tools/check_docstrings.py

Public is what `cnn.__all__` names, and the attributes of classes that begin with no underscore, each where it is
defined. Not a method that inherits its docstring, nor a property that its class's docstring describes. Prints a line
for each error, and ends with 1 if there is one.
"""

import inspect
import sys
from pathlib import Path
from types import FunctionType

from numpydoc.docscrape import NumpyDocString
from numpydoc.hooks.validate_docstrings import parse_config
from numpydoc.validate import validate

import cnn

ROOT = Path(__file__).resolve().parents[1]


def public():
    """Import paths of modules' functions, of classes, and of their methods and properties."""
    for name in cnn.__all__:
        thing = getattr(cnn, name)
        members = [thing]
        if inspect.ismodule(thing):
            members = [m for key, m in vars(thing).items() if not key.startswith("_") and defined_in(thing.__name__, m)]
        for member in members:
            if not (inspect.isclass(member) or inspect.isroutine(member)):
                continue
            yield path(member)
            for base in inspect.getmro(member) if inspect.isclass(member) else ():
                if defined_in("cnn", base):
                    yield from (f"{path(base)}.{key}" for key, value in vars(base).items() if own(base, key, value))


def defined_in(module, thing):
    return str(getattr(thing, "__module__", "")).startswith(module)


def path(thing):
    return f"{thing.__module__}.{thing.__qualname__}"


def own(cls, key, value):
    if key.startswith("_") or not isinstance(value, property | classmethod | staticmethod | FunctionType):
        return False
    if value.__doc__ or any(getattr(getattr(base, key, None), "__doc__", None) for base in cls.__mro__):
        return bool(value.__doc__)
    described = NumpyDocString(inspect.getdoc(cls) or "")
    items = [*described["Parameters"], *described["Attributes"]]
    return not (isinstance(value, property) and any(key in item.name.split(", ") for item in items))


def main():
    checks = parse_config(ROOT)["checks"]
    names = sorted(set(public()))
    errors = 0
    for name in names:
        found = validate(name)
        for code, message in found["errors"]:
            if code in checks:
                errors += 1
                print(f"{found['file']}:{found['file_line']}: {name}: {code} {message}")
    print(f"{len(names)} docstrings: {errors} errors")
    return errors > 0


if __name__ == "__main__":
    sys.exit(main())
