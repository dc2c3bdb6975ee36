"""Which optimizers dynamic training can be attached to, and why not to the others."""

from __future__ import annotations

import warnings
from typing import Literal

import torch

from nas_dynamic.attach.trial import Trial

__all__ = [
    "COAST_ONLY",
    "FREEZE_ONLY",
    "UNSUPPORTED",
    "check_idle",
    "check_lookahead",
    "check_supported",
    "check_trial",
    "default_idle",
    "why_not_freeze",
]

UNSUPPORTED = {
    "LBFGS": "it evaluates the closure, and so samples a subnet, several times in one step",
    "Lookahead": "after the update it reads the gradients, which are put back by then, and keeps "
    "its slow weights in the optimizer's state, where each group would have its own",
}
"""Optimizer classes, by name, that cannot be attached to, and why."""

FREEZE_ONLY = {
    "SparseAdam": "it takes sparse gradients only, so idle parameters cannot be given zeros",
    "Adahessian": "it differentiates the gradients, and zeros that are given have no graph",
}
"""Optimizer classes, by name, that cannot be attached to with `idle="coast"`, and why."""

COAST_ONLY = {
    "SGD(fused=True, momentum=…)": "torch allocates the momenta of all parameters at once, and "
    "fails in a step where some have one and others, so far idle, do not",
}
"""Optimizers that cannot be attached to with `idle="freeze"`, and why."""


def check_supported(optimizer: torch.optim.Optimizer, idle: str) -> None:
    """Check that an optimizer can be attached to, with this `idle`.

    Raises:
        ValueError: names the optimizer, the reason and the remedy.
    """
    check_lookahead(optimizer)
    for name in (base.__name__ for base in type(optimizer).__mro__):
        if name in UNSUPPORTED:
            raise ValueError(f"{name} is not supported: {UNSUPPORTED[name]}; use another optimizer")
        if name in FREEZE_ONLY and idle == "coast":
            raise ValueError(f"{name} cannot coast: {FREEZE_ONLY[name]}; use idle='freeze'")
    if any(isinstance(group.get("buffer"), list) for group in optimizer.param_groups):
        raise ValueError(
            f"{type(optimizer).__name__} of this version of timm keeps the sizes of steps, with "
            "the lr of another subnet in them; install timm 1.0.31 or later, or use torch's RAdam"
        )
    reason = why_not_freeze(optimizer)
    if idle == "freeze" and reason:
        raise ValueError(reason)


def default_idle(optimizer: torch.optim.Optimizer) -> Literal["coast", "freeze"]:
    """Return what idle parameters do where the user does not say: freeze, but where none can."""
    return "coast" if why_not_freeze(optimizer) else "freeze"


def check_trial(
    optimizer: torch.optim.Optimizer, trial: Trial, *, separate: bool, anneal: bool
) -> None:
    """Check that an optimizer does what is asked of it.

    Args:
        optimizer: that is attached to.
        trial: of this optimizer.
        separate: groups are to have momenta of their own.
        anneal: the lr of `param_groups` is to count.

    Raises:
        ValueError: it does not; the message says what it does, and the remedy.
    """
    name = type(optimizer).__name__
    if trial.closures > 1:
        raise ValueError(
            f"{name} is not supported: it evaluates the closure, and so samples a subnet, "
            f"{trial.closures} times in one step; use another optimizer"
        )
    if anneal and any(group.get("lr") is None for group in optimizer.param_groups):
        raise ValueError(
            f"{name} has no lr in its param groups, but finds one by itself, so that CaLR cannot "
            "set it; give it an lr, or use calr=None"
        )
    if anneal and not trial.uses_lr:
        raise ValueError(
            f"{name} does not update by the lr of its param groups, so that CaLR would change "
            "nothing; use another optimizer, an option of this one that has it use the lr, or "
            "calr=None"
        )
    if separate and trial.weights:
        raise ValueError(
            f"{name} keeps a copy of the weights in its state, {trial.weights!r}. With a state for "
            "each momentum group it would hold the weights of one group's updates alone; use "
            "another optimizer, or momentum=None for CaLR alone"
        )
    if separate and not trial.separates:
        raise ValueError(
            f"{name} keeps a part of its state outside of optimizer.state, which momentum groups "
            "would share; use another optimizer, or momentum=None for CaLR alone"
        )
    if separate and trial.failure:
        warnings.warn(
            f"{name} could not be tried on a small copy ({trial.failure}), so whether its momentum "
            "groups come out as by an optimizer each is not known",
            UserWarning,
            stacklevel=3,
        )


def check_idle(idle: str) -> None:
    """Check the option of this name.

    Raises:
        ValueError: there is no such mode.
    """
    if idle not in ("auto", "coast", "freeze"):
        raise ValueError(f"idle must be 'auto', 'coast' or 'freeze', got {idle!r}")


def why_not_freeze(optimizer: torch.optim.Optimizer) -> str:
    """Return why an update needs a gradient of every parameter; empty if it does not."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    if any(getattr(p, "_fsdp_flattened", False) for p in parameters):
        return (
            "FullyShardedDataParallel cannot freeze: it gives zeros to idle parameters for a "
            "gradient; use torch.distributed.fsdp.fully_shard, or idle='coast'"
        )
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            if group["fused"] and group["momentum"]:
                name, reason = next(iter(COAST_ONLY.items()))
                return f"{name} cannot freeze: {reason}; use fused=False, or idle='coast'"
    return ""


def check_lookahead(optimizer: torch.optim.Optimizer) -> None:
    """Check that no Lookahead wraps the optimizer.

    Lookahead writes its defaults into those of the optimizer that it wraps, at any time.

    Raises:
        ValueError: it does.
    """
    if "lookahead_k" in getattr(optimizer, "defaults", ()):
        raise ValueError(
            "the optimizer is wrapped by Lookahead, which is not supported: "
            f"{UNSUPPORTED['Lookahead']}; train without Lookahead"
        )
