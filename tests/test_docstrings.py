"""The examples in the package's docstrings run as written."""

import doctest
import importlib
import pkgutil

import pytest

import tokenskip_lib
from tokenskip_lib.evaluation.methods import METHODS
from tokenskip_lib.pruning.registry import SCORERS

MODULES = [
    module.name
    for module in pkgutil.walk_packages(tokenskip_lib.__path__, "tokenskip_lib.")
    if not module.name.endswith("__main__")
]


@pytest.fixture(autouse=True)
def _registries():
    """What an example registers is gone after it."""
    before = [(registry, dict(registry)) for registry in (METHODS, SCORERS)]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples failed; see the output above"


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) > 5
