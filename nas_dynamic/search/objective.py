"""What is searched for: objectives and hard limits, of measures of a subnet."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_dynamic.space import candidate_text

__all__ = ["Limits", "MnasReward", "Objective", "described"]

Values = Mapping[str, float]
"""Measure, or score, by name."""


def described(value: Any) -> str:
    """Return what a value is, the same in every process: a function by its name, no addresses."""
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
        """Return the objective as a number to minimise."""
        value = float(self.value(values) if self.value else values[self.name])
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
        """Return the reward of one subnet."""
        ratio = values[self.latency] / self.target
        return float(values[self.accuracy] * ratio ** (self.below if ratio <= 1 else self.above))


@dataclass(frozen=True, eq=False)
class Limits:
    """Hard bounds of measures, both ends included.

    Args:
        at_most: measure → its greatest value.
        at_least: measure → its least value.
    """

    at_most: Values = field(default_factory=dict)
    at_least: Values = field(default_factory=dict)

    def __str__(self) -> str:
        most = (f"{name} ≤ {bound:g}" for name, bound in self.at_most.items())
        least = (f"{name} ≥ {bound:g}" for name, bound in self.at_least.items())
        return ", ".join([*most, *least])

    @property
    def names(self) -> set[str]:
        """The measures that are bounded."""
        return {*self.at_most, *self.at_least}

    def of(self, names: Sequence[str]) -> Limits:
        """Return the bounds of some measures."""
        return Limits(
            {name: bound for name, bound in self.at_most.items() if name in names},
            {name: bound for name, bound in self.at_least.items() if name in names},
        )

    def capped(self, at_most: Values) -> Limits:
        """Return these bounds and further greatest values."""
        tightest = {
            name: min(bound, self.at_most.get(name, bound)) for name, bound in at_most.items()
        }
        return Limits({**self.at_most, **tightest}, self.at_least)

    def violation(self, values: Values) -> float:
        """Return the sum of the distances beyond bounds, relative to each; 0 if all hold."""
        beyond = [(values[name] - bound, bound) for name, bound in self.at_most.items()]
        beyond += [(bound - values[name], bound) for name, bound in self.at_least.items()]
        return sum(excess / (abs(bound) or 1.0) for excess, bound in beyond if excess > 0)
