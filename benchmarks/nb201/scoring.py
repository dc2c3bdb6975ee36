"""Scores of many subnets with inherited weights, and how well they rank the subnets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau

from benchmarks.nb201.data import Table
from benchmarks.nb201.supernet import Cell, LiveEdge, Supernet, live_edges, macs, parameters
from nas_dynamic import Architecture

__all__ = ["Scores", "measures", "score"]


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
    """How well scores of equal batches rank a table's architectures.

    τ on each half of the images, even and odd batches, shows what scoring adds to its spread.
    """
    accuracy, truth = scores.accuracy.mean(1), table.accuracy
    best_first = np.argsort(-accuracy, kind="stable")
    values = {"tau": _tau(accuracy, truth), "tau_loss": _tau(-scores.loss.mean(1), truth)}
    for half in (0, 1):
        values[f"tau_half_{half}"] = _tau(scores.accuracy[:, half::2].mean(1), truth)
        values[f"tau_loss_half_{half}"] = _tau(-scores.loss[:, half::2].mean(1), truth)
    values |= {
        "mean_accuracy": accuracy.mean(),
        "regret_1": truth.max() - truth[best_first[0]],
        "regret_10": truth.max() - truth[best_first[:10]].max(),
    }
    for measure in (parameters, macs):
        baseline = [measure(architecture) for architecture in table.architectures]
        values[f"tau_{measure.__name__}"] = _tau(np.array(baseline), truth)
    rounded = {name: round(float(value), 5) for name, value in values.items()}
    return {"architectures": len(truth)} | rounded


def _tau(predicted: np.ndarray, truth: np.ndarray) -> float:
    return kendalltau(predicted, truth).statistic


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
