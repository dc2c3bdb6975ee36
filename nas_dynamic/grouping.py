"""Rules for momentum separation: which subnets share a momentum, and how to choose.

A rule is a label, which `default_label` and `gradient_similarity` choose, or a function of an
architecture: `ComplexityBins` and `Medoids`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nas_dynamic.architecture import Architecture, SearchSpace
from nas_dynamic.calr import ROUNDING, checked_complexity

__all__ = [
    "ComplexityBins",
    "GradientSimilarity",
    "LabelSimilarity",
    "Medoids",
    "default_label",
    "gradient_function",
    "gradient_similarity",
]


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
        """Bins that uniformly drawn subnets fill equally. Costs `samples` complexities."""
        generator = np.random.default_rng(seed)
        drawn = [complexity(space.sample(generator)) for _ in range(samples)]
        edges: list[float] = []
        for edge in np.quantile(drawn, np.linspace(0, 1, groups + 1)[1:-1]).tolist():
            if not edges or edge > edges[-1] * (1 + ROUNDING):
                edges.append(edge)
        return cls(complexity, edges)

    def __call__(self, architecture: Architecture) -> int:
        """Number of the bin that the subnet falls into."""
        complexity = checked_complexity(self.complexity, architecture)
        return bisect.bisect_right(self.edges, complexity * (1 + ROUNDING))

    def definition(self) -> dict[str, Any]:
        """The edges, for comparison between runs."""
        return {"edges": self.edges}


def default_label(space: SearchSpace, complexity: Callable[[Architecture], float]) -> str:
    """The label that subnets are grouped by where the user names none.

    The choice whose candidates differ most in complexity, measured around the first
    architecture; the middle one, in the order of the space, where several differ equally. The
    paper draws the label at random; the results then depend on the draw. Operations that differ
    much in size send unlike gradients, which is what separate momenta are for, and the middle
    choice of a cell or of a chain of layers has other layers on both of its sides. A choice of one
    candidate makes no groups, and is taken only where there is no other.
    """
    base = space.decode([0] * len(space.labels))

    def spread(label: str) -> float:
        values = [complexity(base | {label: candidate}) for candidate in space.choices[label]]
        return max(values) - min(values)

    real = [label for label in space.labels if len(space.choices[label]) > 1]
    spreads = {label: spread(label) for label in real or space.labels}
    greatest = max(spreads.values())
    widest = [
        label for label, value in spreads.items() if math.isclose(value, greatest, rel_tol=ROUNDING)
    ]
    return widest[len(widest) // 2]


@dataclass(frozen=True, slots=True)
class LabelSimilarity:
    """How alike gradients are within and across the groups that a label makes.

    Attributes:
        label: the choice.
        within: mean cosine of pairs of subnets that choose the same candidate.
        across: mean cosine of pairs that choose different ones.
    """

    label: str
    within: float
    across: float

    @property
    def contrast(self) -> float:
        """`within − across`: the greater, the more a momentum for each group separates."""
        return self.within - self.across


@dataclass(frozen=True, slots=True)
class GradientSimilarity:
    """Result of `gradient_similarity`; printed, it is a table.

    Attributes:
        labels: one row for each label, the best to group by first.
        subnets: number of subnets that were compared.
    """

    labels: tuple[LabelSimilarity, ...]
    subnets: int

    @property
    def best(self) -> str:
        """The label with the greatest contrast."""
        return self.labels[0].label

    def __str__(self) -> str:
        width = max(len("label"), *(len(row.label) for row in self.labels))
        lines = [f"{'label':{width}}  within  across  contrast"]
        lines += [
            f"{row.label:{width}}  {row.within:6.3f}  {row.across:6.3f}  {row.contrast:8.3f}"
            for row in self.labels
        ]
        return "\n".join(lines)


def gradient_similarity(
    space: SearchSpace,
    gradient: Callable[[Architecture, Any], torch.Tensor],
    batches: Iterable[Any],
    *,
    subnets: int = 48,
    seed: int = 0,
) -> GradientSimilarity:
    """Measure which label's groups have gradients that are alike inside and unlike across.

    Each of some uniformly drawn subnets gets its mean gradient over the batches. Two subnets are
    compared by the cosine over the parameters that both use, where both gradients are not zero:
    only there a shared momentum mixes them.

    Costs `subnets` · batches gradients, and the memory of `subnets` gradient vectors. Measure a
    supernet that is trained for some epochs: at random weights gradients say little.

    Args:
        space: what to draw from.
        gradient: (architecture, batch) → gradient of the loss, one vector over all parameters of
            the supernet, zero where the subnet has none; see `gradient_function`.
        batches: a few batches, the same for every subnet.
        subnets: number of subnets to compare.
        seed: of the draw.

    Raises:
        ValueError: no label splits the drawn subnets into groups of at least two.

    Source: after Hu et al., "Generalizing Few-Shot NAS with Gradient Matching", ICLR 2022, who
    split supernets so.
    """
    generator = np.random.default_rng(seed)
    architectures = [space.sample(generator) for _ in range(subnets)]
    batches = list(batches)
    if not batches:
        raise ValueError("there is no batch to take gradients on")
    vectors = torch.stack(
        [torch.stack([gradient(a, batch) for batch in batches]).mean(0) for a in architectures]
    ).float()
    cosines = _common_cosines(vectors).double().cpu().numpy()
    codes = np.stack([space.encode(architecture) for architecture in architectures])
    pairs = np.triu(np.isfinite(cosines), k=1)
    rows = []
    for column, label in enumerate(space.labels):
        same = codes[:, None, column] == codes[None, :, column]
        within, across = cosines[pairs & same], cosines[pairs & ~same]
        if len(within) and len(across):
            rows.append(LabelSimilarity(label, float(within.mean()), float(across.mean())))
    if not rows:
        raise ValueError(
            f"no label splits {subnets} subnets into groups with pairs inside and across; give a "
            "space with choices of several candidates, or more subnets"
        )
    return GradientSimilarity(tuple(sorted(rows, key=lambda row: -row.contrast)), subnets)


def gradient_function(
    supernet: nn.Module, loss: Callable[[Architecture, Any], torch.Tensor]
) -> Callable[[Architecture, Any], torch.Tensor]:
    """The gradient of a loss as one vector over a supernet's parameters.

    Args:
        supernet: whose trainable parameters count.
        loss: (architecture, batch) → loss of that subnet, with its graph.
    """
    parameters = [p for p in supernet.parameters() if p.requires_grad]

    def gradient(architecture: Architecture, batch: Any) -> torch.Tensor:
        found = torch.autograd.grad(loss(architecture, batch), parameters, allow_unused=True)
        return torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).detach().flatten()
                for p, g in zip(parameters, found, strict=True)
            ]
        )

    return gradient


def _common_cosines(vectors: torch.Tensor) -> torch.Tensor:
    """Cosines of rows over the entries where both are not zero; nan where there are none."""
    used = (vectors != 0).to(vectors.dtype)
    squares = vectors.square() @ used.T  # [i, j]: squared norm of i over what j uses
    return vectors @ vectors.T / (squares * squares.T).sqrt()


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
        """k-medoids of uniformly drawn subnets.

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
        """Number of the nearest medoid, the first of equals."""
        return int((self.codes != self.space.encode(architecture)).sum(1).argmin())

    def definition(self) -> dict[str, Any]:
        """The medoids, for comparison between runs."""
        return {"medoids": self.codes.tolist()}


def k_medoids(distances: np.ndarray, groups: int) -> list[int]:
    """Medoids that no single swap improves: PAM.

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
