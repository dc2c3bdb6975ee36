"""Figures of the paired differences: of every arm, and over the budget.

They are transparent, in colours that can be read on a white page and on a dark one.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.nb201.report import (
    ARM,
    BASELINE,
    DEFAULT_EDGE,
    TAUS,
    Rows,
    paired_differences,
    read_results,
)
from nas_dynamic.analysis.paired import Difference

__all__ = ["draw_arms", "draw_budgets"]

INK = "#777b80"
"""A grey whose contrast to white is that to the dark pages of GitHub, 4.3 to 1."""
PARTS = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
plt.rcParams.update(dict.fromkeys(PARTS, INK))

SERIES = {
    "calq": "CaLR by rank, the default",
    "calq-ms": "CaLR by rank + MS",
    "dynamic": "the paper's CaLR + MS",
    "poly": "static, linear decay",
}
"""Arms that are drawn over the budget."""
TEXTS = {
    "cells": "N={}",
    "size": "{} pixels wide",
    "batch": "batch {}",
    "architectures": "{} architectures",
    "images": "{} images",
}
"""Columns of a setting that are named where they are not the same everywhere."""


def draw_arms(path: Path, output: Path) -> None:
    """Draw each arm's paired differences, their mean and t-interval, below its setting's name."""
    rows = read_results(path)
    differences = {name: paired_differences(rows, name) for name in TAUS}
    settings: dict[tuple[int, str], dict[str, tuple[str, ...]]] = defaultdict(dict)
    texts = _varying(rows, TEXTS)
    for key in differences["tau"]:
        row = dict(zip(ARM, key, strict=True))
        setting = f"{int(row['updates']):,} updates, C={row['channels']}, {row['idle']}"
        if row["sampler"] != "uniform":
            setting += f", {row['sampler']} sampling"
        if row["scored"] != "last":
            setting += f", {row['scored']} weights"
        setting += _described(row, texts)
        settings[int(row["updates"]), setting][f"{row['arm']} {row['edge']}".strip()] = key
    if not settings:
        raise ValueError(f"{path} has no arm to compare with {BASELINE!r} on the same seed")
    lines: list[tuple[str, tuple[str, ...] | None]] = []
    for (_, setting), arms in sorted(settings.items()):
        lines.append((setting, None))
        for arm, key in arms.items():
            lines.append((f"{arm} ({len(differences['tau'][key].values)})", key))
    figure, axes = plt.subplots(
        1,
        len(TAUS),
        figsize=(9, 0.9 + 0.27 * len(lines)),
        sharex=True,
        sharey=True,
        layout="constrained",
    )
    for axis, (measure, score) in zip(axes, TAUS.items(), strict=True):
        for position, (_, line) in enumerate(lines):
            if line is not None:
                _draw_difference(axis, position, differences[measure][line])
        axis.axvline(0, color=INK, linewidth=0.8)
        axis.tick_params(left=False)
        axis.set_xlabel(f"τ − {BASELINE}, {score}")
    axes[0].set_yticks(range(len(lines)), [name for name, _ in lines])
    for label, (_, line) in zip(axes[0].get_yticklabels(), lines, strict=True):
        label.set_fontweight("normal" if line is not None else "bold")
    axes[0].set_ylim(len(lines) - 0.4, -0.6)
    figure.supxlabel(
        "grey: seeds (their number); blue: their mean, with its 95% interval (t)",
        fontsize="medium",
    )
    _save(figure, output)


def _draw_difference(axis: Any, position: int, difference: Difference) -> None:
    axis.plot(difference.values, [position] * len(difference.values), ".", color=INK)
    low, high = difference.t_interval()
    if len(difference.values) > 2:  # of two seeds it is as wide as the figure
        axis.plot([low, high], [position] * 2, "-", color="C0")
    axis.plot(difference.mean, position, "o", color="C0")


def draw_budgets(path: Path, output: Path) -> None:
    """Draw the differences of some arms, with their t-intervals, over the number of updates.

    Of uniform sampling, idle parameters that coast, and last weights; a series for each setting,
    named by what settings differ in beside the updates.
    """
    rows = [
        row
        for row in read_results(path)
        if (row["sampler"], row["idle"], row["scored"]) == ("uniform", "coast", "last")
        and row["edge"] in ("", DEFAULT_EDGE)
    ]
    texts = _varying(rows, {"channels": "C={}"} | TEXTS)
    figure, axes = plt.subplots(
        1, len(TAUS), figsize=(9, 3.2), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (measure, score) in zip(axes, TAUS.items(), strict=True):
        series: dict[str, dict[int, Difference]] = defaultdict(dict)
        for key, difference in paired_differences(rows, measure).items():
            row = dict(zip(ARM, key, strict=True))
            if row["arm"] in SERIES and len(difference.values) > 2:
                label = SERIES[row["arm"]] + _described(row, texts)
                series[label][int(row["updates"])] = difference
        for number, (label, by_budget) in enumerate(sorted(series.items())):
            of_arm = sorted(by_budget.items(), key=lambda item: item[0])
            # Side by side, where intervals would hide each other.
            budgets = [updates * 1.03 ** (2 * number + 1 - len(series)) for updates, _ in of_arm]
            means = [difference.mean for _, difference in of_arm]
            reach = [d.t_interval()[1] - d.mean for _, d in of_arm]
            axis.errorbar(
                budgets, means, reach, fmt="o-", markersize=5, linewidth=1, capsize=3, label=label
            )
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set_xscale("log")
        budgets = sorted({int(row["updates"]) for row in rows})
        axis.set_xticks(budgets, [f"{updates:,}" for updates in budgets])
        axis.minorticks_off()
        axis.set_xlabel("updates")
        axis.set_title(f"τ − {BASELINE}, {score}", fontsize="medium")
    if series:
        axes[0].legend(frameon=False, fontsize="small")
    _save(figure, output)


def _varying(rows: Rows, texts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if len({row[name] for row in rows}) > 1}


def _described(row: dict[str, str], texts: dict[str, str]) -> str:
    return "".join(f", {text.format(row[name])}" for name, text in texts.items())


def _save(figure: Any, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150, transparent=True)
    print(output)
