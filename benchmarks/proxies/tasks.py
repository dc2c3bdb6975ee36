"""TransNAS-Bench's seven tasks from one pool, against a search for each task.

The search over one pool scores each architecture on all seven tasks; the seven separate searches
score as many architectures each, on their own task: seven times as many in all. Both have the same
strategy. What counts is the place of the best architecture found, by the trained result, among all
of the table; 1 is the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table as PrintedTable

from benchmarks.nb201.report import append_result, rows_of
from nas_dynamic import SearchSpace
from nas_dynamic.analysis.paired import mean_estimate
from nas_dynamic.search import GradientBoosting, Objective, Surrogate, search_tasks
from nas_dynamic.space import Key, key

__all__ = ["tasks", "tasks_table"]

TASKS = (
    *("class_scene", "class_object", "jigsaw", "room_layout"),
    *("segmentsemantic", "normal", "autoencoder"),
)
EDGES = ("1←0", "2←0", "2←1", "3←0", "3←1", "3←2")
SPACE = SearchSpace(dict.fromkeys(EDGES, (0, 1, 2, 3)))
RESULT = Objective("result", maximize=True)
STRATEGY = Surrogate(GradientBoosting(), initial=32, batch=7, explore=0.0, in_turn=True)


def tasks(table: Path, rows: Path, *, budget: int, seeds: range) -> dict[str, Any]:
    """Search for all tasks together, and for each by itself.

    Args:
        table: CSV of TransNAS-Bench-101, micro.
        rows: CSV that results are appended to; those that it holds are not made again.
        budget: architectures of one search.
        seeds: of the searches.
    """
    frame = pd.read_csv(table)
    architectures = [key(_parsed(arch)) for arch in frame["arch"]]
    values = {task: dict(zip(architectures, frame[task], strict=True)) for task in TASKS}
    done = {(int(row["budget"]), int(row["seed"])) for row in rows_of(rows)}
    for seed in seeds:
        if (budget, seed) not in done:
            together = _places(values, TASKS, budget, seed)
            alone: dict[str, int] = {}
            for task in TASKS:
                alone |= _places(values, (task,), budget, seed)
            row = {"budget": budget, "seed": seed}
            row |= {f"together {task}": place for task, place in together.items()}
            append_result(rows, row | {f"alone {task}": place for task, place in alone.items()})
    chosen = [r for r in rows_of(rows) if int(r["budget"]) == budget and int(r["seed"]) in seeds]
    found: dict[str, Any] = {"budget": budget, "seeds": len(chosen), "arms": {}}
    medians = {}
    for arm in ("together", "alone"):
        places = np.array([[int(row[f"{arm} {task}"]) for task in TASKS] for row in chosen])
        medians[arm] = np.median(places, axis=1)
        mean = mean_estimate(medians[arm])
        found["arms"][arm] = {
            "median_place": mean.value,
            "interval": [mean.low, mean.high],
            "median_by_task": dict(zip(TASKS, np.median(places, axis=0).tolist(), strict=True)),
        }
    found["together_less_alone"] = f"{mean_estimate(medians['together'] - medians['alone']):.1f}"
    return found


def tasks_table(found: dict[str, Any]) -> None:
    """Print the places of what was found."""
    printed = PrintedTable("arm", "evaluations", "median place", "95%", *TASKS)
    for arm, values in found["arms"].items():
        low, high = values["interval"]
        printed.add_row(
            arm,
            str(found["budget"] * (1 if arm == "together" else len(TASKS))),
            f"{values['median_place']:.1f}",
            f"{low:.1f} to {high:.1f}",
            *(f"{place:g}" for place in values["median_by_task"].values()),
        )
    console = Console(width=150, highlight=False)
    console.print(printed)
    console.print(
        f"{found['seeds']} seeds; of each seed the median over tasks. Together less alone: "
        f"{found['together_less_alone']}."
    )


def _places(
    values: Mapping[str, Mapping[Key, float]], names: tuple[str, ...], budget: int, seed: int
) -> dict[str, int]:
    def scorer(task: str) -> Any:
        return lambda drawn: [{"result": values[task][key(a)]} for a in drawn]

    found = search_tasks(
        SPACE,
        {task: scorer(task) for task in names},
        objective=RESULT,
        budget=budget,
        strategy=STRATEGY,
        seed=seed,
    )
    return {
        task: 1 + sum(value > best.values[f"{task}/result"] for value in values[task].values())
        for task, best in found.best.items()
    }


def _parsed(text: str) -> dict[str, int]:
    operations = text.rpartition("-")[2].replace("_", "")
    return dict(zip(EDGES, map(int, operations), strict=True))
