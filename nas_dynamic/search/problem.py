"""What a strategy sees of a search: a space, what is known without scoring, what is left of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from nas_dynamic.search.objective import Limits, Objective, Values
from nas_dynamic.space import Architecture, SearchSpace

__all__ = ["Encoding", "Evaluations", "Problem", "Strategy", "as_keys"]

Encoding = tuple[int, ...]
"""`SearchSpace.encode` of a subnet, by which a search looks it up."""

ENUMERATED = 20_000
"""Spaces of up to so many architectures are listed in full, which makes drawing exact."""


def as_keys(encodings: np.ndarray) -> list[Encoding]:
    """Return the rows of encodings, shape (subnets, choices), as what they are looked up by."""
    return list(map(tuple, encodings.tolist()))


class Evaluations(NamedTuple):
    """What came of the subnets that a strategy proposed.

    Attributes:
        costs: the objectives to minimise, shape (subnets, objectives).
        violation: of the limits, 0 where all hold; shape (subnets,).
    """

    costs: np.ndarray
    violation: np.ndarray


class Strategy(Protocol):
    """Decides which subnets to evaluate; deterministic in its arguments and the evaluations.

    Example:
        >>> from nas_dynamic.search import search
        >>> def one_by_one(problem, seed):
        ...     generator = np.random.default_rng(seed)
        ...     while len(proposed := problem.draw(generator, 1)):
        ...         costs, violation = yield proposed
        >>> space = SearchSpace({"width": [8, 16, 24], "depth": [1, 2]})
        >>> score = lambda subnets: [{"size": a["width"] * a["depth"]} for a in subnets]
        >>> search(space, score, [Objective("size")], budget=6, strategy=one_by_one).best.values
        {'size': 8.0}
    """

    def __call__(self, problem: Problem, seed: int) -> Generator[np.ndarray, Evaluations, None]:
        """Yield encodings, int64 of shape (subnets, choices), and receive their evaluations.

        Encodings are those of `SearchSpace.encode`, allowed by `problem` and never proposed
        before. Returns when there is nothing left to propose.
        """
        ...


class Problem:
    """The search space seen by a strategy: encodings, limits that cost nothing, what is left.

    Args:
        space: the architectures.
        objectives: one or several.
        measures: name → architecture → value, for what is known without an evaluation, such as
            parameters, MACs, or a latency table.
        limits: bounds of measures and of scored values. A subnet beyond a bound of a measure is
            never proposed.

    Raises:
        ValueError: no architecture is within the limits of measures, or a measure that a limit
            reads is NaN; in a space too large to list, once that is met.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: Sequence[Objective],
        measures: Mapping[str, Callable[[Architecture], float]],
        limits: Limits,
    ) -> None:
        self.space, self.objectives, self.limits = space, list(objectives), limits
        self.measures = dict(measures)
        self.widths = np.array([len(candidates) for candidates in space.choices.values()])
        self.proposed: set[Encoding] = set()
        self._free = limits.of(list(self.measures))
        self._open: np.ndarray | None = None
        if space.size <= ENUMERATED:
            self._open = np.ones(space.size, dtype=bool)
            if self._free.names:
                self._open[:] = [self.allows(row) for row in self._unravel(np.arange(space.size))]
                if not self._open.any():
                    raise ValueError(self._unreachable(self._free))

    def measured(self, architecture: Architecture) -> dict[str, float]:
        """Return the free measures of a subnet."""
        return {name: float(measure(architecture)) for name, measure in self.measures.items()}

    def allows(self, encoding: Sequence[int] | np.ndarray) -> bool:
        """Tell whether the free measures of a subnet are within the limits."""
        return self._within(encoding, self._free)

    def mark(self, encodings: np.ndarray) -> None:
        """Note that subnets were proposed."""
        self.proposed.update(as_keys(encodings))
        if self._open is not None:
            self._open[np.ravel_multi_index(tuple(encodings.T), tuple(self.widths))] = False

    def remaining(self) -> np.ndarray | None:
        """Return all allowed subnets not yet proposed; None where the space is too large."""
        return None if self._open is None else self._unravel(np.flatnonzero(self._open))

    def draw(
        self, generator: np.random.Generator, count: int, at_most: Values | None = None
    ) -> np.ndarray:
        """Draw different allowed subnets that were not proposed, shape (≤ count, choices).

        Uniform where the space can be listed or most subnets are allowed. Elsewhere random
        subnets are changed, one random choice after the other, until they are allowed.

        Args:
            generator: draws.
            count: how many; fewer come back where no more are found.
            at_most: free measure → its greatest value in this draw.

        Raises:
            ValueError: no subnet within the limits was found, and none was proposed yet; or no free
                measure has that name.
        """
        at_most = at_most or {}
        if unknown := sorted(set(at_most) - set(self.measures)):
            raise ValueError(
                f"{unknown} is no free measure; free measures are {sorted(self.measures)}"
            )
        if self._open is not None and not at_most:
            left = np.flatnonzero(self._open)
            return self._unravel(generator.choice(left, min(count, len(left)), replace=False))
        limits = self._free.capped(at_most)
        found: dict[Encoding, None] = {}
        misses, any_allowed = 0, False
        while len(found) < count and misses < 100 + 10 * count:
            for row in generator.integers(self.widths, size=(count, len(self.widths))):
                # Rejection keeps the draw uniform, so a walk is the exception.
                if misses % 20 == 19 and not self._within(row, limits):
                    row = self._walk(row, limits, generator)
                key = tuple(row.tolist())
                allowed = self._within(key, limits)
                any_allowed |= allowed
                if not allowed or key in self.proposed or key in found:
                    misses += 1
                elif len(found) < count:
                    found[key] = None
        if not any_allowed and not self.proposed:
            raise ValueError(self._unreachable(limits))
        return np.array(list(found), dtype=np.int64).reshape(-1, len(self.widths))

    def one_hot(self, encodings: np.ndarray) -> np.ndarray:
        """Return `SearchSpace.one_hot` of encodings, float32 of shape (subnets, candidates)."""
        hot = np.zeros((len(encodings), self.widths.sum()), dtype=np.float32)
        columns = np.cumsum([0, *self.widths[:-1]]) + encodings
        np.put_along_axis(hot, columns, 1, axis=1)
        return hot

    def _unravel(self, numbers: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(numbers, tuple(self.widths)), axis=1)

    def _within(self, encoding: Sequence[int] | np.ndarray, limits: Limits) -> bool:
        return not limits.names or self._violation(encoding, limits) == 0

    def _violation(self, encoding: Sequence[int] | np.ndarray, limits: Limits) -> float:
        architecture = self.space.decode(encoding)
        measured = {name: self.measures[name](architecture) for name in limits.names}
        unknown = sorted(name for name, value in measured.items() if math.isnan(value))
        if unknown:
            raise ValueError(f"limits read {unknown}, which must not be NaN, of {architecture}")
        return limits.violation(measured)

    def _walk(self, row: np.ndarray, limits: Limits, generator: np.random.Generator) -> np.ndarray:
        """Change random choices one by one, each nearer to the limits, as far as that leads."""
        moves = [
            (i, candidate) for i, width in enumerate(self.widths) for candidate in range(width)
        ]
        violation, nearer = self._violation(row, limits), True
        while violation and nearer:
            nearer = False
            for choice, candidate in generator.permutation(moves):
                changed = row.copy()
                changed[choice] = candidate
                if (less := self._violation(changed, limits)) < violation:
                    row, violation, nearer = changed, less, True
                    break
        return row

    def _unreachable(self, limits: Limits) -> str:
        ends = "; ".join(
            f"{name} goes from {measure(self.space.smallest(measure)):g} to "
            f"{measure(self.space.largest(measure)):g}"
            for name, measure in self.measures.items()
            if name in limits.names
        )
        return f"no architecture found within {limits}; {ends}. Widen the limits"
