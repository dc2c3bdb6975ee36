"""The figure of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nas_dynamic._extras import extra

with extra("experiment"):
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

__all__ = ["Arm", "overview"]

COLOURS = ("#4C78A8", "#E4572E", "#54A24B", "#B279A2")
"""Of the arms, told apart also by readers who do not see red or green."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training, with what each of its seeds gave: see `experiment.run_seed`."""

    name: str
    results: Sequence[dict[str, Any]]

    def scores(self) -> np.ndarray:
        """Accuracy of each subnet in percent, mean over the seeds."""
        return 100 * np.mean([[s["accuracy"] for s in r["subnets"]] for r in self.results], axis=0)

    def parameters(self) -> np.ndarray:
        """Number of parameters of each subnet."""
        return np.array([subnet["parameters"] for subnet in self.results[0]["subnets"]])


def overview(path: Path, arms: Sequence[Arm], truth: Sequence[float] | None = None) -> None:
    """Draw lr by complexity over time, accuracy against complexity, predicted against true.

    Args:
        path: of the picture; its suffix says which format.
        arms: the last one's lr is shown.
        truth: stand-alone accuracies of the arms' subnets, in [0, 1]; the last panel needs them.
    """
    panels = 2 if truth is None else 3
    figure = Figure(figsize=(4.6 * panels, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    _learning_rate(figure, axes[0], arms)
    _accuracy_by_size(axes[1], arms)
    if truth is not None:
        _predicted_by_true(axes[2], arms, 100 * np.asarray(truth))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _learning_rate(figure: Figure, axes: Axes, arms: Sequence[Arm]) -> None:
    for arm in arms[:-1]:
        trace = arm.results[0]["trace"]
        axes.plot(
            [row["step"] for row in trace],
            [row["lr"] for row in trace],
            color="0.45",
            linewidth=1.2,
            label=arm.name,
        )
    shown = arms[-1]
    trace = shown.results[0]["trace"]
    points = axes.scatter(
        [row["step"] for row in trace],
        [row["lr"] for row in trace],
        c=[row["parameters"] / 1000 for row in trace],
        cmap="viridis",
        s=6,
        linewidths=0,
    )
    figure.colorbar(points, ax=axes, label="parameters of the subnet (thousands)")
    axes.set(title=f"Learning rate, {shown.name}", xlabel="update", ylabel="lr")
    if arms[:-1]:
        axes.legend(frameon=False)
    _tidy(axes)


def _accuracy_by_size(axes: Axes, arms: Sequence[Arm]) -> None:
    for arm, colour in zip(arms, COLOURS, strict=False):
        axes.scatter(
            arm.parameters() / 1000,
            arm.scores(),
            s=16,
            color=colour,
            alpha=0.7,
            linewidths=0,
            label=arm.name,
        )
    axes.set(
        title="Inherited weights",
        xlabel="parameters of the subnet (thousands)",
        ylabel="validation accuracy (%)",
    )
    axes.legend(frameon=False)
    _tidy(axes)


def _predicted_by_true(axes: Axes, arms: Sequence[Arm], truth: np.ndarray) -> None:
    for arm, colour in zip(arms, COLOURS, strict=False):
        axes.scatter(
            truth, arm.scores(), s=16, color=colour, alpha=0.7, linewidths=0, label=arm.name
        )
    axes.set(
        title="Predicted against true",
        xlabel="accuracy trained alone (%)",
        ylabel="accuracy with inherited weights (%)",
    )
    axes.legend(frameon=False)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
