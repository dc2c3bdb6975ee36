"""Rules for which part of AdamW's state the groups of subnets have of their own."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["RULES", "Rule", "separate", "separate_deviations"]

FIRST, SECOND = "exp_avg", "exp_avg_sq"


@dataclass(frozen=True)
class Rule:
    """Which entries of the state a group has of its own; all others, and the count, are common.

    Attributes:
        entries: names in the state.
        in_updates_of_all: whether β becomes β^Δ, Δ the updates since the group's last, so that the
            moments of a group forget as fast as common ones do.
        begin: part of the training after which the groups part, with copies of the common state.
            From the start a group's first moment begins at 0, its second one at a copy.
    """

    entries: tuple[str, ...]
    in_updates_of_all: bool = False
    begin: float = 0.0


RULES = {
    "first": Rule((FIRST,)),
    "first_global": Rule((FIRST,), in_updates_of_all=True),
    "both": Rule((FIRST, SECOND)),
    "both_global": Rule((FIRST, SECOND), in_updates_of_all=True),
    "late": Rule((FIRST, SECOND), begin=0.5),
    "late_global": Rule((FIRST, SECOND), in_updates_of_all=True, begin=0.5),
}
"""Second moments alone cannot be separate: where a group's own slice never was, its second moment
is 0 and the common first one is not."""


def separate(
    optimizer: torch.optim.AdamW, group: Callable[[], Hashable], rule: Rule, total: int
) -> None:
    """Give each group its own entries of the state.

    Args:
        optimizer: that is stepped.
        group: () → group of this update.
        rule: which entries, and when.
        total: updates of the whole training.
    """
    kept: dict[Hashable, dict[Any, dict[str, torch.Tensor]]] = {}
    last: dict[Hashable, int] = {}
    betas = [g["betas"] for g in optimizer.param_groups]
    updates = 0

    def start(name: str, common: torch.Tensor) -> torch.Tensor:
        from_zero = name == FIRST and rule.begin == 0
        return torch.zeros_like(common) if from_zero else common.clone()

    def before(*_: Any) -> None:
        nonlocal updates
        updates += 1
        if updates <= rule.begin * total:
            return
        key = group()
        own = kept.setdefault(key, {})
        for parameter, state in optimizer.state.items():
            if parameter not in own:
                own[parameter] = {name: start(name, state[name]) for name in rule.entries}
            state.update(own[parameter])
        if rule.in_updates_of_all and key in last:
            passed = updates - last[key]
            for g, (first, second) in zip(optimizer.param_groups, betas, strict=True):
                g["betas"] = (first**passed, second**passed if SECOND in rule.entries else second)
        last[key] = updates

    def after(*_: Any) -> None:
        if updates <= rule.begin * total:
            return
        for parameter, state in optimizer.state.items():
            # Those that had their first update in this one.
            kept[group()].setdefault(parameter, {name: state[name] for name in rule.entries})
        for g, pair in zip(optimizer.param_groups, betas, strict=True):
            g["betas"] = pair

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def separate_deviations(
    optimizer: torch.optim.AdamW, group: Callable[[], Hashable], memory: float = 0.99
) -> None:
    """Keep the state common, and add to the first moment what is a group's own.

        μ ← β μ + (1 − β) g,   δ_i ← ρ δ_i + (1 − ρ)(g − μ),   the update takes μ + δ_i

    Where groups agree, δ_i is noise of a long memory, and little; where they do not, it is what μ
    lacks. It moves only in the slice of the subnet. SCAFFOLD corrects the drift of clients so
    (Karimireddy et al., ICML 2020, arXiv 1910.06378).

    Args:
        optimizer: that is stepped.
        group: () → group of this update.
        memory: ρ, in updates of the group.
    """
    deviations: dict[Hashable, dict[Any, torch.Tensor]] = {}
    common: dict[Any, torch.Tensor] = {}

    @torch.no_grad()
    def before(*_: Any) -> None:
        own = deviations.setdefault(group(), {})
        for param_group in optimizer.param_groups:
            beta = param_group["betas"][0]
            for parameter in param_group["params"]:
                state, gradient = optimizer.state.get(parameter), parameter.grad
                if gradient is None or not state:
                    continue
                mean = state[FIRST]
                deviation = own.setdefault(parameter, torch.zeros_like(mean))
                moved = torch.lerp(deviation, gradient - mean, 1 - memory)
                deviation.copy_(torch.where(gradient != 0, moved, deviation))
                common[parameter] = torch.lerp(mean, gradient, 1 - beta)
                # What AdamW makes the wanted moment of, by its own lerp with the gradient.
                state[FIRST] = mean + deviation / beta

    @torch.no_grad()
    def after(*_: Any) -> None:
        for parameter, mean in common.items():
            optimizer.state[parameter][FIRST] = mean
        common.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
