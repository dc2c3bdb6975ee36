"""Ranks of DDP and FSDP2 trainings in a plain loop: `torchrun … -m tests.attach.ranks FOLDER`.

Scenarios are words: "adamw", "freeze", "sharded" and so on; see `Training`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_map

from nas_dynamic import (
    CaLR,
    DynamicTraining,
    FairSampler,
    MomentumSeparation,
    SearchSpace,
    UniformSampler,
)
from nas_dynamic.attach.ranks import RankAgreement
from nas_dynamic.storage import checkpoint
from tests.attach.reference import C_MAX, C_MIN, CHOICES, Mixed, complexity, make_model

STEPS, CUT = 8, 4

EQUAL = {
    2: [
        "coast",
        "freeze",
        "adamw coast",
        "adamw freeze",
        "bucket-view coast",
        "split coast",
        "sharded coast",
        "sharded freeze",
        "sharded adamw coast",
        "sharded adamw freeze",
        "sharded nested clipped coast",
    ],
    4: ["coast", "adamw freeze", "sharded adamw coast", "sharded freeze"],
}
"""Number of ranks → scenarios in which they must equal one process with the joined batch."""
SHARDS = TorchVersion(torch.__version__) >= (2, 7)
"""Whether FSDP2 runs on the CPU; in torch 2.6 it wants streams of a GPU."""
if not SHARDS:
    EQUAL = {n: [s for s in found if "sharded" not in s] for n, found in EQUAL.items()}
APART = ["other-seed coast", "other-weights coast"]
"""Scenarios in which ranks go apart, and must be stopped."""


def joined_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images (8, 2, 5, 5) and targets (8,) of all ranks together."""
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(8, 2, 5, 5, generator=generator),
            torch.randint(3, (8,), generator=generator),
        )
        for _ in range(STEPS)
    ]


class Training:
    """One rank of several, or all of the training."""

    def __init__(self, scenario: str, rank: int = 0, ranks: int = 1) -> None:
        self.words: Collection[str] = scenario.split()
        self.rank, self.ranks = rank, ranks
        self.model = make_model(Mixed)
        if "sharded" in self.words:
            self._shard()
        parameters = self.model.parameters()
        self.optimizer: torch.optim.Optimizer
        if "adamw" in self.words:
            # The default eps lets rounding decide the sign of an update where gradients vanish.
            self.optimizer = torch.optim.AdamW(parameters, lr=0.01, eps=1e-3)
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
        self.subnets: Any = None
        self.bad = False
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.subnets,
            calr=CaLR(complexity, total_steps=STEPS, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("layer1"),
            idle="freeze" if "freeze" in self.words else "coast",
            nonfinite="skip" if "skip" in self.words else "ignore",
        )
        space = SearchSpace(CHOICES)
        seed = rank if "other-seed" in self.words else 0
        self.sampler: Any = UniformSampler(space, seed)
        if "split" in self.words:
            self.sampler = FairSampler(space, seed, group_by="layer1")
        self.forward: nn.Module = self.model
        if ranks > 1 and "sharded" not in self.words:
            self.forward = DistributedDataParallel(
                self.model,
                find_unused_parameters=True,
                gradient_as_bucket_view="bucket-view" in self.words,
            )

    def _shard(self) -> None:
        """FSDP2, by one call or, nested, by one for each candidate and one for the rest."""
        self.model.scale = nn.Parameter(self.model.scale.detach().reshape(1))  # it takes no scalars
        if self.ranks == 1:
            return
        mesh = init_device_mesh("cpu", (self.ranks,))
        if "nested" in self.words:
            for label in CHOICES:
                for candidate in self.model.get_submodule(label).values():
                    fully_shard(candidate, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    def train(self, start: int = 0, end: int = STEPS) -> None:
        for step, batch in list(enumerate(joined_batches()))[start:end]:
            self.subnets = self.sampler.sample()
            self.optimizer.zero_grad()
            self.loss(*batch).backward()
            if "clipped" in self.words:
                nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
            if self.bad:
                self.model.stem.weight.grad.to_local()[0, 1] = float("inf")
            self.optimizer.step()
            if "other-weights" in self.words and self.rank == 1 and step == 3:
                with torch.no_grad():
                    self.model.head.bias[0] += 1e-6

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if "split" not in self.words:
            size = len(x) // self.ranks
            mine = slice(self.rank * size, (self.rank + 1) * size)
            return nn.functional.cross_entropy(self.forward(x[mine], self.subnets), y[mine])
        # Each rank trains some of the subnets on the whole batch, and tells of all.
        weights = self.dynamic.loss_weights(self.subnets)
        losses = [
            weights[k] * nn.functional.cross_entropy(self.forward(x, self.subnets[k]), y)
            for k in range(self.rank, len(self.subnets), self.ranks)
        ]
        return torch.stack(losses).mean()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
        }

    def whole_state_dict(self) -> dict[str, Any]:
        """Return the same, with all parts of what ranks hold in parts."""
        return tree_map(
            lambda value: value.full_tensor() if isinstance(value, DTensor) else value,
            self.state_dict(),
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])


