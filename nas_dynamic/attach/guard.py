"""What looks at every step beside the update itself."""

from __future__ import annotations

import torch

__all__ = ["Guard"]


class Guard:
    """A check of every step; the defaults check nothing."""

    def allows_update(self, trained: list[torch.Tensor]) -> bool:
        """Return whether the update is made; raise to stop the training before it.

        Args:
            trained: the parameters that have a gradient, at least one.
        """
        return True

    def after_step(self) -> None:
        """Check after a step, whether it was an update or not."""
