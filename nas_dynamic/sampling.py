"""Samplers: which subnet, or subnets, a training step takes.

Every sampler draws from a generator of its own, so that a seed decides the sequence and no other
generator is read or advanced; `state_dict` and `load_state_dict` continue it exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["FairSampler", "Sampler", "SandwichSampler", "UniformSampler", "partition"]

Accept = Callable[[Architecture], bool]
Drawn = TypeVar("Drawn")

_ATTEMPTS = 1000


class Sampler(Protocol):
    """What draws the subnet, or the subnets, of each training step."""

    def sample(self) -> Architecture | Sequence[Architecture]:
        """Draw the subnet, or the subnets, of the next step."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state, as plain data."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


class _SeededSampler:
    """A generator of its own, and shuffled decks that are dealt from it."""

    def __init__(self, space: SearchSpace, seed: int = 0, accept: Accept | None = None) -> None:
        self.space = space
        self.accept = accept
        self._generator = np.random.default_rng(seed)
        self._decks: dict[str, list[int]] = {}

    def _deal(self, name: str, size: int) -> int:
        """Return the next of `size` cards; an empty deck is shuffled anew."""
        if not self._decks.get(name):
            self._decks[name] = self._generator.permutation(size).tolist()
        return self._decks[name].pop()

    def _uniform(self, space: SearchSpace) -> dict[str, Hashable]:
        """Draw a subnet that is accepted."""
        return _accepted(lambda: space.sample(self._generator), self.accept)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator and of the decks, as plain data."""
        decks = {name: list(deck) for name, deck in self._decks.items()}
        return {"generator": self._generator.bit_generator.state, "decks": decks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._generator.bit_generator.state = state["generator"]
        self._decks = {name: list(deck) for name, deck in state["decks"].items()}


class UniformSampler(_SeededSampler):
    """One subnet a step, every choice drawn uniformly and independently (SPOS).

    Args:
        space: what to draw from.
        seed: of the sampler's own generator.
        accept: draws again until it holds, for constraints such as a maximum of parameters.

    Source: Guo et al., "Single Path One-Shot NAS with Uniform Sampling", ECCV 2020.

    Example:
        >>> sampler = UniformSampler(SearchSpace({"layer1": ["conv3", "conv5"]}), seed=0)
        >>> [sampler.sample()["layer1"] for _ in range(3)]
        ['conv5', 'conv5', 'conv5']
    """

    def sample(self) -> dict[str, Hashable]:
        """Draw the subnet of the next step."""
        return self._uniform(self.space)


class FairSampler(_SeededSampler):
    """K subnets a step, in which every candidate of every choice is trained once (FairNAS).

    K is the greatest number of candidates of any choice. Each choice deals from a shuffled deck of
    its candidates, and shuffles a new one when it is empty. A choice of K candidates so has each
    of them exactly once a step. One of n < K candidates has each of them exactly K times in every
    n steps, and in a single step a number of times that differs from K/n by less than 2.

    Args:
        space: what to draw from.
        seed: of the sampler's own generator.
        group_by: a label that all subnets of one step agree in, so that they are of one momentum
            group; its candidates take turns, each once in as many steps as it has candidates.
        accept: draws the whole step again until it holds for all K subnets.

    Source: Chu et al., "FairNAS: Rethinking Evaluation Fairness of Weight Sharing NAS", ICCV 2021.

    Example:
        >>> sampler = FairSampler(SearchSpace({"layer1": ["conv3", "conv5"], "layer2": [1, 2]}))
        >>> sampler.sample()
        [{'layer1': 'conv5', 'layer2': 2}, {'layer1': 'conv3', 'layer2': 1}]
    """

    def __init__(
        self,
        space: SearchSpace,
        seed: int = 0,
        group_by: str | None = None,
        accept: Accept | None = None,
    ) -> None:
        super().__init__(space, seed, accept)
        _check_label(space, group_by)
        self.group_by = group_by
        self.subnets = max(
            (len(c) for label, c in space.choices.items() if label != group_by), default=1
        )
        """K, the number of subnets a step."""

    def sample(self) -> list[dict[str, Hashable]]:
        """Draw the K subnets of the next step."""
        before = {label: list(deck) for label, deck in self._decks.items()}
        hands: dict[str, list[Hashable]] = {}

        def deal_step() -> list[dict[str, Hashable]]:
            for label, candidates in self.space.choices.items():
                grouped = label == self.group_by
                if label in hands:  # not accepted: cards go back, but the group keeps its turn
                    if grouped:
                        continue
                    self._decks[label] = self._generator.permutation(before.get(label, [])).tolist()
                cards = [
                    self._deal(label, len(candidates))
                    for _ in range(1 if grouped else self.subnets)
                ]
                hand = [candidates[card] for card in cards]
                hands[label] = hand * self.subnets if grouped else hand
            return [{label: hand[k] for label, hand in hands.items()} for k in range(self.subnets)]

        accept = self.accept
        return _accepted(deal_step, accept and (lambda subnets: all(map(accept, subnets))))


class SandwichSampler(_SeededSampler):
    """The largest subnet, the smallest, and some random ones in every step (BigNAS).

    Args:
        space: what to draw from.
        complexity: what large and small mean.
        randoms: number of random subnets a step.
        seed: of the sampler's own generator.
        group_by: a label that all subnets of one step agree in, so that they are of one momentum
            group; its candidates take turns, each once in as many steps as it has candidates,
            and the ends are the largest and the smallest subnet with that candidate.
        accept: draws a random subnet again until it holds; the ends are always taken.

    Source: Yu et al., "BigNAS: Scaling Up NAS with Big Single-Stage Models", ECCV 2020.

    Example:
        >>> space = SearchSpace({"width": [8, 16, 24], "depth": [1, 2]})
        >>> sampler = SandwichSampler(space, lambda a: a["width"] * a["depth"], randoms=1)
        >>> sampler.sample()[:2]
        [{'width': 24, 'depth': 2}, {'width': 8, 'depth': 1}]
    """

    def __init__(
        self,
        space: SearchSpace,
        complexity: Callable[[Architecture], float],
        randoms: int = 2,
        seed: int = 0,
        group_by: str | None = None,
        accept: Accept | None = None,
    ) -> None:
        super().__init__(space, seed, accept)
        _check_label(space, group_by)
        if randoms < 0:
            raise ValueError(f"randoms must be at least 0, got {randoms}")
        self.randoms = randoms
        groups = partition(space, [group_by]) if group_by else [space]
        self._groups = [(g, g.largest(complexity), g.smallest(complexity)) for g in groups]

    def sample(self) -> list[dict[str, Hashable]]:
        """Draw the subnets of the next step: largest, smallest, then the random ones."""
        group, largest, smallest = self._groups[self._deal("groups", len(self._groups))]
        randoms = [self._uniform(group) for _ in range(self.randoms)]
        return [dict(largest), dict(smallest), *randoms]


def partition(space: SearchSpace, labels: Sequence[str]) -> list[SearchSpace]:
    """Split a space into disjoint sub-spaces, one for each way to choose at the labels.

    Source: Zhao et al., "Few-Shot Neural Architecture Search", ICML 2021.

    Example:
        >>> space = SearchSpace({"layer1": ["conv3", "conv5"], "depth": [2, 3]})
        >>> [s.choices["layer1"] for s in partition(space, ["layer1"])]
        [('conv3',), ('conv5',)]
    """
    for label in labels:
        _check_label(space, label)
    return [
        space.restrict({label: [c] for label, c in zip(labels, chosen, strict=True)})
        for chosen in itertools.product(*(space.choices[label] for label in labels))
    ]


def _accepted(draw: Callable[[], Drawn], accept: Callable[[Drawn], bool] | None) -> Drawn:
    for _ in range(_ATTEMPTS):
        drawn = draw()
        if accept is None or accept(drawn):
            return drawn
    raise RuntimeError(
        f"none of {_ATTEMPTS} draws was accepted; loosen the constraint, or restrict the space "
        "to candidates that meet it"
    )


def _check_label(space: SearchSpace, label: str | None) -> None:
    if label is not None and label not in space.choices:
        raise ValueError(
            f"the space has no choice {label!r}; labels are {', '.join(map(repr, space.labels))}"
        )
