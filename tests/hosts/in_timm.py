"""The small supernet in a loop of the shape of timm's train.py."""

from __future__ import annotations

import torch
from torch import nn

from nas_dynamic.adapters.timm import Supernet as TimmSupernet
from nas_dynamic.adapters.timm import attach
from tests.hosts import tiny
from tests.hosts.tiny import UPDATES, Task, batches, loss_of, sgd, supernet


class Net(tiny.Supernet, TimmSupernet):
    """The small supernet, as one of timm's adapter: it computes by its mode."""

    activate = TimmSupernet.activate
    _select = tiny.Supernet.activate

    def __init__(self) -> None:
        super().__init__()
        self._architecture = dict(self.active)


def train(task: Task) -> nn.Module:
    net = Net()
    net.load_state_dict(supernet().state_dict())
    optimizer = sgd(net)
    attach(optimizer, net, total_steps=UPDATES, **task.dynamic)
    for micro in batches(task):
        optimizer.zero_grad()
        for x, y in micro:
            with torch.autocast("cpu", torch.bfloat16, enabled=task.bf16):
                loss = loss_of(net, x, y)
            (loss / task.accumulate).backward()
        if task.clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), task.clip)
        optimizer.step()
    return net
