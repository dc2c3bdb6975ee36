"""A sweep over ways of training a supernet; run as a script, one trial of it.

Each trial trains NNI's NasBench201 space, at small size, on scikit-learn's digits. After every
epoch it scores a fixed panel of subnets with inherited weights, and ranks them: τ is against their
stand-alone accuracies.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nni
import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import ClassificationModule, DataLoader, Lightning, Trainer
from nni.nas.hub.pytorch import NasBench201
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import RandomOneShot

from nas_dynamic.adapters.nni import FairOneShot, SandwichOneShot, activate, dynamic, search_space
from nas_dynamic.adapters.nni.space import sample_of
from nas_dynamic.analysis.ranking import kendall_tau
from nas_dynamic.evaluation import Score, digest, evaluate, kept_scores, score_subnets
from nas_dynamic.experiment.data import ImageData, batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.experiment.run import sample_architectures
from nas_dynamic.experiment.standalone import train_standalone
from nas_dynamic.space import key

SEARCH_SPACE = {
    "seed": {"_type": "choice", "_value": [0, 1]},
    "sampler": {"_type": "choice", "_value": ["uniform", "fair", "sandwich"]},
    "gamma_max": {"_type": "choice", "_value": [0, 2, 4]},  # 0: no CaLR, but a cosine decay
    "momentum": {"_type": "choice", "_value": ["one", "separate"]},
}
"""NNI's grid search varies the last one fastest: static, MS, CaLR, both come first."""

STRATEGIES: dict[str, Callable[[int], RandomOneShot]] = {
    "uniform": lambda seed: RandomOneShot(),
    "fair": lambda seed: FairOneShot(seed=seed),
    "sandwich": lambda seed: SandwichOneShot(seed=seed),
}

