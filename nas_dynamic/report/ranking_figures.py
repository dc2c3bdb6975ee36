"""Figures of what was scored: accuracy by size, predicted by true, the τ of each ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nas_dynamic.analysis.ranking import Estimate
from nas_dynamic.report.drawing import (
    MARKERS,
    ReportFigure,
    colour,
    counts,
    legend_below,
    legend_label,
    shares,
)
from nas_dynamic.report.format import estimated, few, joined, percent
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.statistics import Ranked, agreement_of_seeds, pareto
from nas_dynamic.report.theme import LIGHT, figure
from nas_dynamic.space import architecture_text

__all__ = ["accuracy_by_size", "predicted_by_true", "seed_by_seed", "taus"]

MAX_POINTS = 1500
"""Subnets of a run that are drawn, so that a page stays small."""


def accuracy_by_size(runs: Sequence[Run], colours: dict[str, int]) -> ReportFigure:
    """Accuracy with inherited weights against the number of parameters; the Pareto set."""
    drawn = figure(height=3.4)
    axes = drawn.subplots()
    tips, words = {}, []
    all_sizes = np.concatenate([run.parameters() for run in runs])
    for run in runs:
        number, sizes, means = colours[run.name], run.parameters(), run.accuracies().mean(0)
        best = pareto(sizes, means)
        shown = np.flatnonzero(best | (np.arange(len(means)) < MAX_POINTS))
        for kind, chosen, style in (
            ("other", shown[~best[shown]], {"s": 20, "alpha": 0.5}),
            ("pareto", shown[best[shown]], {"s": 48, "edgecolors": LIGHT["ink"]}),
        ):
            gid = f"{kind}-{number}"
            axes.scatter(
                sizes[chosen],
                means[chosen],
                color=colour(number),
                marker=MARKERS[number % len(MARKERS)],
                linewidths=1.1 if kind == "pareto" else 0,
                gid=gid,
                zorder=3 if kind == "pareto" else 2,
                label=legend_label(run.name) if kind == "other" and len(runs) > 1 else None,
                **style,
            )
            tips[gid] = [
                f"{run.name}: {percent(means[n])}, {run.subnets[n].parameters:,} parameters. "
                f"{architecture_text(run.subnets[n].architecture)}"
                for n in chosen
            ]
        front = np.flatnonzero(best)[np.argsort(sizes[best], kind="stable")]
        corners = [*sizes[front], sizes.max()], [*means[front], means[front].max()]
        axes.step(*corners, where="post", color=colour(number), linewidth=1.2)
        words.append(
            f"{run.name}: {len(means)} subnets of {few(sizes.min())} to {few(sizes.max())} "
            f"parameters, {percent(means.min())} to {percent(means.max())} accurate, "
            f"{best.sum()} of them in the Pareto set"
        )
    axes.set(xlabel="parameters of the subnet", ylabel="accuracy, inherited weights")
    if all_sizes.max() > 10 * all_sizes.min():
        axes.set_xscale("log")
    counts(axes.xaxis)
    shares(axes.yaxis)
    legend_below(drawn, axes)
    seeds = [len(run.seeds) for run in runs]
    over = "" if max(seeds) == 1 else ", the mean over the seeds"
    left_out = max(len(run.subnets) for run in runs) > MAX_POINTS
    return ReportFigure(
        "accuracy-by-size",
        "Accuracy by size, and the Pareto set",
        f"Each point is a subnet with the weights that it inherits{over}. Up and to the left is "
        "better. Outlined points are the Pareto set: no other subnet of the run is as small and "
        "as accurate, and better in one of them; the line is what a limit on size allows."
        + (f" Of the others, the first {MAX_POINTS:,} of a run are drawn." if left_out else ""),
        f"Scatter plot of accuracy by number of parameters. {'; '.join(words)}.",
        drawn,
        tips,
    )


def seed_by_seed(runs: Sequence[Run], colours: dict[str, int]) -> ReportFigure:
    """The subnets' accuracies in two supernets that differ in the seed alone."""
    drawn = figure(height=3.4)
    axes = drawn.subplots()
    words = []
    for run in runs:
        number, (one, other, *_) = colours[run.name], run.accuracies()
        agreement = estimated(agreement_of_seeds(run), ".2f")
        axes.scatter(
            one[:MAX_POINTS],
            other[:MAX_POINTS],
            s=22,
            alpha=0.6,
            linewidths=0,
            color=colour(number),
            marker=MARKERS[number % len(MARKERS)],
            label=legend_label(f"{run.name}: τ {agreement}") if len(runs) > 1 else None,
        )
        words.append(f"{run.name}: τ {agreement} between its seeds")
    axes.set(xlabel="accuracy, first seed", ylabel="accuracy, second seed")
    shares(axes.xaxis)
    shares(axes.yaxis)
    legend_below(drawn, axes)
    more = any(len(run.seeds) > 2 for run in runs)
    return ReportFigure(
        "seed-by-seed",
        "One seed by another",
        "Each point is a subnet, in two supernets that were trained alike but for the seed. Where "
        "the seeds order the subnets differently, at least one of them is wrong. "
        f"{'; '.join(words)}"
        + (", the mean over all pairs of seeds; the first two are drawn." if more else "."),
        f"Scatter plot of the accuracies of one seed by those of another. {'; '.join(words)}.",
        drawn,
    )


