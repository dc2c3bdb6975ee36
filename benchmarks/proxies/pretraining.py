"""NAS-Bench-201: evaluations until the best, by a predictor that is pre-trained on synflow as well.

Synflow, since on seeds 20 to 29 it did as well as six metrics together, takes the least time, and
needs no images. It is of a small network of each architecture: 8 channels, one cell a stage, an
image of 16 × 16 pixels. Cells that compute the same are measured once: edges without effect are
left out, and skip connections are their sources. A search measures the subnets that its predictor
is pre-trained on and those that it evaluates: their seconds stand beside the evaluations.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as PrintedTable

from benchmarks.nb201.network import Network
from benchmarks.nb201.report import append_result, rows_of
from benchmarks.nb201.search import MEASURES, column, evaluations_to_best
from benchmarks.nb201.supernet import EDGES, live_edges
from nas_dynamic import Architecture
from nas_dynamic.analysis.architecture_table import read_rows
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.search import PretrainedMLP, Surrogate
from nas_dynamic.search.proxies import METRICS

__all__ = ["SmallNetworks", "cell_text", "pretraining", "pretraining_table"]

PROXIES = ("synflow",)
BATCH = torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.long)
"""Of which synflow takes the shape."""

PREDICTOR = PretrainedMLP(subnets=500)
BATCHES = {"initial": 16, "batch": 4, "explore": 0.2}
"""Smaller than by default, chosen on seeds 20 to 29."""

MEASURED = ("parameters, MACs", "and synflow")


def pretraining(table: Path, rows: Path, *, seeds: range) -> dict[str, Any]:
    """Search with and without proxies, paired by the seed.

    Args:
        table: CSV of NAS-Bench-201.
        rows: CSV that the metrics are appended to; those that it holds are not computed again.
        seeds: of the searches.
    """
    accuracy = column(read_rows(table), "c10_val200")
    results = rows.with_name("pretraining_searches.csv")
    measured = {row["cell"]: _numbers(row) for row in rows_of(rows)}
    done = {(row["measures"], int(row["seed"])) for row in rows_of(results)}
    for seed, name in itertools.product(seeds, MEASURED):
        if (name, seed) in done:
            continue
        proxies = SmallNetworks(rows, measured)
        further = {} if name == MEASURED[0] else proxies.measures()
        strategy = Surrogate(PREDICTOR, **BATCHES)
        count = evaluations_to_best(accuracy, strategy, seed, measures={**MEASURES, **further})
        row = {"measures": name, "seed": seed, "evaluations": count}
        cost = {"networks": len(proxies.used), "seconds": f"{proxies.seconds:.2f}"}
        append_result(results, row | cost)
    return _summed(rows_of(results), seeds)


def pretraining_table(found: dict[str, Any]) -> None:
    """Print evaluations until the best, and seconds."""
    printed = PrintedTable("pre-trained on", "mean", "95%", "median", "worst", "networks", "s")
    for arm, values in found["arms"].items():
        low, high = values["interval"]
        cells = f"{values['mean']:.0f}", f"{low:.0f} to {high:.0f}", f"{values['median']:.0f}"
        cost = f"{values['networks']:.0f}", f"{values['seconds']:.1f}"
        printed.add_row(arm, *cells, str(values["worst"]), *cost)
    console = Console(width=120, highlight=False)
    console.print(printed)
    console.print(
        f"{found['seeds']} seeds, paired; with synflow less without: {found['synflow_less']}. "
        "Networks of which a search computes synflow, and the seconds of a core for that."
    )


class SmallNetworks:
    """Metrics of small networks, computed when they are asked for and kept.

    Args:
        rows: CSV that metrics are appended to.
        measured: what it holds, by cell.

    Attributes:
        used: the cells whose metrics were asked for.
    """

    def __init__(self, rows: Path, measured: dict[str, dict[str, float]]) -> None:
        self.rows, self.measured = rows, measured
        self.used: set[str] = set()

    def measures(self) -> dict[str, Callable[[Architecture], float]]:
        """Return name → architecture → value."""
        return {name: functools.partial(self._of, name) for name in PROXIES}

    @property
    def seconds(self) -> float:
        """What the metrics took that were asked for, of one core."""
        return sum(self.measured[cell]["seconds"] for cell in self.used)

    def _of(self, name: str, architecture: Architecture) -> float:
        cell = cell_text(architecture)
        self.used.add(cell)
        if cell not in self.measured:
            start = time.process_time()
            torch.manual_seed(0)
            network = Network(_only_live(architecture), channels=8, cells=1)
            row = {of: METRICS[of](network, BATCH) for of in PROXIES}
            row["seconds"] = round(time.process_time() - start, 4)
            append_result(self.rows, {"cell": cell, **row})
            self.measured[cell] = row
        return self.measured[cell][name]


def cell_text(architecture: Architecture) -> str:
    """Return what a cell computes, the same for cells that compute the same.

    Sums name their terms in one order, and a skip connection is its source. As a node that is read
    twice is written twice, the numbers of convolutions tell it from two nodes alike.
    """
    live = live_edges(architecture)

    def of_node(node: int) -> str:
        terms = [
            of_node(source) if operation == "skip_connect" else f"{operation}({of_node(source)})"
            for _, source, target, operation in live
            if target == node
        ]
        return f"({' + '.join(sorted(terms))})" if len(terms) > 1 else "".join(terms) or "x"

    convolutions = [operation for *_, operation in live if operation.startswith("nor_conv")]
    counts = (str(convolutions.count(f"nor_conv_{size}")) for size in ("1x1", "3x3"))
    return f"{of_node(3) if live else 0} {' '.join(counts)}"


def _only_live(architecture: Architecture) -> Architecture:
    live = {number: operation for number, _, _, operation in live_edges(architecture)}
    return {edge: live.get(number, "none") for number, edge in enumerate(EDGES)}


def _summed(results: list[dict[str, str]], seeds: range) -> dict[str, Any]:
    counts = {}
    found: dict[str, Any] = {"seeds": len(seeds), "arms": {}}
    chosen = sorted((r for r in results if int(r["seed"]) in seeds), key=lambda r: int(r["seed"]))
    for name in MEASURED:
        of_arm = [row for row in chosen if row["measures"] == name]
        counts[name] = np.array([int(row["evaluations"]) for row in of_arm])
        found["arms"][name] = {
            "mean": float(counts[name].mean()),
            "interval": Difference(counts[name]).bootstrap_interval(),
            "median": float(np.median(counts[name])),
            "worst": int(counts[name].max()),
            "networks": float(np.mean([int(row["networks"]) for row in of_arm])),
            "seconds": float(np.mean([float(row["seconds"]) for row in of_arm])),
        }
    without, with_synflow = (counts[name] for name in MEASURED)
    found["synflow_less"] = f"{mean_estimate(with_synflow - without):.0f}"
    return found


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "cell"}
