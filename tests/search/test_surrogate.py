"""Search by a model: what it is fitted to, and what it knows beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from nas_dynamic.search import (
    GradientBoosting,
    Limits,
    PretrainedMLP,
    Problem,
    Surrogate,
    search,
)
from tests.search.searching import ACCURACY, SPACE, WIDE, accuracy, key, scores


def test_surrogates_of_ranks_depend_on_the_order_alone():
    def monotone(architectures):
        return [{"accuracy": math.exp(accuracy(a))} for a in architectures]

    def evaluated(score, ranks):
        strategy = Surrogate(GradientBoosting(trees=10), initial=12, batch=6, ranks=ranks)
        result = search(SPACE, score, [ACCURACY], budget=60, strategy=strategy)
        return [key(evaluation.architecture) for evaluation in result.evaluations]

    assert evaluated(scores, ranks=True) == evaluated(monotone, ranks=True)
    assert evaluated(scores, ranks=False) != evaluated(monotone, ranks=False)


def test_pretraining_on_a_measure_orders_subnets_from_few_accuracies():
    weight = dict(zip(WIDE.labels, 2.0 ** np.arange(12), strict=True))

    def measure(architecture):
        return float(sum(weight[label] * c for label, c in architecture.items()))

    problem = Problem(WIDE, [ACCURACY], {"macs": measure}, Limits())
    generator = np.random.default_rng(0)
    train, test = problem.draw(generator, 8), problem.draw(generator, 200)
    exact = [[math.sqrt(measure(WIDE.decode(row))) for row in rows] for rows in (train, test)]

    def tau(steps):
        model = PretrainedMLP(steps=steps)(problem, seed=0)
        model.fit(problem.one_hot(train), np.array(exact[0]))
        return kendalltau(model.predict(problem.one_hot(test)), exact[1]).statistic

    assert tau(steps=300) > tau(steps=0) + 0.2


def test_pretraining_needs_a_measure():
    with pytest.raises(ValueError, match="learns free measures, and the search has none"):
        search(SPACE, scores, [ACCURACY], budget=20, strategy=Surrogate(PretrainedMLP()))


def test_measures_that_are_not_finite_count_as_the_least_and_the_greatest():
    def predicted(failed, endless):
        measures = {"m": lambda a: (failed, 0.0, 1.0, endless)[a["layer0"]]}
        problem = Problem(WIDE, [ACCURACY], measures, Limits())
        encodings = problem.draw(np.random.default_rng(0), 20)
        model = PretrainedMLP(subnets=100, steps=5, fine_tuning=5)(problem, seed=0)
        x = problem.one_hot(encodings)
        model.fit(x, encodings.sum(1).astype(float))
        return model.predict(x)

    expected = predicted(0.0, 1.0)
    for failed in (-math.inf, math.nan):
        np.testing.assert_array_equal(predicted(failed, math.inf), expected)


def test_a_measure_as_a_feature_predicts_what_encodings_do_not_tell():
    weight = dict(zip(WIDE.labels, np.random.default_rng(1).normal(size=12), strict=True))

    def measure(architecture):
        return math.sin(3 * sum(weight[label] * c for label, c in architecture.items()))

    problem = Problem(WIDE, [ACCURACY], {"naswot": measure, "failed": lambda a: math.nan}, Limits())
    generator = np.random.default_rng(0)
    train, test = problem.draw(generator, 40), problem.draw(generator, 200)
    exact = [[measure(WIDE.decode(row)) ** 3 for row in rows] for rows in (train, test)]

    def tau(*features):
        model = GradientBoosting(features=features)(problem, seed=0)
        model.fit(problem.one_hot(train), np.array(exact[0]))
        return kendalltau(model.predict(problem.one_hot(test)), exact[1]).statistic

    assert tau("naswot", "failed") > 0.9 > 0.5 > tau()
    with pytest.raises(ValueError, match=r"\['zen'\] is no measure of the search; measures are"):
        GradientBoosting(features=("zen",))(problem, seed=0)
