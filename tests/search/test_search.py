from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nas_dynamic import SearchSpace
from nas_dynamic.search import (
    Evolution,
    GradientBoosting,
    Objective,
    PretrainedMLP,
    RandomSearch,
    SearchResult,
    Surrogate,
    search,
)
from nas_dynamic.storage.journal import RunError
from tests.search import searching
from tests.search.searching import ACCURACY, SPACE, WIDE, accuracy, key, parameters, scores

SMALL_MLP = PretrainedMLP(subnets=200, width=16, steps=20, fine_tuning=15)
STRATEGIES = {
    "random": RandomSearch(batch=7),
    "evolution": Evolution(population=10, offspring=5),
    "boosting": Surrogate(GradientBoosting(trees=10), initial=12, batch=6, pool=300),
    "pre-trained": Surrogate(SMALL_MLP, initial=12, batch=6, pool=300),
}


def one(architectures):
    return [{"accuracy": 1.0}] * len(architectures)


def total(architecture) -> float:
    return float(sum(architecture.values()))


def made(result: SearchResult) -> list[tuple]:
    """All evaluations, to compare searches by."""
    return [(e.architecture, e.values, e.feasible) for e in result.evaluations]


class Counting:
    """Scores, and what was scored."""

    def __init__(self, score) -> None:
        self.score, self.scored = score, []

    def __call__(self, architectures):
        self.scored += map(key, architectures)
        return self.score(architectures)


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return STRATEGIES[request.param]


@pytest.mark.parametrize("objectives", [[ACCURACY], [ACCURACY, Objective("parameters")]])
def test_nothing_is_scored_twice_and_the_budget_holds(strategy, objectives):
    counting, shown = Counting(scores), []
    options = {"strategy": strategy, "measures": {"parameters": parameters}, "seed": 1}
    result = search(
        SPACE,
        counting,
        objectives,
        budget=75,
        progress=lambda done, all_: shown.append((done, all_)),
        **options,
    )
    assert len(counting.scored) == len(set(counting.scored)) == 75
    assert [key(e.architecture) for e in result.evaluations] == counting.scored
    assert shown == [(i, 75) for i in range(1, 76)]
    for evaluation in result.evaluations:
        assert evaluation.values == {
            "accuracy": accuracy(evaluation.architecture),
            "parameters": parameters(evaluation.architecture),
        }
    again = search(SPACE, scores, objectives, budget=75, **options)
    assert made(again) == made(result)
    other = search(SPACE, scores, objectives, budget=75, **(options | {"seed": 2}))
    assert made(other) != made(result)


def test_a_small_space_is_searched_to_its_end(strategy):
    space = SPACE.restrict({f"layer{i}": ["conv1"] for i in range(3)})
    result = search(
        space, scores, [ACCURACY], budget=1000, strategy=strategy, measures={"p": parameters}
    )
    assert sorted(key(e.architecture) for e in result.evaluations) == sorted(map(key, space))


def test_subnets_beyond_a_limit_of_a_measure_are_never_scored(strategy):
    limits = {"at_most": {"parameters": 60}, "at_least": {"parameters": 20}}
    allowed = {key(a) for a in SPACE if 20 <= parameters(a) <= 60}
    counting = Counting(scores)
    result = search(
        SPACE,
        counting,
        [ACCURACY],
        budget=len(allowed) + 1,
        strategy=strategy,
        measures={"parameters": parameters},
        **limits,
    )
    assert set(counting.scored) == allowed
    assert result.best.values["accuracy"] == max(accuracy(a) for a in SPACE if key(a) in allowed)


def test_a_limit_of_a_score_makes_subnets_infeasible(strategy):
    objectives = [Objective("loss"), Objective("parameters")]

    def score(architectures):
        return [{"accuracy": accuracy(a), "loss": -parameters(a)} for a in architectures]

    result = search(
        SPACE,
        score,
        objectives,
        budget=150,
        strategy=strategy,
        measures={"parameters": parameters},
        at_most={"accuracy": 7.0},
    )
    assert {e.feasible for e in result.evaluations} == {True, False}
    for evaluation in result.evaluations:
        assert evaluation.feasible == (evaluation.values["accuracy"] <= 7.0)
    assert all(evaluation.feasible for evaluation in result.pareto)


@pytest.mark.parametrize("name", ["evolution", "boosting", "pre-trained"])
def test_learning_strategies_beat_random_in_a_space_too_large_to_list(name):
    generator = np.random.default_rng(0)
    worth = {label: generator.random(4) for label in WIDE.labels}

    def score(architectures):
        return [
            {"accuracy": float(sum(worth[label][c] for label, c in a.items()))}
            for a in architectures
        ]

    def best(strategy, seed):
        return search(
            WIDE,
            score,
            [ACCURACY],
            budget=200,
            strategy=strategy,
            measures={"total": total},
            seed=seed,
        ).best.values["accuracy"]

    random = [best(STRATEGIES["random"], seed) for seed in range(3)]
    found = [best(STRATEGIES[name], seed) for seed in range(3)]
    assert min(found) > max(random)


