"""Grouping rules on data with a planted structure, and against slow references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_dynamic import SearchSpace
from nas_dynamic.grouping import Medoids, k_medoids
from nas_dynamic.momentum import MomentumSeparation

SPACE = SearchSpace({f"layer{i}": ["a", "b", "c"] for i in range(4)})


@given(st.integers(2, 4), st.integers(0, 100))
@settings(max_examples=20)
def test_planted_clusters_are_found(groups, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(groups, size=40)
    labels[:groups] = range(groups)
    points = 10.0 * labels + generator.random(40)
    medoids = k_medoids(np.abs(points[:, None] - points), groups)
    assert sorted(labels[medoids]) == list(range(groups))


@given(st.integers(1, 4), st.integers(0, 1000))
@settings(max_examples=30)
def test_no_swap_improves_the_medoids(groups, seed):
    points = np.random.default_rng(seed).random((14, 2))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    medoids = k_medoids(distances, groups)
    assert len(set(medoids)) == groups

    def cost(chosen):
        return distances[list(chosen)].min(0).sum()

    for k, point in itertools.product(range(groups), range(14)):
        swapped = [*medoids[:k], point, *medoids[k + 1 :]]
        assert cost(swapped) >= cost(medoids) - 1e-12


def test_medoids_group_by_the_number_of_differing_choices():
    rule = Medoids.fit(SPACE, groups=3, samples=81)
    medoids = [SPACE.decode(code) for code in rule.codes]
    for architecture in SPACE:
        distances = [sum(architecture[k] != m[k] for k in SPACE.labels) for m in medoids]
        assert distances[rule(architecture)] == min(distances)
    assert [rule(medoid) for medoid in medoids] == [0, 1, 2]
    sizes = np.bincount([rule(architecture) for architecture in SPACE])
    assert sizes.min() >= 10
    momentum = MomentumSeparation(rule)
    assert momentum.group(medoids[2]) == 2
    assert momentum.definition() == {"rule": "Medoids", "medoids": rule.codes.tolist()}
    assert Medoids.fit(SPACE, 3, samples=81).definition() == rule.definition()
    with pytest.raises(ValueError, match=r"groups must lie in 1 … 3"):
        Medoids.fit(SearchSpace({"layer0": "abc"}), groups=4)
