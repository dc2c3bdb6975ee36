"""Search for several tasks over one pool."""

from __future__ import annotations

import numpy as np
import pytest

from nas_dynamic.search import (
    Evolution,
    GradientBoosting,
    Objective,
    RandomSearch,
    Surrogate,
    search_tasks,
)
from nas_dynamic.search.surrogate import _in_turn
from tests.search.searching import SPACE, key, parameters

QUICK = Surrogate(GradientBoosting(trees=10), initial=12, batch=6, in_turn=True)


def task(seed, log=None):
    """A score that has a subnet of its own as the best."""
    worth = np.random.default_rng(seed).random((len(SPACE.labels), 3))

    def value(architecture):
        return float(worth[range(len(worth)), SPACE.encode(architecture)].sum())

    def score(architectures):
        for architecture in architectures:
            if log is not None:
                log.append(key(architecture))
            yield {"accuracy": value(architecture), "loss": -value(architecture)}

    score.best = max(map(value, SPACE))
    score.value = value
    return score


@pytest.mark.parametrize("strategy", [None, QUICK, Evolution(), RandomSearch()])
def test_each_subnet_is_scored_once_on_each_task(strategy):
    log = []
    tasks = {"one": task(0, log), "two": task(1, log), "three": task(2, log)}
    found = search_tasks(SPACE, tasks, budget=80, strategy=strategy)
    evaluations = found.found.evaluations
    assert len(evaluations) == 80
    assert len(log) == 3 * 80
    assert len(set(log)) == 80
    for evaluation in evaluations:
        assert evaluation.values == {
            f"{name}/{score}": sign * scorer.value(evaluation.architecture)
            for name, scorer in tasks.items()
            for score, sign in (("accuracy", 1), ("loss", -1))
        }
    for name, best in found.best.items():
        values = [evaluation.values[f"{name}/accuracy"] for evaluation in evaluations]
        assert best.values[f"{name}/accuracy"] == max(values)
    front = {key(evaluation.architecture) for evaluation in found.front}
    assert {key(best.architecture) for best in found.best.values()} <= front
    values = np.array([[e.values[f"{name}/accuracy"] for name in tasks] for e in evaluations])
    for evaluation, row in zip(evaluations, values, strict=True):
        beaten = ((values >= row).all(1) & (values > row).any(1)).any()
        assert (key(evaluation.architecture) in front) == (not beaten)


def test_turns_find_the_best_of_every_task():
    tasks = {str(seed): task(seed) for seed in range(5)}
    found = search_tasks(SPACE, tasks, budget=90, strategy=QUICK)
    for name, best in found.best.items():
        assert best.values[f"{name}/accuracy"] == pytest.approx(tasks[name].best)


def test_objectives_take_turns_over_their_orders():
    costs = np.array([[0, 3], [1, 2], [2, 0], [3, 1]])
    assert _in_turn(costs, 3, turn=0).tolist() == [0, 2, 1]
    assert _in_turn(costs, 3, turn=1).tolist() == [2, 0, 3]
    assert sorted(_in_turn(costs, 9, turn=1)) == [0, 1, 2, 3]


def test_a_search_for_tasks_goes_on_after_a_stop(tmp_path):
    def made(budget, path, log=None):
        tasks = {"one": task(0, log), "two": task(1)}
        options = {"strategy": QUICK, "path": path, "measures": {"parameters": parameters}}
        found = search_tasks(SPACE, tasks, budget=budget, at_most={"parameters": 80}, **options)
        return [evaluation.architecture for evaluation in found.found.evaluations]

    log, path = [], tmp_path / "tasks.jsonl"
    made(20, path)
    assert made(40, path, log) == made(40, None)
    assert len(log) == 20


def test_another_score_and_limits_of_a_task():
    found = search_tasks(
        SPACE,
        {"one": task(0), "two": task(1)},
        budget=40,
        objective=Objective("loss"),
        at_least={"two/accuracy": 2.0},
        strategy=QUICK,
    )
    values = [e.values for e in found.found.evaluations if e.values["two/accuracy"] >= 2.0]
    assert found.best["one"].values["one/loss"] == min(v["one/loss"] for v in values)


def test_tasks_that_cannot_be_searched_are_told():
    with pytest.raises(ValueError, match="there is no task"):
        search_tasks(SPACE, {}, budget=3)
    computed = Objective("reward", value=lambda values: 0.0)
    with pytest.raises(ValueError, match="objective of tasks is one score"):
        search_tasks(SPACE, {"one": task(0)}, budget=3, objective=computed)
    with pytest.raises(ValueError, match="fewer values than the"):
        search_tasks(SPACE, {"one": task(0), "two": lambda drawn: []}, budget=3)