def test_rare_allowed_subnets_are_reached_by_a_walk():
    # 13 of 16.8 million architectures.
    counting = Counting(lambda a: [{"accuracy": 1.0 + total(x)} for x in a])
    result = search(
        WIDE,
        counting,
        [ACCURACY],
        budget=13,
        strategy=RandomSearch(),
        measures={"total": total},
        at_most={"total": 1},
    )
    assert {sum(scored) for scored in counting.scored} <= {0, 1}
    assert len(result.evaluations) >= 10


@pytest.mark.parametrize("space", [SPACE, WIDE], ids=["listed", "not listed"])
def test_a_nan_measure_that_a_limit_reads_is_refused(space):
    def measure(architecture):
        return math.nan if architecture["layer0"] == space.choices["layer0"][1] else 5.0

    options = {"budget": 60, "measures": {"latency": measure}, "strategy": RandomSearch()}
    with pytest.raises(ValueError, match=r"limits read \['latency'\], .*NaN, of \{'layer0'"):
        search(space, one, [ACCURACY], at_most={"latency": 8.0}, **options)
    assert len(search(space, one, [ACCURACY], **options).evaluations) == 60


@pytest.mark.parametrize("space", [SPACE, WIDE], ids=["listed", "not listed"])
def test_limits_that_nothing_meets_are_refused(space):
    measure = parameters if space is SPACE else total
    with pytest.raises(ValueError, match=r"no architecture found within .* size goes from"):
        search(
            space, scores, [ACCURACY], budget=5, measures={"size": measure}, at_most={"size": -1}
        )


def test_a_search_ends_where_no_more_allowed_subnets_are_found(strategy):
    counting = Counting(one)

    def measure(architecture):  # one of 16.8 million is allowed, and soon none
        return total(architecture) + len(counting.scored)

    options = {"measures": {"total": measure}, "at_most": {"total": 0}, "strategy": strategy}
    assert len(search(WIDE, counting, [ACCURACY], budget=20, **options).evaluations) == 1
    assert counting.scored == [(0,) * 12]


def test_the_first_population_may_be_capped():
    result = search(
        SPACE,
        scores,
        [ACCURACY],
        budget=60,
        strategy=Evolution(population=10, initial_at_most={"parameters": 30}),
        measures={"parameters": parameters},
    )
    sizes = [evaluation.values["parameters"] for evaluation in result.evaluations]
    assert max(sizes[:10]) <= 30 < max(sizes)
    with pytest.raises(ValueError, match=r"'MACs'.* is no free measure"):
        search(
            SPACE,
            scores,
            [ACCURACY],
            budget=5,
            strategy=Evolution(initial_at_most={"MACs": 30}),
        )


def test_a_search_stops_early():
    result = search(SPACE, scores, [ACCURACY], budget=700, patience=25, strategy=RandomSearch())
    values = [evaluation.values["accuracy"] for evaluation in result.evaluations]
    assert values.index(max(values)) == len(values) - 26
    result = search(SPACE, scores, [ACCURACY], budget=700, until=lambda e: e.values["accuracy"] > 9)
    assert [e.values["accuracy"] > 9 for e in result.evaluations].index(True) == (
        len(result.evaluations) - 1
    )


@pytest.mark.process
@pytest.mark.parametrize("name", searching.SEARCHES)
def test_a_killed_search_goes_on_as_if_nothing_had_been(name, tmp_path):
    if name == "robot":
        pytest.importorskip("bayes_opt")
    records, log = tmp_path / "search.jsonl", tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.search.searching", name, str(records), str(log)],
        cwd=Path(__file__).parents[2],
    )
    try:
        deadline = time.monotonic() + 120
        while not records.exists() or records.read_bytes().count(b"\n") < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    recorded = [
        " ".join(json.loads(line)["architecture"].values())
        for line in records.read_text().splitlines()[1:]
        if line.endswith("}")
    ]
    assert 19 <= len(recorded) < 60
    # What a power cut may leave besides: half a line.
    with records.open("ab") as file:
        file.write(b'{"architecture": {"lay')

    log.unlink()
    result = searching.run(name, records, log)
    scored = log.read_text().splitlines()
    assert len({*recorded, *scored}) == len(recorded) + len(scored) == 60
    assert made(result) == made(searching.run(name, None))
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["scores"]["accuracy"] for line in lines[1:]] == [
        evaluation.values["accuracy"] for evaluation in result.evaluations
    ]
    assert lines[1]["architecture"] == result.evaluations[0].architecture

    searching.run(name, records, log)
    assert log.read_text().splitlines() == scored


