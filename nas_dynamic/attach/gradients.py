"""Gradients of an update: which parameters have one, zeros for the others, and a step without."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist

from nas_dynamic.attach.group_states import SCHEDULED

__all__ = ["SkippedStep", "all_finite", "by_gradient", "fill_missing_grads"]


def by_gradient(
    param_groups: list[dict[str, Any]],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The parameters with a gradient, and those without that could have one."""
    trained, idle = [], []
    for group in param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                trained.append(parameter)
            elif parameter.requires_grad:
                idle.append(parameter)
    return trained, idle


def fill_missing_grads(parameters: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Give each parameter a gradient of zeros; the parameters with their zeros."""
    if not parameters:
        return []
    # One buffer each: foreach SGD with Nesterov adds the momentum into the gradients in place.
    zeros = [torch.empty_like(parameter) for parameter in parameters]
    torch._foreach_zero_(zeros)  # one kernel on an accelerator
    lent = list(zip(parameters, zeros, strict=True))
    for parameter, gradient in lent:
        parameter.grad = gradient
    return lent


def all_finite(parameters: list[torch.Tensor]) -> bool:
    """Whether no gradient has an inf or a NaN; waits for the device once.

    Of gradients that ranks hold in parts (FSDP2) it looks at all parts, by a collective call.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    meshes: list[Any] = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        gradient = gradient.detach()
        mesh = getattr(gradient, "device_mesh", None)
        if mesh is not None:
            meshes += [mesh] if mesh not in meshes else []
            gradient = gradient.to_local()  # type: ignore[attr-defined]
        if gradient.is_sparse:
            gradient = gradient.coalesce().values()
        if gradient.numel():
            kinds.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    # The greatest absolute value is NaN where there is one, and never overflows, as a sum does.
    finite = all(
        bool(torch.stack(torch._foreach_norm(gradients, float("inf"))).isfinite().all())
        for gradients in kinds.values()
    )
    for mesh in meshes:
        finite = _on_all_ranks(finite, mesh)
    return finite


def _on_all_ranks(true_here: bool, mesh: Any) -> bool:
    flag = torch.tensor(int(true_here), device=mesh.device_type)
    for dimension in range(mesh.ndim):
        dist.all_reduce(flag, dist.ReduceOp.MIN, mesh.get_group(dimension))
    return bool(flag)


class SkippedStep:
    """A step of the optimizer that updates nothing.

    A hook cannot call a step off. It can take the gradients away for its time: optimizers pass
    over parameters without. Some count such a step in `param_groups`; those counts are taken back.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._taken: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._held: list[dict[str, Any]] | None = None

    def begin(self, parameters: list[torch.Tensor]) -> None:
        """Before the step: take the gradients of these parameters, which are all that have one."""
        self._taken = [(parameter, parameter.grad) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        self._held = [
            {key: value for key, value in group.items() if key not in SCHEDULED}
            for group in self.optimizer.param_groups
        ]
        for group, held in zip(self.optimizer.param_groups, self._held, strict=True):
            group.update(copy.deepcopy(held))

    def end(self) -> list[torch.Tensor]:
        """After the step, or after an error: give back; the parameters that have gradients."""
        if self._held is None:
            return []
        for group, held in zip(self.optimizer.param_groups, self._held, strict=False):
            for key in group.keys() - held.keys() - SCHEDULED:
                del group[key]
            group.update(held)
        for parameter, gradient in self._taken:
            if parameter.grad is None:  # the host may have set one after an error
                parameter.grad = gradient
        parameters = [parameter for parameter, _ in self._taken]
        self._held, self._taken = None, []
        return parameters
