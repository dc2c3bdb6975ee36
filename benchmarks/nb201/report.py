"""What the scores say: means, paired differences with intervals, and seeds that are needed."""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas_dynamic.analysis.paired import Difference

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ARM",
    "BASELINE",
    "DEFAULT_EDGE",
    "SETTING",
    "TAUS",
    "append_result",
    "identity",
    "interval",
    "paired_differences",
    "print_tables",
    "read_results",
]

BASELINE = "static"
DEFAULT_EDGE = "3←0"
HALF_WIDTH = 0.02
"""Half the width that an interval of τ should have."""

Rows = list[dict[str, str]]
TAUS = {"tau": "by the accuracy", "tau_loss": "by the loss"}
"""Columns with a τ, and the score of the subnets that it is of."""
MEASURES = {name: f"τ {score}" for name, score in TAUS.items()} | {"mean_accuracy": "mean accuracy"}
"""Columns that arms are compared by."""
SETTING = (
    *("sampler", "channels", "cells", "size", "batch", "updates"),
    *("architectures", "images"),
)
REPLICAS = ("precision", "taken", "subnet_seed")
"""More columns of trainings side by side: precision of the products, updates taken of the budget,
and the seed of the subnets, which is elsewhere the seed. They are empty in other rows."""
ARM = (*SETTING, *REPLICAS[:2], "scored", "idle", "edge", "arm")
"""Columns that tell what is compared; rows that differ only in the seeds are of one arm."""


def read_results(path: Path) -> Rows:
    """Read the rows of the results.

    Raises:
        FileNotFoundError: nothing was scored yet.
        ValueError: a run has two rows, as two processes at once may leave them.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no results yet; `python -m benchmarks.nb201 run` first")
    rows = [dict.fromkeys(REPLICAS, "") | row for row in rows_of(path)]
    numbers = Counter(map(identity, rows))
    twice = [
        ", ".join(f"{name} {value}" for name, value in run if value)
        for run, number in numbers.items()
        if number > 1
    ]
    if twice:
        raise ValueError(f"{path} has more than one row of\n" + "\n".join(twice))
    return rows


def identity(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return what tells a row from others, as pairs of column and value."""
    return tuple((name, str(row.get(name, ""))) for name in (*ARM, "subnet_seed", "seed"))


def rows_of(path: Path) -> Rows:
    """Return the rows that `append_result` has written; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_result(path: Path, row: dict[str, Any]) -> None:
    """Append a row; a column that the file has not is added, empty in the rows before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            columns, rows = list(reader.fieldnames or ()), list(reader)
    if row.keys() <= set(columns):
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns, lineterminator="\n").writerow(row)
        return
    columns = list(dict.fromkeys([*columns, *row]))
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
    partial.replace(path)


def paired_differences(
    rows: Rows, measure: str = "tau", against: str = BASELINE
) -> dict[tuple[str, ...], Difference]:
    """Return differences by the columns `ARM`, paired by seed within the setting.

    An arm with an edge is compared with the same edge `against`, if that was run; all others
    with the default edge, or that of arms without edges.
    """
    baseline = {
        (*_pair_key(row), row["edge"]): float(row[measure]) for row in rows if row["arm"] == against
    }
    differences = defaultdict(list)
    for row in rows:
        if row["arm"] == against:
            continue
        for edge in (row["edge"], DEFAULT_EDGE, ""):
            value = baseline.get((*_pair_key(row), edge))
            if value is not None:
                differences[_arm_key(row)].append(float(row[measure]) - value)
                break
    return {key: Difference(np.array(values)) for key, values in differences.items()}


def _pair_key(row: dict[str, str]) -> tuple[str, ...]:
    keys = (*SETTING, *REPLICAS, "scored", "idle", "seed")
    return tuple(row.get(key, "") for key in keys)


def _arm_key(row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row.get(key, "") for key in ARM)


def print_tables(path: Path, seeds: Collection[int] | None = None, against: str = BASELINE) -> None:
    """Print a table for each setting, kind of weights and measure, of all seeds or some."""
    from rich.console import Console  # rows are also written where there is no rich

    rows = [row for row in read_results(path) if seeds is None or int(row["seed"]) in seeds]
    console = Console(width=154, highlight=False)
    blocks = defaultdict(list)
    for row in rows:
        blocks[tuple(row[key] for key in (*SETTING, *REPLICAS[:2], "scored"))].append(row)
    for members in blocks.values():
        first = members[0]
        for measure, title in MEASURES.items():
            console.print(
                f"\n{title}; {first['scored']} weights, "
                f"{first['sampler']} sampling, "
                f"{int(first['updates']):,} updates of batch {first['batch']}, "
                f"C={first['channels']}, N={first['cells']}, {first['size']} pixels wide, "
                f"{first['architectures']} architectures on {first['images']} images. "
                f"Parameter count: {float(first['tau_parameters']):.3f}, "
                f"MACs: {float(first['tau_macs']):.3f}"
                + (f". Side by side, {first['precision']}" if first["precision"] else "")
                + (f", {first['taken']} updates taken" if first["taken"] else "")
            )
            differences = paired_differences(rows, measure, against)
            console.print(_table(members, measure, differences, against))


def _table(
    rows: Rows, measure: str, differences: dict[tuple[str, ...], Difference], against: str
) -> Table:
    from rich.table import Table

    table = Table(
        *("arm", "idle", "edge", "n", "mean", "sd", "of scoring"),
        *("regret@1", "regret@10", f"− {against}", "n", "95% t", "95% bootstrap"),
        f"n for ±{HALF_WIDTH:g}",
    )
    by_arm = defaultdict(list)
    for row in rows:
        by_arm[_arm_key(row)].append(row)
    for key, members in by_arm.items():
        values = _column(members, measure)
        of_scoring = ""
        if measure in TAUS:
            of_scoring = f"{np.sqrt(np.mean(_column(members, f'{measure}_deviation') ** 2)):.3f}"
        cells = [
            members[0]["arm"],
            members[0]["idle"],
            members[0]["edge"],
            str(len(members)),
            f"{values.mean():.3f}",
            f"{values.std(ddof=1):.3f}" if len(members) > 1 else "",
            of_scoring,
            f"{_column(members, 'regret_1').mean():.2f}",
            f"{_column(members, 'regret_10').mean():.2f}",
        ]
        if key in differences:
            difference = differences[key]
            cells += [
                f"{difference.mean:+.3f}",
                str(len(difference.values)),
                interval(difference.t_interval()),
                interval(difference.bootstrap_interval()),
                str(difference.seeds_needed(HALF_WIDTH) or ""),
            ]
        table.add_row(*cells)
    return table


def _column(rows: Rows, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def interval(ends: tuple[float, float]) -> str:
    """Return both ends as text; empty for an interval that is not bounded."""
    return f"{ends[0]:+.3f} … {ends[1]:+.3f}" if math.isfinite(ends[0]) else ""
