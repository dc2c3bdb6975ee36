"""A supernet as a configuration describes it, trained in an NNI one-shot experiment."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nas_dynamic._extras import extra
from nas_dynamic.adapters.nni import Supernet, dynamic
from nas_dynamic.adapters.nni._locks import lock_problem
from nas_dynamic.experiment.config import Config
from nas_dynamic.experiment.console import Progress
from nas_dynamic.experiment.data import ImageData, batch_loader
from nas_dynamic.experiment.nni.build import (
    build_optimizer,
    build_scheduler,
    build_space,
    updates_of,
)
from nas_dynamic.experiment.nni.checkpoint import SafeCheckpoints
from nas_dynamic.experiment.nni.recorder import TrainingRecorder
from nas_dynamic.space import Architecture
from nas_dynamic.storage import checkpoint as checkpoints
from nas_dynamic.storage.journal import RunError

with extra("nni"):
    import pytorch_lightning as pl
    from nni.nas.evaluator.pytorch import ClassificationModule, DataLoader, Lightning, Trainer
    from nni.nas.experiment import NasExperiment
    from nni.nas.strategy import RandomOneShot
    from pytorch_lightning.callbacks import ModelCheckpoint

__all__ = ["TrainedSupernet", "load_supernet", "quiet", "train_supernet"]


WEIGHTS = "training_module._model."
"""Before the names of a supernet's weights in Lightning's checkpoint of NNI's one-shot module."""


@dataclass(frozen=True, eq=False)
class TrainedSupernet:
    """A trained supernet.

    Attributes:
        supernet: with its weights, on the CPU.
        macs: architecture → multiply-accumulates of that subnet for one image.
        recorder: what was recorded of the training.
    """

    supernet: Supernet
    macs: Callable[[Architecture], float]
    recorder: TrainingRecorder


def train_supernet(
    config: Config,
    data: ImageData,
    seed: int,
    *,
    progress: Progress,
    folder: Path | None = None,
) -> TrainedSupernet:
    """Train the supernet of a configuration, with its dynamic options, for its budget.

    Args:
        config: space, optimizer, options, budget and device.
        data: what to train on.
        seed: of the weights, the batches and the sampled subnets.
        progress: told the number of updates.
        folder: `last.ckpt` is written there after every epoch, and gone on from if it is there.

    Raises:
        ConfigError: the space cannot be built.
        CheckpointError: there are checkpoints, and none is sound.
        KeyboardInterrupt: says after which epoch.
    """
    pl.seed_everything(seed, verbose=False)
    model_space = build_space(config, data.classes)
    resumed = folder / "last.ckpt" if folder is not None else None
    if resumed is not None and checkpoints.exists(resumed):
        checkpoints.load(resumed)  # where none is sound, say so before all else
    else:
        resumed = None
    loading = {"seed": seed, "workers": config.data.workers, "loader": DataLoader}
    batches = batch_loader(data.train, config.batch_size, shuffle=True, **loading)
    steps = updates_of(config, len(batches))
    recorder = TrainingRecorder(progress, steps)
    with quiet():
        evaluator = Lightning(
            _Classification(config, data.classes),
            Trainer(
                max_epochs=math.ceil(steps / len(batches)),
                gradient_clip_val=config.gradient_clip,
                precision=config.precision,
                callbacks=[
                    recorder,
                    _StopAfter(steps),
                    *([_every_epoch(folder)] if folder is not None else []),
                ],
                logger=False,
                enable_checkpointing=folder is not None,
                plugins=[SafeCheckpoints()],
                enable_progress_bar=False,
                enable_model_summary=False,
                # Subnets are scored after the training, with BN statistics of their own.
                limit_val_batches=0,
                **_accelerator(config.device),
            ),
            train_dataloaders=batches,
            val_dataloaders=batch_loader(data.validation, config.batch_size, **loading),
            fit_kwargs={"ckpt_path": resumed} if resumed is not None else None,
        )
        options = asdict(config.dynamic) | {"total_steps": steps}
        if options["keep_mean_lr"] is None:  # from the same lr as the static arm of a comparison
            options["keep_mean_lr"] = False
        strategy = dynamic(RandomOneShot(), seed=seed, **options)
        if (problem := lock_problem()) is not None:
            raise RunError(problem)
        experiment = NasExperiment(model_space, evaluator, strategy)
        on_interrupt = signal.getsignal(signal.SIGINT)
        try:
            experiment.run()
        except SystemExit as ended:
            # What Lightning makes of Ctrl-C, from which on it ignores that.
            if not isinstance(ended.__context__, KeyboardInterrupt):
                raise
            trainer = evaluator.trainer
            raise KeyboardInterrupt(
                f"after epoch {trainer.current_epoch} of {trainer.max_epochs}"
            ) from None
        finally:
            experiment.stop()
            if on_interrupt is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_interrupt)
    supernet = Supernet(strategy.supernet)
    image, _ = data.validation[torch.tensor([0])]
    return TrainedSupernet(supernet, supernet.subnet_macs(image), recorder)


