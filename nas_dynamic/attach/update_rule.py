"""From the subnets of a step to the lr and the momentum group of its update."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_dynamic.calr import CaLR
from nas_dynamic.complexity_scale import checked_complexity
from nas_dynamic.momentum import MomentumSeparation
from nas_dynamic.space import Architecture, SearchSpace, plain

__all__ = ["Subnet", "Update", "UpdateRule"]

UPDATES_OF_ONE, UPDATES_OF_ONE_LR = 100, 1000
"""After so many updates of one subnet, and at one lr, a warning is given."""

ParamGroups = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
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


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What one update used.

    Attributes:
        step: 0-based number of the training step, t of CaLR.
        subnets: the subnets whose gradients the update took; usually one.
        factor: what the scheduled lr was multiplied by, one per param group.
        lr: the lr that the update used, one per param group.
        peak_lrs: the greatest lr that each param group was scheduled at in an update so far;
            empty without CaLR.
        group: momentum group; None without momentum separation.
    """

    step: int
    subnets: tuple[Subnet, ...]
    factor: tuple[float, ...]
    lr: tuple[Any, ...]
    peak_lrs: tuple[float, ...]
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


class UpdateRule:
    """From what was sampled to what an update will use, or an error; it changes nothing."""

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
        self._first: Architecture | None = None
        self._only_one = True  # subnet, in all updates so far
        self._first_lrs: tuple[float, ...] | None = None
        self._is_constant = True  # the scheduled lr

    def propose(
        self,
        param_groups: ParamGroups,
        architectures: Architecture | Sequence[Architecture] | None,
        step: int,
        peak_lrs: Sequence[float],
        weighted: Sequence[Architecture],
    ) -> Update:
        """Return the coming update.

        Args:
            param_groups: of the optimizer, at the scheduled lr.
            architectures: the subnets that the host says it sampled.
            step: number of the training step.
            peak_lrs: of the last update; empty before the first.
            weighted: the subnets whose losses were given weights for this update.
        """
        subnets = self.subnets(architectures)
        group = self.group(subnets)
        if self._only_one:
            self._look_for_a_second(subnets, step)
        factors = [1.0] * len(param_groups)
        peaks: tuple[float, ...] = ()
        if self.calr is not None:
            self._check_weighted(subnets, weighted)
            lrs = _lrs(param_groups)
            peaks = _peaks(peak_lrs, lrs)
            if self.calr.follows_scheduler:
                if self._is_constant:
                    self._look_for_a_schedule(self.calr, lrs, step)
            elif lrs != peaks:
                self.warn_once(
                    "decayed twice",
                    f"an lr scheduler has decayed the lr, and CaLR's {self.calr.curve!r} curve "
                    "decays it again. Use CaLR(curve='scheduler') to bend the scheduler's decay "
                    "instead, or remove the scheduler",
                )
            factors = [
                self._lr_factor(
                    self._factors(self.calr, subnets, step, lr / peak if peak > 0 else 0.0)
                )
                for lr, peak in zip(lrs, peaks, strict=True)
            ]
        return Update(
            step=step,
            subnets=subnets,
            factor=tuple(factors),
            lr=tuple([g["lr"] * factor for g, factor in zip(param_groups, factors, strict=True)]),
            peak_lrs=peaks,
            group=group,
        )

    def _look_for_a_second(self, subnets: Sequence[Subnet], step: int) -> None:
        if self._first is None:
            self._first = subnets[0].architecture
        self._only_one = all(subnet.architecture == self._first for subnet in subnets) and (
            self.space is None or self.space.size > 1
        )
        if self._only_one and step == UPDATES_OF_ONE - 1:
            self.warn_once(
                "one subnet",
                f"all {UPDATES_OF_ONE} updates so far trained one subnet, {dict(self._first)}: "
                "`architecture` has always returned this one. Sample a new subnet for each update, "
                "and return the one that was trained",
            )

    def _look_for_a_schedule(self, calr: CaLR, lrs: tuple[float, ...], step: int) -> None:
        if self._first_lrs is None:
            self._first_lrs = lrs
        self._is_constant = lrs == self._first_lrs
        patience = UPDATES_OF_ONE_LR if calr.total_steps is None else calr.total_steps // 10
        if self._is_constant and step == patience:
            self.warn_once(
                "constant lr",
                f"CaLR(curve='scheduler') has changed nothing in {step} updates, since the lr has "
                "been constant: there is no decay to bend. Give the optimizer an lr scheduler, or "
                "CaLR a curve of its own with total_steps; or, if a scheduler steps by long "
                "epochs, pass over this",
            )

    def loss_weights(
        self,
        param_groups: ParamGroups,
        subnets: Sequence[Subnet],
        step: int,
        peak_lrs: Sequence[float],
    ) -> list[float]:
        """Return the weight of each subnet's loss; see `DynamicTraining.loss_weights`."""
        if self.calr is None:
            return [1.0] * len(subnets)
        # A group whose lr has always been 0 trains nothing.
        lrs = _lrs(param_groups)
        peaks = _peaks(peak_lrs, lrs)
        ratios = [lr / peak for lr, peak in zip(lrs, peaks, strict=True) if peak > 0] or [0.0]
        weighted = len(subnets) > 1 or self.calr.anneal == "loss"
        if self.calr.follows_scheduler and weighted and max(ratios) - min(ratios) > 1e-6:
            raise ValueError(
                "param groups are at different parts of their lr schedules, so that one weight "
                "for a subnet's loss cannot serve all; use one schedule, or one subnet a step and "
                "anneal='lr'"
            )
        factors = self._factors(self.calr, subnets, step, ratios[0])
        common = self._lr_factor(factors)
        return [factor / common if common > 0 else 1.0 for factor in factors]

    def subnets(
        self, architectures: Architecture | Sequence[Architecture] | None
    ) -> tuple[Subnet, ...]:
        """Return the subnets of an update, from what the host says it sampled."""
        listed: list[Any] = [architectures]
        if isinstance(architectures, Iterable) and not isinstance(architectures, Mapping):
            listed = list(architectures)
        if architectures is None or not listed:
            raise RuntimeError(
                f"no architecture at the update: `architecture` returned {architectures}; "
                "sample a subnet before the step"
            )
        return tuple([self._subnet(architecture) for architecture in listed])

    def _subnet(self, told: Architecture) -> Subnet:
        if not isinstance(told, Mapping):
            raise TypeError(
                f"`architecture` returned {told!r} for a subnet; return a mapping from label to "
                "candidate, such as {'layer1': 'conv3'}"
            )
        # Equal candidates have to be of one momentum group.
        architecture = {label: plain(candidate) for label, candidate in told.items()}
        if self.space is not None:
            self.space.validate(architecture)
        if self.calr is None:
            return Subnet(architecture, None, None)
        complexity = checked_complexity(self.calr.complexity, architecture)
        if not self.calr.covers(complexity):
            self.warn_once(
                "outside bounds",
                f"a subnet of complexity {complexity:g} is outside CaLR's bounds "
                f"({self.calr.c_min:g}, {self.calr.c_max:g}) and takes the γ of the nearer bound; "
                "give the bounds of the whole space",
            )
        return Subnet(architecture, complexity, self.calr.gamma_of(complexity))

    def group(self, subnets: Sequence[Subnet]) -> Hashable:
        """Return the one group that all subnets are of; None without momentum separation."""
        if self.momentum is None:
            return None
        groups = [*dict.fromkeys([self.momentum.group(s.architecture) for s in subnets])]
        if len(groups) > 1:
            raise RuntimeError(
                f"the subnets of one update are of the groups {', '.join(map(repr, groups))}, and "
                "one momentum would mix them. Sample a step of one group, such as "
                "FairSampler(space, group_by=label), or take one update a group: "
                "DynamicTraining.split"
            )
        return groups[0]

    def _check_weighted(self, subnets: Sequence[Subnet], weighted: Sequence[Architecture]) -> None:
        """Check that losses that need weights were given those of just these subnets."""
        assert self.calr is not None
        if len(subnets) == 1 and self.calr.anneal == "lr":
            return
        if weighted != [subnet.architecture for subnet in subnets]:
            raise RuntimeError(
                f"the losses of this update's {len(subnets)} subnets need weights: multiply each "
                "by its entry of DynamicTraining.loss_weights(architectures) before backward, "
                "with the architectures in the order that `architecture` returns them"
            )

    def _factors(
        self, calr: CaLR, subnets: Sequence[Subnet], step: int, lr_ratio: float
    ) -> list[float]:
        """Return f(α_k), CaLR's factor of every subnet."""
        if calr.total_steps is not None and step >= calr.total_steps:
            raise RuntimeError(
                f"all {calr.total_steps} steps of CaLR's total_steps are done: the lr would be "
                "zero. Give CaLR the number of steps of the whole training"
            )
        return [
            calr.factor_of(subnet.gamma, step, lr_ratio)
            for subnet in subnets
            if subnet.gamma is not None
        ]

    def _lr_factor(self, factors: Sequence[float]) -> float:
        """Return what the lr is multiplied by: mean_k f(α_k), or 1 if losses anneal alone."""
        if self.calr is not None and self.calr.anneal == "loss":
            return 1.0
        return sum(factors) / len(factors)

    def warn_once(self, kind: str, message: str) -> None:
        """Warn the first time that something of this kind is seen."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=2)


def _lrs(param_groups: ParamGroups) -> tuple[float, ...]:
    return tuple([float(group["lr"]) for group in param_groups])


def _peaks(peak_lrs: Sequence[float], lrs: Sequence[float]) -> tuple[float, ...]:
    # Peaks of updates only: a warm-up may lower the lr after attachment and before the first. Of
    # param groups that were added since, there is none yet.
    return (*map(max, peak_lrs, lrs), *lrs[len(peak_lrs) :])
