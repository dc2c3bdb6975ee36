"""Search by a model of the objectives: fit what was evaluated, evaluate what looks best."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.search.predictors import GradientBoosting, Predictor, Regressor
from nas_dynamic.search.problem import Evaluations, Problem

with extra("search"):
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
    from scipy.stats import rankdata

__all__ = ["Surrogate"]


@dataclass(frozen=True)
class Surrogate:
    """Evaluate what a model, fitted to all evaluations so far, predicts to be best.

    Where the space can be listed the model predicts all of it; elsewhere random subnets and
    neighbours of the best evaluated ones. One objective: the best predictions are evaluated.
    Several: the first fronts of the predictions; objectives that are free measures are not
    predicted but looked up.

    Args:
        predictor: makes the model.
        initial: random subnets that are evaluated first.
        batch: subnets that are evaluated before the next fit.
        explore: share of a batch that is drawn at random.
        ranks: fit ranks in place of values, so that a few failing subnets do not fill the range
            (GBDT-NAS).
        pool: number of candidates where the space cannot be listed.
    """

    predictor: Predictor = field(default_factory=GradientBoosting)
    initial: int = 64
    batch: int = 16
    explore: float = 0.1
    ranks: bool = True
    pool: int = 4000

    def __call__(self, problem: Problem, seed: int) -> Generator[np.ndarray, Evaluations, None]:
        """See `Strategy`."""
        generator = np.random.default_rng(seed)
        model = self.predictor(problem, seed)
        asked = problem.draw(generator, self.initial)
        encodings, targets = np.empty((0, len(problem.widths)), dtype=np.int64), None
        while len(asked):
            outcome = yield asked
            encodings = np.vstack([encodings, asked])
            targets = outcome if targets is None else _joined(targets, outcome)
            asked = self._propose(problem, model, encodings, _penalized(targets), generator)

    def _propose(
        self,
        problem: Problem,
        model: Regressor,
        encodings: np.ndarray,
        costs: np.ndarray,
        generator: np.random.Generator,
    ) -> np.ndarray:
        pool = problem.remaining()
        if pool is None:
            pool = self._pool(problem, encodings, costs, generator)
        # Models tie on many subnets: the order among those is random.
        pool = generator.permutation(pool)
        exploring = generator.binomial(self.batch, self.explore)
        if len(pool) <= self.batch:
            return pool
        predicted = self._predict(problem, model, encodings, costs, pool)
        chosen = _first(predicted, self.batch - exploring, generator)
        others = np.setdiff1d(np.arange(len(pool)), chosen)
        return pool[np.append(chosen, generator.choice(others, exploring, replace=False))]

    def _predict(
        self,
        problem: Problem,
        model: Regressor,
        encodings: np.ndarray,
        costs: np.ndarray,
        pool: np.ndarray,
    ) -> np.ndarray:
        x, x_pool = problem.one_hot(encodings), problem.one_hot(pool)
        columns: list[np.ndarray] = []
        for number, objective in enumerate(problem.objectives):
            if objective.value is None and objective.name in problem.measures:
                sign = -1 if objective.maximize else 1
                measure = problem.measures[objective.name]
                measured = [measure(problem.space.decode(row)) for row in pool]
                columns.append(sign * np.array(measured))
                continue
            y = costs[:, number]
            model.fit(x, rankdata(y) / len(y) if self.ranks else y)
            columns.append(model.predict(x_pool))
        return np.array(columns).T

    def _pool(
        self,
        problem: Problem,
        encodings: np.ndarray,
        costs: np.ndarray,
        generator: np.random.Generator,
    ) -> np.ndarray:
        parents = encodings[_first(costs, self.initial, generator)]
        children = np.repeat(parents, self.pool // 2 // len(parents), axis=0)
        changed = generator.integers(len(problem.widths), size=(len(children), 2))
        for column in changed.T:
            children[np.arange(len(children)), column] = generator.integers(problem.widths[column])
        fresh = {
            key: None
            for key in map(tuple, children.tolist())
            if key not in problem.asked and problem.allows(key)
        }
        fresh |= dict.fromkeys(map(tuple, problem.draw(generator, self.pool // 2).tolist()))
        return np.array(list(fresh), dtype=np.int64).reshape(-1, len(problem.widths))


def _first(costs: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Rows of the least costs; of several objectives, of the first fronts, cut at random."""
    count = min(count, len(costs))
    if not count:
        return np.empty(0, dtype=np.int64)
    if costs.shape[1] == 1:
        return np.argsort(costs[:, 0], kind="stable")[:count]
    fronts = NonDominatedSorting().do(costs, n_stop_if_ranked=count)
    return np.concatenate([generator.permutation(front) for front in fronts])[:count]


def _penalized(outcome: Evaluations) -> np.ndarray:
    """Costs in which subnets beyond a limit are worse than all others, the further the worse."""
    costs, violation = outcome.costs.copy(), outcome.violation
    outside = violation > 0
    costs[outside] = costs.max(0) + violation[outside, None]
    return costs


def _joined(first: Evaluations, second: Evaluations) -> Evaluations:
    return Evaluations(
        np.vstack([first.costs, second.costs]), np.append(first.violation, second.violation)
    )
