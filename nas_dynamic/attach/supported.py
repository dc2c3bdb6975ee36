"""Which optimizers dynamic training can be attached to, and why not to the others."""

from __future__ import annotations

import torch

__all__ = [
    "COAST_ONLY",
    "FREEZE_ONLY",
    "UNSUPPORTED",
    "check_idle",
    "check_lookahead",
    "check_supported",
]

_WRAPPER = "it keeps its state in an optimizer inside of it, where groups have none of their own"
UNSUPPORTED = {
    "LBFGS": "it evaluates the closure, and so samples a subnet, several times in one step",
    "Lookahead": "after the update it reads the gradients, which are put back by then, and keeps "
    "its slow weights in the optimizer's state, where each group would have its own",
    "PostLocalSGDOptimizer": _WRAPPER,
    "ZeroRedundancyOptimizer": _WRAPPER,
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
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch Optimizer, got {type(optimizer).__name__}")
    check_idle(idle)
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
    if idle == "freeze":
        _check_freezes(optimizer)


def check_idle(idle: str) -> None:
    """Check the option of this name.

    Raises:
        ValueError: there is no such mode.
    """
    if idle not in ("coast", "freeze"):
        raise ValueError(f"idle must be 'coast' or 'freeze', got {idle!r}")


def _check_freezes(optimizer: torch.optim.Optimizer) -> None:
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    if any(getattr(p, "_fsdp_flattened", False) for p in parameters):
        raise ValueError(
            "FullyShardedDataParallel cannot freeze: it gives zeros to idle parameters for a "
            "gradient; use torch.distributed.fsdp.fully_shard, or idle='coast'"
        )
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            if group["fused"] and group["momentum"]:
                name, reason = next(iter(COAST_ONLY.items()))
                raise ValueError(
                    f"{name} cannot freeze: {reason}; use fused=False, or idle='coast'"
                )


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
