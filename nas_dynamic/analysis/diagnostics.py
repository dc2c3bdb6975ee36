"""The table of what a supernet's ranking is worth, beside the baselines that cost nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nas_dynamic.analysis.ranking import (
    Estimate,
    Values,
    bias,
    complexity_convergence,
    estimate,
    loss_of_pick,
    matched_tau,
    recall,
    rho,
    tau,
)

__all__ = ["Diagnostics", "diagnose"]

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
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
        lines = [["ranking", *columns]]
        for name, row in self.rows.items():
            lines.append([name, *(str(row[c]) if c in row else "–" for c in columns)])
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        return "\n".join(
            f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |"
            for line in lines
        )


def diagnose(
    predicted: Values | Mapping[str, Values],
    true: Values,
    complexities: Mapping[str, Values],
    *,
    top: int | None = None,
    losses: tuple[Values, Values] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Diagnostics:
    """All statistics of a supernet's ranking, of each complexity as a ranking, and of chance.

    Intervals are 95% bootstrap intervals over the subnets; in the random row, the mean and the
    central 95% of random rankings of these subnets. A supernet is worth its training where its
    row is beyond the others.

    Args:
        predicted: what the supernet says, one value for each subnet, more is better; or, of
            several supernets such as those of several seeds, name → values.
        true: values of training alone, in the same order, more is better.
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
    k = top if top is not None else max(1, len(true) // 10)
    if not 1 <= k <= len(true):
        raise ValueError(f"top must be from 1 to the number of subnets, {len(true)}; got {k}")
    complexity = next(iter(complexities.values()))
    statistics: dict[str, Statistic] = {
        "Kendall τ": lambda x, y, _: tau(x, y),
        "Spearman ρ": lambda x, y, _: rho(x, y),
        f"recall@{k}": lambda x, y, _: recall(x, y, k),
        "regret": lambda x, y, _: loss_of_pick(x, y),
        "complexity bias": bias,
        "matched τ": matched_tau,
    }
    supernets = predicted if isinstance(predicted, Mapping) else {"supernet": predicted}
    names = [*supernets, *complexities, "random"]
    if len(set(names)) < len(names):
        raise ValueError(f"rankings need different names, the last one's is 'random'; got {names}")
    rows = {
        name: {
            column: estimate(statistic, ranking, true, complexity, resamples=resamples, seed=seed)
            for column, statistic in statistics.items()
        }
        for name, ranking in {**supernets, **complexities}.items()
    }
    if losses is not None:
        rows[next(iter(supernets))]["complexity-convergence"] = complexity_convergence(
            complexity, *losses, resamples=resamples, seed=seed
        )
    arrays = np.asarray(true, dtype=float), np.asarray(complexity, dtype=float)
    generator = np.random.default_rng(seed)
    rankings = [generator.permutation(len(true)) for _ in range(resamples)]
    rows["random"] = {
        column: _by_chance([statistic(ranking, *arrays) for ranking in rankings], len(true))
        for column, statistic in statistics.items()
    }
    return Diagnostics(rows, len(true), (*complexities, "random"))


def _by_chance(values: list[float], subnets: int) -> Estimate:
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(float(np.mean(values)), float(low), float(high), subnets)
