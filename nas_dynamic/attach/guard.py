"""What looks at every step beside the update itself."""

from __future__ import annotations

from nas_dynamic.attach.gradients import StepGradients

__all__ = ["Guard"]


class Guard:
    """A check of every step; the defaults check nothing.

    Attributes:
        left_to_device: whether it has left the update at hand to the optimizer's own kernels,
            which leave it out where `optimizer.found_inf` is not zero.
    """

    left_to_device = False

    def allows_update(self, gradients: StepGradients) -> bool:
        """Return whether the update is made; raise to stop the training before it.

        Args:
            gradients: of the step; at least one parameter has one.
        """
        return True

    def after_step(self) -> None:
        """Check after a step, whether it was an update or not."""
