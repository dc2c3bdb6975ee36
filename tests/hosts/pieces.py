"""Pieces of work that test_ray.py has computed by other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import ray
import torch

from nas_dynamic.experiment.engine import Place


def meet(files: tuple[Path, Path], place: Place) -> str:
    """Return the node, once the piece with these files the other way round is computed as well."""
    mine, other = files
    mine.touch()
    while not other.exists():
        time.sleep(0.01)
    return ray.get_runtime_context().get_node_id()


def threads(argument: int, place: Place) -> tuple[int, Path | None]:
    return torch.get_num_threads(), place.folder


def survive(deaths: int, place: Place) -> int:
    """Return the number of starts; each but the last is killed after it has left a file."""
    assert place.folder is not None
    starts = place.folder / "starts"
    before = int(starts.read_text()) if starts.exists() else 0
    starts.write_text(str(before + 1))
    (place.folder / "half.tmp").write_text("half")
    place.work("survive")(before + 1, deaths + 1)
    if before < deaths:
        die(None, place)
    return before + 1


def die(argument: object, place: Place) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error: Exception, place: Place) -> None:
    raise error
