"""Objectives, the Pareto set and the hypervolume, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_dynamic.search import (
    Evaluation,
    MnasReward,
    Objective,
    RandomSearch,
    SearchResult,
    search,
)
from tests.search.searching import ACCURACY, SPACE, accuracy, parameters, scores


@pytest.mark.parametrize(
    ("latency", "expected"), [(40.0, 80 * 0.5**-0.1), (80.0, 80.0), (160.0, 80 * 2**-0.5)]
)
def test_mnasnet_reward(latency, expected):
    reward = MnasReward(target=80.0, below=-0.1, above=-0.5)
    assert reward({"accuracy": 80.0, "latency": latency}) == pytest.approx(expected)


def test_a_reward_is_an_objective():
    reward = MnasReward(target=40, above=-1, below=0, latency="parameters")
    result = search(
        SPACE,
        scores,
        [Objective("reward", maximize=True, value=reward)],
        budget=SPACE.size,
        measures={"parameters": parameters},
    )
    assert reward(result.best.values) == pytest.approx(
        max(reward({"accuracy": accuracy(a), "parameters": parameters(a)}) for a in SPACE)
    )


evaluated = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=14
)


def a_result(rows) -> SearchResult:
    return SearchResult(
        [ACCURACY, Objective("macs")],
        [Evaluation({"number": i}, {"accuracy": a, "macs": m}, f) for i, (a, m, f) in rows],
    )


@given(evaluated)
def test_pareto_set_is_that_of_the_definition(rows):
    def beats(x, y):
        return x[0] >= y[0] and x[1] <= y[1] and x[:2] != y[:2]

    feasible = [(i, row) for i, row in enumerate(rows) if row[2]]
    expected = [i for i, row in feasible if not any(beats(other, row) for _, other in feasible)]
    assert [e.architecture["number"] for e in a_result(enumerate(rows)).pareto] == expected


@settings(max_examples=50)
@given(evaluated)
def test_hypervolume_is_the_share_of_dominated_cells(rows):
    # On a grid of 5 × 5 cells: those with lower accuracy and more MACs than a subnet.
    found = a_result(enumerate(rows)).hypervolume(worst=(0, 5), best=(5, 0))
    for done in range(1, len(rows) + 1):
        cells = sum(
            any(f and a >= x + 1 and m <= y for a, m, f in rows[:done])
            for x, y in itertools.product(range(5), range(5))
        )
        assert found[done - 1] == pytest.approx(cells / 25)


def test_hypervolume_of_one_objective_is_the_best_so_far():
    result = search(SPACE, scores, [ACCURACY], budget=50, strategy=RandomSearch())
    values = np.array([evaluation.values["accuracy"] for evaluation in result.evaluations])
    best = np.maximum.accumulate(values)
    expected = (best - values.min()) / (values.max() - values.min())
    np.testing.assert_allclose(result.hypervolume(), expected)


def test_several_objectives_have_no_single_best():
    with pytest.raises(ValueError, match="2 objectives have no single best"):
        _ = a_result(enumerate([(1, 1, True)])).best
