"""DynamicTraining: the learning rate and the momentum of each update, set by step hooks."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from nas_dynamic.architecture import Architecture, SearchSpace
from nas_dynamic.calr import CaLR, checked_complexity
from nas_dynamic.momentum import GroupStates, MomentumSeparation
from nas_dynamic.support import UNSUPPORTED, check_lookahead, check_supported

__all__ = ["UNSUPPORTED", "DynamicTraining", "Update"]

CHECKPOINT_KEY = "dynamic_training"

_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Pending:
    """An update that has begun, and what to put back after it."""

    update: Update
    scheduled: list[Any]
    trained: list[torch.Tensor]
    lent: list[tuple[torch.Tensor, torch.Tensor]]
    new_group: bool


@dataclass(frozen=True, slots=True)
class Update:
    """What one update used.

    Attributes:
        step: 0-based number of the update.
        architecture: the subnet that was trained.
        complexity: of the subnet; None without CaLR.
        gamma: γ of the subnet; None without CaLR.
        factor: what the scheduled lr was multiplied by, one per param group.
        lr: the lr that the update used, one per param group.
        group: momentum group; None without momentum separation.
    """

    step: int
    architecture: Architecture
    complexity: float | None
    gamma: float | None
    factor: tuple[float, ...]
    lr: tuple[Any, ...]
    group: Hashable


class DynamicTraining:
    """Subnet-aware training of a supernet, attached to the optimizer that trains it.

    Hooks on the optimizer's own `step` read the sampled architecture, set the lr and the momentum
    of the update, and put the scheduled lr back after it. The loop, the lr schedulers, GradScaler
    and existing checkpoint code stay as they are: `optimizer.state_dict()` holds every group's
    state, and `optimizer.load_state_dict()` restores it.

    Args:
        optimizer: any optimizer that takes one update a step.
        architecture: () → the architecture that this step's loss was computed with. Called once
            an update, after the closure if there is one.
        calr: the lr of each subnet, or None to leave the lr alone.
        momentum: the groups of subnets with a momentum of their own, or None for one momentum.
        idle: what an update does with the parameters outside of the subnet.
            `"coast"`: as if their gradient were zero; weight decay and their group's momentum
            move them on, as in the paper's experiments. `"freeze"`: nothing. Either holds whether
            the host's `zero_grad` leaves None or zeros: coasting lends zero gradients for the
            time of the update, freezing drops all gradients after it.
        space: checks every architecture against a space, where given.

    Raises:
        ValueError: the optimizer cannot be attached to, or is attached already.

    Example:
        >>> model = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> calr = CaLR(lambda a: a["width"], total_steps=10, bounds=(1, 16))
        >>> dynamic = DynamicTraining(
        ...     optimizer, architecture=lambda: {"width": 4}, calr=calr,
        ...     momentum=MomentumSeparation(group_by="width"),
        ... )
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> dynamic.updates, dynamic.last.gamma, dynamic.last.group
        (1, 2.125, 4)
        >>> dynamic.detach()
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        architecture: Callable[[], Architecture],
        *,
        calr: CaLR | None = None,
        momentum: MomentumSeparation | None = None,
        idle: Literal["coast", "freeze"] = "coast",
        space: SearchSpace | None = None,
    ) -> None:
        check_supported(optimizer, idle)
        if optimizer in _attached:
            raise ValueError(
                "dynamic training is attached to this optimizer already; detach() that one first"
            )
        if not callable(architecture):
            raise ValueError(
                "architecture must be a callable that returns this step's architecture, "
                f"got {type(architecture).__name__}"
            )
        self.optimizer = optimizer
        self.calr = calr
        self.momentum = momentum
        self.idle = idle
        self.space = space
        self.updates = 0
        """Number of updates so far: steps that were skipped, or had no gradient, do not count."""
        self.last: Update | None = None
        """What the last update used, for logging."""
        self._architecture = architecture
        self._states = GroupStates(optimizer) if momentum else None
        self._peaks: list[float] = []
        self._pending: _Pending | None = None
        self._closure: Callable[..., Any] | None = None
        self._saved: dict[str, Any] | None = None
        self._warned: set[str] = set()
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
            optimizer.register_state_dict_pre_hook(lambda _: self._recover()),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._check_checkpoint),
            optimizer.register_load_state_dict_post_hook(self._load),
        ]
        _attached.add(optimizer)

    @property
    def groups(self) -> list[Hashable]:
        """The momentum groups that have been updated so far, in the order of appearance."""
        return [] if self._states is None else self._states.keys()

    def detach(self) -> None:
        """Remove the hooks. The optimizer keeps the state of the group that it updated last."""
        self._recover()
        for handle in self._handles:
            handle.remove()
        _attached.discard(self.optimizer)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None and closure is self._closure:
            return None  # a subclass has called super().step(closure), which is hooked as well
        self._recover()
        if closure is None:
            self._begin()
            return None

        # The subnet is sampled and trained in the closure, so only after it is it known.
        def closure_then_begin(*closure_args: Any, **closure_kwargs: Any) -> Any:
            if self._pending is not None:
                self._recover()
                raise RuntimeError(
                    f"{type(optimizer).__name__} evaluated the closure twice in one step; "
                    "dynamic training needs optimizers that take one update a step"
                )
            loss = closure(*closure_args, **closure_kwargs)
            self._begin()
            return loss

        self._closure = closure_then_begin
        if len(args) > 1:
            return (args[0], closure_then_begin, *args[2:]), kwargs
        return args, kwargs | {"closure": closure_then_begin}

    def _begin(self) -> None:
        param_groups = self.optimizer.param_groups
        trained, idle = _by_gradient(param_groups)
        if not trained:
            if self._states is not None:
                self._states.hold()
            return
        update = self._plan(param_groups)
        # Nothing below raises: an error leaves weights, state and count as they were.
        scheduled = [group["lr"] for group in param_groups]
        new_group = self._states is not None and self._states.switch(update.group)
        for group, lr in zip(param_groups, update.lr, strict=True):
            group["lr"] = lr
        lent = _lend_zeros(idle) if self.idle == "coast" else []
        self._pending = _Pending(update, scheduled, trained, lent, new_group)

    def _plan(self, param_groups: list[dict[str, Any]]) -> Update:
        """What the update will use; changes nothing but the peaks of the scheduled lr."""
        check_lookahead(self.optimizer)  # it may have been wrapped after attachment
        architecture = self._architecture()
        if architecture is None:
            raise RuntimeError(
                "no architecture at the update: `architecture` returned None; "
                "sample a subnet before the step"
            )
        if self.space is not None:
            self.space.validate(architecture)
        group = None
        if self.momentum is not None and self._states is not None:
            group = self.momentum.group(architecture)
            if group not in self._states and len(self._states) >= self.momentum.max_groups:
                raise RuntimeError(
                    f"{group!r} would be group number {len(self._states) + 1}; each costs as much "
                    "memory as the optimizer's whole state. Group by something coarser, or raise "
                    "MomentumSeparation(max_groups=…)"
                )
        complexity = gamma = None
        factors = [1.0] * len(param_groups)
        if self.calr is not None:
            if self.calr.total_steps is not None and self.updates >= self.calr.total_steps:
                raise RuntimeError(
                    f"all {self.calr.total_steps} updates of CaLR's total_steps are done: the lr "
                    "would be zero. Give CaLR the number of updates of the whole training"
                )
            complexity = checked_complexity(self.calr.complexity, architecture)
            self._warn_outside_bounds(complexity)
            gamma = self.calr.gamma_of(complexity)
            ratios = self._lr_ratios(param_groups)
            factors = [self.calr.factor_of(gamma, self.updates, ratio) for ratio in ratios]
        return Update(
            step=self.updates,
            architecture=dict(architecture),
            complexity=complexity,
            gamma=gamma,
            factor=tuple(factors),
            lr=tuple(g["lr"] * factor for g, factor in zip(param_groups, factors, strict=True)),
            group=group,
        )

    def _lr_ratios(self, param_groups: list[dict[str, Any]]) -> list[float]:
        """Scheduled lr over its peak so far, for each param group."""
        assert self.calr is not None
        # Peaks of updates only: a warm-up may lower the lr after attachment and before the first.
        lrs = [float(group["lr"]) for group in param_groups]
        self._peaks += [0.0] * (len(lrs) - len(self._peaks))
        self._peaks = [max(peak, lr) for peak, lr in zip(self._peaks, lrs, strict=True)]
        ratios = [lr / peak if peak > 0 else 0.0 for lr, peak in zip(lrs, self._peaks, strict=True)]
        if not self.calr.follows_scheduler and min(ratios) < 1:
            self._warn_once(
                "decayed twice",
                f"an lr scheduler has decayed the lr, and CaLR's {self.calr.curve!r} curve decays "
                "it again. Use CaLR(curve='scheduler') to bend the scheduler's decay instead, "
                "or remove the scheduler",
            )
        return ratios

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        pending = self._restore()
        if pending is None:
            if self._states is not None:
                self._states.release()
            return
        for parameter, _ in pending.lent:
            parameter.grad = None
        if self.idle == "freeze":
            # A gradient that the host only zeroes would pass for one of the next subnet's.
            for parameter in pending.trained:
                parameter.grad = None
        # A fused optimizer is stepped by GradScaler even where gradients are inf, and tests
        # found_inf itself. Other optimizers are not stepped at all then.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            if pending.new_group and self._states is not None:
                # Fused SGD has allocated momenta and not written them.
                self._states.forget(pending.update.group)
            return
        self.updates += 1
        self.last = pending.update
        if self.momentum is not None and not any(optimizer.state.values()):
            self._warn_once(
                "no momentum",
                f"{type(optimizer).__name__} keeps no state, so there is no momentum to separate. "
                "Give it one, such as SGD(…, momentum=0.9), or drop momentum separation",
            )

    def _restore(self) -> _Pending | None:
        """Put the scheduled lr back and keep the counters; the update that had begun, if any."""
        pending, self._pending = self._pending, None
        if pending is not None:
            if self._states is not None:
                self._states.collect()
            for group, lr in zip(self.optimizer.param_groups, pending.scheduled, strict=True):
                group["lr"] = lr
        return pending

    def _recover(self) -> None:
        """Undo what an update that raised has left."""
        pending = self._restore()
        if pending is not None:
            for parameter, zeros in pending.lent:
                # The host may have accumulated a gradient there since.
                if parameter.grad is zeros and not zeros.any():
                    parameter.grad = None

    def _definition(self) -> dict[str, Any]:
        return {
            "idle": self.idle,
            "space": self.space
            and {k: [repr(c) for c in v] for k, v in self.space.choices.items()},
            "calr": self.calr and self.calr.definition(),
            "momentum": self.momentum and self.momentum.definition(),
        }

    def _save(
        self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
    ) -> dict[str, Any] | None:
        state_dict[CHECKPOINT_KEY] = {
            "definition": self._definition(),
            "updates": self.updates,
            "peaks": list(self._peaks),
            "groups": None if self._states is None else self._states.state_dict(),
        }
        return state_dict

    def _check_checkpoint(
        self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
    ) -> None:
        saved = state_dict.get(CHECKPOINT_KEY)
        if saved is None:
            raise ValueError(
                "the checkpoint was written without dynamic training; load it into the optimizer "
                "before DynamicTraining is attached, and every group starts from its state"
            )
        differences = _differences(saved["definition"], self._definition())
        if differences:
            raise ValueError(
                "the checkpoint is of another dynamic training: " + "; ".join(differences)
            )
        self._recover()
        self._saved = saved

    def _load(self, optimizer: torch.optim.Optimizer) -> None:
        assert self._saved is not None
        saved, self._saved = self._saved, None
        self.updates = saved["updates"]
        self.last = None
        self._peaks = list(saved["peaks"])
        if self._states is not None:
            self._states.load_state_dict(saved["groups"])

    def _warn_outside_bounds(self, complexity: float) -> None:
        assert self.calr is not None
        c_min, c_max = self.calr.c_min, self.calr.c_max
        if not c_min <= complexity <= c_max:
            self._warn_once(
                "outside bounds",
                f"a subnet of complexity {complexity:g} is outside CaLR's bounds "
                f"({c_min:g}, {c_max:g}) and takes the γ of the nearer bound; "
                "give the bounds of the whole space",
            )

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=2)


def _by_gradient(
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


def _lend_zeros(parameters: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
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


def _differences(saved: Any, here: Any, path: str = "") -> list[str]:
    """Where two definitions differ, one sentence each."""
    if isinstance(saved, dict) and isinstance(here, dict):
        found = []
        for key in [*saved, *(key for key in here if key not in saved)]:
            found += _differences(
                saved.get(key), here.get(key), f"{path}.{key}" if path else str(key)
            )
        return found
    if saved == here:
        return []
    return [f"{path} is {saved} in the checkpoint and {here} here"]
