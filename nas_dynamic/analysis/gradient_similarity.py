"""How alike the gradients of subnets are, within and across the groups that a label makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["GradientSimilarity", "LabelSimilarity", "gradient_function", "gradient_similarity"]


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
