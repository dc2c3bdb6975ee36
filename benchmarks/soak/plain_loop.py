"""A training loop of one's own, with all that it has to keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, SearchSpace, UniformSampler

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)


class Supernet(nn.Module):
    """Two layers of 8 candidates, which are bottlenecks of different widths."""

    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                label: nn.ModuleList(
                    nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, features))
                    for width in WIDTHS
                )
                for label in ("layer1", "layer2")
            }
        )

    def forward(self, x: torch.Tensor, sampled: dict[str, Any]) -> torch.Tensor:
        """Map features (N, features) to outputs of the same shape."""
        for label, choice in self.layers.items():
            x = x + choice[sampled[label] - 1](x)
        return x


class PlainLoop:
    """A loop of one's own with all that it has to keep: see `state_dict`."""

    def __init__(self, updates: int) -> None:
        torch.manual_seed(0)
        self.model = Supernet()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, updates)
        space = SearchSpace({"layer1": WIDTHS, "layer2": WIDTHS})
        self.sampler = UniformSampler(space, seed=3)
        self.order = torch.Generator().manual_seed(4)
        self.sampled: dict[str, Any] = {}
        self.log: list[list[Any]] = []
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.sampled,
            calr=CaLR(lambda a: a["layer1"] + a["layer2"], bounds=(2, 16), curve="scheduler"),
            momentum=MomentumSeparation("layer1"),
        )
        self.data = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))

    def update(self) -> None:
        """Make one update."""
        x = self.data[torch.randint(len(self.data), (8,), generator=self.order)]
        x = x + 0.1 * torch.randn_like(x)  # from torch's own generator
        self.sampled = self.sampler.sample()
        self.optimizer.zero_grad()
        (self.model(x, self.sampled) - x.roll(1, 1)).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on, and its log."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "sampler": self.sampler.state_dict(),
            "order": self.order.get_state(),
            "torch": torch.get_rng_state(),
            "log": self.log,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.sampler.load_state_dict(state["sampler"])
        self.order.set_state(state["order"])
        torch.set_rng_state(state["torch"])
        self.log = state["log"]
