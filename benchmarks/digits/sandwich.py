"""What does dynamic training do to the ends of a space under the sandwich rule (BigNAS)?

    python -m benchmarks.digits.sandwich run          # a quarter of an hour on a CPU core
    python -m benchmarks.digits.sandwich table        # the ends' accuracy, and paired differences

The elastic vision transformer of `benchmarks.digits.distillation`, on scikit-learn's digits, with
AdamW and equal numbers of updates. In all arms the lr decays from the same start, for γ = 1
linearly; the arms of a seed have the same initial weights and batches.

- `uniform`: one random subnet an update, γ = 1.
- `sandwich`: the largest, the smallest and two random ones, γ = 1.
- `one label`: the same from one momentum group at a time, as MS asks for, but with one momentum.
- `calr`, `ms`, `calr-ms`: the sandwich rule with CaLR, with MS, and with both.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.strategy import RandomOneShot
from nni.nas.strategy.base import Strategy

from benchmarks.digits.distillation import space
from benchmarks.digits.strategies import accuracies, quiet, train
from nas_dynamic.adapters.nni import SandwichOneShot, dynamic, search_space, subnet_parameters
from nas_dynamic.adapters.nni.multi_subnet import SamplerModule
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.sampling import Sampler
from nas_dynamic.space import SearchSpace
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

LABEL = "embed_dim"
BASELINE = "sandwich"
FLAT = {"gamma_max": 1.0}


class OneLabel(SandwichOneShot):
    """The sandwich rule within one candidate of a choice at a time."""

    def build_sampler(
        self, module: SamplerModule, space: SearchSpace, group_by: str | None
    ) -> Sampler:
        """Return a sampler whose subnets of an update agree in a label."""
        return super().build_sampler(module, space, LABEL)


ARMS: dict[str, tuple[type[Strategy], dict[str, Any]]] = {
    BASELINE: (SandwichOneShot, {"momentum": False, **FLAT}),
    "uniform": (RandomOneShot, {"momentum": False, **FLAT}),
    "one label": (OneLabel, {"momentum": False, **FLAT}),
    "calr": (SandwichOneShot, {"momentum": False}),
    "ms": (SandwichOneShot, {"group_by": LABEL, **FLAT}),
    "calr-ms": (SandwichOneShot, {"group_by": LABEL}),
}


def run(options: argparse.Namespace) -> None:
    """Train what the results lack: every arm of a seed before the next seed."""
    quiet()
    data = digits(seed=0)

    def row(arm: str, seed: int) -> dict[str, Any]:
        pl.seed_everything(seed, verbose=False)
        model_space = space(data.classes)
        kind, given = ARMS[arm]
        strategy = kind() if kind is RandomOneShot else kind(seed=seed)
        supernet = train(
            dynamic(strategy, seed=seed, keep_mean_lr=False, **given),
            model_space,
            data,
            epochs=options.epochs,
            seed=seed,
            optimizer=torch.optim.AdamW,
            lr=options.lr,
        )
        choices, parameters = search_space(supernet), subnet_parameters(supernet)
        generator = np.random.default_rng(0)
        subnets = [choices.smallest(parameters), choices.largest(parameters)]
        subnets += [choices.sample(generator) for _ in range(20)]
        small, large, *others = accuracies(supernet, subnets, data)
        found = {"smallest": small, "largest": large, "random": float(np.mean(others))}
        return {name: round(accuracy, 4) for name, accuracy in found.items()}

    jobs = ((arm, seed) for seed in range(options.seeds) for arm in options.arms)
    complete(options.results, jobs, row)


def table(options: argparse.Namespace) -> None:
    """Print test accuracies, and their differences to the sandwich rule with γ = 1."""
    rows = read_rows(options.results)
    for arm, measure in itertools.product(ARMS, ("smallest", "largest", "random")):
        if not (seeds := common_seeds(rows, [arm, BASELINE])):
            continue
        values = [rows[arm, s][measure] for s in seeds]
        line = f"{arm:10} {measure:9} {mean_estimate(values).value:.3f}"
        if arm != BASELINE:
            base = [rows[BASELINE, s][measure] for s in seeds]
            line += f"  {Difference(np.subtract(values, base)):+.3f}"
        print(f"{line}  ({len(seeds)} seeds)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits.sandwich", description=__doc__
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    default = Path("benchmarks/results/sandwich.jsonl")
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
