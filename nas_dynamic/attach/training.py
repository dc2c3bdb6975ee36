"""DynamicTraining: the learning rate and the momentum of each update, set by step hooks."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import torch

from nas_dynamic.attach.copies import bare_copy, refused_to_step
from nas_dynamic.attach.description import announce, definition, describe
from nas_dynamic.attach.group_states import GroupStates
from nas_dynamic.attach.guard import Guard
from nas_dynamic.attach.innermost import innermost
from nas_dynamic.attach.intercept import intercept
from nas_dynamic.attach.nonfinite import NonFiniteGuard, check_nonfinite
from nas_dynamic.attach.ranks import EVERY, RankAgreement, check_every, several_ranks
from nas_dynamic.attach.state_dict import CHECKPOINT_KEY, TrainingState, read
from nas_dynamic.attach.steps import HookedSteps
from nas_dynamic.attach.supported import (
    check_idle,
    check_supported,
    check_trial,
    default_idle,
)
from nas_dynamic.attach.transaction import UpdateTransaction
from nas_dynamic.attach.trial import try_updates
from nas_dynamic.attach.update_rule import Update, UpdateRule
from nas_dynamic.calr import CaLR
from nas_dynamic.grouping import check_rule
from nas_dynamic.momentum import MomentumSeparation
from nas_dynamic.space import Architecture, SearchSpace

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
            of them where the step takes several subnets (see `loss_weights` and `split`); of a
            mixture of subnets label → {candidate: weight}. Called once an update, after the
            closure if there is one.
        calr: the lr of each subnet, or None to leave the lr alone.
        momentum: the groups of subnets with a momentum of their own, or None for one momentum.
        idle: what an update does with the parameters outside of the subnet.
            `"freeze"`: nothing, as by torch itself. `"coast"`: as if their gradient were zero;
            from their first training on weight decay and their group's momentum move them, as in
            the paper's experiments. Either holds whether the host's `zero_grad` leaves None or
            zeros. `"auto"`: they freeze, but coast under the few optimizers that cannot, and from
            the start: SGD(fused=True) with a momentum, FSDP's first version.
        space: checks every architecture against a space, where given.
        nonfinite: what a step does whose gradients have an inf or a NaN. `"ignore"`: the update,
            as without dynamic training. `"raise"`: a FloatingPointError before the update.
            `"skip"`: no update, and `skipped` counts it. Either of these leaves weights, state
            and count as they were, and waits for the device once a step, but for `"skip"` with
            an optimizer that is fused. Steps under GradScaler are left to it.
        check_ranks_every: where `torch.distributed` is initialised with several ranks, the steps
            between two checks that they train the same; see `RankAgreement`. None for none.
        check_sampled: raise where the parameters that have a gradient contradict the subnet that
            `architecture` returns; see `SampledCheck`.
        extend: take a checkpoint of a training of fewer steps. From there on the decay is that of
            `total_steps`, s(t / T): the lr rises to where it would be in a training of this length.
        seed: of the sampling, for the line that says what is attached.

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
        idle: Literal["auto", "coast", "freeze"] = "auto",
        space: SearchSpace | None = None,
        nonfinite: Literal["ignore", "raise", "skip"] = "ignore",
        check_ranks_every: int | None = EVERY,
        check_sampled: bool = True,
        extend: bool = False,
        seed: int | None = None,
    ) -> None:
        check_idle(idle)
        check_nonfinite(nonfinite)
        check_every(check_ranks_every)
        if not callable(architecture):
            raise ValueError(
                "architecture must be a callable that returns this step's architecture, "
                f"got {type(architecture).__name__}"
            )
        optimizer = innermost(optimizer)
        if optimizer in _attached:
            raise ValueError(
                "dynamic training is attached to this optimizer already; detach() that one first"
            )
        trial = try_updates(optimizer)
        idle = default_idle(optimizer) if idle == "auto" else idle
        check_supported(optimizer, idle)
        check_trial(optimizer, trial, separate=momentum is not None, anneal=calr is not None)
        if momentum is not None and space is not None:
            check_rule(space, momentum.group_by, momentum.max_groups)
        if calr is None and momentum is None:
            warnings.warn(
                "neither calr nor momentum is given: lr and momentum stay as they are without "
                f"dynamic training, and idle parameters {idle}",
                UserWarning,
                stacklevel=2,
            )
        self.optimizer = optimizer
        self.architecture = architecture
        self.calr = calr
        self.momentum = momentum
        self.idle = idle
        self.space = space
        self.extend = extend
        self.seed = seed
        self._rule = UpdateRule(calr, momentum, space)
        self._states = GroupStates(optimizer, momentum.max_groups) if momentum else None
        self._update = UpdateTransaction(optimizer, self._states, idle)
        self._hooked_steps = HookedSteps(
            optimizer,
            lambda: self.architecture(),
            self._rule,
            self._update,
            freeze=idle == "freeze",
            check_sampled=check_sampled,
        )
        if nonfinite != "ignore":
            self.add_guard(NonFiniteGuard(self, nonfinite))
        if check_ranks_every is not None and several_ranks():
            RankAgreement(self, check_ranks_every)
        self._ends = [
            *self._hooked_steps.attach(),
            intercept(optimizer, "state_dict", self._state_dict),
            intercept(optimizer, "load_state_dict", self._load_state_dict),
            intercept(optimizer, "__getstate__", lambda state: refused_to_step(state())),
        ]
        _attached.add(optimizer)
        announce(self, trial.state_share)

    def __repr__(self) -> str:
        return describe(self)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_ends": []}  # a copy, as of a module that keeps it, is not attached

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
    def turn(self) -> int:
        """What to draw for: the next subnet takes its turn after an update, or one skipped."""
        return self.updates + self.skipped

    @property
    def last(self) -> Update | None:
        """What the last update used, for logging."""
        return self._update.last

    @property
    def groups(self) -> list[Hashable]:
        """The momentum groups that have been updated so far, in the order of appearance."""
        self._update.settle()
        return [] if self._states is None else list(self._states.updates())

    @property
    def states(self) -> dict[Hashable, Any]:
        """Group → state of the optimizer; {None: …} without momentum separation.

        The tensors themselves, to change in place: as where a pruned weight is to lose its momenta.
        """
        self._update.settle()
        return {None: self.optimizer.state} if self._states is None else self._states.by_group()

    def add_guard(self, guard: Guard) -> None:
        """Have a guard look at every step from now on."""
        self._hooked_steps.guards.append(guard)

    def remove_guard(self, guard: Guard) -> None:
        """Leave a guard out from now on."""
        self._hooked_steps.guards.remove(guard)

    def detach(self) -> None:
        """Remove the hooks. The optimizer keeps the state of the group that it updated last."""
        if not self._ends:
            return
        self._hooked_steps.recover()
        for end in self._ends:
            end()
        self._ends = []
        _attached.discard(self.optimizer)

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
        self._hooked_steps.weighted = [subnet.architecture for subnet in subnets]
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
        self._update.progress = self._update.progress.split(len(lists))
        return list(lists.values())

    def _state_dict(self, state_dict: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._hooked_steps.recover()
        groups = None if self._states is None else self._states.state_dict()
        update = self._update
        saved = TrainingState(update.progress, groups, update.untrained())
        return state_dict(*args, **kwargs) | {CHECKPOINT_KEY: saved.state_dict(definition(self))}

    def _load_state_dict(
        self, load: Callable[..., None], state_dict: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        # All that can fail is done here, before any change.
        own = {key: value for key, value in state_dict.items() if key != CHECKPOINT_KEY}
        bare_copy(self.optimizer).load_state_dict(own)
        saved = read(state_dict, definition(self), extend=self.extend)
        groups = None
        if self._states is not None and saved.groups is not None:
            groups = self._states.read(saved.groups, state_dict["param_groups"])
        self._hooked_steps.recover()
        load(own, *args, **kwargs)
        self._update.restore(saved.progress, saved.untrained)
        self._hooked_steps.weighted = []
        if self._states is not None and groups is not None:
            self._states.restore(groups)
