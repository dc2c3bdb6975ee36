"""What the rankings of the arms err in: their bias to small subnets, and what seeds share."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from benchmarks.nb201.data import load_table
from benchmarks.nb201.report import BASELINE, interval, read_results
from benchmarks.nb201.supernet import parameters
from benchmarks.nb201.training import Run
from nas_dynamic.paired import Difference
from nas_dynamic.ranking import bias, tau

__all__ = ["print_rankings"]


def print_rankings(results: Path, runs: Path, table: Path) -> None:
    """Print a row for each arm and budget, of rankings by the mean loss; ± is the deviation.

    Args:
        results: the CSV; its rows whose scores are not in `runs` are left out.
        runs: folder with the scores of every architecture.
        table: the CSV of NAS-Bench-201.
    """
    rankings: dict[tuple[Any, ...], dict[int, np.ndarray]] = defaultdict(dict)
    for row in read_results(results):
        run = Run(
            **{name: row[name] for name in ("arm", "idle", "edge", "sampler")},
            **{
                name: int(row[name])
                for name in ("seed", "updates", "channels", "cells", "size", "batch")
            },
        )
        path = runs / f"{run.name}-{row['scored']}.npz"
        if path.is_file():
            key = (
                *(run.sampler, run.updates, row["scored"], run.arm, run.idle, run.edge),
                row["architectures"],
            )
            rankings[key][run.seed] = -np.load(path)["loss"].mean(1)
    everything = load_table(table)
    printed = Table(
        *("sampler", "updates", "weights", "arm", "idle", "edge", "n", "τ to the truth"),
        *("to parameters", "complexity bias", f"bias − {BASELINE}", "95% t", "between seeds"),
        "mean ranking to the truth",
    )
    for key, by_seed in sorted(rankings.items()):
        *setting, count = key
        truth = everything.stratified(int(count))
        sizes = np.array([parameters(a) for a in truth.architectures], dtype=float)
        of_seeds = list(by_seed.values())
        sampler, updates, scored, arm, idle, _ = setting
        static = rankings.get((sampler, updates, scored, BASELINE, idle, "", count), {})
        paired = [
            bias(by_seed[seed], truth.accuracy, sizes) - bias(static[seed], truth.accuracy, sizes)
            for seed in by_seed
            if seed in static and arm != BASELINE
        ]
        difference = Difference(np.array(paired)) if paired else None
        pairs = [tau(a, b) for a, b in itertools.combinations(of_seeds, 2)]
        mean_ranks = np.mean([rankdata(ranking) for ranking in of_seeds], axis=0)
        printed.add_row(
            *map(str, setting),
            str(len(of_seeds)),
            _with_deviation([tau(ranking, truth.accuracy) for ranking in of_seeds]),
            _with_deviation([tau(ranking, sizes) for ranking in of_seeds]),
            _with_deviation([bias(ranking, truth.accuracy, sizes) for ranking in of_seeds]),
            f"{difference.mean:+.3f} ({len(paired)})" if difference else "",
            interval(difference.t_interval()) if difference else "",
            f"{np.mean(pairs):.3f}" if pairs else "",
            f"{tau(mean_ranks, truth.accuracy):.3f}",
        )
    Console(width=170, highlight=False).print(printed)


def _with_deviation(values: list[float]) -> str:
    deviation = f" ±{np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{deviation}"
