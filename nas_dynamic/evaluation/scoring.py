"""Accuracy of subnets with the weights that they inherit from a supernet."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nas_dynamic.evaluation.batch_norm import (
    BatchNormMode,
    batch_norm_layers,
    buffers_kept,
    check_batch_norm,
    recalibrate,
)
from nas_dynamic.evaluation.inference import (
    Batches,
    at_once,
    autocast,
    evaluation_mode,
    images_on,
    placed,
)
from nas_dynamic.evaluation.logits import KeptLogits
from nas_dynamic.evaluation.prefix_cache import PrefixCache
from nas_dynamic.space import Architecture

__all__ = ["Score", "evaluate", "score_subnets"]


@dataclass(frozen=True, slots=True, eq=False)
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
    batch_norm: BatchNormMode = "recalibrate",
    calibration: Batches | None = None,
    precision: str = "32",
    layers: Mapping[str, Collection[str]] | None = None,
    devices: Sequence[torch.device | str] | None = None,
    logits: KeptLogits | None = None,
) -> Iterator[Score]:
    """Score subnets, and yield each score as soon as it is there.

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
        logits: where the logits of each subnet are kept, in the order of the images.

    Yields:
        Scores in the order of `architectures`; with `layers` or `devices`, in any order.

    Raises:
        ValueError: no calibration batches to recalibrate on; an unknown mode, precision or layer.
    """
    check_batch_norm(batch_norm, calibration)
    scored_on, recalibrated_on = list(batches), []
    if batch_norm == "recalibrate" and calibration is not None:
        recalibrated_on = list(calibration)

    def scores(supernet: nn.Module, subnets: Sequence[Architecture]) -> Iterator[Score]:
        device = next(supernet.parameters()).device
        images, recalibration = placed(scored_on, device), placed(recalibrated_on, device)
        cache = PrefixCache(supernet, layers or {})
        for architecture, following in zip(subnets, [*subnets[1:], None], strict=False):
            activate(supernet, architecture)
            with cache.subnet(architecture, following), buffers_kept(supernet):
                if batch_norm == "recalibrate":
                    with cache.calibration(_count(recalibration)):
                        recalibrate(supernet, recalibration, precision=precision)
                cache.phase("scores", _count(images))
                outputs: list[torch.Tensor] | None = None if logits is None else []
                accuracy, loss = evaluate(
                    supernet,
                    images,
                    precision=precision,
                    batch_statistics=batch_norm == "batch",
                    outputs=outputs,
                )
            if logits is not None and outputs is not None:
                logits.keep(architecture, torch.cat(outputs).cpu().numpy())
            yield Score(architecture, accuracy, loss)

    subnets = PrefixCache(supernet, layers or {}).order(list(architectures))
    if not devices:
        yield from scores(supernet, subnets)
        return
    size = -(-len(subnets) // len(devices))  # neighbours share layers
    yield from _as_completed(
        [
            scores(copy.deepcopy(supernet).to(device), subnets[number * size :][:size])
            for number, device in enumerate(devices)
        ]
    )


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Batches,
    *,
    precision: str = "32",
    batch_statistics: bool = False,
    outputs: list[torch.Tensor] | None = None,
) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy of a classifier in evaluation mode.

    With `batch_statistics` the BN layers normalise, and track, as in training. The logits are
    appended to `outputs`, if it is given.

    Raises:
        ValueError: there is no image, or the precision is unknown.
    """
    device = next(model.parameters()).device
    correct, loss, count = torch.zeros((), device=device), torch.zeros((), device=device), 0
    with evaluation_mode(model), autocast(device, precision):
        if batch_statistics:
            for bn in batch_norm_layers(model):
                bn.train()
        for images, labels in _passes(batches, device, batch_statistics):
            logits = model(images).float()
            if outputs is not None:
                outputs.append(logits)
            loss += nn.functional.cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(1) == labels).sum()
            count += len(labels)
    if not count:
        raise ValueError("there is no image to evaluate on: the batches are empty")
    right, total = torch.stack([correct, loss]).tolist()  # waits for the device once
    return right / count, total / count


def _passes(
    batches: Batches, device: torch.device, one_by_one: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    if one_by_one:
        for images, labels in batches:
            yield images_on(device, images), labels.to(device)
    else:
        for images, labels, _ in at_once(batches, device):
            yield images, labels


def _count(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> int:
    return sum(len(labels) for _, labels in batches)


def _as_completed(iterators: Sequence[Iterator[Score]]) -> Iterator[Score]:
    """Yield the items of all iterators as they are ready, each iterator in a thread at a time.

    A reader that stops early waits for the items that the threads are at, and so does an error.
    """
    with ThreadPoolExecutor(len(iterators)) as pool:
        working: dict[Future[Score | None], Iterator[Score]] = {
            pool.submit(next, iterator, None): iterator for iterator in iterators
        }
        while working:
            for future in wait(working, return_when=FIRST_COMPLETED).done:
                iterator = working.pop(future)
                if (item := future.result()) is not None:
                    working[pool.submit(next, iterator, None)] = iterator
                    yield item
