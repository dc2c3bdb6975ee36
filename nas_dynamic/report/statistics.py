"""The numbers of a report: of one run, and of its ranking with intervals over the subnets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas_dynamic.analysis.diagnostics import Diagnostics, diagnose
from nas_dynamic.analysis.ranking import Estimate, estimate, kendall_tau, rank_by_loss
from nas_dynamic.report.measures import MEASURES
from nas_dynamic.report.records import TrainedUpdate
from nas_dynamic.report.run_folder import Run

__all__ = [
    "BY_ACCURACY",
    "Ranked",
    "agreement_of_seeds",
    "complexity_bands",
    "pareto",
    "rankings",
]

BY_ACCURACY = MEASURES["tau_by_accuracy"].title
"""The column of diagnostics that has the second measure."""


def pareto(complexity: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Return whether no other subnet is as good in both, and better in one: smaller, more accurate.

    Args:
        complexity: less is better, shape (subnets,).
        accuracy: more is better, shape (subnets,).
    """
    best = np.zeros(len(complexity), dtype=bool)
    reached = -math.inf
    for size in np.unique(complexity):
        of_size = complexity == size
        highest = accuracy[of_size].max()
        if highest > reached:
            best |= of_size & (accuracy == highest)
            reached = highest
    return best


def agreement_of_seeds(run: Run) -> float:
    """Return the mean Kendall τ between the rankings of any two seeds, by the loss."""
    ranks = [rank_by_loss(subnet.loss for subnet in seed.subnets) for seed in run.seeds]
    return float(np.mean([kendall_tau(a, b) for a, b in itertools.combinations(ranks, 2)]))


@dataclass(frozen=True, eq=False)
class Ranked:
    """Runs that scored the same subnets, held against the same stand-alone accuracies.

    Attributes:
        runs: the runs.
        scored: numbers of the subnets, in the order of the runs, whose accuracy is known.
        standalone: stand-alone accuracy of these, in [0, 1].
        diagnostics: a row for each seed of each run, ranked by the loss, with τ by the accuracy
            in the column `BY_ACCURACY`; then the baselines. See `row`.
        means: run → τ by the loss, the mean over its seeds.
        beyond: run → that τ − the τ of the parameter count, on the same resamples.
    """

    runs: Sequence[Run]
    scored: np.ndarray
    standalone: np.ndarray
    diagnostics: Diagnostics
    means: dict[str, Estimate]
    beyond: dict[str, Estimate]

    def row(self, run: Run, seed: int) -> dict[str, Estimate]:
        """Return the diagnostics of one supernet."""
        return self.diagnostics.rows[_row(run, seed)]


def _row(run: Run, seed: int) -> str:
    return f"{run.name}, seed {seed}"


def rankings(runs: Sequence[Run], *, resamples: int = 1000) -> list[Ranked]:
    """Return the runs with stand-alone accuracies of two subnets or more, by what they scored."""
    together: dict[object, list[Run]] = {}
    for run in runs:
        known = tuple((k, run.standalone[k]) for k in run.keys if k in run.standalone)
        if len(known) > 1:
            together.setdefault((tuple(run.keys), known), []).append(run)
    return [_ranked(of_same, resamples) for of_same in together.values()]


def _ranked(runs: Sequence[Run], resamples: int) -> Ranked:
    first = runs[0]
    scored = np.array([n for n, k in enumerate(first.keys) if k in first.standalone])
    standalone = np.array([first.standalone[first.keys[n]] for n in scored])
    complexities = {"parameter count": first.parameters()[scored]}
    macs = first.macs()
    if macs is not None:
        complexities["MACs"] = macs[scored]
    ranks = {
        run.name: [rank_by_loss(seed.subnets[n].loss for n in scored) for seed in run.seeds]
        for run in runs
    }
    supernets = {
        _row(run, seed.seed): of_seed
        for run in runs
        for seed, of_seed in zip(run.seeds, ranks[run.name], strict=True)
    }
    diagnostics = diagnose(supernets, standalone, complexities, resamples=resamples)
    for run in runs:
        for seed, accuracies in zip(run.seeds, run.accuracies()[:, scored], strict=True):
            by_accuracy = estimate(kendall_tau, accuracies, standalone, resamples=resamples)
            diagnostics.rows[_row(run, seed.seed)][BY_ACCURACY] = by_accuracy

    def mean_tau(alone: np.ndarray, *seeds: np.ndarray) -> float:
        return float(np.mean([kendall_tau(of_seed, alone) for of_seed in seeds]))

    def beyond(alone: np.ndarray, sizes: np.ndarray, *seeds: np.ndarray) -> float:
        return mean_tau(alone, *seeds) - kendall_tau(sizes, alone)

    sizes = complexities["parameter count"]
    return Ranked(
        runs,
        scored,
        standalone,
        diagnostics,
        {
            name: estimate(mean_tau, standalone, *r, resamples=resamples)
            for name, r in ranks.items()
        },
        {
            name: estimate(beyond, standalone, sizes, *r, resamples=resamples)
            for name, r in ranks.items()
        },
    )


def complexity_bands(updates: Sequence[TrainedUpdate], count: int = 5) -> list[list[TrainedUpdate]]:
    """Return updates by quantile of the parameters of their subnets, small subnets first.

    Subnets of one size are of one band, so there may be fewer than `count`.
    """
    sizes = np.array([update.parameters for update in updates])
    edges = np.unique(np.quantile(sizes, np.arange(1, count) / count))
    number = np.searchsorted(edges, sizes, side="left")
    return [
        [update for update, of in zip(updates, number, strict=True) if of == n]
        for n in np.unique(number)
    ]
