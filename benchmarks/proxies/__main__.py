"""Training-free metrics, and searches over published tables.

    python -m benchmarks.proxies agreement --scores CSV --images CIFAR10     # half an hour
    python -m benchmarks.proxies robot --scores CSV                          # half an hour
    python -m benchmarks.proxies tasks --table CSV                           # some minutes
    python -m benchmarks.proxies pretraining --table CSV                     # ten minutes
    python -m benchmarks.proxies sequences --rnn CSV --bert CSV              # seconds
    python -m benchmarks.proxies recurrent --recipes CSV --rnn CSV           # ten minutes
    python -m benchmarks.proxies encoders --bert CSV                         # ten minutes
    python -m benchmarks.proxies capped --table CSV                          # some minutes

Each part writes what it found into benchmarks/results/proxies.json, and prints it. Rows that a
part has made are kept in runs/proxies, so that it goes on after a stop. `show` prints again what
was found.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.proxies.agreement import agreement, agreement_table
from benchmarks.proxies.capped import capped, capped_table
from benchmarks.proxies.encoders import encoders, encoders_table
from benchmarks.proxies.pretraining import pretraining, pretraining_table
from benchmarks.proxies.recurrent import recurrent, recurrent_table
from benchmarks.proxies.robot import robot, robot_table
from benchmarks.proxies.sequences import sequences, sequences_table
from benchmarks.proxies.tables import RESULTS, keep, kept
from benchmarks.proxies.tasks import tasks, tasks_table

SHOWN = {
    "agreement": agreement_table,
    "robot": robot_table,
    "tasks": tasks_table,
    "pretraining": pretraining_table,
    "sequences": sequences_table,
    "recurrent": recurrent_table,
    "encoders": encoders_table,
    "capped": capped_table,
}
BUDGETS = {"robot": 20, "tasks": 100}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proxies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("part", choices=[*SHOWN, "show"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--runs", type=Path, default=Path("runs/proxies"), help="folder of rows")
    parser.add_argument("--scores", type=Path, help="CSV of NAS-Bench-Suite-Zero")
    parser.add_argument("--table", type=Path, help="CSV of TransNAS (micro) or NAS-Bench-201")
    parser.add_argument("--rnn", type=Path, help="CSV of NAS-Bench-NLP with scores")
    parser.add_argument("--recipes", type=Path, help="CSV of NAS-Bench-NLP on WikiText-2")
    parser.add_argument("--bert", type=Path, help="CSV of FlexiBERT with scores")
    parser.add_argument("--images", type=Path, help="CIFAR-10, a folder or its tar")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--budget", type=int, help="evaluations of a search")
    parser.add_argument("--networks", type=int, help="rebuilt for each task (default: 100, or all)")
    parser.add_argument("--batch", type=int, default=64, help="images of a metric")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "show":
        for part, found in kept(options.results).items():
            SHOWN[part.partition(",")[0]](found)
        return
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = options.runs / f"{options.part}.csv"
    start = time.perf_counter()
    if options.part == "agreement":
        found = agreement(
            options.scores,
            options.images,
            rows,
            networks=options.networks or 100,
            batch=options.batch,
            channels=options.channels,
            cells=options.cells,
        )
    elif options.part == "sequences":
        found = sequences(options.rnn, options.bert)
    elif options.part == "recurrent":
        found = recurrent(options.recipes, options.rnn, rows, networks=options.networks)
    elif options.part == "encoders":
        found = encoders(options.bert, rows, networks=options.networks)
    elif options.part == "capped":
        found = capped(options.table, seeds=seeds)
    elif options.part == "pretraining":
        found = pretraining(options.table, rows, seeds=seeds)
    else:
        budget = options.budget or BUDGETS[options.part]
        if options.part == "robot":
            found = robot(options.scores, rows, budget=budget, seeds=seeds)
        else:
            found = tasks(options.table, rows, budget=budget, seeds=seeds)
    asked = options.budget not in (None, BUDGETS.get(options.part))
    keep(options.results, options.part + (f", {options.budget}" if asked else ""), found)
    print(f"{time.perf_counter() - start:.0f} s")
    SHOWN[options.part](found)


if __name__ == "__main__":
    main()
