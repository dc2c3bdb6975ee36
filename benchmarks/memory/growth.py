"""Does memory grow with the updates? `python -m benchmarks.memory.growth`."""

from __future__ import annotations

import argparse
import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak.plain_loop import PlainLoop


def memory(updates: int) -> dict[str, Any]:
    """Return the resident memory, in MiB, after 1,000 updates and at the end: 8 groups train."""
    torch.set_num_threads(1)
    loop = PlainLoop(updates)
    early = 0.0
    for update in range(updates):
        loop.update()
        if update == 999:
            early = _resident()
    return {
        "updates": loop.dynamic.updates,
        "groups": len(loop.dynamic.groups),
        "after_1000": early,
        "at_the_end": _resident(),
    }


def measured_memory(updates: int) -> dict[str, Any]:
    """Measure `memory` in a process of its own."""
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        return pool.apply(memory, (updates,))


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory.growth", description=__doc__)
    parser.add_argument("--updates", type=int, default=100_000)
    print(measured_memory(parser.parse_args().updates))


if __name__ == "__main__":
    main()
