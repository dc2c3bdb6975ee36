"""A one-shot training of NNI on a device."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.hub.pytorch import NasBench201
from nni.nas.oneshot.pytorch.strategy import RandomOneShot

from nas_dynamic.adapters.nni import dynamic

SGD = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True)


class Record(pl.Callback):
    """The subnet and the lr of every update."""

    def __init__(self) -> None:
        self.updates: list[Any] = []
        self.device = ""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        (training,) = [c.training for c in trainer.callbacks if hasattr(c, "training")]
        self.updates.append((dict(training.last.architecture), training.last.lr))
        self.device = next(pl_module.parameters()).device.type


def train(folder: Path, accelerator: str) -> tuple[Record, torch.nn.Module]:
    """Return what eight updates used, and the supernet. In float64, to compare devices."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 16, 16, generator=generator)
    data = torch.utils.data.TensorDataset(images, torch.randint(10, (64,), generator=generator))
    record = Record()
    evaluator = Classification(
        optimizer=SGD,
        learning_rate=0.05,
        train_dataloaders=DataLoader(data, 16),
        val_dataloaders=DataLoader(data, 64),
        num_classes=10,
        max_epochs=2,
        logger=False,
        callbacks=[record],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        accelerator=accelerator,
        devices=1,
        precision="64-true",
    )
    torch.manual_seed(0)
    strategy = dynamic(RandomOneShot(), seed=0)
    supernet: Any = strategy.mutate_model(NasBench201(8, 1, 10))
    strategy.mutate_evaluator(evaluator).evaluate(supernet)
    return record, supernet
