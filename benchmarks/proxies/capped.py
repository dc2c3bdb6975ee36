"""EEEA-Net: NSGA-II with and without a first population of small networks, on NAS-Bench-201.

Two objectives, `c10_val200` and the latency on a telephone, `lat_ms_pixel3`. The cap is the lower
quartile of the parameters. The hypervolume is the share of the box from 10% and the table's
greatest latency to the table's best values; it is compared after some numbers of evaluations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as PrintedTable

from benchmarks.nb201.search import FAULTY, MEASURES, column
from benchmarks.nb201.supernet import SPACE
from nas_dynamic.analysis.architecture_table import read_rows
from nas_dynamic.analysis.paired import mean_estimate
from nas_dynamic.search import Evolution, Objective, RandomSearch, search
from nas_dynamic.space import key

__all__ = ["capped", "capped_table"]

AFTER = (50, 100, 200, 400)
OBJECTIVES = [Objective("accuracy", maximize=True), Objective("latency")]
CHANCE = 10.0


def capped(table: Path, *, seeds: range) -> dict[str, Any]:
    """Search with and without the cap, paired by the seed, and at random.

    Args:
        table: CSV of NAS-Bench-201.
        seeds: of the searches.
    """
    rows = [row for row in read_rows(table) if float(row["lat_ms_pixel3"]) >= FAULTY]
    accuracy, latency = column(rows, "c10_val200"), column(rows, "lat_ms_pixel3")
    values = {k: {"accuracy": accuracy[k], "latency": latency[k]} for k in accuracy}
    sizes = [MEASURES["parameters"](architecture) for architecture in SPACE]
    cap = float(np.quantile(sizes, 0.25))
    # Networks whose latency is faulty all have the accuracy of chance: nothing in the box.
    nothing = {"accuracy": CHANCE, "latency": max(latency.values())}
    arms = {
        "capped": Evolution(initial_at_most={"parameters": cap}),
        "not capped": Evolution(),
        "random": RandomSearch(),
    }
    volumes: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    for seed in seeds:
        for name, strategy in arms.items():
            found = search(
                SPACE,
                lambda drawn: [values.get(key(a), nothing) for a in drawn],
                OBJECTIVES,
                budget=max(AFTER),
                strategy=strategy,
                measures=MEASURES,
                seed=seed,
            )
            box = {
                "worst": [CHANCE, nothing["latency"]],
                "best": [max(accuracy.values()), min(latency.values())],
            }
            volumes[name].append(found.hypervolume(**box)[np.array(AFTER) - 1])
    plain = np.array(volumes["not capped"])
    return {
        "seeds": len(seeds),
        "cap": cap,
        "reference": box["worst"],
        "ideal": box["best"],
        "arms": {name: np.mean(of_seeds, axis=0).tolist() for name, of_seeds in volumes.items()},
        "less_not_capped": {
            name: [f"{mean_estimate(d):.4f}" for d in (np.array(of_seeds) - plain).T]
            for name, of_seeds in volumes.items()
            if name != "not capped"
        },
    }


def capped_table(found: dict[str, Any]) -> None:
    """Print hypervolumes after some numbers of evaluations."""
    printed = PrintedTable("first population", *(f"after {count}" for count in AFTER))
    for arm, values in found["arms"].items():
        printed.add_row(arm, *(f"{value:.4f}" for value in values))
    for arm, differences in found["less_not_capped"].items():
        printed.add_row(f"{arm} − not capped", *differences)
    console = Console(width=120, highlight=False)
    console.print(printed)
    console.print(
        f"{found['seeds']} seeds, paired; cap {found['cap']:,.0f} parameters; reference point "
        f"{found['reference'][0]:g}% and {found['reference'][1]:g} ms, the other corner "
        f"{found['ideal'][0]:g}% and {found['ideal'][1]:g} ms."
    )
