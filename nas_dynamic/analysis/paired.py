"""Means over seeds, and differences of two arms over seeds that both were run with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.analysis.ranking import Estimate

with extra("experiment"):
    from scipy import stats

__all__ = ["Difference", "mean_estimate"]


def mean_estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Return the mean of independent values with its 95% interval by Student's t.

    One value has no interval.
    """
    array = np.asarray(values, dtype=float)
    n, mean = len(array), float(np.mean(array))
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf(0.975, n - 1) * array.std(ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


@dataclass(frozen=True, eq=False)
class Difference:
    """A measure of one arm less that of another, seed by seed; formatted, its mean and t-interval.

    Both arms of a seed start from the same weights and see the same batches and subnets, so that
    most of the chance of a seed cancels.

    Attributes:
        values: one difference a seed, shape (n,).

    Example:
        >>> f"{Difference(np.array([0.5, 1.0, 1.5])):+.2f}"
        '+1.00 [−0.24, +2.24]'
    """

    values: np.ndarray

    def __format__(self, form: str) -> str:
        """Return mean and ends of the t-interval, in the form of each; one seed has no interval."""
        return format(mean_estimate(self.values), form)

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(self.values.mean())

    def t_interval(self) -> tuple[float, float]:
        """Return the 95% interval of the mean by Student's t; infinite with one seed."""
        found = mean_estimate(self.values)
        return (found.low, found.high) if len(self.values) > 1 else (-math.inf, math.inf)

    def bootstrap_interval(self) -> tuple[float, float]:
        """Return the 95% interval of the mean by the bias-corrected and accelerated bootstrap."""
        if len(self.values) < 2 or np.ptp(self.values) == 0:
            return -math.inf, math.inf
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            result = stats.bootstrap([self.values], np.mean, rng=np.random.default_rng(0))
        low, high = result.confidence_interval
        return float(low), float(high)

    def seeds_needed(self, half_width: float) -> int | None:
        """Return the seeds for a t-interval of ± half_width at this spread; None without one."""
        deviation = self.values.std(ddof=1) if len(self.values) > 1 else math.nan
        if math.isnan(deviation):
            return None
        n = 2
        while stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n) > half_width:
            n += 1
        return n
