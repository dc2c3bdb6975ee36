"""A guard against gradients that have an inf or a NaN."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from nas_dynamic.attach.gradients import StepGradients
from nas_dynamic.attach.guard import Guard, UpToDevice

if TYPE_CHECKING:
    from nas_dynamic.attach.training import DynamicTraining

__all__ = ["NonFiniteGuard", "all_finite", "check_nonfinite"]


class NonFiniteGuard(Guard):
    """Raises for a step whose gradients are not all finite, or skips it.

    Waits for the device once a step, but where a fused optimizer can skip by itself: then the
    device is asked in the step after. Steps under GradScaler are left to it.

    Args:
        dynamic: whose steps are looked at.
        policy: `"raise"` a FloatingPointError before the update, or `"skip"` it.
    """

    def __init__(self, dynamic: DynamicTraining, policy: Literal["raise", "skip"]) -> None:
        self.dynamic = dynamic
        self.policy = policy
        self._warned = False
        self._asked: tuple[int, int, Any] | None = None  # steps skipped by then, step, subnet

    def allows_update(self, gradients: StepGradients) -> bool | UpToDevice:
        """Return whether all gradients are finite; raise where the policy says so."""
        optimizer: Any = self.dynamic.optimizer
        self._warn_of_the_last()
        # GradScaler has looked itself, where it has left this on a fused optimizer.
        if getattr(optimizer, "found_inf", None) is not None:
            return True
        if self.policy == "skip" and getattr(optimizer, "_step_supports_amp_scaling", False):
            found_inf = found_nonfinite(gradients.trained)
            if found_inf is not None:
                dynamic = self.dynamic
                self._asked = dynamic.skipped, dynamic.steps, dynamic.architecture()
                return UpToDevice(found_inf)
        if all_finite(gradients.trained):
            return True
        step, subnet = self.dynamic.steps, self.dynamic.architecture()
        if self.policy == "raise":
            raise FloatingPointError(
                f"the gradients of step {step} have an inf or a NaN, of the subnet {subnet}; "
                "weights and optimizer are as they were. Lower the lr, clip gradients, or pass "
                "over such steps by nonfinite='skip'"
            )
        self._warn(step, subnet)
        return False

    def _warn_of_the_last(self) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and not self._warned and self.dynamic.skipped > asked[0]:
            self._warn(*asked[1:])

    def _warn(self, step: int, subnet: Any) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"step {step} is skipped: its gradients have an inf or a NaN, of the subnet "
                f"{subnet}. DynamicTraining.skipped counts further ones",
                UserWarning,
                stacklevel=2,
            )


def check_nonfinite(policy: str) -> None:
    """Check the option of this name.

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in ("ignore", "raise", "skip"):
        raise ValueError(f"nonfinite must be 'ignore', 'raise' or 'skip', got {policy!r}")


def found_nonfinite(parameters: list[torch.Tensor]) -> torch.Tensor | None:
    """Return 1 on the device if a gradient has an inf or a NaN, else 0; it waits for nothing.

    None where several devices would have to agree.
    """
    gradients: Any = [parameter.grad for parameter in parameters]
    kinds: dict[torch.dtype, list[torch.Tensor]] = {}
    for gradient in gradients:
        if hasattr(gradient, "device_mesh") or gradient.is_sparse:
            return None
        if gradient.device != gradients[0].device:
            return None
        if gradient.numel():
            kinds.setdefault(gradient.dtype, []).append(gradient.detach())
    finite = [_are_finite(same) for same in kinds.values()]
    if not finite:
        return None
    return (~torch.stack(finite).all()).float()


def _are_finite(gradients: list[torch.Tensor]) -> torch.Tensor:
    # The greatest absolute value is NaN where there is one, and never overflows, as a sum does.
    norms = torch.stack(list(torch._foreach_norm(gradients, float("inf"))))
    return norms.isfinite().all()


def all_finite(parameters: list[torch.Tensor]) -> bool:
    """Return whether no gradient has an inf or a NaN; waits for the device once.

    Of gradients that ranks hold in parts (FSDP2) it looks at all parts, by a collective call.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    meshes: list[Any] = []
    for parameter in parameters:
        gradient: Any = parameter.grad
        gradient = gradient.detach()
        mesh = getattr(gradient, "device_mesh", None)
        if mesh is not None:
            meshes += [mesh] if mesh not in meshes else []
            gradient = gradient.to_local()
        if gradient.is_sparse:
            gradient = gradient.coalesce().values()
        if gradient.numel():
            kinds.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    finite = True
    for gradients in kinds.values():
        finite = finite and bool(_are_finite(gradients))
    for mesh in meshes:
        finite = _on_all_ranks(finite, mesh)
    return finite


def _on_all_ranks(true_here: bool, mesh: Any) -> bool:
    flag = torch.tensor(int(true_here), device=mesh.device_type)
    for dimension in range(mesh.ndim):
        dist.all_reduce(flag, dist.ReduceOp.MIN, mesh.get_group(dimension))
    return bool(flag)
