"""Which call of `step()` is the one of the host, of those that torch's step hooks see."""

from __future__ import annotations

import sys
from types import FrameType

import torch

__all__ = ["OuterStep"]


class OuterStep:
    """Tells the call of the host from those of `super().step()` inside of it.

    Of a subclass that calls `super().step()` torch hooks both, if there has ever been a plain
    instance of the parent.
    """

    def __init__(self) -> None:
        self._outer: FrameType | None = None
        self._inner = 0

    def enter(self) -> bool:
        """Note a call, in its pre-hook; return whether it is the host's."""
        if torch.compiler.is_compiling():
            _refuse_compilation()
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "optimizer.step() is captured into a CUDA graph, which would replay the lr and the "
                "momentum group of this one subnet for ever; capture forward and backward alone, "
                "such as by torch.cuda.make_graphed_callables, and call optimizer.step() outside"
            )
        if self._outer is not None and _is_running(self._outer):
            self._inner += 1
            return False
        self._outer, self._inner = sys._getframe(2), 0
        return True

    def leave(self) -> bool:
        """Note the end of a call, in its post-hook; return whether it is the host's."""
        if self._inner:
            self._inner -= 1
            return False
        self._outer = None
        return True

    def reset(self) -> None:
        """Forget the call: it has raised."""
        self._outer, self._inner = None, 0


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
