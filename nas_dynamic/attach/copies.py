"""Copies of an optimizer: those that do nothing but update, and those that are refused to.

The first are for trials, and to read checkpoints with; the others are made by the user.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from nas_dynamic.attach.intercept import INTERCEPTED

__all__ = ["bare_copy", "refused_to_step"]


def bare_copy(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[torch.Tensor, torch.Tensor] | None = None,
) -> torch.optim.Optimizer:
    """Return a copy of an optimizer without hooks and state.

    `copy.copy` leaves out what a class keeps in attributes, which some need to load a checkpoint.

    Args:
        optimizer: what to copy.
        parameters: of the optimizer → of the copy, which has no others; all by default. Attributes
            are then copied too, so that the copy may be stepped.
    """
    copied: torch.optim.Optimizer = object.__new__(type(optimizer))
    memo = {
        id(p): p if parameters is None else parameters.get(p, p)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, value in vars(optimizer).items():
        if name in INTERCEPTED:
            continue
        if name.startswith("_optimizer_") and name.endswith("_hooks"):
            value = OrderedDict()
        elif parameters is not None and name not in ("param_groups", "state", "defaults"):
            value = _copied(value, memo)
        vars(copied)[name] = value
    copied.state = defaultdict(dict)
    copied.param_groups = []
    for group in optimizer.param_groups:
        own = {k: v.clone() if torch.is_tensor(v) else copy.copy(v) for k, v in group.items()}
        if parameters is not None:
            own["params"] = [parameters[p] for p in group["params"] if p in parameters]
        copied.param_groups.append(own)
    return copied


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, torch.nn.Module):
        return value
    try:
        return copy.deepcopy(value, dict(memo))
    except Exception:  # whatever an attribute of a stranger's class raises: it is shared then
        return value


def refused_to_step(state: dict[str, Any]) -> dict[str, Any]:
    """Return what `copy` and `pickle` keep of an attached optimizer, such that it raises at a step.

    They leave out attachment, and the state of all momentum groups but one.
    """
    return state | {"_optimizer_step_pre_hooks": OrderedDict({0: _refuse})}


def _refuse(optimizer: torch.optim.Optimizer, *step: Any) -> None:
    raise RuntimeError(
        f"this {type(optimizer).__name__} was copied or unpickled from one with dynamic training, "
        "which a copy lacks. Make a new optimizer, attach DynamicTraining to it, and load the "
        "other's state_dict(); or detach() before copying"
    )
