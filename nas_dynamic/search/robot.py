"""Search by a mix of training-free metrics whose weights are found by Bayesian optimisation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.search.problem import Evaluations, Problem

with extra("search"):
    from scipy.stats import rankdata

__all__ = ["RoBoT"]

KAPPA = 2.576
"""How much uncertainty counts in the upper confidence bound, as in the published code."""


@dataclass(frozen=True)
class RoBoT:
    """Evaluate the subnets that mixes of measures put first; then go down the best mix.

    No training-free metric ranks the subnets of every task well, and its sign may change. So each
    weight of the mix is searched for in [−1, 1]: a Gaussian process models the result of the subnet
    that a mix puts first. A mix that puts a known subnet first costs no evaluation. After
    `iterations` mixes the subnets follow in the order of the best one.

    Needs `pip install 'nas-dynamic[robot]'`, the package bayesian-optimization.

    Args:
        iterations: mixes that are tried; in the paper as many as there are evaluations.
        metrics: measures that are mixed; None: all of the search.
        ranks: mix ranks in place of values, both scaled to [0, 1], so that a metric of few large
            values does not hide the others.
        pool: number of random subnets whose metrics are computed, to choose from.
        batch: subnets of the best mix that are proposed at a time.

    Source: He et al., "Robustifying and Boosting Training-Free Neural Architecture Search", ICLR
    2024, algorithms 1 and 2.
    """

    iterations: int = 20
    metrics: Sequence[str] | None = None
    ranks: bool = False
    pool: int = 4000
    batch: int = 16

    def __call__(self, problem: Problem, seed: int) -> Generator[np.ndarray, Evaluations, None]:
        """Propose subnets, as a `Strategy`.

        Raises:
            ValueError: there are several objectives, or a metric is no measure of the search.
        """
        names = self._names(problem)
        mixes = _mixes(names, seed)
        generator = np.random.default_rng(seed)
        pool = problem.draw(generator, self.pool)  # in random order, as subnets may tie
        known: dict[int, float] = {}
        best = (-np.inf, np.zeros(len(names)))
        scores = self._scaled(problem, names, pool)
        for _ in range(self.iterations if len(pool) else 0):
            suggested = mixes.suggest()
            weights = np.array([suggested[name] for name in names], dtype=float)
            first = int(np.argmax(scores @ weights))
            if first not in known:
                ((cost,),), (violation,) = yield pool[first : first + 1]
                if violation > 0:
                    cost = max(cost, -min(known.values(), default=-cost)) + violation
                known[first] = -cost
            mixes.register(params=suggested, target=known[first])
            if known[first] >= best[0]:
                best = (known[first], weights)
        pool, scores = np.delete(pool, list(known), 0), np.delete(scores, list(known), 0)
        while len(pool):
            ordered = pool[np.argsort(-(scores @ best[1]), kind="stable")]
            for start in range(0, len(ordered), self.batch):
                yield ordered[start : start + self.batch]
            pool = problem.draw(generator, self.pool)
            scores = self._scaled(problem, names, pool)

    def _names(self, problem: Problem) -> list[str]:
        names = list(problem.measures if self.metrics is None else self.metrics)
        if len(problem.objectives) > 1:
            raise ValueError(
                f"RoBoT looks for one best subnet, got {len(problem.objectives)} objectives; give "
                "one, and limits for the others, or use Surrogate or Evolution"
            )
        if not names or set(names) - set(problem.measures):
            raise ValueError(
                f"RoBoT mixes measures, got the metrics {names} of the measures "
                f"{sorted(problem.measures)}; give measures=proxy_measures(…)"
            )
        return names

    def _scaled(self, problem: Problem, names: Sequence[str], pool: np.ndarray) -> np.ndarray:
        """Return measures scaled to [0, 1], shape (subnets, metrics); what failed counts as 0."""
        architectures = [problem.space.decode(row) for row in pool]
        columns = []
        for name in names:
            values = np.array([float(problem.measures[name](a)) for a in architectures])
            finite = np.isfinite(values)
            low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
            values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
            if self.ranks:
                values = rankdata(values)
                low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
            columns.append((values - low) / ((high - low) or 1.0))
        return np.stack(columns, axis=1)


def _mixes(names: Sequence[str], seed: int) -> Any:
    """Return what suggests weights, by name, and is told what they led to."""
    with extra("robot"):
        from bayes_opt import BayesianOptimization
        from bayes_opt.acquisition import UpperConfidenceBound

    class Drawn(UpperConfidenceBound):
        """Takes the best of random weights: following its gradients costs seconds a mix."""

        def suggest(self, *args: Any, **options: Any) -> Any:
            return super().suggest(*args, **{**options, "n_smart": 0})

    return BayesianOptimization(
        None,
        dict.fromkeys(names, (-1.0, 1.0)),
        acquisition_function=Drawn(kappa=KAPPA),
        random_state=seed,
        verbose=0,
        allow_duplicate_points=True,
    )
