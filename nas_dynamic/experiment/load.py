"""A finished run of `nas-dynamic train`, to work with: its supernet, images, and subnets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nas_dynamic.adapters.nni import Supernet
from nas_dynamic.evaluation.batch_norm import batch_norm_layers, recalibrate
from nas_dynamic.experiment.config import Config, parse
from nas_dynamic.experiment.data import ImageData
from nas_dynamic.experiment.engine import Engine
from nas_dynamic.experiment.nni.supernet import load_supernet
from nas_dynamic.experiment.run import load_data
from nas_dynamic.experiment.scores import SubnetScorer
from nas_dynamic.report.records import SeedResult
from nas_dynamic.report.run_folder import read_runs
from nas_dynamic.space import Architecture
from nas_dynamic.storage.journal import RunError, command_text

if TYPE_CHECKING:
    from nas_dynamic.search import Objective, SearchResult, Strategy

__all__ = ["LoadedRun", "load_run"]


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """One seed of a run.

    Attributes:
        folder: of the run.
        config: as it was run.
        data: its images.
        result: of the seed, with the subnets that were scored after the training.
        supernet: with the trained weights.
        score: architectures → their scores on the validation images, in any order; kept in the
            folder, so that none is made twice.
    """

    folder: Path
    config: Config
    data: ImageData
    result: SeedResult
    supernet: Supernet
    score: SubnetScorer

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.result.seed

    def search(
        self,
        *,
        budget: int,
        strategy: Strategy | None = None,
        objectives: Sequence[Objective] | None = None,
        measures: Mapping[str, Callable[[Architecture], float]] | None = None,
        engine: Engine | None = None,
        **options: Any,
    ) -> SearchResult:
        """Search the space, by the scores with inherited weights.

        After a stop, the same search goes on: it repeats its decisions with the scores that are
        kept. So does a greater budget, and one within other limits has the scores as well.

        Args:
            budget: greatest number of subnets that are looked at.
            strategy: what to look at next; `Evolution()` by default.
            objectives: of `"loss"`, `"accuracy"` and the measures; the loss by default.
            measures: name → architecture → value, beside `"parameters"`.
            engine: scores the subnets, here and one by one by default.
            options: as in `nas_dynamic.search.search`: at_most, at_least, patience, progress, …
        """
        from nas_dynamic.search import search  # here: an export takes no searching
        from nas_dynamic.search.supernet import LOWEST_LOSS, scored_in_order

        return search(
            self.supernet.space,
            scored_in_order(partial(self.score, engine=engine)),
            objectives or LOWEST_LOSS,
            budget=budget,
            strategy=strategy,
            measures={"parameters": self.supernet.subnet_parameters(), **(measures or {})},
            **options,
        )

    def extract(self, architecture: Architecture) -> nn.Module:
        """Return a subnet as a model of its own, with BN statistics of its own, on the CPU.

        Raises:
            ValueError: it is no architecture of the space.
        """
        subnet = self.supernet.extract(architecture)
        if batch_norm_layers(subnet):
            recalibrate(subnet, self.score.calibration, precision=self.config.precision)
        return subnet.cpu().eval()


def load_run(
    folder: str | Path, seed: int | None = None, *, device: str | None = None
) -> LoadedRun:
    """Return a finished run: the supernet that `nas-dynamic train` has trained.

    Args:
        folder: of the run, or of an arm of a comparison.
        seed: which of its supernets; by default the first one that is finished.
        device: to score on, in place of the configuration's.

    Raises:
        RunError: the folder holds no such run, or its checkpoint is not that of its scores.

    Example:
        run = load_run("runs/digits")
        found = run.search(budget=300, at_most={"parameters": 50_000})
        network = run.extract(found.best.architecture)
    """
    folder = Path(folder)
    runs = read_runs([folder])
    if len(runs) > 1:
        arms = " or ".join(command_text(run.folder) for run in runs)
        raise RunError(f"{folder} holds a comparison; give one of its arms: {arms}")
    finished = {result.seed: result for result in runs[0].seeds}
    if not finished:
        raise RunError(
            f"{folder} holds an unfinished run; `nas-dynamic train CONFIG --resume` goes on with it"
        )
    if seed is not None and seed not in finished:
        known = ", ".join(map(str, finished))
        raise RunError(f"{folder} has no finished seed {seed}; it has {known}")
    result = finished[seed] if seed is not None else next(iter(finished.values()))
    config = parse(dict(runs[0].config), str(folder / "config.json"))
    if device is not None:
        config = config.model_copy(update={"device": device})
    data = load_data(config.data)
    of_seed = folder / f"seed-{result.seed}"
    supernet = load_supernet(config, data.classes, of_seed)
    return LoadedRun(
        folder, config, data, result, supernet, SubnetScorer(supernet, config, data, of_seed)
    )


def example_images(data: ImageData, count: int) -> torch.Tensor:
    """Return the first validation images, shape (count, channels, height, width)."""
    images, _ = data.validation[torch.arange(count)]
    return images
