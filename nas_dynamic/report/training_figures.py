"""Figures of a training: loss, and lr by complexity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
from nas_dynamic.report.format import few, seeds_text
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.statistics import complexity_bands
from nas_dynamic.report.style import LIGHT, RAMP

__all__ = ["learning_rate", "loss", "same_scale"]


def loss(runs: Sequence[Run], colours: dict[str, int]) -> ReportFigure:
    """Draw the training loss of the sampled subnets over the updates."""
    drawn = new_figure()
    axes = drawn.subplots()
    words = []
    for run in runs:
        curves = [
            curve(seed.trace, [update.loss for update in seed.trace], total_updates(run))
            for seed in run.seeds
        ]
        curves = [of_seed for of_seed in curves if len(of_seed[0])]
        if not curves:
            continue
        of_run, grid = colour(colours[run.name]), curves[0][0]
        for middles, values in curves if len(curves) > 1 else []:
            axes.plot(middles, values, color=of_run, linewidth=0.8, alpha=0.45)
        mean = np.mean([np.interp(grid, *of_seed) for of_seed in curves], axis=0)
        label = legend_label(run.name) if len(runs) > 1 else None
        axes.plot(grid, mean, color=of_run, linewidth=1.8, label=label)
        words.append(f"{run.name}: from {mean[0]:.2f} to {mean[-1]:.2f}")
    title = "Training loss"
    if not words:
        return ReportFigure("loss", title, "No recorded update has a finite loss.")
    axes.set(xlabel="update", ylabel="cross-entropy")
    counts(axes.xaxis)
    legend_below(drawn, axes)
    most = max((run.seeds for run in runs), key=len)
    over = f", thick lines the mean over {seeds_text([s.seed for s in most])}"
    return ReportFigure(
        "loss",
        title,
        "Of the batch of each update, with the subnet that was sampled for it, averaged over "
        f"{BINS} equal parts of the training{over if len(most) > 1 else ''}. It need not fall to "
        "zero: every update trains another subnet.",
        f"Line chart of the training loss. {'; '.join(words)}.",
        drawn,
    )


def learning_rate(run: Run, suffix: str) -> ReportFigure:
    """Draw the lr over the updates, by quantile of complexity."""
    updates = run.updates()
    drawn = new_figure()
    axes = drawn.subplots()
    by_size = any(update.gamma is not None for update in updates)
    bands = complexity_bands(updates) if by_size else [updates]
    words = []
    # The ends of the ramp stand for the smallest and the largest, however many bands there are.
    places = np.linspace(0, len(RAMP) - 1, len(bands)).round().astype(int)
    for band, place in zip(bands, places, strict=True):
        lrs, sizes = [update.lr for update in band], [update.parameters for update in band]
        middles, values = curve(band, lrs, total_updates(run))
        of_band = LIGHT[RAMP[place]] if by_size else LIGHT["c1"]
        size = few(min(sizes)) + (f" to {few(max(sizes))}" if max(sizes) > min(sizes) else "")
        axes.plot(middles, values, color=of_band, linewidth=1.8, label=size if by_size else None)
        words.append(f"subnets of {size} parameters: {np.mean(lrs):.3g} on average")
    axes.set(xlabel="update", ylabel="learning rate")
    counts(axes.xaxis)
    if by_size:
        legend_below(drawn, axes, "parameters of the subnet")
    return ReportFigure(
        file_name("learning-rate", run),
        f"Learning rate by size{suffix}",
        (
            "Mean over equal parts of the training, of subnets of like size. CaLR lets small "
            "subnets (yellow) anneal early, and large ones (violet) go on learning."
            if by_size
            else "One learning rate for subnets of all sizes: this run has no CaLR."
        ),
        f"Line chart of the learning rate. {'; '.join(words)}.",
        drawn,
    )


def same_scale(figures: Sequence[ReportFigure]) -> None:
    """Give figures that stand side by side one y axis."""
    axes = [figure.drawn.axes[0] for figure in figures if figure.drawn is not None]
    limits = [panel.get_ylim() for panel in axes]
    for panel in axes:
        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
