"""CaLR: a learning rate that decays by the complexity of each subnet.

Source: Jeon et al., "Subnet-Aware Dynamic Supernet Training for Neural Architecture Search",
CVPR 2025, arXiv 2503.10740.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np

from nas_dynamic.space import Architecture

__all__ = ["CURVES", "CaLR"]


def _polynomial(progress: float) -> float:
    return 1 - progress


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _cosine_power(progress: float, power: float = 10.0) -> float:
    # Hundt et al., "sharpDARTS", 2019, arXiv 1903.09900: an exponential between the ends of cosine.
    return (power ** (_cosine(progress) + 1) - power) / (power**2 - power)


CURVES: dict[str, Callable[[float], float]] = {
    "polynomial": _polynomial,
    "cosine": _cosine,
    "cosine-power": _cosine_power,
}
"""Decay curves by name: progress in [0, 1] → decay ratio, from 1 to 0."""


ROUNDING = 1e-9
"""Relative difference of complexities that are equal but for rounding."""


class CaLR:
    """Complexity-aware learning rate: `lr_t(α) = lr_0 · s(t)^γ(α)`.

    γ is linear in the logarithm of the subnet's complexity C, `γ_max` for the smallest subnet of
    the space and `γ_min` for the largest: small subnets anneal early, large ones keep learning.

        γ(α) = γ_max − (γ_max − γ_min) · log(C(α) / C_min) / log(C_max / C_min)

    With a `population` γ goes by rank: log γ is linear in q, the rank of C(α) among the
    complexities of the population, in (0, 1). With γ_min = 1/γ_max the mean of log γ over the
    population is then 0: small subnets hand learning rate over to large ones.

        γ(α) = γ_max^(1 − q) · γ_min^q

    Args:
        complexity: complexity of an architecture, > 0: parameters (as in the paper), MACs, latency.
        total_steps: T, the number of steps, one update each, of the whole training. Not needed
            with `curve="scheduler"`.
        bounds: (C_min, C_max) of the space, in the units of `complexity`, for the paper's γ. A
            complexity outside of them is clamped, so that γ stays within its own bounds.
        population: complexities of subnets as they are sampled, such as those of
            `nas_dynamic.complexity.population`, in place of bounds: γ by rank.
        gamma_max: γ of the smallest subnet.
        gamma_min: γ of the largest subnet; 1/γ_max by default. With γ_max all subnets have the
            same γ, and may have the same complexity.
        curve: s. `"polynomial"` (1 − t/T, the paper's), `"cosine"`, `"cosine-power"`
            (sharpDARTS), or a callable from progress in [0, 1] to a finite ratio, below 0 taken
            as 0. These multiply the optimizer's lr. `"scheduler"` takes the decay from the lr
            scheduler that the optimizer already has, s = lr / (its peak so far), and bends that:
            a warm-up, where the lr is at its peak, stays as scheduled.
        warmup_steps: updates of linear warm-up ahead of the curve. γ does not bend them.
        anneal: what the decay applies to. `"lr"`: the lr, and with it weight decay; where a step
            takes several subnets, the mean of their lrs, and each loss is weighed by its
            subnet's share. `"loss"`: the weight of each loss alone, as in the paper's experiments
            with several subnets a step; weight decay is then not annealed. Losses are multiplied
            by `DynamicTraining.loss_weights`.

    Raises:
        ValueError: names the argument and what it may be.

    Example:
        >>> calr = CaLR(lambda a: a["width"], total_steps=100, bounds=(1, 16))
        >>> calr.gamma({"width": 1}), calr.gamma({"width": 4}), calr.gamma({"width": 16})
        (4.0, 2.125, 0.25)
        >>> calr.factor({"width": 1}, step=50)
        0.0625
    """

    def __init__(
        self,
        complexity: Callable[[Architecture], float],
        *,
        total_steps: int | None = None,
        bounds: tuple[float, float] | None = None,
        population: Iterable[float] | None = None,
        gamma_max: float = 4.0,
        gamma_min: float | None = None,
        curve: str | Callable[[float], float] = "polynomial",
        warmup_steps: int = 0,
        anneal: Literal["lr", "loss"] = "lr",
    ) -> None:
        if anneal not in ("lr", "loss"):
            raise ValueError(f"anneal must be 'lr' or 'loss', got {anneal!r}")
        self.anneal = anneal
        self.complexity = complexity
        self._ranks = None if population is None else _Ranks(population)
        if self._ranks is not None:
            if bounds is not None:
                raise ValueError(
                    "bounds and a population exclude each other: bounds are for γ by complexity, a "
                    "population is for γ by rank"
                )
            bounds = self._ranks.bounds
        if bounds is None:
            raise ValueError(
                "a population is needed, complexities of subnets as they are sampled, such as "
                "nas_dynamic.complexity.population(space, complexity), for γ by rank; or bounds, "
                "nas_dynamic.complexity.bounds(space, complexity), for the paper's γ"
            )
        self.gamma_max = float(gamma_max)
        if not (math.isfinite(gamma_max) and gamma_max > 0):
            raise ValueError(f"gamma_max must be a positive number, got {gamma_max}")
        self.gamma_min = 1 / self.gamma_max if gamma_min is None else float(gamma_min)
        if not 0 < self.gamma_min <= gamma_max:
            raise ValueError(
                f"gamma_min must lie in 0 < gamma_min <= gamma_max = {gamma_max}, "
                f"got {self.gamma_min}; for a gamma_max below 1 give gamma_min yourself"
            )
        self.c_min, self.c_max = _checked_bounds(bounds)
        if self.c_min == self.c_max and self.gamma_min < self.gamma_max:
            raise ValueError(
                f"all subnets have the complexity {self.c_min}: there is nothing for CaLR to tell "
                "apart; use another complexity, or calr=None"
            )
        self.curve = curve
        self.follows_scheduler = curve == "scheduler"
        if not self.follows_scheduler:
            if isinstance(curve, str) and curve not in CURVES:
                raise ValueError(
                    f"unknown curve {curve!r}; choose one of "
                    f"{', '.join([*CURVES, 'scheduler'])}, or give a callable"
                )
            self._curve = CURVES[curve] if isinstance(curve, str) else curve
            if not isinstance(curve, str):
                _check_curve(curve)
            if total_steps is None:
                raise ValueError(
                    "total_steps is needed: the number of optimizer updates in the whole training "
                    "(or curve='scheduler' to follow the optimizer's own lr scheduler)"
                )
        if total_steps is not None and not (total_steps >= 1 and total_steps % 1 == 0):
            raise ValueError(f"total_steps must be a whole number, at least 1; got {total_steps}")
        if warmup_steps < 0 or (total_steps is not None and warmup_steps >= total_steps):
            raise ValueError(
                f"warmup_steps must lie in 0 <= warmup_steps < total_steps = {total_steps}, "
                f"got {warmup_steps}"
            )
        if warmup_steps and self.follows_scheduler:
            raise ValueError(
                "warmup_steps and curve='scheduler' exclude each other: the scheduler warms up"
            )
        # Plain numbers, also where numpy's came in: checkpoints load with weights_only=True.
        self.total_steps = None if total_steps is None else int(total_steps)
        self.warmup_steps = int(warmup_steps)

    def gamma(self, architecture: Architecture) -> float:
        """γ(α), in [γ_min, γ_max].

        Raises:
            ValueError: the complexity is not a positive finite number.
        """
        return self.gamma_of(checked_complexity(self.complexity, architecture))

    def covers(self, complexity: float) -> bool:
        """Whether a complexity is within the bounds of the space; by rank there are none."""
        return self._ranks is not None or self.c_min <= complexity <= self.c_max

    def gamma_of(self, complexity: float) -> float:
        """γ of a complexity, clamped to the bounds of the space."""
        if self.gamma_min == self.gamma_max:
            return self.gamma_max
        complexity = min(max(complexity, self.c_min), self.c_max)
        if self._ranks is not None:
            rank = self._ranks(complexity)
            return self.gamma_max ** (1 - rank) * self.gamma_min**rank
        position = math.log(complexity / self.c_min) / math.log(self.c_max / self.c_min)
        return self.gamma_max - (self.gamma_max - self.gamma_min) * position

    def factor(self, architecture: Architecture, step: int, lr_ratio: float = 1.0) -> float:
        """What the scheduled lr is multiplied by in update `step` (0-based) of a subnet.

        `lr_ratio`, the scheduled lr over its peak so far, counts for `curve="scheduler"` only.
        Finite and not negative for every step >= 0. From `total_steps` on it is what the curve
        ends with: 0 for those of `CURVES`.
        """
        return self.factor_of(self.gamma(architecture), step, lr_ratio)

    def factor_of(self, gamma: float, step: int, lr_ratio: float = 1.0) -> float:
        """`factor` of a γ."""
        if self.follows_scheduler:
            # The host has already multiplied lr_0 by s: s · s^(γ−1) = s^γ. At s = 0 the lr is 0.
            return lr_ratio ** (gamma - 1) if lr_ratio > 0 else 0.0
        assert self.total_steps is not None
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return max(self._curve(min(progress, 1.0)), 0.0) ** gamma

    def definition(self) -> dict[str, Any]:
        """What decides the lr, as plain data: a checkpoint is refused where it differs."""
        by_rank = {} if self._ranks is None else {"population": self._ranks.digest}
        return {
            **by_rank,
            "bounds": [self.c_min, self.c_max],
            "gamma": [self.gamma_min, self.gamma_max],
            "curve": self.curve if isinstance(self.curve, str) else name_of(self.curve),
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "anneal": self.anneal,
        }


class _Ranks:
    """Ranks of complexities among those of a population, in (0, 1); between them, interpolated."""

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
        self.digest = hashlib.sha256(content).hexdigest()[:16]

    def __call__(self, complexity: float) -> float:
        return float(np.interp(complexity, self._values, self._ranks))


def check_gamma_by(gamma_by: str, bounds: tuple[float, float] | None = None) -> None:
    """Check an adapter's options: γ by the rank of the complexity, or by the complexity.

    Raises:
        ValueError: it is neither, or bounds are given that γ by rank has no use for.
    """
    if gamma_by not in ("rank", "complexity"):
        raise ValueError(f"gamma_by must be 'rank' or 'complexity', got {gamma_by!r}")
    if gamma_by == "rank" and bounds is not None:
        raise ValueError(
            "bounds are for γ by complexity: give gamma_by='complexity' as well, or no bounds"
        )


def checked_complexity(
    measure: Callable[[Architecture], float], architecture: Architecture
) -> float:
    """A complexity as a float.

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


def name_of(function: Any) -> str:
    """Name of a callable, or of its class, for comparison between runs.

    Without the module, which is `__main__` in a script and another where that is imported.
    """
    named = function if hasattr(function, "__qualname__") else type(function)
    return named.__qualname__


def _check_curve(curve: Callable[[float], float]) -> None:
    for progress in np.linspace(0, 1, 101).tolist():
        if not math.isfinite(ratio := curve(progress)):
            raise ValueError(f"curve must be finite in [0, 1]; it is {ratio} at {progress:g}")


def _checked_bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    c_min, c_max = (float(bound) for bound in bounds)
    if not (math.isfinite(c_min) and math.isfinite(c_max) and c_min > 0):
        raise ValueError(f"bounds must be positive finite numbers, got {bounds}")
    if c_min > c_max:
        raise ValueError(f"bounds are (c_min, c_max); got {bounds}, which is reversed")
    return c_min, c_max
