"""Scores of subnets that are trained alone: the truth that a supernet's scores are held to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas_dynamic.evaluation.inference import autocast
from nas_dynamic.evaluation.score_cache import kept_score
from nas_dynamic.evaluation.scoring import Score
from nas_dynamic.experiment.data import BatchSampler, Images, batch_loader
from nas_dynamic.space import Architecture
from nas_dynamic.storage.journal import write_json

__all__ = ["StandaloneScores", "train_standalone"]


def train_standalone(
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


class StandaloneScores:
    """Measured scores of architectures, kept in a file that `nas-dynamic report --truth` takes.

    Args:
        folder: of the file; its name is a hash of `depends_on`.
        depends_on: whatever decides the scores, as plain data.
        measure: architecture → accuracy and mean loss, for those that are not in the file.
    """

    def __init__(
        self,
        folder: Path,
        depends_on: dict[str, Any],
        measure: Callable[[Architecture], tuple[float, float]],
    ) -> None:
        key = json.dumps(depends_on, sort_keys=True)
        self.path = folder / f"stand-alone-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        self.depends_on = depends_on
        self.measure = measure
        self._known: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            for entry in json.loads(self.path.read_text())["truth"]:
                self._known[_key(entry["architecture"])] = entry

    def __call__(self, architecture: Architecture) -> Score:
        """Look the score up, or measure and keep it."""
        key = _key(architecture)
        if key not in self._known:
            accuracy, loss = self.measure(architecture)
            self._known[key] = {
                "architecture": dict(architecture),
                "accuracy": accuracy,
                "loss": loss,
            }
            content = {"depends_on": self.depends_on, "truth": list(self._known.values())}
            write_json(self.path, content)
        return kept_score(architecture, self._known[key])


def _key(architecture: Architecture) -> str:
    return json.dumps(dict(architecture), sort_keys=True)
