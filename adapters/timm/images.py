"""What a timm model says of the images that it takes."""

from __future__ import annotations

import copy

import torch
from timm.layers import to_2tuple
from torch import nn

__all__ = ["copy_data_config", "example_images"]


def copy_data_config(source: nn.Module, target: nn.Module) -> None:
    """Give a model what `timm.data.resolve_data_config` reads of another one."""
    for name in ("pretrained_cfg", "default_cfg"):
        if hasattr(source, name):
            setattr(target, name, copy.deepcopy(getattr(source, name)))


def example_images(
    model: nn.Module, image_size: int | tuple[int, int] | None = None
) -> torch.Tensor:
    """Return one image of zeros of the size that the model is made for, on the meta device."""
    config = getattr(model, "pretrained_cfg", None) or {}
    channels, *size = config.get("input_size") or (3, 224, 224)
    channels = getattr(model, "in_chans", channels)
    sizes = (getattr(module, "img_size", None) for module in model.modules())
    own = next(filter(None, sizes), None)  # of the first embedding of patches
    return torch.zeros(1, channels, *to_2tuple(image_size or own or size), device="meta")
