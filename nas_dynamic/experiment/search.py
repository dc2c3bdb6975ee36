"""`nas-dynamic search`: the best subnets of a trained supernet, within limits."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_dynamic.analysis.ranking import comparable_loss
from nas_dynamic.complexity import AdditiveTable, Complexity, lookup, measure_latency
from nas_dynamic.evaluation.score_cache import digest
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.engine import Engine
from nas_dynamic.experiment.load import LoadedRun, example_images
from nas_dynamic.report.format import few, percent
from nas_dynamic.report.tables import Table
from nas_dynamic.search import (
    Evaluation,
    Evolution,
    GradientBoosting,
    Objective,
    PretrainedMLP,
    RandomSearch,
    RoBoT,
    SearchResult,
    Surrogate,
)
from nas_dynamic.search.proxies import proxy_measures
from nas_dynamic.search.supernet import DIVERGED, LOWEST_LOSS
from nas_dynamic.space import architecture_text
from nas_dynamic.storage.journal import RunError, write_json

__all__ = ["STRATEGIES", "found_table", "latency_table", "read_latency_table", "search_run"]

STRATEGIES: Mapping[str, Callable[[], Any]] = {
    "evolution": Evolution,
    "random": RandomSearch,
    "surrogate": lambda: Surrogate(GradientBoosting()),
    "pretrained": lambda: Surrogate(PretrainedMLP(subnets=MEASURED)),
    "robot": lambda: RoBoT(pool=MEASURED),
}

MEASURED = 300
"""Random subnets whose training-free metrics are computed."""

TRAINING_FREE = ("gradient_norm", "synflow", "jacobian_covariance")
"""Metrics that need no certain activation."""

CHECKED = 8
"""Random subnets that a table of latencies is checked on."""

TITLES = {"macs": "MACs", "latency": "latency, ms"}


def search_run(
    run: LoadedRun,
    display: Display,
    engine: Engine,
    *,
    limits: Mapping[str, float],
    minimize: Sequence[str] = (),
    budget: int = 300,
    strategy: str = "evolution",
    seed: int = 0,
    latency: AdditiveTable | None = None,
) -> SearchResult:
    """Search a run, and write search.json into its folder.

    Args:
        run: what is searched.
        display: shows the progress.
        engine: scores the subnets.
        limits: greatest values of parameters, macs, latency.
        minimize: which of these to minimise beside the loss: then a Pareto set is found.
        budget: greatest number of subnets that are scored.
        strategy: a key of `STRATEGIES`.
        seed: of the strategy.
        latency: milliseconds of a subnet; measured on the run's device where it is asked for.

    Raises:
        RunError: no subnet is within the limits.
    """
    measures = measures_of(run, display, [*limits, *minimize], strategy, latency)
    with told_as_run_error():
        found = run.search(
            budget=budget,
            strategy=STRATEGIES[strategy](),
            objectives=[*LOWEST_LOSS, *map(Objective, minimize)],
            measures=measures,
            at_most=limits,
            engine=engine,
            progress=display.work("search"),
            seed=seed,
        )
    content = {
        "seed": run.seed,
        "limits": dict(limits),
        "minimize": list(minimize),
        "strategy": strategy,
        "strategy_seed": seed,
        "evaluations": len(found.evaluations),
        "best": plain(best(found)),
        "pareto": [plain(evaluation) for evaluation in found.pareto],
    }
    write_json(run.folder / "search.json", content)
    return found


@contextlib.contextmanager
def told_as_run_error() -> Iterator[None]:
    """Turn what a search refuses into an error that the command line tells."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"the search cannot be made: {error}") from error


def measures_of(
    run: LoadedRun,
    display: Display,
    named: Collection[str],
    strategy: str,
    latency: AdditiveTable | None,
) -> dict[str, Complexity]:
    """Return what is known of subnets without scoring, beside their parameters.

    Args:
        run: that they are of.
        display: as in `search_run`, as is `latency`.
        named: of parameters, macs, latency, those that are asked for.
        strategy: a key of `STRATEGIES`; some read training-free metrics.
        latency: a table, or None.
    """
    measures: dict[str, Complexity] = {}
    if "macs" in named:
        images = example_images(run.data, 1)
        measures["macs"] = lookup(run.supernet.space, run.supernet.subnet_macs(images))
    if "latency" in named:
        measures["latency"] = latency or latency_table(run, display)
    if strategy in ("pretrained", "robot"):
        measures |= _training_free(run)
    return measures


def _training_free(run: LoadedRun) -> dict[str, Complexity]:
    """Return metrics of subnets with new weights, on the first training images."""
    untrained = copy.deepcopy(run.supernet).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        for module in untrained.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    batch = run.data.train[torch.arange(min(64, len(run.data.train)))]
    return dict(proxy_measures(untrained.to(run.config.torch_device), batch, TRAINING_FREE))


def best(found: SearchResult) -> Evaluation:
    """Return the subnet of the lowest loss within the limits, of equal ones the smallest.

    Subnets that differ only in what has no effect are one network, but for rounding.
    """
    feasible = [evaluation for evaluation in found.evaluations if evaluation.feasible]
    return min(feasible, key=lambda e: (round(e.values["loss"], 6), e.values["parameters"]))


