"""Search by a model of the objectives: fit what was evaluated, evaluate what looks best."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.search.predictors import GradientBoosting, Predictor
from nas_dynamic.search.problem import Evaluations, Problem, as_keys

with extra("search"):
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
    from scipy.stats import rankdata

__all__ = ["Surrogate"]


@dataclass(frozen=True)
class Surrogate:
    """Evaluate what a model, fitted to all evaluations so far, predicts to be best.

    Where the space can be listed the model predicts all of it; elsewhere random subnets and
    neighbours of the best evaluated ones. One objective: the best predictions are evaluated.
    Several: the first fronts of the predictions, or the best of each objective in turn; objectives
    that are free measures are not predicted but looked up.

    Args:
        predictor: makes the model.
        initial: random subnets that are evaluated first.
        batch: subnets that are evaluated before the next fit.
        explore: share of a batch that is drawn at random.
        ranks: fit ranks in place of values, so that a few failing subnets do not fill the range
            (GBDT-NAS).
        pool: number of candidates where the space cannot be listed.
        in_turn: of several objectives, such as those of several tasks, evaluate what is predicted
            to be best for each in turn. The fronts of many objectives hold nearly everything.
    """

    predictor: Predictor = field(default_factory=GradientBoosting)
    initial: int = 64
    batch: int = 16
    explore: float = 0.1
    ranks: bool = True
    pool: int = 4000
    in_turn: bool = False

    def __call__(self, problem: Problem, seed: int) -> Generator[np.ndarray, Evaluations, None]:
        """Propose subnets, as a `Strategy`."""
        search = _SurrogateSearch(self, problem, seed)
        proposed = problem.draw(search.generator, self.initial)
        while len(proposed):
            search.add(proposed, (yield proposed))
            proposed = search.propose()


class _SurrogateSearch:
    """A model, and what was evaluated so far."""

    def __init__(self, options: Surrogate, problem: Problem, seed: int) -> None:
        self.options, self.problem = options, problem
        self.generator = np.random.default_rng(seed)
        self.model = options.predictor(problem, seed)
        self.encodings = np.empty((0, len(problem.widths)), dtype=np.int64)
        self.costs = np.empty((0, len(problem.objectives)))
        self.violation = np.empty(0)

    def add(self, encodings: np.ndarray, evaluations: Evaluations) -> None:
        self.encodings = np.vstack([self.encodings, encodings])
        self.costs = np.vstack([self.costs, evaluations.costs])
        self.violation = np.append(self.violation, evaluations.violation)

    def propose(self) -> np.ndarray:
        costs, batch = self._penalized(), self.options.batch
        pool = self.problem.remaining()
        if pool is None:
            pool = self._pool(costs)
        # Models tie on many subnets: the order among those is random.
        pool = self.generator.permutation(pool)
        exploring = self.generator.binomial(batch, self.options.explore)
        if len(pool) <= batch:
            return pool
        predicted = self._predict(costs, pool)
        if self.options.in_turn:
            best = _in_turn(predicted, batch - exploring, len(self.encodings))
        else:
            best = _first(predicted, batch - exploring, self.generator)
        others = np.setdiff1d(np.arange(len(pool)), best)
        drawn = self.generator.choice(others, exploring, replace=False)
        return np.concatenate([pool[best], pool[drawn]])

    def _penalized(self) -> np.ndarray:
        """Return costs in which subnets beyond a limit are worse than all others."""
        costs, outside = self.costs.copy(), self.violation > 0
        costs[outside] = costs.max(0) + self.violation[outside, None]
        return costs

    def _predict(self, costs: np.ndarray, pool: np.ndarray) -> np.ndarray:
        problem = self.problem
        x, x_pool = problem.one_hot(self.encodings), problem.one_hot(pool)
        columns: list[np.ndarray] = []
        for objective, y in zip(problem.objectives, costs.T, strict=True):
            if objective.value is None and objective.name in problem.measures:
                measure = problem.measures[objective.name]
                measured = [measure(problem.space.decode(row)) for row in pool]
                columns.append(np.array(measured) * (-1 if objective.maximize else 1))
            else:
                self.model.fit(x, rankdata(y) / len(y) if self.options.ranks else y)
                columns.append(self.model.predict(x_pool))
        return np.stack(columns, axis=1)

    def _pool(self, costs: np.ndarray) -> np.ndarray:
        """Return neighbours of the best evaluated subnets, and random ones."""
        problem, generator, half = self.problem, self.generator, self.options.pool // 2
        parents = self.encodings[_first(costs, self.options.initial, generator)]
        children = np.repeat(parents, half // len(parents), axis=0)
        changed = generator.integers(len(problem.widths), size=(len(children), 2))
        for column in changed.T:
            children[np.arange(len(children)), column] = generator.integers(problem.widths[column])
        fresh = dict.fromkeys(
            key for key in as_keys(children) if key not in problem.proposed and problem.allows(key)
        )
        fresh |= dict.fromkeys(as_keys(problem.draw(generator, half)))
        return np.array(list(fresh), dtype=np.int64).reshape(-1, len(problem.widths))


def _first(costs: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return the rows of least costs; of several objectives, of the first fronts, cut at random."""
    count = min(count, len(costs))
    if not count:
        return np.empty(0, dtype=np.int64)
    if costs.shape[1] == 1:
        return np.argsort(costs[:, 0], kind="stable")[:count]
    fronts = NonDominatedSorting().do(costs, n_stop_if_ranked=count)
    return np.concatenate([generator.permutation(front) for front in fronts])[:count]


def _in_turn(costs: np.ndarray, count: int, turn: int) -> np.ndarray:
    """Return the rows of which each objective in turn, from number `turn` on, takes its best."""
    orders = [iter(order) for order in np.argsort(costs, axis=0, kind="stable").T]
    taken: dict[int, None] = {}
    while len(taken) < min(count, len(costs)):
        order = orders[(turn + len(taken)) % len(orders)]
        taken[next(int(row) for row in order if int(row) not in taken)] = None
    return np.array(list(taken), dtype=np.int64)
