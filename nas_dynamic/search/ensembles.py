"""Ensembles of subnets, found by the logits of the subnets alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nas_dynamic._extras import extra
from nas_dynamic.space import Architecture

with extra("search"):
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting
    from scipy.special import log_softmax

__all__ = ["Ensemble", "EnsemblesResult", "search_ensembles"]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Subnets whose probabilities are averaged.

    Attributes:
        architectures: the members.
        accuracy: share of images that the mean classifies correctly, in [0, 1].
        loss: mean cross entropy of the mean.
        diversity: share of images that two members classify differently, the mean over pairs; 0
            for a subnet by itself.
        cost: sum over the members.
    """

    architectures: tuple[Architecture, ...]
    accuracy: float
    loss: float
    diversity: float
    cost: float


@dataclass(frozen=True, eq=False)
class EnsemblesResult:
    """What was found within a total cost.

    Attributes:
        ensembles: all that were looked at, subnets by themselves among them.
    """

    ensembles: Sequence[Ensemble]

    @property
    def best(self) -> Ensemble:
        """The ensemble of the lowest loss, the first of equals."""
        return min(self.ensembles, key=lambda ensemble: ensemble.loss)

    @property
    def best_single(self) -> Ensemble | None:
        """The subnet that has the lowest loss by itself; None where none is cheap enough."""
        single = [e for e in self.ensembles if len(e.architectures) == 1]
        return min(single, key=lambda ensemble: ensemble.loss) if single else None

    @property
    def front(self) -> list[Ensemble]:
        """Ensembles that no other one beats: of no higher loss and no less diversity."""
        costs = np.array([[e.loss, -e.diversity] for e in self.ensembles])
        chosen = NonDominatedSorting().do(costs, only_non_dominated_front=True)
        return [self.ensembles[number] for number in sorted(chosen)]


def search_ensembles(
    architectures: Sequence[Architecture],
    logits: Callable[[Architecture], np.ndarray],
    labels: np.ndarray,
    cost: Callable[[Architecture], float],
    *,
    at_most: float,
    sizes: Iterable[int] = (1, 2, 3),
    extended: int | None = 200,
) -> EnsemblesResult:
    """Look for the best ensembles of scored subnets whose costs add up to a limit at most.

    An ensemble of small subnets is held against the best single one of the same total cost. All
    pairs are looked at; triples, and larger ones, extend the best ensembles of one member less.

    Args:
        architectures: the scored subnets.
        logits: architecture → its logits, (images, classes), such as `KeptLogits(…).__getitem__`.
        labels: classes of the images, (images,).
        cost: architecture → its cost, such as MACs.
        at_most: greatest total cost.
        sizes: numbers of members to report.
        extended: how many ensembles of a size are extended by a further member, those of the lowest
            losses; None: all.

    Raises:
        ValueError: no subnet is cheap enough, or logits and labels do not fit.

    Source: Chen et al., "One-Shot Neural Ensemble Architecture Search by Diversity-Guided Search
    Space Shrinking" (NEAS), CVPR 2021.
    """
    wanted = set(sizes)
    priced = [(float(cost(a)), a) for a in architectures]
    subnets = [(price, a) for price, a in priced if price <= at_most]
    if not subnets or not wanted or min(wanted) < 1:
        cheapest = min((price for price, _ in priced), default=float("nan"))
        raise ValueError(
            f"no ensemble of sizes {sorted(wanted)} costs {at_most:g} at most: the cheapest of "
            f"{len(priced)} subnets costs {cheapest:g}"
        )
    scores = _Scores([a for _, a in subnets], logits, labels)
    prices = np.array([price for price, _ in subnets])
    found: list[Ensemble] = []
    members: list[tuple[int, ...]] = [(number,) for number in range(len(subnets))]
    for size in range(1, max(wanted) + 1):
        made = [scores.ensemble(of, float(prices[list(of)].sum())) for of in members]
        if size in wanted:
            found += made
        order = np.argsort([ensemble.loss for ensemble in made], kind="stable")
        kept = [members[row] for row in (order if size == 1 else order[:extended])]
        members = list(_extended(kept, prices, at_most))
    return EnsemblesResult(found)


def _extended(
    ensembles: Iterable[tuple[int, ...]], prices: np.ndarray, at_most: float
) -> Iterator[tuple[int, ...]]:
    """Yield the ensembles with one member more, each set of members once."""
    seen: set[tuple[int, ...]] = set()
    for of in ensembles:
        left = at_most - prices[list(of)].sum()
        for number in np.flatnonzero(prices <= left).tolist():
            larger = tuple(sorted((*of, number)))
            if number not in of and larger not in seen:
                seen.add(larger)
                yield larger


class _Scores:
    """Probabilities of the right classes of subnets, and what each classifies images as."""

    def __init__(
        self,
        architectures: Sequence[Architecture],
        logits: Callable[[Architecture], np.ndarray],
        labels: np.ndarray,
    ) -> None:
        self.architectures, self.labels = architectures, np.asarray(labels)
        self.probabilities: list[np.ndarray] = []
        for architecture in architectures:
            values = np.asarray(logits(architecture), dtype=np.float32)
            if values.ndim != 2 or len(values) != len(self.labels):
                raise ValueError(
                    f"logits must be of shape ({len(self.labels)}, classes) as there are "
                    f"{len(self.labels)} labels, got {values.shape} of {dict(architecture)}"
                )
            self.probabilities.append(np.exp(log_softmax(values, axis=1)))
        self.classified = np.stack([p.argmax(1) for p in self.probabilities])

    def ensemble(self, members: tuple[int, ...], cost: float) -> Ensemble:
        mean = sum(self.probabilities[number] for number in members) / np.float32(len(members))
        assert isinstance(mean, np.ndarray)
        right = mean[np.arange(len(mean)), self.labels]
        pairs = list(itertools.combinations(members, 2))
        differ = [(self.classified[i] != self.classified[j]).mean() for i, j in pairs]
        return Ensemble(
            tuple(self.architectures[number] for number in members),
            float((mean.argmax(1) == self.labels).mean()),
            float(-np.log(np.maximum(right, 1e-30)).mean()),
            float(np.mean(differ)) if differ else 0.0,
            cost,
        )
