"""SuperTickets: masks of the weights that are found while the supernet trains.

    python examples/supertickets/train.py run      # what the results lack
    python examples/supertickets/train.py table    # accuracies, and paired differences

Four layers of scikit-learn's digits choose an operation each. All arms train a supernet by single
paths, take of some random subnets the one of the least validation loss, and tune it from the
weights that it inherits, equally long.

- `tickets`: connections are pruned and regrown while the supernet trains; the subnet keeps its
  mask. `tickets-dynamic`: with CaLR and momentum separation.
- `then-pruned`: the supernet is dense; the subnet is pruned while it is tuned, to as many
  parameters as the subnet of `tickets` (of `tickets-dynamic`) of this seed has.
  `then-pruned-dynamic`: with CaLR and momentum separation.

Source: You et al., "SuperTickets: Drawing Task-Agnostic Lottery Tickets from Supernets via Jointly
Architecture Searching and Parameter Pruning", ECCV 2022, arXiv 2207.03677.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pruning import Pruning
from torch import nn
from torch.nn import functional as F

from nas_dynamic import (
    Architecture,
    CaLR,
    DynamicTraining,
    MomentumSeparation,
    SearchSpace,
    UniformSampler,
)
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.complexity import lookup, population
from nas_dynamic.evaluation import evaluate
from nas_dynamic.experiment.data import ImageData, batch_loader
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

WIDTH, BATCH = 16, 64
OPERATIONS = ["conv3", "conv5", "mlp", "skip"]
ARMS = {
    "tickets": (),
    "tickets-dynamic": ("tickets",),
    "then-pruned": ("tickets",),
    "then-pruned-dynamic": ("tickets-dynamic", "then-pruned"),
}
"""Arms, and what the table compares each with. A size comes from the first."""


def operation(name: str) -> nn.Module:
    if name == "skip":
        return nn.Identity()
    if name == "mlp":
        inside: list[nn.Module] = [nn.Conv2d(WIDTH, 64, 1), nn.ReLU(), nn.Conv2d(64, WIDTH, 1)]
    else:
        inside = [nn.Conv2d(WIDTH, WIDTH, int(name[-1]), padding=int(name[-1]) // 2)]
    return nn.Sequential(nn.GroupNorm(1, WIDTH), *inside, nn.ReLU())


class Supernet(nn.Module):
    """Four residual layers, each one of four operations, with a change of resolution between."""

    def __init__(self) -> None:
        super().__init__()
        self.space = SearchSpace({f"layer{n}": OPERATIONS for n in range(4)})
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: operation(name) for name in OPERATIONS}) for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, 10)
        self.sampled: Architecture = {}
        self.size = lookup(self.space, lambda a: sum(p.numel() for p in self.used(a)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits by the sampled subnet."""
        x = self.stem(x)
        for n, (layer, name) in enumerate(zip(self.layers, self.sampled.values(), strict=True)):
            x = F.avg_pool2d(x, 2) if n == 2 else x
            x = x + layer[name](x)
        return self.head(x.mean((2, 3)))

    def used(self, architecture: Architecture) -> list[nn.Parameter]:
        """Return the parameters of a subnet."""
        names = zip(self.layers, architecture.values(), strict=True)
        modules = [self.stem, *(layer[name] for layer, name in names), self.head]
        return [p for module in modules for p in module.parameters()]

    def prunable(self, architecture: Architecture | None = None) -> list[nn.Parameter]:
        """Return weights of convolutions; of a subnet, or of all."""
        weights = self.parameters() if architecture is None else self.used(architecture)
        return [weight for weight in weights if weight.dim() == 4]


def attached(
    supernet: Supernet, steps: int, lr: float, dynamic: bool
) -> tuple[torch.optim.Optimizer, DynamicTraining]:
    """Attach to an optimizer; the lr decays linearly, or as CaLR bends that by the dense size."""
    optimizer = torch.optim.SGD(supernet.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    calr = CaLR(
        supernet.size,
        total_steps=steps,
        population=population(supernet.space, supernet.size),
        gamma_max=4.0 if dynamic else 1.0,
    )
    momentum = MomentumSeparation("layer0") if dynamic else None
    return optimizer, DynamicTraining(
        optimizer, lambda: supernet.sampled, calr=calr, momentum=momentum
    )


def train(
    supernet: Supernet,
    optimizer: torch.optim.Optimizer,
    data: ImageData,
    steps: int,
    seed: int,
    architecture: Architecture | None = None,
) -> None:
    """Train one subnet, or a new one for each update."""
    loader: Any = batch_loader(data.train, BATCH, shuffle=True, seed=seed)
    sampler, done = UniformSampler(supernet.space, seed), 0
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)
        for images, labels in loader:
            if done == steps:
                return
            supernet.sampled = architecture or sampler.sample()
            optimizer.zero_grad()
            F.cross_entropy(supernet(images), labels).backward()
            optimizer.step()
            done += 1


