"""Ten criteria of automated deep learning, each a figure of the runs or "not measured"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from nas_dynamic.analysis.ranking import kendall_tau, rank_by_loss
from nas_dynamic.report.format import duration, energy, number, percent
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.statistics import Ranked, agreement_of_seeds
from nas_dynamic.report.tables import Table

__all__ = ["criteria"]

NOT_MEASURED = "not measured"


def criteria(runs: Sequence[Run], ranked: Sequence[Ranked]) -> Table:
    """Return the ten criteria of a survey, a column for each run that has finished seeds.

    Source: Dong, Kedziora, Musial and Gabrys, "Automated Deep Learning: Neural Architecture Search
    Is Not the End", Foundations and Trends in Machine Learning 2024, arXiv 2112.09245.
    """
    of_run: dict[str, Callable[[Run], str]] = {
        "novelty": _unknown,
        "solution quality": _quality,
        "efficiency": _efficiency,
        "stability": _stability,
        "interpretability": _interpretability,
        "reproducibility": _reproducibility,
        "engineering quality": _unknown,
        "scalability": _unknown,
        "generalizability": lambda run: _generalizability(run, ranked),
        "eco-friendliness": _ecology,
    }
    rows = [[name, *map(criterion, runs)] for name, criterion in of_run.items()]
    return Table(
        "Ten criteria",
        ["criterion", *(run.name for run in runs)],
        rows,
        "By which Dong et al. (2024) judge automated deep learning. What a run does not tell is "
        "not measured.",
        text=frozenset(range(1, len(runs) + 1)),
    )


def _unknown(run: Run) -> str:
    return NOT_MEASURED


def _quality(run: Run) -> str:
    accuracies = [seed.pick.accuracy for seed in run.seeds]
    return (
        f"{percent(float(np.mean(accuracies)))}, the subnet of the lowest loss, weights inherited"
    )


def _efficiency(run: Run) -> str:
    seconds = float(np.mean([seed.cost.seconds for seed in run.seeds]))
    return f"{duration(seconds)} a supernet, for a choice of {len(run.subnets):,} scored subnets"


def _stability(run: Run) -> str:
    if len(run.seeds) < 2:
        return NOT_MEASURED
    spread = float(np.std([seed.pick.accuracy for seed in run.seeds], ddof=1))
    agreement = number(agreement_of_seeds(run))
    return f"Kendall τ between seeds {agreement}; the accuracy found has sd {percent(spread)}"


def _interpretability(run: Run) -> str:
    sizes = run.parameters()
    ranks = [rank_by_loss(subnet.loss for subnet in seed.subnets) for seed in run.seeds]
    tau = float(np.mean([kendall_tau(sizes, of_seed) for of_seed in ranks]))
    return NOT_MEASURED if math.isnan(tau) else f"Kendall τ with the parameter count {number(tau)}"


def _reproducibility(run: Run) -> str:
    seeds = ", ".join(str(seed.seed) for seed in run.seeds)
    return f"seed{'s' * (len(run.seeds) > 1)} {seeds}; versions and configuration below"


def _generalizability(run: Run, ranked: Sequence[Ranked]) -> str:
    for group in ranked:
        if run.name in group.means:
            return f"τ {group.means[run.name]:.2f} with stand-alone accuracy, on this data set"
    return NOT_MEASURED


def _ecology(run: Run) -> str:
    joules = [seed.cost.joules for seed in run.seeds]
    if not joules or any(value is None for value in joules):
        return NOT_MEASURED
    return f"{energy(math.fsum(value for value in joules if value is not None))}, all seeds"
