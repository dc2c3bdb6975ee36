"""Trainings that were done, in a CSV, and differences of their arms over paired seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.elastic_lm.training import Run
from benchmarks.nb201.report import Rows, append_result
from nas_dynamic.analysis.paired import Difference

__all__ = ["MEASURES", "append", "by_seed", "print_against"]

MEASURES = ("mean", "smallest", "largest")


def append(path: Path, key: Mapping[str, object], run: Run) -> None:
    """Write what a training came to, after the entries that say which one it is."""
    measured = {name: f"{value:.6g}" for name, value in dataclasses.asdict(run).items()}
    append_result(path, {**key, **measured})


def by_seed(rows: Rows, **key: object) -> dict[int, dict[str, float]]:
    """Return seed → measures of the rows that have these entries."""
    wanted = {name: str(value) for name, value in key.items()}
    return {
        int(row["seed"]): {name: float(row[name]) for name in MEASURES}
        for row in rows
        if wanted.items() <= row.items()
    }


def print_against(reference: str, runs: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    """Print the measures of one arm, and differences of the others to it, with 95% intervals.

    Args:
        reference: an arm.
        runs: arm → seed → measures.
    """
    print(" " * 29 + "".join(f"{measure:>27}" for measure in MEASURES))
    for arm, of_seeds in runs.items():
        paired = sorted(of_seeds.keys() & runs[reference].keys())
        if not paired:
            continue
        print(f"{arm:19}{len(paired):2} seeds  ", end="")
        for measure in MEASURES:
            values = np.array([of_seeds[seed][measure] for seed in paired])
            others = np.array([runs[reference][seed][measure] for seed in paired])
            text = f"{Difference(values - others):+.4f}"
            print(f"{f'{values.mean():.4f}' if arm == reference else text:>27}", end="")
        print()
