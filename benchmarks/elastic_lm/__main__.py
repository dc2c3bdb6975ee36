"""Train what the results lack, and print the differences.

python -m benchmarks.elastic_lm --data TEXT --arms alone static calr deviation
python -m benchmarks.elastic_lm --data TEXT --arms alone static calr --preset gpu --updates 2000
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.elastic_lm.rows import MEASURES, append, by_seed, print_against
from benchmarks.elastic_lm.training import ALONE, ARMS, PRESETS, read_text, train
from benchmarks.nb201.report import rows_of
from nas_dynamic.analysis.paired import Difference, mean_estimate

RESULTS = {
    "cpu": Path("benchmarks/results/elastic_lm.csv"),
    "gpu": Path("benchmarks/results/elastic_lm_gpu.csv"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.data is not None:
        learned, held_out = read_text(options.data)
        text = (learned.to(options.device), held_out.to(options.device))
        size = PRESETS[options.preset]
        wanted = itertools.product(options.updates, range(options.seeds), options.lr, options.arms)
        for updates, seed, lr, arm in wanted:
            key = {"arm": arm, "lr": lr, "updates": updates}
            if seed not in by_seed(rows_of(options.results), **key):
                run = train(arm, seed, updates, dataclasses.replace(size, lr=lr), text)
                append(options.results, {**key, "seed": seed}, run)
    rows = rows_of(options.results)
    for lr, updates in sorted({(float(row["lr"]), int(row["updates"])) for row in rows}):
        budget = {"lr": lr, "updates": updates}
        print(f"\n{updates} updates, lr {lr}, nats a byte")
        print_against("calr", {arm: by_seed(rows, arm=arm, **budget) for arm in ARMS})
        print_gaps({arm: by_seed(rows, arm=arm, **budget) for arm in (ALONE, *ARMS)})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.elastic_lm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="text, or a folder of *.txt; print only if not")
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS, ALONE])
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="sizes")
    parser.add_argument("--device", help="cuda with the preset gpu, else cpu, if not given")
    parser.add_argument("--lr", nargs="+", type=float, help="that of the preset, if not given")
    parser.add_argument("--updates", nargs="+", type=int, default=[400, 1200])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, help="a file for each preset, if not given")
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if options.preset == "gpu" else "cpu")
    options.lr = options.lr or [PRESETS[options.preset].lr]
    options.results = options.results or RESULTS[options.preset]
    return options


def print_gaps(runs: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    """Print by how much the ends of each arm lag behind themselves trained alone.

    Both in nats a byte with their 95% intervals: the lags, and their differences to `static`.

    Args:
        runs: arm → seed → measures.
    """
    alone, static = runs[ALONE], runs["static"]
    for arm, end in itertools.product(ARMS, MEASURES[1:]):
        seeds = sorted(runs[arm].keys() & alone.keys())
        if not seeds:
            continue
        lag = mean_estimate([runs[arm][seed][end] - alone[seed][end] for seed in seeds])
        line = f"{arm:19}{len(seeds):2} seeds  {end} above itself alone {lag:+.4f}"
        paired = sorted({*seeds} & static.keys())
        if arm != "static" and paired:
            own, others = ([run[seed][end] for seed in paired] for run in (runs[arm], static))
            line += f"  less static {Difference(np.subtract(own, others)):+.4f}"
        print(line)


if __name__ == "__main__":
    main()
