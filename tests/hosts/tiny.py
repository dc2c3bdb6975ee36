"""One small supernet, its data, and its training by one optimizer a group, for all hosts.

`Task` says what is trained; every host's `train` in the files beside takes one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from nas_dynamic import FairSampler, SearchSpace, UniformSampler

UPDATES, EPOCHS, BATCH = 50, 2, 4
LR, GAMMA_MAX = 0.05, 4.0
OPTIONS: dict[str, Any] = {
    "gamma_by": "complexity",
    "gamma_max": GAMMA_MAX,
    "group_by": "layer2",
    "seed": 3,
}
"""What every host is given: γ by the paper's formula, which `reference` writes out."""


class Supernet(nn.Module):
    """Three layers, each a choice of three kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.space = SearchSpace({f"layer{n}": [1, 3, 5] for n in (1, 2, 3)})
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layers = nn.ModuleDict(
            {
                label: nn.ModuleDict({str(k): nn.Conv2d(4, 4, k, padding=k // 2) for k in kernels})
                for label, kernels in self.space.choices.items()
            }
        )
        self.head = nn.Linear(4, 3)
        self.active: Mapping[str, Hashable] = self.space.decode([0, 0, 0])

    def activate(self, architecture: Mapping[str, Hashable]) -> None:
        self.active = dict(architecture)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).tanh()
        for label, kernel in self.active.items():
            x = self.layers[label][str(kernel)](x).tanh()
        return self.head(x.mean((2, 3)))

    def subnet_parameters(self) -> Any:
        return parameters


def parameters(architecture: Mapping[str, Hashable]) -> float:
    return 40 + 15 + sum(16 * k * k + 4 for k in architecture.values())


def supernet() -> Supernet:
    torch.manual_seed(0)
    return Supernet()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=1e-3)


def loss_of(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return cross_entropy(net(x).float(), y)


@dataclass(frozen=True)
class Task:
    """A training of 50 updates in two epochs.

    Attributes:
        accumulate: micro-batches of an update.
        clip: greatest norm of the gradient.
        bf16: compute in torch's automatic mixed precision.
        rank: with two ranks, which; each trains every second batch.
        options: further ones of dynamic training.
    """

    accumulate: int = 1
    clip: float | None = None
    bf16: bool = False
    rank: int | None = None
    options: Mapping[str, Any] | None = None

    @property
    def dynamic(self) -> dict[str, Any]:
        return OPTIONS | dict(self.options or {})

    def dataset(self) -> TensorDataset:
        """Images (1, 6, 6) and labels of one epoch."""
        size = UPDATES // EPOCHS * BATCH * self.accumulate
        if self.rank is not None:
            size *= 2
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(size, 1, 6, 6, generator=generator)
        labels = torch.randint(3, (size,), generator=generator)
        if self.rank is not None:
            images, labels = (
                torch.cat(tensor.split(BATCH)[self.rank :: 2]) for tensor in (images, labels)
            )
        return TensorDataset(images, labels)

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset(), BATCH)


def batches(task: Task) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Yield the micro-batches of each update."""
    for _ in range(EPOCHS):
        loaded = iter(task.loader())
        while micro := [batch for _, batch in zip(range(task.accumulate), loaded, strict=False)]:
            yield micro


def factor(architecture: Mapping[str, Hashable], step: int) -> float:
    """(1 − t/T)^γ(α), as in the paper."""
    smallest, largest = parameters(dict.fromkeys("abc", 1)), parameters(dict.fromkeys("abc", 5))
    position = math.log(parameters(architecture) / smallest) / math.log(largest / smallest)
    gamma = GAMMA_MAX - (GAMMA_MAX - 1 / GAMMA_MAX) * position
    return (1 - step / UPDATES) ** gamma


def fair_sampler(net: Supernet) -> FairSampler:
    return FairSampler(net.space, seed=1, group_by="layer2")


def reference_of_several() -> Supernet:
    """Train three subnets an update: the mean factor as lr, the losses weighted by their own."""
    net = supernet()
    sampler, optimizers = fair_sampler(net), {}
    for step, ((x, y),) in enumerate(batches(Task())):
        subnets = sampler.sample()
        factors = [factor(subnet, step) for subnet in subnets]
        mean = sum(factors) / len(factors)
        optimizer = optimizers.setdefault(subnets[0]["layer2"], sgd(net))
        optimizer.param_groups[0]["lr"] = LR * mean
        net.zero_grad()
        losses = []
        for subnet, f in zip(subnets, factors, strict=True):
            net.activate(subnet)
            losses.append(f / mean * loss_of(net, x, y))
        (sum(losses) / len(losses)).backward()
        optimizer.step()
    assert len(optimizers) == 3
    return net


def reference(task: Task, scheduled: Any = lambda step: LR) -> Supernet:
    """Train by one optimizer a group, the lr by hand, zeros for idle parameters that coast."""
    net = supernet()
    sampler = UniformSampler(net.space, OPTIONS["seed"])
    optimizers: dict[Hashable, torch.optim.Optimizer] = {}
    for step, micro in enumerate(batches(task)):
        architecture = sampler.sample()
        optimizer = optimizers.setdefault(architecture["layer2"], sgd(net))
        optimizer.param_groups[0]["lr"] = scheduled(step) * factor(architecture, step)
        net.activate(architecture)
        net.zero_grad(set_to_none=task.dynamic.get("idle") != "coast")
        for x, y in micro:
            with torch.autocast("cpu", torch.bfloat16, enabled=task.bf16):
                loss = loss_of(net, x, y)
            (loss / task.accumulate).backward()
        if task.clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), task.clip)
        optimizer.step()
    assert len(optimizers) == 3
    return net