def predicted_by_true(group: Ranked, colours: dict[str, int], suffix: str) -> ReportFigure:
    """Inherited accuracy against the truth."""
    drawn = figure(height=3.4)
    axes = drawn.subplots()
    tips, words = {}, []
    for run in group.runs:
        number, predicted = colours[run.name], group.predicted(run).mean(0)
        shown = np.arange(min(len(predicted), MAX_POINTS))
        style: dict[str, Any] = {
            "color": colour(number),
            "marker": MARKERS[number % len(MARKERS)],
        }
        text = f"{run.name}: τ {estimated(group.means[run.name], '.2f').split(' [')[0]}"
        gid = f"truth-{number}"
        axes.scatter(
            group.truth[shown],
            predicted[shown],
            s=22,
            alpha=0.6,
            linewidths=0,
            gid=gid,
            label=legend_label(text),
            **style,
        )
        pick = int(predicted.argmax())
        axes.scatter(
            group.truth[pick],
            predicted[pick],
            s=60,
            linewidths=1.3,
            edgecolors=LIGHT["ink"],
            zorder=3,
            **style,
        )
        subnets = [run.subnets[n] for n in group.scored]
        tips[gid] = [
            f"{run.name}: {percent(predicted[n])} inherited, {percent(group.truth[n])} alone. "
            f"{architecture_text(subnets[n].architecture)}"
            for n in shown
        ]
        words.append(
            f"{run.name}: Kendall's τ {estimated(group.means[run.name], '.2f')}, its pick reaches "
            f"{percent(group.truth[pick])} alone"
        )
    axes.set(xlabel="accuracy, trained alone", ylabel="accuracy, inherited weights")
    shares(axes.xaxis)
    shares(axes.yaxis)
    legend_below(drawn, axes)
    return ReportFigure(
        f"predicted-by-true{suffix}",
        "Predicted by true",
        "Each point is a subnet: what the supernet says of it, against what it reaches when it is "
        "trained alone. Only the order matters: the more the points rise together, the better the "
        "supernet ranks. Outlined is the subnet that a search over these would pick.",
        f"Scatter plot of inherited by stand-alone accuracy of {len(group.truth)} subnets, which "
        f"reach {percent(group.truth.min())} to {percent(group.truth.max())} alone. "
        f"{'; '.join(words)}.",
        drawn,
        tips,
    )


def taus(group: Ranked, colours: dict[str, int], suffix: str) -> ReportFigure:
    """τ with its interval, for every seed, their mean, and the baselines."""
    rows: list[tuple[str, Estimate, str, bool]] = []
    for run in group.runs:
        of_run = colour(colours[run.name])
        for seed in run.seeds:
            row = group.row(run, seed.seed)["Kendall τ"]
            rows.append((f"{run.name}, seed {seed.seed}", row, of_run, False))
        if len(run.seeds) > 1:
            name = f"{run.name}, mean of {len(run.seeds)}"
            rows.append((name, group.means[run.name], of_run, True))
    for name in group.diagnostics.baselines:
        rows.append((name, group.diagnostics.rows[name]["Kendall τ"], LIGHT["muted"], False))
    drawn = figure(height=1.0 + 0.27 * len(rows))
    axes = drawn.subplots()
    for place, (_, estimate, of_row, mean) in enumerate(rows):
        if np.isnan(estimate.value):
            continue
        axes.plot(
            [estimate.low, estimate.high],
            [place, place],
            color=of_row,
            linewidth=3 if mean else 1.5,
        )
        style: dict[str, Any] = {"marker": "D" if mean else "o", "markersize": 7 if mean else 5}
        axes.plot(estimate.value, place, color=of_row, **style)
    axes.axvline(0, color=LIGHT["muted"], linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("Kendall's τ with the truth")
    spoken = joined([f"{label} {estimated(estimate, '.2f')}" for label, estimate, *_ in rows])
    return ReportFigure(
        f"kendall-tau{suffix}",
        "How well each ranking agrees with the truth",
        f"1 is the order of the truth, 0 is chance. Lines are 95% intervals over the "
        f"{len(group.truth)} subnets; that of random is where chance alone comes out. They leave "
        "out the chance of other seeds, which the rows of the seeds give an idea of. A supernet is "
        "worth its training where it is beyond the grey rows, which cost nothing.",
        f"Kendall's τ of each ranking with its interval: {spoken}.",
        drawn,
    )
