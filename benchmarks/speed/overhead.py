"""What attachment adds to the time of an update.

    python -m benchmarks.speed.overhead --out overhead.json

Pairs an attached loop with the same loop unattached: updates alternate between the two in one
process, and the table gives medians and the interval of the median difference over bootstrap
resamples. In coasting the unattached optimizer gets zeros for idle parameters too, before the
timed part, so that both optimizers do the same work: what the attached one takes to make those
zeros counts as overhead. `--against bare` leaves the unattached one without.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from nas_dynamic.attach.sampled_check import FIRST

CANDIDATES = 5
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
}


class Training:
    """Parameters, gradients and an optimizer; no model, since only updates are timed."""

    def __init__(self, args: argparse.Namespace, tensors: int, groups: int, idle: str, active: str):
        device = torch.device(args.device)
        self.parameters = [
            nn.Parameter(torch.randn(args.numel, device=device)) for _ in range(tensors)
        ]
        self.gradients = [torch.randn_like(p) for p in self.parameters]
        self.optimizer = OPTIMIZERS[args.optimizer](self.parameters)
        self.groups, self.idle, self.active = groups, idle, active
        self.sampled = {"layer1": 0, "path": 0}
        self.step = 0

    def attach(self) -> DynamicTraining:
        """Attach with a momentum group for each candidate of "layer1"."""
        return DynamicTraining(
            self.optimizer,
            architecture=lambda: self.sampled,
            calr=CaLR(lambda a: 2.0 + a["layer1"], total_steps=10**9, bounds=(1, 100)),
            momentum=MomentumSeparation("layer1", max_groups=self.groups),
            idle=self.idle,
        )

    def prepare(self, zeros: bool) -> None:
        """Leave what forward and backward do: gradients of this step's subnet."""
        path = self.step % CANDIDATES
        self.sampled = {"layer1": self.step % self.groups, "path": path}
        for i, (parameter, gradient) in enumerate(
            zip(self.parameters, self.gradients, strict=True)
        ):
            trained = self.active == "all" or i % CANDIDATES == path
            if trained:
                parameter.grad = gradient
            else:
                parameter.grad = torch.zeros_like(parameter) if zeros else None
        self.step += 1

    def update(self) -> float:
        """Return the seconds that `optimizer.step()` takes."""
        cuda = self.parameters[0].is_cuda
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        self.optimizer.step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the median."""
    found = stats.bootstrap((values,), np.median, n_resamples=2000, method="percentile", rng=0)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def time_updates(
    args: argparse.Namespace, tensors: int, groups: int, idle: str, active: str
) -> dict[str, Any]:
    """Return median µs of an update with and without attachment, paired."""
    attached = Training(args, tensors, groups, idle, active)
    attached.attach()
    plain = Training(args, tensors, groups, idle, active)
    zeros = idle == "coast" and args.against == "zeros"
    times = []
    # By then each group has met each path, and so has all of its state.
    warmup = max(groups * CANDIDATES, FIRST)
    for step in range(warmup + args.updates):
        pair = {}
        # Who goes first alternates, so that neither is always the one that warms the caches.
        for training in (attached, plain) if step % 2 else (plain, attached):
            training.prepare(zeros=zeros and training is plain)
            pair[training is attached] = training.update()
        times.append((pair[True], pair[False]))
    with_, without = 1e6 * np.array(times[warmup:]).T
    low, high = median_interval(with_ - without)
    return {
        "tensors": tensors,
        "groups": groups,
        "idle": idle,
        "active": active,
        "attached_us": float(np.median(with_)),
        "plain_us": float(np.median(without)),
        "overhead_us": float(np.median(with_ - without)),
        "overhead_us_95": [low, high],
        "ratio": float(np.median(with_) / np.median(without)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensors", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--active", nargs="+", default=["all", "fifth"], help="parameters trained")
    parser.add_argument("--numel", type=int, default=64, help="elements of a tensor")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument("--against", choices=["zeros", "bare"], default="zeros")
    parser.add_argument("--updates", type=int, default=40, help="timed updates of each loop")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(
        f"{'tensors':>8} {'groups':>6} {'idle':>7} {'active':>6} {'attached µs':>12} "
        f"{'plain µs':>10} {'overhead µs':>12} {'95 % interval':>18} {'ratio':>6}"
    )
    times = []
    for tensors in args.tensors:
        for groups in args.groups:
            for idle in ("coast", "freeze"):
                for active in args.active:
                    row = time_updates(args, tensors, groups, idle, active)
                    times.append(row)
                    low, high = row["overhead_us_95"]
                    print(
                        f"{tensors:8} {groups:6} {idle:>7} {active:>6} {row['attached_us']:12.1f} "
                        f"{row['plain_us']:10.1f} {row['overhead_us']:12.1f} "
                        f"{f'{low:.1f} … {high:.1f}':>18} {row['ratio']:6.3f}",
                        flush=True,
                    )
    if args.out:
        result = {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            "times": times,
        }
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
