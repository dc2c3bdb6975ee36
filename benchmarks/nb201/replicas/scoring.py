"""Scores of many subnets with the weights of all replicas at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from benchmarks.nb201.replicas.launches import capture, compile_all, run_all
from benchmarks.nb201.replicas.layout import Layout
from benchmarks.nb201.replicas.network import Network
from benchmarks.nb201.replicas.plan import operations_of
from benchmarks.nb201.scoring import Scores
from nas_dynamic import Architecture

__all__ = ["score_replicas"]

Launches = Sequence[Callable[[], None]]


def score_replicas(
    layout: Layout,
    flat: torch.Tensor,
    precision: str,
    architectures: Sequence[Architecture],
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    say: Callable[[str], None] = lambda text: None,
) -> list[Scores]:
    """Score subnets as `score` does; those with the same live edges are computed once.

    Args:
        layout: of the weights.
        flat: weights of every replica, [M, layout.size].
        precision: of the network's numbers.
        architectures: the subnets.
        batches: normalized images and classes, all of one size.
        say: takes a line on each batch.
    """
    images, classes = batches[0]
    network = Network(layout, flat, len(classes), images.shape[-1], precision)
    distinct, place = np.unique(operations_of(architectures), axis=0, return_inverse=True)
    table = torch.from_numpy(np.pad(distinct, ((0, 0), (0, 2)))).to(flat.device)
    step = torch.zeros(1, dtype=torch.int64, device=flat.device)
    found = torch.zeros(2, len(table), len(flat), dtype=network.dtype, device=flat.device)

    def read_table() -> None:
        torch.index_select(table, 0, step, out=network.ops)

    def write_scores() -> None:
        found.index_copy_(1, step, torch.stack([network.right, network.loss])[:, None])
        step.add_(1)

    def show(images: torch.Tensor, classes: torch.Tensor) -> None:
        network.images[:, :, :3] = images.permute(0, 2, 3, 1).reshape(-1, 3).to(network.dtype)
        network.classes.copy_(classes.expand_as(network.classes))
        step.zero_()

    launches = [read_table, *network.forward, write_scores]
    show(images, classes)
    of_images, of_subnet = _runs(network.stem, flat), _runs(launches, flat)
    say(f"{len(table)} different subnets of {len(architectures)}")
    answers = []
    for number, (images, classes) in enumerate(batches):
        show(images, classes)
        of_images()
        for _ in range(len(table)):
            of_subnet()
        answers.append(found.cpu().clone())
        say(f"batch {number + 1} of {len(batches)}")
    accuracy, loss = torch.stack(answers, -1)[:, place.reshape(-1)].numpy()
    return [Scores(accuracy[:, m], loss[:, m]) for m in range(len(flat))]


def _runs(launches: Launches, flat: torch.Tensor) -> Callable[[], None]:
    if not flat.is_cuda:
        return lambda: run_all(launches)
    compile_all(launches)
    return capture(launches)
