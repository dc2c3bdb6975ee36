"""Metrics on rebuilt networks against the published scores of NAS-Bench-Suite-Zero.

Its networks of NAS-Bench-201 are rebuilt, with weights, images and batches of their own, so that
only the ranks can agree. Two samples: `cifar10`, for the scores that need labels or gradients; and
`svhn`, the only task of classified images for which NASWOT and zen were published. Images are of
CIFAR-10 in both, as SVHN's are not at hand: both metrics read no labels, and zen no images.
"""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table as PrintedTable

from benchmarks.nb201.data import Images, load_images, parse_architecture
from benchmarks.nb201.network import Network
from benchmarks.nb201.report import append_result, rows_of
from benchmarks.proxies.tables import zero_cost
from nas_dynamic.analysis.ranking import bootstrap_interval, spearman_rho
from nas_dynamic.complexity import count_macs, count_parameters
from nas_dynamic.search.proxies import METRICS

__all__ = ["agreement", "agreement_table"]

PUBLISHED = {
    "cifar10": {
        "gradient_norm": "grad_norm",
        "snip": "snip",
        "synflow": "synflow",
        "jacobian_covariance": "jacov",
    },
    "svhn": {"naswot": "nwot", "zen": "zen"},
}
"""Task → metric → column of the published score."""


def agreement(
    scores: Path, images: Path, rows: Path, *, networks: int, batch: int, channels: int, cells: int
) -> dict[str, Any]:
    """Compute the metrics of random networks of each task, and compare.

    Args:
        scores: CSV of NAS-Bench-Suite-Zero.
        images: CIFAR-10, a folder or its tar.
        rows: CSV that values are appended to; those that it holds are not computed again.
        networks: of each task.
        batch: images.
        channels: width of the networks, 16 in the benchmark.
        cells: in each stage, 5 in the benchmark.
    """
    table = zero_cost(scores)
    pixels = load_images(images, "train", 32, rows.parent).balanced(batch)
    for task, metrics in PUBLISHED.items():
        published = _sample(table, task, networks)
        _measure(published, task, metrics, pixels, rows, channels, cells)
    return {
        "networks": networks,
        "batch": batch,
        "tasks": {
            task: _compare(_sample(table, task, networks), task, metrics, rows)
            for task, metrics in PUBLISHED.items()
        },
    }


def agreement_table(found: dict[str, Any]) -> None:
    """Print ρ between ours and theirs, and of both with the accuracy."""
    printed = PrintedTable(
        "task", "metric", "n", "ρ with published", "95%", "ρ with accuracy", "published", "s each"
    )
    for task, by_metric in found["tasks"].items():
        for metric, values in by_metric.items():
            if metric == "counts":
                continue
            low, high = values["interval"]
            printed.add_row(
                task,
                metric,
                str(values["n"]),
                f"{values['with_published']:.3f}",
                f"{low:.3f} to {high:.3f}",
                f"{values['with_accuracy']:.3f}",
                f"{values['published_with_accuracy']:.3f}",
                f"{values['seconds']:.2f}",
            )
    console = Console(width=120, highlight=False)
    console.print(printed)
    for task, by_metric in found["tasks"].items():
        counts = by_metric["counts"]
        console.print(
            f"{task}: parameters are off by {counts['parameters_off']:g} at most. Published flops "
            "less MACs are a constant, an amount a convolution (its batch norm and ReLU) and one a "
            f"pooling, but for {counts['flops_off']:g} at most; all in millions."
        )


def _sample(table: Any, task: str, networks: int) -> Any:
    rows = table[(table.space == "nasbench201") & (table.task == task)]
    columns = [*PUBLISHED[task].values(), "val_accuracy", "params", "flops"]
    usable = rows.dropna(subset=columns)
    return usable.sample(min(networks, len(usable)), random_state=0)


def _measure(
    published: Any, task: str, metrics: Any, pixels: Images, rows: Path, channels: int, cells: int
) -> None:
    done = {(row["task"], row["arch"]) for row in rows_of(rows)}
    (batch,) = pixels.batches(len(pixels.classes))
    for number, arch in enumerate(published["arch"]):
        if (task, arch) in done:
            continue
        torch.manual_seed(number)
        network = Network(parse_architecture(arch), channels, cells)
        row: dict[str, Any] = {"task": task, "arch": arch}
        for name in ("gradient_norm", "snip", "synflow", "jacobian_covariance", "naswot", "zen"):
            row[name] = row[f"{name}_s"] = ""
            if name in metrics:
                start = time.perf_counter()
                row[name] = METRICS[name](network, batch)
                row[f"{name}_s"] = f"{time.perf_counter() - start:.3f}"
        row["parameters"] = count_parameters(network)
        row["macs"] = count_macs(network, batch[0][:1])
        append_result(rows, row)


def _compare(published: Any, task: str, metrics: Any, rows: Path) -> dict[str, Any]:
    ours: dict[str, dict[str, str]] = {
        row["arch"]: row for row in rows_of(rows) if row["task"] == task
    }
    ordered = [ours[arch] for arch in published["arch"]]
    accuracy = published["val_accuracy"].to_numpy()
    found: dict[str, Any] = defaultdict(dict)
    for metric, column in metrics.items():
        values, theirs = np.array([float(row[metric]) for row in ordered]), published[column]
        of_published = spearman_rho(values, theirs.to_numpy())
        found[metric] = {
            "n": len(values),
            "with_published": of_published,
            "interval": bootstrap_interval(spearman_rho, values, theirs.to_numpy()),
            "with_accuracy": spearman_rho(values, accuracy),
            "published_with_accuracy": spearman_rho(theirs.to_numpy(), accuracy),
            "seconds": float(np.median([float(row[f"{metric}_s"]) for row in ordered])),
        }
    parameters = np.array([float(row["parameters"]) for row in ordered]) / 1e6
    macs = np.array([float(row["macs"]) for row in ordered]) / 1e6
    architectures = [list(parse_architecture(row["arch"]).values()) for row in ordered]
    convs = [sum(o.startswith("nor_conv") for o in a) for a in architectures]
    pools = [a.count("avg_pool_3x3") for a in architectures]
    design = np.stack([np.ones(len(macs)), convs, pools], 1)
    beyond = published["flops"].to_numpy() - macs
    fitted = design @ np.linalg.lstsq(design, beyond, rcond=None)[0]
    found["counts"] = {
        "parameters_off": float(np.abs(parameters - published["params"].to_numpy()).max()),
        "flops_off": float(np.abs(beyond - fitted).max()),
    }
    return dict(found)
