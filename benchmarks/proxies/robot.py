"""RoBoT on 14 tasks against random search, each training-free metric alone, and their plain mean.

The pool of a task is what NAS-Bench-Suite-Zero has of it, 192 to 500 networks. A search evaluates
`budget` of them, and ends with the best validation accuracy that it met. Methods are ranked by
that, seed by seed, 1 the best, equal ones by their mean rank.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as PrintedTable
from scipy.stats import rankdata

from benchmarks.nb201.report import append_result, rows_of
from benchmarks.proxies.tables import zero_cost
from nas_dynamic import SearchSpace
from nas_dynamic.analysis.paired import mean_estimate
from nas_dynamic.search import Evaluations, Objective, Problem, RandomSearch, RoBoT, search

__all__ = ["ranked", "robot", "robot_table"]

METRICS = (
    *("epe_nas", "fisher", "flops", "grad_norm", "grasp", "jacov"),
    *("l2_norm", "params", "plain", "snip", "synflow"),
)
"""Columns that all 14 tasks have."""


def robot(scores: Path, rows: Path, *, budget: int, seeds: range) -> dict[str, Any]:
    """Run all methods on all tasks, and rank them.

    Args:
        scores: CSV of NAS-Bench-Suite-Zero.
        rows: CSV that results are appended to; those that it holds are not made again.
        budget: evaluations of a search.
        seeds: of the searches.
    """
    done = {(r["task"], int(r["budget"]), int(r["seed"]), r["method"]) for r in rows_of(rows)}
    tasks = dict(iter(zero_cost(scores).groupby(["space", "task"])))
    for (space, name), table in tasks.items():
        task = f"{space} {name}"
        for seed in seeds:
            for method, strategy in _methods(budget).items():
                if (task, budget, seed, method) not in done:
                    best = _best(table, strategy, budget, seed)
                    row = {"task": task, "budget": budget, "seed": seed, "method": method}
                    append_result(rows, row | {"accuracy": f"{best:.6g}"})
    return _ranks(rows, budget, seeds)


def robot_table(found: dict[str, Any]) -> None:
    """Print mean and worst rank of each method."""
    printed = PrintedTable("method", "mean rank", "95%", "worst task", "its rank")
    ordered = sorted(found["methods"].items(), key=lambda item: item[1]["mean"])
    for method, values in ordered:
        low, high = values["interval"]
        cells = [f"{values['mean']:.2f}", f"{low:.2f} to {high:.2f}"]
        printed.add_row(method, *cells, values["worst_task"], f"{values['worst']:.2f}")
    console = Console(width=120, highlight=False)
    console.print(printed)
    console.print(
        f"{len(found['methods'])} methods, {len(found['tasks'])} tasks, {found['seeds']} seeds, "
        f"{found['budget']} evaluations. RoBoT's rank less random's: {found['robot_less_random']}."
    )


def ranked(score: Callable[[Problem, np.ndarray], np.ndarray]) -> Any:
    """Return the strategy that goes down the list by a score; equal ones come at random."""

    def strategy(problem: Problem, seed: int) -> Generator[np.ndarray, Evaluations, None]:
        pool = np.random.default_rng(seed).permutation(problem.remaining())
        order = np.argsort(-score(problem, pool), kind="stable")
        yield from (pool[order[start : start + 16]] for start in range(0, len(order), 16))

    return strategy


def _values(problem: Problem, pool: np.ndarray, name: str) -> np.ndarray:
    values = [problem.measures[name](problem.space.decode(row)) for row in pool]
    return np.nan_to_num(np.array(values), nan=-np.inf)


def _methods(budget: int) -> Mapping[str, Any]:
    def by(name: str) -> Any:
        return ranked(lambda problem, pool: _values(problem, pool, name))

    def mean(problem: Problem, pool: np.ndarray) -> np.ndarray:
        return np.mean([rankdata(_values(problem, pool, name)) for name in METRICS], axis=0)

    return {
        "RoBoT": RoBoT(iterations=budget),
        "RoBoT, ranks": RoBoT(iterations=budget, ranks=True),
        "random": RandomSearch(),
        "mean of ranks": ranked(mean),
        **{name: by(name) for name in METRICS},
    }


def _best(table: Any, strategy: Any, budget: int, seed: int) -> float:
    accuracy = table["val_accuracy"].to_numpy()
    columns = {name: table[name].to_numpy() for name in METRICS}
    found = search(
        SearchSpace({"network": range(len(accuracy))}),
        lambda drawn: [{"accuracy": accuracy[a["network"]]} for a in drawn],
        [Objective("accuracy", maximize=True)],
        budget=budget,
        strategy=strategy,
        measures={n: lambda a, c=column: float(c[a["network"]]) for n, column in columns.items()},
        seed=seed,
    )
    return found.best.values["accuracy"]


def _ranks(rows: Path, budget: int, seeds: range) -> dict[str, Any]:
    read = [r for r in rows_of(rows) if int(r["budget"]) == budget and int(r["seed"]) in seeds]
    tasks, methods = (list(dict.fromkeys(r[n] for r in read)) for n in ("task", "method"))
    accuracy = np.empty((len(tasks), len(seeds), len(methods)))
    for r in read:
        place = tasks.index(r["task"]), seeds.index(int(r["seed"])), methods.index(r["method"])
        accuracy[place] = float(r["accuracy"])
    ranks = rankdata(-accuracy, axis=2)
    by_task, by_seed = ranks.mean(1), ranks.mean(0)
    found: dict[str, Any] = {"budget": budget, "seeds": len(seeds), "tasks": tasks, "methods": {}}
    for number, method in enumerate(methods):
        mean = mean_estimate(by_seed[:, number])
        worst = int(by_task[:, number].argmax())
        found["methods"][method] = {
            "mean": mean.value,
            "interval": [mean.low, mean.high],
            "worst": float(by_task[worst, number]),
            "worst_task": tasks[worst],
            "by_task": dict(zip(tasks, by_task[:, number].round(2).tolist(), strict=True)),
        }
    less = by_seed[:, methods.index("RoBoT")] - by_seed[:, methods.index("random")]
    found["robot_less_random"] = f"{mean_estimate(less):.2f}"
    return found
