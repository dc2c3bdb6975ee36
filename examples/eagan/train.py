"""EAGAN: supernets of a generator and a discriminator, searched in two stages or jointly.

    python examples/eagan/train.py run      # what the results lack
    python examples/eagan/train.py table    # Fréchet distances, and paired differences

Two stages: the generator is searched with a fixed discriminator, then the discriminator with the
generator that was found. Jointly: both are sampled in every update, twice as long. Each supernet
has an optimizer and a `DynamicTraining` of its own. NSGA-II looks for a low Fréchet distance and
few parameters; the found pair is then trained from new weights. The distance is one of features of
a small classifier of the same digits, and no Inception FID.

Source: Ying et al., "EAGAN: Efficient Two-Stage Evolutionary Architecture Search for GANs",
ECCV 2022.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from players import NOISE, Player
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from nas_dynamic import (
    Architecture,
    CaLR,
    DynamicTraining,
    MomentumSeparation,
    UniformSampler,
)
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.complexity import population
from nas_dynamic.search import Evolution, Objective, search
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

FIXED = {"conv1": "conv3", "conv2": "conv3", "down1": "mean", "down2": "mean"}
BATCH = 64
ARMS = [f"{how}-{arm}" for how in ("two-stage", "joint") for arm in ("static", "dynamic")]


def attached(player: Player, steps: int, dynamic: bool) -> torch.optim.Optimizer:
    """Return the player's optimizer; the lr decays linearly, or as CaLR bends that by the size."""
    optimizer = torch.optim.Adam(player.parameters(), 2e-3, betas=(0.5, 0.999))
    calr = CaLR(
        player.size,
        total_steps=steps,
        population=population(player.space, player.size),
        gamma_max=4.0 if dynamic else 1.0,
    )
    momentum = MomentumSeparation("conv2") if dynamic else None
    DynamicTraining(optimizer, lambda: player.sampled, calr=calr, momentum=momentum)
    return optimizer


def train(
    players: Sequence[Player],
    fixed: Sequence[Architecture | None],
    images: torch.Tensor,
    steps: int,
    seed: int,
    dynamic: bool = False,
) -> None:
    """Train both; those whose architecture is None draw a subnet for each update, by hinge loss.

    One whose architecture is fixed has nothing that CaLR could tell apart: its lr decays linearly.
    """
    pairs = list(zip(players, fixed, strict=True))
    optimizers = [attached(p, steps, dynamic and a is None) for p, a in pairs]
    samplers = [UniformSampler(p.space, seed + n) for n, p in enumerate(players)]
    generator, discriminator = players
    noise = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for (player, architecture), sampler in zip(pairs, samplers, strict=True):
            player.sampled = architecture or sampler.sample()
        real = images[torch.randint(len(images), (BATCH,), generator=noise)]
        fake = generator(torch.randn(BATCH, NOISE, generator=noise))
        loss = F.relu(1 - discriminator(real)).mean()
        loss = loss + F.relu(1 + discriminator(fake.detach())).mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        (-discriminator(fake).mean()).backward()
        optimizers[0].step()


class Frechet:
    """Fréchet distance of images to the digits, by features of a classifier of these."""

    def __init__(self, images: torch.Tensor, classes: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
        )
        self.features.extend(
            [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 16), nn.Tanh()]
        )
        head = nn.Linear(16, 10)
        optimizer = torch.optim.Adam([*self.features.parameters(), *head.parameters()], 3e-3)
        for _ in range(400):
            batch = torch.randint(len(images), (128,))
            optimizer.zero_grad()
            F.cross_entropy(head(self.features(images[batch])), classes[batch]).backward()
            optimizer.step()
        self.real = self.moments(images)

    @torch.no_grad()
    def moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(images).double()
        return features.mean(0), features.T.cov()

    def __call__(self, generator: Player) -> float:
        """Return the distance of 1,000 generated images."""
        noise = torch.randn(1000, NOISE, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            mean, covariance = self.moments(generator(noise))
        root = torch.linalg.eigvals(self.real[1] @ covariance).real.clamp(min=0).sqrt().sum()
        spread = self.real[1].trace() + covariance.trace() - 2 * root
        return float((self.real[0] - mean).square().sum() + spread)


def best(
    player: Player, score: Callable[[Architecture], float], budget: int, seed: int
) -> Architecture:
    """Return the architecture of the least distance that NSGA-II finds."""
    found = search(
        player.space,
        lambda architectures: ({"distance": score(a)} for a in architectures),
        [Objective("distance"), Objective("parameters")],
        budget=budget,
        strategy=Evolution(population=8, offspring=4),
        measures={"parameters": player.size},
        seed=seed,
    )
    return min(found.pareto, key=lambda e: e.values["distance"]).architecture


def pair_of(
    arm: str, images: torch.Tensor, distance: Frechet, options: argparse.Namespace, seed: int
):
    """Search a generator and a discriminator."""
    torch.manual_seed(seed)
    generator, discriminator = players = [Player("generator"), Player("discriminator")]
    how, dynamic = arm.rsplit("-", 1)[0], arm.endswith("dynamic")

    def of_generator(architecture: Architecture) -> float:
        generator.sampled = architecture
        return distance(generator)

    def of_discriminator(architecture: Architecture) -> float:
        tuned = copy.deepcopy(players)  # what the generator becomes against it
        train(tuned, [chosen, architecture], images, options.tuning, seed)
        return distance(tuned[0])

    steps = options.updates
    first = [None, FIXED if how == "two-stage" else None]
    train(players, first, images, steps if how == "two-stage" else 2 * steps, seed, dynamic)
    chosen = best(generator, of_generator, options.budget, seed)
    if how == "two-stage":
        train(players, [chosen, None], images, steps, seed + 1, dynamic)
    return chosen, best(discriminator, of_discriminator, options.budget, seed)


def run(options: argparse.Namespace) -> None:
    """Search and train what the results lack: every arm of a seed before the next seed."""
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    distance = Frechet(images, torch.tensor(digits.target))

    def row(arm: str, seed: int) -> dict[str, Any]:
        found = pair_of(arm, images, distance, options, seed)
        torch.manual_seed(seed)
        players = [Player("generator"), Player("discriminator")]
        train(players, found, images, options.alone, seed)
        pair = [" ".join(a.values()) for a in found]
        return {"distance": round(distance(players[0]), 5), "found": pair}

    jobs = ((arm, seed) for seed in range(options.seeds) for arm in ARMS)
    complete(options.results, jobs, row)


def table(options: argparse.Namespace) -> None:
    """Print the distance of each arm, and the two differences that are asked for."""
    rows = read_rows(options.results)
    seeds = common_seeds(rows, ARMS)
    of = {arm: np.array([rows[arm, seed]["distance"] for seed in seeds]) for arm in ARMS}
    for arm, found in of.items():
        print(f"{arm}: {len(seeds)} seeds, distance {mean_estimate(found):.3f}")
    for name, (a, b) in {
        "two stages less joint": ("two-stage", "joint"),
        "dynamic less static": ("dynamic", "static"),
    }.items():
        sums = [sum(v for arm, v in of.items() if word in arm) / 2 for word in (a, b)]
        print(f"{name}: {Difference(sums[0] - sums[1]):+.3f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--updates", type=int, default=300, help="of a supernet in a stage")
    parser.add_argument("--alone", type=int, default=600, help="updates of the pair that is found")
    parser.add_argument("--tuning", type=int, default=20, help="updates that rate a discriminator")
    parser.add_argument("--budget", type=int, default=20, help="architectures that are scored")
    parser.add_argument("--seeds", type=int, default=3)
    default = Path(__file__).parent / "results.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
