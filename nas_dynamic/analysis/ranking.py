"""How well one ranking of subnets agrees with another, and whether it favours small subnets.

Each statistic is a function of values, one for each subnet and all in one order; `estimate` adds
its interval: `estimate(kendall_tau, accuracies, standalone)`. Formulas, ranges and reasons:
docs/diagnostics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from nas_dynamic._extras import extra

with extra("experiment"):
    from scipy import stats

__all__ = [
    "Estimate",
    "bootstrap_interval",
    "comparable_loss",
    "complexity_bias",
    "complexity_convergence",
    "estimate",
    "kendall_tau",
    "kendall_tau_within",
    "matched_kendall_tau",
    "rank_by_loss",
    "regret",
    "spearman_rho",
    "top_k_recall",
]

Values = Sequence[float] | np.ndarray

SIZE_CLASSES, IN_A_CLASS = 20, 5
"""Of the matched τ: at most so many classes, of at least so many subnets each."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its 95% interval; `f"{estimate:.2f}"` has all three numbers.

    Attributes:
        value: nan where the statistic is undefined, since one side is constant.
        low: lower end of the interval; nan where there is none.
        high: upper end of the interval.
        count: number of values that it was computed over, such as subnets.

    Example:
        >>> f"{Estimate(0.5, -0.125, 0.75, 30):.1%}"
        '50.0% [−12.5%, 75.0%]'
    """

    value: float
    low: float
    high: float
    count: int

    def __format__(self, form: str) -> str:
        """Return the numbers in the form of each; "undefined" where there is no value."""
        if math.isnan(self.value):
            return "undefined"
        ends = "" if math.isnan(self.low) else f" [{self.low:{form}}, {self.high:{form}}]"
        return f"{self.value:{form}}{ends}".replace("-", "−")

    def __str__(self) -> str:
        return f"{self:.3f}"


def comparable_loss(loss: float | None) -> float:
    """Return a loss to compare subnets by: inf for a network that diverged (NaN, or None)."""
    return math.inf if loss is None or math.isnan(loss) else loss


def rank_by_loss(losses: Iterable[float | None]) -> np.ndarray:
    """Return the ranks of subnets by their loss: more is better, those that diverged are last."""
    return np.asarray(stats.rankdata([-comparable_loss(loss) for loss in losses]), dtype=float)


def kendall_tau(predicted: Values, standalone: Values) -> float:
    """Return Kendall's τ-b; nan if a side is constant.

    Example:
        >>> round(kendall_tau([1, 2, 3, 4], [10, 30, 20, 40]), 3)
        0.667
    """
    return float(stats.kendalltau(predicted, standalone).statistic)


def spearman_rho(predicted: Values, standalone: Values) -> float:
    """Return Spearman's ρ; nan if a side is constant."""
    product = _standard_ranks(predicted) * _standard_ranks(standalone)
    return float(np.clip(product.mean(), -1, 1))  # rounding goes beyond by some 1e-16


def top_k_recall(predicted: Values, standalone: Values, k: int) -> float:
    """Return the share of the k subnets that are predicted best which are among the k best.

    In [0, 1]; k / n for a random ranking. Subnets that tie with the k-th best one are all among
    the best; of subnets that are predicted equal each is as likely to be taken.

    Args:
        predicted: more is better.
        standalone: stand-alone values, more is better.
        k: from 1 to the number of subnets.

    Example:
        >>> top_k_recall([4, 3, 2, 1], [40, 10, 30, 20], k=2)
        0.5
    """
    predicted, standalone = np.asarray(predicted), np.asarray(standalone)
    if not 1 <= k <= len(standalone):
        raise ValueError(f"k must be from 1 to the number of subnets, {len(standalone)}; got {k}")
    last = np.partition(predicted, -k)[-k]
    above, tied = predicted > last, predicted == last
    chance = above + tied * (k - above.sum()) / tied.sum()
    return float(chance[standalone >= np.partition(standalone, -k)[-k]].sum() / k)


def regret(predicted: Values, standalone: Values) -> float:
    """Return what the subnet that is predicted best lacks of the best one's stand-alone value.

    Not negative, in the unit of these values; the mean over subnets that are predicted equal.

    Example:
        >>> regret([4, 3, 2, 1], [30, 10, 40, 20])
        10.0
    """
    predicted, standalone = np.asarray(predicted), np.asarray(standalone)
    return float(standalone.max() - standalone[predicted == predicted.max()].mean())


