"""A network within a latency limit: by single-path Gumbel search, and by SPOS and evolution.

    python -m benchmarks.digits.latency_limit run     # half an hour on a CPU core; what is missing
    python -m benchmarks.digits.latency_limit table   # differences of paired seeds, with intervals

Six layers of scikit-learn's digits, each a convolution, a separable one or none. The limit is the
latency that one of ten random subnets keeps, by a table that was measured once and is kept with
the results. Whatever an arm finds is then trained alone, from new weights. Arms:

- `spos`: SPOS trained dynamically, and evolution over it with the limit.
- `gumbel`: `GumbelOneShot` with the limit, trained dynamically; the best of 30 subnets that are
  drawn by what it has learned.
- `gumbel-static`: the same without CaLR and MS, by a cosine decay.
- `gumbel-max-w`: as `gumbel`, with Max-W regularization.
- `random`: the first random subnet between nine tenths of the limit and the limit.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.strategy import RandomOneShot
from torch import nn

from benchmarks.digits.strategies import quiet, train
from benchmarks.nb201.report import append_result, rows_of
from nas_dynamic import Architecture, UniformSampler
from nas_dynamic.adapters.nni import (
    GumbelOneShot,
    Supernet,
    activate,
    dynamic,
    extract,
    search_space,
)
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.analysis.text_table import text_table
from nas_dynamic.complexity import AdditiveTable, measure_latency
from nas_dynamic.evaluation import evaluate, score_subnets
from nas_dynamic.experiment.data import ImageData, batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.experiment.standalone import train_standalone
from nas_dynamic.search import search_supernet

CHANNELS = 8
BASELINE = "spos"
ARMS = (BASELINE, "gumbel", "gumbel-static", "gumbel-max-w", "random")
SGD = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)


def convolution(channels: int, kernel: int, stride: int = 1, separable: bool = False) -> nn.Module:
    """Return a convolution, or a depthwise and a pointwise one, with batch norm."""
    groups = channels if separable else 1
    layers: list[nn.Module] = [
        nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    ]
    if separable:
        layers += [
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
        ]
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())


class Layers(ModelSpace):
    """Six choices of a layer, of equal width, with a stride in the middle."""

    def __init__(self, channels: int = CHANNELS, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        layers: list[nn.Module] = []
        for n in range(6):
            candidates: dict[str, nn.Module] = {
                f"{name}{k}": convolution(channels, k, separable=name == "sep")
                for name, k in itertools.product(("conv", "sep"), (3, 5))
            }
            layers.append(LayerChoice(candidates | {"none": nn.Identity()}, label=f"layer{n}"))
            layers += [nn.AvgPool2d(2)] if n == 2 else []
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.head(self.layers(self.stem(x).relu()).mean((2, 3)))


def latency_table(path: Path) -> AdditiveTable:
    """Return the table of latencies, in milliseconds at batch 256; measure it if it is not there.

    Each kind of layer is measured alone, before and behind the stride: the least of five medians,
    since a machine has other work.
    """
    if not path.is_file():
        supernet = RandomOneShot().mutate_model(Layers())
        maps = torch.randn(256, CHANNELS, 8, 8)

        def latency(module: nn.Module, inputs: torch.Tensor) -> float:
            return min(measure_latency(module, inputs, seconds=0.1) for _ in range(5))

        terms: dict[str, dict[str, float]] = {}
        for layer in supernet.layers:
            if isinstance(layer, nn.AvgPool2d):
                maps = layer(maps)
            elif layer.label in ("layer0", "layer3"):
                terms[layer.label] = {name: latency(layer[name], maps) for name in layer.names}
            else:
                terms[layer.label] = terms["layer0" if len(terms) < 3 else "layer3"]
        stem = latency(supernet.stem, torch.randn(256, 3, 8, 8))
        AdditiveTable(stem, terms).save(path)
    return AdditiveTable.load(path)


def find(
    arm: str, data: ImageData, table: AdditiveTable, limit: float, epochs: int, seed: int
) -> tuple[Architecture, Architecture]:
    """Return what an arm finds, and what is most probable in it whatever its latency."""
    pl.seed_everything(seed, verbose=False)
    space = Layers()
    if arm == "random":
        sampler = UniformSampler(
            search_space(space), seed, lambda a: 0.9 * limit <= table(a) <= limit
        )
        return (found := sampler.sample()), found
    common = {"epochs": epochs, "seed": seed}
    if arm == BASELINE:
        strategy = dynamic(RandomOneShot(), seed=seed, keep_mean_lr=False)
        supernet = Supernet(train(strategy, space, data, **common))
        best = search_supernet(
            supernet,
            list(batch_loader(data.validation, 256)),
            calibration=calibration_batches(data.train, 128, 4),
            budget=300,
            measures={"latency": table},
            at_most={"latency": limit},
            seed=seed,
        ).best.architecture
        return best, best
    gumbel = GumbelOneShot(
        latency=table, limit=limit, max_w=arm == "gumbel-max-w", warmup_epochs=epochs // 3
    )
    static = arm == "gumbel-static"
    options = {"calr": False, "momentum": False} if static else {"keep_mean_lr": False}
    strategy = dynamic(gumbel, **options)
    module = strategy.configure_oneshot_module
    modules: list[pl.LightningModule] = []
    strategy.configure_oneshot_module = lambda inner: modules.append(module(inner)) or modules[-1]
    supernet = train(strategy, space, data, cosine=static, **common)
    drawn = strategy.draw(30, seed)
    scores = score_subnets(
        supernet,
        activate,
        drawn,
        list(batch_loader(data.validation, 256)),
        calibration=calibration_batches(data.train, 128, 4),
    )
    best = min(scores, key=lambda score: score.loss).architecture
    return best, modules[-1].export(within_limit=False)


def run(options: argparse.Namespace) -> None:
    """Find and train what the results lack: every arm of a seed before the next seed."""
    quiet()
    table = latency_table(options.latencies)
    sampler = UniformSampler(search_space(Layers()), seed=0)
    limit = float(np.quantile([table(sampler.sample()) for _ in range(1000)], 0.1))
    data = digits(seed=0)
    done = {(row["arm"], int(row["seed"])) for row in rows_of(options.results)}
    for seed, arm in itertools.product(options.seeds, options.arms):
        if (arm, seed) in done:
            continue
        started = time.process_time()
        found, probable = find(arm, data, table, limit, options.epochs, seed)
        seconds = time.process_time() - started
        torch.manual_seed(seed)
        network = extract(RandomOneShot().mutate_model(Layers()), found)
        optimizer = SGD(network.parameters())
        train_standalone(
            network, data.train, optimizer, epochs=options.alone, batch_size=32, seed=seed
        )
        row = {
            "arm": arm,
            "seed": seed,
            "accuracy": evaluate(network, batch_loader(data.test, 256))[0],
        }
        row |= {"latency": table(found), "limit": limit, "most_probable": table(probable)}
        row = {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}
        row |= {"seconds": round(seconds), "found": " ".join(map(str, found.values()))}
        append_result(options.results, row)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def table(options: argparse.Namespace) -> None:
    """Print how many seeds keep the limit, and differences in accuracy to SPOS, in points."""
    lines = []
    rows = {(row["arm"], row["seed"]): row for row in rows_of(options.results)}
    for arm in dict.fromkeys(arm for arm, _ in rows):
        seeds = [seed for a, seed in rows if a == arm and (BASELINE, seed) in rows]
        of_arm = [rows[arm, seed] for seed in seeds]
        accuracy = [100 * float(row["accuracy"]) for row in of_arm]
        base = [100 * float(rows[BASELINE, seed]["accuracy"]) for seed in seeds]
        difference = Difference(np.subtract(accuracy, base))
        kept = [
            sum(float(row[name]) <= float(row["limit"]) for row in of_arm)
            for name in ("latency", "most_probable")
        ]
        change = "" if arm == BASELINE else f"{difference:+.2f}"
        seconds = mean_estimate([float(row["seconds"]) for row in of_arm]).value
        kept_of = [f"{k} of {len(seeds)}" for k in kept]
        lines.append(
            [arm, *kept_of, f"{mean_estimate(accuracy).value:.2f}", change, f"{seconds:.0f}"]
        )
    header = ["arm", "keeps the limit", "most probable does", "accuracy", "less spos", "seconds"]
    print(text_table(header, lines, text=(0,)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits.latency_limit", description=__doc__
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(10)])
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=["spos", "gumbel", "gumbel-max-w", "random"]
    )
    parser.add_argument("--epochs", type=int, default=8, help="of a supernet")
    parser.add_argument("--alone", type=int, default=8, help="epochs of what is found, alone")
    folder = Path("benchmarks/results")
    parser.add_argument("--results", type=Path, default=folder / "latency_limit.csv")
    parser.add_argument("--latencies", type=Path, default=folder / "latency_limit_table.json")
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
