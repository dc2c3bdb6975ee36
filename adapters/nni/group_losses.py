"""Losses by momentum group, for the loggers."""

from __future__ import annotations

from collections.abc import Hashable

import torch

__all__ = ["GroupLosses"]


class GroupLosses:
    """Mean loss of the updates of each momentum group, kept on the device until it is asked for."""

    def __init__(self) -> None:
        self._batches = _Mean()
        self._updates: dict[Hashable, _Mean] = {}

    def begin(self) -> None:
        """A new update: a former one that was skipped has left the losses of its batches."""
        self._batches = _Mean()

    def add(self, loss: torch.Tensor | None) -> None:
        """The loss of a batch of the update at hand."""
        if loss is not None:
            self._batches.add(loss.detach().float())

    def end(self, group: Hashable) -> None:
        """The update has been made."""
        if self._batches.count:
            self._updates.setdefault(group, _Mean()).add(self._batches.value)

    def means(self) -> dict[Hashable, float]:
        """Those since the last call, in one transfer."""
        updates, self._updates = self._updates, {}
        if not updates:
            return {}
        means = torch.stack([mean.value for mean in updates.values()])
        return dict(zip(updates, means.tolist(), strict=True))


class _Mean:
    def __init__(self) -> None:
        self.total: torch.Tensor | float = 0.0
        self.count = 0

    def add(self, value: torch.Tensor) -> None:
        self.total = self.total + value
        self.count += 1

    @property
    def value(self) -> torch.Tensor:
        return torch.as_tensor(self.total / self.count)
