"""What the checks of a training cost an update: `python -m benchmarks.speed.checks`.

Updates of the NAS-Bench-201 supernet (C=16, N=5, batch 64). Each is made from the same gradients
by `DynamicTraining` by itself and with a check: `nonfinite="raise"` and `check_sampled` in one
process, and `RankAgreement` in two (gloo). The last two check at every update here, and by default
at every 400th, and at the first 256 and every 64th. Printed are the median of the differences,
paired within an update, its bootstrap interval, and the share of a whole training step.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import tempfile
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from benchmarks.nb201.supernet import SPACE, Supernet, parameters
from benchmarks.speed.overhead import median_interval
from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation, UniformSampler
from nas_dynamic.attach.ranks import EVERY
from nas_dynamic.attach.sampled_check import THEN_EVERY
from nas_dynamic.complexity import bounds, lookup

WARM_UP = 10
# name → the options of the updates with the check, the processes, and updates a check by default
CHECKS: dict[str, tuple[dict[str, Any], int, int]] = {
    'nonfinite="raise"': ({"nonfinite": "raise"}, 1, 1),
    "check_sampled": ({"check_sampled": True}, 1, THEN_EVERY),
    "RankAgreement": ({"check_ranks_every": 1}, 2, EVERY),
}


class Updates:
    """An optimizer of its own, of weights of its own."""

    def __init__(self, supernet: torch.nn.Module, **checks: Any) -> None:
        self.weights = [p.detach().clone().requires_grad_() for p in supernet.parameters()]
        self.optimizer = torch.optim.SGD(
            self.weights, lr=0.025, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        self.architecture: Any = None
        complexity = lookup(SPACE, parameters)
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.architecture,
            calr=CaLR(complexity, total_steps=10**6, bounds=bounds(SPACE, complexity)),
            momentum=MomentumSeparation("3←0"),
            **({"check_sampled": False, "check_ranks_every": None} | checks),
        )

    def __call__(self, architecture: Any, supernet: torch.nn.Module) -> float:
        """Return the seconds of one update by the gradients of the supernet."""
        self.architecture = architecture
        for weight, parameter in zip(self.weights, supernet.parameters(), strict=True):
            weight.grad = copy.copy(parameter.grad)
        if dist.is_initialized():
            dist.barrier()  # ranks of DDP have just waited for each other, in backward
        started = time.perf_counter()
        self.optimizer.step()
        return time.perf_counter() - started


def measure(rank: int, name: str, folder: str, options: argparse.Namespace) -> None:
    """Print the cost of a check."""
    torch.set_num_threads(1)
    checks, ranks, every = CHECKS[name]
    if ranks > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
        )
    supernet = Supernet(16, 5, seed=0)
    plain, checked = Updates(supernet), Updates(supernet, **checks)
    sampler, generator = UniformSampler(SPACE, seed=0), torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"gradients": [], "plain": [], "checked": []}
    for number in range(WARM_UP + options.updates):
        architecture = sampler.sample()
        images = torch.randn(options.batch, 3, 32, 32, generator=generator)
        classes = torch.randint(10, (options.batch,), generator=generator)
        supernet.zero_grad()
        started = time.perf_counter()
        F.cross_entropy(supernet(images, architecture), classes).backward()
        taken = {"gradients": time.perf_counter() - started}
        ways = [("plain", plain), ("checked", checked)]
        for way, updates in ways[:: 1 if number % 2 else -1]:
            taken[way] = updates(architecture, supernet)
        if number >= WARM_UP:
            for way, value in taken.items():
                seconds[way].append(value)
    if rank == 0:
        _print(name, every, seconds)
    if ranks > 1:
        dist.destroy_process_group()


def _print(name: str, every: int, seconds: dict[str, list[float]]) -> None:
    gradients, plain, checked = (1e6 * np.array(values) for values in seconds.values())
    extra = checked - plain
    low, high = median_interval(extra)
    step, cost = float(np.median(gradients + plain)), float(np.median(extra))
    text = f"{name}: {cost:.0f} µs [{low:.0f}, {high:.0f}] a check, {cost / step:.3%} of a step of "
    text += f"{step / 1e3:.0f} ms ({np.median(plain) / 1e3:.1f} ms of it in optimizer.step())"
    if every > 1:
        text += f"; at every {every}th {cost / every:.1f} µs, {cost / step / every:.4%}"
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.checks", description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--updates", type=int, default=100)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name, (_, ranks, _) in CHECKS.items():
        with tempfile.TemporaryDirectory() as folder:
            processes = [
                context.Process(target=measure, args=(rank, name, folder, options))
                for rank in range(ranks)
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
                if process.exitcode:
                    raise SystemExit(f"a rank ended by {process.exitcode}")


if __name__ == "__main__":
    main()
