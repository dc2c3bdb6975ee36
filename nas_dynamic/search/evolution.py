"""Strategies that need no model of the objectives: random search and evolution."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.search.problem import Evaluations, Problem, as_keys

with extra("search"):
    import pymoo.core.problem
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.duplicate import DuplicateElimination
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.mutation import Mutation
    from pymoo.core.population import Population
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.problems.static import StaticProblem

__all__ = ["Evolution", "RandomSearch"]


@dataclass(frozen=True)
class RandomSearch:
    """Uniform draws without repetition: the baseline of every other strategy.

    Args:
        batch: subnets that are proposed at a time.
    """

    batch: int = 16

    def __call__(self, problem: Problem, seed: int) -> Generator[np.ndarray, Evaluations, None]:
        """Propose subnets, as a `Strategy`."""
        generator = np.random.default_rng(seed)
        while len(drawn := problem.draw(generator, self.batch)):
            yield drawn


@dataclass(frozen=True, eq=False)
class Evolution:
    """A genetic algorithm; with several objectives NSGA-II. Both are pymoo's.

    Binary tournaments choose parents, uniform crossover mixes them, mutation draws choices anew.
    Offspring that is known or not allowed is bred again, so every evaluation is of a new subnet;
    where breeding finds none, random ones come in.

    Args:
        population: number of survivors.
        offspring: subnets of a generation, that are proposed at a time.
        crossover: probability that two parents are mixed.
        mutation: probability that a choice is drawn anew; None: one choice on average.
        initial_at_most: free measure → its greatest value in the first population. Small subnets
            are cheap to score, and their offspring grows (EEEA-Net, Termritthikun et al., 2021).

    Source: Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE TEVC
    2002.
    """

    population: int = 20
    offspring: int = 10
    crossover: float = 0.5
    mutation: float | None = None
    initial_at_most: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, problem: Problem, seed: int) -> Generator[np.ndarray, Evaluations, None]:
        """Propose subnets, as a `Strategy`."""
        generator = np.random.default_rng(seed)
        first = problem.draw(generator, self.population, self.initial_at_most)
        widths = problem.widths
        space = pymoo.core.problem.Problem(
            n_var=len(widths),
            n_obj=len(problem.objectives),
            n_ieq_constr=1,
            xl=np.zeros(len(widths)),
            xu=widths - 1,
            vtype=int,
        )
        rate = self.mutation if self.mutation is not None else 1 / len(widths)
        algorithm = (NSGA2 if len(problem.objectives) > 1 else GA)(
            pop_size=self.population,
            n_offsprings=self.offspring,
            sampling=first,
            crossover=UniformCrossover(prob=self.crossover),
            mutation=_Redraw(widths, rate),
            eliminate_duplicates=_Unwanted(problem),
        )
        # Near the end of a space few offspring is new: random draws are cheaper than breeding on.
        algorithm.mating.n_max_iterations = 10
        algorithm.setup(space, termination=NoTermination(), seed=seed)
        while True:
            bred = algorithm.ask()
            if bred is None or not len(bred):
                bred = Population.new(X=problem.draw(generator, self.offspring))
            if not len(bred):
                return
            costs, violation = yield bred.get("X").astype(np.int64)
            Evaluator().eval(StaticProblem(space, F=costs, G=violation[:, None]), bred)
            algorithm.tell(infills=bred)


class _Redraw(Mutation):
    """Draw each choice anew with a probability; candidates have no order to step along."""

    def __init__(self, widths: np.ndarray, rate: float) -> None:
        super().__init__()
        self.widths, self.rate = widths, rate

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any, **kwargs: Any) -> Any:
        drawn = random_state.integers(self.widths, size=X.shape)
        return np.where(random_state.random(X.shape) < self.rate, drawn, X)


class _Unwanted(DuplicateElimination):
    """Drop offspring that was proposed before, comes twice, or is beyond a limit."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.problem = problem

    def _do(self, pop: Any, other: Any, is_duplicate: np.ndarray) -> np.ndarray:
        problem, taken = self.problem, set() if other is None else set(as_keys(other.get("X")))
        for number, key in enumerate(as_keys(pop.get("X"))):
            unwanted = other is None and (key in problem.proposed or not problem.allows(key))
            is_duplicate[number] = unwanted or key in taken
            taken.add(key)
        return is_duplicate
