"""What should CaLR do where the host's lr is constant? NNI's default is Adam at a constant lr.

    python -m benchmarks.constant_lr run              # an hour on one CPU core; what is missing
    python -m benchmarks.constant_lr table            # the paired differences, with intervals

Trains with Adam, and NNI's other defaults. The arms of a seed start from the same weights and see
the same batches and subnets:

- `constant`: as the user had it, without dynamic training.
- `decayed`: CaLR and MS, from the user's lr to zero: half of the mean lr.
- `kept`: the same, from that lr at which the mean over the training and its subnets is the
  user's; twice the lr for γ by rank and a linear decay.
- `decayed-calr`, `kept-calr`: these two without MS.
- `level`: CaLR and MS without a decay: at every update the mean over the subnets is the user's lr.

Space `nb201` is NAS-Bench-201 on CIFAR-10 (16×16 pixels), whose subnets have a published accuracy
to rank by; `autoformer` an elastic vision transformer on scikit-learn's digits.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.strategy import RandomOneShot
from torch.nn import functional as F

from benchmarks.digits import distillation
from benchmarks.digits.strategies import quiet
from benchmarks.nb201.data import TrainingBatches, load_images, load_table
from benchmarks.nb201.kernels import SIMD, TORCH
from benchmarks.nb201.report import DEFAULT_EDGE, append_result, rows_of
from benchmarks.nb201.scoring import measures, score
from benchmarks.nb201.supernet import SPACE, Supernet, parameters
from nas_dynamic import Architecture, CaLR, DynamicTraining, MomentumSeparation, UniformSampler
from nas_dynamic.adapters.nni import activate, dynamic, search_space
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.analysis.text_table import text_table
from nas_dynamic.evaluation import score_subnets
from nas_dynamic.experiment.data import batch_loader
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.experiment.run import sample_architectures

Idle = Literal["freeze", "coast"]
KERNELS = {"torch": TORCH, "simd": SIMD}

BASELINE = "constant"
ARMS = (BASELINE, "decayed", "kept", "level", "decayed-calr", "kept-calr")
STARTS = {"kept": 2.0, "kept-calr": 2.0}
"""What an arm multiplies the user's lr by."""

MEASURES = {
    "mean_accuracy": "mean accuracy",
    "tau": "τ by the accuracy",
    "tau_loss": "τ by the loss",
}


