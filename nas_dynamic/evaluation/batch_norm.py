"""Batch normalisation of a subnet: a supernet's running statistics fit none of its subnets."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas_dynamic.evaluation.inference import Batches, at_once, autocast, evaluation_mode

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
    parts = 0  # batches that are computed at once

    # The layer then normalises by the buffers: a mean is much faster than the layer's own
    # statistics on a CPU. It need not heed its `momentum` either: NNI's sliced BN does not.
    def track(bn: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        x = inputs[0].float().unflatten(0, (parts, -1))
        dims = [d for d in range(1, x.dim()) if d != 2]
        mean = x.mean(dims, keepdim=True)
        variance = (x - mean).square_().mean(dims, keepdim=True)
        channels = x.shape[2]
        count = x[0].numel() // channels
        unbiased = variance * (count / max(count - 1, 1))
        statistics[bn].append(torch.stack([mean.flatten(1), unbiased.flatten(1)], 1))
        if parts == 1:
            _set_statistics(bn, channels, mean.flatten(), variance.flatten())
            return None
        # The buffers hold one mean and one variance, so each batch is normalised ahead of it.
        _set_statistics(bn, channels, 0.0, 1.0 - float(bn.eps))  # type: ignore[arg-type]
        normalised = (x - mean) * (variance + bn.eps).rsqrt_()
        return (normalised.flatten(0, 1).to(inputs[0].dtype), *inputs[1:])

    handles = [bn.register_forward_pre_hook(track) for bn in batch_norm_layers(model)]
    try:
        with evaluation_mode(model), autocast(device, precision):
            for images, _, together in at_once(batches, device):
                parts = together
                model(images)
    finally:
        for handle in handles:
            handle.remove()
    if not parts:
        raise ValueError("there is no image to recalibrate on: the batches are empty")
    for bn, of_batches in statistics.items():
        mean, variance = torch.cat(of_batches).mean(0)
        _set_statistics(bn, len(mean), mean, variance)


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


def _set_statistics(
    bn: nn.Module, channels: int, mean: torch.Tensor | float, variance: torch.Tensor | float
) -> None:
    bn.get_buffer("running_mean")[:channels] = mean
    bn.get_buffer("running_var")[:channels] = variance
