from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, rankdata

from nas_dynamic.analysis.diagnostics import diagnose
from nas_dynamic.analysis.ranking import (
    Estimate,
    complexity_bias,
    complexity_convergence,
    estimate,
    kendall_tau,
    kendall_tau_within,
    matched_kendall_tau,
    rank_by_loss,
    regret,
    spearman_rho,
    top_k_recall,
)


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
    assert kendall_tau(x, y) == pytest.approx(tau_b(x, y))
    assert spearman_rho(x, y) == pytest.approx(rho(x, y))


def test_interval_covers_the_true_value_about_as_often_as_it_says():
    # τ of a bivariate normal is 2/π · asin(r).
    r, true = 0.6, 2 / math.pi * math.asin(0.6)
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(80):
        x, y = generator.multivariate_normal([0, 0], [[1, r], [r, 1]], size=60).T
        found = estimate(kendall_tau, x, y, resamples=150)
        assert found.low <= found.value <= found.high
        covered += found.low <= true <= found.high
    assert 0.87 <= covered / 80 <= 1


def test_interval_depends_on_the_seed_alone():
    x, y = np.random.default_rng(0).random((2, 30))
    found = [estimate(kendall_tau, x, y, resamples=50, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_constant_side_is_undefined(recwarn):
    found = estimate(kendall_tau, [1, 1, 1], [1, 2, 3])
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert found.count == 3
    assert f"{found}" == "undefined"
    assert not recwarn.list


@pytest.mark.parametrize(
    ("predicted", "true", "message"),
    [
        ([1, 2], [1, 2, 3], "of one length, got shapes"),
        ([[1, 2]], [[1, 2]], "of one length, got shapes"),
        ([1], [1], "at least 2 subnets, got 1"),
        ([1, math.nan], [1, 2], "must be finite"),
    ],
)
def test_what_is_no_ranking_is_refused(predicted, true, message):
    with pytest.raises(ValueError, match=message):
        estimate(kendall_tau, predicted, true)


distinct = st.lists(st.integers(-50, 50), min_size=3, max_size=12, unique=True)
# Few values, so that ties are the rule.
tied = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), min_size=3, max_size=9
)
MONOTONE = [lambda x: 3 * x - 7, np.exp, lambda x: x**3]


def measures(predicted, true, complexity, k=2) -> dict[str, float]:
    return {
        "tau": kendall_tau(predicted, true),
        "rho": spearman_rho(predicted, true),
        "recall": top_k_recall(predicted, true, k),
        "bias": complexity_bias(predicted, true, complexity),
    }


@given(distinct, st.randoms(use_true_random=False))
def test_a_perfect_ranking_and_a_reversed_one(true, random):
    true = np.array(true)
    complexity = random.sample(range(len(true)), len(true))
    biased = abs(rho(true, complexity)) < 0.999
    k = len(true) // 2
    perfect, reverse = measures(true, true, complexity, k), measures(-true, true, complexity, k)
    expected = {"tau": 1, "rho": 1, "recall": 1, "bias": 0 if biased else math.nan}
    assert perfect == pytest.approx(expected, nan_ok=True, abs=1e-6)
    expected = {"tau": -1, "rho": -1, "recall": 0, "bias": 0 if biased else math.nan}
    assert reverse == pytest.approx(expected, nan_ok=True, abs=1e-6)
    assert regret(true, true) == 0
    assert regret(-true, true) == max(true) - min(true)


@given(tied, st.sampled_from(MONOTONE), st.integers(0, 2))
def test_only_the_order_counts(rows, transform, side):
    sides = [np.array(side, dtype=float) for side in zip(*rows, strict=True)]
    before, picked = measures(*sides), regret(*sides[:2])
    sides[side] = transform(sides[side])
    assert measures(*sides) == pytest.approx(before, nan_ok=True)
    if side != 1:
        assert regret(*sides[:2]) == picked


@settings(max_examples=50)
@given(tied.map(lambda rows: rows[:5]), st.integers(1, 3))
def test_recall_and_regret_are_means_over_the_orders_of_ties(rows, k):
    predicted, true, _ = zip(*rows, strict=True)
    orders = [
        order
        for order in itertools.permutations(range(len(rows)))
        if all(predicted[a] >= predicted[b] for a, b in itertools.pairwise(order))
    ]
    best = sorted(true)[-k]
    recalls = [sum(true[i] >= best for i in order[:k]) / k for order in orders]
    assert top_k_recall(predicted, true, k) == pytest.approx(np.mean(recalls))
    regrets = [max(true) - true[order[0]] for order in orders]
    assert regret(predicted, true) == pytest.approx(np.mean(regrets))


