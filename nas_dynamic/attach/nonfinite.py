"""A guard against gradients that have an inf or a NaN."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from nas_dynamic.attach.guard import Guard

if TYPE_CHECKING:
    from nas_dynamic.attach.training import DynamicTraining

__all__ = ["NonFiniteGuard", "all_finite", "check_nonfinite"]


class NonFiniteGuard(Guard):
    """Raises for a step whose gradients are not all finite, or skips it.

    Waits for the device once a step. Steps under GradScaler are left to it.

    Args:
        dynamic: whose steps are looked at.
        policy: `"raise"` a FloatingPointError before the update, or `"skip"` it.
    """

    def __init__(self, dynamic: DynamicTraining, policy: Literal["raise", "skip"]) -> None:
        self.dynamic = dynamic
        self.policy = policy
        self._warned = False

    def allows_update(self, trained: list[torch.Tensor]) -> bool:
        """Return whether all gradients are finite; raise where the policy says so."""
        # GradScaler has looked itself, where it has left this on a fused optimizer.
        if getattr(self.dynamic.optimizer, "found_inf", None) is not None or all_finite(trained):
            return True
        step, subnet = self.dynamic.steps, self.dynamic.architecture()
        if self.policy == "raise":
            raise FloatingPointError(
                f"the gradients of step {step} have an inf or a NaN, of the subnet {subnet}; "
                "weights and optimizer are as they were. Lower the lr, clip gradients, or pass "
                "over such steps by nonfinite='skip'"
            )
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"step {step} is skipped: its gradients have an inf or a NaN, of the subnet "
                f"{subnet}. DynamicTraining.skipped counts further ones",
                UserWarning,
                stacklevel=2,
            )
        return False


def check_nonfinite(policy: str) -> None:
    """Check the option of this name.

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in ("ignore", "raise", "skip"):
        raise ValueError(f"nonfinite must be 'ignore', 'raise' or 'skip', got {policy!r}")


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
        # The greatest absolute value is NaN where there is one, and never overflows, as a sum does.
        norms = torch.stack(list(torch._foreach_norm(gradients, float("inf"))))
        finite = finite and bool(norms.isfinite().all())
    for mesh in meshes:
        finite = _on_all_ranks(finite, mesh)
    return finite


def _on_all_ranks(true_here: bool, mesh: Any) -> bool:
    flag = torch.tensor(int(true_here), device=mesh.device_type)
    for dimension in range(mesh.ndim):
        dist.all_reduce(flag, dist.ReduceOp.MIN, mesh.get_group(dimension))
    return bool(flag)
