"""The measures of trained supernets, and of two trainings side by side.

They are computed here and nowhere else: tables, JSON files, verdicts and pages have them from here.
A supernet ranks subnets by their loss with inherited weights, which orders them with less noise
than their accuracy does; the τ of that ranking to stand-alone accuracy is the primary measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.analysis.ranking import (
    complexity_bias,
    kendall_tau,
    matched_kendall_tau,
    rank_by_loss,
)
from nas_dynamic.report.records import Comparison, SeedResult
from nas_dynamic.report.run_folder import Run
from nas_dynamic.space import Key, key

__all__ = ["HALF_WIDTH", "MEASURES", "PRIMARY", "Measure", "compare", "measured"]


@dataclass(frozen=True)
class Measure:
    """How a measure is shown.

    Attributes:
        title: its name, in words.
        form: of its numbers, as `format` takes it; z is for no −0.
    """

    title: str
    form: str


MEASURES = {
    "tau_by_loss": Measure("Kendall τ by the loss", "z.3f"),
    "tau_by_accuracy": Measure("Kendall τ by the accuracy", "z.3f"),
    "matched_tau": Measure("matched τ by the loss", "z.3f"),
    "complexity_bias": Measure("complexity bias by the loss", "z.3f"),
    "pick": Measure("stand-alone accuracy of its pick", "z.1%"),
    "mean_accuracy": Measure("mean accuracy, inherited weights", "z.1%"),
    "seconds": Measure("seconds of training", "z.0f"),
}

PRIMARY = "tau_by_loss"

HALF_WIDTH = 0.05
"""Half the width of an interval of τ that would tell something on a small task."""


def measured(seed: SeedResult, standalone: Mapping[Key, float]) -> dict[str, float]:
    """Return the measures of one supernet; NaN is a τ of subnets that are all equal.

    Those of its ranking take two stand-alone accuracies or more.
    """
    free = {"mean_accuracy": seed.mean_accuracy, "seconds": seed.cost.seconds}
    subnets = [subnet for subnet in seed.subnets if key(subnet.architecture) in standalone]
    if len(subnets) < 2:
        return free
    alone = np.array([standalone[key(subnet.architecture)] for subnet in subnets])
    sizes = np.array([subnet.parameters for subnet in subnets])
    ranks = rank_by_loss(subnet.loss for subnet in subnets)
    return {
        "tau_by_loss": kendall_tau(ranks, alone),
        "tau_by_accuracy": kendall_tau([subnet.accuracy for subnet in subnets], alone),
        "matched_tau": matched_kendall_tau(ranks, alone, sizes),
        "complexity_bias": complexity_bias(ranks, alone, sizes),
        "pick": float(alone[ranks.argmax()]),
    } | free


def compare(first: Run, other: Run) -> Comparison | None:
    """Return two trainings side by side, over the seeds that both have.

    None if they scored other subnets, or have no seed in common.
    """
    if other.comparison is not None and other.folder.parent == first.folder.parent:
        names = (first.name, other.name)
        renamed = dict(zip(names, other.comparison.arms.values(), strict=True))
        return other.comparison.model_copy(update={"arms": renamed})
    seeds = sorted({s.seed for s in first.seeds} & {s.seed for s in other.seeds})
    if first.keys != other.keys or not seeds:
        return None
    standalone = {k: v for k, v in first.standalone.items() if other.standalone.get(k) == v}
    arms: dict[str, dict[str, list[float]]] = {}
    for run in (first, other):
        rows = [measured(seed, standalone) for seed in run.seeds if seed.seed in seeds]
        arms[run.name] = {measure: [row[measure] for row in rows] for measure in rows[0]}
    less, more = arms.values()
    differences = {m: Difference(np.subtract(more[m], less[m])) for m in more}
    known = [subnet for subnet in first.subnets if key(subnet.architecture) in standalone]
    alone = [standalone[key(subnet.architecture)] for subnet in known]
    ranked = len(known) > 1
    return Comparison(
        seeds=seeds,
        arms=arms,
        differences={name: mean_estimate(d.values) for name, d in differences.items()},
        seeds_needed=differences[PRIMARY].seeds_needed(HALF_WIDTH) if ranked else None,
        subnets=len(known),
        reached=(min(alone), max(alone)) if alone else None,
        tau_of_parameters=kendall_tau([s.parameters for s in known], alone) if ranked else math.nan,
    )
