"""Samplers: which subnet, or subnets, a training step takes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from nas_dynamic.architecture import SearchSpace

__all__ = ["UniformSampler"]


class UniformSampler:
    """One subnet a step, every choice drawn uniformly and independently (SPOS).

    Args:
        space: what to draw from.
        seed: of the sampler's own generator; no other generator is read or advanced.

    Source: Guo et al., "Single Path One-Shot NAS with Uniform Sampling", ECCV 2020.

    Example:
        >>> sampler = UniformSampler(SearchSpace({"layer1": ["conv3", "conv5"]}), seed=0)
        >>> [sampler.sample()["layer1"] for _ in range(3)]
        ['conv5', 'conv5', 'conv5']
    """

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        self.space = space
        self._generator = np.random.default_rng(seed)

    def sample(self) -> dict[str, Hashable]:
        """The subnet of the next step."""
        return self.space.sample(self._generator)

    def state_dict(self) -> dict[str, Any]:
        """State of the generator, as plain data."""
        return {"generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._generator.bit_generator.state = state["generator"]
