"""What a training leaves on record: lr, loss and group of updates, alike gradients, cost."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from nas_dynamic._extras import extra
from nas_dynamic.adapters.nni import DynamicCallback, subnet_parameters
from nas_dynamic.attach.update_rule import Update
from nas_dynamic.experiment.console import Progress
from nas_dynamic.experiment.cost import CostMeter
from nas_dynamic.report.records import Cost

with extra("nni"):
    import pytorch_lightning as pl

__all__ = ["MAX_PAIRS", "MAX_ROWS", "TrainingRecorder"]

MAX_ROWS = 2000
"""Updates of which a row is kept."""

MAX_PAIRS = 200
"""Pairs of updates whose gradients are compared."""

LEAST_PAIR_DISTANCE = 10
"""Updates from pair to pair, at least, so that comparing stays a small part of the work."""


class TrainingRecorder(pl.Callback):
    """Records a training that `dynamic` attaches to; of bounded size, however long that is.

    It is kept in Lightning's checkpoints, so that a resumed training has the record of all.

    Args:
        progress: told the number of updates, and the mean loss since it was read.
        total: number of updates of the whole training.

    Attributes:
        rows: what updates used, at most `MAX_ROWS` of them, evenly spaced; see `TrainedUpdate`.
        updates: number of updates so far.
        groups: number of updates of each momentum group; empty without momentum separation.
        pairs: at most `MAX_PAIRS`, evenly spaced, of one update and the next; see `GradientPair`.
            A pair that a stop divides is lost.
        group_by: what momentum separation groups by; None without it.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.rows: list[dict[str, Any]] = []
        self.updates = 0
        self.groups: Counter[str] = Counter()
        self.pairs: list[dict[str, Any]] = []
        self.group_by: str | None = None
        self._meter: CostMeter | None = None
        self._cost: Cost | None = None
        self._last: Update | None = None
        self._gradients: dict[torch.Tensor, torch.Tensor] = {}
        self._first: tuple[int, str | None] | None = None
        self._cosine: torch.Tensor | None = None
        self._losses: torch.Tensor | None = None
        self._of_losses = 0

    @property
    def cost(self) -> Cost | None:
        """What the training has cost so far, over all its starts; None before the first one."""
        return self._cost if self._meter is None else self._meter.result()

    def state_dict(self) -> dict[str, Any]:
        """Return the record so far, as plain data."""
        return {
            "rows": self.rows,
            "updates": self.updates,
            "groups": dict(self.groups),
            "pairs": self.pairs,
            "group_by": self.group_by,
            "cost": self.cost and self.cost.model_dump(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the record of a checkpoint."""
        self.rows = state_dict["rows"]
        self.updates = state_dict["updates"]
        self.groups = Counter(state_dict["groups"])
        self.pairs = state_dict["pairs"]
        self.group_by = state_dict["group_by"]
        self._cost = state_dict["cost"] and Cost.model_validate(state_dict["cost"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the training to record, and begin to measure."""
        self._meter = CostMeter(pl_module.device, before=self._cost)
        self.parameters = subnet_parameters(pl_module.model)
        self.every = -(-self.total // MAX_ROWS)
        self.pair_every = max(LEAST_PAIR_DISTANCE, -(-self.total // MAX_PAIRS))
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        (training,) = (c.training for c in callbacks if isinstance(c, DynamicCallback))
        assert training is not None  # it was attached when the fit began
        self.training = training
        if self.training.momentum is not None:
            self.group_by = str(self.training.momentum.group_by)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure no more."""
        self._cost, self._meter = self.cost, None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep the gradients of the first update of a pair, and compare those of the second."""
        step = self.training.steps
        if step % self.pair_every == 0:
            self._gradients = {
                parameter: parameter.grad.detach().clone()
                for group in optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            }
        elif self._first is not None and step == self._first[0] + 1:
            self._cosine = _cosine(self._gradients)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record what the update used, and tell the progress."""
        update = self.training.last
        if update is None or update is self._last:  # AMP has skipped the step
            return
        self._last = update
        group = None if update.group is None else str(update.group)
        self.updates += 1
        if group is not None:
            self.groups[group] += 1
        self._pair(update.step, group)
        self._losses = outputs["loss"].detach() + (0 if self._losses is None else self._losses)
        self._of_losses += 1
        self.progress(update.step + 1, self.total, self._read_loss)
        if update.step % self.every:
            return
        loss = outputs["loss"].item()
        self.rows.append(
            {
                "step": update.step,
                "lr": float(update.lr[0]),
                "gamma": update.gamma,
                "group": group,
                "parameters": self.parameters(update.architecture),
                "loss": loss if math.isfinite(loss) else None,
            }
        )
        assert self._meter is not None
        self._meter.update()

    def _read_loss(self) -> float:
        """Return the mean loss of the updates since the last call; it waits for the device."""
        assert self._losses is not None
        mean = self._losses.item() / self._of_losses
        self._losses, self._of_losses = None, 0
        return mean

    def _pair(self, step: int, group: str | None) -> None:
        if step % self.pair_every == 0:
            self._first = step, group
            return
        if self._first is not None and self._cosine is not None:
            cosine = self._cosine.item()
            if math.isfinite(cosine):  # it is not if one has no gradient but zeros, or diverged
                first, groups = self._first[0], [self._first[1], group]
                self.pairs.append({"step": first, "groups": groups, "cosine": cosine})
        self._gradients, self._first, self._cosine = {}, None, None


def _cosine(before: dict[torch.Tensor, torch.Tensor]) -> torch.Tensor | None:
    """Return the cosine of kept gradients and those of now, where parameters have both."""
    pairs = [(kept.flatten(), p.grad.flatten()) for p, kept in before.items() if p.grad is not None]
    if not pairs:
        return None
    products = torch.stack([torch.dot(a, b) for a, b in pairs]).sum()
    norms = [
        torch.stack(torch._foreach_norm(list(side))).norm() for side in zip(*pairs, strict=True)
    ]
    cosine: torch.Tensor = products / (norms[0] * norms[1])
    return cosine
