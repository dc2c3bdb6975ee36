"""Figures of momentum groups: their loss, their updates, how alike their gradients are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.report.drawing import (
    BINS,
    NO_TRACE,
    ReportFigure,
    colour,
    counts,
    curve,
    file_name,
    legend_below,
    legend_label,
    shares,
    total_updates,
)
from nas_dynamic.report.format import estimated, joined, percent, short
from nas_dynamic.report.run_folder import Pair, Run
from nas_dynamic.report.statistics import over_sample, similarity
from nas_dynamic.report.theme import LIGHT, figure

with extra("experiment"):
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

__all__ = ["loss_by_group", "similarity_by_group", "updates_by_group"]

MAX_GROUPS = 8
"""Groups that are drawn, those with the most updates."""


def loss_by_group(run: Run, suffix: str) -> ReportFigure:
    """Training loss over the updates, by momentum group."""
    name, title = file_name("loss-by-group", run), f"Loss by group{suffix}"
    rows = [row for row in run.rows() if row.loss is not None]
    groups = _groups(run)
    if not groups:
        return ReportFigure(name, title, _no_groups(run))
    if not rows:
        return ReportFigure(name, title, NO_TRACE)
    drawn = figure()
    axes = drawn.subplots()
    words = []
    for number, group in enumerate(groups[:MAX_GROUPS]):
        members = [row for row in rows if row.group == group]
        if not members:
            continue
        middles, values = curve(
            members, [row.loss for row in members], total_updates(run), bins=BINS // 2
        )
        axes.plot(
            middles, values, color=colour(number), linewidth=1.6, label=legend_label(short(group))
        )
        words.append(f"{group}: {values[-1]:.2f} at the end")
    axes.set(xlabel="update", ylabel="cross-entropy")
    counts(axes.xaxis)
    legend_below(drawn, axes)
    return ReportFigure(
        name,
        title,
        f"The subnets of a group agree in {_rule(run)}. A group whose loss stays above the others "
        f"has the harder subnets, or learns too slowly.{_left_out(groups)}",
        f"Line chart of the training loss of each group. {'; '.join(words)}.",
        drawn,
    )


def updates_by_group(run: Run, suffix: str) -> ReportFigure:
    """Share of the updates that each group had."""
    name, title = file_name("updates-by-group", run), f"Updates by group{suffix}"
    groups = _groups(run)
    if not groups:
        return ReportFigure(name, title, _no_groups(run))
    numbers = _updates(run)
    total = sum(numbers.values())
    shown = groups[:MAX_GROUPS]
    drawn = figure(height=1.1 + 0.3 * len(shown))
    axes = drawn.subplots()
    values = [numbers[group] / total for group in shown]
    axes.barh(range(len(shown)), values, color=[colour(n) for n in range(len(shown))])
    for place, value in enumerate(values):
        # Inside of a bar that is long enough, so that the dashed line does not cross it.
        inside = value > 0.25 * max(values)
        axes.annotate(
            percent(value),
            (0 if inside else value, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=LIGHT["paper"] if inside else LIGHT["ink"],
        )
    axes.axvline(1 / len(groups), color=LIGHT["ink"], linewidth=1, linestyle="--")
    axes.set_yticks(range(len(shown)), [short(group) for group in shown])
    axes.set(xlabel="share of the updates", xlim=(0, 1.1 * max(*values, 1 / len(groups))))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    shares(axes.xaxis)
    exact = all(seed.updates_by_group for seed in run.seeds)
    source = f"Of all {total:,} updates" if exact else f"Of the {total:,} updates in the trace"
    return ReportFigure(
        name,
        title,
        f"{source}{', of all seeds' if len(run.seeds) > 1 else ''}; the dashed line is an equal "
        "share. A group with few updates has a momentum of few gradients, and old ones."
        f"{_left_out(groups)}",
        "Bar chart. "
        + joined([f"{group} {percent(v)}" for group, v in zip(shown, values, strict=True)])
        + ".",
        drawn,
    )


def similarity_by_group(run: Run, suffix: str) -> ReportFigure:
    """Mean cosine between the gradients of one update and the next, by their groups."""
    name, title = file_name("gradient-similarity", run), f"Gradient similarity by group{suffix}"
    pairs = [pair for seed in run.seeds for pair in seed.pairs or []]
    if not pairs:
        if not run.rows():
            return ReportFigure(name, title, NO_TRACE)
        short_run = any(seed.pairs is not None for seed in run.seeds)
        why = "the training was too short for it" if short_run else "by an earlier version"
        return ReportFigure(name, title, f"Not recorded: {why}.")
    groups = _groups(run)
    if not groups:
        mean = over_sample([pair.cosine for pair in pairs])
        return ReportFigure(
            name,
            title,
            f"The cosine of an update's gradient and the next one's is {estimated(mean)} on "
            f"average, over {len(pairs)} pairs. {_no_groups(run)}",
        )
    shown = groups[:MAX_GROUPS]
    within, between = similarity(pairs)
    drawn = figure(height=1.3 + 0.42 * len(shown))
    axes = drawn.subplots()
    words = _cells(axes, shown, pairs)
    axes.set_xticks(range(len(shown)), [short(g, 14) for g in shown], rotation=28, ha="right")
    axes.set_yticks(range(len(shown)), [short(group, 14) for group in shown])
    axes.set(xlim=(-0.5, len(shown) - 0.5), ylim=(len(shown) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    kinds = [
        f"{estimated(mean)} {kind} ({mean.subnets} pairs)"
        for kind, mean in (("within a group", within), ("between groups", between))
        if mean is not None
    ]
    return ReportFigure(
        name,
        title,
        "Mean cosine of the gradients of an update and the next one, over the weights that both "
        f"train; below it the number of such pairs. On average it is {joined(kinds)}, with 95% "
        "intervals over the pairs. Separate momenta are of use where gradients agree more within "
        f"a group (the diagonal) than between groups.{_left_out(groups)}",
        f"Table of mean cosines. {'; '.join(words)}.",
        drawn,
    )


def _cells(axes: Axes, groups: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    cosines: dict[frozenset[str | None], list[float]] = {}
    for pair in pairs:
        cosines.setdefault(frozenset(pair.groups), []).append(pair.cosine)
    means = {key: float(np.mean(values)) for key, values in cosines.items()}
    strongest = max(map(abs, means.values())) or 1.0
    words = []
    for row, one in enumerate(groups):
        for column, other in enumerate(groups[: row + 1]):
            key = frozenset((one, other))
            if key not in means:
                axes.text(column, row, "–", ha="center", va="center", color=LIGHT["muted"])
                continue
            mean, number = means[key], len(cosines[key])
            axes.add_patch(
                Rectangle(
                    (column - 0.48, row - 0.46),
                    0.96,
                    0.92,
                    color=LIGHT["c1"] if mean >= 0 else LIGHT["c2"],
                    alpha=0.08 + 0.5 * abs(mean) / strongest,
                    linewidth=0,
                )
            )
            value = f"{mean:.2f}".replace("-", "−")
            axes.text(column, row + 0.02, value, ha="center", va="bottom", fontsize=9)
            axes.text(column, row + 0.06, str(number), ha="center", va="top", fontsize=7.5)
            words.append(f"{one} with {other} {value}, {number} pairs")
    return words


def _updates(run: Run) -> Counter[str]:
    """Updates of each group: all of them, or those of the trace where only that was recorded."""
    if all(seed.updates_by_group for seed in run.seeds):
        counted: Counter[str] = Counter()
        for seed in run.seeds:
            counted.update(seed.updates_by_group)
        return counted
    return Counter(row.group for row in run.rows() if row.group is not None)


def _groups(run: Run) -> list[str]:
    """Momentum groups, those with the most updates first."""
    numbers = _updates(run)
    return sorted(numbers, key=lambda group: (-numbers[group], group))


def _rule(run: Run) -> str:
    rules = {seed.group_by for seed in run.seeds if seed.group_by is not None}
    return joined(sorted(rules)) if rules else "what momentum separation groups by"


def _no_groups(run: Run) -> str:
    if not run.rows():
        return NO_TRACE
    return "One momentum for all subnets: this run has no momentum separation, and so no groups."


def _left_out(groups: Sequence[str]) -> str:
    if len(groups) <= MAX_GROUPS:
        return ""
    return f" The {MAX_GROUPS} of {len(groups)} groups with the most updates are drawn."
