"""Everything that takes a GPU: `python -m benchmarks.gpu`, some five minutes of one device.

Each part is a process of its own with a time limit: the tests of `tests/gpu`, what an update
costs, what a whole step of training costs, scoring, and what `nas-dynamic doctor` says. Printed is
what each part prints, then a table; `benchmarks/results/gpu.json` keeps the last of each part, with
the card. Without a CUDA device nothing is run.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed import cost
from benchmarks.speed.overhead import median_interval

RESULTS = Path(__file__).parent / "results" / "gpu.json"
OVERHEAD = "-m benchmarks.speed.overhead --device cuda --against bare --groups 8 --active fifth"
# name → its arguments, and seconds that it may take
PARTS = {
    "tests": ("-m pytest -q -n 0 -rs tests/gpu", 180),
    "update, SGD": (f"{OVERHEAD} --tensors 500 5000", 60),
    "update, AdamW fused": (f"{OVERHEAD} --tensors 500 5000 --optimizer adamw", 60),
    "step": ("-m benchmarks.gpu step", 120),
    "scoring": ("-m benchmarks.speed.scoring --device cuda --subnets 20 --plain 3", 90),
    "doctor": ("-m benchmarks.gpu doctor", 60),
}
STEPS, WARM_UP = 200, 270  # the checks of the first 256 updates are no part of a training's cost


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("part", nargs="?", choices=("step", "doctor"), help="in this process")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("there is no CUDA device: nothing is run")
        return
    if options.part == "step":
        print_steps()
    elif options.part == "doctor":
        print_doctor()
    else:
        run_parts(options.parts, options.results)


def run_parts(names: list[str], path: Path) -> None:
    """Run the parts, print what they print, and keep it."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    for name in names:
        print(f"--- {name}", flush=True)
        results[name] = machine | _run(*PARTS[name])
        print(results[name]["output"], flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"--- {machine['device']}, torch {machine['torch']}")
    for name in names:
        print(f"{name:22} {results[name]['state']:10} {results[name]['seconds']:5.0f} s")


def _run(arguments: str, limit: float) -> dict[str, Any]:
    command = [sys.executable, *arguments.split()]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit
        )
        state, output = "done" if done.returncode == 0 else "failed", done.stdout
    except subprocess.TimeoutExpired as error:
        state, output = "timed out", (error.stdout or b"").decode()
    seconds = round(time.perf_counter() - started, 1)
    return {"state": state, "seconds": seconds, "output": output[-6000:].strip()}


def print_steps() -> None:
    """Time whole steps of training: as users have them today, and with each default of `idle`."""
    torch.backends.cudnn.benchmark = False
    ways = {"static": "freeze", "freezing": "freeze", "coasting": "coast"}
    trainings = {}
    for name, idle in ways.items():
        options = argparse.Namespace(
            channels=16,
            cells=5,
            size=32,
            batch=64,
            idle=idle,
            kernels="torch",
            device="cuda",
            warm_up=WARM_UP,
            steps=STEPS,
        )
        way = cost.WAYS[0] if name == "static" else cost.WAYS[3]
        torch.cuda.reset_peak_memory_stats()
        trainings[name] = cost.Training(way, options)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number, (architecture, images, classes) in enumerate(cost.steps(options)):
        names = list(ways)
        for name in names[number % 3 :] + names[: number % 3]:
            trainings[name].architecture = architecture
            taken = trainings[name](images, classes)
            if number >= WARM_UP:
                seconds[name].append(taken)
    static = np.array(seconds["static"])
    print(f"a step of C=16, N=5, batch 64: static, idle parameters freezing {_ms(static)}")
    for name in ("freezing", "coasting"):
        ratios = np.array(seconds[name]) / static
        low, high = median_interval(ratios)
        print(
            f"CaLR + MS, idle parameters {name}: {_ms(np.array(seconds[name]))}, "
            f"{np.median(ratios):.4f} [{low:.4f}, {high:.4f}] of it"
        )


def _ms(seconds: np.ndarray) -> str:
    return f"{1e3 * np.median(seconds):.2f} ms"


def print_doctor() -> None:
    """Print what `nas-dynamic doctor` finds on the device."""
    from nas_dynamic.experiment.doctor.installation import gpu_findings, print_findings

    print_findings(gpu_findings(torch.device("cuda", 0)))


if __name__ == "__main__":
    main()
