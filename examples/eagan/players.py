"""Supernets of a generator and of a discriminator of 8×8 images."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from nas_dynamic import Architecture, SearchSpace
from nas_dynamic.complexity import lookup

CONVS = ["conv3", "conv5", "sep3"]
SPACES = {
    "generator": SearchSpace(
        {f"conv{n}": CONVS for n in (1, 2)}
        | {f"up{n}": ["nearest", "bilinear", "deconv"] for n in (1, 2)}
    ),
    "discriminator": SearchSpace(
        {f"conv{n}": CONVS for n in (1, 2)}
        | {f"down{n}": ["mean", "max", "strided"] for n in (1, 2)}
    ),
}
WIDTH, NOISE = 16, 32


def convolution(name: str) -> nn.Module:
    if name == "sep3":
        return nn.Sequential(
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.Conv2d(WIDTH, WIDTH, 1)
        )
    return nn.Conv2d(WIDTH, WIDTH, int(name[-1]), padding=int(name[-1]) // 2)


def resizing(name: str) -> nn.Module:
    if name in ("nearest", "bilinear"):
        return nn.Upsample(scale_factor=2, mode=name)
    kinds = {"mean": nn.AvgPool2d(2), "max": nn.MaxPool2d(2)}
    kinds["deconv"] = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)
    return kinds.get(name) or nn.Conv2d(WIDTH, WIDTH, 2, 2)


class Player(nn.Module):
    """A supernet of two blocks, each a convolution and a change of the resolution."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.space, self.sampled = SPACES[kind], dict[str, str]()
        self.generates = kind == "generator"
        self.choices = nn.ModuleDict(
            {
                label: nn.ModuleDict(
                    {c: (convolution if label[:4] == "conv" else resizing)(c) for c in candidates}
                )
                for label, candidates in self.space.choices.items()
            }
        )
        flat = WIDTH * 4
        self.first = nn.Linear(NOISE, flat) if self.generates else nn.Conv2d(1, WIDTH, 3, padding=1)
        self.last = nn.Conv2d(WIDTH, 1, 3, padding=1) if self.generates else nn.Linear(flat, 1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, WIDTH) for _ in range(2))
        self.size = lookup(self.space, self.parameters_of)

    def parts(self, architecture: Architecture) -> list[nn.Module]:
        return [self.choices[label][name] for label, name in architecture.items()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return images, (n, 1, 8, 8), from noise, (n, 32); or scores from images."""
        x = self.first(x)
        x = x.view(-1, WIDTH, 2, 2) if self.generates else F.leaky_relu(x, 0.2)
        conv1, conv2, resize1, resize2 = self.parts(self.sampled)
        for conv, resize, norm in (
            (conv1, resize1, self.norms[0]),
            (conv2, resize2, self.norms[1]),
        ):
            x = (
                F.relu(norm(conv(resize(x))))
                if self.generates
                else resize(F.leaky_relu(conv(x), 0.2))
            )
        return torch.sigmoid(self.last(x)) if self.generates else self.last(x.flatten(1))

    def parameters_of(self, architecture: Architecture) -> int:
        used = [self.first, self.last, self.norms, *self.parts(architecture)]
        return sum(p.numel() for module in used for p in module.parameters())
