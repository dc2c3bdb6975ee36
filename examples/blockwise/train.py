"""BossNAS: blocks that learn without labels, each by itself, and are rated and searched together.

    python examples/blockwise/train.py run      # what the results lack
    python examples/blockwise/train.py table    # rank correlations, and paired differences

Each block has an optimizer and a `DynamicTraining` of its own, and takes what the sampled path of
the block before gives, without a gradient to it. By ensemble bootstrapping a path of a block learns
to predict, from one view of an image, the mean output of sampled sibling paths for another view, by
the moving average of the weights. A path is rated by its distance to the mean of all paths on
held-out images; an architecture by the sum over its blocks.

- `blockwise`, `blockwise-calr`, `blockwise-calr-ms`: without CaLR and momentum separation, with the
  former, with both. A momentum group is the place where the block halves the resolution.
- `joint`, `joint-calr-ms`: one supernet that learns the labels by single paths, rated by
  validation loss.
- `alone`: the truth, test accuracies of random subnets that are trained alone.

Source: Li et al., "BossNAS: Exploring Hybrid CNN-transformers with Block-wisely Self-supervised
Neural Architecture Search", ICCV 2021, arXiv 2103.12424.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blocks import Supernet
from learner import Learner, attach, augmented
from torch.nn import functional as F

from nas_dynamic import Architecture, UniformSampler
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.analysis.ranking import spearman_rho
from nas_dynamic.evaluation import evaluate
from nas_dynamic.experiment.data import batch_loader
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.experiment.standalone import train_standalone
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

ARMS = {
    "blockwise": ("parameters", "joint"),
    "blockwise-calr": ("parameters", "blockwise"),
    "blockwise-calr-ms": ("parameters", "blockwise", "blockwise-calr"),
    "joint": ("parameters",),
    "joint-calr-ms": ("joint",),
}
"""Arms, and what the table compares each with."""

BATCH, UPSTREAM = 64, 4


def endless(images: Any, seed: int):
    """Yield shuffled batches."""
    loader: Any = batch_loader(images, BATCH, shuffle=True, seed=seed)
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def rate_blocks(arm: str, data: Any, steps: int, seed: int) -> tuple[Supernet, list[np.ndarray]]:
    """Train blocks; return for each the ratings of its paths."""
    torch.manual_seed(seed)
    supernet = Supernet()
    learners = [Learner(block, arm, steps, seed + n) for n, block in enumerate(supernet.blocks)]
    for images, _ in itertools.islice(endless(data.train, seed), steps):
        views = [augmented(images), augmented(images)]
        for learner in learners:
            views = learner.update(views)
    ((images, _),) = batch_loader(data.validation, 1000)
    ratings = [0.0] * len(learners)
    for _ in range(UPSTREAM):  # paths before a block, over which its ratings are averaged
        views = [augmented(images), augmented(images)]
        for n, learner in enumerate(learners):
            ratings[n] = ratings[n] + learner.ratings(views) / UPSTREAM
            path = learner.sampler.sample()
            with torch.no_grad():
                views = [learner.block(x, path) for x in views]
    return supernet, ratings


def rate_jointly(arm: str, data: Any, steps: int, seed: int, subnets: list[Any]) -> list[float]:
    """Train one supernet by the labels; return validation losses of subnets."""
    torch.manual_seed(seed)
    supernet = Supernet()
    optimizer = torch.optim.Adam(supernet.parameters(), 2e-3)
    attach(optimizer, supernet, lambda: supernet.sampled, steps, arm)
    sampler = UniformSampler(supernet.space, seed)
    for images, labels in itertools.islice(endless(data.train, seed), steps):
        supernet.activate(sampler.sample())
        optimizer.zero_grad()
        F.cross_entropy(supernet(images), labels).backward()
        optimizer.step()
    losses = []
    for subnet in subnets:
        supernet.activate(subnet)
        losses.append(evaluate(supernet, batch_loader(data.validation, 1000))[1])
    return losses


def smallest_sum(supernet: Supernet, ratings: list[np.ndarray], limit: float) -> dict[str, Any]:
    """Return the architecture of the least sum of ratings that keeps a limit of the size."""
    spaces = [block.space for block in supernet.blocks]
    sizes = [[b.size(p) for p in b.space] for b in supernet.blocks]
    head = sum(p.numel() for p in supernet.head.parameters())
    total = np.where(outer_sum(sizes) + head <= limit, outer_sum(ratings), np.inf)
    best = np.unravel_index(total.argmin(), total.shape)
    paths = [[*space][number] for space, number in zip(spaces, best, strict=True)]
    return {label: name for path in paths for label, name in path.items()}


def outer_sum(values: Sequence[Any]) -> np.ndarray:
    """Return the sums of all combinations of one value of each list."""
    return sum(np.ix_(*map(np.array, values)))


def rating_of(supernet: Supernet, ratings: list[np.ndarray], architecture: Architecture) -> float:
    """Return the sum of the ratings of an architecture's paths."""
    total = 0.0
    for block, of_paths in zip(supernet.blocks, ratings, strict=True):
        path = {label: architecture[label] for label in block.labels}
        total += of_paths[[*block.space].index(path)]
    return total