@given(tied)
def test_bias_is_the_correlation_with_what_stand_alone_values_leave_open(rows):
    predicted, true, complexity = (rankdata(side) for side in zip(*rows, strict=True))
    found = complexity_bias(predicted, true, complexity)
    if predicted.std() == 0 or true.std() == 0 or complexity.std() == 0:
        assert math.isnan(found)
        return
    residual = complexity - np.polyval(np.polyfit(true, complexity, 1), true)
    if residual.std() < 1e-6:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(-np.corrcoef(predicted, residual)[0, 1], abs=1e-6)
        assert -1 <= found <= 1


def a_population(size=300, seed=0):
    """Stand-alone values that grow with complexity, as in real spaces, but not only with it."""
    generator = np.random.default_rng(seed)
    complexity = generator.random(size)
    true = rankdata(complexity + 0.5 * generator.random(size)) / size
    return true, rankdata(complexity) / size, generator


def test_a_planted_bias_is_found_with_its_sign_and_grows():
    true, complexity, generator = a_population()
    noise = 0.1 * generator.standard_normal(300)
    found = [
        estimate(
            complexity_bias, true - planted * complexity + noise, true, complexity, resamples=200
        )
        for planted in (-0.4, -0.2, 0, 0.2, 0.4)
    ]
    values = [one.value for one in found]
    assert values == sorted(values)
    assert all(one.high < 0 for one in found[:2])
    assert all(one.low > 0 for one in found[3:])


@pytest.mark.parametrize("noise", [0.1, 0.3, 1, 100])
def test_noise_is_no_bias_though_it_weakens_the_tie_to_complexity(noise):
    true, complexity, generator = a_population()
    rankings = [true + noise * generator.standard_normal(300) for _ in range(100)]
    found = [complexity_bias(ranking, true, complexity) for ranking in rankings]
    assert abs(np.mean(found)) < 3 * np.std(found) / 10 + 0.01
    # What a difference of correlations would call a bias for small subnets.
    assert all(kendall_tau(complexity, true) > kendall_tau(complexity, r) for r in rankings)


@given(tied)
def test_bias_turns_with_the_complexity(rows):
    predicted, true, complexity = (np.array(side) for side in zip(*rows, strict=True))
    one = complexity_bias(predicted, true, complexity)
    other = complexity_bias(predicted, true, -complexity)
    assert one == pytest.approx(-other, nan_ok=True, abs=1e-9)


@given(distinct, st.sampled_from([1, -1]), st.floats(-5, 5), st.sampled_from(MONOTONE))
def test_a_planted_lag_of_large_subnets_is_found(complexity, sign, shift, transform):
    complexity = np.array(complexity, dtype=float) / 10
    alone = np.random.default_rng(0).random(len(complexity))
    inherited = alone + shift + sign * rankdata(complexity)
    found = complexity_convergence(transform(complexity), inherited, alone)
    assert found == pytest.approx(sign)


def test_equal_lags_have_no_correlation():
    alone = np.array([0.5, 0.25, 1.0])
    assert math.isnan(complexity_convergence([1, 2, 3], alone + 0.5, alone))


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=2, max_size=14))
def test_tau_within_classes_is_that_of_the_definition_over_pairs_of_one_class(rows):
    x, y, classes = map(np.array, zip(*rows, strict=True))
    pairs = [p for p in itertools.combinations(range(len(x)), 2) if len({*classes[[*p]]}) == 1]
    signs = np.array([(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in pairs])
    apart = [np.count_nonzero(signs[:, side]) for side in (0, 1)] if pairs else [0, 0]
    found = kendall_tau_within(x, y, classes)
    if 0 in apart:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.prod(signs, axis=1).sum() / math.sqrt(math.prod(apart)))


def test_tau_within_classes_takes_infinite_values_for_ties():
    true, classes = np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4)
    diverged = np.array([-math.inf, -math.inf, 0.5, 1.0])
    assert kendall_tau_within(diverged, true, classes) == pytest.approx(
        kendalltau([0, 0, 1, 2], true)[0]
    )


def test_a_tilt_to_large_subnets_raises_tau_and_leaves_the_matched_tau():
    generator = np.random.default_rng(4)
    sizes = generator.permutation(np.repeat(np.arange(20.0), 15))
    true = sizes / 8 + generator.standard_normal(300)
    predicted = true - sizes / 8 + generator.standard_normal(300)
    tilted = predicted + sizes / 8
    assert kendall_tau(tilted, true) > kendall_tau(predicted, true) + 0.05
    matched = matched_kendall_tau(predicted, true, sizes)
    assert matched_kendall_tau(tilted, true, sizes) == pytest.approx(matched)
    of_classes = [kendall_tau(predicted[sizes == s], true[sizes == s]) for s in range(20)]
    assert matched == pytest.approx(np.mean(of_classes))


