"""What NNI's ENAS needs beside the hooks: a loader that runs on Lightning 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from nni.nas.oneshot.pytorch._dataloader import ConcatLoader

from nas_dynamic.adapters.nni.sampling import RecordedSampling

__all__ = ["EnasLoader", "EnasSampling", "train_dataloader"]


class EnasLoader(ConcatLoader):
    """The training batches and then those of validation, each with its mode.

    NNI's own skips the constructor of Lightning's loader, which sets `_limits` since Lightning
    2.0.5; and Lightning unpacks the batch that NNI's module expects with its loader's number.
    """

    _limits = None

    def __next__(self) -> Any:
        """((batch, "train" | "val"), number of the batch, number of the loader)."""
        batch, index, loader = super().__next__()
        return (batch, ("train", "val")[loader]), index, loader


class EnasSampling(RecordedSampling):
    """As `RecordedSampling`; batches of the validation set train the controller alone."""

    def weight_batches(self, trainer: pl.Trainer) -> float:
        """Number of batches of the training set in an epoch."""
        loaders: Any = trainer.train_dataloader
        return min(trainer.num_training_batches, len(loaders["train"]))


def train_dataloader(train: Callable[[], Any], validation: Callable[[], Any]) -> EnasLoader:
    """Stands in for `ENAS.train_dataloader`."""
    return EnasLoader({"train": train(), "val": validation()})
