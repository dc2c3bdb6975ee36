"""What runs leave on disk: JSON that is either there in full or not at all."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["RunError", "environment", "write_json"]

PACKAGES = ("nas-dynamic", "torch", "torchvision", "numpy", "nni", "pytorch-lightning")


class RunError(ValueError):
    """A run cannot be made as it was asked for; the message says what to change."""


def write_json(path: Path, content: Any) -> None:
    """Write plain data; a reader, or a start after a crash, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware that a result depends on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
