import doctest
import importlib
import pkgutil

import pytest

import p2pfl.topology

MODULES = [f"p2pfl.topology.{found.name}" for found in pkgutil.iter_modules(p2pfl.topology.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_some() -> None:
    assert sum(doctest.testmod(importlib.import_module(name)).attempted for name in MODULES) > 15