def test_resumed_surrogates_repeat_their_decisions(tmp_path, strategy):
    options = {"strategy": strategy, "measures": {"parameters": parameters}}
    straight = search(SPACE, scores, [ACCURACY], budget=50, **options)
    path = tmp_path / "search.jsonl"
    search(SPACE, scores, [ACCURACY], budget=27, path=path, **options)
    counting = Counting(scores)
    resumed = search(SPACE, counting, [ACCURACY], budget=50, path=path, **options)
    assert made(resumed) == made(straight)
    assert len(counting.scored) == 23


def test_searches_with_functions_and_objects_are_resumed(tmp_path):
    class Operation:
        """A candidate without a text of its own."""

    def made_anew():
        """Make what another process would: the same functions and objects at other addresses."""

        def mine(problem, seed):
            return RandomSearch(4)(problem, seed)

        def reward(values, weight, scale):
            return scale(values["accuracy"]) - weight

        def scale(value):
            return 2 * value

        objective = Objective("reward", True, functools.partial(reward, weight=0.5, scale=scale))
        space = SearchSpace({**SPACE.choices, "operation": [Operation()]})
        return space, objective, mine

    path, kept = tmp_path / "search.jsonl", [made_anew(), made_anew()]
    for space, objective, mine in kept:
        search(space, one, [objective], budget=8, strategy=mine, path=path)
    assert f"{__name__}.test_searches_with_functions" in path.read_text()
    for space, objective, mine in kept:
        strategy = Surrogate(mine, initial=9)
        search(space, one, [objective], budget=8, strategy=strategy, path=tmp_path / "second")


def test_evaluations_that_a_strategy_does_not_repeat_still_count(tmp_path):
    path = tmp_path / "search.jsonl"
    search(SPACE, scores, [ACCURACY], budget=10, path=path, strategy=RandomSearch())
    lines = path.read_text().splitlines()
    # As if another machine's floating point had led to other decisions.
    with path.open("w") as file:
        for line in [lines[0], *lines[-4:]]:
            file.write(line + "\n")
    counting = Counting(scores)
    result = search(SPACE, counting, [ACCURACY], budget=8, path=path, strategy=RandomSearch())
    assert len(counting.scored) == 4
    assert len(result.evaluations) == 8


def test_a_file_of_another_search_is_refused(tmp_path):
    path = tmp_path / "search.jsonl"
    search(SPACE, scores, [ACCURACY], budget=5, path=path)
    before = path.read_bytes()
    with pytest.raises(RunError, match="holds another search: seed was 0, is 1"):
        search(SPACE, scores, [ACCURACY], budget=5, path=path, seed=1)
    with pytest.raises(RunError, match="holds another search: space was"):
        search(WIDE, scores, [ACCURACY], budget=5, path=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda subnets: [{"accuracy": 1.0}], "fewer values than the 20 subnets"),
        (lambda subnets: [{"accuracy": math.nan}] * 20, "must be finite.*nan"),
        (lambda subnets: [{"accuracy": math.inf}] * 20, "must be finite.*inf"),
        (lambda subnets: [{"loss": 1.0}] * 20, r"neither .* give \['accuracy'\]"),
    ],
)
def test_scores_that_cannot_be_used_are_refused(score, message, tmp_path):
    path = tmp_path / "search.jsonl"
    with pytest.raises(ValueError, match=message):
        search(SPACE, score, [ACCURACY], budget=30, path=path)
    kept = [json.loads(line)["scores"] for line in path.read_text().splitlines()[1:]]
    assert all(entry == {"accuracy": 1.0} for entry in kept)


def test_a_score_that_nothing_reads_may_be_nan(tmp_path):
    path = tmp_path / "search.jsonl"
    counting = Counting(lambda subnets: [s | {"loss": math.nan} for s in scores(subnets)])
    found = search(SPACE, counting, [ACCURACY], budget=12, path=path)
    again = search(SPACE, counting, [ACCURACY], budget=12, path=path)
    assert len(counting.scored) == 12
    without = search(SPACE, scores, [ACCURACY], budget=12)
    for result in (found, again):
        assert all(math.isnan(e.values["loss"]) for e in result.evaluations)
        assert [e.architecture for e in result.evaluations] == [
            e.architecture for e in without.evaluations
        ]


@pytest.mark.parametrize(
    "reading",
    [
        {"objectives": [Objective("loss")]},
        {"objectives": [Objective("sum", value=lambda v: v["accuracy"] + v["loss"])]},
        {"objectives": [ACCURACY], "at_most": {"loss": 1.0}},
    ],
)
def test_a_nan_that_something_reads_is_refused(reading):
    with pytest.raises(ValueError, match=r"must be finite numbers, got .*nan.* for \{"):
        search(SPACE, lambda subnets: [{"accuracy": 1, "loss": math.nan}] * 20, budget=5, **reading)
