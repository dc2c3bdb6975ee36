"""Score the subnets of a supernet that was trained by a configuration."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from nas_dynamic.adapters.nni import Supernet
from nas_dynamic.evaluation.inference import placed
from nas_dynamic.evaluation.score_cache import digest, kept_scores
from nas_dynamic.evaluation.scoring import Score, score_subnets
from nas_dynamic.experiment.config import Config
from nas_dynamic.experiment.data import ImageData, batch_loader, calibration_batches
from nas_dynamic.experiment.engine import Engine, LocalEngine, Place
from nas_dynamic.space import Architecture

__all__ = ["SubnetScorer"]

Batch = tuple[torch.Tensor, torch.Tensor]


class SubnetScorer:
    """Architectures → their scores on the validation images, as `scoring` of a configuration says.

    Args:
        supernet: the trained one; it is moved to the device of the configuration.
        config: of the run.
        data: of the run.
        folder: scores are kept in its scores.jsonl, and those that are there are not made again.
    """

    def __init__(
        self, supernet: Supernet, config: Config, data: ImageData, folder: Path | None = None
    ) -> None:
        self.supernet = supernet.to(config.torch_device)
        self.config = config
        self.data = data
        self.folder = folder

    def __call__(
        self, architectures: Iterable[Architecture], engine: Engine | None = None
    ) -> Iterator[Score]:
        """Yield the scores; with a folder, those in it come first.

        Args:
            architectures: the subnets.
            engine: scores them, here and in their order by default.
        """
        score = partial((engine or LocalEngine()).map, self._score)
        if self.folder is None:
            return score(list(architectures))
        path = self.folder / "scores.jsonl"
        return kept_scores(path, self.depends_on, architectures, score)

    @cached_property
    def depends_on(self) -> dict[str, Any]:
        """What decides the scores."""
        config = self.config
        return {
            "supernet": digest(self.supernet.model),
            "scoring": config.scoring.model_dump(mode="json"),
            "data": config.data.model_dump(mode="json"),
            "batch_size": config.batch_size,
            "precision": config.precision,
        }

    @cached_property
    def calibration(self) -> list[Batch]:
        """Training images to recalibrate BN statistics on."""
        options = self.config.scoring
        return calibration_batches(
            self.data.train, self.config.batch_size, options.calibration_batches, options.seed
        )

    @cached_property
    def _validation(self) -> list[Batch]:
        workers, size = self.config.data.workers, self.config.scoring.batch_size
        batches = batch_loader(self.data.validation, size, workers=workers)
        return placed(batches, self.config.torch_device)

    def _score(self, architecture: Architecture, place: Place) -> Score:
        (score,) = score_subnets(
            self.supernet,
            Supernet.activate,
            [architecture],
            self._validation,
            batch_norm=self.config.scoring.batch_norm,
            calibration=self.calibration,
            precision=self.config.precision,
        )
        return score
