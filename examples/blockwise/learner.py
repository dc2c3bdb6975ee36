"""A block that learns without labels, by ensemble bootstrapping."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from blocks import Block, Supernet
from torch import nn
from torch.nn import functional as F

from nas_dynamic import Architecture, CaLR, DynamicTraining, MomentumSeparation, UniformSampler
from nas_dynamic.complexity import population

SIBLINGS, DECAY = 4, 0.99
Views = list[torch.Tensor]


def attach(optimizer: Any, module: Block | Supernet, told: Any, steps: int, arm: str) -> None:
    """Attach dynamic training; the lr decays linearly, or as CaLR bends that by the size."""
    calr = CaLR(
        module.size,
        total_steps=steps,
        population=population(module.space, module.size),
        gamma_max=4.0 if "calr" in arm else 1.0,
    )
    separate = MomentumSeparation(module.space.labels[0]) if arm.endswith("ms") else None
    DynamicTraining(optimizer, told, calr=calr, momentum=separate)


def mlp(inputs: int) -> nn.Module:
    # Statistics of the batch alone: paths have none in common.
    norm = nn.BatchNorm1d(64, track_running_stats=False)
    return nn.Sequential(nn.Linear(inputs, 64), norm, nn.ReLU(), nn.Linear(64, 32))


class Learner:
    """A block, and what it learns with."""

    def __init__(self, block: Block, arm: str, steps: int, seed: int) -> None:
        self.block = block
        self.project, self.predict = mlp(block.enter.out_channels), mlp(32)
        self.averaged = copy.deepcopy(nn.ModuleList([block, self.project]))
        self.sampler = UniformSampler(block.space, seed)
        self.siblings = UniformSampler(block.space, seed + 1000)
        self.path: Architecture = {}
        own = nn.ModuleList([block, self.project, self.predict])
        self.optimizer = torch.optim.Adam(own.parameters(), 2e-3)
        attach(self.optimizer, block, lambda: self.path, steps, arm)

    @torch.no_grad()
    def ensemble(self, x: torch.Tensor, paths: Sequence[Architecture]) -> torch.Tensor:
        """Return the mean output of paths, by the averaged weights."""
        block, project = self.averaged
        outputs = [F.normalize(project(block(x, path).mean((2, 3))), dim=1) for path in paths]
        return torch.stack(outputs).mean(0)

    def distance(self, features: torch.Tensor, ensemble: torch.Tensor) -> torch.Tensor:
        """Return the mean squared distance of predictions to what they should be."""
        predicted = self.predict(self.project(features.mean((2, 3))))
        targets = F.normalize(ensemble, dim=1)
        return (F.normalize(predicted, dim=1) - targets).square().sum(1).mean()

    def update(self, views: Views) -> Views:
        """Train a sampled path; return its features, for the next block."""
        self.path = self.sampler.sample()
        siblings = [self.siblings.sample() for _ in range(SIBLINGS)]
        targets = [self.ensemble(x, siblings) for x in views]
        features = [self.block(x, self.path) for x in views]
        self.optimizer.zero_grad()
        pairs = zip(features, reversed(targets), strict=True)
        sum(self.distance(x, target) for x, target in pairs).backward()
        self.optimizer.step()
        with torch.no_grad():
            own = [*self.block.parameters(), *self.project.parameters()]
            torch._foreach_lerp_([*self.averaged.parameters()], own, 1 - DECAY)
        return [x.detach() for x in features]

    @torch.no_grad()
    def ratings(self, views: Views) -> np.ndarray:
        """Return the distance of every path of the block to the mean of all."""
        paths = [*self.block.space]
        ensemble = self.ensemble(views[1], paths)
        return np.array([float(self.distance(self.block(views[0], p), ensemble)) for p in paths])


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Return images shifted by up to a pixel, brightened or darkened, and with noise."""
    n, size = len(images), images.shape[-1]
    padded = F.pad(images, (1, 1, 1, 1), value=float(images.min()))
    rows, columns = (torch.randint(3, (n, 1)) + torch.arange(size) for _ in range(2))
    shifted = padded[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None]]
    scale = 0.7 + 0.6 * torch.rand(n, 1, 1, 1)
    return shifted.permute(0, 3, 1, 2) * scale + 0.2 * torch.randn(n, 1, size, size)
