"""An NNI training on two ranks: `python lightning_ranks.py FOLDER`; Lightning starts the second."""

from __future__ import annotations

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import RandomOneShot

from nas_dynamic.adapters.nni import DynamicCallback, dynamic


class Recorder(pl.Callback):
    """The subnet of every update on this rank, and the weights that it ends with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.subnets: list[object] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (callback,) = (c for c in trainer.callbacks if isinstance(c, DynamicCallback))
        self.subnets.append(dict(callback.training.last.architecture))

    def on_train_end(self, trainer, pl_module):
        weights = {name: p.detach() for name, p in pl_module.model.named_parameters()}
        result = {"subnets": self.subnets, "weights": weights}
        torch.save(result, self.folder / f"{trainer.global_rank}.pt")


def main(folder: Path) -> None:
    """Train a small space for two epochs of three steps on two ranks."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 3, 8, 8, generator=generator)
    labels = torch.randint(10, (24,), generator=generator)
    data = torch.utils.data.TensorDataset(images, labels)
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
        callbacks=[Recorder(folder)],
        default_root_dir=str(folder),
    )
    strategy = dynamic(RandomOneShot(), seed=5)
    supernet = strategy.mutate_model(NasBench201(4, 1, 10))
    strategy.mutate_evaluator(evaluator).evaluate(supernet)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
