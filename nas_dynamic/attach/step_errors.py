"""Notice that `optimizer.step()` has raised: torch's step hooks run only where it has not."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["on_step_error"]


def on_step_error(optimizer: torch.optim.Optimizer, call: Callable[[], None]) -> Callable[[], None]:
    """Call back when the `step` of this one optimizer raises, before the error goes on.

    It wraps the method of the instance, as torch's lr schedulers do.

    Returns:
        What ends it.
    """
    step, replaced = optimizer.step, vars(optimizer).get("step")
    ended = False

    @functools.wraps(getattr(step, "__func__", step))
    def watched(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        try:
            return step(*args, **kwargs)
        except BaseException:
            if not ended:
                call()
            raise

    def end() -> None:
        nonlocal ended
        ended = True
        # Or a scheduler has wrapped it in turn, and calls it still.
        if vars(optimizer).get("step") is method:
            del optimizer.step
            if replaced is not None:
                optimizer.step = replaced  # type: ignore[method-assign]

    method = types.MethodType(watched, optimizer)
    optimizer.step = method  # type: ignore[method-assign]
    return end
