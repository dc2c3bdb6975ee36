"""The measured differences that the package carries, for what `nas-dynamic demo` cannot measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.nb201.report import Rows, paired_differences, read_results
from nas_dynamic.storage.journal import write_json

__all__ = ["MEASURED", "measured_differences", "write_measured"]

MEASURED = Path("nas_dynamic/experiment/measured.json")

MEASURES = ("tau_loss", "tau", "mean_accuracy", "regret_1", "regret_10")
BUDGETS = ("5000", "20000", "40000")
ARMS = {"calq-ms": "the defaults", "poly": "a linear decay for all"}
AGAINST = {"static": "static training, cosine decay", "poly": "static training, linear decay"}
SETTING = {"sampler": "uniform", "channels": "8", "cells": "1", "size": "16", "batch": "64"}
SETTING |= {"architectures": "1000", "images": "5120", "scored": "last", "idle": "coast"}


def measured_differences(rows: Rows) -> list[dict[str, Any]]:
    """Return for each budget what the defaults and a linear decay have more than another arm."""
    found = []
    rows = [row for row in rows if SETTING.items() <= row.items()]
    for against, control in AGAINST.items():
        for arm, name in ARMS.items():
            for updates in BUDGETS:
                of_budget = [row for row in rows if row["updates"] == updates]
                entry: dict[str, Any] = {"training": name, "against": control}
                entry["updates"] = int(updates)
                for measure in MEASURES:
                    for key, difference in paired_differences(of_budget, measure, against).items():
                        if key[-1] == arm and key[-2] in ("3←0", ""):
                            entry["pairs"] = len(difference.values)
                            ends = [difference.mean, *difference.t_interval()]
                            entry[measure] = [round(end, 5) for end in ends]
                if "pairs" in entry:
                    found.append(entry)
    return found


def write_measured(results: Path, path: Path = MEASURED) -> None:
    """Write them with what they are of."""
    content = {
        "of": "NAS-Bench-201 on CIFAR-10, reduced (16×16 pixels, C=8, N=1); 1,000 subnets; τ to "
        "their published accuracy; idle parameters coast in both; paired seeds, 95% intervals "
        "(Student's t)",
        "by": "python -m benchmarks.nb201 run",
        "differences": measured_differences(read_results(results)),
    }
    write_json(path, content)
