"""One rank of a DDP training: `python ddp.py RANK FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from timm.optim import create_optimizer_v2
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))
from nas_dynamic.adapters.timm import attach
from tests.timm.loop import tiny_supernet

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
model = tiny_supernet()
optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, momentum=0.9)
attached = attach(optimizer, model, total_steps=4)
model = DistributedDataParallel(model, find_unused_parameters=True)
generator = torch.Generator().manual_seed(rank)
torch.manual_seed(rank)
drawn = []
for _ in range(4):
    model(torch.randn(2, 3, 16, 16, generator=generator)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    drawn.append(attached.training.last.architecture)
parameters = {name: p.detach() for name, p in model.module.named_parameters()}
torch.save({"drawn": drawn, "parameters": parameters}, folder / f"{rank}.pt")
dist.destroy_process_group()
