"""The optimizer that updates the weights, which hosts wrap in others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["innermost"]


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """Return the optimizer whose `step` updates the weights: this one, or the one that it wraps.

    The state that is exchanged between groups is that of the innermost optimizer: set on a wrapper
    (of Lightning, Fabric, Accelerate, mmengine, SAM, Opacus, …) it would have no effect. What
    wraps an optimizer shows by an attribute that is one.

    Raises:
        ValueError: it is no optimizer and wraps none; or it wraps several; or one of other
            parameters. The message names what to attach to.
    """
    seen: list[Any] = []
    while True:
        seen.append(optimizer)
        wrapped = _wrapped(optimizer)
        if not wrapped:
            break
        kind = type(optimizer).__name__
        if len(wrapped) > 1:
            names = ", ".join(f".{name} ({type(o).__name__})" for name, o in wrapped.items())
            raise ValueError(
                f"{kind} wraps {len(wrapped)} optimizers, {names}; attach to each by itself, "
                "with a DynamicTraining of its own"
            )
        ((name, inner),) = wrapped.items()
        if any(inner is one for one in seen):
            break
        if not _same_parameters(optimizer, inner):
            raise ValueError(
                f"{kind} wraps another optimizer, .{name} ({type(inner).__name__}), and has "
                "parameters that this one has not, so that groups could have no state of their "
                f"own; attach to .{name} where that is what updates the weights, or use another "
                "optimizer"
            )
        optimizer = inner
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _wrapped(optimizer: Any) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers among the attributes of an object, by name; each once."""
    found: dict[str, torch.optim.Optimizer] = {}
    for name, value in getattr(optimizer, "__dict__", {}).items():
        values = value.values() if isinstance(value, Mapping) else value
        inside = values if isinstance(value, list | tuple | Mapping) else [value]
        for number, one in enumerate(inside):
            known = any(one is other for other in found.values())
            if isinstance(one, torch.optim.Optimizer) and one is not optimizer and not known:
                found[name if one is value else f"{name}[{number}]"] = one
    return found


def _same_parameters(optimizer: Any, inner: torch.optim.Optimizer) -> bool:
    """Return whether a wrapper updates just the parameters of the optimizer that it wraps."""
    groups = getattr(optimizer, "param_groups", None)
    if groups is None:
        return True
    if groups is inner.param_groups:
        return True
    own, inners = ({p for g in gs for p in g["params"]} for gs in (groups, inner.param_groups))
    return own == inners
