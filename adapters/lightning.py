"""Lightning: `Trainer(callbacks=[DynamicSupernet(...)])`."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from nas_dynamic._extras import extra
from nas_dynamic.adapters._lightning_steps import (
    check_plan,
    has_scheduler,
    planned_updates,
    warn_if_unfinished,
)
from nas_dynamic.host.supernet_callback import SupernetCallback
from nas_dynamic.host.update_log import UpdateLog

__all__ = ["UNWEIGHTED", "DynamicSupernet", "log_start", "log_update", "total_updates"]

UNWEIGHTED = "unweighted_loss"
"""Where a training step puts the mean loss of its subnets, beside that of the weighted losses."""


def _callback_class() -> Any:
    """Return a base class that is a callback for each package that Lightning comes as."""
    packages = ("lightning.pytorch", "pytorch_lightning")
    installed = [p for p in packages if importlib.util.find_spec(p.partition(".")[0])]
    modules = [importlib.import_module(package) for package in installed or packages]
    return type("Callback", tuple([module.Callback for module in modules]), {})


with extra("lightning"):
    _Callback: Any = _callback_class()


class DynamicSupernet(SupernetCallback, _Callback):
    """Trains the supernet of a `LightningModule` dynamically, a subnet for each update.

    The supernet is the part of the module that has `space`, a `SearchSpace`, and `activate`; see
    `SupernetHost`. Each update trains a subnet that is drawn by a seed, the same on all ranks; the
    micro-batches of one update train the same. The state of it all is in the optimizer's state,
    and so in Lightning's checkpoints. What the updates used goes to the trainer's loggers at every
    `log_every_n_steps`-th update, see `nas_dynamic.host.update_log`.

    In validation the supernet computes the subnet that was trained last, or one that you activate.

    Args and errors are those of `nas_dynamic.host.supernet_callback.SupernetCallback`.
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach: optimizers are built by now, and their states not yet restored."""
        self.stop()  # not at the end of a fit, so that Trainer.save_checkpoint has it all
        self.start(
            pl_module,
            trainer.optimizers,
            lambda: total_updates(trainer),
            has_scheduler=functools.partial(has_scheduler, trainer),
        )
        assert self.log is not None
        log_start(self.log, trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Check loaders that were made anew: they may be longer than T was read from."""
        if pl_module.automatic_optimization:
            left = functools.partial(planned_updates, trainer, from_here=True)
            check_plan(trainer, self.training, self.options, left)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Say where the training has ended before T, as by early stopping."""
        if self.training is not None:
            warn_if_unfinished(trainer, self.training)

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the subnet of the update, or compute it again after a validation."""
        self.draw()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the update used."""
        assert self.log is not None
        log_update(self.log, trainer, outputs)


def total_updates(trainer: Any) -> int:
    """Return the number of updates that a trainer will make.

    Raises:
        ValueError: manual optimization decides when to update, so that batches do not tell; or the
            training has no end that is known before.
    """
    if not (trainer.lightning_module.automatic_optimization or trainer.max_epochs == -1):
        raise ValueError(
            "in manual optimization the training step decides which batches make an update, so "
            "that the trainer does not know their number; give total_steps=…, or an end by "
            "Trainer(max_steps=…) alone"
        )
    return planned_updates(trainer)


def log_start(log: UpdateLog, trainer: Any) -> None:
    """Log what holds for the whole training, as hyper-parameters."""
    if log.hyperparameters:
        for logger in trainer.loggers:
            logger.log_hyperparams(log.hyperparameters)


def log_update(log: UpdateLog, trainer: Any, outputs: Any) -> None:
    """Log what an update used after its batch, as often as Lightning logs."""
    every = trainer.log_every_n_steps
    if not trainer.loggers or not every:
        return
    log.add(unweighted_loss(outputs, trainer))
    metrics = log.metrics(every)
    if metrics is not None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=log.step)


def unweighted_loss(outputs: Any, trainer: Any) -> torch.Tensor | None:
    """Return the loss of a batch, before CaLR weights it, from what Lightning says of the batch.

    None where there is no loss, as in a step that was skipped.
    """
    if not isinstance(outputs, Mapping):
        return None
    unweighted: torch.Tensor | None = outputs.get(UNWEIGHTED)
    loss: torch.Tensor | None = outputs.get("loss")
    if unweighted is not None or loss is None:
        return unweighted
    batches: int = trainer.accumulate_grad_batches  # by which Lightning divides it
    return loss * batches
