"""Optional dependencies: an import that fails says which extra to install."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["extra"]


@contextlib.contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra of this package that a missing import inside the context comes with."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is missing: pip install 'nas-dynamic[{name}]'", name=error.name
        ) from error
