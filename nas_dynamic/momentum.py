"""MS: a momentum for each group of similar subnets.

Source: Jeon et al., "Subnet-Aware Dynamic Supernet Training for Neural Architecture Search",
CVPR 2025, arXiv 2503.10740.
"""

from __future__ import annotations

import bisect
import copy
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nas_dynamic.architecture import Architecture, SearchSpace
from nas_dynamic.calr import checked_complexity, name_of

__all__ = ["ComplexityBins", "GroupStates", "MomentumSeparation", "default_label"]


class MomentumSeparation:
    """Momentum separation: each group of subnets has its own optimizer state.

        μ_i ← β μ_i + g,    i the group of this step's subnet

    The weights stay shared. With optimizers other than SGD the whole state is separate: both
    moments of Adam, step counters, factored moments.

    Args:
        group_by: the rule. A label: subnets that choose the same candidate there share a group
            (`S_i = {α : op(α, e) = o_i}`, as in the paper). Or a callable from an architecture to
            a group key: str, int, float, bool, None or a tuple of those. `ComplexityBins` is one.
        max_groups: an update that would open one more group than this is refused, since each
            group costs as much memory as the optimizer alone.

    Example:
        >>> MomentumSeparation(group_by="layer3").group({"layer3": "conv5"})
        'conv5'
    """

    def __init__(
        self,
        group_by: str | Callable[[Architecture], Hashable],
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
        """The group of a subnet.

        Raises:
            ValueError: the architecture lacks the label, or the callable gave no plain value.
        """
        if isinstance(self.group_by, str):
            if self.group_by not in architecture:
                raise ValueError(
                    f"architecture has no choice {self.group_by!r} to group by; "
                    f"labels are {', '.join(map(repr, architecture))}"
                )
            key = architecture[self.group_by]
        else:
            key = self.group_by(architecture)
        if not _is_plain(key):
            raise ValueError(
                f"a group must be a str, int, float, bool, None or a tuple of those, "
                f"so that it can be saved; got {key!r}"
            )
        return key

    def definition(self) -> dict[str, Any]:
        """What decides the groups, as plain data: a checkpoint is refused where it differs."""
        if isinstance(self.group_by, str):
            return {"label": self.group_by}
        describe = getattr(self.group_by, "definition", None)
        return {"rule": name_of(self.group_by)} | (describe() if describe else {})


class ComplexityBins:
    """Grouping rule: subnets of similar complexity share a momentum.

    Args:
        complexity: complexity of an architecture.
        edges: increasing inner edges; n edges make the groups 0 … n.

    Example:
        >>> bins = ComplexityBins(lambda a: a["width"], edges=[4, 8])
        >>> [bins({"width": w}) for w in (2, 4, 16)]
        [0, 1, 2]
    """

    def __init__(self, complexity: Callable[[Architecture], float], edges: Sequence[float]) -> None:
        self.complexity = complexity
        self.edges = [float(edge) for edge in edges]
        if not self.edges or any(np.diff(self.edges) <= 0):
            raise ValueError(f"edges must increase, got {list(edges)}")

    @classmethod
    def quantiles(
        cls,
        space: SearchSpace,
        complexity: Callable[[Architecture], float],
        groups: int = 4,
        *,
        samples: int = 1024,
        seed: int = 0,
    ) -> ComplexityBins:
        """Bins that uniformly drawn subnets fill equally. Costs `samples` complexities."""
        generator = np.random.default_rng(seed)
        drawn = [complexity(space.sample(generator)) for _ in range(samples)]
        inner = np.linspace(0, 1, groups + 1)[1:-1]
        return cls(complexity, sorted(set(np.quantile(drawn, inner).tolist())))

    def __call__(self, architecture: Architecture) -> int:
        """Number of the bin that the subnet falls into."""
        return bisect.bisect_right(self.edges, checked_complexity(self.complexity, architecture))

    def definition(self) -> dict[str, Any]:
        """The edges, for comparison between runs."""
        return {"edges": self.edges}


def default_label(space: SearchSpace, complexity: Callable[[Architecture], float]) -> str:
    """The label that subnets are grouped by where the user names none.

    The choice whose candidates differ most in complexity, measured around the first
    architecture; the middle one, in the order of the space, where several differ equally. The
    paper draws the label at random; the results then depend on the draw. Operations that differ
    much in size send unlike gradients, which is what separate momenta are for, and the middle
    choice of a cell or of a chain of layers has other layers on both of its sides.
    """
    base = space.decode([0] * len(space.labels))

    def spread(label: str) -> float:
        values = [complexity(base | {label: candidate}) for candidate in space.choices[label]]
        return max(values) - min(values)

    spreads = {label: spread(label) for label in space.labels}
    widest = [label for label, value in spreads.items() if value == max(spreads.values())]
    return widest[len(widest) // 2]


_ABSENT = object()


class GroupStates:
    """The optimizer state of every group; `optimizer.state` points to one of them.

    A switch moves pointers, it copies nothing. Some optimizers keep counters in `param_groups`;
    every key there that an update writes belongs to the group and is switched too. A new group
    starts from the state that the optimizer had at attachment, usually none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.current: Hashable = _ABSENT
        self._states: dict[Hashable, Any] = {}
        self._origin = dict(optimizer.state)
        # One dict a param group: of keys that updates write, the value at attachment.
        self._initial: list[dict[str, Any]] = [{} for _ in optimizer.param_groups]
        self._counters: dict[Hashable, list[dict[str, Any]]] = {}
        self._before: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, group: Hashable) -> bool:
        return group in self._states

    def __getitem__(self, group: Hashable) -> Mapping[torch.Tensor, Any]:
        return self._states[group]

    def keys(self) -> list[Hashable]:
        """The groups so far, in the order of their first update."""
        return list(self._states)

    def switch(self, group: Hashable) -> None:
        """Point the optimizer to the state of a group."""
        if group not in self._states:
            self._states[group] = defaultdict(
                dict, {key: copy.deepcopy(value) for key, value in self._origin.items()}
            )
        if group != self.current:
            self.optimizer.state = self._states[group]
            self._write_counters(self._counters.get(group))
            self.current = group
        self._before = [dict(param_group) for param_group in self.optimizer.param_groups]

    def collect(self) -> None:
        """After an update: keep the counters that the update wrote to `param_groups`."""
        param_groups = self.optimizer.param_groups
        for param_group, before, initial in zip(
            param_groups, self._before, self._initial, strict=True
        ):
            for key, value in param_group.items():
                if value is not before.get(key, _ABSENT) and key not in ("params", "lr"):
                    initial.setdefault(key, before.get(key, _ABSENT))
        self._counters[self.current] = [
            {key: param_group[key] for key in initial if key in param_group}
            for param_group, initial in zip(param_groups, self._initial, strict=True)
        ]

    def _write_counters(self, counters: list[dict[str, Any]] | None) -> None:
        for i, (param_group, initial) in enumerate(
            zip(self.optimizer.param_groups, self._initial, strict=True)
        ):
            for key, value in initial.items():
                value = counters[i].get(key, _ABSENT) if counters else value
                if value is _ABSENT:
                    param_group.pop(key, None)
                else:
                    param_group[key] = value

    def state_dict(self) -> dict[str, Any]:
        """Every group's state, keyed by parameter number as in `Optimizer.state_dict`."""
        numbers = self._parameter_numbers()
        groups = []
        for group, state in self._states.items():
            packed = {numbers.get(key, key): value for key, value in state.items()}
            groups.append([group, packed, self._counters.get(group)])
        initial = [
            {key: None if value is _ABSENT else [value] for key, value in counters.items()}
            for counters in self._initial
        ]
        current = None if self.current is _ABSENT else [self.current]
        return {"groups": groups, "initial": initial, "current": current}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore every group, each through the optimizer's own `load_state_dict`."""
        self._initial = [
            {key: _ABSENT if value is None else value[0] for key, value in counters.items()}
            for counters in saved["initial"]
        ]
        self._states, self._counters = {}, {}
        bare = self.optimizer.state_dict()
        for group, state, counters in saved["groups"]:
            self.optimizer.load_state_dict({"state": state, "param_groups": bare["param_groups"]})
            self._states[group] = self.optimizer.state
            if counters is not None:
                self._counters[group] = counters
        if saved["current"] is None:
            self.optimizer.load_state_dict({"state": {}, "param_groups": bare["param_groups"]})
            self.current = _ABSENT
        else:
            self.current = saved["current"][0]
            self.optimizer.state = self._states[self.current]
            self._write_counters(self._counters.get(self.current))

    def _parameter_numbers(self) -> dict[Any, int]:
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        return {parameter: number for number, parameter in enumerate(parameters)}


def _is_plain(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(_is_plain(item) for item in key)
    return key is None or type(key) in (str, int, float, bool)
