"""Small vision transformers, and spaces of them."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer

SIZES = {
    "depth": [2, 3],
    "embed_dim": [24, 36, 48],
    "heads": [1, 4],
    "mlp_ratio": [1.5, 4],
    "attention": ["softmax", "linear"],
}


SPACES = {
    "uniform": {
        "depth": [1, 2, 3],
        "embed_dim": [12, 24, 36, 48],
        "mlp_ratio": [1.5, 4],
        "per_layer": False,
    },
    "per layer": {k: SIZES[k] for k in ("depth", "embed_dim", "heads", "mlp_ratio")},
    "mixed attention": SIZES,
}


def tiny(**arguments):
    """A model of four heads of width 12, all of whose weights are random."""
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 3, "num_heads": 4}
    model = VisionTransformer(**sizes | {"num_classes": 5} | arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def images(batch=3, size=16):
    return torch.randn(batch, 3, size, size)
