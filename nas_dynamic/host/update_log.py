"""What the updates of a dynamic training used, by the names that hosts' loggers show."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from nas_dynamic.attach import DynamicTraining, Update

__all__ = ["UpdateLog"]


class UpdateLog:
    """What a host's loggers get of an update.

    - `dynamic/lr`: what the update used, with CaLR's factor; of the first param group.
    - `dynamic/gamma`, `dynamic/complexity`: the means over the subnets of the update.
    - `dynamic/group`: with momentum separation, the number of its group, in the order of
      appearance.
    - `dynamic/loss/<label>=<candidate>`: the mean training loss of the updates of each momentum
      group since the last logging, where it had any, of hosts that tell the losses. Where a rule
      groups the subnets, its name is in place of the label.

    `dynamic/group_by`, a hyper-parameter, is the label or the name of the rule.

    Losses are added up on their device, and read when they are logged.

    Args:
        training: that is attached.
    """

    def __init__(self, training: DynamicTraining) -> None:
        self.training = training
        self._seen = training.last
        self._batches = _Mean()
        self._updates: dict[Hashable, _Mean] = {}
        momentum = training.momentum
        self._rule = "" if momentum is None else str(next(iter(momentum.definition().values())))

    @property
    def hyperparameters(self) -> dict[str, str]:
        """What holds for the whole training."""
        return {"dynamic/group_by": self._rule} if self._rule else {}

    @property
    def step(self) -> int:
        """The number of the last update, from 0, to log at."""
        return -1 if self._seen is None else self._seen.step

    def begin(self) -> None:
        """Begin an update: a former one that was skipped has left the losses of its batches."""
        self._batches = _Mean()

    def add(self, loss: torch.Tensor | None) -> None:
        """Add the loss of a batch of the update at hand, before CaLR weights it."""
        if loss is not None and self.training.momentum is not None:
            self._batches.add(loss.detach().float())

    def metrics(self, every: int = 1) -> dict[str, float] | None:
        """Return what to log after a batch.

        None where it has made no update, as a micro-batch, or the update is not the `every`-th.
        """
        update = self.training.last
        if update is None or update is self._seen:
            return None
        self._seen = update
        if self._batches.count:
            self._updates.setdefault(update.group, _Mean()).add(self._batches.value)
            self._batches = _Mean()
        return None if (update.step + 1) % every else self._metrics(update)

    def _metrics(self, update: Update) -> dict[str, float]:
        training = self.training
        metrics = {"dynamic/lr": float(update.lr[0])}
        if training.calr is not None:
            for name in ("gamma", "complexity"):
                values = [getattr(subnet, name) for subnet in update.subnets]
                metrics[f"dynamic/{name}"] = sum(values) / len(values)
        if training.momentum is not None:
            metrics["dynamic/group"] = training.groups.index(update.group)
            for group, loss in self._means().items():
                metrics[f"dynamic/loss/{self._rule}={group}"] = loss
        return metrics

    def _means(self) -> dict[Hashable, float]:
        """Return the losses since the last call, in one transfer."""
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
