"""Long runs of what must not break: `python -m benchmarks.soak`; the tests run the short form.

Kills trainings by SIGKILL at random points, and as soon as a checkpoint is being written, resumes
them, and compares the end with that of an unbroken one, to the bit. Trains with 8 momentum groups
for 100,000 updates and watches the resident memory.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory.growth import measured_memory
from benchmarks.soak.kills import survive
from benchmarks.soak.loops import LOOPS
from nas_dynamic.storage.journal import environment, write_json

RESULTS = Path(__file__).parents[1] / "results" / "soak.json"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--loops", nargs="*", choices=LOOPS, default=list(LOOPS))
    parser.add_argument("--kills", type=int, default=40, help="of each loop (default: 40)")
    parser.add_argument("--updates", type=int, default=100_000, help="0 leaves memory out")
    options = parser.parse_args()
    results: dict[str, Any] = {"environment": environment(torch.device("cpu")), "kills": {}}
    for name in options.loops:
        with tempfile.TemporaryDirectory() as folder:
            survived = survive(name, options.kills, Path(folder))
        print(name, survived, flush=True)
        results["kills"][name] = asdict(survived)
        write_json(RESULTS, results)
    if options.updates:
        results["memory"] = measured_memory(options.updates)
        print(results["memory"])
        write_json(RESULTS, results)


if __name__ == "__main__":
    main()
