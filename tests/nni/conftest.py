from __future__ import annotations

import functools

import pytest

pytest.importorskip("nni")
import nni
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.hub.pytorch import (
    DARTS,
    AutoFormer,
    MobileNetV3Space,
    NasBench201,
    ProxylessNAS,
    ShuffleNetSpace,
)
from nni.nas.nn.pytorch import InputChoice, ModelSpace, MutableConv2d, Repeat


class Kernels(ModelSpace):
    """Candidates that are tuples by themselves, beside a choice of several inputs."""

    def __init__(self):
        super().__init__()
        first, second = (nni.choice(f"kernel{i}", [(1, 3), (3, 1), (3, 3)]) for i in range(2))
        self.stem = MutableConv2d(3, 8, kernel_size=first)
        self.middle = MutableConv2d(8, 8, kernel_size=second)
        self.blocks = Repeat(lambda i: torch.nn.Conv2d(8, 8, 1), nni.choice("depth", [1, 2, 3]))
        self.inputs = InputChoice(n_candidates=4, n_chosen=2, label="inputs")
        self.classifier = torch.nn.Linear(8, 10)

    def forward(self, x):
        x = self.blocks(self.middle(self.stem(x)).relu()).mean((2, 3))
        return self.classifier(self.inputs([x, 2 * x, x.exp(), x.cos()]))


# name → model space at small size, and the shape of its images
HUB = {
    "NasBench201": (lambda: NasBench201(4, 1, 10), (3, 8, 8)),
    "ProxylessNAS": (lambda: ProxylessNAS(10, width_mult=0.25), (3, 32, 32)),
    "MobileNetV3": (
        lambda: MobileNetV3Space(
            10, width_multipliers=(0.25, 0.5), expand_ratios=(1.0, 2.0), depth_range=(1, 2)
        ),
        (3, 32, 32),
    ),
    "ShuffleNet": (lambda: ShuffleNetSpace(10), (3, 32, 32)),
    "ShuffleNet-channels": (lambda: ShuffleNetSpace(10, channel_search=True), (3, 32, 32)),
    "AutoFormer": (
        lambda: AutoFormer(
            search_embed_dim=(24, 48),
            search_num_heads=(3, 4),
            search_depth=(2, 3),
            img_size=16,
            patch_size=4,
            num_labels=10,
        ),
        (3, 16, 16),
    ),
    "DARTS": (lambda: DARTS(width=4, num_cells=3), (3, 16, 16)),
    "tuples": (Kernels, (3, 8, 8)),
    "DARTS-width-depth": (lambda: DARTS(width=(4, 8), num_cells=(6, 9)), (3, 16, 16)),
}

SGD = functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True)


@pytest.fixture(params=HUB)
def hub(request):
    """Return a hub space's constructor and the shape of its images."""
    return HUB[request.param]


@pytest.fixture
def classification(tmp_path):
    """Build a quiet evaluator on random images."""

    def build(shape=(3, 8, 8), examples=24, batch=4, **kwargs):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(examples, *shape, generator=generator)
        labels = torch.randint(10, (examples,), generator=generator)
        data = torch.utils.data.TensorDataset(images, labels)
        defaults = {
            "optimizer": SGD,
            "learning_rate": 0.05,
            "weight_decay": 1e-3,
            "train_dataloaders": DataLoader(data, batch),
            "val_dataloaders": DataLoader(data, examples),
            "num_classes": 10,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "default_root_dir": str(tmp_path),
            "accelerator": "cpu",
        }
        return Classification(**(defaults | kwargs))

    return build
