"""Search on NAS-Bench-201's table: evaluations to the best architecture, exactness under limits.

    python -m benchmarks.search --table TABLE            # some ten minutes on one CPU core

The table is a CSV with one row an architecture: `arch_str`, `c10_val200`, `c10_test200` and
`lat_ms_pixel3`. Looking a row up is the evaluation; nothing is trained.

1. How many evaluations until the one architecture with the best `c10_val200` is found.
2. Whether the search under a latency limit finds the best `c10_test200` that the limit allows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.nb201.data import parse_architecture
from benchmarks.nb201.supernet import SPACE, macs, parameters
from nas_dynamic import Architecture
from nas_dynamic.evolution import Evolution, RandomSearch
from nas_dynamic.predictors import GradientBoosting, PretrainedMLP
from nas_dynamic.problem import Objective, Strategy
from nas_dynamic.search import search
from nas_dynamic.surrogate import Surrogate
from nas_dynamic.tables import read_rows

STRATEGIES: dict[str, Strategy] = {
    "random": RandomSearch(),
    "evolution": Evolution(),
    "LightGBM, ranks": Surrogate(GradientBoosting()),
    "LightGBM, values": Surrogate(GradientBoosting(), ranks=False),
    "pre-trained predictor": Surrogate(PretrainedMLP()),
}
LIMITS = (5, 8, 12, 16)
FAULTY = 0.5
"""Latencies below this many ms are faulty in the source; their rows are dropped."""


def column(rows: list[dict[str, str]], name: str) -> dict[tuple, float]:
    return {key(parse_architecture(row["arch_str"])): float(row[name]) for row in rows}


def key(architecture: Architecture) -> tuple:
    return tuple(architecture.values())


def look_up(values: dict[tuple, float]) -> Callable[[list[Architecture]], list[dict[str, float]]]:
    return lambda architectures: [{"accuracy": values[key(a)]} for a in architectures]


def evaluations_to_best(values: dict[tuple, float], strategy: Strategy, seed: int) -> int:
    best = max(values.values())
    result = search(
        SPACE,
        look_up(values),
        [Objective("accuracy", maximize=True)],
        budget=SPACE.size,
        strategy=strategy,
        measures={"parameters": parameters, "macs": macs},
        until=lambda evaluation: evaluation.values["accuracy"] == best,
        seed=seed,
    )
    return len(result.evaluations)


def best_within(
    values: dict[tuple, float],
    latencies: dict[tuple, float],
    limit: float,
    strategy: Strategy,
    budget: int,
    seed: int,
) -> float:
    result = search(
        SPACE,
        look_up(values),
        [Objective("accuracy", maximize=True)],
        budget=budget,
        strategy=strategy,
        measures={
            "latency": lambda a: latencies.get(key(a), np.inf),
            "parameters": parameters,
            "macs": macs,
        },
        at_most={"latency": limit},
        seed=seed,
    )
    return result.best.values["accuracy"]


def mean_interval(counts: list[int]) -> tuple[float, float]:
    """95% bootstrap interval of the mean."""
    drawn = np.random.default_rng(0).choice(counts, (10_000, len(counts))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="CSV of NAS-Bench-201")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, default=1000, help="of a search under a limit")
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
        low, high = mean_interval(counts)
        print(
            f"| {name} | {np.mean(counts):,.0f} | {low:,.0f} to {high:,.0f} | "
            f"{np.median(counts):,.0f} | {max(counts):,} | {expected / np.mean(counts):.1f} |",
            flush=True,
        )
    kept = [row for row in rows if float(row["lat_ms_pixel3"]) >= FAULTY]
    tests, latencies = column(kept, "c10_test200"), column(kept, "lat_ms_pixel3")
    print(f"\nThe best c10_test200 within a lat_ms_pixel3, {options.budget:,} evaluations; in how")
    print(f"many of {len(seeds)} searches the exact best was found.\n")
    strategies = {k: v for k, v in STRATEGIES.items() if k in ("evolution", "LightGBM, ranks")}
    print("| limit, ms | allowed | exact best | " + " | ".join(strategies) + " |")
    print("|---|---|---|" + "---|" * len(strategies))
    for limit in LIMITS:
        allowed = [tests[k] for k, latency in latencies.items() if latency <= limit]
        found = [
            sum(
                best_within(tests, latencies, limit, strategy, options.budget, seed) == max(allowed)
                for seed in seeds
            )
            for strategy in strategies.values()
        ]
        print(
            f"| {limit} | {len(allowed):,} | {max(allowed):.2f} | "
            + " | ".join(f"{count} of {len(seeds)}" for count in found)
            + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
