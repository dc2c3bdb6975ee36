"""Figures of a training: loss, and lr by complexity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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
    total_updates,
)
from nas_dynamic.report.format import few
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.statistics import complexity_bands
from nas_dynamic.report.theme import LIGHT, RAMP, figure

__all__ = ["learning_rate", "loss", "same_scale"]


def loss(runs: Sequence[Run], colours: dict[str, int]) -> ReportFigure:
    """Training loss of the sampled subnets over the updates."""
    title = "Training loss"
    drawn = figure()
    axes = drawn.subplots()
    words = []
    for run in runs:
        number, curves = colours[run.name], []
        for seed in run.seeds:
            rows = [row for row in seed.trace or [] if row.loss is not None]
            if rows:
                curves.append(curve(rows, [row.loss for row in rows], total_updates(run)))
        if not curves:
            continue
        style: dict[str, Any] = {"color": colour(number)}
        for middles, values in curves if len(curves) > 1 else []:
            axes.plot(middles, values, **style, linewidth=0.8, alpha=0.45)
        grid = curves[0][0]
        mean = np.mean([np.interp(grid, *of_seed) for of_seed in curves], axis=0)
        axes.plot(
            grid,
            mean,
            **style,
            linewidth=1.8,
            label=legend_label(run.name) if len(runs) > 1 else None,
        )
        words.append(f"{run.name}: from {mean[0]:.2f} to {mean[-1]:.2f}")
    if not words:
        return ReportFigure("loss", title, NO_TRACE)
    axes.set(xlabel="update", ylabel="cross-entropy")
    counts(axes.xaxis)
    legend_below(drawn, axes)
    several = any(len(run.seeds) > 1 for run in runs)
    return ReportFigure(
        "loss",
        title,
        "Of the batch of each update, with the subnet that was sampled for it; the mean over "
        f"{BINS} equal parts of the training"
        + (", thin lines for the seeds." if several else ".")
        + " It need not fall to zero: every update trains another subnet.",
        f"Line chart of the training loss. {'; '.join(words)}.",
        drawn,
    )


def learning_rate(run: Run, suffix: str) -> ReportFigure:
    """lr over the updates, by quantile of complexity."""
    name, title = file_name("learning-rate", run), f"Learning rate by size{suffix}"
    rows = run.rows()
    if not rows:
        return ReportFigure(name, title, NO_TRACE)
    drawn = figure()
    axes = drawn.subplots()
    by_size = any(row.gamma is not None for row in rows)
    bands = complexity_bands(rows) if by_size else complexity_bands(rows, 1)
    words = []
    # The ends of the ramp stand for the smallest and the largest, however many bands there are.
    places = np.linspace(0, len(RAMP) - 1, len(bands)).round().astype(int)
    for band, place in zip(bands, places, strict=True):
        middles, values = curve(band.rows, [row.lr for row in band.rows], total_updates(run))
        of_band = LIGHT[RAMP[place]] if by_size else LIGHT["c1"]
        size = few(band.least)
        size += f" to {few(band.greatest)}" if band.greatest > band.least else ""
        axes.plot(middles, values, color=of_band, linewidth=1.8, label=size if by_size else None)
        mean = np.mean([row.lr for row in band.rows])
        words.append(f"subnets of {size} parameters: {mean:.3g} on average")
    axes.set(xlabel="update", ylabel="learning rate")
    counts(axes.xaxis)
    if by_size:
        legend_below(drawn, axes, "parameters of the subnet")
    return ReportFigure(
        name,
        title,
        (
            "Mean over equal parts of the training, of subnets of like size. CaLR lets small "
            "subnets (yellow) anneal early, and large ones (violet) go on learning."
            if by_size
            else "One learning rate for subnets of all sizes: this run has no CaLR."
        ),
        f"Line chart of the learning rate. {'; '.join(words)}.",
        drawn,
    )


def same_scale(drawings: Sequence[ReportFigure]) -> None:
    """Give figures that stand side by side one y axis."""
    axes = [drawing.drawn.axes[0] for drawing in drawings if drawing.drawn is not None]
    limits = [panel.get_ylim() for panel in axes]
    for panel in axes:
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
