"""Gradients with a planted structure, and similarities against a loop over pairs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from nas_dynamic import SearchSpace
from nas_dynamic.analysis.gradient_similarity import gradient_function, gradient_similarity

SPACE = SearchSpace({f"layer{i}": ["a", "b", "c"] for i in range(4)})


def planted(label, space=SPACE, strength=3.0):
    """Gradients of 50 entries whose direction depends on one label, in noise."""
    generator = torch.Generator().manual_seed(0)
    directions = {c: torch.randn(50, generator=generator) for c in space.choices[label]}

    def gradient(architecture, batch):
        noise = torch.randn(50, generator=generator)
        return strength * directions[architecture[label]] + noise + batch

    return gradient


@pytest.mark.parametrize("label", SPACE.labels)
def test_the_label_that_decides_the_gradients_is_found(label):
    rows = gradient_similarity(SPACE, planted(label), [torch.zeros(50), torch.zeros(50)])
    assert rows[0].label == label
    assert rows[0].contrast > 0.5
    assert all(abs(row.contrast) < 0.15 for row in rows[1:])
    assert {row.label for row in rows} == set(SPACE.labels)


def test_similarities_equal_those_of_a_loop_over_pairs():
    gradients = {}

    def gradient(architecture, batch):
        key = str(architecture)
        if key not in gradients:
            generator = torch.Generator().manual_seed(len(gradients))
            vector = torch.randn(20, generator=generator)
            gradients[key] = vector * (torch.rand(20, generator=generator) > 0.4)
        return gradients[key] * batch

    rows = gradient_similarity(SPACE, gradient, [1.0, 3.0], subnets=12, seed=4)
    generator = np.random.default_rng(4)
    drawn = [SPACE.sample(generator) for _ in range(12)]
    for row in rows:
        cosines = {True: [], False: []}
        for one, other in itertools.combinations(drawn, 2):
            g, h = 2 * gradients[str(one)], 2 * gradients[str(other)]
            both = (g != 0) & (h != 0)
            cosine = torch.cosine_similarity(g[both], h[both], dim=0)
            cosines[one[row.label] == other[row.label]].append(cosine.item())
        assert row.within == pytest.approx(np.mean(cosines[True]), abs=1e-5)
        assert row.across == pytest.approx(np.mean(cosines[False]), abs=1e-5)
    contrasts = [row.contrast for row in rows]
    assert contrasts == sorted(contrasts, reverse=True)


def test_parameters_of_one_group_alone_do_not_count():
    """What only one candidate's subnets use is similar inside, and no momentum mixes it."""

    def gradient(architecture, batch):
        own = torch.zeros(3, 40)
        own["abc".index(architecture["layer0"])] = 1.0
        shared = torch.ones(10) if architecture["layer2"] == "a" else -torch.ones(10)
        return torch.cat([own.flatten(), shared])

    assert gradient_similarity(SPACE, gradient, [None])[0].label == "layer2"


def test_choices_without_two_groups_are_left_out():
    space = SPACE.restrict({"layer1": ["b"]})
    rows = gradient_similarity(space, planted("layer0", space), [0.0])
    assert {row.label for row in rows} == {"layer0", "layer2", "layer3"}
    with pytest.raises(ValueError, match="no label splits"):
        gradient_similarity(
            SearchSpace({"layer0": ["a"]}), planted("layer0", SearchSpace({"layer0": "a"})), [0.0]
        )
    with pytest.raises(ValueError, match="no batch"):
        gradient_similarity(SPACE, planted("layer0"), [])


def test_gradient_of_a_supernet_is_zero_outside_of_the_subnet():
    supernet = nn.ModuleDict({op: nn.Linear(3, 2) for op in "abc"})

    def loss(architecture, batch):
        return supernet[architecture["layer0"]](batch).square().sum()

    gradient = gradient_function(supernet, loss)({"layer0": "b"}, torch.ones(4, 3))
    assert gradient.shape == (24,)
    assert not gradient[:8].any()
    assert not gradient[16:].any()
    loss({"layer0": "b"}, torch.ones(4, 3)).backward()
    parameters = supernet["b"].parameters()
    assert torch.equal(gradient[8:16], torch.cat([p.grad.flatten() for p in parameters]))