def load_supernet(config: Config, classes: int, folder: Path) -> Supernet:
    """Return the supernet that `train_supernet` has trained, from its last checkpoint.

    Args:
        config: of the run.
        classes: number of classes of its images.
        folder: of the seed.

    Raises:
        ConfigError: the space cannot be built any more.
        RunError: there is no sound checkpoint, or it has other weights than the space.
    """
    path = folder / "last.ckpt"
    if not checkpoints.exists(path):
        raise RunError(f"{path} is missing: the weights of a run are in its last checkpoint")
    weights = {
        name.removeprefix(WEIGHTS): tensor
        for name, tensor in checkpoints.load(path, "cpu")["state_dict"].items()
        if name.startswith(WEIGHTS)
    }
    with quiet():
        model = RandomOneShot().mutate_model(build_space(config, classes))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(
            f"{path} does not have the weights of the space of the run, {config.space.name}; has "
            f"that been changed? ({str(error).splitlines()[-1].strip()})"
        ) from error
    return Supernet(model)


class _Classification(ClassificationModule):
    """NNI's classification, with any optimizer of torch, and an lr scheduler."""

    def __init__(self, config: Config, classes: int) -> None:
        super().__init__(num_classes=classes)
        self.config = config

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.config, self.parameters())
        scheduler = build_scheduler(self.config, optimizer)
        if scheduler is None:
            return optimizer
        assert self.config.scheduler is not None
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": scheduler,
                "interval": self.config.scheduler.interval,
            },
        }

    def on_fit_end(self) -> None:
        # A run that was stopped while it scored resumes with no epoch left, and so no metric.
        if self.trainer.callback_metrics:
            super().on_fit_end()


class _StopAfter(pl.Callback):
    """Ends a training after so many updates, inside an epoch as well.

    In place of `max_steps`, under which Lightning resumes from the end of an epoch with one batch
    of the next one, and then begins the epoch after it: other batches, and an lr scheduler that
    is an epoch too far.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


def _every_epoch(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder,
        filename="last",
        enable_version_counter=False,
        save_on_train_epoch_end=True,
    )


def _accelerator(device: str) -> dict[str, Any]:
    kind, _, number = device.partition(":")
    if kind in ("auto", "cpu"):
        return {"accelerator": kind, "devices": 1}
    return {"accelerator": kind, "devices": [int(number or 0)] if kind == "cuda" else 1}


HINTS = (
    "`training_service` will be ignored for sequential execution engine",
    "Checkpoint callback does not have last_model_path",
    "Checkpoint callback is found to be None",
    "Model 1 fails to be executed",  # the error itself is told
    "Model 1 is interrupted",
    "Strategy failed to execute",
    "Checkpoint directory",  # … exists and is not empty, when a run is resumed
    "`isinstance(treespec, LeafSpec)` is deprecated",
    "TPU available: False",
    "`Trainer.fit` stopped",  # the progress says it
    "💡 Tip",
)
"""Beginnings of what NNI and Lightning give for any one-shot experiment on this stack."""


@contextlib.contextmanager
def quiet(*, warned: bool = False) -> Iterator[None]:
    """Keep the hosts' hints off the terminal; their warnings about this training still show.

    Args:
        warned: keep the warnings off as well, and what is attached: the training itself says so.
    """
    least = logging.ERROR if warned else logging.WARNING
    own = logging.getLogger("nas_dynamic")

    def worth_showing(record: logging.LogRecord) -> bool:
        return record.levelno >= least and not record.getMessage().startswith(HINTS)

    loggers = [logging.getLogger(name) for name in ("nni", "pytorch_lightning")]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    for handler in handlers:
        handler.addFilter(worth_showing)
    if warned:
        own.addFilter(worth_showing)
    try:
        with warnings.catch_warnings():
            for hint in ("",) if warned else HINTS:
                warnings.filterwarnings("ignore", re.escape(hint))
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(worth_showing)
        own.removeFilter(worth_showing)
