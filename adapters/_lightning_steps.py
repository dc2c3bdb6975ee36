"""How many updates a fit of Lightning makes: T of CaLR, read when it is final and looked at again.

Nothing of Lightning is imported: trainers of `pytorch_lightning` and of `lightning` serve alike.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

from nas_dynamic.attach import DynamicTraining
from nas_dynamic.host import Options

__all__ = ["check_plan", "has_scheduler", "planned_updates", "warn_if_unfinished"]


def planned_updates(trainer: Any, batches: float | None = None, *, from_here: bool = False) -> int:
    """Return the number of updates of the weights in the training that a fit begins.

    Of a fit that goes on from a checkpoint, those of the whole training; of another fit of a
    trainer that has trained before, those that are left. Everything that a trainer is told counts:
    `max_epochs`, `max_steps`, `limit_train_batches`, `overfit_batches`, `fast_dev_run`, accumulated
    gradients and their `GradientAccumulationScheduler`, several loaders by their mode.

    Args:
        trainer: in `on_fit_start` or later; one update a batch, or `accumulate_grad_batches`.
        batches: of an epoch that update the weights; all those of training by default.
        from_here: count from the trainer's epoch and step on.

    Raises:
        ValueError: no end is known before; the message says why, and what to do.
    """
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if epochs == -1 and steps == -1:
        timed = any(getattr(c, "_duration", None) is not None for c in trainer.callbacks)
        raise _endless("it ends by max_time" if timed else "max_epochs is -1")
    resumed = trainer.ckpt_path is not None and not from_here
    epoch, done = (0, 0) if resumed else (trainer.current_epoch, trainer.global_step)
    left = steps - done if steps != -1 else math.inf
    if epochs != -1:
        if trainer.train_dataloader is None:
            trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches if batches is None else batches
        if trainer.limit_train_batches == 0:
            batches = 0
        if math.isinf(batches):
            if steps == -1:
                raise _endless("its data set has no length")
        else:
            ends = (math.ceil(batches / _accumulated(trainer, e)) for e in range(epoch, epochs))
            left = min(left, sum(ends))
    return int(max(left, 0))


def _endless(reason: str) -> ValueError:
    return ValueError(
        f"the number of updates of this training is not known before: {reason}. So the lr cannot "
        "decay towards its end; give the trainer max_steps (or max_epochs, if its data set has a "
        "length), or give total_steps=…, or an lr scheduler and curve='scheduler'"
    )


def _accumulated(trainer: Any, epoch: int) -> int:
    """Return how many batches make an update in an epoch."""
    for callback in trainer.callbacks:
        scheduled = getattr(callback, "get_accumulate_grad_batches", None)
        if scheduled is not None:
            return int(scheduled(epoch))
    return int(trainer.accumulate_grad_batches)


def check_plan(
    trainer: Any, training: DynamicTraining | None, options: Options, left: Callable[[], int]
) -> None:
    """Check, where loaders were made anew, that T still has room for the updates that are left.

    Args:
        trainer: that an epoch begins of.
        training: attached; None is for none yet.
        options: of it; T is read from the trainer if they do not give it.
        left: () → number of updates from here on.

    Raises:
        ValueError: it has not; the training would otherwise fail at its update T.
    """
    calr = None if training is None else training.calr
    if training is None or calr is None or calr.total_steps is None or calr.follows_scheduler:
        return
    if options.total_steps is not None or not trainer.reload_dataloaders_every_n_epochs:
        return
    planned, total = training.steps + left(), calr.total_steps
    if planned > total:
        raise ValueError(
            f"the training data has grown: {planned:,} updates are to be made in all, and CaLR's "
            f"decay is planned for {total:,}, as they were when the fit began. Give max_steps, or "
            "total_steps=…, where loaders of another length come later"
        )


def warn_if_unfinished(trainer: Any, training: DynamicTraining) -> None:
    """Warn where a fit has ended with another number of updates than CaLR's decay has."""
    calr = training.calr
    if calr is None or calr.total_steps is None or calr.follows_scheduler:
        return
    made = training.steps + training.skipped
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        made = max(made, trainer.global_step)  # GradScaler skips the steps that overflow
    if made < calr.total_steps:
        reached = calr.factor_of(1.0, training.steps) / calr.factor_of(1.0, calr.warmup_steps)
        warnings.warn(
            f"the training has ended after {made:,} updates, and CaLR's decay is planned for "
            f"{calr.total_steps:,}: the lr is still at {reached:.0%} of its start (for γ = 1) in "
            "place of 0, so the subnets are not annealed, and neither scores nor ranking are those "
            "of a whole training. Plan for the updates that there are (max_epochs, max_steps, "
            "total_steps=…), or go on from the last checkpoint",
            UserWarning,
            stacklevel=2,
        )


def has_scheduler(trainer: Any, optimizer: Any) -> bool:
    """Return whether an lr scheduler was made for an optimizer: one of the trainer's, or another.

    Every scheduler of torch and of timm leaves `initial_lr` in the param groups.
    """
    return bool(trainer.lr_scheduler_configs) or any(
        "initial_lr" in group for group in optimizer.param_groups
    )
