"""The optimizer state of each momentum group, and the pointer that says which one is in use."""

from __future__ import annotations

import copy
import operator
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nas_dynamic.attach.copies import bare_copy

__all__ = ["NO_GROUP", "SCHEDULED", "Counters", "GroupSnapshot", "GroupStates"]

NO_GROUP: Hashable = object()
"""In place of a group before the first update."""

_ABSENT = object()
SCHEDULED = {"params", "lr", "initial_lr"}
"""Keys of a param group that are no counters."""

Counters = list[dict[str, Any]]
"""One dict a param group: what the updates of a momentum group wrote there."""


@dataclass(slots=True, eq=False)
class _Group:
    state: Any
    counters: Counters = field(default_factory=list)
    updates: int = 0


class GroupStates:
    """The optimizer state of every group; `optimizer.state` points to one of them.

    To select a group moves pointers, it copies nothing. Some optimizers keep counters in
    `param_groups`; every key there that an update writes belongs to the group and is exchanged too.
    A new group starts from the state that the optimizer had at attachment, usually none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_groups: int) -> None:
        self.optimizer = optimizer
        self.max_groups = max_groups
        self.current: Hashable = NO_GROUP
        self._groups: dict[Hashable, _Group] = {}
        self._origin = dict(optimizer.state)
        # One dict a param group: of keys that updates write, the value at attachment.
        self._initial: Counters = []
        self._before: Counters = []
        self._meet_param_groups()

    def updates(self) -> dict[Hashable, int]:
        """Return the number of updates of each group, in the order of their first update."""
        return {key: group.updates for key, group in self._groups.items() if group.updates}

    def by_group(self) -> dict[Hashable, Any]:
        """Return the state of each group."""
        return {key: group.state for key, group in self._groups.items()}

    def counters(self, group: Hashable) -> Counters:
        """Return what the updates of a group wrote to `param_groups`, one dict a param group."""
        return self._groups[group].counters

    def check(self, group: Hashable) -> None:
        """Check that an update of a group can begin.

        Raises:
            RuntimeError: there are `max_groups` others; or the host has replaced the state.
        """
        known = self._groups.get(self.current)
        if known is not None and self.optimizer.state is not known.state:
            raise RuntimeError(
                "optimizer.state was replaced since the last update, and each momentum group has "
                "one. Clear those of DynamicTraining.states in place, or call load_state_dict of "
                "the optimizer object"
            )
        if group not in self._groups and len(self._groups) >= self.max_groups:
            raise RuntimeError(
                f"{group!r} would be group number {len(self._groups) + 1}; each costs as much "
                "memory as the optimizer's whole state. Group by something coarser, or raise "
                "MomentumSeparation(max_groups=…)"
            )

    def select(self, group: Hashable) -> None:
        """Point the optimizer to the state of a group, before its update."""
        if group not in self._groups:
            self._groups[group] = _Group(self._fresh())
        self._meet_param_groups()
        if group != self.current:
            self._point_to(group)
        self._before = [dict(param_group) for param_group in self.optimizer.param_groups]

    def keep_counters(self) -> None:
        """Keep the counters that an update wrote to `param_groups`, also one that raised."""
        # After an update that raised there may be further param groups by now.
        param_groups = self.optimizer.param_groups[: len(self._before)]
        for param_group, before, initial in zip(
            param_groups, self._before, self._initial, strict=False
        ):
            if len(param_group) == len(before) and all(
                map(operator.is_, param_group.values(), before.values())
            ):
                continue
            for key, value in param_group.items():
                if value is not before.get(key, _ABSENT) and key not in SCHEDULED:
                    initial.setdefault(key, before.get(key, _ABSENT))
        self._groups[self.current].state = self.optimizer.state  # some replace it themselves
        self._groups[self.current].counters = [
            {key: param_group[key] for key in initial if key in param_group}
            for param_group, initial in zip(param_groups, self._initial, strict=False)
        ]

    def count_update(self) -> None:
        """Count an update of the group in use."""
        self._groups[self.current].updates += 1

    def discount_update(self, group: Hashable, counters: Counters) -> None:
        """Take back what `keep_counters` and `count_update` did for an update of a group."""
        self._groups[group].updates -= 1
        self._groups[group].counters = counters

    def return_to(self, previous: Hashable, *, drop: Hashable = NO_GROUP) -> None:
        """Go back to the group before an update that was not made.

        Args:
            previous: the group before.
            drop: the group of that update, if nothing was written to its state: a new one goes.
        """
        if drop in self._groups and not self._groups[drop].updates:
            del self._groups[drop]
        self._point_to(previous)

    def _point_to(self, group: Hashable) -> None:
        known = self._groups.get(group)
        self.optimizer.state = known.state if known else self._fresh()
        self._write_counters(known.counters if known else ())
        self.current = group

    def _fresh(self) -> defaultdict[Any, Any]:
        return defaultdict(dict, {key: copy.deepcopy(v) for key, v in self._origin.items()})

    def _meet_param_groups(self) -> None:
        """Note the counters of param groups that were added since the last call."""
        for param_group in self.optimizer.param_groups[len(self._initial) :]:
            # A tensor is counted up in place, which `keep_counters` cannot see: what is no
            # hyperparameter is taken for a counter from the start.
            known = SCHEDULED | self.optimizer.defaults.keys()
            self._initial.append(
                {
                    key: value.clone()
                    for key, value in param_group.items()
                    if key not in known and torch.is_tensor(value)
                }
            )

    def _write_counters(self, counters: Sequence[Mapping[str, Any]]) -> None:
        for i, (param_group, initial) in enumerate(
            zip(self.optimizer.param_groups, self._initial, strict=False)
        ):
            written = counters[i] if i < len(counters) else {}
            for key, value in initial.items():
                if key in written:
                    param_group[key] = written[key]
                elif value is _ABSENT:
                    param_group.pop(key, None)
                else:
                    param_group[key] = copy.deepcopy(value)

    def state_dict(self) -> dict[str, Any]:
        """Return every group's state, by parameter number as in `Optimizer.state_dict`."""
        self._meet_param_groups()
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        numbers = {parameter: number for number, parameter in enumerate(parameters)}

        def packed(state: Mapping[Any, Any]) -> dict[Any, Any]:
            return {numbers.get(key, key): value for key, value in state.items()}

        return {
            "origin": packed(self._origin),
            "groups": [
                [key, packed(group.state), group.counters] for key, group in self._groups.items()
            ],
            "updates": [group.updates for group in self._groups.values()],
            "initial": [
                {key: None if value is _ABSENT else [value] for key, value in counters.items()}
                for counters in self._initial
            ],
            "current": None if self.current is NO_GROUP else [self.current],
        }

    def read(
        self, saved: Mapping[str, Any], param_groups: Sequence[Mapping[str, Any]]
    ) -> GroupSnapshot:
        """Return what `restore` takes, states as the optimizer's own `load_state_dict` makes them.

        Args:
            saved: what `state_dict` gave.
            param_groups: of the same checkpoint.

        Raises:
            ValueError: the checkpoint is of another optimizer.
        """

        def unpacked(state: Mapping[Any, Any]) -> Any:
            loader = bare_copy(self.optimizer)  # one each: some fill the dict that they have
            loader.load_state_dict({"state": state, "param_groups": param_groups})
            return loader.state

        return GroupSnapshot(
            origin=dict(unpacked(saved["origin"])),
            groups={
                key: _Group(unpacked(state), copy.deepcopy(counters), updates)
                for (key, state, counters), updates in zip(
                    saved["groups"], saved["updates"], strict=True
                )
            },
            initial=[
                {key: _ABSENT if value is None else value[0] for key, value in counters.items()}
                for counters in saved["initial"]
            ],
            current=NO_GROUP if saved["current"] is None else saved["current"][0],
        )

    def restore(self, saved: GroupSnapshot) -> None:
        """Continue from what `read` gave; raises nothing."""
        self._origin = saved.origin
        self._groups = saved.groups
        self._initial = saved.initial
        self._point_to(saved.current)


@dataclass(frozen=True, slots=True, eq=False)
class GroupSnapshot:
    """The groups of a checkpoint, ready to be taken over."""

    origin: dict[Any, Any]
    groups: dict[Hashable, _Group]
    initial: Counters
    current: Hashable
