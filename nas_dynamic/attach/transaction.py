"""One step of an optimizer as a transaction: it is made, or everything is as it was before.

A step is one of two: an `UpdateTransaction` changes lr, momentum group and missing gradients for
the time of the optimizer's own update; a `SkippedStep` lets the optimizer update nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from nas_dynamic.attach.device_flag import DeviceFlag
from nas_dynamic.attach.gradients import Coasting, Filled, LentZeros, StepGradients
from nas_dynamic.attach.group_states import NO_GROUP, SCHEDULED, Counters, GroupStates
from nas_dynamic.attach.supported import why_not_freeze
from nas_dynamic.attach.update_rule import Update

__all__ = ["Progress", "SkippedStep", "UpdateTransaction"]


class Progress(NamedTuple):
    """How far a training is; it is replaced as a whole when an update has been made.

    Attributes:
        updates: number of updates.
        steps: number of training steps, t of CaLR.
        skipped: number of steps that a guard has skipped.
        parts: updates made of the step at hand, and the number that it takes.
        peak_lrs: see `Update`.
    """

    updates: int = 0
    steps: int = 0
    skipped: int = 0
    parts: tuple[int, int] = (0, 1)
    peak_lrs: tuple[float, ...] = ()

    def split(self, parts: int) -> Progress:
        """Return the progress at the beginning of a step of so many updates."""
        begun = self.parts[0] > 0  # GradScaler has skipped a part of the last step
        return self._replace(steps=self.steps + begun, parts=(0, parts))

    def after(self, update: Update) -> Progress:
        """Return the progress once an update has been made."""
        updates, steps, skipped, (made, parts), _ = self
        if made + 1 < parts:
            return Progress(updates + 1, steps, skipped, (made + 1, parts), update.peak_lrs)
        return Progress(updates + 1, steps + 1, skipped, (0, 1), update.peak_lrs)


class _StateBefore:
    """Which parameters had a state before an update that a fused optimizer may leave out.

    It allocates their state all the same: zeros, or SGD's momenta uninitialised.
    """

    def __init__(self, state: dict[Any, dict[str, Any]]) -> None:
        self._state = state
        self._known = len(state)
        self._empty = [known for known in state.values() if not known]

    def restore(self) -> None:
        """Take away the state of all others."""
        for parameter in [*self._state][self._known :]:
            del self._state[parameter]
        for empty in self._empty:
            empty.clear()


@dataclass(slots=True, eq=False)
class _Begun:
    """What an update that has begun goes back to, or goes on to."""

    update: Update
    progress: Progress
    scheduled_lrs: list[Any]
    previous_group: Hashable
    trained: list[torch.Tensor] = field(default_factory=list)  # where the others coast
    filled: Filled = field(default_factory=list)
    state: _StateBefore | None = None
    by_guard: bool = False  # and not GradScaler, found_inf is on the optimizer


@dataclass(slots=True, eq=False)
class _Unsettled:
    """An update that is counted as made, until the device says otherwise."""

    not_made: DeviceFlag
    begun: _Begun
    progress: Progress
    last: Update | None
    counters: Counters


class UpdateTransaction:
    """The updates of one optimizer, one at a time: begin, then commit or roll back.

    Where the device alone knows whether it has made an update, `commit` counts it, and `settle`
    takes that back if it has not; to ask for `progress` or `last` settles.

    Args:
        optimizer: whose updates they are.
        states: of the momentum groups, if there are any.
        idle: `"coast"` or `"freeze"`, what idle parameters do.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, states: GroupStates | None, idle: str
    ) -> None:
        self.optimizer = optimizer
        self.states = states
        from_start = bool(why_not_freeze(optimizer))
        self.coasting = Coasting(optimizer, from_start) if idle == "coast" else None
        self._progress = Progress()
        self._last: Update | None = None
        self._begun: _Begun | None = None
        self._unsettled: _Unsettled | None = None
        self._zeros = LentZeros()

    @property
    def progress(self) -> Progress:
        """How far the training is, after the updates that have been made."""
        self.settle()
        return self._progress

    @progress.setter
    def progress(self, progress: Progress) -> None:
        self.settle()
        self._progress = progress

    @property
    def last(self) -> Update | None:
        """The last update that has been made; None before the first."""
        self.settle()
        return self._last

    def untrained(self) -> list[int]:
        """Return the numbers of the parameters that do not coast yet; see `Coasting`."""
        return [] if self.coasting is None else self.coasting.untrained(self.optimizer.param_groups)

    def restore(self, progress: Progress, untrained: list[int]) -> None:
        """Go on from a checkpoint; there is no last update then, as before the first."""
        self.progress, self._last = progress, None
        if self.coasting is not None:
            self.coasting.restore(self.optimizer.param_groups, untrained)

    def begin(
        self, update: Update, gradients: StepGradients, found_inf: torch.Tensor | None = None
    ) -> None:
        """Set lr, group and gradients of an update; if this raises, nothing has changed.

        Args:
            update: what it uses.
            gradients: of the step.
            found_inf: has the kernels of a fused optimizer leave the update out, and it counted as
                skipped, where this is not zero.
        """
        states, param_groups = self.states, self.optimizer.param_groups
        if states is not None:
            states.check(update.group)
        self._begun = begun = _Begun(
            update,
            self.progress.after(update),
            [group["lr"] for group in param_groups],
            NO_GROUP if states is None else states.current,
        )
        try:
            if states is not None:
                states.select(update.group)
            if found_inf is not None:
                self.optimizer.found_inf, begun.by_guard = found_inf, True  # type: ignore[attr-defined]
            if getattr(self.optimizer, "found_inf", None) is not None:
                begun.state = _StateBefore(self.optimizer.state)
            for group, lr in zip(param_groups, update.lr, strict=True):
                group["lr"] = lr
            if self.coasting is not None:
                begun.trained = gradients.trained
                begun.filled = self._zeros.lend(self.coasting.of(gradients))
        except BaseException:
            self.roll_back(untouched=True)
            raise

    def commit(self) -> None:
        """Put lr and gradients back after the optimizer's own update, and count it.

        A fused optimizer is stepped even where gradients are inf: then the device has the word.
        """
        begun = self._begun
        assert begun is not None
        found_inf = getattr(self.optimizer, "found_inf", None)
        not_made = None if found_inf is None else DeviceFlag(found_inf)
        self._put_back(begun)
        if self.coasting is not None:
            begun.trained = self.coasting.add(begun.trained)
        states = self.states
        counters = [] if states is None else states.counters(begun.update.group)
        if states is not None:
            states.keep_counters()
            states.count_update()
        if not_made is not None:
            progress = self._progress._replace(skipped=self._progress.skipped + begun.by_guard)
            self._unsettled = _Unsettled(not_made, begun, progress, self._last, counters)
        self._progress, self._last = begun.progress, begun.update
        self._begun = None

    def settle(self) -> None:
        """Wait for the device's word on the last update; take it back if it was not made."""
        unsettled = self._unsettled
        if unsettled is None:
            return
        not_made = bool(unsettled.not_made)  # if this is interrupted, it is asked for again
        self._unsettled = None
        if not not_made:
            return
        self._progress, self._last = unsettled.progress, unsettled.last
        if unsettled.begun.state is not None:
            unsettled.begun.state.restore()
        if self.coasting is not None:
            self.coasting.discard(unsettled.begun.trained)
        if self.states is not None:
            group = unsettled.begun.update.group
            self.states.discount_update(group, unsettled.counters)
            self.states.return_to(unsettled.begun.previous_group, drop=group)

    def roll_back(self, *, untouched: bool = False, late: bool = False) -> None:
        """Put lr, group and gradients back after an update that was not made, if one has begun.

        Args:
            untouched: the optimizer has written nothing to the state of the group.
            late: the host has run since, and may have accumulated gradients into the filled ones.
        """
        self.settle()
        begun = self._begun
        if begun is None:
            return
        self._put_back(begun, late=late)
        if self.states is not None:
            if not untouched:
                self.states.keep_counters()
            self.states.return_to(
                begun.previous_group, drop=begun.update.group if untouched else NO_GROUP
            )
        self._begun = None

    def _put_back(self, begun: _Begun, *, late: bool = False) -> None:
        # After an update that raised there may be further param groups by now.
        for group, lr in zip(self.optimizer.param_groups, begun.scheduled_lrs, strict=False):
            group["lr"] = lr
        self._zeros.take_back(begun.filled, late=late)
        if begun.by_guard:
            vars(self.optimizer).pop("found_inf", None)


