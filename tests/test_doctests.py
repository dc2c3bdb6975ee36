"""The examples in the docstrings of the core."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "architecture",
    "calr",
    "complexity",
    "momentum",
    "ranking",
    "sampling",
    "support",
    "tables",
    "training",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_the_docstrings(name: str):
    module = importlib.import_module(f"nas_dynamic.{name}")
    assert doctest.testmod(module).failed == 0


def test_the_front_door_has_examples():
    finder = doctest.DocTestFinder()
    for name in ("architecture", "calr", "momentum", "sampling", "training"):
        module = importlib.import_module(f"nas_dynamic.{name}")
        assert any(test.examples for test in finder.find(module)), name
