"""The tables of a report, some of which the command line prints as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas_dynamic.analysis.ranking import Estimate, comparable_loss
from nas_dynamic.report.format import (
    bytes_text,
    duration,
    energy,
    few,
    joined,
    number,
    percent,
    seeds_text,
    value_text,
)
from nas_dynamic.report.measures import MEASURES, PRIMARY
from nas_dynamic.report.records import Comparison, SeedResult
from nas_dynamic.report.run_folder import Run
from nas_dynamic.report.statistics import BY_ACCURACY, Ranked, pareto
from nas_dynamic.report.verdict import difference_text
from nas_dynamic.space import architecture_text

__all__ = [
    "Table",
    "compared",
    "cost",
    "diagnostics",
    "environments",
    "exported",
    "pareto_set",
    "picked",
    "scores",
    "settings",
]

PARETO_ROWS = 40


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        name: of its caption.
        header: of the columns.
        rows: of as many cells; the first cell names the row.
        note: how to read it.
        marked: numbers of rows that stand out.
        text: numbers of the columns that hold text.
        folded: whether it is shown when it is asked for only.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    marked: frozenset[int] = frozenset()
    text: frozenset[int] = frozenset([0])
    folded: bool = False


def compared(comparison: Comparison) -> Table:
    """Return two trainings side by side, measure by measure."""
    arms = list(comparison.arms)
    rows = []
    for name, measure in MEASURES.items():
        if name in comparison.differences:
            means = [float(np.mean(comparison.arms[arm][name])) for arm in arms]
            cells = [number(mean, measure.form) for mean in means]
            rows.append([measure.title, *cells, difference_text(comparison, name)])
    note = f"Differences are {arms[1]} less {arms[0]}."
    if comparison.reached is not None:
        low, high = comparison.reached
        epochs = comparison.standalone_epochs
        budget = f" for {epochs} epochs" if epochs is not None else ""
        baseline = number(comparison.tau_of_parameters, ".3f")
        note += (
            f" The {comparison.subnets} subnets reach {percent(low)} to {percent(high)} when they "
            f"are trained alone{budget}, the stand-alone accuracy that τ is to. The parameter "
            f"count alone has a Kendall τ of {baseline}. Matched τ: among subnets of like size. "
            "Complexity bias: above 0, small subnets are ranked too high. The pick is the subnet "
            "of the lowest loss."
        )
    over = seeds_text(comparison.seeds)
    return Table(
        " and ".join(arms),
        [f"mean over {over}" if len(comparison.seeds) > 1 else over, *arms, "difference [95%]"],
        rows,
        note,
    )


def scores(runs: Sequence[Run]) -> Table:
    """Return what each supernet's subnets reach."""
    rows = [
        [
            f"{run.name}, seed {seed.seed}",
            f"{len(seed.subnets):,}",
            percent(seed.mean_accuracy),
            percent(seed.pick.accuracy),
            f"{seed.pick.parameters:,}",
            f"{seed.validation_images:,}",
        ]
        for run in runs
        for seed in run.seeds
    ]
    return Table(
        "Subnets with inherited weights",
        ["supernet", "subnets", "mean accuracy", "its pick", "parameters of it", "images"],
        rows,
        "Images are those of the validation set, on which the subnets are scored. The pick is the "
        "subnet of the lowest loss; in its column is its accuracy.",
    )


def picked(run: Run) -> str:
    """Return the best scored subnet of a run, over its seeds, in a sentence."""
    seed = min(run.seeds, key=lambda seed: comparable_loss(seed.pick.loss))
    pick = seed.pick
    of = f" of seed {seed.seed}" if len(run.seeds) > 1 else ""
    return (
        f"Best of the {len(seed.subnets):,} scored subnets{of}, that of the lowest loss: "
        f"{architecture_text(pick.architecture)}; {pick.parameters:,} parameters, "
        f"{percent(pick.accuracy)} of the validation images."
    )


def exported(description: Mapping[str, Any], reason: str) -> str:
    """Return what a network is that was exported, in words."""
    accuracy, macs = description["accuracy"], description["macs"]
    return (
        f"{architecture_text(description['architecture'])} ({reason}): "
        f"{description['parameters']:,} parameters"
        + ("" if macs is None else f", {few(macs)} MACs")
        + f". Alone, with inherited weights, it classifies {percent(accuracy['validation'])} of "
        f"the validation images, by which it was chosen, and {percent(accuracy['test'])} of the "
        "test images."
    )


def pareto_set(run: Run) -> Table:
    """Return the Pareto set of a run, small subnets first."""
    sizes, accuracies, macs = run.parameters(), run.accuracies().mean(0), run.macs()
    best = np.flatnonzero(pareto(sizes, accuracies))
    best = best[np.argsort(sizes[best], kind="stable")]
    header = ["parameters", "MACs", "accuracy"]
    if run.standalone:
        header.append("stand-alone")
    rows = []
    for n in best[:PARETO_ROWS]:
        row = [f"{sizes[n]:,}", "unknown" if macs is None else few(float(macs[n]))]
        row.append(percent(float(accuracies[n])))
        if run.standalone:
            standalone = run.standalone.get(run.keys[n])
            row.append("unknown" if standalone is None else percent(standalone))
        rows.append([*row, architecture_text(run.subnets[n].architecture)])
    return Table(
        f"Pareto set of {run.name}",
        [*header, "subnet"],
        rows,
        f"The first {PARETO_ROWS} of {len(best)}." if len(best) > PARETO_ROWS else "",
        text=frozenset([len(header)]),
    )


