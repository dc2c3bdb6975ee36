"""Batch normalisation of a subnet: a supernet's running statistics fit none of its subnets."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas_dynamic.evaluation.inference import Batches, autocast, evaluation_mode, images_on

__all__ = [
    "BatchNormMode",
    "batch_norm_layers",
    "buffers_kept",
    "check_batch_norm",
    "recalibrate",
]

BatchNormMode = Literal["recalibrate", "batch", "running"]
"""Which statistics a subnet is scored with; see `score_subnets`."""


def check_batch_norm(batch_norm: str, calibration: Batches | None) -> None:
    """Check the arguments of `score_subnets` of these names.

    Raises:
        ValueError: there is no such mode, or it needs calibration batches.
    """
    if batch_norm not in get_args(BatchNormMode):
        raise ValueError(
            f"batch_norm must be 'recalibrate', 'batch' or 'running', got {batch_norm!r}"
        )
    if batch_norm == "recalibrate" and calibration is None:
        raise ValueError(
            "batch_norm='recalibrate' needs calibration batches, some hundred training images; "
            "give calibration=…, or choose another batch_norm"
        )


@torch.inference_mode()
def recalibrate(model: nn.Module, batches: Batches, *, precision: str = "32") -> None:
    """Set the running statistics of BN layers to their mean over batches, in place.

    Each batch counts the same, as in torch's `BatchNorm2d(momentum=None)`. Layers that the
    model does not reach keep what they had, and so do the channels beyond those that a sliced
    layer uses. Everything but BN is in evaluation mode.

    Raises:
        ValueError: there are no batches, or the precision is unknown.
    """
    device = next(model.parameters()).device
    statistics: defaultdict[nn.Module, list[torch.Tensor]] = defaultdict(list)

    # The layer then normalises by the buffers: a mean is much faster than the layer's own
    # statistics on a CPU. It need not heed its `momentum` either: NNI's sliced BN does not.
    def track(bn: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].float()
        dims = [d for d in range(x.dim()) if d != 1]
        mean = x.mean(dims, keepdim=True)
        variance = (x - mean).square_().mean(dims)
        mean = mean.flatten()
        _set_statistics(bn, mean, variance)
        count = x.numel() // len(mean)
        statistics[bn].append(torch.stack([mean, variance * (count / max(count - 1, 1))]))

    handles = [bn.register_forward_pre_hook(track) for bn in batch_norm_layers(model)]
    try:
        with evaluation_mode(model), autocast(device, precision):
            empty = True
            for images, _ in batches:
                model(images_on(device, images))
                empty = False
    finally:
        for handle in handles:
            handle.remove()
    if empty:
        raise ValueError("there is no image to recalibrate on: the batches are empty")
    for bn, of_batches in statistics.items():
        _set_statistics(bn, *torch.stack(of_batches).mean(0))


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the BN layers of a model that have running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put the buffers of BN layers back afterwards."""
    buffers = [buffer for bn in batch_norm_layers(model) for buffer in bn.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


def _set_statistics(bn: nn.Module, mean: torch.Tensor, variance: torch.Tensor) -> None:
    bn.get_buffer("running_mean")[: len(mean)] = mean
    bn.get_buffer("running_var")[: len(variance)] = variance
