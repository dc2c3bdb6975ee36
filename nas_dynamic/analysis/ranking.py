"""How well one ranking of subnets agrees with another, and whether it favours small subnets.

Formulas, ranges and reasons: docs/diagnostics.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
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
    "kendall",
    "matched_kendall",
    "regret",
    "spearman",
    "top_k_recall",
]

Values = Sequence[float] | np.ndarray

SIZE_CLASSES, IN_A_CLASS = 20, 5
"""Of the matched τ: at most so many classes, of at least so many subnets each."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of a ranking with its interval.

    Attributes:
        value: nan where the statistic is undefined, since one side is constant.
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


def comparable_loss(loss: float | None) -> float:
    """A loss to compare subnets by: inf for a network that diverged (NaN, in files null)."""
    return math.inf if loss is None or math.isnan(loss) else loss


def kendall(predicted: Values, true: Values, *, resamples: int = 1000, seed: int = 0) -> Estimate:
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
    return estimate(tau, predicted, true, resamples=resamples, seed=seed)


def spearman(predicted: Values, true: Values, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Spearman's ρ, with a 95% bootstrap interval over the subnets; see `kendall`."""
    return estimate(rho, predicted, true, resamples=resamples, seed=seed)


def top_k_recall(
    predicted: Values, true: Values, k: int, *, resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Share of the k subnets that are predicted best which are among the k truly best.

    In [0, 1]; k / n for a random ranking. Subnets that tie with the k-th truly best one are all
    among the best; of subnets that are predicted equal each is as likely to be taken.

    Args:
        predicted: one value for each subnet, more is better.
        true: the true values, in the same order, more is better.
        k: from 1 to the number of subnets.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Example:
        >>> top_k_recall([4, 3, 2, 1], [40, 10, 30, 20], k=2).value
        0.5
    """
    if not 1 <= k <= len(true):
        raise ValueError(f"k must be from 1 to the number of subnets, {len(true)}; got {k}")
    return estimate(lambda x, y: recall(x, y, k), predicted, true, resamples=resamples, seed=seed)


def regret(predicted: Values, true: Values, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """What is lost by taking the subnet that is predicted best: best true value − its own.

    Not negative, in the unit of the true values; the mean over subnets that are predicted equal.

    Example:
        >>> regret([4, 3, 2, 1], [30, 10, 40, 20]).value
        10.0
    """
    return estimate(loss_of_pick, predicted, true, resamples=resamples, seed=seed)


def complexity_bias(
    predicted: Values,
    true: Values,
    complexity: Values,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """How much the ranking favours small subnets more than the truth does.

    The part correlation −r(rank predicted, e), where e is what the ranks of the complexity have
    beyond a linear function of the ranks of the truth. In [−1, 1]: positive, small subnets are
    ranked too high; 0 for the truth itself, for its reverse, and in expectation for any mixture
    of the truth with noise that knows nothing of the complexity.

    Args:
        predicted: one value for each subnet, more is better.
        true: the true values, in the same order, more is better.
        complexity: parameters or MACs, in the same order.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.

    Returns:
        nan if the truth orders subnets as the complexity does, or a side is constant.
    """
    return estimate(bias, predicted, true, complexity, resamples=resamples, seed=seed)


def matched_kendall(
    predicted: Values,
    true: Values,
    complexity: Values,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Kendall's τ-b over pairs of subnets of like complexity: what a ranking knows beside size.

    The subnets are put into classes of as many each by their complexity, 20 or fewer with at
    least 5 subnets each; equal ones are in one class. Pairs of two classes do not count, so that
    raising or lowering all subnets of a class changes nothing. In [−1, 1]; nan of fewer than 10
    subnets, or if no pair is left.

    Args:
        predicted: one value for each subnet; any monotone scale.
        true: the true values, in the same order.
        complexity: parameters or MACs, in the same order.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.
    """
    return estimate(matched_tau, predicted, true, complexity, resamples=resamples, seed=seed)


def complexity_convergence(
    complexity: Values,
    inherited_loss: Values,
    standalone_loss: Values,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Do large subnets lag? Spearman's ρ of the complexity with (inherited − stand-alone) loss.

    In [−1, 1]: positive, large subnets are further from what they reach alone than small ones.

    Args:
        complexity: parameters or MACs, one value for each subnet.
        inherited_loss: with the supernet's weights, in the same order.
        standalone_loss: after training alone, on the same images.
        resamples: number of bootstrap samples.
        seed: of the bootstrap.
    """
    return estimate(
        lambda c, inherited, alone: rho(c, inherited - alone),
        complexity,
        inherited_loss,
        standalone_loss,
        resamples=resamples,
        seed=seed,
    )


def tau(x: np.ndarray, y: np.ndarray) -> float:
    """The statistic of `kendall`."""
    return stats.kendalltau(x, y).statistic


def rho(x: np.ndarray, y: np.ndarray) -> float:
    """The statistic of `spearman`."""
    return stats.spearmanr(x, y).statistic


def recall(predicted: np.ndarray, true: np.ndarray, k: int) -> float:
    """The statistic of `top_k_recall`."""
    last = np.partition(predicted, -k)[-k]
    above, tied = predicted > last, predicted == last
    chance = above + tied * (k - above.sum()) / tied.sum()
    return float(chance[true >= np.partition(true, -k)[-k]].sum() / k)


def loss_of_pick(predicted: np.ndarray, true: np.ndarray) -> float:
    """The statistic of `regret`."""
    return float(true.max() - true[predicted == predicted.max()].mean())


def bias(predicted: np.ndarray, true: np.ndarray, complexity: np.ndarray) -> float:
    """The statistic of `complexity_bias`."""
    p, t, c = (_standard_ranks(values) for values in (predicted, true, complexity))
    pc, pt, tc = (p * c).mean(), (p * t).mean(), (t * c).mean()
    unexplained = 1 - tc**2
    # Rounding leaves some 1e-16 where the two orders are the same, and beyond ±1.
    if not unexplained > 1e-9:
        return math.nan
    return float(np.clip((pt * tc - pc) / np.sqrt(unexplained), -1, 1))


def matched_tau(predicted: np.ndarray, true: np.ndarray, complexity: np.ndarray) -> float:
    """The statistic of `matched_kendall`."""
    classes = min(SIZE_CLASSES, len(complexity) // IN_A_CLASS)
    if classes < 2:
        return math.nan
    smaller = stats.rankdata(complexity, "min") - 1
    return tau_within(predicted, true, np.floor(smaller * classes / len(complexity)))


def tau_within(predicted: np.ndarray, true: np.ndarray, classes: np.ndarray) -> float:
    """Kendall's τ-b over the pairs of one class, all classes together; nan without such pairs."""
    # Ranks, since the difference of two infinite values has no sign.
    predicted, true = stats.rankdata(predicted), stats.rankdata(true)
    agreement = predicted_apart = true_apart = 0.0
    for name in np.unique(classes):
        members = classes == name
        x, y = predicted[members], true[members]
        first, second = np.triu_indices(len(x), 1)
        of_x, of_y = np.sign(x[first] - x[second]), np.sign(y[first] - y[second])
        agreement += of_x @ of_y
        predicted_apart += abs(of_x).sum()
        true_apart += abs(of_y).sum()
    apart = predicted_apart * true_apart
    return float(agreement / math.sqrt(apart)) if apart else math.nan


def bootstrap_interval(
    statistic: Callable[..., float],
    *samples: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile interval of a statistic over subnets that are drawn with replacement.

    Resamples in which the statistic is undefined are left out; (nan, nan) if all are.
    """
    generator = np.random.default_rng(seed)
    count = len(samples[0])
    drawn = generator.integers(count, size=(resamples, count))
    values = np.array([statistic(*(sample[rows] for sample in samples)) for rows in drawn])
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def estimate(
    statistic: Callable[..., float],
    *samples: Values,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic with its 95% bootstrap interval over the subnets.

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
    with warnings.catch_warnings():
        # A constant side gives nan, as documented; scipy warns of it, in each resample.
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        value = float(statistic(*arrays))
        low, high = bootstrap_interval(statistic, *arrays, resamples=resamples, seed=seed)
    return Estimate(value, low, high, len(arrays[0]))


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    ranks = stats.rankdata(values)
    spread = ranks.std()
    return (ranks - ranks.mean()) / (spread if spread > 0 else math.nan)
