"""The subnets of NNI's strategies that learn what to sample: Proxyless and ENAS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from nni.mutable import Sample
from nni.nas.oneshot.pytorch._dataloader import ConcatLoader

from nas_dynamic.adapters._lightning_steps import planned_updates
from nas_dynamic.adapters.nni.sampling import Sampling
from nas_dynamic.adapters.nni.space import architecture_of

__all__ = ["EnasLoader", "EnasSampling", "PolicySampling", "train_dataloader"]


class PolicySampling(Sampling):
    """What the policy of a module samples, recorded: `Proxyless`.

    Seeds and state are the policy's. The module's last sample before an update of the weights
    is the subnet of that update, since these modules sample again for each update.
    """

    def resample(self) -> Sample:
        """Let the policy sample."""
        sample = type(self.module).resample(self.module)
        self.architectures = [architecture_of(sample, self.module.model)]
        return sample

    def planned_updates(self, trainer: pl.Trainer, *, from_here: bool = False) -> int:
        """Return the number of updates of the weights, without those of the architecture.

        Raises:
            ValueError: no end is known before; or the training ends by `max_steps`, which counts
                both.
        """
        if trainer.max_steps != -1:
            raise ValueError(
                f"max_steps={trainer.max_steps} counts the steps of the architecture's optimizer "
                "as well; give max_epochs to the evaluator, or dynamic(…, total_steps=…), the "
                "number of updates of the weights"
            )
        trainer.fit_loop.setup_data()
        return planned_updates(trainer, self.weight_batches(trainer), from_here=from_here)

    def weight_batches(self, trainer: pl.Trainer) -> float:
        """Return the number of batches of an epoch that update the weights."""
        return trainer.num_training_batches


class EnasSampling(PolicySampling):
    """As `PolicySampling`; batches of the validation set train only the controller."""

    def weight_batches(self, trainer: pl.Trainer) -> float:
        """Return the number of batches of the training set in an epoch."""
        loaders: Any = trainer.train_dataloader
        return min(trainer.num_training_batches, len(loaders["train"]))


class EnasLoader(ConcatLoader):
    """The training batches and then those of validation, each with its mode.

    NNI's own skips the constructor of Lightning's loader, which sets `_limits` since Lightning
    2.0.5; and Lightning unpacks the batch that NNI's module expects with its loader's number.
    """

    _limits = None

    def __next__(self) -> tuple[tuple[Any, str], int, int]:
        """Return ((batch, "train" | "val"), number of the batch, number of the loader)."""
        batch, index, loader = super().__next__()
        return (batch, ("train", "val")[loader]), index, loader


def train_dataloader(train: Callable[[], Any], validation: Callable[[], Any]) -> EnasLoader:
    """Stand in for `ENAS.train_dataloader`."""
    return EnasLoader({"train": train(), "val": validation()})
