"""One run: a supernet trained by one arm, stopped and resumed at will."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.nb201.arms import ARMS
from benchmarks.nb201.data import Images, TrainingBatches
from benchmarks.nb201.kernels import TORCH, Kernels
from benchmarks.nb201.progress import Progress
from benchmarks.nb201.supernet import SPACE, Supernet
from nas_dynamic import (
    Architecture,
    DynamicTraining,
    FairSampler,
    MomentumSeparation,
    UniformSampler,
)

__all__ = ["IDLE", "SAMPLERS", "Run", "Training"]

SAMPLERS = ("uniform", "fair")
"""One subnet an update, or FairNAS's five, whose mean loss is trained."""

IDLE = ("coast", "freeze", "drift", "decay")
"""What moves the parameters outside of the subnet: their momentum and weight decay, nothing, only
their momentum, only weight decay."""

WEIGHT_DECAY = 5e-4
AVERAGE_EVERY, AVERAGE_DECAY = 10, 0.99  # the average reaches about 1,000 updates back


@dataclass(frozen=True)
class Run:
    """What decides a trained supernet, beside the data.

    Attributes:
        arm: name of the arm.
        idle: what parameters outside the subnet do, of `IDLE`.
        edge: grouping edge; empty for arms with one momentum.
        seed: of weights, data order, augmentation and subnets: the arms of one seed are paired.
        updates: budget.
        channels: width C of the supernet.
        cells: cells N a stage.
        size: image size in pixels.
        batch: batch size.
        sampler: of `SAMPLERS`. The subnets of a fair update agree in the grouping edge, if there
            is one.
    """

    arm: str
    idle: str
    edge: str
    seed: int
    updates: int
    channels: int = 8
    cells: int = 1
    size: int = 16
    batch: int = 64
    sampler: str = "uniform"

    @property
    def name(self) -> str:
        """File name of the run."""
        edge = f"-{self.edge.replace('←', '')}" if self.edge else ""
        return (
            f"{self.arm}-{self.idle}{edge}-s{self.seed}-u{self.updates}"
            f"-c{self.channels}n{self.cells}p{self.size}b{self.batch}"
            f"{'' if self.sampler == 'uniform' else f'-{self.sampler}'}"
        )


class Training:
    """A run in progress.

    Args:
        run: what to train.
        images: the training set.
        device: where to train.
        kernels: how the supernet's layers are computed.
        sampler: in place of the run's. Checkpoints need its state as well.
    """

    def __init__(
        self,
        run: Run,
        images: Images,
        device: str = "cpu",
        kernels: Kernels = TORCH,
        sampler: Any = None,
    ) -> None:
        self.run = run
        self.updates = 0
        self.seconds = 0.0
        self.loss = float("nan")
        self.batches = TrainingBatches(images, run.batch, run.seed, device)
        self.sampler = sampler or _sampler(run)
        self.supernet = Supernet(run.channels, run.cells, run.seed, kernels=kernels).to(device)
        self.averaged = copy.deepcopy(self.supernet)
        self._subnets: list[Architecture] = []
        self._parameters = list(self.supernet.parameters())
        arm = ARMS[run.arm]
        self.optimizer = torch.optim.SGD(
            self._parameters,
            lr=arm.lr,
            momentum=arm.momentum,
            nesterov=True,
            weight_decay=0 if run.idle == "drift" else WEIGHT_DECAY,
        )
        self._calr = arm.calr(run.updates)
        measure = self._calr.complexity
        self._progress = measure if isinstance(measure, Progress) else None
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self._subnets,
            calr=self._calr,
            momentum=MomentumSeparation(run.edge) if arm.separate else None,
            idle="coast" if run.idle in ("coast", "drift") else "freeze",
        )

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.updates == self.run.updates

    def advance(self, seconds: float = float("inf"), updates: int | None = None) -> None:
        """Train until done, or for some seconds or updates."""
        start = time.perf_counter()
        stop = min(self.run.updates, self.updates + (updates or self.run.updates))
        while self.updates < stop and time.perf_counter() - start < seconds:
            self._update()
        self.seconds += time.perf_counter() - start

    def _update(self) -> None:
        images, classes = self.batches[self.updates]
        sampled = self.sampler.sample()
        self._subnets = sampled if isinstance(sampled, list) else [sampled]
        weights = self.dynamic.loss_weights(self._subnets)
        for subnet, weight in zip(self._subnets, weights, strict=True):
            loss = F.cross_entropy(self.supernet(images, subnet), classes)
            (weight / len(self._subnets) * loss).backward()
            if self._progress:
                self._progress.observe(subnet, loss.item())
        torch.nn.utils.clip_grad_norm_(self._parameters, 5.0)
        if self.run.idle == "drift":
            self._decay_trained()
        if self.run.idle == "decay":
            self._decay_idle()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        if self.updates % AVERAGE_EVERY == 0:
            self._average()
            self.loss = loss.item()

    @torch.no_grad()
    def _decay_trained(self) -> None:
        # As SGD does, but only for the parameters of the subnet.
        trained = [parameter for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_add_([p.grad for p in trained], trained, alpha=WEIGHT_DECAY)

    @torch.no_grad()
    def _decay_idle(self) -> None:
        # By as much as the gradients of weight decay move a weight that coasts.
        arm = ARMS[self.run.arm]
        factors = [self._calr.factor(subnet, self.updates) for subnet in self._subnets]
        lr = arm.lr * sum(factors) / len(factors)
        idle = [parameter for parameter in self._parameters if parameter.grad is None]
        if idle:
            torch._foreach_mul_(idle, 1 - lr * WEIGHT_DECAY / (1 - arm.momentum))

    @torch.no_grad()
    def _average(self) -> None:
        averaged = list(self.averaged.parameters())
        # Early on, the plain mean of all weights so far.
        decay = min(AVERAGE_DECAY, 1 - AVERAGE_EVERY / self.updates)
        torch._foreach_lerp_(averaged, self._parameters, 1 - decay)

    def save(self, path: Path) -> None:
        """Write a checkpoint; a stop while writing leaves the one before."""
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "supernet": self.supernet.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sampler": self.sampler.state_dict(),
                "updates": self.updates,
                "seconds": self.seconds,
                "progress": self._progress and self._progress.state_dict(),
            },
            partial,
        )
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue where a checkpoint was written.

        Of a finished run only the weights are read.
        """
        saved = torch.load(path, weights_only=True)
        self.supernet.load_state_dict(saved["supernet"])
        self.averaged.load_state_dict(saved["averaged"])
        self.updates, self.seconds = saved["updates"], saved["seconds"]
        if not self.done:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.sampler.load_state_dict(saved["sampler"])
            if self._progress:
                self._progress.load_state_dict(saved["progress"])


def _sampler(run: Run) -> UniformSampler | FairSampler:
    if run.sampler == "fair":
        return FairSampler(SPACE, run.seed, group_by=run.edge or None)
    return UniformSampler(SPACE, run.seed)
