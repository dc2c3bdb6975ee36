"""Train what the results lack, and print the differences: python -m benchmarks.elastic_lm."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.elastic_lm.training import ARMS, Run, Size, read_text, train
from nas_dynamic.analysis.paired import Difference

RESULTS = Path("benchmarks/results/elastic_lm.csv")
MEASURES = ("mean", "smallest", "largest")
COLUMNS = ("arm", "updates", "seed", *(field.name for field in dataclasses.fields(Run)))
Rows = dict[tuple[str, int, int], dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    rows = read(options.results)
    if options.data is not None:
        text = read_text(options.data)
        for updates in options.updates:
            for seed in range(options.seeds):
                for arm in options.arms:
                    if (arm, updates, seed) not in rows:
                        run = train(arm, seed, updates, Size(), text)
                        append(options.results, arm, updates, seed, run)
    print_differences(read(options.results))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elastic_lm", description=__doc__)
    parser.add_argument("--data", type=Path, help="text, or a folder of *.txt; print only if not")
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=ARMS)
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
            (row["arm"], int(row["updates"]), int(row["seed"])): {
                name: float(row[name]) for name in MEASURES
            }
            for row in csv.DictReader(file)
        }


def append(path: Path, arm: str, updates: int, seed: int, run: Run) -> None:
    new = not path.exists()
    values = [f"{value:.6g}" for value in dataclasses.astuple(run)]
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([arm, updates, seed, *values])


def print_differences(rows: Rows) -> None:
    """Print nats a byte of `static` and `calr`, and differences to `calr` with 95% intervals."""
    for updates in sorted({updates for _, updates, _ in rows}):
        print(f"\n{updates} updates, nats a byte      " + "".join(f"{m:>27}" for m in MEASURES))
        seeds = {arm: {s for a, u, s in rows if (a, u) == (arm, updates)} for arm in ARMS}
        for arm in (arm for arm in ARMS if seeds[arm]):
            paired = sorted(seeds[arm] & seeds["calr"])
            cells = []
            for measure in MEASURES:
                values = np.array([rows[arm, updates, seed][measure] for seed in paired])
                others = np.array([rows["calr", updates, seed][measure] for seed in paired])
                difference = Difference(values - others)
                low, high = difference.t_interval()
                text = f"{difference.mean:+.4f} [{low:+.4f}, {high:+.4f}]"
                cells.append(f"{values.mean():.4f}" if arm == "calr" else text)
            print(f"{arm:14} − calr, {len(paired)} seeds    " + "".join(f"{c:>27}" for c in cells))


if __name__ == "__main__":
    main()
