from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_dynamic.ranking import kendall, spearman


def tau_b(x, y) -> float:
    """Kendall's τ-b by its definition: over all pairs."""
    concordance = ties_x = ties_y = 0
    pairs = list(itertools.combinations(range(len(x)), 2))
    for i, j in pairs:
        sign_x, sign_y = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        concordance += sign_x * sign_y
        ties_x += sign_x == 0
        ties_y += sign_y == 0
    return concordance / math.sqrt((len(pairs) - ties_x) * (len(pairs) - ties_y))


def rho(x, y) -> float:
    """Spearman's ρ by its definition: Pearson's r of mean ranks."""
    ranks = [[sum(w < v for w in z) + (1 + sum(w == v for w in z)) / 2 for v in z] for z in (x, y)]
    return float(np.corrcoef(ranks)[0, 1])


values = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12).filter(
    lambda rows: all(len({row[i] for row in rows}) > 1 for i in (0, 1))
)


@given(values)
def test_correlations_are_those_of_the_definition_also_with_ties(rows):
    x, y = zip(*rows, strict=True)
    assert kendall(x, y, resamples=2).value == pytest.approx(tau_b(x, y))
    assert spearman(x, y, resamples=2).value == pytest.approx(rho(x, y))


def test_interval_covers_the_true_value_about_as_often_as_it_says():
    # τ of a bivariate normal is 2/π · asin(r).
    r, true = 0.6, 2 / math.pi * math.asin(0.6)
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(80):
        x, y = generator.multivariate_normal([0, 0], [[1, r], [r, 1]], size=60).T
        found = kendall(x, y, resamples=150)
        assert found.low <= found.value <= found.high
        covered += found.low <= true <= found.high
    assert 0.87 <= covered / 80 <= 1


def test_interval_depends_on_the_seed_alone():
    x, y = np.random.default_rng(0).random((2, 30))
    assert kendall(x, y, seed=1) == kendall(x, y, seed=1)
    assert kendall(x, y, seed=1) != kendall(x, y, seed=2)


def test_constant_side_is_undefined(recwarn):
    found = kendall([1, 1, 1], [1, 2, 3])
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert found.subnets == 3
    assert not recwarn.list


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([1, 2], [1, 2, 3], "of one length"),
        ([1], [1], "at least 2 subnets, got 1"),
        ([1, math.nan], [1, 2], "must be finite"),
    ],
)
def test_what_is_no_ranking_is_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        kendall(predicted, true)
