"""Every one-shot strategy on scikit-learn's digits, static and dynamic: accuracies of subnets.

    python -m benchmarks.digits.strategies            # some ten minutes on one CPU core

Each strategy trains NNI's NasBench201 space to the end, by the same number of epochs; what an
update costs differs. The same random subnets are then scored on images that nothing was trained
on, with recalibrated batch norm, few-shot subnets in the supernet that they belong to.
"""

from __future__ import annotations

import argparse
import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.hub.pytorch import NasBench201
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import ENAS, Proxyless, RandomOneShot
from nni.nas.strategy.base import Strategy

from nas_dynamic import Architecture
from nas_dynamic.adapters.nni import (
    FairOneShot,
    FewShotOneShot,
    SandwichOneShot,
    activate,
    dynamic,
    search_space,
)
from nas_dynamic.adapters.nni.few_shot import SubSupernet
from nas_dynamic.evaluation import score_subnets
from nas_dynamic.experiment.data import ImageData, batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.experiment.run import sample_architectures

STRATEGIES: dict[str, Callable[[int], Strategy]] = {
    "random (SPOS)": lambda seed: dynamic(RandomOneShot(), **STATIC, seed=seed),
    "fair": lambda seed: FairOneShot(seed=seed),
    "sandwich": lambda seed: SandwichOneShot(seed=seed),
    "sandwich, distilled": lambda seed: SandwichOneShot(seed=seed, distill=True),
    "few-shot": lambda seed: FewShotOneShot(seed=seed, label="cell/0_1"),
    "Proxyless": lambda seed: Proxyless(),
    "ENAS": lambda seed: dynamic(ENAS(reward_metric_name="val_acc"), **STATIC),
}
STATIC = {"calr": False, "momentum": False, "idle": "freeze"}
SGD = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True)


def train(
    strategy: Strategy,
    model_space: ModelSpace,
    data: ImageData,
    *,
    epochs: int,
    seed: int,
    optimizer: Callable[..., torch.optim.Optimizer] = SGD,
    lr: float = 0.05,
    cosine: bool = False,
    validation_batch: int = 256,
) -> ModelSpace:
    """Train a supernet as an NNI experiment does; the static arms by a cosine schedule."""
    evaluator = Classification(
        optimizer=optimizer,
        learning_rate=lr,
        weight_decay=5e-4,
        num_classes=data.classes,
        train_dataloaders=batch_loader(data.train, 32, shuffle=True, seed=seed, loader=DataLoader),
        val_dataloaders=batch_loader(data.validation, validation_batch, loader=DataLoader),
        max_epochs=epochs,
        limit_val_batches=0,  # subnets are scored after the training
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=[Cosine()] if cosine else None,
    )
    supernet = strategy.mutate_model(model_space)
    strategy.mutate_evaluator(evaluator).evaluate(supernet)
    return supernet


class Cosine(pl.Callback):
    """Decays the lr by a cosine over the epochs of the training."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the lr of the weights."""
        optimizer = trainer.optimizers[0]
        for group in optimizer.param_groups:
            peak = group.setdefault("initial_lr", group["lr"])
            share = torch.tensor(torch.pi * trainer.current_epoch / trainer.max_epochs)
            group["lr"] = float(peak * (1 + share.cos()) / 2)


def accuracies(
    supernet: ModelSpace, architectures: Sequence[Architecture], data: ImageData
) -> list[float]:
    """Return the accuracy of subnets on the test images."""
    scores = score_subnets(
        supernet,
        activate,
        architectures,
        list(batch_loader(data.test, 256)),
        calibration=calibration_batches(data.train, 128, 4),
    )
    return [score.accuracy for score in scores]


def quiet() -> None:
    """Keep the hosts' hints off the terminal."""
    warnings.simplefilter("ignore")
    for name in ("nni", "pytorch_lightning", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--subnets", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quiet()
    data = digits(seed=0)
    print("| strategy | training | mean | worst | best | seconds |\n|---|---|---|---|---|---|")
    for name, build in STRATEGIES.items():
        for attached in (False, True):
            pl.seed_everything(options.seed, verbose=False)
            strategy, model_space = build(options.seed), NasBench201(8, 1, data.classes)
            architectures = sample_architectures(search_space(model_space), options.subnets, 0)
            if attached:
                # From the peak of the static arm's cosine, so that their mean lrs are the same.
                strategy = dynamic(strategy, keep_mean_lr=False)
            started = time.perf_counter()
            supernet = train(
                strategy,
                model_space,
                data,
                epochs=options.epochs,
                seed=options.seed,
                cosine=not attached,
            )
            seconds = time.perf_counter() - started
            if isinstance(strategy, FewShotOneShot):
                values = [
                    value
                    for part in strategy.supernets
                    for value in accuracies(part.model, owned(part, architectures), data)
                ]
            else:
                values = accuracies(supernet, architectures, data)
            print(
                f"| {name} | {'dynamic' if attached else 'static'} | {statistics.mean(values):.3f} "
                f"| {min(values):.3f} | {max(values):.3f} | {seconds:.0f} |",
                flush=True,
            )


def owned(part: SubSupernet, architectures: Sequence[Architecture]) -> list[Architecture]:
    return [architecture for architecture in architectures if architecture in part.space]


if __name__ == "__main__":
    main()
