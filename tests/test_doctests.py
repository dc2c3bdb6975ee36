"""The examples in docstrings: every module of the package that has some."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import warnings
from pathlib import Path

import pytest

import nas_dynamic
import nas_dynamic.adapters

ROOT = Path(__file__).parents[1]


def modules_with_examples() -> list[str]:
    """Names of modules whose source has a prompt; importing them all would take frameworks."""
    found = []
    for package in (nas_dynamic, nas_dynamic.adapters):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            spec = module.module_finder.find_spec(module.name, None)
            if spec is not None and spec.origin and ">>> " in Path(spec.origin).read_text():
                found.append(module.name)
    return sorted(set(found))


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_the_docstrings(name: str):
    for host in ("nni", "timm", "archai", "transformers"):
        if f".adapters.{host}" in name or (host == "nni" and ".experiment.nni" in name):
            pytest.importorskip(host)
    if name.endswith(".quantised"):
        pytest.importorskip("timm")
        pytest.importorskip("torchao")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NNI's import
        module = importlib.import_module(name)
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_the_front_door_has_examples():
    finder = doctest.DocTestFinder()
    for name in nas_dynamic.__all__:
        value = getattr(nas_dynamic, name)
        if isinstance(value, type) and name not in ("Subnet", "Update"):
            assert any(test.examples for test in finder.find(value)), name
