"""What dynamic training costs an update, measured beside the usual one."""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, UniformSampler
from nas_dynamic.adapters.nni import Supernet
from nas_dynamic.analysis.paired import mean_estimate
from nas_dynamic.analysis.ranking import Estimate
from nas_dynamic.complexity import lookup, population
from nas_dynamic.experiment.config import Config
from nas_dynamic.experiment.console import Progress
from nas_dynamic.experiment.data import ImageData, batch_loader
from nas_dynamic.experiment.nni.build import build_optimizer
from nas_dynamic.experiment.nni.supernet import quiet
from nas_dynamic.space import Architecture

__all__ = ["UpdateCost", "update_cost"]

WARM_UP = 10
"""Pairs that are not counted: states are allocated, and what is attached is tried."""


@dataclass(frozen=True)
class UpdateCost:
    """Milliseconds of an update.

    Attributes:
        static: median of the usual ones.
        more: by what idle parameters do, the mean of what a dynamic update takes more than the
            usual one of the same subnet and images, with its interval.
        tensors: that the optimizer updates where idle parameters coast.
    """

    static: float
    more: dict[str, Estimate]
    tensors: int


def update_cost(
    config: Config, data: ImageData, supernet: Supernet, progress: Progress, count: int = 100
) -> UpdateCost:
    """Make the same updates as usual and with dynamic training, each subnet by all in turn.

    Args:
        config: optimizer and batch size.
        data: the images.
        supernet: copies of it are trained, and thrown away.
        progress: told the number of updates.
        count: of updates that are counted.
    """
    total = WARM_UP + count
    sampled: Architecture = {}
    complexity = lookup(supernet.space, supernet.subnet_parameters())
    drawn = population(supernet.space, complexity)
    arms: dict[str, tuple[Supernet, torch.optim.Optimizer]] = {}
    attached = []
    names: tuple[Literal["static", "coast", "freeze"], ...] = ("static", "coast", "freeze")
    for name in names:
        trained = copy.deepcopy(supernet).to(config.torch_device).train()
        optimizer = build_optimizer(config, trained.parameters())
        arms[name] = trained, optimizer
        if name != "static":
            with quiet(warned=True):
                attached.append(
                    DynamicTraining(
                        optimizer,
                        lambda: sampled,
                        calr=CaLR(complexity, total_steps=total, population=drawn),
                        idle=name,
                        space=supernet.space,
                    )
                )
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    batches = list(batch_loader(data.train, config.batch_size, shuffle=True))
    sampler, orders = UniformSampler(supernet.space, seed=0), list(itertools.permutations(arms))
    for number in range(total):
        sampled = sampler.sample()
        images, labels = batches[number % len(batches)]
        # What comes first finds the images not yet in the cache.
        for arm in orders[number % len(orders)]:
            seconds[arm].append(_update(*arms[arm], sampled, images, labels))
        progress(number + 1, total)
    for training in attached:
        training.detach()
    found = {name: 1e3 * np.array(values[WARM_UP:]) for name, values in seconds.items()}
    static = found.pop("static")
    more = {name: mean_estimate(values - static) for name, values in found.items()}
    return UpdateCost(float(np.median(static)), more, len(list(supernet.parameters())))


def _update(
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    architecture: Architecture,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    device = next(supernet.parameters()).device
    supernet.activate(architecture)
    started = time.perf_counter()
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(supernet(images.to(device)), labels.to(device))
    loss.backward()
    optimizer.step()
    loss.item()  # waits for the device
    return time.perf_counter() - started
