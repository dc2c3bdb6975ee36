"""Scores of many subnets with inherited weights, and how well they rank the subnets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.nb201.data import Table
from benchmarks.nb201.supernet import Cell, LiveEdge, Supernet, live_edges, macs, parameters
from nas_dynamic import Architecture
from nas_dynamic.analysis.ranking import kendall_tau

__all__ = ["Scores", "measures", "regret_of", "score", "split_deviation", "top_measures"]


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


def measures(table: Table, scores: Scores) -> dict[str, float | int]:
    """Measure how well scores of equal batches rank a table's architectures.

    The deviation of a τ is what the choice of test images adds to its spread.
    """
    accuracy, truth = scores.accuracy.mean(1), table.accuracy
    values = {
        "tau": kendall_tau(accuracy, truth),
        "tau_deviation": split_deviation(scores.accuracy, truth),
        "tau_loss": kendall_tau(-scores.loss.mean(1), truth),
        "tau_loss_deviation": split_deviation(-scores.loss, truth),
        "mean_accuracy": accuracy.mean(),
    }
    values |= top_measures(accuracy, truth)
    by_loss = top_measures(-scores.loss.mean(1), truth)
    values |= {f"{name}_loss": value for name, value in by_loss.items()}
    for measure in (parameters, macs):
        baseline = [measure(architecture) for architecture in table.architectures]
        values[f"tau_{measure.__name__}"] = kendall_tau(np.array(baseline), truth)
    rounded = {name: round(float(value), 5) for name, value in values.items()}
    return {"architectures": len(truth)} | rounded


def top_measures(ranking: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Measure what a search is after: regrets of the first, and τ within the truth's best tenth."""
    best = np.argsort(-truth, kind="stable")[: math.ceil(len(truth) / 10)]
    values = {f"regret_{count}": regret_of(count, ranking, truth) for count in (1, 10, 100)}
    return values | {"tau_top": kendall_tau(ranking[best], truth[best])}


def regret_of(count: int, ranking: np.ndarray, truth: np.ndarray) -> float:
    """Return what the best of the `count` ranked first lacks of the best of all."""
    first = np.argsort(-ranking, kind="stable")[:count]
    return float(truth.max() - truth[first].max())


def split_deviation(scores: np.ndarray, truth: np.ndarray, splits: int = 50) -> float:
    """Estimate the deviation of τ over draws of the batches that scores (n, batches) average.

    From τ on random halves of the batches: the difference of two halves has twice the variance of
    one, which has about twice that of all batches. (A jackknife over batches gave up to twice the
    true value where τ is close to 1.)
    """
    draw, batches, squares = np.random.default_rng(0), scores.shape[1], []
    for _ in range(splits):
        order = draw.permutation(batches)
        first, second = order[: batches // 2], order[batches // 2 :]
        difference = kendall_tau(scores[:, first].mean(1), truth) - kendall_tau(
            scores[:, second].mean(1), truth
        )
        squares.append(difference**2)
    return math.sqrt(np.mean(squares) / 4)


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
