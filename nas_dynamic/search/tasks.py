"""Search for several tasks at once: each subnet that is looked at is scored on all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nas_dynamic.search.objective import Objective
from nas_dynamic.search.predictors import GradientBoosting
from nas_dynamic.search.problem import Strategy
from nas_dynamic.search.result import Evaluation, SearchResult
from nas_dynamic.search.run import Scorer, search
from nas_dynamic.search.surrogate import Surrogate
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["TasksResult", "search_tasks"]

HIGHEST_ACCURACY = Objective("accuracy", maximize=True)


@dataclass(frozen=True, eq=False)
class TasksResult:
    """What a search for several tasks found.

    Attributes:
        found: all evaluations; their values are named `task/score`.
        objectives: task → what was searched for, by these names.
    """

    found: SearchResult
    objectives: Mapping[str, Objective]

    @property
    def best(self) -> dict[str, Evaluation]:
        """Task → its best feasible subnet, the first of equals.

        Raises:
            ValueError: no feasible subnet was evaluated.
        """
        evaluations = self.found.evaluations
        return {
            task: SearchResult([objective], evaluations).best
            for task, objective in self.objectives.items()
        }

    @property
    def front(self) -> list[Evaluation]:
        """Feasible subnets that no other one beats: as good in all tasks, better in one."""
        return self.found.pareto


def search_tasks(
    space: SearchSpace,
    tasks: Mapping[str, Scorer],
    *,
    budget: int,
    objective: Objective = HIGHEST_ACCURACY,
    strategy: Strategy | None = None,
    **options: Any,
) -> TasksResult:
    """Search for the best subnet of each task, over one pool of subnets.

    A subnet that was proposed for one task is scored on all, so that each task learns from what
    the others look at, and one more task takes no more subnets.

    Args:
        space: the architectures.
        tasks: task → what scores architectures on it, as in `search`.
        budget: greatest number of subnets that are scored, each on all tasks.
        objective: of the scores of a task, the same for all.
        strategy: of several objectives; by default `Surrogate(in_turn=True)`, which predicts each
            task, and evaluates what looks best for each in turn.
        options: as in `search`: measures, at_most, patience, path, progress, seed, …; limits of
            scores are named `task/score`.

    Raises:
        ValueError: there are no tasks, the objective is computed from several scores, or as in
            `search`.

    Source: Wu et al., "FBNetV5: Neural Architecture Search for Multiple Tasks in One Run", 2021,
    arXiv 2111.10007: one search, whose cost does not grow with the tasks.

    Example:
        >>> space = SearchSpace({"width": [1, 2, 3], "depth": [1, 2]})
        >>> wide = lambda subnets: [{"accuracy": a["width"] - a["depth"]} for a in subnets]
        >>> deep = lambda subnets: [{"accuracy": a["depth"] - a["width"]} for a in subnets]
        >>> found = search_tasks(space, {"wide": wide, "deep": deep}, budget=6)
        >>> found.best["wide"].architecture, found.best["deep"].architecture
        ({'width': 3, 'depth': 1}, {'width': 1, 'depth': 2})
    """
    if not tasks:
        raise ValueError("there is no task; give tasks={name: score}")
    if objective.value is not None:
        raise ValueError(
            f"the objective of tasks is one score, got {objective.description}; let each task's "
            "score return it"
        )
    objectives = {task: Objective(f"{task}/{objective.name}", objective.maximize) for task in tasks}

    def score(architectures: list[Architecture]) -> Iterator[dict[str, float]]:
        # Each gets a list of its own; values come one by one, and are kept as they come.
        made = [iter(scorer(list(architectures))) for scorer in tasks.values()]
        for of_tasks in zip(*made, strict=False):
            yield {
                f"{task}/{name}": value
                for task, scores in zip(tasks, of_tasks, strict=True)
                for name, value in scores.items()
            }

    found = search(
        space,
        score,
        list(objectives.values()),
        budget=budget,
        strategy=strategy or Surrogate(GradientBoosting(), in_turn=True),
        **options,
    )
    return TasksResult(found, objectives)
