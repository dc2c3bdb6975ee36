"""What a search looks for: objectives, free measures, limits, and the subnets not yet asked for."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from nas_dynamic.space import Architecture, SearchSpace, candidate_text

__all__ = ["Evaluations", "Limits", "MnasReward", "Objective", "Problem", "Strategy", "described"]

Values = Mapping[str, float]
Encoding = Sequence[int] | np.ndarray
ENUMERATED = 20_000
"""Spaces of up to so many architectures are listed in full, which makes drawing exact."""


def described(value: Any) -> str:
    """What a value is, the same in every process: a function by its name, no addresses."""
    if isinstance(value, functools.partial):
        parts = [described(part) for part in (value.func, *value.args)]
        parts += [f"{name}={described(part)}" for name, part in value.keywords.items()]
        return f"partial({', '.join(parts)})"
    if isinstance(value, types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return candidate_text(value)


@dataclass(frozen=True)
class Objective:
    """One thing to minimise or to maximise.

    Args:
        name: of the measure that it reads; of the objective itself where `value` is given.
        maximize: whether more is better.
        value: measures of one subnet → the objective, such as `MnasReward`.
    """

    name: str
    maximize: bool = False
    value: Callable[[Values], float] | None = None

    @property
    def description(self) -> str:
        """What it is, the same in every process."""
        goal = f"{'maximize' if self.maximize else 'minimize'} {self.name}"
        return goal if self.value is None else f"{goal} = {described(self.value)}"

    def cost(self, values: Values) -> float:
        """The objective as a number to minimise."""
        value = self.value(values) if self.value else values[self.name]
        return -value if self.maximize else value


@dataclass(frozen=True)
class MnasReward:
    """`accuracy · (latency / target)^w`, to be maximised.

    Args:
        target: latency, or another complexity, to aim at; same unit as the measure.
        below: w up to the target; 0 is indifferent to slack.
        above: w beyond it; −1 is nearly a hard limit.
        accuracy: name of the measure of accuracy.
        latency: name of the measure of latency.

    Source: Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile", CVPR
    2019, equations 2 and 3.
    """

    target: float
    below: float = -0.07
    above: float = -0.07
    accuracy: str = "accuracy"
    latency: str = "latency"

    def __call__(self, values: Values) -> float:
        """The reward of one subnet."""
        ratio = values[self.latency] / self.target
        return values[self.accuracy] * ratio ** (self.below if ratio <= 1 else self.above)


@dataclass(frozen=True)
class Limits:
    """Hard bounds of measures, both ends included.

    Args:
        at_most: measure → its greatest value.
        at_least: measure → its least value.
    """

    at_most: Values = field(default_factory=dict)
    at_least: Values = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The measures that are bounded."""
        return {*self.at_most, *self.at_least}

    def of(self, names: Sequence[str]) -> Limits:
        """The bounds of some measures."""
        return Limits(
            {name: bound for name, bound in self.at_most.items() if name in names},
            {name: bound for name, bound in self.at_least.items() if name in names},
        )

    def violation(self, values: Values) -> float:
        """Sum of the distances beyond bounds, each relative to its bound; 0 if all hold."""
        beyond = [(values[name] - bound, bound) for name, bound in self.at_most.items()]
        beyond += [(bound - values[name], bound) for name, bound in self.at_least.items()]
        return sum(excess / (abs(bound) or 1.0) for excess, bound in beyond if excess > 0)


class Evaluations(NamedTuple):
    """What a strategy is told of the subnets that it asked for.

    Attributes:
        costs: the objectives to minimise, shape (subnets, objectives).
        violation: of the limits, 0 where all hold; shape (subnets,).
    """

    costs: np.ndarray
    violation: np.ndarray


