"""Training-free metrics, and searches with them, over published tables.

    python -m benchmarks.proxies agreement --scores CSV --images CIFAR10     # half an hour

Each part writes what it found into benchmarks/results/proxies.json, and prints it. `--show` prints
what the file has.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.proxies.agreement import agreement, agreement_table
from benchmarks.proxies.tables import RESULTS, keep, kept

SHOWN = {"agreement": agreement_table}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proxies", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--show", action="store_true", help="print what was found before")
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("agreement", help="ours against the published scores")
    part.add_argument("--scores", type=Path, help="CSV of NAS-Bench-Suite-Zero")
    part.add_argument("--images", type=Path, help="CIFAR-10, a folder or its tar")
    part.add_argument("--rows", type=Path, default=Path("runs/proxies/agreement.csv"))
    part.add_argument("--networks", type=int, default=100)
    part.add_argument("--batch", type=int, default=64)
    part.add_argument("--channels", type=int, default=16)
    part.add_argument("--cells", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.show:
        start = time.perf_counter()
        found = agreement(
            options.scores,
            options.images,
            options.rows,
            networks=options.networks,
            batch=options.batch,
            channels=options.channels,
            cells=options.cells,
        )
        keep(options.results, options.part, found)
        print(f"{time.perf_counter() - start:.0f} s")
    SHOWN[options.part](kept(options.results)[options.part])


if __name__ == "__main__":
    main()
