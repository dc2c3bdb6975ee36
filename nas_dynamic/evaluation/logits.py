"""Logits of scored subnets, kept in files and read as memory maps."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import numpy as np

from nas_dynamic.space import Architecture, candidate_text
from nas_dynamic.storage.journal import writing

__all__ = ["KeptLogits"]


class KeptLogits:
    """A folder with the logits of subnets, a file each: what is not read takes no memory.

    Each file is whole or not there, so that scoring may be stopped at any time.

    Args:
        folder: is made where it is not there. One for each supernet and set of images.

    Example:
        >>> import tempfile
        >>> kept = KeptLogits(tempfile.mkdtemp())
        >>> kept.keep({"width": 8}, np.zeros((2, 10), dtype=np.float32))
        >>> {"width": 8} in kept, {"width": 16} in kept, kept[{"width": 8}].shape
        (True, False, (2, 10))
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def keep(self, architecture: Architecture, logits: np.ndarray) -> None:
        """Write the logits of a subnet, float of shape (images, classes)."""
        path = self._path(architecture)
        temporary = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
        with writing(path, temporary):
            with temporary.open("wb") as file:
                np.save(file, logits, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)

    def __contains__(self, architecture: Architecture) -> bool:
        return self._path(architecture).exists()

    def __getitem__(self, architecture: Architecture) -> np.ndarray:
        """Return the logits of a subnet as a memory map, shape (images, classes).

        Raises:
            KeyError: they are not kept.
        """
        path = self._path(architecture)
        if not path.exists():
            raise KeyError(
                f"{self.folder} has no logits of {dict(architecture)}; score it with "
                "score_subnets(…, logits=…)"
            )
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped

    def _path(self, architecture: Architecture) -> Path:
        chosen = sorted((str(label), candidate_text(c)) for label, c in architecture.items())
        return self.folder / f"{hashlib.sha256(json.dumps(chosen).encode()).hexdigest()[:32]}.npy"
