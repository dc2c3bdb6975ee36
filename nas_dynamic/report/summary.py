"""What some runs found, in words, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nas_dynamic.report.format import estimated, interval, joined, percent, points, signed
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.statistics import (
    Comparison,
    Ranked,
    agreement_of_seeds,
    compare,
    pareto,
    share_interval,
)

__all__ = ["summary", "unfinished"]

Statement = tuple[str, str]
"""What it is about, and what is said."""


def summary(runs: Sequence[Run], ranked: Sequence[Ranked]) -> list[Statement]:
    """Statements on each run, on each run beside the first one, and on how sure they are."""
    statements: list[Statement] = []
    scored = [run for run in runs if run.seeds]
    for comparison in compare(scored, ranked):
        about = f"{comparison.run} beside {comparison.other}"
        statements.append((about, _compared(comparison)))
    for run in scored:
        groups = [group for group in ranked if run.name in group.means]
        said = _against_truth(run, groups[0]) if groups else _without_truth(run)
        statements.append((run.name, " ".join(said)))
    if scored:
        statements.append(("How sure is this?", " ".join(_sureness(scored, ranked))))
    return statements


def unfinished(runs: Sequence[Run]) -> list[Statement]:
    """What of a run is not there yet, and how to go on with it."""
    statements = []
    for run in runs:
        if run.missing:
            of = f"of {len(run.seeds) + len(run.missing)} seeds, {_seeds(run.missing)} missing"
            statements.append(
                (
                    run.name,
                    f"{of}. The report is on {'what is there' if run.seeds else 'nothing yet'}; "
                    "`nas-dynamic train CONFIG --resume` goes on with a run of train, the same "
                    "command with one of compare, and a demo is made anew.",
                )
            )
    return statements


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {joined(list(seeds))} {_are(seeds)}"


def _are(seeds: Sequence[int]) -> str:
    return "are" if len(seeds) > 1 else "is"


def _against_truth(run: Run, group: Ranked) -> Iterator[str]:
    mean, beyond = group.means[run.name], group.beyond[run.name]
    if math.isnan(mean.value):
        yield "All subnets of a seed score the same, or are equally good: there is no ranking."
        return
    of_seeds = [group.row(run, seed.seed)["Kendall τ"].value for seed in run.seeds]
    listed = ", ".join(f"{value:.2f}".replace("-", "−") for value in of_seeds)
    several = f", the mean of {len(of_seeds)} seeds ({listed})" if len(of_seeds) > 1 else ""
    yield (
        f"It ranks {len(group.truth):,} subnets with a Kendall's τ of {estimated(mean, '.2f')} to "
        f"the truth{several}."
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
            f"The parameter count alone, which costs no training, has {estimated(count, '.2f')}. "
            f"The difference is {signed(beyond.value)} "
            f"{interval(beyond.low, beyond.high, '.2f')}: {verdict}."
        )
    pick = int(group.predicted(run).mean(0).argmax())
    place = 1 + int((group.truth > group.truth[pick]).sum())
    yield (
        f"The subnet that it puts first reaches {percent(group.truth[pick])} when it is trained "
        f"alone, number {place} of {len(group.truth)}; the best one reaches "
        f"{percent(group.truth.max())}."
    )


def _without_truth(run: Run) -> Iterator[str]:
    means, sizes = run.accuracies().mean(0), run.parameters()
    best = int(means.argmax())
    images = run.seeds[0].validation_images
    measured = ""
    if images:
        low, high = share_interval(float(means[best]), images)
        measured = f" of {images:,} validation images (95% {percent(low)} to {percent(high)})"
    several = f", in the mean of {len(run.seeds)} seeds" if len(run.seeds) > 1 else ""
    yield (
        f"The best of {len(means):,} scored subnets classifies {percent(float(means[best]))}"
        f"{measured}{several}, with {sizes[best]:,} parameters. The average subnet reaches "
        f"{percent(float(means.mean()))}; {pareto(sizes, means).sum()} are in the Pareto set of "
        "accuracy and size."
    )
    agreement = agreement_of_seeds(run)
    if agreement is not None:
        yield (
            f"The rankings of its seeds agree by Kendall's τ {estimated(agreement, '.2f')}, where "
            "1 is the same order and 0 is chance."
        )


def _compared(comparison: Comparison) -> str:
    difference, tau = comparison.difference, comparison.measure == "τ"
    text = signed if tau else points
    what = ("Kendall's τ" if tau else "The mean accuracy") + f" of {comparison.run}"
    seeds = difference.subnets
    if math.isnan(difference.value):
        return "A τ is undefined, since all subnets score the same, so they cannot be compared."
    if seeds == 1:
        return (
            f"{what} less that of {comparison.other} is {text(difference.value)}, of the one seed "
            "that both have: that may be the chance of the seed."
        )
    if tau:
        ends = interval(difference.low, difference.high, ".2f")
    else:
        ends = interval(100 * difference.low, 100 * difference.high, ".1f")
    if difference.low > 0 or difference.high < 0:
        verdict = f"{comparison.run if difference.low > 0 else comparison.other} is ahead."
    else:
        verdict = "No difference is shown."
    return (
        f"{verdict} {what} less that of {comparison.other} is {text(difference.value)} {ends}, "
        f"over the {seeds} seeds that both have."
    )


def _sureness(runs: Sequence[Run], ranked: Sequence[Ranked]) -> Iterator[str]:
    numbers = sorted({len(run.seeds) for run in runs})
    said = joined(numbers) if len(numbers) > 1 else str(numbers[0])
    each = " each" if len(runs) > 1 else ""
    plural = "s" if numbers != [1] else ""
    yield f"It rests on {said} seed{plural}{each}."
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
        known = any(key in run.truth for run in runs for key in run.keys)
        reason = "too few subnets were" if known else "no subnet was"
        yield (
            "The best subnet was chosen and measured on the same images, so its accuracy is "
            f"optimistic. Whether the rankings are right is not known, for {reason} trained "
            "alone; `--truth` takes a file of such accuracies."
        )
