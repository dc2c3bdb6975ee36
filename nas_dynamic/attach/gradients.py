"""Which parameters have a gradient in an update, and zeros for the others."""

from __future__ import annotations

import functools
from typing import Any

import torch

__all__ = ["Coasting", "Filled", "LentZeros", "StepGradients", "ZeroedGradients"]

Filled = list[tuple[torch.Tensor, torch.Tensor]]
"""Parameters, and the zeros that they were given for a gradient."""


class StepGradients:
    """Which parameters have a gradient in a step; looked for only as far as someone asks.

    Attributes:
        param_groups: of the optimizer.
    """

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        self.param_groups = param_groups

    @functools.cached_property
    def first(self) -> list[torch.Tensor]:
        """The first parameter that has a gradient, in a list; empty if none has."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    return [parameter]
        return []

    @functools.cached_property
    def trained(self) -> list[torch.Tensor]:
        """The parameters that have a gradient."""
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    @functools.cached_property
    def idle(self) -> list[torch.Tensor]:
        """The parameters that have none, and could have one."""
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is None]
        return [p for p in parameters if p.requires_grad]


class LentZeros:
    """Gradients of zeros, which parameters without one are lent for the time of an update.

    They are kept from one update to the next, since to make them takes longer than the update of
    a small parameter: once every parameter has been idle they take as much memory as the weights.
    """

    def __init__(self) -> None:
        # One buffer each: foreach SGD with Nesterov adds the momentum into the gradients in place.
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by id of the parameter

    def lend(self, parameters: list[torch.Tensor]) -> Filled:
        """Give each parameter a gradient of zeros; either all of them, or none and an error."""
        if not parameters:
            return []
        kept = self._kept
        for parameter in parameters:
            if id(parameter) not in kept:
                kept[id(parameter)] = parameter, torch.empty_like(parameter)
        filled = [kept[id(parameter)] for parameter in parameters]
        torch._foreach_zero_([zeros for _, zeros in filled])  # one kernel on an accelerator
        try:
            for parameter, zeros in filled:
                parameter.grad = zeros
        except BaseException as error:
            self.take_back(filled)
            if isinstance(error, RuntimeError) and self._forget_changed(filled):
                return self.lend(parameters)
            raise
        return filled

    def take_back(self, filled: Filled, *, late: bool = False) -> None:
        """Take back what was lent.

        Args:
            filled: what `lend` gave.
            late: the host has run since, and may have accumulated gradients into it: such stay.
        """
        for parameter, zeros in filled:
            if not late or (parameter.grad is zeros and not zeros.any()):
                parameter.grad = None
            elif parameter.grad is zeros:
                del self._kept[id(parameter)]

    def _forget_changed(self, filled: Filled) -> bool:
        """Forget zeros of parameters that have been moved or cast since; return if there are."""
        changed = [
            parameter
            for parameter, zeros in filled
            if (parameter.shape, parameter.dtype, parameter.device)
            != (zeros.shape, zeros.dtype, zeros.device)
        ]
        for parameter in changed:
            del self._kept[id(parameter)]
        return bool(changed)


class Coasting:
    """Which of the idle parameters coast: those that have been trained once.

    So it is with `zero_grad(set_to_none=False)`, which leaves zeros where there was a gradient: a
    parameter that no subnet has used yet has none, and stays as it was initialised. Once is: since
    attachment, or just before it, so that the gradient is there still.

    Args:
        optimizer: of the parameters.
        from_start: the optimizer needs a gradient of every parameter: all of them coast.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, from_start: bool) -> None:
        self.from_start = from_start
        self._trained: dict[int, torch.Tensor] = {}  # by id; they stay alive, so that ids do
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.add([parameter for parameter in parameters if parameter.grad is not None])

    def of(self, gradients: StepGradients) -> list[torch.Tensor]:
        """Return the parameters that coast in a step."""
        if self.from_start:
            return gradients.idle
        return [parameter for parameter in gradients.idle if id(parameter) in self._trained]

    def add(self, trained: list[torch.Tensor]) -> list[torch.Tensor]:
        """Have parameters coast from now on wherever they are idle; return those that are new."""
        new = [parameter for parameter in trained if id(parameter) not in self._trained]
        self._trained.update((id(parameter), parameter) for parameter in new)
        return new

    def discard(self, parameters: list[torch.Tensor]) -> None:
        """Have these parameters not coast, as before their first training."""
        for parameter in parameters:
            del self._trained[id(parameter)]

    def untrained(self, param_groups: list[dict[str, Any]]) -> list[int]:
        """Return the numbers, over all param groups, of the parameters that do not coast yet."""
        parameters = [p for group in param_groups for p in group["params"]]
        return [n for n, parameter in enumerate(parameters) if id(parameter) not in self._trained]

    def restore(self, param_groups: list[dict[str, Any]], untrained: list[int]) -> None:
        """Go back to what `untrained` has returned."""
        self._trained = {}
        parameters = [p for group in param_groups for p in group["params"]]
        left = set(untrained)
        self.add([parameter for n, parameter in enumerate(parameters) if n not in left])


class ZeroedGradients:
    """Gradients that a host only zeroes between updates, of parameters that are to freeze.

    A parameter whose gradient is None is idle. Of a host that sets them to zero in place
    (`zero_grad(set_to_none=False)`) those of the last subnet stay, and would pass for gradients of
    the next one: they are taken away. It shows by a gradient that outlasts an update.
    """

    def __init__(self) -> None:
        self._marked: list[torch.Tensor] = []  # parameters
        self._updates = 0
        self._are_zeroed = False

    def before_update(self) -> None:
        """Take away gradients of the last update that hold zeros now, the first time."""
        outlasting = [p for p in self._marked if hasattr(p.grad, MARK)]
        self._marked = []
        self._are_zeroed |= bool(outlasting)
        for parameter in outlasting:
            if parameter.grad is not None and not parameter.grad.any():
                parameter.grad = None

    def after_update(self, gradients: StepGradients) -> None:
        """Look whether these gradients are there still before the next update."""
        if self._are_zeroed:
            for parameter in gradients.trained:
                parameter.grad = None
            return
        self._updates += 1
        # What a host does shows in its first updates; from then on one gradient is a sample.
        self._marked = gradients.trained if self._updates <= FIRST else gradients.first
        for parameter in self._marked:
            # An attribute lasts as long as the tensor, and holds none alive.
            setattr(parameter.grad, MARK, True)


MARK, FIRST = "_nas_dynamic_last_update", 16