def best(supernet: Supernet, data: ImageData, budget: int, seed: int) -> dict[str, Any]:
    """Return the random subnet of the least validation loss."""
    generator = np.random.default_rng(seed)

    def loss(architecture: Architecture) -> float:
        supernet.sampled = architecture
        return evaluate(supernet, batch_loader(data.validation, 1000))[1]

    return min((supernet.space.sample(generator) for _ in range(budget)), key=loss)


def ticket(
    arm: str, data: ImageData, options: argparse.Namespace, seed: int, wanted: int | None
) -> dict[str, Any]:
    """Train, search and tune; return what was found, its size and its test accuracy.

    Args:
        arm: of `ARMS`.
        data: of three splits.
        options: of the command line.
        seed: of all.
        wanted: parameters that are to be kept, where the arm prunes in the end.
    """
    torch.manual_seed(seed)
    supernet, steps = Supernet(), options.updates
    optimizer, training = attached(supernet, steps, options.lr, arm.endswith("dynamic"))
    schedule = {"begin": steps // 4, "end": 3 * steps // 4, "every": max(steps // 40, 1)}
    if wanted is None:
        weights = supernet.prunable()
        pruning = Pruning(
            training, weights, sparsity=options.sparsity, regrow=options.regrow, **schedule
        )
    train(supernet, optimizer, data, steps, seed)
    found = best(supernet, data, options.budget, seed)
    tuning = options.tuning
    optimizer, training = attached(supernet, tuning, options.tuning_lr, dynamic=False)
    weights = supernet.prunable(found)
    others = supernet.size(found) - sum(weight.numel() for weight in weights)
    if wanted is None:
        pruning = pruning.fixed(training)
    else:
        share = (wanted - others) / sum(weight.numel() for weight in weights)
        schedule = {"begin": 1, "end": tuning // 2, "every": max(tuning // 20, 1)}
        pruning = Pruning(training, weights, sparsity=max(1 - share, 0), **schedule)
    train(supernet, optimizer, data, tuning, seed, found)
    supernet.sampled = found
    accuracy = evaluate(supernet, batch_loader(data.test, 1000))[0]
    size = int(others + pruning.kept(weights))
    return {"found": " ".join(found.values()), "parameters": size, "accuracy": round(accuracy, 5)}


def run(options: argparse.Namespace) -> None:
    """Train what the results lack: every arm of a seed before the next seed."""
    data = digits(seed=0)

    def row(arm: str, seed: int) -> dict[str, Any]:
        wanted = None
        if arm.startswith("then"):
            wanted = read_rows(options.results)[ARMS[arm][0], seed]["parameters"]
        return ticket(arm, data, options, seed, wanted)

    jobs = ((arm, seed) for seed in range(options.seeds) for arm in ARMS)
    complete(options.results, jobs, row)


def table(options: argparse.Namespace) -> None:
    """Print test accuracies in percent, paired differences, and sizes."""
    rows = read_rows(options.results)
    seeds = common_seeds(rows, ARMS)
    of = {arm: np.array([100 * rows[arm, s]["accuracy"] for s in seeds]) for arm in ARMS}
    for arm, others in ARMS.items():
        line = f"{arm}: {len(seeds)} seeds, {mean_estimate(of[arm]).value:.2f}%"
        for other in others:
            line += f"; {Difference(of[arm] - of[other]):+.2f} less {other}"
        print(f"{line}; parameters {', '.join(str(rows[arm, s]['parameters']) for s in seeds)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--updates", type=int, default=800, help="of a supernet")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--tuning", type=int, default=400, help="updates of what was found")
    parser.add_argument("--tuning-lr", type=float, default=0.03)
    parser.add_argument("--sparsity", type=float, default=0.95, help="of each layer's weights")
    parser.add_argument("--regrow", type=float, default=0.3)
    parser.add_argument("--budget", type=int, default=60, help="subnets that are scored")
    parser.add_argument("--seeds", type=int, default=3)
    default = Path(__file__).parent / "results.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
