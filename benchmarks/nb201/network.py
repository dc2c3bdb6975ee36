"""One network of NAS-Bench-201 by itself, as the benchmark trained it: batch norm with scales."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.nb201.supernet import EDGES
from nas_dynamic import Architecture

__all__ = ["Network"]


class Network(nn.Module):
    """A stem, three stages of cells, two reductions, a classifier, with torch's initial weights.

    Edges without effect have their weights and are computed, as in the benchmark.

    Args:
        architecture: edge → operation.
        channels: width of the first stage.
        cells: cells in each stage.
        classes: outputs.
    """

    def __init__(
        self, architecture: Architecture, channels: int = 16, cells: int = 5, classes: int = 10
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        body: list[nn.Module] = []
        for stage in range(3):
            width = channels * 2**stage
            if stage:
                body.append(_Reduction(width // 2))
            body += [_Cell(architecture, width) for _ in range(cells)]
        self.body = nn.Sequential(*body)
        self.head = nn.Sequential(
            nn.BatchNorm2d(4 * channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * channels, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute logits, (batch, classes), of images (batch, 3, height, width)."""
        return self.head(self.body(self.stem(images)))


class _Zero(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 0


class _ConvBN(nn.Sequential):
    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out_chs),
        )


def _operation(name: str, width: int) -> nn.Module:
    if name.startswith("nor_conv"):
        return _ConvBN(width, width, int(name[-1]))
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return _Zero() if name == "none" else nn.Identity()


class _Cell(nn.Module):
    def __init__(self, architecture: Architecture, width: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(_operation(str(architecture[edge]), width) for edge in EDGES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nodes = [x]
        edges = iter(self.edges)  # in the order of their targets
        for target in (1, 2, 3):
            nodes.append(torch.stack([next(edges)(nodes[i]) for i in range(target)]).sum(0))
        return nodes[3]


class _Reduction(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            _ConvBN(width, 2 * width, 3, 2), _ConvBN(2 * width, 2 * width, 3)
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, 2 * width, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convs(x) + self.shortcut(x)
