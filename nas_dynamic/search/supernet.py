"""Search a trained supernet: of plain PyTorch, of timm, of NNI."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn

from nas_dynamic.analysis.ranking import comparable_loss
from nas_dynamic.evaluation.batch_norm import BatchNormMode
from nas_dynamic.evaluation.inference import Batches
from nas_dynamic.evaluation.score_cache import digest
from nas_dynamic.evaluation.scoring import Score, score_subnets
from nas_dynamic.evaluation.supernet import Supernet
from nas_dynamic.search.objective import Objective
from nas_dynamic.search.result import SearchResult
from nas_dynamic.search.run import Scorer, search
from nas_dynamic.space import Architecture, key

__all__ = ["DIVERGED", "LOWEST_LOSS", "scored_in_order", "search_supernet"]

LOWEST_LOSS = (Objective("loss"),)
"""What a supernet ranks its subnets by: with less noise than by the accuracy."""

DIVERGED = 1e6
"""What a loss that is not finite counts as, so that it is the worst, and can be computed with."""


def search_supernet(
    supernet: Supernet,
    batches: Batches,
    *,
    budget: int,
    objectives: Sequence[Objective] = LOWEST_LOSS,
    measures: Mapping[str, Callable[[Architecture], float]] | None = None,
    calibration: Batches | None = None,
    batch_norm: BatchNormMode = "recalibrate",
    precision: str = "32",
    path: str | Path | None = None,
    **options: Any,
) -> SearchResult:
    """Find the best subnets of a trained supernet, by the weights that they inherit.

    One call for all supernets: timm's as they are; NNI's as
    `nas_dynamic.adapters.nni.Supernet(strategy.supernet)`; one of plain PyTorch that has a
    `space`, `activate(architecture)` and `subnet_parameters()`. The best subnet of the result is
    computed after `supernet.activate(result.best.architecture)`; `supernet.extract(…)` of timm
    and NNI gives it as a model of its own.

    Args:
        supernet: the trained network, on the device to score on.
        batches: (images, labels) to score on, as in `score_subnets`; read once, kept in memory.
        budget: greatest number of subnets that are scored.
        objectives: of `"loss"`, `"accuracy"` and the measures.
        measures: name → architecture → value, beside `"parameters"`: a latency table, MACs.
        calibration: training batches to recalibrate BN statistics on.
        batch_norm: as in `score_subnets`, as is `precision`.
        precision: of the scoring.
        path: file that keeps the evaluations: the same search goes on after a stop. That of
            another supernet, or of other images, is refused.
        options: as in `search`: strategy, at_most, at_least, patience, until, progress, seed.

    Returns:
        The evaluations; each has the scores, `"accuracy"` in [0, 1] and `"loss"`, and measures.

    Raises:
        ValueError: as in `search` and `score_subnets`; or the supernet lacks one of its methods.

    Example:
        >>> import torch
        >>> from nas_dynamic import SearchSpace
        >>> class Widths(torch.nn.Linear):
        ...     space = SearchSpace({"width": [1, 2, 4]})
        ...     def activate(self, architecture):
        ...         self.width = architecture["width"]
        ...     def forward(self, x):
        ...         n = self.width
        ...         return torch.nn.functional.linear(x[:, :n], self.weight[:, :n])
        ...     def subnet_parameters(self):
        ...         return lambda architecture: 2 * architecture["width"]
        >>> supernet = Widths(4, 2, bias=False)
        >>> batches = [(torch.eye(4), torch.tensor([0, 1, 0, 1]))]
        >>> found = search_supernet(
        ...     supernet, batches, batch_norm="running", budget=3, at_most={"parameters": 4}
        ... )
        >>> found.best.architecture["width"] in (1, 2)
        True
    """
    if not isinstance(supernet, Supernet):
        raise ValueError(
            f"{type(supernet).__name__} is no supernet that can be searched: it needs space, "
            "activate(architecture) and subnet_parameters(); give one of NNI as "
            "nas_dynamic.adapters.nni.Supernet(strategy.supernet)"
        )
    network = cast(nn.Module, supernet)
    scored_on = list(batches)
    calibrated_on = None if calibration is None else list(calibration)
    depends_on = None
    if path is not None:
        images = [tensor for batch in (*scored_on, *(calibrated_on or ())) for tensor in batch]
        depends_on = {
            "supernet": digest(network),
            "images": digest(dict(enumerate(images))),
            "batch_norm": batch_norm,
            "precision": precision,
        }

    def score(architectures: list[Architecture]) -> Iterator[Score]:
        return score_subnets(
            network,
            type(supernet).activate,
            architectures,
            scored_on,
            batch_norm=batch_norm,
            calibration=calibrated_on,
            precision=precision,
        )

    return search(
        supernet.space,
        scored_in_order(score),
        objectives,
        budget=budget,
        measures={"parameters": supernet.subnet_parameters(), **(measures or {})},
        path=path,
        depends_on=depends_on,
        **options,
    )


def scored_in_order(score: Callable[[list[Architecture]], Iterable[Score]]) -> Scorer:
    """Return scores, which may come in any order, as `search` takes them."""

    def scores(architectures: list[Architecture]) -> Iterator[Mapping[str, float]]:
        known: dict[Any, Score] = {}
        made = iter(score(architectures))
        for architecture in architectures:
            while key(architecture) not in known:
                scored = next(made, None)
                if scored is None:  # too few, which the search tells
                    return
                known[key(scored.architecture)] = scored
            of_subnet = known[key(architecture)]
            loss = min(comparable_loss(of_subnet.loss), DIVERGED)
            yield {"accuracy": of_subnet.accuracy, "loss": loss}

    return scores