class Strategy(Protocol):
    """Decides which subnets to evaluate. Deterministic in its arguments and what it is told."""

    def __call__(self, problem: Problem, seed: int) -> Generator[np.ndarray, Evaluations, None]:
        """Yield encodings, int64 of shape (subnets, choices), and receive their outcome.

        Encodings are those of `SearchSpace.encode`, allowed by `problem` and never asked for
        before. Returns when there is nothing left to ask for.
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
            never asked for.

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
        self.asked: set[tuple[int, ...]] = set()
        self._free = limits.of(list(self.measures))
        self._open: np.ndarray | None = None
        if space.size <= ENUMERATED:
            self._open = np.ones(space.size, dtype=bool)
            if self._free.names:
                self._open[:] = [self.allows(row) for row in self._unravel(np.arange(space.size))]
                if not self._open.any():
                    raise ValueError(self._unreachable(self._free))

    def measured(self, architecture: Architecture) -> dict[str, float]:
        """The free measures of a subnet."""
        return {name: float(measure(architecture)) for name, measure in self.measures.items()}

    def allows(self, encoding: Encoding) -> bool:
        """Whether the free measures of a subnet are within the limits."""
        return self._within(encoding, self._free)

    def mark(self, encodings: np.ndarray) -> None:
        """Note that subnets were asked for."""
        self.asked.update(map(tuple, encodings.tolist()))
        if self._open is not None:
            self._open[np.ravel_multi_index(tuple(encodings.T), tuple(self.widths))] = False

    def remaining(self) -> np.ndarray | None:
        """All allowed subnets that were not asked for; None where the space is too large."""
        return None if self._open is None else self._unravel(np.flatnonzero(self._open))

    def draw(
        self, generator: np.random.Generator, count: int, within: Limits | None = None
    ) -> np.ndarray:
        """Different allowed subnets that were not asked for, shape (≤ count, choices).

        Uniform where the space can be listed or most subnets are allowed. Elsewhere random
        subnets are changed, one random choice after the other, until they are allowed.

        Args:
            generator: draws.
            count: how many; fewer come back where no more are found.
            within: further bounds of free measures, for this draw.

        Raises:
            ValueError: no subnet within the limits was found, and none was asked for yet.
        """
        if self._open is not None and within is None:
            left = np.flatnonzero(self._open)
            return self._unravel(generator.choice(left, min(count, len(left)), replace=False))
        limits = self._joined(within)
        found: dict[tuple[int, ...], None] = {}
        misses, any_allowed = 0, False
        while len(found) < count and misses < 100 + 10 * count:
            for row in generator.integers(self.widths, size=(count, len(self.widths))):
                # Rejection keeps the draw uniform, so a walk is the exception.
                if misses % 20 == 19 and not self._within(row, limits):
                    row = self._walk(row, limits, generator)
                key = tuple(row.tolist())
                allowed = self._within(key, limits)
                any_allowed |= allowed
                if not allowed or key in self.asked or key in found:
                    misses += 1
                elif len(found) < count:
                    found[key] = None
        if not any_allowed and not self.asked:
            raise ValueError(self._unreachable(limits))
        return np.array(list(found), dtype=np.int64).reshape(-1, len(self.widths))

    def one_hot(self, encodings: np.ndarray) -> np.ndarray:
        """`SearchSpace.one_hot` of many encodings, float32 of shape (subnets, candidates)."""
        hot = np.zeros((len(encodings), self.widths.sum()), dtype=np.float32)
        columns = np.cumsum([0, *self.widths[:-1]]) + encodings
        np.put_along_axis(hot, columns, 1, axis=1)
        return hot

    def _unravel(self, numbers: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(numbers, tuple(self.widths)), axis=1)

    def _joined(self, within: Limits | None) -> Limits:
        if within is None:
            return self._free
        unknown = within.names - set(self.measures)
        if unknown:
            raise ValueError(
                f"{sorted(unknown)} is no free measure; free measures are {sorted(self.measures)}"
            )
        at_most, at_least = dict(self._free.at_most), dict(self._free.at_least)
        for name, bound in within.at_most.items():
            at_most[name] = min(bound, at_most.get(name, bound))
        for name, bound in within.at_least.items():
            at_least[name] = max(bound, at_least.get(name, bound))
        return Limits(at_most, at_least)

    def _within(self, encoding: Encoding, limits: Limits) -> bool:
        return not limits.names or self._violation(encoding, limits) == 0

    def _violation(self, encoding: Encoding, limits: Limits) -> float:
        architecture = self.space.decode(encoding)
        measured = {name: self.measures[name](architecture) for name in limits.names}
        unknown = sorted(name for name, value in measured.items() if math.isnan(value))
        if unknown:
            raise ValueError(f"limits read {unknown}, which must not be NaN, of {architecture}")
        return limits.violation(measured)

    def _walk(self, row: np.ndarray, limits: Limits, generator: np.random.Generator) -> np.ndarray:
        """Random changes of one choice, each nearer to the limits, as far as they lead."""
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
