"""What a checkpoint holds of a dynamic training, read in full before anything is changed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nas_dynamic.attach.transaction import Progress
from nas_dynamic.momentum import is_plain

__all__ = ["CHECKPOINT_KEY", "TrainingState", "differences", "expect", "read"]

CHECKPOINT_KEY = "dynamic_training"
"""Where in `optimizer.state_dict()` the state of a dynamic training is."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingState:
    """What goes on in a dynamic training.

    Attributes:
        progress: how far it is.
        groups: of the momentum, as `GroupStates.state_dict` gives them.
        untrained: numbers of the parameters that do not coast yet, as `Coasting` gives them.
    """

    progress: Progress
    groups: dict[str, Any] | None
    untrained: list[int]

    def state_dict(self, definition: dict[str, Any]) -> dict[str, Any]:
        """Return what goes into a checkpoint, with what it may be resumed by."""
        progress = self.progress._asdict()
        lists = {name: list(progress[name]) for name in ("parts", "peak_lrs")}
        return (
            {"definition": definition}
            | progress
            | lists
            | {
                "groups": self.groups,
                "untrained": self.untrained,
            }
        )


def read(
    state_dict: Mapping[str, Any], definition: dict[str, Any], *, extend: bool = False
) -> TrainingState:
    """Return the state of a dynamic training in the state_dict of an optimizer.

    Args:
        state_dict: of the optimizer.
        definition: of the training that goes on.
        extend: the training that was saved may have fewer steps in all.

    Raises:
        ValueError: there is none; it is of another definition, and the message names every
            difference; or it is damaged, and the message names the first entry that is.
    """
    if CHECKPOINT_KEY not in state_dict:
        raise ValueError(
            "the checkpoint was written without dynamic training; load it into the optimizer "
            "before DynamicTraining is attached, and every group starts from its state. Or it is "
            "of torch's get_optimizer_state_dict, which leaves the groups out; save "
            "optimizer.state_dict() instead"
        )
    saved = expect(state_dict[CHECKPOINT_KEY], dict, CHECKPOINT_KEY)
    found = {
        name: expect(saved.get(name), kind, f"{CHECKPOINT_KEY}.{name}")
        for name, kind in (
            ("definition", dict),
            ("updates", int),
            ("steps", int),
            ("skipped", int),
            ("parts", list),
            ("peak_lrs", list),
        )
    }
    differing = differences(found.pop("definition"), definition)
    longer = [d for d in differing if d.startswith("calr.total_steps is ")]
    if extend and longer and _is_longer(saved["definition"], definition):
        differing.remove(longer[0])
    if differing:
        remedy = ". To train for more steps, attach with extend=True" if longer else ""
        if any(d.startswith("calr.start is ") for d in differing):
            remedy += ". Where the decay starts is decided by keep_mean_lr (no number: at the lr)"
        raise ValueError(
            f"the checkpoint is of another dynamic training: {'; '.join(differing)}{remedy}"
        )
    counts = {name: found[name] for name in ("updates", "steps", "skipped")}
    for name, count in counts.items():
        _check(count >= 0, name, count)
    for name, kind in (("parts", int), ("peak_lrs", float)):
        for number, value in enumerate(found[name]):
            expect(value, kind, f"{CHECKPOINT_KEY}.{name}[{number}]")
    made, parts = found["parts"] if len(found["parts"]) == 2 else (0, 0)
    _check(0 <= made < parts, "parts", found["parts"])
    peaks, scheduled = found["peak_lrs"], definition["calr"] is not None
    _check(
        len(peaks) <= len(state_dict["param_groups"])
        and (scheduled or not peaks)
        and bool(peaks or not scheduled or counts["updates"] == 0)
        and all(math.isfinite(peak) and peak >= 0 for peak in peaks),
        "peak_lrs",
        peaks,
    )
    # Of a checkpoint without it all have coasted from the start.
    untrained = expect(saved.get("untrained", []), list, f"{CHECKPOINT_KEY}.untrained")
    count = sum(len(group["params"]) for group in state_dict["param_groups"])
    for place, number in enumerate(untrained):
        known = 0 <= expect(number, int, f"{CHECKPOINT_KEY}.untrained[{place}]") < count
        _check(known, "untrained", untrained)
    groups = None
    if definition["momentum"] is not None:
        groups = expect(saved.get("groups"), dict, f"{CHECKPOINT_KEY}.groups")
        _check_groups(groups, state_dict["param_groups"])
    progress = Progress(**counts, parts=(made, parts), peak_lrs=tuple(peaks))
    return TrainingState(progress, groups, untrained)


