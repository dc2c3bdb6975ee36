"""How alike the gradients of subnets are, within and across the groups that a label makes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["LabelSimilarity", "gradient_function", "gradient_similarity"]


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

    def __str__(self) -> str:
        return (
            f"{self.label}: within {self.within:.3f}, across {self.across:.3f}, "
            f"contrast {self.contrast:.3f}"
        )


def gradient_similarity(
    space: SearchSpace,
    gradient: Callable[[Architecture, Any], torch.Tensor],
    batches: Iterable[Any],
    *,
    subnets: int = 48,
    seed: int = 0,
) -> list[LabelSimilarity]:
    """Measure how alike gradients are within and across the groups that each label makes.

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

    Returns:
        A row for each label that makes groups, the one with the greatest contrast first.

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
    return sorted(rows, key=lambda row: -row.contrast)


def gradient_function(
    supernet: nn.Module, loss: Callable[[Architecture, Any], torch.Tensor]
) -> Callable[[Architecture, Any], torch.Tensor]:
    """Return the gradient of a loss as one vector over a supernet's parameters.

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
    """Return cosines of rows over the entries where both are not zero; nan where none are."""
    used = (vectors != 0).to(vectors.dtype)
    squares = vectors.square() @ used.T  # [i, j]: squared norm of i over what j uses
    return vectors @ vectors.T / (squares * squares.T).sqrt()
