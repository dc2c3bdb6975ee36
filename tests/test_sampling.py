"""Samplers: their distributions, generators, states, constraints; and partitions of a space."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nas_dynamic.sampling import FairSampler, SandwichSampler, UniformSampler, partition
from nas_dynamic.space import SearchSpace

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def space_of(sizes):
    return SearchSpace({f"layer{i}": range(size) for i, size in enumerate(sizes)})


def size_of(architecture):
    return 1 + sum(architecture.values())


@pytest.mark.parametrize("seed", range(3))
def test_every_architecture_is_equally_likely(seed):
    space = space_of([3, 2, 4])
    sampler = UniformSampler(space, seed)
    counts = dict.fromkeys((tuple(a.values()) for a in space), 0)
    for _ in range(100 * space.size):
        counts[tuple(sampler.sample().values())] += 1
    # The seeds are fixed: this either holds for ever or the distribution has changed.
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


@given(SIZES, st.integers(0, 2**32))
def test_fair_trains_every_candidate_equally_often(sizes, seed):
    space = space_of(sizes)
    sampler = FairSampler(space, seed)
    assert sampler.subnets == max(sizes)
    for label, candidates in space.choices.items():
        n, k = len(candidates), sampler.subnets
        sampler = FairSampler(space, seed)
        steps = [[a[label] for a in sampler.sample()] for _ in range(3 * n)]
        for start in range(0, 3 * n, n):
            counts = Counter(c for step in steps[start : start + n] for c in step)
            assert counts == dict.fromkeys(candidates, k)
        for step in steps:
            if n == k:
                assert sorted(step) == list(candidates)
            assert all(abs(step.count(c) - k / n) < 2 for c in candidates)


@given(SIZES, st.integers(0, 2**32))
def test_fair_with_a_group_keeps_it_through_the_step(sizes, seed):
    space = space_of([4, *sizes])
    sampler = FairSampler(space, seed, group_by="layer0")
    groups = []
    for _ in range(4):
        subnets = sampler.sample()
        assert len(subnets) == max(sizes)
        groups.append({a["layer0"] for a in subnets})
        assert len(groups[-1]) == 1
        for i, size in enumerate(sizes, start=1):
            if size == max(sizes):
                assert sorted(a[f"layer{i}"] for a in subnets) == list(range(size))
    assert sorted(g for group in groups for g in group) == [0, 1, 2, 3]


def test_fair_permutations_are_uniform_and_independent():
    sampler = FairSampler(space_of([3, 3]), seed=1)
    draws = 1800
    pairs = Counter()
    for _ in range(draws):
        pairs[tuple((a["layer0"], a["layer1"]) for a in sampler.sample())] += 1
    assert len(pairs) == 36
    expected = draws / 36
    chi_squared = sum((count - expected) ** 2 / expected for count in pairs.values())
    assert chi_squared < 66.6  # the 99.9th percentile with 35 degrees of freedom


@given(SIZES, st.integers(0, 3), st.integers(0, 2**32))
def test_sandwich_has_both_ends(sizes, randoms, seed):
    space = space_of(sizes)
    sampler = SandwichSampler(space, size_of, randoms, seed)
    for _ in range(3):
        largest, smallest, *others = sampler.sample()
        assert size_of(largest) == 1 + sum(size - 1 for size in sizes)
        assert size_of(smallest) == 1
        assert len(others) == randoms
        for architecture in others:
            space.validate(architecture)


def test_sandwich_with_a_group_has_the_ends_of_the_group():
    space = space_of([3, 4])
    sampler = SandwichSampler(space, size_of, 1, group_by="layer0")
    turns = []
    for _ in range(6):
        subnets = sampler.sample()
        (group,) = {a["layer0"] for a in subnets}
        turns.append(group)
        assert subnets[0] == {"layer0": group, "layer1": 3}
        assert subnets[1] == {"layer0": group, "layer1": 0}
    assert sorted(turns[:3]) == sorted(turns[3:]) == [0, 1, 2]


def samplers(seed):
    space = space_of([3, 4, 2])
    return [
        UniformSampler(space, seed),
        FairSampler(space, seed),
        FairSampler(space, seed, group_by="layer1"),
        SandwichSampler(space, size_of, 2, seed),
        SandwichSampler(space, size_of, 2, seed, group_by="layer1"),
    ]


@pytest.mark.parametrize("index", range(5))
def test_seed_decides_and_state_continues(index, tmp_path):
    one, same, other = samplers(7)[index], samplers(7)[index], samplers(8)[index]
    drawn = [one.sample() for _ in range(9)]
    assert drawn == [same.sample() for _ in range(9)]
    assert drawn != [other.sample() for _ in range(9)]
    torch.save(one.state_dict(), tmp_path / "sampler.pt")
    state = torch.load(tmp_path / "sampler.pt", weights_only=True)
    following = [one.sample() for _ in range(9)]
    for sampler in (other, one):
        sampler.load_state_dict(state)
        assert [sampler.sample() for _ in range(9)] == following


@pytest.mark.parametrize("index", range(5))
def test_no_other_generator_is_read_or_advanced(index):
    def drawn(seed, count):
        """Return what is drawn, and what comes next from every global generator."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        sampler = samplers(7)[index]
        subnets = [sampler.sample() for _ in range(count)]
        return subnets, (random.random(), np.random.rand(), torch.rand(()).item())  # noqa: NPY002

    subnets, after = drawn(0, 9)
    assert drawn(0, 0) == ([], after)
    assert drawn(1, 9)[0] == subnets


