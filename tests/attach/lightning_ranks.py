"""NNI trainings on ranks: `torchrun … -m tests.attach.lightning_ranks FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import RandomOneShot

from nas_dynamic.adapters.nni import DynamicCallback, dynamic


class Recorder(pl.Callback):
    """The subnet of every update on this rank, and the weights that it ends with."""

    def __init__(self) -> None:
        self.subnets: list[object] = []
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (callback,) = (c for c in trainer.callbacks if isinstance(c, DynamicCallback))
        self.subnets.append(dict(callback.training.last.architecture))

    def on_train_end(self, trainer, pl_module):
        self.weights = {name: p.detach() for name, p in pl_module.model.named_parameters()}


def train(folder: Path, seed: int, **options: Any) -> dict[str, Any]:
    """Train a small space for two epochs of three steps on two ranks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (24,), generator=generator)
    data = torch.utils.data.TensorDataset(images, labels)
    recorder, error = Recorder(), None
    evaluator = Classification(
        optimizer=torch.optim.AdamW,
        learning_rate=0.01,
        train_dataloaders=DataLoader(data, 4, shuffle=True),
        val_dataloaders=DataLoader(data, 4),
        num_classes=10,
        max_epochs=2,
        accelerator="cpu",
        strategy="ddp_find_unused_parameters_true",
        devices=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        default_root_dir=str(folder),
    )
    strategy = dynamic(RandomOneShot(), seed=seed, **options)
    supernet = strategy.mutate_model(NasBench201(4, 1, 10))
    try:
        strategy.mutate_evaluator(evaluator).evaluate(supernet)
    except RuntimeError as raised:
        error = str(raised)
    return {"subnets": recorder.subnets, "weights": recorder.weights, "error": error}


def main(folder: Path) -> None:
    """Train ranks that agree, and ranks that do not; the results are in FOLDER/RANK.pt."""
    torch.set_num_threads(1)
    agree = train(folder, seed=5)
    rank = dist.get_rank()
    apart = train(folder, seed=5 + rank)
    torch.save({"agree": agree, "apart": apart}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
