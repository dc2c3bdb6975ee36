"""Recipes of training as choices of the space: joint search, or the architecture first.

    python examples/recipes/train.py run          # what the results lack
    python examples/recipes/train.py table        # test loss and accuracy, paired differences

Small convolutional networks on scikit-learn's digits, each trained alone by its recipe. All arms
search parts of one space within as many epochs of training, by a predictor that is pre-trained on
the parameters and MACs of networks; a training that looks bad is stopped by successive halving.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from nas_dynamic import Architecture, SearchSpace
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.complexity import count_macs, count_parameters
from nas_dynamic.search import Objective, PretrainedMLP, RandomSearch, Strategy, Surrogate, search
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

ARCHITECTURES = {
    "depth": (1, 2, 3),
    "width1": (4, 8, 16),
    "width2": (4, 8, 16),
    "kernel1": (1, 3, 5),
    "kernel2": (1, 3, 5),
    "activation": ("ReLU", "SiLU"),
}
RECIPES = {
    "lr": (0.003, 0.01, 0.03, 0.1, 0.3),
    "weight_decay": (0.0, 5e-4, 5e-3, 5e-2),
    "shift": (0, 1),
    "mixup": (0.0, 0.2, 1.0),
    "epochs": (4, 8),
}
DEFAULT = {"lr": 0.1, "weight_decay": 5e-4, "shift": 0, "mixup": 0.0, "epochs": 8}
SPACE = SearchSpace({**ARCHITECTURES, **RECIPES})
FIRST = "architecture"
ARMS = (FIRST, "architecture, then recipe", "joint", "joint, none stopped", "joint, random")


class Images(NamedTuple):
    x: torch.Tensor  # (n, 1, 8, 8)
    y: torch.Tensor  # (n,)


def load(seed: int) -> list[Images]:
    """Return training, validation and test images: a quarter, a quarter, a half."""
    digits, order = load_digits(), torch.randperm(1797, generator=torch.manual_seed(seed))
    x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
    y = torch.tensor(digits.target)[order]
    return [Images(x[part], y[part]) for part in torch.arange(1797).split([449, 449, 899])]


def build(architecture: Architecture) -> nn.Sequential:
    layers, channels = [], 1
    for n in (1, 2):
        width, kernel = architecture[f"width{n}"], architecture[f"kernel{n}"]
        for _ in range(architecture["depth"]):
            layers += [
                nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                getattr(nn, architecture["activation"])(),
            ]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


@functools.cache
def size(*candidates: Any) -> tuple[int, float]:
    """Return parameters and MACs of an architecture by its candidates."""
    network = build(dict(zip(ARCHITECTURES, candidates, strict=True))).eval()
    return count_parameters(network), count_macs(network, torch.zeros(1, 1, 8, 8))


def augmented(images: Images, rows: torch.Tensor, recipe: Architecture, generator: Any) -> Any:
    """Return a batch and its target probabilities."""
    x, y = images.x[rows], F.one_hot(images.y[rows], 10).float()
    if recipe["shift"]:
        row, column = torch.randint(3, (2,), generator=generator).tolist()
        x = F.pad(x, [1, 1, 1, 1])[..., row : row + 8, column : column + 8]
    if recipe["mixup"]:
        number = int(torch.randint(2**31, (), generator=generator))
        share = np.random.default_rng(number).beta(recipe["mixup"], recipe["mixup"])
        x, y = (share * of + (1 - share) * of.flip(0) for of in (x, y))
    return x, y


@torch.no_grad()
def evaluate(network: nn.Module, images: Images) -> tuple[float, float]:
    """Return cross entropy, 10 where it is not finite, and accuracy."""
    logits = network.eval()(images.x)
    network.train()
    loss, accuracy = F.cross_entropy(logits, images.y), (logits.argmax(1) == images.y).float()
    return float(loss.nan_to_num(10.0).clamp(max=10.0)), float(accuracy.mean())


def train(chosen: Architecture, images: Images, seed: int) -> Iterator[nn.Module]:
    """Train an architecture by its recipe, and yield the network after each epoch."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network, epochs = build(chosen), chosen["epochs"]
    optimizer = torch.optim.SGD(
        network.parameters(), chosen["lr"], 0.9, nesterov=True, weight_decay=chosen["weight_decay"]
    )
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(images.x) // 32))
    for _ in range(epochs):
        order = torch.randperm(len(images.x), generator=generator)
        for rows in order[: len(order) // 32 * 32].split(32):
            x, target = augmented(images, rows, chosen, generator)
            optimizer.zero_grad()
            F.cross_entropy(network(x), target).backward()
            optimizer.step()
            decay.step()
        yield network


class Trainings:
    """Scores networks by training them, and counts the epochs."""

    def __init__(self, data: list[Images], seed: int, stops: bool) -> None:
        self.data, self.seed, self.epochs, self.trained = data, seed, 0, 0
        self.finished: list[tuple[float, Architecture]] = []
        halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=2)
        pruner = halving if stops else optuna.pruners.NopPruner()
        self.study = optuna.create_study(pruner=pruner)

    def score(self, architectures: list[Architecture]) -> Iterator[dict[str, float]]:
        """Yield validation losses; of a training that was stopped the one when it was."""
        for chosen in architectures:
            trial, loss = self.study.ask(), math.inf
            self.trained += 1
            for epoch, network in enumerate(train(chosen, self.data[0], self.seed), 1):
                self.epochs += 1
                loss, _ = evaluate(network, self.data[1])
                trial.report(loss, epoch)
                if epoch < chosen["epochs"] and trial.should_prune():
                    self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                    break
            else:
                self.study.tell(trial, loss)
                self.finished.append((loss, chosen))
            yield {"loss": loss}

    def look_for(self, space: SearchSpace, strategy: Strategy, epochs: int) -> Architecture:
        """Search until the trainings have had so many epochs in all, and return the best one."""
        search(
            space,
            self.score,
            [Objective("loss")],
            budget=space.size,
            strategy=strategy,
            measures={
                "parameters": lambda a: size(*(a[label] for label in ARCHITECTURES))[0],
                "macs": lambda a: size(*(a[label] for label in ARCHITECTURES))[1],
            },
            until=lambda _: self.epochs >= epochs,
            seed=self.seed,
        )
        return min(self.finished, key=lambda of: of[0])[1]


