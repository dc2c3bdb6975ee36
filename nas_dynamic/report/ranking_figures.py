"""Figures of what was scored: accuracy by size, scores by stand-alone accuracy, τ of rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.analysis.ranking import Estimate, comparable_loss
from nas_dynamic.report.figure import (
    MARKERS,
    ReportFigure,
    colour,
    counts,
    legend_below,
    legend_label,
    new_figure,
    shares,
)
from nas_dynamic.report.format import few, joined, number, percent, seeds_text
from nas_dynamic.report.measures import MEASURES, PRIMARY
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.statistics import Ranked, pareto
from nas_dynamic.report.style import LIGHT
from nas_dynamic.space import architecture_text

with extra("experiment"):
    from matplotlib.axes import Axes
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

__all__ = ["accuracy_by_size", "loss_by_standalone", "taus"]

MAX_POINTS = 1500
"""Subnets of a run that are drawn, so that a page stays small."""


def accuracy_by_size(runs: Sequence[Run], colours: dict[str, int]) -> ReportFigure:
    """Draw accuracy with inherited weights against the number of parameters; the Pareto set."""
    drawn = new_figure(height=3.4)
    axes = drawn.subplots()
    tips: dict[str, list[str]] = {}
    words = []
    all_sizes = np.concatenate([run.parameters() for run in runs])
    for run in runs:
        place, sizes, means = colours[run.name], run.parameters(), run.accuracies().mean(0)
        best = pareto(sizes, means)
        texts = [
            f"{run.name}: {percent(mean)}, {subnet.parameters:,} parameters. "
            f"{architecture_text(subnet.architecture)}"
            for mean, subnet in zip(means, run.subnets, strict=True)
        ]
        label = run.name if len(runs) > 1 else None
        tips |= _scatter(axes, place, sizes, means, best, texts, label)
        front = np.flatnonzero(best)[np.argsort(sizes[best], kind="stable")]
        corners = [*sizes[front], sizes.max()], [*means[front], means[front].max()]
        axes.step(*corners, where="post", color=colour(place), linewidth=1.2)
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
    most = max((run.seeds for run in runs), key=len)
    over = f", the mean over {seeds_text([s.seed for s in most])}" if len(most) > 1 else ""
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


def loss_by_standalone(group: Ranked, colours: dict[str, int], suffix: str) -> ReportFigure:
    """Draw the inherited loss, which ranks the subnets, against stand-alone accuracy."""
    drawn = new_figure(height=3.4)
    axes = drawn.subplots()
    tips: dict[str, list[str]] = {}
    words = []
    for run in group.runs:
        seed, mean = run.seeds[0], group.means[run.name]
        subnets = [seed.subnets[n] for n in group.scored]
        losses = np.array([comparable_loss(subnet.loss) for subnet in subnets])
        pick = np.arange(len(losses)) == losses.argmin()
        texts = [
            f"{run.name}, seed {seed.seed}: loss {loss:.3f}, {percent(alone)} stand-alone. "
            f"{architecture_text(subnet.architecture)}"
            for loss, alone, subnet in zip(losses, group.standalone, subnets, strict=True)
        ]
        label = f"{run.name}: τ {number(mean.value)}"
        place = colours[run.name]
        tips |= _scatter(axes, place, group.standalone, losses, pick, texts, label)
        words.append(
            f"{run.name}: {MEASURES[PRIMARY].title} {mean:.2f}, the pick of seed {seed.seed} "
            f"reaches {percent(group.standalone[pick][0])} stand-alone"
        )
    axes.set(xlabel="stand-alone accuracy", ylabel="loss, inherited weights")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(MaxNLocator(5) if high < 3 * low else LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.invert_yaxis()
    shares(axes.xaxis)
    legend_below(drawn, axes, MEASURES[PRIMARY].title)
    more = any(len(run.seeds) > 1 for run in group.runs)
    return ReportFigure(
        f"loss-by-standalone{suffix}",
        "Inherited loss by stand-alone accuracy",
        "Each point is a subnet: its loss with inherited weights, by which the supernet ranks it, "
        "against what it reaches when it is trained alone. Only the order matters: the more the "
        "points rise together, the better the supernet ranks. Outlined is the pick, the subnet of "
        "the lowest loss."
        + (" Points are of the first seed, τ is the mean over the seeds." if more else ""),
        f"Scatter plot of inherited loss by stand-alone accuracy of {len(group.standalone)} "
        f"subnets, which reach {percent(group.standalone.min())} to "
        f"{percent(group.standalone.max())} stand-alone. {'; '.join(words)}.",
        drawn,
        tips,
    )


def _scatter(
    axes: Axes,
    place: int,
    x: np.ndarray,
    y: np.ndarray,
    outlined: np.ndarray,
    texts: Sequence[str],
    label: str | None,
) -> dict[str, list[str]]:
    """Draw the points of a run, some of them outlined; return the tips of those that are drawn."""
    shown = np.isfinite(y) & (outlined | (np.arange(len(y)) < MAX_POINTS))
    tips = {}
    for kind, chosen, style in (
        ("points", shown & ~outlined, {"s": 21, "alpha": 0.55, "linewidths": 0}),
        (
            "outlined",
            shown & outlined,
            {"s": 50, "edgecolors": LIGHT["ink"], "linewidths": 1.1, "zorder": 3},
        ),
    ):
        gid = f"{kind}-{place}"
        axes.scatter(
            x[chosen],
            y[chosen],
            color=colour(place),
            marker=MARKERS[place % len(MARKERS)],
            gid=gid,
            label=legend_label(label) if label and kind == "points" else None,
            **style,
        )
        tips[gid] = [text for text, here in zip(texts, chosen, strict=True) if here]
    return tips


def taus(group: Ranked, colours: dict[str, int], suffix: str) -> ReportFigure:
    """Draw τ with its interval, for every seed, their mean, and the baselines."""
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
    drawn = new_figure(height=1.0 + 0.27 * len(rows))
    axes = drawn.subplots()
    for place, (_, estimate, of_row, mean) in enumerate(rows):
        if np.isnan(estimate.value):
            continue
        ends = [estimate.low, estimate.high]
        axes.plot(ends, [place, place], color=of_row, linewidth=3 if mean else 1.5)
        style: dict[str, Any] = {"marker": "D" if mean else "o", "markersize": 7 if mean else 5}
        axes.plot(estimate.value, place, color=of_row, **style)
    axes.axvline(0, color=LIGHT["muted"], linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(MEASURES[PRIMARY].title)
    spoken = joined([f"{label} {estimate:.2f}" for label, estimate, *_ in rows])
    return ReportFigure(
        f"kendall-tau{suffix}",
        "How well each ranking agrees with stand-alone accuracy",
        f"{MEASURES[PRIMARY].title}: 1 is the order of stand-alone accuracy, 0 is chance. Lines "
        f"are 95% intervals over the {len(group.standalone)} subnets; that of random is where "
        "chance alone comes out. They leave out the chance of other seeds, which the rows of the "
        "seeds give an idea of. A supernet is worth its training where it is beyond the grey "
        "rows, which cost nothing.",
        f"{MEASURES[PRIMARY].title} of each ranking with its interval: {spoken}.",
        drawn,
    )
