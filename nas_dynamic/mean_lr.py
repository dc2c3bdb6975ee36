"""What CaLR makes of the mean learning rate, where the user's own lr is constant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from nas_dynamic.calr import CaLR

__all__ = ["change_of_lr", "mean_factor"]

POINTS = 2000
"""Of the decay, evenly spaced, that a mean is taken over."""


def mean_factor(calr: CaLR, complexities: Iterable[float]) -> float:
    """Return the mean over the decay, and over subnets, of what CaLR multiplies the lr by.

    A warm-up is left out: so the mean does not depend on `total_steps`.

    Args:
        calr: with a curve of its own.
        complexities: of subnets as the training samples them.

    Example:
        >>> calr = CaLR(lambda a: a["width"], total_steps=100, population=[1, 2, 3, 4])
        >>> round(mean_factor(calr, [1, 2, 3, 4]), 4)
        0.5
    """
    assert calr.total_steps is not None
    shares = (np.arange(POINTS) + 0.5) / POINTS
    steps = calr.warmup_steps + shares * (calr.total_steps - calr.warmup_steps)
    ratios = np.array([calr.factor_of(1.0, step) for step in steps.tolist()]) / calr.start
    gammas, counts = np.unique([calr.gamma_of(c) for c in complexities], return_counts=True)
    means = [np.mean(ratios**gamma) for gamma in gammas]
    return calr.start * float(np.average(means, weights=counts))


def change_of_lr(lrs: Sequence[float], calr: CaLR, mean: float | None) -> str:
    """Return what becomes of constant lrs, one for each param group; `mean` is `mean_factor`."""
    changes = [
        f"{lr:g}, constant, → starts at {lr * calr.start:g}, decays to "
        f"{lr * calr.factor_of(1.0, calr.total_steps or 0):g}"
        + ("" if mean is None else f", mean {lr * mean:.3g}")
        for lr in dict.fromkeys(lrs)
    ]
    return f"lr {'; '.join(changes)} (see keep_mean_lr)"
