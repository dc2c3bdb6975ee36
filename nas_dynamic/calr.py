"""CaLR: a learning rate that decays by the complexity of each subnet.

Source: Jeon et al., "Subnet-Aware Dynamic Supernet Training for NAS", CVPR 2025, arXiv 2503.10740.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

from nas_dynamic.complexity_scale import LogScale, RankScale, checked_complexity
from nas_dynamic.space import Architecture, name_of

__all__ = ["CURVES", "CaLR"]


def _polynomial(progress: float) -> float:
    return 1 - progress


def _cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _cosine_power(progress: float) -> float:
    # Hundt et al., "sharpDARTS", 2019, arXiv 1903.09900: an exponential between the ends of cosine.
    return (math.pow(10, _cosine(progress) + 1) - 10) / 90


CURVES: dict[str, Callable[[float], float]] = {
    "polynomial": _polynomial,
    "cosine": _cosine,
    "cosine-power": _cosine_power,
}
"""Decay curves by name: progress in [0, 1] → decay ratio, from 1 to 0."""


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
        complexity: of an architecture, > 0: parameters (as in the paper), MACs, latency.
        total_steps: T, the number of steps, one update each, of the whole training. Not needed with
            `curve="scheduler"`.
        bounds: (C_min, C_max) of the space, for the paper's γ. C is clamped to them.
        population: complexities of subnets as they are sampled, such as those of
            `nas_dynamic.complexity.population`, in place of bounds: γ by rank.
        gamma_max: γ of the smallest subnet.
        gamma_min: γ of the largest subnet; 1/γ_max by default. With γ_max all have the same γ.
        curve: s. `"polynomial"` (1 − t/T, the paper's), `"cosine"`, `"cosine-power"`
            (sharpDARTS), or a callable from progress in [0, 1] to a finite ratio, below 0 taken
            as 0. These multiply the optimizer's lr. `"scheduler"` bends the decay that the lr
            scheduler has already, s = lr / (its peak so far); its warm-up stays as it is.
        warmup_steps: updates of linear warm-up before the curve. γ does not bend them.
        anneal: what the decay applies to. `"lr"`: the lr, and with it weight decay; of several
            subnets a step, the mean of their lrs, and each loss by its subnet's share. `"loss"`:
            the weight of each loss alone, as in the paper's experiments with several subnets a
            step; weight decay is not annealed. `DynamicTraining.loss_weights` gives the weights.
        start: what the curve begins at, as a multiple of the optimizer's lr.

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
        start: float = 1.0,
    ) -> None:
        if anneal not in ("lr", "loss"):
            raise ValueError(f"anneal must be 'lr' or 'loss', got {anneal!r}")
        if (bounds is None) == (population is None):
            raise ValueError(
                "give a population, complexities of subnets as they are sampled, such as "
                "nas_dynamic.complexity.population(space, complexity), for γ by rank; or bounds, "
                "nas_dynamic.complexity.bounds(space, complexity), for the paper's γ; not both"
            )
        if not (math.isfinite(start) and start > 0 and (start == 1 or curve != "scheduler")):
            raise ValueError(
                f"start must be a positive number, and 1 with curve='scheduler'; got {start}"
            )
        self.complexity, self.curve, self.anneal = complexity, curve, anneal
        self.start = float(start)
        self._rank = RankScale(population) if population is not None else None
        self._scale = self._rank or LogScale(bounds)  # type: ignore[arg-type]
        self.c_min, self.c_max = self._scale.bounds
        self.gamma_max = float(gamma_max)
        if not (math.isfinite(gamma_max) and gamma_max > 0):
            raise ValueError(f"gamma_max must be a positive number, got {gamma_max}")
        self.gamma_min = 1 / self.gamma_max if gamma_min is None else float(gamma_min)
        if not 0 < self.gamma_min <= gamma_max:
            raise ValueError(
                f"gamma_min must lie in 0 < gamma_min <= gamma_max = {gamma_max}, got "
                f"{self.gamma_min}; for a gamma_max below 1 give gamma_min yourself"
            )
        if self.c_min == self.c_max and self.gamma_min < self.gamma_max:
            raise ValueError(
                f"all subnets have complexity {self.c_min}: there is nothing for CaLR to tell "
                "apart; use another complexity, or calr=None"
            )
        self.follows_scheduler = curve == "scheduler"
        self._curve = _checked_curve(curve)
        if total_steps is None and not self.follows_scheduler:
            raise ValueError(
                "total_steps is needed: the number of updates in the whole training; or "
                "curve='scheduler', to follow the optimizer's own lr scheduler"
            )
        if total_steps is not None and not (total_steps >= 1 and total_steps % 1 == 0):
            raise ValueError(f"total_steps must be a whole number, at least 1; got {total_steps}")
        if not 0 <= warmup_steps < (math.inf if total_steps is None else total_steps):
            raise ValueError(
                f"warmup_steps must lie in 0 <= warmup_steps < total_steps = {total_steps}, "
                f"got {warmup_steps}"
            )
        if warmup_steps and self.follows_scheduler:
            raise ValueError("warmup_steps must be 0 with curve='scheduler', which warms up itself")
        # Plain numbers, also where numpy's came in: checkpoints load with weights_only=True.
        self.total_steps = None if total_steps is None else int(total_steps)
        self.warmup_steps = int(warmup_steps)

    def gamma(self, architecture: Architecture) -> float:
        """Return γ(α), in [γ_min, γ_max]."""
        return self.gamma_of(checked_complexity(self.complexity, architecture))

    def gamma_of(self, complexity: float) -> float:
        """Return γ of a complexity, clamped to the bounds of the space."""
        if self.gamma_min == self.gamma_max:
            return self.gamma_max
        if self._rank is not None:
            q = self._rank(complexity)
            return math.pow(self.gamma_max, 1 - q) * math.pow(self.gamma_min, q)
        return self.gamma_max - (self.gamma_max - self.gamma_min) * self._scale(complexity)

    def covers(self, complexity: float) -> bool:
        """Return whether a complexity is within the bounds of the space; by rank there are none."""
        return self._scale.covers(complexity)

    def factor(self, architecture: Architecture, step: int, lr_ratio: float = 1.0) -> float:
        """Return what the scheduled lr is multiplied by in update `step` (0-based) of a subnet.

        `lr_ratio`, the scheduled lr over its peak so far, counts for `curve="scheduler"` only.
        From `total_steps` on it is what the curve ends with: 0 for those of `CURVES`.
        """
        return self.factor_of(self.gamma(architecture), step, lr_ratio)

    def factor_of(self, gamma: float, step: int, lr_ratio: float = 1.0) -> float:
        """Return `factor` of a γ."""
        if self.follows_scheduler:
            # The host has already multiplied lr_0 by s: s · s^(γ−1) = s^γ. At s = 0 the lr is 0.
            return math.pow(lr_ratio, gamma - 1) if lr_ratio > 0 else 0.0
        if step < self.warmup_steps:
            return self.start * ((step + 1) / self.warmup_steps)
        assert self.total_steps is not None
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.start * math.pow(max(self._curve(min(progress, 1.0)), 0.0), gamma)

    def definition(self) -> dict[str, Any]:
        """Return what decides the lr, as plain data: a checkpoint is refused where it differs."""
        return {
            **self._scale.definition(),
            "gamma": [self.gamma_min, self.gamma_max],
            "curve": self.curve if isinstance(self.curve, str) else name_of(self.curve),
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "anneal": self.anneal,
            **({} if self.start == 1 else {"start": self.start}),  # of which earlier ones have none
        }


def _checked_curve(curve: str | Callable[[float], float]) -> Callable[[float], float]:
    if isinstance(curve, str):
        if curve not in (*CURVES, "scheduler"):
            names = ", ".join([*CURVES, "scheduler"])
            raise ValueError(f"unknown curve {curve!r}; choose one of {names}, or give a callable")
        return CURVES.get(curve, _polynomial)
    for progress in (number / 100 for number in range(101)):
        if not math.isfinite(ratio := curve(progress)):
            raise ValueError(f"curve must be finite in [0, 1]; it is {ratio} at {progress:g}")
    return curve
