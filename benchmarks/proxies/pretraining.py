"""NAS-Bench-201: evaluations until the best, by a predictor that is pre-trained on proxies.

The metrics are of a small network of each architecture: 8 channels, one cell a stage, 16 images of
16 × 16 pixels. Edges without effect are left out, so that architectures that compute the same are
measured once. What a search needs are the metrics of the subnets that the predictor is pre-trained
on: their seconds stand beside the evaluations that they save.
"""

from __future__ import annotations

import csv
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as PrintedTable

from benchmarks.nb201.data import load_images
from benchmarks.nb201.network import Network
from benchmarks.nb201.report import append_result
from benchmarks.nb201.search import MEASURES, column, evaluations_to_best
from benchmarks.nb201.supernet import EDGES, SPACE, live_edges
from nas_dynamic import Architecture
from nas_dynamic.analysis.architecture_table import read_rows
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.search import PretrainedMLP, Surrogate
from nas_dynamic.search.proxies import METRICS

__all__ = ["pretraining", "pretraining_table"]

PROXIES = ("synflow", "naswot", "jacobian_covariance")
PREDICTOR = PretrainedMLP()


def pretraining(
    table: Path, images: Path, rows: Path, *, seeds: range, architectures: int | None = None
) -> dict[str, Any]:
    """Search with and without proxies, paired by the seed.

    Args:
        table: CSV of NAS-Bench-201.
        images: CIFAR-10, a folder or its tar.
        rows: CSV that the metrics are appended to; those that it holds are not computed again.
        seeds: of the searches.
        architectures: measure so many and search nothing.
    """
    pixels = load_images(images, "train", 16, rows.parent).balanced(16)
    (batch,) = pixels.batches(16)
    measured = _measured(batch, rows, architectures)
    if architectures is not None:
        return {}
    accuracy = column(read_rows(table), "c10_val200")
    proxies = {name: functools.partial(_look_up, measured, name) for name in PROXIES}
    arms = {"parameters, MACs": {}, "and proxies": proxies}
    counts: dict[str, list[int]] = {name: [] for name in arms}
    results = rows.with_name("pretraining_searches.csv")
    done = {(row["arm"], int(row["seed"])): int(row["evaluations"]) for row in _read(results)}
    for seed in seeds:
        for name, further in arms.items():
            count = done.get((name, seed))
            if count is None:
                options = {"measures": {**MEASURES, **further}}
                count = evaluations_to_best(accuracy, Surrogate(PREDICTOR), seed, **options)
                append_result(results, {"arm": name, "seed": seed, "evaluations": count})
            counts[name].append(count)
    seconds = float(np.mean([float(row["seconds"]) for row in _read(rows)]))
    found: dict[str, Any] = {
        "seeds": len(seeds),
        "subnets": PREDICTOR.subnets,
        "seconds_a_subnet": seconds,
        "arms": {},
    }
    for name, made in counts.items():
        found["arms"][name] = {
            "mean": float(np.mean(made)),
            "interval": Difference(np.array(made)).bootstrap_interval(),
            "median": float(np.median(made)),
            "worst": max(made),
        }
    less = np.array(counts["and proxies"]) - np.array(counts["parameters, MACs"])
    found["proxies_less"] = f"{mean_estimate(less):.0f}"
    return found


def pretraining_table(found: dict[str, Any]) -> None:
    """Print evaluations until the best, and seconds."""
    printed = PrintedTable("pre-trained on", "mean", "95%", "median", "worst")
    for arm, values in found["arms"].items():
        low, high = values["interval"]
        cells = f"{values['mean']:.0f}", f"{low:.0f} to {high:.0f}"
        printed.add_row(arm, *cells, f"{values['median']:.0f}", str(values["worst"]))
    console = Console(width=120, highlight=False)
    console.print(printed)
    seconds = found["seconds_a_subnet"]
    console.print(
        f"{found['seeds']} seeds, paired; with proxies less without: {found['proxies_less']}. The "
        f"proxies take {seconds:.3f} s a subnet on one core of a busy machine, "
        f"{seconds * found['subnets']:.0f} s for the {found['subnets']:,} of the pre-training."
    )


def _live(architecture: Architecture) -> str:
    """Return the architecture without edges that have no effect."""
    live = {number: operation for number, _, _, operation in live_edges(architecture)}
    return "|".join(live.get(number, "none") for number in range(len(EDGES)))


def _measured(
    batch: tuple[torch.Tensor, torch.Tensor], rows: Path, count: int | None
) -> dict[str, dict[str, float]]:
    measured = {row["architecture"]: _numbers(row) for row in _read(rows)}
    for live in list(dict.fromkeys(map(_live, SPACE)))[:count]:
        if live not in measured:
            start = time.perf_counter()
            torch.manual_seed(0)
            architecture = dict(zip(EDGES, live.split("|"), strict=True))
            network = Network(architecture, channels=8, cells=1)
            row = {name: METRICS[name](network, batch) for name in PROXIES}
            row["seconds"] = round(time.perf_counter() - start, 4)
            append_result(rows, {"architecture": live, **row})
            measured[live] = row
    return measured


def _look_up(
    measured: Mapping[str, Mapping[str, float]], name: str, architecture: Architecture
) -> float:
    return measured[_live(architecture)][name]


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "architecture"}


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))