def _is_longer(saved: dict[str, Any], here: dict[str, Any]) -> bool:
    steps = [definition["calr"]["total_steps"] for definition in (saved, here)]
    return all(type(number) is int for number in steps) and steps[0] < steps[1]


def _check_groups(groups: dict[str, Any], param_groups: Sequence[Mapping[str, Any]]) -> None:
    """Check the state of `GroupStates` down to the state of each parameter."""
    parameters = {number for group in param_groups for number in group["params"]}

    def state(value: Any, name: str) -> None:
        for key, of_parameter in expect(value, dict, f"{CHECKPOINT_KEY}.{name}").items():
            _check(type(key) is not int or key in parameters, name, f"of a parameter {key}")
            if type(key) is int:
                expect(of_parameter, dict, f"{CHECKPOINT_KEY}.{name}[{key}]")

    def counters(value: Any, name: str, lengths: Collection[int]) -> list[dict[Any, Any]]:
        _check(len(expect(value, list, f"{CHECKPOINT_KEY}.{name}")) in lengths, name, value)
        return [
            expect(entry, dict, f"{CHECKPOINT_KEY}.{name}[{n}]") for n, entry in enumerate(value)
        ]

    state(groups.get("origin"), "groups.origin")
    keys = []
    for number, entry in enumerate(
        expect(groups.get("groups"), list, f"{CHECKPOINT_KEY}.groups.groups")
    ):
        name = f"groups.groups[{number}]"
        _check(len(expect(entry, list, f"{CHECKPOINT_KEY}.{name}")) == 3, name, entry)
        _check(is_plain(entry[0]) and entry[0] not in keys, f"{name}[0]", entry[0])
        state(entry[1], f"{name}[1]")
        # None of a group that was opened by a step that raised; fewer than there are param groups
        # if some were added since the group's last update.
        counters(entry[2], f"{name}[2]", range(len(param_groups) + 1))
        keys.append(entry[0])
    updates = expect(groups.get("updates"), list, f"{CHECKPOINT_KEY}.groups.updates")
    _check(len(updates) == len(keys), "groups.updates", updates)
    for number, count in enumerate(updates):
        name = f"groups.updates[{number}]"
        _check(expect(count, int, f"{CHECKPOINT_KEY}.{name}") >= 0, name, count)
    initial = counters(groups.get("initial"), "groups.initial", {len(param_groups)})
    for number, of_group in enumerate(initial):
        for key, value in of_group.items():
            name = f"groups.initial[{number}].{key}"
            _check(value is None or (type(value) is list and len(value) == 1), name, value)
    current = groups.get("current", ())
    known = current is None or (
        type(current) is list and len(current) == 1 and is_plain(current[0]) and current[0] in keys
    )
    _check(known, "groups.current", current)


def _check(sound: bool, name: str, value: Any) -> None:
    if not sound:
        raise ValueError(
            f"the checkpoint is damaged: {CHECKPOINT_KEY}.{name} is {_shown(value)}; "
            "resume from an earlier checkpoint"
        )


def expect(value: Any, kind: type, where: str) -> Any:
    """Return the value, which has to be just of this type.

    Raises:
        ValueError: it is not; the message says where it stands.
    """
    if type(value) is not kind:
        raise ValueError(
            f"the checkpoint is damaged: {where} is {_shown(value)}, which is no {kind.__name__}; "
            "resume from an earlier checkpoint"
        )
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def differences(saved: Any, here: Any, path: str = "") -> list[str]:
    """Return where two definitions differ, one sentence each."""
    if isinstance(saved, dict) and isinstance(here, dict):
        found = []
        for key in [*saved, *(key for key in here if key not in saved)]:
            found += differences(
                saved.get(key), here.get(key), f"{path}.{key}" if path else str(key)
            )
        return found
    if _same(saved, here):
        return []
    return [f"{path} is {saved} in the checkpoint and {here} here"]


def _same(saved: Any, here: Any) -> bool:
    if isinstance(saved, list | tuple) and isinstance(here, list | tuple):
        return len(saved) == len(here) and all(map(_same, saved, here))
    # No definition has a tensor; a damaged one may, and comparing it would give a tensor.
    return not torch.is_tensor(saved) and saved == here
