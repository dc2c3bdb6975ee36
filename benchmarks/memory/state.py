"""What attachment keeps and borrows: optimizer state, and zeros for idle parameters.

    python -m benchmarks.memory.state --out state.json

State is compared with that of one optimizer a group, after every group met every path.
"""

from __future__ import annotations

import argparse
import json
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.overhead import CANDIDATES, OPTIMIZERS, Training


def state_bytes(states: Iterable[Any]) -> int:
    """Count the bytes of the tensors in optimizer states, each of them once."""
    found: dict[int, int] = {}
    for state in states:
        for value in state.values():
            for tensor in value.values():
                if torch.is_tensor(tensor):
                    found[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(found.values())


def compare_state(args: argparse.Namespace, groups: int, idle: str) -> dict[str, Any]:
    """Compare bytes of optimizer state with those of one optimizer a group."""
    tensors, active = 50, "fifth"
    training = Training(args, tensors, groups, idle, active)
    dynamic = training.attach()
    reference = Training(args, tensors, groups, idle, active)
    build = OPTIMIZERS[args.optimizer]
    optimizers = [build(reference.parameters) for _ in range(groups)]
    # Twice: a parameter coasts in all groups once it has been trained in one.
    for _ in range(2 * groups * CANDIDATES):
        training.prepare(zeros=False)
        training.optimizer.step()
        reference.prepare(zeros=idle == "coast")
        optimizers[reference.sampled["layer1"]].step()
    assert len(dynamic.groups) == groups
    saved = training.optimizer.state_dict()["dynamic_training"]["groups"]["groups"]
    return {
        "groups": groups,
        "idle": idle,
        "attached_bytes": state_bytes(state for _, state, _ in saved),
        "separate_bytes": state_bytes(optimizer.state for optimizer in optimizers),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in training.parameters),
    }


def peak_of_zeros(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what coasting borrows during an update: zeros for the idle parameters."""
    training = Training(args, 500, 1, "coast", "fifth")
    training.attach()
    training.prepare(zeros=False)
    zeros = 0

    def measure(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal zeros
        known = {g.data_ptr() for g in training.gradients}
        zeros = sum(
            p.grad.numel() * p.grad.element_size()
            for p in training.parameters
            if p.grad is not None and p.grad.data_ptr() not in known
        )

    training.optimizer.register_step_pre_hook(measure)  # runs after the hook of the attachment
    tracemalloc.start()
    training.optimizer.step()
    bookkeeping = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    after = sum(p.grad is not None for p in training.parameters)
    return {
        "idle_parameter_bytes": sum(
            p.numel() * p.element_size() for p in training.parameters if p.grad is None
        ),
        "zeros_bytes": zeros,
        "gradients_after": after,
        "python_peak_bytes": bookkeeping,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory.state",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--numel", type=int, default=64, help="elements of a tensor")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    state = [
        compare_state(args, groups, idle) for groups in args.groups for idle in ("coast", "freeze")
    ]
    for row in state:
        print(
            f"{row['groups']:4} groups {row['idle']:>7}: attached {row['attached_bytes']:,} bytes, "
            f"one optimizer a group {row['separate_bytes']:,}, "
            f"parameters {row['parameter_bytes']:,}"
        )
    zeros = peak_of_zeros(args)
    print(
        f"an update of coasting parameters borrows {zeros['zeros_bytes']:,} bytes of zeros, the "
        f"size of those ({zeros['idle_parameter_bytes']:,}), and "
        f"{zeros['python_peak_bytes']:,} bytes of bookkeeping"
    )
    if args.out:
        args.out.write_text(json.dumps({"state": state, "zeros": zeros}, indent=1) + "\n")


if __name__ == "__main__":
    main()
