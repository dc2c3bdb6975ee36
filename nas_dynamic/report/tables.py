"""The tables of a report."""

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
    estimated,
    few,
    joined,
    percent,
    value_text,
)
from nas_dynamic.report.run_folder import Run, Seed
from nas_dynamic.report.statistics import Ranked, pareto
from nas_dynamic.space import architecture_text

__all__ = ["Table", "cost", "diagnostics", "environments", "pareto_sets", "scores", "settings"]

PARETO_ROWS = 40
NOT_RECORDED = "not recorded"


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


def scores(runs: Sequence[Run]) -> Table:
    """What each supernet's subnets reach."""
    rows = []
    for run in runs:
        for seed in run.seeds:
            best = max(seed.subnets, key=lambda s: (s.accuracy, -comparable_loss(s.loss)))
            accuracies = [subnet.accuracy for subnet in seed.subnets]
            rows.append(
                [
                    f"{run.name}, seed {seed.seed}",
                    f"{len(accuracies):,}",
                    percent(float(np.mean(accuracies))),
                    percent(best.accuracy),
                    f"{best.parameters:,}",
                    NOT_RECORDED
                    if seed.validation_images is None
                    else f"{seed.validation_images:,}",
                ]
            )
    return Table(
        "Subnets with inherited weights",
        ["supernet", "subnets", "mean accuracy", "best accuracy", "its parameters", "images"],
        rows,
        "Images are those of the validation set, which the subnets are scored on.",
    )


def pareto_sets(runs: Sequence[Run]) -> list[Table]:
    """The Pareto set of each run, small subnets first."""
    return [_pareto_set(run) for run in runs]


def _pareto_set(run: Run) -> Table:
    sizes, accuracies, macs = run.parameters(), run.accuracies().mean(0), run.macs()
    best = np.flatnonzero(pareto(sizes, accuracies))
    best = best[np.argsort(sizes[best], kind="stable")]
    truth = [run.truth.get(run.keys[n]) for n in best[:PARETO_ROWS]] if run.truth else None
    rows = []
    for place, n in enumerate(best[:PARETO_ROWS]):
        row = [f"{sizes[n]:,}", NOT_RECORDED if macs is None else few(float(macs[n]))]
        row.append(percent(float(accuracies[n])))
        if truth is not None:
            true = truth[place]
            row.append("unknown" if true is None else percent(true))
        rows.append([*row, architecture_text(run.subnets[n].architecture)])
    header = ["parameters", "MACs", "accuracy"]
    header += ["trained alone"] if truth is not None else []
    return Table(
        f"Pareto set of {run.name}",
        [*header, "subnet"],
        rows,
        f"The first {PARETO_ROWS} of {len(best)}." if len(best) > PARETO_ROWS else "",
        text=frozenset([len(header)]),
    )


def diagnostics(group: Ranked) -> Table:
    """All statistics of all rankings of the same subnets."""
    rows = group.diagnostics.rows
    columns = list(next(iter(rows.values())))
    header = ["ranking", *(f"{c}, points" if c == "regret" else c for c in columns)]
    body = []
    for name, row in rows.items():
        body.append([name, *(_statistic(column, row.get(column)) for column in columns)])
    return Table(
        f"Diagnostics over {len(group.truth)} subnets",
        header,
        body,
        "95% bootstrap intervals over the subnets; in the row random, what chance alone gives. "
        "recall@k: share of the k best that are found among the k ranked first. Regret: what the "
        "subnet ranked first lacks of the best one, trained alone. Complexity bias: above 0, small "
        "subnets are ranked higher than they deserve. Matched τ: over pairs of subnets of like "
        "complexity, what a ranking knows beside size. Complexity-convergence is not there: it "
        "needs the losses of subnets trained alone, which are not recorded. Formulas: "
        "docs/diagnostics.md.",
        frozenset(n for n, name in enumerate(rows) if name in group.diagnostics.baselines),
    )


def _statistic(column: str, estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    if column != "regret":
        return estimated(estimate, ".2f")
    scaled = Estimate(
        100 * estimate.value, 100 * estimate.low, 100 * estimate.high, estimate.subnets
    )
    return estimated(scaled, ".1f")


def cost(runs: Sequence[Run]) -> Table:
    """Wall time, memory and energy of each training."""
    supernets = [(run, seed) for run in runs for seed in run.seeds]
    rows = [[f"{run.name}, seed {seed.seed}", *_cost(seed)] for run, seed in supernets]
    marked: frozenset[int] = frozenset()
    times = [seed.seconds for _, seed in supernets if seed.seconds is not None]
    if len(times) == len(supernets) > 1:
        rows.append(["all", "", duration(sum(times)), "", "", ""])
        marked = frozenset([len(times)])
    sources = {source for _, s in supernets if s.cost for source in s.cost.energy_of}
    kinds = {seed.cost.memory_of for _, seed in supernets if seed.cost}
    note = "Of the training alone, over all its starts where it was stopped and resumed."
    if kinds:
        note += f" Memory is the peak of the {joined(sorted(kinds))}"
        note += ": Python, torch and the images included." if kinds != {"device"} else "."
    if sources:
        note += f" Energy is of {joined(sorted(sources))}, whatever else ran there."
    else:
        note += " Energy takes counters that can be read: RAPL of the processor, NVML of the GPU "
        note += "(pip install nvidia-ml-py)."
    header = ["training", "updates", "wall time", "updates / s", "peak memory", "energy"]
    return Table("Cost of each training", header, rows, note, marked)


def _cost(seed: Seed) -> list[str]:
    seconds, updates = seed.seconds, seed.updates
    known = seed.cost is not None
    peak = seed.cost.peak_memory if seed.cost else None
    joules = seed.cost.joules if seed.cost else None
    return [
        NOT_RECORDED if updates is None else f"{updates:,}",
        NOT_RECORDED if seconds is None else duration(seconds),
        f"{updates / seconds:,.1f}" if updates is not None and seconds else NOT_RECORDED,
        bytes_text(peak) if peak else "not measured" if known else NOT_RECORDED,
        energy(joules) if joules is not None else "not measured",
    ]


def settings(runs: Sequence[Run]) -> list[Table]:
    """The configurations, key by key: what differs, and what all runs have in common."""
    return _side_by_side("Configuration", runs, [run.config for run in runs], ("name",))


def environments(runs: Sequence[Run]) -> list[Table]:
    """Versions and hardware, likewise."""
    return _side_by_side("Environment", runs, [run.environment for run in runs])


def _side_by_side(
    name: str,
    runs: Sequence[Run],
    contents: Sequence[Mapping[str, Any] | None],
    left_out: Sequence[str] = (),
) -> list[Table]:
    flat = [None if content is None else _flat(content) for content in contents]
    if not any(flat):
        return [Table(name, [], [], "Not recorded.")]
    keys = [k for k in dict.fromkeys(k for c in flat for k in c or {}) if k not in left_out]
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


def _value(content: Mapping[str, str] | None, key: str) -> str:
    if content is None:
        return NOT_RECORDED
    while key not in content:
        key, dot, _ = key.rpartition(".")
        if not dot:
            return "–"
    return content[key]


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys as a.b; what is empty or a list is a value."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value_text(value)
    return flat
