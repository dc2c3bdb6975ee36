"""The table of what a supernet's ranking is worth, beside the baselines that cost nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nas_dynamic.analysis.ranking import (
    Estimate,
    Values,
    complexity_bias,
    complexity_convergence,
    estimate,
    kendall_tau,
    matched_kendall_tau,
    regret,
    spearman_rho,
    top_k_recall,
)
from nas_dynamic.analysis.text_table import text_table

__all__ = ["Diagnostics", "diagnose"]

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """Statistics of several rankings of the same subnets; `str()` of it is a table.

    Attributes:
        rows: ranking → statistic → estimate. The first rows are the supernets', the last one
            random; those between are complexities.
        subnets: number of subnets.
        baselines: names of the rows that are no supernet's: the complexities, and random.
    """

    rows: dict[str, dict[str, Estimate]]
    subnets: int
    baselines: tuple[str, ...]

    def __str__(self) -> str:
        columns = list(next(iter(self.rows.values())))
        cells = [
            [name, *(str(row[c]) if c in row else "–" for c in columns)]
            for name, row in self.rows.items()
        ]
        return text_table(["ranking", *columns], cells)


def diagnose(
    predicted: Values | Mapping[str, Values],
    standalone: Values,
    complexities: Mapping[str, Values],
    *,
    top: int | None = None,
    losses: tuple[Values, Values] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Diagnostics:
    """Return all statistics of a supernet's ranking, of each complexity's, and of chance.

    Intervals are 95% bootstrap intervals over the subnets; in the random row, the mean and the
    central 95% of random rankings of these subnets. A supernet is worth its training where its
    row is beyond the others.

    Args:
        predicted: what the supernet says, one value for each subnet, more is better; or, of
            several supernets such as those of several seeds, name → values.
        standalone: stand-alone values, in the same order, more is better.
        complexities: name → one value for each subnet, such as parameters and MACs. The first one
            is that of the complexity bias, of the matched τ and of the complexity-convergence
            correlation.
        top: k of the top-k recall; by default a tenth of the subnets.
        losses: inherited and stand-alone loss of each subnet, for the complexity-convergence
            correlation of the first supernet.
        resamples: number of bootstrap samples, and of random rankings.
        seed: of both.

    Raises:
        ValueError: no complexity, `top` beyond the subnets, two rankings of one name
            (the last one is "random"), or what `estimate` raises.
    """
    if not complexities:
        raise ValueError(
            "a ranking is judged beside complexities; give {'parameters': …, 'MACs': …}"
        )
    supernets = predicted if isinstance(predicted, Mapping) else {"supernet": predicted}
    names = [*supernets, *complexities, "random"]
    if len(set(names)) < len(names):
        raise ValueError(f"rankings need different names, the last one's is 'random'; got {names}")
    k = top if top is not None else max(1, len(standalone) // 10)
    statistics: dict[str, Statistic] = {
        "Kendall τ": lambda p, s, _: kendall_tau(p, s),
        "Spearman ρ": lambda p, s, _: spearman_rho(p, s),
        f"recall@{k}": lambda p, s, _: top_k_recall(p, s, k),
        "regret": lambda p, s, _: regret(p, s),
        "complexity bias": complexity_bias,
        "matched τ": matched_kendall_tau,
    }
    complexity = next(iter(complexities.values()))
    with_interval = functools.partial(estimate, resamples=resamples, seed=seed)
    rows = {
        name: {
            column: with_interval(statistic, ranking, standalone, complexity)
            for column, statistic in statistics.items()
        }
        for name, ranking in {**supernets, **complexities}.items()
    }
    if losses is not None:
        rows[next(iter(supernets))]["complexity-convergence"] = with_interval(
            complexity_convergence, complexity, *losses
        )
    arrays = np.asarray(standalone, dtype=float), np.asarray(complexity, dtype=float)
    generator = np.random.default_rng(seed)
    rankings = [generator.permutation(len(standalone)) for _ in range(resamples)]
    rows["random"] = {
        column: _by_chance([statistic(ranking, *arrays) for ranking in rankings], len(standalone))
        for column, statistic in statistics.items()
    }
    return Diagnostics(rows, len(standalone), (*complexities, "random"))


def _by_chance(values: list[float], subnets: int) -> Estimate:
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(np.mean(values)), float(low), float(high), subnets)
