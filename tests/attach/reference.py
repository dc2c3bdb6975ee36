"""The slow reference: one optimizer object for each group, and the formulas written out.

What `DynamicTraining` does with hooks and pointer swaps is done here with plain objects: every
group of subnets gets an optimizer of its own over the shared weights, the scheduled lr comes from
a real scheduler on an optimizer that trains nothing, and each step sets lr and gradients by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from nas_dynamic.attach.supported import default_idle

Build = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer], Any]

STEPS = 14
C_MIN, C_MAX, GAMMA_MAX, GAMMA_MIN = 2.0, 9.0, 4.0, 0.25

CHOICES = {"layer1": ["a", "b", "c"], "layer2": ["a", "b"]}


class Mixed(nn.Module):
    """A supernet of two layer choices with parameters of 4, 2, 1 and 0 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.layer1 = nn.ModuleDict(
            {
                "a": nn.Conv2d(4, 4, 1),
                "b": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.GroupNorm(2, 4)),
                "c": nn.Identity(),
            }
        )
        self.layer2 = nn.ModuleDict(
            {"a": nn.Conv2d(4, 4, 3, padding=1, groups=4), "b": nn.Conv2d(4, 4, 1)}
        )
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, sampled: Mapping[str, str]) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        x = torch.tanh(self.layer1[sampled["layer1"]](x))
        x = torch.tanh(self.layer2[sampled["layer2"]](x) * self.scale)
        return self.head(x.mean((2, 3)))


class Matrices(nn.Module):
    """A supernet of matrices only, for optimizers that take nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(50, 6, bias=False)
        self.layer1 = nn.ModuleDict({c: nn.Linear(6, 6, bias=False) for c in "abc"})
        self.layer2 = nn.ModuleDict({c: nn.Linear(6, 6, bias=False) for c in "ab"})
        self.head = nn.Linear(6, 3, bias=False)

    def forward(self, x: torch.Tensor, sampled: Mapping[str, str]) -> torch.Tensor:
        x = torch.tanh(self.stem(x.flatten(1)))
        x = torch.tanh(self.layer1[sampled["layer1"]](x))
        return self.head(torch.tanh(self.layer2[sampled["layer2"]](x)))


class Embeddings(nn.Module):
    """A supernet of sparse embeddings only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.ModuleDict({c: nn.EmbeddingBag(8, 3, sparse=True) for c in "abc"})
        self.layer2 = nn.ModuleDict({c: nn.EmbeddingBag(8, 3, sparse=True) for c in "ab"})

    def forward(self, x: torch.Tensor, sampled: Mapping[str, str]) -> torch.Tensor:
        tokens = (x.flatten(1)[:, :6].abs() * 4).long().clamp(max=7)
        return torch.tanh(self.layer1[sampled["layer1"]](tokens)) * self.layer2[sampled["layer2"]](
            tokens
        )


def make_model(kind: type[nn.Module]) -> nn.Module:
    torch.default_generator.manual_seed(0)
    return kind()


