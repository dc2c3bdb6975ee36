"""Accuracy of subnets with the weights that they inherit from a supernet."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas_dynamic.evaluation.parallel import as_they_come
from nas_dynamic.evaluation.prefix_cache import PrefixCache
from nas_dynamic.space import Architecture

__all__ = [
    "PRECISIONS",
    "Score",
    "autocast",
    "check_batch_norm",
    "evaluate",
    "evaluation_mode",
    "placed",
    "recalibrate",
    "score_subnets",
]

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
        loss: mean cross-entropy; NaN where the outputs are.
    """

    architecture: Architecture
    accuracy: float
    loss: float


def score_subnets(
    supernet: nn.Module,
    activate: Callable[[Any, Architecture], None],
    architectures: Iterable[Architecture],
    batches: Batches,
    *,
    batch_norm: Literal["recalibrate", "batch", "running"] = "recalibrate",
    calibration: Batches | None = None,
    precision: str = "32",
    layers: Mapping[str, Collection[str]] | None = None,
    devices: Sequence[torch.device | str] | None = None,
) -> Iterator[Score]:
    """Score subnets; each score is yielded as soon as it is there.

    A supernet's running statistics are a mixture over all subnets and fit none of them, so by
    default each subnet gets its own. Weights, buffers and modes of the supernet are the same
    before, between and after the scores. The active subnet is not: it is the one that was scored
    last, so activate the one to go on with. With `devices` the copies are activated.

    Images are read once and kept in memory, on the devices.

    Args:
        supernet: the trained supernet, on the device to score on.
        activate: makes the supernet compute a subnet: `activate(supernet, architecture)`.
        architectures: the subnets.
        batches: (images, labels) to score on.
        batch_norm: `"recalibrate"`: statistics of the subnet over `calibration`. `"batch"`:
            statistics of each scored batch, for supernets trained that way; scores then depend
            on the batch size. `"running"`: the supernet's own.
        calibration: training batches to recalibrate on.
        precision: a key of `PRECISIONS`.
        layers: path of a layer → labels that decide it, in the order in which they compute, as
            in `PrefixCache`: subnets that agree on the first layers share their computation.
        devices: to score on, each with a copy of the supernet in a thread of its own, in place of
            the supernet's device. `["cpu"] * 2` uses two cores better than two threads of torch
            do, if `torch.set_num_threads(1)` was called.

    Yields:
        Scores in the order of `architectures`; with `layers` or `devices`, in any order.

    Raises:
        ValueError: no calibration batches to recalibrate on; an unknown mode, precision or layer.
    """
    check_batch_norm(batch_norm, calibration)
    recalibrated_on = (
        list(calibration) if calibration is not None and batch_norm == "recalibrate" else []
    )
    scoring = _Scoring(
        activate, list(batches), recalibrated_on, batch_norm, precision, layers or {}
    )
    subnets = PrefixCache(supernet, scoring.layers).order(list(architectures))
    if not devices:
        yield from scoring.scores(supernet, subnets)
        return
    size = -(-len(subnets) // len(devices))  # neighbours share layers
    works = [
        functools.partial(
            scoring.scores,
            copy.deepcopy(supernet).to(device),
            subnets[number * size : (number + 1) * size],
        )
        for number, device in enumerate(devices)
    ]
    yield from as_they_come(works)


def check_batch_norm(batch_norm: str, calibration: Batches | None) -> None:
    """Check the arguments of `score_subnets` of these names.

    Raises:
        ValueError: there is no such mode, or it needs calibration batches.
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


@dataclass(frozen=True)
class _Scoring:
    """How subnets are scored, and on what."""

    activate: Callable[[Any, Architecture], None]
    batches: list[tuple[torch.Tensor, torch.Tensor]]
    calibration: list[tuple[torch.Tensor, torch.Tensor]]
    batch_norm: str
    precision: str
    layers: Mapping[str, Collection[str]]

    def scores(self, supernet: nn.Module, subnets: Sequence[Architecture]) -> Iterator[Score]:
        """Scores of subnets in their order."""
        shared = PrefixCache(supernet, self.layers)
        device = next(supernet.parameters()).device
        batches, calibration = placed(self.batches, device), placed(self.calibration, device)
        for position, architecture in enumerate(subnets):
            self.activate(supernet, architecture)
            shared.subnet(architecture, next(iter(subnets[position + 1 :]), None))
            with shared, _buffers_kept(supernet):
                if self.batch_norm == "recalibrate":
                    with shared.calibration(_count(calibration)):
                        recalibrate(supernet, calibration, precision=self.precision)
                with shared.phase("scores", _count(batches)):
                    accuracy, loss = evaluate(
                        supernet,
                        batches,
                        precision=self.precision,
                        batch_statistics=self.batch_norm == "batch",
                    )
            yield Score(architecture, accuracy, loss)


def placed(batches: Batches, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches on a device, in the memory format that scoring is fast with; no copy if they are."""
    return [(_placed(images, device), labels.to(device)) for images, labels in batches]


def _placed(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images where and how they are fast: depthwise convolutions take half the time or less."""
    if images.dim() == 4:
        return images.to(device, memory_format=torch.channels_last)
    return images.to(device)


def _count(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> int:
    return sum(len(labels) for _, labels in batches)


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
    with evaluation_mode(model, batch_statistics), autocast(device, precision):
        for images, labels in batches:
            labels = labels.to(device)
            logits = model(_placed(images, device)).float()
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

    # The layer then normalises by the buffers: a mean is much faster than the layer's own
    # statistics on a CPU. It need not heed its `momentum` either: NNI's sliced BN does not.
    def track(bn: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0].float()
        dims = [d for d in range(x.dim()) if d != 1]
        mean = x.mean(dims, keepdim=True)
        variance = (x - mean).square_().mean(dims)
        mean = mean.flatten()
        bn.get_buffer("running_mean")[: len(mean)] = mean
        bn.get_buffer("running_var")[: len(mean)] = variance
        count = x.numel() // len(mean)
        means[bn].add(torch.stack([mean, variance * (count / max(count - 1, 1))]))

    handles = [bn.register_forward_pre_hook(track) for bn in means]
    try:
        with evaluation_mode(model), autocast(device, precision):
            empty = True
            for images, _ in batches:
                model(_placed(images, device))
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
def evaluation_mode(model: nn.Module, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode, with `batch_statistics` but for BN; then the modes that there were."""
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
