"""Figures of momentum groups: their loss, and how alike their gradients are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.analysis.paired import mean_estimate
from nas_dynamic.report.figure import (
    BINS,
    ReportFigure,
    colour,
    counts,
    curve,
    file_name,
    legend_below,
    legend_label,
    new_figure,
    total_updates,
)
from nas_dynamic.report.format import joined, number, percent, short
from nas_dynamic.report.records import GradientPair
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.style import LIGHT

with extra("experiment"):
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

__all__ = ["loss_by_group", "similarity_by_group"]

MAX_GROUPS = 8
"""Groups that are drawn, those with the most updates."""

NO_GROUPS = "One momentum for all subnets: this run has no momentum separation, and so no groups."


def loss_by_group(run: Run, suffix: str) -> ReportFigure:
    """Draw the training loss over the updates, by momentum group, with the updates of each."""
    name, title = file_name("loss-by-group", run), f"Loss by group{suffix}"
    numbers = _updates(run)
    if not numbers:
        return ReportFigure(name, title, NO_GROUPS)
    total = sum(numbers.values())
    drawn = new_figure()
    axes = drawn.subplots()
    words = []
    for place, group in enumerate(list(numbers)[:MAX_GROUPS]):
        had = percent(numbers[group] / total)
        label = legend_label(f"{short(group)} ({had})")
        members = [update for update in run.updates() if update.group == group]
        losses = [update.loss for update in members]
        middles, values = curve(members, losses, total_updates(run), bins=BINS // 2)
        axes.plot(middles, values, color=colour(place), linewidth=1.6, label=label)
        end = f"{values[-1]:.2f}" if len(values) else "not finite"
        words.append(f"{group}, {had} of the updates: {end} at the end")
    axes.set(xlabel="update", ylabel="cross-entropy")
    counts(axes.xaxis)
    legend_below(drawn, axes, "group (share of the updates)")
    rules = joined(sorted({str(seed.group_by) for seed in run.seeds}))
    return ReportFigure(
        name,
        title,
        f"The subnets of a group agree in {rules}. A group whose loss stays above the others has "
        "the harder subnets, or learns too slowly; one with few updates has a momentum of few "
        f"gradients, and old ones.{_left_out(numbers)}",
        f"Line chart of the training loss of each group. {'; '.join(words)}.",
        drawn,
    )


def similarity_by_group(run: Run, suffix: str) -> ReportFigure:
    """Draw the mean cosine between the gradients of one update and the next, by their groups."""
    name, title = file_name("gradient-similarity", run), f"Gradient similarity by group{suffix}"
    pairs = [pair for seed in run.seeds for pair in seed.pairs]
    if not pairs:
        return ReportFigure(name, title, "Not recorded: the training was too short for it.")
    numbers = _updates(run)
    if not numbers:
        mean = mean_estimate([pair.cosine for pair in pairs])
        return ReportFigure(
            name,
            title,
            f"The cosine of an update's gradient and the next one's is {mean:.3f} on average, "
            f"over {len(pairs)} pairs. {NO_GROUPS}",
        )
    shown = list(numbers)[:MAX_GROUPS]
    drawn = new_figure(height=1.3 + 0.42 * len(shown))
    axes = drawn.subplots()
    words = _cells(axes, shown, pairs)
    axes.set_xticks(range(len(shown)), [short(g, 14) for g in shown], rotation=28, ha="right")
    axes.set_yticks(range(len(shown)), [short(group, 14) for group in shown])
    axes.set(xlim=(-0.5, len(shown) - 0.5), ylim=(len(shown) - 0.5, -0.5))
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    kinds = {
        "within a group": [p.cosine for p in pairs if p.groups[0] == p.groups[1]],
        "between groups": [p.cosine for p in pairs if p.groups[0] != p.groups[1]],
    }
    means = [
        f"{mean_estimate(cosines):.3f} {kind} ({len(cosines)} pairs)"
        for kind, cosines in kinds.items()
        if cosines
    ]
    return ReportFigure(
        name,
        title,
        "Mean cosine of the gradients of an update and the next one, over the weights that both "
        f"train; below it the number of such pairs. On average it is {joined(means)}, with 95% "
        "intervals over the pairs. Separate momenta are of use where gradients agree more within "
        f"a group (the diagonal) than between groups.{_left_out(numbers)}",
        f"Table of mean cosines. {'; '.join(words)}.",
        drawn,
    )


def _cells(axes: Axes, groups: Sequence[str], pairs: Sequence[GradientPair]) -> list[str]:
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
            mean, count = means[key], len(cosines[key])
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
            value = number(mean)
            axes.text(column, row + 0.02, value, ha="center", va="bottom", fontsize=9)
            axes.text(column, row + 0.06, str(count), ha="center", va="top", fontsize=7.5)
            words.append(f"{one} with {other} {value}, {count} pairs")
    return words


def _updates(run: Run) -> Counter[str]:
    """Return the updates of each momentum group, those with the most first."""
    counted: Counter[str] = Counter()
    for seed in run.seeds:
        counted.update(seed.updates_by_group)
    return Counter(dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))))


def _left_out(groups: Counter[str]) -> str:
    if len(groups) <= MAX_GROUPS:
        return ""
    return f" The {MAX_GROUPS} of {len(groups)} groups with the most updates are drawn."