def alone(architecture: Architecture, data: Any, epochs: int, seed: int) -> float:
    """Return the test accuracy of a subnet that is trained from new weights."""
    torch.manual_seed(seed)
    network = Supernet()
    network.activate(architecture)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    train_standalone(network, data.train, optimizer, epochs=epochs, batch_size=BATCH, seed=seed)
    return evaluate(network, batch_loader(data.test, 1000))[0]


def run(options: argparse.Namespace) -> None:
    """Train what the results lack: the truth, then every arm of a seed before the next seed."""
    data, supernet = digits(seed=0), Supernet()
    generator = np.random.default_rng(0)
    subnets = [supernet.space.sample(generator) for _ in range(options.subnets)]
    limit = float(np.median([supernet.size(subnet) for subnet in subnets]))

    def row(arm: str, seed: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if arm == "alone":
            scores = [alone(subnet, data, options.epochs, seed) for subnet in subnets]
            made["parameters"] = [supernet.size(subnet) for subnet in subnets]
        elif arm.startswith("joint"):
            losses = rate_jointly(arm, data, options.updates, seed, subnets)
            scores = [-loss for loss in losses]
        else:
            trained, ratings = rate_blocks(arm, data, options.updates, seed)
            scores = [-rating_of(trained, ratings, subnet) for subnet in subnets]
            found = smallest_sum(trained, ratings, limit)
            made |= {"found": found, "limit": limit}
            made["accuracy"] = round(alone(found, data, options.epochs, seed), 5)
        return made | {"scores": [round(float(score), 6) for score in scores]}

    jobs = [("alone", seed) for seed in range(options.alone_seeds)]
    jobs += [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    complete(options.results, jobs, row)


def table(options: argparse.Namespace) -> None:
    """Print Spearman's ρ of the arms to the truth, and paired differences."""
    rows = read_rows(options.results)
    each = [rows["alone", seed]["scores"] for seed in range(options.alone_seeds)]
    truth, sizes = np.mean(each, 0), rows["alone", 0]["parameters"]
    line = f"alone: {100 * min(truth):.1f}% to {100 * max(truth):.1f}%"
    agree = f", ρ of two seeds {spearman_rho(*each[:2]):.3f}" if len(each) > 1 else ""
    print(line + agree)
    seeds = common_seeds(rows, ARMS)
    rho = {"parameters": np.full(len(seeds), spearman_rho(sizes, truth))}
    print(f"parameters: ρ {rho['parameters'][0]:.3f}")
    for arm in ARMS:
        rho[arm] = np.array([spearman_rho(rows[arm, s]["scores"], truth) for s in seeds])
    for arm, others in ARMS.items():
        line = f"{arm}: {len(seeds)} seeds, ρ {mean_estimate(rho[arm]).value:.3f}"
        for other in others:
            line += f"; {Difference(rho[arm] - rho[other]):+.3f} less {other}"
        if "accuracy" in rows[arm, seeds[0]]:
            found = 100 * np.mean([rows[arm, s]["accuracy"] for s in seeds])
            line += f"; found of no more than the median size {found:.1f}%"
        print(line)
    below = [100 * t for t, size in zip(truth, sizes, strict=True) if size <= np.median(sizes)]
    print(f"random subnets of no more: mean {np.mean(below):.1f}%, best {max(below):.1f}%")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--updates", type=int, default=400, help="of a supernet")
    parser.add_argument("--epochs", type=int, default=12, help="of a subnet by itself")
    parser.add_argument("--subnets", type=int, default=20, help="that are ranked")
    parser.add_argument("--alone-seeds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], help="to run")
    default = Path(__file__).parent / "results.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
