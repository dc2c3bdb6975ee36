"""The NAS-Bench-201 space and its weight-sharing supernet, on batch statistics.

Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible Neural Architecture
Search", ICLR 2020.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks.nb201.kernels import TORCH, Kernels
from nas_dynamic import Architecture, SearchSpace

__all__ = [
    "EDGES",
    "OPERATIONS",
    "SPACE",
    "Cell",
    "LiveEdge",
    "Supernet",
    "depth",
    "live_edges",
    "macs",
    "parameters",
]

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ("1←0", "2←0", "2←1", "3←0", "3←1", "3←2")
SPACE = SearchSpace(dict.fromkeys(EDGES, OPERATIONS))
"""Every cell of the network has the same architecture: an operation on each of six edges."""

LiveEdge = tuple[int, int, int, str]
"""Number of an edge, its source node, its target node, its operation."""

_KERNEL_AREA = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}
_ENDS = tuple((int(edge[2]), int(edge[0])) for edge in EDGES)


def live_edges(architecture: Architecture) -> tuple[LiveEdge, ...]:
    """Return the edges on paths from the cell's input to its output; none if there is no path.

    The others add zeros or feed nothing, so they are not computed: without affine parameters a
    batch norm of zeros is zero.
    """
    return _live_edges(tuple([str(architecture[edge]) for edge in EDGES]))


@functools.cache
def _live_edges(operations: tuple[str, ...]) -> tuple[LiveEdge, ...]:
    used = [
        (number, source, target, operation)
        for number, ((source, target), operation) in enumerate(zip(_ENDS, operations, strict=True))
        if operation != "none"
    ]
    fed, needed = {0}, {3}
    for _, source, target, _ in used:  # edges are in the order of their targets
        if source in fed:
            fed.add(target)
    for _, source, target, _ in reversed(used):
        if target in needed:
            needed.add(source)
    return tuple(edge for edge in used if edge[1] in fed and edge[2] in needed)


class Supernet(nn.Module):
    """All NAS-Bench-201 networks of one width and depth, sharing their weights.

    A stem, three stages of cells at 1, 2 and 4 times the width with a residual block of stride 2
    between them, global pooling, a linear classifier. Batch norm has no affine parameters and
    uses the statistics of its batch, also when scoring.

    Args:
        channels: width C of the first stage.
        cells: cells N in each stage.
        seed: of the weights, drawn from an own generator by torch's default rule.
        classes: outputs.
        kernels: how layers are computed; the weights are the same for all.
    """

    def __init__(
        self,
        channels: int,
        cells: int,
        seed: int = 0,
        classes: int = 10,
        kernels: Kernels = TORCH,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        widths = [channels, 2 * channels, 4 * channels]
        self.stem = _weight(3, channels, 3)
        self.stages = nn.ModuleList(
            nn.ModuleList(Cell(width, kernels) for _ in range(cells)) for width in widths
        )
        self.reductions = nn.ModuleList(Reduction(width, kernels) for width in widths[:-1])
        self.classifier = nn.Linear(widths[-1], classes)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                fan_in = parameter[0].numel() if parameter.dim() > 1 else widths[-1]
                parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)

    def forward(self, images: torch.Tensor, architecture: Architecture) -> torch.Tensor:
        """Compute logits of one subnet, (batch, classes), for images (batch, 3, height, width)."""
        live = live_edges(architecture)
        if not live:
            return self.logits_without_path(len(images))
        x = self.features(images)
        return self.classify(self.stages[0][0](x, live), live)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Compute what the first cell of every subnet sees, in the layout of the kernels."""
        return self.kernels.convolve(self.kernels.enter(images), self.stem, rectify=False)

    def classify(self, x: torch.Tensor, live: Sequence[LiveEdge]) -> torch.Tensor:
        """Compute logits from the first cell's output."""
        for number, stage in enumerate(self.stages):
            if number:
                x = self.reductions[number - 1](x)
            for cell in stage if number else stage[1:]:
                x = cell(x, live)
        return self.classifier(self.kernels.leave(x))

    def logits_without_path(self, batch: int) -> torch.Tensor:
        """Return logits where no path leads through the cells: the classifier sees zeros."""
        weight = self.classifier.weight
        return self.classifier(weight.new_zeros(batch, weight.shape[1]))


class Cell(nn.Module):
    """Four nodes and six edges; every edge owns the weights of its two convolutions."""

    def __init__(self, channels: int, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.conv1x1 = nn.ParameterList(_weight(channels, channels, 1) for _ in EDGES)
        self.conv3x3 = nn.ParameterList(_weight(channels, channels, 3) for _ in EDGES)

    def forward(self, x: torch.Tensor, live: Sequence[LiveEdge]) -> torch.Tensor:
        """Compute the output node for an input node; `live` holds at least one path."""
        nodes = {0: x}
        for number, source, target, operation in live:
            y = self.edge(number, operation, nodes[source])
            nodes[target] = nodes[target] + y if target in nodes else y
        return nodes[3]

    def edge(self, number: int, operation: str, x: torch.Tensor) -> torch.Tensor:
        """Compute what one edge adds to its target."""
        if operation == "skip_connect":
            return x
        if operation == "avg_pool_3x3":
            return self.kernels.average_pool(x)
        weights = self.conv3x3 if operation == "nor_conv_3x3" else self.conv1x1
        return self.kernels.convolve(x, weights[number])


class Reduction(nn.Module):
    """Residual block that halves the resolution and doubles the width; all subnets share it."""

    def __init__(self, channels: int, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.conv_a = _weight(channels, 2 * channels, 3)
        self.conv_b = _weight(2 * channels, 2 * channels, 3)
        self.shortcut = _weight(channels, 2 * channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        convolve = self.kernels.convolve
        y = convolve(convolve(x, self.conv_a, stride=2), self.conv_b)
        halved = self.kernels.halve(x)
        return y + convolve(halved, self.shortcut, rectify=False, normalize=False)


def _weight(in_channels: int, out_channels: int, kernel: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))


def parameters(architecture: Architecture, channels: int = 16, cells: int = 5) -> int:
    """Count trainable parameters of the stand-alone network, edges without effect included.

    The benchmark's own count is greater by its batch norms' affine parameters.
    """
    squares = channels**2 * (1 + 4 + 16)
    kernels = sum(_KERNEL_AREA.get(str(architecture[edge]), 0) for edge in EDGES)
    reductions = sum(width**2 * (9 * 2 + 9 * 4 + 2) for width in (channels, 2 * channels))
    return 27 * channels + cells * kernels * squares + reductions + 10 * (4 * channels + 1)


def depth(architecture: Architecture) -> int:
    """Count the convolutions, and one, on the longest path of a cell."""
    deepest = {0: 1}
    for _, source, target, operation in live_edges(architecture):
        reached = deepest[source] + (operation in _KERNEL_AREA)
        deepest[target] = max(deepest.get(target, 1), reached)
    return deepest.get(3, 1)


def macs(architecture: Architecture, channels: int = 16, cells: int = 5, size: int = 32) -> int:
    """Count multiply-accumulates of the stand-alone network for one image of `size`².

    In convolutions and the classifier, edges without effect included.
    """
    cell = channels**2 * size**2  # of a 1×1 convolution: the same in every stage
    kernels = sum(_KERNEL_AREA.get(str(architecture[edge]), 0) for edge in EDGES)
    reductions = 2 * cell * (9 * 2 + 9 * 4 + 2) // 4
    return 27 * channels * size**2 + 3 * cells * kernels * cell + reductions + 40 * channels
