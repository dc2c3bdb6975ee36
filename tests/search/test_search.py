from __future__ import annotations

import functools
import itertools
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
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from nas_dynamic import SearchSpace
from nas_dynamic.search.evolution import Evolution, RandomSearch
from nas_dynamic.search.predictors import GradientBoosting, PretrainedMLP
from nas_dynamic.search.problem import Limits, MnasReward, Objective, Problem
from nas_dynamic.search.result import Evaluation, SearchResult
from nas_dynamic.search.run import search
from nas_dynamic.search.surrogate import Surrogate
from nas_dynamic.storage.journal import RunError
from tests.search import searching
from tests.search.searching import SPACE, accuracy, parameters

ACCURACY = Objective("accuracy", maximize=True)
SMALL_MLP = PretrainedMLP(subnets=200, width=16, steps=20, fine_tuning=15)
STRATEGIES = {
    "random": RandomSearch(batch=7),
    "evolution": Evolution(population=10, offspring=5),
    "boosting": Surrogate(GradientBoosting(trees=10), initial=12, batch=6, pool=300),
    "pre-trained": Surrogate(SMALL_MLP, initial=12, batch=6, pool=300),
}
# Too large to be listed: strategies see it through draws.
WIDE = SearchSpace({f"layer{i}": [0, 1, 2, 3] for i in range(12)})


def scores(architectures):
    return [{"accuracy": accuracy(architecture)} for architecture in architectures]


def one(architectures):
    return [{"accuracy": 1.0}] * len(architectures)


def total(architecture) -> float:
    return float(sum(architecture.values()))


def key(architecture) -> tuple:
    return tuple(architecture.values())


class Counting:
    """Scores, and what was asked for."""

    def __init__(self, score) -> None:
        self.score, self.asked = score, []

    def __call__(self, architectures):
        self.asked += map(key, architectures)
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
    assert len(counting.asked) == len(set(counting.asked)) == 75
    assert [key(e.architecture) for e in result.evaluations] == counting.asked
    assert shown == [(i, 75) for i in range(1, 76)]
    for evaluation in result.evaluations:
        assert evaluation.values == {
            "accuracy": accuracy(evaluation.architecture),
            "parameters": parameters(evaluation.architecture),
        }
    assert search(SPACE, scores, objectives, budget=75, **options) == result
    other = search(SPACE, scores, objectives, budget=75, **(options | {"seed": 2}))
    assert other != result


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
    assert set(counting.asked) == allowed
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
    assert {sum(asked) for asked in counting.asked} <= {0, 1}
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
        return total(architecture) + len(counting.asked)

    options = {"measures": {"total": measure}, "at_most": {"total": 0}, "strategy": strategy}
    assert len(search(WIDE, counting, [ACCURACY], budget=20, **options).evaluations) == 1
    assert counting.asked == [(0,) * 12]


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


def test_surrogates_of_ranks_depend_on_the_order_alone():
    def monotone(architectures):
        return [{"accuracy": math.exp(accuracy(a))} for a in architectures]

    def asked(score, ranks):
        strategy = Surrogate(GradientBoosting(trees=10), initial=12, batch=6, ranks=ranks)
        result = search(SPACE, score, [ACCURACY], budget=60, strategy=strategy)
        return [key(evaluation.architecture) for evaluation in result.evaluations]

    assert asked(scores, ranks=True) == asked(monotone, ranks=True)
    assert asked(scores, ranks=False) != asked(monotone, ranks=False)


def test_pretraining_on_a_measure_orders_subnets_from_few_accuracies():
    weight = dict(zip(WIDE.labels, 2.0 ** np.arange(12), strict=True))

    def measure(architecture):
        return float(sum(weight[label] * c for label, c in architecture.items()))

    problem = Problem(WIDE, [ACCURACY], {"macs": measure}, Limits())
    generator = np.random.default_rng(0)
    train, test = problem.draw(generator, 8), problem.draw(generator, 200)
    truth = [[math.sqrt(measure(WIDE.decode(row))) for row in rows] for rows in (train, test)]

    def tau(steps):
        model = PretrainedMLP(steps=steps)(problem, seed=0)
        model.fit(problem.one_hot(train), np.array(truth[0]))
        return kendalltau(model.predict(problem.one_hot(test)), truth[1]).statistic

    assert tau(steps=300) > tau(steps=0) + 0.2


def test_pretraining_needs_a_measure():
    with pytest.raises(ValueError, match="learns free measures, and the search has none"):
        search(SPACE, scores, [ACCURACY], budget=20, strategy=Surrogate(SMALL_MLP))


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


@pytest.mark.process
def test_a_killed_search_goes_on_as_if_nothing_had_been(tmp_path):
    records, log = tmp_path / "search.jsonl", tmp_path / "log"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.search.searching", str(records), str(log)],
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
    result = searching.run(records, log)
    scored = log.read_text().splitlines()
    assert len({*recorded, *scored}) == len(recorded) + len(scored) == 60
    assert result == searching.run(None)
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["scores"]["accuracy"] for line in lines[1:]] == [
        evaluation.values["accuracy"] for evaluation in result.evaluations
    ]
    assert lines[1]["architecture"] == result.evaluations[0].architecture

    searching.run(records, log)
    assert log.read_text().splitlines() == scored


def test_resumed_surrogates_repeat_their_decisions(tmp_path, strategy):
    options = {"strategy": strategy, "measures": {"parameters": parameters}}
    straight = search(SPACE, scores, [ACCURACY], budget=50, **options)
    path = tmp_path / "search.jsonl"
    search(SPACE, scores, [ACCURACY], budget=27, path=path, **options)
    counting = Counting(scores)
    assert search(SPACE, counting, [ACCURACY], budget=50, path=path, **options) == straight
    assert len(counting.asked) == 23


def test_searches_with_functions_are_resumed(tmp_path):
    def made():
        """What another process would make: the same functions at other addresses."""

        def mine(problem, seed):
            return RandomSearch(4)(problem, seed)

        def reward(values, weight, scale):
            return scale(values["accuracy"]) - weight

        def scale(value):
            return 2 * value

        return mine, Objective("reward", True, functools.partial(reward, weight=0.5, scale=scale))

    path, kept = tmp_path / "search.jsonl", [made(), made()]
    for mine, objective in kept:
        search(SPACE, scores, [objective], budget=8, strategy=mine, path=path)
    assert f"{__name__}.test_searches_with_functions" in path.read_text()
    for mine, objective in kept:
        strategy = Surrogate(mine, initial=9)
        search(SPACE, scores, [objective], budget=8, strategy=strategy, path=tmp_path / "second")


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
    assert len(counting.asked) == 4
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
        (lambda asked: [{"accuracy": 1.0}], "fewer values than the 20 subnets"),
        (lambda asked: [{"accuracy": math.nan}] * 20, "must be finite.*nan"),
        (lambda asked: [{"accuracy": math.inf}] * 20, "must be finite.*inf"),
        (lambda asked: [{"loss": 1.0}] * 20, r"neither .* give \['accuracy'\]"),
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
    counting = Counting(lambda asked: [s | {"loss": math.nan} for s in scores(asked)])
    found = search(SPACE, counting, [ACCURACY], budget=12, path=path)
    again = search(SPACE, counting, [ACCURACY], budget=12, path=path)
    assert len(counting.asked) == 12
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
        search(SPACE, lambda asked: [{"accuracy": 1, "loss": math.nan}] * 20, budget=5, **reading)
