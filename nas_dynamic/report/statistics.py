"""The numbers of a report: of one run, of its ranking, and of two runs side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.analysis.diagnostics import Diagnostics, diagnose
from nas_dynamic.analysis.paired import Difference
from nas_dynamic.analysis.ranking import Estimate, estimate, tau
from nas_dynamic.report.run_folder import Pair, Row, Run

with extra("experiment"):
    from scipy import stats

__all__ = [
    "Band",
    "Comparison",
    "Ranked",
    "agreement_of_seeds",
    "binned",
    "compare",
    "complexity_bands",
    "over_sample",
    "pareto",
    "rankings",
    "share_interval",
    "similarity",
]


def pareto(complexity: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Whether no other subnet is as good in both, and better in one: smaller, more accurate.

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


def over_sample(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean of independent values with its 95% t-interval; an interval of nan for one value.

    `subnets` of the result is the number of values.
    """
    array = np.asarray(values, dtype=float)
    low, high = Difference(array).t_interval() if len(array) > 1 else (math.nan, math.nan)
    return Estimate(float(array.mean()), float(low), float(high), len(array))


def share_interval(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95% interval of an accuracy that was measured on `count` images."""
    interval = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def agreement_of_seeds(run: Run) -> Estimate | None:
    """Mean Kendall τ between the rankings of any two seeds; None for a single seed.

    Without an interval: the pairs are not independent.
    """
    if len(run.seeds) < 2 or len(run.subnets) < 2:
        return None
    taus = [tau(a, b) for a, b in itertools.combinations(run.accuracies(), 2)]
    return Estimate(float(np.mean(taus)), math.nan, math.nan, len(run.subnets))


@dataclass(frozen=True)
class Ranked:
    """Runs that scored the same subnets, held against one truth.

    Attributes:
        runs: the runs.
        scored: numbers of the subnets, in the order of the runs, whose truth is known.
        truth: true accuracy of these, in [0, 1].
        diagnostics: a row for each seed of each run, then the baselines; see `row`.
        means: run → τ, the mean over its seeds.
        beyond: run → that τ − the τ of the parameter count, on the same resamples.
    """

    runs: Sequence[Run]
    scored: np.ndarray
    truth: np.ndarray
    diagnostics: Diagnostics
    means: dict[str, Estimate]
    beyond: dict[str, Estimate]

    def row(self, run: Run, seed: int) -> dict[str, Estimate]:
        """The diagnostics of one supernet."""
        return self.diagnostics.rows[_row(run, seed)]

    def predicted(self, run: Run) -> np.ndarray:
        """Inherited accuracy of the subnets whose truth is known, shape (seeds, subnets)."""
        return run.accuracies()[:, self.scored]


def _row(run: Run, seed: int) -> str:
    return f"{run.name}, seed {seed}"


def rankings(runs: Sequence[Run], *, resamples: int = 1000) -> list[Ranked]:
    """The runs whose truth is known for two subnets or more, by the subnets that they scored."""
    together: dict[tuple, list[Run]] = {}
    for run in runs:
        known = tuple((key, run.truth[key]) for key in run.keys if key in run.truth)
        if len(known) > 1:
            together.setdefault((tuple(run.keys), known), []).append(run)
    return [_ranked(of_same, resamples) for of_same in together.values()]


def _ranked(runs: Sequence[Run], resamples: int) -> Ranked:
    first = runs[0]
    scored = np.array([n for n, key in enumerate(first.keys) if key in first.truth])
    truth = np.array([first.truth[first.keys[n]] for n in scored])
    parameters = first.parameters()[scored]
    complexities = {"parameter count": parameters}
    macs = first.macs()
    if macs is not None:
        complexities["MACs"] = macs[scored]
    predicted = {run.name: run.accuracies()[:, scored] for run in runs}
    supernets = {
        _row(run, seed.seed): row
        for run in runs
        for seed, row in zip(run.seeds, predicted[run.name], strict=True)
    }

    def mean_tau(true: np.ndarray, *seeds: np.ndarray) -> float:
        return float(np.mean([tau(seed, true) for seed in seeds]))

    def beyond(true: np.ndarray, sizes: np.ndarray, *seeds: np.ndarray) -> float:
        return mean_tau(true, *seeds) - tau(sizes, true)

    return Ranked(
        runs,
        scored,
        truth,
        diagnose(supernets, truth, complexities, resamples=resamples),
        {k: estimate(mean_tau, truth, *p, resamples=resamples) for k, p in predicted.items()},
        {
            k: estimate(beyond, truth, parameters, *p, resamples=resamples)
            for k, p in predicted.items()
        },
    )


@dataclass(frozen=True)
class Comparison:
    """What one run has more than another one, in the mean over the seeds that both have.

    Attributes:
        measure: that is compared: `"τ"`, or `"mean accuracy"` where no truth is known.
        run: the one run.
        other: the other run.
        difference: with its t-interval over the seeds.
    """

    measure: str
    run: str
    other: str
    difference: Estimate


def compare(runs: Sequence[Run], ranked: Sequence[Ranked]) -> list[Comparison]:
    """Every run with the first one, where both scored the same subnets."""
    comparisons = []
    for run in runs[1:]:
        first = runs[0]
        a, b = ({s.seed: n for n, s in enumerate(r.seeds)} for r in (run, first))
        common = sorted(a.keys() & b.keys())
        if run.keys != first.keys or not common:
            continue
        shared = [
            group for group in ranked if {run.name, first.name} <= {r.name for r in group.runs}
        ]
        if shared:
            (group,) = shared
            taus = [
                group.row(run, seed)["Kendall τ"].value - group.row(first, seed)["Kendall τ"].value
                for seed in common
            ]
            measure, values = "τ", taus
        else:
            measure = "mean accuracy"
            means, others = run.accuracies().mean(1), first.accuracies().mean(1)
            values = [float(means[a[seed]] - others[b[seed]]) for seed in common]
        comparisons.append(Comparison(measure, run.name, first.name, over_sample(values)))
    return comparisons


@dataclass(frozen=True)
class Band:
    """Updates whose subnets are of like complexity: those of one quantile.

    Attributes:
        least: least number of parameters.
        greatest: greatest number of parameters.
        rows: the updates.
    """

    least: int
    greatest: int
    rows: list[Row]


def complexity_bands(rows: Sequence[Row], count: int = 5) -> list[Band]:
    """Recorded updates by quantile of the number of parameters, small subnets first.

    Subnets of one size are of one band, so there may be fewer than `count`.
    """
    sizes = np.array([row.parameters for row in rows])
    edges = np.unique(np.quantile(sizes, np.arange(1, count) / count))
    number = np.searchsorted(edges, sizes, side="left")
    bands = []
    for n in np.unique(number):
        members = [row for row, of in zip(rows, number, strict=True) if of == n]
        parameters = [row.parameters for row in members]
        bands.append(Band(min(parameters), max(parameters), members))
    return bands


def binned(
    steps: Sequence[int], values: Sequence[float], total: int, bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean value in equal parts of a training: middle of each part, and mean; empty parts not.

    Args:
        steps: of the values.
        values: as many.
        total: number of updates of the training.
        bins: number of parts, at most.
    """
    bins = min(bins, total)
    part = np.minimum(np.asarray(steps) * bins // total, bins - 1)
    counts = np.bincount(part, minlength=bins)
    sums = np.bincount(part, weights=np.asarray(values, dtype=float), minlength=bins)
    some = counts > 0
    middles = (np.arange(bins) + 0.5) * total / bins
    return middles[some], sums[some] / counts[some]


def similarity(pairs: Sequence[Pair]) -> tuple[Estimate | None, Estimate | None]:
    """Mean cosine within groups, and between groups; None without a pair of that kind."""
    within = [pair.cosine for pair in pairs if pair.groups[0] == pair.groups[1]]
    between = [pair.cosine for pair in pairs if pair.groups[0] != pair.groups[1]]
    return (over_sample(within) if within else None, over_sample(between) if between else None)