class Level:
    """What to divide the lr of an update by: the mean over γ by rank of what CaLR makes of it."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.gammas = 4.0 ** np.linspace(-1, 1, 1001)

    def __call__(self, optimizer: torch.optim.Optimizer, lr: float, step: int) -> None:
        """Set the lr of an update."""
        mean = float(np.mean((1 - step / self.steps) ** self.gammas))
        for group in optimizer.param_groups:
            group["lr"] = lr / mean


class NasBench201:
    """NAS-Bench-201 by a loop of its own: 16×16 pixels, 8 channels, a cell a stage, batch 64."""

    updates = 2000

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(1)
        train, test = (load_images(options.data, s, 16, options.runs) for s in ("train", "test"))
        self.train_images, self.kernels = train, KERNELS[options.kernels]
        self.test = test.balanced(options.images).batches(256)
        self.table = load_table(options.table).stratified(options.subnets)

    def train(self, arm: str, idle: Idle, seed: int, lr: float, updates: int) -> dict[str, float]:
        """Train a supernet with Adam; return what is measured of it."""
        supernet = Supernet(8, 1, seed, kernels=self.kernels)
        batches, sampler = TrainingBatches(self.train_images, 64, seed), UniformSampler(SPACE, seed)
        optimizer = torch.optim.Adam(supernet.parameters(), lr * STARTS.get(arm, 1.0))
        level = Level(updates) if arm == "level" else None
        sampled: list[Architecture] = []
        if arm != BASELINE:
            calr = CaLR(parameters, total_steps=updates, population=map(parameters, SPACE))
            momentum = None if arm.endswith("-calr") else MomentumSeparation(DEFAULT_EDGE)
            DynamicTraining(optimizer, lambda: sampled[-1], calr=calr, momentum=momentum, idle=idle)
        for step in range(updates):
            images, classes = batches[step]
            sampled[:] = [sampler.sample()]
            optimizer.zero_grad()
            F.cross_entropy(supernet(images, sampled[-1]), classes).backward()
            if level is not None:
                level(optimizer, lr, step)
            optimizer.step()
        found = measures(self.table, score(supernet, self.table.architectures, self.test))
        return {name: found[name] for name in MEASURES}


class AutoFormer:
    """An elastic vision transformer on digits, by NNI's `Classification` with its defaults."""

    updates = 640

    def __init__(self, options: argparse.Namespace) -> None:
        quiet()
        self.data = digits(seed=0)
        self.build = functools.partial(distillation.space, self.data.classes)
        self.subnets = sample_architectures(search_space(self.build()), options.subnets, 0)

    def train(self, arm: str, idle: Idle, seed: int, lr: float, updates: int) -> dict[str, float]:
        """Train a supernet as an NNI experiment does; return what is measured of it."""
        level = Level(updates) if arm == "level" else None

        class SetLr(pl.Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
                if level is not None:
                    level(trainer.optimizers[0], lr, trainer.global_step)

        pl.seed_everything(seed, verbose=False)
        load = functools.partial(batch_loader, loader=DataLoader)
        evaluator = Classification(
            learning_rate=lr * STARTS.get(arm, 1.0),
            num_classes=self.data.classes,
            train_dataloaders=load(self.data.train, 32, shuffle=True, seed=seed),
            val_dataloaders=load(self.data.validation, 256),
            max_steps=updates,
            limit_val_batches=0,  # subnets are scored after the training
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
            callbacks=[SetLr()],
        )
        arms: dict[str, dict[str, Any]] = {
            BASELINE: {"calr": False, "momentum": False},
            "decayed-calr": {"momentum": False},
            "kept-calr": {"momentum": False},
        }
        options = {"momentum": True} | arms.get(arm, {}) | {"keep_mean_lr": False, "idle": idle}
        strategy = dynamic(RandomOneShot(), seed=seed, **options)  # STARTS has the arm's lr
        supernet = strategy.mutate_model(self.build())
        strategy.mutate_evaluator(evaluator).evaluate(supernet)
        test = list(batch_loader(self.data.test, 256))
        scores = score_subnets(supernet, activate, self.subnets, test, batch_norm="running")
        return {"mean_accuracy": statistics.mean(score.accuracy for score in scores)}


SPACES = {"nb201": NasBench201, "autoformer": AutoFormer}


def run(options: argparse.Namespace) -> None:
    """Train and score what the results lack: every arm of a seed before the next seed."""
    spaces = {}
    for seed, name, lr, arm in itertools.product(
        options.seeds, options.spaces, options.lrs, options.arms
    ):
        updates = options.updates or SPACES[name].updates
        # As the user has it, without dynamic training, idle parameters freeze.
        idle = "freeze" if arm == BASELINE else options.idle
        row = {"space": name, "lr": lr, "updates": updates, "seed": seed, "arm": arm, "idle": idle}
        if any(
            all(old[key] == str(v) for key, v in row.items()) for old in rows_of(options.results)
        ):
            continue
        if name not in spaces:
            spaces[name] = SPACES[name](options)
        started = time.process_time()
        found = spaces[name].train(arm, idle, seed, lr, updates)
        row |= {key: round(found[key], 5) if key in found else "" for key in MEASURES}
        row |= {"seconds": round(time.process_time() - started)}
        append_result(options.results, row)
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def table(options: argparse.Namespace) -> None:
    """Print the mean of each arm, and its differences to another one on the same seeds."""
    seeds = {str(seed) for seed in options.seeds}
    found = [row for row in rows_of(options.results) if row["seed"] in seeds]
    lines = []
    for setting in dict.fromkeys((row["space"], row["lr"], row["updates"]) for row in found):
        rows = [row for row in found if (row["space"], row["lr"], row["updates"]) == setting]
        arms = dict.fromkeys((row["arm"], row["idle"]) for row in rows)
        for (measure, name), (arm, idle) in itertools.product(MEASURES.items(), sorted(arms)):
            values, against = (
                {
                    row["seed"]: float(row[measure])
                    for row in rows
                    if row["arm"] == a and row["idle"] == i and row[measure]
                }
                for a, i in ((arm, idle), (options.against, options.against_idle))
            )
            pairs = sorted(values.keys() & against.keys())
            if not pairs:
                continue
            mean = mean_estimate([values[seed] for seed in pairs]).value
            difference = Difference(np.array([values[seed] - against[seed] for seed in pairs]))
            same = (arm, idle) == (options.against, options.against_idle)
            lines.append([*setting[:2], name, arm, idle, str(len(pairs)), f"{mean:.3f}"])
            lines[-1].append("" if same else f"{difference:+.3f}")
    header = ["space", "lr", "measure", "arm", "idle", "seeds", "mean", "difference, 95% (t)"]
    print(text_table(header, lines, text=(0, 1, 2, 3, 4)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.constant_lr", description=__doc__)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--spaces", type=_list(str), default=["nb201", "autoformer"])
    parser.add_argument("--arms", type=_list(str), default=[*ARMS[:4]])
    parser.add_argument("--seeds", type=_list(int), default=[*range(8)])
    parser.add_argument("--lrs", type=_list(float), default=[0.001], help="the user's, constant")
    parser.add_argument("--idle", choices=("freeze", "coast"), default="freeze")
    parser.add_argument("--against", choices=ARMS, default=BASELINE, help="arm of the differences")
    parser.add_argument("--against-idle", choices=("freeze", "coast"), default="freeze")
    parser.add_argument("--updates", type=int, help="of each training")
    parser.add_argument("--subnets", type=int, default=200, help="that are scored")
    parser.add_argument("--kernels", choices=KERNELS, default="torch", help="of nb201")
    parser.add_argument("--images", type=int, default=2048, help="of CIFAR-10 that score them")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10_jpeg.tar.gz"))
    parser.add_argument("--table", type=Path, default=Path("data/nb201.csv.gz"))
    parser.add_argument("--runs", type=Path, default=Path("runs/nb201"), help="decoded images")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/constant_lr.csv"))
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


def _list(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [kind(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
