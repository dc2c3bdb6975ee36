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
    from matplotlib.layout_engine import ConstrainedLayoutEngine

__all__ = ["Arm", "overview"]

COLOURS = ("#4C78A8", "#E4572E", "#54A24B", "#B279A2")
"""Of the arms, told apart also by readers who do not see red or green."""


PARAMETERS = "parameters of the subnet (thousands)"


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training, and what it gave.

    Attributes:
        name: stands in the legend.
        results: of each seed: see `experiment.run_seed`.
        tau: rank correlation with the truth, mean over the seeds, for the legend.
    """

    name: str
    results: Sequence[dict[str, Any]]
    tau: float | None = None

    def scores(self) -> np.ndarray:
        """Accuracy of each subnet in percent, mean over the seeds."""
        return 100 * np.mean([[s["accuracy"] for s in r["subnets"]] for r in self.results], axis=0)

    def parameters(self) -> np.ndarray:
        """Number of parameters of each subnet, in thousands."""
        return np.array([subnet["parameters"] / 1e3 for subnet in self.results[0]["subnets"]])


def overview(path: Path, arms: Sequence[Arm], truth: Sequence[float] | None = None) -> None:
    """Draw lr by complexity over time, accuracy against complexity, predicted against true.

    Args:
        path: of the picture; its suffix says which format.
        arms: the last one's lr is drawn by complexity, that of the others as a line.
        truth: stand-alone accuracies of the arms' subnets, in [0, 1]; without them there is no
            third panel.
    """
    panels = 2 if truth is None else 3
    layout = ConstrainedLayoutEngine(w_pad=0.12)
    figure = Figure(figsize=(4.8 * panels, 4.2), layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    _learning_rate(figure, axes[0], arms)
    for arm, colour in zip(arms, COLOURS, strict=False):
        style = {"s": 18, "color": colour, "alpha": 0.75, "linewidths": 0}
        axes[1].scatter(arm.parameters(), arm.scores(), label=arm.name, **style)
        if truth is not None:
            label = arm.name if arm.tau is None else f"{arm.name}, τ = {arm.tau:.2f}"
            axes[2].scatter(100 * np.asarray(truth), arm.scores(), label=label, **style)
    inherited = "accuracy with inherited weights (%)"
    axes[1].set(title="Accuracy by size", xlabel=PARAMETERS, ylabel=inherited)
    if truth is not None:
        axes[2].set(title="Predicted by true", xlabel="accuracy trained alone (%)")
        axes[2].sharey(axes[1])
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92", linewidth=0.6)
        panel.set_axisbelow(True)
        if len(arms) > 1:
            panel.legend(loc="best", framealpha=0.8, edgecolor="none")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _learning_rate(figure: Figure, axes: Axes, arms: Sequence[Arm]) -> None:
    for arm, colour in zip(arms[:-1], COLOURS, strict=False):
        trace = arm.results[0]["trace"]
        steps, lrs = [row["step"] for row in trace], [row["lr"] for row in trace]
        axes.plot(steps, lrs, color=colour, label=arm.name)
    trace = arms[-1].results[0]["trace"]
    points = axes.scatter(
        [row["step"] for row in trace],
        [row["lr"] for row in trace],
        c=[row["parameters"] / 1e3 for row in trace],
        cmap="viridis",
        s=6,
        linewidths=0,
        label=arms[-1].name,
    )
    figure.colorbar(points, ax=axes, label=PARAMETERS)
    axes.set(title="Learning rate of each update", xlabel="update", ylabel="lr")
