"""Accuracy of subnets that are trained alone: the truth that a supernet's scores are held to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_dynamic.architecture import Architecture
from nas_dynamic.data import BatchSampler, Images, batch_loader
from nas_dynamic.evaluation import autocast
from nas_dynamic.records import write_json

__all__ = ["Truth", "train_alone"]


def train_alone(
    model: nn.Module,
    images: Images,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    precision: str = "32",
    seed: int = 0,
) -> None:
    """Train a classifier, on the device that it is on, with a cosine decay of the lr to zero."""
    device = next(model.parameters()).device
    batches = batch_loader(images, batch_size, shuffle=True, seed=seed)
    assert isinstance(batches.sampler, BatchSampler)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed")
    model.train()
    for epoch in range(epochs):
        batches.sampler.set_epoch(epoch)
        for inputs, labels in batches:
            optimizer.zero_grad()
            with autocast(device, precision):
                logits = model(inputs.to(device))
            loss = nn.functional.cross_entropy(logits.float(), labels.to(device))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            decay.step()


class Truth:
    """Measured accuracies of architectures, kept in a file.

    Args:
        folder: of the file; its name is a hash of `depends_on`.
        depends_on: whatever decides the accuracies, as plain data.
        measure: architecture → accuracy, for those that are not in the file.
    """

    def __init__(
        self,
        folder: Path,
        depends_on: dict[str, Any],
        measure: Callable[[Architecture], float],
    ) -> None:
        key = json.dumps(depends_on, sort_keys=True)
        self.path = folder / f"stand-alone-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        self.depends_on = depends_on
        self.measure = measure
        self._known: dict[str, float] = {}
        if self.path.exists():
            self._known = json.loads(self.path.read_text())["accuracies"]

    def __call__(self, architecture: Architecture) -> float:
        """Look the accuracy up, or measure and keep it."""
        key = json.dumps(dict(architecture), sort_keys=True)
        if key not in self._known:
            self._known[key] = self.measure(architecture)
            write_json(self.path, {"depends_on": self.depends_on, "accuracies": self._known})
        return self._known[key]