def test_classes_of_the_matched_tau_hold_neighbours_in_size_and_never_part_equals():
    generator = np.random.default_rng(5)
    sizes = generator.random(200)
    true, noise = generator.standard_normal((2, 200))
    by_size = np.argsort(sizes).reshape(20, 10)
    classes = np.empty(200)
    for number, members in enumerate(by_size):
        classes[members] = number
    matched = matched_kendall_tau(true + noise, true, sizes)
    assert matched == pytest.approx(kendall_tau_within(true + noise, true, classes))
    alike = np.zeros(200)
    assert matched_kendall_tau(true + noise, true, alike) == pytest.approx(
        kendall_tau(true + noise, true)
    )


def test_a_few_subnets_have_no_matched_tau_and_some_have_classes_of_five():
    values = np.arange(11.0)
    assert math.isnan(matched_kendall_tau(values[:9], values[:9], values[:9]))
    unlike = np.r_[values[4::-1], values[5:10]]
    assert kendall_tau(unlike, values[:10]) > 0.5
    assert matched_kendall_tau(unlike, values[:10], values[:10]) == 0


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_subnets_is_refused(k):
    with pytest.raises(ValueError, match=f"from 1 to the number of subnets, 3; got {k}"):
        top_k_recall([1, 2, 3], [1, 2, 3], k)
    with pytest.raises(ValueError, match=f"from 1 to the number of subnets, 3; got {k}"):
        diagnose([1, 2, 3], [1, 2, 3], {"parameters": [1, 2, 3]}, top=k)


def test_the_table_has_the_baselines_beside_the_supernet():
    true, parameters, generator = a_population()
    predicted = true + 0.1 * generator.standard_normal(300)
    macs = parameters + 0.2 * generator.standard_normal(300)
    losses = (2 - true + parameters, 2 - true)
    options = {"resamples": 100}
    table = diagnose(
        predicted, true, {"parameters": parameters, "MACs": macs}, losses=losses, **options
    )
    assert list(table.rows) == ["supernet", "parameters", "MACs", "random"]
    assert table.rows["supernet"] == {
        "Kendall τ": estimate(kendall_tau, predicted, true, **options),
        "Spearman ρ": estimate(spearman_rho, predicted, true, **options),
        "recall@30": estimate(lambda p, t: top_k_recall(p, t, 30), predicted, true, **options),
        "regret": estimate(regret, predicted, true, **options),
        "complexity bias": estimate(complexity_bias, predicted, true, parameters, **options),
        "matched τ": estimate(matched_kendall_tau, predicted, true, parameters, **options),
        "complexity-convergence": estimate(complexity_convergence, parameters, *losses, **options),
    }
    assert table.rows["MACs"]["Kendall τ"] == estimate(kendall_tau, macs, true, **options)
    chance = table.rows["random"]
    assert chance["recall@30"].value == pytest.approx(30 / 300, abs=0.02)
    assert chance["regret"].value == pytest.approx(max(true) - np.mean(true), abs=0.08)
    for name in ("Kendall τ", "Spearman ρ", "complexity bias"):
        assert chance[name].low < 0 < chance[name].high
        assert chance[name].value == pytest.approx(0, abs=0.03)
    header, _, *lines = str(table).splitlines()
    assert header.split()[:3] == ["ranking", "Kendall", "τ"]
    assert [line.split()[0] for line in lines] == list(table.rows)
    assert str(table.rows["supernet"]["regret"]) in lines[0]


def test_an_estimate_is_written_with_its_interval():
    assert f"{Estimate(-0.5, -0.625, 0.25, 9):+.2f}" == "−0.50 [−0.62, +0.25]"
    assert str(Estimate(0.5, math.nan, math.nan, 1)) == "0.500"


def test_ranks_by_the_loss_have_diverged_networks_last():
    assert rank_by_loss([0.5, None, 0.25, math.nan, math.inf]).tolist() == [4, 2, 5, 2, 2]


def test_a_ranking_without_a_baseline_is_refused():
    with pytest.raises(ValueError, match="judged beside complexities"):
        diagnose([1, 2], [1, 2], {})


@pytest.mark.parametrize("name", ["random", "parameters"])
def test_a_ranking_with_the_name_of_another_one_is_refused(name):
    with pytest.raises(ValueError, match=f"different names.*got \\['{name}', 'parameters'"):
        diagnose({name: [1, 2, 3]}, [1, 2, 3], {"parameters": [1, 2, 3]}, resamples=5)


def test_several_supernets_beside_the_same_baselines():
    generator = np.random.default_rng(3)
    true, sizes = generator.random(20), generator.integers(1, 9, 20)
    predicted = {"seed 0": generator.random(20), "seed 1": true + generator.random(20)}
    together = diagnose(predicted, true, {"parameters": sizes}, resamples=50)
    assert list(together.rows) == ["seed 0", "seed 1", "parameters", "random"]
    assert together.baselines == ("parameters", "random")
    for name, values in predicted.items():
        alone = diagnose(values, true, {"parameters": sizes}, resamples=50)
        assert together.rows[name] == alone.rows["supernet"]
        assert together.rows["random"] == alone.rows["random"]
