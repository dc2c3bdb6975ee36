"""Two ranks of DDP in every host: `torchrun … -m tests.hosts.ranks FOLDER`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.fabric
import lightning.pytorch
import torch
import torch.distributed as dist

from tests.hosts import in_lightning, in_loops, in_mmengine, in_transformers
from tests.hosts.tiny import Task

in_loops.FabricLoop.package = lightning.fabric

ADAPTERS: dict[str, Callable[[Task, Path], Any]] = {
    "Lightning": lambda task, folder: in_lightning.train(
        lightning.pytorch,
        task,
        folder,
        devices=2,
        strategy="ddp_find_unused_parameters_true",
        use_distributed_sampler=False,
    ),
    "transformers": lambda task, folder: in_transformers.train(
        task, folder, ddp_find_unused_parameters=True, ddp_backend="gloo"
    ),
    "mmengine": lambda task, folder: in_mmengine.train(
        task,
        folder,
        launcher="pytorch",
        cfg={
            "model_wrapper_cfg": {
                "type": "MMDistributedDataParallel",
                "find_unused_parameters": True,
                "device_ids": None,  # or mmengine gives that of a GPU
            }
        },
    ),
}
LOOPS: dict[str, Callable[[Task, Path], Any]] = {
    "Accelerate": lambda task, folder: in_loops.AccelerateLoop(task).train(),
    "Fabric": lambda task, folder: in_loops.FabricLoop(task).train(),
}


def main(folder: Path) -> None:
    """Train in every host; what a rank ends with is in FOLDER/RANK.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    task = Task(rank=rank)
    weights = {
        host: train(task, folder / host).state_dict() for host, train in (ADAPTERS | LOOPS).items()
    }
    errors = {}
    apart = dataclasses.replace(task, options={"seed": rank})
    for host, train in ADAPTERS.items():
        try:
            train(apart, folder / f"{host}-apart")
        except RuntimeError as error:
            errors[host] = str(error)
    torch.save({"weights": weights, "errors": errors}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
