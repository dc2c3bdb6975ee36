"""Uniform sampling: its distribution, its own generator, its state."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from scipy import stats

from nas_dynamic import SearchSpace, UniformSampler

SPACE = SearchSpace({"layer1": ["a", "b", "c"], "layer2": [1, 2], "layer3": list("wxyz")})


@pytest.mark.parametrize("seed", range(3))
def test_every_architecture_is_equally_likely(seed: int):
    sampler = UniformSampler(SPACE, seed=seed)
    counts = dict.fromkeys((tuple(a.values()) for a in SPACE), 0)
    for _ in range(100 * SPACE.size):
        counts[tuple(sampler.sample().values())] += 1
    # The seeds are fixed: this either holds for ever or the distribution has changed.
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_one_seed_gives_one_sequence():
    def sequence(seed):
        sampler = UniformSampler(SPACE, seed=seed)
        return [sampler.sample() for _ in range(50)]

    assert sequence(0) == sequence(0)
    assert sequence(0) != sequence(1)


def test_a_sampler_continues_from_its_state(tmp_path):
    sampler, other = UniformSampler(SPACE, seed=0), UniformSampler(SPACE, seed=9)
    for _ in range(7):
        sampler.sample()
    torch.save(sampler.state_dict(), tmp_path / "sampler.pt")
    expected = [sampler.sample() for _ in range(20)]
    other.load_state_dict(torch.load(tmp_path / "sampler.pt", weights_only=True))
    assert [other.sample() for _ in range(20)] == expected


def test_no_other_generator_is_read_or_advanced():
    def next_numbers():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    def seeded(between):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        drawn = between()
        return drawn, next_numbers()

    def draw():
        sampler = UniformSampler(SPACE, seed=0)
        return [sampler.sample() for _ in range(20)]

    _, untouched = seeded(lambda: None)
    first, after = seeded(draw)
    assert after == untouched
    next_numbers()
    assert draw() == first
