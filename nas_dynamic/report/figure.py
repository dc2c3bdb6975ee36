"""A figure of a report with what it shows in words, and what all figures are made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.report.format import few
from nas_dynamic.report.records import TrainedUpdate
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.style import LIGHT, SERIES

with extra("experiment"):
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = [
    "BINS",
    "MARKERS",
    "ReportFigure",
    "colour",
    "counts",
    "curve",
    "file_name",
    "legend_below",
    "legend_label",
    "new_figure",
    "shares",
    "total_updates",
]

BINS = 40
"""Parts of a training that a line is drawn through."""

MARKERS = "osD^vPX*"
"""Of the series, which colour alone would not tell apart for all."""


@dataclass(frozen=True, eq=False)
class ReportFigure:
    """A figure of a report.

    Attributes:
        name: of its files.
        title: of the figure.
        caption: what is drawn, and how to read it; or why there is nothing to draw.
        label: what it shows, in words, for those who do not see it.
        drawn: the figure; None where its data are not there.
        tips: see `inline_svg`.
    """

    name: str
    title: str
    caption: str
    label: str = ""
    drawn: Figure | None = None
    tips: Mapping[str, Sequence[str]] = field(default_factory=dict)


def new_figure(width: float = 4.2, height: float = 3.1) -> Figure:
    """Return an empty figure, inches; so small that its text can be read on a phone."""
    return Figure(figsize=(width, height), layout="constrained")


def colour(number: int) -> str:
    """Return the colour of a series, in light."""
    return LIGHT[SERIES[number % len(SERIES)]]


def counts(axis: Axis) -> None:
    """Write the ticks of an axis as counts, such as of parameters."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: few(value)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def shares(axis: Axis) -> None:
    """Write the ticks of an axis as shares in [0, 1]."""
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def legend_label(name: str) -> str:
    """Return a name for a legend: matplotlib leaves out those that begin with _."""
    return f"\u200b{name}" if name.startswith("_") else name


def legend_below(figure: Figure, axes: Axes, title: str | None = None) -> None:
    """Name the series under the axes, where they hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    # As many columns as fit: a letter takes some 0.09 inches, a line and its space 0.6.
    fitting = int(figure.get_figwidth() / (0.6 + 0.09 * max(map(len, labels))))
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(fitting, len(labels))),
        title=title,
        title_fontsize=9,
        columnspacing=1.4,
        handlelength=1.6,
    )


def curve(
    updates: Sequence[TrainedUpdate], values: Sequence[float | None], total: int, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean value in equal parts of a training: middle of each part, and mean.

    Parts without a value are left out, and values that are None.

    Args:
        updates: of the values.
        values: as many.
        total: number of updates of the training.
        bins: number of parts, at most.
    """
    known = [(u.step, value) for u, value in zip(updates, values, strict=True) if value is not None]
    bins = min(bins, total)
    part = np.array([min(step * bins // total, bins - 1) for step, _ in known], dtype=int)
    sizes = np.bincount(part, minlength=bins)
    sums = np.bincount(part, weights=[value for _, value in known], minlength=bins)
    some = sizes > 0
    return ((np.arange(bins) + 0.5) * total / bins)[some], sums[some] / sizes[some]


def total_updates(run: Run) -> int:
    """Return the number of updates of a training."""
    return max(seed.updates for seed in run.seeds)


def file_name(kind: str, run: Run) -> str:
    """Return the name of the files of a figure that a run has of its own."""
    return f"{kind}-{run.name.replace('/', '-')}"
