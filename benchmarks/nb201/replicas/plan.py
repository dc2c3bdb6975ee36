"""What every update of every replica uses, drawn before training as `Training` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.nb201.arms import ARMS
from benchmarks.nb201.data import Images
from benchmarks.nb201.replicas.layout import ALWAYS, SHARED
from benchmarks.nb201.report import DEFAULT_EDGE
from benchmarks.nb201.supernet import EDGES, OPERATIONS, SPACE, live_edges
from benchmarks.nb201.training import Run
from nas_dynamic import Architecture, UniformSampler

__all__ = ["IDLE", "Draws", "Plan", "draw", "moved_weights", "operations_of"]

IDLE = ("freeze", "coast")
"""What moves the parameters outside of the subnet: nothing, or their momentum and weight decay."""


@dataclass(frozen=True)
class Plan:
    """Replicas that are trained side by side: replica m is of arm m % arms, seed m // arms.

    Attributes:
        arms: names.
        seeds: of weights, data order and augmentation.
        subnet_seed: of the subnets, which all replicas share.
        idle: of `IDLE`.
        updates: budget.
        channels, cells, size, batch: as in `Run`.
        precision: of the network's numbers.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    subnet_seed: int
    idle: str
    updates: int
    channels: int
    cells: int
    size: int
    batch: int
    precision: str

    @property
    def runs(self) -> list[Run]:
        """The run that each replica is, but for its subnets."""
        shape = (self.updates, self.channels, self.cells, self.size, self.batch)
        return [
            Run(arm, self.idle, DEFAULT_EDGE if ARMS[arm].separate else "", seed, *shape)
            for seed in self.seeds
            for arm in self.arms
        ]

    @property
    def name(self) -> str:
        """File name of the replicas."""
        seeds = "_".join(map(str, self.seeds))
        rest = f"s{seeds}-q{self.subnet_seed}-u{self.updates}-{self.precision}"
        size = f"c{self.channels}n{self.cells}p{self.size}b{self.batch}"
        return f"replicas-{'_'.join(self.arms)}-{self.idle}-{rest}-{size}"


class Draws(NamedTuple):
    """Tables of n updates of M replicas with S seeds.

    Attributes:
        ops: what the six edges do, the weights that move, 0; [n, 8].
        lr: learning rates, [n, M].
        group: momentum groups, [n, M].
        order: numbers of the images, [n, S, batch].
        crop: row + 256 · column + 65536 · flip of each, [n, S, batch].
    """

    ops: torch.Tensor
    lr: torch.Tensor
    group: torch.Tensor
    order: torch.Tensor
    crop: torch.Tensor


def operations_of(architectures: Sequence[Architecture]) -> np.ndarray:
    """Return what the edges of subnets do, [n, 6]; edges that are on no path do nothing."""
    found = np.zeros((len(architectures), len(EDGES)), dtype=np.int32)
    for row, architecture in zip(found, architectures, strict=True):
        for number, _, _, operation in live_edges(architecture):
            row[number] = OPERATIONS.index(operation)
    return found


def draw(plan: Plan, images: Images, updates: int | None = None) -> Draws:
    """Draw the first updates of the budget, or all."""
    count = plan.updates if updates is None else min(updates, plan.updates)
    sampler = UniformSampler(SPACE, plan.subnet_seed)
    subnets = [sampler.sample() for _ in range(count)]
    keys = [tuple(subnet.values()) for subnet in subnets]
    distinct = dict(zip(keys, subnets, strict=True))
    number_of = {key: number for number, key in enumerate(distinct)}
    numbers = [number_of[key] for key in keys]
    operations = operations_of(list(distinct.values()))[numbers]
    lr = np.empty((count, len(plan.arms)))
    group = np.zeros((count, len(plan.arms)), dtype=np.int32)
    for number, name in enumerate(plan.arms):
        arm = ARMS[name]
        calr = arm.calr(plan.updates)
        gammas = [calr.gamma(subnet) for subnet in distinct.values()]
        lr[:, number] = [arm.lr * calr.factor_of(gammas[i], u) for u, i in enumerate(numbers)]
        if arm.separate:
            group[:, number] = [OPERATIONS.index(subnet[DEFAULT_EDGE]) for subnet in subnets]
    moved = moved_weights(operations, plan.idle)[:, None]
    ops = np.concatenate([operations, moved, np.zeros_like(moved)], 1)
    of_arms = [np.tile(table, (1, len(plan.seeds))) for table in (lr, group)]
    tables = (ops, *of_arms, *_draw_images(plan, count, images))
    return Draws(*(torch.from_numpy(table) for table in tables))


def moved_weights(operations: np.ndarray, idle: str) -> np.ndarray:
    """Return the bits of the weights that updates of subnets move, [n].

    Weights that coast begin to with their first training. All replicas have the same subnets, so
    that it is known before.
    """
    edges = np.arange(len(EDGES))
    bits = (operations == 2) << (2 * edges) | (operations == 3) << (2 * edges + 1)
    shared = operations.any(1).astype(int) << SHARED
    trained = (bits.sum(1) | shared | 1 << ALWAYS).astype(np.int32)
    return np.bitwise_or.accumulate(trained) if idle == "coast" else trained


def _draw_images(plan: Plan, updates: int, images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Draw order and augmentation as `TrainingBatches` does."""
    count, size = images.pixels.shape[:2]
    shifts, in_epoch = 2 * (size // 8) + 1, count // plan.batch
    order = np.empty((updates, len(plan.seeds), plan.batch), dtype=np.int32)
    crop = np.empty_like(order)
    for first in range(0, updates, in_epoch):
        rows = min(in_epoch, updates - first)
        for number, seed in enumerate(plan.seeds):
            generator = np.random.default_rng([seed, first // in_epoch])
            row, column, flip = (
                generator.integers(high, size=(count, 1))[:, 0] for high in (shifts, shifts, 2)
            )
            packed = row + 256 * column + 65536 * flip
            for table, values in ((order, generator.permutation(count)), (crop, packed)):
                table[first : first + rows, number] = values[: rows * plan.batch].reshape(rows, -1)
    return order, crop
