"""How a model runs that is not trained: its mode, its precision, where its images lie."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

__all__ = ["PRECISIONS", "Batches", "autocast", "evaluation_mode", "images_on", "placed"]

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Batches of (images, labels)."""

PRECISIONS: dict[str, torch.dtype | None] = {
    "32": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""Precision by Lightning's name → the dtype of autocast, None for none."""


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards every module has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def autocast(device: torch.device, precision: str) -> torch.autocast | contextlib.nullcontext[None]:
    """Return the autocast context of a precision.

    Raises:
        ValueError: the precision is not a key of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


def images_on(device: torch.device, images: torch.Tensor) -> torch.Tensor:
    """Move images to where and how they are fast; depthwise convolutions take half the time."""
    if images.dim() == 4:
        return images.to(device, memory_format=torch.channels_last)
    return images.to(device)


def placed(batches: Batches, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Move batches to a device, as `images_on` does; what is there already is not copied."""
    return [(images_on(device, images), labels.to(device)) for images, labels in batches]
