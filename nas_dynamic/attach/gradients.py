"""Which parameters have a gradient in an update, and zeros for the others."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Filled", "ZeroedGradients", "by_gradient", "fill_missing_grads"]

Filled = list[tuple[torch.Tensor, torch.Tensor]]
"""Parameters, and the zeros that they were given for a gradient."""


def by_gradient(
    param_groups: list[dict[str, Any]],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the parameters with a gradient, and those without that could have one."""
    trained, idle = [], []
    for group in param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                trained.append(parameter)
            elif parameter.requires_grad:
                idle.append(parameter)
    return trained, idle


def fill_missing_grads(parameters: list[torch.Tensor]) -> Filled:
    """Give each parameter a gradient of zeros; either all of them, or none and an error."""
    if not parameters:
        return []
    # One buffer each: foreach SGD with Nesterov adds the momentum into the gradients in place.
    zeros = [torch.empty_like(parameter) for parameter in parameters]
    torch._foreach_zero_(zeros)  # one kernel on an accelerator
    filled = list(zip(parameters, zeros, strict=True))
    try:
        for parameter, gradient in filled:
            parameter.grad = gradient
    except BaseException:
        for parameter, gradient in filled:
            if parameter.grad is gradient:
                parameter.grad = None
        raise
    return filled


class ZeroedGradients:
    """Gradients that a host only zeroes between updates, of parameters that are to freeze.

    A parameter whose gradient is None is idle. Of a host that sets them to zero in place
    (`zero_grad(set_to_none=False)`) those of the last subnet stay, and would pass for gradients of
    the next one: they are taken away. It shows by a gradient that outlasts an update.
    """

    def __init__(self) -> None:
        self._marked: list[torch.Tensor] = []  # parameters
        self._updates = 0
        self._are_zeroed = False

    def before_update(self) -> None:
        """Take away gradients of the last update that hold zeros now, the first time."""
        outlasting = [p for p in self._marked if hasattr(p.grad, MARK)]
        self._marked = []
        self._are_zeroed |= bool(outlasting)
        for parameter in outlasting:
            if parameter.grad is not None and not parameter.grad.any():
                parameter.grad = None

    def after_update(self, trained: list[torch.Tensor]) -> None:
        """Look whether these gradients are there still before the next update."""
        if self._are_zeroed:
            for parameter in trained:
                parameter.grad = None
            return
        self._updates += 1
        # What a host does shows in its first updates; from then on one gradient is a sample.
        self._marked = trained if self._updates <= FIRST else trained[:1]
        for parameter in self._marked:
            # An attribute lasts as long as the tensor, and holds none alive.
            setattr(parameter.grad, MARK, True)


MARK, FIRST = "_nas_dynamic_last_update", 16
