"""The NAS-Bench-201 space and its supernet in plain torch.

Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture
Search", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from nas_dynamic import Architecture, SearchSpace

EDGES = ("1←0", "2←0", "2←1", "3←0", "3←1", "3←2")
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
SPACE = SearchSpace(dict.fromkeys(EDGES, OPERATIONS))
"""One operation on each edge of a cell; every cell of a network is the same."""


class ConvBN(nn.Sequential):
    """ReLU, convolution, batch norm: without affine parameters, on the statistics of the batch."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out_chs, affine=False, track_running_stats=False),
        )


class Edge(nn.ModuleDict):
    """The operations of an edge that compute something."""

    def __init__(self, chs: int) -> None:
        super().__init__(
            {
                "skip_connect": nn.Identity(),
                "nor_conv_1x1": ConvBN(chs, chs, 1),
                "nor_conv_3x3": ConvBN(chs, chs, 3),
                "avg_pool_3x3": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            }
        )


class Cell(nn.Module):
    """Four nodes; each is the sum of its edges from the nodes before it."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        self.edges = nn.ModuleDict({edge: Edge(chs) for edge in EDGES})

    def forward(self, x: torch.Tensor, architecture: Architecture) -> torch.Tensor:
        """Return the last node."""
        nodes = [x]
        for target in (1, 2, 3):
            node = torch.zeros_like(x)
            for source in range(target):
                name = f"{target}←{source}"
                if architecture[name] != "none":
                    node = node + self.edges[name][architecture[name]](nodes[source])
            nodes.append(node)
        return nodes[3]


class Reduction(nn.Module):
    """A residual block that halves the size and doubles the width."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(ConvBN(chs, 2 * chs, 3, 2), ConvBN(2 * chs, 2 * chs, 3))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(chs, 2 * chs, 1, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of twice the width and half the size."""
        return self.body(x) + self.shortcut(x)


class Supernet(nn.Module):
    """Every network of the space, of width C and N cells a stage, with shared weights.

    It computes the subnet `sampled`, an attribute, and is a `nas_dynamic.host.Supernet`.
    """

    space = SPACE

    def __init__(self, width: int, cells: int, classes: int) -> None:
        super().__init__()
        self.sampled: Architecture = SPACE.decode([3] * len(EDGES))
        self.stem = nn.Sequential(*list(ConvBN(3, width, 3))[1:])
        self.stages = nn.ModuleList(
            nn.ModuleList(Cell(width * 2**stage) for _ in range(cells)) for stage in range(3)
        )
        self.reductions = nn.ModuleList([Reduction(width), Reduction(2 * width)])
        self.head = nn.Sequential(
            nn.BatchNorm2d(4 * width, affine=False, track_running_stats=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, 3, height, width)."""
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            if number:
                x = self.reductions[number - 1](x)
            for cell in stage:
                x = cell(x, self.sampled)
        return self.head(x)

    def activate(self, architecture: Architecture) -> None:
        """Compute this subnet from now on."""
        self.sampled = architecture

    def subnet_parameters(self) -> Callable[[Architecture], int]:
        """Return a count of the parameters of a subnet."""

        def count(architecture: Architecture) -> int:
            modules = [self.stem, self.reductions, self.head]
            for stage in self.stages:
                for cell in stage:
                    for edge, operation in architecture.items():
                        if operation != "none":
                            modules.append(cell.edges[edge][operation])
            return sum(p.numel() for module in modules for p in module.parameters())

        return count
