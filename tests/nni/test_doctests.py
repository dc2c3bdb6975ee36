"""The examples in the docstrings of the NNI adapter."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = ["extract", "search", "strategies", "training"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings(name: str):
    module = importlib.import_module(f"nas_dynamic.adapters.nni.{name}")
    tests = doctest.DocTestFinder().find(module)
    assert any(test.examples for test in tests)
    assert doctest.testmod(module).failed == 0
