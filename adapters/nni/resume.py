"""NNI's `NasExperiment.resume`, which goes on from the last checkpoint after a kill as well."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import Lightning
from nni.nas.oneshot.pytorch.strategy import OneShotStrategy

from nas_dynamic.storage.random_state import random_state, set_random_state

__all__ = ["Resumable", "StrategyState"]

_logger = logging.getLogger("nas_dynamic")


class Resumable(pl.Callback):
    """Keeps in a training's checkpoints whose they are, and what Lightning does not keep.

    That is the state of the random numbers, so that a resumed training shuffles and drops out as
    an unbroken one (of several processes each has its own, which are left alone); and the metrics,
    which NNI reports at the end, also where no epoch is left.

    Attributes:
        training_id: the same in all checkpoints of a training, also after a resume by NNI.
    """

    def __init__(self) -> None:
        self.training_id = uuid.uuid4().hex
        self._trainer: pl.Trainer | None = None
        self._metrics: dict[str, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Keep the trainer, whose metrics and processes count."""
        self._trainer = trainer

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the trainer go."""
        self._trainer = None

    def state_dict(self) -> dict[str, Any]:
        """Return plain data."""
        metrics = {} if self._trainer is None else self._trainer.callback_metrics
        return {
            "training_id": self.training_id,
            "random": random_state() if self._is_alone() else None,
            "metrics": {name: float(value) for name, value in metrics.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the random numbers; Lightning calls this before it makes the first batch."""
        self._metrics = state_dict["metrics"]
        if self._is_alone() and state_dict["random"] is not None:
            set_random_state(state_dict["random"])

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the metrics back that no epoch has measured anew."""
        for name, value in self._metrics.items():
            trainer.callback_metrics.setdefault(name, torch.tensor(value))

    def _is_alone(self) -> bool:
        return self._trainer is not None and self._trainer.world_size == 1


@dataclass(frozen=True, eq=False)
class StrategyState:
    """What stands in for the `state_dict` and the `load_state_dict` of a strategy.

    NNI's own name the checkpoint that the trainer wrote last, and NNI asks for that before the
    training and after it, so that a killed experiment begins anew. These name the training, and
    look for its last checkpoint.
    """

    strategy: OneShotStrategy

    def save(self) -> dict[str, Any]:
        """Return the state of the strategy, with the training that its evaluator does."""
        state: dict[str, Any] = type(self.strategy).state_dict(self.strategy)
        found = self._training()
        return state if found is None else state | {"training_id": found[1].training_id}

    def load(self, state_dict: dict[str, Any]) -> None:
        """Have the evaluator go on from the last checkpoint of the training that was saved."""
        found = self._training()
        if found is None or "training_id" not in state_dict:
            type(self.strategy).load_state_dict(self.strategy, state_dict)
            return
        evaluator, callback = found
        callback.training_id = state_dict["training_id"]
        given = evaluator.fit_kwargs.get("ckpt_path")
        if given is not None:
            _logger.info("the experiment goes on from %s, the ckpt_path that is given", given)
            return
        path = last_checkpoint(evaluator, callback)
        if path is None:
            _logger.warning(
                "no checkpoint of this experiment is there (in %s): its training begins anew. The "
                "trainer writes one after every epoch, but for enable_checkpointing=False",
                ", ".join(map(str, _folders(evaluator.trainer))) or "no folder",
            )
            return
        _logger.info("the experiment goes on from %s", path)
        evaluator.fit_kwargs["ckpt_path"] = str(path)

    def _training(self) -> tuple[Lightning, Resumable] | None:
        """Return the evaluator of the supernet, and its callback; None before NNI has made it."""
        space = self.strategy._mutated_model_space
        if space is None:
            return None
        evaluator: Any = space.evaluator
        callbacks = evaluator.trainer.callbacks
        return evaluator, next(c for c in reversed(callbacks) if isinstance(c, Resumable))


def last_checkpoint(evaluator: Lightning, callback: Resumable) -> Path | None:
    """Return the checkpoint of a training that was written last; None if there is none."""
    trainer: Any = evaluator.trainer
    paths = {p for folder in _folders(trainer) for p in folder.glob("*.ckpt")}
    options = {k: v for k, v in evaluator.fit_kwargs.items() if k == "weights_only"}
    for path in sorted(paths, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        try:
            checkpoint = trainer.strategy.checkpoint_io.load_checkpoint(str(path), **options)
        except Exception as error:  # whatever its format raises where a kill has left a part of it
            _logger.warning("%s cannot be read, and is passed over: %s", path, error)
            continue
        state = checkpoint.get("callbacks", {}).get(callback.state_key, {})
        if state.get("training_id") == callback.training_id:
            return path
    return None


def _folders(trainer: pl.Trainer) -> Iterator[Path]:
    """Yield where the checkpoints of a trainer are, of this start and of earlier ones."""
    for callback in trainer.checkpoint_callbacks:
        folder = getattr(callback, "dirpath", None)
        if folder is not None:
            yield Path(folder)
        elif trainer.loggers:  # a folder for each start, of a name that only its logger knew
            logger = trainer.loggers[0]
            root = Path(logger.save_dir or trainer.default_root_dir, str(logger.name))
            yield root / "checkpoints"
            yield from sorted(root.glob("*/checkpoints"))
        else:
            yield Path(trainer.default_root_dir, "checkpoints")