def found_table(run: LoadedRun, found: SearchResult, limits: Mapping[str, float]) -> Table:
    """Return the best subnet, or the Pareto set, small ones first; random search beside it.

    Args:
        run: what was searched.
        found: what was found.
        limits: as in `search_run`.
    """
    several = len(found.objectives) > 1
    rows = sorted(found.pareto, key=lambda e: e.values["parameters"]) if several else [best(found)]
    measures = [name for name in ("macs", "latency") if name in rows[0].values]
    body = [
        [*sizes(e, measures), f"{e.values['loss']:.3f}", percent(e.values["accuracy"])]
        for e in rows
    ]
    header = ["parameters", *(TITLES[name] for name in measures), "loss", "accuracy"]
    note = (
        f"On {len(run.data.validation):,} validation images, by which it was chosen: the accuracy "
        "is optimistic."
    )
    if several:
        header.append("subnet")
        for row, e in zip(body, rows, strict=True):
            row.append(architecture_text(e.architecture))
    else:  # which in a table would be one long line
        subnet = architecture_text(rows[0].architecture)
        note = f"Subnet: {subnet}. {note} {_random_text(run, len(found.evaluations), limits)}"
    return Table(
        f"{'Pareto set' if several else 'Best'} of {len(found.evaluations):,} subnets, with "
        "inherited weights",
        header,
        body,
        note,
        text=frozenset([len(header) - 1]) if several else frozenset(),
    )


def sizes(evaluation: Evaluation, measures: Sequence[str]) -> list[str]:
    """Return the cells of a subnet's parameters, and of macs or latency."""
    values = evaluation.values
    return [f"{int(values['parameters']):,}", *(few(values[name]) for name in measures)]


def _random_text(run: LoadedRun, evaluations: int, limits: Mapping[str, float]) -> str:
    random = of_random_search(run, evaluations, limits)
    if random is None:
        within = "a latency" if "latency" in limits else "the limits"
        return f"Random search within {within}: not measured."
    loss, count = random
    fewer = "" if count == evaluations else ", all that training has scored within the limits"
    return f"The best of {count:,} random ones has a loss of {loss:.3f} in expectation{fewer}."


def of_random_search(
    run: LoadedRun, evaluations: int, limits: Mapping[str, float]
) -> tuple[float, int] | None:
    """Return what random search comes to, by the random subnets that the training has scored.

    Returns:
        The expected lowest loss, and of how many subnets; None where that is not known.
    """
    if "latency" in limits:
        return None
    within = [
        min(comparable_loss(subnet.loss), DIVERGED)
        for subnet in run.result.subnets
        if all((getattr(subnet, name) or 0) <= limit for name, limit in limits.items())
    ]
    if not within:
        return None
    count = min(evaluations, len(within))
    return expected_lowest(within, count), count


def expected_lowest(losses: Sequence[float], count: int) -> float:
    """Return the expected lowest of `count` of some losses that are drawn without replacement."""
    ordered, draws = sorted(losses), math.comb(len(losses), count)
    chances = (math.comb(left, count - 1) / draws for left in reversed(range(len(losses))))
    return math.fsum(loss * chance for loss, chance in zip(ordered, chances, strict=True))


def latency_table(run: LoadedRun, display: Display) -> AdditiveTable:
    """Return milliseconds of a subnet for one image, measured on the run's device.

    The table is kept in the folder of the run, and measured anew on another device.
    """
    device = run.config.torch_device
    images = example_images(run.data, 1).to(device)
    of = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "images": list(images.shape),
        "torch": torch.__version__,
    }
    path = run.folder / f"latency-{digest(of)[:12]}.json"
    if path.exists():
        return AdditiveTable.load(path)
    choices = run.supernet.space.choices.values()
    total = 1 + sum(len(candidates) - 1 for candidates in choices) + CHECKED
    progress, done = display.work("measure latency"), 0

    def measured(architecture: Any) -> float:
        nonlocal done
        value = measure_latency(run.supernet.extract(architecture), images)
        done += 1
        progress(done, total)
        return value

    table = AdditiveTable.measure(run.supernet.space, measured)
    errors = np.abs(table.errors(run.supernet.space, measured, CHECKED))
    table.save(path)
    display.say(
        f"Latency of one image on {of['device']}, {of['threads']} threads: {path}. On {CHECKED} "
        f"random subnets the table is off by {percent(float(np.median(errors)))} in the median, "
        f"{percent(float(errors.max()))} at most."
    )
    return table


def read_latency_table(path: Path) -> AdditiveTable:
    """Return a table in a file, such as one that was measured on a telephone.

    Raises:
        RunError: it holds none.
    """
    try:
        return AdditiveTable.load(path)
    except ValueError as error:
        raise RunError(str(error)) from error


def plain(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as search.json has it."""
    return {"architecture": dict(evaluation.architecture), "values": evaluation.values}
