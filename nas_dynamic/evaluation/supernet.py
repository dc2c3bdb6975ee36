"""What a supernet is here: a network that computes any subnet of a space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Supernet"]


@runtime_checkable
class Supernet(Protocol):
    """A network that computes any subnet of a space."""

    space: SearchSpace

    def activate(self, architecture: Architecture) -> None:
        """Make the supernet compute one subnet."""
        ...

    def subnet_parameters(self) -> Callable[[Architecture], float]:
        """Return architecture → number of parameters of the stand-alone subnet."""
        ...
