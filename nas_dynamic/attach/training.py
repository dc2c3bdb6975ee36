"""DynamicTraining: the learning rate and the momentum of each update, set by step hooks."""

from __future__ import annotations

import copy
import sys
import weakref
from collections.abc import Callable, Hashable, Sequence
from types import FrameType
from typing import Any, Literal

import torch

from nas_dynamic.attach.gradients import by_gradient
from nas_dynamic.attach.group_states import GroupSnapshot, GroupStates
from nas_dynamic.attach.guard import Guard
from nas_dynamic.attach.nonfinite import NonFiniteGuard, check_nonfinite
from nas_dynamic.attach.ranks import RankAgreement, check_every, several_ranks
from nas_dynamic.attach.state_dict import CHECKPOINT_KEY, TrainingState, read
from nas_dynamic.attach.step_errors import on_step_error
from nas_dynamic.attach.supported import check_lookahead, check_supported
from nas_dynamic.attach.transaction import SkippedStep, UpdateTransaction
from nas_dynamic.attach.update_rule import Update, UpdateRule
from nas_dynamic.calr import CaLR
from nas_dynamic.momentum import MomentumSeparation
from nas_dynamic.space import Architecture, SearchSpace, candidate_text

__all__ = ["DynamicTraining"]

_attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


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
            the host's `zero_grad` leaves None or zeros: coasting fills missing gradients with zeros
            for the time of the update, freezing drops all gradients after it.
        space: checks every architecture against a space, where given.
        nonfinite: what a step does whose gradients have an inf or a NaN. `"ignore"`: the update,
            as without dynamic training. `"raise"`: a FloatingPointError before the update.
            `"skip"`: no update, and `skipped` counts it. Either of these leaves weights, state
            and count as they were, and waits for the device once a step. Steps under GradScaler
            are left to it.
        check_ranks_every: where `torch.distributed` is initialised with several ranks, the steps
            between two checks that they train the same; see `RankAgreement`. None for none.

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
        check_ranks_every: int | None = 100,
    ) -> None:
        check_supported(optimizer, idle)
        check_nonfinite(nonfinite)
        check_every(check_ranks_every)
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
        self.architecture = architecture
        self.calr = calr
        self.momentum = momentum
        self.idle = idle
        self.space = space
        self._rule = UpdateRule(calr, momentum, space)
        self._states = GroupStates(optimizer, momentum.max_groups) if momentum else None
        self._update = UpdateTransaction(optimizer, self._states, idle)
        self._skip = SkippedStep(optimizer)
        self._begun: UpdateTransaction | SkippedStep | None = None
        self._guards: list[Guard] = []
        self._weighted: list[Architecture] = []  # whose losses were given weights
        self._outer: FrameType | None = None  # the call of step() whose update is under way
        self._inner = 0  # calls of super().step() in it
        self._loading: tuple[TrainingState, GroupSnapshot | None] | None = None
        if nonfinite != "ignore":
            self.add_guard(NonFiniteGuard(self, nonfinite))
        if check_ranks_every is not None and several_ranks():
            RankAgreement(self, check_ranks_every)
        self._register()
        _attached.add(optimizer)

    def _register(self) -> None:
        optimizer = self.optimizer
        after_step = optimizer.register_step_post_hook(self._after_step)
        # Before all others: a scheduler that is stepped by one would write to the update's lr.
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
        self._unwatch = on_step_error(optimizer, self._roll_back)

    @property
    def updates(self) -> int:
        """Number of updates so far: steps that were skipped, or had no gradient, do not count."""
        return self._update.progress.updates

    @property
    def steps(self) -> int:
        """Number of training steps so far, t of CaLR: the updates, but for `split`."""
        return self._update.progress.steps

    @property
    def skipped(self) -> int:
        """Number of steps that were skipped by a guard, such as by `nonfinite="skip"`."""
        return self._update.progress.skipped

    @property
    def last(self) -> Update | None:
        """What the last update used, for logging."""
        return self._update.last

    @property
    def groups(self) -> list[Hashable]:
        """The momentum groups that have been updated so far, in the order of appearance."""
        return [] if self._states is None else list(self._states.updates())

    def add_guard(self, guard: Guard) -> None:
        """Have a guard look at every step from now on."""
        self._guards.append(guard)

    def remove_guard(self, guard: Guard) -> None:
        """Leave a guard out from now on."""
        self._guards.remove(guard)

    def detach(self) -> None:
        """Remove the hooks. The optimizer keeps the state of the group that it updated last."""
        if not self._handles:
            return
        self._recover()
        for handle in self._handles:
            handle.remove()
        self._unwatch()
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
        if self._begun is not None:
            self._recover()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._begin()
            return None

        # The subnet is sampled and trained in the closure, so only after it is it known.
        def closure_then_begin(*closure_args: Any, **closure_kwargs: Any) -> Any:
            if self._begun is not None:
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
        """Begin the update, or the step that is skipped; if this raises, nothing has changed."""
        trained, idle = by_gradient(self.optimizer.param_groups)
        allowed = bool(trained)
        for guard in self._guards:
            allowed = allowed and guard.allows_update(trained)
        if not allowed:
            self._skip.begin(trained)
            self._begun = self._skip
            return
        check_lookahead(self.optimizer)  # it may have been wrapped after attachment
        progress = self._update.progress
        update = self._rule.propose(
            self.optimizer.param_groups,
            self.architecture(),
            progress.steps,
            progress.peak_lrs,
            self._weighted,
        )
        self._update.begin(update, trained, idle)
        self._begun = self._update

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._inner:
            self._inner -= 1
            return
        self._outer = None
        begun, self._begun = self._begun, None
        if begun is self._update:
            self._end_update()
        elif begun is self._skip:
            self._end_skip()
        for guard in self._guards:
            guard.after_step()

    def _end_update(self) -> None:
        # A fused optimizer is stepped by GradScaler even where gradients are inf, and tests
        # found_inf itself. Other optimizers are not stepped at all then.
        found_inf = getattr(self.optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            self._update.cancel()
            return
        self._update.commit()
        self._weighted = []  # weights are of one update
        if self.momentum is not None and not any(self.optimizer.state.values()):
            self._rule.warn_once(
                "no momentum",
                f"{type(self.optimizer).__name__} keeps no state, so there is no momentum to "
                "separate. Give it one, such as SGD(…, momentum=0.9), or drop momentum separation",
            )

    def _end_skip(self) -> None:
        taken = self._skip.end()
        if taken:
            progress = self._update.progress
            self._update.progress = progress._replace(skipped=progress.skipped + 1)
        if self.idle == "freeze":
            for parameter in taken:
                parameter.grad = None

    def _roll_back(self) -> None:
        """Undo what has begun, since the step has raised."""
        self._outer = self._begun = None
        self._skip.end()
        self._update.roll_back()

    def _recover(self) -> None:
        """Undo what a step has left that raised unseen, by a call of the class's own `step`."""
        self._begun = None
        self._skip.end()
        self._update.roll_back(late=True)

    def loss_weights(self, architectures: Sequence[Architecture]) -> list[float]:
        """Return what to multiply the loss of each subnet of the coming update by.

        Call it before backward. The lr of an update of several subnets is `lr_0 · mean_k f(α_k)`,
        f the factor of CaLR; the weights are `f(α_k) / mean_k f`, so that each subnet's gradient,
        and weight decay, are annealed as they should. Their mean is 1: sum the losses or average
        them, as the method does. For a single subnet the weight is 1. With `CaLR(anneal="loss")`
        the weights are f(α_k), and the lr is left alone.
        """
        subnets, progress = self._rule.subnets(architectures), self._update.progress
        weights = self._rule.loss_weights(
            self.optimizer.param_groups, subnets, progress.steps, progress.peak_lrs
        )
        self._weighted = [subnet.architecture for subnet in subnets]
        return weights

    def split(self, architectures: Sequence[Architecture]) -> list[list[Architecture]]:
        """Return the subnets of one step in lists of one momentum group each.

        For one update a list; all these updates are one step of CaLR:

            for part in dynamic.split(sampler.sample()):
                weights = dynamic.loss_weights(part)
                ...  # zero_grad, a weighted loss and backward for every subnet of part, step
        """
        lists: dict[Hashable, list[Architecture]] = {}
        for subnet in self._rule.subnets(architectures):
            group = self._rule.group([subnet])
            lists.setdefault(group, []).append(subnet.architecture)
        progress = self._update.progress
        begun = progress.parts[0] > 0  # GradScaler has skipped a part of the last step
        steps = progress.steps + begun
        self._update.progress = progress._replace(steps=steps, parts=(0, len(lists)))
        return list(lists.values())

    def _definition(self) -> dict[str, Any]:
        return {
            "idle": self.idle,
            "space": self.space
            and {k: [candidate_text(c) for c in v] for k, v in self.space.choices.items()},
            "calr": self.calr and self.calr.definition(),
            "momentum": self.momentum and self.momentum.definition(),
        }

    def _save(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        groups = None if self._states is None else self._states.state_dict()
        saved = TrainingState(self._update.progress, groups)
        state_dict[CHECKPOINT_KEY] = saved.state_dict(self._definition())

    def _check_checkpoint(
        self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
    ) -> None:
        # All that can fail is done here, before any change. A copy of an optimizer has no hooks.
        empty: Any = {"state": {}, "param_groups": state_dict["param_groups"]}
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
        self._update.progress, self._update.last = saved.progress, None
        self._weighted = []
        if self._states is not None and groups is not None:
            self._states.restore(groups)


def _is_running(frame: FrameType) -> bool:
    """Return whether a call is among those that led here."""
    caller: FrameType | None = sys._getframe(1)
    while caller is not None and caller is not frame:
        caller = caller.f_back
    return caller is frame


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _refuse_compilation() -> None:
    # A compiled step goes on with the state that it was traced with: the weights come out wrong.
    raise RuntimeError(
        "optimizer.step() is compiled, and would not follow the state of each momentum group; "
        "compile the model, or its forward and backward, and call optimizer.step() outside of "
        "torch.compile (fused=True makes it fast)"
    )
