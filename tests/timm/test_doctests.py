"""The examples in the docstrings of the timm adapter."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["fusion", "mobile"])
def test_examples_of_the_docstrings(name):
    module = importlib.import_module(f"nas_dynamic.adapters.timm.{name}")
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
