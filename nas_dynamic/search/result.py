"""What a search found: evaluations, the Pareto set, the hypervolume as it grew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.search.objective import Objective
from nas_dynamic.space import Architecture

with extra("search"):
    from pymoo.indicators.hv import Hypervolume
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

__all__ = ["Evaluation", "SearchResult", "extended_front"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One subnet that was evaluated.

    Attributes:
        architecture: the subnet.
        values: name → value, of what was scored and of the free measures.
        feasible: whether all limits hold.
    """

    architecture: Architecture
    values: dict[str, float]
    feasible: bool


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found.

    Attributes:
        objectives: what was searched for.
        evaluations: all of them, in the order in which they were made.
    """

    objectives: Sequence[Objective]
    evaluations: list[Evaluation]

    @property
    def best(self) -> Evaluation:
        """The feasible subnet with the best objective, the first of equals.

        Raises:
            ValueError: there are several objectives, or no feasible subnet was evaluated.
        """
        if len(self.objectives) > 1:
            raise ValueError(
                f"{len(self.objectives)} objectives have no single best subnet; see `pareto`"
            )
        feasible = [evaluation for evaluation in self.evaluations if evaluation.feasible]
        if not feasible:
            raise ValueError(
                f"none of {len(self.evaluations)} evaluated subnets is within the limits; "
                "raise the budget or widen the limits"
            )
        return min(feasible, key=lambda evaluation: self.objectives[0].cost(evaluation.values))

    @property
    def pareto(self) -> list[Evaluation]:
        """Feasible subnets that no other one beats: as good in all objectives, better in one."""
        feasible = [evaluation for evaluation in self.evaluations if evaluation.feasible]
        if not feasible:
            return []
        costs = np.array([self._costs(evaluation) for evaluation in feasible])
        front = NonDominatedSorting().do(costs, only_non_dominated_front=True)
        return [feasible[number] for number in sorted(front)]

    def hypervolume(
        self, worst: Sequence[float] | None = None, best: Sequence[float] | None = None
    ) -> np.ndarray:
        """Return the share of a box of objectives that the feasible subnets dominate, as it grows.

        Args:
            worst: one corner of the box, a value for each objective; by default the worst
                feasible values. Give it, and `best`, to compare searches.
            best: the other corner; by default the best feasible values.

        Returns:
            Shape (evaluations,): the share in [0, 1] after each evaluation.
        """
        costs = np.array([self._costs(evaluation) for evaluation in self.evaluations])
        feasible = np.array([evaluation.feasible for evaluation in self.evaluations], dtype=bool)
        volumes = np.zeros(len(costs))
        if not feasible.any():
            return volumes
        sign = np.array([-1 if objective.maximize else 1 for objective in self.objectives])
        high = costs[feasible].max(0) if worst is None else sign * np.asarray(worst)
        low = costs[feasible].min(0) if best is None else sign * np.asarray(best)
        span = np.where(high > low, high - low, 1.0)
        scaled = np.clip((costs - low) / span, 0, None)
        indicator = Hypervolume(ref_point=(high - low) / span)
        front, volume = np.empty((0, costs.shape[1])), 0.0
        for number, point in enumerate(scaled):
            if feasible[number] and (extended := extended_front(front, point)) is not None:
                front, volume = extended, float(indicator(extended))
            volumes[number] = volume
        return volumes

    def _costs(self, evaluation: Evaluation) -> list[float]:
        return [objective.cost(evaluation.values) for objective in self.objectives]


def extended_front(front: np.ndarray, costs: np.ndarray) -> np.ndarray | None:
    """Return a Pareto front, shape (subnets, objectives), with one more subnet.

    Returns:
        None where a subnet of the front is as good in all objectives.
    """
    if (front <= costs).all(1).any():
        return None
    return np.vstack([front[~(costs <= front).all(1)], costs])
