"""Where a complexity stands in its space: by its logarithm between bounds, or by its rank."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from nas_dynamic.space import Architecture

__all__ = ["ROUNDING", "LogScale", "RankScale", "checked_complexity"]

ROUNDING = 1e-9
"""Relative difference of complexities that are equal but for rounding."""


def checked_complexity(
    measure: Callable[[Architecture], float], architecture: Architecture
) -> float:
    """Return a complexity as a float.

    Raises:
        ValueError: it is not a positive finite number.
    """
    complexity = float(measure(architecture))
    if not (math.isfinite(complexity) and complexity > 0):
        raise ValueError(
            f"complexity must be a positive finite number, got {complexity} "
            f"for architecture {dict(architecture)}"
        )
    return complexity


class LogScale:
    """`log(C / C_min) / log(C_max / C_min)`, in [0, 1]; C is clamped to the bounds.

    Args:
        bounds: (C_min, C_max).

    Raises:
        ValueError: the bounds are not positive and finite, or reversed.
    """

    def __init__(self, bounds: tuple[float, float]) -> None:
        self.bounds = c_min, c_max = float(bounds[0]), float(bounds[1])
        if not (math.isfinite(c_min) and math.isfinite(c_max) and c_min > 0):
            raise ValueError(f"bounds must be positive finite numbers, got {bounds}")
        if c_min > c_max:
            raise ValueError(f"bounds are (c_min, c_max); got {bounds}, which is reversed")

    def __call__(self, complexity: float) -> float:
        """Return the position of a complexity."""
        c_min, c_max = self.bounds
        return math.log(min(max(complexity, c_min), c_max) / c_min) / math.log(c_max / c_min)

    def covers(self, complexity: float) -> bool:
        """Return whether a complexity is within the bounds."""
        return self.bounds[0] <= complexity <= self.bounds[1]

    def definition(self) -> dict[str, Any]:
        """Return what decides the positions, as plain data."""
        return {"bounds": list(self.bounds)}


class RankScale:
    """The rank among the complexities of a population, in (0, 1); between them, interpolated.

    Args:
        population: complexities of subnets.

    Raises:
        ValueError: there is none, or one is not a positive finite number.
    """

    def __init__(self, population: Iterable[float]) -> None:
        values, counts = np.unique(np.array([*population], dtype=float), return_counts=True)
        if not (len(values) and np.isfinite(values).all() and values[0] > 0):
            raise ValueError(
                "the complexities of a population must be positive finite numbers, at least one; "
                f"got {len(values)} different ones"
                + (f", from {values[0]:g}" if len(values) else "")
            )
        self.bounds = float(values[0]), float(values[-1])
        # Sums of the same terms in another order, such as latencies, are the same complexity.
        first = np.flatnonzero(np.r_[True, np.diff(values) > ROUNDING * values[1:]])
        values, counts = values[first], np.add.reduceat(counts, first)
        self._values = values
        self._ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
        content = values.tobytes() + counts.astype("<i8").tobytes()
        self._digest = hashlib.sha256(content).hexdigest()[:16]

    def __call__(self, complexity: float) -> float:
        """Return the rank of a complexity."""
        return float(np.interp(complexity, self._values, self._ranks))

    def covers(self, complexity: float) -> bool:
        """Return True: a population is a sample, beyond which there may be others."""
        return True

    def definition(self) -> dict[str, Any]:
        """Return what decides the ranks, as plain data."""
        return {"population": self._digest, "bounds": list(self.bounds)}
