"""What some runs found, in words, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from nas_dynamic.report.format import joined, number, percent, seeds_text
from nas_dynamic.report.measures import MEASURES, PRIMARY, measured
from nas_dynamic.report.records import Comparison
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.statistics import BY_ACCURACY, Ranked, agreement_of_seeds, pareto
from nas_dynamic.report.verdict import verdict

__all__ = ["summary", "unfinished"]

Statement = tuple[str, str]
"""What it is about, and what is said."""


def summary(
    runs: Sequence[Run], comparisons: Sequence[Comparison], ranked: Sequence[Ranked]
) -> list[Statement]:
    """Return statements on pairs of runs, on each run, and on how sure they are."""
    statements = [
        (" beside ".join(reversed(comparison.arms)), verdict(comparison))
        for comparison in comparisons
    ]
    scored = [run for run in runs if run.seeds]
    for run in scored:
        groups = [group for group in ranked if run.name in group.means]
        said = _beside_standalone(run, groups[0]) if groups else _inherited(run)
        statements.append((run.name, " ".join(said)))
    if scored:
        statements.append(("How sure is this?", " ".join(_sureness(scored, ranked))))
    return statements


def unfinished(runs: Sequence[Run]) -> list[Statement]:
    """Return what of a run is not there yet, and how to go on with it."""
    return [
        (
            run.name,
            f"of {len(run.seeds) + len(run.missing)} seeds, {seeds_text(run.missing)} "
            f"{'are' if len(run.missing) > 1 else 'is'} missing. The report is on "
            f"{'what is there' if run.seeds else 'nothing yet'}; `nas-dynamic train CONFIG "
            "--resume`, or the same `nas-dynamic compare` or `demo`, goes on with the run.",
        )
        for run in runs
        if run.missing
    ]


def _over_seeds(run: Run) -> str:
    """Return what a value of a run is the mean over; nothing for one seed."""
    seeds = [seed.seed for seed in run.seeds]
    return f", the mean over {seeds_text(seeds)}" if len(seeds) > 1 else ""


def _beside_standalone(run: Run, group: Ranked) -> Iterator[str]:
    mean, beyond = group.means[run.name], group.beyond[run.name]
    if math.isnan(mean.value):
        yield "All subnets of a seed score the same, or are equally good: there is no ranking."
        return
    rows = [group.row(run, seed.seed) for seed in run.seeds]
    second = float(np.mean([row[BY_ACCURACY].value for row in rows]))
    yield (
        f"It ranks {len(group.standalone):,} subnets with a {MEASURES[PRIMARY].title} of "
        f"{mean:.2f} to their stand-alone accuracy{_over_seeds(run)}; by the accuracy, the second "
        f"measure, it is {number(second)}."
    )
    count = group.diagnostics.rows["parameter count"]["Kendall τ"]
    if math.isnan(beyond.low) or math.isnan(count.value):
        yield "It cannot be compared with the parameter count, for one of them is constant."
    else:
        if beyond.low > 0:
            verdict = "the supernet ranks better than counting does"
        elif beyond.high < 0:
            verdict = "counting ranks better than the supernet does"
        else:
            verdict = "which of the two ranks better is open"
        yield (
            f"The parameter count, which costs no training, has a Kendall τ of {count:.2f}. The "
            f"difference is {beyond:+.2f}: {verdict}."
        )
    pick = float(np.mean([measured(seed, run.standalone)["pick"] for seed in run.seeds]))
    yield (
        f"Its pick, the subnet of the lowest loss, reaches {percent(pick)} in stand-alone "
        f"training{_over_seeds(run)}; the best subnet reaches {percent(group.standalone.max())}."
    )


def _inherited(run: Run) -> Iterator[str]:
    means, sizes = run.accuracies().mean(0), run.parameters()
    picks = float(np.mean([seed.pick.accuracy for seed in run.seeds]))
    yield (
        f"Its pick of {len(means):,} scored subnets, that of the lowest loss, classifies "
        f"{percent(picks)} of {run.seeds[0].validation_images:,} validation images"
        f"{_over_seeds(run)}. The average subnet reaches {percent(float(means.mean()))}; "
        f"{pareto(sizes, means).sum()} are in the Pareto set of accuracy and size."
    )
    if len(run.seeds) > 1:
        yield (
            f"The rankings of its seeds agree with a {MEASURES[PRIMARY].title} of "
            f"{number(agreement_of_seeds(run))}, where 1 is the same order and 0 is chance."
        )


def _sureness(runs: Sequence[Run], ranked: Sequence[Ranked]) -> Iterator[str]:
    numbers = sorted({len(run.seeds) for run in runs})
    each = " each" if len(runs) > 1 else ""
    yield f"It rests on {joined(numbers)} seed{'s' if numbers != [1] else ''}{each}."
    if numbers[0] < 3:
        yield (
            "So few show that a result is possible, not that it holds: another seed may turn it "
            "round. Five or more give intervals that are of use."
        )
    if ranked:
        yield (
            "Intervals of τ are 95% bootstrap intervals over the scored subnets and leave out the "
            "chance of the seed; those of a difference of two runs are t-intervals over the seeds."
        )
    else:
        known = any(k in run.standalone for run in runs for k in run.keys)
        reason = "too few subnets were" if known else "no subnet was"
        yield (
            "A pick was chosen and measured on the same images, so its accuracy is optimistic. "
            f"Whether the rankings are right is not known, for {reason} trained alone; "
            "`--standalone` takes a file of such accuracies."
        )
