"""A truth that a device knows, on its way to the host."""

from __future__ import annotations

import torch

__all__ = ["DeviceFlag"]


class DeviceFlag:
    """Whether a number on a device is not zero; to make one waits for nothing, to ask may.

    Asked a step later, the device has work of that step in its queue, and goes on meanwhile.

    Args:
        number: a tensor of one element.
    """

    def __init__(self, number: torch.Tensor) -> None:
        self._number = number.detach()
        self._copied: torch.cuda.Event | None = None
        if number.is_cuda:
            self._number = torch.empty_like(self._number, device="cpu", pin_memory=True)
            self._number.copy_(number, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(number.device))

    def __bool__(self) -> bool:
        """Wait until it is known, and return it."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._number)
