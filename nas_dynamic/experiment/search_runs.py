"""`nas-dynamic search` over several runs: one pool of subnets, scored on each run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from nas_dynamic.complexity import AdditiveTable, Complexity
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.engine import Engine
from nas_dynamic.experiment.load import LoadedRun, load_run
from nas_dynamic.experiment.search import (
    STRATEGIES,
    TITLES,
    best,
    measures_of,
    of_random_search,
    plain,
    sizes,
    told_as_run_error,
)
from nas_dynamic.report.format import percent
from nas_dynamic.report.run_folder import read_runs
from nas_dynamic.report.tables import Table
from nas_dynamic.search import Evaluation, SearchResult, Surrogate, TasksResult, search_tasks
from nas_dynamic.search.supernet import LOWEST_LOSS, scored_in_order
from nas_dynamic.space import architecture_text
from nas_dynamic.storage.journal import RunError, write_json

__all__ = ["best_table", "front_table", "load_runs", "search_runs"]


def load_runs(
    folders: Sequence[Path], seed: int | None = None, *, device: str | None = None
) -> dict[str, LoadedRun]:
    """Return runs of one space by names that differ, as reports name them.

    Args:
        folders: of the runs.
        seed: of each run, as in `load_run`, as is the device.
        device: to score on, in place of each configuration's.

    Raises:
        RunError: as in `load_run`, a run is given twice, or the spaces differ.
    """
    named = read_runs(folders)
    loaded = [load_run(folder, seed, device=device) for folder in folders]
    first = loaded[0]
    for run in loaded[1:]:
        if run.supernet.space != first.supernet.space:
            raise RunError(
                f"{first.folder} and {run.folder} are of different spaces, "
                f"{first.supernet.space} and {run.supernet.space}; runs that are searched together "
                "have the same choices"
            )
    return {run.name: of_run for run, of_run in zip(named, loaded, strict=True)}


def search_runs(
    runs: Mapping[str, LoadedRun],
    display: Display,
    engine: Engine,
    *,
    limits: Mapping[str, float],
    budget: int = 300,
    strategy: str = "surrogate",
    seed: int = 0,
    latency: AdditiveTable | None = None,
) -> TasksResult:
    """Search several runs over one pool of subnets, and write search.json into their folders.

    Each run is a task: a subnet that is looked at is scored with the weights that it inherits from
    each supernet, on that run's validation images.

    Args:
        runs: name → run, of one space.
        display: shows the progress.
        engine: scores the subnets.
        limits: greatest values of parameters, macs, latency, in every run.
        budget: greatest number of subnets that are scored, each on all runs.
        strategy: a key of `nas_dynamic.experiment.search.STRATEGIES`; surrogates evaluate what
            looks best for each run in turn.
        seed: of the strategy.
        latency: milliseconds of a subnet, the same for all runs; measured for each by default.

    Returns:
        Values are named `run/score`.

    Raises:
        RunError: no subnet is within the limits, or the strategy looks for one best subnet only.
    """
    measures: dict[str, Complexity] = {}
    for name, run in runs.items():
        of_run: dict[str, Complexity] = {"parameters": run.supernet.subnet_parameters()}
        of_run |= measures_of(run, display, [*limits], strategy, latency)
        measures |= {f"{name}/{measure}": value for measure, value in of_run.items()}
    chosen = STRATEGIES[strategy]()
    if isinstance(chosen, Surrogate):
        chosen = replace(chosen, in_turn=True)
    with told_as_run_error():
        found = search_tasks(
            next(iter(runs.values())).supernet.space,
            {
                name: scored_in_order(partial(run.score, engine=engine))
                for name, run in runs.items()
            },
            budget=budget,
            objective=LOWEST_LOSS[0],
            strategy=chosen,
            measures=measures,
            at_most={f"{name}/{of}": limit for name in runs for of, limit in limits.items()},
            progress=display.work("search"),
            seed=seed,
        )
    common = {
        "limits": dict(limits),
        "minimize": [],
        "strategy": strategy,
        "strategy_seed": seed,
        "runs": {name: str(run.folder) for name, run in runs.items()},
        "evaluations": len(found.found.evaluations),
        "pareto": [plain(evaluation) for evaluation in found.front],
    }
    for name, run in runs.items():
        content = {"seed": run.seed, **common, "best": plain(best(_alone(found, name)))}
        write_json(run.folder / "search.json", content)
    return found


def _alone(found: TasksResult, run: str) -> SearchResult:
    """Return what was found as a search of one run has it."""
    return SearchResult(LOWEST_LOSS, [_of_run(e, run) for e in found.found.evaluations])


def _of_run(evaluation: Evaluation, run: str) -> Evaluation:
    prefix = f"{run}/"
    values = {
        name.removeprefix(prefix): value
        for name, value in evaluation.values.items()
        if name.startswith(prefix)
    }
    return Evaluation(evaluation.architecture, values, evaluation.feasible)


def best_table(
    runs: Mapping[str, LoadedRun], found: TasksResult, limits: Mapping[str, float]
) -> Table:
    """Return the best subnet of each run; random search beside it.

    Args:
        runs: what was searched.
        found: what was found.
        limits: as in `search_runs`.
    """
    measures = [name for name in TITLES if name in limits]
    evaluations = len(found.found.evaluations)
    body, counts = [], []
    for name, run in runs.items():
        of_run = best(_alone(found, name))
        random = of_random_search(run, evaluations, limits)
        counts += [random[1]] if random else []
        body.append(
            [
                name,
                *sizes(of_run, measures),
                f"{of_run.values['loss']:.3f}",
                f"{random[0]:.3f}" if random else "not measured",
                percent(of_run.values["accuracy"]),
                architecture_text(of_run.architecture),
            ]
        )
    header = ["run", "parameters", *(TITLES[name] for name in measures), "loss", "random search"]
    header += ["accuracy", "subnet"]
    note = (
        "On the validation images of each run, by which it was chosen: the accuracy is optimistic."
    )
    if counts:
        note += f" Random search: the expected loss of the best of {min(counts):,} random ones"
        fewer = min(counts) < evaluations
        note += ", all that training has scored within the limits." if fewer else "."
    return Table(
        f"Best of {evaluations:,} subnets for each run, with inherited weights",
        header,
        body,
        note,
        text=frozenset([0, len(header) - 1]),
    )


def front_table(runs: Mapping[str, LoadedRun], found: TasksResult) -> Table:
    """Return the subnets that no other one beats in every run, by their losses.

    Of subnets that score alike in every run, which are one network, the smallest is there.
    """
    distinct: dict[tuple[float, ...], Evaluation] = {}
    for evaluation in sorted(found.front, key=lambda e: _most_parameters(e, runs)):
        losses = tuple(round(evaluation.values[f"{name}/loss"], 6) for name in runs)
        distinct.setdefault(losses, evaluation)
    rows = [
        [
            *(f"{evaluation.values[f'{name}/loss']:.3f}" for name in runs),
            f"{_most_parameters(evaluation, runs):,}",
            architecture_text(evaluation.architecture),
        ]
        for _, evaluation in sorted(distinct.items(), key=lambda item: item[0])
    ]
    header = [*(f"loss, {name}" for name in runs), "parameters", "subnet"]
    return Table(
        "Pareto set of the losses",
        header,
        rows,
        "No other subnet is as good in all runs and better in one. Parameters are those of the run "
        "where they are most.",
        text=frozenset([len(header) - 1]),
    )


def _most_parameters(evaluation: Evaluation, runs: Mapping[str, LoadedRun]) -> int:
    return int(max(evaluation.values[f"{name}/parameters"] for name in runs))
