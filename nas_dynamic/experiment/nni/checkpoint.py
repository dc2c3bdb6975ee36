"""Checkpoints of a Lightning trainer that a kill cannot break."""

from __future__ import annotations

from typing import Any

from nas_dynamic._extras import extra
from nas_dynamic.storage.checkpoint import load, save

with extra("nni"):
    from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

__all__ = ["SafeCheckpoints"]


class SafeCheckpoints(TorchCheckpointIO):
    """Writes and reads by `nas_dynamic.storage.checkpoint`: `Trainer(plugins=[SafeCheckpoints()])`.

    Lightning's own writes into the folder for temporary files and moves from there, which copies
    where that is on another file system: a kill then leaves half a checkpoint. For local paths.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write in full or not at all, and keep the one before."""
        save(path, checkpoint)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read, verified; plain data and tensors only."""
        checkpoint: dict[str, Any] = load(path, map_location)
        return checkpoint
