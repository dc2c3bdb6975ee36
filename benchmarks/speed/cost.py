"""What dynamic training costs on a real supernet: `python -m benchmarks.speed.cost`.

Steps of training the NAS-Bench-201 supernet (C=16, N=5, batch 64 by default) by four ways:
static; MS with an optimizer for each group, the usual way to write it; this package with MS; and
this package with CaLR and MS. Every step is made by all ways in turn, on the same images and the
same subnet, in one process; printed is the median of the ratios to the static step, with a
bootstrap interval. Peak memory is of a process for each way (Linux), after as many steps; on a
GPU it is what torch has allocated there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.nb201.kernels import SIMD, TORCH
from benchmarks.nb201.supernet import SPACE, Supernet, parameters
from benchmarks.speed.overhead import median_interval
from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, UniformSampler
from nas_dynamic.complexity import bounds, lookup

EDGE = "3←0"
WAYS = ("static", "an optimizer a group", "package, MS", "package, CaLR + MS")


class Training:
    """One way to train, from the same weights as the others."""

    def __init__(self, way: str, options: argparse.Namespace) -> None:
        kernels = {"torch": TORCH, "simd": SIMD}[options.kernels]
        self.supernet = Supernet(options.channels, options.cells, seed=0, kernels=kernels)
        self.supernet.to(options.device)
        self.weights = list(self.supernet.parameters())
        # The package makes idle parameters coast whatever zero_grad does; the others need zeros.
        self.leaves_zeros = options.idle == "coast" and not way.startswith("package")
        self.architecture = SPACE.sample(np.random.default_rng(0))
        groups = len(SPACE.choices[EDGE]) if way == WAYS[1] else 1
        self.optimizers = [
            torch.optim.SGD(self.weights, lr=0.025, momentum=0.9, nesterov=True, weight_decay=5e-4)
            for _ in range(groups)
        ]
        self.step: Callable[[], None] = self._step_of_group
        if way.startswith("package"):
            complexity = lookup(SPACE, parameters)
            DynamicTraining(
                self.optimizers[0],
                architecture=lambda: self.architecture,
                calr=CaLR(complexity, total_steps=10**6, bounds=bounds(SPACE, complexity))
                if "CaLR" in way
                else None,
                momentum=MomentumSeparation(EDGE),
                idle=options.idle,
            )
            self.step = self.optimizers[0].step

    def _step_of_group(self) -> None:
        group = SPACE.choices[EDGE].index(self.architecture[EDGE])
        self.optimizers[group % len(self.optimizers)].step()

    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> float:
        """Return the seconds of one whole step of training."""
        _wait(images.device)
        started = time.perf_counter()
        F.cross_entropy(self.supernet(images, self.architecture), classes).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 5.0)
        self.step()
        self.optimizers[0].zero_grad(set_to_none=not self.leaves_zeros)
        _wait(images.device)
        return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    options = _parser().parse_args()
    torch.set_num_threads(options.threads)
    if options.way is not None:
        _train(options)
        gpu = options.device != "cpu"
        print(torch.cuda.max_memory_allocated() / 2**20 if gpu else _own_peak_memory())
        return
    print(
        f"C={options.channels}, N={options.cells}, batch {options.batch}, {options.size} pixels, "
        f"idle parameters {options.idle}, {options.steps} steps, {options.threads} threads, "
        f"{options.device}"
    )
    seconds = _paired(options)
    static = seconds[WAYS[0]]
    print(f"{'':22} {'a step':>10}   {'ratio to static [95%]':26} {'peak memory':>12}")
    memory = {way: _peak_memory(way) for way in WAYS}
    for way in WAYS:
        ratios = seconds[way] / static
        text = ""
        if way != WAYS[0]:
            low, high = median_interval(ratios)
            text = f"{np.median(ratios):.4f} [{low:.4f}, {high:.4f}]"
        share = memory[way] / memory[WAYS[0]] - 1
        print(
            f"{way:22} {np.median(seconds[way]) * 1e3:7.1f} ms   {text:26} {memory[way]:8.1f} MiB "
            f"{share:+.1%}"
        )


def _paired(options: argparse.Namespace) -> dict[str, np.ndarray]:
    trainings = {way: Training(way, options) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number, (architecture, images, classes) in enumerate(steps(options)):
        ways = WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]
        for way in ways:
            trainings[way].architecture = architecture
            taken = trainings[way](images, classes)
            if number >= options.warm_up:
                seconds[way].append(taken)
    return {way: np.array(values) for way, values in seconds.items()}


def _train(options: argparse.Namespace) -> None:
    training = Training(options.way, options)
    for architecture, images, classes in steps(options):
        training.architecture = architecture
        training(images, classes)


def steps(options: argparse.Namespace):
    generator = torch.Generator().manual_seed(0)
    sampler = UniformSampler(SPACE, seed=0)
    for _ in range(options.warm_up + options.steps):
        images = torch.randn(options.batch, 3, options.size, options.size, generator=generator)
        classes = torch.randint(10, (options.batch,), generator=generator)
        yield sampler.sample(), images.to(options.device), classes.to(options.device)


def _peak_memory(way: str) -> float:
    """Measure MiB of a process that trains in one way."""
    command = [sys.executable, "-m", "benchmarks.speed.cost", *sys.argv[1:], "--way", way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _own_peak_memory() -> float:
    """Read MiB; getrusage would give the parent's where that was more."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.cost", description=__doc__)
    parser.add_argument("--idle", choices=("coast", "freeze"), default="coast")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--cells", type=int, default=5)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kernels", choices=("torch", "simd"), default="torch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", choices=WAYS, help="train in one way, print the peak memory")
    return parser


if __name__ == "__main__":
    main()
