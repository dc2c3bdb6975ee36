"""Search spaces: sampling, validation, encodings, and extremes against enumeration."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_dynamic import SearchSpace
from nas_dynamic.space import candidate_text

candidates = st.lists(
    st.one_of(st.integers(), st.text(max_size=3), st.tuples(st.integers(0, 3), st.booleans())),
    min_size=1,
    max_size=4,
    unique=True,
)
spaces = st.dictionaries(st.text(max_size=3), candidates, min_size=1, max_size=4).map(SearchSpace)
seeds = st.integers(0, 2**32 - 1)


@given(spaces, seeds)
def test_what_is_sampled_is_valid_and_survives_the_encoding(space: SearchSpace, seed: int):
    architecture = space.sample(np.random.default_rng(seed))
    space.validate(architecture)
    assert architecture in space
    assert tuple(architecture) == space.labels
    assert space.decode(space.encode(architecture)) == architecture
    one_hot = space.one_hot(architecture)
    assert one_hot.shape == (sum(map(len, space.choices.values())),)
    ends = np.cumsum([len(choice) for choice in space.choices.values()])[:-1]
    hot = [int(part.argmax()) for part in np.split(one_hot, ends)]
    assert hot == space.encode(architecture).tolist()
    assert one_hot.sum() == len(space.labels)


@given(spaces)
def test_iteration_visits_every_architecture_once(space: SearchSpace):
    encodings = [tuple(space.encode(architecture).tolist()) for architecture in space]
    assert len(encodings) == len(set(encodings)) == space.size
    assert encodings == sorted(encodings), "the last label varies fastest"


@given(spaces, seeds)
def test_one_change_makes_another_space(space: SearchSpace, seed: int):
    assert space == SearchSpace(space.choices)
    label = space.labels[seed % len(space.labels)]
    assert space != SearchSpace({**space.choices, label: [*space.choices[label], "another"]})
    if len(space.labels) > 1:
        assert space != SearchSpace(dict(reversed(space.choices.items())))


def test_order_of_candidates_is_the_encoding():
    space = SearchSpace({"op": ["c", "a", "b"], "depth": [4, 2]})
    assert space.encode({"depth": 2, "op": "b"}).tolist() == [2, 1]
    assert space.decode([1, 0]) == {"op": "a", "depth": 4}
    assert space.one_hot({"op": "a", "depth": 4}).tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({}, "at least one choice"),
        ({"layer1": []}, "choice 'layer1' has no candidates"),
        ({"layer1": ["a", "b", "a"]}, "choice 'layer1' lists a candidate twice: 'a', 'b', 'a'"),
        ({"layer1": [1, True]}, "lists a candidate twice"),
    ],
)
def test_bad_definitions_are_named(choices: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SearchSpace(choices)


SPACE = SearchSpace({"layer1": ["conv3", "conv5"], "depth": list(range(12))})


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ({"depth": 1}, r"chooses nothing for 'layer1'; candidates are 'conv3', 'conv5'$"),
        ({"layer1": "conv3"}, r"nothing for 'depth'; candidates are 0, .*7, … \(12 in all\)$"),
        ({"layer1": "conv7", "depth": 1}, "'conv7' is not a candidate of 'layer1'; .* 'conv3'"),
        ({"layer1": ["conv3"], "depth": 1}, r"\['conv3'\] is not a candidate of 'layer1'"),
        (
            {"layer1": "conv3", "depth": 1, "layer9": 0},
            "has a choice 'layer9' that the space does not; labels are 'layer1', 'depth'",
        ),
    ],
)
def test_an_invalid_architecture_is_named(architecture: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SPACE.validate(architecture)
    with pytest.raises(ValueError, match=message):
        SPACE.encode(architecture)
    assert architecture not in SPACE


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0], "expected 2 candidate numbers, got 1"),
        ([2, 0], "candidate number 2 of 'layer1' is outside 0 … 1"),
        ([-1, 0], "candidate number -1 of 'layer1'"),
    ],
)
def test_bad_encodings_are_named(numbers: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        SPACE.decode(numbers)


@st.composite
def additive(draw):
    space = draw(spaces)
    terms = {
        label: {c: draw(st.integers(-50, 50)) for c in choice}
        for label, choice in space.choices.items()
    }
    return space, lambda a: sum(terms[label][c] for label, c in a.items())


@st.composite
def monotone(draw):
    """Products of widths and sums of depths: each choice has one order, whatever the others."""
    space = draw(spaces)
    scores = {
        label: {c: draw(st.integers(1, 50)) for c in choice}
        for label, choice in space.choices.items()
    }
    product = draw(st.booleans())

    def measure(a):
        values = [scores[label][c] for label, c in a.items()]
        pairs = zip(values, values[1:] + values[:1], strict=True)
        return float(np.prod(values)) if product else sum(x * y for x, y in pairs)

    return space, measure


@given(st.one_of(additive(), monotone()))
def test_smallest_and_largest_are_those_of_the_whole_space(space_and_measure):
    space, measure = space_and_measure
    values = [measure(architecture) for architecture in space]
    assert measure(space.smallest(measure)) == min(values)
    assert measure(space.largest(measure)) == max(values)


def test_the_extremes_of_a_large_space_cost_few_evaluations():
    space = SearchSpace({f"layer{i}": range(7) for i in range(21)})
    calls = 0

    def measure(architecture):
        nonlocal calls
        calls += 1
        return 1.0 + sum(architecture.values())

    assert set(space.largest(measure).values()) == {6}
    assert calls < 5 * 4 * 21 * 7
    assert space.size == 7**21


class Plain:
    """Without a repr of its own."""


def test_text_of_a_candidate_is_the_same_in_every_process():
    kept = [Plain() for _ in range(10)]
    assert len({repr(candidate) for candidate in kept}) == 10
    assert len({candidate_text(candidate) for candidate in kept}) == 1
    assert "test_text_of_a_candidate" in candidate_text(
        test_text_of_a_candidate_is_the_same_in_every_process
    )
    assert [candidate_text(c) for c in ("k3", 3, (1, "a"))] == ["'k3'", "3", "(1, 'a')"]
    assert [candidate_text(c) for c in ((), ("a",), frozenset())] == ["()", "('a',)", "frozenset()"]
    # By the file, which needs no torch: the package takes seconds to import.
    module = f"__import__('runpy').run_path({inspect.getfile(SearchSpace)!r})"
    candidate = "(frozenset({frozenset('ab'), frozenset('cd'), 'ef'}), 1)"
    code = f"print({module}['candidate_text']({candidate}))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": str(hash_seed)},
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        for hash_seed in range(4)
    }
    assert texts == {b"(frozenset({'ef', frozenset({'a', 'b'}), frozenset({'c', 'd'})}), 1)\n"}
