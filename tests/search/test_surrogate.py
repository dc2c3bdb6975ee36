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
