"""Rules for momentum separation: which subnets share a momentum, and how to choose.

A rule is a label, which `default_label` and `nas_dynamic.analysis.gradient_similarity` choose, or a
function of an architecture: `ComplexityBins` and `Medoids`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nas_dynamic.complexity import AdditiveTable
from nas_dynamic.complexity_scale import ROUNDING, checked_complexity
from nas_dynamic.momentum import GroupBy
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["ComplexityBins", "Medoids", "check_rule", "default_label", "default_rule"]


class ComplexityBins:
    """Grouping rule: subnets of similar complexity share a momentum.

    Args:
        complexity: complexity of an architecture.
        edges: increasing inner edges; n edges make the groups 0 … n.

    Example:
        >>> bins = ComplexityBins(lambda a: a["width"], edges=[4, 8])
        >>> [bins({"width": w}) for w in (2, 4, 16)]
        [0, 1, 2]
    """

    def __init__(self, complexity: Callable[[Architecture], float], edges: Sequence[float]) -> None:
        self.complexity = complexity
        self.edges = [float(edge) for edge in edges]
        if not self.edges or any(np.diff(self.edges) <= 0):
            raise ValueError(f"edges must increase, got {list(edges)}")

    @classmethod
    def quantiles(
        cls,
        space: SearchSpace,
        complexity: Callable[[Architecture], float],
        groups: int = 4,
        *,
        samples: int = 1024,
        seed: int = 0,
    ) -> ComplexityBins:
        """Return bins that uniformly drawn subnets fill equally. Costs `samples` complexities."""
        generator = np.random.default_rng(seed)
        drawn = [complexity(space.sample(generator)) for _ in range(samples)]
        edges: list[float] = []
        for edge in np.quantile(drawn, np.linspace(0, 1, groups + 1)[1:-1]).tolist():
            if not edges or edge > edges[-1] * (1 + ROUNDING):
                edges.append(edge)
        return cls(complexity, edges)

    def __call__(self, architecture: Architecture) -> int:
        """Return the number of the bin that the subnet falls into."""
        complexity = checked_complexity(self.complexity, architecture)
        return bisect.bisect_right(self.edges, complexity * (1 + ROUNDING))

    def definition(self) -> dict[str, Any]:
        """Return the edges, for comparison between runs."""
        return {"edges": self.edges}


def check_rule(space: SearchSpace, group_by: GroupBy, max_groups: int) -> None:
    """Check that subnets of a space can be grouped by a rule, if that is a label.

    Raises:
        ValueError: the space has no such label, or more than `max_groups` candidates there.
    """
    if not isinstance(label := group_by, str):
        return
    if label not in space.choices:
        raise ValueError(
            f"group_by={label!r} is no label of the space; "
            f"labels are {', '.join(map(repr, space.labels))}"
        )
    count = len(space.choices[label])
    if count > max_groups:
        raise ValueError(
            f"{label!r} has {count} candidates, which would be {count} momentum groups with a "
            f"state of their own, and max_groups is {max_groups}; group by another label or by "
            "nas_dynamic.grouping.ComplexityBins, or raise max_groups"
        )


def default_rule(
    space: SearchSpace, complexity: Callable[[Architecture], float], max_groups: int
) -> str | ComplexityBins:
    """Return how subnets are grouped where the user does not say.

    By `default_label`, of the labels with at most `max_groups` candidates. Where every choice has
    more, by four bins of the complexity.
    """
    few = {k: c for k, c in space.choices.items() if len(c) <= max_groups}
    if not any(len(candidates) > 1 for candidates in few.values()) and len(few) < len(space.labels):
        return ComplexityBins.quantiles(space, complexity, min(4, max_groups))
    return default_label(space, complexity, max_groups)


def default_label(
    space: SearchSpace, complexity: Callable[[Architecture], float], most: int | None = None
) -> str:
    """Return the label that subnets are grouped by where the user names none.

    The choice whose candidates differ most in complexity, measured around the first
    architecture; the middle one, in the order of the space, where several differ equally. The
    paper draws the label at random; the results then depend on the draw. Operations that differ
    much in size send unlike gradients, which is what separate momenta are for, and the middle
    choice of a cell or of a chain of layers has other layers on both of its sides. A choice of one
    candidate makes no groups, and is taken only where there is no other.

    Args:
        space: the choices.
        complexity: of an architecture.
        most: candidates that the choice may have.
    """
    terms = AdditiveTable.measure(space, complexity).terms
    real = [
        label
        for label, candidates in space.choices.items()
        if len(candidates) > 1 and (most is None or len(candidates) <= most)
    ]
    spreads = {k: max(terms[k].values()) - min(terms[k].values()) for k in real or space.labels}
    greatest = max(spreads.values())
    widest = [
        label for label, value in spreads.items() if math.isclose(value, greatest, rel_tol=ROUNDING)
    ]
    return widest[len(widest) // 2]


class Medoids:
    """Grouping rule: subnets share the momentum of the nearest of k typical subnets.

    The distance of two subnets is the number of choices in which they differ, half the squared
    distance of their one-hot encodings. All choices count, where a label looks at one of them.

    Args:
        space: the search space.
        medoids: the typical subnets, one for each group.

    Example:
        >>> space = SearchSpace({f"layer{i}": ["conv3", "conv5"] for i in range(3)})
        >>> rule = Medoids(space, [space.decode([0, 0, 0]), space.decode([1, 1, 1])])
        >>> rule(space.decode([0, 1, 1]))
        1
    """

    def __init__(self, space: SearchSpace, medoids: Sequence[Architecture]) -> None:
        self.space = space
        self.codes = np.stack([space.encode(medoid) for medoid in medoids])

    @classmethod
    def fit(
        cls, space: SearchSpace, groups: int = 4, *, samples: int = 256, seed: int = 0
    ) -> Medoids:
        """Find k medoids of uniformly drawn subnets.

        Costs some rounds of `groups` · samples² operations, and the memory of samples² distances:
        well below a second for the default. It looks at no weights and no data.

        Raises:
            ValueError: fewer different subnets were drawn than groups are wanted.
        """
        generator = np.random.default_rng(seed)
        drawn = [space.encode(space.sample(generator)) for _ in range(samples)]
        codes = np.unique(np.stack(drawn), axis=0)
        if not 1 <= groups <= len(codes):
            raise ValueError(f"groups must lie in 1 … {len(codes)} different subnets, got {groups}")
        distances = (codes[:, None] != codes[None]).sum(-1)
        return cls(space, [space.decode(codes[i]) for i in k_medoids(distances, groups)])

    def __call__(self, architecture: Architecture) -> int:
        """Return the number of the nearest medoid, the first of equals."""
        return int((self.codes != self.space.encode(architecture)).sum(1).argmin())

    def definition(self) -> dict[str, Any]:
        """Return the medoids, for comparison between runs."""
        return {"medoids": self.codes.tolist()}


def k_medoids(distances: np.ndarray, groups: int) -> list[int]:
    """Find medoids that no single swap improves: PAM.

    Args:
        distances: symmetric, of shape (points, points).
        groups: number of medoids.

    Source: Kaufman and Rousseeuw, "Finding Groups in Data", 1990.
    """
    medoids = [int(distances.sum(0).argmin())]
    while len(medoids) < groups:  # the point that lowers the cost most
        nearest = distances[medoids].min(0)
        gains = np.maximum(nearest[:, None] - distances, 0).sum(0)
        gains[medoids] = -1
        medoids.append(int(gains.argmax()))
    cost, improved = distances[medoids].min(0).sum(), True
    while improved:
        improved = False
        for k in range(groups):
            others = medoids[:k] + medoids[k + 1 :]
            rest = distances[others].min(0) if others else np.full(len(distances), np.inf)
            costs = np.minimum(rest[:, None], distances).sum(0)
            if costs.min() < cost:
                medoids[k], cost, improved = int(costs.argmin()), costs.min(), True
    return medoids