def param_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Two param groups that differ in lr and weight decay, as hosts make them."""
    parameters = list(model.parameters())
    half = len(parameters) // 2
    second = {"lr": 0.5 * lr}
    if weight_decay:
        second["weight_decay"] = 0.0
    first = {"lr": lr, "weight_decay": weight_decay} if weight_decay else {"lr": lr}
    return [{"params": parameters[:half], **first}, {"params": parameters[half:], **second}]


def batches(steps: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor, dict[str, str]]]:
    """Return inputs (4, 2, 5, 5), targets (4,) and the sampled architecture of each step."""
    generator = torch.Generator().manual_seed(1)

    def one() -> tuple[torch.Tensor, torch.Tensor, dict[str, str]]:
        x = torch.randn(4, 2, 5, 5, generator=generator)
        y = torch.randint(3, (4,), generator=generator)
        sampled = {
            label: candidates[torch.randint(len(candidates), (), generator=generator)]
            for label, candidates in CHOICES.items()
        }
        return x, y, sampled

    return [one() for _ in range(steps)]


def complexity(architecture: Mapping[str, Hashable]) -> float:
    costs = {"layer1": {"a": 3.0, "b": 7.0, "c": 1.0}, "layer2": {"a": 2.0, "b": 1.0}}
    return sum(costs[label][architecture[label]] for label in costs)


def calr_factor(architecture: Mapping[str, Hashable], step: int, total_steps: int) -> float:
    """(1 − t/T)^γ(α), as in the paper."""
    position = math.log(complexity(architecture) / C_MIN) / math.log(C_MAX / C_MIN)
    gamma = GAMMA_MAX - (GAMMA_MAX - GAMMA_MIN) * position
    return (1 - step / total_steps) ** gamma


def backward(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, sampled: Mapping[str, str], graph: bool
) -> torch.Tensor:
    loss = nn.functional.cross_entropy(model(x, sampled), y)
    loss.backward(create_graph=graph)
    return loss


class Reference:
    """Dynamic training with one optimizer for each group.

    Args:
        build: param groups → optimizer; called once for each group.
        groups: param groups of the model.
        group_of: architecture → momentum group.
        schedule: optimizer → its scheduler; `step()` is called after every update.
        idle: "coast" or "freeze"; an optimizer that cannot freeze is given zeros from the start.
    """

    def __init__(
        self,
        build: Build,
        groups: list[dict[str, Any]],
        group_of: Callable[[Mapping[str, Hashable]], Hashable],
        schedule: Schedule,
        idle: str,
    ) -> None:
        self.build = lambda: build([dict(group) for group in groups])
        self.group_of = group_of
        self.idle = idle
        self.optimizers: dict[Hashable, torch.optim.Optimizer] = {}
        # The schedule runs on parameters that nothing depends on.
        stand_ins = [
            dict(g) | {"params": [nn.Parameter(torch.zeros_like(p)) for p in g["params"]]}
            for g in groups
        ]
        self.scheduled = build(stand_ins)
        self.scheduler = schedule(self.scheduled)
        self.first = self.build()

    def optimizer(self, group: Hashable) -> torch.optim.Optimizer:
        if group not in self.optimizers:
            optimizer = self.optimizers[group] = self.build()
            # An optimizer that draws random numbers of its own draws all from one stream.
            for name in ("rng", "generator"):
                if hasattr(optimizer, name):
                    setattr(optimizer, name, getattr(self.first, name))
        return self.optimizers[group]

    def update(self, architecture: Mapping[str, Hashable], step: int, total_steps: int) -> None:
        optimizer = self.optimizer(self.group_of(architecture))
        factor = calr_factor(architecture, step, total_steps)
        for group, scheduled in zip(
            optimizer.param_groups, self.scheduled.param_groups, strict=True
        ):
            group["lr"] = scheduled["lr"] * factor
            for cycled in {"momentum", "betas"} & group.keys():
                group[cycled] = scheduled[cycled]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.idle == "coast" and default_idle(optimizer) == "coast":
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        # Coasting is what torch does where the host leaves zeros.
        optimizer.zero_grad(set_to_none=self.idle == "freeze")
        self.scheduler.step()


def coast(parameters: Iterable[torch.Tensor], trained: set[torch.Tensor]) -> None:
    """Give zeros to idle parameters that have been trained, and note those that are now."""
    for parameter in parameters:
        if parameter.grad is not None:
            trained.add(parameter)
        elif parameter in trained:
            parameter.grad = torch.zeros_like(parameter)


def assert_identical(here: Any, there: Any, path: str = "") -> None:
    """Equal to the bit, through dicts and sequences, and finite, so that equality says much."""
    if torch.is_tensor(here):
        here, there = (t.detach().to_dense() if t.is_sparse else t.detach() for t in (here, there))
        assert torch.isfinite(here).all(), f"{path} is not finite"
        assert torch.equal(here, there), f"{path}: {here} != {there}"
    elif isinstance(here, dict):
        assert here.keys() == there.keys(), f"{path}: {here.keys()} != {there.keys()}"
        for key in here:
            assert_identical(here[key], there[key], f"{path}.{key}")
    elif isinstance(here, list | tuple):
        assert len(here) == len(there), path
        for i, (one, other) in enumerate(zip(here, there, strict=True)):
            assert_identical(one, other, f"{path}[{i}]")
    else:
        assert here == there, f"{path}: {here!r} != {there!r}"
