"""Differences of two arms over seeds that both were run with."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from nas_dynamic._extras import extra

with extra("experiment"):
    from scipy import stats

__all__ = ["Difference"]


@dataclass(frozen=True)
class Difference:
    """A measure of one arm less that of another, seed by seed.

    Both arms of a seed start from the same weights and see the same batches and subnets, so that
    most of the chance of a seed cancels.

    Attributes:
        values: one difference a seed, shape (n,).
    """

    values: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(self.values.mean())

    def t_interval(self) -> tuple[float, float]:
        """95% interval of the mean by Student's t; infinite with one seed."""
        n = len(self.values)
        if n < 2:
            return -math.inf, math.inf
        half = stats.t.ppf(0.975, n - 1) * self.values.std(ddof=1) / math.sqrt(n)
        return self.mean - half, self.mean + half

    def bootstrap_interval(self) -> tuple[float, float]:
        """95% interval of the mean by the bias-corrected and accelerated bootstrap."""
        if len(self.values) < 2 or np.ptp(self.values) == 0:
            return -math.inf, math.inf
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            result = stats.bootstrap([self.values], np.mean, rng=np.random.default_rng(0))
        low, high = result.confidence_interval
        return float(low), float(high)

    def seeds_needed(self, half_width: float) -> int | None:
        """Seeds for a t-interval of ± half_width at the spread seen; None with one seed."""
        if len(self.values) < 2:
            return None
        deviation = self.values.std(ddof=1)
        n = 2
        while stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n) > half_width:
            n += 1
        return n
