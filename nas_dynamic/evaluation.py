"""Accuracy of subnets with the weights that they inherit from a supernet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas_dynamic.architecture import Architecture

__all__ = ["PRECISIONS", "Score", "autocast", "evaluate", "recalibrate", "score_subnets"]

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]

PRECISIONS: dict[str, torch.dtype | None] = {
    "32": None,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}
"""Precision by Lightning's name → the dtype of autocast, None for none."""


@dataclass(frozen=True, slots=True)
class Score:
    """What one subnet scored.

    Attributes:
        architecture: the subnet.
        accuracy: share of images that are classified correctly, in [0, 1].
        loss: mean cross-entropy.
    """

    architecture: Architecture
    accuracy: float
    loss: float


def score_subnets(
    supernet: nn.Module,
    activate: Callable[[Architecture], None],
    architectures: Iterable[Architecture],
    batches: Batches,
    *,
    batch_norm: Literal["recalibrate", "batch", "running"] = "recalibrate",
    calibration: Batches | None = None,
    precision: str = "32",
) -> Iterator[Score]:
    """Score subnets one after the other; each score is yielded as soon as it is there.

    A supernet's running statistics are a mixture over all subnets and fit none of them, so by
    default each subnet gets its own. Weights, buffers and modes of the supernet are the same
    before, between and after the scores.

    Args:
        supernet: the trained supernet, on the device to score on.
        activate: makes the supernet compute a subnet.
        architectures: the subnets.
        batches: (images, labels) to score on, the same ones each time that they are iterated.
        batch_norm: `"recalibrate"`: statistics of the subnet over `calibration`. `"batch"`:
            statistics of each scored batch, for supernets trained that way; scores then depend
            on the batch size. `"running"`: the supernet's own.
        calibration: training batches to recalibrate on, the same ones each time.
        precision: a key of `PRECISIONS`.

    Raises:
        ValueError: no calibration batches to recalibrate on; an unknown mode or precision.
    """
    if batch_norm not in ("recalibrate", "batch", "running"):
        raise ValueError(
            f"batch_norm must be 'recalibrate', 'batch' or 'running', got {batch_norm!r}"
        )
    if batch_norm == "recalibrate" and calibration is None:
        raise ValueError(
            "batch_norm='recalibrate' needs calibration batches, some hundred training images; "
            "give calibration=…, or choose another batch_norm"
        )
    for architecture in architectures:
        activate(architecture)
        with _buffers_kept(supernet):
            if batch_norm == "recalibrate":
                assert calibration is not None
                recalibrate(supernet, calibration, precision=precision)
            accuracy, loss = evaluate(
                supernet, batches, precision=precision, batch_statistics=batch_norm == "batch"
            )
        yield Score(architecture, accuracy, loss)


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Batches, *, precision: str = "32", batch_statistics: bool = False
) -> tuple[float, float]:
    """Accuracy and mean cross-entropy of a classifier in evaluation mode.

    With `batch_statistics` the BN layers normalise, and track, as in training.

    Raises:
        ValueError: there is no image, or the precision is unknown.
    """
    device = next(model.parameters()).device
    correct, loss, count = torch.zeros((), device=device), torch.zeros((), device=device), 0
    with _evaluation_mode(model, batch_statistics), autocast(device, precision):
        for images, labels in batches:
            labels = labels.to(device)
            logits = model(images.to(device)).float()
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            count += len(labels)
    if not count:
        raise ValueError("there is no image to evaluate on: the batches are empty")
    return correct.item() / count, loss.item() / count


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
    means: dict[nn.Module, _RunningMean] = {bn: _RunningMean() for bn in _batch_norms(model)}

    # From the inputs, since a layer need not heed its `momentum`: NNI's sliced BN does not.
    def track(bn: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].float()
        variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != 1])
        means[bn].add(torch.stack([mean, variance]))

    handles = [bn.register_forward_pre_hook(track) for bn in means]
    try:
        with _evaluation_mode(model, batch_statistics=True), autocast(device, precision):
            empty = True
            for images, _ in batches:
                model(images.to(device))
                empty = False
    finally:
        for handle in handles:
            handle.remove()
    if empty:
        raise ValueError("there is no image to recalibrate on: the batches are empty")
    for bn, statistics in means.items():
        if statistics.value is not None:
            mean, variance = statistics.value
            bn.get_buffer("running_mean")[: len(mean)] = mean
            bn.get_buffer("running_var")[: len(variance)] = variance


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """The autocast context of a precision.

    Raises:
        ValueError: the precision is not a key of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()


class _RunningMean:
    def __init__(self) -> None:
        self.value: torch.Tensor | None = None
        self.count = 0

    def add(self, value: torch.Tensor) -> None:
        self.count += 1
        if self.value is None:
            self.value = value
        else:
            self.value += (value - self.value) / self.count


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module, batch_statistics: bool) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    if batch_statistics:
        for bn in _batch_norms(model):
            bn.train()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    buffers = [buffer for bn in _batch_norms(model) for buffer in bn.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)
