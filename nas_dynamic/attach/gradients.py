"""Which parameters have a gradient in an update, and zeros for the others."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Filled", "by_gradient", "fill_missing_grads"]

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
