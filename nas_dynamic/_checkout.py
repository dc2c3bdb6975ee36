"""In a checkout the adapters lie beside the package; installation puts them into it."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

__all__ = ["find_adapters"]


def find_adapters() -> None:
    """Make `nas_dynamic.adapters` of a checkout importable, where it is not installed as such.

    A script in the folder of a checkout, and `python -m benchmarks.…` there, import the package of
    the checkout, whatever is installed.
    """
    package = Path(__file__).parent
    folder = package.parent / "adapters"
    if (package / "adapters").exists() or not (folder / "nni").is_dir():
        return
    spec = spec_from_file_location(f"{package.name}.adapters", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    vars(sys.modules[package.name])["adapters"] = module
