"""Whether a configuration can be trained: all that it names is built once, before the run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from nas_dynamic._extras import extra
from nas_dynamic.adapters.nni import activate, search_space, subnet_parameters
from nas_dynamic.attach.training import DynamicTraining
from nas_dynamic.complexity import Complexity, lookup
from nas_dynamic.experiment.config import FOREIGN, Config, ConfigError, kwargs_of, refusing
from nas_dynamic.experiment.data import ImageData, batch_loader
from nas_dynamic.experiment.nni.build import (
    build_optimizer,
    build_scheduler,
    build_space,
    updates_of,
)
from nas_dynamic.experiment.nni.supernet import quiet
from nas_dynamic.host import Host, build
from nas_dynamic.space import Architecture, SearchSpace

with extra("nni"):
    from nni.nas.strategy import RandomOneShot

__all__ = ["check_trainable"]


def check_trainable(config: Config, data: ImageData) -> None:
    """Build what the training will build, and make one update with two images.

    Costs what the start of the training costs, but for MACs, and the steps of the lr scheduler;
    writes nothing.

    Args:
        config: the configuration.
        data: its images.

    Raises:
        ConfigError: names the key that is at fault, and what its value does not suit.
    """
    with refusing("data"):
        batches = len(batch_loader(data.train, config.batch_size, shuffle=True))
    device = config.torch_device
    with refusing(f"device is {config.device!r}, which cannot be used", *FOREIGN):
        torch.empty(0, device=device)
    with quiet(warned=True):
        supernet = build_space(config, data.classes)
        with refusing(f"space.name is {config.space.name!r}, which makes no supernet"):
            supernet = RandomOneShot().mutate_model(supernet).to(device)
            space = search_space(supernet)
            parameters = lookup(space, subnet_parameters(supernet))
        optimizer = build_optimizer(config, supernet.parameters())
        scheduler = build_scheduler(config, optimizer)
        updates = updates_of(config, batches)
        _check_dynamic(config, optimizer, space, parameters, updates)
        activate(supernet, space.sample(np.random.default_rng(0)))
        _check_images(config, data, device, supernet)
        with refusing(f"optimizer: {config.optimizer.name} cannot step", *FOREIGN):
            optimizer.step()
        if config.scheduler is not None and scheduler is not None:
            # As often as in the training: some use their arguments late, or have an end.
            by_epoch = config.scheduler.interval == "epoch"
            with refusing(kwargs_of("scheduler", config.scheduler), *FOREIGN):
                for _ in range(updates // batches if by_epoch else updates):
                    scheduler.step()


def _check_dynamic(
    config: Config,
    optimizer: torch.optim.Optimizer,
    space: SearchSpace,
    parameters: Complexity,
    updates: int,
) -> None:
    """Attach what `dynamic` will attach."""
    options = config.dynamic
    with refusing("dynamic"):
        if options.complexity == "macs":  # to measure those takes long, and asks no key
            options = replace(options, gamma_by="complexity", bounds=(1.0, 2.0))
        calr, momentum = build(_Checked(optimizer, space, parameters, updates), options)
    with refusing(f"optimizer.name is {config.optimizer.name!r}"):
        training = DynamicTraining(
            optimizer, dict, calr=calr, momentum=momentum, idle=options.idle, space=space
        )
    training.detach()


class _Checked(Host):
    """The training that the configuration describes, before it is built."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        space: SearchSpace,
        parameters: Complexity,
        updates: int,
    ) -> None:
        self.optimizer, self.space = optimizer, space
        self.parameters, self.updates = parameters, updates

    def sampled(self) -> Architecture:
        return {}

    def complexity(self, measure: str) -> Complexity:
        return self.parameters

    def total_steps(self) -> int:
        return self.updates


def _check_images(
    config: Config, data: ImageData, device: torch.device, supernet: nn.Module
) -> None:
    """Give the active subnet's parameters their gradients for two images."""
    images, labels = data.train[torch.arange(min(2, config.batch_size))]
    size = "×".join(map(str, images.shape[1:]))
    kinds = (RuntimeError, AssertionError)  # what the layers of a space of one's own raise as well
    with refusing(f"space {config.space.name} cannot take images of {size}", *kinds):
        logits = supernet.train()(images.to(device))
    wanted = (len(images), data.classes)
    found = tuple(logits.shape) if torch.is_tensor(logits) else type(logits).__name__
    if found != wanted:
        raise ConfigError(
            f"space {config.space.name} gives {found} for {len(images)} images; it must give "
            f"logits of shape {wanted}, one for each of {data.classes} classes: see space.kwargs"
        )
    nn.functional.cross_entropy(logits, labels.to(device)).backward()
