"""What `nas-dynamic doctor` tries on a GPU: an update to the bit, its cost, torch's own pooling."""

from __future__ import annotations

import time

import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation

__all__ = ["pooling_error", "update_cost", "updates_are_identical"]

TENSORS, PATHS, GROUPS, UPDATES = 500, 5, 2, 40


class _Updates:
    """Updates of many small parameters, a fifth of them at a time."""

    def __init__(self, device: torch.device, tensors: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.gradients = [torch.randn(64, generator=generator).to(device) for _ in range(tensors)]
        self.parameters = [nn.Parameter(g.clone()) for g in self.gradients]
        self.told = {"group": 0, "path": 0}

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters, lr=0.1, momentum=0.9, nesterov=True)

    def attached(self) -> torch.optim.Optimizer:
        optimizer = self.optimizer()
        DynamicTraining(
            optimizer,
            architecture=lambda: self.told,
            calr=CaLR(lambda architecture: 1.0, total_steps=10**6, bounds=(1, 2), gamma_max=1.0),
            momentum=MomentumSeparation("group"),
            idle="freeze",
        )
        return optimizer

    def give(self, step: int) -> None:
        self.told = {"group": step // PATHS % GROUPS, "path": step % PATHS}
        for i, (p, gradient) in enumerate(zip(self.parameters, self.gradients, strict=True)):
            p.grad = gradient if i % PATHS == self.told["path"] else None


def updates_are_identical(device: torch.device) -> bool:
    """Return whether updates equal those of one optimizer a group, to the bit."""
    here, there = _Updates(device, 50), _Updates(device, 50)
    optimizer, groups = here.attached(), [there.optimizer() for _ in range(GROUPS)]
    for step in range(UPDATES):
        here.give(step)
        there.give(step)
        one = groups[there.told["group"]]
        one.param_groups[0]["lr"] = 0.1 * (1 - step / 10**6)
        optimizer.step()
        one.step()
    return all(torch.equal(a, b) for a, b in zip(here.parameters, there.parameters, strict=True))


def update_cost(device: torch.device) -> tuple[float, float]:
    """Return seconds of an update of 500 tensors, and what attachment adds: medians of pairs."""
    here, there = _Updates(device, TENSORS), _Updates(device, TENSORS)
    optimizers = here.attached(), there.optimizer()
    taken = []
    for step in range(300 + UPDATES):  # the checks of the first updates are over by then
        pair = []
        for updates, optimizer in zip((here, there), optimizers, strict=True):
            updates.give(step)
            _wait(device)
            started = time.perf_counter()
            optimizer.step()
            _wait(device)
            pair.append(time.perf_counter() - started)
        taken.append(pair)
    attached, plain = torch.tensor(taken[300:], dtype=torch.float64).T
    return float(plain.median()), float((attached - plain).median())


def pooling_error(device: torch.device) -> float:
    """Return the error of torch's gradient of a padded average pool in channels_last.

    It is relative to that of the contiguous layout. Some releases of torch forget the padding on
    CUDA (https://github.com/pytorch/pytorch/issues/188344).
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 4, 8, 8, generator=generator).to(device)
    weights = torch.randn(2, 4, 8, 8, generator=generator).to(device)
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = images.to(memory_format=layout).detach().requires_grad_()
        (nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False) * weights).sum().backward()
        assert x.grad is not None
        gradients.append(x.grad.contiguous())
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
