"""Accuracy of many subnets with inherited weights, computing what they share once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.nb201.supernet import Cell, LiveEdge, Supernet, live_edges
from nas_dynamic import Architecture

__all__ = ["Scores", "score"]


@dataclass(frozen=True)
class Scores:
    """What n subnets answered in each batch of test images.

    The loss orders subnets with less noise from the choice of images than the accuracy does.

    Attributes:
        accuracy: shares of right answers, shape (n, batches).
        loss: mean cross-entropies, shape (n, batches).
    """

    accuracy: np.ndarray
    loss: np.ndarray


@torch.inference_mode()
def score(
    supernet: Supernet,
    architectures: Sequence[Architecture],
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> Scores:
    """Score subnets with the supernet's weights.

    The batch norms use the statistics of a batch: the batches are part of the definition of the
    score. The first cell, whose input all subnets share, computes an edge once for all subnets
    that agree on what leads to it.
    """
    live = [live_edges(architecture) for architecture in architectures]
    scores = Scores(*np.zeros((2, len(live), len(batches))))
    # Neighbours in this order share their path to node 2, so that only one of those is kept.
    order = sorted(range(len(live)), key=lambda i: live[i])
    for number, (images, classes) in enumerate(batches):
        shared = _SharedCell(supernet.stages[0][0], supernet.features(images))
        for i in order:
            if live[i]:
                logits = supernet.classify(shared(live[i]), live[i])
            else:
                logits = supernet.logits_without_path(len(images))
            right = (logits.argmax(1) == classes).sum() / len(classes)
            scores.accuracy[i, number] = float(right)
            scores.loss[i, number] = float(F.cross_entropy(logits, classes))
    return scores


class _SharedCell:
    """A cell with one input that remembers its edges: each by what leads to its source."""

    def __init__(self, cell: Cell, x: torch.Tensor) -> None:
        self.cell = cell
        self._nodes: dict[tuple[int, tuple[LiveEdge, ...]], torch.Tensor] = {(0, ()): x}
        self._edges: dict[tuple[LiveEdge, tuple[LiveEdge, ...]], torch.Tensor] = {}
        self._second: tuple[LiveEdge, ...] = ()

    def __call__(self, live: tuple[LiveEdge, ...]) -> torch.Tensor:
        second = _leading_to(2, live)
        if second != self._second:  # subnets come sorted: that node 2 does not return
            self._nodes.pop((2, self._second), None)
            self._edges = {key: value for key, value in self._edges.items() if key[0][1] != 2}
            self._second = second
        return self._sum(3, live)

    def _sum(self, node: int, live: tuple[LiveEdge, ...]) -> torch.Tensor:
        terms = [self._edge(edge, live) for edge in live if edge[2] == node]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def _edge(self, edge: LiveEdge, live: tuple[LiveEdge, ...]) -> torch.Tensor:
        number, source, _, operation = edge
        leading = _leading_to(source, live)
        if (edge, leading) not in self._edges:
            if (source, leading) not in self._nodes:
                self._nodes[source, leading] = self._sum(source, leading)
            node = self._nodes[source, leading]
            self._edges[edge, leading] = self.cell.edge(number, operation, node)
        return self._edges[edge, leading]


def _leading_to(node: int, live: tuple[LiveEdge, ...]) -> tuple[LiveEdge, ...]:
    return tuple([edge for edge in live if edge[2] <= node])
