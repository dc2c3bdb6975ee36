"""A supernet as a configuration describes it, trained in an NNI one-shot experiment."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from nas_dynamic._extras import extra
from nas_dynamic.adapters.nni import dynamic, search_space, subnet_macs, subnet_parameters
from nas_dynamic.adapters.nni.space import sample_of
from nas_dynamic.experiment.config import FOREIGN, Config, ConfigError, kwargs_of, refusing
from nas_dynamic.experiment.data import ImageData, batch_loader
from nas_dynamic.experiment.nni.checkpoint import SafeCheckpoints
from nas_dynamic.experiment.nni.recorder import Progress, TrainingRecorder
from nas_dynamic.space import Architecture, SearchSpace
from nas_dynamic.storage import checkpoint as checkpoints

with extra("nni"):
    import pytorch_lightning as pl
    from nni.nas.evaluator.pytorch import ClassificationModule, DataLoader, Lightning, Trainer
    from nni.nas.experiment import NasExperiment
    from nni.nas.hub import pytorch as hub
    from nni.nas.nn.pytorch import ModelSpace
    from nni.nas.strategy import RandomOneShot
    from pytorch_lightning.callbacks import ModelCheckpoint

__all__ = [
    "Progress",
    "TrainedSupernet",
    "build_optimizer",
    "build_scheduler",
    "build_space",
    "build_subnet",
    "quiet",
    "train_supernet",
    "updates_of",
]


@dataclass(frozen=True, eq=False)
class TrainedSupernet:
    """A trained supernet.

    Attributes:
        model: the supernet in NNI's mutated form, on the CPU.
        space: its search space.
        parameters: architecture → number of parameters of that subnet.
        macs: architecture → multiply-accumulates of that subnet for one image.
        recorder: what was recorded of the training.
    """

    model: ModelSpace
    space: SearchSpace
    parameters: Callable[[Architecture], int]
    macs: Callable[[Architecture], float]
    recorder: TrainingRecorder


def build_space(config: Config, classes: int) -> ModelSpace:
    """Return the model space of a configuration, with new weights.

    Spaces of NNI's hub, and functions that take `num_labels`, are given the number of classes
    where the configuration does not set it. NDS spaces (DARTS, ENAS, …) take it from their
    `dataset`.

    Raises:
        ConfigError: there is no such space, or it does not take the arguments.
    """
    name, kwargs = config.space.name, dict(config.space.kwargs)
    factory = _space_factory(name)
    of_hub = vars(hub).get(name) is factory
    # What else a space of one's own raises may be a bug in it.
    with refusing(kwargs_of("space", config.space), *(FOREIGN if of_hub else ())):
        # The classes of model spaces hide their arguments: NNI wraps `__init__`.
        if inspect.isclass(factory) and issubclass(factory, ModelSpace):
            takes_classes = of_hub and not issubclass(factory, hub.NDS)
        else:
            takes_classes = "num_labels" in inspect.signature(factory).parameters
        if takes_classes:
            kwargs.setdefault("num_labels", classes)
        model_space = factory(**kwargs)
    if not isinstance(model_space, ModelSpace):
        raise ConfigError(
            f"space.name is {name!r}, which gives a {type(model_space).__name__}; "
            "it must give an NNI ModelSpace"
        )
    return model_space


def build_optimizer(
    config: Config, parameters: Iterable[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    """Return the optimizer of a configuration.

    Raises:
        ConfigError: it does not take the arguments, or the parameters.
    """
    chosen = config.optimizer
    with refusing(kwargs_of("optimizer", chosen), *FOREIGN):
        optimizer: torch.optim.Optimizer = getattr(torch.optim, chosen.name)(
            parameters, **chosen.kwargs
        )
    return optimizer


def build_scheduler(
    config: Config, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Return the lr scheduler of a configuration, if it has one.

    Raises:
        ConfigError: it does not take the arguments.
    """
    chosen = config.scheduler
    if chosen is None:
        return None
    with refusing(kwargs_of("scheduler", chosen), *FOREIGN):
        kind = getattr(torch.optim.lr_scheduler, chosen.name)
        scheduler: torch.optim.lr_scheduler.LRScheduler = kind(optimizer, **chosen.kwargs)
    return scheduler


def build_subnet(config: Config, classes: int, architecture: Architecture) -> torch.nn.Module:
    """Return a stand-alone subnet of the space of a configuration, with new weights."""
    model_space = build_space(config, classes)
    subnet: torch.nn.Module = model_space.freeze(sample_of(architecture, model_space))
    return subnet


def updates_of(config: Config, batches: int) -> int:
    """Return the number of updates in the budget of a configuration, given those of an epoch."""
    return config.steps or (config.epochs or 0) * batches


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
        experiment = NasExperiment(model_space, evaluator, strategy)
        try:
            experiment.run()
        finally:
            experiment.stop()
    supernet = strategy.supernet
    image, _ = data.validation[torch.tensor([0])]
    return TrainedSupernet(
        model=supernet,
        space=search_space(supernet),
        parameters=subnet_parameters(supernet),
        macs=subnet_macs(supernet, image),
        recorder=recorder,
    )


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


def _space_factory(name: str) -> Callable[..., Any]:
    if ":" in name:
        module, _, attribute = name.partition(":")
        if not module or module.startswith("."):
            raise ConfigError(f"space.name is {name!r}; it must be module:callable, absolute")
        try:
            factory = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"space.name is {name!r}: cannot import it: {error}") from error
        if not callable(factory):
            raise ConfigError(
                f"space.name is {name!r}, which is a {type(factory).__name__}; it must be a "
                "callable that returns an NNI ModelSpace"
            )
        return factory  # type: ignore[no-any-return]
    known = [
        key
        for key, value in vars(hub).items()
        if inspect.isclass(value) and issubclass(value, ModelSpace)
    ]
    if name not in known:
        raise ConfigError(
            f"space.name is {name!r}; it must be module:callable or one of {', '.join(known)}"
        )
    return getattr(hub, name)  # type: ignore[no-any-return]


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
    "Checkpoint directory",  # … exists and is not empty, when a run is resumed
    "`isinstance(treespec, LeafSpec)` is deprecated",
)
"""Beginnings of warnings that NNI and Lightning give for any one-shot experiment on this stack."""


@contextlib.contextmanager
def quiet(*, warned: bool = False) -> Iterator[None]:
    """Keep the hosts' hints off the terminal; their warnings about this training still show.

    Args:
        warned: keep the warnings off as well, which the training itself gives.
    """
    least = logging.ERROR if warned else logging.WARNING

    def worth_showing(record: logging.LogRecord) -> bool:
        return record.levelno >= least and not record.getMessage().startswith(HINTS)

    loggers = [logging.getLogger(name) for name in ("nni", "pytorch_lightning")]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    for handler in handlers:
        handler.addFilter(worth_showing)
    try:
        with warnings.catch_warnings():
            for hint in ("",) if warned else HINTS:
                warnings.filterwarnings("ignore", re.escape(hint))
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(worth_showing)
