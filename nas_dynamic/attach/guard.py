"""What looks at every step beside the update itself."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nas_dynamic.attach.gradients import StepGradients

__all__ = ["Guard", "UpToDevice"]


class UpToDevice(NamedTuple):
    """Leave it to the kernels of a fused optimizer whether an update is made.

    Attributes:
        found_inf: a number on the device; the update is left out where it is not zero.
    """

    found_inf: torch.Tensor


class Guard:
    """A check of every step; the defaults check nothing."""

    def allows_update(self, gradients: StepGradients) -> bool | UpToDevice:
        """Return whether the update is made; raise to stop the training before it.

        Args:
            gradients: of the step; at least one parameter has one.
        """
        return True

    def after_step(self) -> None:
        """Check after a step, whether it was an update or not."""