Report = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        epochs: of a supernet.
        standalone_epochs: of a subnet that is trained by itself.
        panel: number of subnets that are scored and ranked.
        channels: of the first cells.
        batch_size: of every training.
        lr: its peak.
    """

    epochs: int = 20
    standalone_epochs: int = 8
    panel: int = 20
    channels: int = 4
    batch_size: int = 16
    lr: float = 0.05


def images() -> ImageData:
    """Few images to train on, so that subnets differ; many to tell them apart."""
    return digits(validation=0.6, test=0.5)


def space(size: Size, data: ImageData) -> NasBench201:
    """Build the model space, with new weights."""
    return NasBench201(size.channels, 1, data.classes)


def panel(size: Size, data: ImageData) -> list[dict[str, Any]]:
    """Draw the subnets that are scored: always the same ones."""
    return sample_architectures(search_space(space(size, data)), size.panel, seed=0)


def standalone_accuracies(
    size: Size, out: Path, progress: Callable[[int, int], None]
) -> list[float]:
    """Train each subnet of the panel by itself and test it; kept in a file."""
    data = images()

    def measure(missing: list[dict[str, Any]]) -> Iterator[Score]:
        for architecture in missing:
            torch.manual_seed(0)
            model_space = space(size, data)
            model = model_space.freeze(sample_of(architecture, model_space))
            weights = model.parameters()
            sgd = torch.optim.SGD(weights, size.lr, 0.9, weight_decay=5e-4, nesterov=True)
            epochs, batch_size = size.standalone_epochs, size.batch_size
            train_standalone(model, data.train, sgd, epochs=epochs, batch_size=batch_size)
            yield Score(architecture, *evaluate(model, batch_loader(data.test, 256)))

    # Of the size, what matters here.
    depends_on = asdict(replace(size, epochs=0, panel=0)) | {"torch": torch.__version__}
    path = out / f"standalone-{digest(depends_on)[:12]}.jsonl"
    accuracies = {}
    for score in kept_scores(path, depends_on, panel(size, data), measure):
        progress(len(accuracies), size.panel)
        accuracies[key(score.architecture)] = score.accuracy
    progress(size.panel, size.panel)
    return [accuracies[key(architecture)] for architecture in panel(size, data)]


def train(
    parameters: dict[str, Any], size: Size, standalone: list[float], report: Report
) -> dict[str, float]:
    """Train one supernet.

    Args:
        parameters: a point of `SEARCH_SPACE`.
        size: how much.
        standalone: the stand-alone accuracies of the panel.
        report: told the metrics after every epoch.

    Returns:
        The last metrics: `default`, the mean accuracy of the panel; `tau`, Kendall's τ of its
        ranking; `best`, the stand-alone accuracy of the subnet that it puts first.
    """
    data = images()
    epochs = Epochs(size, data, standalone, report)
    train_supernet(parameters, size, data, [epochs])
    return epochs.metrics


def train_supernet(
    parameters: dict[str, Any], size: Size, data: ImageData, callbacks: list[pl.Callback]
) -> ModelSpace:
    """Train a supernet as the parameters say, by the one line."""
    seed, gamma_max = parameters["seed"], parameters["gamma_max"]
    pl.seed_everything(seed, verbose=False)
    strategy = dynamic(
        STRATEGIES[parameters["sampler"]](seed),
        calr=gamma_max > 0,
        gamma_max=gamma_max or 1,
        momentum=parameters["momentum"] == "separate",
        keep_mean_lr=False,  # from the lr that the static trials' cosine starts at
        seed=seed,
    )
    evaluator = Lightning(
        Training(size, data.classes, cosine=not gamma_max),
        Trainer(
            max_epochs=size.epochs,
            gradient_clip_val=5.0,
            limit_val_batches=0,  # the panel is scored instead
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            accelerator="cpu",
        ),
        train_dataloaders=batch_loader(
            data.train, size.batch_size, shuffle=True, seed=seed, loader=DataLoader
        ),
        val_dataloaders=batch_loader(data.validation, 256, loader=DataLoader),
    )
    # What NasExperiment does, which would keep the reports of a trial to itself.
    supernet = strategy.mutate_model(space(size, data))
    strategy.mutate_evaluator(evaluator).evaluate(supernet)
    return supernet


class Training(ClassificationModule):
    """NNI's classification, with Nesterov momentum and, for static training, a cosine decay."""

    def __init__(self, size: Size, classes: int, *, cosine: bool) -> None:
        super().__init__(num_classes=classes)
        self.size = size
        self.cosine = cosine

    def configure_optimizers(self) -> Any:
        """SGD, and its schedule."""
        sgd = torch.optim.SGD(
            self.parameters(), self.size.lr, 0.9, weight_decay=5e-4, nesterov=True
        )
        if not self.cosine:
            return sgd
        return [sgd], [torch.optim.lr_scheduler.CosineAnnealingLR(sgd, self.size.epochs)]

    def on_fit_end(self) -> None:
        """Report nothing: NNI's would report the training accuracy as the result of the trial."""


class Epochs(pl.Callback):
    """Scores and ranks the panel after every epoch."""

    def __init__(
        self, size: Size, data: ImageData, standalone: list[float], report: Report
    ) -> None:
        self.panel = panel(size, data)
        self.validation = list(batch_loader(data.validation, 256))
        self.calibration = calibration_batches(data.train, 32, 4)
        self.standalone = standalone
        self.report = report
        self.metrics: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Score, rank, report."""
        scores = score_subnets(
            pl_module.model,
            activate,
            self.panel,
            self.validation,
            calibration=self.calibration,
        )
        accuracies = [score.accuracy for score in scores]
        tau = kendall_tau(np.array(accuracies), np.array(self.standalone))
        self.metrics = {
            "default": statistics.mean(accuracies),
            "tau": 0.0 if math.isnan(tau) else tau,  # all alike: no ranking
            "best": self.standalone[int(np.argmax(accuracies))],
        }
        self.report(self.metrics)


def trial() -> tuple[Size, Path]:
    """Read the size of the trial that this process is, and the folder of all experiments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", type=Path, help="settings.json of the experiment")
    settings: Path = parser.parse_args().settings
    torch.set_num_threads(1)
    return Size(**json.loads(settings.read_text())["size"]), settings.parent.parent


def main() -> None:
    """One trial, as NNI's manager starts it."""
    size, out = trial()
    standalone = standalone_accuracies(size, out, lambda done, total: None)
    metrics = train(nni.get_next_parameter(), size, standalone, nni.report_intermediate_result)
    nni.report_final_result(metrics)


if __name__ == "__main__":
    main()
