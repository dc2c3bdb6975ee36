"""The small supernet under mmengine's Runner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from nas_dynamic.adapters import mmengine
from tests.hosts.tiny import EPOCHS, Supernet, Task, loss_of, sgd, supernet

assert mmengine.DynamicSupernetHook  # registered by its import


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.net = supernet()

    def forward(self, images: torch.Tensor, labels: torch.Tensor, mode: str = "tensor") -> Any:
        if mode == "loss":
            return {"loss": loss_of(self.net, images, labels)}
        return self.net(images)


def runner_of(task: Task, folder: Path, model: Any = None, **settings: Any) -> Runner:
    model = Model() if model is None else model
    wrapper: dict[str, Any] = {"optimizer": sgd(model), "accumulative_counts": task.accumulate}
    if task.clip is not None:
        wrapper["clip_grad"] = {"max_norm": task.clip}
    return Runner(
        model,
        work_dir=str(folder),
        train_dataloader=task.loader(),
        optim_wrapper=wrapper,
        experiment_name=f"{folder.name}-{id(model)}",  # one of each name in a process
        **{
            "train_cfg": {"by_epoch": True, "max_epochs": EPOCHS},
            "custom_hooks": [{"type": "DynamicSupernetHook", **task.dynamic}],
            "default_hooks": {"checkpoint": None},
            "log_level": "ERROR",
        }
        | settings,
    )


def train(task: Task, folder: Path, **settings: Any) -> Supernet:
    runner = runner_of(task, folder, **settings)
    runner.train()
    model = runner.model
    return getattr(model, "module", model).net
