"""The small supernet in loops of one's own: plain, under Accelerate, under Fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, UniformSampler
from nas_dynamic.complexity import bounds, lookup
from tests.hosts.tiny import (
    GAMMA_MAX,
    OPTIONS,
    UPDATES,
    Supernet,
    Task,
    batches,
    loss_of,
    sgd,
    supernet,
)


def attached(net: Supernet, optimizer: Any, sampled: Any, idle: Any = "auto") -> DynamicTraining:
    complexity = lookup(net.space, net.subnet_parameters())
    return DynamicTraining(
        optimizer,
        architecture=sampled,
        calr=CaLR(
            complexity,
            total_steps=UPDATES,
            bounds=bounds(net.space, complexity),
            gamma_max=GAMMA_MAX,
        ),
        momentum=MomentumSeparation(OPTIONS["group_by"]),
        idle=idle,
    )


class Loop:
    """A loop of 50 updates that can be saved at any of them."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.net = supernet()
        self.optimizer: Any = sgd(self.net)
        self.model: Any = self.net
        self.sampler = UniformSampler(self.net.space, OPTIONS["seed"])
        self.prepare()
        idle = task.dynamic.get("idle", "auto")
        self.dynamic = attached(self.net, self.optimizer, lambda: self.net.active, idle)

    def prepare(self) -> None:
        """Have the host wrap what it trains."""

    def update(self, micro: Any) -> None:
        self.optimizer.zero_grad()
        for x, y in micro:
            with torch.autocast("cpu", torch.bfloat16, enabled=self.task.bf16):
                loss = loss_of(self.model, x, y)
            (loss / self.task.accumulate).backward()
        if self.task.clip is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), self.task.clip)
        self.optimizer.step()

    def train(self, start: int = 0, end: int = UPDATES) -> Supernet:
        for micro in list(batches(self.task))[start:end]:
            self.net.activate(self.sampler.sample())
            self.update(micro)
        return self.net


class AccelerateLoop(Loop):
    def prepare(self) -> None:
        # Or the precision, and the end of a data loader, of one before it in the process hold.
        AcceleratorState._reset_state()
        GradientState._reset_state()
        self.accelerator = Accelerator(
            cpu=True,
            gradient_accumulation_steps=self.task.accumulate,
            mixed_precision="bf16" if self.task.bf16 else "no",
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.model, self.optimizer = self.accelerator.prepare(self.net, self.optimizer)
        self.accelerator.register_for_checkpointing(self.sampler)

    def update(self, micro: Any) -> None:
        for x, y in micro:
            with self.accelerator.accumulate(self.model):
                loss = loss_of(self.model, x, y)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.task.clip is not None:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.task.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()

    def save(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        self.accelerator.load_state(str(folder))


class FabricLoop(Loop):
    package: Any = None
    """`lightning.fabric` or `lightning_fabric`."""

    def prepare(self) -> None:
        self.fabric = self.package.Fabric(
            accelerator="cpu",
            devices=1 if self.task.rank is None else 2,
            strategy="auto" if self.task.rank is None else "ddp_find_unused_parameters_true",
            precision="bf16-mixed" if self.task.bf16 else "32-true",
        )
        self.fabric.launch()
        self.model, self.optimizer = self.fabric.setup(self.net, self.optimizer)

    def update(self, micro: Any) -> None:
        self.optimizer.zero_grad()
        for number, (x, y) in enumerate(micro):
            waits = number + 1 < self.task.accumulate
            with self.fabric.no_backward_sync(self.model, enabled=waits):
                loss = loss_of(self.model, x, y)
                self.fabric.backward(loss / self.task.accumulate)
        if self.task.clip is not None:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.task.clip)
        self.optimizer.step()

    def _state(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "sampler": self.sampler}

    def save(self, folder: Path) -> None:
        self.fabric.save(folder / "fabric.ckpt", self._state())

    def load(self, folder: Path) -> None:
        self.fabric.load(folder / "fabric.ckpt", self._state())