class SkippedStep:
    """A step of the optimizer that updates nothing.

    A hook cannot call a step off. It can take the gradients away for its time: optimizers pass
    over parameters without. Some count such a step in `param_groups`; those counts are taken back.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._taken: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._kept: list[dict[str, Any]] | None = None

    def begin(self, trained: list[torch.Tensor]) -> None:
        """Take the gradients of the parameters that have one; all of them, or raise."""
        self._kept = [
            {key: value for key, value in group.items() if key not in SCHEDULED}
            for group in self.optimizer.param_groups
        ]
        try:
            for group, kept in zip(self.optimizer.param_groups, self._kept, strict=True):
                group.update(copy.deepcopy(kept))
            self._taken = [(parameter, parameter.grad) for parameter in trained]
            for parameter in trained:
                parameter.grad = None
        except BaseException:
            self.end()
            raise

    def end(self) -> list[torch.Tensor]:
        """Give back what was taken, if such a step has begun; return the parameters."""
        if self._kept is None:
            return []
        for group, kept in zip(self.optimizer.param_groups, self._kept, strict=False):
            for key in group.keys() - kept.keys() - SCHEDULED:
                del group[key]
            group.update(kept)
        for parameter, gradient in self._taken:
            if parameter.grad is None:  # the host may have set one after an error
                parameter.grad = gradient
        parameters = [parameter for parameter, _ in self._taken]
        self._kept, self._taken = None, []
        return parameters
