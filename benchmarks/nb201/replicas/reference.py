"""What the edges compute, in float64 and without torch's convolutions, batch norms or poolings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

__all__ = ["Edge", "chunks", "relative_error"]


@dataclass(frozen=True)
class Edge:
    """An edge of a part, for one replica, in float64.

    Attributes:
        number, target, source: in the part.
        op: what it does.
        x: input, [positions, C_in].
        at: where its weights begin in the flat vector.
        blocks: of the weights: 10, or 1 of a shortcut.
        stride: of the convolution.
        relu: whether one comes before it.
        size: side of the output in pixels.
    """

    number: int
    target: int
    source: int
    op: int
    x: torch.Tensor
    at: int
    blocks: int = 10
    stride: int = 1
    relu: bool = True
    size: int = 0

    def output(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Compute what the edge makes of an input, before the batch norm."""
        step, side = self.stride, self.size
        if self.op in (2, 3) and self.relu:
            x = x.relu()
        picture = x.view(-1, side * step, side * step, x.shape[-1])
        padded = F.pad(picture, (0, 0, 1, 1, 1, 1))
        shifted = [
            padded[:, i : i + side * step : step, j : j + side * step : step].flatten(0, 2)
            for i in range(3)
            for j in range(3)
        ]
        if self.op == 1:
            return x
        if self.op == 3:
            return torch.stack([a @ b for a, b in zip(shifted, w[1:], strict=True)]).sum(0)
        if self.op == 4:
            inside = F.pad(torch.ones_like(picture[:1, ..., :1]), (0, 0, 1, 1, 1, 1))
            count = inside.unfold(1, 3, 1).unfold(2, 3, 1).sum((-1, -2)).flatten()
            return torch.stack(shifted).sum(0) / count.repeat(len(picture))[:, None]
        if self.op == 5:
            x = picture.unflatten(1, (side, 2)).unflatten(3, (side, 2)).mean((2, 4)).flatten(0, 2)
        return x @ w[0]


def chunks(x: torch.Tensor, count: int) -> torch.Tensor:
    """Return sums over `count` equal runs of positions, [count, C]."""
    return x.unflatten(0, (count, -1)).sum(1)


def relative_error(
    mine: torch.Tensor, truth: torch.Tensor, size: torch.Tensor | None = None
) -> float:
    """Return the greater of the error's relative 2-norm and relative greatest element.

    Relative to `size` in place of the truth, for sums that may cancel; inf if one is not finite.
    """
    difference, truth = mine.double() - truth, truth if size is None else size
    values = [difference.norm(), truth.norm(), difference.abs().max(), truth.abs().max()]
    error, norm, greatest, most = torch.stack(values).tolist()
    if not math.isfinite(error + norm):
        return math.inf
    if error == 0:
        return 0.0
    return max(error / norm, greatest / most) if norm else math.inf
