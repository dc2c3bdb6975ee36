"""The small supernet as a one-shot experiment of NNI."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from nas_dynamic import SearchSpace, UniformSampler
from nas_dynamic.adapters.nni import SamplerOneShot, dynamic
from tests.hosts.tiny import BATCH, EPOCHS, LR, Supernet, Task, supernet


class Space(ModelSpace):
    """The layers of the small supernet, as choices of NNI's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        for label in ("layer1", "layer2", "layer3"):
            kernels = {str(k): nn.Conv2d(4, 4, k, padding=k // 2) for k in (1, 3, 5)}
            setattr(self, label, LayerChoice(kernels, label=label))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).tanh()
        for layer in (self.layer1, self.layer2, self.layer3):
            x = layer(x).tanh()
        return self.head(x.mean((2, 3)))


class Uniform(SamplerOneShot):
    """Draws what the other hosts draw: NNI's own strategy draws the same way from other numbers."""

    def build_sampler(self, module: Any, space: SearchSpace, group_by: str | None) -> Any:
        return UniformSampler(space, self.seed)


def train(task: Task, folder: Path) -> Supernet:
    """Train, and return the small supernet with the weights."""
    data = task.dataset()
    evaluator = Classification(
        optimizer=functools.partial(torch.optim.SGD, momentum=0.9),
        learning_rate=LR,
        weight_decay=1e-3,
        train_dataloaders=DataLoader(data, BATCH),
        val_dataloaders=DataLoader(data, BATCH),
        num_classes=3,
        max_epochs=EPOCHS,
        accumulate_grad_batches=task.accumulate,
        gradient_clip_val=task.clip,
        precision="bf16-mixed" if task.bf16 else "32-true",
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    strategy = dynamic(Uniform(), **task.dynamic)
    space, net = strategy.mutate_model(Space()), supernet()
    names = {name: name.replace("layers.", "") for name in net.state_dict()}
    own = space.state_dict()
    space.load_state_dict({names[name]: value for name, value in net.state_dict().items()})
    assert own.keys() == {*names.values()}
    strategy.mutate_evaluator(evaluator).evaluate(space)
    net.load_state_dict({name: space.state_dict()[there] for name, there in names.items()})
    return net
