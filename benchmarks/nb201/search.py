"""Search on NAS-Bench-201's table: evaluations to the best architecture, exactness under limits.

    python -m benchmarks.nb201.search --table TABLE            # some ten minutes on one CPU core

The table is a CSV with one row an architecture: `arch_str`, `c10_val200`, `c10_test200` and
`lat_ms_pixel3`. Looking a row up is the evaluation; nothing is trained.

1. How many evaluations until the one architecture with the best `c10_val200` is found.
2. How many until the best `c10_test200` that a latency limit allows is found.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from benchmarks.nb201.data import parse_architecture
from benchmarks.nb201.supernet import SPACE, macs, parameters
from nas_dynamic import Architecture
from nas_dynamic.analysis.architecture_table import read_rows
from nas_dynamic.analysis.paired import Difference
from nas_dynamic.search import (
    Evolution,
    GradientBoosting,
    Objective,
    PretrainedMLP,
    RandomSearch,
    Strategy,
    Surrogate,
    search,
)
from nas_dynamic.space import Key, key

STRATEGIES: dict[str, Strategy] = {
    "random": RandomSearch(),
    "evolution": Evolution(),
    "LightGBM, ranks": Surrogate(GradientBoosting()),
    "LightGBM, values": Surrogate(GradientBoosting(), ranks=False),
    "pre-trained predictor": Surrogate(PretrainedMLP()),
}
MEASURES = {"parameters": parameters, "macs": macs}
LIMITED = ("evolution", "LightGBM, ranks")
LIMITS = (5, 8, 12, 16)
FAULTY = 0.5
"""Latencies below this many ms are faulty in the source; their rows are dropped."""

Values = dict[Key, float]


def column(rows: list[dict[str, str]], name: str) -> Values:
    return {key(parse_architecture(row["arch_str"])): float(row[name]) for row in rows}


def evaluations_to_best(
    values: Values,
    strategy: Strategy,
    seed: int,
    latencies: Values | None = None,
    limit: float = np.inf,
    measures: Mapping[str, Callable[[Architecture], float]] = MEASURES,
) -> int:
    """Count evaluations until the best architecture within the limit is found: the exact one."""
    measures = dict(measures)
    if latencies is not None:
        measures["latency"] = lambda a: latencies.get(key(a), np.inf)
        values = {k: v for k, v in values.items() if latencies.get(k, np.inf) <= limit}
    best = max(values.values())
    result = search(
        SPACE,
        lambda architectures: [{"accuracy": values[key(a)]} for a in architectures],
        [Objective("accuracy", maximize=True)],
        budget=len(values),
        strategy=strategy,
        measures=measures,
        at_most=None if latencies is None else {"latency": limit},
        until=lambda evaluation: evaluation.values["accuracy"] == best,
        seed=seed,
    )
    assert result.best.values["accuracy"] == best
    return len(result.evaluations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="CSV of NAS-Bench-201")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = read_rows(options.table)
    values = column(rows, "c10_val200")
    expected = (len(values) + 1) / 2
    print(f"Evaluations to the best of {len(values):,} by c10_val200, {len(seeds)} seeds;")
    print(f"random search needs {expected:,.0f} in expectation.\n")
    print("| strategy | mean | 95% interval | median | worst | random / mean |")
    print("|---|---|---|---|---|---|")
    for name, strategy in STRATEGIES.items():
        counts = [evaluations_to_best(values, strategy, seed) for seed in seeds]
        low, high = Difference(np.array(counts)).bootstrap_interval()
        print(
            f"| {name} | {np.mean(counts):,.0f} | {low:,.0f} to {high:,.0f} | "
            f"{np.median(counts):,.0f} | {max(counts):,} | {expected / np.mean(counts):.1f} |",
            flush=True,
        )
    kept = [row for row in rows if float(row["lat_ms_pixel3"]) >= FAULTY]
    tests, latencies = column(kept, "c10_test200"), column(kept, "lat_ms_pixel3")
    print("\nEvaluations to the exact best c10_test200 within a lat_ms_pixel3, all of them found;")
    print("median and worst; random search in expectation.\n")
    print(f"| limit, ms | allowed | best | random | {' | '.join(LIMITED)} |")
    print("|---|---|---|---|" + "---|" * len(LIMITED))
    for limit in LIMITS:
        allowed = np.array([tests[k] for k, latency in latencies.items() if latency <= limit])
        ties = (allowed == allowed.max()).sum()
        cells = []
        for name in LIMITED:
            counts = [
                evaluations_to_best(tests, STRATEGIES[name], seed, latencies, limit)
                for seed in seeds
            ]
            cells.append(f"{np.median(counts):,.0f}, {max(counts):,}")
        print(
            f"| {limit} | {len(allowed):,} | {allowed.max():.2f} | "
            f"{(len(allowed) + 1) / (ties + 1):,.0f} | {' | '.join(cells)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
