"""Train what the results lack, and print the differences: python -m benchmarks.elastic_lm."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.elastic_lm.training import ALONE, ARMS, Run, Size, read_text, train
from nas_dynamic.analysis.paired import Difference, mean_estimate

RESULTS = Path("benchmarks/results/elastic_lm.csv")
MEASURES = ("mean", "smallest", "largest")
COLUMNS = ("arm", "lr", "updates", "seed", *(field.name for field in dataclasses.fields(Run)))
Key = tuple[str, float, int, int]
Rows = dict[Key, dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rows = read(options.results)
    if options.data is not None:
        text = read_text(options.data)
        wanted = itertools.product(options.updates, range(options.seeds), options.lr, options.arms)
        for updates, seed, lr, arm in wanted:
            if (arm, lr, updates, seed) not in rows:
                run = train(arm, seed, updates, Size(lr=lr), text)
                append(options.results, (arm, lr, updates, seed), run)
    rows = read(options.results)
    print_differences(rows)
    print_gaps(rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elastic_lm", description=__doc__)
    parser.add_argument("--data", type=Path, help="text, or a folder of *.txt; print only if not")
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS, ALONE])
    parser.add_argument("--lr", nargs="+", type=float, default=[0.003, 0.006])
    parser.add_argument("--updates", nargs="+", type=int, default=[400, 1200])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def read(path: Path) -> Rows:
    if not path.exists():
        return {}
    with path.open() as file:
        return {
            (row["arm"], float(row["lr"]), int(row["updates"]), int(row["seed"])): {
                name: float(row[name]) for name in MEASURES
            }
            for row in csv.DictReader(file)
        }


def append(path: Path, key: Key, run: Run) -> None:
    new = not path.exists()
    values = [f"{value:.6g}" for value in dataclasses.astuple(run)]
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([*key, *values])


def print_differences(rows: Rows) -> None:
    """Print nats a byte of `calr`, and differences of the other arms to it."""
    for lr, updates in sorted({(lr, updates) for _, lr, updates, _ in rows}):
        print(f"\n{updates} updates, lr {lr}, nats a byte")
        print_against(
            "calr",
            {
                arm: {
                    s: run for (a, *of, s), run in rows.items() if (a, of) == (arm, [lr, updates])
                }
                for arm in ARMS
            },
        )


def print_gaps(rows: Rows) -> None:
    """Print by how much both ends of each arm's supernet lag behind themselves trained alone."""
    for lr, updates in sorted({(lr, updates) for arm, lr, updates, _ in rows if arm == ALONE}):
        print(f"\n{updates} updates, lr {lr}, nats a byte above the same subnet trained alone")
        for arm in ARMS:
            gaps = [
                [run[end] - rows[ALONE, lr, updates, seed][end] for end in MEASURES[1:]]
                for (a, *of, seed), run in rows.items()
                if (a, of) == (arm, [lr, updates]) and (ALONE, lr, updates, seed) in rows
            ]
            if len(gaps) > 1:
                ends = [f"{mean_estimate(values):+.4f}" for values in np.transpose(gaps)]
                print(f"{arm:19}{len(gaps):2} seeds  smallest {ends[0]}  largest {ends[1]}")


def print_against(reference: str, runs: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    """Print the measures of one arm, and differences of the others to it, with 95% intervals.

    Args:
        reference: an arm.
        runs: arm → seed → measures.
    """
    print(" " * 29 + "".join(f"{measure:>27}" for measure in MEASURES))
    for arm, of_seeds in runs.items():
        paired = sorted(of_seeds.keys() & runs[reference].keys())
        if not paired:
            continue
        print(f"{arm:19}{len(paired):2} seeds  ", end="")
        for measure in MEASURES:
            values = np.array([of_seeds[seed][measure] for seed in paired])
            others = np.array([runs[reference][seed][measure] for seed in paired])
            text = f"{Difference(values - others):+.4f}"
            print(f"{f'{values.mean():.4f}' if arm == reference else text:>27}", end="")
        print()


if __name__ == "__main__":
    main()