def find(arm: str, data: list[Images], epochs: int, seed: int) -> tuple[Architecture, Trainings]:
    trainings = Trainings(data, seed, stops=arm != "joint, none stopped")
    predicted = Surrogate(PretrainedMLP(subnets=400), initial=16, batch=8)
    by_default = SPACE.restrict({name: [value] for name, value in DEFAULT.items()})
    if arm == FIRST:
        return trainings.look_for(by_default, predicted, epochs), trainings
    if arm == "architecture, then recipe":
        best = trainings.look_for(by_default, predicted, epochs // 2)
        of_best = SPACE.restrict({name: [best[name]] for name in ARCHITECTURES})
        return trainings.look_for(of_best, predicted, epochs), trainings
    strategy = RandomSearch() if arm == "joint, random" else predicted
    return trainings.look_for(SPACE, strategy, epochs), trainings


def run(options: argparse.Namespace) -> None:
    """Search what the results lack: every arm of a seed before the next seed."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def row(arm: str, seed: int) -> dict[str, Any]:
        data = load(seed)
        found, trainings = find(arm, data, options.epochs, seed)
        alone = []
        for of_network in range(options.alone):
            *_, network = train(found, data[0], seed=1000 + of_network)
            alone.append(evaluate(network, data[2]))
        loss, accuracy = np.mean(alone, axis=0)
        return {
            "loss": round(float(loss), 5),
            "accuracy": round(float(accuracy), 5),
            "found": dict(found),
            "epochs": trainings.epochs,
            "trained": trainings.trained,
            "finished": len(trainings.finished),
        }

    jobs = ((arm, seed) for seed in range(options.seeds) for arm in ARMS)
    complete(options.results, jobs, row)


def table(options: argparse.Namespace) -> None:
    """Print test losses and accuracies of what was found, less the architecture first."""
    rows = read_rows(options.results)
    for arm, measure in itertools.product(ARMS, ("loss", "accuracy", "trained", "finished")):
        if not (seeds := common_seeds(rows, [arm, FIRST])):
            continue
        values = [rows[arm, s][measure] for s in seeds]
        line = f"{arm}: {measure} {mean_estimate(values).value:.4g}"
        if arm != FIRST and measure in ("loss", "accuracy"):
            difference = Difference(np.subtract(values, [rows[FIRST, s][measure] for s in seeds]))
            line += f", less {FIRST} {difference:+.4f}"
        print(f"{line} ({len(seeds)} seeds)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--epochs", type=int, default=120, help="of all trainings of a search")
    parser.add_argument("--alone", type=int, default=3, help="trainings of what is found")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.jsonl")
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
