"""Training of replicas side by side, stopped and resumed at will."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.nb201.arms import ARMS
from benchmarks.nb201.data import MEAN, STD, Images, TrainingBatches
from benchmarks.nb201.replicas import kernels_forward
from benchmarks.nb201.replicas.launches import Launch, capture, compile_all, run_all
from benchmarks.nb201.replicas.layout import COLOURS, Layout
from benchmarks.nb201.replicas.network import Network
from benchmarks.nb201.replicas.plan import Plan, draw
from benchmarks.nb201.supernet import Supernet

__all__ = ["Replicas"]

AHEAD = 20  # updates that are queued at once, and twice that at most


class Replicas:
    """M supernets in training: arms × seeds, on one sequence of subnets.

    Args:
        plan: what to train.
        images: the training set.
        device: where to train.
        updates: draw only so many updates of the budget.

    Attributes:
        network: the supernets.
        updates, seconds: taken so far.
        prepare: launches that read what an update uses.
        launches: all of an update.
        padded: the training set with borders.
        order, crop: of the update, as in `Draws`.
        seed_of: number of the seed of each replica.
        step: number of the update, in device memory.
    """

    def __init__(
        self, plan: Plan, images: Images, device: str = "cpu", updates: int | None = None
    ) -> None:
        self.plan, self.device = plan, device
        self.updates, self.seconds = 0, 0.0
        self.layout = layout = Layout(plan.channels, plan.cells)
        initial = {
            seed: layout.flatten(Supernet(plan.channels, plan.cells, seed).state_dict())
            for seed in plan.seeds
        }
        self._initial = torch.stack([initial[run.seed] for run in plan.runs]).to(device)
        betas = [ARMS[run.arm].momentum for run in plan.runs]
        self.network = network = Network(
            layout, self._initial.clone(), plan.batch, plan.size, plan.precision, betas
        )
        draws = draw(plan, images, updates)
        self._tables = [table.to(device) for table in draws._replace(lr=draws.lr.to(network.dtype))]
        self.order, self.crop = (
            torch.zeros(1, *draws.order.shape[1:], dtype=torch.int32, device=device)
            for _ in range(2)
        )
        self._now = [network.ops, network.lr, network.group, self.order, self.crop]
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self._losses = torch.zeros(len(draws.ops), network.models, device=device)
        batches = TrainingBatches(images, plan.batch, 0, device)
        self.padded, self._classes = batches.padded, batches.classes
        seeds = torch.arange(len(plan.seeds), device=device).repeat_interleave(len(plan.arms))
        self.seed_of = seeds
        scale, shift = (x.to(device, network.dtype) for x in (1 / STD, -MEAN / STD))
        augment = Launch(
            kernels_forward.augment,
            (plan.batch, network.models),
            *(self.padded, self.order, self.crop, seeds.int(), scale, shift, network.images),
            **{"WIDE": self.padded.shape[1], "SIDE": plan.size, "CHANNELS": COLOURS},
            BLOCK=min(256, plan.size**2),
        )
        self.prepare = [self._read_tables, augment]
        self.launches: list[Callable[[], None]] = [
            *(*self.prepare, *network.stem, *network.forward, *network.backward, *network.step),
            self._write_loss,
        ]
        self._update: Callable[[], None] = lambda: run_all(self.launches)

    @property
    def done(self) -> bool:
        """Whether all updates that were drawn are taken."""
        return self.updates == len(self._losses)

    @property
    def losses(self) -> torch.Tensor:
        """Losses of the updates so far, [updates, M]."""
        return self._losses[: self.updates].cpu()

    def _read_tables(self) -> None:
        for table, now in zip(self._tables, self._now, strict=True):
            torch.index_select(table, 0, self.step, out=now)
        classes = self._classes[self.order[0].long()]
        torch.index_select(classes, 0, self.seed_of, out=self.network.classes)

    def _write_loss(self) -> None:
        self._losses.index_copy_(0, self.step, self.network.loss[None].float())
        self.step.add_(1)

    def compile(self) -> None:
        """Compile the kernels in threads."""
        compile_all(self.launches)

    def capture(self) -> None:
        """Capture an update as a CUDA graph, and begin anew."""
        self._update = capture(self.launches)
        self.reset()

    def reset(self) -> None:
        """Go back to the initial weights."""
        self.network.flat.copy_(self._initial)
        self.network.momentum.zero_()
        self._losses.zero_()
        self.step.zero_()
        self.updates, self.seconds = 0, 0.0

    def advance(self, updates: int, until: float = float("inf")) -> None:
        """Take some updates, or fewer at the budget or at a time of `time.perf_counter`."""
        start, queued = time.perf_counter(), []
        for number in range(min(updates, len(self._losses) - self.updates)):
            if number % AHEAD == 0:
                if self.device != "cpu":
                    queued.append(torch.cuda.Event())
                    queued[-1].record()
                    if len(queued) > 2:
                        queued.pop(0).synchronize()
                if time.perf_counter() >= until:
                    break
            self._update()
            self.updates += 1
        if self.device != "cpu":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start

    def save(self, folder: Path) -> Path:
        """Write a checkpoint, and return its path; a stop while writing leaves the one before."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.plan.name}.pt"
        state = {
            "flat": self.network.flat.cpu(),
            "momentum": self.network.momentum.cpu(),
            "losses": self.losses,
            "updates": self.updates,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".partial"))
        os.replace(path.with_suffix(".partial"), path)
        return path

    def load(self, folder: Path) -> bool:
        """Continue where a checkpoint of the same replicas was written; tell if there is one."""
        path = folder / f"{self.plan.name}.pt"
        if not path.is_file():
            return False
        saved = torch.load(path, weights_only=True)
        self.network.flat.copy_(saved["flat"])
        self.network.momentum.copy_(saved["momentum"])
        self.updates, self.seconds = saved["updates"], saved["seconds"]
        self._losses[: self.updates].copy_(saved["losses"])
        self.step.fill_(self.updates)
        return True
