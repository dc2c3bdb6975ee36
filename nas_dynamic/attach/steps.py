"""The course of a step: what hooks do before the optimizer's own update, and after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from nas_dynamic.attach.gradients import StepGradients, ZeroedGradients
from nas_dynamic.attach.guard import Guard, UpToDevice
from nas_dynamic.attach.intercept import intercept
from nas_dynamic.attach.outer_step import OuterStep
from nas_dynamic.attach.sampled_check import SampledCheck
from nas_dynamic.attach.supported import check_lookahead
from nas_dynamic.attach.transaction import SkippedStep, UpdateTransaction
from nas_dynamic.attach.update_rule import UpdateRule
from nas_dynamic.space import Architecture

__all__ = ["HookedSteps"]


class HookedSteps:
    """Makes every step of an optimizer an update of the sampled subnet, or one that is skipped.

    Args:
        optimizer: that is stepped by the host.
        architecture: see `DynamicTraining`.
        rule: from the subnets of a step to what its update uses.
        update: which sets that for the time of the optimizer's own update.
        freeze: whether idle parameters freeze.
        check_sampled: whether the told subnets are compared with the gradients.

    Attributes:
        guards: which look at every step.
        weighted: the subnets whose losses were given weights for the coming update.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        architecture: Callable[[], Architecture | Sequence[Architecture]],
        rule: UpdateRule,
        update: UpdateTransaction,
        *,
        freeze: bool,
        check_sampled: bool,
    ) -> None:
        self.optimizer = optimizer
        self.guards: list[Guard] = []
        self.weighted: list[Architecture] = []
        self._architecture = architecture
        self._rule = rule
        self._update = update
        self._skip = SkippedStep(optimizer)
        self._begun: UpdateTransaction | SkippedStep | None = None
        self._gradients = StepGradients([])  # of this step
        self._zeroed = ZeroedGradients() if freeze else None
        self._sampled_check = SampledCheck() if check_sampled else None
        self._outer = OuterStep()

    def attach(self) -> list[Callable[[], None]]:
        """Register the hooks; return what ends them."""
        self._hooks = (
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        )
        return [
            *(hook.remove for hook in self._hooks),
            intercept(self.optimizer, "step", self._step),
        ]

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if optimizer is not self.optimizer:
            raise RuntimeError(
                f"dynamic training is attached to one {type(self.optimizer).__name__}, and "
                f"another object, a {type(optimizer).__name__} that has its hooks, is stepped; "
                "attach to what is stepped"
            )
        if not self._outer.enter():
            return None
        if self._begun is not None:
            self.recover()
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
        param_groups = self.optimizer.param_groups
        if self._zeroed is not None:
            self._zeroed.before_update()
        self._gradients = gradients = StepGradients(param_groups)
        allowed, found_inf = bool(gradients.first), None
        for guard in self.guards:
            answer = allowed and guard.allows_update(gradients)
            if isinstance(answer, UpToDevice):
                found_inf = answer.found_inf
            allowed = bool(answer)
        if not allowed:
            self._skip.begin(gradients.trained)
            self._begun = self._skip
            return
        check_lookahead(self.optimizer)  # it may have been wrapped after attachment
        told, progress = self._architecture(), self._update.progress
        update = self._rule.propose(
            param_groups, told, progress.steps, progress.peak_lrs, self.weighted
        )
        if self._sampled_check is not None:
            self._sampled_check.look(update, param_groups)
        self._update.begin(update, gradients, found_inf)
        self._begun = self._update

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._outer.leave():
            return
        begun, self._begun = self._begun, None
        if begun is self._update:
            self._end_update()
        elif begun is self._skip:
            self._end_skip()
        if self._zeroed is not None:
            self._zeroed.after_update(self._gradients)
        self._gradients = StepGradients([])
        for guard in self.guards:
            guard.after_step()

    def _end_update(self) -> None:
        self._update.commit()
        self.weighted = []  # weights are of one update
        if self._rule.momentum is not None and not any(self.optimizer.state.values()):
            self._rule.warn_once(
                "no momentum",
                f"{type(self.optimizer).__name__} keeps no state, so there is no momentum to "
                "separate. Give it one, such as SGD(…, momentum=0.9), or drop momentum separation",
            )

    def _end_skip(self) -> None:
        progress, taken = self._update.progress, self._skip.end()
        self._update.progress = progress._replace(skipped=progress.skipped + bool(taken))

    def _step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # Inside of all other hooks, which may write to the scheduled lr, such as a scheduler's.
        before, after = self._hooks
        optimizer: Any = self.optimizer
        optimizer._optimizer_step_pre_hooks.move_to_end(before.id)
        optimizer._optimizer_step_post_hooks.move_to_end(after.id, last=False)
        # torch's hooks do not run where the step raises.
        try:
            return step(*args, **kwargs)
        except BaseException:
            self._begun = None
            self._outer.reset()
            self._skip.end()
            self._update.roll_back()
            raise

    def recover(self) -> None:
        """Undo what a step has left that raised unseen, by a call of the class's own `step`."""
        self._begun = None
        self._skip.end()
        self._update.roll_back(late=True)
