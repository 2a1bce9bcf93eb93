"""The examples in the router's docstrings."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import shoal.router
import shoal.wire

_MODULES = [
    module.name
    for package in (shoal.router, shoal.wire)
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", _MODULES)
def test_examples_are_true(name: str) -> None:
    """Every example in a docstring gives what it says."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0
