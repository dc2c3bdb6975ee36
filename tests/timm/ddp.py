"""One rank of DDP trainings: `python ddp.py RANK FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))
from nas_dynamic.adapters.timm import attach
from tests.timm.loop import tiny_supernet


def train(rank: int, seed: int = 0, change_at: int = -1, **options: Any) -> dict[str, Any]:
    """Four updates, before one of which rank 1 changes a weight; what they drew, and an error."""
    supernet = tiny_supernet()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.05, momentum=0.9)
    attached = attach(optimizer, supernet, total_steps=4, seed=seed, **options)
    model = DistributedDataParallel(supernet, find_unused_parameters=True)
    generator = torch.Generator().manual_seed(rank)
    torch.manual_seed(rank)
    drawn, error = [], None
    for step in range(4):
        if step == change_at and rank == 1:
            with torch.no_grad():
                next(supernet.parameters()).view(-1)[0] += 1e-6
        model(torch.randn(2, 3, 16, 16, generator=generator)).square().sum().backward()
        try:
            optimizer.step()
        except RuntimeError as raised:
            error = str(raised)
            break
        optimizer.zero_grad()
        drawn.append(attached.training.last.architecture)
    parameters = {name: p.detach() for name, p in supernet.named_parameters()}
    return {"drawn": drawn, "error": error, "parameters": parameters}


def main(rank: int, folder: Path) -> None:
    """Train ranks that agree, and ranks that do not; the results are in FOLDER/RANK.pt."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = {
        "agree": train(rank),
        "other seed": train(rank, seed=rank),
        "other weight": train(rank, change_at=1, check_ranks_every=2),
        "unchecked": train(rank, seed=rank, check_ranks_every=None),
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
