"""The examples in the docstrings do what they say."""

import doctest
import importlib.util
import inspect
import pkgutil

import pytest

import cnn

OPTIONAL = {"cnn.river": "river"}  # what a module needs beside what the tests need everywhere
MODULES = [cnn] + [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(cnn.__path__, "cnn.")
    if not module.name.startswith("cnn._kernels") and importlib.util.find_spec(OPTIONAL.get(module.name, "cnn"))
]


def examples():
    finder = doctest.DocTestFinder()
    for module in MODULES:
        for test in finder.find(module, globs={name: getattr(cnn, name) for name in cnn.__all__} | {"cnn": cnn}):
            if test.examples:
                yield pytest.param(test, id=test.name)


@pytest.mark.parametrize("test", list(examples()))
def test_example(test):
    failures = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_public_names_are_documented():
    for name in cnn.__all__:
        public = getattr(cnn, name)
        assert inspect.getdoc(public), name
        if not inspect.isclass(public):
            continue
        for attribute, value in vars(public).items():
            if not attribute.startswith("_") and callable(value):
                assert inspect.getdoc(getattr(public, attribute)), f"{name}.{attribute}"
