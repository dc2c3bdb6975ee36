"""Checkpoint files that a kill cannot break, and whose damage is noticed."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from nas_dynamic.storage.journal import RunError, writing

__all__ = ["CheckpointError", "exists", "load", "save", "verify"]


# What zipfile and torch raise for files that are not whole.
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


_damaged: set[Path] = set()
# Or missing. Of these, `load` has found the one before to be the last good one: `save` keeps that
# instead.


class CheckpointError(RunError):
    """A checkpoint file cannot be used; the message says why, and what to do."""


def save(path: str | Path, content: Any) -> None:
    """Write a checkpoint, and keep the one before it as `PATH.previous`.

    A process that is killed at any point, and a machine that loses power, leave the old file or
    the new one, in full. The file is one of `torch.save`. For one writer: in a distributed
    training, save on one rank.

    Args:
        path: of the file; its folder is made.
        content: what `torch.save` takes; plain data and tensors, so that `load` takes it.

    Raises:
        RunError: the file cannot be written, for the disk is full, say.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path, temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and path.resolve() not in _damaged:
            _keep(path)
        temporary.replace(path)
        _damaged.discard(path.resolve())
        _sync_folder(path.parent)


def exists(path: str | Path) -> bool:
    """Whether there is a checkpoint of this path for `load`, or the one before."""
    return Path(path).exists() or _previous(Path(path)).exists()


def load(path: str | Path, map_location: Any = None) -> Any:
    """Read the checkpoint of a path, or, with a warning, the one before: it is damaged or gone.

    No code of the file is run (`weights_only=True`).

    Raises:
        FileNotFoundError: there is neither.
        CheckpointError: neither can be read; the message says what is wrong with each.
    """
    path = Path(path)
    if not exists(path):
        raise FileNotFoundError(f"there is no checkpoint {path}")
    told = path.resolve() in _damaged
    faults = []
    for candidate in (path, _previous(path)):
        try:
            if not candidate.exists():
                raise CheckpointError(f"{candidate} is missing")
            content = verify(candidate, map_location)
        except CheckpointError as error:
            faults.append(str(error))
            if candidate == path:
                _damaged.add(path.resolve())
            continue
        if faults and not told:
            warnings.warn(f"{faults[0]}; went back to {candidate}", UserWarning, stacklevel=2)
        return content
    raise CheckpointError(
        "; ".join(faults) + ". Put a copy in the place of one, or remove them to train anew"
    )


def verify(path: str | Path, map_location: Any = None) -> Any:
    """Read just this file, with its checksums, which `torch.load` leaves alone.

    Takes the checkpoints of Lightning, timm and any other `torch.save` as well.

    Raises:
        CheckpointError: the file is truncated, altered, or of another kind.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError(
                f"{path} is no checkpoint of torch, or has been cut off: it has "
                f"{path.stat().st_size:,} bytes and no zip directory at its end"
            )
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of its part {damaged} differs")
        return torch.load(path, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and plain data, so it is not loaded: {error}"
        ) from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _keep(path: Path) -> None:
    """Give a file the name of the one before as well: its own name is never missing."""
    second = path.with_name(f"{path.name}.previous.tmp")
    second.unlink(missing_ok=True)
    try:
        os.link(path, second)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, second)
    second.replace(_previous(path))


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _sync_folder(folder: Path) -> None:
    """Have the renames outlast a loss of power; Windows cannot open a folder, and need not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
