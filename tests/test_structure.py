"""The imports of the library: no circles of modules or subpackages, and no private names of other modules."""

import ast
from pathlib import Path

import pytest

import cnn

ROOT = Path(cnn.__file__).parent


def name_of(path):
    parts = ("cnn", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports(name):
    """(module, imported name or None, whether at the module's level) of each import of the library in a module."""
    path = FILES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    late = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: None if node.level < 2 else 1 - node.level] if node.level else []
            module = ".".join([*parts, *filter(None, [node.module])])
            found = [(module, alias.name) for alias in node.names]
        else:
            continue
        for module, what in found:
            if f"{module}.{what}" in FILES:
                module, what = f"{module}.{what}", None
            if module.partition(".")[0] == "cnn":
                yield module, what, id(node) not in late


def circle(edges):
    """A circle in a graph, as the list of its nodes, or None."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node) :]
        if node in done:
            return None
        path.append(node)
        found = next(filter(None, map(visit, sorted(edges.get(node, ())))), None)
        path.pop()
        done.add(node)
        return found

    return next(filter(None, map(visit, sorted(edges))), None)


def subpackage(module):
    """What a module belongs to: its folder, or itself if it lies at the top."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("of", [str, subpackage], ids=["modules", "subpackages"])
@pytest.mark.parametrize("late", [False, True], ids=["at import", "in functions too"])
def test_no_circles(of, late):
    edges = {}
    for name in FILES:
        for module, _, early in imports(name):
            if module in FILES and of(module) != of(name) and (early or late):
                edges.setdefault(of(name), set()).add(of(module))
    assert len(edges) > 10
    assert circle(edges) is None


def test_circles_are_found():
    assert circle({"a": {"b", "c"}, "b": {"c"}}) is None
    assert circle({"a": {"b"}, "b": {"c", "d"}, "d": {"b"}}) == ["b", "d"]


def test_no_private_names_of_other_modules():
    private = [
        f"{name}: from {module} import {what}"
        for name in FILES
        for module, what, _ in imports(name)
        if what and what.startswith("_") and not what.endswith("__")
    ]
    assert not private