def complexity_bias(predicted: Values, standalone: Values, complexity: Values) -> float:
    """Return how much the ranking favours small subnets more than stand-alone values do.

    The part correlation −r(rank predicted, e), where e is what the ranks of the complexity have
    beyond a linear function of the ranks of the stand-alone values. In [−1, 1]: positive, small
    subnets are ranked too high; 0 for the stand-alone ranking itself, for its reverse, and in
    expectation for any mixture of it with noise that knows nothing of the complexity. It is nan
    if stand-alone values order subnets as the complexity does, or a side is constant.

    Args:
        predicted: more is better.
        standalone: stand-alone values, more is better.
        complexity: parameters or MACs.
    """
    p, s, c = (_standard_ranks(values) for values in (predicted, standalone, complexity))
    pc, ps, sc = (p * c).mean(), (p * s).mean(), (s * c).mean()
    unexplained = 1 - sc**2
    # Rounding leaves some 1e-16 where the two orders are the same, and beyond ±1.
    if not unexplained > 1e-9:
        return math.nan
    return float(np.clip((ps * sc - pc) / np.sqrt(unexplained), -1, 1))


def matched_kendall_tau(predicted: Values, standalone: Values, complexity: Values) -> float:
    """Return Kendall's τ-b over pairs of subnets of like complexity.

    It says what a ranking knows beside size. The subnets are put into classes of as many each by
    their complexity, 20 or fewer with at least 5 subnets each; equal ones are in one class. Pairs
    of two classes do not count, so that raising or lowering all subnets of a class changes
    nothing. In [−1, 1]; nan of fewer than 10 subnets, or if no pair is left.

    Args:
        predicted: any monotone scale.
        standalone: stand-alone values.
        complexity: parameters or MACs.
    """
    classes = min(SIZE_CLASSES, len(complexity) // IN_A_CLASS)
    if classes < 2:
        return math.nan
    smaller = stats.rankdata(complexity, "min") - 1
    return kendall_tau_within(predicted, standalone, np.floor(smaller * classes / len(complexity)))


def kendall_tau_within(predicted: Values, standalone: Values, classes: np.ndarray) -> float:
    """Return Kendall's τ-b over the pairs of one class, all classes together; nan without any."""
    # Ranks, since the difference of two infinite values has no sign.
    predicted, standalone = stats.rankdata(predicted), stats.rankdata(standalone)
    agreement = predicted_apart = standalone_apart = 0.0
    for name in np.unique(classes):
        members = classes == name
        x, y = predicted[members], standalone[members]
        first, second = np.triu_indices(len(x), 1)
        of_x, of_y = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
        agreement += of_x @ of_y
        predicted_apart += abs(of_x).sum()
        standalone_apart += abs(of_y).sum()
    apart = predicted_apart * standalone_apart
    return float(agreement / math.sqrt(apart)) if apart else math.nan


def complexity_convergence(
    complexity: Values, inherited_loss: Values, standalone_loss: Values
) -> float:
    """Return Spearman's ρ of the complexity with (inherited − stand-alone) loss.

    In [−1, 1]: positive, large subnets are further from what they reach alone than small ones.

    Args:
        complexity: parameters or MACs.
        inherited_loss: with the supernet's weights.
        standalone_loss: after stand-alone training, on the same images.
    """
    return spearman_rho(complexity, np.subtract(inherited_loss, standalone_loss))


def bootstrap_interval(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile interval of a statistic over subnets that are drawn with replacement.

    Resamples in which the statistic is undefined are left out; (nan, nan) if all are.
    """
    generator = np.random.default_rng(seed)
    count = len(samples[0])
    drawn = generator.integers(count, size=(resamples, count))
    values = np.array([statistic(*(sample[rows] for sample in samples)) for rows in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(
    statistic: Callable[..., float], *samples: Values, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Return a statistic with its 95% bootstrap interval over the subnets.

    Args:
        statistic: takes the samples, as arrays.
        samples: each one value for each subnet, in one order.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ValueError: lengths differ, fewer than 2 subnets, or a value is not finite.
    """
    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(f"the values of subnets must be lists of one length, got shapes {shapes}")
    if len(arrays[0]) < 2:
        raise ValueError(f"a ranking needs at least 2 subnets, got {len(arrays[0])}")
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("the values must be finite; drop the subnets that have no value")
    low, high = bootstrap_interval(statistic, *arrays, resamples=resamples, seed=seed)
    return Estimate(float(statistic(*arrays)), low, high, len(arrays[0]))


def _standard_ranks(values: Values) -> np.ndarray:
    ranks: np.ndarray = stats.rankdata(values)
    spread = float(ranks.std())
    return np.asarray((ranks - ranks.mean()) / (spread if spread > 0 else math.nan))