def diagnostics(group: Ranked) -> Table:
    """Return all statistics of all rankings of the same subnets."""
    rows = group.diagnostics.rows
    columns = list(next(iter(rows.values())))
    titles = {"Kendall τ": MEASURES[PRIMARY].title, "regret": "regret, points"}
    # The second measure of τ stands beside the first.
    columns.insert(1, columns.pop(columns.index(BY_ACCURACY)))
    body = [
        [name, *(_statistic(column, row.get(column)) for column in columns)]
        for name, row in rows.items()
    ]
    return Table(
        f"Diagnostics over {len(group.standalone)} subnets",
        ["ranking", *(titles.get(column, column) for column in columns)],
        body,
        "Of the ranking by the loss, but for the column by the accuracy; parameter count, MACs "
        "and random rank by themselves. 95% bootstrap intervals over the subnets; in the row "
        "random, what chance alone gives. recall@k: share of the k best that are found among the "
        "k ranked first. Regret: what the subnet ranked first lacks of the best one's stand-alone "
        "accuracy. Complexity bias: above 0, small subnets are ranked higher than they deserve. "
        "Matched τ: over pairs of subnets of like complexity, what a ranking knows beside size. "
        "Formulas: docs/diagnostics.md.",
        frozenset(n for n, name in enumerate(rows) if name in group.diagnostics.baselines),
    )


def _statistic(column: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if column != "regret":
        return f"{estimate:z.2f}"
    ends = 100 * estimate.value, 100 * estimate.low, 100 * estimate.high
    return f"{Estimate(*ends, estimate.count):z.1f}"


def cost(runs: Sequence[Run]) -> Table:
    """Return wall time, memory and energy of each training."""
    supernets = [(run, seed) for run in runs for seed in run.seeds]
    rows = [[f"{run.name}, seed {seed.seed}", *_cost(seed)] for run, seed in supernets]
    marked: frozenset[int] = frozenset()
    if len(supernets) > 1:
        total = sum(seed.cost.seconds for _, seed in supernets)
        rows.append(["all", "", duration(total), "", "", ""])
        marked = frozenset([len(supernets)])
    sources = {source for _, seed in supernets for source in seed.cost.energy_of}
    kinds = {seed.cost.memory_of for _, seed in supernets}
    whole = ": Python, torch and the images included" if kinds != {"device"} else ""
    note = (
        "Of the training alone, over all its starts where it was stopped and resumed. Memory is "
        f"the peak of the {joined(sorted(kinds))}{whole}. Energy "
        + (
            f"is of {joined(sorted(sources))}, whatever else ran there."
            if sources
            else "takes counters that can be read: RAPL of the processor, NVML of the GPU (pip "
            "install nvidia-ml-py)."
        )
    )
    header = ["training", "updates", "wall time", "updates / s", "peak memory", "energy"]
    return Table("Cost of each training", header, rows, note, marked)


def _cost(seed: SeedResult) -> list[str]:
    seconds, peak, joules = seed.cost.seconds, seed.cost.peak_memory, seed.cost.joules
    return [
        f"{seed.updates:,}",
        duration(seconds),
        f"{seed.updates / seconds:,.1f}",
        bytes_text(peak) if peak else "not measured",
        energy(joules) if joules is not None else "not measured",
    ]


def settings(runs: Sequence[Run]) -> list[Table]:
    """Return the configurations, key by key: what differs, and what all runs have in common."""
    return _side_by_side("Configuration", runs, [run.config for run in runs], ("name",))


def environments(runs: Sequence[Run]) -> list[Table]:
    """Return versions and hardware, likewise."""
    return _side_by_side("Environment", runs, [run.environment for run in runs])


def _side_by_side(
    name: str,
    runs: Sequence[Run],
    contents: Sequence[Mapping[str, Any]],
    left_out: Sequence[str] = (),
) -> list[Table]:
    flat = [_flat(content) for content in contents]
    keys = [k for k in dict.fromkeys(k for content in flat for k in content) if k not in left_out]
    # A section that one run has, and that another one sets to none, stands by its keys.
    keys = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
    rows = [[key, *(_value(content, key) for content in flat)] for key in keys]
    if len(runs) == 1:
        return [Table(name, ["key", "value"], rows, text=frozenset([0, 1]))]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    same = [row[:2] for row in rows if len(set(row[1:])) == 1]
    columns = ["key", *(run.name for run in runs)]
    return [
        Table(
            f"{name}: what differs",
            columns,
            differing,
            "" if differing else "Nothing differs.",
            frozenset(range(len(differing))),
            frozenset(range(len(columns))),
        ),
        Table(
            f"{name}: what is the same in all runs",
            ["key", "value"],
            same,
            text=frozenset([0, 1]),
            folded=True,
        ),
    ]


def _value(content: Mapping[str, str], key: str) -> str:
    while key not in content:
        key, dot, _ = key.rpartition(".")
        if not dot:
            return "–"
    return content[key]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested keys as a.b; what is empty or a list is a value."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value_text(value)
    return flat
