"""How a model runs that is not trained: its mode, its precision, where its images lie."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

__all__ = [
    "PRECISIONS",
    "Batches",
    "at_once",
    "autocast",
    "evaluation_mode",
    "images_on",
    "placed",
]

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Batches of (images, labels)."""

PRECISIONS: dict[str, torch.dtype | None] = {
    "32": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""Precision by Lightning's name → the dtype of autocast, None for none."""

AT_ONCE = {"cuda": 64 * 2**20}
"""Kind of device → bytes of images that it computes at once; elsewhere a batch at a time."""


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
    """Move images to where and how they are fast.

    On a CPU depthwise convolutions take half the time in channels_last. On a GPU it saves a third,
    but cuDNN plans each convolution that it has not met, for seconds a subnet, where the contiguous
    layout has torch's own depthwise kernels.
    """
    if images.dim() == 4 and device.type == "cpu":
        return images.to(device, memory_format=torch.channels_last)
    return images.to(device)


def placed(batches: Batches, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Move batches to a device, as `images_on` does; what is there already is not copied."""
    return [(images_on(device, images), labels.to(device)) for images, labels in batches]


def at_once(
    batches: Batches, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yield (images, labels, number of batches that they are) on a device.

    A GPU takes as long to be told of a layer as to compute it for some thousand small images, so
    consecutive batches of one size go there together. An image alone decides what it comes out as
    in evaluation mode, and so does a batch for its statistics.
    """
    limit = AT_ONCE.get(device.type, 0)
    waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def together() -> tuple[torch.Tensor, torch.Tensor, int]:
        if len(waiting) == 1:
            return *waiting[0], 1
        images, labels = (torch.cat(tensors) for tensors in zip(*waiting, strict=True))
        return images, labels, len(waiting)

    for images, labels in placed(batches, device):
        size = images.element_size() * images.numel() * (len(waiting) + 1)
        if waiting and (images.shape != waiting[0][0].shape or size > limit):
            yield together()
            waiting.clear()
        waiting.append((images, labels))
    if waiting:
        yield together()