def skipped_by_one(rank: int, ranks: int) -> list[Any]:
    """Train by FSDP2 where the gradients of one rank's parts have an inf at times."""
    training = Training("sharded skip coast", rank, ranks)
    untroubled = Training("sharded coast", rank, ranks)
    untroubled.train()
    skipped = []
    for step in range(STEPS):
        if step in (0, 3):
            sampler = training.sampler.state_dict()
            training.bad = rank == ranks - 1
            training.train(step, step + 1)
            training.bad = False
            training.sampler.load_state_dict(sampler)
            skipped.append(training.dynamic.skipped)
        training.train(step, step + 1)
    return [skipped, training.whole_state_dict(), untroubled.whole_state_dict()]


def refusals() -> dict[str, str]:
    """Return what is said of attachments that would train something else."""
    flat = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    plain = [*nn.Linear(4, 4).parameters()]
    averager = PeriodicModelAverager(period=2)
    optimizers: dict[str, Any] = {
        "flat": torch.optim.SGD(flat.parameters(), lr=0.1),
        "zero": ZeroRedundancyOptimizer(plain, torch.optim.SGD, lr=0.1),
        "local": PostLocalSGDOptimizer(torch.optim.SGD(plain, lr=0.1), averager),
    }
    messages = {}
    for name, optimizer in optimizers.items():
        try:
            DynamicTraining(optimizer, architecture=dict, idle="freeze")
        except ValueError as error:
            messages[name] = str(error)
    return messages


def main(folder: Path) -> None:
    """Train every scenario; what a rank ends with is in FOLDER/SCENARIO.RANK."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for scenario in EQUAL[ranks]:
        training = Training(scenario, rank, ranks)
        RankAgreement(training.dynamic, every=1)
        training.train(0, CUT)
        torch.save(training.whole_state_dict(), folder / f"{scenario}.{rank}.cut")
        checkpoint.save(folder / f"{scenario}.{rank}.own", training.state_dict())
        training.train(CUT, STEPS)
        torch.save(training.whole_state_dict(), folder / f"{scenario}.{rank}")
        resumed = Training(scenario, rank, ranks)
        if "sharded" in scenario:
            resumed.load_state_dict(checkpoint.load(folder / f"{scenario}.{rank}.own"))
        else:
            alone = Training(scenario)
            alone.train(0, CUT)
            resumed.load_state_dict(alone.state_dict())
        resumed.train(CUT, STEPS)
        torch.save(resumed.whole_state_dict(), folder / f"{scenario}.{rank}.resumed")
    for scenario in APART:
        training = Training(scenario, rank, ranks)
        RankAgreement(training.dynamic, every=6)
        try:
            training.train()
        except RuntimeError as error:
            result = [training.dynamic.updates, str(error)]
            torch.save(result, folder / f"{scenario}.{rank}")
    if SHARDS:
        torch.save(skipped_by_one(rank, ranks), folder / f"skipped.{rank}")
    torch.save(refusals(), folder / f"refusals.{rank}")
    if "--stop" in sys.argv:
        training = Training("coast", rank, ranks)
        training.train(0, 2)
        if rank == 1:
            os._exit(7)
        training.train(2, STEPS)
        torch.save("trained on alone", folder / f"stopped.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
