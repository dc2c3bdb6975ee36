"""Imports: of optional dependencies, and of names that are imported when they are asked for."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["extra", "imported_late"]


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra of this package that a missing import inside the context comes with."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is missing: pip install 'nas-dynamic[{name}]'", name=error.name
        ) from error


def imported_late(package: str, modules: Mapping[str, Sequence[str]], name: str) -> Any:
    """Return a name of a package from the module that has it: for its `__getattr__` (PEP 562).

    Raises:
        AttributeError: no module has the name.
    """
    for module, names in modules.items():
        if name in names:
            value = getattr(importlib.import_module(f"{package}.{module}"), name)
            setattr(sys.modules[package], name, value)
            return value
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