def test_constraint_holds_for_every_subnet_but_the_ends():
    space = space_of([4, 4])

    def small(architecture):
        return size_of(architecture) <= 5

    assert all(small(UniformSampler(space, accept=small).sample()) for _ in range(50))
    sampler = FairSampler(space, accept=small)
    for _ in range(50):
        subnets = sampler.sample()
        assert all(map(small, subnets))
        assert sorted(a["layer0"] for a in subnets) == [0, 1, 2, 3]
    largest, _, *randoms = SandwichSampler(space, size_of, 5, accept=small).sample()
    assert not small(largest)
    assert all(map(small, randoms))


def test_a_constraint_leaves_fair_turns_and_decks_as_they_are():
    space = SearchSpace({"op": [0, 1, 2], "width": ["s", "m"], "group": ["x", "y"]})

    def accept(architecture):
        return list(architecture.values()) != [0, "s", "y"]

    steps = []
    sampler = FairSampler(space, 0, "group", accept)
    for _ in range(200):
        steps.append(sampler.sample())
    turns = [subnets[0]["group"] for subnets in steps]
    assert all({*turns[i : i + 2]} == {"x", "y"} for i in range(0, 200, 2))
    for i in range(0, 200, 2):  # three subnets a step: two steps deal each width three times
        widths = Counter(subnet["width"] for subnets in steps[i : i + 2] for subnet in subnets)
        assert widths == {"s": 3, "m": 3}
    assert all(accept(subnet) for subnets in steps for subnet in subnets)


@pytest.mark.parametrize("sampler", [UniformSampler, FairSampler])
def test_constraint_that_nothing_meets(sampler):
    with pytest.raises(RuntimeError, match="loosen the constraint"):
        sampler(space_of([2]), accept=lambda a: False).sample()


@given(SIZES)
def test_partition_is_disjoint_and_complete(sizes):
    space = space_of([3, 2, *sizes])
    parts = partition(space, ["layer0", "layer1"])
    assert len(parts) == 6
    members = [tuple(a.items()) for part in parts for a in part]
    assert len(members) == len(set(members)) == space.size
    assert set(members) == {tuple(a.items()) for a in space}


def test_unknown_labels():
    space = space_of([2, 2])
    for build in (
        lambda: FairSampler(space, group_by="layer9"),
        lambda: SandwichSampler(space, size_of, group_by="layer9"),
        lambda: partition(space, ["layer9"]),
        lambda: space.restrict({"layer9": [0]}),
    ):
        with pytest.raises(ValueError, match="no choice 'layer9'; labels are 'layer0', 'layer1'"):
            build()
    with pytest.raises(ValueError, match="7 is not a candidate of 'layer0'"):
        space.restrict({"layer0": [7]})
