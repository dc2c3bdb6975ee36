"""Methods of one optimizer object, with something around them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["INTERCEPTED", "intercept"]

INTERCEPTED = ("step", "state_dict", "load_state_dict", "__getstate__")
"""Methods that attachment puts something around."""


def intercept(
    optimizer: torch.optim.Optimizer, name: str, around: Callable[..., Any]
) -> Callable[[], None]:
    """Let `around(method, *args, **kwargs)` stand for a method of this one optimizer object.

    torch's lr schedulers put something around `step` in the same way. Hooks of torch would not do:
    step hooks do not run where the step raises, and a class whose `load_state_dict` is its own need
    not call those of checkpoints.

    Returns:
        What ends it.
    """
    method, replaced = getattr(optimizer, name), vars(optimizer).get(name)
    ended = False

    @functools.wraps(getattr(method, "__func__", method))
    def intercepted(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if ended:
            return method(*args, **kwargs)
        return around(method, *args, **kwargs)

    def end() -> None:
        nonlocal ended
        ended = True
        # Or a scheduler has put something around it in turn, and calls it still.
        if vars(optimizer).get(name) is bound:
            delattr(optimizer, name)
            if replaced is not None:
                setattr(optimizer, name, replaced)

    bound = types.MethodType(intercepted, optimizer)
    setattr(optimizer, name, bound)
    return end
