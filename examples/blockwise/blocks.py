"""A supernet of blocks that chooses convolutions, attention, and where it halves the resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nas_dynamic import Architecture, SearchSpace
from nas_dynamic.complexity import lookup

WIDTHS = (12, 24, 32)
"""Channels of each block."""

DOWN = ["none", "first", "second"]
"""Before which of the two layers of a block the resolution is halved."""

OPERATIONS = ["conv3", "sep5", "attention", "mlp"]


class Attention(nn.Module):
    """Self-attention of all positions, by four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what each position takes from all, (n, channels, height, width)."""
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, 4, -1)).transpose(-1, -2).unbind(1)
        taken = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return self.out(taken.reshape(x.shape))


def operation(name: str, width: int) -> nn.Module:
    if name == "attention":
        inside: nn.Module = Attention(width)
    elif name == "mlp":
        inside = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1)
        )
    elif name == "sep5":
        inside = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.GELU(),
            nn.Conv2d(width, width, 1),
        )
    else:
        inside = nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(nn.GroupNorm(1, width), inside, nn.GELU())


class Block(nn.Module):
    """Two residual layers, each one of four operations, and at most one change of resolution."""

    def __init__(self, number: int) -> None:
        super().__init__()
        width = WIDTHS[number]
        self.labels = [f"{name}{number + 1}" for name in ("down", "first", "second")]
        self.space = SearchSpace(
            dict(zip(self.labels, (DOWN, OPERATIONS, OPERATIONS), strict=True))
        )
        self.enter = nn.Conv2d(3 if number == 0 else WIDTHS[number - 1], width, 1)
        self.first, self.second = (
            nn.ModuleDict({name: operation(name, width) for name in OPERATIONS}) for _ in range(2)
        )
        self.size = lookup(self.space, self.parameters_of)

    def forward(self, x: torch.Tensor, path: Architecture) -> torch.Tensor:
        """Return features, (n, channels, height, width), by the operations of a path."""
        down, *names = (path[label] for label in self.labels)
        x = self.enter(x)
        layers = {"first": self.first[names[0]], "second": self.second[names[1]]}
        for place, layer in layers.items():
            if place == down and x.shape[-1] > 1:
                x = F.avg_pool2d(x, 2)
            x = x + layer(x)
        return x

    def parameters_of(self, path: Architecture) -> int:
        _, first, second = (path[label] for label in self.labels)
        used = [self.enter, self.first[first], self.second[second]]
        return sum(p.numel() for module in used for p in module.parameters())


class Supernet(nn.Module):
    """Three blocks, and a linear classifier of the last features' mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(number) for number in range(len(WIDTHS)))
        self.head = nn.Linear(WIDTHS[-1], 10)
        blocks: Any = self.blocks
        self.space = SearchSpace({k: v for block in blocks for k, v in block.space.choices.items()})
        self.sampled: Architecture = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of the classes by the sampled subnet."""
        for block in self.blocks:
            x = block(x, self.sampled)
        return self.head(x.mean((2, 3)))

    def size(self, architecture: Architecture) -> float:
        """Return the parameters of a subnet."""
        blocks: Any = self.blocks
        head = sum(p.numel() for p in self.head.parameters())
        return head + sum(
            block.size({k: architecture[k] for k in block.labels}) for block in blocks
        )

    def activate(self, architecture: Architecture) -> None:
        """Compute this subnet from now on."""
        self.sampled = architecture
