"""How well one ranking of subnets agrees with another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nas_dynamic._extras import extra

with extra("experiment"):
    from scipy import stats

__all__ = ["Correlation", "bootstrap_interval", "kendall", "spearman"]

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation with its bootstrap interval.

    Attributes:
        value: in [-1, 1]; nan where it is undefined, since one side is constant.
        low: lower end of the interval.
        high: upper end of the interval.
        subnets: number of subnets that it was computed over.
    """

    value: float
    low: float
    high: float
    subnets: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def kendall(
    predicted: Values, true: Values, *, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Kendall's τ-b, with a 95% bootstrap interval over the subnets.

    Args:
        predicted: one value for each subnet; any monotone scale.
        true: the true values, in the same order.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ValueError: lengths differ, fewer than 2 subnets, or a value is not finite.

    Example:
        >>> kendall([1, 2, 3, 4], [10, 30, 20, 40]).value
        0.6666666666666669
    """
    return _correlation(
        lambda x, y: stats.kendalltau(x, y).statistic, predicted, true, resamples, seed
    )


def spearman(
    predicted: Values, true: Values, *, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Spearman's ρ, with a 95% bootstrap interval over the subnets; see `kendall`."""
    return _correlation(
        lambda x, y: stats.spearmanr(x, y).statistic, predicted, true, resamples, seed
    )


def bootstrap_interval(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    predicted: np.ndarray,
    true: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic over subnets that are drawn with replacement.

    Resamples in which the statistic is undefined are left out; (nan, nan) if all are.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(true), size=(resamples, len(true)))
    values = np.array([statistic(predicted[rows], true[rows]) for rows in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _correlation(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    predicted: Values,
    true: Values,
    resamples: int,
    seed: int,
) -> Correlation:
    x, y = np.asarray(predicted, dtype=float), np.asarray(true, dtype=float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(
            f"predicted and true must be two lists of one length, got shapes {x.shape}, {y.shape}"
        )
    if len(x) < 2:
        raise ValueError(f"a ranking needs at least 2 subnets, got {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("predicted and true must be finite; drop the subnets that have no value")
    with warnings.catch_warnings():
        # A constant side gives nan, as documented; scipy warns of it, in each resample.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        value = float(statistic(x, y))
        low, high = bootstrap_interval(statistic, x, y, resamples=resamples, seed=seed)
    return Correlation(value, low, high, len(x))
