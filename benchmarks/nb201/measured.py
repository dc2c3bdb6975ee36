"""The measured differences that the package carries, for what `nas-dynamic demo` cannot measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.nb201.report import Rows, paired_differences, read_results
from nas_dynamic.storage.journal import write_json

__all__ = ["MEASURED", "measured_differences", "write_measured"]

MEASURED = Path("nas_dynamic/experiment/measured.json")

MEASURES = ("tau_loss", "tau", "mean_accuracy", "regret_1", "regret_10")
LEAST_PAIRS = 3
BUDGETS = ("5000", "20000", "36000", "40000")
ARMS = {
    "calq": "the defaults",
    "calq-ms": "the defaults and momentum separation",
    "poly": "a linear decay for all",
}
AGAINST = {"static": "static training, cosine decay", "poly": "static training, linear decay"}
COMMON = {"sampler": "uniform", "batch": "64", "scored": "last"}
REDUCED = {"channels": "8", "cells": "1", "size": "16", "architectures": "1000", "images": "5120"}
SIZES = {
    "the paper's": {"channels": "16", "cells": "5", "size": "32", "idle": "freeze"},
    "reduced": REDUCED | {"idle": "freeze"},
    "reduced, coasting": REDUCED | {"idle": "coast"},
}


def measured_differences(rows: Rows) -> list[dict[str, Any]]:
    """Return what three trainings have more than another arm, by size and budget.

    Args:
        rows: of all sizes.
    """
    found = []
    for size, setting in SIZES.items():
        of_size = [row for row in rows if (COMMON | setting).items() <= row.items()]
        for against, control in AGAINST.items():
            for arm, name in ARMS.items():
                for updates in BUDGETS:
                    of_budget = [row for row in of_size if row["updates"] == updates]
                    entry = _entry(of_budget, arm, against)
                    if entry:
                        about = {"training": name, "against": control, "size": size}
                        found.append(about | {"updates": int(updates)} | entry)
    return found


def _entry(rows: Rows, arm: str, against: str) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for measure in MEASURES:
        for key, difference in paired_differences(rows, measure, against).items():
            known = key[-1] == arm and key[-2] in ("3←0", "")
            if known and len(difference.values) >= LEAST_PAIRS:
                entry["pairs"] = len(difference.values)
                ends = [difference.mean, *difference.t_interval()]
                entry[measure] = [round(end, 5) for end in ends]
    return entry


def write_measured(results: Path, path: Path = MEASURED) -> None:
    """Write them with what they are of; replicas' results lie beside those of single runs."""
    content = {
        "of": "NAS-Bench-201 on CIFAR-10, at the paper's size (one sequence of subnets, a GPU) "
        "and reduced (16×16 pixels, C=8, N=1), where idle parameters freeze, the default, or "
        "coast; 500 and 1,000 subnets; τ to their published accuracy; paired seeds, 95% intervals "
        "(Student's t)",
        "by": "python -m benchmarks.nb201 run and python -m benchmarks.nb201.replicas train",
        "differences": measured_differences(
            read_results(results) + read_results(results.with_stem(f"{results.stem}_replicas"))
        ),
    }
    write_json(path, content)
