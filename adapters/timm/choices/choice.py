"""A layer of which there are several candidates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["SKIP", "LayerChoice", "Skip"]

SKIP = "skip"
"""The candidate that leaves a layer out."""


class Skip(nn.Module):
    """A layer that is left out."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the input."""
        return x


class LayerChoice(nn.ModuleDict):
    """Candidates of one layer, of which one is computed.

    Attributes:
        active: name of the candidate that is computed.
    """

    def __init__(self, candidates: Mapping[str, nn.Module]) -> None:
        super().__init__(dict(candidates))
        self.active = next(iter(candidates))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the active candidate."""
        return self[self.active](*args, **kwargs)

    def extra_repr(self) -> str:
        """Tell the active candidate."""
        return f"active={self.active!r}"
