"""MS: a momentum for each group of similar subnets.

Source: Jeon et al., "Subnet-Aware Dynamic Supernet Training for Neural Architecture Search",
CVPR 2025, arXiv 2503.10740.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

from nas_dynamic.space import Architecture, candidate_text, is_mixture, name_of

__all__ = ["GroupBy", "MomentumSeparation", "is_plain"]

GroupBy = str | Callable[[Architecture], Hashable]
"""A label, or a rule from an architecture to a group key."""


class MomentumSeparation:
    """Momentum separation: each group of subnets has its own optimizer state.

        μ_i ← β μ_i + g,    i the group of this step's subnet

    The weights stay shared. With optimizers other than SGD the whole state is separate: both
    moments of Adam, step counters, factored moments.

    Args:
        group_by: the rule. A label: subnets that choose the same candidate there share a group
            (`S_i = {α : op(α, e) = o_i}`, as in the paper). Or a callable from an architecture to
            a group key: str, int, float, bool, None or a tuple of those. `nas_dynamic.grouping`
            has some.
        max_groups: an update that would open one more group than this is refused, since each
            group costs as much memory as the optimizer alone.

    Example:
        >>> MomentumSeparation(group_by="layer3").group({"layer3": "conv5"})
        'conv5'
    """

    def __init__(
        self,
        group_by: GroupBy,
        *,
        max_groups: int = 64,
    ) -> None:
        if not (isinstance(group_by, str) or callable(group_by)):
            raise ValueError(
                f"group_by must be a label or a callable, got {type(group_by).__name__}"
            )
        if max_groups < 1:
            raise ValueError(f"max_groups must be at least 1, got {max_groups}")
        self.group_by = group_by
        self.max_groups = max_groups

    def group(self, architecture: Architecture) -> Hashable:
        """Return the group of a subnet.

        Raises:
            ValueError: the architecture lacks the label, or is a mixture of subnets; or the
                callable gave no plain value.
        """
        if is_mixture(architecture):
            raise ValueError(
                f"{dict(architecture)} is a mixture of subnets, and of no group: its gradient is "
                "that of all groups at once, and momenta of their own would be apart in nothing. "
                "Leave momentum separation out, or train sampled subnets"
            )
        if isinstance(self.group_by, str):
            if self.group_by not in architecture:
                raise ValueError(
                    f"architecture has no choice {self.group_by!r} to group by; "
                    f"labels are {', '.join(map(repr, architecture))}"
                )
            key = architecture[self.group_by]
        else:
            key = self.group_by(architecture)
        if is_plain(key):
            return key
        if isinstance(self.group_by, str):  # a class, a function, an enum: by its text
            return candidate_text(key)
        raise ValueError(
            f"a group must be a str, int, float, bool, None or a tuple of those, "
            f"so that it can be saved; got {key!r}"
        )

    def definition(self) -> dict[str, Any]:
        """Return what decides the groups, as plain data: checkpoints are refused by it."""
        if isinstance(self.group_by, str):
            return {"label": self.group_by}
        describe = getattr(self.group_by, "definition", None)
        return {"rule": name_of(self.group_by)} | (describe() if describe else {})


def is_plain(key: Any) -> bool:
    """Return whether a group key can be saved, and is found again."""
    if isinstance(key, tuple):
        return all(is_plain(item) for item in key)
    if type(key) is float and math.isnan(key):
        return False  # it is unequal to itself, and would open a new group at every update
    return key is None or type(key) in (str, int, float, bool)
