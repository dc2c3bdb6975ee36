"""The small supernet in Hugging Face's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from nas_dynamic.adapters.transformers import DynamicSupernet
from tests.hosts.tiny import BATCH, EPOCHS, LR, Supernet, Task, loss_of, sgd, supernet


class Model(nn.Module):
    """A model that tells its loss, as those of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = supernet()

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": loss_of(self.net, images, labels)}


class Examples(Dataset[Any]):
    def __init__(self, task: Task) -> None:
        # Of ranks each takes its part, every second batch, of one data set.
        self.data = (task if task.rank is None else Task(accumulate=2)).dataset()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        images, labels = self.data[number]
        return {"images": images, "labels": labels}


def trainer_of(
    task: Task, folder: Path, callbacks: Any = None, model: Any = None, **arguments: Any
) -> Trainer:
    settings = TrainingArguments(
        folder,
        **{
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": BATCH,
            "gradient_accumulation_steps": task.accumulate,
            "max_grad_norm": task.clip or 0,
            "bf16": task.bf16,
            "learning_rate": LR,
            "lr_scheduler_type": "constant",
            "train_sampling_strategy": "sequential",
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_strategy": "no",
        }
        | arguments,
    )
    model = Model() if model is None else model
    callbacks = callbacks or [DynamicSupernet(**task.dynamic)]
    return Trainer(
        model,
        settings,
        train_dataset=Examples(task),
        callbacks=callbacks,
        optimizers=(sgd(model), None),
    )


def train(task: Task, folder: Path, *, resume: Any = None, **arguments: Any) -> Supernet:
    trainer = trainer_of(task, folder, **arguments)
    trainer.train(resume_from_checkpoint=resume)
    return trainer.model.net
