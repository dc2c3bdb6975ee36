"""DynamicTraining: the learning rate and the momentum of each update, set by step hooks."""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import torch

from nas_dynamic.attach.gradients import SkippedStep, all_finite, by_gradient, fill_missing_grads
from nas_dynamic.attach.group_states import GroupSnapshot, GroupStates
from nas_dynamic.attach.state_dict import CHECKPOINT_KEY, TrainingState, read
from nas_dynamic.attach.supported import check_lookahead, check_supported
from nas_dynamic.attach.update_rule import Update, UpdateRule
from nas_dynamic.calr import CaLR
from nas_dynamic.momentum import MomentumSeparation
from nas_dynamic.space import Architecture, SearchSpace, candidate_text

__all__ = ["DynamicTraining"]

_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Pending:
    """An update that has begun, and what to put back after it."""

    update: Update
    scheduled: list[Any]
    trained: list[torch.Tensor]
    lent: list[tuple[torch.Tensor, torch.Tensor]]
    peaks: list[float]
    undo: Callable[[], None]


class DynamicTraining:
    """Subnet-aware training of a supernet, attached to the optimizer that trains it.

    Hooks on the optimizer's own `step` read the sampled architecture, set the lr and the momentum
    of the update, and put the scheduled lr back after it. The loop, the lr schedulers, GradScaler
    and existing checkpoint code stay as they are: `optimizer.state_dict()` holds every group's
    state, and `optimizer.load_state_dict()` restores it.

    Args:
        optimizer: any optimizer that takes one update a step.
        architecture: () → the architecture that this step's loss was computed with, or the list
            of them where the step takes several subnets (see `loss_weights` and `split`). Called
            once an update, after the closure if there is one.
        calr: the lr of each subnet, or None to leave the lr alone.
        momentum: the groups of subnets with a momentum of their own, or None for one momentum.
        idle: what an update does with the parameters outside of the subnet.
            `"coast"`: as if their gradient were zero; weight decay and their group's momentum
            move them on, as in the paper's experiments. `"freeze"`: nothing. Either holds whether
            the host's `zero_grad` leaves None or zeros: coasting lends zero gradients for the
            time of the update, freezing drops all gradients after it.
        space: checks every architecture against a space, where given.
        nonfinite: what a step does whose gradients have an inf or a NaN. `"ignore"`: the update,
            as without dynamic training. `"raise"`: a FloatingPointError ahead of the update.
            `"skip"`: no update, and `skipped` counts it. Either of these leaves weights, state
            and count as they were, and waits for the device once a step. Steps under GradScaler
            are left to it.

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
        architecture: Callable[[], Architecture | Sequence[Architecture]],
        *,
        calr: CaLR | None = None,
        momentum: MomentumSeparation | None = None,
        idle: Literal["coast", "freeze"] = "coast",
        space: SearchSpace | None = None,
        nonfinite: Literal["ignore", "raise", "skip"] = "ignore",
    ) -> None:
        check_supported(optimizer, idle)
        if nonfinite not in ("ignore", "raise", "skip"):
            raise ValueError(f"nonfinite must be 'ignore', 'raise' or 'skip', got {nonfinite!r}")
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
        self.nonfinite = nonfinite
        self.updates = 0
        """Number of updates so far: steps that were skipped, or had no gradient, do not count."""
        self.steps = 0
        """Number of training steps so far, t of CaLR: the updates, but for `split`."""
        self.skipped = 0
        """Number of steps that were skipped by `nonfinite="skip"`."""
        self.last: Update | None = None
        """What the last update used, for logging."""
        self._planner = UpdateRule(calr, momentum, space)
        self._parts = (0, 1)  # updates made of this step, and the number that it takes
        self._architecture = architecture
        self._states = GroupStates(optimizer, momentum.max_groups) if momentum else None
        self._pending: _Pending | None = None
        self._outer: FrameType | None = None  # the call of step() whose update is under way
        self._inner = 0  # calls of super().step() in it
        self._standstill = SkippedStep(optimizer)
        self._loading: tuple[TrainingState, GroupSnapshot | None] | None = None
        after_step = optimizer.register_step_post_hook(self._after_step)
        # Ahead of all others: a scheduler that is stepped by one would write to the update's lr.
        post_hooks: Any = optimizer._optimizer_step_post_hooks
        post_hooks.move_to_end(after_step.id, last=False)
        self._handles = [
            optimizer.register_step_pre_hook(self._before_step),
            after_step,
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
        if not self._handles:
            return
        self._recover()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _attached.discard(self.optimizer)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if torch.compiler.is_compiling():
            _refuse_compilation()
        if self._outer is not None and _is_running(self._outer):
            # A subclass has called super().step(), which torch has hooked as well, if there is a
            # plain instance of that class anywhere.
            self._inner += 1
            return None
        self._outer, self._inner = sys._getframe(1), 0
        self._recover()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
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

        if len(args) > 1:
            return (args[0], closure_then_begin, *args[2:]), kwargs
        return args, kwargs | {"closure": closure_then_begin}

    def _begin(self) -> None:
        param_groups = self.optimizer.param_groups
        trained, idle = by_gradient(param_groups)
        if not trained or not self._finite(trained):
            self._standstill.begin(trained)
            return
        check_lookahead(self.optimizer)  # it may have been wrapped after attachment
        update = self._planner.plan(param_groups, self._architecture(), self.steps)
        if self._states is not None:
            self._states.check_room(update.group)
        # Nothing below raises: an error leaves weights, state and count as they were.
        peaks = self._planner.begin()
        scheduled = [group["lr"] for group in param_groups]
        undo = self._states.switch(update.group) if self._states is not None else _nothing
        for group, lr in zip(param_groups, update.lr, strict=True):
            group["lr"] = lr
        lent = fill_missing_grads(idle) if self.idle == "coast" else []
        self._pending = _Pending(update, scheduled, trained, lent, peaks, undo)

    def _finite(self, trained: list[torch.Tensor]) -> bool:
        # GradScaler has looked itself, where it has left this on a fused optimizer.
        if self.nonfinite == "ignore" or getattr(self.optimizer, "found_inf", None) is not None:
            return True
        if all_finite(trained):
            return True
        if self.nonfinite == "raise":
            raise FloatingPointError(
                f"the gradients of step {self.steps} have an inf or a NaN, of the subnet "
                f"{self._architecture()}; weights and optimizer are as they were. Lower the lr, "
                "clip gradients, or pass over such steps by nonfinite='skip'"
            )
        self._planner.warn_once(
            "not finite",
            f"step {self.steps} is skipped: its gradients have an inf or a NaN, of the subnet "
            f"{self._architecture()}. DynamicTraining.skipped counts further ones",
        )
        return False

    def loss_weights(self, architectures: Sequence[Architecture]) -> list[float]:
        """What to multiply the loss of each subnet of the coming update by, before backward.

        The lr of an update of several subnets is `lr_0 · mean_k f(α_k)`, f the factor of CaLR;
        the weights are `f(α_k) / mean_k f`, so that each subnet's gradient, and weight decay, are
        annealed as they should. Their mean is 1: sum the losses or average them, as the method
        does. For a single subnet the weight is 1. With `CaLR(anneal="loss")` the weights are
        f(α_k), and the lr is left alone.
        """
        return self._planner.loss_weights(self.optimizer.param_groups, architectures, self.steps)

    def split(self, architectures: Sequence[Architecture]) -> list[list[Architecture]]:
        """The subnets of one step in lists of one momentum group each, for one update a list.

        All these updates are one step of CaLR:

            for part in dynamic.split(sampler.sample()):
                weights = dynamic.loss_weights(part)
                ...  # zero_grad, a weighed loss and backward for every subnet of part, step
        """
        made, parts = self._parts
        if 0 < made < parts:  # GradScaler has skipped a part of the last step
            self.steps += 1
        lists: dict[Hashable, list[Architecture]] = {}
        for subnet in self._planner.subnets(architectures):
            group = self._planner.group([subnet])
            lists.setdefault(group, []).append(subnet.architecture)
        self._parts = (0, len(lists))
        return list(lists.values())

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._inner:
            self._inner -= 1
            return
        self._outer = None
        pending = self._restore()
        if pending is None:
            taken = self._standstill.end()
            self.skipped += bool(taken)
            if self.idle == "freeze":
                for parameter in taken:
                    parameter.grad = None
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
            self._planner.peaks = pending.peaks
            pending.undo()
            return
        self.updates += 1
        self.last = pending.update
        self._planner.weighed = []  # weights are of one update
        made, parts = self._parts
        self._parts = (made + 1, parts) if made + 1 < parts else (0, 1)
        self.steps += made + 1 >= parts
        if self.momentum is not None and not any(optimizer.state.values()):
            self._planner.warn_once(
                "no momentum",
                f"{type(optimizer).__name__} keeps no state, so there is no momentum to separate. "
                "Give it one, such as SGD(…, momentum=0.9), or drop momentum separation",
            )

    def _restore(self) -> _Pending | None:
        """Put the scheduled lr back and keep the counters; the update that had begun, if any."""
        pending, self._pending = self._pending, None
        if pending is not None:
            # After an update that raised there may be further param groups by now.
            for group, lr in zip(self.optimizer.param_groups, pending.scheduled, strict=False):
                group["lr"] = lr
            if self._states is not None:
                self._states.collect()
        return pending

    def _recover(self) -> None:
        """Undo what an update that raised has left."""
        self._standstill.end()
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
            and {k: [candidate_text(c) for c in v] for k, v in self.space.choices.items()},
            "calr": self.calr and self.calr.definition(),
            "momentum": self.momentum and self.momentum.definition(),
        }

    def _save(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        saved = TrainingState(
            updates=self.updates,
            steps=self.steps,
            skipped=self.skipped,
            parts=self._parts,
            peaks=list(self._planner.peaks),
            groups=None if self._states is None else self._states.state_dict(),
        )
        state_dict[CHECKPOINT_KEY] = saved.state_dict(self._definition())

    def _check_checkpoint(
        self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
    ) -> None:
        # All that can fail is done here, ahead of any change. A copy of an optimizer has no hooks.
        empty = {"state": {}, "param_groups": state_dict["param_groups"]}
        copy.copy(optimizer).load_state_dict(empty)
        saved = read(state_dict, self._definition())
        groups = None
        if self._states is not None and saved.groups is not None:
            groups = self._states.read(saved.groups, state_dict["param_groups"])
        self._recover()
        self._loading = saved, groups

    def _load(self, optimizer: torch.optim.Optimizer) -> None:
        assert self._loading is not None
        (saved, groups), self._loading = self._loading, None
        self.updates = saved.updates
        self.steps = saved.steps
        self.skipped = saved.skipped
        self._parts = saved.parts
        self._planner.peaks = saved.peaks
        self._planner.weighed = []
        self.last = None
        if self._states is not None and groups is not None:
            self._states.restore(groups)


def _nothing() -> None:
    pass


def _is_running(frame: FrameType) -> bool:
    """Whether a call is among those that led here."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is frame


@torch.compiler.disable
def _refuse_compilation() -> None:
    # A compiled step goes on with the state that it was traced with: the weights come out wrong.
    raise RuntimeError(
        "optimizer.step() is compiled, and would not follow the state of each momentum group; "
        "compile the model, or its forward and backward, and call optimizer.step() outside of "
        "torch.compile (fused=True makes it fast)"
    )
