"""Search by a mix of measures: its weights are learnt, and it is a strategy like the others."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nas_dynamic import SearchSpace
from nas_dynamic.search import Objective, RandomSearch, RoBoT, search
from tests.search.searching import ACCURACY, SPACE, WIDE, accuracy, key, parameters, scores

pytest.importorskip("bayes_opt")

N = 300
POOL = SearchSpace({"network": range(N)})


def table(seed=0):
    """Three metrics, and an accuracy that is high where the first is and the second is low."""
    metrics = np.random.default_rng(seed).random((3, N))
    return metrics, metrics[0] - metrics[1]


def found(strategy, values, metrics, budget, seed=0):
    return search(
        POOL,
        lambda drawn: [{"accuracy": float(values[a["network"]])} for a in drawn],
        [ACCURACY],
        budget=budget,
        strategy=strategy,
        measures={f"m{i}": lambda a, m=m: float(m[a["network"]]) for i, m in enumerate(metrics)},
        seed=seed,
    )


def test_the_weights_of_the_mix_are_learnt_with_their_signs():
    def rank(strategy, seed):
        metrics, values = table(seed)
        best = found(strategy, values, metrics, 15, seed).best.values["accuracy"]
        return int((values > best).sum())

    robot = [rank(RoBoT(iterations=15), seed) for seed in range(8)]
    random = [rank(RandomSearch(), seed) for seed in range(8)]
    assert np.mean(robot) < 4 < np.mean(random)


def test_after_the_mixes_the_best_one_is_followed_down():
    metrics, values = table()
    evaluations = found(RoBoT(iterations=8, batch=5), values, metrics, N).evaluations
    order = [e.architecture["network"] for e in evaluations]
    assert sorted(order) == list(range(N))
    # Which eight or fewer were first, and the rest in the order of some weights: a linear program
    # would find them; that of the best is the one that put it first.
    scaled = (metrics - metrics.min(1, keepdims=True)) / np.ptp(metrics, axis=1)[:, None]
    rest = scaled.T[order[8:]]
    drops = rest[:-1] - rest[1:]
    from scipy.optimize import linprog

    weights = linprog(np.zeros(3), -drops, np.full(len(drops), 1e-12), bounds=[(-1, 1)] * 3)
    assert weights.status == 0
    assert int(np.argmax(scaled.T @ weights.x)) in order[:8]


def test_a_mix_that_leads_to_a_known_subnet_costs_nothing():
    only = np.zeros(N)
    only[7] = 1.0  # first, or by a weight below 0 last, where all are equal
    made = found(RoBoT(iterations=30), only, [only], budget=N).evaluations
    early = {e.architecture["network"] for e in made[:2]}
    assert 7 in early


def test_ranks_do_not_depend_on_the_scale_of_a_metric():
    metrics, values = table()

    def order(metrics, ranks):
        strategy = RoBoT(iterations=8, ranks=ranks)
        made = found(strategy, values, metrics, 20).evaluations
        return [e.architecture["network"] for e in made]

    assert order(np.exp(9 * metrics), True) == order(metrics, True)
    assert order(np.exp(9 * metrics), False) != order(metrics, False)


def test_metrics_that_failed_are_the_least():
    metrics, values = table()
    failed = metrics.copy()
    failed[:, ::3] = math.nan
    failed[2, ::5] = -math.inf
    failed[1, 1] = math.inf
    assert len(found(RoBoT(iterations=5), values, failed, 60).evaluations) == 60
    none = np.full((1, N), math.nan)
    assert len(found(RoBoT(iterations=5), values, none, 60).evaluations) == 60


def test_limits_hold_and_infeasible_subnets_teach():
    result = search(
        SPACE,
        lambda drawn: [{"accuracy": accuracy(a), "heat": parameters(a)} for a in drawn],
        [ACCURACY],
        budget=700,
        strategy=RoBoT(iterations=12),
        measures={"parameters": parameters, "layer0": lambda a: float(str(a["layer0"])[-1])},
        at_most={"heat": 70, "parameters": 80},
    )
    assert {key(e.architecture) for e in result.evaluations} == {
        key(a) for a in SPACE if parameters(a) <= 80
    }
    assert result.best.values["heat"] <= 70


def test_spaces_that_cannot_be_listed_are_searched_beyond_the_pool():
    def score(drawn):
        return [{"accuracy": float(sum(a.values()))} for a in drawn]

    measures = {label: lambda a, label=label: float(a[label]) for label in WIDE.labels[:6]}
    options = {"budget": 120, "measures": measures}
    result = search(WIDE, score, [ACCURACY], strategy=RoBoT(iterations=20, pool=50), **options)
    assert len({key(e.architecture) for e in result.evaluations}) == 120
    random = search(WIDE, score, [ACCURACY], strategy=RandomSearch(), **options)
    large = search(WIDE, score, [ACCURACY], strategy=RoBoT(iterations=20, pool=2000), **options)
    assert large.best.values["accuracy"] > random.best.values["accuracy"]


def test_a_search_that_is_stopped_repeats_its_decisions(tmp_path):
    options = {"strategy": RoBoT(iterations=20), "measures": {"parameters": parameters}}
    straight = search(SPACE, scores, [ACCURACY], budget=40, **options)
    path, scored = tmp_path / "search.jsonl", []
    search(SPACE, scores, [ACCURACY], budget=11, path=path, **options)

    def counted(drawn):
        scored.extend(drawn)
        return scores(drawn)

    resumed = search(SPACE, counted, [ACCURACY], budget=40, path=path, **options)
    assert [e.architecture for e in resumed.evaluations] == [
        e.architecture for e in straight.evaluations
    ]
    assert len(scored) == 29


def test_what_it_cannot_search_is_told():
    options = {"budget": 5, "measures": {"parameters": parameters}}
    objectives = [ACCURACY, Objective("parameters")]
    with pytest.raises(ValueError, match=r"one best subnet, got 2 objectives; give one"):
        search(SPACE, scores, objectives, strategy=RoBoT(), **options)
    with pytest.raises(ValueError, match=r"got the metrics \['zen'\] of the measures"):
        search(SPACE, scores, [ACCURACY], strategy=RoBoT(metrics=("zen",)), **options)
    with pytest.raises(ValueError, match=r"got the metrics \[\] of the measures \[\]"):
        search(SPACE, scores, [ACCURACY], budget=5, strategy=RoBoT())
