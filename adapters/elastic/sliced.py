"""Layers that compute with the first entries of their parameters.

A layer becomes sliced by a change of its class, so names, shapes and values of its parameters stay,
and so does its forward: what reads `layer.weight` gets the active part.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

__all__ = ["SlicedLinear", "first_entries"]


def first_entries(layer: nn.Module, name: str, entries: int) -> torch.Tensor | None:
    """Return the first entries of a parameter, None where there is none."""
    whole = layer._parameters.get(name)
    return None if whole is None else whole[:entries]


class SlicedLinear(nn.Linear):
    """A Linear whose first `in_features` columns and `out_features` rows are active."""

    def resize(self, in_features: int, out_features: int) -> None:
        """Choose the active part."""
        self.in_features, self.out_features = in_features, out_features

    def _rows(self, parameter: torch.Tensor) -> torch.Tensor:
        return parameter[: self.out_features]

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Active part of the weight."""
        whole = cast(torch.Tensor, self._parameters["weight"])
        # Contiguous, as in the stand-alone model: matrix products choose their kernel, and so the
        # last bit of the result, by the strides.
        return self._rows(whole[:, : self.in_features]).contiguous()

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        """Active part of the bias."""
        whole = self._parameters.get("bias")
        return None if whole is None else self._rows(whole)
