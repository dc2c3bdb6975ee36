"""A figure of a report with what it shows in words, and what all figures are made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.report.format import few
from nas_dynamic.report.run_folder import Row, Run
from nas_dynamic.report.statistics import binned
from nas_dynamic.report.theme import LIGHT, SERIES

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
    "shares",
    "total_updates",
]

BINS = 40
"""Parts of a training that a line is drawn through."""


MARKERS = "osD^vPX*"
"""Of the series, which colour alone would not tell apart for all."""


NO_TRACE = "Not recorded: this run has no trace of its updates."
"""In place of a figure."""


@dataclass(frozen=True)
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

    @property
    def figure(self) -> Figure:
        """The figure, of a drawing that has one."""
        assert self.drawn is not None
        return self.drawn


def colour(number: int) -> str:
    """Of a series, in light."""
    return LIGHT[SERIES[number % len(SERIES)]]


def counts(axis: Axis) -> None:
    """The ticks of an axis are counts, such as of parameters."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: few(value)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def shares(axis: Axis) -> None:
    """The ticks of an axis are shares in [0, 1]."""
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))


def legend_label(name: str) -> str:
    """A name in a legend: matplotlib leaves out those that begin with _."""
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
    rows: Sequence[Row], values: Sequence[float | None], total: int, bins: int = BINS
) -> tuple[np.ndarray, np.ndarray]:
    """Values of updates over the training: see `binned`."""
    return binned([row.step for row in rows], [v for v in values if v is not None], total, bins)


def total_updates(run: Run) -> int:
    """Number of updates of a training, as far as it is recorded."""
    last = max((row.step for row in run.rows()), default=0) + 1
    return max(last, *(seed.updates or 0 for seed in run.seeds))


def file_name(kind: str, run: Run) -> str:
    """Of a figure that a run has of its own."""
    return f"{kind}-{run.name.replace('/', '-')}"
