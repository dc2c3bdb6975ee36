"""The optimizer state of each momentum group, and the switch between them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["SCHEDULED", "GroupSnapshot", "GroupStates"]

_ABSENT = object()
SCHEDULED = {"params", "lr", "initial_lr"}
"""Keys of a param group that are no counters."""


class GroupStates:
    """The optimizer state of every group; `optimizer.state` points to one of them.

    A switch moves pointers, it copies nothing. Some optimizers keep counters in `param_groups`;
    every key there that an update writes belongs to the group and is switched too. A new group
    starts from the state that the optimizer had at attachment, usually none.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_groups: int) -> None:
        self.optimizer = optimizer
        self.max_groups = max_groups
        self.current: Hashable = _ABSENT
        self._states: dict[Hashable, Any] = {}
        self._origin = dict(optimizer.state)
        # One dict a param group: of keys that updates write, the value at attachment.
        self._initial: list[dict[str, Any]] = []
        self._counters: dict[Hashable, list[dict[str, Any]]] = {}
        self._before: list[dict[str, Any]] = []
        self._meet_param_groups()

    def keys(self) -> list[Hashable]:
        """The groups so far, in the order of their first update."""
        return list(self._states)

    def counters(self, group: Hashable) -> list[dict[str, Any]]:
        """What the updates of a group wrote to `param_groups`, one dict a param group."""
        return self._counters[group]

    def check_room(self, group: Hashable) -> None:
        """Refuse a group that would be one too many.

        Raises:
            RuntimeError: there are `max_groups` others.
        """
        if group not in self._states and len(self._states) >= self.max_groups:
            raise RuntimeError(
                f"{group!r} would be group number {len(self._states) + 1}; each costs as much "
                "memory as the optimizer's whole state. Group by something coarser, or raise "
                "MomentumSeparation(max_groups=…)"
            )

    def switch(self, group: Hashable) -> Callable[[], None]:
        """Point the optimizer to the state of a group; what undoes this, if no update comes."""
        new, previous = group not in self._states, self.current
        if new:
            self._states[group] = self._fresh()
        self._meet_param_groups()
        if group != self.current:
            self._point_to(group)
        self._before = [dict(param_group) for param_group in self.optimizer.param_groups]
        return lambda: self._undo(group, new, previous)

    def collect(self) -> None:
        """After an update: keep the counters that the update wrote to `param_groups`."""
        # After an update that raised there may be further param groups by now.
        param_groups = self.optimizer.param_groups[: len(self._before)]
        for param_group, before, initial in zip(
            param_groups, self._before, self._initial, strict=True
        ):
            for key, value in param_group.items():
                if value is not before.get(key, _ABSENT) and key not in SCHEDULED:
                    initial.setdefault(key, before.get(key, _ABSENT))
        self._counters[self.current] = [
            {key: param_group[key] for key in initial if key in param_group}
            for param_group, initial in zip(param_groups, self._initial, strict=True)
        ]

    def _undo(self, group: Hashable, new: bool, previous: Hashable) -> None:
        if new:  # fused SGD has allocated momenta and not written them
            del self._states[group]
            self._counters.pop(group, None)
        self._point_to(previous)

    def _point_to(self, group: Hashable) -> None:
        known = group is not _ABSENT
        self.optimizer.state = self._states[group] if known else self._fresh()
        self._write_counters(self._counters.get(group, ()) if known else ())
        self.current = group

    def _fresh(self) -> defaultdict[Any, Any]:
        return defaultdict(dict, {key: copy.deepcopy(v) for key, v in self._origin.items()})

    def _meet_param_groups(self) -> None:
        """Note the counters of param groups that were added since the last call."""
        for param_group in self.optimizer.param_groups[len(self._initial) :]:
            # A tensor is counted up in place, which `collect` cannot see: what is no
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
            zip(self.optimizer.param_groups, self._initial, strict=True)
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
        """Every group's state, keyed by parameter number as in `Optimizer.state_dict`."""
        self._meet_param_groups()
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        numbers = {parameter: number for number, parameter in enumerate(parameters)}

        def packed(state: Mapping[Any, Any]) -> dict[Any, Any]:
            return {numbers.get(key, key): value for key, value in state.items()}

        return {
            "origin": packed(self._origin),
            "groups": [
                [group, packed(state), self._counters.get(group, [])]
                for group, state in self._states.items()
            ],
            "initial": [
                {key: None if value is _ABSENT else [value] for key, value in counters.items()}
                for counters in self._initial
            ],
            "current": None if self.current is _ABSENT else [self.current],
        }

    def read(
        self, saved: Mapping[str, Any], param_groups: Sequence[Mapping[str, Any]]
    ) -> GroupSnapshot:
        """What `restore` takes, each state as the optimizer's own `load_state_dict` makes it.

        Args:
            saved: what `state_dict` gave.
            param_groups: of the same checkpoint.

        Raises:
            ValueError: the checkpoint is of another optimizer.
        """
        # A copy of an optimizer has its class and param groups, but no hooks.
        loader = copy.copy(self.optimizer)

        def unpacked(state: Mapping[Any, Any]) -> Any:
            loader.load_state_dict({"state": state, "param_groups": param_groups})
            return loader.state

        return GroupSnapshot(
            origin=dict(unpacked(saved["origin"])),
            states={group: unpacked(state) for group, state, _ in saved["groups"]},
            counters={group: copy.deepcopy(counters) for group, _, counters in saved["groups"]},
            initial=[
                {key: _ABSENT if value is None else value[0] for key, value in counters.items()}
                for counters in saved["initial"]
            ],
            current=_ABSENT if saved["current"] is None else saved["current"][0],
        )

    def restore(self, saved: GroupSnapshot) -> None:
        """Continue from what `read` gave; raises nothing."""
        self._origin = saved.origin
        self._states = saved.states
        self._counters = saved.counters
        self._initial = saved.initial
        self._point_to(saved.current)


class GroupSnapshot(NamedTuple):
    """The groups of a checkpoint, ready to be taken over."""

    origin: dict[Any, Any]
    states: dict[Hashable, Any]
    counters: dict[Hashable, list[dict[str, Any]]]
    initial: list[dict[str, Any]]
    current: Hashable
