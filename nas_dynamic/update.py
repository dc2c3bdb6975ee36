"""What an update uses: from the subnets of a step to an lr and a momentum group."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_dynamic.architecture import Architecture, SearchSpace
from nas_dynamic.calr import CaLR, checked_complexity
from nas_dynamic.momentum import MomentumSeparation

__all__ = ["Planner", "Subnet", "Update"]


@dataclass(frozen=True, slots=True)
class Subnet:
    """One subnet of an update.

    Attributes:
        architecture: what was sampled.
        complexity: of the subnet; None without CaLR.
        gamma: γ of the subnet; None without CaLR.
    """

    architecture: Architecture
    complexity: float | None
    gamma: float | None


@dataclass(frozen=True, slots=True)
class Update:
    """What one update used.

    Attributes:
        step: 0-based number of the training step, t of CaLR.
        subnets: the subnets whose gradients the update took; usually one.
        factor: what the scheduled lr was multiplied by, one per param group.
        lr: the lr that the update used, one per param group.
        group: momentum group; None without momentum separation.
    """

    step: int
    subnets: tuple[Subnet, ...]
    factor: tuple[float, ...]
    lr: tuple[Any, ...]
    group: Hashable

    @property
    def architecture(self) -> Architecture:
        """The architecture of an update of one subnet."""
        return self._only.architecture

    @property
    def complexity(self) -> float | None:
        """The complexity of the subnet, in an update of one."""
        return self._only.complexity

    @property
    def gamma(self) -> float | None:
        """γ of the subnet, in an update of one."""
        return self._only.gamma

    @property
    def _only(self) -> Subnet:
        if len(self.subnets) != 1:
            raise ValueError(f"the update took {len(self.subnets)} subnets; look at `subnets`")
        return self.subnets[0]


class Planner:
    """The pure part of an update: architectures → subnets → factors and group, or an error."""

    def __init__(
        self,
        calr: CaLR | None,
        momentum: MomentumSeparation | None,
        space: SearchSpace | None,
    ) -> None:
        self.calr = calr
        self.momentum = momentum
        self.space = space
        self._warned: set[str] = set()

    def subnets(
        self, architectures: Architecture | Sequence[Architecture] | None
    ) -> tuple[Subnet, ...]:
        """The subnets of an update, from what the host says it sampled."""
        if isinstance(architectures, Mapping):
            architectures = [architectures]
        if not architectures:
            raise RuntimeError(
                f"no architecture at the update: `architecture` returned {architectures}; "
                "sample a subnet before the step"
            )
        return tuple([self._subnet(architecture) for architecture in architectures])

    def _subnet(self, architecture: Architecture) -> Subnet:
        if self.space is not None:
            self.space.validate(architecture)
        if self.calr is None:
            return Subnet(dict(architecture), None, None)
        complexity = checked_complexity(self.calr.complexity, architecture)
        if not self.calr.covers(complexity):
            self.warn_once(
                "outside bounds",
                f"a subnet of complexity {complexity:g} is outside CaLR's bounds "
                f"({self.calr.c_min:g}, {self.calr.c_max:g}) and takes the γ of the nearer bound; "
                "give the bounds of the whole space",
            )
        return Subnet(dict(architecture), complexity, self.calr.gamma_of(complexity))

    def group(self, subnets: Sequence[Subnet]) -> Hashable:
        """The one group that all subnets are of; None without momentum separation."""
        if self.momentum is None:
            return None
        groups = dict.fromkeys(self.momentum.group(subnet.architecture) for subnet in subnets)
        if len(groups) > 1:
            raise RuntimeError(
                f"the subnets of one update are of the groups {', '.join(map(repr, groups))}, and "
                "one momentum would mix them. Sample a step of one group, such as "
                "FairSampler(space, group_by=label), or take one update a group: "
                "DynamicTraining.split"
            )
        return next(iter(groups))

    def factors(self, subnets: Sequence[Subnet], step: int, lr_ratio: float) -> list[float]:
        """f(α_k): CaLR's factor of every subnet, 1 without CaLR."""
        if self.calr is None:
            return [1.0] * len(subnets)
        total_steps = self.calr.total_steps
        if total_steps is not None and step >= total_steps:
            raise RuntimeError(
                f"all {total_steps} steps of CaLR's total_steps are done: the lr would be zero. "
                "Give CaLR the number of steps of the whole training"
            )
        return [
            self.calr.factor_of(subnet.gamma, step, lr_ratio)
            for subnet in subnets
            if subnet.gamma is not None
        ]

    def lr_factor(self, factors: Sequence[float]) -> float:
        """What the scheduled lr is multiplied by: mean_k f(α_k), or 1 if losses anneal alone."""
        if self.calr is not None and self.calr.anneal == "loss":
            return 1.0
        return sum(factors) / len(factors)

    def loss_weights(self, factors: Sequence[float]) -> list[float]:
        """The weight of every subnet's loss: f(α_k) over what the lr is multiplied by."""
        common = self.lr_factor(factors)
        return [factor / common if common > 0 else 1.0 for factor in factors]

    def warn_once(self, kind: str, message: str) -> None:
        """Warn the first time that something of this kind is seen."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=2)
