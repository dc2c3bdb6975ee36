"""Losses by momentum group, for the loggers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["UNWEIGHTED", "GroupLosses", "unweighted_loss"]

UNWEIGHTED = "unweighted_loss"
"""Where a training step puts the mean loss of its subnets, beside that of the weighted losses."""


def unweighted_loss(outputs: Any, trainer: pl.Trainer) -> torch.Tensor | None:
    """Return the loss of a batch, before CaLR weights it, from what Lightning says of the batch.

    None where there is no loss, as in a step that was skipped.
    """
    if not isinstance(outputs, Mapping):
        return None
    unweighted: torch.Tensor | None = outputs.get(UNWEIGHTED)
    loss: torch.Tensor | None = outputs.get("loss")
    if unweighted is not None or loss is None:
        return unweighted
    return loss * trainer.accumulate_grad_batches  # by which Lightning divides it


class GroupLosses:
    """Mean loss of the updates of each momentum group, kept on the device until it is asked for."""

    def __init__(self) -> None:
        self._batches = _Mean()
        self._updates: dict[Hashable, _Mean] = {}

    def begin(self) -> None:
        """Begin an update: a former one that was skipped has left the losses of its batches."""
        self._batches = _Mean()

    def add(self, loss: torch.Tensor | None) -> None:
        """Add the loss of a batch of the update at hand."""
        if loss is not None:
            self._batches.add(loss.detach().float())

    def end(self, group: Hashable) -> None:
        """Count the update, which has been made, for its group."""
        if self._batches.count:
            self._updates.setdefault(group, _Mean()).add(self._batches.value)

    def means(self) -> dict[Hashable, float]:
        """Return those since the last call, in one transfer."""
        updates, self._updates = self._updates, {}
        if not updates:
            return {}
        means = torch.stack([mean.value for mean in updates.values()])
        return dict(zip(updates, means.tolist(), strict=True))


@dataclass
class _Mean:
    total: torch.Tensor | float = 0.0
    count: int = 0

    def add(self, value: torch.Tensor) -> None:
        self.total = self.total + value
        self.count += 1

    @property
    def value(self) -> torch.Tensor:
        return torch.as_tensor(self.total / self.count)
